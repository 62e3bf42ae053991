//! The products on the GPU against those on the CPU in double precision, for every kernel.

use super::Linear;
use super::activation::activated;
use crate::common::{Matrix, Random};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded};
use qformer::config::Activation;
use qformer::device::{Cpu, Cuda, Write};
use qformer::ops::linear::{LinearBackward, LinearForward, LinearOp};
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// Rows, inputs, outputs. Which kernel a product goes to is a matter of its size, of whether rows start at
/// multiples of 16 bytes, and of the GPU: on one of 4 multiprocessors, the first four go to those for large products.
const SHAPES: [[usize; 3]; 11] = [
    // Large tiles, none of them whole, for y, dx and dW.
    [300, 200, 264],
    // Many steps along each of the three sums.
    [264, 648, 136],
    [136, 264, 648],
    [648, 136, 264],
    // Many rows of a small layer: there blocks share the rows for dW, in parts that are not equal.
    [2100, 120, 72],
    // Medium tiles, then one image's queries: a few rows.
    [40, 96, 72],
    [32, 768, 40],
    [7, 40, 16],
    [2, 64, 24],
    // Rows that are not aligned: primes, and the matching head.
    [67, 131, 71],
    [40, 768, 2],
];

/// Shapes of which y, dx or dW is large enough for 132 multiprocessors.
const LARGE_SHAPES: [[usize; 3]; 3] = [[1040, 40, 1048], [1040, 1048, 40], [40, 1048, 1040]];

/// A linear layer's operands beyond the layer itself.
struct Epilogue {
    activation: Option<Activation>,
    residual: Option<Matrix>,
}

/// What a forward pass is computed with: saved, where asked for, and y.
fn forward<D: TestDevice + LinearOp>(linear: &Linear, epilogue: &Epilogue, save: bool) -> [Matrix; 2] {
    let (rows, outputs) = (linear.x.rows, linear.weight.rows);
    let (mut y, mut saved) = (Tensor::<D>::output(rows, outputs), Tensor::<D>::output(rows, outputs));
    let mut residual = epilogue.residual.as_ref().map(Tensor::<D>::pitched);
    D::get()
        .linear_forward(LinearForward {
            x: Tensor::pitched(&linear.x).view(),
            weight: Tensor::pitched(&linear.weight).weight(),
            bias: Some(Tensor::pitched(&linear.bias).view()),
            activation: epilogue.activation,
            residual: residual.as_mut().map(Tensor::view),
            pre_activation: save.then(|| saved.view_mut()),
            y: y.view_mut(),
        })
        .unwrap();
    [saved.read(), y.read()]
}

/// Whether cuBLASLt is out of the question.
fn only_own_kernels() -> bool {
    match std::env::var_os("QFORMER_GEMM") {
        Some(choice) => choice == "own",
        None => is_simulated() && std::env::var_os("QFORMER_CUBLASLT").is_none(),
    }
}

fn is_simulated() -> bool {
    Cuda::get().name().starts_with("simgpu")
}

/// Whole numbers between -8 and 8.
fn whole(random: &mut Random, rows: usize, cols: usize) -> Matrix {
    Matrix::from_fn(rows, cols, |_, _| random.below(17) as f64 - 8.0)
}

fn whole_linear(random: &mut Random, [rows, inputs, outputs]: [usize; 3]) -> Linear {
    Linear {
        x: whole(random, rows, inputs),
        weight: whole(random, outputs, inputs),
        bias: whole(random, 1, outputs),
    }
}

/// Sums stay below 768·8·8 + 8 < 2²⁴: `f32` holds every one of them, in any order, and only the result is rounded.
#[test]
fn whole_numbers_give_exact_outputs_and_gradients() {
    let mut random = Random::new(11);
    for shape @ [rows, inputs, outputs] in SHAPES.into_iter().chain(LARGE_SHAPES) {
        let linear = whole_linear(&mut random, shape);
        let plain = Epilogue { activation: None, residual: Some(whole(&mut random, rows, outputs)) };
        let [saved, y] = forward::<Cuda>(&linear, &plain, true);
        let [want_saved, want_y] = forward::<Cpu<f64>>(&linear, &plain, true);
        assert_eq!(saved, rounded::<Cuda>(&want_saved), "product and bias of {shape:?}");
        assert_eq!(y, rounded::<Cuda>(&want_y), "y of {shape:?}");

        let dy = whole(&mut random, rows, outputs);
        let before = whole_linear(&mut random, [rows, inputs, outputs]);
        for write in [Write::Replace, Write::Add] {
            let got = linear.backward::<Cuda>(&dy, write, &before);
            let want = linear.backward::<Cpu<f64>>(&dy, write, &before);
            assert_eq!(got.x, rounded::<Cuda>(&want.x), "dx of {shape:?}, {write:?}");
            assert_eq!(got.weight, want.weight, "dW of {shape:?}");
            assert_eq!(got.bias, want.bias, "db of {shape:?}");
        }
        let z = whole(&mut random, rows, inputs);
        let got = linear.backward_activated::<Cuda>(Activation::Relu, &z, &dy);
        let want = linear.backward_activated::<Cpu<f64>>(Activation::Relu, &z, &dy);
        assert_eq!(got, rounded::<Cuda>(&want), "dz of {shape:?}");
    }
}

