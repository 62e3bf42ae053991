//! `qformer evaluate`: how well a model retrieves, matches and foresees captions.

use crate::Remarks;
use crate::commands::caption;
use crate::device::Opened;
use crate::inputs::data::DataArguments;
use crate::inputs::images::{compare_encoders, expect_encoder, processor};
use crate::inputs::{ModelArguments, tell_of_matching};
use crate::outputs::check_file_name;
use crate::progress::Progress;
use clap::Args;
use qformer::data::{Dataset, Kind};
use qformer::evaluate::{
    self, CaptionStatistics, Captions, Images, MatchingAccuracy, MatchingLogits, Recalls, Retrieval,
};
use qformer::ops::Backend;
use qformer::output::{self, counted};
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::{Captioner, Config, HostTensor, ImageProcessor, QFormer, Result, Tokenizer, VisionEncoder};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;

/// Longest caption in tokens, as in LAVIS's retrieval evaluation.
const TEXT_LENGTH: usize = 35;

/// Evaluate a model on images with captions
///
/// Recall at 1, 5 and 10 in both directions, by contrastive similarity (ITC) and, as LAVIS scores it, by
/// ITM logit + ITC cosine among the --rerank candidates of the largest ITC; the share of pairs that the
/// matching head tells rightly, true pairs and hard negatives; and, if the checkpoint has the
/// language-modelling head, the perplexity of the captions. Of an image with several captions any counts.
///
/// The image encoder's output of all images is kept in memory; of large sets write it with qformer encode
/// and give --features.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    data: DataArguments,
    /// Match every image with the K texts of the largest contrastive similarity, and every text with as
    /// many images
    #[arg(long, alias = "k-test", value_name = "K", default_value = "128")]
    rerank: NonZeroUsize,
    /// File to write, in JSON
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Evaluation {
    images: usize,
    captions: usize,
    rerank: usize,
    retrieval: Retrieval,
    captioning: Option<CaptionStatistics>,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    if let Some(path) = &arguments.output {
        check_file_name(path, "json")?;
        output::check_writable(path)?;
    }
    let dataset = Dataset::open(&arguments.data.source()?)?;
    let evaluation = match arguments.model.device.open(remarks)? {
        Opened::Cpu(device) => arguments.evaluate(device, &dataset, remarks)?,
        Opened::Cuda(device) => arguments.evaluate(device, &dataset, remarks)?,
    };
    match &arguments.output {
        Some(path) => output::write_json(path, &evaluation.json()),
        None if arguments.json => crate::print(&format!("{}\n", evaluation.json())),
        None => crate::print(&evaluation.table()),
    }
}

/// A model, with its language-modelling head if it has one.
enum Model<B: Backend> {
    Retrieving(Box<QFormer<B>>),
    Captioning(Box<Captioner<B>>),
}

impl Arguments {
    fn evaluate<B: Backend + Clone>(
        &self,
        device: B,
        dataset: &Dataset,
        remarks: Remarks,
    ) -> Result<Evaluation> {
        let config = Config::load(&self.model.folder)?;
        let tokenizer = Tokenizer::load(&self.model.folder)?;
        tokenizer.check_vocabulary(config.qformer.vocab_size)?;
        dataset.check_features([config.image_tokens(), config.vision.width()])?;
        if dataset.kind() == Kind::Pictures {
            expect_encoder(&self.model.folder, &config)?;
        }
        let (texts, owners) = texts(dataset, remarks);
        let tokens =
            tokenizer.encode_batch(&texts, TEXT_LENGTH.min(config.qformer.max_position_embeddings))?;
        let checkpoint = Checkpoint::open(&self.model.folder)?;
        let model = if Captioner::<B>::is_in(&NamedCheckpoint::new(&checkpoint)?) {
            Model::Captioning(Box::new(caption::load(&device, &config, &checkpoint, &tokenizer, remarks)?))
        } else {
            remarks.note("no caption perplexity, since the checkpoint has no language-modelling head");
            let progress = Progress::of_bytes("loading the Q-Former", remarks);
            let model =
                QFormer::from_checkpoint(device.clone(), config.clone(), &checkpoint, &mut |done, total| {
                    progress.set(done, total);
                })?;
            remarks.warn_of_not_finite(model.not_finite());
            Model::Retrieving(Box::new(model))
        };
        let mut reader = match dataset.kind() {
            Kind::Features { .. } => {
                compare_encoders(dataset, &self.model.folder, &config, &checkpoint, remarks)?;
                Reader::Features(dataset)
            }
            Kind::Pictures => {
                let progress = Progress::of_bytes("loading the image encoder", remarks);
                let encoder =
                    VisionEncoder::from_checkpoint(device, &config, &checkpoint, &mut |done, total| {
                        progress.set(done, total);
                    })?;
                remarks.warn_of_not_finite(encoder.not_finite());
                let processor = processor(&self.model.folder, &config)?;
                Reader::Pictures { dataset, processor, encoder: Box::new(encoder), encoded: Vec::new() }
            }
        };
        let logits = MatchingLogits::of(&NamedCheckpoint::new(&checkpoint)?)?;
        tell_of_matching(logits.matching(), remarks);
        let (count, captions) = (dataset.images(), Captions { tokens: &tokens, images: &owners });
        let mut shown: Option<(&str, Progress)> = None;
        let mut progress = |what: &'static str, done: usize, total: usize| {
            if shown.as_ref().is_none_or(|(shown, _)| *shown != what) {
                shown = Some((what, Progress::of_steps(what, remarks)));
            }
            shown.iter().for_each(|(_, progress)| progress.set(done, total));
        };
        let qformer = match &model {
            Model::Retrieving(model) => model,
            Model::Captioning(captioner) => captioner.model(),
        };
        let mut read = |images| reader.read(images);
        let images = Images { count, read: &mut read };
        let rerank = self.rerank.get();
        let retrieval = evaluate::retrieval(qformer, images, captions, rerank, logits, &mut progress)?;
        let captioning = match &model {
            Model::Retrieving(_) => None,
            Model::Captioning(captioner) => {
                let images = Images { count, read: &mut read };
                Some(evaluate::captioning(captioner, images, captions, &mut progress)?)
            }
        };
        Ok(Evaluation { images: count, captions: tokens.len(), rerank, retrieval, captioning })
    }
}

