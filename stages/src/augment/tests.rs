#![allow(clippy::unwrap_used)]
use std::collections::HashSet;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::rows::harness::{Done, run};

fn train(requests: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TRAIN_FILE);
    let mut writer = TableWriter::create(&path, shapes::example()).unwrap();
    let mut grown = Grown::default();
    for request in requests {
        let chat = serde_json::json!({"shape": "chat", "messages": [
            {"role": "user", "content": request}, {"role": "assistant", "content": "ok"}]});
        let example = Example::parse(&chat.to_string()).unwrap();
        grown.ids.push(Content::of(&example).row_id(0));
        grown.data.push(example.to_data());
        grown.meta.push(None);
    }
    writer.write(&grown.rows().unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn augment(section: &str, requests: &[&str]) -> Done {
    let section: AugmentSection = serde_json::from_str(section).unwrap();
    let (_dir, path) = train(requests);
    run(&Augment::resolve(Some(&section)), "augment.d", &[("train", &path)]).unwrap()
}

#[test]
fn unasked_the_rows_pass_byte_for_byte() {
    let (_dir, path) = train(&["a", "b"]);
    let done = run(&Augment::resolve(None), "augment.d", &[("train", &path)]).unwrap();
    assert_eq!(done.bytes(TRAIN_FILE), std::fs::read(path).unwrap());
}

#[test]
fn copies_have_ids_of_their_own_and_lead_back() {
    let done =
        augment(r#"{"repeat": 2, "paraphrase": ["{request}, please.", "Now {request}"], "copies": 2}"#, &["a", "b"]);
    let ids = done.texts(TRAIN_FILE, "row_id");
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len(), done.stat("added")), (12, 12, 10));
    let data = done.texts(TRAIN_FILE, "data");
    assert_eq!(data.iter().filter(|row| row.contains("\"a, please.\"")).count(), 2);
    assert_eq!(data.iter().filter(|row| row.contains("\"Now b\"")).count(), 2);
    let from: HashSet<String> = done.texts(LINEAGE_FILE, "from").into_iter().collect();
    assert_eq!(from.len(), 2);
}

#[test]
fn a_rows_wording_depends_on_that_row_alone() {
    let section = r#"{"paraphrase": ["1 {request}", "2 {request}", "3 {request}"]}"#;
    let both = augment(section, &["a", "b"]).texts(TRAIN_FILE, "data");
    let alone = augment(section, &["b"]).texts(TRAIN_FILE, "data");
    assert_eq!(both[2..], alone[..]);
}

#[test]
fn a_template_without_its_place_is_refused() {
    let section: AugmentSection = serde_json::from_str(r#"{"paraphrase": ["hello"]}"#).unwrap();
    assert!(Augment::resolve(Some(&section)).check().unwrap_err().contains("`hello` does not contain `{request}`"));
}