/// Where cuBLASLt computes a product, an activation is of what is stored of it; there the plain computation rounds it
/// too.
#[test]
fn whatever_follows_the_product_is_as_exact_as_it_can_be_stored() {
    let mut random = Random::new(12);
    for shape @ [rows, _, outputs] in [[300, 96, 264], [40, 96, 72], [9, 40, 24], [13, 11, 17]] {
        let linear = Linear::random(shape).rounded::<Cuda>();
        let activations = [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];
        for activation in activations.map(Some).into_iter().chain([None]) {
            for residual in [None, Some(rounded::<Cuda>(&random.matrix(rows, outputs)))] {
                let epilogue = Epilogue { activation, residual };
                let what = format!("{shape:?}, {activation:?}, residual: {}", epilogue.residual.is_some());
                let [saved, y] = forward::<Cuda>(&linear, &epilogue, true);
                let [want_saved, want_y] = forward::<Cpu<f64>>(&linear, &epilogue, true);
                assert_rounded::<Cuda>(&format!("saved of {what}"), &saved, &want_saved);
                let own = only_own_kernels();
                let reference = match activation.filter(|_| epilogue.residual.is_none() && !own) {
                    Some(activation) => activated::<Cpu<f64>>(activation, &rounded::<Cuda>(&want_saved)),
                    None => want_y.clone(),
                };
                let reference = rounded::<Cuda>(&reference);
                Cuda::assert_near(&format!("y of {what}"), &y, &want_y, &reference);
                let [_, unsaved_y] = forward::<Cuda>(&linear, &epilogue, false);
                Cuda::assert_near(&format!("unsaved y of {what}"), &unsaved_y, &want_y, &reference);
                if own {
                    assert_eq!(unsaved_y, y, "{what}: y depends on whether the pre-activation is saved");
                }
            }
        }
    }
}

/// Operands whose rows are aligned but not whole vectors long: what lies beyond them is NaN and must not be read as
/// a part of a sum.
#[test]
fn columns_beyond_the_operands_are_not_read() {
    let mut random = Random::new(13);
    for [rows, inputs, outputs] in [[300, 197, 259], [40, 93, 70], [5, 35, 11]] {
        let linear = whole_linear(&mut random, [rows, inputs, outputs]);
        let dy = whole(&mut random, rows, outputs);
        // Wider copies, NaN beyond the operand.
        let wide = |matrix: &Matrix| {
            Matrix::from_fn(matrix.rows, matrix.cols.next_multiple_of(8), |r, c| {
                if c < matrix.cols { matrix.at(r, c) } else { f64::NAN }
            })
        };
        let (mut x, mut weight) =
            (Tensor::rows(&wide(&linear.x)), Tensor::<Cuda>::rows(&wide(&linear.weight)));
        let mut gradient = Tensor::rows(&wide(&dy));
        let (mut y, mut dx) = (Tensor::<Cuda>::output(rows, outputs), Tensor::<Cuda>::output(rows, inputs));
        let zeros = |rows, cols| Tensor::<Cuda, f32>::pitched(&Matrix::filled(rows, cols, 0.0));
        let (mut dweight, mut dbias) = (zeros(outputs, inputs), zeros(1, outputs));
        Cuda::get()
            .linear_forward(LinearForward {
                x: x.view().columns(0..inputs),
                weight: weight.view().columns(0..inputs).into(),
                bias: None,
                activation: None,
                residual: None,
                pre_activation: None,
                y: y.view_mut(),
            })
            .unwrap();
        Cuda::get()
            .linear_backward(LinearBackward {
                x: x.view().columns(0..inputs),
                weight: weight.view().columns(0..inputs).into(),
                dy: gradient.view().columns(0..outputs),
                activation: None,
                dx: Some((Write::Replace, dx.view_mut())),
                dweight: dweight.view_mut(),
                dbias: Some(dbias.view_mut()),
            })
            .unwrap();
        let zeros = Linear {
            x: Matrix::filled(rows, inputs, 0.0),
            weight: Matrix::filled(outputs, inputs, 0.0),
            bias: Matrix::filled(1, outputs, 0.0),
        };
        let want = linear.backward::<Cpu<f64>>(&dy, Write::Replace, &zeros);
        assert_eq!(y.read(), rounded::<Cuda>(&linear.forward::<Cpu<f64>>(Tensor::rows, None)));
        assert_eq!(dx.read(), rounded::<Cuda>(&want.x));
        assert_eq!(dweight.read(), want.weight);
        assert_eq!(dbias.read(), want.bias);
    }
}

