//! Kernels by the type of their arguments.

use super::image::Unit;
use super::{Cuda, failure};
use crate::error::Result;
use crate::tensor::{Element, View, ViewMut};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// The one parameter of a kernel, a struct.
///
/// # Safety
/// The struct has the layout that the kernel of this name declares; both assert the same size.
pub(crate) unsafe trait Arguments {
    /// Unit (a file of `kernels/`) and name of the kernel.
    const KERNEL: [&'static str; 2];
}

/// Declares the arguments of a kernel: `struct Name("unit", "kernel", bytes) { fields }`.
macro_rules! arguments {
    ($(struct $name:ident($unit:literal, $kernel:literal, $bytes:literal) { $($(#[$doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            #[repr(C)]
            struct $name<'a> { $($(#[$doc])* $field: $type,)* }
            const _: () = assert!(size_of::<$name<'_>>() == $bytes);
            // SAFETY: the kernel's own struct of this name, field by field, asserts the same size.
            unsafe impl crate::device::cuda::Arguments for $name<'_> {
                const KERNEL: [&'static str; 2] = [$unit, $kernel];
            }
        )*
    };
}
pub(crate) use arguments;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block, beyond what the kernel declares.
    pub shared_bytes: u32,
}

/// A matrix that a kernel reads: twin of `In` in kernels/common.cuh.
#[repr(C)]
pub(crate) struct In<'a, T> {
    data: *const T,
    pitch: u32,
    unused: u32,
    borrow: PhantomData<&'a [T]>,
}

/// A matrix that a kernel writes: twin of `Out` in kernels/common.cuh.
#[repr(C)]
pub(crate) struct Out<'a, T> {
    data: *mut T,
    pitch: u32,
    unused: u32,
    borrow: PhantomData<&'a mut [T]>,
}

const _: () = assert!(size_of::<In<'_, f32>>() == 16 && size_of::<Out<'_, f32>>() == 16);

impl<T> Clone for In<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<'_, T> {}

/// Where a matrix's rows start: address, and bytes from one to the next.
pub(crate) type Extent = (usize, usize);

impl<'a, T: Element> In<'a, T> {
    pub(crate) fn of(view: View<'a, Cuda, T>) -> Self {
        Self { data: view.pointer(), pitch: count(view.pitch()), unused: 0, borrow: PhantomData }
    }

    /// A null address if it is absent.
    pub(crate) fn optional(view: Option<View<'a, Cuda, T>>) -> Self {
        view.map_or(Self { data: ptr::null(), pitch: 0, unused: 0, borrow: PhantomData }, Self::of)
    }

    pub(crate) fn extent(&self) -> Extent {
        (self.data as usize, self.pitch as usize * size_of::<T>())
    }

    /// Where it starts on the GPU; 0 if it is absent.
    pub(crate) fn address(&self) -> usize {
        self.data as usize
    }

    /// Elements from a row to the next.
    pub(crate) fn pitch(&self) -> u32 {
        self.pitch
    }
}

impl<'a, T: Element> Out<'a, T> {
    pub(crate) fn of(mut view: ViewMut<'a, Cuda, T>) -> Self {
        Self { data: view.pointer(), pitch: count(view.pitch()), unused: 0, borrow: PhantomData }
    }

    /// Rows that start at this address, so many elements apart.
    pub(super) fn at(data: *mut T, pitch: usize) -> Self {
        Self { data, pitch: count(pitch), unused: 0, borrow: PhantomData }
    }

    /// A null address if it is absent.
    pub(crate) fn optional(view: Option<ViewMut<'a, Cuda, T>>) -> Self {
        view.map_or(Self { data: ptr::null_mut(), pitch: 0, unused: 0, borrow: PhantomData }, Self::of)
    }

    /// The same matrix, for another kernel.
    pub(crate) fn again(&self) -> Out<'_, T> {
        Out { data: self.data, pitch: self.pitch, unused: 0, borrow: PhantomData }
    }

    /// What is there, for a kernel that adds to it.
    pub(crate) fn before(&self) -> In<'a, T> {
        In { data: self.data, pitch: self.pitch, unused: 0, borrow: PhantomData }
    }

