//! The learning rate over steps, as transformers' `get_scheduler`, torch's OneCycleLR and Axolotl's own courses define it.

use std::f64::consts::PI;

use pipe_job::{Schedule, ScheduleKind, Warmup};

/// A schedule for a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    kind: ScheduleKind,
    quadratic: bool,
    peak: f64,
    warmup: u64,
    steps: u64,
}

/// Momentum that OneCycleLR swings between, against the learning rate: torch's defaults.
const MOMENTA: (f64, f64) = (0.95, 0.85);

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
        Self { kind: schedule.kind, quadratic: schedule.quadratic_warmup, peak, warmup, steps }
    }

    /// The rate of the step after `done` steps.
    pub fn at(&self, done: u64) -> f64 {
        if let ScheduleKind::OneCycle { rise, cosine, div, final_div } = self.kind {
            let first = self.peak / div;
            return self.cycle(done, rise, cosine, [first, self.peak, first / final_div]);
        }
        if let ScheduleKind::Rex { min_ratio } = self.kind {
            return self.peak * self.reflected(done, min_ratio);
        }
        if done < self.warmup {
            let share = done as f64 / self.warmup.max(1) as f64;
            return self.peak * if self.quadratic { share * share } else { share };
        }
        self.peak * self.share(done)
    }

    /// What beta1 (or SGD's momentum) is at the step after `done` steps, where the schedule moves it.
    pub fn momentum_at(&self, done: u64) -> Option<f64> {
        match self.kind {
            ScheduleKind::OneCycle { rise, cosine, .. } => {
                Some(self.cycle(done, rise, cosine, [MOMENTA.0, MOMENTA.1, MOMENTA.0]))
            }
            _ => None,
        }
    }

    /// Steps of warm-up.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    /// The share of the peak after the warm-up.
    fn share(&self, done: u64) -> f64 {
        let after = (done - self.warmup) as f64;
        let span = self.steps.saturating_sub(self.warmup);
        let progress = after / span.max(1) as f64;
        match self.kind {
            ScheduleKind::Constant | ScheduleKind::OneCycle { .. } | ScheduleKind::Rex { .. } => 1.0,
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            ScheduleKind::Cosine { min_ratio, until, cycles } => {
                let end = (self.steps as f64 * until) as u64;
                let progress = match until < 1.0 {
                    true => (done.min(end) as f64 - self.warmup as f64) / end.saturating_sub(self.warmup).max(1) as f64,
                    false => progress,
                };
                ((1.0 - min_ratio) * 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0) + min_ratio
            }
            ScheduleKind::CosineRestarts { .. } if progress >= 1.0 => 0.0,
            ScheduleKind::CosineRestarts { cycles } => {
                (0.5 * (1.0 + (PI * (cycles * progress).fract()).cos())).max(0.0)
            }
            ScheduleKind::Polynomial { end, .. } if done > self.steps => end / self.peak,
            ScheduleKind::Polynomial { end, power } => {
                let left = 1.0 - after / (self.steps as f64 - self.warmup as f64);
                ((self.peak - end) * left.powf(power) + end) / self.peak
            }
            ScheduleKind::InverseSqrt { timescale } => {
                let scale = timescale.unwrap_or(if self.warmup > 0 { self.warmup as f64 } else { 10_000.0 });
                1.0 / ((done as f64 + scale - self.warmup as f64) / scale).sqrt()
            }
        }
    }

    /// Axolotl's RexLR. Its very first step does not belong to the warm-up: the count wraps around the length of the course.
    fn reflected(&self, done: u64, min_ratio: f64) -> f64 {
        if (1..=self.warmup).contains(&done) {
            return done as f64 / self.warmup as f64;
        }
        let (after, left) = (done as i64 - self.warmup as i64, self.steps as i64 - self.warmup as i64);
        if after >= left || after == -1 || left <= 0 {
            return min_ratio;
        }
        let z = (left - after.rem_euclid(left)) as f64 / left as f64;
        min_ratio + (1.0 - min_ratio) * (z / (0.1 + 0.9 * z))
    }

    /// From the first value to the second during the rise, then to the third on the last step.
    fn cycle(&self, done: u64, rise: Option<f64>, cosine: bool, [first, second, third]: [f64; 3]) -> f64 {
        let steps = self.steps as f64;
        let turn = rise.unwrap_or(self.warmup as f64 / steps.max(1.0)) * steps - 1.0;
        let (done, last) = (done as f64, steps - 1.0);
        let part = |from: f64, to: f64| if to > from { (done - from) / (to - from) } else { 1.0 };
        let (start, end, share) = match done <= turn {
            true => (first, second, part(0.0, turn)),
            false => (second, third, part(turn, last)),
        };
        match cosine {
            true => end + (start - end) / 2.0 * (1.0 + (PI * share).cos()),
            false => (end - start) * share + start,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn schedule(kind: ScheduleKind, warmup: Warmup) -> Schedule {
        Schedule { kind, warmup, quadratic_warmup: false }
    }

    #[test]
    fn warm_up_is_resolved_by_the_number_of_steps() {
        let warmup = |warmup, steps| LearningRate::new(&schedule(ScheduleKind::Constant, warmup), 1.0, steps).warmup();
        assert_eq!(warmup(Warmup::Ratio(0.1), 45), 5);
        assert_eq!(warmup(Warmup::Auto, 40), 2);
        assert_eq!(warmup(Warmup::Auto, 10), 0);
        assert_eq!(warmup(Warmup::Auto, 100_000), 100);
    }

    #[test]
    fn every_course_is_that_of_its_reference() {
        let text = std::fs::read_to_string(Fixture::path("schedules/reference.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 15, "{}", cases.len());
        for case in cases {
            let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
            let rates: Vec<f64> = serde_json::from_value(case["rates"].clone()).unwrap();
            let course = LearningRate::new(&schedule, case["peak"].as_f64().unwrap(), case["steps"].as_u64().unwrap());
            for (done, rate) in rates.iter().enumerate() {
                let own = course.at(done as u64);
                assert!(
                    (own - rate).abs() <= 1e-12 * rate.abs().max(1e-6),
                    "{}, step {done}: {own} {rate}",
                    case["name"]
                );
            }
            let momenta: Vec<f64> = serde_json::from_value(case["momenta"].clone()).unwrap();
            for (done, momentum) in momenta.iter().enumerate() {
                assert!((course.momentum_at(done as u64).unwrap() - momentum).abs() < 1e-12, "{} {done}", case["name"]);
            }
        }
    }
}
