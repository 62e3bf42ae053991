//! The functions of libcublasLt, as cublasLt.h of CUDA 12 and 13 declares them.

use super::{ALIGNMENT, Storage};
use crate::error::{Error, Result};
use crate::tensor::Element;
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use half::bf16;
use std::ffi::{OsStr, c_int, c_void};
use std::ptr;

/// An address: of something the library made, or of a value it reads.
type Address = *const c_void;

/// cublasStatus_t
#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
pub(super) struct Status(c_int);

impl Status {
    const SUCCESS: Self = Self(0);
    const NOT_SUPPORTED: Self = Self(15);

    pub(super) fn check(self, what: &str) -> Result<()> {
        if self == Self::SUCCESS {
            return Ok(());
        }
        Err(Error::device(format!("cuBLASLt failed to {what}: cublasStatus_t {}", self.0)))
    }
}

/// cublasLtMatmulHeuristicResult_t
#[repr(C)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}
const _: () = assert!(size_of::<Heuristic>() == 96);

/// cudaDataType_t
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub(crate) enum DataType {
    F32 = 0,
    Bf16 = 14,
}

/// What a product consists of.
pub(crate) trait ProductElement: Element {
    const TYPE: DataType;
}
impl ProductElement for f32 {
    const TYPE: DataType = DataType::F32;
}
impl ProductElement for bf16 {
    const TYPE: DataType = DataType::Bf16;
}
/// cublasComputeType_t
const COMPUTE_32F: c_int = 68;
/// cublasLtMatmulDescAttributes_t
const DESCRIPTION_TRANSA: c_int = 3;
const DESCRIPTION_TRANSB: c_int = 4;
const DESCRIPTION_EPILOGUE: c_int = 7;
const DESCRIPTION_BIAS_POINTER: c_int = 8;
/// cublasOperation_t
const TRANSPOSED: c_int = 1;
/// cublasLtEpilogue_t
const EPILOGUE_BIAS: u32 = 4;
/// cublasLtMatmulPreferenceAttributes_t; alignments of a, b, c and d follow one another.
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTION: c_int = 3;
const PREFERENCE_ALIGNMENT_A: c_int = 5;
/// cublasLtReductionScheme_t: parts of a sum stay in `f32` until they are added. The others would round them
/// to bf16 in between.
const REDUCTION_IN_COMPUTE_TYPE: u32 = 2;

macro_rules! functions {
    ($($name:ident = $symbol:literal($($type:ty),*);)*) => {
        struct Functions { $($name: unsafe extern "C" fn($($type),*) -> Status,)* }

        impl Functions {
            fn load(library: &libloading::Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the types are those of the library's header.
                unsafe { Ok(Self { $($name: *library.get($symbol)?,)* }) }
            }
        }
    };
}
functions! {
    create = c"cublasLtCreate"(*mut Address);
    destroy = c"cublasLtDestroy"(Address);
    description_create = c"cublasLtMatmulDescCreate"(*mut Address, c_int, c_int);
    description_destroy = c"cublasLtMatmulDescDestroy"(Address);
    description_set = c"cublasLtMatmulDescSetAttribute"(Address, c_int, Address, usize);
    layout_create = c"cublasLtMatrixLayoutCreate"(*mut Address, c_int, u64, u64, i64);
    layout_destroy = c"cublasLtMatrixLayoutDestroy"(Address);
    preference_create = c"cublasLtMatmulPreferenceCreate"(*mut Address);
    preference_destroy = c"cublasLtMatmulPreferenceDestroy"(Address);
    preference_set = c"cublasLtMatmulPreferenceSetAttribute"(Address, c_int, Address, usize);
    heuristic = c"cublasLtMatmulAlgoGetHeuristic"(
        Address, Address, Address, Address, Address, Address, Address, c_int, *mut Heuristic, *mut c_int
    );
    multiply = c"cublasLtMatmul"(
        Address, Address, *const f32, Address, Address, Address, Address, *const f32, Address, Address,
        *mut c_void, Address, *const [u64; 8], *mut c_void, usize, CUstream
    );
}

/// Something that the library made.
pub(super) struct Handle {
    address: Address,
    destroy: unsafe extern "C" fn(Address) -> Status,
}

impl Handle {
    fn new(
        what: &str,
        create: impl FnOnce(*mut Address) -> Status,
        destroy: unsafe extern "C" fn(Address) -> Status,
    ) -> Result<Self> {
        let mut address = ptr::null();
        create(&mut address).check(what)?;
        Ok(Self { address, destroy })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: owned, and the library outlives what it made.
        unsafe { (self.destroy)(self.address) };
    }
}

/// A product of one form: its description, the layouts of its matrices, and how it is computed.
pub(super) struct Operation {
    description: Handle,
    /// Of a, b, c and d of d = a·b + c.
    layouts: [Handle; 4],
    algorithm: [u64; 8],
}

/// The library, loaded and started. Fields are dropped in their order.
pub(super) struct Library {
    handle: Handle,
    functions: Functions,
    _library: libloading::Library,
}

impl Library {
    /// Loads the library of this name or path and starts it on the current context; else says why not.
    pub(super) fn open(name: &OsStr) -> std::result::Result<Self, String> {
        // SAFETY: NVIDIA's library, whose initialisation is its own.
        let library = unsafe { libloading::Library::new(name) }.map_err(|error| error.to_string())?;
        let functions = Functions::load(&library).map_err(|error| error.to_string())?;
        // SAFETY: writes one address.
        let create = |to| unsafe { (functions.create)(to) };
        let handle = Handle::new("start", create, functions.destroy).map_err(|error| error.to_string())?;
        Ok(Self { handle, functions, _library: library })
    }

