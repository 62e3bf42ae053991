//! cuBLASLt, NVIDIA's matrix products, where it is installed: opened while the program runs, so that the
//! crate neither needs it to build nor to run.
//!
//! Products of bf16 with a bias and an addend go to it, summed in `f32`; its GELU is the tanh approximation, so an
//! activation or its derivative follows as the crate's own kernel, and so do the gradients of biases. Which of the
//! two is faster, it with what follows or the crate's kernel that does all at once, is measured where a product of
//! about as many rows is met first, and kept for as long as the device is open. The bits of a result may differ
//! between them, so two processes may differ in the last bit where cuBLASLt is installed.
//!
//! [`Cuda::open`] tells of the environment variables that settle it.

mod library;
mod measure;

use super::{Cuda, In, Out, failure, vector_width};
use crate::error::{Error, Result};
use crate::tensor::Shape;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use half::bf16;
pub(crate) use library::ProductElement;
use library::{DataType, Library, Operation};
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

/// Which way a factor lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    /// By its rows.
    Plain,
    /// By its columns.
    Transposed,
}

/// A factor of a product.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    matrix: In<'a, bf16>,
    storage: Storage,
}

impl<'a> Factor<'a> {
    pub(crate) fn plain(matrix: In<'a, bf16>) -> Self {
        Self { matrix, storage: Storage::Plain }
    }

    pub(crate) fn transposed(matrix: In<'a, bf16>) -> Self {
        Self { matrix, storage: Storage::Transposed }
    }
}

/// A product a·b + bias + addend.
pub(crate) struct LinearProduct<'a, T> {
    /// Of the product: rows, columns.
    pub m: u32,
    pub n: u32,
    /// Terms of a sum.
    pub k: u32,
    /// [m, k]
    pub a: Factor<'a>,
    /// [k, n]
    pub b: Factor<'a>,
    /// [1, n]; may be absent.
    pub bias: In<'a, bf16>,
    /// [m, n]; may be absent, and may be where the product goes.
    pub addend: In<'a, T>,
    /// [m, n]: where the product goes before what follows; absent if that is y.
    pub to: Out<'a, T>,
    /// What follows, by a number that nothing else has that follows products like this one.
    pub follows: u32,
}

/// Where the results of a product and of what follows go.
pub(crate) struct Results<'a, T> {
    /// [m, n]
    pub y: Out<'a, T>,
    /// [1, m], beside the gradient of a weight; may be absent.
    pub dbias: Out<'a, f32>,
}

impl<'a, T> Results<'a, T> {
    pub(crate) fn of(y: Out<'a, T>) -> Self {
        Self { y, dbias: Out::optional(None) }
    }
}

/// What a choice depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    m: u32,
    n: u32,
    k: u32,
    /// Of a and b.
    storage: [Storage; 2],
    /// Of the addend and the product.
    results: DataType,
    has_bias: bool,
    has_addend: bool,
    has_dbias: bool,
    /// Whether the product goes elsewhere than to y.
    is_kept: bool,
    follows: u32,
    /// Elements from a row to the next of a, b, the addend and the product.
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
        let Form { m, n, k, storage: [a_storage, b_storage], pitches: [a, b, addend, y], .. } = *form;
        // The library's matrices run by columns: to it, a row-major matrix is its transpose, so it is given
        // yᵀ [n, m] = bᵀ·aᵀ, with b first.
        let stored = |storage, rows, cols, pitch| match storage {
            Storage::Plain => (rows, cols, pitch),
            Storage::Transposed => (cols, rows, pitch),
        };
        let factors = [stored(b_storage, n, k, b), stored(a_storage, k, m, a)];
        let results = [(n, m, addend), (n, m, y)];
        let bias = form.has_bias.then(|| bias.address());
        self.library.operation(factors, [b_storage, a_storage], results, form.results, bias, WORKSPACE)
    }

    /// Starts a product of the form that the operation was planned for.
    fn start<T: ProductElement>(
        &self,
        stream: sys::CUstream,
        operation: &Operation,
        product: &LinearProduct<'_, T>,
        y: &Out<'_, T>,
    ) -> Result<()> {
        let [a, b] = [product.a, product.b].map(|factor| factor.matrix.address());
        let (bias, y) = (product.bias.address(), product.place(y).address());
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
    /// A product and what follows it: by `own`, which does it all, or by cuBLASLt and then `follow`.
    pub(crate) fn multiply<T: ProductElement>(
        &self,
        product: &LinearProduct<'_, T>,
        to: Results<'_, T>,
        own: impl Fn(Results<'_, T>) -> Result<()>,
        follow: impl Fn(Results<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let Some(lt) = self.0.cublaslt.as_ref().filter(|_| product.suits_cublaslt(&to)) else {
            return own(to);
        };
        self.bind()?;
        let form = product.form(&to);
        let mut choices = lt.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let Choices { forms, faster } = &mut *choices;
        let choice = match forms.entry(form) {
            Entry::Occupied(chosen) => chosen.into_mut(),
            Entry::Vacant(place) => place.insert(self.choose(lt, faster, product, &form, &own, &follow)?),
        };
        match choice {
            Choice::Own => own(to),
            Choice::CublasLt(operation) => {
                lt.start(self.0.stream(), operation, product, &to.y)?;
                follow(to)
            }
        }
    }

    /// Who is to compute products of this form from now on.
    fn choose<T: ProductElement>(
        &self,
        lt: &CublasLt,
        faster: &mut HashMap<Form, bool>,
        product: &LinearProduct<'_, T>,
        form: &Form,
        own: Way<'_, T>,
        follow: Way<'_, T>,
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
                let by_cublaslt = |to: Results<'_, T>| {
                    lt.start(self.0.stream(), &operation, product, &to.y)?;
                    follow(to)
                };
                let pitch = form.pitches[3] as usize;
                *place.insert(self.is_faster([&by_cublaslt, own], shape, pitch, form.has_dbias)?)
            }
        };
        Ok(if chosen { Choice::CublasLt(operation) } else { Choice::Own })
    }
}

