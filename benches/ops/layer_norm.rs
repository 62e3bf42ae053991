use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::layer_norm::{LayerNormForward, LayerNormOp};

pub(crate) fn benchmark(criterion: &mut Criterion) {
    for (rows, width) in [(2056, 1408), (256, 768)] {
        let (mut x, mut residual) = (Tensor::rows(rows, width), Tensor::rows(rows, width));
        let (mut weight, mut bias) = (Tensor::rows(1, width), Tensor::rows(1, width));
        let (what, work) = (format!("{rows}×{width}"), bytes(3 * rows * width));
        measure(criterion, "layer norm", &what, work, &mut Tensor::output(rows, width), |y| {
            let args = LayerNormForward {
                x: x.view(),
                dropout: None,
                residual: Some(residual.view()),
                weight: weight.view(),
                bias: bias.view(),
                epsilon: 1e-12,
                sum: None,
                statistics: None,
                y: y.view_mut(),
            };
            Cpu::new().layer_norm_forward(args).unwrap();
        });
    }
}
