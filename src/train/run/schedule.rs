//! The learning rate, step by step.

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrScheduler {
    /// It stays.
    Const,
    /// It falls to its least along half a cosine.
    Cosine,
}

/// A learning rate over a run.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// After the warm-up.
    pub scheduler: LrScheduler,
    /// The highest.
    pub peak: f64,
    /// Where the cosine ends.
    pub least: f64,
    /// Steps in which it rises linearly from 0 to the peak.
    pub warmup: usize,
    /// Steps of the run.
    pub steps: usize,
}

impl Schedule {
    /// The learning rate of step number `step`, counted from 1.
    pub fn at(&self, step: usize) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        match self.scheduler {
            LrScheduler::Const => self.peak,
            LrScheduler::Cosine => {
                let gone = (step - self.warmup) as f64 / (self.steps - self.warmup).max(1) as f64;
                let cosine = libm::cos(std::f64::consts::PI * gone.min(1.0));
                self.least + (self.peak - self.least) * 0.5 * (1.0 + cosine)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(scheduler: LrScheduler) -> Schedule {
        Schedule { scheduler, peak: 1e-4, least: 1e-5, warmup: 100, steps: 1100 }
    }

    /// Up to rounding in double precision.
    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-15
    }

    #[test]
    fn it_rises_linearly_and_falls_along_half_a_cosine() {
        let schedule = schedule(LrScheduler::Cosine);
        for (step, rate) in [(1, 1e-6), (50, 5e-5), (100, 1e-4), (600, 5.5e-5), (1100, 1e-5)] {
            assert!(near(schedule.at(step), rate), "{step}: {}", schedule.at(step));
        }
        assert!((101..1100).all(|step| schedule.at(step + 1) < schedule.at(step)));
    }

    #[test]
    fn a_constant_rate_stays_at_its_peak() {
        let schedule = schedule(LrScheduler::Const);
        assert!(near(schedule.at(10), 1e-5) && schedule.at(101) == 1e-4 && schedule.at(1100) == 1e-4);
        assert_eq!(Schedule { warmup: 0, ..schedule }.at(1), 1e-4);
    }
}
