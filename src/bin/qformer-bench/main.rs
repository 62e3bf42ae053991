//! Measures the Q-Former's passes and operations at BLIP-2's real size, after checking their answers.

mod cases;
mod generate;
mod given;
mod kernels;
mod machine;
mod measure;
mod measured;
mod passes;
mod peak;
mod random;
mod reference;
#[path = "../qformer/streams.rs"]
mod streams;
#[path = "../qformer/threads.rs"]
mod threads;
mod times;
mod train;
mod work;

use clap::{Parser, ValueEnum};
use generate::Generate;
use given::Peak;
use kernels::Kernels;
use measured::{Limits, Measured};
use passes::Pass;
use qformer::train::Recompute;
use qformer::{Cpu, Cuda, DeviceName, Error, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use streams::{print, say};
use train::Training;
use work::{Measurement, Work};

/// Number of the JSON object's form: raised where a field that was there means something else or is gone.
const SCHEMA: u32 = 1;

/// Measures the Q-Former's passes at BLIP-2's real size (random weights unless --model is given).
///
/// Every pass is first compared with an independent computation in double precision.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to measure; the first four by default.
    #[arg(value_enum)]
    parts: Vec<PartKind>,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// Images, texts and pairs in a batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,
    /// Worker threads; all cores by default.
    #[arg(long, value_parser = threads::parser())]
    threads: Option<u16>,
    /// Seconds spent on each part, and on each operation.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Weights and sizes from this checkpoint folder.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Features and captions that train learns from: a .safetensors file of vision_output, input_ids and
    /// attention_mask; random ones by default.
    #[arg(long)]
    batch: Option<PathBuf>,
    /// Train computes activations again in place of keeping them.
    #[arg(long)]
    grad_checkpointing: bool,
    /// Writes inputs and answers to this .safetensors file, for a peer to be compared with.
    #[arg(long)]
    save_answers: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// Limits that shares are of, measured before: GFLOP/s and GB/s (1500,80), or the file of an earlier --output.
    #[arg(long, value_parser = Peak::parse)]
    peak: Option<Peak>,
    /// Writes that object to this file besides.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PartKind {
    /// Queries read image features.
    Image,
    /// Ragged captions of 9 to 16 tokens, one feature each.
    Text,
    /// One joint pass: queries, text and image together.
    Joint,
    /// Matching scores of every image with every text of the batch.
    Score,
    /// The frozen image encoder.
    Vision,
    /// A whole step of stage 1: three losses, their gradients and the optimiser.
    Train,
    /// Every operation by itself, forward and backward.
    Kernels,
    /// OPT-2.7B and Flan-T5-XL: a prompt, and tokens of 1, 5 and 10 sequences.
    Generate,
}

impl PartKind {
    /// The pass that it is, if it is one.
    fn pass(self) -> Option<Measurement> {
        match self {
            Self::Image => Some(Measurement::Pass(Pass::Image)),
            Self::Text => Some(Measurement::Pass(Pass::Text)),
            Self::Joint => Some(Measurement::Pass(Pass::Joint)),
            Self::Score => Some(Measurement::Pass(Pass::Score)),
            Self::Vision => Some(Measurement::Vision),
            Self::Train | Self::Kernels | Self::Generate => None,
        }
    }
}

/// What was built: the version, and the commit if the build was told.
fn version() -> String {
    let commit = option_env!("QFORMER_COMMIT").map(|commit| format!(" ({commit})"));
    format!("qformer {}{}", env!("CARGO_PKG_VERSION"), commit.unwrap_or_default())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    threads::start(arguments.threads)?;
    match arguments.device {
        DeviceName::Cpu => arguments.measure(Cpu::new()),
        DeviceName::Cuda(number) => arguments.measure(Cuda::open(number)?),
        DeviceName::Auto if !Cuda::has_driver() => arguments.measure(Cpu::new()),
        DeviceName::Auto => match Cuda::open(0) {
            Ok(device) => arguments.measure(device),
            Err(why) => {
                say(format_args!("note: computing on the CPU, since {why}"));
                arguments.measure(Cpu::new())
            }
        },
    }
}

impl Arguments {
    /// A line for people.
    fn tell(&self, line: &str) -> Result<()> {
        if self.json { Ok(()) } else { print(&format!("{line}\n")) }
    }

