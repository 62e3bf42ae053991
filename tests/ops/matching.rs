use crate::common::{Matrix, Random, assert_gradient};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::matching::{
    LEFT_OUT, MatchingBackward, MatchingForm, MatchingForward, MatchingGradient, MatchingOp,
};

/// Pairs of either form.
#[derive(Clone)]
enum Form {
    /// [pairs, 2]
    Classifier(Matrix),
    /// [pairs, 1], scale, bias
    MaxSimilarity(Matrix, f64, f64),
}

#[derive(Clone)]
struct Case {
    form: Form,
    labels: Vec<u32>,
}

/// Pairs of a batch of 100, more than a block of threads takes at a time, one, a prime.
const SIZES: [usize; 4] = [300, 3072, 1, 13];

/// One pair in three matches, one in five is left out.
fn labels(pairs: usize) -> Vec<u32> {
    (0..pairs).map(|p| if p % 5 == 4 { LEFT_OUT } else { u32::from(p % 3 == 0) }).collect()
}

impl Case {
    fn both<D: TestDevice>(pairs: usize) -> [Self; 2] {
        let logits = rounded::<D>(&Random::new(1).matrix(pairs, 2));
        let similarity = rounded::<D>(&Random::new(2).matrix(pairs, 1));
        [Form::Classifier(logits), Form::MaxSimilarity(similarity, 7.5, -2.25)]
            .map(|form| Self { form, labels: labels(pairs) })
    }

    fn logit(&self, pair: usize) -> f64 {
        match &self.form {
            Form::Classifier(logits) => logits.at(pair, 1) - logits.at(pair, 0),
            Form::MaxSimilarity(similarity, scale, bias) => scale * similarity.at(pair, 0) + bias,
        }
    }

    fn counted(&self) -> usize {
        self.labels.iter().filter(|&&label| label != LEFT_OUT).count()
    }

    /// Loss by its definition.
    fn plain(&self) -> f64 {
        let losses =
            self.labels.iter().enumerate().filter(|(_, label)| **label != LEFT_OUT).map(|(p, label)| {
                let right = if *label == 1 { self.logit(p) } else { -self.logit(p) };
                (1.0 + (-right).exp()).ln()
            });
        losses.sum::<f64>() / self.counted().max(1) as f64
    }

    /// Gradients by the features, the scale and the bias, by the chain rule; `round` is applied to
    /// what a plain implementation stores.
    fn plain_gradient(&self, weight: f64, round: impl Fn(f64) -> f64) -> [Matrix; 3] {
        let dlogit = |p: usize| match self.labels[p] {
            LEFT_OUT => 0.0,
            label => {
                let probability = 1.0 / (1.0 + (-self.logit(p)).exp());
                round(weight / self.counted() as f64 * (probability - f64::from(label)))
            }
        };
        let (pairs, zero) = (self.labels.len(), Matrix::filled(1, 1, 0.0));
        match &self.form {
            Form::Classifier(_) => {
                let dlogits = Matrix::from_fn(pairs, 2, |p, c| if c == 1 { dlogit(p) } else { -dlogit(p) });
                [dlogits, zero.clone(), zero]
            }
            Form::MaxSimilarity(similarity, scale, _) => [
                Matrix::from_fn(pairs, 1, |p, _| round(dlogit(p) * scale)),
                Matrix::filled(1, 1, (0..pairs).map(|p| dlogit(p) * similarity.at(p, 0)).sum()),
                Matrix::filled(1, 1, (0..pairs).map(dlogit).sum()),
            ],
        }
    }

