//! Random numbers of the data: a function of the seed, of what they are for, and of the example's place.

use crate::random::philox;

/// What numbers are drawn for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// The order of an epoch.
    Order = 0,
    /// What becomes of an image.
    Augmentation = 1,
}

/// A sequence of random numbers.
#[derive(Debug)]
pub(super) struct Draws {
    key: [u32; 2],
    /// Of the next four words.
    counter: [u32; 4],
    words: [u32; 4],
    /// How many of the words are used up.
    used: usize,
}

impl Draws {
    /// The sequence for `example` of `epoch`.
    pub(super) fn new(seed: u64, purpose: Purpose, epoch: u64, example: u32) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        Self { key, counter: [0, example, epoch as u32, purpose as u32], words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == self.words.len() {
            self.words = philox(self.counter, self.key);
            self.counter[0] += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// A number from `low` to `high`.
    pub(super) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (f64::from(self.word()) / 2.0_f64.powi(32))
    }

    /// A whole number below `bound`, each as likely as any other.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        // Lemire, "Fast random integer generation in an interval", 2019: the lowest words of products
        // are refused as long as some results would come up once more often than others.
        let refused = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.word()) * u64::from(bound);
            if product as u32 >= refused {
                return (product >> 32) as u32;
            }
        }
    }
}

/// The numbers below `count` in the order of `epoch`: Fisher and Yates's shuffle.
pub(super) fn permutation(seed: u64, epoch: u64, count: u32) -> Vec<u32> {
    let mut draws = Draws::new(seed, Purpose::Order, epoch, 0);
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last as usize, draws.below(last + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_every_number_once_and_changes_with_seed_and_epoch() {
        let order = permutation(42, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        assert_eq!(order, permutation(42, 0, 1000));
        assert_ne!(order, permutation(42, 1, 1000));
        assert_ne!(order, permutation(43, 0, 1000));
        assert_ne!(order, permutation(42 | 1 << 40, 0, 1000));
    }

    #[test]
    fn every_order_of_three_is_as_likely_as_any_other() {
        let mut seen = std::collections::HashMap::new();
        for epoch in 0..6000 {
            *seen.entry(permutation(7, epoch, 3)).or_insert(0_i32) += 1;
        }
        // 1000 each, with a standard deviation of 29.
        assert!(seen.len() == 6 && seen.values().all(|&count| (count - 1000).abs() < 120), "{seen:?}");
    }

    #[test]
    fn numbers_below_a_bound_are_as_likely_as_each_other() {
        let mut draws = Draws::new(1, Purpose::Augmentation, 0, 0);
        let mut seen = [0_i32; 7];
        for _ in 0..7000 {
            seen[draws.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (count - 1000).abs() < 120), "{seen:?}");
    }
}
