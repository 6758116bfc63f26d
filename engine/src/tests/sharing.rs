//! Two stores with one shared store between them: what is taken, what is refused, and what happens without it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::fake::{Recorder, World, names, overwrite};
use crate::event::Event;
use crate::remote::Remote;
use crate::schedule::{Options, Outcome};
use crate::task::Cancel;

/// A world whose runs share results in a folder, and what its last run warned of.
struct Party {
    world: World,
    address: String,
}

impl Party {
    fn new(shared: &tempfile::TempDir) -> Party {
        Party { world: World::pipeline(), address: format!("file://{}", shared.path().display()) }
    }

    fn run(&self) -> (Outcome, Vec<String>) {
        let events = Arc::new(Recorder::default());
        let options = Options { remote: Some(Arc::new(Remote::open(&self.address).unwrap())), ..Options::default() };
        let outcome = self.world.run_watched(&options, events.clone(), &Cancel::default());
        assert!(outcome.finished.ok, "{:?}", outcome.failures);
        let events = events.0.lock().unwrap();
        let warned = |event: &Event| match event {
            Event::Warning { message, .. } => Some(message.clone()),
            _ => None,
        };
        (outcome, events.iter().filter_map(warned).collect())
    }

    fn executed(&self) -> String {
        let (outcome, warnings) = self.run();
        assert_eq!(warnings, Vec::<String>::new());
        names(&outcome.finished.executed)
    }
}

/// The shared files whose text is this.
fn shared_texts(shared: &tempfile::TempDir, text: &str) -> Vec<PathBuf> {
    let objects = fs::read_dir(shared.path().join("objects")).unwrap();
    let texts = objects.map(|entry| entry.unwrap().path().join("text"));
    texts.filter(|path| fs::read_to_string(path).unwrap() == text).collect()
}

#[test]
fn what_one_store_made_another_takes() {
    let shared = tempfile::tempdir().unwrap();
    let (one, mut two) = (Party::new(&shared), Party::new(&shared));
    assert_eq!(one.executed().split(' ').count(), 9);
    let (outcome, _) = two.run();
    assert_eq!(names(&outcome.finished.executed), "");
    let text = World::text(&outcome, "eval");
    assert_eq!(text, World::text(&one.run().0, "eval"));
    assert!(outcome.finished.outputs.values().all(|folder| folder.join("manifest.json").is_file()));
    // What is taken is there for good, and what is made of it is given back.
    fs::rename(shared.path(), shared.path().with_extension("away")).unwrap();
    assert_eq!(two.world.executed(), "");
    fs::rename(shared.path().with_extension("away"), shared.path()).unwrap();
    two.world.fake("train").params = json!({"lr": 0.2});
    assert_eq!(two.executed(), "train eval");
    let mut three = Party::new(&shared);
    three.world.fake("train").params = json!({"lr": 0.2});
    assert_eq!(three.executed(), "");
}

#[test]
fn what_was_made_before_sharing_began_is_given_too() {
    let shared = tempfile::tempdir().unwrap();
    let (one, two) = (Party::new(&shared), Party::new(&shared));
    one.world.executed();
    assert_eq!(one.executed(), "");
    assert_eq!(two.executed(), "");
}

#[test]
fn a_damaged_output_is_refused_told_of_and_replaced() {
    type Harm = fn(&std::path::Path);
    let harms: [Harm; 4] = [
        |text| overwrite(text, b"other"),
        |text| overwrite(text, b""),
        |text| overwrite(text, &fs::read(text).unwrap().iter().map(|byte| byte ^ 1).collect::<Vec<u8>>()),
        |text| fs::remove_file(text).unwrap(),
    ];
    for harm in harms {
        let shared = tempfile::tempdir().unwrap();
        let one = Party::new(&shared);
        let text = World::text(&one.run().0, "clean.a");
        harm(&shared_texts(&shared, &text)[0]);
        let (outcome, warnings) = Party::new(&shared).run();
        assert_eq!(names(&outcome.finished.executed), "clean.a");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("is damaged: text"), "{warnings:?}");
        assert_eq!(shared_texts(&shared, &text).len(), 1);
        assert_eq!(Party::new(&shared).executed(), "");
    }
}

#[test]
fn a_record_that_lies_is_refused() {
    let shared = tempfile::tempdir().unwrap();
    Party::new(&shared).run();
    let records: Vec<PathBuf> =
        fs::read_dir(shared.path().join("keys")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for record in &records {
        let text = fs::read_to_string(record).unwrap();
        overwrite(record, text.replace("\"rows\"", "\"rouws\"").as_bytes());
    }
    overwrite(&records[0], b"{");
    let (outcome, warnings) = Party::new(&shared).run();
    assert!(!outcome.finished.executed.is_empty() && warnings[0].contains("its record is damaged"), "{warnings:?}");
}

#[test]
fn records_that_are_shared_name_no_folder_of_this_machine() {
    let shared = tempfile::tempdir().unwrap();
    let party = Party::new(&shared);
    party.run();
    let place = party.world.folder.path().to_str().unwrap();
    for entry in fs::read_dir(shared.path().join("keys")).unwrap() {
        assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(place));
    }
}

#[test]
fn a_run_whose_shared_store_fails_goes_on_with_one_warning() {
    let shared = tempfile::tempdir().unwrap();
    let party = Party::new(&shared);
    // A file where the folder of records should be.
    fs::write(shared.path().join("keys"), "no folder").unwrap();
    fs::write(shared.path().join("objects"), "no folder").unwrap();
    let (outcome, warnings) = party.run();
    assert_eq!(outcome.finished.executed.len(), 9);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("not shared for the rest of this run"));
}