    /// Loss, and how many are right and counted; then the gradients, those of the parameters added to
    /// `added`.
    fn run<D: TestDevice + MatchingOp>(&self, weight: f64, added: f64) -> (Matrix, Vec<u32>, [Matrix; 3]) {
        let pairs = self.labels.len();
        let one = |x| Tensor::<D, D::Stat>::rows(&Matrix::filled(1, 1, x));
        let (matrix, scale, bias) = match &self.form {
            Form::Classifier(logits) => (logits, 0.0, 0.0),
            Form::MaxSimilarity(similarity, scale, bias) => (similarity, *scale, *bias),
        };
        let (mut x, mut scale, mut bias) = (Tensor::<D>::pitched(matrix), one(scale), one(bias));
        let form = match &self.form {
            Form::Classifier(_) => MatchingForm::Classifier { logits: x.view() },
            Form::MaxSimilarity(..) => {
                MatchingForm::MaxSimilarity { similarity: x.view(), scale: scale.view(), bias: bias.view() }
            }
        };
        let mut labels = Tensor::<D, u32>::indices(1, pairs, &self.labels);
        let mut loss = Tensor::<D, D::Stat>::output(1, 1);
        let mut correct = Tensor::<D, u32>::indices(1, 2, &[9; 2]);
        D::get()
            .matching_forward(MatchingForward {
                form,
                labels: labels.view(),
                loss: loss.view_mut(),
                correct: correct.view_mut(),
            })
            .unwrap();
        let mut dx = Tensor::<D>::output(matrix.rows, matrix.cols);
        let (mut dscale, mut dbias) = (one(added), one(added));
        let gradient = match &self.form {
            Form::Classifier(_) => MatchingGradient::Classifier { dlogits: dx.view_mut() },
            Form::MaxSimilarity(..) => MatchingGradient::MaxSimilarity {
                dsimilarity: dx.view_mut(),
                dscale: dscale.view_mut(),
                dbias: dbias.view_mut(),
            },
        };
        let (labels, correct_view) = (labels.view(), correct.view());
        D::get()
            .matching_backward(MatchingBackward { form, labels, correct: correct_view, weight, gradient })
            .unwrap();
        (loss.read(), correct.read_indices(), [dx.read(), dscale.read(), dbias.read()])
    }
}

fn matches<D: TestDevice + MatchingOp>() {
    for case in SIZES.into_iter().flat_map(Case::both::<D>) {
        let (loss, correct, gradients) = case.run::<D>(0.3, 0.0);
        let want = case.plain();
        // The loss is summed in single precision at least: 3072 terms, whose roundings of 6e-8 add up
        // like a random walk.
        assert!((loss.at(0, 0) - want).abs() <= 4e-6 * want);
        let right =
            |p: &usize| case.labels[*p] != LEFT_OUT && (case.logit(*p) > 0.0) == (case.labels[*p] == 1);
        let right = (0..case.labels.len()).filter(right).count() as u32;
        assert_eq!(correct, [right, case.counted() as u32]);
        let (want, reference) = (case.plain_gradient(0.3, |x| x), case.plain_gradient(0.3, D::round));
        let kinds = if matches!(case.form, Form::Classifier(_)) { 1 } else { 3 };
        for i in 0..kinds {
            D::assert_near(["dx", "dscale", "dbias"][i], &gradients[i], &want[i], &reference[i]);
        }
        let left_out = (0..case.labels.len()).filter(|&p| case.labels[p] == LEFT_OUT);
        left_out.for_each(|p| assert!(gradients[0].row(p).iter().all(|&d| d == 0.0)));
    }
}

#[test]
fn either_form_matches_a_plain_computation() {
    matches::<Cpu<f64>>();
    matches::<Cpu<f32>>();
    matches::<Cuda>();
}

fn undecided_pairs_are_exact<D: TestDevice + MatchingOp>() {
    let pairs = 1280;
    // 1024 of the pairs count, of which a third match; each is 1/2 likely.
    let labels = labels(pairs);
    let dlogit = |p: usize| match labels[p] {
        LEFT_OUT => 0.0,
        label => (0.5 - f64::from(label)) / 1024.0,
    };
    let logits = Random::new(6).whole(pairs, 1, 2);
    let logits = Matrix::from_fn(pairs, 2, |p, _| logits.at(p, 0));
    let classifier = Case { form: Form::Classifier(logits), labels: labels.clone() };
    let [dlogits, ..] = classifier.run::<D>(1.0, 0.0).2;
    assert_eq!(dlogits, Matrix::from_fn(pairs, 2, |p, c| if c == 1 { dlogit(p) } else { -dlogit(p) }));

    let sum: f64 = (0..pairs).map(dlogit).sum();
    let form = Form::MaxSimilarity(Matrix::filled(pairs, 1, 2.0), 3.0, -6.0);
    let [dsimilarity, dscale, dbias] = Case { form, labels: labels.clone() }.run::<D>(1.0, 5.0).2;
    assert_eq!(dsimilarity, Matrix::from_fn(pairs, 1, |p, _| 3.0 * dlogit(p)));
    assert_eq!([dscale.at(0, 0), dbias.at(0, 0)], [5.0 + 2.0 * sum, 5.0 + sum]);
}

