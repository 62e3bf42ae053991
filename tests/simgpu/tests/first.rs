//! The whole way once: PTX with a struct parameter, built, loaded, and driven through the driver's C interface.

use libloading::os::unix::{Library, Symbol};
use std::{ffi::CString, path::Path, ptr::null_mut};

type Handle = *mut u8;

struct Driver(Library);

impl Driver {
    fn call<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: the callers below give the types cuda.h declares.
        unsafe { self.0.get(name.as_bytes()) }.unwrap()
    }

    fn allocate(&self, values: &[f32]) -> u64 {
        let mut address = 0;
        let bytes = size_of_val(values);
        let allocate = self.call::<unsafe extern "C" fn(*mut u64, usize) -> i32>("cuMemAlloc_v2");
        let copy = self.call::<unsafe extern "C" fn(u64, *const f32, usize) -> i32>("cuMemcpyHtoD_v2");
        // SAFETY: `values` is alive, `bytes` is its size.
        unsafe {
            assert_eq!(allocate(&mut address, bytes), 0);
            assert_eq!(copy(address, values.as_ptr(), bytes), 0);
        }
        address
    }

    fn read(&self, address: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0f32; count];
        let copy = self.call::<unsafe extern "C" fn(*mut f32, u64, usize) -> i32>("cuMemcpyDtoH_v2");
        // SAFETY: `values` has room for `count` elements.
        assert_eq!(unsafe { copy(values.as_mut_ptr(), address, 4 * count) }, 0);
        values
    }

    fn launch<A>(&self, module: Handle, kernel: &str, blocks: u32, threads: u32, mut args: A) -> i32 {
        type Launch<A> = unsafe extern "C" fn(
            Handle,
            u32,
            u32,
            u32,
            u32,
            u32,
            u32,
            u32,
            Handle,
            *mut *mut A,
            Handle,
        ) -> i32;
        let find =
            self.call::<unsafe extern "C" fn(*mut Handle, Handle, *const i8) -> i32>("cuModuleGetFunction");
        let launch = self.call::<Launch<A>>("cuLaunchKernel");
        let (mut function, name) = (null_mut(), CString::new(kernel).unwrap());
        // SAFETY: `args` is the kernel's one parameter; the driver copies it at the call.
        unsafe {
            assert_eq!(find(&mut function, module, name.as_ptr().cast()), 0);
            let mut params = [&raw mut args];
            launch(function, blocks, 1, 1, threads, 1, 1, 0, null_mut(), params.as_mut_ptr(), null_mut())
        }
    }
}

#[repr(C)]
struct ScaleArgs {
    x: u64,
    out: u64,
    count: u32,
    factor: [f32; 3],
}

#[repr(C)]
struct BlockSumArgs {
    x: u64,
    out: u64,
    count: u32,
}

#[test]
fn kernels_with_a_struct_parameter_run() {
    let ptx = include_str!("ptx/first.ptx");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simgpu");
    let folder = simgpu::build(&[simgpu::Unit { name: "first", ptx }], &cache).unwrap();
    simgpu::load(&folder).unwrap();
    // SAFETY: the library is loaded already; this finds it by its name.
    let driver = Driver(unsafe { Library::new("libcuda.so") }.unwrap());
    let (mut context, mut module) = (null_mut(), null_mut());
    let text = CString::new(ptx).unwrap();
    // SAFETY: the types are cuda.h's, the pointers live through the calls.
    unsafe {
        assert_eq!(driver.call::<unsafe extern "C" fn(u32) -> i32>("cuInit")(0), 0);
        let retain = driver.call::<unsafe extern "C" fn(*mut Handle, i32) -> i32>("cuDevicePrimaryCtxRetain");
        assert_eq!(retain(&mut context, 0), 0);
        assert_eq!(driver.call::<unsafe extern "C" fn(Handle) -> i32>("cuCtxSetCurrent")(context), 0);
        let load = driver.call::<unsafe extern "C" fn(*mut Handle, *const u8) -> i32>("cuModuleLoadData");
        assert_eq!(load(&mut module, text.as_ptr().cast()), 0);
    }

    let values: Vec<f32> = (0..600).map(|i| (i % 13) as f32 - 5.0).collect();
    let (x, out, sums) = (driver.allocate(&values), driver.allocate(&[0.0; 600]), driver.allocate(&[0.0; 3]));
    let args = ScaleArgs { x, out, count: 600, factor: [2.0, 0.5, -1.0] };
    assert_eq!(driver.launch(module, "scale", 3, 256, args), 0);
    assert_eq!(driver.launch(module, "block_sum", 3, 256, BlockSumArgs { x, out: sums, count: 600 }), 0);

    let scaled: Vec<f32> = values.iter().zip([2.0, 0.5, -1.0].iter().cycle()).map(|(x, f)| x * f).collect();
    assert_eq!(driver.read(out, 600), scaled);
    let expected: Vec<f32> = values.chunks(256).map(|block| block.iter().sum()).collect();
    assert_eq!(driver.read(sums, 3), expected);

    // One element too many: an error of the device, which stays.
    assert_eq!(driver.launch(module, "scale", 3, 256, ScaleArgs { x, out, count: 601, factor: [1.0; 3] }), 0);
    let synchronize = driver.call::<unsafe extern "C" fn() -> i32>("cuCtxSynchronize");
    // SAFETY: no arguments.
    let errors = unsafe { [synchronize(), synchronize()] };
    assert_eq!(errors, [700, 700], "CUDA_ERROR_ILLEGAL_ADDRESS, sticky");
}
