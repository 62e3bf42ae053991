//! The token streams of a step's two phases: the rows of queries, texts and padding, and their attention spans.

use crate::device::Device;
use crate::layers::stream::FirstKeys;
use crate::models::qformer::stack::{StreamInputs, StreamPlan};
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::pairs::{FILLER, PADDING, PAIRS_OF_IMAGE};

/// Rows of an image in the streams.
#[derive(Clone, Copy)]
pub(in crate::train::stage1) struct ImageRows {
    /// Q
    pub(in crate::train::stage1) queries: usize,
    /// N
    pub(in crate::train::stage1) tokens: usize,
}

/// `rows` of text, filled up with texts of padding to a number that comes again, where the device replays
/// steps ([`Device::row_granularity`]). Padding is computed like any text, but no head reads it: its gradients are zeros, and
/// so are their products with all that is finite, which is what they add to the gradients of parameters. Of padding
/// as a word nothing is learnt, and what is added for its place is zero as well.
pub(in crate::train::stage1) fn filled_up<D: Device>(rows: usize) -> usize {
    rows.next_multiple_of(D::row_granularity(rows))
}

/// The second phase: pairs, queries and text seeing one another, and captions to be generated, which see the
/// first phase's queries of their image.
pub(in crate::train::stage1) fn together<D: Device>(content: &PairPassSize, rows: ImageRows) -> StreamPlan {
    let &PairPassSize { pairs, images, captions, tokens: [least, most], longest } = content;
    let text_rows = filled_up::<D>(most);
    let (texts, longest) = (pairs + (text_rows - least).div_ceil(FILLER), filled_up::<D>(longest));
    let both = rows.queries + longest;
    let matched = SequenceSizes { groups: texts, sequences: texts, keys: both, queries: both };
    let generated = SequenceSizes { groups: captions, sequences: captions, keys: both, queries: longest };
    StreamPlan {
        sets: pairs,
        queries: rows.queries,
        text_rows,
        groups: vec![(matched, Mask::None, FirstKeys::Own), (generated, Mask::Causal, FirstKeys::Earlier)],
        cross: Some(SequenceSizes {
            groups: images,
            sequences: pairs,
            keys: rows.tokens,
            // An image may be in more pairs than this, which its block then takes in turn.
            queries: PAIRS_OF_IMAGE.next_power_of_two() * rows.queries,
        }),
    }
}

/// What the second phase's stream is of.
pub(in crate::train::stage1) struct PairPassSize {
    pub(in crate::train::stage1) pairs: usize,
    /// Of the micro-batch.
    pub(in crate::train::stage1) images: usize,
    pub(in crate::train::stage1) captions: usize,
    /// Tokens of pairs' texts and captions: that there are at least, and that there is room for.
    pub(in crate::train::stage1) tokens: [usize; 2],
    /// Tokens of the longest text.
    pub(in crate::train::stage1) longest: usize,
}

/// The first phase's stream: every image's queries and every text, each alone.
pub(in crate::train::stage1) struct FirstPhaseInputs {
    pub(in crate::train::stage1) plan: StreamPlan,
    /// [text rows]
    pub(in crate::train::stage1) tokens: Vec<u32>,
    /// [text rows]: places within their texts
    pub(in crate::train::stage1) positions: Vec<u32>,
    pub(in crate::train::stage1) own: Sequences,
    pub(in crate::train::stage1) cross: Sequences,
    /// The texts' first rows.
    pub(in crate::train::stage1) cls: Vec<u32>,
}

impl FirstPhaseInputs {
    /// What is written of it, where an image has so many `queries`.
    pub(in crate::train::stage1) fn inputs(&self, queries: usize) -> StreamInputs<'_> {
        let Self { tokens, positions, own, cross, .. } = self;
        StreamInputs { queries, tokens, positions, sequences: own, cross: Some(cross) }
    }

    pub(in crate::train::stage1) fn of<D: Device>(texts: &[Vec<u32>], rows: ImageRows) -> Self {
        let (images, ImageRows { queries, tokens: image_tokens }) = (texts.len(), rows);
        let set = |image: usize| [Span::new(image * queries, queries), Span::EMPTY];
        let mut spans: Vec<[Span; 2]> = (0..images).map(set).collect();
        let (mut tokens, mut positions, mut cls) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let span = Span::new(images * queries + tokens.len(), text.len());
            spans.push([Span::EMPTY, span]);
            cls.push(span.start as u32);
            tokens.extend(text);
            positions.extend(0..text.len() as u32);
        }
        let unit = D::row_granularity(tokens.len());
        let (text_rows, most) = (filled_up::<D>(tokens.len()), spans.len() + (unit - 1).div_ceil(FILLER));
        while tokens.len() < text_rows {
            let filler = FILLER.min(text_rows - tokens.len());
            spans.push([Span::EMPTY, Span::new(images * queries + tokens.len(), filler)]);
            tokens.resize(tokens.len() + filler, PADDING);
        }
        positions.resize(text_rows, 0);
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let longest = queries.max(filled_up::<D>(longest));
        let own = spans.into_iter().map(|span| Sequence { queries: span, keys: span }).collect();
        let own = Sequences::new(own).within(SequenceSizes {
            groups: most,
            sequences: most,
            keys: longest,
            queries: longest,
        });
        let image = |image: usize| Sequence {
            queries: set(image),
            keys: [Span::new(image * image_tokens, image_tokens), Span::EMPTY],
        };
        let cross = Sequences::new((0..images).map(image).collect());
        let plan = StreamPlan {
            sets: images,
            queries,
            text_rows,
            groups: vec![(own.sizes(), Mask::None, FirstKeys::Own)],
            cross: Some(cross.sizes()),
        };
        Self { plan, tokens, positions, own, cross, cls }
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::device::{Cpu, Cuda};

    const ROWS: ImageRows = ImageRows { queries: 4, tokens: 17 };

    fn texts(lengths: [usize; 3]) -> Vec<Vec<u32>> {
        lengths.map(|length| vec![5; length]).to_vec()
    }

    #[test]
    fn batches_of_about_as_much_text_have_the_same_sizes() {
        let alone = |lengths| FirstPhaseInputs::of::<Cuda>(&texts(lengths), ROWS).plan;
        assert_eq!(alone([9, 9, 9]), alone([20, 2, 10]));
        assert_ne!(alone([9, 9, 9]), alone([20, 3, 10]));
    }

    #[test]
    fn every_row_is_in_a_sequence_of_its_own() {
        for lengths in [[9, 9, 9], [32, 32, 33], [64, 64, 64], [33, 33, 40]] {
            let alone = FirstPhaseInputs::of::<Cuda>(&texts(lengths), ROWS);
            let spans = alone.own.as_slice().iter().flat_map(|sequence| sequence.queries);
            let mut rows: Vec<usize> = spans.flat_map(|span| span.start..span.start + span.len).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..alone.plan.rows()).collect::<Vec<_>>());
            assert!(alone.tokens.len() == alone.plan.text_rows && alone.tokens.len().is_multiple_of(32));
        }
    }

    #[test]
    fn nothing_is_filled_up_where_nothing_is_replayed() {
        assert_eq!(FirstPhaseInputs::of::<Cpu>(&texts([9, 9, 9]), ROWS).plan.text_rows, 27);
        let content = PairPassSize { pairs: 3, images: 3, captions: 3, tokens: [54, 54], longest: 9 };
        let plan = together::<Cpu>(&content, ROWS);
        assert_eq!((plan.text_rows, plan.groups[0].0.sequences), (54, 3));
    }
}
