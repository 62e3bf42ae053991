//! Small multiples in SVG over steps, by themselves legible on light and dark pages.

use crate::output::grouped;
use crate::train::run::measures::Colour;
use std::fmt::Write;

/// Of the picture, in pixels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 664.0;
/// Of a panel's plot.
const PLOT: (f64, f64) = (388.0, 190.0);
/// Left edges of the columns' plots, and upper edges of the rows'.
const LEFT: [f64; 2] = [64.0, 540.0];
const TOP: [f64; 2] = [134.0, 424.0];
/// Points of a line at most: two a pixel tell all that can be seen.
const POINTS: usize = 776;
/// The smoothed lines look this share of the run to both sides.
const SMOOTHING: f64 = 1.0 / 60.0;
/// From this ratio of the largest to the least on, a panel is logarithmic.
const DECADES: f64 = 40.0;

const STYLE: &str = "\
    .qf-paper{fill:#ffffff;stroke:#d8dee4}.qf-ink{fill:#1f2328}.qf-line{stroke:#1f2328}\
    .qf-soft{fill:#59636e}.qf-grid{stroke:#d8dee4}\
    @media (prefers-color-scheme:dark){.qf-paper{fill:#0d1117;stroke:#30363d}.qf-ink{fill:#f0f6fc}\
    .qf-line{stroke:#f0f6fc}.qf-soft{fill:#9198a1}.qf-grid{stroke:#30363d}}";

/// A picture of up to four panels over the same steps.
pub(super) struct Chart<'a> {
    /// What the picture is, for who does not see it.
    pub(super) description: &'a str,
    pub(super) title: &'a str,
    pub(super) subtitle: &'a str,
    /// Where the lines have their values.
    pub(super) steps: &'a [usize],
    pub(super) panels: Vec<Panel>,
}

/// A line of a panel.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) colour: Colour,
    /// At each of the chart's steps.
    pub(super) values: Vec<f64>,
}

/// Lines over one vertical axis.
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) lines: Vec<Line>,
    /// Whether lines are smoothed.
    pub(super) noise: Noise,
    pub(super) scale: Scale,
    /// A value as text.
    pub(super) label: fn(f64) -> String,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Noise {
    /// The line is drawn pale, and smoothed over it.
    Noisy,
    /// The line is as it is.
    Exact,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// From 0 to 1.
    Share,
    /// By factors, where the values ask for it.
    Logarithmic,
}

/// A panel's vertical axis.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    ticks: Vec<f64>,
}

