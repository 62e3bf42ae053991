//! The decoder pass: text after an image, every token seeing the image's queries and the text before it.
//!
//! The queries cannot see the text, so an image pass that keeps their keys and values in every block
//! comes first, once for each image. Text is then read whole, where it is known, or token by token.

use super::text_pass::{FilledText, TextEmbeddingActs, text_spans};
use super::{Parameters, QFormer};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::{Error, Result};
use crate::language::decoding::NextToken;
use crate::layers::block::{BlockActs, Inputs};
use crate::layers::language_head::LanguageHeadActs;
use crate::layers::self_attention::{Attending, FirstKeys, Growing};
use crate::layers::{Keep, LanguageHead};
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

/// What a token of each sequence is read in.
struct TokenActs<'a, B: Backend> {
    embedding: TextEmbeddingActs<'a, B>,
    /// Table of the sequences [1, words]
    own: ViewMut<'a, B, u32>,
    /// [1, rows·length]: where the keys of each sequence come from
    from: ViewMut<'a, B, u32>,
    /// Shared by all blocks.
    block: BlockActs<'a, B>,
    /// [rows, D]: a block's input and output, in turns
    x: [M<'a, B>; 2],
    head: LanguageHeadActs<'a, B>,
}

impl<'a, B: Backend> TokenActs<'a, B> {
    fn carve(
        cursor: &mut Cursor<'a, B>,
        model: &QFormer<B>,
        rows: usize,
        from: usize,
        own: &Sequences,
    ) -> Self {
        let (config, hidden) = (&model.config.qformer, model.config.qformer.hidden_size);
        Self {
            embedding: TextEmbeddingActs::carve(cursor, rows, hidden),
            own: cursor.take(1, own.words()),
            from: cursor.take(1, from),
            block: BlockActs::carve(cursor, [0, rows], config, Keep::Nothing),
            x: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            head: LanguageHeadActs::carve(cursor, rows, config),
        }
    }
}

/// What whole texts are read in besides.
struct LossActs<'a, B: Backend> {
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

impl<'a, B: Backend> LossActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, rows: usize) -> Self {
        Self {
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
    pub(super) head: LanguageHead<V<'a, B>>,
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

    /// Replayed for as many sequences of as many tokens after as many images, in the same place.
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
        let mut lease = model.workspace.lease(b, (rows, "sequences"), |c| {
            TokenActs::carve(c, model, rows, from.len(), &own);
        })?;
        // Where each block's text stands follows from where the first stood and how many tokens were read.
        let DecoderState { queries, text } = state;
        let held = [queries[0].rows(), queries[0].pointer().addr(), text[0].rows()];
        let (mut cursor, replay) = lease.replayed("token", [&[rows, place, earlier][..], &held].concat());
        let mut acts = TokenActs::carve(&mut cursor, model, rows, from.len(), &own);
        acts.embedding.write(b, [tokens, &vec![place as u32; rows]])?;
        b.write_indices(&from, acts.from.reborrow())?;
        let sequences = own.place(b, acts.own)?;
        let blocks = parameters.blocks.len();
        b.replay(replay, || {
            let [mut x, mut y] = acts.x;
            model.embed_written(&parameters, &mut acts.embedding, x.reborrow())?;
            let attending = [Attending { sequences, mask: Mask::None, first_keys: FirstKeys::Earlier }];
            let stream = model.stream(0, &attending, None);
            for (index, block) in parameters.blocks.iter().enumerate() {
                let earlier_stream = Some(queries[index].view());
                let inputs = Inputs { earlier: earlier_stream, ..model.inputs(&parameters, index) };
                // Laid out in the buffer of the block before, which is done with it; the first block's in the last.
                let [so_far, grown] = text
                    .get_disjoint_mut([index, (index + blocks) % (blocks + 1)])
                    .expect("a buffer for each block, and one more");
                let growing = Growing {
                    so_far: &mut so_far.reborrow().split_rows(earlier + rows).0,
                    grown: &mut grown.reborrow().split_rows(from.len()).0,
                    from: acts.from.view(),
                };
                let (attention, attended) = (&mut acts.block.attention, acts.block.attended.reborrow());
                block.attention.growing_forward(
                    b,
                    x.view(),
                    &stream,
                    &inputs,
                    growing,
                    attention,
                    attended,
                )?;
                block.forward_from_attended(b, &stream, &inputs, &mut acts.block, y.reborrow())?;
                std::mem::swap(&mut x, &mut y);
            }
            model.next_token(head, &parameters, x.view(), &mut acts.head)
        })?;
        text.rotate_right(1);
        (*images, *length) = (continued, place + 1);
        b.read(acts.head.logits.view())
    }
}

impl<B: Backend> QFormer<B> {
    /// −ln p of every token but the first of each text, text by text: the texts begin with the start token,
    /// and each continues the image of `queries` that is named beside it. Replayed for as many texts, of as many rows
    /// and as long a text, where rows and length are rounded up, after as many images in the same place.
    pub(super) fn losses_after(
        &self,
        head: &LanguageHead<V<'_, B>>,
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
        let mut lease = self.workspace.lease(b, (rows, "tokens"), |c| {
            TokenActs::carve(c, self, rows, 0, &own);
            LossActs::carve(c, rows);
        })?;
        let after = [queries[0].rows(), queries[0].view().pointer().addr()];
        let (mut cursor, replay) =
            lease.replayed("losses of text", [&[texts.len(), rows, longest][..], &after].concat());
        let mut acts = TokenActs::carve(&mut cursor, self, rows, 0, &own);
        let mut loss_acts = LossActs::carve(&mut cursor, rows);
        acts.embedding.write(b, [&tokens, &places])?;
        b.write_indices(&labels, loss_acts.labels.reborrow())?;
        let sequences = own.place(b, acts.own)?;
        b.replay(replay, || {
            let [mut x, mut y] = acts.x;
            self.embed_written(&parameters, &mut acts.embedding, x.reborrow())?;
            let attending = [Attending { sequences, mask: Mask::Causal, first_keys: FirstKeys::Earlier }];
            let stream = self.stream(0, &attending, None);
            for (index, (block, queries)) in parameters.blocks.iter().zip(queries).enumerate() {
                let inputs = Inputs { earlier: Some(queries.view()), ..self.inputs(&parameters, index) };
                block.forward(b, x.view(), &stream, &inputs, &mut acts.block, y.reborrow())?;
                std::mem::swap(&mut x, &mut y);
            }
            self.next_token(head, &parameters, x.view(), &mut acts.head)?;
            b.cross_entropy_forward(CrossEntropyForward {
                smoothing: 0.0,
                logits: acts.head.logits.view(),
                labels: loss_acts.labels.view(),
                lse: loss_acts.lse,
                row_losses: loss_acts.row_losses.reborrow(),
                predictions: loss_acts.predictions,
                loss: loss_acts.loss,
                correct: loss_acts.correct,
            })
        })?;
        b.read(loss_acts.row_losses.view().columns(0..foreseen))
    }

    /// Logits of the token that follows each row of `x` [rows, D], into `acts.logits` [rows, V].
    fn next_token(
        &self,
        head: &LanguageHead<V<'_, B>>,
        parameters: &Parameters<V<'_, B>>,
        x: V<'_, B>,
        acts: &mut LanguageHeadActs<'_, B>,
    ) -> Result<()> {
        let words = parameters.text_embeddings.as_ref().expect("a model that reads text").words;
        head.forward(&self.device, x, words, self.config.qformer.hidden_act, acts)
    }
}
