//! Base against tuned, from what the eval node says of itself.

use indexmap::IndexMap;
use serde_json::Value;

use super::summary::{Sample, Scale, Score};

/// One score per measure and split: `models` is `{model: {split: {measure: number}}}`.
pub fn scores(stats: &IndexMap<String, Value>) -> Vec<Score> {
    let models = stats.get("models").unwrap_or(&Value::Null);
    let value = |model: &str, split: &str, measure: &str| models.get(model)?.get(split)?.get(measure)?.as_f64();
    let mut out = Vec::new();
    for (measure, name, scale) in
        [("perplexity", "perplexity", Scale::Number), ("exact_match", "exact match", Scale::Share)]
    {
        for split in ["val", "test"] {
            let (base, tuned) = (value("base", split, measure), value("tuned", split, measure));
            if base.is_some() || tuned.is_some() {
                let (measure, split) = (name.to_string(), split.to_string());
                out.push(Score { measure, split, base, tuned, scale });
            }
        }
    }
    out
}

/// Answers to free prompts first, then to held-out rows.
pub fn samples(stats: &IndexMap<String, Value>) -> Vec<Sample> {
    let lists = ["samples", "answers"].into_iter().filter_map(|name| stats.get(name)?.as_array());
    let text = |row: &Value, key: &str| row.get(key)?.as_str().map(str::to_string);
    let sample = |row: &Value| {
        let prompt = text(row, "prompt")?;
        Some(Sample { prompt, expected: text(row, "expected"), base: text(row, "base"), tuned: text(row, "tuned") })
    };
    lists.flatten().filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scores_pair_the_models_by_split() {
        let models = json!({
            "base": {"test": {"perplexity": 20.0, "exact_match": 0.0}},
            "tuned": {"test": {"perplexity": 1.5, "exact_match": 0.9}, "val": {"perplexity": 1.4}},
        });
        let stats = IndexMap::from([("models".to_string(), models)]);
        let told: Vec<_> = scores(&stats).into_iter().map(|s| (s.measure, s.split, s.base, s.tuned)).collect();
        let expected = [
            ("perplexity", "val", None, Some(1.4)),
            ("perplexity", "test", Some(20.0), Some(1.5)),
            ("exact match", "test", Some(0.0), Some(0.9)),
        ];
        assert_eq!(told, expected.map(|(m, s, b, t)| (m.to_string(), s.to_string(), b, t)));
    }
}
