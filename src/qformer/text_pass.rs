//! The text pass: text alone, every token seeing its whole text. Rows of real tokens only.

use super::{Parameters, QFormer};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::block::BlockActs;
use crate::layers::self_attention::{Attending, FirstKeys};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::{HostTensor, ViewMut};

/// Embeddings of text on their way into the first block.
pub(super) struct TextEmbeddingActs<'a, B: Backend> {
    /// [1, rows]
    ids: ViewMut<'a, B, u32>,
    /// [1, rows]
    places: ViewMut<'a, B, u32>,
    /// [rows, D]
    embedded: M<'a, B>,
}

impl<'a, B: Backend> TextEmbeddingActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, hidden: usize) -> Self {
        Self { ids: cursor.take(1, rows), places: cursor.take(1, rows), embedded: cursor.take(rows, hidden) }
    }

    /// The tokens of a stream, and their places in their texts.
    pub(super) fn write(&mut self, b: &B, [tokens, places]: [&[u32]; 2]) -> Result<()> {
        b.write_indices(tokens, self.ids.reborrow())?;
        b.write_indices(places, self.places.reborrow())
    }
}

/// Rows gathered out of a stream and projected to unit length.
pub(super) struct ClsActs<'a, B: Backend> {
    /// [1, T]
    ids: ViewMut<'a, B, u32>,
    /// [T, D]
    rows: M<'a, B>,
    /// [T, E]
    projected: M<'a, B>,
    /// [T, E], of unit length
    pub(super) unit: M<'a, B>,
}

impl<'a, B: Backend> ClsActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, texts: usize, hidden: usize, embedding: usize) -> Self {
        Self {
            ids: cursor.take(1, texts),
            rows: cursor.take(texts, hidden),
            projected: cursor.take(texts, embedding),
            unit: cursor.take(texts, embedding),
        }
    }

    /// The rows to gather: the first one of each span.
    pub(super) fn write(&mut self, b: &B, spans: &[Span]) -> Result<()> {
        let first: Vec<u32> = spans.iter().map(|span| span.start as u32).collect();
        b.write_indices(&first, self.ids.reborrow())
    }
}

/// What the text pass works in.
struct TextPassActs<'a, B: Backend> {
    embedding: TextEmbeddingActs<'a, B>,
    /// Table of the texts' sequences [1, words]
    own: ViewMut<'a, B, u32>,
    /// Shared by all blocks.
    block: BlockActs<'a, B>,
    /// [rows, D]: a block's input and output, in turns
    x: [M<'a, B>; 2],
    cls: ClsActs<'a, B>,
}

impl<'a, B: Backend> TextPassActs<'a, B> {
    fn carve(
        cursor: &mut Cursor<'a, B>,
        model: &QFormer<B>,
        rows: usize,
        texts: usize,
        own: &Sequences,
    ) -> Self {
        let (hidden, embedding) = (model.config.qformer.hidden_size, model.config.image_text_hidden_size);
        Self {
            embedding: TextEmbeddingActs::carve(cursor, rows, hidden),
            own: cursor.take(1, own.words()),
            block: BlockActs::carve(cursor, [0, rows], &model.config.qformer, Keep::Nothing),
            x: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            cls: ClsActs::carve(cursor, texts, hidden, embedding),
        }
    }
}