impl Form {
    /// The form that stands for those of about as many rows, of results or, for the gradient of a weight, of
    /// factors: up to three binary digits. Steps of training have as many rows as their texts have tokens,
    /// hardly ever as many twice, and measuring takes longer than it gains unless it is done seldom.
    fn rounded(&self) -> Self {
        let round = |rows: u32| {
            let unit = 1 << rows.ilog2().saturating_sub(2);
            rows.div_ceil(unit) * unit
        };
        match self.storage[0] {
            Storage::Plain => Self { m: round(self.m), ..*self },
            Storage::Transposed => Self { k: round(self.k), ..*self },
        }
    }
}

impl<T: ProductElement> LinearProduct<'_, T> {
    /// Where the product goes, on the way to y.
    fn place<'p>(&'p self, y: &'p Out<'_, T>) -> &'p Out<'p, T> {
        if self.to.address() == 0 { y } else { &self.to }
    }

    /// Whether there is something to compute, rows start at multiples of 16 bytes and do not overlap.
    fn suits_cublaslt(&self, to: &Results<'_, T>) -> bool {
        let [a, b] = [self.a, self.b].map(|factor| factor.matrix.extent());
        let operands = [a, b, self.bias.extent(), self.addend.extent(), self.place(&to.y).extent()];
        // The length of the rows does not matter: nothing beyond them is read.
        let aligned = vector_width(0, &operands) > 1;
        let Form { m, n, k, storage, pitches: [a, b, addend, y], .. } = self.form(to);
        let cols = |storage, plain, transposed| if storage == Storage::Plain { plain } else { transposed };
        let fits = a >= cols(storage[0], k, m) && b >= cols(storage[1], n, k) && addend >= n && y >= n;
        aligned && fits && [m, n, k].iter().all(|&size| size > 0)
    }

    fn form(&self, to: &Results<'_, T>) -> Form {
        let Self { m, n, k, follows, .. } = *self;
        let [a, b] = [self.a, self.b].map(|factor| factor.matrix.pitch());
        let y = self.place(&to.y).pitch();
        let has_addend = self.addend.address() != 0;
        let addend = if has_addend { self.addend.pitch() } else { y };
        Form {
            m,
            n,
            k,
            storage: [self.a.storage, self.b.storage],
            results: T::TYPE,
            has_bias: self.bias.address() != 0,
            has_addend,
            has_dbias: to.dbias.address() != 0,
            is_kept: self.to.address() != 0,
            follows,
            pitches: [a, b, addend, y],
        }
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
        let form = |m, k, a| Form {
            m,
            n: 768,
            k,
            storage: [a, Storage::Plain],
            results: f32::TYPE,
            has_bias: true,
            has_addend: false,
            has_dbias: false,
            is_kept: false,
            follows: 0,
            pitches: [768; 4],
        };
        let rounded = |rows| form(rows, 777, Storage::Plain).rounded().m;
        assert_eq!([1, 2, 3, 7, 8].map(rounded), [1, 2, 3, 7, 8]);
        assert_eq!([9, 10, 11, 8193, 9000, 10240].map(rounded), [10, 10, 12, 10240, 10240, 10240]);
        let of_weight = form(777, 9000, Storage::Transposed).rounded();
        assert_eq!((of_weight.m, of_weight.k), (777, 10240));
    }
}
