//! Stage 1 as the objective of a run.

use super::card::model_card;
use super::{Batch, Losses, Stage1, Stage1Parameters, Stage1Settings};
use crate::error::Result;
use crate::memory::{PlacedTensor, Shaped};
use crate::models::qformer::{Abilities, Parameters};
use crate::ops::Backend;
use crate::params::part_names;
use crate::params::safetensors::{Dtype, NewTensor, STAGE1_FILE_NAME};
use crate::train::{
    CardFacts, Colour, Curve, Measure, Measured, Objective, Panel, ParamSlot, Settings, StepLoss, StepSize,
    TrainedWeights, TrainingStart,
};
use std::collections::BTreeSet;

const fn loss(name: &'static str, short: &'static str, label: &'static str, colour: Colour) -> Measure {
    Measure { name, short: Some(short), curve: Some(Curve { label, panel: Panel::Loss, colour }) }
}

const fn accuracy(name: &'static str, label: &'static str, colour: Colour) -> Measure {
    Measure { name, short: None, curve: Some(Curve { label, panel: Panel::Accuracy, colour }) }
}

impl<B: Backend + Clone> Objective for Stage1<B> {
    type Device = B;
    type Settings = Stage1Settings;
    type Batch = Batch<PlacedTensor<B>>;
    type Parameters = Stage1Parameters<ParamSlot>;

    const MEASURES: &'static [Measure] = &[
        loss("loss_itc", "itc", "ITC", Colour::Blue),
        loss("loss_itm", "itm", "ITM", Colour::Orange),
        loss("loss_lm", "lm", "ITG", Colour::Green),
        // Of the pairs of matching.
        accuracy("itm_accuracy", "ITM accuracy", Colour::Orange),
        // Of images and texts, whose most similar partner is theirs.
        accuracy("itc_recall1", "ITC recall@1", Colour::Blue),
        // What similarities were divided by.
        Measure { name: "temp", short: None, curve: None },
    ];

    fn open(device: B, settings: &Settings<Stage1Settings>, start: &TrainingStart<'_>) -> Result<Self> {
        let TrainingStart { config, tokenizer, source, .. } = start;
        settings.check(config)?;
        tokenizer.check_vocabulary(config.qformer.vocab_size)?;
        let [start_token, _] = tokenizer.caption_ends();
        Self::new(device, config.clone(), settings.options(start_token), *source)
    }

    fn reserve(&mut self, size: StepSize) -> Result<()> {
        self.reserve(size).map(drop)
    }

    fn batch(
        &self,
        vision_output: PlacedTensor<B>,
        texts: Vec<Vec<u32>>,
        image_ids: Vec<u32>,
    ) -> Result<Self::Batch> {
        Batch::new(self.config(), vision_output, texts, image_ids)
    }

    /// `vision_output` \[B, N, W\], `input_ids` and `attention_mask` \[B, T\], `image_ids` \[B\]
    fn batch_tensors<'b>(&self, batches: &'b [Self::Batch]) -> Result<Vec<NewTensor<'b>>> {
        let images: usize = batches.iter().map(Batch::images).sum();
        let mut features = Vec::new();
        for batch in batches {
            features.extend(batch.vision_output.to_host(self.device())?.into_values());
        }
        let texts: Vec<&Vec<u32>> = batches.iter().flat_map(|batch| &batch.texts).collect();
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let padded = |of: fn(u32) -> f32| -> Vec<f32> {
            let row =
                |text: &&Vec<u32>| (0..longest).map(|i| text.get(i).map_or(0.0, |&id| of(id))).collect();
            texts.iter().flat_map(|text| -> Vec<f32> { row(text) }).collect()
        };
        let image_ids = batches.iter().flat_map(|batch| batch.image_ids.iter().map(|&id| id as f32));
        let [_, tokens, width] = *batches[0].vision_output.shape() else { unreachable!("as Batch has it") };
        let new = |name: &str, shape: &[usize], values: Vec<f32>| {
            NewTensor::new(name, Dtype::F32, shape, move |first, block: &mut [f32]| {
                block.copy_from_slice(&values[first..first + block.len()]);
                Ok(())
            })
        };
        Ok(vec![
            new("vision_output", &[images, tokens, width], features),
            new("input_ids", &[images, longest], padded(|id| id as f32)),
            new("attention_mask", &[images, longest], padded(|_| 1.0)),
            new("image_ids", &[images], image_ids.collect()),
        ])
    }

    fn differentiate(&mut self, batches: &[Self::Batch], step: usize) -> Result<StepLoss> {
        let temperature = f64::from(self.device().read(self.weights().parameters().temperature)?[0]);
        let losses = self.differentiate(batches, step)?;
        let Losses { total, contrastive, matching, captioning, matching_accuracy, recall } = losses;
        let [of_images, of_texts] = recall;
        let recall = (of_images + of_texts) / 2.0;
        let values = vec![contrastive, matching, captioning, matching_accuracy, recall, temperature];
        Ok(StepLoss { loss: total, measured: Measured::new(Self::MEASURES, values) })
    }

    fn weights(&self) -> &TrainedWeights<B, Stage1Parameters<ParamSlot>> {
        self.weights()
    }

    fn weights_mut(&mut self) -> &mut TrainedWeights<B, Stage1Parameters<ParamSlot>> {
        self.weights_mut()
    }

    fn memory(&self) -> Vec<(&'static str, usize)> {
        self.memory().purposes().to_vec()
    }

    fn extra_file(&self) -> Option<(&'static str, BTreeSet<String>)> {
        let trained = part_names(&Stage1Parameters::spec(self.config(), self.options().matching));
        let abilities = Abilities { text: true, retrieval: true };
        let known = part_names(&Parameters::spec(self.config(), abilities));
        Some((STAGE1_FILE_NAME, &trained - &known))
    }

    fn card(facts: &CardFacts<'_, Stage1Settings>) -> String {
        model_card(facts)
    }
}
