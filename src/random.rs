//! Random numbers by their place instead of their turn: every element of every mask has a number of
//! its own, so a backward pass draws again what the forward pass drew, on any device, in any order.

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011):
/// four random words for each counter.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_run::<1>(counter, key)[0]
}

/// The same of `N` counters whose first words follow one another; vectorises.
#[inline(always)]
pub fn philox_run<const N: usize>([first, c1, c2, c3]: [u32; 4], key: [u32; 2]) -> [[u32; 4]; N] {
    let (mut c0, mut c1, mut c2, mut c3) = ([0; N], [c1; N], [c2; N], [c3; N]);
    for (i, c0) in c0.iter_mut().enumerate() {
        *c0 = first.wrapping_add(i as u32);
    }
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for i in 0..N {
            let product0 = u64::from(c0[i]) * 0xd251_1f53;
            let product1 = u64::from(c2[i]) * 0xcd9e_8d57;
            c0[i] = (product1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = product1 as u32;
            c2[i] = (product0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = product0 as u32;
        }
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    let mut words = [[0; 4]; N];
    for i in 0..N {
        words[i] = [c0[i], c1[i], c2[i], c3[i]];
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{philox, philox_run};

    /// Known answers of Random123, the authors' own library (tests/kat_vectors).
    #[test]
    fn gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_run_gives_what_its_counters_give() {
        let run = philox_run::<16>([u32::MAX - 3, 5, 6, 7], [8, 9]);
        for (i, words) in run.into_iter().enumerate() {
            assert_eq!(words, philox([(u32::MAX - 3).wrapping_add(i as u32), 5, 6, 7], [8, 9]));
        }
    }
}