#[test]
fn the_gpu_has_the_same_gradients() {
    let mut random = Random::new(14);
    for shape @ [rows, inputs, outputs] in [[257, 352, 96], [96, 96, 257], [31, 37, 41], [1, 1, 1]] {
        let linear = Linear::random(shape).rounded::<Cuda>();
        let dy = rounded::<Cuda>(&random.matrix(rows, outputs));
        let before = Linear {
            x: rounded::<Cuda>(&random.matrix(rows, inputs)),
            weight: random.matrix(outputs, inputs),
            bias: random.matrix(1, outputs),
        };
        let got = linear.backward::<Cuda>(&dy, Write::Add, &before);
        let want = linear.backward::<Cpu<f64>>(&dy, Write::Add, &before);
        assert_rounded::<Cuda>(&format!("dx of {shape:?}"), &got.x, &want.x);
        // In `f32`, as the CPU's own gradients in `f32` are.
        let tolerance = crate::device::tolerance::<f32>();
        crate::common::assert_close(&format!("dW of {shape:?}"), &got.weight, &want.weight, tolerance);
        crate::common::assert_close(&format!("db of {shape:?}"), &got.bias, &want.bias, tolerance);
    }
}

#[test]
fn a_gradient_of_the_weight_alone_is_the_same() {
    let linear = Linear::random([300, 200, 264]).rounded::<Cuda>();
    let dy = rounded::<Cuda>(&Random::new(15).matrix(300, 264));
    let zeros = Matrix::filled(264, 200, 0.0);
    let mut dweight = Tensor::<Cuda, f32>::pitched(&zeros);
    Cuda::get()
        .linear_backward(LinearBackward {
            x: Tensor::pitched(&linear.x).view(),
            weight: Tensor::pitched(&linear.weight).weight(),
            dy: Tensor::pitched(&dy).view(),
            activation: None,
            dx: None,
            dweight: dweight.view_mut(),
            dbias: None,
        })
        .unwrap();
    let before = Linear { weight: zeros, ..linear.clone() };
    assert_eq!(dweight.read(), linear.backward::<Cuda>(&dy, Write::Replace, &before).weight);
}

/// A small layer of many rows, which blocks share, and more columns than a block adds up the parts of, in no whole
/// vectors. That it comes in parts on twelve multiprocessors is for a test of `WeightKernels::choose` to say.
#[test]
fn parts_of_a_gradient_of_a_weight_are_added_up() {
    let [rows, inputs, outputs] = [1536, 518, 6];
    let linear = whole_linear(&mut Random::new(17), [rows, inputs, outputs]);
    let dy = whole(&mut Random::new(18), rows, outputs);
    // Rows that start at multiples of 16 bytes.
    let aligned = |matrix: &Matrix| {
        let cols = matrix.cols.next_multiple_of(8);
        Matrix::from_fn(rows, cols, |r, c| if c < matrix.cols { matrix.at(r, c) } else { f64::NAN })
    };
    let (mut x, mut gradient) = (Tensor::rows(&aligned(&linear.x)), Tensor::rows(&aligned(&dy)));
    let mut dweight = Tensor::<Cuda, f32>::pitched(&linear.weight);
    let mut dbias = Tensor::<Cuda, f32>::pitched(&linear.bias);
    Cuda::get()
        .linear_backward(LinearBackward {
            x: x.view().columns(0..inputs),
            weight: Tensor::pitched(&linear.weight).weight(),
            dy: gradient.view().columns(0..outputs),
            activation: None,
            dx: None,
            dweight: dweight.view_mut(),
            dbias: Some(dbias.view_mut()),
        })
        .unwrap();
    let want = linear.backward::<Cpu<f64>>(&dy, Write::Replace, &linear);
    assert_eq!(dweight.read(), want.weight);
    assert_eq!(dbias.read(), want.bias);
}

#[test]
fn a_product_is_the_same_bits_every_time() {
    for shape @ [rows, _, outputs] in
        [[300, 200, 264], [2100, 120, 72], [40, 768, 72], [9, 768, 24], [13, 71, 17]]
    {
        let linear = Linear::random(shape).rounded::<Cuda>();
        let dy = rounded::<Cuda>(&Random::new(16).matrix(rows, outputs));
        let compute = || {
            let epilogue = Epilogue { activation: Some(Activation::Gelu), residual: None };
            let [_, y] = forward::<Cuda>(&linear, &epilogue, false);
            let gradient = linear.backward::<Cuda>(&dy, Write::Replace, &linear);
            [y, gradient.x, gradient.weight, gradient.bias].map(|m| m.bits())
        };
        assert_eq!(compute(), compute(), "{shape:?}");
    }
}

