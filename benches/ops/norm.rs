use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::norm::{Norm, NormOp, PARTIAL_SUMS};

/// Parameters of a layer and a half, more than a processor's caches hold.
const PARAMETERS: usize = 16 << 20;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let (mut x, mut partial_sums) = (Tensor::rows(1, PARAMETERS), Tensor::output(1, PARTIAL_SUMS));
    measure(criterion, "norm", "16 Mi", bytes(PARAMETERS), &mut Tensor::output(1, 1), |norm| {
        let args = Norm { x: x.view(), partial_sums: partial_sums.view_mut(), norm: norm.view_mut() };
        Cpu::new().norm(args).unwrap();
    });
}
