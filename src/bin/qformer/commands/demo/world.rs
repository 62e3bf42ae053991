//! The drawn world: what a scene can be, and how it is said.

use qformer::params::init::{key, uniform};

/// How many things of a kind there can be.
pub(crate) const COUNTS: [&str; 3] = ["one", "two", "three"];
/// How large.
pub(crate) const SIZES: [&str; 2] = ["small", "large"];
/// In which colour.
pub(crate) const COLOURS: [&str; 6] = ["red", "orange", "yellow", "green", "blue", "purple"];
/// Of which shape: one, and several.
pub(crate) const SHAPES: [[&str; 2]; 3] =
    [["ring", "rings"], ["square", "squares"], ["triangle", "triangles"]];
/// Where; opposite places follow one another.
pub(crate) const PLACES: [&str; 4] = ["on the left", "on the right", "at the top", "at the bottom"];
/// Between what is said of two groups.
const AND: &str = "and";

/// Share of all captions that are held out: no picture that is learnt from has one of them.
const HELD_OUT: f64 = 0.2;
/// Share of scenes with two groups.
const TWO_GROUPS: f64 = 0.6;

/// Random numbers, one after another.
pub(crate) struct Stream {
    key: u64,
    index: u64,
}

impl Stream {
    /// The numbers of this name.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self { key: key(seed, name), index: 0 }
    }

    /// Uniform in (0, 1).
    pub(crate) fn next(&mut self) -> f64 {
        self.index += 1;
        uniform(self.key, self.index)
    }

    /// Uniform from `low` to `high`.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next()
    }

    /// One of 0..`count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next() * count as f64) as usize
    }
}

/// Things of one kind, side by side; the numbers count the words above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) colour: usize,
    pub(crate) shape: usize,
    pub(crate) place: usize,
}

impl Group {
    fn random(stream: &mut Stream, place: usize) -> Self {
        Self {
            count: stream.below(COUNTS.len()),
            size: stream.below(SIZES.len()),
            colour: stream.below(COLOURS.len()),
            shape: stream.below(SHAPES.len()),
            place,
        }
    }

    /// Such as "two small red rings on the left".
    fn caption(&self) -> String {
        let (count, size, colour) = (COUNTS[self.count], SIZES[self.size], COLOURS[self.colour]);
        let shape = SHAPES[self.shape][usize::from(self.count > 0)];
        format!("{count} {size} {colour} {shape} {}", PLACES[self.place])
    }
}

/// One group, or two in opposite places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    /// The left or upper one first.
    pub(crate) groups: Vec<Group>,
}

impl Scene {
    fn random(stream: &mut Stream) -> Self {
        if stream.next() < TWO_GROUPS {
            let first = 2 * stream.below(PLACES.len() / 2);
            return Self { groups: vec![Group::random(stream, first), Group::random(stream, first + 1)] };
        }
        let place = stream.below(PLACES.len());
        Self { groups: vec![Group::random(stream, place)] }
    }

    /// All that is to be said of it.
    pub(crate) fn caption(&self) -> String {
        self.groups.iter().map(Group::caption).collect::<Vec<_>>().join(&format!(" {AND} "))
    }
}

/// Scenes to learn from, and scenes held out.
pub(crate) struct Scenes {
    pub(crate) learnt: Vec<Scene>,
    pub(crate) held_out: Vec<Scene>,
}

impl Scenes {
    /// So many of each; those held out have a caption of their own each. Which captions are held out is a
    /// matter of the caption and the seed, so no scene to learn from has the attributes of one held out.
    pub(crate) fn new(seed: u64, learnt: usize, held_out: usize) -> Self {
        let mut stream = Stream::new(seed, "scenes");
        let mut scenes = Self { learnt: Vec::new(), held_out: Vec::new() };
        while scenes.learnt.len() < learnt || scenes.held_out.len() < held_out {
            let scene = Scene::random(&mut stream);
            let is_held_out = uniform(key(seed, "held out"), key(0, &scene.caption())) < HELD_OUT;
            if !is_held_out && scenes.learnt.len() < learnt {
                scenes.learnt.push(scene);
            } else if is_held_out && scenes.held_out.len() < held_out && !scenes.held_out.contains(&scene) {
                scenes.held_out.push(scene);
            }
        }
        scenes
    }
}

/// Every word that a caption can have, in alphabetical order.
pub(crate) fn words() -> Vec<&'static str> {
    let mut words: Vec<&str> = COUNTS.into_iter().chain(SIZES).chain(COLOURS).collect();
    words.extend(SHAPES.as_flattened());
    words.extend(PLACES.iter().flat_map(|place| place.split(' ')));
    words.push(AND);
    words.sort_unstable();
    words.dedup();
    words
}
