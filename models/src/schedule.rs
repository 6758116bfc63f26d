//! The learning rate over steps, as transformers' `get_scheduler` defines it.

use pipe_job::{Schedule, ScheduleKind, Warmup};

/// A schedule for a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    kind: ScheduleKind,
    peak: f64,
    floor_ratio: f64,
    warmup: u64,
    steps: u64,
}

impl LearningRate {
    /// Resolves warm-up for `steps` optimizer steps at peak rate `peak`.
    pub fn new(schedule: &Schedule, peak: f64, steps: u64) -> Self {
        let warmup = match schedule.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (ratio * steps as f64).ceil() as u64,
            Warmup::Auto => match ((0.03 * steps as f64) as u64).min(100) {
                1 => 2,
                other => other,
            },
        };
        Self { kind: schedule.kind, peak, floor_ratio: schedule.min_lr_ratio, warmup, steps }
    }

    /// The rate of the step after `done` steps.
    pub fn at(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.peak * (done as f64 / self.warmup.max(1) as f64);
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = (done - self.warmup) as f64 / span;
        let share = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            ScheduleKind::Cosine => {
                let wave = (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0);
                wave * (1.0 - self.floor_ratio) + self.floor_ratio
            }
        };
        self.peak * share
    }

    /// Steps of warm-up.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: Warmup, min_lr_ratio: f64) -> Schedule {
        Schedule { kind, warmup, min_lr_ratio }
    }

    #[test]
    fn cosine_rises_to_the_peak_and_falls_to_zero() {
        let rate = LearningRate::new(&schedule(ScheduleKind::Cosine, Warmup::Steps(10), 0.0), 2e-4, 100);
        assert_eq!(rate.at(0), 0.0);
        assert_eq!(rate.at(5), 1e-4);
        assert_eq!(rate.at(10), 2e-4);
        assert!((rate.at(55) - 1e-4).abs() < 1e-12);
        assert!(rate.at(100) < 1e-12);
    }

    #[test]
    fn linear_and_constant_follow_transformers() {
        let linear = LearningRate::new(&schedule(ScheduleKind::Linear, Warmup::Ratio(0.1), 0.0), 1.0, 50);
        assert_eq!((linear.warmup(), linear.at(5), linear.at(50)), (5, 1.0, 0.0));
        let constant = LearningRate::new(&schedule(ScheduleKind::Constant, Warmup::Auto, 0.0), 1.0, 40);
        assert_eq!((constant.warmup(), constant.at(1), constant.at(39)), (2, 0.5, 1.0));
    }

    #[test]
    fn a_floor_is_kept() {
        let rate = LearningRate::new(&schedule(ScheduleKind::Cosine, Warmup::Steps(0), 0.1), 1.0, 10);
        assert!((rate.at(10) - 0.1).abs() < 1e-12);
    }
}
