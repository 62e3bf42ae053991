//! Limits that were measured before, so that shares of two runs are shares of the same.

use crate::measured::Limits;
use qformer::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest report read, in bytes.
const REPORT_BYTES: u64 = 16 << 20;

/// Where limits are given.
#[derive(Clone)]
pub(crate) enum Peak {
    /// GFLOP/s and GB/s.
    Values([f64; 2]),
    /// An earlier report.
    Report(PathBuf),
}

impl Peak {
    /// From an argument: `1500,80` or a file.
    pub(crate) fn parse(argument: &str) -> std::result::Result<Self, String> {
        let Some((flops, bytes)) = argument.split_once(',') else {
            return Ok(Self::Report(argument.into()));
        };
        match [flops, bytes].map(|value| value.trim().parse::<f64>().ok().filter(is_limit)) {
            [Some(flops), Some(bytes)] => Ok(Self::Values([flops, bytes])),
            _ if Path::new(argument).exists() => Ok(Self::Report(argument.into())),
            _ => {
                Err("give GFLOP/s and GB/s, both above 0, as in 1500,80, or the file of an earlier --output"
                    .into())
            }
        }
    }

    /// The limits of a device whose largest cache has `cache_bytes`, and where they are from.
    pub(crate) fn limits(&self, cache_bytes: Option<usize>) -> Result<(Limits, String)> {
        let ([gflops, gbytes], origin) = match self {
            Self::Values(values) => (*values, "given".to_owned()),
            Self::Report(file) => (read(file)?, format!("of {}", file.display())),
        };
        Ok((Limits { flops: gflops * 1e9, bytes_per_second: gbytes * 1e9, cache_bytes }, origin))
    }
}

fn is_limit(value: &f64) -> bool {
    value.is_finite() && *value > 0.0
}

/// GFLOP/s and GB/s of a report.
fn read(file: &Path) -> Result<[f64; 2]> {
    let failed = |error| Error::io(file, "read", error);
    if std::fs::metadata(file).map_err(failed)?.len() > REPORT_BYTES {
        return Err(Error::input(
            file,
            format!("longer than {REPORT_BYTES} bytes, so no report of qformer-bench"),
        ));
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let report: Value =
        serde_json::from_str(&text).map_err(|error| Error::input(file, format!("bad JSON: {error}")))?;
    let limit = |name: &str| {
        report["limits"][name].as_f64().filter(is_limit).ok_or_else(|| {
            let what =
                format!("has no number limits.{name} above 0; give a file that qformer-bench --output wrote");
            Error::input(file, what)
        })
    };
    Ok([limit("gflop_per_second")?, limit("gbyte_per_second")?])
}
