//! What a model makes of the pictures held out.

use super::world::Scene;
use crate::Remarks;
use crate::progress::Progress;
use qformer::data::Dataset;
use qformer::evaluate::{Captions, Images, MatchingLogits, Retrieval, retrieval};
use qformer::generate::Decoding;
use qformer::{Captioner, Cpu, HostTensor, Matching, QFormer, Result, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// Candidates of a query that matching puts in order.
const RERANKED: usize = 16;

/// Pictures held out, with their captions: picture i has caption i and no other.
pub(super) struct HeldOut {
    pub(super) scenes: Vec<Scene>,
    /// [I, N, W]
    pub(super) vision_output: HostTensor,
    /// Token ids of the captions.
    texts: Vec<Vec<u32>>,
}

/// What was found.
pub(super) struct Judgement {
    pub(super) retrieval: Retrieval,
    /// The caption generated for each picture.
    pub(super) said: Vec<String>,
}

/// Pictures held out and their captions, compared with one another.
pub(super) struct Ranking<'a> {
    held_out: &'a HeldOut,
    model: &'a QFormer,
    /// Of each picture with each caption [I, I]
    cosines: Vec<f32>,
}

impl HeldOut {
    /// The pictures of `dataset`, drawn of `scenes`.
    pub(super) fn new(scenes: Vec<Scene>, dataset: &Dataset, tokenizer: &Tokenizer) -> Result<Self> {
        let vision_output = dataset.features(&(0..dataset.images()).collect::<Vec<_>>())?;
        let captions: Vec<String> = scenes.iter().map(Scene::caption).collect();
        let texts = tokenizer.encode_batch(&captions, super::model::LONGEST)?;
        Ok(Self { scenes, vision_output, texts })
    }

    /// Judges the model in `folder`.
    pub(super) fn judge(&self, folder: &Path, remarks: Remarks) -> Result<Judgement> {
        let tokenizer = Tokenizer::load(folder)?;
        let captioner = Captioner::load(Cpu::<f32>::new(), folder)?;
        let progress = Progress::of_steps("matching", remarks);
        let [count, tokens, width] = *self.vision_output.shape() else { unreachable!("features [I, N, W]") };
        let per_image = tokens * width;
        let mut read = |images: std::ops::Range<usize>| {
            let values = &self.vision_output.values()[images.start * per_image..images.end * per_image];
            HostTensor::new(&[images.len(), tokens, width], values.to_vec())
        };
        let owners: Vec<u32> = (0..count as u32).collect();
        let retrieval = retrieval(
            captioner.model(),
            Images { count, read: &mut read },
            Captions { tokens: &self.texts, images: &owners },
            RERANKED,
            MatchingLogits::Classifier,
            &mut |_, done, total| progress.set(done, total),
        )?;
        drop(progress);
        let decoding = Decoding::load_for_captions(folder, super::model::LONGEST)?;
        let mut said = Vec::with_capacity(count);
        for captions in captioner.caption(&self.vision_output, &decoding)? {
            said.push(tokenizer.decode(&captions[0].tokens)?);
        }
        Ok(Judgement { retrieval, said })
    }

    /// Compares all pictures with all captions.
    pub(super) fn ranking<'a>(&'a self, model: &'a QFormer) -> Result<Ranking<'a>> {
        let features = model.encode_image(&self.vision_output)?.features.expect("a model that compares");
        let cosines = model.similarity(&features, &model.encode_text(&self.texts)?)?.into_values();
        Ok(Ranking { held_out: self, model, cosines })
    }
}

impl Ranking<'_> {
    /// Pictures by how well caption `text` fits, the likeliest in order.
    pub(super) fn pictures_of(&self, text: usize) -> Result<Vec<usize>> {
        self.ranked(|image| (image, text))
    }

    /// Captions by how well they fit picture `image`, the likeliest in order.
    pub(super) fn captions_of(&self, image: usize) -> Result<Vec<usize>> {
        self.ranked(|text| (image, text))
    }

    /// Candidates, each with the query a `pair` of picture and caption, by cosine and then by cosine and the
    /// logit of a match, as [`retrieval`] ranks them.
    fn ranked(&self, pair: impl Fn(usize) -> (usize, usize)) -> Result<Vec<usize>> {
        let count = self.held_out.scenes.len();
        let cosine = |candidate: usize| {
            let (image, text) = pair(candidate);
            self.cosines[image * count + text]
        };
        let mut candidates: Vec<usize> = (0..count).collect();
        candidates.sort_by(|&a, &b| cosine(b).total_cmp(&cosine(a)));
        candidates.truncate(RERANKED);
        let pairs: Vec<(usize, usize)> = candidates.iter().map(|&candidate| pair(candidate)).collect();
        let HeldOut { vision_output, texts, .. } = self.held_out;
        let found = self.model.match_score(vision_output, texts, &pairs, Matching::Classifier)?;
        let logits = found.iter().map(|found| found.logits.expect("of the classifier")[1]);
        let mut scored: Vec<(f32, usize)> =
            logits.zip(candidates).map(|(logit, candidate)| (logit + cosine(candidate), candidate)).collect();
        scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        Ok(scored.into_iter().map(|(_, candidate)| candidate).collect())
    }
}

impl Judgement {
    /// Share of generated captions that are right in every word.
    pub(super) fn captions_right(&self, held_out: &HeldOut) -> f64 {
        let right = self.said.iter().zip(&held_out.scenes).filter(|(said, scene)| **said == scene.caption());
        right.count() as f64 / self.said.len() as f64
    }

    /// For programs.
    pub(super) fn json(&self, held_out: &HeldOut) -> Value {
        let recalls = |recalls: &qformer::evaluate::Recalls| json!({ "image_to_text": recalls.image_to_text, "text_to_image": recalls.text_to_image });
        let Retrieval { itc, reranked, matching } = &self.retrieval;
        json!({
            "itc": recalls(itc),
            "reranked": recalls(reranked),
            "itm_accuracy": matching.all,
            "captions_right": self.captions_right(held_out),
            "captions": self.said,
        })
    }
}
