use crate::common::{Matrix, Random, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::fold::{FoldBackward, FoldForward, FoldOp};

/// Outputs, inputs: the model's, one of each, primes, and a vector's width.
const SHAPES: [[usize; 2]; 4] = [[96, 1408], [1, 1], [13, 7], [5, 64]];

/// A linear layer's weight and bias, and the norm before it.
#[derive(Clone)]
struct Fold {
    weight: Matrix,
    bias: Matrix,
    norm_weight: Matrix,
    norm_bias: Matrix,
}

impl Fold {
    fn random([out, inputs]: [usize; 2]) -> Self {
        let mut random = Random::new(1);
        Self {
            weight: random.matrix(out, inputs),
            bias: random.matrix(1, out),
            norm_weight: random.matrix(1, inputs),
            norm_bias: random.matrix(1, inputs),
        }
    }

    fn rounded<D: TestDevice>(&self) -> Self {
        Self {
            weight: rounded::<D>(&self.weight),
            bias: rounded::<D>(&self.bias),
            norm_weight: rounded::<D>(&self.norm_weight),
            norm_bias: rounded::<D>(&self.norm_bias),
        }
    }

    /// The folded weight and bias.
    fn forward<D: TestDevice + FoldOp>(&self) -> [Matrix; 2] {
        let (out, inputs) = (self.weight.rows, self.weight.cols);
        let (mut weight, mut bias) = (Tensor::<D>::output(out, inputs), Tensor::<D>::output(1, out));
        D::get()
            .fold_forward(FoldForward {
                weight: Tensor::pitched(&self.weight).view(),
                bias: Tensor::pitched(&self.bias).view(),
                norm_weight: Tensor::pitched(&self.norm_weight).view(),
                norm_bias: Tensor::pitched(&self.norm_bias).view(),
                folded_weight: weight.view_mut(),
                folded_bias: bias.view_mut(),
            })
            .unwrap();
        [weight.read(), bias.read()]
    }

    /// Gradients from those of the folded ones, on top of `before`.
    fn backward<D: TestDevice + FoldOp>(&self, dweight: &Matrix, dbias: &Matrix, before: &Self) -> Self {
        let mut to = [&before.weight, &before.bias, &before.norm_weight, &before.norm_bias]
            .map(Tensor::<D, D::Stat>::pitched);
        let [weight, bias, norm_weight, norm_bias] = &mut to;
        D::get()
            .fold_backward(FoldBackward {
                weight: Tensor::pitched(&self.weight).view(),
                norm_weight: Tensor::pitched(&self.norm_weight).view(),
                norm_bias: Tensor::pitched(&self.norm_bias).view(),
                dfolded_weight: Tensor::<D, D::Stat>::pitched(dweight).view(),
                dfolded_bias: Tensor::<D, D::Stat>::pitched(dbias).view(),
                dweight: weight.view_mut(),
                dbias: bias.view_mut(),
                dnorm_weight: norm_weight.view_mut(),
                dnorm_bias: norm_bias.view_mut(),
            })
            .unwrap();
        let [weight, bias, norm_weight, norm_bias] = to.each_mut().map(Tensor::read);
        Self { weight, bias, norm_weight, norm_bias }
    }

    fn zeros(&self) -> Self {
        let zeros = |m: &Matrix| Matrix::filled(m.rows, m.cols, 0.0);
        Self {
            weight: zeros(&self.weight),
            bias: zeros(&self.bias),
            norm_weight: zeros(&self.norm_weight),
            norm_bias: zeros(&self.norm_bias),
        }
    }
}

fn forward_matches<D: TestDevice + FoldOp>() {
    for shape in SHAPES {
        let fold = Fold::random(shape).rounded::<D>();
        let [weight, bias] = fold.forward::<D>();
        let [out, inputs] = shape;
        let want = Matrix::from_fn(out, inputs, |r, c| fold.weight.at(r, c) * fold.norm_weight.at(0, c));
        assert_rounded::<D>("weight", &weight, &want);
        let shift = |r: usize| -> f64 {
            fold.weight.row(r).iter().zip(fold.norm_bias.row(0)).map(|(w, beta)| w * beta).sum()
        };
        let want = Matrix::from_fn(1, out, |_, r| fold.bias.at(0, r) + shift(r));
        assert_rounded::<D>("bias", &bias, &want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn whole_numbers_are_exact<D: TestDevice + FoldOp>() {
    for [out, inputs] in SHAPES {
        let mut random = Random::new(6);
        let [weight, dweight] = [(); 2].map(|()| random.whole(out, inputs, 2));
        let [bias, dbias] = [(); 2].map(|()| random.whole(1, out, 2));
        let [norm_weight, norm_bias] = [(); 2].map(|()| random.whole(1, inputs, 2));
        let fold = Fold { weight, bias, norm_weight, norm_bias };
        // Sums of 1408 products up to 4 are exact in single precision, and rounded once.
        assert_eq!(fold.forward::<D>(), fold.forward::<Cpu<f64>>().map(|m| rounded::<D>(&m)));
        let got = fold.backward::<D>(&dweight, &dbias, &fold);
        let want = fold.backward::<Cpu<f64>>(&dweight, &dbias, &fold);
        assert_eq!([got.weight, got.bias], [want.weight, want.bias]);
        assert_eq!([got.norm_weight, got.norm_bias], [want.norm_weight, want.norm_bias]);
    }
}

#[test]
fn whole_numbers_are_folded_exactly() {
    whole_numbers_are_exact::<Cpu<f32>>();
    whole_numbers_are_exact::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    for shape in [[1, 1], [13, 7], [3, 70]] {
        let fold = Fold::random(shape);
        let mut random = Random::new(2);
        let (dweight, dbias) = (random.matrix(shape[0], shape[1]), random.matrix(1, shape[0]));
        let gradient = fold.backward::<Cpu<f64>>(&dweight, &dbias, &fold.zeros());
        let loss = |fold: &Fold| {
            let [weight, bias] = fold.forward::<Cpu<f64>>();
            weight.dot(&dweight) + bias.dot(&dbias)
        };
        let with = |weight: &Matrix| loss(&Fold { weight: weight.clone(), ..fold.clone() });
        assert_gradient("weight", &fold.weight, &gradient.weight, with);
        let with = |bias: &Matrix| loss(&Fold { bias: bias.clone(), ..fold.clone() });
        assert_gradient("bias", &fold.bias, &gradient.bias, with);
        let with = |norm: &Matrix| loss(&Fold { norm_weight: norm.clone(), ..fold.clone() });
        assert_gradient("norm weight", &fold.norm_weight, &gradient.norm_weight, with);
        let with = |norm: &Matrix| loss(&Fold { norm_bias: norm.clone(), ..fold.clone() });
        assert_gradient("norm bias", &fold.norm_bias, &gradient.norm_bias, with);
    }
}

#[test]
fn the_gpu_has_the_same_gradients() {
    for shape in SHAPES {
        let fold = Fold::random(shape).rounded::<Cuda>();
        let mut random = Random::new(5);
        let [out, inputs] = shape;
        let (dweight, dbias) = (random.matrix(out, inputs), random.matrix(1, out));
        let want = fold.backward::<Cpu<f64>>(&dweight, &dbias, &fold);
        let got = fold.backward::<Cuda>(&dweight, &dbias, &fold);
        assert_rounded::<Cuda>("weight", &got.weight, &want.weight);
        assert_rounded::<Cuda>("bias", &got.bias, &want.bias);
        assert_rounded::<Cuda>("norm weight", &got.norm_weight, &want.norm_weight);
        assert_rounded::<Cuda>("norm bias", &got.norm_bias, &want.norm_bias);
        let again = fold.backward::<Cuda>(&dweight, &dbias, &fold);
        assert_eq!(got.norm_weight, again.norm_weight, "in every run the same");
    }
}

#[test]
fn gradients_are_added_to_what_was_there() {
    let fold = Fold::random([6, 9]);
    let mut random = Random::new(3);
    let (dweight, dbias) = (random.matrix(6, 9), random.matrix(1, 6));
    let fresh = fold.backward::<Cpu<f64>>(&dweight, &dbias, &fold.zeros());
    let added = fold.backward::<Cpu<f64>>(&dweight, &dbias, &fold);
    assert_rounded::<Cpu<f64>>("weight", &added.weight.minus(&fold.weight), &fresh.weight);
    assert_rounded::<Cpu<f64>>("bias", &added.bias.minus(&fold.bias), &fresh.bias);
    let norm = added.norm_weight.minus(&fold.norm_weight);
    assert_rounded::<Cpu<f64>>("norm weight", &norm, &fresh.norm_weight);
    assert_rounded::<Cpu<f64>>("norm bias", &added.norm_bias.minus(&fold.norm_bias), &fresh.norm_bias);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let fold = Fold::random([37, 131]);
    let mut random = Random::new(4);
    let (dweight, dbias) = (random.matrix(37, 131), random.matrix(1, 37));
    assert_independent_of_threads(|| {
        let [weight, bias] = fold.forward::<Cpu<f32>>();
        let gradient = fold.backward::<Cpu<f32>>(&dweight, &dbias, &fold);
        vec![weight, bias, gradient.weight, gradient.bias, gradient.norm_weight, gradient.norm_bias]
    });
}
