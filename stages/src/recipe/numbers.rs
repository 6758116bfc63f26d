//! Numbers and their ranges, also where they are written as text: in quotes, or as `2e-4`, which YAML 1.1 reads as text.
//!
//! A schema can hold a text only against a pattern. So the texts that count as numbers are those that a pattern can tell
//! to be in range; [`Range::pattern`] and [`Range::read`] say the same rule, one to editors and one to `validate`.

use serde_json::{Map, Value, json};

/// Largest whole number, up to which every reader is exact and a pattern can count digits.
pub(super) const MOST_WHOLE: u64 = 999_999_999_999_999;
/// Beyond this a number is as good as infinite.
const MOST: f64 = 1e300;
const WHOLE_DIGITS: usize = 15;
const SIGNED: &str = "^[-+]?";
const UNSIGNED: &str = r"^\+?";
/// Of at most three digits before the point, with an exponent that makes it less than 1.
const SMALL: &str = r"[1-9](\.[0-9]*)?[eE]-(0?[1-9]|[1-9][0-9])|[1-9][0-9](\.[0-9]*)?[eE]-(0?[2-9]|[1-9][0-9])|[1-9][0-9]{2}(\.[0-9]*)?[eE]-(0?[3-9]|[1-9][0-9])";

/// What a numeric schema allows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Range {
    /// Whole numbers only.
    pub whole: bool,
    /// Up to 1 a share, above it a whole number.
    pub share_or_count: bool,
    pub least: Option<f64>,
    pub above: Option<f64>,
    pub most: Option<f64>,
    pub below: Option<f64>,
}

impl Range {
    pub fn of(schema: &Value) -> Range {
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        let names = |name: &str| match schema.get("type") {
            Some(Value::String(one)) => one == name,
            Some(Value::Array(several)) => several.iter().any(|one| one == name),
            _ => false,
        };
        Range {
            whole: names("integer") && !names("number"),
            share_or_count: schema.pointer("/then/multipleOf").is_some(),
            least: bound("minimum").filter(|low| *low > -MOST && *low != -(MOST_WHOLE as f64)),
            above: bound("exclusiveMinimum"),
            most: bound("maximum").filter(|high| *high != MOST_WHOLE as f64),
            below: bound("exclusiveMaximum"),
        }
    }

    /// Bounds that keep numbers finite and exact, where the schema has none of its own.
    pub fn close(schema: &mut Map<String, Value>, whole: bool) {
        let has = |schema: &Map<String, Value>, keys: [&str; 2]| keys.iter().any(|key| schema.contains_key(*key));
        let low = has(schema, ["minimum", "exclusiveMinimum"]);
        if whole {
            if !low {
                schema.insert("minimum".to_string(), json!(-(MOST_WHOLE as i64)));
            }
            if !has(schema, ["maximum", "exclusiveMaximum"]) {
                schema.insert("maximum".to_string(), json!(MOST_WHOLE));
            }
        } else {
            if !low {
                schema.insert("minimum".to_string(), json!(-MOST));
            }
            // Unlike a maximum, this keeps out what is not a number as well.
            schema.insert("not".to_string(), json!({"type": "number", "minimum": MOST}));
        }
    }

    pub fn has(&self, x: f64) -> bool {
        let whole = !self.whole || x.fract() == 0.0 && x.abs() <= MOST_WHOLE as f64;
        x.abs() < MOST
            && whole
            && !(self.share_or_count && x > 1.0 && x.fract() != 0.0)
            && self.least.is_none_or(|low| x >= low)
            && self.above.is_none_or(|low| x > low)
            && self.most.is_none_or(|high| x <= high)
            && self.below.is_none_or(|high| x < high)
    }

    /// The bounds in words.
    pub fn words(&self) -> String {
        let low = self.least.map(|low| format!("at least {low}")).or(self.above.map(|low| format!("more than {low}")));
        let high = self.most.map(|high| format!("at most {high}"));
        let high = high.or(self.below.map(|high| format!("less than {high}")));
        match (low, high) {
            _ if self.share_or_count => match self.above {
                Some(_) => "a share above 0 and at most 1, or a whole number above 1".to_string(),
                None => "a share of at most 1, or a whole number of rows".to_string(),
            },
            (Some(_), Some(_)) if self.least.is_some() && self.most.is_some() => {
                format!("between {} and {}", self.least.unwrap_or(0.0), self.most.unwrap_or(0.0))
            }
            (Some(low), Some(high)) => format!("{low} and {high}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) if self.whole => format!("less than {}", MOST_WHOLE + 1),
            (None, None) => "a finite number".to_string(),
        }
    }

    /// The number that `text` writes, if it is one in this range and of the form that [`Range::pattern`] takes.
    pub fn read(&self, text: &str) -> Option<f64> {
        let body = text.strip_prefix('+').unwrap_or(text);
        let body =
            if self.signed() && body.len() == text.len() { body.strip_prefix('-').unwrap_or(body) } else { body };
        let (mantissa, exponent) = match body.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (body, None),
        };
        let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(before) || !digits(after) || before.len() + after.len() == 0 {
            return None;
        }
        let significant = before.trim_start_matches('0').len();
        let fits = match exponent {
            None if self.whole => !before.is_empty() && significant <= WHOLE_DIGITS && after.bytes().all(|b| b == b'0'),
            None => !(self.share_or_count && significant > WHOLE_DIGITS),
            Some(power) => !self.whole && self.takes_power(before, power),
        };
        let value: f64 = text.parse().ok().filter(|_| fits)?;
        self.has(value).then_some(value)
    }

