//! What a model makes of the pictures held out.

use super::world::Scene;
use crate::Remarks;
use crate::progress::Progress;
use qformer::data::Dataset;
use qformer::evaluate::{Captions, Images, Retrieval, retrieval};
use qformer::language::decoding::{Decoding, Search};
use qformer::{Captioner, Cpu, HostTensor, Matching, Result, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// Candidates of a query that matching puts in order.
const RERANKED: usize = 16;

/// How captions are generated.
const DECODING: Decoding = Decoding {
    search: Search::Beam { beams: 3, length_penalty: 1.0 },
    max_length: super::model::LONGEST,
    min_length: 2,
    repetition_penalty: 1.0,
    sequences: 1,
};

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
    /// Of each picture and caption: cosine, and for the likeliest of either the logit of a match added [I, I]
    scores: Vec<f32>,
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
        let captioner = Captioner::load(Cpu::new(), folder)?;
        let progress = Progress::of_steps("matching", remarks);
        let [count, tokens, width] = self.vision_output.shape[..] else { unreachable!("features [I, N, W]") };
        let per_image = tokens * width;
        let mut read = |images: std::ops::Range<usize>| {
            let values = &self.vision_output.values[images.start * per_image..images.end * per_image];
            Ok(HostTensor::new(&[images.len(), tokens, width], values.to_vec()))
        };
        let owners: Vec<u32> = (0..count as u32).collect();
        let retrieval = retrieval(
            captioner.model(),
            Images { count, read: &mut read },
            Captions { tokens: &self.texts, images: &owners },
            RERANKED,
            &mut |_, done, total| progress.set(done, total),
        )?;
        drop(progress);
        let mut said = Vec::with_capacity(count);
        for captions in captioner.caption(&self.vision_output, &DECODING)? {
            said.push(tokenizer.decode(&captions[0].tokens)?);
        }
        let scores = self.scores(captioner.model())?;
        Ok(Judgement { retrieval, said, scores })
    }

    fn scores(&self, model: &qformer::QFormer) -> Result<Vec<f32>> {
        let count = self.scenes.len();
        let features = model.encode_image(&self.vision_output)?.features.expect("a model that compares");
        let mut scores = model.similarity(&features, &model.encode_text(&self.texts)?)?.values;
        let mut pairs = Vec::new();
        for query in 0..count {
            let likeliest = |score: &dyn Fn(usize) -> f32| ranked(count, score).into_iter().take(RERANKED);
            pairs.extend(likeliest(&|text| scores[query * count + text]).map(|text| (query, text)));
            pairs.extend(likeliest(&|image| scores[image * count + query]).map(|image| (image, query)));
        }
        pairs.sort_unstable();
        pairs.dedup();
        let found = model.match_score(&self.vision_output, &self.texts, &pairs, Matching::Classifier)?;
        // What was matched comes before what was not: cosines are within ±1.
        scores.iter_mut().for_each(|score| *score -= 1e3);
        for ((image, text), found) in pairs.into_iter().zip(found) {
            let [_, matches] = found.logits.expect("of the classifier");
            scores[image * count + text] += 1e3 + matches;
        }
        Ok(scores)
    }
}

impl Judgement {
    /// Pictures by how well caption `text` fits, best first.
    pub(super) fn pictures_of(&self, text: usize) -> Vec<usize> {
        let count = self.said.len();
        ranked(count, &|image| self.scores[image * count + text])
    }

    /// Captions by how well they fit picture `image`, best first.
    pub(super) fn captions_of(&self, image: usize) -> Vec<usize> {
        let count = self.said.len();
        ranked(count, &|text| self.scores[image * count + text])
    }

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

/// 0..`count` by score, the largest first.
fn ranked(count: usize, score: &dyn Fn(usize) -> f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order
}
