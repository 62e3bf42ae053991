//! The device with the kernels of this program loaded, through the driver's C interface.

use crate::driver;
use libloading::os::unix::Library;
use std::{
    ffi::CString,
    ptr::null_mut,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

type Handle = *mut u8;
type Launch =
    unsafe extern "C" fn(Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut u8, Handle) -> i32;

pub(crate) struct Device {
    driver: Library,
    is_hopper: bool,
    ptx: CString,
    module: Handle,
}

// SAFETY: the handles are the driver's, which may be used from any thread.
unsafe impl Send for Device {}

/// The one device, in a fresh context. Tests take turns.
pub(crate) fn device() -> MutexGuard<'static, Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Mutex::new(Device::open()));
    // A failed assertion while holding the device leaves it usable.
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    device.renew();
    device
}

impl Device {
    fn open() -> Self {
        let ptx = crate::ptx();
        let driver = driver::load(&[simgpu::Unit { name: "instructions", ptx: &ptx }]);
        let mut device = Self { driver, is_hopper: true, ptx: CString::default(), module: null_mut() };
        // SAFETY: the type is cuda.h's.
        assert_eq!(unsafe { device.call::<unsafe extern "C" fn(u32) -> i32>("cuInit")(0) }, 0);
        device.is_hopper = [75, 76].map(|attribute| device.attribute(attribute)) == [9, 0];
        let ptx = if driver::is_real() { crate::ptx_of_gpu(device.is_hopper) } else { ptx };
        device.ptx = CString::new(ptx).unwrap();
        device
    }

    fn attribute(&self, attribute: i32) -> i32 {
        let get: unsafe extern "C" fn(*mut i32, i32, i32) -> i32 = self.call("cuDeviceGetAttribute");
        let mut value = 0;
        // SAFETY: the type is cuda.h's; one number is written.
        assert_eq!(unsafe { get(&mut value, attribute, 0) }, 0);
        value
    }

    /// Whether it has what only compute capability 9.0 has.
    pub(crate) fn is_hopper(&self) -> bool {
        self.is_hopper
    }

    /// Leaves errors and memory of earlier kernels behind.
    fn renew(&mut self) {
        let reset: unsafe extern "C" fn(i32) -> i32 = self.call("cuDevicePrimaryCtxReset_v2");
        let retain: unsafe extern "C" fn(*mut Handle, i32) -> i32 = self.call("cuDevicePrimaryCtxRetain");
        let set_current: unsafe extern "C" fn(Handle) -> i32 = self.call("cuCtxSetCurrent");
        let load: unsafe extern "C" fn(*mut Handle, *const u8) -> i32 = self.call("cuModuleLoadData");
        let mut context = null_mut();
        // SAFETY: the types are cuda.h's, the pointers live through the calls.
        unsafe {
            assert_eq!(reset(0), 0);
            assert_eq!(retain(&mut context, 0), 0);
            assert_eq!(set_current(context), 0);
            assert_eq!(load(&mut self.module, self.ptx.as_ptr().cast()), 0);
        }
    }

    /// What the device says of the kernels that failed in this context.
    pub(crate) fn reports(&self) -> String {
        let synchronize: unsafe extern "C" fn() -> i32 = self.call("cuCtxSynchronize");
        let reports: unsafe extern "C" fn(*mut u8, usize) -> i32 = self.call("simgpu_reports");
        let mut text = vec![0u8; 4096];
        // SAFETY: the text has room for its size.
        unsafe {
            synchronize();
            reports(text.as_mut_ptr(), text.len());
        }
        String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
    }

