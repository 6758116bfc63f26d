#![allow(clippy::unwrap_used)]
use arrow::array::{UInt16Array, UInt64Array};
use tempfile::TempDir;

use super::*;
use crate::rows::harness::{Done, run};

fn raw(examples: &[Example]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(ROWS_FILE);
    let mut ids = RowIds::default();
    let mut writer = TableWriter::create(&path, shapes::raw()).unwrap();
    let n = examples.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(examples.iter().map(|e| ids.name(Content::of(e))))),
        Arc::new(UInt64Array::from_iter_values(1..=n as u64)),
        Arc::new(StringArray::from_iter_values(examples.iter().map(Example::to_data))),
        Arc::new(StringArray::from(vec![None::<&str>; n])),
        Arc::new(UInt16Array::from(vec![0; n])),
    ];
    writer.write(&RecordBatch::try_new(shapes::raw(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn clean(section: &str, examples: &[Example]) -> Done {
    let section: CleanSection = serde_json::from_str(section).unwrap();
    let (_dir, path) = raw(examples);
    run(&Clean::resolve(Some(&section)), "clean.d", &[("rows", &path)]).unwrap()
}

fn row(instruction: &str, output: &str) -> Example {
    Example::Instruct { system: None, instruction: instruction.into(), input: String::new(), output: output.into() }
}

#[test]
fn unasked_only_empty_and_invalid_rows_go() {
    let bad = Example::Chat { messages: vec![serde_json::from_str(r#"{"content": "x"}"#).unwrap()], tools: None };
    let empty = Example::Chat { messages: Vec::new(), tools: None };
    let silent = serde_json::from_str(
        r#"{"shape":"chat","messages":[{"role":"user","content":"q"},{"role":"assistant","content":""}]}"#,
    );
    let rows = [row("a", "b"), row("a", "b"), row("a", " \n"), empty, bad, silent.unwrap()];
    let done = clean("{}", &rows);
    assert_eq!(done.summary.rows, Some(3));
    assert_eq!((done.stat("dropped_empty"), done.stat("dropped_invalid")), (2, 1));
    assert_eq!(clean(r#"{"drop_empty": false}"#, &rows).summary.rows, Some(5));
}

#[test]
fn lengths_and_duplicates_are_counted_by_rule() {
    let rows = [row("aa", "bb"), row("aa", "bb"), row("a", "b"), row("aaaaa", "bbbbb"), row("cc", "dd")];
    let done = clean(r#"{"dedup": "exact", "min_chars": 3, "max_chars": 9}"#, &rows);
    assert_eq!(done.summary.rows, Some(2));
    let stats = ["dropped_duplicate", "dropped_too_short", "dropped_too_long"].map(|name| done.stat(name));
    assert_eq!(stats, [1, 1, 1]);
}

#[test]
fn what_clean_takes_away_leaves_no_trace_downstream() {
    let section = r#"{"dedup": "exact", "normalize": true}"#;
    let one = clean(section, &[row("a", "b"), row("c", "d"), row("a", "b")]);
    let without_duplicate = clean(section, &[row("a", "b"), row("c", "d")]);
    let spaced = clean(section, &[row("a ", "b\r\n"), row("c", "d")]);
    assert_eq!(one.bytes(ROWS_FILE), without_duplicate.bytes(ROWS_FILE));
    assert_eq!(one.bytes(ROWS_FILE), spaced.bytes(ROWS_FILE));
    assert_eq!(spaced.stat("normalized"), 1);
    let (from, ids) = (spaced.texts(LINEAGE_FILE, "from"), spaced.texts(ROWS_FILE, "row_id"));
    assert!(from[0] != ids[0] && from[1] == ids[1]);
}

#[test]
fn near_duplicates_go_when_asked() {
    let long =
        |last: &str| row("q", &format!("{} {last}", (0..60).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ")));
    let rows = [long("one"), long("two"), row("other", "text entirely")];
    let done = clean(r#"{"dedup": "near"}"#, &rows);
    assert_eq!((done.summary.rows, done.stat("dropped_near_duplicate")), (Some(2), 1));
    assert_eq!(clean(r#"{"dedup": "exact"}"#, &rows).summary.rows, Some(3));
}

#[test]
fn dropping_everything_is_an_error_that_says_why() {
    let (_dir, path) = raw(&[row("a", "")]);
    let error = run(&Clean::resolve(None), "clean.d", &[("rows", &path)]).err().unwrap();
    assert_eq!(error.to_string(), "clean drops all 1 rows (1 empty); loosen its rules");
}
