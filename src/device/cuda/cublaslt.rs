//! cuBLASLt, NVIDIA's matrix products, where it is installed: opened while the program runs, so that the
//! crate neither needs it to build nor to run.
//!
//! Only products in bf16 with a bias and an addend go to it, summed in `f32` and rounded once; its GELU is the
//! tanh approximation, so activations stay with the crate's own kernels. Which of the two computes a product is
//! measured where one of about as many rows is met first, and kept for as long as the device is open. The
//! bits of a result may differ between them, so two processes may differ in the last bit where cuBLASLt is
//! installed.
//!
//! [`Cuda::open`] tells of the environment variables that settle it.

mod library;
mod measure;

use super::{Cuda, In, Out, failure, vector_width};
use crate::error::{Error, Result};
use crate::tensor::Shape;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use half::bf16;
use library::{Library, Operation};
use measure::Way;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::env;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

/// What the loader is asked for, the newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
/// Bytes that its kernels may use besides their operands: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Where every operand and its rows start, in bytes.
const ALIGNMENT: u32 = 16;

/// How b of a product lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    /// [k, n]
    Plain,
    /// [n, k]
    Transposed,
}

/// A product without an activation: y = a·b + bias + addend.
pub(crate) struct LinearProduct<'a> {
    /// Of y: rows, columns.
    pub m: u32,
    pub n: u32,
    /// Terms of a sum.
    pub k: u32,
    /// [m, k]
    pub a: In<'a, bf16>,
    /// [k, n] or [n, k]
    pub b: In<'a, bf16>,
    pub storage: Storage,
    /// [1, n]; may be absent.
    pub bias: In<'a, bf16>,
    /// [m, n]; may be absent, and may be y itself.
    pub addend: In<'a, bf16>,
}

/// What a choice depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    m: u32,
    n: u32,
    k: u32,
    storage: Storage,
    has_bias: bool,
    has_addend: bool,
    /// Elements from a row to the next of a, b, the addend and y.
    pitches: [u32; 4],
}

/// Who computes products of one form.
enum Choice {
    Own,
    CublasLt(Operation),
}

/// Who is to compute products.
#[derive(Clone, Copy, PartialEq)]
enum Preference {
    Faster,
    CublasLt,
}

/// What was chosen so far.
#[derive(Default)]
struct Choices {
    forms: HashMap<Form, Choice>,
    /// Whether cuBLASLt was faster, by the form with its rows rounded.
    faster: HashMap<Form, bool>,
}

/// The library with what was chosen so far. Fields are dropped in their order: what the library made before it.
pub(super) struct CublasLt {
    choices: Mutex<Choices>,
    library: Library,
    workspace: sys::CUdeviceptr,
    preference: Preference,
    stream: Arc<CudaStream>,
}

// SAFETY: the library may be used from any thread; what it made is used under the lock of `choices`.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// None if it is not wanted, or not installed.
    pub(super) fn open(context: &CudaContext, stream: &Arc<CudaStream>) -> Result<Option<Self>> {
        let preference = match env::var_os("QFORMER_GEMM") {
            None => Preference::Faster,
            Some(value) if value == "cublaslt" => Preference::CublasLt,
            Some(value) if value == "own" => return Ok(None),
            Some(value) => {
                return Err(Error::device(format!(
                    "QFORMER_GEMM is {value:?}; it may be own, cublaslt, or not set"
                )));
            }
        };
        let driver = |error| failure(error, "prepare cuBLASLt");
        context.bind_to_thread().map_err(driver)?;
        let path = env::var_os("QFORMER_CUBLASLT");
        let wanted = preference == Preference::CublasLt || path.is_some();
        let names = path.map_or_else(|| NAMES.map(OsString::from).into(), |path| vec![path]);
        let library = match open_first(&names) {
            Ok(library) => library,
            Err(why) if wanted => {
                return Err(Error::device(format!(
                    "cuBLASLt does not start: {why}; set QFORMER_CUBLASLT to its path, or QFORMER_GEMM=own"
                )));
            }
            Err(_) => return Ok(None),
        };
        // SAFETY: the stream is alive; freed when this is dropped.
        let workspace = unsafe { result::malloc_async(stream.cu_stream(), WORKSPACE) }.map_err(driver)?;
        let choices = Mutex::default();
        Ok(Some(Self { choices, library, workspace, preference, stream: stream.clone() }))
    }

    /// The form's descriptors and algorithm; none if the library has no algorithm for it.
    fn plan(&self, form: &Form, bias: In<'_, bf16>) -> Result<Option<Operation>> {
        let Form { m, n, k, storage, pitches: [a, b, addend, y], .. } = *form;
        // The library's matrices run by columns: to it, a row-major matrix is its transpose, so it is given
        // yᵀ [n, m] = bᵀ·aᵀ, with b first.
        let (b_rows, b_cols) = match storage {
            Storage::Plain => (n, k),
            Storage::Transposed => (k, n),
        };
        let layouts = [(b_rows, b_cols, b), (k, m, a), (n, m, addend), (n, m, y)];
        let bias = form.has_bias.then(|| bias.address());
        self.library.operation(layouts, storage, bias, WORKSPACE)
    }

    /// Starts a product of the form that the operation was planned for.
    fn start(
        &self,
        stream: sys::CUstream,
        operation: &Operation,
        product: &LinearProduct<'_>,
        y: &Out<'_, bf16>,
    ) -> Result<()> {
        let (a, b, bias) = (product.a.address(), product.b.address(), product.bias.address());
        let y = y.address();
        let (addend, beta) = match product.addend.address() {
            0 => (y, 0.0),
            addend => (addend, 1.0),
        };
        if bias != 0 {
            self.library.set_bias(operation, bias)?;
        }
        let workspace = (self.workspace, WORKSPACE);
        // SAFETY: the operands have the shapes and pitches that the operation was planned for; they are of views
        // that the caller borrows, and what runs later on the same stream runs after it, also what uses
        // the workspace.
        unsafe { self.library.multiply(operation, [b, a, addend], beta, y, workspace, stream) }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: allocated on the same stream; what was started before uses it before it is freed.
            let _ = unsafe { result::free_async(self.workspace, self.stream.cu_stream()) };
        }
    }
}