    fn call<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the callers give the types cuda.h declares.
        *unsafe { self.driver.get::<F>(name.as_bytes()) }.unwrap()
    }

    /// Runs a kernel whose one parameter is the addresses of `input`, of which it gets a copy, and of as many bytes as
    /// `output` has. Gives the bytes back.
    pub(crate) fn run<I: Copy, O: Copy + Default>(
        &self,
        kernel: &str,
        grid: [u32; 2],
        input: &[I],
        output: usize,
    ) -> Vec<O> {
        self.run_with_shared(kernel, grid, 0, input, output)
    }

    /// As [`Device::run`], with `shared` bytes of dynamic shared memory.
    pub(crate) fn run_with_shared<I: Copy, O: Copy + Default>(
        &self,
        kernel: &str,
        [blocks, threads]: [u32; 2],
        shared: u32,
        input: &[I],
        output: usize,
    ) -> Vec<O> {
        let input = self.upload(input);
        let result = self.upload(&vec![O::default(); output]);
        let mut args = [input, result];
        self.launch(kernel, [blocks, threads], shared, &mut [(&raw mut args).cast()]);
        self.download(result, output)
    }

    pub(crate) fn upload<T: Copy>(&self, values: &[T]) -> u64 {
        let mut address = 0;
        let bytes = size_of_val(values);
        let allocate: unsafe extern "C" fn(*mut u64, usize) -> i32 = self.call("cuMemAlloc_v2");
        let copy: unsafe extern "C" fn(u64, *const T, usize) -> i32 = self.call("cuMemcpyHtoD_v2");
        // SAFETY: `values` is alive, `bytes` is its size.
        unsafe {
            assert_eq!(allocate(&mut address, bytes), 0);
            assert_eq!(copy(address, values.as_ptr(), bytes), 0);
        }
        address
    }

    pub(crate) fn download<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        let copy: unsafe extern "C" fn(*mut T, u64, usize) -> i32 = self.call("cuMemcpyDtoH_v2");
        // SAFETY: `values` has room for `count` elements.
        let error = unsafe { copy(values.as_mut_ptr(), address, size_of::<T>() * count) };
        assert_eq!(error, 0, "the kernel failed");
        values
    }

    /// Launches a kernel; `parameters` are the places of its parameters.
    pub(crate) fn launch(
        &self,
        kernel: &str,
        [blocks, threads]: [u32; 2],
        shared: u32,
        parameters: &mut [*mut u8],
    ) {
        let find: unsafe extern "C" fn(*mut Handle, Handle, *const u8) -> i32 =
            self.call("cuModuleGetFunction");
        let set: unsafe extern "C" fn(Handle, i32, i32) -> i32 = self.call("cuFuncSetAttribute");
        let launch: Launch = self.call("cuLaunchKernel");
        const MAX_DYNAMIC_SHARED_SIZE_BYTES: i32 = 8;
        let (mut function, name) = (null_mut(), CString::new(kernel).unwrap());
        // SAFETY: `places` are the kernel's parameters, which the driver copies at the call.
        unsafe {
            assert_eq!(find(&mut function, self.module, name.as_ptr().cast()), 0, "{kernel}");
            assert_eq!(set(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32), 0);
            let error = launch(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared,
                null_mut(),
                parameters.as_mut_ptr(),
                null_mut(),
            );
            assert_eq!(error, 0, "{kernel}");
        }
    }

    /// A tensor map of 16-bit elements: sizes and box with the contiguous dimension first, row strides in bytes.
    pub(crate) fn tensor_map<const RANK: usize>(
        &self,
        address: u64,
        sizes: [u64; RANK],
        strides: &[u64],
        tile: [u32; RANK],
        swizzle: Swizzle,
    ) -> TensorMap {
        const UINT16: u32 = 1;
        type Encode = unsafe extern "C" fn(
            *mut TensorMap,
            u32,
            u32,
            u64,
            *const u64,
            *const u64,
            *const u32,
            *const u32,
            u32,
            Swizzle,
            u32,
            u32,
        ) -> i32;
        assert_eq!(strides.len() + 1, RANK);
        let encode: Encode = self.call("cuTensorMapEncodeTiled");
        let mut map = TensorMap([0; 16]);
        let steps = [1u32; RANK];
        // SAFETY: the arrays have as many elements as the rank asks for.
        let error = unsafe {
            encode(
                &mut map,
                UINT16,
                RANK as u32,
                address,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                0,
                swizzle,
                0,
                0,
            )
        };
        assert_eq!(error, 0);
        map
    }
}

/// The driver's description of a tensor in memory.
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

/// CUtensorMapSwizzle.
#[repr(u32)]
pub(crate) enum Swizzle {
    None = 0,
    Bytes128 = 3,
}