#[test]
fn undecided_pairs_have_exact_gradients() {
    undecided_pairs_are_exact::<Cpu<f64>>();
    undecided_pairs_are_exact::<Cpu<f32>>();
    undecided_pairs_are_exact::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    for case in Case::both::<Cpu<f64>>(13) {
        let loss = |form: Form| 0.3 * Case { form, ..case.clone() }.run::<Cpu<f64>>(1.0, 0.0).0.at(0, 0);
        let [dx, dscale, dbias] = case.run::<Cpu<f64>>(0.3, 0.0).2;
        match case.form.clone() {
            Form::Classifier(logits) => {
                assert_gradient("dlogits", &logits, &dx, |x| loss(Form::Classifier(x.clone())));
            }
            Form::MaxSimilarity(x, scale, bias) => {
                // A scale of 7.5 makes third derivatives large; of 1.5, they stay below 10.
                let case = Case { form: Form::MaxSimilarity(x.clone(), 1.5, bias), ..case.clone() };
                let dx = case.run::<Cpu<f64>>(0.3, 0.0).2[0].clone();
                assert_gradient("dsimilarity", &x, &dx, |x| loss(Form::MaxSimilarity(x.clone(), 1.5, bias)));
                let one = |x| Matrix::filled(1, 1, x);
                assert_gradient("dscale", &one(scale), &dscale, |s| {
                    loss(Form::MaxSimilarity(x.clone(), s.at(0, 0), bias))
                });
                assert_gradient("dbias", &one(bias), &dbias, |b| {
                    loss(Form::MaxSimilarity(x.clone(), scale, b.at(0, 0)))
                });
            }
        }
    }
}

fn extremes<D: TestDevice + MatchingOp>() {
    let logits = Matrix::from_fn(4, 2, |p, c| if (p + c) % 2 == 0 { 1000.0 } else { -1000.0 });
    let case = Case { form: Form::Classifier(logits), labels: vec![1, 1, 0, LEFT_OUT] };
    let (loss, correct, [dlogits, ..]) = case.run::<D>(3.0, 0.0);
    // Pair 0 says no match by 2000 and is one; pairs 1 and 2 are told right.
    assert!((loss.at(0, 0) - 2000.0 / 3.0).abs() < 1e-3);
    assert_eq!(correct, [2, 3]);
    assert_eq!(dlogits.values, [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn logits_far_apart_give_finite_losses() {
    extremes::<Cpu<f64>>();
    extremes::<Cpu<f32>>();
    extremes::<Cuda>();
}

fn nothing_counts<D: TestDevice + MatchingOp>() {
    for mut case in Case::both::<D>(6) {
        case.labels = vec![LEFT_OUT; 6];
        let (loss, correct, [dx, dscale, dbias]) = case.run::<D>(1.0, 2.0);
        assert_eq!(loss.at(0, 0), 0.0);
        assert_eq!(correct, [0, 0]);
        assert!(dx.values.iter().all(|&d| d == 0.0));
        assert!(dscale.at(0, 0) == 2.0 && dbias.at(0, 0) == 2.0, "gradients of parameters are added");
    }
}

#[test]
fn without_a_pair_that_counts_the_loss_is_zero() {
    nothing_counts::<Cpu<f64>>();
    nothing_counts::<Cpu<f32>>();
    nothing_counts::<Cuda>();
}

#[test]
fn nan_reaches_the_loss() {
    for mut case in Case::both::<Cuda>(13) {
        match &mut case.form {
            Form::Classifier(x) | Form::MaxSimilarity(x, ..) => x.set(3, 0, f64::NAN),
        }
        for (loss, _, [dx, ..]) in [case.run::<Cpu<f32>>(1.0, 0.0), case.run::<Cuda>(1.0, 0.0)] {
            assert!(loss.at(0, 0).is_nan() && dx.at(3, 0).is_nan() && !dx.at(2, 0).is_nan());
        }
    }
}
