//! What merging and quantising cost, from what their agreement nodes say: perplexity and logits beside those of the model
//! that was merged or quantised.

use pipe_engine::event::NodeFinished;
use serde::Serialize;
use serde_json::Value;

use super::format::{bytes, count, measure, percent};
use super::style::{BOLD, paint};
use super::table::{Align, Column, Table};

/// One model of a comparison, as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// `merged`, or a quantisation type.
    pub name: String,
    /// Of its file or folder.
    pub size: String,
    pub perplexity: String,
    /// `+0.4 %`, of perplexity; empty for what is compared with.
    pub change: String,
    /// Share of positions where both hold the same token likeliest.
    pub same_top: String,
    /// Kullback-Leibler divergence, nats a token.
    pub divergence: String,
    /// Mean and largest distance of two logits.
    pub logits: String,
}

/// A comparison and the rows it was made on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// `merged` or `quantised`.
    pub what: String,
    /// `32 rows of val, 812 trained tokens`.
    pub rows: String,
    pub models: Vec<Compared>,
}

/// The comparisons of a run, in the order of its nodes.
pub fn agreements(nodes: &[NodeFinished]) -> Vec<Agreement> {
    let of = |node: &NodeFinished| {
        let table = node.stats.get("agreement")?;
        let what = if node.node.stage() == "merge" { "merged" } else { "quantised" };
        let made = nodes.iter().find(|made| made.node.as_str() == node.node.stage());
        let size = |name: &str| made?.stats.get(&format!("{name}_bytes"))?.as_u64();
        let number = |key: &str| table.get(key).and_then(Value::as_u64).unwrap_or(0);
        let split = table.get("split").and_then(Value::as_str).unwrap_or_default();
        let rows =
            format!("{} rows of {split}, {} trained tokens", count(number("rows")), count(number("trained_tokens")));
        let models = table.get("models")?.as_object()?;
        let reference = table.get("reference").and_then(Value::as_str).unwrap_or_default();
        let before = models.get(reference).and_then(|model| model.get("perplexity")?.as_f64());
        let models: Vec<Compared> =
            models.iter().map(|(name, measures)| compared(name, measures, before, size(name))).collect();
        (!models.is_empty()).then(|| Agreement { what: what.to_string(), rows, models })
    };
    nodes.iter().filter_map(of).collect()
}

fn compared(name: &str, measures: &Value, before: Option<f64>, size: Option<u64>) -> Compared {
    let number = |key: &str| measures.get(key).and_then(Value::as_f64);
    let is_reference = number("same_top").is_none();
    let change = number("perplexity").zip(before).map(|(after, before)| (after / before - 1.0) * 100.0);
    let mean = number("mean_logit_difference").zip(number("max_logit_difference"));
    Compared {
        name: name.to_string(),
        size: size.map(bytes).unwrap_or_default(),
        perplexity: number("perplexity").map(measure).unwrap_or_default(),
        change: change.filter(|_| !is_reference).map(signed).unwrap_or_default(),
        same_top: number("same_top").map(percent).unwrap_or_default(),
        divergence: number("kl_divergence").map(small).unwrap_or_default(),
        logits: mean.map(|(mean, most)| format!("{} ({})", small(mean), small(most))).unwrap_or_default(),
    }
}

/// Percent with their sign; what rounds to nothing is `+0.0 %`.
fn signed(percent: f64) -> String {
    format!("{:+.1} %", (percent * 10.0).round() / 10.0 + 0.0)
}

/// What rounding alone leaves is not nothing.
fn small(x: f64) -> String {
    if x != 0.0 && x.abs() < 0.001 { format!("{x:.1e}") } else { measure(x) }
}

/// The comparisons as tables; `None` where there are none.
pub fn section(nodes: &[NodeFinished], width: usize) -> Option<String> {
    let tables = agreements(nodes).into_iter().map(|agreement| {
        let column = |head, align, drop| Column { head, align, drop };
        let mut table = Table::new(&[
            column("model", Align::Left, 0),
            column("size", Align::Right, 2),
            column("perplexity", Align::Right, 0),
            column("", Align::Right, 0),
            column("same top token", Align::Right, 1),
            column("divergence", Align::Right, 3),
            column("logits apart (most)", Align::Right, 4),
        ]);
        for model in agreement.models {
            let Compared { name, size, perplexity, change, same_top, divergence, logits } = model;
            table.row(vec![name, size, perplexity, change, same_top, divergence, logits]);
        }
        let head = format!("{} ({})", paint(BOLD, &*agreement.what), agreement.rows);
        std::iter::once(head).chain(table.lines(width)).collect::<Vec<_>>().join("\n")
    });
    let tables: Vec<String> = tables.collect();
    (!tables.is_empty()).then(|| tables.join("\n\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use indexmap::IndexMap;
    use pipe_engine::digest::Digest;
    use pipe_engine::event::NodeOutcome;
    use pipe_engine::plan::NodeName;
    use serde_json::json;

    use super::*;

    fn node(name: &str, stats: Value) -> NodeFinished {
        let Value::Object(stats) = stats else { panic!("an object") };
        NodeFinished {
            node: NodeName::new(name),
            outcome: NodeOutcome::Executed,
            from_remote: false,
            key: Digest::of(b"k"),
            output: Digest::of(b"o"),
            seconds: 1.0,
            peak_rss_bytes: 0,
            bytes_read: 0,
            bytes_written: 0,
            rows: None,
            rows_computed: None,
            rows_reused: None,
            stats: stats.into_iter().collect::<IndexMap<_, _>>(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn quantised_files_stand_beside_the_model_they_were_made_of() {
        let table = json!({
            "rows": 32, "trained_tokens": 812, "split": "val", "reference": "merged",
            "models": {
                "merged": {"loss": 1.0, "perplexity": 8.0},
                "q4_k_m": {"perplexity": 8.4, "same_top": 0.96, "kl_divergence": 0.000021, "mean_logit_difference": 0.2,
                           "max_logit_difference": 1.5},
            },
        });
        let nodes = [
            node("quantize", json!({"q4_k_m_bytes": 105_000_000})),
            node("quantize.agreement", json!({"agreement": table})),
        ];
        let expected = "\
quantised (32 rows of val, 812 trained tokens)
model     size  perplexity          same top token  divergence  logits apart (most)
merged               8.000
q4_k_m  105 MB       8.400  +5.0 %          96.0 %      2.1e-5        0.200 (1.500)";
        assert_eq!(anstream::adapter::strip_str(&section(&nodes, 100).unwrap()).to_string(), expected);
        assert_eq!(section(&nodes[..1], 100), None);
        assert_eq!([-0.01, 0.04, -0.06].map(signed), ["+0.0 %", "+0.0 %", "-0.1 %"]);
    }
}
