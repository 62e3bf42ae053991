//! The decoder pass: text after an image, every token seeing the image's queries and the text before it.
//!
//! The queries cannot see the text, so an image pass that keeps their keys and values in every block
//! comes first, once for each image. Text is then read whole, where it is known, or token by token.

use super::language_head::{LanguageHead, LanguageHeadActs};
use super::stack::{Given, GrowingText, Kept, StackActs, StreamInputs, StreamPlan};
use super::text_pass::{FilledText, text_spans};
use super::{Parameters, QFormer};
use crate::config::Config;
use crate::device::{M, V, W};
use crate::error::{Error, Result};
use crate::generate::NextToken;
use crate::layers::Keep;
use crate::layers::stream::FirstKeys;
use crate::memory::{Address, Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::cross_entropy::{CrossEntropyForward, IGNORED};
use crate::tensor::ViewMut;

/// What stays from token to token.
pub(super) struct DecoderState<'a, B: Backend> {
    /// Queries, keys and values of the images' queries in every block [I·Q, 3·D].
    pub(super) queries: Vec<M<'a, B>>,
    /// Those of the text in every block [sequences·length, 3·D], and one more to lay them out anew in.
    text: Vec<M<'a, B>>,
}

impl<'a, B: Backend> DecoderState<'a, B> {
    /// For so many images, and so many tokens of all sequences together.
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        model: &QFormer<B>,
        [images, tokens]: [usize; 2],
    ) -> Self {
        let config = &model.config.qformer;
        let (blocks, width) = (config.num_hidden_layers, 3 * config.hidden_size);
        let rows = images * model.config.num_query_tokens;
        let text_buffers = if tokens == 0 { 0 } else { blocks + 1 };
        Self {
            queries: (0..blocks).map(|_| cursor.take(rows, width)).collect(),
            text: (0..text_buffers).map(|_| cursor.take(tokens, width)).collect(),
        }
    }
}

/// The rows and the address of the matrices of every block that a pass reads or writes: those of one size follow one
/// another.
type Held = (usize, Address);

fn held<B: Backend>(matrices: &[M<'_, B>]) -> Held {
    (matrices[0].rows(), Address::of(matrices[0].view()))
}

/// The reading of a token of each sequence, by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenPass {
    stream: StreamPlan,
    /// Rows of text read before.
    earlier: usize,
    /// rows·length
    from: usize,
    queries: Held,
    text: Held,
}

/// What a token of each sequence is read in.
struct TokenActs<'a, B: Backend> {
    stack: StackActs<'a, B>,
    /// [1, rows·length]: where the keys of each sequence come from
    from: ViewMut<'a, B, u32>,
    head: LanguageHeadActs<'a, B>,
}

impl<B: Backend> Pass<B> for TokenPass {
    type Model = Config;
    type Acts<'a> = TokenActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.stream.text_rows, "sequences")
    }

    fn carve<'a>(&self, config: &Config, cursor: &mut Cursor<'a, B>) -> TokenActs<'a, B> {
        TokenActs {
            stack: StackActs::carve(cursor, &self.stream, &config.qformer, Kept::Output),
            from: cursor.take(1, self.from),
            head: LanguageHeadActs::carve(cursor, self.stream.text_rows, &config.qformer, Keep::Nothing),
        }
    }
}

/// The reading of whole texts, by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct LossPass {
    stream: StreamPlan,
    queries: Held,
}

/// What whole texts are read in.
struct LossActs<'a, B: Backend> {
    stack: StackActs<'a, B>,
    head: LanguageHeadActs<'a, B>,
    /// [1, rows]: the tokens that follow; of filler nothing does
    labels: ViewMut<'a, B, u32>,
    /// [1, rows]
    lse: ViewMut<'a, B, B::Stat>,
    /// [1, rows]
    row_losses: ViewMut<'a, B, B::Stat>,
    /// [1, rows]
    predictions: ViewMut<'a, B, u32>,
    /// [1, 1]
    loss: ViewMut<'a, B, B::Stat>,
    /// [1, 1]
    correct: ViewMut<'a, B, u32>,
}