    pub(crate) fn extent(&self) -> Extent {
        (self.data as usize, self.pitch as usize * size_of::<T>())
    }

    /// Where it starts on the GPU; 0 if it is absent.
    pub(crate) fn address(&self) -> usize {
        self.data as usize
    }

    /// Elements from a row to the next.
    pub(crate) fn pitch(&self) -> u32 {
        self.pitch
    }
}

/// Elements of rows of `width` that kernels move at a time: 8 if rows start at multiples of 16 bytes
/// and are whole vectors long, else 1. An absent matrix (address 0) is not counted.
pub(crate) fn vector_width(width: u32, matrices: &[Extent]) -> u32 {
    const VECTOR: u32 = 8;
    let aligned = matrices.iter().all(|&(address, pitch)| address % 16 == 0 && pitch % 16 == 0);
    if aligned && width.is_multiple_of(VECTOR) { VECTOR } else { 1 }
}

/// Asserts that matrices start at multiples of 16 bytes, as all tensors of an arena do.
pub(crate) fn assert_aligned(matrices: &[Extent]) {
    assert!(matrices.iter().all(|(address, _)| address.is_multiple_of(16)), "not at a multiple of 16 bytes");
}

/// A count as kernels take it.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).expect("fewer than 2³² rows and columns")
}

/// Kernels that were used before.
#[derive(Default)]
pub(super) struct Kernels(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<[&'static str; 2], Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Shared memory that it may ask for.
    shared_bytes: u32,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Loaded {}

/// What a kernel may ask for without being allowed more.
const SHARED_BYTES: u32 = 48 << 10;

impl Kernels {
    /// A kernel by its unit and name, allowed to use so much shared memory. The context is current.
    pub(super) fn get(
        &self,
        kernel: [&'static str; 2],
        capability: (u32, u32),
        shared_bytes: u32,
    ) -> Result<sys::CUfunction> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match loaded.functions.get(&kernel) {
            Some(&function) => function,
            None => {
                let module = loaded.module(kernel[0], capability)?;
                let name = CString::new(kernel[1]).expect("a name has no zero");
                // SAFETY: the module stays loaded as long as the context.
                let handle = unsafe { result::module::get_function(module, name) };
                let handle = handle.map_err(|error| failure(error, format_args!("find {}", kernel[1])))?;
                Function { handle, shared_bytes: SHARED_BYTES }
            }
        };
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).expect("a block has less");
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(function.handle, attribute, bytes) }.map_err(
                |error| failure(error, format_args!("give {} {bytes} bytes of shared memory", kernel[1])),
            )?;
        }
        let shared_bytes = shared_bytes.max(function.shared_bytes);
        loaded.functions.insert(kernel, Function { shared_bytes, ..function });
        Ok(function.handle)
    }
}

impl Loaded {
    fn module(&mut self, unit: &'static str, capability: (u32, u32)) -> Result<sys::CUmodule> {
        if let Some(&module) = self.modules.get(unit) {
            return Ok(module);
        }
        let image = Unit::named(unit).image(capability).expect("looked for when the GPU was opened");
        // The driver wants a text to end in a zero, and machine code to be aligned.
        let mut code = vec![0u64; image.code.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut code)[..image.code.len()].copy_from_slice(image.code);
        // SAFETY: a whole image, made by the compiler.
        let module =
            unsafe { result::module::load_data(code.as_ptr().cast::<c_void>()) }.map_err(|error| {
                failure(error, format_args!("load the kernels of {unit} for {}", image.architecture))
            })?;
        self.modules.insert(unit, module);
        Ok(module)
    }
}
