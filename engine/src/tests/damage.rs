//! Damaged, missing and half-made things: found, made again, and nothing else with them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::fake::{World, overwrite};
use crate::lock::Lock;
use crate::state::Selection;
use crate::store::{Depth, Lookup};

fn object(world: &World, node: &str) -> PathBuf {
    world.run().finished.outputs[&crate::plan::NodeName::new(node)].clone()
}

#[test]
fn a_damaged_object_is_made_again_and_nothing_else() {
    type Harm = fn(&Path);
    let harms: [Harm; 5] = [
        |object| overwrite(&object.join("text"), b"short"),
        |object| {
            let text = fs::read_to_string(object.join("text")).unwrap();
            overwrite(&object.join("text"), text.replace('a', "b").as_bytes());
        },
        |object| fs::remove_file(object.join("more/length")).unwrap(),
        |object| fs::remove_dir_all(object).unwrap(),
        |object| {
            overwrite(&object.join("text"), b"");
        },
    ];
    for harm in harms {
        let world = World::pipeline();
        world.executed();
        let before = fs::read(object(&world, "clean.a").join("text")).unwrap();
        harm(&object(&world, "clean.a"));
        assert_eq!(world.executed(), "clean.a");
        assert_eq!(fs::read(object(&world, "clean.a").join("text")).unwrap(), before);
        assert_eq!(world.executed(), "");
    }
}

#[test]
fn a_file_too_many_is_damage() {
    let mut world = World::pipeline();
    world.executed();
    fs::write(object(&world, "clean.a").join("more/extra"), "").unwrap();
    assert_eq!(crate::cache::verify(&world.store()).len(), 1);
    world.fake("tokenize.a").params = json!({"len": 9});
    assert!(world.executed().starts_with("clean.a tokenize.a"), "its reader has it made again");
    fs::write(object(&world, "clean.a").join("extra"), "").unwrap();
    assert_eq!(world.executed_with(Selection { verify: true, ..Selection::default() }), "clean.a");
    assert_eq!(crate::cache::verify(&world.store()), Vec::new());
}

#[test]
fn swapped_objects_are_found() {
    let world = World::pipeline();
    world.executed();
    let (a, b) = (object(&world, "tokenize.a"), object(&world, "tokenize.b"));
    let aside = world.path("aside");
    fs::rename(&a, &aside).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(&aside, &b).unwrap();
    assert_eq!(world.executed(), "tokenize.a tokenize.b");
}

#[test]
fn a_flipped_bit_that_stat_does_not_show_is_found_by_its_reader() {
    let mut world = World::pipeline();
    world.executed();
    let text = object(&world, "pack.train").join("text");
    let bytes = fs::read(&text).unwrap();
    let mut flipped = bytes.clone();
    flipped[3] ^= 1;
    overwrite(&text, &flipped);
    // As if the disk had changed it: the memo believes the stat data.
    let store = world.store();
    store.memo().remember(&text, crate::digest::Digest::of(&bytes));
    store.memo().save();
    assert_eq!(world.executed(), "", "nothing reads it");
    world.fake("train").params = json!({"lr": 0.3});
    assert_eq!(world.executed(), "pack.train train eval");
    assert_eq!(fs::read(&text).unwrap(), bytes);
    assert_eq!(fs::read_dir(world.path(".pipe/quarantine")).unwrap().count(), 1);
}

#[test]
fn verify_reads_everything() {
    let world = World::pipeline();
    world.executed();
    let text = object(&world, "eval").join("text");
    let bytes = fs::read(&text).unwrap();
    overwrite(&text, &vec![b'x'; bytes.len()]);
    let store = world.store();
    store.memo().remember(&text, crate::digest::Digest::of(&bytes));
    store.memo().save();
    assert_eq!(world.executed(), "");
    assert_eq!(world.executed_with(Selection { verify: true, ..Selection::default() }), "eval");
}

#[test]
fn a_damaged_record_counts_as_none() {
    let world = World::pipeline();
    world.executed();
    let store = world.store();
    let key = store.keys().into_iter().find(|&key| store.record(key).unwrap().node.as_str() == "train").unwrap();
    let other = store.keys().into_iter().find(|&other| other != key).unwrap();
    let path = store.record_path(key);
    let good = fs::read_to_string(&path).unwrap();
    let lies = [
        good.replace("\"rows\": ", "\"rows\": 1"),
        good[..good.len() / 2].to_string(),
        String::new(),
        fs::read_to_string(store.record_path(other)).unwrap(),
    ];
    for lie in lies {
        fs::write(&path, lie).unwrap();
        assert!(matches!(store.lookup(key, Depth::Stat), Lookup::Nothing));
        assert_eq!(world.executed(), "train");
    }
}

#[test]
fn what_dead_processes_left_is_cleared_and_what_live_ones_use_is_not() {
    let world = World::pipeline();
    let store = world.store();
    let (dead, live) = (crate::digest::Digest::of(b"dead"), crate::digest::Digest::of(b"live"));
    for key in [dead, live] {
        let draft = store.draft(key).unwrap();
        fs::write(draft.path().join("half"), "x").unwrap();
        std::mem::forget(draft);
    }
    let lock = Lock::try_take(&store.lock_path(live)).unwrap().unwrap();
    world.store();
    let left: Vec<_> = fs::read_dir(world.path(".pipe/drafts")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 1);
    assert!(left[0].to_str().unwrap().starts_with(&live.to_string()));
    drop(lock);
    assert_eq!(world.store().keys().len(), 0);
    assert_eq!(fs::read_dir(world.path(".pipe/drafts")).unwrap().count(), 0);
}

#[test]
fn a_store_that_cannot_be_made_says_so() {
    let world = World::new();
    world.write("file", "in the way");
    let error = crate::store::Store::open(world.path("file/.pipe")).err().unwrap();
    assert!(error.to_string().contains("cannot create") && error.hint().contains("--cache-dir"), "{error}");
    world.store();
    world.write(".pipe/format", "99\n");
    assert!(crate::store::Store::open(world.path(".pipe")).err().unwrap().to_string().contains("format 99"));
}