impl Cuda {
    /// y = a·b + bias + addend, by `own`, the crate's kernel, or by cuBLASLt.
    pub(crate) fn multiply(
        &self,
        product: &LinearProduct<'_>,
        y: Out<'_, bf16>,
        own: impl Fn(Out<'_, bf16>) -> Result<()>,
    ) -> Result<()> {
        let Some(lt) = self.0.cublaslt.as_ref().filter(|_| product.suits_cublaslt(&y)) else {
            return own(y);
        };
        self.bind()?;
        let form = product.form(&y);
        let mut choices = lt.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let Choices { forms, faster } = &mut *choices;
        let choice = match forms.entry(form) {
            Entry::Occupied(chosen) => chosen.into_mut(),
            Entry::Vacant(place) => place.insert(self.choose(lt, faster, product, &form, &own)?),
        };
        match choice {
            Choice::Own => own(y),
            Choice::CublasLt(operation) => lt.start(self.0.stream(), operation, product, &y),
        }
    }

    /// Who is to compute products of this form from now on.
    fn choose(
        &self,
        lt: &CublasLt,
        faster: &mut HashMap<Form, bool>,
        product: &LinearProduct<'_>,
        form: &Form,
        own: Way<'_>,
    ) -> Result<Choice> {
        // While a graph is captured nothing can be measured, and cuBLASLt should not load its kernels.
        if self.0.is_capturing() {
            return Ok(Choice::Own);
        }
        let Some(operation) = lt.plan(form, product.bias)? else {
            return Ok(Choice::Own);
        };
        let chosen = match (lt.preference, faster.entry(form.rounded())) {
            (Preference::CublasLt, _) => true,
            (Preference::Faster, Entry::Occupied(measured)) => *measured.get(),
            (Preference::Faster, Entry::Vacant(place)) => {
                let shape = Shape::new(form.m as usize, form.n as usize);
                let ways: [Way<'_>; 2] = [&|y| lt.start(self.0.stream(), &operation, product, &y), own];
                *place.insert(self.is_faster(ways, shape, form.pitches[3] as usize)?)
            }
        };
        Ok(if chosen { Choice::CublasLt(operation) } else { Choice::Own })
    }
}

impl Form {
    /// The form that stands for those of about as many rows: up to three binary digits. Steps of training have
    /// as many rows as their texts have tokens, hardly ever as many twice, and measuring takes longer than it
    /// gains unless it is done seldom.
    fn rounded(&self) -> Self {
        let unit = 1 << self.m.ilog2().saturating_sub(2);
        Self { m: self.m.div_ceil(unit) * unit, ..*self }
    }
}

impl LinearProduct<'_> {
    /// Whether there is something to compute, rows start at multiples of 16 bytes and do not overlap.
    fn suits_cublaslt(&self, y: &Out<'_, bf16>) -> bool {
        let operands = [self.a, self.b, self.bias, self.addend].map(|operand| operand.extent());
        // How long the rows are is of no account: what is beyond them is not read.
        let aligned = vector_width(0, &operands) > 1 && vector_width(0, &[y.extent()]) > 1;
        let Form { m, n, k, pitches: [a, b, addend, y], .. } = self.form(y);
        let b_cols = if self.storage == Storage::Plain { n } else { k };
        aligned && [m, n, k].iter().all(|&size| size > 0) && a >= k && b >= b_cols && addend >= n && y >= n
    }

    fn form(&self, y: &Out<'_, bf16>) -> Form {
        let [has_bias, has_addend] = [self.bias, self.addend].map(|operand| operand.address() != 0);
        let addend = if has_addend { self.addend.pitch() } else { y.pitch() };
        let pitches = [self.a.pitch(), self.b.pitch(), addend, y.pitch()];
        let Self { m, n, k, storage, .. } = *self;
        Form { m, n, k, storage, has_bias, has_addend, pitches }
    }
}

/// The first of these libraries that starts, or why the last one does not.
fn open_first(names: &[OsString]) -> std::result::Result<Library, String> {
    let mut why = String::new();
    for name in names {
        match Library::open(name) {
            Ok(library) => return Ok(library),
            Err(error) => why = error,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_about_as_many_rows_are_measured_together() {
        let rounded = |m| {
            let pitches = [768, 768, 768, 768];
            let form = Form {
                m,
                n: 768,
                k: 768,
                storage: Storage::Plain,
                has_bias: true,
                has_addend: false,
                pitches,
            };
            form.rounded().m
        };
        assert_eq!([1, 2, 3, 7, 8].map(rounded), [1, 2, 3, 7, 8]);
        assert_eq!([9, 10, 11, 8193, 9000, 10240].map(rounded), [10, 10, 12, 10240, 10240, 10240]);
    }
}
