use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::embedding::{EmbeddingForward, EmbeddingOp};

const VOCABULARY: usize = 30_523;
const PLACES: usize = 512;
const WIDTH: usize = 768;
/// Tokens of 8 captions.
const TOKENS: usize = 100;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let ids: Vec<u32> = (0..TOKENS).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let places: Vec<u32> = (0..TOKENS).map(|i| (i % 13) as u32).collect();
    let (mut ids, mut places) = (Tensor::indices(&ids), Tensor::indices(&places));
    let (mut table, mut positions) = (Tensor::rows(VOCABULARY, WIDTH), Tensor::rows(PLACES, WIDTH));
    let work = bytes(3 * TOKENS * WIDTH);
    measure(criterion, "embedding", "100×768", work, &mut Tensor::output(TOKENS, WIDTH), |y| {
        let args = EmbeddingForward {
            ids: ids.view(),
            table: table.view(),
            positions: Some((places.view(), positions.view())),
            y: y.view_mut(),
        };
        Cpu::new().embedding_forward(args).unwrap();
    });
}