/// The captions, but for blank ones, and the image of each.
fn texts(dataset: &Dataset, remarks: Remarks) -> (Vec<Cow<'_, str>>, Vec<u32>) {
    let captions = dataset.captions().iter().enumerate();
    let (texts, owners): (Vec<_>, Vec<u32>) = captions
        .map(|(index, caption)| (dataset.text(index), caption.image))
        .filter(|(text, _)| !text.trim().is_empty())
        .unzip();
    let blank = dataset.captions().len() - texts.len();
    if blank > 0 {
        remarks.warning(format_args!("left out {}", counted(blank, "blank caption")));
    }
    (texts, owners)
}

/// Where the image encoder's output comes from.
enum Reader<'a, B: Backend> {
    Features(&'a Dataset),
    Pictures {
        dataset: &'a Dataset,
        processor: ImageProcessor,
        encoder: Box<VisionEncoder<B>>,
        /// The output of the images read so far, in order: each is encoded once.
        encoded: Vec<f32>,
    },
}

impl<B: Backend> Reader<'_, B> {
    /// [n, N, W] of images, read in order the first time.
    fn read(&mut self, images: Range<usize>) -> Result<HostTensor> {
        let numbers: Vec<usize> = images.clone().collect();
        match self {
            Self::Features(dataset) => dataset.features(&numbers),
            Self::Pictures { dataset, processor, encoder, encoded } => {
                let config = encoder.config();
                let shape = [numbers.len(), config.image_tokens(), config.hidden_size];
                let per_image = shape[1] * shape[2];
                if encoded.len() < images.end * per_image {
                    encoded.extend(encoder.encode(&dataset.pixels(&numbers, processor)?)?.into_values());
                }
                let values = encoded[images.start * per_image..images.end * per_image].to_vec();
                HostTensor::new(&shape, values)
            }
        }
    }
}

impl Evaluation {
    /// LAVIS's keys, in percent, of the reranked retrieval, and open_clip's, as shares; those of ITC alone
    /// are under "itc".
    fn json(&self) -> Value {
        let Self { images, captions, rerank, retrieval, captioning } = self;
        let mut json = keys(&retrieval.reranked);
        json.insert("itc".into(), keys(&retrieval.itc).into());
        let matching = &retrieval.matching;
        let found = json!({
            "images": images,
            "captions": captions,
            "rerank": rerank,
            "itm_accuracy": matching.all,
            "itm_accuracy_positives": matching.positives,
            "itm_accuracy_negatives": matching.negatives,
            "caption_loss": captioning.map(|found| found.loss),
            "caption_perplexity": captioning.map(|found| found.perplexity()),
            "caption_tokens": captioning.map(|found| found.tokens),
        });
        json.extend(found.as_object().expect("as written above").clone());
        json.into()
    }

    fn table(&self) -> String {
        let Self { images, captions, rerank, retrieval, captioning } = self;
        let (images, captions) = (counted(*images, "image"), counted(*captions, "caption"));
        let mut table = format!("{images}, {captions}\n\nrecall in %                    R@1    R@5   R@10\n");
        let reranked = format!("reranked {rerank}");
        for (how, recalls) in [("ITC", &retrieval.itc), (&*reranked, &retrieval.reranked)] {
            let directions =
                [("image to text", recalls.image_to_text), ("text to image", recalls.text_to_image)];
            for (direction, [one, five, ten]) in directions.map(|(name, found)| (name, found.map(percent))) {
                let name = format!("{direction}, {how}");
                table += &format!("{name:<28}{one:>6.2} {five:>6.2} {ten:>6.2}\n");
            }
        }
        let MatchingAccuracy { positives, negatives, all } = retrieval.matching;
        let negatives = negatives
            .map_or("there are no".into(), |negatives| format!("{:.2} % of the", percent(negatives)));
        table += &format!(
            "\nITM accuracy        {:.2} %: {:.2} % of the true pairs, {negatives} hard negatives\n",
            percent(all),
            percent(positives)
        );
        if let Some(found) = captioning {
            let (perplexity, loss, tokens) = (found.perplexity(), found.loss, counted(found.tokens, "token"));
            table += &format!("caption perplexity  {perplexity:.3} a token (loss {loss:.4}, {tokens})\n");
        }
        table
    }
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

/// Recalls by LAVIS's names and by open_clip's.
fn keys(recalls: &Recalls) -> Map<String, Value> {
    let mut json = Map::new();
    let mean = |found: [f64; 3]| percent(found.iter().sum::<f64>() / 3.0);
    let directions =
        [("txt", "image_to_text", recalls.image_to_text), ("img", "text_to_image", recalls.text_to_image)];
    for (lavis, open_clip, found) in directions {
        for (k, share) in [1, 5, 10].into_iter().zip(found) {
            json.insert(format!("{lavis}_r{k}"), percent(share).into());
            json.insert(format!("{open_clip}_R@{k}"), share.into());
        }
        json.insert(format!("{lavis}_r_mean"), mean(found).into());
    }
    let (texts, images) = (mean(recalls.image_to_text), mean(recalls.text_to_image));
    json.insert("r_mean".into(), ((texts + images) / 2.0).into());
    json.insert("agg_metrics".into(), texts.into());
    json
}
