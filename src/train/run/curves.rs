//! A run's curves as a picture: which panels are drawn of what was measured.

mod chart;
mod label;

use super::measures::{self, Colour, Measure};
use super::metrics::Record;
use crate::output::grouped;
use chart::{Chart, Line, Noise, Panel, Scale};
use label::{percent, plain, scientific};

/// The picture of a run called `title`, `steps` long, that has come as far as `history` tells; `measures` are
/// those of its objective.
pub fn svg(title: &str, steps: usize, measures: &'static [Measure], history: &[Record]) -> String {
    let done = history.last().map_or(0, |record| record.step);
    let at: Vec<usize> = history.iter().map(|record| record.step).collect();
    let chart = Chart {
        description: &format!("Training curves of {title}"),
        title,
        subtitle: &format!("step {} of {}", grouped(done), grouped(steps)),
        steps: &at,
        panels: panels(measures, history),
    };
    chart.svg()
}

fn panels(measures: &'static [Measure], history: &[Record]) -> Vec<Panel> {
    let line = |name, colour, value: fn(&Record) -> f64| Line {
        name,
        colour,
        values: history.iter().map(value).collect(),
    };
    let measured = |panel| -> Vec<Line> {
        let curves = measures.iter().filter_map(|measure| Some((measure.name, measure.curve.as_ref()?)));
        let value = |name, record: &Record| record.measured.get(name).unwrap_or(f64::NAN);
        curves
            .filter(|(_, curve)| curve.panel == panel)
            .map(|(name, curve)| Line {
                name: curve.label,
                colour: curve.colour,
                values: history.iter().map(|record| value(name, record)).collect(),
            })
            .collect()
    };
    let mut losses = measured(measures::Panel::Loss);
    // Beside its parts the whole is named.
    let name = if losses.is_empty() { "" } else { "all" };
    losses.insert(0, line(name, Colour::Ink, |record| record.loss));
    let mut panels =
        vec![Panel { title: "Loss", lines: losses, noise: Noise::Noisy, scale: Scale::Linear, label: plain }];
    let shares = measured(measures::Panel::Accuracy);
    if !shares.is_empty() {
        panels.push(Panel {
            title: "Accuracy within the batch",
            lines: shares,
            noise: Noise::Noisy,
            scale: Scale::Share,
            label: percent,
        });
    }
    panels.push(Panel {
        title: "Learning rate",
        lines: vec![line("", Colour::Violet, |record| record.lr)],
        noise: Noise::Exact,
        scale: Scale::Linear,
        label: scientific,
    });
    panels.push(Panel {
        title: "Gradient norm",
        lines: vec![line("", Colour::Violet, |record| record.grad_norm)],
        noise: Noise::Noisy,
        scale: Scale::Logarithmic,
        label: plain,
    });
    panels
}
