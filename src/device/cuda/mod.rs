//! NVIDIA GPUs: memory, one stream, and the kernels that `build.rs` compiled, through cudarc.
//!
//! Everything runs on one stream in the order it was asked for; only reading a result waits for it.

mod copy;
mod cublaslt;
mod graph;
mod image;
mod kernel;
mod limits;
mod scratch;
mod tensor_map;

pub(crate) use cublaslt::{Factor, LinearProduct, Results};
pub use image::{COMPILER, Image, UNITS, Unit};
pub(crate) use kernel::{Arguments, Extent, Grid, In, Out, arguments, assert_aligned, count, vector_width};
pub use limits::Limits;
pub(crate) use tensor_map::TensorMap;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Element, Number, NumberType, Packing, View, ViewMut, WeightMut};
use copy::Pieces;
use cublaslt::CublasLt;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use half::bf16;
use kernel::Kernels;
use rayon::prelude::*;
use scratch::Scratch;
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Numbers that a task on the host converts at least.
const PER_TASK: usize = 1 << 14;
/// The oldest CUDA a driver has to support.
const OLDEST_CUDA: i32 = 12_000;
/// The oldest GPUs that have bf16 and asynchronous copies: Ampere.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// A GPU: bf16 weights and activations, `f32` statistics and gradients of parameters.
#[derive(Clone)]
pub struct Cuda(Arc<Gpu>);

struct Gpu {
    /// Absent where it is not installed, or not wanted.
    cublaslt: Option<CublasLt>,
    scratch: Scratch,
    stream: Arc<CudaStream>,
    /// Used while a graph is captured, by one thread at a time.
    captured: Arc<CudaStream>,
    capture: Mutex<()>,
    context: Arc<CudaContext>,
    kernels: Kernels,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
    shared_bytes: u32,
}

impl Cuda {
    /// Whether this machine has NVIDIA's driver, without which there is no GPU to speak of.
    pub fn has_driver() -> bool {
        // SAFETY: loads the driver's library, whose initialisation is its own.
        unsafe { sys::is_culib_present() }
    }

