//! Listing, verifying and letting go.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::fake::{Twist, World, overwrite};
use crate::cache::{Policy, gc, ls, verify};
use crate::digest::Digest;
use crate::plan::NodeName;
use crate::schedule::Options;
use crate::state::{Selection, State, plan_states};

fn policy() -> Policy {
    Policy::default()
}

#[test]
fn listing_names_what_is_stored() {
    let world = World::pipeline();
    assert!(ls(&world.store()).is_empty());
    world.executed();
    let stored = ls(&world.store());
    assert_eq!(stored.len(), 9);
    let train = stored.iter().find(|one| one.nodes == [NodeName::new("train")]).unwrap();
    assert_eq!((train.stage.as_deref(), train.files), (Some("train"), 2));
    assert!(train.rows.is_some() && train.bytes > 0 && train.created.is_some() && train.last_used.is_some());
}

#[test]
fn verify_lists_the_damage_and_the_next_run_repairs_it() {
    let mut world = World::pipeline();
    world.executed();
    assert_eq!(verify(&world.store()), Vec::new());
    let text = world.run().finished.outputs[&NodeName::new("train")].join("text");
    let bytes = fs::read(&text).unwrap();
    overwrite(&text, &vec![b'?'; bytes.len()]);
    let store = world.store();
    store.memo().remember(&text, Digest::of(&bytes));
    store.memo().save();
    fs::remove_file(world.run().finished.outputs[&NodeName::new("eval")].join("manifest.json")).unwrap();
    let damage = verify(&world.store());
    assert_eq!(damage.len(), 2);
    let damage: Vec<_> = damage.into_iter().filter(|one| !one.what.contains("manifest.json")).collect();
    assert_eq!((damage[0].nodes.clone(), damage[0].what.contains("text")), (vec![NodeName::new("train")], true));
    assert_eq!(world.executed(), "train eval");
    world.fake("train").params = json!({"lr": 5});
    world.executed();
    assert_eq!(verify(&world.store()), Vec::new());
}

#[test]
fn letting_go_keeps_what_the_latest_runs_used() {
    let mut world = World::pipeline();
    world.executed();
    world.fake("train").params = json!({"lr": 0.5});
    world.executed();
    assert!(gc(&world.store(), &policy()).unwrap().outputs.is_empty(), "without a limit only left-overs go");
    let keep = Policy { keep_last: Some(1), ..policy() };
    let dry = gc(&world.store(), &Policy { dry_run: true, ..keep.clone() }).unwrap();
    let real = gc(&world.store(), &keep).unwrap();
    assert_eq!(dry.outputs.len(), 2, "train and eval of the first run");
    assert_eq!((dry.freed_bytes, dry.kept_bytes), (real.freed_bytes, real.kept_bytes));
    assert_eq!(ls(&world.store()).len(), 9);
    assert_eq!(world.executed(), "");
    world.fake("train").params = json!({"lr": 0.1});
    assert_eq!(world.executed(), "train eval", "eval is what the run is for, and reads train");
}

#[test]
fn what_is_let_go_is_made_again_only_for_a_reader() {
    let mut world = World::pipeline();
    world.executed();
    let store = world.store();
    let keep = Policy { max_size: Some(0), ..policy() };
    assert_eq!(gc(&store, &keep).unwrap().outputs.len(), 9);
    assert!(ls(&store).is_empty());
    let until = Selection { until: vec!["tokenize.a".into()], ..Selection::default() };
    let states = plan_states(&world.plan(), &store, "", &until).unwrap();
    assert!(states.iter().all(|state| state.reason.contains("was let go")), "{states:?}");
    assert_eq!(world.executed_with(until.clone()), "ingest.a clean.a tokenize.a");
    fs::remove_dir_all(store.object(store.keys().iter().find_map(|&key| evict(&store, key, "clean.a")).unwrap()))
        .unwrap();
    assert_eq!(world.executed_with(until), "", "tokenize.a is there, and nothing reads clean.a");
    world.fake("tokenize.a").params = json!({"len": 77});
    let selection = Selection { until: vec!["tokenize.a".into()], ..Selection::default() };
    let states = plan_states(&world.plan(), &store, "", &selection).unwrap();
    assert!(states.iter().skip(1).all(|state| state.state == State::Run), "{states:?}");
    assert!(states[1].reason.contains("tokenize.a needs it"), "{}", states[1].reason);
    assert_eq!(world.executed_with(selection), "clean.a tokenize.a");
}

