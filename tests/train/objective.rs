//! A run of another objective than the crate's own: which knows nothing of images' texts, and has measures of its own.

use crate::common::*;
use qformer::data::{Dataset, Source};
use qformer::device::Device;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor};
use qformer::params::{Part, Spec, TensorSource, Tree};
use qformer::train::{
    CardFacts, Colour, Companions, Curve, Ending, Measure, Measured, Objective, Panel, ParamSlot, Run,
    Settings, StepLoss, StepSize, TrainedWeights, Trainer, TrainingStart,
};
use qformer::{Config, Cpu, Error, HostTensor, ImageProcessor, PlacedTensor, Result, Tokenizer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Name of the only tensor.
const CENTRE: &str = "centre";

/// Learns the mean of the images' features [W]; the loss is the mean square of what is left.
struct Centre {
    device: Cpu<f32>,
    weights: TrainedWeights<Cpu<f32>, Leaf<ParamSlot>>,
    radius: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CentreSettings {
    /// Images count as near within this distance.
    radius: f64,
}

struct Leaf<T>(T);

impl<T> Tree<T> for Leaf<T> {
    type With<U> = Leaf<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Leaf<U> {
        Leaf(leaf(&self.0))
    }
}

impl Objective for Centre {
    type Device = Cpu<f32>;
    type Settings = CentreSettings;
    type Batch = HostTensor;
    type Parameters = Leaf<ParamSlot>;

    const MEASURES: &'static [Measure] = &[
        Measure {
            name: "distance",
            short: Some("far"),
            curve: Some(Curve { label: "distance", panel: Panel::Loss, colour: Colour::Green }),
        },
        Measure {
            name: "near",
            short: None,
            curve: Some(Curve { label: "within the radius", panel: Panel::Accuracy, colour: Colour::Blue }),
        },
    ];

    fn open(
        device: Cpu<f32>,
        settings: &Settings<CentreSettings>,
        start: &TrainingStart<'_>,
    ) -> Result<Self> {
        let width = start.config.vision.width();
        let spec = Leaf(Spec::vector([(CENTRE.to_owned(), width)]));
        let weights = TrainedWeights::load(&device, &spec, start.source)?;
        Ok(Self { device, weights, radius: settings.objective.radius })
    }

    fn reserve(&mut self, size: StepSize) -> Result<()> {
        assert_eq!((size.images, size.batches, size.image_tokens), (4, 2, TOKENS));
        Ok(())
    }

    fn batch(
        &self,
        vision_output: PlacedTensor<Cpu<f32>>,
        texts: Vec<Vec<u32>>,
        image_ids: Vec<u32>,
    ) -> Result<HostTensor> {
        assert_eq!((texts.len(), image_ids.len()), (4, 4));
        vision_output.to_host(&self.device)
    }

    fn batch_tensors<'b>(&self, batches: &'b [HostTensor]) -> Result<Vec<NewTensor<'b>>> {
        let named = ["first", "second"].into_iter().zip(batches);
        Ok(named
            .map(|(name, batch)| NewTensor::from_slice(name, Dtype::F32, batch.shape(), batch.values()))
            .collect())
    }

    fn differentiate(&mut self, batches: &[HostTensor], _: usize) -> Result<StepLoss> {
        let centre = self.device.read(self.weights.parameters().0)?;
        let images: Vec<&[f32]> =
            batches.iter().flat_map(|batch| batch.values().chunks(TOKENS * WIDTH)).collect();
        let (mut gradient, mut loss, mut near) = (vec![0.0; WIDTH], 0.0, 0);
        for image in &images {
            let mut square = 0.0;
            for (column, of_column) in gradient.iter_mut().enumerate() {
                let mean = image.iter().skip(column).step_by(WIDTH).sum::<f32>() / TOKENS as f32;
                let left = centre[column] - mean;
                *of_column += 2.0 * left / (WIDTH * images.len()) as f32;
                square += f64::from(left * left) / WIDTH as f64;
            }
            loss += square / images.len() as f64;
            near += usize::from(square.sqrt() < self.radius);
        }
        self.device.write(&gradient, 0, self.weights.training().gradients.0)?;
        let values = vec![loss.sqrt(), near as f64 / images.len() as f64];
        Ok(StepLoss { loss, measured: Measured::new(Self::MEASURES, values) })
    }

    fn weights(&self) -> &TrainedWeights<Cpu<f32>, Leaf<ParamSlot>> {
        &self.weights
    }

    fn weights_mut(&mut self) -> &mut TrainedWeights<Cpu<f32>, Leaf<ParamSlot>> {
        &mut self.weights
    }

    fn memory(&self) -> Vec<(&'static str, usize)> {
        vec![("the centre", WIDTH * size_of::<f32>())]
    }

    fn extra_file(&self) -> Option<(&'static str, BTreeSet<String>)> {
        None
    }

    fn card(facts: &CardFacts<'_, CentreSettings>) -> String {
        let near = facts.last.and_then(|last| last.measured.get("near")).unwrap();
        format!("# A centre after step {}: {near} are near\n", facts.step)
    }
}

/// A centre far from all images.
struct Far;

impl TensorSource for Far {
    fn check(&self, _: &[&Part]) -> Result<()> {
        Ok(())
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        sink(0, &vec![1.0; part.len()]);
        Ok(0)
    }
}

