//! The demo's training run.

use super::data_set::Files;
use super::model;
use crate::Remarks;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qformer::data::Augmentation;
use qformer::generate::Decoding;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::train::{
    Companions, Hardness, Record, Report, Run, Settings, Stage1, Stage1Settings, Trainer, TrainingStart,
};
use qformer::{Config, Cpu, ImageProcessor, Result, Tokenizer};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Steps that take two to three minutes on two cores.
pub(super) const STEPS: u32 = 1200;
/// Examples in a step.
pub(super) const BATCH_SIZE: usize = 32;
/// Lines told of a run where there is no terminal to show it in.
const LINES: usize = 10;

/// What came of training.
pub(super) struct Learnt {
    /// The checkpoint's folder.
    pub(super) checkpoint: PathBuf,
    pub(super) history: Vec<Record>,
}

fn settings(steps: usize, seed: u32) -> Settings<Stage1Settings> {
    Settings {
        lr: 3e-3,
        lr_min: 3e-5,
        warmup: 40.min(steps),
        grad_clip_norm: Some(1.0),
        augment: Augmentation::None,
        text_length: model::LONGEST,
        seed,
        save_frequency: steps,
        keep: 1,
        objective: Stage1Settings {
            // No example is met often enough to be learnt by heart.
            dropout: 0.0,
            // Retrieval comes by itself; matches take longer to tell, and words longest.
            loss_weights: [1.0, 2.0, 6.0],
            // Few of the drawn negatives of a batch differ in one attribute alone, which is what is to be told.
            negatives: Hardness::Hardest,
            // A picture's gradient by both directions: twice as much is learnt from as few examples.
            itc_gradient: ContrastiveGradient::Full,
            ..Stage1Settings::default()
        },
        ..Settings::stage1(steps, BATCH_SIZE)
    }
}

/// Trains the model in the folder `begun` in the run's folder `folder`.
pub(super) fn learn(
    begun: &Path,
    folder: &Path,
    data: &Files,
    steps: usize,
    seed: u32,
    remarks: Remarks,
) -> Result<Learnt> {
    let (config, processor) = (Config::load(begun)?, ImageProcessor::load(begun)?);
    let open = Checkpoint::open(begun)?;
    let source = NamedCheckpoint::new(&open)?;
    let decoding = Decoding::load_for_captions(begun, config.qformer.max_position_embeddings)?;
    let model = TrainingStart {
        companions: Companions::gather(&config, Some(&processor), Some(begun), Some(&decoding))?,
        tokenizer: Tokenizer::load(begun)?,
        config,
        processor: Some(processor),
        source: &source,
        // So that the checkpoint reads pictures too.
        has_encoder: true,
    };
    let settings = settings(steps, seed);
    let table = settings.to_table()?;
    let table = toml::Table::from_iter([
        ("device".to_owned(), toml::Value::from("cpu")),
        ("train".to_owned(), toml::Value::Table(table)),
    ]);
    let run = Run::create(folder, &table)?;
    let mut trainer =
        Trainer::<Stage1<_>>::new(Cpu::<f32>::new(), settings, model, Arc::new(data.features()?), run)?;
    let line = LiveLine::new(steps, remarks);
    trainer.run(&AtomicBool::new(false), &mut |report| line.tell(report))?;
    let checkpoint = trainer.saved().expect("a run ends with a checkpoint").to_owned();
    Ok(Learnt { checkpoint, history: trainer.history().to_vec() })
}

/// How training goes, in one line that changes; where there is no terminal, in a few lines.
struct LiveLine {
    bar: ProgressBar,
    every: usize,
    remarks: Remarks,
}

impl LiveLine {
    fn new(steps: usize, remarks: Remarks) -> Self {
        let style = ProgressStyle::with_template("  {bar:24} {msg}").expect("the template above");
        let target = match remarks {
            Remarks::Shown => ProgressDrawTarget::stderr(),
            Remarks::Quiet => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target).with_style(style);
        Self { bar, every: steps.div_ceil(LINES), remarks }
    }

    fn tell(&self, report: &Report) {
        let record = &report.record;
        let left = report.left.as_secs();
        let measured = |name| record.measured.get(name).unwrap_or(f64::NAN);
        let text = format!(
            "step {:>4}/{}  itc {:.2}  itm {:.2}  itg {:.2}  recall@1 {:>3.0} %  {}:{:02} left",
            record.step,
            report.steps,
            measured("loss_itc"),
            measured("loss_itm"),
            measured("loss_lm"),
            100.0 * measured("itc_recall1"),
            left / 60,
            left % 60,
        );
        if std::io::stderr().is_terminal() {
            self.bar.set_position(record.step as u64);
            self.bar.set_message(text);
        } else if let (Remarks::Shown, true) = (self.remarks, record.step.is_multiple_of(self.every)) {
            crate::say(format_args!("  {text}"));
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
