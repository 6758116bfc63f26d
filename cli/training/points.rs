//! The steps at which training evaluates or saves, by the rule that training itself follows.

use pipe_stages::compile::EvalPoints;

use crate::report::format;

/// Steps, in order; long lists keep their beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Points {
    pub steps: Vec<u64>,
    pub count: u64,
}

/// Steps that are listed at most.
const LISTED: usize = 1000;

impl Points {
    /// Those of `total` steps after which something is due.
    pub fn of(points: EvalPoints, total: u64, per_epoch: u64) -> Points {
        let mut found = Points::default();
        for step in (1..=total).filter(|step| points.is_due(*step, per_epoch, total)) {
            found.count += 1;
            if found.steps.len() < LISTED {
                found.steps.push(step);
            }
        }
        found
    }

    /// Those before `end`.
    pub fn before(mut self, end: u64) -> Points {
        if self.steps.last() == Some(&end) || (self.count as usize > self.steps.len() && end > 0) {
            self.count -= 1;
        }
        self.steps.retain(|step| *step < end);
        self
    }

    /// `after 120, 180` or `35 times: after 10, 20, 30, ...`.
    pub fn told(&self) -> String {
        let some: Vec<String> = self.steps.iter().take(5).map(|step| format::count(*step)).collect();
        match self.count {
            0 => "never".to_string(),
            n if n as usize <= some.len() => format!("after {}", some.join(", ")),
            n => format!("{} times: after {}, ...", format::count(n), some[..3].join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_fall_where_training_puts_them() {
        use EvalPoints::{EveryEpoch, EveryShare, EverySteps, Never};
        let points = |kind: EvalPoints, total| Points::of(kind, total, 120).steps;
        assert_eq!(points(EveryEpoch, 180), [120, 180]);
        assert_eq!(points(EveryShare(1.0 / 3.0), 180), [60, 120, 180]);
        // Four points asked for in ten steps: every third, as transformers, and the last.
        assert_eq!(points(EveryShare(0.25), 10), [3, 6, 9, 10]);
        assert_eq!(points(EveryShare(1.0), 7), [7]);
        assert_eq!(points(EverySteps(50), 180), [50, 100, 150]);
        assert!(points(Never, 180).is_empty());
        let saves = Points::of(EveryShare(1.0 / 3.0), 180, 120).before(180);
        assert_eq!((saves.count, saves.told()), (2, "after 60, 120".to_string()));
        let many = Points::of(EverySteps(1), 5000, 120);
        assert_eq!(many.told(), "5,000 times: after 1, 2, 3, ...");
    }
}