/// Runs tests of this file in a process of their own, in such an environment.
fn run_apart(tests: &[&str], environment: &[(&str, &OsStr)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .args(["--skip", "on_few_multiprocessors", "--skip", "cublaslt"])
        .env_remove("QFORMER_GEMM")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// Asserts that they pass; returns what was written to stderr.
fn pass_apart(tests: &[&str], environment: &[(&str, &OsStr)]) -> String {
    let output = run_apart(tests, environment);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{stdout}{stderr}");
    stderr.into_owned()
}

/// The tests above where a simulated GPU has few multiprocessors: that is many tiles for each.
fn run_on_four_multiprocessors(capability: &str) {
    let environment = [("SIMGPU_CC", capability), ("SIMGPU_MULTIPROCESSORS", "4")];
    pass_apart(&["linear::gpu::"], &environment.map(|(name, value)| (name, OsStr::new(value))));
}

/// On twelve, blocks share the rows of the test above.
#[test]
fn parts_are_added_up_on_few_multiprocessors() {
    for capability in ["80", "90"] {
        let environment = [("SIMGPU_CC", capability), ("SIMGPU_MULTIPROCESSORS", "12")];
        pass_apart(&["linear::gpu::parts_of"], &environment.map(|(name, value)| (name, OsStr::new(value))));
    }
}

#[test]
fn large_products_are_right_on_few_multiprocessors() {
    run_on_four_multiprocessors("90");
}

/// What is for every GPU has to be right also where Hopper has its own.
#[test]
fn products_are_right_before_hopper_on_few_multiprocessors() {
    run_on_four_multiprocessors("80");
}

const SMALL_TEST: &str = "linear::gpu::a_product_is_the_same_bits_every_time";

/// Products that the stand-in for cuBLASLt computed in tests of this file, run with `QFORMER_GEMM` set to `choice`. None
/// with a real GPU, where the real library is asked for and does not tell.
fn cublaslt_products(tests: &str, choice: Option<&str>) -> Option<u64> {
    let simulated = is_simulated();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simgpu");
    let library = simulated.then(|| simgpu::build_cublaslt(&cache).unwrap_or_else(|why| panic!("{why}")));
    let library = library.as_ref().map(|path| ("QFORMER_CUBLASLT", path.as_os_str()));
    let choice = choice.map(|choice| ("QFORMER_GEMM", OsStr::new(choice)));
    let environment: Vec<_> = library.into_iter().chain(choice).collect();
    let stderr = pass_apart(&[tests], &environment);
    let count =
        |line: &str| line.strip_prefix("simulated cuBLASLt: ")?.strip_suffix(" products")?.parse().ok();
    simulated.then(|| stderr.lines().find_map(count).unwrap_or(0))
}

/// Every test of this file, with all that cuBLASLt can do given to it.
#[test]
fn cublaslt_gives_right_products_and_gradients() {
    let products = cublaslt_products("linear::gpu::", Some("cublaslt"));
    // The 12 aligned shapes of the test of whole numbers have dx and dW twice, and dz; y is saved there, so it stays
    // where it is. Three shapes of the test of what follows have y with each of four activations, saved or not.
    assert!(products.is_none_or(|products| products >= 12 * 5 + 3 * 8), "{products:?}");
}

#[test]
fn cublaslt_or_own_kernels_are_chosen_once() {
    let products = cublaslt_products(SMALL_TEST, None);
    // Both are timed: y, dx and dW of four aligned shapes, 4 times 5 products each. The bits stay the same
    // afterwards.
    assert!(products.is_none_or(|products| products >= 4 * 3 * 20), "{products:?}");
}

#[test]
fn cublaslt_is_left_alone_where_own_kernels_are_asked_for() {
    let products = cublaslt_products(SMALL_TEST, Some("own"));
    assert!(products.is_none_or(|products| products == 0), "{products:?}");
}

#[test]
fn cublaslt_that_is_asked_for_in_vain_is_an_error() {
    for (name, value, message) in [
        ("QFORMER_GEMM", "fast", "it may be own, cublaslt, or not set"),
        ("QFORMER_CUBLASLT", "no-such-library.so", "set QFORMER_CUBLASLT to its path, or QFORMER_GEMM=own"),
    ] {
        let output = run_apart(&[SMALL_TEST], &[(name, OsStr::new(value))]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && stdout.contains(message), "{name}={value}: {stdout}");
    }
}
