//! What was recorded of work that comes again.

use crate::device::Device;
use std::collections::HashMap;

/// Most that is kept. When there would be more, all is forgotten: what comes again is soon recorded again.
const MOST: usize = 256;

/// Recorded work by all that its operations follow from: what it is, and its sizes, and addresses where they may
/// differ from one time to the next.
pub(crate) struct Replays<D: Device>(HashMap<(&'static str, Vec<usize>), D::Replay>);

impl<D: Device> Default for Replays<D> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<D: Device> Replays<D> {
    /// What was recorded of `work` of these `sizes`, if anything was.
    pub(crate) fn of(&mut self, work: &'static str, sizes: Vec<usize>) -> &mut D::Replay {
        let key = (work, sizes);
        if self.0.len() == MOST && !self.0.contains_key(&key) {
            self.0.clear();
        }
        self.0.entry(key).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let mut replays = Replays::<Cpu>::default();
        for round in 0..2 {
            for size in 0..MOST {
                replays.of("pass", vec![size]);
            }
            assert_eq!(replays.0.len(), MOST, "round {round}");
        }
        replays.of("another pass", vec![0]);
        assert_eq!(replays.0.len(), 1);
    }
}
