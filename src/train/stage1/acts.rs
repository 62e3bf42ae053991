//! What a step works in: the part that spans its micro-batches, and the two phases of one of them.

use super::objectives::itc::{ContrastiveActs, FeatureActs};
use super::objectives::itg::CaptioningActs;
use super::objectives::itm::{MatchingActs, MatchingOutputs};
use super::objectives::picked::PickedActs;
use super::plan::{ImageRows, filled_up};
use super::second::PairPass;
use super::{Recompute, Stage1Options};
use crate::config::Config;
use crate::device::{M, SM, W};
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::memory::Cursor;
use crate::models::qformer::stack::{BlockScratch, Seen, StackActs, StreamPlan};
use crate::ops::Backend;
use crate::ops::pairs::{PADDING, Texts};
use crate::tensor::{View, ViewMut};

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

/// What spans the micro-batches.
pub(super) struct WholeActs<'a, B: Backend> {
    pub(super) fold: FoldActs<'a, B>,
    pub(super) contrastive: ContrastiveActs<'a, B>,
    pub(super) texts: TextsActs<'a, B>,
    pub(super) findings: StepOutputs<'a, B>,
}

impl<'a, B: Backend> WholeActs<'a, B> {
    /// For so many `images` in so many `batches`, with texts of so many `tokens`.
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        [images, batches]: [usize; 2],
        tokens: usize,
        config: &Config,
    ) -> Self {
        Self {
            fold: FoldActs::carve(cursor, config),
            contrastive: ContrastiveActs::carve(cursor, images, config),
            texts: TextsActs {
                tokens: cursor.take(1, filled_up::<B>(tokens)),
                starts: cursor.take(1, images + 1),
            },
            findings: StepOutputs::carve(cursor, [images, batches]),
        }
    }
}

/// The texts of all micro-batches.
pub(super) struct TextsActs<'a, B: Backend> {
    /// [1, tokens], one text after the other
    tokens: ViewMut<'a, B, u32>,
    /// [1, B + 1]: where each begins, and where the last ends
    starts: ViewMut<'a, B, u32>,
}

impl<B: Backend> TextsActs<'_, B> {
    pub(super) fn write(&mut self, b: &B, texts: &[&[u32]]) -> Result<()> {
        let mut tokens = texts.concat();
        let mut starts = vec![0];
        starts.extend(texts.iter().scan(0, |end, text| {
            *end += text.len() as u32;
            Some(*end)
        }));
        tokens.resize(self.tokens.cols(), PADDING);
        b.write_indices(&tokens, self.tokens.reborrow())?;
        b.write_indices(&starts, self.starts.reborrow())
    }

    pub(super) fn view(&self) -> Texts<'_, B> {
        Texts { tokens: self.tokens.view(), starts: self.starts.view() }
    }
}

/// The projections of the images' keys and values, with the image encoder's last norm folded in.
pub(super) struct FoldActs<'a, B: Backend> {
    /// W∘γ [layers·2·D, W]
    pub(super) weight: M<'a, B>,
    /// b + W·β [1, layers·2·D]
    pub(super) bias: M<'a, B>,
    /// [layers·2·D, W]: sum over the micro-batches
    pub(super) dweight: SM<'a, B>,
    /// [1, layers·2·D]: sum over the micro-batches
    pub(super) dbias: SM<'a, B>,
}

impl<'a, B: Backend> FoldActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, config: &Config) -> Self {
        let (out, width) = (keys_values_width(config), config.vision.width());
        Self {
            weight: cursor.take(out, width),
            bias: cursor.take(1, out),
            dweight: cursor.take(out, width),
            dbias: cursor.take(1, out),
        }
    }

    pub(super) fn projections(&self) -> Linear<W<'_, B>> {
        Linear { weight: self.weight.view().into(), bias: Some(self.bias.view().into()) }
    }
}

/// layers·2·D
fn keys_values_width(config: &Config) -> usize {
    2 * config.qformer.hidden_size * config.qformer.cross_attention_layers().count()
}

/// What the second phase's passes find out, kept to be read when all of the step was asked for.
pub(super) struct StepOutputs<'a, B: Backend> {
    /// [1, passes]: of ITM
    matching: SM<'a, B>,
    /// [passes, 2]: of ITM
    correct: ViewMut<'a, B, u32>,
    /// [1, batches]: of ITG
    captioning: SM<'a, B>,
    /// [passes, 1]: rows of text
    needed: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> StepOutputs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, sizes: [usize; 2]) -> Self {
        let (passes, batches) = (PairPass::most_passes::<B>(sizes), sizes[1]);
        Self {
            matching: cursor.take(1, passes),
            correct: cursor.take(passes, 2),
            captioning: cursor.take(1, batches),
            needed: cursor.take(passes, 1),
        }
    }
}

