use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::matching::{MatchingForm, MatchingForward, MatchingOp};

const PAIRS: usize = 300;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let mut logits = Tensor::rows(PAIRS, 2);
    let mut labels =
        Tensor::indices(&(0..PAIRS as u32).map(|p| u32::from(p < PAIRS as u32 / 3)).collect::<Vec<_>>());
    let mut correct = Tensor::indices(&[0; 2]);
    measure(criterion, "matching", "300", bytes(2 * PAIRS), &mut Tensor::output(1, 1), |loss| {
        let args = MatchingForward {
            form: MatchingForm::Classifier { logits: logits.view() },
            labels: labels.view(),
            loss: loss.view_mut(),
            correct: correct.view_mut(),
        };
        Cpu::new().matching_forward(args).unwrap();
    });
}
