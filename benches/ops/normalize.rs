use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::normalize::{NormalizeForward, NormalizeOp};

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let mut x = Tensor::rows(256, 256);
    let work = bytes(2 * 256 * 256);
    measure(criterion, "normalize", "256×256", work, &mut Tensor::output(256, 256), |y| {
        Cpu::new().normalize_forward(NormalizeForward { x: x.view(), y: y.view_mut() }).unwrap();
    });
}
