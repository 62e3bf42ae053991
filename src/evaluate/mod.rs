//! Evaluation over a data set: retrieval as LAVIS scores it, matching, and captioning.
//!
//! Images are read in passes of a few at a time, so that a data set need not fit in memory; the matrix of
//! contrastive similarities [images, captions] does.

mod ranks;

use crate::error::{Error, Result};
use crate::models::qformer::{Captioner, Match, Matching, QFormer};
use crate::ops::Backend;
use crate::params::{NamedCheckpoint, Part, TensorSource};
use crate::tensor::HostTensor;
use ranks::{Similarities, recalls};
use std::ops::Range;

/// The texts of a data set.
#[derive(Clone, Copy, Debug)]
pub struct Captions<'a> {
    /// Token ids, `[CLS]` first and `[SEP]` last.
    pub tokens: &'a [Vec<u32>],
    /// The image that each is of, as many as texts. An image may have several, and any of them counts.
    pub images: &'a [u32],
}

/// Images of a data set and where they are read from.
pub struct Images<'a> {
    /// How many there are.
    pub count: usize,
    /// The image encoder's output before its last norm [n, N, W] of n images that follow one another.
    pub read: &'a mut dyn FnMut(Range<usize>) -> Result<HostTensor>,
}

/// How well images and texts find one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieval {
    /// By contrastive similarity (ITC).
    pub itc: Recalls,
    /// By ITM logit of "matches" + ITC cosine among the candidates of the largest ITC cosine; those that
    /// are not candidates follow in the order of ITC.
    pub reranked: Recalls,
    /// Of the matching head.
    pub matching: MatchingAccuracy,
}

/// Shares of the images and of the texts that find what belongs to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recalls {
    /// Of the images that have a caption, those with one among the first 1, 5 and 10 texts.
    pub image_to_text: [f64; 3],
    /// Of the texts, those whose image is among the first 1, 5 and 10.
    pub text_to_image: [f64; 3],
}

/// Shares of pairs that the matching head's larger logit tells rightly. As in training, the pairs are every
/// text with its image; every text with its hard negative, the image of the largest ITC cosine among those
/// that it is not of; and every image with its own, the text of the largest among those that are not of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchingAccuracy {
    /// Of the pairs that match.
    pub positives: f64,
    /// Of the hard negatives; none if there are none, since all texts are of one image.
    pub negatives: Option<f64>,
    /// Of all.
    pub all: f64,
}

/// The language-modelling loss of captions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaptionStatistics {
    /// The mean of −ln p over all tokens but the first of each text, in nats.
    pub loss: f64,
    /// How many they are.
    pub tokens: usize,
}

impl CaptionStatistics {
    /// e^loss
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// What an evaluation is doing, how far it has come, and how far it will go.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, usize, usize);

/// What the logits of "does not match" and "matches" are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MatchingLogits {
    /// The two-class head's.
    Classifier,
    /// 0, and scale·similarity + bias of a pair's largest cosine, as [`Matching::MaxSimilarity`] is trained.
    MaxSimilarity {
        /// `itm_scale`
        scale: f32,
        /// `itm_bias`
        bias: f32,
    },
}

impl MatchingLogits {
    /// Those that a checkpoint was trained with: it has `itm_scale` and `itm_bias`, or else the classifier.
    ///
    /// # Errors
    /// Fails if these are not single numbers, or cannot be read.
    pub fn of(checkpoint: &NamedCheckpoint<'_>) -> Result<Self> {
        let names = ["itm_scale", "itm_bias"];
        if !names.iter().all(|name| checkpoint.contains(name)) {
            return Ok(Self::Classifier);
        }
        let parts = names.map(|name| Part { name: name.to_owned(), shape: Vec::new() });
        checkpoint.check(&parts.iter().collect::<Vec<_>>())?;
        let mut values = [0.0; 2];
        for (part, value) in parts.iter().zip(&mut values) {
            checkpoint.read(part, &mut |_, read| *value = read[0])?;
        }
        Ok(Self::MaxSimilarity { scale: values[0], bias: values[1] })
    }

    /// What of a pair is computed.
    pub fn matching(self) -> Matching {
        match self {
            Self::Classifier => Matching::Classifier,
            Self::MaxSimilarity { .. } => Matching::MaxSimilarity,
        }
    }

    fn of_pair(self, found: Match) -> [f32; 2] {
        match self {
            Self::Classifier => found.logits.expect("of the classifier"),
            Self::MaxSimilarity { scale, bias } => [0.0, scale * found.score + bias],
        }
    }
}

impl Images<'_> {
    /// The features of the images `numbers`.
    fn features(&mut self, numbers: Range<usize>) -> Result<HostTensor> {
        let features = (self.read)(numbers.clone())?;
        if features.shape().first() == Some(&numbers.len()) {
            return Ok(features);
        }
        Err(Error::value(format!(
            "images {numbers:?} were read as features of shape {:?}; the first extent has to be {}",
            features.shape(),
            numbers.len()
        )))
    }
}

impl Captions<'_> {
    fn check(&self, images: usize) -> Result<()> {
        if self.tokens.is_empty() {
            return Err(Error::value("there is no text to evaluate with"));
        }
        if self.tokens.len() != self.images.len() {
            return Err(Error::value(format!(
                "{} texts are said to be of {} images; there has to be an image for each",
                self.tokens.len(),
                self.images.len()
            )));
        }
        match self.images.iter().find(|&&image| image as usize >= images) {
            None => Ok(()),
            Some(image) => {
                Err(Error::value(format!("a text is of image {image}, but there are {images} images")))
            }
        }
    }
}

