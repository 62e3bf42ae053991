//! Measures the Q-Former's passes at BLIP-2's real size, after checking their answers.

mod measure;
mod reference;
mod work;

use clap::{Parser, ValueEnum};
use qformer::{Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use work::Work;

/// Measures the Q-Former's passes at BLIP-2's real size (random weights unless --model is given).
///
/// Every pass is first compared with an independent computation in double precision.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to measure; all but the image encoder by default.
    #[arg(value_enum)]
    parts: Vec<PartKind>,
    /// Images, texts and pairs in a batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,
    /// Worker threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Seconds spent on each part.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Weights and sizes from this checkpoint folder.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Writes inputs and answers to this .safetensors file, for a peer to be compared with.
    #[arg(long)]
    save_answers: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut threads = rayon::ThreadPoolBuilder::new();
    if let Some(count) = arguments.threads {
        threads = threads.num_threads(count);
    }
    threads.build_global().map_err(|e| Error::usage(format!("--threads: {e}")))?;
    let parts = match &arguments.parts[..] {
        [] => &[PartKind::Image, PartKind::Text, PartKind::Joint, PartKind::Score],
        given => given,
    };
    let say = |line: &str| {
        if !arguments.json {
            println!("{line}");
        }
    };
    eprintln!("preparing the weights …");
    let work = Work::prepare(arguments.model.as_deref(), arguments.batch_size.into(), parts)?;
    eprintln!("checking the answers …");
    let checks = work.check()?;
    for check in &checks {
        say(&format!("{:<28} differs by {:.1e} from double precision", check.name, check.error));
    }
    let peak = measure::gemm_peak(arguments.seconds);
    say(&format!(
        "\n{} threads; peak: {peak:.0} GFLOP/s in the gemm crate's f32 products (2048³); AMX can pass it\n\n{:<10} {:>6} {:>10} {:>16} {:>12} {:>9} {:>8}",
        rayon::current_num_threads(),
        "part",
        "batch",
        "median ms",
        "min–max ms",
        "per second",
        "GFLOP/s",
        "of peak"
    ));
    let mut results = Vec::new();
    for &kind in parts {
        let part = work.part(kind);
        let times = measure::repeat(arguments.seconds, || work.run(kind))?;
        let (median, gflops) = (times.median(), part.flops / times.median() / 1e9);
        say(&format!(
            "{:<10} {:>6} {:>10.2} {:>16} {:>12} {:>9.0} {:>7.0}%",
            part.name,
            part.items,
            median * 1e3,
            format!("{:.2}–{:.2}", times.minimum() * 1e3, times.maximum() * 1e3),
            format!("{:.1} {}", part.items as f64 / median, part.unit),
            gflops,
            100.0 * gflops / peak
        ));
        results.push(json!({
            "part": part.name, "items": part.items, "unit": part.unit, "runs": times.count(),
            "median_s": median, "min_s": times.minimum(), "max_s": times.maximum(),
            "per_second": part.items as f64 / median, "gflop_per_second": gflops, "share_of_peak": gflops / peak,
        }));
    }
    if let Some(path) = &arguments.save_answers {
        work.save_answers(path)?;
    }
    if arguments.json {
        let checks: serde_json::Map<_, _> =
            checks.into_iter().map(|c| (c.name.to_owned(), json!(c.error))).collect();
        println!(
            "{:#}",
            json!({
                "threads": rayon::current_num_threads(), "batch_size": arguments.batch_size,
                "gemm_peak_gflop_per_second": peak, "relative_errors": checks, "results": results,
            })
        );
    }
    Ok(())
}
