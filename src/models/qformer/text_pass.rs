//! The text pass: text alone, every token seeing its whole text. Rows of real tokens only.

use super::projection::ProjectionActs;
use super::stack::{Given, Kept, StackActs, StreamInputs, StreamPlan};
use super::{Parameters, QFormer};
use crate::config::Config;
use crate::device::{M, V, W};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::stream::FirstKeys;
use crate::memory::{Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::{HostTensor, ViewMut};

/// Rows gathered out of a stream and projected to unit length.
pub(super) struct ClsActs<'a, B: Backend> {
    /// [1, T]
    ids: ViewMut<'a, B, u32>,
    /// [T, D]
    rows: M<'a, B>,
    projection: ProjectionActs<'a, B>,
    /// [T, E], of unit length
    pub(super) unit: M<'a, B>,
}

impl<'a, B: Backend> ClsActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, texts: usize, hidden: usize, embedding: usize) -> Self {
        Self {
            ids: cursor.take(1, texts),
            rows: cursor.take(texts, hidden),
            projection: ProjectionActs::carve(cursor, texts, embedding, Keep::Nothing),
            unit: cursor.take(texts, embedding),
        }
    }

    /// The rows to gather: the first one of each span.
    pub(super) fn write(&mut self, b: &B, spans: &[Span]) -> Result<()> {
        let first: Vec<u32> = spans.iter().map(|span| span.start as u32).collect();
        b.write_indices(&first, self.ids.reborrow())
    }
}

/// The text pass by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TextPass {
    stream: StreamPlan,
    texts: usize,
}

/// What the text pass works in.
struct TextPassActs<'a, B: Backend> {
    stack: StackActs<'a, B>,
    cls: ClsActs<'a, B>,
}

impl<B: Backend> Pass<B> for TextPass {
    type Model = Config;
    type Acts<'a> = TextPassActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.texts, "texts")
    }

    fn carve<'a>(&self, config: &Config, cursor: &mut Cursor<'a, B>) -> TextPassActs<'a, B> {
        let (hidden, embedding) = (config.qformer.hidden_size, config.image_text_hidden_size);
        TextPassActs {
            stack: StackActs::carve(cursor, &self.stream, &config.qformer, Kept::Output),
            cls: ClsActs::carve(cursor, self.texts, hidden, embedding),
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
        self.require_retrieval()?;
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

    fn text_pass(&self, texts: &[Vec<u32>], features: &mut Vec<f32>) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let FilledText { tokens, places, longest } = FilledText::of::<B>(texts);
        let spans = text_spans(texts, 0);
        let sequence = |&span: &Span| Sequence { queries: [Span::EMPTY, span], keys: [Span::EMPTY, span] };
        let own = Sequences::new(spans.iter().map(sequence).collect());
        let sizes = SequenceSizes { keys: longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        let stream = StreamPlan::of_text(tokens.len(), (sizes, Mask::None, FirstKeys::Own));
        let blocks = parameters.blocks.len();
        // SAFETY: beside its own memory the pass reads the model's weights.
        let read = unsafe {
            self.workspace.run(
                b,
                &self.config,
                TextPass { stream, texts: texts.len() },
                |acts| {
                    acts.cls.write(b, &spans)?;
                    acts.stack.write(b, &StreamInputs::of_text(&tokens, &places, &own))
                },
                |pass, acts| {
                    let stack = self.stack(&parameters, None);
                    stack.forward(b, &pass.stream, &mut acts.stack, Given::nothing())?;
                    self.project_cls(&parameters, acts.stack.output(blocks), &mut acts.cls)
                },
                |acts| b.read(acts.cls.unit.view()),
            )
        };
        features.extend(read?);
        Ok(())
    }

    /// Features of those rows of `x` [rows, D] that were written to `acts`, into `acts.unit`.
    pub(super) fn project_cls(
        &self,
        parameters: &Parameters<W<'_, B>>,
        x: V<'_, B>,
        acts: &mut ClsActs<'_, B>,
    ) -> Result<()> {
        let heads = parameters.heads.as_ref().expect("checked by heads");
        self.device.embedding_forward(EmbeddingForward {
            ids: acts.ids.view(),
            table: x.into(),
            positions: None,
            y: acts.rows.reborrow(),
        })?;
        let (rows, unit) = (acts.rows.view(), acts.unit.reborrow());
        acts.projection.forward(&self.device, &heads.text_projection, rows, unit)
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
        let unit = B::row_granularity(tokens.len());
        let rows = tokens.len().next_multiple_of(unit);
        tokens.resize(rows, 0);
        places.resize(rows, 0);
        let longest = texts.iter().map(|text| text.as_ref().len()).max().unwrap_or(0);
        Self { tokens, places, longest: longest.next_multiple_of(B::row_granularity(longest)) }
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