/// The centre of a checkpoint.
struct Kept(Checkpoint);

impl TensorSource for Kept {
    fn check(&self, _: &[&Part]) -> Result<()> {
        Ok(())
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        self.0.read_f32(&part.name, sink)
    }
}

fn settings() -> Settings<CentreSettings> {
    let settings = Settings::new(6, 4, 0, CentreSettings { radius: 0.5 });
    Settings { lr: 0.2, accum_freq: 2, save_frequency: 2, keep: 9, ..settings }
}

/// The steps of the run in the folder `output` that are left, but none after step `last`.
fn train(place: &Workplace, output: &str, last: usize) -> Result<Ending> {
    let folder = place.path(output);
    let run = if Run::exists(&folder) {
        Run::reopen(&folder, &mut |warning| panic!("{warning}"))?
    } else {
        let table = toml::Table::from_iter([("train".to_owned(), settings().to_table()?.into())]);
        Run::create(&folder, &table)?
    };
    let toml::Value::Table(stored) = Run::config(&folder)?["train"].clone() else { panic!("a table") };
    let settings = Settings::from_table(stored)?;
    let kept = run.saved().map(|saved| Checkpoint::open(&saved.folder.join("model.safetensors")));
    let source: Box<dyn TensorSource> = match kept.transpose()? {
        Some(checkpoint) => Box::new(Kept(checkpoint)),
        None => Box::new(Far),
    };
    let words = place.path("words");
    fs::create_dir_all(&words).unwrap();
    Tokenizer::write_tiny(&words)?;
    let config = Config::tiny();
    let processor = ImageProcessor::blip2(config.vision.image_size().unwrap());
    let start = TrainingStart {
        companions: Companions::gather(&config, Some(&processor), None, None)?,
        tokenizer: Tokenizer::load(&words)?,
        config,
        processor: Some(processor),
        source: &*source,
        has_encoder: false,
    };
    let data = Source::Features {
        features: vec![place.path("features.safetensors")],
        captions: place.path("captions.jsonl"),
    };
    let dataset = Arc::new(Dataset::open(&data)?);
    let mut trainer = Trainer::<Centre>::new(Cpu::new(), settings, start, dataset, run)?;
    assert_eq!(trainer.memory(), [("the centre", 4 * WIDTH)]);
    let stop = AtomicBool::new(false);
    trainer.run(&stop, &mut |report| stop.store(report.record.step >= last, Ordering::Relaxed))
}

#[test]
fn a_run_trains_whatever_objective_it_is_given() {
    let place = Workplace::new();
    assert_eq!(train(&place, "whole", 6).unwrap(), Ending::Done);
    for last in [3, 4, 6] {
        let ending = train(&place, "parts", last).unwrap();
        assert_eq!(ending, if last == 6 { Ending::Done } else { Ending::Stopped });
    }
    let (whole, parts) = (place.result("whole", 6), place.result("parts", 6));
    assert!(whole == parts, "{:?} beside {:?}", whole.1, parts.1);
    let (files, steps) = whole;
    let names: Vec<&str> = files.iter().map(|(name, _)| &**name).collect();
    let expected = [
        "README.md",
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "trainer_state.json",
    ];
    assert_eq!(names, expected);
    let card = String::from_utf8(files[0].1.clone()).unwrap();
    assert_eq!(card, format!("# A centre after step 6: {} are near\n", steps[5]["near"].as_f64().unwrap()));
    let [first, last] = [0, 5].map(|step: usize| steps[step]["distance"].as_f64().unwrap());
    assert!(last < 0.8 * first, "{first}, then {last}");
}

#[test]
fn what_an_objective_measures_is_in_the_metrics_and_the_curves() {
    let place = Workplace::new();
    train(&place, "run", 6).unwrap();
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let line = metrics.lines().find(|line| line.contains("\"train_step\"")).unwrap();
    let names = ["step", "loss", "distance", "near", "grad_norm", "lr", "samples_per_second"];
    let places = names.map(|name| line.find(&format!("\"{name}\":")).unwrap());
    assert!(places.is_sorted(), "{line}");
    let svg = fs::read_to_string(place.path("run/curves.svg")).unwrap();
    for drawn in ["all ", "distance ", "within the radius ", "Accuracy within the batch", "Gradient norm"] {
        assert!(svg.contains(&format!(">{drawn}")), "{drawn:?} is not in {svg}");
    }
    assert_eq!(svg.matches("<clipPath").count(), 4);
    assert!(!svg.contains("ITC"));
}

#[test]
fn settings_are_read_as_they_are_written_and_unknown_ones_refused() {
    let table = settings().to_table().unwrap();
    assert_eq!(table["radius"].as_float(), Some(0.5));
    assert_eq!(Settings::from_table(table.clone()).unwrap(), settings());
    let told = |table| -> Error { Settings::<CentreSettings>::from_table(table).unwrap_err() };
    let mut more = table.clone();
    more.insert("dropout".to_owned(), 0.1.into());
    assert_eq!(told(more).to_string(), "unknown setting `dropout`");
    for name in ["radius", "steps"] {
        let mut less = table.clone();
        less.remove(name).unwrap();
        let error = told(less).to_string();
        assert!(error.contains(&format!("missing field `{name}`")), "{error}");
    }
}