    /// Whether a mantissa with these digits before its point may have this exponent.
    fn takes_power(&self, before: &str, power: &str) -> bool {
        let size = power.strip_prefix(['-', '+']).unwrap_or(power);
        if size.is_empty() || size.len() > 2 || !size.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
        let small = power.starts_with('-') && size.parse::<usize>().is_ok_and(|size| size >= before.len());
        let form = !self.bounded() || small && (1..=3).contains(&before.len()) && !before.starts_with('0');
        form && self.least.is_none_or(|low| low <= 0.0)
    }

    /// The regular expression of texts that count.
    pub fn pattern(&self) -> String {
        let sign = if self.signed() { SIGNED } else { UNSIGNED };
        let body = if self.whole {
            let low = self.least.or(self.above.map(|low| low + 1.0)).unwrap_or(0.0).max(0.0) as u64;
            let high = self.most.or(self.below.map(|high| high - 1.0)).map_or(MOST_WHOLE, |high| high as u64);
            format!(r"0*({})(\.0*)?", digits(low, high))
        } else {
            self.number_pattern()
        };
        format!("{sign}{body}$")
    }

    fn number_pattern(&self) -> String {
        let ahead = match (self.least, self.above) {
            (_, Some(0.0)) => "(?=[0-9.]*[1-9])",
            (Some(low), _) if low >= 1.0 => "(?=0*[1-9])",
            (Some(low), _) if low > 0.0 => r"(?=0*\.?[1-9])",
            _ => "",
        };
        let powers = self.least.is_none_or(|low| low <= 0.0);
        if !self.bounded() {
            let power = if powers { "([eE][-+]?[0-9]{1,2})?" } else { "" };
            return format!(r"{ahead}([0-9]+\.?[0-9]*|\.[0-9]+){power}");
        }
        let mut forms = vec![r"0*\.[0-9]+".to_string()];
        if self.share_or_count {
            forms.extend([r"0+(\.[0-9]*)?".to_string(), format!(r"0*({})(\.0*)?", digits(1, MOST_WHOLE))]);
        } else {
            let top = self.most.or(self.below).unwrap_or(1.0) as u64;
            forms.push(format!(r"0*({})(\.[0-9]*)?", digits(0, top.saturating_sub(1))));
            if self.most.is_some() {
                forms.push(format!(r"0*{top}(\.0*)?"));
            }
        }
        if powers {
            forms.push(SMALL.to_string());
        }
        format!("{ahead}({})", forms.join("|"))
    }

    /// Whether some finite number is outside.
    pub fn is_bounded(&self) -> bool {
        self.bounded() || self.least.is_some() || self.above.is_some()
    }

    fn signed(&self) -> bool {
        self.least.or(self.above).is_none_or(|low| low < 0.0)
    }

    fn bounded(&self) -> bool {
        self.share_or_count || self.most.is_some() || self.below.is_some()
    }
}

/// Whether a pattern is one of numbers, which are read as numbers.
pub(super) fn is_pattern(pattern: &str) -> bool {
    pattern.starts_with(SIGNED) || pattern.starts_with(UNSIGNED)
}

/// A regular expression of the whole numbers from `low` to `high`, without leading zeros.
fn digits(low: u64, high: u64) -> String {
    let mut forms = Vec::new();
    if low == 0 {
        forms.push("0".to_string());
    }
    let low = low.max(1);
    let mut full: Option<(u32, u32)> = None;
    for length in 1..=20 {
        let Some(first) = 10u64.checked_pow(length - 1).filter(|first| *first <= high) else { break };
        let last = first.saturating_mul(10) - 1;
        if last < low {
            continue;
        }
        if low <= first && high >= last {
            full = Some((full.map_or(length - 1, |(from, _)| from), length - 1));
        } else {
            forms.extend(same_length(&low.max(first).to_string(), &high.min(last).to_string()));
        }
    }
    let full = full.map(|(from, to)| match (from, to) {
        (0, 0) => "[1-9]".to_string(),
        (from, to) if from == to => format!("[1-9][0-9]{{{to}}}"),
        (from, to) => format!("[1-9][0-9]{{{from},{to}}}"),
    });
    forms.extend(full);
    forms.join("|")
}

