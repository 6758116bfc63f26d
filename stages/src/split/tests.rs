#![allow(clippy::unwrap_used)]
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::conversation::RowIds;
use crate::rows::harness::{Done, run};

fn rows(contents: &[u64], meta: impl Fn(u64) -> Option<String>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let mut ids = RowIds::default();
    let name = |content: &u64| ids.name(Content::of_bytes(&content.to_le_bytes()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(contents.iter().map(name))),
        Arc::new(StringArray::from_iter_values(contents.iter().map(completion))),
        Arc::new(contents.iter().map(|&content| meta(content)).collect::<StringArray>()),
    ];
    let mut writer = TableWriter::create(&path, shapes::example()).unwrap();
    writer.write(&RecordBatch::try_new(shapes::example(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn split(section: &str, path: &Path) -> Done {
    let section: SplitSection = serde_json::from_str(section).unwrap();
    run(&Split::resolve(Some(&section), None), "split.d", &[("rows", path)]).unwrap()
}

fn parts(done: &Done) -> [Vec<String>; 3] {
    let number = |data: String| data.chars().filter(char::is_ascii_digit).collect();
    Part::ALL.map(|part| done.texts(&part.file(), "data").into_iter().map(number).collect())
}

fn completion(content: &u64) -> String {
    crate::conversation::Example::Completion { text: content.to_string() }.to_data()
}

#[test]
fn shares_come_out_as_asked_and_counts_exactly() {
    let contents: Vec<u64> = (0..5000).collect();
    let (_dir, path) = rows(&contents, |_| None);
    let [train, val, test] = parts(&split(r#"{"val": 0.1, "test": 0.2}"#, &path));
    assert!((400..600).contains(&val.len()) && (880..1120).contains(&test.len()), "{} {}", val.len(), test.len());
    assert_eq!(train.len() + val.len() + test.len(), 5000);
    let [train, val, test] = parts(&split(r#"{"val": 7, "test": 13}"#, &path));
    assert_eq!((train.len(), val.len(), test.len()), (4980, 7, 13));
    assert_ne!(parts(&split(r#"{"val": 7}"#, &path)), parts(&split(r#"{"val": 7, "seed": 1}"#, &path)));
    let all = run(&Split::all_to(Part::Test), "split.d", &[("rows", &path)]).unwrap();
    assert_eq!(parts(&all)[2].len(), 5000);
    assert_eq!(parts(&all)[0].len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn appending_moves_nothing_and_equal_rows_stay_together(
        old in proptest::collection::vec(0u64..200, 1..300),
        new in proptest::collection::vec(0u64..400, 0..100),
    ) {
        let section = r#"{"val": 0.2, "test": 0.1}"#;
        let section: SplitSection = serde_json::from_str(section).unwrap();
        let split = Split::resolve(Some(&section), None);
        let (_a, before) = rows(&old, |_| None);
        let all: Vec<u64> = old.iter().chain(&new).copied().collect();
        let (_b, after) = rows(&all, |_| None);
        let (Ok(before), Ok(after)) = (
            run(&split, "split.d", &[("rows", &before)]),
            run(&split, "split.d", &[("rows", &after)]),
        ) else { return Ok(()) };
        let (before, after) = (parts(&before), parts(&after));
        for (old, new) in before.iter().zip(&after) {
            prop_assert_eq!(old, &new[..old.len()].to_vec());
        }
        let sets: Vec<HashSet<&String>> = after.iter().map(|part| part.iter().collect()).collect();
        prop_assert!(sets[0].is_disjoint(&sets[1]) && sets[0].is_disjoint(&sets[2]) && sets[1].is_disjoint(&sets[2]));
    }
}

#[test]
fn groups_stay_together_and_strata_keep_their_shares() {
    let contents: Vec<u64> = (0..2000).collect();
    let meta = |content: u64| Some(format!(r#"{{"group": {}, "kind": "{}"}}"#, content / 10, content % 4 / 3));
    let (_dir, path) = rows(&contents, meta);
    let groups = |part: &Vec<String>| part.iter().map(|n| n.parse::<u64>().unwrap() / 10).collect::<HashSet<_>>();
    let [train, val, _] = parts(&split(r#"{"val": 0.3, "group_by": "group"}"#, &path));
    assert!(!val.is_empty() && groups(&train).is_disjoint(&groups(&val)));
    let [_, val, _] = parts(&split(r#"{"val": 40, "stratify_by": "kind"}"#, &path));
    let rare = val.iter().filter(|n| n.parse::<u64>().unwrap() % 4 == 3).count();
    assert_eq!((val.len(), rare), (40, 10));
}

#[test]
fn nothing_left_to_train_on_is_an_error_and_an_empty_part_a_warning() {
    let (_dir, path) = rows(&[1, 2, 3], |_| None);
    let section: SplitSection = serde_json::from_str(r#"{"val": 3}"#).unwrap();
    let error = run(&Split::resolve(Some(&section), None), "split.d", &[("rows", &path)]).err().unwrap();
    assert!(error.to_string().contains("no row is left to train on, 3 went to val"), "{error}");
    let done = split(r#"{"test": 0.0000001}"#, &path);
    assert!(done.summary.warnings[0].starts_with("split.test is 0.0000001"), "{:?}", done.summary.warnings);
    let section: SplitSection = serde_json::from_str(r#"{"val": 1, "group_by": "who"}"#).unwrap();
    let error = run(&Split::resolve(Some(&section), None), "split.d", &[("rows", &path)]).err().unwrap();
    assert!(error.to_string().contains("no column `who`"), "{error}");
}

#[test]
fn a_weight_takes_exactly_its_share_and_more_rows_keep_most_of_the_old() {
    let contents: Vec<u64> = (0..1000).map(|n| n / 2).collect();
    let (_dir, path) = rows(&contents, |_| None);
    let taken = |path: &Path, weight: f64| {
        let split = Split::resolve(None, None).taking(weight);
        run(&split, "split.d", &[("rows", path)]).unwrap()
    };
    let half = taken(&path, 0.5);
    assert_eq!((half.summary.rows, half.stat("left_out")), (Some(500), 500));
    assert_eq!(taken(&path, 0.0001).summary.rows, Some(1));
    assert_eq!(taken(&path, 0.29).summary.rows, Some(290));
    let ids = |done: &Done| done.texts("train.parquet", "row_id").into_iter().collect::<HashSet<_>>();
    assert!(ids(&taken(&path, 0.2)).is_subset(&ids(&half)));
    let section: SplitSection = serde_json::from_str(r#"{"val": 40, "test": 0.1}"#).unwrap();
    let counted = run(&Split::resolve(Some(&section), None).taking(0.5), "split.d", &[("rows", &path)]).unwrap();
    let counts = ["train", "val", "test"].map(|part| counted.stat(part));
    assert!(
        counts.iter().sum::<u64>() == 500 && counts[1].abs_diff(40) < 3 && counts[2].abs_diff(50) < 3,
        "{counts:?}"
    );
}

/// A table of question and answer rows.
fn asked(pairs: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let mut ids = RowIds::default();
    let example = |(ask, answer): &(&str, &str)| crate::conversation::Example::Instruct {
        system: None,
        instruction: (*ask).to_string(),
        input: String::new(),
        output: (*answer).to_string(),
    };
    let examples: Vec<_> = pairs.iter().map(example).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(examples.iter().map(|example| ids.name(Content::of(example))))),
        Arc::new(StringArray::from_iter_values(examples.iter().map(|example| example.to_data()))),
        Arc::new(StringArray::from(vec![None::<&str>; pairs.len()])),
    ];
    let mut writer = TableWriter::create(&path, shapes::example()).unwrap();
    writer.write(&RecordBatch::try_new(shapes::example(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

#[test]
fn prompts_on_both_sides_are_reported_and_dropped_when_asked() {
    let fruit = ["apples", "pears", "plums", "figs", "grapes", "limes", "dates", "kiwis"];
    let mut pairs: Vec<(String, String)> = Vec::new();
    for name in fruit {
        // Three answers to one question, and a question in two wordings.
        for answer in 0..3 {
            pairs
                .push((format!("How long do {name} keep in a cool and dark place at home?"), format!("{answer} days")));
        }
        let long = format!(
            "and does it help to wrap each of them in paper before they are laid next to one another in a crate of {name} that \
             is kept away from all other {name}"
        );
        pairs.push((format!("How long do {name} keep {long}?"), "yes".to_string()));
        pairs.push((format!("How long do {name} keep {long}, please?"), "no".to_string()));
    }
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(ask, answer)| (ask.as_str(), answer.as_str())).collect();
    let (_dir, path) = asked(&pairs);
    let done = split(r#"{"val": 12}"#, &path);
    // By hand: a training row leaks when a row of its question, or of the near one, is held out.
    let of = |part: Part| done.texts(&part.file(), "data");
    let stem = |data: &String| data.replace(", please?", "?").split("\"output\"").next().unwrap().to_string();
    let held: HashSet<String> = of(Part::Val).iter().map(stem).collect();
    let leaks = of(Part::Train).iter().filter(|data| held.contains(&stem(data))).count() as u64;
    assert!(leaks > 5 && done.stat("leaks_near_prompt") > 0);
    assert_eq!(done.stat("leaks_same_prompt") + done.stat("leaks_near_prompt"), leaks);
    assert!(done.summary.warnings[0].starts_with(&format!("{leaks} training rows ask")), "{:?}", done.summary.warnings);
    let dropped = split(r#"{"val": 12, "leakage": "drop"}"#, &path);
    assert_eq!((dropped.stat("dropped_leaks"), dropped.stat("train")), (leaks, done.stat("train") - leaks));
    assert_eq!(dropped.texts("val.parquet", "row_id"), done.texts("val.parquet", "row_id"));
    assert!(split(r#"{"val": 12, "leakage": "ignore"}"#, &path).summary.warnings.is_empty());
}