impl<B: Backend> StepOutputs<'_, B> {
    /// Where ITM of a pass writes.
    pub(super) fn told(&mut self, pass: usize) -> MatchingOutputs<'_, B> {
        MatchingOutputs {
            loss: self.matching.reborrow().split_columns(pass).1.split_columns(1).0,
            correct: self.correct.reborrow().split_rows(pass).1.split_rows(1).0,
        }
    }

    /// Pairs that ITM of a pass classified correctly, and pairs counted [1, 2].
    pub(super) fn correct(&self, pass: usize) -> View<'_, B, u32> {
        self.correct.view().row_range(pass..pass + 1)
    }

    /// Where ITG of a micro-batch writes its loss [1, 1].
    pub(super) fn captioning(&mut self, batch: usize) -> SM<'_, B> {
        self.captioning.reborrow().split_columns(batch).1.split_columns(1).0
    }

    /// Where it is written how many rows of text a pass needs [1, 1].
    pub(super) fn needed(&mut self, pass: usize) -> ViewMut<'_, B, u32> {
        self.needed.reborrow().split_rows(pass).1.split_rows(1).0
    }

    /// Reads that of the first pass.
    pub(super) fn read_needed(&self, b: &B) -> Result<usize> {
        Ok(b.read_indices(self.needed.view().row_range(0..1))?[0] as usize)
    }

    /// ITM's losses and counts of the first `passes` passes, and ITG's losses.
    pub(super) fn read(&self, b: &B, passes: usize) -> Result<(Vec<f32>, Vec<u32>, Vec<f32>)> {
        let matching = b.read(self.matching.view().columns(0..passes))?;
        let correct = b.read_indices(self.correct.view().row_range(0..passes))?;
        Ok((matching, correct, b.read(self.captioning.view())?))
    }
}

/// What the first phase of a micro-batch of b images works in, and the images of both.
pub(super) struct FirstPhaseActs<'a, B: Backend> {
    /// [b·N, W]
    pub(super) vision_output: M<'a, B>,
    /// x̂ [b·N, W]
    pub(super) features: M<'a, B>,
    /// [b·N, layers·2·D]
    pub(super) keys_values: M<'a, B>,
    pub(super) stack: StackActs<'a, B>,
    pub(super) contrastive: FeatureActs<'a, B>,
    /// [b·N, layers·2·D]
    pub(super) dkeys_values: M<'a, B>,
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
        plan: &StreamPlan,
        image: ImageRows,
        config: &Config,
        recompute: Recompute,
    ) -> Self {
        let (hidden, width) = (config.qformer.hidden_size, config.vision.width());
        let (tokens, rows) = (plan.sets * image.tokens, plan.rows());
        let out = keys_values_width(config);
        Self {
            vision_output: cursor.take(tokens, width),
            features: cursor.take(tokens, width),
            keys_values: cursor.take(tokens, out),
            stack: StackActs::carve(cursor, plan, &config.qformer, recompute.kept(Seen::ByLater)),
            contrastive: FeatureActs::carve(cursor, plan, config),
            dkeys_values: cursor.take(tokens, out),
            dqkv: (0..config.qformer.num_hidden_layers).map(|_| cursor.take(rows, 3 * hidden)).collect(),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            scratch: BlockScratch::carve(cursor, b, [plan.query_rows(), rows], &config.qformer),
        }
    }
}

/// What a pass of the second phase works in.
pub(super) struct SecondPhaseActs<'a, B: Backend> {
    pub(super) stack: StackActs<'a, B>,
    /// What the heads read of the text's rows.
    pub(super) picked: PickedActs<'a, B>,
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
        second: &PairPass,
        config: &Config,
        options: &Stage1Options,
    ) -> Self {
        let plan = &second.plan;
        let (hidden, rows) = (config.qformer.hidden_size, plan.rows());
        Self {
            stack: StackActs::carve(cursor, plan, &config.qformer, options.recompute.kept(Seen::ByNone)),
            picked: PickedActs::carve(cursor, second.picked, plan.text_rows, hidden),
            matching: MatchingActs::carve(cursor, plan, options.matching, config),
            captioning: CaptioningActs::carve(cursor, second.predicting, &config.qformer),
            dqkv: cursor.take(rows, 3 * hidden),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            scratch: BlockScratch::carve(cursor, b, [plan.query_rows(), rows], &config.qformer),
        }
    }
}