/// The numbers from `low` to `high`, which have equally many digits.
fn same_length(low: &str, high: &str) -> Vec<String> {
    let (Some(a), Some(b)) = (low.bytes().next(), high.bytes().next()) else { return vec![String::new()] };
    let any = |count: usize| match count {
        0 => String::new(),
        1 => "[0-9]".to_string(),
        _ => format!("[0-9]{{{count}}}"),
    };
    let class = |from: u8, to: u8| match from == to {
        true => char::from(from).to_string(),
        false => format!("[{}-{}]", char::from(from), char::from(to)),
    };
    let (low_rest, high_rest) = (&low[1..], &high[1..]);
    let after = |first: u8, rest: Vec<String>| rest.into_iter().map(move |rest| format!("{}{rest}", char::from(first)));
    if a == b {
        return after(a, same_length(low_rest, high_rest)).collect();
    }
    let (mut forms, mut from, mut to) = (Vec::new(), a, b);
    if low_rest.bytes().any(|digit| digit != b'0') {
        forms.extend(after(a, same_length(low_rest, &"9".repeat(low_rest.len()))));
        from += 1;
    }
    let whole = high_rest.bytes().all(|digit| digit == b'9');
    if !whole {
        to -= 1;
    }
    if from <= to {
        forms.push(format!("{}{}", class(from, to), any(low_rest.len())));
    }
    if !whole {
        forms.extend(after(b, same_length(&"0".repeat(high_rest.len()), high_rest)));
    }
    forms
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> Vec<Range> {
        let number = Range::default();
        let whole = Range { whole: true, ..number };
        vec![
            number,
            Range { least: Some(0.0), ..number },
            Range { above: Some(0.0), ..number },
            Range { least: Some(1.0), ..number },
            Range { least: Some(0.0), most: Some(1.0), ..number },
            Range { least: Some(0.0), below: Some(1.0), ..number },
            Range { above: Some(0.0), below: Some(1.0), ..number },
            Range { above: Some(0.0), most: Some(100.0), ..number },
            Range { least: Some(0.0), most: Some(2.0), ..number },
            Range { least: Some(0.1), most: Some(1.0), ..number },
            Range { least: Some(0.0), share_or_count: true, ..number },
            Range { above: Some(0.0), share_or_count: true, ..number },
            whole,
            Range { least: Some(0.0), ..whole },
            Range { least: Some(1.0), ..whole },
            Range { least: Some(1.0), most: Some(65_536.0), ..whole },
            Range { least: Some(1.0), most: Some(10_000_000.0), ..whole },
            Range { least: Some(3.0), most: Some(50.0), ..whole },
            Range { least: Some(4.0), most: Some(4.0), ..whole },
            Range { least: Some(0.0), most: Some(1000.0), ..whole },
        ]
    }

    /// The engine used here has no look-ahead: its two parts are matched one after the other.
    fn matches(pattern: &str, text: &str) -> bool {
        let is = |pattern: &str| regex::Regex::new(pattern).unwrap().is_match(text);
        match pattern.split_once("(?=") {
            Some((sign, rest)) => {
                let at = rest.find("])").map(|at| at + 1).unwrap();
                is(&format!("{sign}{}", &rest[..at])) && is(&format!("{sign}{}", &rest[at + 1..]))
            }
            None => is(pattern),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_pattern_and_the_reader_agree(
            texts in proptest::collection::vec(r"[-+]?0{0,2}[0-9]{0,8}\.?[0-9]{0,3}([eE][-+]?[0-9]{1,3})?", 40)
        ) {
            for range in ranges() {
                let pattern = range.pattern();
                for text in &texts {
                    prop_assert_eq!(
                        matches(&pattern, text), range.read(text).is_some(), "{} for {:?}: {}", text, range, pattern
                    );
                }
            }
        }
    }

    #[test]
    fn whole_numbers_in_range_match_and_no_others() {
        for (low, high) in [(0, 9), (1, 10), (3, 50), (0, 1000), (1, 65_536), (7, 7), (95, 1205)] {
            let pattern = regex::Regex::new(&format!("^({})$", digits(low, high))).unwrap();
            for n in (0..=1300).chain(65_000..=66_000) {
                assert_eq!(pattern.is_match(&n.to_string()), (low..=high).contains(&n), "{n} in {low}..={high}");
            }
        }
    }

    #[test]
    fn bounds_in_words() {
        let words: Vec<String> = ranges().iter().map(Range::words).collect();
        assert_eq!(
            words[4..8],
            [
                "between 0 and 1",
                "at least 0 and less than 1",
                "more than 0 and less than 1",
                "more than 0 and at most 100"
            ]
        );
    }
}
