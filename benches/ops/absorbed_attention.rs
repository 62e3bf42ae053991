use crate::common::{Tensor, measure, operations};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::absorbed_attention::{AbsorbedAttention, AbsorbedAttentionForward};

const HEADS: usize = 12;
const HEAD_WIDTH: usize = 64;
const QUERIES: usize = 32;
const TOKENS: usize = 257;
const WIDTH: usize = 1408;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    for images in [1, 8] {
        let hidden = HEADS * HEAD_WIDTH;
        let (mut q, mut image) =
            (Tensor::rows(images * QUERIES, hidden), Tensor::rows(images * TOKENS, WIDTH));
        let (mut key_weight, mut value_weight) =
            (Tensor::panels(hidden, WIDTH), Tensor::panels(hidden, WIDTH));
        let mut value_bias = Tensor::rows(1, hidden);
        let rows = images * HEADS * QUERIES;
        // The queries by the keys' weight and the features by the values', and attention between.
        let work = operations(&[
            [rows, WIDTH, HEAD_WIDTH],
            [rows, TOKENS, WIDTH],
            [rows, WIDTH, TOKENS],
            [rows, HEAD_WIDTH, WIDTH],
        ]);
        let mut out = Tensor::output(images * QUERIES, hidden);
        measure(criterion, "absorbed attention", &format!("{images}×32 over 257"), work, &mut out, |out| {
            let args = AbsorbedAttentionForward {
                heads: HEADS,
                scale: (HEAD_WIDTH as f64).sqrt().recip(),
                q: q.view(),
                image: image.view(),
                key_weight: key_weight.view(),
                value_weight: value_weight.view(),
                value_bias: value_bias.view(),
                images,
                out: out.view_mut(),
            };
            Cpu::new().absorbed_attention(args).unwrap();
        });
    }
}
