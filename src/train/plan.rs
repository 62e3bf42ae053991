//! Which rows the two streams of a step have, and which of them attend to one another.

use super::trunk::PADDING;
use crate::device::Device;
use crate::layers::self_attention::FirstKeys;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};

/// Most tokens of a text of filler.
const FILLER: usize = 32;

/// A stream: query rows, a set for each of `images`, then text rows.
///
/// The rows of text are filled up with texts of padding to a number that comes again, where the device replays
/// steps ([`Device::row_unit`]). Filler is computed like any text, but no head reads it: its gradients are zeros, and
/// so are their products with all that is finite, which is what they add to the gradients of parameters. Of padding
/// as a word nothing is learnt, and what is added for its place is zero as well.
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
            cross: rounded_up(Sequences::new(images.iter().enumerate().map(sequence).collect())),
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

    /// Adds filler, whose sequences go to the others of the first table.
    fn fill<D: Device>(&mut self, sequences: &mut Vec<Sequence>) -> Filled {
        let unit = D::row_unit(self.tokens.len());
        let rows = self.tokens.len().next_multiple_of(unit);
        let most = sequences.len() + (unit - 1).div_ceil(FILLER);
        while self.tokens.len() < rows {
            let span = Span::new(self.rows(), FILLER.min(rows - self.tokens.len()));
            sequences.push(Sequence { queries: [Span::EMPTY, span], keys: [Span::EMPTY, span] });
            self.tokens.resize(self.tokens.len() + span.len, PADDING);
            self.positions.resize(self.tokens.len(), 0);
        }
        let longest = self.texts.iter().map(|text| text.len).max().unwrap_or(0);
        Filled { sequences: most, longest: longest.next_multiple_of(D::row_unit(longest)) }
    }

    /// All numbers that operations on the stream follow from: the query sets, the rows of text, and those of the
    /// sequences.
    pub(super) fn sizes(&self) -> Vec<usize> {
        let tables = self.attending.iter().map(|(sequences, ..)| sequences).chain([&self.cross]);
        let tables = tables.flat_map(|table| {
            let SequenceSizes { groups, sequences, keys, queries } = table.sizes();
            [groups, sequences, keys, queries]
        });
        [self.images.len(), self.tokens.len()].into_iter().chain(tables).collect()
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
    pub(super) fn alone<D: Device>(texts: &[Vec<u32>], rows: ImageRows) -> Self {
        let mut plan = Self::new((0..texts.len()).collect(), rows);
        let of_queries = |i| [Span::new(i * rows.queries, rows.queries), Span::EMPTY];
        let mut spans: Vec<[Span; 2]> = (0..texts.len()).map(of_queries).collect();
        for text in texts {
            spans.push([Span::EMPTY, plan.add_text(text, None)]);
        }
        let mut sequences = spans.into_iter().map(|span| Sequence { queries: span, keys: span }).collect();
        let filled = plan.fill::<D>(&mut sequences);
        let own = filled.table(sequences, rows.queries.max(filled.longest));
        plan.attending = vec![(own, Mask::None, FirstKeys::Own)];
        plan
    }

    /// The second phase: the `pairs`, queries and text seeing one another, and the `captions` to be
    /// generated, which see the first phase's queries of their image: of all, or of none.
    pub(super) fn together<D: Device>(
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
        let mut generated = Vec::new();
        for (image, text) in captions.iter().enumerate() {
            let text = plan.add_text(text, Some(start_token));
            let earlier = Span::new(image * queries, queries);
            generated.push(Sequence { queries: [Span::EMPTY, text], keys: [earlier, text] });
        }
        let filled = plan.fill::<D>(&mut matched);
        let together = queries + filled.longest;
        plan.attending.push((filled.table(matched, together), Mask::None, FirstKeys::Own));
        if !generated.is_empty() {
            let generated = Sequences::new(generated);
            let sizes = SequenceSizes { keys: together, queries: filled.longest, ..generated.sizes() };
            plan.attending.push((generated.within(sizes), Mask::Causal, FirstKeys::Earlier));
        }
        plan
    }
}

/// What a stream was filled up to.
struct Filled {
    /// Of the first table, as many as there may be.
    sequences: usize,
    /// Tokens of the longest text, rounded up.
    longest: usize,
}

impl Filled {
    /// The first table, of sequences of up to so many rows.
    fn table(&self, sequences: Vec<Sequence>, longest: usize) -> Sequences {
        let most = self.sequences;
        let sizes = SequenceSizes { groups: most, sequences: most, keys: longest, queries: longest };
        Sequences::new(sequences).within(sizes)
    }
}

/// Sequences of which more than one may be in a group, the number in the largest rounded up.
fn rounded_up(sequences: Sequences) -> Sequences {
    let sizes = sequences.sizes();
    sequences.within(SequenceSizes { queries: sizes.queries.next_power_of_two(), ..sizes })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Cpu, Cuda};

    const ROWS: ImageRows = ImageRows { queries: 4, tokens: 17 };

    fn texts(lengths: [usize; 3]) -> Vec<Vec<u32>> {
        lengths.map(|length| vec![5; length]).to_vec()
    }

    fn together<D: Device>(lengths: [usize; 3]) -> Plan {
        let texts = texts(lengths);
        let all: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let pairs = [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 0]];
        let pairs = pairs.map(|[image, text]| Pair { image, text, label: u32::from(image == text) });
        Plan::together::<D>(&pairs, &all, &texts, ROWS, 1)
    }

    #[test]
    fn batches_of_about_as_much_text_have_the_same_sizes() {
        let alone = |lengths| Plan::alone::<Cuda>(&texts(lengths), ROWS).sizes();
        assert_eq!(alone([9, 9, 9]), alone([20, 2, 10]));
        assert_ne!(alone([9, 9, 9]), alone([20, 3, 10]));
        // 81 and 96 rows of text.
        assert_eq!(together::<Cuda>([9, 9, 9]).sizes(), together::<Cuda>([20, 2, 10]).sizes());
    }

    #[test]
    fn every_row_is_in_a_sequence_of_its_own() {
        for lengths in [[9, 9, 9], [32, 32, 33], [64, 64, 64], [33, 33, 40]] {
            for plan in [Plan::alone::<Cuda>(&texts(lengths), ROWS), together::<Cuda>(lengths)] {
                let tables = plan.attending.iter().flat_map(|(sequences, ..)| sequences.as_slice());
                let mut rows: Vec<usize> = tables
                    .flat_map(|s| s.queries)
                    .flat_map(|span| span.start..span.start + span.len)
                    .collect();
                rows.sort_unstable();
                assert_eq!(rows, (0..plan.rows()).collect::<Vec<_>>());
                assert_eq!(plan.tokens.len() % 32, 0);
            }
        }
    }

    #[test]
    fn nothing_is_filled_up_where_nothing_is_replayed() {
        assert_eq!(Plan::alone::<Cpu>(&texts([9, 9, 9]), ROWS).tokens.len(), 27);
        assert_eq!(together::<Cpu>([9, 9, 9]).tokens.len(), 81);
    }
}
