//! Pictures of scenes.

use super::world::{COLOURS, Group, Scene, Stream};

/// Red, green and blue of the colours, in their order.
const PAINTS: [[f64; 3]; COLOURS.len()] = [
    [0.88, 0.16, 0.18],
    [0.97, 0.56, 0.10],
    [0.98, 0.86, 0.20],
    [0.16, 0.64, 0.30],
    [0.14, 0.36, 0.86],
    [0.56, 0.22, 0.72],
];
/// Of a small and a large thing, in widths of the picture.
const RADII: [f64; 2] = [0.078, 0.14];
/// Centres of the places, in their order.
const CENTRES: [[f64; 2]; 4] = [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]];

/// A thing in the picture, whose width and height are 1.
struct Thing {
    /// To the right and down.
    centre: [f64; 2],
    radius: f64,
    paint: [f64; 3],
    /// Which of the shapes.
    shape: usize,
}

impl Scene {
    /// RGB bytes of a picture of `side` by `side` pixels. Where things stand exactly, their shades and the
    /// ground's are a matter of `stream`.
    pub(crate) fn draw(&self, side: usize, stream: &mut Stream) -> Vec<u8> {
        let mut canvas = ground(side, stream);
        for thing in self.groups.iter().flat_map(|group| group.things(stream)) {
            thing.paint(&mut canvas, side);
        }
        let byte =
            |value: f64| ((value + stream.between(-0.006, 0.006)).clamp(0.0, 1.0) * 255.0).round() as u8;
        canvas.into_flattened().into_iter().map(byte).collect()
    }
}

/// A light ground that grows a little darker in some direction.
fn ground(side: usize, stream: &mut Stream) -> Vec<[f64; 3]> {
    let shade = stream.between(0.86, 0.97);
    let tint: [f64; 3] = std::array::from_fn(|_| shade + stream.between(-0.03, 0.03));
    let slope = [stream.between(-0.06, 0.06), stream.between(-0.06, 0.06)];
    let of = |pixel: usize| pixel as f64 / side as f64 - 0.5;
    (0..side * side)
        .map(|pixel| tint.map(|value| value + slope[0] * of(pixel % side) + slope[1] * of(pixel / side)))
        .collect()
}

impl Group {
    /// In a column on the left or right, in a row at the top or bottom.
    fn things(self, stream: &mut Stream) -> Vec<Thing> {
        let (radius, count) = (RADII[self.size], self.count + 1);
        // Along the row or column, and across it.
        let (along, across) = if self.place < 2 { (1, 0) } else { (0, 1) };
        let step = 2.0 * radius + 0.04;
        let reach = radius + step * self.count as f64 / 2.0;
        let drift = stream.between(-1.0, 1.0) * (0.48 - reach).min(0.03);
        let aside = stream.between(-0.03, 0.03);
        (0..count)
            .map(|index| {
                let mut centre = CENTRES[self.place];
                centre[along] += drift + step * (index as f64 - self.count as f64 / 2.0);
                centre[across] += aside + stream.between(-0.01, 0.01);
                Thing {
                    centre,
                    radius: radius * stream.between(0.95, 1.05),
                    paint: PAINTS[self.colour].map(|value| value + stream.between(-0.04, 0.04)),
                    shape: self.shape,
                }
            })
            .collect()
    }
}

impl Thing {
    /// Paints it over the canvas, its rim smoothed.
    fn paint(&self, canvas: &mut [[f64; 3]], side: usize) {
        let width = side as f64;
        let from = |centre: f64| ((centre - 1.2 * self.radius) * width).max(0.0) as usize;
        let to = |centre: f64| (((centre + 1.2 * self.radius) * width) as usize + 1).min(side);
        for row in from(self.centre[1])..to(self.centre[1]) {
            for column in from(self.centre[0])..to(self.centre[0]) {
                let of = |pixel: usize, centre: f64| ((pixel as f64 + 0.5) / width - centre) / self.radius;
                let distance = distance(self.shape, of(column, self.centre[0]), of(row, self.centre[1]));
                let cover = (0.5 - distance * self.radius * width).clamp(0.0, 1.0);
                for (value, paint) in canvas[row * side + column].iter_mut().zip(self.paint) {
                    *value += cover * (paint - *value);
                }
            }
        }
    }
}

/// How far outside its rim a point is, of a shape around 0 of about unit radius. The shapes
/// cover areas that are alike, so that size and shape are told apart.
fn distance(shape: usize, x: f64, y: f64) -> f64 {
    match shape {
        0 => ((x * x + y * y).sqrt() - 0.84).abs() - 0.22,
        1 => x.abs().max(y.abs()) - 0.86,
        // Three sides alike, one of them level.
        _ => (y - 0.72).max(0.75_f64.sqrt() * x.abs() - 0.5 * (y + 1.0)),
    }
}