impl<B: Backend> Pass<B> for LossPass {
    type Model = Config;
    type Acts<'a> = LossActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.stream.text_rows, "tokens")
    }

    fn carve<'a>(&self, config: &Config, cursor: &mut Cursor<'a, B>) -> LossActs<'a, B> {
        let rows = self.stream.text_rows;
        LossActs {
            stack: StackActs::carve(cursor, &self.stream, &config.qformer, Kept::Output),
            head: LanguageHeadActs::carve(cursor, rows, &config.qformer, Keep::Nothing),
            labels: cursor.take(1, rows),
            lse: cursor.take(1, rows),
            row_losses: cursor.take(1, rows),
            predictions: cursor.take(1, rows),
            loss: cursor.take(1, 1),
            correct: cursor.take(1, 1),
        }
    }
}

/// Texts that grow after images, token by token.
pub struct Decoder<'a, B: Backend> {
    pub(super) model: &'a QFormer<B>,
    pub(super) head: LanguageHead<W<'a, B>>,
    pub(super) state: DecoderState<'a, B>,
    /// The image that each sequence continues, by its place.
    pub(super) images: Vec<usize>,
    /// Tokens of each sequence.
    pub(super) length: usize,
}

impl<B: Backend> NextToken for Decoder<'_, B> {
    /// # Errors
    /// Fails if there is not a token of the vocabulary for each parent, if a parent is not among the sequences
    /// of the last call (in the first: among the images), if there are more sequences or more tokens than the
    /// decoder was made for, and if there is not enough memory.
    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        self.check(parents, tokens)?;
        self.model.device.enter(|| self.read(parents, tokens))
    }
}

impl<B: Backend> Decoder<'_, B> {
    fn check(&self, parents: &[usize], tokens: &[u32]) -> Result<()> {
        let config = &self.model.config;
        let (count, vocabulary) = (parents.len(), config.qformer.vocab_size);
        if count == 0 || tokens.len() != count {
            let tokens = tokens.len();
            return Err(Error::usage(format!(
                "{count} sequences go on with {tokens} tokens; each takes one"
            )));
        }
        let before = match self.length {
            0 => self.state.queries[0].rows() / config.num_query_tokens,
            _ => self.images.len(),
        };
        if let Some(parent) = parents.iter().find(|&&parent| parent >= before) {
            return Err(Error::usage(format!(
                "a sequence is to continue number {parent}, but there are {before} that can be continued"
            )));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::value(format!(
                "a sequence goes on with token {id}, but the vocabulary has {vocabulary}"
            )));
        }
        let (length, room) = (self.length + 1, self.state.text.first().map_or(0, |text| text.rows()));
        if length > config.qformer.max_position_embeddings || count.saturating_mul(length) > room {
            return Err(Error::usage(format!(
                "{count} sequences of {length} tokens are more than the decoder was made for; make it for as many"
            )));
        }
        Ok(())
    }

    fn read(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let Self { model, head, state, images, length } = self;
        let (b, parameters) = (&model.device, model.weights.view());
        let (rows, queries) = (parents.len(), model.config.num_query_tokens);
        let (earlier, place) = (images.len() * *length, *length);
        // Of the first token the parents are the images themselves.
        let continued =
            if place == 0 { parents.to_vec() } else { parents.iter().map(|&p| images[p]).collect() };
        let from = parents.iter().enumerate().flat_map(|(row, parent)| {
            (0..place).map(move |token| parent * place + token).chain([earlier + row])
        });
        let from: Vec<u32> = from.map(|row| row as u32).collect();
        let sequence = |(row, image): (usize, &usize)| Sequence {
            queries: [Span::EMPTY, Span::new(row, 1)],
            keys: [Span::new(image * queries, queries), Span::new(row * (place + 1), place + 1)],
        };
        let own = Sequences::reading(continued.iter().enumerate().map(sequence).collect());
        let DecoderState { queries: of_queries, text } = state;
        let pass = TokenPass {
            stream: StreamPlan::of_text(rows, (own.sizes(), Mask::None, FirstKeys::Earlier)),
            earlier,
            from: from.len(),
            queries: held::<B>(of_queries),
            text: held::<B>(text),
        };
        let (blocks, places) = (parameters.blocks.len(), vec![place as u32; rows]);
        // SAFETY: beside its own memory the pass reads the weights of model and head, which live as long, and what
        // stays from token to token, whose addresses it has: where the first buffer of text stands says where all do.
        let logits = unsafe {
            model.workspace.run(
                b,
                &model.config,
                pass,
                |acts| {
                    b.write_indices(&from, acts.from.reborrow())?;
                    acts.stack.write(b, &StreamInputs::of_text(tokens, &places, &own))
                },
                |pass, acts| {
                    let given = Given {
                        earlier: Some(of_queries.iter().map(M::<B>::view).collect()),
                        growing: Some(GrowingText { text, earlier, from: acts.from.view() }),
                        ..Given::nothing()
                    };
                    model.stack(&parameters, None).forward(b, &pass.stream, &mut acts.stack, given)?;
                    model.next_token(head, &parameters, acts.stack.output(blocks), &mut acts.head)
                },
                |acts| b.read(acts.head.logits.view()),
            )
        }?;
        text.rotate_right(1);
        (*images, *length) = (continued, place + 1);
        Ok(logits)
    }
}