impl<B: Backend> QFormer<B> {
    /// The feature of each text [T, E], of unit length, from its token ids, `[CLS]` first.
    ///
    /// # Errors
    /// Fails if the checkpoint cannot compare texts, if a text is empty, longer than the position
    /// table or has ids outside the vocabulary, and if there is not enough memory.
    pub fn encode_text(&self, texts: &[Vec<u32>]) -> Result<HostTensor> {
        self.heads()?;
        self.check_texts(texts)?;
        let mut features = Vec::new();
        let mut rest = texts;
        while !rest.is_empty() {
            let mut rows = 0;
            let fit = rest.iter().take_while(|t| {
                rows += t.len();
                rows <= 256 * B::IMAGES_PER_PASS
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            self.device.enter(|| self.text_pass(now, &mut features))?;
            rest = later;
        }
        HostTensor::new(&[texts.len(), self.config.image_text_hidden_size], features)
    }

    /// Replayed for as many texts, of as many rows and as long a text, where rows and length are rounded up.
    fn text_pass(&self, texts: &[Vec<u32>], features: &mut Vec<f32>) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let FilledText { tokens, places, longest } = FilledText::of::<B>(texts);
        let rows = tokens.len();
        let spans = text_spans(texts, 0);
        let sequence = |&span: &Span| Sequence { queries: [Span::EMPTY, span], keys: [Span::EMPTY, span] };
        let own = Sequences::new(spans.iter().map(sequence).collect());
        let sizes = SequenceSizes { keys: longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        let mut lease = self.workspace.lease(b, (texts.len(), "texts"), |c| {
            TextPassActs::carve(c, self, rows, texts.len(), &own);
        })?;
        let (mut cursor, replay) = lease.replayed("text pass", vec![texts.len(), rows, longest]);
        let mut acts = TextPassActs::carve(&mut cursor, self, rows, texts.len(), &own);
        acts.embedding.write(b, [&tokens, &places])?;
        acts.cls.write(b, &spans)?;
        let sequences = own.place(b, acts.own)?;
        b.replay(replay, || {
            let [mut x, mut y] = acts.x;
            self.embed_written(&parameters, &mut acts.embedding, x.reborrow())?;
            let attending = [Attending { sequences, mask: Mask::None, first_keys: FirstKeys::Own }];
            let stream = self.stream(0, &attending, None);
            for (index, block) in parameters.blocks.iter().enumerate() {
                let inputs = self.inputs(&parameters, index);
                block.forward(b, x.view(), &stream, &inputs, &mut acts.block, y.reborrow())?;
                std::mem::swap(&mut x, &mut y);
            }
            self.project_cls(&parameters, x.view(), &mut acts.cls)
        })?;
        features.extend(b.read(acts.cls.unit.view())?);
        Ok(())
    }

    /// Embeds the tokens that were written to `acts`, into `y` [rows, D].
    pub(super) fn embed_written(
        &self,
        parameters: &Parameters<V<'_, B>>,
        acts: &mut TextEmbeddingActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let TextEmbeddingActs { ids, places, embedded } = acts;
        let embeddings = parameters.text_embeddings.as_ref().expect("checked by check_texts");
        self.device.embedding_forward(EmbeddingForward {
            ids: ids.view(),
            table: embeddings.words,
            positions: Some((places.view(), embeddings.positions)),
            y: embedded.reborrow(),
        })?;
        parameters.embedding_norm.forward(&self.device, embedded.view(), None, y)
    }

    /// Features of those rows of `x` [rows, D] that were written to `acts`, into `acts.unit`.
    pub(super) fn project_cls(
        &self,
        parameters: &Parameters<V<'_, B>>,
        x: V<'_, B>,
        acts: &mut ClsActs<'_, B>,
    ) -> Result<()> {
        let heads = parameters.heads.as_ref().expect("checked by heads");
        self.device.embedding_forward(EmbeddingForward {
            ids: acts.ids.view(),
            table: x,
            positions: None,
            y: acts.rows.reborrow(),
        })?;
        self.project(
            &heads.text_projection,
            acts.rows.view(),
            acts.projected.reborrow(),
            acts.unit.reborrow(),
        )
    }
}

/// The rows of text of a stream, filled up so that their number comes again. The rows beyond the texts are of
/// padding, in no sequence, and nothing reads what becomes of them; all that a pass does elsewhere is done
/// row by row.
pub(super) struct FilledText {
    /// [rows]
    pub(super) tokens: Vec<u32>,
    /// [rows]: places within their texts
    pub(super) places: Vec<u32>,
    /// Tokens of the longest text, rounded up likewise.
    pub(super) longest: usize,
}

impl FilledText {
    pub(super) fn of<B: Backend>(texts: &[impl AsRef<[u32]>]) -> Self {
        let [mut tokens, mut places] = tokens_and_places(texts);
        let unit = B::row_unit(tokens.len());
        let rows = tokens.len().next_multiple_of(unit);
        tokens.resize(rows, 0);
        places.resize(rows, 0);
        let longest = texts.iter().map(|text| text.as_ref().len()).max().unwrap_or(0);
        Self { tokens, places, longest: longest.next_multiple_of(B::row_unit(longest)) }
    }
}

/// The tokens of the texts, one text after the other, and their places in them.
fn tokens_and_places(texts: &[impl AsRef<[u32]>]) -> [Vec<u32>; 2] {
    [
        texts.iter().flat_map(AsRef::as_ref).copied().collect(),
        texts.iter().flat_map(|text| 0..text.as_ref().len() as u32).collect(),
    ]
}

/// Where the texts lie in a stream, the first of them at row `start`.
pub(super) fn text_spans(texts: &[impl AsRef<[u32]>], start: usize) -> Vec<Span> {
    let mut next = start;
    let span = |len: usize| {
        next += len;
        Span::new(next - len, len)
    };
    texts.iter().map(|text| text.as_ref().len()).map(span).collect()
}
