//! `split`: which rows of which splits, in Hugging Face datasets' words: `train[:10%]`, `train[100:200]+validation[-5%:]`.

use serde::Serialize;

/// Some rows of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slice {
    pub split: String,
    pub from: Option<i64>,
    pub to: Option<i64>,
    pub unit: Unit,
}

/// What the bounds of a slice count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Rows,
    /// Hundredths of the rows, rounded to the nearest row.
    Percent,
    /// Hundredths of the same size each; the rows left over are dropped.
    PercentDropRemainder,
}

impl Slice {
    /// Every row of a split.
    pub fn whole(split: &str) -> Slice {
        Slice { split: split.to_string(), from: None, to: None, unit: Unit::Rows }
    }

    /// Whether the number of rows must be known before the slice can be taken.
    pub fn needs_count(&self) -> bool {
        self.unit != Unit::Rows || self.from.unwrap_or(0) < 0 || self.to.unwrap_or(0) < 0
    }

    /// The rows of a split of `rows` rows, from the first to before the second.
    pub fn range(&self, rows: u64) -> Result<(u64, u64), String> {
        let rows = rows as i64;
        if self.unit == Unit::PercentDropRemainder && rows < 100 {
            return Err(format!("pct1_dropremainder needs 100 rows at least, and there are {rows}"));
        }
        let absolute = |bound: i64| match self.unit {
            Unit::Rows => bound,
            Unit::Percent => round_half_even(bound * rows),
            Unit::PercentDropRemainder => bound * (rows / 100),
        };
        let place = |bound: Option<i64>, open: i64| {
            let at = bound.map_or(open, absolute);
            let at = if at < 0 { (rows + at).max(0) } else { at };
            at.min(rows) as u64
        };
        let (from, to) = (place(self.from, 0), place(self.to, rows));
        Ok((from, to.max(from)))
    }
}

/// A hundredth of `hundredfold`, a half going to the even neighbour as Python's `round` has it.
fn round_half_even(hundredfold: i64) -> i64 {
    let (floor, rest) = (hundredfold.div_euclid(100), hundredfold.rem_euclid(100));
    match rest.cmp(&50) {
        std::cmp::Ordering::Less => floor,
        std::cmp::Ordering::Greater => floor + 1,
        std::cmp::Ordering::Equal => floor + floor.rem_euclid(2),
    }
}

/// The slices that a `split` adds up.
///
/// # Errors
/// Says what is wrong and how a slice is written.
pub fn parse(text: &str) -> Result<Vec<Slice>, String> {
    text.split('+').map(|part| one(part.trim()).map_err(|why| format!("`{}`: {why}", part.trim()))).collect()
}

fn one(text: &str) -> Result<Slice, String> {
    let (text, rounding) = match text.split_once('(') {
        Some((before, rounding)) => {
            let rounding = rounding.strip_suffix(')').ok_or("the `(` is never closed")?;
            (before.trim_end(), Some(rounding.trim()))
        }
        None => (text, None),
    };
    let (split, bounds) = match text.split_once('[') {
        Some((split, bounds)) => (split.trim_end(), Some(bounds.strip_suffix(']').ok_or("the `[` is never closed")?)),
        None => (text, None),
    };
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    if !split.split('.').all(plain) {
        return Err("a slice is written `train`, `train[100:200]` or `train[:10%]`, and joined by `+`".into());
    }
    let mut slice = Slice::whole(split);
    if let Some(bounds) = bounds {
        let (from, to) = bounds.split_once(':').ok_or("between `[` and `]` stand two bounds with `:` between them")?;
        let (from, to) = (bound(from)?, bound(to)?);
        let percent = [&from, &to].iter().any(|bound| bound.is_some_and(|(_, percent)| percent));
        (slice.from, slice.to) = (from.map(|(number, _)| number), to.map(|(number, _)| number));
        if percent {
            slice.unit = Unit::Percent;
            if [slice.from, slice.to].into_iter().flatten().any(|number| number.abs() > 100) {
                return Err("a share is at most 100%".into());
            }
        }
    }
    match rounding {
        None | Some("closest") => {}
        Some("pct1_dropremainder") if slice.unit == Unit::Percent => slice.unit = Unit::PercentDropRemainder,
        Some("pct1_dropremainder") => return Err("pct1_dropremainder goes with bounds in %".into()),
        Some(other) => return Err(format!("there is no rounding `{other}`; there are closest and pct1_dropremainder")),
    }
    Ok(slice)
}

/// A bound, and whether it is a share.
fn bound(text: &str) -> Result<Option<(i64, bool)>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (number, percent) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let number = number.parse().map_err(|_| format!("`{text}` is no bound; write a whole number, or one with %"))?;
    Ok(Some((number, percent)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What `datasets.ReadInstruction` makes of slices; see `tests/fixtures/slices`.
    #[test]
    fn slices_are_those_of_hugging_face_datasets() {
        let cases = include_str!("../../../tests/fixtures/slices/slices.jsonl");
        let mut seen = 0;
        for line in cases.lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let (text, rows) = (case["split"].as_str().unwrap(), case["rows"].as_u64().unwrap());
            let ranges: Result<Vec<(u64, u64)>, String> =
                parse(text).and_then(|slices| slices.iter().map(|slice| slice.range(rows)).collect());
            match serde_json::from_value::<Vec<(u64, u64)>>(case["ranges"].clone()) {
                Ok(expected) => assert_eq!(ranges.as_deref(), Ok(expected.as_slice()), "{text} of {rows}"),
                Err(_) => assert!(ranges.is_err(), "{text} of {rows}: {ranges:?}"),
            }
            seen += 1;
        }
        assert!(seen > 200, "{seen} cases");
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, why) in [
            ("train[:10", "never closed"),
            ("train[10]", "two bounds"),
            ("train[a:b]", "`a` is no bound"),
            ("train[:101%]", "at most 100%"),
            ("train+", "a slice is written"),
            ("tr ain", "a slice is written"),
            ("train[:5](pct1_dropremainder)", "bounds in %"),
            ("train[:5%](floor)", "no rounding `floor`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
