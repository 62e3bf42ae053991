use crate::common::{Tensor, measure, operations};
use criterion::Criterion;
use qformer::config::Activation;
use qformer::device::{Cpu, Write};
use qformer::ops::linear::{LinearBackward, LinearForward, LinearOp};

/// Products by frozen weights: 8 images of 32 queries, the keys and values of all six
/// cross-attention layers at once, one image's queries, one caption, and the image encoder's
/// feed-forward.
const FORWARD: [(&str, [usize; 3], Option<Activation>); 8] = [
    ("query, key and value 256×768→2304", [256, 768, 2304], None),
    ("output 256×768→768", [256, 768, 768], None),
    ("feed-forward in 256×768→3072 GELU", [256, 768, 3072], Some(Activation::Gelu)),
    ("feed-forward out 256×3072→768", [256, 3072, 768], None),
    ("image keys and values 2056×1408→9216", [2056, 1408, 9216], None),
    ("one image 32×768→3072", [32, 768, 3072], None),
    ("one caption 9×768→3072", [9, 768, 3072], None),
    ("image encoder 2056×1408→6144 GELU", [2056, 1408, 6144], Some(Activation::Gelu)),
];

pub(crate) fn benchmark(criterion: &mut Criterion) {
    for (what, shape, activation) in FORWARD {
        forward(criterion, &format!("{what}, panels"), shape, activation, Tensor::panels);
        if Cpu::<f32>::new().has_amx() {
            forward(criterion, &format!("{what}, split panels"), shape, activation, Tensor::split_panels);
        }
    }
    forward(criterion, "output 256×768→768, rows", [256, 768, 768], None, Tensor::rows);
    backward(criterion);
}

fn forward(
    criterion: &mut Criterion,
    what: &str,
    [rows, inputs, outputs]: [usize; 3],
    activation: Option<Activation>,
    store: fn(usize, usize) -> Tensor,
) {
    let (mut x, mut weight, mut bias) =
        (Tensor::rows(rows, inputs), store(outputs, inputs), Tensor::rows(1, outputs));
    let work = operations(&[[rows, outputs, inputs]]);
    measure(criterion, "gemm", what, work, &mut Tensor::output(rows, outputs), |y| {
        let args = LinearForward {
            x: x.view(),
            weight: weight.weight(),
            bias: Some(bias.view()),
            activation,
            residual: None,
            pre_activation: None,
            y: y.view_mut(),
        };
        Cpu::new().linear_forward(args).unwrap();
    });
}

fn backward(criterion: &mut Criterion) {
    let [rows, inputs, outputs] = [256, 768, 3072];
    let (mut x, mut weight, mut dy) =
        (Tensor::rows(rows, inputs), Tensor::rows(outputs, inputs), Tensor::rows(rows, outputs));
    let (mut dweight, mut dbias) = (Tensor::output(outputs, inputs), Tensor::output(1, outputs));
    let work = operations(&[[rows, inputs, outputs], [outputs, inputs, rows]]);
    measure(criterion, "gemm backward", "256×768→3072", work, &mut Tensor::output(rows, inputs), |dx| {
        let args = LinearBackward {
            x: x.view(),
            weight: weight.weight(),
            dy: dy.view(),
            activation: None,
            dx: Some((Write::Replace, dx.view_mut())),
            dweight: dweight.view_mut(),
            dbias: Some(dbias.view_mut()),
        };
        Cpu::new().linear_backward(args).unwrap();
    });
}
