//! What a pickle of tensors is made of.

use ::safetensors::Dtype;

/// A complaint, without its place.
pub(super) type Result<T> = std::result::Result<T, String>;

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
    Storage(Storage),
    Tensor(Tensor),
}

/// A storage: `elements` (an integer) numbers of `dtype` in the archive's entry `data/KEY` (a text).
#[derive(Clone, Copy)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    pub(super) key: Id,
    pub(super) elements: Id,
}

/// A view of a storage; offset (an integer) and strides (a tuple of them, as the shape) in elements.
#[derive(Clone, Copy)]
pub(super) struct Tensor {
    pub(super) storage: Id,
    pub(super) offset: Id,
    pub(super) shape: Id,
    pub(super) strides: Id,
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

    /// The text at `id`, if it is one.
    pub(super) fn text(&self, id: Id) -> Option<&'p str> {
        match *self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number at `id`, one that was checked to be a size when it was read.
    pub(super) fn size(&self, id: Id) -> u64 {
        match *self.get(id) {
            Value::Integer(number) => u64::try_from(number).expect("checked when it was read"),
            _ => unreachable!("checked when it was read"),
        }
    }

    /// The numbers of the tuple at `id`, checked to be one of sizes when it was read.
    pub(super) fn sizes(&self, id: Id) -> Vec<u64> {
        match self.get(id) {
            Value::Tuple(items) => items.iter().map(|&item| self.size(item)).collect(),
            _ => unreachable!("checked when it was read"),
        }
    }
}
