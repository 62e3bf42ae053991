use crate::attention::case::Case;
use crate::common::{Matrix, Random, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::absorbed_attention::{AbsorbedAttention, AbsorbedAttentionForward, CrossSizes};
use qformer::ops::attention::{Mask, Sequence, Span};
use qformer::tensor::Packing;

struct Cross {
    heads: usize,
    images: usize,
    q: Matrix,
    image: Matrix,
    key_weight: Matrix,
    key_bias: Matrix,
    value_weight: Matrix,
    value_bias: Matrix,
}

/// Images, queries, heads, head width, image tokens, image width: the model's with fewer heads and
/// a narrower image, a head width of half a panel, one of each, primes, and as many tokens as the GPU's
/// kernel holds.
const SHAPES: [[usize; 6]; 7] = [
    [2, 32, 2, 64, 257, 352],
    [1, 32, 7, 64, 33, 96],
    [3, 5, 5, 32, 7, 20],
    [1, 1, 1, 1, 1, 1],
    [2, 200, 3, 16, 9, 11],
    [2, 13, 3, 2, 31, 17],
    [1, 8, 2, 16, 320, 24],
];

impl Cross {
    fn random([images, queries, heads, head_width, tokens, width]: [usize; 6]) -> Self {
        let mut random = Random::new(1);
        let hidden = heads * head_width;
        Self {
            heads,
            images,
            q: random.matrix(images * queries, hidden),
            image: random.matrix(images * tokens, width),
            key_weight: random.matrix(hidden, width),
            key_bias: random.matrix(1, hidden),
            value_weight: random.matrix(hidden, width),
            value_bias: random.matrix(1, hidden),
        }
    }

    fn scale(&self) -> f64 {
        (self.heads as f64 / self.q.cols as f64).sqrt()
    }

    /// The same with numbers that `D` holds exactly.
    fn rounded<D: TestDevice>(self) -> Self {
        let Self { heads, images, q, image, key_weight, key_bias, value_weight, value_bias } = self;
        let [q, image, key_weight] = [&q, &image, &key_weight].map(rounded::<D>);
        let [value_weight, value_bias] = [&value_weight, &value_bias].map(rounded::<D>);
        Self { heads, images, q, image, key_weight, key_bias, value_weight, value_bias }
    }

    /// Attention over projected keys and values. The bias of the keys takes part here alone.
    fn plain(&self) -> Matrix {
        self.plain_storing(|x| x)
    }

    /// What an implementation gives that stores keys, values and probabilities by `store`.
    fn plain_storing(&self, store: fn(f64) -> f64) -> Matrix {
        let project = |weight: &Matrix, bias: &Matrix| {
            Matrix::from_fn(self.image.rows, weight.rows, |r, c| {
                let product: f64 = self.image.row(r).iter().zip(weight.row(c)).map(|(x, w)| x * w).sum();
                store(product + bias.at(0, c))
            })
        };
        let (queries, tokens) = (self.q.rows / self.images, self.image.rows / self.images);
        let sequence = |i| Sequence {
            queries: [Span::new(i * queries, queries), Span::EMPTY],
            keys: [Span::new(i * tokens, tokens), Span::EMPTY],
        };
        let case = Case {
            name: "projected",
            sequences: (0..self.images).map(sequence).collect(),
            mask: Mask::None,
            heads: self.heads,
            q: self.q.clone(),
            k: project(&self.key_weight, &self.key_bias),
            v: project(&self.value_weight, &self.value_bias),
            prefix: None,
            dropout: None,
            bias: None,
        };
        case.plain_storing(store).out
    }

    fn absorbed<D: TestDevice + AbsorbedAttention>(&self, store: fn(&Matrix) -> Tensor<D>) -> Matrix {
        let mut out = Tensor::<D>::output(self.q.rows, self.q.cols);
        D::get()
            .absorbed_attention(AbsorbedAttentionForward {
                heads: self.heads,
                scale: self.scale(),
                q: Tensor::pitched(&self.q).view(),
                image: Tensor::pitched(&self.image).view(),
                key_weight: store(&self.key_weight).view(),
                value_weight: store(&self.value_weight).view(),
                value_bias: Tensor::pitched(&self.value_bias).view(),
                images: self.images,
                out: out.view_mut(),
            })
            .unwrap();
        out.read()
    }
}

fn equals_attention_over_projections<D: TestDevice + AbsorbedAttention>() {
    let stores: [fn(&Matrix) -> Tensor<D>; 2] = [Tensor::rows, Tensor::pitched];
    for shape in SHAPES {
        let cross = Cross::random(shape).rounded::<D>();
        let (want, reference) = (cross.plain(), rounded::<D>(&cross.plain_storing(D::round)));
        for &store in &stores {
            D::assert_near(&format!("{shape:?}"), &cross.absorbed(store), &want, &reference);
        }
    }
}

#[test]
fn it_equals_attention_over_keys_with_a_bias_and_values() {
    equals_attention_over_projections::<Cpu<f64>>();
    equals_attention_over_projections::<Cpu<f32>>();
    equals_attention_over_projections::<Cuda>();
}

fn whole_numbers_are_exact<D: TestDevice + AbsorbedAttention>() {
    let stores: [fn(&Matrix) -> Tensor<D>; 2] = [Tensor::rows, Tensor::pitched];
    for shape in [[2, 32, 2, 64, 256, 48], [3, 5, 5, 32, 8, 20], [1, 3, 3, 16, 16, 24]] {
        let [images, queries, heads, head_width, tokens, width] = shape;
        let (mut random, hidden) = (Random::new(6), heads * head_width);
        // Keys are made of the first half of an image's channels, where all of its tokens are the same, and values
        // of the others: so every token has the same part in each sum, a power of two.
        let keys = |c: usize| c < width / 2;
        let (same, other) = (random.whole(images, width, 1), random.whole(images * tokens, width, 1));
        let image = Matrix::from_fn(images * tokens, width, |r, c| {
            if keys(c) { same.at(r / tokens, c) } else { 8.0 * other.at(r, c) }
        });
        let mut weight = |of_keys| {
            let weight = random.whole(hidden, width, 1);
            Matrix::from_fn(hidden, width, |r, c| if keys(c) == of_keys { weight.at(r, c) } else { 0.0 })
        };
        let (key_weight, value_weight) = (weight(true), weight(false));
        let cross = Cross {
            heads,
            images,
            q: random.whole(images * queries, hidden, 1),
            image,
            key_weight,
            key_bias: Matrix::filled(1, hidden, 0.0),
            value_weight,
            value_bias: random.whole(1, hidden, 2),
        };
        let mean =
            |i: usize, c| (0..tokens).map(|t| cross.image.at(i * tokens + t, c)).sum::<f64>() / tokens as f64;
        let of_image = Matrix::from_fn(images, hidden, |i, h| {
            let sum: f64 = (width / 2..width).map(|c| mean(i, c) * cross.value_weight.at(h, c)).sum();
            sum + cross.value_bias.at(0, h)
        });
        let want = Matrix::from_fn(images * queries, hidden, |r, h| of_image.at(r / queries, h));
        for &store in &stores {
            assert_eq!(cross.absorbed(store), rounded::<D>(&want), "{shape:?}");
        }
    }
}

#[test]
fn even_attention_over_whole_numbers_is_exact() {
    whole_numbers_are_exact::<Cpu<f64>>();
    whole_numbers_are_exact::<Cpu<f32>>();
    whole_numbers_are_exact::<Cuda>();
}

#[test]
fn nan_in_an_image_reaches_all_of_its_rows_and_no_other() {
    let mut cross = Cross::random([3, 5, 2, 32, 7, 20]);
    cross.image.set(7 + 3, 4, f64::NAN);
    for out in [cross.absorbed::<Cpu<f32>>(Tensor::rows), cross.absorbed::<Cuda>(Tensor::pitched)] {
        assert!((0..15).all(|r| out.row(r).iter().all(|x| x.is_nan() == (5..10).contains(&r))));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let cross = Cross::random([2, 32, 8, 64, 33, 96]);
    assert_independent_of_threads(|| vec![cross.absorbed::<Cpu<f32>>(Tensor::rows)]);
}

#[test]
fn two_runs_on_the_gpu_have_the_same_bits() {
    let cross = Cross::random([2, 33, 2, 64, 65, 72]);
    let run = || cross.absorbed::<Cuda>(Tensor::rows).bits();
    assert!(run() == run());
}

#[test]
fn one_set_of_queries_is_absorbed_and_three_or_weights_in_panels_are_not() {
    let sizes =
        |queries| CrossSizes { heads: 12, queries, hidden: 768, image_tokens: 257, image_width: 1408 };
    let rows = Packing::Rows { pitch: 1408 };
    assert!(sizes(32).absorbs(rows) && !sizes(96).absorbs(rows));
    assert!(!sizes(32).absorbs(Packing::Panels) && !sizes(32).absorbs(Packing::SplitPanels));
    // The GPU's kernel holds rows of scores of so many tokens only.
    assert!(!CrossSizes { image_tokens: 321, ..sizes(32) }.absorbs(rows));
}
