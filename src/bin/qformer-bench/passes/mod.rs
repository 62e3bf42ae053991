//! The Q-Former's passes: inputs, and the operations that they take. `qformer-bench` and `cargo bench` measure them.

pub(crate) mod inputs;
pub(crate) mod step;

use inputs::{random_tensor, random_texts};
use qformer::config::Config;
use qformer::models::qformer::{Abilities, Matching};
use qformer::ops::Backend;
use qformer::ops::absorbed_attention::CrossSizes;
use qformer::params::TensorSource;
use qformer::tensor::HostTensor;
use qformer::{Error, QFormer, Result};

/// Inputs and model.
pub(crate) struct Passes<B: Backend> {
    device: B,
    pub(crate) config: Config,
    pub(crate) model: QFormer<B>,
    /// [B, N, W]
    pub(crate) vision_output: HostTensor,
    pub(crate) texts: Vec<Vec<u32>>,
    batch: usize,
}

/// What the graph can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Image,
    Text,
    Joint,
    Score,
}

/// A part to be measured.
pub(crate) struct WorkPart {
    pub(crate) name: &'static str,
    pub(crate) items: usize,
    pub(crate) unit: &'static str,
    /// Operations actually done in products and attention.
    pub(crate) flops: f64,
}

impl<B: Backend + Clone> Passes<B> {
    /// With the weights of `source`, on batches of `batch` images and texts.
    pub(crate) fn prepare(
        device: &B,
        config: &Config,
        batch: usize,
        source: &(dyn TensorSource + Sync),
    ) -> Result<Self> {
        if !config.qformer.use_qformer_text_input {
            return Err(Error::usage("the model reads no text; measure one of Blip2ForImageTextRetrieval"));
        }
        let abilities = Abilities { text: true, retrieval: true };
        let model = QFormer::from_source(device.clone(), config.clone(), abilities, source, &mut |_, _| ())?;
        let shape = [batch, config.image_tokens(), config.vision.width()];
        Ok(Self {
            device: device.clone(),
            config: config.clone(),
            model,
            vision_output: random_tensor("vision_output", &shape),
            texts: random_texts(batch, config.qformer.vocab_size),
            batch,
        })
    }

    pub(crate) fn run(&self, pass: Pass) -> Result<()> {
        let score = |pairs: &[(usize, usize)]| {
            self.model.match_score(&self.vision_output, &self.texts, pairs, Matching::Classifier)
        };
        match pass {
            Pass::Image => drop(self.model.encode_image(&self.vision_output)?),
            Pass::Text => drop(self.model.encode_text(&self.texts)?),
            Pass::Joint => drop(score(&(0..self.batch).map(|i| (i, i)).collect::<Vec<_>>())?),
            Pass::Score => drop(score(&self.all_pairs())?),
        }
        Ok(())
    }

    /// Every image with every text.
    pub(crate) fn all_pairs(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|image| (0..self.batch).map(move |text| (image, text))).collect()
    }

    pub(crate) fn part(&self, pass: Pass) -> WorkPart {
        let batch = self.batch;
        let tokens: Vec<usize> = self.texts.iter().map(Vec::len).collect();
        let (name, items, unit, flops) = match pass {
            Pass::Image => ("image", batch, "images", batch as f64 * self.image_flops()),
            Pass::Text => ("text", batch, "texts", tokens.iter().map(|&t| self.stream_flops(0, t)).sum()),
            Pass::Joint => {
                let pairs: f64 = tokens.iter().map(|&t| self.pair_flops(t)).sum();
                ("joint", batch, "pairs", pairs + batch as f64 * self.keys_values_flops())
            }
            Pass::Score => {
                let pairs: f64 = tokens.iter().map(|&t| self.pair_flops(t)).sum::<f64>() * batch as f64;
                ("score", batch * batch, "pairs", pairs + batch as f64 * self.keys_values_flops())
            }
        };
        WorkPart { name, items, unit, flops }
    }

    /// Self-attention and feed-forward of all layers over `queries` + `text` rows.
    fn stream_flops(&self, queries: usize, text: usize) -> f64 {
        let q = &self.config.qformer;
        let rows = queries + text;
        let per_row = 8 * q.hidden_size * q.hidden_size + 4 * q.hidden_size * q.intermediate_size;
        (q.num_hidden_layers * (rows * per_row + 4 * rows * rows * q.hidden_size)) as f64
    }

    fn cross_layers(&self) -> usize {
        self.config.qformer.cross_attention_layers().count()
    }

    fn sizes(&self) -> CrossSizes {
        CrossSizes::of(&self.config)
    }

    /// The query and output projections of cross-attention.
    fn cross_projection_flops(&self) -> f64 {
        (self.cross_layers() * 4 * self.config.num_query_tokens * self.config.qformer.hidden_size.pow(2))
            as f64
    }

    fn keys_values_flops(&self) -> f64 {
        let CrossSizes { hidden, image_tokens, image_width, .. } = self.sizes();
        (self.cross_layers() * 4 * image_tokens * hidden * image_width) as f64
    }

    fn image_flops(&self) -> f64 {
        let CrossSizes { heads, queries, hidden, image_tokens, image_width } = self.sizes();
        let cross = if self.sizes().absorbs(self.device.frozen_packing(image_width)) {
            (self.cross_layers() * 4 * queries * image_width * (hidden + heads * image_tokens)) as f64
        } else {
            self.keys_values_flops() + (self.cross_layers() * 4 * queries * image_tokens * hidden) as f64
        };
        // The first layer's self-attention is done once for all images.
        let first = (8 * queries * hidden * hidden + 4 * queries * queries * hidden) as f64;
        self.stream_flops(queries, 0) - first + self.cross_projection_flops() + cross
    }

    fn pair_flops(&self, text: usize) -> f64 {
        let CrossSizes { queries, hidden, image_tokens, .. } = self.sizes();
        let attention = (self.cross_layers() * 4 * queries * image_tokens * hidden) as f64;
        self.stream_flops(queries, text) + self.cross_projection_flops() + attention
    }
}
