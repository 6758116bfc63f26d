//! Base against tuned, from what the eval node says of itself.

use indexmap::IndexMap;
use serde_json::Value;

use super::summary::{Measured, Sample, Scale, Score, Scores};

/// Counts, and what perplexity says already: the closing summary leaves them out.
const UNTOLD: [&str; 4] = ["loss", "tokens", "trained_tokens", "rows"];
/// With more rows than this, those of single datasets are left to `eval.json`.
const MOST_ROWS: usize = 24;

/// What is worth a line in the closing summary.
pub fn scores(stats: &IndexMap<String, Value>) -> Scores {
    let all = all_scores(stats);
    let told = |scores: Scores| {
        let rows = scores.rows.into_iter().filter(|row| !UNTOLD.contains(&row.name.as_str())).collect();
        Scores { rows, ..scores }
    };
    let with_tasks = told(all.clone());
    match with_tasks.rows.len() > MOST_ROWS {
        true => told(Scores { rows: all.rows.into_iter().filter(|row| row.task.is_none()).collect(), ..all }),
        false => with_tasks,
    }
}

/// One row per measure and split, then per dataset where there are several: `models` is `{model: {split: {measure:
/// number}}}`, `intervals` holds pairs in the same places, and `tasks` has both for every dataset.
pub fn all_scores(stats: &IndexMap<String, Value>) -> Scores {
    let (models, intervals) = (stats.get("models").unwrap_or(&Value::Null), stats.get("intervals"));
    let mut scores = Scores { rows: Vec::new(), models: keys(Some(models)) };
    rows(models, intervals, None, &mut scores);
    let tasks = stats.get("tasks").and_then(Value::as_object).filter(|tasks| tasks.len() > 1);
    for (task, tables) in tasks.into_iter().flatten() {
        rows(&tables["models"], tables.get("intervals"), Some(task), &mut scores);
    }
    scores
}

fn rows(models: &Value, intervals: Option<&Value>, task: Option<&str>, scores: &mut Scores) {
    let of_models = || scores.models.iter().map(|model| &models[model]);
    let mut splits: Vec<String> = Vec::new();
    let mut measures: Vec<String> = Vec::new();
    for table in of_models() {
        merge(&mut splits, keys(Some(table)));
        table.as_object().into_iter().flatten().for_each(|(_, row)| merge(&mut measures, keys(Some(row))));
    }
    splits.sort_by_key(|split| ["train", "val", "test"].iter().position(|known| known == split).unwrap_or(3));
    for measure in &measures {
        for split in &splits {
            let cell = |model: &String| {
                let value = models[model][split][measure].as_f64()?;
                let ends = intervals.map(|intervals| &intervals[model][split][measure]);
                let interval = ends.and_then(|ends| Some([ends[0].as_f64()?, ends[1].as_f64()?]));
                Some(Measured { value, interval })
            };
            let cells: Vec<_> = scores.models.iter().map(cell).collect();
            if cells.iter().any(Option::is_some) {
                let (name, split, task) = (measure.clone(), split.clone(), task.map(str::to_string));
                scores.rows.push(Score { name, split, task, cells });
            }
        }
    }
}

/// A measure as it is spoken of.
pub fn spoken(measure: &str) -> String {
    match measure {
        "bleu" => "BLEU".to_string(),
        "chrf" => "chrF".to_string(),
        "rouge_l" => "ROUGE-L".to_string(),
        "token_f1" => "token F1".to_string(),
        _ => measure.replace('_', " "),
    }
}

/// How a measure is written.
pub fn scale(measure: &str) -> Scale {
    match measure {
        "tokens" | "trained_tokens" | "rows" => Scale::Count,
        "loss" | "perplexity" | "bleu" | "chrf" => Scale::Number,
        _ => Scale::Share,
    }
}

fn keys(table: Option<&Value>) -> Vec<String> {
    table.and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// Adds what is not there yet.
fn merge(names: &mut Vec<String>, more: Vec<String>) {
    for name in more {
        if !names.contains(&name) {
            names.push(name);
        }
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(stats: Value) -> Vec<String> {
        let Value::Object(stats) = stats else { return Vec::new() };
        let line = |row: &Score| {
            let cells = row.cells.iter().map(|cell| cell.map_or("-".to_string(), |cell| cell.told(row.scale())));
            format!("{} ({}): {}", row.spoken(), row.of(), cells.collect::<Vec<_>>().join(" | "))
        };
        scores(&stats.into_iter().collect()).rows.iter().map(line).collect()
    }

    #[test]
    fn scores_pair_the_models_by_split() {
        let stats = json!({
            "models": {
                "base": {"test": {"loss": 3.0, "perplexity": 20.0, "rows": 9, "exact_match": 0.0}},
                "tuned": {
                    "test": {"perplexity": 1.5, "exact_match": 0.9, "bleu": 51.25},
                    "val": {"perplexity": 1.4},
                },
            },
            "intervals": {"tuned": {"test": {"exact_match": [0.8, 0.95]}}},
        });
        let expected = [
            "perplexity (val): - | 1.400",
            "perplexity (test): 20.00 | 1.500",
            "exact match (test): 0.0 % | 90.0 % (80.0 to 95.0)",
            "BLEU (test): - | 51.25",
        ];
        assert_eq!(told(stats), expected);
    }

    #[test]
    fn datasets_are_told_where_there_are_several() {
        let table = |share: f64| json!({"models": {"base": {"test": {"exact_match": share}}}});
        let whole = json!({"base": {"test": {"exact_match": 0.5}}});
        let one = told(json!({"models": whole, "tasks": {"chat": table(0.5)}}));
        assert_eq!(one, ["exact match (test): 50.0 %"]);
        let two = told(json!({"models": whole, "tasks": {"chat": table(0.25), "code": table(0.75)}}));
        assert_eq!(two[1..], ["exact match (test, chat): 25.0 %", "exact match (test, code): 75.0 %"]);
    }
}