    /// Opens the GPU of this number, counted from 0.
    ///
    /// Where cuBLASLt is installed, it computes those products for which it is measured to be faster; two
    /// processes may choose differently, and their results differ in the last bits. The environment variable
    /// `QFORMER_GEMM` settles it: `own` uses the crate's kernels only, with the same bits in every process,
    /// `cublaslt` whatever cuBLASLt can do. `QFORMER_CUBLASLT` is the library's path where the loader does not
    /// find it.
    ///
    /// # Errors
    /// Fails, saying what is missing, if the crate was built without kernels for this GPU, or there is no driver,
    /// no such GPU, or one too old; or if `QFORMER_GEMM` or `QFORMER_CUBLASLT` asks for what there is not.
    pub fn open(ordinal: usize) -> Result<Self> {
        COMPILER.map_err(|why| {
            Error::device(format!("this build has no CUDA kernels: {why}; then build again"))
        })?;
        let driver = |error: DriverError| {
            Error::device(format!("the NVIDIA driver does not start: {}", describe(error)))
        };
        if !Self::has_driver() {
            return Err(Error::device("there is no NVIDIA driver (libcuda) on this machine"));
        }
        result::init().map_err(driver)?;
        let mut version = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(driver)?;
        if version < OLDEST_CUDA {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(Error::device(format!(
                "the NVIDIA driver supports CUDA {major}.{minor}; install one for CUDA 12.0 or newer"
            )));
        }
        let devices = CudaContext::device_count().map_err(driver)?;
        if ordinal >= usize::try_from(devices).unwrap_or(0) {
            return Err(Error::device(format!("there is no GPU {ordinal}; the NVIDIA driver has {devices}")));
        }
        let context = CudaContext::new(ordinal).map_err(driver)?;
        let name = context.name().map_err(driver)?;
        let attribute = |which| context.attribute(which).map(|value| value.unsigned_abs()).map_err(driver);
        use sys::CUdevice_attribute as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST_CAPABILITY {
            let (major, minor) = capability;
            return Err(Error::device(format!(
                "the GPU, {name}, has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed"
            )));
        }
        if !image::all_have_images(UNITS, capability) {
            let (major, minor) = capability;
            return Err(Error::device(format!(
                "this build has no kernels for compute capability {major}.{minor}, which the GPU, {name}, has; build again without QFORMER_CUDA_ARCHITECTURES"
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let [stream, captured] =
            [context.new_stream().map_err(driver)?, context.new_stream().map_err(driver)?];
        let capture = Mutex::new(());
        let cublaslt = CublasLt::open(&context, &stream)?;
        let scratch = Scratch::new(&stream);
        let kernels = Kernels::default();
        Ok(Self(Arc::new(Gpu {
            cublaslt,
            scratch,
            stream,
            captured,
            capture,
            context,
            kernels,
            name,
            capability,
            multiprocessors,
            shared_bytes,
        })))
    }

    /// The GPU's name, such as "NVIDIA H200".
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Compute capability, such as (9, 0).
    pub fn capability(&self) -> (u32, u32) {
        self.0.capability
    }

    /// Number of multiprocessors.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// Shared memory that one block can have.
    pub(crate) fn shared_bytes(&self) -> u32 {
        self.0.shared_bytes
    }

    /// Starts a kernel on the stream; a grid without blocks is no work.
    pub(crate) fn launch<A: Arguments>(&self, grid: Grid, arguments: A) -> Result<()> {
        self.launch_variant(A::KERNEL[1], grid, arguments)
    }

    /// The same for the kernel of this name, one of several in a unit that take the same arguments.
    pub(crate) fn launch_variant<A: Arguments>(
        &self,
        kernel: &'static str,
        grid: Grid,
        arguments: A,
    ) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let function = self.0.kernels.get([A::KERNEL[0], kernel], self.0.capability, grid.shared_bytes)?;
        let [x, y, z] = grid.blocks;
        let mut pointers = [(&raw const arguments).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel's one parameter is the struct `A`, as its implementation promises; its
        // addresses are of views that the caller borrows, and what runs later on the same stream
        // runs after it.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                self.0.stream(),
                &mut pointers,
            )
        }
        .map_err(|error| failure(error, format_args!("start {kernel}")))
    }

    /// Waits until everything asked for is done.
    ///
    /// # Errors
    /// Fails if some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.stream.synchronize().map_err(|error| failure(error, "run the kernels"))
    }

    /// Makes the GPU the calling thread's own.
    fn bind(&self) -> Result<()> {
        self.0.context.bind_to_thread().map_err(|error| failure(error, "use the GPU"))
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability();
        write!(f, "{}, compute capability {major}.{minor}", self.name())
    }
}

/// Memory on a GPU.
pub struct CudaBuffer {
    address: sys::CUdeviceptr,
    bytes: usize,
    gpu: Arc<Gpu>,
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        // After a failure the context is lost, and its memory with it: nothing is left to do then.
        if self.gpu.context.bind_to_thread().is_ok() {
            // SAFETY: allocated on the same stream, and no view outlives the buffer; kernels that were
            // started before use it before it is freed.
            let _ = unsafe { result::free_async(self.address, self.gpu.stream.cu_stream()) };
        }
    }
}

impl super::sealed::Sealed for Cuda {}

impl Device for Cuda {
    type Elem = bf16;
    type Stat = f32;
    type Buffer = CudaBuffer;
    type Replay = graph::Replay;
    const IMAGES_PER_PASS: usize = 256;
    const ASYNCHRONOUS: bool = true;

    fn row_granularity(rows: usize) -> usize {
        graph::row_granularity(rows)
    }

    fn frozen_type(&self, _: NumberType) -> NumberType {
        NumberType::Bf16
    }

    fn frozen_packing(&self, inputs: usize) -> Packing {
        Packing::Rows { pitch: inputs }
    }

    fn allocate(&self, bytes: usize, purpose: &str) -> Result<CudaBuffer> {
        self.bind()?;
        let stream = self.0.stream();
        // An empty allocation has no address.
        let bytes = bytes.max(1);
        // SAFETY: the stream is alive.
        let address = unsafe { result::malloc_async(stream, bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::out_of_memory(bytes, purpose),
            _ => failure(error, format_args!("allocate memory for {purpose}")),
        })?;
        let buffer = CudaBuffer { address, bytes, gpu: self.0.clone() };
        // SAFETY: within the allocation.
        unsafe { result::memset_d8_async(address, 0, bytes, stream) }
            .map_err(|error| failure(error, "clear memory"))?;
        Ok(buffer)
    }

