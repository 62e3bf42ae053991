//! `qformer answer`: what a language model answers to questions about images.

use crate::Remarks;
use crate::decoding::DecodingArguments;
use crate::inputs::images::{ImageArguments, Images};
use crate::inputs::language::LanguageArguments;
use crate::inputs::texts::read_lines;
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_file_name;
use clap::{ArgGroup, Args};
use qformer::generate::Decoding;
use qformer::output::{self, printable};
use qformer::{GeneratedText, Pipeline, Ranked, Result, TextTask, VisionOutput};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Answer questions about images with a language model
///
/// Every question is put to every image: "Question: {} Answer:" to OPT, "Question: {} Short answer:" to Flan-T5. Answers are
/// found, where it is not said here, as the generation_config.json says, and else as in LAVIS: with 5 beams, at most 10
/// tokens, and a length penalty of 0 (OPT) or -1 (Flan-T5). With --candidates the answer is the one of the list that the
/// language model finds likeliest, by the sum over its tokens. Without --output or --json a line an answer is printed: the
/// image's name, the question and the answer, tabs between them.
#[derive(Args)]
#[command(group = ArgGroup::new("image").required(true).args(["images", "image_dir", "features"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    language: LanguageArguments,
    #[command(flatten)]
    batch: BatchArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Questions
    #[arg(long = "question", alias = "questions", value_name = "TEXT", required = true, num_args = 1..)]
    questions: Vec<String>,
    /// How a question is put, with {} in its place; '{}' takes it as it stands
    #[arg(long, value_name = "TEMPLATE")]
    prompt: Option<String>,
    /// File of answers to choose from, one a line
    #[arg(long, value_name = "FILE")]
    candidates: Option<PathBuf>,
    #[command(flatten)]
    decoding: DecodingArguments,
    /// File to write, in JSON
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An image's answer to a question.
struct Answered {
    image: String,
    question: String,
    found: Found,
}

enum Found {
    Generated(GeneratedText),
    /// The likeliest first.
    Ranked(Vec<(String, f64)>),
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    if let Some(path) = &arguments.output {
        check_file_name(path, "json")?;
        output::check_writable(path)?;
    }
    let answered = arguments.answer(remarks)?;
    let as_json = || Value::from(answered.iter().map(Answered::json).collect::<Vec<_>>());
    match &arguments.output {
        Some(path) => output::write_json(path, &as_json()),
        None if arguments.json => crate::print(&format!("{}\n", as_json())),
        None => crate::print(&answered.iter().map(Answered::line).collect::<String>()),
    }
}

impl Arguments {
    fn answer(&self, remarks: Remarks) -> Result<Vec<Answered>> {
        let builder = self.language.with(self.model.open()?.batch_size(self.batch.size))?;
        builder.require_language_model()?;
        let decoding = self.decoding.decoding(builder.decoding_for(TextTask::Answer)?, None)?;
        let candidates = self.candidates.as_deref().map(read_lines).transpose()?;
        let candidates: Option<Vec<&str>> = candidates.as_ref().map(|texts| texts.iter().collect());
        let images = Images::find(&self.images, &builder)?;
        let pipeline = load(builder, images.parts(), remarks)?;
        let template = self.prompt.as_deref().unwrap_or(pipeline.question_prompt());
        let mut answered = Vec::with_capacity(images.names.len() * self.questions.len());
        images.for_each_batch(&pipeline, self.batch.size, remarks, |batch| {
            let first = answered.len() / self.questions.len();
            let names = &images.names[first..images.names.len().min(first + self.batch.size.get())];
            let asked = |image| self.questions.iter().map(move |question| (image, question));
            let questions: Vec<(usize, &String)> = (0..names.len()).flat_map(asked).collect();
            let prompts = pipeline.questions(&questions, template)?;
            let found = match &candidates {
                Some(candidates) => rank(&pipeline, batch, &prompts, candidates)?,
                None => generate(&pipeline, batch, &prompts, &decoding.starting_at(answered.len() as u64))?,
            };
            for ((image, question), found) in questions.into_iter().zip(found) {
                let (image, question) = (names[image].clone(), question.clone());
                answered.push(Answered { image, question, found });
            }
            Ok(())
        })?;
        Ok(answered)
    }
}

fn generate(
    pipeline: &Pipeline,
    images: &VisionOutput,
    prompts: &[(usize, String)],
    decoding: &Decoding,
) -> Result<Vec<Found>> {
    let answers = pipeline.generate(images, prompts, decoding)?.into_iter();
    Ok(answers.filter_map(|texts| texts.into_iter().next()).map(Found::Generated).collect())
}

fn rank(
    pipeline: &Pipeline,
    images: &VisionOutput,
    prompts: &[(usize, String)],
    candidates: &[&str],
) -> Result<Vec<Found>> {
    let named = |Ranked { candidate, nll }| (candidates[candidate].to_owned(), nll);
    let ranked = pipeline.rank(images, prompts, candidates)?.into_iter();
    Ok(ranked.map(|ranked| Found::Ranked(ranked.into_iter().map(named).collect())).collect())
}

impl Answered {
    fn text(&self) -> &str {
        match &self.found {
            Found::Generated(answer) => &answer.text,
            Found::Ranked(candidates) => candidates.first().map_or("", |(answer, _)| answer),
        }
    }

    fn json(&self) -> Value {
        let mut json = json!({"image": self.image, "question": self.question, "answer": self.text()});
        match &self.found {
            Found::Generated(GeneratedText { tokens, score, .. }) => {
                (json["score"], json["tokens"]) = (json!(score), json!(tokens));
            }
            Found::Ranked(candidates) => {
                let candidate = |(answer, nll): &(String, f64)| json!({"answer": answer, "nll": nll});
                json["score"] = json!(candidates.first().map(|(_, nll)| -nll));
                json["candidates"] = candidates.iter().map(candidate).collect();
            }
        }
        json
    }

    fn line(&self) -> String {
        let [image, question, answer] = [&self.image, &self.question, self.text()].map(printable);
        format!("{image}\t{question}\t{answer}\n")
    }
}