impl<B: Backend> QFormer<B> {
    /// −ln p of every token but the first of each text, text by text: the texts begin with the start token,
    /// and each continues the image of `queries` that is named beside it.
    pub(super) fn losses_after(
        &self,
        head: &LanguageHead<W<'_, B>>,
        queries: &[M<'_, B>],
        texts: &[(usize, Vec<u32>)],
    ) -> Result<Vec<f32>> {
        let (b, parameters, set) = (&self.device, self.weights.view(), self.config.num_query_tokens);
        let read: Vec<&[u32]> = texts.iter().map(|(_, text)| &text[..text.len() - 1]).collect();
        let mut labels: Vec<u32> = texts.iter().flat_map(|(_, text)| &text[1..]).copied().collect();
        let foreseen = labels.len();
        let FilledText { tokens, places, longest } = FilledText::of::<B>(&read);
        let rows = tokens.len();
        labels.resize(rows, IGNORED);
        let spans = text_spans(&read, 0);
        let sequence = |(&span, (image, _)): (&Span, &(usize, Vec<u32>))| Sequence {
            queries: [Span::EMPTY, span],
            keys: [Span::new(image * set, set), span],
        };
        let own = Sequences::reading(spans.iter().zip(texts).map(sequence).collect());
        let sizes = SequenceSizes { keys: set + longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        let pass = LossPass {
            stream: StreamPlan::of_text(rows, (sizes, Mask::Causal, FirstKeys::Earlier)),
            queries: held::<B>(queries),
        };
        let blocks = parameters.blocks.len();
        // SAFETY: beside its own memory the pass reads the weights of model and head, which live as long, and the
        // queries, whose address it has.
        unsafe {
            self.workspace.run(
                b,
                &self.config,
                pass,
                |acts| {
                    b.write_indices(&labels, acts.labels.reborrow())?;
                    acts.stack.write(b, &StreamInputs::of_text(&tokens, &places, &own))
                },
                |pass, acts| {
                    let earlier = Some(queries.iter().map(M::<B>::view).collect());
                    let given = Given { earlier, ..Given::nothing() };
                    self.stack(&parameters, None).forward(b, &pass.stream, &mut acts.stack, given)?;
                    self.next_token(head, &parameters, acts.stack.output(blocks), &mut acts.head)?;
                    b.cross_entropy_forward(CrossEntropyForward {
                        smoothing: 0.0,
                        logits: acts.head.logits.view(),
                        labels: acts.labels.view(),
                        lse: acts.lse.reborrow(),
                        row_losses: acts.row_losses.reborrow(),
                        predictions: acts.predictions.reborrow(),
                        loss: acts.loss.reborrow(),
                        correct: acts.correct.reborrow(),
                    })
                },
                |acts| b.read(acts.row_losses.view().columns(0..foreseen)),
            )
        }
    }

    /// Logits of the token that follows each row of `x` [rows, D], into `acts.logits` [rows, V].
    fn next_token(
        &self,
        head: &LanguageHead<W<'_, B>>,
        parameters: &Parameters<W<'_, B>>,
        x: V<'_, B>,
        acts: &mut LanguageHeadActs<'_, B>,
    ) -> Result<()> {
        let words = parameters.text_embeddings.as_ref().expect("a model that reads text").words;
        head.forward(&self.device, x, words, self.config.qformer.hidden_act, acts)
    }
}
