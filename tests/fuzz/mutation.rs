//! Inputs made of others by small changes.

use qformer::params::init::{key, uniform};

/// Longest input, in bytes.
const LONGEST: usize = 1 << 17;

/// Numbers where parsers go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x100,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX >> 1,
    (u64::MAX >> 1) + 1,
    u64::MAX,
];

/// Numbers that depend on the seed alone.
pub(crate) struct Draws {
    key: u64,
    drawn: u64,
}

impl Draws {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        Self { key: key(seed, name), drawn: 0 }
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.drawn += 1;
        (uniform(self.key, self.drawn) * end as f64) as usize
    }

    /// One of `all`.
    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// One of the `seeds`, changed in one to eight places.
pub(crate) fn mutated(seeds: &[Vec<u8>], dictionary: &[&[u8]], draws: &mut Draws) -> Vec<u8> {
    let mut input = draws.of(seeds).clone();
    for _ in 0..=draws.below(8) {
        change(&mut input, seeds, dictionary, draws);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], dictionary: &[&[u8]], draws: &mut Draws) {
    let at = draws.below(input.len() + 1);
    let end = at + draws.below(input.len() - at + 1).min(64);
    match draws.below(9) {
        0 if at < input.len() => input[at] ^= 1 << draws.below(8),
        1 if at < input.len() => input[at] = draws.below(256) as u8,
        2 => input.truncate(at),
        3 => drop(input.drain(at..end)),
        // A part again, as often as a few times.
        4 => {
            let part = input[at..end].repeat(1 + draws.below(8));
            drop(input.splice(at..at, part));
        }
        // A number, in binary or in digits.
        5 => {
            let bytes = draws.of(&NUMBERS).to_le_bytes();
            let width = *draws.of(&[1, 2, 4, 8]);
            let end = input.len().min(at + width);
            input[at..end].copy_from_slice(&bytes[..end - at]);
        }
        6 => {
            let digits = draws.of(&NUMBERS).to_string();
            let first = input[at..].iter().position(u8::is_ascii_digit).map_or(at, |place| at + place);
            let count = input[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            drop(input.splice(first..first + count, digits.into_bytes()));
        }
        7 if !dictionary.is_empty() => drop(input.splice(at..at, draws.of(dictionary).iter().copied())),
        // The rest of another.
        _ => {
            let other = draws.of(seeds);
            input.truncate(at);
            input.extend_from_slice(&other[draws.below(other.len() + 1)..]);
        }
    }
}