/// Retrieval in both directions, reranking by the logits `matching` for every image the `rerank` texts of the
/// largest contrastive similarity, and for every text as many images.
///
/// # Errors
/// Fails if the checkpoint cannot compare images with texts, if a text or the features are not fit, and as
/// `images.read` does.
pub fn retrieval<B: Backend>(
    model: &QFormer<B>,
    mut images: Images<'_>,
    captions: Captions<'_>,
    rerank: usize,
    matching: MatchingLogits,
    progress: Progress<'_>,
) -> Result<Retrieval> {
    let count = images.count;
    captions.check(count)?;
    let texts = model.encode_text(captions.tokens)?;
    let mut values = Vec::with_capacity(count * captions.tokens.len());
    for_each_pass::<B>(count, |pass| {
        let features = model.encode_image(&images.features(pass.clone())?)?.features;
        let features = features.expect("a model that compares texts");
        values.extend(model.similarity(&features, &texts)?.into_values());
        progress("comparing images with texts", pass.end, count);
        Ok(())
    })?;
    let itc = Similarities::new(values, captions.images, count)?;

    let (of_images, of_texts) = (itc.texts_of_images(rerank), itc.images_of_texts(rerank));
    let negatives = itc.hard_negatives();
    let mut wanted: Vec<Vec<u32>> = of_images.clone();
    for (text, images) in of_texts.iter().enumerate() {
        images.iter().for_each(|&image| wanted[image as usize].push(text as u32));
    }
    let positives = captions.images.iter().zip(0u32..).map(|(&image, text)| (image, text));
    positives.chain(negatives.iter().copied()).for_each(|(image, text)| wanted[image as usize].push(text));
    wanted.iter_mut().for_each(|texts| {
        texts.sort_unstable();
        texts.dedup();
    });

    let total = wanted.iter().map(Vec::len).sum();
    let mut done = 0;
    // Logits of each image and its wanted texts.
    let mut logits: Vec<Vec<[f32; 2]>> = Vec::with_capacity(count);
    for_each_pass::<B>(count, |pass| {
        let of_pass = wanted[pass.clone()].iter().enumerate();
        let pairs: Vec<(usize, usize)> = of_pass
            .flat_map(|(image, texts)| texts.iter().map(move |&text| (image, text as usize)))
            .collect();
        let matches = model.match_score(
            &images.features(pass.clone())?,
            captions.tokens,
            &pairs,
            matching.matching(),
        )?;
        let mut matches = matches.into_iter().map(|found| matching.of_pair(found));
        logits.extend(wanted[pass].iter().map(|texts| matches.by_ref().take(texts.len()).collect()));
        done += pairs.len();
        progress("matching pairs", done, total);
        Ok(())
    })?;
    let logits = |image: u32, text: u32| {
        let place = wanted[image as usize].binary_search(&text).expect("a pair that was matched");
        logits[image as usize][place]
    };
    let score = |image: u32, text: u32| logits(image, text)[1] + itc.get(image, text);
    let right = |(image, text): (u32, u32)| logits(image, text)[1] > logits(image, text)[0];
    let found = captions.images.iter().zip(0u32..).filter(|&(&image, text)| right((image, text))).count();
    let rejected = negatives.iter().filter(|&&pair| !right(pair)).count();
    let (texts, false_pairs) = (captions.images.len(), negatives.len());
    let ranks = [itc.ranks_of_texts(), itc.ranks_of_images()];
    let reranked =
        [itc.reranked_texts(&ranks[0], &of_images, score), itc.reranked_images(&ranks[1], &of_texts, score)];
    Ok(Retrieval {
        itc: recalls(&ranks),
        reranked: recalls(&reranked),
        matching: MatchingAccuracy {
            positives: found as f64 / texts as f64,
            negatives: (false_pairs > 0).then(|| rejected as f64 / false_pairs as f64),
            all: (found + rejected) as f64 / (texts + false_pairs) as f64,
        },
    })
}

/// The language-modelling loss of every caption after its image.
///
/// # Errors
/// Fails if a text or the features are not fit, and as `images.read` does.
pub fn captioning<B: Backend>(
    captioner: &Captioner<B>,
    mut images: Images<'_>,
    captions: Captions<'_>,
    progress: Progress<'_>,
) -> Result<CaptionStatistics> {
    let count = images.count;
    captions.check(count)?;
    let mut of_images: Vec<Vec<usize>> = vec![Vec::new(); count];
    captions.images.iter().enumerate().for_each(|(text, &image)| of_images[image as usize].push(text));
    let (mut loss, mut tokens) = (0.0, 0);
    for_each_pass::<B>(count, |pass| {
        let of_pass = || of_images[pass.clone()].iter().enumerate();
        let texts: Vec<Vec<u32>> = of_pass()
            .flat_map(|(_, texts)| texts.iter().map(|&text| captions.tokens[text].clone()))
            .collect();
        let owners = of_pass().flat_map(|(image, texts)| texts.iter().map(move |_| image));
        let pairs: Vec<(usize, usize)> = owners.zip(0..).collect();
        for found in captioner.caption_loss(&images.features(pass.clone())?, &texts, &pairs)? {
            loss += found.loss;
            tokens += found.tokens;
        }
        progress("measuring captions' loss", pass.end, count);
        Ok(())
    })?;
    Ok(CaptionStatistics { loss: loss / tokens as f64, tokens })
}

/// Calls `pass` with a few images after another.
fn for_each_pass<B: Backend>(count: usize, mut pass: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    for first in (0..count).step_by(B::IMAGES_PER_PASS) {
        pass(first..count.min(first + B::IMAGES_PER_PASS))?;
    }
    Ok(())
}
