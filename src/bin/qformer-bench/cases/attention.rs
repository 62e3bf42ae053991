//! Attention, as each of the passes has it.

use super::tensor::Tensor;
use super::{CAPTION, Cases, Cost};
use qformer::Result;
use qformer::device::Write;
use qformer::ops::Backend;
use qformer::ops::attention::{
    Attention, AttentionBackward, AttentionForward, Mask, Sequence, Sequences, Span,
};

/// One attention of the model.
struct Case {
    name: &'static str,
    shape: String,
    heads: usize,
    /// heads·head width
    width: usize,
    sequences: Sequences,
    mask: Mask,
    /// Rows of q, of k and of the prefix's k.
    rows: [usize; 3],
    /// Pairs of a query and a key that it sees.
    pairs: usize,
    training: Training,
}

/// Whether there is a backward pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Training {
    Trained,
    Frozen,
}

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let (config, batch) = (cases.config, cases.batch);
    let (queries, tokens) = (config.num_query_tokens, config.image_tokens());
    let (heads, width) = (config.qformer.num_attention_heads, config.qformer.hidden_size);
    let own = |name, length: usize, heads, width, training| Case {
        name,
        shape: format!("{batch} × {length}, {heads}×{}", width / heads),
        heads,
        width,
        sequences: Sequences::uniform(batch, length),
        mask: Mask::None,
        rows: [batch * length, batch * length, 0],
        pairs: batch * length * length,
        training,
    };
    let cross = |sets: usize| Case {
        name: "cross-attention",
        shape: format!("{batch} × {sets}·{queries} over {tokens}, {heads}×{}", width / heads),
        heads,
        width,
        sequences: Sequences::new(
            (0..batch * sets)
                .map(|set| Sequence {
                    queries: [Span::new(set * queries, queries), Span::EMPTY],
                    keys: [Span::new(set / sets * tokens, tokens), Span::EMPTY],
                })
                .collect(),
        ),
        mask: Mask::None,
        rows: [batch * sets * queries, batch * tokens, 0],
        pairs: batch * sets * queries * tokens,
        training: Training::Trained,
    };
    let cached = Case {
        name: "attention, causal",
        shape: format!("{batch} × {CAPTION} after {queries}, {heads}×{}", width / heads),
        heads,
        width,
        sequences: Sequences::new(
            (0..batch)
                .map(|i| {
                    let text = Span::new(i * CAPTION, CAPTION);
                    Sequence { queries: [Span::EMPTY, text], keys: [Span::new(i * queries, queries), text] }
                })
                .collect(),
        ),
        mask: Mask::Causal,
        rows: [batch * CAPTION, batch * CAPTION, batch * queries],
        pairs: batch * (CAPTION * queries + CAPTION * (CAPTION + 1) / 2),
        training: Training::Trained,
    };
    let captions = {
        let length = |text: usize| 9 + text * 5 % 8;
        let mut start = 0;
        let text = |text: usize| {
            let spans = [Span::EMPTY, Span::new(start, length(text))];
            start += length(text);
            Sequence { queries: spans, keys: spans }
        };
        let sequences = Sequences::new((0..batch).map(text).collect());
        Case {
            name: "attention",
            shape: format!("{batch} × 9 to 16, {heads}×{}", width / heads),
            heads,
            width,
            sequences,
            mask: Mask::None,
            rows: [start, start, 0],
            pairs: (0..batch).map(|text| length(text).pow(2)).sum(),
            training: Training::Trained,
        }
    };
    let encoder = config.vision.encoder().ok();
    let seeing =
        encoder.map(|v| own("attention", tokens, v.num_attention_heads, v.hidden_size, Training::Frozen));
    let of_qformer = [
        captions,
        own("attention", queries, heads, width, Training::Trained),
        own("attention", queries + CAPTION, heads, width, Training::Trained),
        cross(1),
        cross(3),
        cached,
    ];
    for case in of_qformer.into_iter().chain(seeing) {
        run(cases, &case)?;
    }
    decode(cases)
}