    fn measure<B: Measured>(&self, device: B) -> Result<()> {
        let default = [PartKind::Image, PartKind::Text, PartKind::Joint, PartKind::Score];
        let given = if self.parts.is_empty() { &default[..] } else { &self.parts[..] };
        let passes: Vec<_> = given.iter().filter_map(|kind| kind.pass()).collect();
        let description = device.description()?;
        self.tell(&format!("{} on {description}", version()))?;
        let (limits, origin) = match &self.peak {
            Some(peak) => peak.limits(device.cache_bytes()?)?,
            None => device.limits(self.seconds).map(|(limits, origin)| (limits, origin.to_owned()))?,
        };
        self.tell(&format!(
            "limits: {:.0} GFLOP/s, {:.0} GB/s ({origin})",
            limits.flops / 1e9,
            limits.bytes_per_second / 1e9
        ))?;
        let mut report = json!({
            "schema": SCHEMA, "version": version(), "machine": machine::description(), "device": description, "threads": rayon::current_num_threads(),
            "batch_size": self.batch_size,
            "limits": {
                "gflop_per_second": limits.flops / 1e9, "gbyte_per_second": limits.bytes_per_second / 1e9,
                "origin": origin,
            },
        });
        if !passes.is_empty() {
            let (checks, results) = self.measure_passes(&device, &passes, limits)?;
            report["relative_errors"] = checks.into();
            report["tolerance"] = B::TOLERANCE.into();
            report["results"] = results.into();
        }
        if given.contains(&PartKind::Train) {
            let training = Training {
                device: device.clone(),
                model: self.model.as_deref(),
                batch: self.batch.as_deref(),
                batch_size: self.batch_size.into(),
                recompute: if self.grad_checkpointing { Recompute::Blocks } else { Recompute::None },
                seconds: self.seconds,
                limits,
                tell: &|line| self.tell(line),
            };
            report["train"] = training.run()?;
        }
        if given.contains(&PartKind::Kernels) {
            let kernels = Kernels {
                device: &device,
                limits,
                seconds: self.seconds,
                tell: &|line| self.tell(line),
                results: Vec::new(),
            };
            let config = work::config(self.model.as_deref())?;
            report["kernels"] = kernels.run(&config, self.batch_size.into())?.into();
        }
        if given.contains(&PartKind::Generate) {
            let generate =
                Generate { device: device.clone(), seconds: self.seconds, tell: &|line| self.tell(line) };
            report["generate"] = generate.run()?.into();
        }
        if self.json {
            print(&format!("{report:#}\n"))?;
        }
        if let Some(path) = &self.output {
            std::fs::write(path, format!("{report:#}\n")).map_err(|error| Error::io(path, "write", error))?;
        }
        Ok(())
    }

    /// Errors by answer, and results by pass.
    fn measure_passes<B: Measured>(
        &self,
        device: &B,
        passes: &[Measurement],
        limits: Limits,
    ) -> Result<(Map<String, Value>, Vec<Value>)> {
        say("preparing the weights …");
        let work = Work::prepare(device, self.model.as_deref(), self.batch_size.into(), passes)?;
        say("checking the answers …");
        let mut errors = Map::new();
        for check in work.check()? {
            self.tell(&format!("{:<28} differs by {:.1e} from double precision", check.name, check.error))?;
            errors.insert(check.name.to_owned(), check.error.into());
        }
        self.tell(&format!(
            "\n{:<10} {:>6} {:>10} {:>16} {:>16} {:>9} {:>8}",
            "part", "batch", "median ms", "min–max ms", "per second", "GFLOP/s", "of peak"
        ))?;
        let mut results = Vec::new();
        for &pass in passes {
            let part = work.part(pass);
            let times = times::repeat(self.seconds, || work.run(pass))?;
            let (median, flops) = (times.median(), part.flops / times.median());
            self.tell(&format!(
                "{:<10} {:>6} {:>10.2} {:>16} {:>16} {:>9.0} {:>7.0}%",
                part.name,
                part.items,
                median * 1e3,
                format!("{:.2}–{:.2}", times.minimum() * 1e3, times.maximum() * 1e3),
                format!("{:.1} {}", part.items as f64 / median, part.unit),
                flops / 1e9,
                100.0 * flops / limits.flops
            ))?;
            results.push(json!({
                "part": part.name, "items": part.items, "unit": part.unit, "runs": times.count(),
                "median_s": median, "min_s": times.minimum(), "max_s": times.maximum(),
                "per_second": part.items as f64 / median, "gflop_per_second": flops / 1e9,
                "share_of_peak": flops / limits.flops,
            }));
        }
        if let Some(path) = &self.save_answers {
            work.save_answers(path)?;
        }
        Ok((errors, results))
    }
}