#[test]
fn what_comes_out_otherwise_when_it_is_made_again_reaches_everything_below() {
    let mut world = World::pipeline();
    world.fake("clean.a").twist = Twist::Unsteady;
    world.executed();
    let store = world.store();
    let gone = store.keys().iter().find_map(|&key| evict(&store, key, "clean.a")).unwrap();
    fs::remove_dir_all(store.object(gone)).unwrap();
    world.node("count", "count", json!({}), &["clean.a"]);
    let outcome = world.run();
    assert!(outcome.finished.ok);
    assert!(World::text(&outcome, "count").contains("time 2"));
    assert!(World::text(&outcome, "eval").contains("time 2"), "eval was settled on what clean.a had been before");
}

fn evict(store: &crate::store::Store, key: Digest, node: &str) -> Option<Digest> {
    let mut record = store.record(key)?;
    if record.node.as_str() != node {
        return None;
    }
    record.evicted = true;
    store.put_record(&record).unwrap();
    Some(record.output)
}

#[test]
fn size_and_age_limits() {
    let world = World::pipeline();
    world.executed();
    let store = world.store();
    let total: u64 = ls(&store).iter().map(|one| one.bytes).sum();
    let half = gc(&store, &Policy { max_size: Some(total / 2), ..policy() }).unwrap();
    assert!(half.kept_bytes <= total / 2 && !half.outputs.is_empty() && half.outputs.len() < 9);
    let young = Policy { older_than: Some(Duration::from_secs(3600)), max_size: Some(0), ..policy() };
    assert!(gc(&store, &young).unwrap().outputs.is_empty());
    std::thread::sleep(Duration::from_millis(5));
    let old = gc(&store, &Policy { older_than: Some(Duration::from_millis(1)), ..policy() }).unwrap();
    assert_eq!(old.outputs.len() + half.outputs.len(), 9);
}

#[test]
fn a_live_run_keeps_what_it_uses() {
    let mut world = World::pipeline();
    world.executed();
    world.fake("train").params = json!({"lr": 9});
    world.fake("train").twist = Twist::Slow(Duration::from_millis(400));
    let world = Arc::new(world);
    let running = world.clone();
    let run = std::thread::spawn(move || running.run_with(&Options::default()));
    std::thread::sleep(Duration::from_millis(200));
    let collected = gc(&world.store(), &Policy { max_size: Some(0), ..policy() }).unwrap();
    assert_eq!(collected.in_use, 7);
    assert!(collected.outputs.len() <= 2 && collected.leftovers.is_empty(), "{collected:?}");
    assert!(run.join().unwrap().finished.ok);
    let collected = gc(&world.store(), &Policy { max_size: Some(0), ..policy() }).unwrap();
    assert_eq!((collected.in_use, collected.kept_bytes), (0, 0));
}

#[test]
fn left_overs_go_and_resumable_work_stays() {
    let world = World::pipeline();
    let store = world.store();
    fs::create_dir(store.root().join("quarantine/x")).unwrap();
    fs::create_dir(store.work(Digest::of(b"interrupted"))).unwrap();
    let collected = gc(&store, &policy()).unwrap();
    assert_eq!(collected.leftovers, ["quarantine/x"]);
    assert!(store.work(Digest::of(b"interrupted")).is_dir());
    let nothing_stays = Policy { older_than: Some(Duration::ZERO), ..policy() };
    assert_eq!(gc(&store, &nothing_stays).unwrap().leftovers.len(), 1);
}

#[test]
fn a_file_linked_elsewhere_costs_no_second_hash_once_that_is_noted() {
    let world = World::pipeline();
    // Sources written a moment ago are hashed twice, which is not what is counted here.
    std::thread::sleep(Duration::from_millis(30));
    let text = world.run().finished.outputs[&NodeName::new("train")].join("text");
    fs::hard_link(&text, world.path("adapter")).unwrap();
    let store = world.store();
    store.memo().remember(&text, Digest::of(&fs::read(&text).unwrap()));
    store.memo().save();
    let store = world.store();
    assert_eq!(plan_states(&world.plan(), &store, "", &Selection::default()).unwrap().len(), 9);
    assert_eq!(store.memo().files_hashed(), 0);
}
