//! What stages did to rows: dropped, changed, added, held out, mixed. One line per node that has something to say.

use indexmap::IndexMap;
use pipe_engine::event::NodeFinished;
use pipe_engine::plan::Plan;
use serde_json::Value;

use super::format::{count, percent};
use super::style::{BOLD, NOTE, paint};

/// Prefixes of statistics and the words before their counts.
const KINDS: [(&str, &str); 3] = [("dropped_", "dropped"), ("added_", "added"), ("redacted_", "redacted")];
/// Other statistics, and the words after their counts.
const PLAIN: [(&str, &str); 9] = [
    ("html", "html"),
    ("boilerplate", "boilerplate"),
    ("normalized", "normalized"),
    ("masked", "masked"),
    ("contaminated", "contaminated"),
    ("language_unsure", "language unsure"),
    ("left_out", "left out"),
    ("leaks_same_prompt", "of train ask what a held-out row asks"),
    ("leaks_near_prompt", "of train ask nearly what a held-out row asks"),
];

/// Labels of the datasets that are mixed, in the order in which pack reads them.
pub fn mixed(plan: &Plan) -> Vec<String> {
    let pack = plan.nodes().iter().find(|node| node.name.as_str() == "pack.train");
    let from = pack.into_iter().flat_map(|node| &node.inputs).map(|input| input.from.as_str());
    from.map(|name| name.split_once('.').map_or(name, |(_, label)| label).to_string()).collect()
}

/// The lines, under a heading; `None` where there is nothing to say.
pub fn section(nodes: &[NodeFinished], mixed: &[String]) -> Option<String> {
    let told: Vec<(String, String)> = nodes
        .iter()
        .map(|node| (node.node.to_string(), line(&node.stats, mixed)))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let widest = told.iter().map(|(name, _)| name.chars().count()).max()?;
    let lines: Vec<String> = told.iter().map(|(name, line)| format!("  {name:<widest$}  {line}")).collect();
    Some(format!("{}\n{}", paint(BOLD, "rows"), lines.join("\n")))
}

/// What one node's statistics say.
pub fn line(stats: &IndexMap<String, Value>, mixed: &[String]) -> String {
    let mut parts = Vec::new();
    for (prefix, word) in KINDS {
        let counts = stats.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value.as_u64()?)));
        let counts: Vec<String> = counts
            .filter(|(_, n)| *n > 0)
            .map(|(name, n)| format!("{} {}", count(n), name.replace('_', " ")))
            .collect();
        if !counts.is_empty() {
            parts.push(format!("{word} {}", counts.join(", ")));
        }
    }
    let plain = PLAIN.iter().filter_map(|(name, words)| Some((words, stats.get(*name)?.as_u64().filter(|n| *n > 0)?)));
    parts.extend(plain.map(|(words, n)| format!("{} {words}", count(n))));
    parts.extend(stats.get("endpoint").map(bill));
    parts.extend(stats.get("mix").map(|mix| mix_line(mix, mixed)));
    parts.join("; ")
}

fn bill(bill: &Value) -> String {
    let number = |name: &str| bill.get(name).and_then(Value::as_u64).unwrap_or(0);
    let cost = bill.get("cost").and_then(Value::as_f64).map(|cost| format!(", cost {cost:.4}")).unwrap_or_default();
    format!(
        "{} requests ({} answered before, {} sent again), {} tokens in, {} out{cost}",
        count(number("requests")),
        count(number("cached")),
        count(number("retries")),
        count(number("input_tokens")),
        count(number("output_tokens"))
    )
}

/// `mix: docs 600 rows (75.0 %), chat 200 rows (25.0 %, 2.0 times)`.
pub fn mix_line(mix: &Value, labels: &[String]) -> String {
    let datasets = mix.get("datasets").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let told = datasets.iter().enumerate().map(|(i, dataset)| {
        let number = |name: &str| dataset.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let name = labels.get(i).cloned().unwrap_or_else(|| format!("dataset {}", i + 1));
        let repeats = number("repeats");
        let times = if repeats > 1.0 { format!(", {repeats:.1} times") } else { String::new() };
        format!("{} {} rows ({}{times})", paint(NOTE, name), count(number("taken") as u64), percent(number("share")))
    });
    format!("mix: {}", told.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_told_in_words() {
        let stats: IndexMap<String, Value> = [
            ("read", json!(10)),
            ("dropped_near_duplicate", json!(1200)),
            ("dropped_empty", json!(0)),
            ("redacted_email", json!(3)),
            ("normalized", json!(7)),
            (
                "mix",
                json!({"datasets": [{"taken": 600, "share": 0.75, "repeats": 0.5}, {"taken": 200, "share": 0.25, "repeats": 2.0}]}),
            ),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect();
        let labels = ["docs".to_string(), "chat".to_string()];
        assert_eq!(
            anstream::adapter::strip_str(&line(&stats, &labels)).to_string(),
            "dropped 1,200 near duplicate; redacted 3 email; 7 normalized; \
             mix: docs 600 rows (75.0 %), chat 200 rows (25.0 %, 2.0 times)"
        );
    }
}
