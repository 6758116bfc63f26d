//! The steps at which training evaluates or saves, by the rule that training itself follows.

use serde_json::Value;

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
    /// `points` as the training stage has them: `{"kind": "never" | "every_steps" | "per_epoch", "value": n}`.
    pub fn of(points: &Value, total: u64, per_epoch: u64) -> Points {
        let value = points["value"].as_u64().unwrap_or(0);
        let is_due = |step: u64| match points["kind"].as_str() {
            Some("every_steps") => value > 0 && step.is_multiple_of(value),
            Some("per_epoch") => {
                let every = (per_epoch / value.max(1)).max(1);
                let within = step % per_epoch.max(1);
                within == 0 || within.is_multiple_of(every)
            }
            _ => false,
        };
        if !matches!(points["kind"].as_str(), Some("every_steps" | "per_epoch")) {
            return Points::default();
        }
        let due = (1..=total).filter(|step| is_due(*step));
        let mut found = Points::default();
        for step in due {
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
    use serde_json::json;

    #[test]
    fn points_fall_where_training_puts_them() {
        let points = |value: Value, total| Points::of(&value, total, 120).steps;
        assert_eq!(points(json!({"kind": "per_epoch", "value": 1}), 180), [120]);
        assert_eq!(points(json!({"kind": "per_epoch", "value": 2}), 180), [60, 120, 180]);
        assert_eq!(points(json!({"kind": "every_steps", "value": 50}), 180), [50, 100, 150]);
        assert!(points(json!({"kind": "never"}), 180).is_empty());
        let saves = Points::of(&json!({"kind": "per_epoch", "value": 2}), 180, 120).before(180);
        assert_eq!((saves.count, saves.told()), (2, "after 60, 120".to_string()));
        let many = Points::of(&json!({"kind": "every_steps", "value": 1}), 5000, 120);
        assert_eq!(many.told(), "5,000 times: after 1, 2, 3, ...");
    }
}
