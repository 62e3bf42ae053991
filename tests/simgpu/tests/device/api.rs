//! The driver's entry points as these tests call them, and a fresh context for each test.

use crate::driver;
use libloading::os::unix::{Library, Symbol};
use std::{
    ffi::{CString, c_void},
    ptr::null_mut,
    sync::{Mutex, MutexGuard, OnceLock},
};

pub(crate) type Handle = *mut c_void;

pub(crate) const SUCCESS: i32 = 0;
pub(crate) const INVALID_VALUE: i32 = 1;
pub(crate) const OUT_OF_MEMORY: i32 = 2;
pub(crate) const INVALID_IMAGE: i32 = 200;
pub(crate) const NO_BINARY_FOR_GPU: i32 = 209;
pub(crate) const INVALID_HANDLE: i32 = 400;
pub(crate) const NOT_FOUND: i32 = 500;
pub(crate) const NOT_READY: i32 = 600;
pub(crate) const ILLEGAL_ADDRESS: i32 = 700;
pub(crate) const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
pub(crate) const MISALIGNED_ADDRESS: i32 = 716;
pub(crate) const LAUNCH_FAILED: i32 = 719;
pub(crate) const STREAM_CAPTURE_UNSUPPORTED: i32 = 900;
pub(crate) const STREAM_CAPTURE_INVALIDATED: i32 = 901;
pub(crate) const STREAM_CAPTURE_ISOLATION: i32 = 905;

pub(crate) const PLANTED: &str = include_str!("../ptx/planted.ptx");
pub(crate) const SCALE: &str = include_str!("../ptx/scale.ptx");
pub(crate) const HOPPER: &str = include_str!("../ptx/hopper.ptx");

/// A context of its own; the tests of this process take turns.
pub(crate) struct Device {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

macro_rules! entry_points {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        #[expect(non_snake_case, clippy::too_many_arguments, reason = "the names and arguments are CUDA's")]
        impl Device {
            $(pub(crate) fn $name(&self, $($argument: $type),*) -> i32 {
                // SAFETY: the types are those of cuda.h; the tests pass pointers that live through the call.
                unsafe {
                    let name = concat!(stringify!($name), "\0");
                    let f: Symbol<unsafe extern "C" fn($($type),*) -> i32> = self.library.get(name.as_bytes()).unwrap();
                    f($($argument),*)
                }
            })*
        }
    };
}

entry_points! {
    cuInit(flags: u32);
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: i32);
    cuDevicePrimaryCtxReset_v2(device: i32);
    cuCtxSetCurrent(context: Handle);
    cuCtxSynchronize();
    cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut u64, bytes: usize);
    cuMemFree_v2(address: u64);
    cuMemFreeAsync(address: u64, stream: Handle);
    cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize);
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle);
    cuMemcpy2DAsync_v2(copy: *const Memcpy2D, stream: Handle);
    cuMemsetD32Async(address: u64, value: u32, count: usize, stream: Handle);
    cuStreamCreate(stream: *mut Handle, flags: u32);
    cuStreamDestroy_v2(stream: Handle);
    cuStreamSynchronize(stream: Handle);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32);
    cuStreamBeginCapture_v2(stream: Handle, mode: i32);
    cuStreamEndCapture(stream: Handle, graph: *mut Handle);
    cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64);
    cuGraphLaunch(executable: Handle, stream: Handle);
    cuGraphExecDestroy(executable: Handle);
    cuGraphDestroy(graph: Handle);
    cuEventCreate(event: *mut Handle, flags: u32);
    cuEventRecord(event: Handle, stream: Handle);
    cuEventQuery(event: Handle);
    cuModuleLoadData(module: *mut Handle, image: *const c_void);
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_void);
    cuFuncGetAttribute(value: *mut i32, attribute: i32, function: Handle);
    cuFuncSetAttribute(function: Handle, attribute: i32, value: i32);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut i32, function: Handle, threads: i32, shared: usize);
    cuLaunchKernel(function: Handle, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32,
        stream: Handle, params: *mut *const c_void, extra: Handle);
    cuLaunchKernelEx(config: *const LaunchConfig, function: Handle, params: *mut *const c_void, extra: Handle);
    cuTensorMapEncodeTiled(map: *mut TensorMap, data_type: u32, rank: u32, address: u64, sizes: *const u64,
        strides: *const u64, tile: *const u32, steps: *const u32, interleave: u32, swizzle: u32, promotion: u32,
        fill: u32);
    simgpu_statistics(launches: *mut u64, live_allocations: *mut u64, live_bytes: *mut u64);
    simgpu_reports(text: *mut c_void, size: usize);
}