/// A step of decoding: a query for each of a language model's beams over its rows of a cache, by a list.
fn decode<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    const HEADS: usize = 32;
    const WIDTH: usize = HEADS * 80;
    let device = cases.device;
    for queries in [1, 5] {
        for keys in [64, 512, 2048] {
            let rows = queries * keys;
            let sequences = Sequences::new(
                (0..queries)
                    .map(|i| Sequence {
                        queries: [Span::EMPTY, Span::new(i, 1)],
                        keys: [Span::EMPTY, Span::new(i * keys, keys)],
                    })
                    .collect(),
            );
            // Beams take turns in the cache's rows.
            let listed: Vec<u32> = (0..rows).map(|i| (i % keys * queries + i / keys) as u32).collect();
            let mut listed = Tensor::indices(device, &listed)?;
            let mut table = Tensor::indices(device, &vec![0; sequences.words()])?;
            let attention = Attention {
                sequences: sequences.place(device, table.view_mut())?,
                heads: HEADS,
                mask: Mask::Causal,
                scale: (80.0_f64).sqrt().recip(),
                bias: None,
                dropout: None,
            };
            let random = |rows| Tensor::<B>::random(device, rows, WIDTH);
            let (mut q, mut k, mut v) = (random(queries)?, random(rows)?, random(rows)?);
            let mut out = Tensor::<B>::unwritten(device, queries, WIDTH)?;
            let elements = 2 * WIDTH * (queries + rows);
            let flops = 4.0 * (rows * WIDTH) as f64;
            let cost = Cost { flops, bytes: cases.elements(elements) as f64 };
            let shape = format!("{queries} × 1 over {keys}, {HEADS}×80");
            cases.case("attention, decoding", &shape, cost, &mut out, |out| {
                let args = AttentionForward {
                    q: q.view(),
                    k: k.view(),
                    v: v.view(),
                    prefix: None,
                    key_rows: Some(listed.view()),
                    out: out.view_mut(),
                    lse: None,
                };
                device.attention_forward(attention, args)
            })?;
        }
    }
    Ok(())
}

fn run<B: Backend>(cases: &mut Cases<'_, B>, case: &Case) -> Result<()> {
    let device = cases.device;
    let (heads, width, [query_rows, key_rows, prefix_rows]) = (case.heads, case.width, case.rows);
    let random = |rows| Tensor::<B>::random(device, rows, width);
    let zeros = |rows| Tensor::<B>::zeros(device, rows, width);
    let (mut q, mut k, mut v) = (random(query_rows)?, random(key_rows)?, random(key_rows)?);
    let (mut prefix_k, mut prefix_v) = (random(prefix_rows)?, random(prefix_rows)?);
    let mut out = Tensor::<B>::unwritten(device, query_rows, width)?;
    let mut lse = Tensor::zeros(device, heads, query_rows)?;
    let mut table = Tensor::indices(device, &vec![0; case.sequences.words()])?;
    let attention = Attention {
        sequences: case.sequences.place(device, table.view_mut())?,
        heads,
        mask: case.mask,
        scale: ((width / heads) as f64).sqrt().recip(),
        bias: None,
        dropout: None,
    };
    let statistics = cases.statistics(heads * query_rows);
    let product = 2.0 * case.pairs as f64 * width as f64;

    let elements = 2 * width * (query_rows + key_rows + prefix_rows);
    let cost = Cost { flops: 2.0 * product, bytes: (cases.elements(elements) + statistics) as f64 };
    cases.case(case.name, &case.shape, cost, &mut out, |out| {
        let args = AttentionForward {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            prefix: (prefix_rows > 0).then(|| [prefix_k.view(), prefix_v.view()]),
            key_rows: None,
            out: out.view_mut(),
            lse: Some(lse.view_mut()),
        };
        device.attention_forward(attention, args)
    })?;
    if case.training == Training::Frozen {
        return Ok(());
    }
    let (mut dout, mut dq) = (random(query_rows)?, Tensor::<B>::unwritten(device, query_rows, width)?);
    let (mut dk, mut dv) = (zeros(key_rows)?, zeros(key_rows)?);
    let (mut dprefix_k, mut dprefix_v) = (zeros(prefix_rows)?, zeros(prefix_rows)?);
    // The prefix's gradients are read too.
    let elements = width * (4 * query_rows + 4 * key_rows + 6 * prefix_rows);
    let cost = Cost { flops: 5.0 * product, bytes: (cases.elements(elements) + statistics) as f64 };
    cases.case(&format!("{} backward", case.name), &case.shape, cost, &mut dq, |dq| {
        let args = AttentionBackward {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            prefix: (prefix_rows > 0).then(|| [prefix_k.view(), prefix_v.view()]),
            out: out.view(),
            lse: lse.view(),
            dout: dout.view(),
            dq: dq.view_mut(),
            write: Write::Replace,
            dk: dk.view_mut(),
            dv: dv.view_mut(),
            dprefix: (prefix_rows > 0).then(|| [dprefix_k.view_mut(), dprefix_v.view_mut()]),
        };
        device.attention_backward(attention, args)
    })
}