impl Chart<'_> {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let mut svg = String::new();
        let [description, title, subtitle] = [self.description, self.title, self.subtitle].map(escaped);
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', \
             Roboto, Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
             <title>{description}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"qf-paper\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"10\"/>\n\
             <text class=\"qf-ink\" x=\"24\" y=\"42\" font-size=\"20\" font-weight=\"600\">{title}</text>\n\
             <text class=\"qf-soft\" x=\"24\" y=\"64\" font-size=\"13\">{subtitle}</text>",
            WIDTH - 1.0,
            HEIGHT - 1.0,
        );
        for (index, panel) in self.panels.iter().enumerate() {
            panel.draw(&mut svg, index, self.steps);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl Panel {
    fn draw(&self, svg: &mut String, index: usize, steps: &[usize]) {
        let (left, top) = (LEFT[index % 2], TOP[index / 2]);
        let (width, height) = PLOT;
        let drawn: Vec<Vec<f64>> = self
            .lines
            .iter()
            .map(|line| match self.noise {
                Noise::Noisy => smoothed(&line.values),
                Noise::Exact => line.values.clone(),
            })
            .collect();
        let raw = self.lines.iter().map(|line| &line.values[..]);
        let axis = Axis::of(self.scale, raw.chain(drawn.iter().map(|smooth| &smooth[..])));
        let _ = writeln!(svg, "<g transform=\"translate({left} {top})\">");
        let _ = writeln!(
            svg,
            "<text class=\"qf-ink\" x=\"0\" y=\"-34\" font-size=\"14\" font-weight=\"600\">{}</text>",
            self.title
        );
        for &tick in &axis.ticks {
            let y = axis.place(tick);
            let _ = writeln!(
                svg,
                "<line class=\"qf-grid\" x1=\"0\" y1=\"{y:.1}\" x2=\"{width}\" y2=\"{y:.1}\"/>\
                 <text class=\"qf-soft\" x=\"-8\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y + 4.0,
                (self.label)(tick)
            );
        }
        // A single step stands in the middle.
        let (first, last) = match (steps.first(), steps.last()) {
            (Some(&first), Some(&last)) if last > first => (first as f64, last as f64),
            (Some(&first), _) => (first as f64 - 1.0, first as f64 + 1.0),
            _ => (0.0, 1.0),
        };
        let x_of = |step: f64| (step - first) / (last - first) * width;
        let tick = nice((last - first) / 4.0).max(1.0);
        let mut step = (first / tick).ceil() * tick;
        while step <= last {
            let (x, y) = (x_of(step), height + 18.0);
            let label = grouped(step as usize);
            let _ = writeln!(
                svg,
                "<text class=\"qf-soft\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>"
            );
            step += tick;
        }
        let _ = writeln!(
            svg,
            "<clipPath id=\"qf-plot-{index}\"><rect x=\"0\" y=\"-2\" width=\"{width}\" height=\"{}\"/></clipPath>\n\
             <g fill=\"none\" stroke-linejoin=\"round\" stroke-linecap=\"round\" clip-path=\"url(#qf-plot-{index})\">",
            height + 4.0
        );
        let steps: Vec<f64> = steps.iter().map(|&step| x_of(step as f64)).collect();
        if self.noise == Noise::Noisy {
            for line in &self.lines {
                let points = extremes(&steps, &line.values);
                line.draw(svg, &axis, points, "stroke-width=\"1\" stroke-opacity=\"0.28\"");
            }
        }
        for (line, smooth) in self.lines.iter().zip(&drawn) {
            line.draw(svg, &axis, samples(&steps, smooth), "stroke-width=\"2\"");
        }
        svg.push_str("</g>\n");
        self.legend(svg, &drawn);
        svg.push_str("</g>\n");
    }

    /// Names and last values of the lines, above the plot.
    fn legend(&self, svg: &mut String, drawn: &[Vec<f64>]) {
        let mut x = 0.0;
        for (line, smooth) in self.lines.iter().zip(drawn) {
            let value = smooth.last().map_or(String::new(), |&last| (self.label)(last));
            let name = if line.name.is_empty() { String::new() } else { format!("{} ", line.name) };
            let stroke = line.stroke();
            let _ = writeln!(
                svg,
                "<line {stroke} x1=\"{x}\" y1=\"-18\" x2=\"{}\" y2=\"-18\" stroke-width=\"3\" stroke-linecap=\"round\"/>\
                 <text class=\"qf-soft\" x=\"{}\" y=\"-14\">{name}<tspan class=\"qf-ink\" font-weight=\"600\">{value}</tspan></text>",
                x + 14.0,
                x + 20.0,
            );
            x += 34.0 + 6.6 * (name.len() + value.len()) as f64;
        }
    }
}

impl Line {
    fn stroke(&self) -> String {
        let colour = match self.colour {
            Colour::Ink => return "class=\"qf-line\"".to_owned(),
            Colour::Blue => "#3a86d8",
            Colour::Orange => "#e0802f",
            Colour::Green => "#27a074",
            Colour::Violet => "#a06ad6",
        };
        format!("stroke=\"{colour}\"")
    }

    fn draw(&self, svg: &mut String, axis: &Axis, points: Vec<(f64, f64)>, more: &str) {
        let _ = write!(svg, "<polyline {} {more} points=\"", self.stroke());
        for (x, value) in points {
            let _ = write!(svg, "{x:.1},{:.1} ", axis.place(value));
        }
        svg.push_str("\"/>\n");
    }
}

impl Axis {
    fn of<'a>(scale: Scale, lines: impl Iterator<Item = &'a [f64]>) -> Self {
        let all: Vec<f64> = lines.flatten().copied().filter(|value| value.is_finite()).collect();
        let greatest = all.iter().copied().fold(0.0, f64::max);
        let least = all.iter().copied().filter(|&value| value > 0.0).fold(f64::INFINITY, f64::min);
        if scale == Scale::Logarithmic && least.is_finite() && greatest > DECADES * least {
            let (low, high) = (least.log10().floor() as i32, greatest.log10().ceil() as i32);
            let every = (high - low - 1) / 5 + 1;
            let ticks = (low..=high).step_by(every as usize).map(|power| 10_f64.powi(power)).collect();
            return Self { low: 10_f64.powi(low), high: 10_f64.powi(high), is_logarithmic: true, ticks };
        }
        let greatest = match scale {
            Scale::Share => 1.0,
            _ if greatest > 0.0 => greatest,
            _ => 1.0,
        };
        let tick = if scale == Scale::Share { 0.25 } else { nice(greatest / 4.0) };
        let count = (greatest / tick - 1e-9).ceil() as usize;
        let ticks = (0..=count).map(|i| i as f64 * tick).collect();
        Self { low: 0.0, high: count as f64 * tick, is_logarithmic: false, ticks }
    }

    /// Pixels from the plot's upper edge.
    fn place(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        PLOT.1 * (1.0 - share.clamp(-0.1, 1.1))
    }
}

