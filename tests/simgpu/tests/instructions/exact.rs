//! Exact sums and products of floats, and their rounding to any format: fixed-point numbers wide enough for all of them.

/// Words of a number: bit 0 is worth 2^-298, the least product of two floats, so 2^256 is bit 554.
const WORDS: usize = 10;
const POINT: i32 = 298;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exact {
    /// Two's complement, the lowest word first.
    words: [u64; WORDS],
}

/// A binary format: bits of the significand and the exponents of its smallest and largest normal numbers.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) precision: i32,
    pub(crate) lowest: i32,
    pub(crate) highest: i32,
    pub(crate) width: u32,
}

pub(crate) const F32: Format = Format { precision: 24, lowest: -126, highest: 127, width: 32 };
pub(crate) const F16: Format = Format { precision: 11, lowest: -14, highest: 15, width: 16 };
pub(crate) const BF16: Format = Format { precision: 8, lowest: -126, highest: 127, width: 16 };

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Significand and exponent of a finite float.
fn parts(x: f32) -> (i64, i32) {
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 23 & 255) as i32, i64::from(bits & 0x7f_ffff));
    let (significand, exponent) =
        if exponent == 0 { (fraction, -149) } else { (fraction | 1 << 23, exponent - 150) };
    (if x.is_sign_negative() { -significand } else { significand }, exponent)
}

impl Exact {
    fn scaled(significand: i64, exponent: i32) -> Self {
        let mut words = [0; WORDS];
        let at = (exponent + POINT) as usize;
        let wide = u128::from(significand.unsigned_abs()) << (at % 64);
        words[at / 64] = wide as u64;
        words[at / 64 + 1] = (wide >> 64) as u64;
        let magnitude = Self { words };
        if significand < 0 { magnitude.negated() } else { magnitude }
    }

    /// `a` · `b`, both finite.
    pub(crate) fn product(a: f32, b: f32) -> Self {
        let ((a, exponent_a), (b, exponent_b)) = (parts(a), parts(b));
        Self::scaled(a * b, exponent_a + exponent_b)
    }

    pub(crate) fn of(x: f32) -> Self {
        Self::product(x, 1.0)
    }

    pub(crate) fn negated(self) -> Self {
        Self { words: self.words.map(|word| !word) }
            .plus(Self { words: std::array::from_fn(|i| u64::from(i == 0)) })
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let mut carry = 0;
        let words = std::array::from_fn(|i| {
            let sum = u128::from(self.words[i]) + u128::from(other.words[i]) + carry;
            carry = sum >> 64;
            sum as u64
        });
        Self { words }
    }

    pub(crate) fn is_negative(self) -> bool {
        self.words[WORDS - 1] >> 63 == 1
    }

    /// Greater than zero.
    pub(crate) fn is_exceeding(self) -> bool {
        !self.is_negative() && !self.is_zero()
    }

    pub(crate) fn is_zero(self) -> bool {
        self.words == [0; WORDS]
    }

    fn bit(self, at: i32) -> bool {
        at >= 0 && self.words[at as usize / 64] >> (at % 64) & 1 == 1
    }

    /// The format's bits of the nearest number the mode allows. Zero is positive.
    pub(crate) fn round(self, format: Format, mode: Mode) -> u64 {
        let negative = self.is_negative();
        let magnitude = if negative { self.negated() } else { self };
        let sign = u64::from(negative) << (format.width - 1);
        let Some(top) = (0..WORDS as i32 * 64).rev().find(|&at| magnitude.bit(at)) else { return 0 };
        let exponent = (top - POINT).max(format.lowest);
        // The last bit that the format holds, and what lies under it.
        let last = exponent + POINT - (format.precision - 1);
        let mut significand =
            (last..=top).rev().fold(0u64, |bits, at| bits << 1 | u64::from(magnitude.bit(at)));
        let half = magnitude.bit(last - 1);
        let rest = (0..last - 1).any(|at| magnitude.bit(at));
        let up = match mode {
            Mode::Nearest => half && (rest || significand & 1 == 1),
            Mode::Zero => false,
            Mode::Down => negative && (half || rest),
            Mode::Up => !negative && (half || rest),
        };
        significand += u64::from(up);
        let (mut exponent, carried) = (exponent, significand >> format.precision == 1);
        if carried {
            significand >>= 1;
            exponent += 1;
        }
        let fraction = format.precision - 1;
        let bias = format.highest;
        let infinity = ((2 * bias + 1) as u64) << fraction;
        if exponent > format.highest {
            let largest =
                mode == Mode::Zero || (mode == Mode::Down && !negative) || (mode == Mode::Up && negative);
            return sign | if largest { infinity - 1 } else { infinity };
        }
        // A significand without its leading bit is subnormal.
        let normal = significand >> fraction == 1;
        let field = if normal { (exponent + bias) as u64 } else { 0 };
        sign | field << fraction | significand & ((1 << fraction) - 1)
    }
}

#[test]
fn nearest_rounding_is_the_hosts() {
    for a in crate::float::F32_EDGES.map(f32::from_bits).into_iter().filter(|a| a.is_finite()) {
        for b in crate::float::F32_EDGES.map(f32::from_bits).into_iter().filter(|b| b.is_finite()) {
            let (sum, product) = (a + b, a * b);
            let found = Exact::of(a).plus(Exact::of(b)).round(F32, Mode::Nearest) as u32;
            assert!(found == sum.to_bits() || (sum == 0.0 && found == 0), "{a} + {b}");
            let found = Exact::product(a, b).round(F32, Mode::Nearest) as u32;
            assert!(found == product.to_bits() || (product == 0.0 && found << 1 == 0), "{a} * {b}");
        }
    }
}
