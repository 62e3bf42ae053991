//! `qformer demo`: everything from drawing pictures to looking at what was learnt, in a few minutes.

mod data_set;
mod draw;
mod judge;
mod learn;
mod model;
mod page;
mod world;

use crate::Remarks;
use crate::outputs::check_folder_name;
use crate::progress::Progress;
use crate::shell::quoted;
use clap::{Args, value_parser};
use data_set::Files;
use judge::{HeldOut, Judgement};
use learn::Learnt;
use page::Page;
use qformer::output::{counted, write_atomically, write_json};
use qformer::{Captioner, Cpu, Error, ImageProcessor, Result, Tokenizer, VisionEncoder};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use world::Scenes;

/// Name of the file that tells what the folder is, and in the end what was found.
const SUMMARY: &str = "demo.json";
/// Its key by which a folder is known to be this command's work.
const ORIGIN: &str = "qformer_demo";
/// Name of the page.
const PAGE: &str = "index.html";
/// Folders of parts.
const FOLDERS: [&str; 4] = ["pictures", "model", "features", "run"];

/// Watch a Q-Former learn to see, in about three minutes on two cores, with nothing to download
///
/// Draws pictures with captions, encodes them with a small random image encoder that is never trained, trains
/// a small Q-Former as BLIP-2's first stage does (ITC, ITM, ITG), and judges it before and after by pictures
/// whose captions never occurred in training. The folder's index.html shows what was found; its other parts
/// are what every command here reads: a data set, a model's folder, encoded images, a run's folder, whose
/// checkpoint captions and scores any picture.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder to write; it has to be empty or an earlier result of this command
    #[arg(long, short, value_name = "DIR", default_value = "qformer-demo")]
    output: PathBuf,
    /// Of all random numbers: the same seed and number of threads give the same result
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// Steps of training
    #[arg(long, value_name = "N", default_value_t = learn::STEPS, value_parser = value_parser!(u32).range(1..))]
    steps: u32,
    /// Pictures to learn from
    #[arg(long, value_name = "N", default_value_t = 8000, value_parser = value_parser!(u32).range(64..=20_000))]
    pictures: u32,
}

/// Pictures held out: the recall of a guess is 1 %.
const HELD_OUT: usize = 100;

/// Captions that a picture is matched with by hand: its own, and others.
const COMPARED: usize = 3;

/// Something that is to be reached.
struct Goal {
    what: &'static str,
    before: f64,
    after: f64,
    least: f64,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    let begun = Instant::now();
    let (folder, seed) = (&arguments.output, u64::from(arguments.seed));
    check_folder_name(folder)?;
    let origin = json!({ "seed": seed, "steps": arguments.steps, "pictures": arguments.pictures });
    claim(folder, &origin)?;
    let [train, held_out] = ["train", "held-out"].map(|name| Files::new(folder, name));
    let model = folder.join("model");
    let stages = Stages { remarks };

    let scenes = Scenes::new(seed, arguments.pictures as usize, HELD_OUT);
    let what =
        format!("drew {} to learn from, and {HELD_OUT} to hold out", counted(scenes.learnt.len(), "picture"));
    stages.run(&what, || {
        train.draw(&scenes.learnt, seed)?;
        held_out.draw(&scenes.held_out, seed)
    })?;
    stages.run("encoded them with a random image encoder", || {
        model::write(&model, seed)?;
        let (encoder, processor) = (VisionEncoder::load(Cpu::new(), &model)?, ImageProcessor::load(&model)?);
        let progress = Progress::of_images("encoding", scenes.learnt.len(), remarks);
        train.encode(&encoder, &processor, &mut |done, total| progress.set(done, total))?;
        held_out.encode(&encoder, &processor, &mut |_, _| ())
    })?;
    let held_out = HeldOut::new(scenes.held_out, &held_out.features()?, &Tokenizer::load(&model)?)?;
    let before = stages.run("judged the model before it learns", || held_out.judge(&model, remarks))?;
    let what =
        format!("learnt for {} of {} pictures", counted(arguments.steps as usize, "step"), learn::BATCH_SIZE);
    let Learnt { checkpoint, history } = stages.run(&what, || {
        let steps = arguments.steps as usize;
        learn::learn(&model, &folder.join("run"), &train, steps, arguments.seed, remarks)
    })?;
    let after = stages.run("judged it after", || held_out.judge(&checkpoint, remarks))?;

