//! `qformer score`: how well images and texts match.

use crate::Remarks;
use crate::inputs::{Inputs, Loaded, tell_of_matching};
use crate::outputs::check_file_name;
use clap::{ArgGroup, Args, ValueEnum};
use qformer::data::TextList;
use qformer::output::{self, printable, write_atomically};
use qformer::{Error, HostTensor, Matching, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Score how well images and texts match
///
/// Of every image and text there is the contrastive similarity (ITC: the largest cosine over the
/// image's queries) and the matching score (ITM) of image and text read together. Without --output
/// or --json a table is printed, the best match of every image first.
#[derive(Args)]
#[command(group = ArgGroup::new("image").required(true).args(["images", "image_dir", "features"]))]
#[command(group = ArgGroup::new("texts").required(true).args(["text", "texts_file"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    inputs: Inputs,
    /// What the matching score is [default: what the checkpoint was trained for]
    #[arg(long, value_enum)]
    matching: Option<MatchingName>,
    /// Match every image only with the K texts of the largest contrastive similarity; ITM logit and
    /// ITC cosine together are then the score, as in LAVIS's retrieval evaluation
    #[arg(long, value_name = "K")]
    rerank: Option<NonZeroUsize>,
    /// File to write, in JSON
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// [`Matching`] by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum MatchingName {
    /// The two-class head, averaged over the queries: what LAVIS and transformers compute
    Classifier,
    /// The largest cosine of the text's [CLS] output and the queries' outputs
    MaxSimilarity,
}

impl From<Matching> for MatchingName {
    fn from(matching: Matching) -> Self {
        match matching {
            Matching::Classifier => Self::Classifier,
            Matching::MaxSimilarity => Self::MaxSimilarity,
        }
    }
}

/// All scores; matrices are [images][texts], and `null` where a pair was not matched.
#[derive(Serialize)]
struct Scores {
    images: Vec<String>,
    texts: TextList,
    matching: MatchingName,
    itc: Vec<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    itm_logits: Option<Vec<Vec<Option<[f32; 2]>>>>,
    itm: Vec<Vec<Option<f32>>>,
    /// After reranking: ITM logit of "matches" + ITC cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<Vec<Vec<Option<f32>>>>,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    if let Some(path) = &arguments.output {
        check_file_name(path, "json")?;
        output::check_writable(path)?;
    }
    let scores = arguments.score(arguments.inputs.load(remarks)?, remarks)?;
    match &arguments.output {
        Some(path) => write_atomically(path, |file| {
            serde_json::to_writer(&mut *file, &scores)
                .map_err(std::io::Error::from)
                .and_then(|()| writeln!(file))
                .map_err(|error| Error::io(path, "write", error))
        }),
        None if arguments.json => {
            crate::print(&format!("{}\n", serde_json::to_string(&scores).expect("numbers and texts")))
        }
        None => crate::print(&scores.table()),
    }
}