/// As in cuda.h.
#[repr(C)]
pub(crate) struct Memcpy2D {
    pub(crate) src_x: usize,
    pub(crate) src_y: usize,
    pub(crate) src_type: u32,
    pub(crate) src_host: *const c_void,
    pub(crate) src_device: u64,
    pub(crate) src_array: Handle,
    pub(crate) src_pitch: usize,
    pub(crate) dst_x: usize,
    pub(crate) dst_y: usize,
    pub(crate) dst_type: u32,
    pub(crate) dst_host: Handle,
    pub(crate) dst_device: u64,
    pub(crate) dst_array: Handle,
    pub(crate) dst_pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// As in cuda.h.
#[repr(C)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: i32,
    pub(crate) padding: u32,
    pub(crate) value: [u32; 16],
}

/// As in cuda.h.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) stream: Handle,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) attribute_count: u32,
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);

/// What a launch says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: u32,
    pub(crate) threads: [u32; 2],
    pub(crate) shared: u32,
}

impl Device {
    /// A context as after the start of a process whose environment has these variables.
    pub(crate) fn new(environment: &[(&str, &str)]) -> Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        let library = LIBRARY.get_or_init(|| {
            let units = [("planted", PLANTED), ("scale", SCALE), ("hopper", HOPPER)];
            driver::load(&units.map(|(name, ptx)| simgpu::Unit { name, ptx }))
        });
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIMGPU_")) {
            // SAFETY: only the thread whose turn it is reads or changes these.
            unsafe { std::env::remove_var(name) };
        }
        for (name, value) in environment {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
        let device = Self { library, _turn: turn };
        assert_eq!(device.cuInit(0), SUCCESS);
        assert_eq!(device.cuDevicePrimaryCtxReset_v2(0), SUCCESS);
        device.bind();
        device
    }

    /// Makes the context this thread's.
    fn bind(&self) {
        let mut context = null_mut();
        assert_eq!(self.cuDevicePrimaryCtxRetain(&mut context, 0), SUCCESS);
        assert_eq!(self.cuCtxSetCurrent(context), SUCCESS);
    }

    pub(crate) fn allocate_in_this_thread(&self, bytes: usize) -> i32 {
        let mut address = 0;
        self.bind();
        self.cuMemAlloc_v2(&mut address, bytes)
    }

    pub(crate) fn function(&self, ptx: &str, name: &str) -> Handle {
        let (mut module, mut function) = (null_mut(), null_mut());
        let (text, name) = (CString::new(ptx).unwrap(), CString::new(name).unwrap());
        assert_eq!(self.cuModuleLoadData(&mut module, text.as_ptr().cast()), SUCCESS);
        assert_eq!(self.cuModuleGetFunction(&mut function, module, name.as_ptr().cast()), SUCCESS);
        function
    }

    pub(crate) fn upload<T>(&self, values: &[T]) -> u64 {
        let mut address = 0;
        assert_eq!(self.cuMemAlloc_v2(&mut address, size_of_val(values)), SUCCESS);
        assert_eq!(self.cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values)), SUCCESS);
        address
    }

    pub(crate) fn download<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        let error = self.cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, count * size_of::<T>());
        assert_eq!(error, SUCCESS);
        values
    }

    /// Launches a kernel of one parameter; what the driver answers.
    pub(crate) fn launch<A>(&self, function: Handle, grid: Grid, stream: Handle, args: &A) -> i32 {
        let mut params: [*const c_void; 1] = [(&raw const *args).cast()];
        let Grid { blocks, threads: [x, y], shared } = grid;
        self.cuLaunchKernel(function, blocks, 1, 1, x, y, 1, shared, stream, params.as_mut_ptr(), null_mut())
    }

    /// Launches, waits, and gives the first error of either.
    pub(crate) fn run<A>(&self, function: Handle, grid: Grid, args: &A) -> i32 {
        match self.launch(function, grid, null_mut(), args) {
            SUCCESS => self.cuCtxSynchronize(),
            error => error,
        }
    }

    pub(crate) fn stream(&self) -> Handle {
        const NON_BLOCKING: u32 = 1;
        let mut stream = null_mut();
        assert_eq!(self.cuStreamCreate(&mut stream, NON_BLOCKING), SUCCESS);
        stream
    }

    pub(crate) fn event(&self) -> Handle {
        let mut event = null_mut();
        assert_eq!(self.cuEventCreate(&mut event, 0), SUCCESS);
        event
    }

    /// Whether it has what only compute capability 9.0 has.
    pub(crate) fn is_hopper(&self) -> bool {
        [75, 76].map(|attribute| {
            let mut value = 0;
            assert_eq!(self.cuDeviceGetAttribute(&mut value, attribute, 0), SUCCESS);
            value
        }) == [9, 0]
    }

    /// What the simulated device reported since the context was made.
    pub(crate) fn reports(&self) -> String {
        if driver::is_real() {
            return String::new();
        }
        let mut text = vec![0u8; 1 << 14];
        self.simgpu_reports(text.as_mut_ptr().cast(), text.len());
        text.truncate(text.iter().position(|&byte| byte == 0).unwrap());
        String::from_utf8(text).unwrap()
    }
}
