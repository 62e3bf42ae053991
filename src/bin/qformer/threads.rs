//! The threads that compute.

use clap::builder::RangedI64ValueParser;
use clap::value_parser;
use qformer::{Error, Result};
use std::env;
use std::ops::RangeInclusive;

/// How many threads there may be.
const COUNTS: RangeInclusive<u16> = 1..=1024;

/// Variables that tell how many threads to start, the first that is set.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// What `--threads` takes.
pub(crate) fn parser() -> RangedI64ValueParser<u16> {
    value_parser!(u16).range(i64::from(*COUNTS.start())..=i64::from(*COUNTS.end()))
}

/// Starts as many threads as are asked for, by the flag or else by a variable; all cores by default.
pub(crate) fn start(asked: Option<u16>) -> Result<()> {
    let threads = match asked {
        Some(threads) => threads,
        // Rayon's name for all cores.
        None => of_environment()?.unwrap_or(0),
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.into())
        .build_global()
        .map_err(|error| Error::device(format!("cannot start {threads} threads: {error}")))
}

fn of_environment() -> Result<Option<u16>> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    let Some((name, value)) = VARIABLES.into_iter().find_map(set) else { return Ok(None) };
    // OpenMP's may be a list, of which the first is for what is not nested.
    let first = value.to_str().and_then(|list| list.split(',').next());
    let threads =
        first.and_then(|first| first.trim().parse().ok()).filter(|threads| COUNTS.contains(threads));
    threads.map(Some).ok_or_else(|| {
        let (least, most) = (COUNTS.start(), COUNTS.end());
        Error::usage(format!(
            "{name} is {value:?}; it has to be a number of threads from {least} to {most}; set it so, or unset it"
        ))
    })
}
