//! What the processor can do: what measurements on it are a share of.

use crate::times::repeat;
use qformer::Cpu;
use qformer::memory::Arena;
use rayon::prelude::*;

/// Operations per second of a square f32 product, the best of some runs: what the machine can do.
pub(crate) fn product_flops(seconds: f64) -> f64 {
    const N: usize = 2048;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let times = repeat(seconds.min(1.0), || {
        let threads = gemm::Parallelism::Rayon(0);
        let (row, col) = (N as isize, 1);
        // SAFETY: three matrices of N·N elements, c exclusive.
        unsafe {
            gemm::gemm(
                N,
                N,
                N,
                c.as_mut_ptr(),
                col,
                row,
                false,
                a.as_ptr(),
                col,
                row,
                b.as_ptr(),
                col,
                row,
                0.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
        Ok(())
    });
    let best = times.expect("a product does not fail").minimum();
    2.0 * (N as f64).powi(3) / best
}

/// Bytes per second of reading more than caches hold, each thread its own stretch, the best of some runs.
pub(crate) fn read_bytes_per_second(seconds: f64) -> f64 {
    const WORDS: usize = 1 << 28;
    // Of large pages, as weights are, and touched, so that it is not all the one page of zeros.
    let device = Cpu::<f32>::new();
    let mut arena = Arena::sized(&device, "the memory that is read", WORDS * size_of::<u64>())
        .expect("there is memory for a measurement");
    let mut words = arena.cursor().take::<u32>(1, 2 * WORDS);
    words.row_mut(0).par_chunks_mut(1 << 20).for_each(|words| words.fill(1));
    let words: &[u64] = bytemuck::cast_slice(words.view().row(0));
    let times = repeat(seconds.min(1.0), || {
        let stretch = WORDS.div_ceil(rayon::current_num_threads());
        // Sums in several lanes, so that adding is not what is waited for.
        let sum = |words: &[u64]| {
            let mut lanes = [0u64; 64];
            for words in words.as_chunks::<64>().0 {
                lanes.iter_mut().zip(words).for_each(|(lane, word)| *lane = lane.wrapping_add(*word));
            }
            lanes.into_iter().fold(0, u64::wrapping_add)
        };
        let total = words.par_chunks(stretch).map(sum).reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(total);
        Ok(())
    });
    size_of_val(words) as f64 / times.expect("reading does not fail").minimum()
}

/// Bytes per second, read and written, of copying more than caches hold, the best of some runs.
pub(crate) fn copied_bytes_per_second(seconds: f64) -> f64 {
    const WORDS: usize = 1 << 26;
    let (from, mut to) = (vec![1u32; WORDS], vec![0u32; WORDS]);
    let times = repeat(seconds.min(1.0), || {
        let pieces = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    });
    2.0 * size_of_val(&from[..]) as f64 / times.expect("a copy does not fail").minimum()
}
