//! Which rows the two streams of a step have, and which of them attend to one another.

use super::Batch;
use crate::layers::self_attention::FirstKeys;
use crate::ops::attention::{Mask, Sequence, Sequences, Span};
use crate::ops::contrastive::NO_NEGATIVE;

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

impl Plan {
    fn new(images: Vec<usize>, queries: usize, image_tokens: usize) -> Self {
        let sequence = |(set, &image): (usize, &usize)| Sequence {
            queries: [Span::new(set * queries, queries), Span::EMPTY],
            keys: [Span::new(image * image_tokens, image_tokens), Span::EMPTY],
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

    /// The first phase: every image's queries and every text, each alone.
    pub(super) fn alone(batch: &Batch, queries: usize) -> Self {
        let mut plan = Self::new((0..batch.images()).collect(), queries, batch.image_tokens());
        let of_queries = (0..batch.images()).map(|i| [Span::new(i * queries, queries), Span::EMPTY]);
        let mut spans: Vec<[Span; 2]> = of_queries.collect();
        for text in &batch.texts {
            spans.push([Span::EMPTY, plan.add_text(text, None)]);
        }
        let sequences = spans.into_iter().map(|span| Sequence { queries: span, keys: span }).collect();
        plan.attending = vec![(Sequences::new(sequences), Mask::None, FirstKeys::Own)];
        plan
    }

    /// The second phase: the `pairs`, queries and text seeing one another, and the texts to be generated,
    /// which see the first phase's queries of their image.
    pub(super) fn together(batch: &Batch, pairs: &[Pair], queries: usize, start_token: u32) -> Self {
        let images = pairs.iter().map(|pair| pair.image).collect();
        let mut plan = Self::new(images, queries, batch.image_tokens());
        let mut matched = Vec::new();
        for (set, pair) in pairs.iter().enumerate() {
            let both = [Span::new(set * queries, queries), plan.add_text(&batch.texts[pair.text], None)];
            matched.push(Sequence { queries: both, keys: both });
        }
        let mut generated = Vec::new();
        for (image, text) in batch.texts.iter().enumerate() {
            let text = plan.add_text(text, Some(start_token));
            let earlier = Span::new(image * queries, queries);
            generated.push(Sequence { queries: [Span::EMPTY, text], keys: [earlier, text] });
        }
        plan.attending = vec![
            (Sequences::new(matched), Mask::None, FirstKeys::Own),
            (Sequences::new(generated), Mask::Causal, FirstKeys::Earlier),
        ];
        plan
    }
}

/// An image and a text to be matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) image: usize,
    pub(super) text: usize,
    /// 1 if they match, else 0
    pub(super) label: u32,
}

/// Every image with its own text, every text with its hard negative image, and every image with its
/// hard negative text, sorted by image. Where there is no negative there is no pair.
pub(super) fn pairs(negative_images: &[u32], negative_texts: &[u32]) -> Vec<Pair> {
    let own = (0..negative_texts.len()).map(|i| Pair { image: i, text: i, label: 1 });
    let of_texts = negative_images.iter().enumerate().filter(|&(_, &image)| image != NO_NEGATIVE);
    let of_texts = of_texts.map(|(text, &image)| Pair { image: image as usize, text, label: 0 });
    let of_images = negative_texts.iter().enumerate().filter(|&(_, &text)| text != NO_NEGATIVE);
    let of_images = of_images.map(|(image, &text)| Pair { image, text: text as usize, label: 0 });
    let mut pairs: Vec<Pair> = own.chain(of_texts).chain(of_images).collect();
    pairs.sort_by_key(|pair| pair.image);
    pairs
}
