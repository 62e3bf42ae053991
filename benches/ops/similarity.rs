use crate::common::{Tensor, measure, operations};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::similarity::{Pairing, SimilarityForward, SimilarityOp};

const QUERIES: usize = 32;
const WIDTH: usize = 256;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let (mut queries, mut texts) = (Tensor::rows(100 * QUERIES, WIDTH), Tensor::rows(100, WIDTH));
    let work = operations(&[[100 * QUERIES, 100, WIDTH]]);
    measure(criterion, "similarity", "100×100", work, &mut Tensor::output(100, 100), |similarity| {
        let args = SimilarityForward {
            pairing: Pairing::All,
            queries: queries.view(),
            texts: texts.view(),
            similarity: similarity.view_mut(),
            winner: None,
        };
        Cpu::new().similarity_forward(args).unwrap();
    });
}