    let goals = goals(&held_out, &before, &after);
    let path = folder.join(PAGE);
    stages.run("drew the page", || {
        let captioner = Captioner::load(Cpu::new(), &checkpoint)?;
        let page = Page {
            folder,
            seed,
            learnt: &scenes.learnt,
            held_out: &held_out,
            after: &after,
            goals: &goals,
            history: &history,
            model: captioner.model(),
            seconds: begun.elapsed().as_secs(),
        };
        let html = page.html()?;
        write_atomically(&path, |file| {
            file.write_all(html.as_bytes()).map_err(|error| Error::io(&path, "write", error))
        })
    })?;
    let results = json!({ "before": before.json(&held_out), "after": after.json(&held_out) });
    let seconds = begun.elapsed().as_secs_f64();
    let summary = json!({ ORIGIN: origin, "results": results, "seconds": seconds });
    write_json(&folder.join(SUMMARY), &summary)?;
    crate::print(&(table(&goals, &path) + &trial(folder, &held_out)))
}

/// What is done one after the other.
struct Stages {
    remarks: Remarks,
}

impl Stages {
    /// Does `work` and tells what was done and how long it took.
    fn run<R>(&self, what: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let begun = Instant::now();
        let result = work()?;
        if let Remarks::Shown = self.remarks {
            crate::say(format_args!("{what:<64}{:>6.1} s", begun.elapsed().as_secs_f64()));
        }
        Ok(result)
    }
}

fn goals(held_out: &HeldOut, before: &Judgement, after: &Judgement) -> [Goal; 4] {
    let goal = |what, least, share: &dyn Fn(&Judgement) -> f64| Goal {
        what,
        before: share(before),
        after: share(after),
        least,
    };
    [
        goal("caption finds its picture among 100", 0.8, &|j| j.retrieval.reranked.text_to_image[0]),
        goal("picture finds its caption among 100", 0.8, &|j| j.retrieval.reranked.image_to_text[0]),
        goal("match told from hard negative", 0.9, &|j| j.retrieval.matching.all),
        goal("generated caption right in every word", 0.7, &|j| j.captions_right(held_out)),
    ]
}

/// The commands that try the model on a picture held out, in a shell where the demo's folder is `folder`; its
/// caption and others are what it is matched with.
fn commands(folder: &Path, held_out: &HeldOut) -> [String; 2] {
    let model = quoted(&folder.join("run/checkpoints/latest"));
    let picture = quoted(&folder.join("pictures/held-out/00000.png"));
    let captions: Vec<String> =
        held_out.scenes.iter().take(COMPARED).map(|scene| format!("\"{}\"", scene.caption())).collect();
    [
        format!("qformer caption --model {model} --images {picture}"),
        format!("qformer score --model {model} --images {picture} --text {}", captions.join(" ")),
    ]
}

/// What to do next, for people.
fn trial(folder: &Path, held_out: &HeldOut) -> String {
    let lines: String = commands(folder, held_out).iter().map(|command| format!("  {command}\n")).collect();
    format!("try the model on a picture that it never saw\n{lines}")
}

/// The results, for people.
fn table(goals: &[Goal], page: &Path) -> String {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let mut text = format!("\n{:<40}{:>8}{:>8}{:>8}\n", "on pictures held out", "before", "after", "goal");
    for Goal { what, before, after, least } in goals {
        let verdict = if after >= least { "reached" } else { "missed" };
        let [before, after, least] = [*before, *after, *least].map(percent);
        writeln!(text, "{what:<40}{before:>8}{after:>8}{least:>8}  {verdict}").expect("a string takes all");
    }
    text + &format!("\nopen {}\n", page.display())
}

/// Makes the folder, or empties it of an earlier result.
fn claim(folder: &Path, origin: &Value) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    let mut entries = folder.read_dir().map_err(|error| Error::io(folder, "list", error))?;
    let summary = folder.join(SUMMARY);
    if entries.next().is_some() && !is_own(&summary) {
        return Err(Error::usage(format!(
            "{} is not empty and was not written by qformer demo; give another --output, or empty it first",
            folder.display()
        )));
    }
    for path in FOLDERS.map(|name| folder.join(name)) {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|error| Error::io(&path, "remove", error))?;
        }
    }
    // Before all else: it marks the folder as this command's.
    write_json(&summary, &json!({ ORIGIN: origin }))
}

/// Whether the file at `path` was written by this command.
fn is_own(path: &Path) -> bool {
    let json = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    json.is_some_and(|json| json.get(ORIGIN).is_some())
}
