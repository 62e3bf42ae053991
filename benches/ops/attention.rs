use crate::common::{Tensor, measure, operations};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::attention::{Attention, AttentionForward, AttentionOp, Mask, Sequence, Sequences, Span};

/// The lengths of a batch of captions.
const TEXT: [usize; 8] = [9, 12, 16, 11, 10, 14, 13, 15];

pub(crate) fn benchmark(criterion: &mut Criterion) {
    forward(criterion, "image encoder, 8×257", [16, 88], &Sequences::uniform(8, 257));
    forward(criterion, "image pass, 8×32", [12, 64], &Sequences::uniform(8, 32));
    forward(criterion, "text pass, 8×9 to 16", [12, 64], &text());
    forward(criterion, "cross, 8×32 over 257", [12, 64], &cross());
}

fn text() -> Sequences {
    let mut start = 0;
    let mut sequence = |&len: &usize| {
        let spans = [Span::EMPTY, Span::new(start, len)];
        start += len;
        Sequence { queries: spans, keys: spans }
    };
    Sequences::new(TEXT.iter().map(&mut sequence).collect())
}

fn cross() -> Sequences {
    let spans = |i, len| [Span::new(i * len, len), Span::EMPTY];
    Sequences::new((0..8).map(|i| Sequence { queries: spans(i, 32), keys: spans(i, 257) }).collect())
}

fn forward(criterion: &mut Criterion, what: &str, [heads, width]: [usize; 2], sequences: &Sequences) {
    let length = |spans: [Span; 2]| spans[0].len + spans[1].len;
    let lengths: Vec<_> = sequences.as_slice().iter().map(|s| (length(s.queries), length(s.keys))).collect();
    let (queries, keys) = lengths.iter().fold((0, 0), |sum, l| (sum.0 + l.0, sum.1 + l.1));
    let products: Vec<_> =
        lengths.iter().flat_map(|&(q, k)| [[q, k, heads * width], [q, heads * width, k]]).collect();
    let [mut q, mut k, mut v] = [queries, keys, keys].map(|rows| Tensor::rows(rows, heads * width));
    let mut table = Tensor::indices(&vec![0; sequences.words()]);
    let sequences = sequences.place(&Cpu::new(), table.view_mut()).unwrap();
    let attention =
        Attention { sequences, heads, mask: Mask::None, scale: (width as f64).sqrt().recip(), dropout: None };
    let mut out = Tensor::output(queries, heads * width);
    measure(criterion, "attention", what, operations(&products), &mut out, |out| {
        let args = AttentionForward {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            prefix: None,
            out: out.view_mut(),
            lse: None,
        };
        Cpu::new().attention_forward(attention, args).unwrap();
    });
}
