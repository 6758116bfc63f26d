#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::pack::Pack;
use crate::recipe::ExcessLength;
use crate::rows::harness::{Done, run};
use crate::rows::{TableWriter, int_lists, shapes};

fn section(text: &str) -> MixSection {
    serde_json::from_str(text).unwrap()
}

fn mix(text: &str, labels: &[&str]) -> Mix {
    let datasets: Vec<(String, f64)> = labels.iter().map(|label| ((*label).to_string(), 1.0)).collect();
    Mix::resolve(Some(&section(text)), &datasets).unwrap()
}

#[test]
fn shares_by_hand() {
    let two = ["a", "b"];
    // 3 to 1 of 900 and 200: b ends first, at 800.
    assert_eq!(mix(r#"{"weights": {"a": 3, "b": 1}}"#, &two).targets(&[900, 200]), Ok(vec![600, 200]));
    // a ends last, at 1200.
    let all = mix(r#"{"weights": {"a": 3, "b": 1}, "stop": "all_exhausted"}"#, &two);
    assert_eq!(all.targets(&[900, 200]), Ok(vec![900, 300]));
    // Square roots of 900 and 100: 3 to 1, and b ends first, at 400.
    assert_eq!(mix(r#"{"temperature": 2}"#, &two).targets(&[900, 100]), Ok(vec![300, 100]));
    assert_eq!(mix(r#"{"temperature": 1}"#, &two).targets(&[900, 100]), Ok(vec![900, 100]));
    let most = mix(r#"{"weights": {"a": 1, "b": 1}, "max_rows": 1001, "max_repeats": 2}"#, &two);
    assert_eq!(most.targets(&[900, 200]), Ok(vec![501, 400]));
    assert_eq!(mix(r#"{"max_rows": 11}"#, &two).targets(&[900, 200]), Ok(vec![9, 2]));
}

#[test]
fn a_replay_has_its_share_of_all_rows() {
    let replayed = mix(r#"{"replay": {"dataset": "c", "share": 0.2}}"#, &["a", "b", "c"]);
    assert_eq!(replayed.targets(&[300, 100, 5000]), Ok(vec![300, 100, 100]));
    // More than it has: repeated.
    assert_eq!(replayed.targets(&[300, 100, 30]), Ok(vec![300, 100, 100]));
    let most = mix(
        r#"{"replay": {"dataset": "c", "share": 0.25}, "max_rows": 80, "weights": {"a": 2, "b": 1}}"#,
        &["a", "b", "c"],
    );
    assert_eq!(most.targets(&[300, 100, 5000]), Ok(vec![40, 20, 20]));
    assert!(replayed.targets(&[300, 100, 0]).unwrap_err().contains("dataset 3 has no row"));
}

#[test]
fn weights_above_one_repeat_and_nothing_asked_is_no_mix() {
    let datasets = |a: f64| vec![("a".to_string(), a), ("b".to_string(), 1.0)];
    assert_eq!(Mix::resolve(None, &datasets(0.5)), None);
    assert_eq!(Mix::resolve(None, &datasets(2.5)).unwrap().targets(&[10, 3]), Ok(vec![25, 3]));
}

proptest! {
    #[test]
    fn totals_are_exact_and_shares_are_within_a_row(
        usable in prop::collection::vec(1u64..5000, 2..6),
        weights in prop::collection::vec(1u32..50, 6),
        most in 1u64..20_000,
        stop in prop::bool::ANY,
    ) {
        let parts: Vec<Part> = weights[..usable.len()].iter().map(|&w| Part::Share(f64::from(w))).collect();
        let sum: f64 = weights[..usable.len()].iter().map(|&w| f64::from(w)).sum();
        let mut mix = Mix {
            strategy: MixStrategy::Interleave, parts, temperature: None, max_repeats: None, max_rows: Some(most), seed: 1,
            stop: if stop { MixStop::FirstExhausted } else { MixStop::AllExhausted },
        };
        let targets = mix.targets(&usable).unwrap();
        prop_assert_eq!(targets.iter().sum::<u64>(), most);
        for (target, weight) in targets.iter().zip(&weights) {
            prop_assert!((*target as f64 - most as f64 * f64::from(*weight) / sum).abs() < 1.0 + 1e-6);
        }
        mix.max_rows = None;
        if let Ok(targets) = mix.targets(&usable) {
            for (target, rows) in targets.iter().zip(&usable) {
                if stop { prop_assert!(target <= rows) } else { prop_assert!(target >= rows) }
            }
        }
    }
}

/// A table of one-token-answer rows named `label-0`, `label-1`, ...
fn tokens(dir: &TempDir, label: &str, rows: usize) -> PathBuf {
    let path = dir.path().join(format!("{label}.parquet"));
    let ends: Vec<i32> = (1..=rows as i32).map(|row| row * 2).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{label}-{row}")))),
        int_lists((0..rows as i32 * 2).collect(), &ends),
        int_lists((0..rows as i32 * 2).collect(), &ends),
        Arc::new(Int32Array::from(vec![2; rows])),
    ];
    let mut writer = TableWriter::create(&path, shapes::tokens()).unwrap();
    writer.write(&RecordBatch::try_new(shapes::tokens(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    path
}

fn packed(mix: Mix, inputs: &[PathBuf]) -> Done {
    let excess_length = ExcessLength::Drop;
    let pack = Pack {
        sequence_len: 2,
        packing: false,
        excess_length,
        min_sample_len: 2,
        sequential: false,
        bin_size: None,
        group_size: None,
        mix: Some(mix),
    };
    let roles: Vec<String> = (0..inputs.len()).map(|i| i.to_string()).collect();
    let inputs: Vec<(&str, &Path)> =
        roles.iter().map(String::as_str).zip(inputs.iter().map(PathBuf::as_path)).collect();
    run(&pack, "pack.train", &inputs).unwrap()
}

fn row_ids(done: &Done) -> Vec<String> {
    let rows = crate::show::rows(done.dir.path(), usize::MAX, None, None).unwrap();
    rows.iter().map(|row| row.values["row_ids"][0].as_str().unwrap().to_string()).collect()
}

#[test]
fn rows_come_out_as_often_as_planned_and_evenly() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = [tokens(&dir, "a", 40), tokens(&dir, "b", 10), tokens(&dir, "r", 3)];
    let text = r#"{"strategy": "interleave", "weights": {"a": 1, "b": 1}, "max_rows": 50, "replay": {"dataset": "r", "share": 0.2}}"#;
    let done = packed(mix(text, &["a", "b", "r"]), &inputs);
    let ids = row_ids(&done);
    let mut counts: HashMap<&str, usize> = HashMap::new();
    ids.iter().for_each(|id| *counts.entry(id).or_default() += 1);
    let of = |label: &str| counts.iter().filter(|(id, _)| id.starts_with(label)).map(|(_, &n)| n).collect::<Vec<_>>();
    assert_eq!(
        (of("a").iter().sum::<usize>(), of("b").iter().sum::<usize>(), of("r").iter().sum::<usize>()),
        (20, 20, 10)
    );
    assert!(of("a").iter().all(|&n| n == 1) && of("b").iter().all(|&n| n == 2));
    let mut replays = of("r");
    replays.sort_unstable();
    assert_eq!(replays, [3, 3, 4]);
    // Every ten rows hold what the whole does: 4, 4 and 2.
    for ten in ids.chunks(10) {
        let n = |label: &str| ten.iter().filter(|id| id.starts_with(label)).count();
        assert_eq!((n("a"), n("b"), n("r")), (4, 4, 2));
    }
    let told = &done.summary.stats["mix"]["datasets"];
    assert_eq!((&told[2]["rows"], &told[2]["taken"], &told[2]["share"]), (&json!(3), &json!(10), &json!(0.2)));
    assert_eq!(ids, row_ids(&packed(mix(text, &["a", "b", "r"]), &inputs)));
}

#[test]
fn concatenated_rows_keep_their_order_and_another_seed_takes_others() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = [tokens(&dir, "a", 30), tokens(&dir, "b", 5)];
    let some =
        |seed: u64| row_ids(&packed(mix(&format!(r#"{{"max_rows": 14, "seed": {seed}}}"#), &["a", "b"]), &inputs));
    let ids = some(1);
    let places: Vec<usize> = ids.iter().filter_map(|id| id.strip_prefix("a-")?.parse().ok()).collect();
    assert_eq!((ids.len(), places.len()), (14, 12));
    assert!(places.is_sorted() && ids[12].starts_with("b-"));
    assert_ne!(ids, some(2));
}