impl Arguments {
    fn score(&self, loaded: Loaded, remarks: Remarks) -> Result<Scores> {
        let Loaded { pipeline, texts, images } = loaded;
        let trained = pipeline.matching_logits()?.matching();
        let matching = match self.matching {
            None => {
                tell_of_matching(trained, remarks);
                trained
            }
            Some(MatchingName::Classifier) => {
                if trained == Matching::MaxSimilarity {
                    remarks.warning(
                        "the checkpoint was trained with --matching max-similarity, and its two-class head was not",
                    );
                }
                Matching::Classifier
            }
            Some(MatchingName::MaxSimilarity) => Matching::MaxSimilarity,
        };
        let (count, mut features) = (texts.len(), Vec::new());
        for some in texts.parts() {
            features.extend(pipeline.text_features(&texts.tokens(some))?.into_values());
        }
        let text_features = HostTensor::new(&[count, pipeline.config().image_text_hidden_size], features)?;
        let (mut itc, mut itm, mut logits) = (Vec::new(), Vec::new(), Vec::new());
        images.for_each_batch(&pipeline, self.inputs.batch.size, remarks, |batch| {
            let similarity = pipeline.similarity(&pipeline.image_features(batch)?, &text_features)?;
            let rows: Vec<Vec<f32>> = similarity.values().chunks(count).map(<[f32]>::to_vec).collect();
            let of_image = |(image, row): (usize, &Vec<f32>)| {
                candidates(row, self.rerank).into_iter().map(move |text| (image, text))
            };
            let pairs: Vec<(usize, usize)> = rows.iter().enumerate().flat_map(of_image).collect();
            // Only the texts of these pairs are read.
            let mut read: Vec<usize> = pairs.iter().map(|&(_, text)| text).collect();
            read.sort_unstable();
            read.dedup();
            let of_read = |&(image, text): &(usize, usize)| {
                (image, read.binary_search(&text).expect("a text of a pair"))
            };
            let of_read: Vec<(usize, usize)> = pairs.iter().map(of_read).collect();
            let tokens = texts.tokens(read.iter().copied());
            let matches = pipeline.match_pairs(batch, &tokens, &of_read, matching)?;
            let first = itm.len();
            itm.resize(first + rows.len(), vec![None; count]);
            logits.resize(first + rows.len(), vec![None; count]);
            for ((image, text), found) in pairs.into_iter().zip(matches) {
                itm[first + image][text] = Some(found.score);
                logits[first + image][text] = found.logits;
            }
            itc.extend(rows);
            Ok(())
        })?;
        let classified = matching == Matching::Classifier;
        Ok(Scores {
            score: (classified && self.rerank.is_some()).then(|| combine(&logits, &itc)),
            images: images.names,
            texts: texts.texts,
            matching: matching.into(),
            itc,
            itm_logits: classified.then_some(logits),
            itm,
        })
    }
}

/// The `rerank` texts of the largest similarity, or all.
fn candidates(similarity: &[f32], rerank: Option<NonZeroUsize>) -> Vec<usize> {
    let mut texts: Vec<usize> = (0..similarity.len()).collect();
    if let Some(most) = rerank {
        texts.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]));
        texts.truncate(most.get());
    }
    texts
}

/// ITM logit of "matches" + ITC cosine, of pairs that were matched.
fn combine(logits: &[Vec<Option<[f32; 2]>>], itc: &[Vec<f32>]) -> Vec<Vec<Option<f32>>> {
    let row = |(logits, itc): (&Vec<Option<[f32; 2]>>, &Vec<f32>)| {
        logits.iter().zip(itc).map(|(logits, cosine)| logits.map(|[_, yes]| yes + cosine)).collect()
    };
    logits.iter().zip(itc).map(row).collect()
}

impl Scores {
    /// A paragraph an image and a line a text, the best match first, texts not matched last.
    fn table(&self) -> String {
        let mut table = String::new();
        for (image, name) in self.images.iter().enumerate() {
            let ranks = self.score.as_ref().unwrap_or(&self.itm);
            let rank = |text: usize| ranks[image][text].unwrap_or(f32::NEG_INFINITY);
            let mut order: Vec<usize> = (0..self.texts.len()).collect();
            order.sort_by(|&a, &b| {
                let by_similarity = self.itc[image][b].total_cmp(&self.itc[image][a]);
                rank(b).total_cmp(&rank(a)).then(by_similarity)
            });
            if image > 0 {
                table.push('\n');
            }
            writeln!(table, "{}", printable(name)).expect("written to memory");
            let score_heading = if self.score.is_some() { "    score" } else { "" };
            writeln!(table, "      itm      itc{score_heading}  text").expect("written to memory");
            for text in order {
                let cell = |value: Option<f32>| value.map_or("        -".into(), |v| format!("{v:9.4}"));
                let score = self.score.as_ref().map(|score| cell(score[image][text])).unwrap_or_default();
                let (itm, itc) = (cell(self.itm[image][text]), cell(Some(self.itc[image][text])));
                writeln!(table, "{itm}{itc}{score}  {}", printable(self.texts.get(text)))
                    .expect("written to memory");
            }
        }
        table
    }
}
