//! The vector instructions that come with the tiles: splitting numbers, and exchanging rows and columns.

use crate::device::cpu::tile::{TILE, Tile};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512bw,avx512bf16")]
pub(super) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Two bf16 a word, of the low halves `x` and the high halves `y`, both in order.
#[inline]
#[target_feature(enable = "avx512bw,avx512bf16")]
fn round(x: __m512, y: __m512) -> __m512i {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(y, x)) }
}

#[inline]
#[target_feature(enable = "avx512bw,avx512bf16")]
pub(super) fn split_neighbours(x: &[f32; 2 * TILE]) -> [[u32; TILE]; 2] {
    // SAFETY: the array holds two vectors, and as many words as a vector are one.
    unsafe {
        let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[TILE..].as_ptr())];
        let hi = round(x[0], x[1]);
        let halves = [_mm512_castsi512_si256(hi), _mm512_extracti64x4_epi64::<1>(hi)];
        let [a, b] = halves.map(|half| _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
        let rest = |x, hi| _mm512_sub_ps(x, _mm512_castsi512_ps(hi));
        std::mem::transmute([hi, round(rest(x[0], a), rest(x[1], b))])
    }
}

/// Where the halves of words come from that [`round`] has put one after the other.
const INTERLEAVED: [u16; 2 * TILE] = {
    let mut from = [0; 2 * TILE];
    let mut word = 0;
    while word < TILE {
        from[2 * word] = word as u16;
        from[2 * word + 1] = (TILE + word) as u16;
        word += 1;
    }
    from
};

#[inline]
#[target_feature(enable = "avx512bw,avx512bf16")]
pub(super) fn split_pairs(low: &[f32; TILE], high: &[f32; TILE]) -> [[u32; TILE]; 2] {
    // SAFETY: each array is a vector, and as many words as a vector are one.
    unsafe {
        let [x, y] = [low, high].map(|x| _mm512_loadu_ps(x.as_ptr()));
        let order = std::mem::transmute::<[u16; 2 * TILE], __m512i>(INTERLEAVED);
        let interleaved = |words| _mm512_permutexvar_epi16(order, words);
        let hi = interleaved(round(x, y));
        let [a, b] = [_mm512_slli_epi32::<16>(hi), _mm512_and_si512(hi, _mm512_set1_epi32(!0xffff))];
        let rest = |x, hi| _mm512_sub_ps(x, _mm512_castsi512_ps(hi));
        std::mem::transmute([hi, interleaved(round(rest(x, a), rest(y, b)))])
    }
}

/// For each column, which element of two rows `row` and `row + distance`, the second's counted from 16 on,
/// comes there when columns and rows exchange that bit of their number.
const fn picks(distance: usize, second: bool) -> [u32; TILE] {
    let mut picks = [0; TILE];
    let mut column = 0;
    while column < TILE {
        let from = if second { column | distance } else { column & !distance };
        picks[column] = (if column & distance != 0 { TILE + from } else { from }) as u32;
        column += 1;
    }
    picks
}

#[target_feature(enable = "avx512f")]
fn exchange<const DISTANCE: usize>(rows: &mut [__m512i; TILE]) {
    // SAFETY: both types are 16 words.
    let [first, second]: [__m512i; 2] =
        unsafe { std::mem::transmute(const { [picks(DISTANCE, false), picks(DISTANCE, true)] }) };
    for pair in 0..TILE / 2 {
        let row = pair / DISTANCE * 2 * DISTANCE + pair % DISTANCE;
        let (a, b) = (rows[row], rows[row + DISTANCE]);
        rows[row] = _mm512_permutex2var_epi32(a, first, b);
        rows[row + DISTANCE] = _mm512_permutex2var_epi32(a, second, b);
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn transpose(tile: &mut Tile) {
    // SAFETY: both types are 16 rows of 16 words.
    let mut rows: [__m512i; TILE] = unsafe { std::mem::transmute(*tile) };
    exchange::<8>(&mut rows);
    exchange::<4>(&mut rows);
    exchange::<2>(&mut rows);
    exchange::<1>(&mut rows);
    // SAFETY: as above.
    *tile = unsafe { std::mem::transmute::<[__m512i; TILE], Tile>(rows) };
}
