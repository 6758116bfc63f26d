//! Scores against sacrebleu, rouge-score and torchmetrics (tests/fixtures/scores), and what intervals promise.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::bootstrap::interval;
use super::score::{Answered, Formula, Series};
use super::sheet::{Block, Sheet};
use super::{bleu, losses, squad};
use crate::recipe::Metric;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/scores/pairs.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

/// A metric over some rows of the fixture.
fn measured(metric: Metric, rows: &[Value]) -> f64 {
    let mut series = Series::new(metric.formula().unwrap());
    for row in rows {
        let told = Answered { prompt: "", expected: text(row, "reference"), answer: text(row, "answer") };
        series.push(&metric.sums(told));
    }
    series.value().unwrap()
}

#[test]
fn every_pair_scores_as_the_reference_programs_say() {
    let fixture = fixture();
    let rows = fixture["pairs"].as_array().unwrap();
    assert!(rows.len() >= 200);
    let metrics = [
        (Metric::NormalizedMatch, "match", 1e-12),
        // torchmetrics answers in 32 bits.
        (Metric::TokenF1, "f1", 1e-6),
        (Metric::Bleu, "bleu", 1e-9),
        (Metric::Chrf, "chrf", 1e-9),
        (Metric::RougeL, "rouge_l", 1e-12),
    ];
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(squad::normalized(text(row, "answer")), text(row, "normalized"), "pair {i}");
        assert_eq!(bleu::tokens(text(row, "answer")).join(" "), text(row, "tokens"), "pair {i}");
        for (metric, key, close) in metrics {
            let (got, want) = (measured(metric, std::slice::from_ref(row)), row[key].as_f64().unwrap());
            assert!((got - want).abs() < close, "pair {i}, {key}: {got}, not {want}: {row}");
        }
    }
}

#[test]
fn corpora_score_as_sacrebleu_says() {
    let fixture = fixture();
    let rows = fixture["pairs"].as_array().unwrap();
    for corpus in fixture["corpora"].as_array().unwrap() {
        let rows = &rows[corpus["first"].as_u64().unwrap() as usize..corpus["last"].as_u64().unwrap() as usize];
        for (metric, key) in [(Metric::Bleu, "bleu"), (Metric::Chrf, "chrf")] {
            let (got, want) = (measured(metric, rows), corpus[key].as_f64().unwrap());
            assert!((got - want).abs() < 1e-9, "{key} of {} rows: {got}, not {want}", rows.len());
        }
    }
}

fn shares(values: &[f64]) -> Series {
    let mut series = Series::new(Formula::Mean);
    values.iter().for_each(|value| series.push(&[*value, 1.0]));
    series
}

#[test]
fn an_interval_is_as_wide_as_theory_says() {
    // Of 400 rows a quarter is right: the standard error is sqrt(0.25 * 0.75 / 400) = 0.02165.
    let series = shares(&(0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect::<Vec<_>>());
    let [low, high] = interval(&series, 4000).unwrap();
    assert!((low - (0.25 - 1.96 * 0.02165)).abs() < 0.004, "{low}");
    assert!((high - (0.25 + 1.96 * 0.02165)).abs() < 0.004, "{high}");
    assert_eq!(interval(&shares(&[1.0]), 1000), None, "one row says nothing of others");
    assert_eq!(interval(&series, 0), None);
    assert_eq!(interval(&shares(&[0.5; 9]), 100), Some([0.5, 0.5]));
}

proptest! {
    #[test]
    fn an_interval_holds_the_mean_and_does_not_change(values in prop::collection::vec(0.0f64..1.0, 2..80)) {
        let series = shares(&values);
        let [low, high] = interval(&series, 400).unwrap();
        let mean = series.value().unwrap();
        prop_assert!(low <= mean + 1e-12 && mean <= high + 1e-12, "{mean} is not in {low}..{high}");
        prop_assert_eq!(interval(&series, 400), Some([low, high]));
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(least - 1e-12 <= low && high <= most + 1e-12);
    }
}

#[test]
fn losses_are_weighed_by_tokens_and_told_by_dataset() {
    let loss = |source, row_id: &str, sum, trained_tokens| losses::Loss {
        source,
        row_id: row_id.to_string(),
        sum,
        tokens: trained_tokens + 2,
        trained_tokens,
    };
    let rows = [loss(0, "a", 4.0, 2), loss(1, "a", 9.0, 3), loss(0, "b", 1.0, 3), loss(0, "b", 1.0, 2)];
    let mut sheet = Sheet::default();
    sheet.add("base", "val", losses::block(&rows));
    let labels = BTreeMap::from([("val".to_string(), vec!["chat".to_string(), "code".to_string()])]);
    let table = sheet.to_json(&labels, 100);
    let all = &table["models"]["base"]["val"];
    assert_eq!((all["loss"].as_f64(), all["perplexity"].as_f64()), (Some(1.5), Some(1.5f64.exp())));
    assert_eq!((&all["tokens"], &all["trained_tokens"]), (&18.into(), &10.into()));
    let [chat, code] = ["chat", "code"].map(|task| &table["tasks"][task]["models"]["base"]["val"]);
    assert_eq!((chat["loss"].as_f64(), code["loss"].as_f64()), (Some(6.0 / 7.0), Some(3.0)));
    let ends = &table["intervals"]["base"]["val"];
    assert!(ends["loss"][0].as_f64() < Some(1.5) && Some(1.5) < ends["loss"][1].as_f64());
    assert!(ends["tokens"].is_null(), "a count has no interval");
    assert!(table["tasks"]["code"]["intervals"]["base"].is_null(), "one row has no interval");
    assert_eq!(table["tasks"].as_object().unwrap().keys().collect::<Vec<_>>(), ["chat", "code"]);
}

#[test]
fn a_split_without_losses_has_no_perplexity() {
    let mut sheet = Sheet::default();
    sheet.add("base", "val", Block::default());
    assert_eq!(sheet.to_json(&BTreeMap::new(), 10)["models"], serde_json::json!({}));
}
