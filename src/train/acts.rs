//! What the two phases of a step work in.

use super::Batch;
use super::captioning::{CaptioningActs, Predictions};
use super::contrastive::ContrastiveActs;
use super::matching::MatchingActs;
use super::plan::Plan;
use super::trunk::TrunkActs;
use crate::arena::Cursor;
use crate::config::Config;
use crate::device::{M, SM};
use crate::layers::block::BlockScratch;
use crate::ops::Backend;
use crate::tensor::ViewMut;

/// Constants, and what the random numbers of a step are drawn from.
pub(super) struct Constants<'a, B: Backend> {
    /// [1, W]
    pub(super) ones: M<'a, B>,
    /// [1, W]
    pub(super) zeros: M<'a, B>,
    /// [1, 2]: seed and step
    pub(super) key: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> Constants<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, width: usize) -> Self {
        Self { ones: cursor.take(1, width), zeros: cursor.take(1, width), key: cursor.take(1, 2) }
    }
}

/// What the first phase works in, and the images of both.
pub(super) struct FirstPhaseActs<'a, B: Backend> {
    /// [B·N, W]
    pub(super) vision_output: M<'a, B>,
    /// x̂ [B·N, W]
    pub(super) features: M<'a, B>,
    /// W∘γ [layers·2·D, W]
    pub(super) folded_weight: M<'a, B>,
    /// b + W·β [1, layers·2·D]
    pub(super) folded_bias: M<'a, B>,
    /// [B·N, layers·2·D]
    pub(super) keys_values: M<'a, B>,
    pub(super) trunk: TrunkActs<'a, B>,
    pub(super) contrastive: ContrastiveActs<'a, B>,
    /// [B·N, layers·2·D]
    pub(super) dkeys_values: M<'a, B>,
    /// [layers·2·D, W]
    pub(super) dfolded_weight: SM<'a, B>,
    /// [1, layers·2·D]
    pub(super) dfolded_bias: SM<'a, B>,
    /// [rows, 3·D] for each block
    pub(super) dqkv: Vec<M<'a, B>>,
    /// [rows, D], in turns
    pub(super) d: [M<'a, B>; 2],
    pub(super) scratch: BlockScratch<'a, B>,
}

impl<'a, B: Backend> FirstPhaseActs<'a, B> {
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        b: &B,
        plan: &Plan,
        batch: &Batch,
        config: &Config,
    ) -> Self {
        let (hidden, width) = (config.qformer.hidden_size, config.vision.hidden_size);
        let (tokens, rows) = (batch.images() * batch.image_tokens(), plan.rows());
        let out = 2 * hidden * config.qformer.cross_attention_layers().count();
        Self {
            vision_output: cursor.take(tokens, width),
            features: cursor.take(tokens, width),
            folded_weight: cursor.take(out, width),
            folded_bias: cursor.take(1, out),
            keys_values: cursor.take(tokens, out),
            trunk: TrunkActs::carve(cursor, plan, &config.qformer),
            contrastive: ContrastiveActs::carve(cursor, plan, config),
            dkeys_values: cursor.take(tokens, out),
            dfolded_weight: cursor.take(out, width),
            dfolded_bias: cursor.take(1, out),
            dqkv: (0..config.qformer.num_hidden_layers).map(|_| cursor.take(rows, 3 * hidden)).collect(),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            scratch: BlockScratch::carve(cursor, b, [plan.query_rows(), rows], &config.qformer),
        }
    }
}

/// What the second phase works in.
pub(super) struct SecondPhaseActs<'a, B: Backend> {
    pub(super) trunk: TrunkActs<'a, B>,
    pub(super) matching: MatchingActs<'a, B>,
    pub(super) captioning: CaptioningActs<'a, B>,
    /// [rows, 3·D]
    pub(super) dqkv: M<'a, B>,
    /// [rows, D], in turns
    pub(super) d: [M<'a, B>; 2],
    pub(super) scratch: BlockScratch<'a, B>,
}

impl<'a, B: Backend> SecondPhaseActs<'a, B> {
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        b: &B,
        plan: &Plan,
        predictions: &Predictions,
        config: &Config,
    ) -> Self {
        let (hidden, rows) = (config.qformer.hidden_size, plan.rows());
        Self {
            trunk: TrunkActs::carve(cursor, plan, &config.qformer),
            matching: MatchingActs::carve(cursor, plan, hidden),
            captioning: CaptioningActs::carve(cursor, plan, predictions, &config.qformer),
            dqkv: cursor.take(rows, 3 * hidden),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            scratch: BlockScratch::carve(cursor, b, [plan.query_rows(), rows], &config.qformer),
        }
    }
}
