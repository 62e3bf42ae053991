//! The pass of a decoder over new tokens of sequences, one or many of each: keys and values go to the cache, logits come
//! of the rows that are asked for.

use super::LanguageModel;
use super::embed::{EmbedActs, EmbedInputs, EmbedSizes, SomeQueries};
use super::stack::{CrossInputs, SelfInputs, StackActs};
use super::t5::Side;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Linear;
use crate::layers::kv_cache::{CacheStep, KvCache};
use crate::memory::{Address, Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Mask, SequenceSizes, Sequences};
use crate::ops::cross_entropy::CrossEntropyForward;
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::{Shape, ViewMut};

/// Columns of logits start at multiples of 16 bytes in every row.
const PITCH: usize = 8;

/// What is wanted of the rows that predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// Their logits.
    Logits,
    /// The loss of the token that follows each.
    Losses,
}

/// The pass by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct DecoderPass {
    embed: EmbedSizes,
    sequences: SequenceSizes,
    /// Rows of the cache that are listed.
    listed: usize,
    cache: Address,
    /// Rows, place and sequences of what the encoder left.
    cross: Option<(usize, Address, SequenceSizes)>,
    /// Rows that predict.
    predicting: usize,
    wanted: Wanted,
}

/// What it works in; R rows predict.
struct DecoderActs<'a, B: Backend> {
    embed: EmbedActs<'a, B>,
    stack: StackActs<'a, B>,
    table: ViewMut<'a, B, u32>,
    cross_table: ViewMut<'a, B, u32>,
    /// [1, rows]: rows of the cache that take the tokens' keys and values
    slots: ViewMut<'a, B, u32>,
    /// [1, listed]: rows of the cache that each sequence's keys and values stand in
    cache_rows: ViewMut<'a, B, u32>,
    /// [1, R]: the rows that predict
    predicting: ViewMut<'a, B, u32>,
    /// [R, D]
    picked: M<'a, B>,
    /// [R, D]
    normed: M<'a, B>,
    /// The same where the head is not as wide [R, E]
    projected: M<'a, B>,
    /// [R, V]
    logits: M<'a, B>,
    losses: Option<LossActs<'a, B>>,
}

/// What losses take.
struct LossActs<'a, B: Backend> {
    /// [1, R]
    labels: ViewMut<'a, B, u32>,
    /// [1, R]
    lse: ViewMut<'a, B, B::Stat>,
    /// [1, R]
    row_losses: ViewMut<'a, B, B::Stat>,
    /// [1, R]
    predictions: ViewMut<'a, B, u32>,
    /// [1, 1]
    loss: ViewMut<'a, B, B::Stat>,
    /// [1, 1]
    correct: ViewMut<'a, B, u32>,
}

impl<B: Backend> Pass<B> for DecoderPass {
    type Model = LanguageModel<B>;
    type Acts<'a> = DecoderActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.embed.rows, "tokens")
    }

    fn carve<'a>(&self, model: &LanguageModel<B>, cursor: &mut Cursor<'a, B>) -> DecoderActs<'a, B> {
        let (rows, architecture) = (self.predicting, &model.architecture);
        let (hidden, vocabulary) = (architecture.hidden, architecture.vocabulary);
        let projected = if architecture.embedding == hidden { 0 } else { rows };
        DecoderActs {
            embed: EmbedActs::carve(cursor, self.embed, model.embed_widths()),
            stack: StackActs::carve(cursor, self.embed.rows, architecture),
            table: cursor.take(1, self.sequences.words()),
            cross_table: cursor.take(1, self.cross.map_or(0, |(_, _, sizes)| sizes.words())),
            slots: cursor.take(1, self.embed.rows),
            cache_rows: cursor.take(1, self.listed),
            predicting: cursor.take(1, rows),
            picked: cursor.take(rows, hidden),
            normed: cursor.take(rows, hidden),
            projected: cursor.take(projected, architecture.embedding),
            logits: cursor.take_pitched(Shape::new(rows, vocabulary), vocabulary.next_multiple_of(PITCH)),
            losses: (self.wanted == Wanted::Losses).then(|| LossActs {
                labels: cursor.take(1, rows),
                lse: cursor.take(1, rows),
                row_losses: cursor.take(1, rows),
                predictions: cursor.take(1, rows),
                loss: cursor.take(1, 1),
                correct: cursor.take(1, 1),
            }),
        }
    }
}