    /// What computes d [rows, cols] = a·b + c + bias, of matrices (rows, columns, elements from a column to the
    /// next) that run by columns: a and b of bf16, and which of them are transposed; c and d of `results`. A bias has
    /// d's rows and elements. None if the library cannot.
    pub(super) fn operation(
        &self,
        factors: [(u32, u32, u32); 2],
        storage: [Storage; 2],
        [c, d]: [(u32, u32, u32); 2],
        results: DataType,
        bias: Option<usize>,
        workspace_bytes: usize,
    ) -> Result<Option<Operation>> {
        let functions = &self.functions;
        // SAFETY: writes one address.
        let create = |to| unsafe { (functions.description_create)(to, COMPUTE_32F, DataType::F32 as c_int) };
        let description = Handle::new("describe a product", create, functions.description_destroy)?;
        for (storage, attribute) in storage.into_iter().zip([DESCRIPTION_TRANSA, DESCRIPTION_TRANSB]) {
            if storage == Storage::Transposed {
                self.describe(&description, attribute, &TRANSPOSED)?;
            }
        }
        if let Some(bias) = bias {
            self.describe(&description, DESCRIPTION_EPILOGUE, &EPILOGUE_BIAS)?;
            self.describe(&description, DESCRIPTION_BIAS_POINTER, &bias)?;
        }
        let layout = |element: DataType, (rows, cols, pitch): (u32, u32, u32)| {
            // SAFETY: writes one address.
            let create = |to| unsafe {
                (functions.layout_create)(to, element as c_int, rows.into(), cols.into(), pitch.into())
            };
            Handle::new("describe a matrix", create, functions.layout_destroy)
        };
        let [a, b] = factors;
        let (a, b) = (layout(DataType::Bf16, a)?, layout(DataType::Bf16, b)?);
        let layouts = [a, b, layout(results, c)?, layout(results, d)?];
        // SAFETY: writes one address.
        let create = |to| unsafe { (functions.preference_create)(to) };
        let preference = Handle::new("describe algorithms", create, functions.preference_destroy)?;
        self.prefer(&preference, PREFERENCE_WORKSPACE, &workspace_bytes)?;
        self.prefer(&preference, PREFERENCE_REDUCTION, &REDUCTION_IN_COMPUTE_TYPE)?;
        for matrix in 0..4 {
            self.prefer(&preference, PREFERENCE_ALIGNMENT_A + matrix, &ALIGNMENT)?;
        }
        let [a, b, c, d] = layouts.each_ref().map(|layout| layout.address);
        let mut found = Heuristic {
            algorithm: [0; 8],
            workspace_bytes: 0,
            state: Status(0),
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut count = 0;
        // SAFETY: all were made above by the same library, which writes one result and their number.
        let status = unsafe {
            (functions.heuristic)(
                self.handle.address,
                description.address,
                a,
                b,
                c,
                d,
                preference.address,
                1,
                &mut found,
                &mut count,
            )
        };
        if status != Status::NOT_SUPPORTED {
            status.check("find an algorithm")?;
        }
        let has_algorithm = count == 1 && found.state == Status::SUCCESS;
        Ok(has_algorithm.then_some(Operation { description, layouts, algorithm: found.algorithm }))
    }

    /// Where the bias is from now on.
    pub(super) fn set_bias(&self, operation: &Operation, bias: usize) -> Result<()> {
        self.describe(&operation.description, DESCRIPTION_BIAS_POINTER, &bias)
    }

    /// Starts d = a·b + beta·c + bias on the stream.
    ///
    /// # Safety
    /// The addresses are of matrices on the stream's device as the operation describes them, aligned to
    /// 16 bytes, and of memory of so many bytes that nothing else uses meanwhile.
    pub(super) unsafe fn multiply(
        &self,
        operation: &Operation,
        [a, b, c]: [usize; 3],
        beta: f32,
        d: usize,
        (workspace, workspace_bytes): (CUdeviceptr, usize),
        stream: CUstream,
    ) -> Result<()> {
        let [a_layout, b_layout, c_layout, d_layout] =
            operation.layouts.each_ref().map(|layout| layout.address);
        // SAFETY: as the caller promises.
        let status = unsafe {
            (self.functions.multiply)(
                self.handle.address,
                operation.description.address,
                &1.0,
                a as Address,
                a_layout,
                b as Address,
                b_layout,
                &beta,
                c as Address,
                c_layout,
                d as *mut c_void,
                d_layout,
                &operation.algorithm,
                workspace as *mut c_void,
                workspace_bytes,
                stream,
            )
        };
        status.check("multiply matrices")
    }

    fn describe<T>(&self, description: &Handle, attribute: c_int, value: &T) -> Result<()> {
        let value = ptr::from_ref(value);
        // SAFETY: reads one value of this size.
        let status = unsafe {
            (self.functions.description_set)(description.address, attribute, value.cast(), size_of::<T>())
        };
        status.check("describe a product")
    }

    fn prefer<T>(&self, preference: &Handle, attribute: c_int, value: &T) -> Result<()> {
        let value = ptr::from_ref(value);
        // SAFETY: reads one value of this size.
        let status = unsafe {
            (self.functions.preference_set)(preference.address, attribute, value.cast(), size_of::<T>())
        };
        status.check("describe algorithms")
    }
}
