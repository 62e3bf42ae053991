//! The bounds within which a configuration is believed: wide enough for any model of its family, and narrow enough that
//! no product of sizes overflows 64 bits. Errors are sentences that name the field as the file does.

use std::ops::RangeInclusive;

/// Whether a value is within its bounds.
pub(super) type Checked = std::result::Result<(), String>;

/// Smallest epsilon: what is smaller vanishes in 32-bit floats' normal range.
const SMALLEST_EPSILON: f64 = 1e-30;

/// Rows of a vocabulary.
pub(super) const VOCABULARY: RangeInclusive<usize> = 1..=4_194_304;
/// Width of a hidden state.
pub(super) const WIDTH: RangeInclusive<usize> = 1..=65_536;
/// Width of a feed-forward layer.
pub(super) const FEED_FORWARD: RangeInclusive<usize> = 1..=262_144;
/// Layers, heads, and what is counted by them.
pub(super) const COUNT: RangeInclusive<usize> = 1..=1024;

pub(super) fn outside(field: &str, value: impl std::fmt::Display, allowed: &str) -> String {
    format!("{field} is {value}; it has to be {allowed}")
}

pub(super) fn within(field: &str, value: usize, allowed: RangeInclusive<usize>) -> Checked {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("from {} to {}", allowed.start(), allowed.end())))
}

pub(super) fn divides(field: &str, value: usize, whole: &str, size: usize) -> Checked {
    if size.is_multiple_of(value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("a divisor of {whole}, {size}")))
}

pub(super) fn epsilon(field: &str, value: f64) -> Checked {
    if (SMALLEST_EPSILON..=0.1).contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("from {SMALLEST_EPSILON:e} to 0.1")))
}

pub(super) fn probability(field: &str, value: f64) -> Checked {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, "from 0 to less than 1"))
}

/// A standard deviation of new weights.
pub(super) fn deviation(field: &str, value: f64) -> Checked {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, "from 0 to 1"))
}

/// Tokens, if any: of the largest vocabulary at most, as files may know tokens that the model has no row for yet.
pub(super) fn tokens<'a>(field: &str, tokens: impl IntoIterator<Item = &'a usize>) -> Checked {
    tokens.into_iter().try_for_each(|&token| within(field, token, 0..=VOCABULARY.end() - 1))
}
