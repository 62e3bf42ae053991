//! Which rows the two streams of a step have, and which of them attend to one another.

use crate::layers::self_attention::FirstKeys;
use crate::ops::attention::{Mask, Sequence, Sequences, Span};

/// A stream: query rows, a set for each of `images`, then text rows.
pub(super) struct Plan {
    /// The image that each query set reads; sets of one image stand together.
    pub(super) images: Vec<usize>,
    /// [text rows]
    pub(super) tokens: Vec<u32>,
    /// [text rows]: places within their texts
    pub(super) positions: Vec<u32>,
    /// Self-attention.
    pub(super) attending: Vec<(Sequences, Mask, FirstKeys)>,
    /// Query sets over the rows of their images.
    pub(super) cross: Sequences,
    /// Rows of the texts, in the order in which they were added.
    pub(super) texts: Vec<Span>,
    query_rows: usize,
}

/// Rows of an image in the streams.
#[derive(Clone, Copy)]
pub(super) struct ImageRows {
    /// Q
    pub(super) queries: usize,
    /// N
    pub(super) tokens: usize,
}

impl Plan {
    fn new(images: Vec<usize>, rows: ImageRows) -> Self {
        let ImageRows { queries, tokens } = rows;
        let sequence = |(set, &image): (usize, &usize)| Sequence {
            queries: [Span::new(set * queries, queries), Span::EMPTY],
            keys: [Span::new(image * tokens, tokens), Span::EMPTY],
        };
        Self {
            cross: Sequences::new(images.iter().enumerate().map(sequence).collect()),
            query_rows: images.len() * queries,
            images,
            tokens: Vec::new(),
            positions: Vec::new(),
            attending: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// Adds the rows of a text, its first token replaced if another is given.
    fn add_text(&mut self, tokens: &[u32], first: Option<u32>) -> Span {
        let span = Span::new(self.rows(), tokens.len());
        self.tokens.push(first.unwrap_or(tokens[0]));
        self.tokens.extend(&tokens[1..]);
        self.positions.extend(0..tokens.len() as u32);
        self.texts.push(span);
        span
    }

    pub(super) fn query_rows(&self) -> usize {
        self.query_rows
    }

    pub(super) fn rows(&self) -> usize {
        self.query_rows + self.tokens.len()
    }

    /// The first rows of the first `count` texts.
    pub(super) fn cls_rows(&self, count: usize) -> Vec<u32> {
        self.texts[..count].iter().map(|text| text.start as u32).collect()
    }

    /// The first phase: every image's queries and every text, each alone.
    pub(super) fn alone(texts: &[Vec<u32>], rows: ImageRows) -> Self {
        let mut plan = Self::new((0..texts.len()).collect(), rows);
        let of_queries = |i| [Span::new(i * rows.queries, rows.queries), Span::EMPTY];
        let mut spans: Vec<[Span; 2]> = (0..texts.len()).map(of_queries).collect();
        for text in texts {
            spans.push([Span::EMPTY, plan.add_text(text, None)]);
        }
        let sequences = spans.into_iter().map(|span| Sequence { queries: span, keys: span }).collect();
        plan.attending = vec![(Sequences::new(sequences), Mask::None, FirstKeys::Own)];
        plan
    }

    /// The second phase: the `pairs`, queries and text seeing one another, and the `captions` to be
    /// generated, which see the first phase's queries of their image: of all, or of none.
    pub(super) fn together(
        pairs: &[Pair],
        texts: &[&[u32]],
        captions: &[Vec<u32>],
        rows: ImageRows,
        start_token: u32,
    ) -> Self {
        let queries = rows.queries;
        let mut plan = Self::new(pairs.iter().map(|pair| pair.image).collect(), rows);
        let mut matched = Vec::new();
        for (set, pair) in pairs.iter().enumerate() {
            let both = [Span::new(set * queries, queries), plan.add_text(texts[pair.text], None)];
            matched.push(Sequence { queries: both, keys: both });
        }
        plan.attending.push((Sequences::new(matched), Mask::None, FirstKeys::Own));
        let mut generated = Vec::new();
        for (image, text) in captions.iter().enumerate() {
            let text = plan.add_text(text, Some(start_token));
            let earlier = Span::new(image * queries, queries);
            generated.push(Sequence { queries: [Span::EMPTY, text], keys: [earlier, text] });
        }
        if !generated.is_empty() {
            plan.attending.push((Sequences::new(generated), Mask::Causal, FirstKeys::Earlier));
        }
        plan
    }
}

/// An image and a text to be matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// Within its micro-batch.
    pub(super) image: usize,
    /// Within the whole batch.
    pub(super) text: usize,
    /// 1 if they match, else 0
    pub(super) label: u32,
}
