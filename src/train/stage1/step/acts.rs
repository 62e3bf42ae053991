//! What a step works in: the part that spans its micro-batches, and the two phases of one of them.

use super::plan::{ImageRows, filled_up};
use super::second::PairPass;
use crate::config::Config;
use crate::device::{M, SM, W};
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::memory::Cursor;
use crate::models::qformer::stack::{BlockScratch, Seen, StackActs, StreamPlan};
use crate::ops::Backend;
use crate::ops::pairs::{PADDING, Texts};
use crate::tensor::{View, ViewMut};
use crate::train::stage1::objectives::itc::{ContrastiveActs, FeatureActs};
use crate::train::stage1::objectives::itg::CaptioningActs;
use crate::train::stage1::objectives::itm::{MatchingActs, MatchingOutputs};
use crate::train::stage1::objectives::picked::PickedActs;
use crate::train::stage1::{Recompute, Stage1Options};

/// Constants, and what the random numbers of a step are drawn from.
pub(in crate::train::stage1) struct Constants<'a, B: Backend> {
    /// [1, W]
    pub(in crate::train::stage1) ones: M<'a, B>,
    /// [1, W]
    pub(in crate::train::stage1) zeros: M<'a, B>,
    /// [1, 2]: seed and step
    pub(in crate::train::stage1) key: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> Constants<'a, B> {
    pub(in crate::train::stage1) fn carve(cursor: &mut Cursor<'a, B>, width: usize) -> Self {
        Self { ones: cursor.take(1, width), zeros: cursor.take(1, width), key: cursor.take(1, 2) }
    }
}

/// What spans the micro-batches.
pub(in crate::train::stage1) struct WholeActs<'a, B: Backend> {
    pub(in crate::train::stage1) fold: FoldActs<'a, B>,
    pub(in crate::train::stage1) contrastive: ContrastiveActs<'a, B>,
    pub(in crate::train::stage1) texts: TextsActs<'a, B>,
    pub(in crate::train::stage1) findings: StepOutputs<'a, B>,
}

impl<'a, B: Backend> WholeActs<'a, B> {
    /// For so many `images` in so many `batches`, with texts of so many `tokens`.
    pub(in crate::train::stage1) fn carve(
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
pub(in crate::train::stage1) struct TextsActs<'a, B: Backend> {
    /// [1, tokens], one text after the other
    tokens: ViewMut<'a, B, u32>,
    /// [1, B + 1]: where each begins, and where the last ends
    starts: ViewMut<'a, B, u32>,
}

impl<B: Backend> TextsActs<'_, B> {
    pub(in crate::train::stage1) fn write(&mut self, b: &B, texts: &[&[u32]]) -> Result<()> {
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

    pub(in crate::train::stage1) fn view(&self) -> Texts<'_, B> {
        Texts { tokens: self.tokens.view(), starts: self.starts.view() }
    }
}

/// The projections of the images' keys and values, with the image encoder's last norm folded in.
pub(in crate::train::stage1) struct FoldActs<'a, B: Backend> {
    /// W∘γ [layers·2·D, W]
    pub(in crate::train::stage1) weight: M<'a, B>,
    /// b + W·β [1, layers·2·D]
    pub(in crate::train::stage1) bias: M<'a, B>,
    /// [layers·2·D, W]: sum over the micro-batches
    pub(in crate::train::stage1) dweight: SM<'a, B>,
    /// [1, layers·2·D]: sum over the micro-batches
    pub(in crate::train::stage1) dbias: SM<'a, B>,
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

    pub(in crate::train::stage1) fn projections(&self) -> Linear<W<'_, B>> {
        Linear { weight: self.weight.view().into(), bias: Some(self.bias.view().into()) }
    }
}

/// layers·2·D
fn keys_values_width(config: &Config) -> usize {
    2 * config.qformer.hidden_size * config.qformer.cross_attention_layers().count()
}