/// What a pass is given.
pub(super) struct DecoderInputs<'a, B: Backend> {
    /// The Q-Former's outputs [images, Q, Dq] where soft prompts are among the rows.
    pub(super) queries: Option<SomeQueries<'a, B>>,
    pub(super) embed: (EmbedSizes, EmbedInputs<'a>),
    pub(super) sequences: &'a Sequences,
    /// Row of the cache for each row.
    pub(super) slots: &'a [u32],
    /// Rows of the cache that sequences list.
    pub(super) cache_rows: &'a [u32],
    /// What the encoder left [encoder rows, blocks·2·I], and the rows of each sequence.
    pub(super) cross: Option<(V<'a, B>, &'a Sequences)>,
    /// The rows that predict.
    pub(super) predicting: &'a [u32],
    /// The tokens that follow them, where losses are wanted.
    pub(super) labels: Option<&'a [u32]>,
}

impl<B: Backend> LanguageModel<B> {
    /// The logits of the token that follows each row that predicts [R, V], or, where there are labels, the losses of
    /// those [R].
    pub(super) fn decode(
        &self,
        inputs: &DecoderInputs<'_, B>,
        cache: &mut KvCache<'_, B>,
    ) -> Result<Vec<f32>> {
        let (b, parameters) = (&self.device, self.weights.view());
        let pass = DecoderPass {
            embed: inputs.embed.0,
            sequences: inputs.sequences.sizes(),
            listed: inputs.cache_rows.len(),
            cache: cache.address(),
            cross: inputs.cross.map(|(rows, own)| (rows.rows(), Address::of(rows), own.sizes())),
            predicting: inputs.predicting.len(),
            wanted: if inputs.labels.is_some() { Wanted::Losses } else { Wanted::Logits },
        };
        // SAFETY: beside its own memory the pass reads the model's weights, the cache and what the encoder left, whose
        // addresses it has: where the cache of the first block stands says where all do.
        unsafe {
            self.workspace.run(
                b,
                self,
                pass,
                |acts| {
                    acts.embed.write(b, &self.architecture, inputs.queries.clone(), &inputs.embed.1)?;
                    inputs.sequences.place(b, acts.table.reborrow())?;
                    if let Some((_, sequences)) = inputs.cross {
                        sequences.place(b, acts.cross_table.reborrow())?;
                    }
                    b.write_indices(inputs.slots, acts.slots.reborrow())?;
                    b.write_indices(inputs.cache_rows, acts.cache_rows.reborrow())?;
                    b.write_indices(inputs.predicting, acts.predicting.reborrow())?;
                    match (&mut acts.losses, inputs.labels) {
                        (Some(losses), Some(labels)) => b.write_indices(labels, losses.labels.reborrow()),
                        _ => Ok(()),
                    }
                },
                |pass, acts| {
                    self.embed(&mut acts.embed, acts.stack.input())?;
                    let mut own = SelfInputs {
                        sequences: pass.sequences.placed_at(acts.table.view()),
                        mask: Mask::Causal,
                        bias: self.bias(Side::Decoder),
                        cache: Some(CacheStep {
                            cache,
                            slots: acts.slots.view(),
                            rows: acts.cache_rows.view(),
                        }),
                    };
                    let cross = pass.cross.zip(inputs.cross).map(|((_, _, sizes), (keys_values, _))| {
                        CrossInputs { keys_values, sequences: sizes.placed_at(acts.cross_table.view()) }
                    });
                    let decoder = &parameters.decoder;
                    let x =
                        decoder.forward(b, &self.architecture, &mut own, cross.as_ref(), &mut acts.stack)?;
                    b.embedding_forward(EmbeddingForward {
                        ids: acts.predicting.view(),
                        table: x.into(),
                        positions: None,
                        y: acts.picked.reborrow(),
                    })?;
                    self.head(acts)
                },
                |acts| match &acts.losses {
                    None => b.read(acts.logits.view()),
                    Some(losses) => b.read(losses.row_losses.view()),
                },
            )
        }
    }

    /// Logits and losses of the rows that were picked.
    fn head(&self, acts: &mut DecoderActs<'_, B>) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let DecoderActs { picked, normed, projected, logits, losses, .. } = acts;
        let mut x = picked.view();
        if let Some(norm) = &parameters.decoder.norm {
            norm.forward(b, x, normed.reborrow())?;
            x = normed.view();
        }
        if let Some(project) = &parameters.project_out {
            project.forward(b, x, projected.reborrow())?;
            x = projected.view();
        }
        let weight = parameters.head.unwrap_or(parameters.words);
        Linear { weight, bias: None }.forward(b, x, logits.reborrow())?;
        let Some(losses) = losses else { return Ok(()) };
        b.cross_entropy_forward(CrossEntropyForward {
            smoothing: 0.0,
            logits: logits.view(),
            labels: losses.labels.view(),
            lse: losses.lse.reborrow(),
            row_losses: losses.row_losses.reborrow(),
            predictions: losses.predictions.reborrow(),
            loss: losses.loss.reborrow(),
            correct: losses.correct.reborrow(),
        })
    }
}