    fn free_memory(&self) -> Option<usize> {
        self.0.context.mem_get_info().ok().map(|(free, _)| free)
    }

    fn buffer_address(buffer: &CudaBuffer) -> *mut u8 {
        buffer.address as *mut u8
    }

    fn buffer_bytes(buffer: &CudaBuffer) -> usize {
        buffer.bytes
    }

    fn gpu_name(&self) -> Option<&str> {
        Some(self.name())
    }

    fn enter<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        pass()
    }

    unsafe fn replay(&self, replay: &mut Self::Replay, work: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.replayed(replay, work) }
    }

    fn write<E: Number>(&self, values: &[f32], first: usize, mut to: ViewMut<'_, Self, E>) -> Result<()> {
        let (shape, pitch) = (to.shape(), to.pitch());
        assert!(first + values.len() <= shape.len(), "{} values from {first} of {shape:?}", values.len());
        let values: Vec<E> = values.par_iter().with_min_len(PER_TASK).map(|&x| E::of_f32(x)).collect();
        for piece in Pieces::new(shape, pitch, first, values.len()) {
            self.copy_in(&values[piece.values], to.pointer().wrapping_add(piece.offset))?;
        }
        Ok(())
    }

    fn write_weight(&self, values: &[f32], first: usize, to: WeightMut<'_, Self>) -> Result<()> {
        self.write(values, first, to.into_matrix::<bf16>())
    }

    fn host_bytes<'a>(&self, _: Range<usize>, _: WeightMut<'a, Self>) -> Option<&'a mut [u8]> {
        None
    }

    fn write_indices(&self, values: &[u32], mut to: ViewMut<'_, Self, u32>) -> Result<()> {
        assert_eq!(to.shape().len(), values.len());
        assert!(to.rows() <= 1 || to.pitch() == to.cols(), "gaps between rows");
        self.copy_in(values, to.pointer())
    }

    fn copy<E: Element>(&self, from: View<'_, Self, E>, mut to: ViewMut<'_, Self, E>) -> Result<()> {
        assert_eq!(from.shape(), to.shape());
        let gaps = [from.pitch(), to.pitch()].iter().any(|&pitch| pitch != from.cols());
        assert!(from.rows() <= 1 || !gaps, "gaps between rows");
        let bytes = from.shape().len() * size_of::<E>();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let (from, to) = (from.pointer() as sys::CUdeviceptr, to.pointer() as sys::CUdeviceptr);
        // SAFETY: both are within views of so many bytes, one of which is exclusive.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.0.stream()) }
            .map_err(|error| failure(error, "copy within its memory"))
    }

    fn clear<E: Element>(&self, mut to: ViewMut<'_, Self, E>) -> Result<()> {
        assert!(to.rows() <= 1 || to.pitch() == to.cols(), "gaps between rows");
        let bytes = to.shape().len() * size_of::<E>();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let address = to.pointer() as sys::CUdeviceptr;
        // SAFETY: within the view.
        unsafe { result::memset_d8_async(address, 0, bytes, self.0.stream()) }
            .map_err(|error| failure(error, "clear memory"))
    }

    fn read<E: Number>(&self, from: View<'_, Self, E>) -> Result<Vec<f32>> {
        let mut values = vec![E::default(); from.shape().len()];
        for piece in Pieces::new(from.shape(), from.pitch(), 0, values.len()) {
            self.copy_out(from.pointer().wrapping_add(piece.offset), &mut values[piece.values])?;
        }
        self.synchronize()?;
        Ok(values.into_par_iter().with_min_len(PER_TASK).map(Number::to_f32).collect())
    }

    fn read_indices(&self, from: View<'_, Self, u32>) -> Result<Vec<u32>> {
        assert!(from.rows() <= 1 || from.pitch() == from.cols(), "gaps between rows");
        let mut values = vec![0; from.shape().len()];
        self.copy_out(from.pointer(), &mut values)?;
        self.synchronize()?;
        Ok(values)
    }
}

/// The driver's refusal to do `what`.
fn failure(error: DriverError, what: impl fmt::Display) -> Error {
    Error::device(format!("the GPU failed to {what}: {}", describe(error)))
}

/// The driver's name of an error and its explanation.
fn describe(error: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    };
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}
