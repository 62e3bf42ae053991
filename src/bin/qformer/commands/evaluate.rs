//! `qformer evaluate`: how well a model retrieves, matches and foresees captions.

use crate::Remarks;
use crate::inputs::data::DataArguments;
use crate::inputs::images::compare_encoders;
use crate::inputs::{ModelArguments, load, tell_of_matching};
use crate::outputs::check_file_name;
use crate::progress::Progress;
use clap::Args;
use qformer::data::{Dataset, Kind};
use qformer::evaluate::{CaptionStatistics, Captions, Images, MatchingAccuracy, Recalls, Retrieval};
use qformer::output::{self, counted};
use qformer::{HostTensor, Parts, Pipeline, Result};
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
    let evaluation = arguments.evaluate(&dataset, remarks)?;
    match &arguments.output {
        Some(path) => output::write_json(path, &evaluation.json()),
        None if arguments.json => crate::print(&format!("{}\n", evaluation.json())),
        None => crate::print(&evaluation.table()),
    }
}

impl Arguments {
    fn evaluate(&self, dataset: &Dataset, remarks: Remarks) -> Result<Evaluation> {
        let builder = self.model.open()?;
        let (config, tokenizer) = (builder.config(), builder.tokenizer()?);
        dataset.check_features([config.image_tokens(), config.vision.width()])?;
        let (texts, owners) = texts(dataset, remarks);
        let tokens =
            tokenizer.encode_batch(&texts, TEXT_LENGTH.min(config.qformer.max_position_embeddings))?;
        let parts = match dataset.kind() {
            Kind::Features { .. } => {
                compare_encoders(dataset, &self.model.folder, config, builder.checkpoint(), remarks)?;
                Parts::QFormer
            }
            Kind::Pictures => {
                builder.require_encoder()?;
                builder.image_processor()?;
                Parts::All
            }
        };
        let pipeline = load(builder, parts, remarks)?;
        if !pipeline.can_caption() {
            remarks.note("no caption perplexity, since the checkpoint has no language-modelling head");
        }
        tell_of_matching(pipeline.matching_logits()?.matching(), remarks);
        let mut reader = Reader { dataset, pipeline: &pipeline, encoded: Vec::new() };
        let (count, captions) = (dataset.images(), Captions { tokens: &tokens, images: &owners });
        let mut shown: Option<(&str, Progress)> = None;
        let mut progress = |what: &'static str, done: usize, total: usize| {
            if shown.as_ref().is_none_or(|(shown, _)| *shown != what) {
                shown = Some((what, Progress::of_steps(what, remarks)));
            }
            shown.iter().for_each(|(_, progress)| progress.set(done, total));
        };
        let mut read = |images| reader.read(images);
        let rerank = self.rerank.get();
        let images = Images { count, read: &mut read };
        let retrieval = pipeline.evaluate_retrieval(images, captions, rerank, &mut progress)?;
        let images = Images { count, read: &mut read };
        let captioning = pipeline
            .can_caption()
            .then(|| pipeline.evaluate_captioning(images, captions, &mut progress))
            .transpose()?;
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

/// Where the image encoder's output comes from: the data set, or its pictures through the pipeline.
struct Reader<'a> {
    dataset: &'a Dataset,
    pipeline: &'a Pipeline,
    /// The output of the pictures read so far, in order: each is encoded once.
    encoded: Vec<f32>,
}

impl Reader<'_> {
    /// [n, N, W] of images, read in order the first time.
    fn read(&mut self, images: Range<usize>) -> Result<HostTensor> {
        let Self { dataset, pipeline, encoded } = self;
        let numbers: Vec<usize> = images.clone().collect();
        if dataset.kind() != Kind::Pictures {
            return dataset.features(&numbers);
        }
        let config = pipeline.config();
        let shape = [numbers.len(), config.image_tokens(), config.vision.width()];
        let per_image = shape[1] * shape[2];
        if encoded.len() < images.end * per_image {
            let pixels = dataset.pixels(&numbers, pipeline.image_processor()?)?;
            encoded.extend(pipeline.encode_pixels(&pixels)?.to_host()?.into_values());
        }
        HostTensor::new(&shape, encoded[images.start * per_image..images.end * per_image].to_vec())
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
