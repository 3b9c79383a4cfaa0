//! Learning rates as pure functions of the step, so that a resumed run needs no state and cannot be off by one.
//!
//! With W warm-up steps, T decay steps, peak η and floor η_min = `min_lr_ratio`·η, the rate of step s (from 0) is
//!
//! | | |
//! | --- | --- |
//! | warm-up, every kind, s < W | η_w + s·(η − η_w)/W: the first step runs at `warmup_lr` |
//! | constant | η |
//! | cosine | η_min + ½(η − η_min)(1 + cos(π·s/T)), η_min from s = T on |
//! | linear | η_min + (η − η_min)(1 − s/T), η_min from s = T on |
//! | wsd | η until s = S − T of S steps, then straight down: η_min at s = S |
//!
//! Cosine and linear are timm's `CosineLRScheduler` and `PolyLRScheduler` (power 1) stepped once per update: s counts
//! from the start of the run and the warm-up is **not** subtracted, so that the rate drops a little from s = W − 1 to
//! the curve at s = W. The reference trains with the cosine (FEATURES: W = 2,500, T = all steps, ratio 0.1).

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape of the curve after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// Half a cosine from the peak to the floor.
    Cosine,
    /// A straight line from the peak to the floor.
    Linear,
    /// Warm-up, stable, decay: the peak until the last `decay_steps`, then a straight line to the floor.
    Wsd,
}

/// Describes how the learning rate depends on the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The shape of the curve.
    pub kind: ScheduleKind,
    /// Steps of the warm-up, W; 0 for none.
    pub warmup_steps: u64,
    /// The rate of the very first step, when there is a warm-up: absolute, not a ratio.
    pub warmup_lr: f64,
    /// The floor, as a share of the peak rate: 0.1 ends at a tenth of `optim.lr`.
    pub min_lr_ratio: f64,
    /// Steps that the decay takes, T. Cosine and linear count it from the start of the run, and 0 means all of it;
    /// `wsd` counts it back from the end, and 0 means a tenth of the run.
    pub decay_steps: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_steps: 2500,
            warmup_lr: 1e-5,
            min_lr_ratio: 0.1,
            decay_steps: 0,
        }
    }
}

impl Schedule {
    /// Returns the learning rate of `step` (from 0) in a run of `steps`, where `lr` is the peak.
    pub fn rate(&self, lr: f64, steps: u64, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.warmup_lr + step as f64 * (lr - self.warmup_lr) / self.warmup_steps as f64;
        }
        let floor = lr * self.min_lr_ratio;
        let decay = self.decay_length(steps);
        let share = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress(step, decay)).cos()),
            ScheduleKind::Linear => 1.0 - progress(step, decay),
            ScheduleKind::Wsd => 1.0 - progress(step.saturating_sub(steps.saturating_sub(decay)), decay),
        };
        floor + (lr - floor) * share
    }

    /// Returns the steps that the decay takes in a run of `steps`, with 0 resolved; at least 1.
    pub fn decay_length(&self, steps: u64) -> u64 {
        let length = match (self.decay_steps, self.kind) {
            (0, ScheduleKind::Wsd) => steps / 10,
            (0, _) => steps,
            (given, _) => given,
        };
        length.max(1)
    }
}

/// Returns step/length, at most 1.
fn progress(step: u64, length: u64) -> f64 {
    (step as f64 / length as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-12 * expected.abs().max(1e-3),
            "{found} instead of {expected}"
        );
    }

    fn schedule(kind: ScheduleKind, warmup_steps: u64, decay_steps: u64) -> Schedule {
        Schedule { kind, warmup_steps, warmup_lr: 1e-5, min_lr_ratio: 0.1, decay_steps }
    }

    #[test]
    fn cosine_counts_from_the_first_step_and_does_not_subtract_the_warm_up() {
        let s = schedule(ScheduleKind::Cosine, 10, 0);
        let rate = |step| s.rate(1e-3, 100, step);
        near(rate(0), 1e-5); // the first step runs at warmup_lr
        near(rate(5), 1e-5 + 5.0 * 9.9e-4 / 10.0);
        near(rate(9), 1e-5 + 9.0 * 9.9e-4 / 10.0);
        near(rate(10), 9.779_754_323_328_191e-4); // 1e-4 + 4.5e-4·(1 + cos(π/10)): already below the peak
        near(rate(50), 5.5e-4);
        near(rate(75), 2.318_019_484_660_536e-4); // 1e-4 + 4.5e-4·(1 − √½)
        near(rate(100), 1e-4);
        near(rate(1_000), 1e-4);
    }

    #[test]
    fn the_reference_schedule_reaches_its_known_values() {
        let s = Schedule::default();
        near(s.rate(2e-4, 1_000_000, 0), 1e-5);
        near(s.rate(2e-4, 1_000_000, 1250), 1.05e-4);
        near(s.rate(2e-4, 1_000_000, 500_000), 1.1e-4);
        near(s.rate(2e-4, 1_000_000, 1_000_000), 2e-5);
    }

    #[test]
    fn linear_falls_by_the_same_amount_each_step() {
        let s = schedule(ScheduleKind::Linear, 0, 0);
        for (step, rate) in [(0, 1e-3), (1, 9.91e-4), (50, 5.5e-4), (99, 1.09e-4), (100, 1e-4), (101, 1e-4)] {
            near(s.rate(1e-3, 100, step), rate);
        }
    }

    #[test]
    fn constant_stays_at_the_peak_after_its_warm_up() {
        let s = schedule(ScheduleKind::Constant, 2, 0);
        for (step, rate) in [(0, 1e-5), (1, 5.05e-4), (2, 1e-3), (99, 1e-3), (500, 1e-3)] {
            near(s.rate(1e-3, 100, step), rate);
        }
    }

    #[test]
    fn wsd_holds_the_peak_and_falls_in_its_last_steps() {
        let s = schedule(ScheduleKind::Wsd, 4, 20);
        for (step, rate) in [(4, 1e-3), (80, 1e-3), (81, 9.55e-4), (90, 5.5e-4), (99, 1.45e-4), (100, 1e-4)] {
            near(s.rate(1e-3, 100, step), rate);
        }
        assert_eq!(schedule(ScheduleKind::Wsd, 0, 0).decay_length(100), 10);
    }

    #[test]
    fn an_explicit_decay_length_ends_the_curve_early() {
        let s = schedule(ScheduleKind::Cosine, 0, 40);
        near(s.rate(1e-3, 100, 20), 5.5e-4);
        near(s.rate(1e-3, 100, 40), 1e-4);
        near(s.rate(1e-3, 100, 41), 1e-4);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_and_a_run_of_one_step_give_numbers() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Wsd] {
            for warmup in [0, 1, 500] {
                let rate = schedule(kind, warmup, 0).rate(1e-3, 1, 0);
                assert!(rate.is_finite() && rate > 0.0, "{kind:?}, warm-up {warmup}: {rate}");
            }
        }
    }
}
