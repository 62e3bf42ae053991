//! The decoder pass: text after an image, every token seeing the image's queries and the text before it.
//!
//! The queries cannot see the text, so an image pass that keeps their keys and values in every block
//! comes first, once for each image. Text is then read whole, where it is known, or token by token: the keys and values
//! of tokens go to a cache, and every step is the same recorded work, whatever the position.

use super::language_head::{LanguageHead, LanguageHeadActs};
use super::stack::{Given, Kept, StackActs, StreamInputs, StreamPlan};
use super::text_pass::{FilledText, text_spans};
use super::{Parameters, QFormer};
use crate::config::Config;
use crate::device::{M, V, W};
use crate::error::{Error, Result};
use crate::generate::NextToken;
use crate::layers::Keep;
use crate::layers::kv_cache::{CacheRows, CacheStep, KvCache};
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
    /// Keys and values of the text in every block.
    text: KvCache<'a, B>,
}

impl<'a, B: Backend> DecoderState<'a, B> {
    /// For so many images, and so many tokens of all sequences together.
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        model: &QFormer<B>,
        [images, tokens]: [usize; 2],
    ) -> Self {
        let config = &model.config.qformer;
        let (blocks, hidden) = (config.num_hidden_layers, config.hidden_size);
        let rows = images * model.config.num_query_tokens;
        Self {
            queries: (0..blocks).map(|_| cursor.take(rows, 3 * hidden)).collect(),
            text: KvCache::carve(cursor, [blocks, tokens, hidden]),
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
    /// Most tokens of a sequence.
    longest: usize,
    queries: Held,
    text: Address,
}

/// What a token of each sequence is read in.
struct TokenActs<'a, B: Backend> {
    stack: StackActs<'a, B>,
    /// [1, rows]: rows of the cache that take the tokens' keys and values
    slots: ViewMut<'a, B, u32>,
    /// [1, rows·longest]: rows of the cache that each sequence's keys and values stand in
    cache_rows: ViewMut<'a, B, u32>,
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
            slots: cursor.take(1, self.stream.text_rows),
            cache_rows: cursor.take(1, self.stream.text_rows * self.longest),
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
    /// The token that texts begin with.
    pub(super) start: u32,
    pub(super) state: DecoderState<'a, B>,
    /// Most sequences at a time.
    pub(super) most: usize,
    /// The image that each sequence continues, by its place: before the first token, each image itself.
    pub(super) images: Vec<usize>,
    /// Where the tokens of each sequence are cached.
    pub(super) cached: CacheRows,
}

impl<B: Backend> NextToken for Decoder<'_, B> {
    fn begin(&mut self) -> Result<Vec<f32>> {
        let images: Vec<usize> = (0..self.images.len()).collect();
        self.advance(&images, &vec![self.start; images.len()])
    }

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
        let before = self.images.len();
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
        let length = self.cached.length(0) + 1;
        if length > self.cached.longest() || count > self.most {
            return Err(Error::usage(format!(
                "{count} sequences of {length} tokens are more than the decoder was made for; make it for as many"
            )));
        }
        Ok(())
    }

    fn read(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let Self { model, head, state, images, cached, .. } = self;
        let (b, parameters) = (&model.device, model.weights.view());
        let (rows, queries, longest) = (parents.len(), model.config.num_query_tokens, cached.longest());
        let place = cached.length(0);
        let continued: Vec<usize> = parents.iter().map(|&parent| images[parent]).collect();
        let grown = cached.continued(parents, &vec![1; rows]);
        let sequence = |(row, image): (usize, &usize)| Sequence {
            queries: [Span::EMPTY, Span::new(row, 1)],
            keys: [Span::new(image * queries, queries), Span::new(row * longest, place + 1)],
        };
        let own = Sequences::reading(continued.iter().enumerate().map(sequence).collect());
        let sizes = SequenceSizes { keys: queries + longest, ..own.sizes() };
        let own = own.within(sizes);
        let DecoderState { queries: of_queries, text } = state;
        let pass = TokenPass {
            stream: StreamPlan::of_text(rows, (sizes, Mask::None, FirstKeys::Earlier)),
            longest,
            queries: held::<B>(of_queries),
            text: text.address(),
        };
        let (blocks, places) = (parameters.blocks.len(), vec![place as u32; rows]);
        // SAFETY: beside its own memory the pass reads the weights of model and head, which live as long, and what
        // stays from token to token, whose addresses it has: where the cache of the first block stands says where all do.
        let logits = unsafe {
            model.workspace.run(
                b,
                &model.config,
                pass,
                |acts| {
                    b.write_indices(&grown.slots(), acts.slots.reborrow())?;
                    b.write_indices(&grown.table(), acts.cache_rows.reborrow())?;
                    acts.stack.write(b, &StreamInputs::of_text(tokens, &places, &own))
                },
                |pass, acts| {
                    let (slots, rows) = (acts.slots.view(), acts.cache_rows.view());
                    let given = Given {
                        earlier: Some(of_queries.iter().map(M::<B>::view).collect()),
                        cached: Some(CacheStep { cache: text, slots, rows }),
                        ..Given::nothing()
                    };
                    model.stack(&parameters, None).forward(b, &pass.stream, &mut acts.stack, given)?;
                    model.next_token(head, &parameters, acts.stack.output(blocks), &mut acts.head)
                },
                |acts| b.read(acts.head.logits.view()),
            )
        }?;
        (*images, *cached) = (continued, grown);
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
        let predicted = labels.len();
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
                |acts| b.read(acts.row_losses.view().columns(0..predicted)),
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

#[cfg(test)]
mod tests {
    use super::{NextToken, TokenPass};
    use crate::config::Config;
    use crate::device::Cpu;
    use crate::models::qformer::Captioner;
    use crate::params::safetensors::Checkpoint;
    use crate::tensor::HostTensor;
    use std::path::Path;

    /// A GPU replays what it recorded for the first tokens: nothing of it depends on where in its text a token is.
    #[test]
    fn tokens_at_every_position_are_the_same_recorded_work() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stage1");
        let (config, checkpoint) = (Config::load(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
        let captioner =
            Captioner::from_checkpoint(Cpu::<f32>::new(), config, &checkpoint, [138, 3], &mut |_, _| ());
        let captioner = captioner.unwrap();
        let images = HostTensor::new(&[2, 17, 64], vec![0.5; 2 * 17 * 64]).unwrap();
        let run = |sequences: usize| {
            let done = captioner.with_decoder(&images, [3, 12], |decoder| {
                decoder.advance(&vec![1; sequences], &vec![138; sequences])?;
                (4..15).try_for_each(|token| {
                    decoder.advance(&vec![0; sequences], &vec![token; sequences]).map(drop)
                })
            });
            done.unwrap();
            captioner.model().workspace.passes::<TokenPass>()
        };
        assert_eq!([run(3), run(3), run(2), run(2)], [1, 1, 2, 2]);
    }
}
