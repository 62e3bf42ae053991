//! The report for people.

use super::component::Component;
use super::{PartReport, Report, Use};
use qformer::Config;
use qformer::config::VisionConfig;
use qformer::output::{counted, grouped, printable};
use std::fmt::{self, Write};

/// `report` as lines of text.
pub(super) fn report(report: &Report, config: Option<&Config>) -> String {
    let mut text = String::new();
    write(&mut text, report, config).expect("written to memory");
    text
}

fn write(to: &mut String, report: &Report, config: Option<&Config>) -> fmt::Result {
    let dtypes: Vec<String> =
        report.dtypes.iter().map(|(dtype, tensors)| format!("{dtype} ({tensors})")).collect();
    let files = counted(report.files, "file");
    writeln!(to, "{}", printable(&report.path))?;
    writeln!(
        to,
        "  in {files}, {}",
        report.naming.map_or("no Q-Former".into(), |n| format!("names of {n}"))
    )?;
    writeln!(to, "  types: {}", dtypes.join(", "))?;
    match config {
        Some(config) => write_config(to, config, &report.components)?,
        None => writeln!(to, "  a file by itself: its folder's config.json is not read")?,
    }

    writeln!(to, "\n{:<26}{:>8}{:>16}{:>12}", "part", "tensors", "parameters", "size")?;
    let total = PartReport {
        part: "total",
        tensors: report.tensors,
        parameters: report.parameters,
        bytes: report.bytes,
    };
    for PartReport { part, tensors, parameters, bytes } in report.parts.iter().chain([&total]) {
        let (parameters, size) = (grouped(*parameters), size(*bytes));
        writeln!(to, "{part:<26}{tensors:>8}{parameters:>16}{size:>12}")?;
    }

    writeln!(to, "\nIt can be used to")?;
    for Use { name, obstacle } in &report.uses {
        match obstacle {
            None => writeln!(to, "  yes  {name}")?,
            Some(obstacle) => writeln!(to, "  no   {name}: {obstacle}")?,
        }
    }
    if let Some(faults) = &report.faults {
        writeln!(to, "\n{}", if faults.is_empty() { "All tensors fit config.json." } else { "Faults" })?;
        faults.iter().try_for_each(|fault| writeln!(to, "  {fault}"))?;
    }
    if let Some(not_finite) = &report.not_finite {
        writeln!(to, "\n{}", if not_finite.is_empty() { "All values are finite." } else { "Not finite" })?;
        for (name, count) in not_finite {
            writeln!(
                to,
                "  tensor \"{}\": {} infinite or not a number",
                printable(name),
                counted(*count, "value")
            )?;
        }
    }
    Ok(())
}

fn write_config(to: &mut String, config: &Config, components: &[Component]) -> fmt::Result {
    let (vision, qformer) = (&config.vision, &config.qformer);
    match vision {
        VisionConfig::Eva(vit) | VisionConfig::Clip(vit) => {
            let (side, patch) = (vit.image_size, vit.patch_size);
            write!(to, "  images: {side}x{side} pixels in patches of {patch}, ")?;
        }
        VisionConfig::Features(_) => write!(to, "  features of images: ")?,
    }
    writeln!(to, "{} of width {}", counted(vision.image_tokens(), "token"), vision.width())?;
    for Component { name, what, obstacle } in components {
        match obstacle {
            None => writeln!(to, "  {name}: {what}")?,
            Some(obstacle) => writeln!(to, "  {name}: {what}; {obstacle}")?,
        }
    }
    match qformer.use_qformer_text_input {
        true => writeln!(
            to,
            "  texts: up to {} tokens of {}, compared with images in {} dimensions",
            qformer.max_position_embeddings, qformer.vocab_size, config.image_text_hidden_size
        ),
        false => writeln!(to, "  texts: not read by the Q-Former"),
    }
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.1} kB", bytes / 1e3),
    }
}
