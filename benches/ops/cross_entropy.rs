use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::cross_entropy::{CrossEntropyBackward, CrossEntropyForward, CrossEntropyOp};

const VOCABULARY: usize = 30_523;
/// Tokens of 8 captions.
const TOKENS: usize = 100;
const SMOOTHING: f64 = 0.1;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let labels: Vec<u32> = (0..TOKENS).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let (mut labels, mut logits) = (Tensor::indices(&labels), Tensor::rows(TOKENS, VOCABULARY));
    let (mut lse, mut loss) = (Tensor::output(1, TOKENS), Tensor::output(1, 1));
    let (mut predictions, mut correct) = (Tensor::indices(&[0; TOKENS]), Tensor::indices(&[0]));
    let (what, work) = ("100×30523", TOKENS * VOCABULARY);
    let mut row_losses = Tensor::output(1, TOKENS);
    measure(criterion, "cross entropy", what, bytes(work), &mut row_losses, |row_losses| {
        let args = CrossEntropyForward {
            smoothing: SMOOTHING,
            logits: logits.view(),
            labels: labels.view(),
            lse: lse.view_mut(),
            row_losses: row_losses.view_mut(),
            predictions: predictions.view_mut(),
            loss: loss.view_mut(),
            correct: correct.view_mut(),
        };
        Cpu::new().cross_entropy_forward(args).unwrap();
    });
    // In place: from the second time on, of gradients, which costs the same.
    measure(criterion, "cross entropy backward", what, bytes(2 * work), &mut logits, |logits| {
        let args = CrossEntropyBackward {
            smoothing: SMOOTHING,
            weight: 1.0,
            labels: labels.view(),
            lse: lse.view(),
            logits: logits.view_mut(),
        };
        Cpu::new().cross_entropy_backward(args).unwrap();
    });
}
