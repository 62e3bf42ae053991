//! What a pickle of tensors is made of.

use ::safetensors::Dtype;

use super::pickle::Result;

/// A value's place among those of its [`Pickle`].
pub(super) type Id = u32;

/// What a pickle holds.
pub(super) struct Pickle<'p> {
    pub(super) values: Vec<Value<'p>>,
    pub(super) root: Id,
}

/// A value; of what nothing here reads, only that it is there.
pub(super) enum Value<'p> {
    /// None, a truth value, a number with a fraction or of more than 64 bits, bytes.
    Opaque,
    Integer(i64),
    Text(&'p str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<[Id; 2]>),
    Global(Global),
    Storage(Box<Storage<'p>>),
    Tensor(Box<Tensor>),
}

/// A storage: `elements` numbers of `dtype` in the archive's entry `data/KEY`.
pub(super) struct Storage<'p> {
    pub(super) dtype: Dtype,
    pub(super) key: &'p str,
    pub(super) elements: u64,
}

/// A view of a storage; offset and strides in elements.
pub(super) struct Tensor {
    pub(super) storage: Id,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// The names that a pickle may use, as data.
#[derive(Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Dtype),
}

impl Global {
    pub(super) fn of(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Self::Storage(Dtype::I16),
            ("torch", "CharStorage") => Self::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Self::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Self::Storage(Dtype::BOOL),
            _ => {
                return Err(format!(
                    "names {module}.{name}, which is no part of a state dict of tensors; nothing was executed. \
                     Save the state dict alone"
                ));
            }
        })
    }
}

impl<'p> Pickle<'p> {
    /// The whole.
    pub(super) fn root(&self) -> &Value<'p> {
        self.get(self.root)
    }

    /// The value at `id`.
    pub(super) fn get(&self, id: Id) -> &Value<'p> {
        &self.values[id as usize]
    }
}