/// The mean of every value and its neighbours on both sides, with weights that fall exponentially.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let decay = 1.0 - 1.0 / (1.0 + values.len() as f64 * SMOOTHING);
    // Of a value and all before it: the weighted sum, and the sum of weights.
    let sums = |values: &mut dyn Iterator<Item = &f64>| -> Vec<(f64, f64)> {
        let (mut sum, mut weight) = (0.0, 0.0);
        values
            .map(|&value| {
                (sum, weight) = (sum * decay + value, weight * decay + 1.0);
                (sum, weight)
            })
            .collect()
    };
    let (before, after) = (sums(&mut values.iter()), sums(&mut values.iter().rev()));
    let both = before.iter().zip(after.iter().rev()).zip(values);
    // The value itself is in both.
    both.map(|(((s, w), (t, v)), value)| (s + t - value) / (w + v - 1.0)).collect()
}

/// At most [`POINTS`] of a line, evenly, with both ends.
fn samples(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    let count = x.len().min(POINTS);
    let index = |i: usize| if count < 2 { i } else { i * (x.len() - 1) / (count - 1) };
    (0..count).map(|i| (x[index(i)], y[index(i)])).collect()
}

/// The same of a noisy line: the least and the greatest of each stretch.
fn extremes(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    if x.len() <= POINTS {
        return x.iter().copied().zip(y.iter().copied()).collect();
    }
    let stretch = (2 * x.len()).div_ceil(POINTS);
    let of = |(x, y): (&[f64], &[f64])| {
        let low = y.iter().copied().fold(f64::INFINITY, f64::min);
        let high = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        [(x[0], low), (x[0], high)]
    };
    x.chunks(stretch).zip(y.chunks(stretch)).flat_map(of).collect()
}

/// 1, 2 or 5 times a power of ten: the least that is not less than `value`.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let found = [1.0, 2.0, 5.0].into_iter().find(|&step| step * power >= value * (1.0 - 1e-9));
    power * found.unwrap_or(10.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let axis = Axis::of(Scale::Linear, [[0.3, 17.2].as_slice()].into_iter());
        assert_eq!(axis.ticks, [0.0, 5.0, 10.0, 15.0, 20.0]);
        let axis = Axis::of(Scale::Logarithmic, [[0.02, 30.0].as_slice()].into_iter());
        assert_eq!(axis.ticks.len(), 5);
        assert!((axis.low, axis.high) == (0.01, 100.0) && axis.place(1.0) == PLOT.1 / 2.0);
    }

    #[test]
    fn a_smoothed_line_has_no_delay() {
        let ramp: Vec<f64> = (0..1000).map(f64::from).collect();
        // As many neighbours count on either side.
        assert!((smoothed(&ramp)[500] - 500.0).abs() < 1e-6);
        assert_eq!(smoothed(&[3.0]), [3.0]);
    }

    #[test]
    fn a_long_run_is_drawn_with_few_points_and_all_its_peaks() {
        let x: Vec<f64> = (0..100_000).map(f64::from).collect();
        let mut y = vec![1.0; x.len()];
        y[54_321] = 9.0;
        assert!(extremes(&x, &y).len() <= POINTS && samples(&x, &y).len() <= POINTS);
        assert!(extremes(&x, &y).iter().any(|&(_, y)| y == 9.0));
    }
}