/// What the second phase's passes find out, kept to be read when all of the step was asked for.
pub(in crate::train::stage1) struct StepOutputs<'a, B: Backend> {
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
    pub(in crate::train::stage1) fn told(&mut self, pass: usize) -> MatchingOutputs<'_, B> {
        MatchingOutputs {
            loss: self.matching.reborrow().split_columns(pass).1.split_columns(1).0,
            correct: self.correct.reborrow().split_rows(pass).1.split_rows(1).0,
        }
    }

    /// Pairs that ITM of a pass classified correctly, and pairs counted [1, 2].
    pub(in crate::train::stage1) fn correct(&self, pass: usize) -> View<'_, B, u32> {
        self.correct.view().row_range(pass..pass + 1)
    }

    /// Where ITG of a micro-batch writes its loss [1, 1].
    pub(in crate::train::stage1) fn captioning(&mut self, batch: usize) -> SM<'_, B> {
        self.captioning.reborrow().split_columns(batch).1.split_columns(1).0
    }

    /// Where it is written how many rows of text a pass needs [1, 1].
    pub(in crate::train::stage1) fn needed(&mut self, pass: usize) -> ViewMut<'_, B, u32> {
        self.needed.reborrow().split_rows(pass).1.split_rows(1).0
    }

    /// Reads that of the first pass.
    pub(in crate::train::stage1) fn read_needed(&self, b: &B) -> Result<usize> {
        Ok(b.read_indices(self.needed.view().row_range(0..1))?[0] as usize)
    }

    /// ITM's losses and counts of the first `passes` passes, and ITG's losses.
    pub(in crate::train::stage1) fn read(
        &self,
        b: &B,
        passes: usize,
    ) -> Result<(Vec<f32>, Vec<u32>, Vec<f32>)> {
        let matching = b.read(self.matching.view().columns(0..passes))?;
        let correct = b.read_indices(self.correct.view().row_range(0..passes))?;
        Ok((matching, correct, b.read(self.captioning.view())?))
    }
}

/// What the first phase of a micro-batch of b images works in, and the images of both.
pub(in crate::train::stage1) struct FirstPhaseActs<'a, B: Backend> {
    /// [b·N, W]
    pub(in crate::train::stage1) vision_output: M<'a, B>,
    /// x̂ [b·N, W]
    pub(in crate::train::stage1) features: M<'a, B>,
    /// [b·N, layers·2·D]
    pub(in crate::train::stage1) keys_values: M<'a, B>,
    pub(in crate::train::stage1) stack: StackActs<'a, B>,
    pub(in crate::train::stage1) contrastive: FeatureActs<'a, B>,
    /// [b·N, layers·2·D]
    pub(in crate::train::stage1) dkeys_values: M<'a, B>,
    /// [rows, 3·D] for each block
    pub(in crate::train::stage1) dqkv: Vec<M<'a, B>>,
    /// [rows, D], in turns
    pub(in crate::train::stage1) d: [M<'a, B>; 2],
    pub(in crate::train::stage1) scratch: BlockScratch<'a, B>,
}

impl<'a, B: Backend> FirstPhaseActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
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
pub(in crate::train::stage1) struct SecondPhaseActs<'a, B: Backend> {
    pub(in crate::train::stage1) stack: StackActs<'a, B>,
    /// What the heads read of the text's rows.
    pub(in crate::train::stage1) picked: PickedActs<'a, B>,
    pub(in crate::train::stage1) matching: MatchingActs<'a, B>,
    pub(in crate::train::stage1) captioning: CaptioningActs<'a, B>,
    /// [rows, 3·D]
    pub(in crate::train::stage1) dqkv: M<'a, B>,
    /// [rows, D], in turns
    pub(in crate::train::stage1) d: [M<'a, B>; 2],
    pub(in crate::train::stage1) scratch: BlockScratch<'a, B>,
}

impl<'a, B: Backend> SecondPhaseActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
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
