//! Registers of `f32` of each kind of processor, and how numbers of 16 bits come into them.

use crate::tensor::Number;
use half::{bf16, f16};

/// Most numbers that a register holds.
pub(super) const LANES: usize = 16;

/// A kind of processor's registers. None of the functions checks that the processor has them.
pub(super) trait Vectors {
    /// [`Self::LANES`] numbers.
    type Register: Copy;
    /// Numbers of a register.
    const LANES: usize;
    /// Registers that hold sums, of all that there are.
    const SUMS: usize;

    /// Calls `task`, compiled for this kind of processor.
    ///
    /// # Safety
    /// The processor must be of this kind, and what the task itself asks for must hold.
    unsafe fn enter(task: impl Task);

    /// Zeros.
    ///
    /// # Safety
    /// As for all that follows: called by a task of [`Self::enter`], with an address from which a register's numbers
    /// can be read, or written.
    unsafe fn zeros() -> Self::Register;
    /// Numbers as they lie in memory.
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn load(from: *const f32) -> Self::Register;
    /// The same of bf16.
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn load_bf16(from: *const bf16) -> Self::Register;
    /// The same of f16.
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn load_f16(from: *const f16) -> Self::Register;
    /// Writes numbers to memory.
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn store(x: Self::Register, to: *mut f32);
    /// a·b + c
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn mul_add(a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
    /// The sum of a register's numbers, in pairs.
    ///
    /// # Safety
    /// As [`Self::zeros`].
    unsafe fn sum(x: Self::Register) -> f32;
}

/// Work in registers.
pub(super) trait Task {
    /// Does it; to be inlined where the compiler knows the registers.
    ///
    /// # Safety
    /// As [`Vectors::enter`].
    unsafe fn run<V: Vectors>(self);
}

/// A number of a weight, as it is stored.
pub(super) trait Stored: Number {
    /// A register of them, as `f32`.
    ///
    /// # Safety
    /// As [`Vectors::load`].
    unsafe fn load<V: Vectors>(from: *const Self) -> V::Register;
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vectors>(from: *const Self) -> V::Register {
        // SAFETY: as the caller promises.
        unsafe { V::load_bf16(from) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<V: Vectors>(from: *const Self) -> V::Register {
        // SAFETY: as the caller promises.
        unsafe { V::load_f16(from) }
    }
}

/// What every processor has; the compiler makes registers of it.
pub(super) struct Portable;

impl Vectors for Portable {
    type Register = [f32; 8];
    const LANES: usize = 8;
    const SUMS: usize = 10;

    unsafe fn enter(task: impl Task) {
        // SAFETY: as the caller promises.
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn zeros() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 8] {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> [f32; 8] {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[bf16; 8]>().read_unaligned() }
            .map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> [f32; 8] {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[f16; 8]>().read_unaligned() }.map(widen)
    }

    #[inline(always)]
    unsafe fn store(x: [f32; 8], to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| {
            // Where a processor has no such instruction, a function would be called for every number.
            if cfg!(target_arch = "aarch64") {
                a[lane].mul_add(b[lane], c[lane])
            } else {
                a[lane] * b[lane] + c[lane]
            }
        })
    }

    #[inline(always)]
    unsafe fn sum([a, b, c, d, e, f, g, h]: [f32; 8]) -> f32 {
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// The same number, without a branch.
#[inline(always)]
fn widen(x: f16) -> f32 {
    /// 1.0 in the place of the smallest normal f16: what is below it, its exponent being 0, is a multiple of 2⁻²⁴.
    const LEAST: u32 = 113 << 23;
    let bits = u32::from(x.to_bits());
    let sign = (bits & 0x8000) << 16;
    let shifted = (bits & 0x7fff) << 13;
    let exponent = shifted & 0x0f80_0000;
    let normal = shifted + (112 << 23);
    // All ones stay so.
    let normal = if exponent == 0x0f80_0000 { normal + (112 << 23) } else { normal };
    let subnormal = (f32::from_bits(shifted + LEAST) - f32::from_bits(LEAST)).to_bits();
    f32::from_bits(sign | if exponent == 0 { subnormal } else { normal })
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! Intel's and AMD's.

    use super::{Task, Vectors};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    /// AVX2, with what every such processor has beside it.
    pub(in super::super) struct Avx2;

    /// AVX-512.
    pub(in super::super) struct Avx512;

    impl Avx2 {
        /// Whether the processor has it.
        pub(in super::super) fn is_there() -> bool {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
    }

    impl Avx512 {
        /// Whether the processor has it.
        pub(in super::super) fn is_there() -> bool {
            is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
        }
    }

    impl Vectors for Avx2 {
        type Register = __m256;
        const LANES: usize = 8;
        const SUMS: usize = 10;

        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn enter(task: impl Task) {
            // SAFETY: as the caller promises.
            unsafe { task.run::<Self>() }
        }

        #[inline(always)]
        unsafe fn zeros() -> __m256 {
            // SAFETY: as the caller promises.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: as the caller promises.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> __m256 {
            // SAFETY: as the caller promises.
            unsafe {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> __m256 {
            // SAFETY: as the caller promises.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn store(x: __m256, to: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { _mm256_storeu_ps(to, x) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: as the caller promises.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(x: __m256) -> f32 {
            // SAFETY: as the caller promises.
            unsafe {
                let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
            }
        }
    }

    impl Vectors for Avx512 {
        type Register = __m512;
        const LANES: usize = 16;
        const SUMS: usize = 24;

        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn enter(task: impl Task) {
            // SAFETY: as the caller promises.
            unsafe { task.run::<Self>() }
        }

        #[inline(always)]
        unsafe fn zeros() -> __m512 {
            // SAFETY: as the caller promises.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: as the caller promises.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> __m512 {
            // SAFETY: as the caller promises.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> __m512 {
            // SAFETY: as the caller promises.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn store(x: __m512, to: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_ps(to, x) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as the caller promises.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(x: __m512) -> f32 {
            // SAFETY: as the caller promises.
            unsafe { _mm512_reduce_add_ps(x) }
        }
    }
}
