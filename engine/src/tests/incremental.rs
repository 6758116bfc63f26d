//! What runs after a change, and the reason given.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::json;

use super::fake::{Twist, World, names};
use crate::schedule::Options;
use crate::state::{NodeState, Selection, State, plan_states};
use crate::store::Store;
use crate::why::CauseKind;

const ALL: &str = "ingest.a clean.a tokenize.a ingest.b clean.b tokenize.b pack.train train eval";

fn states(world: &World) -> Vec<NodeState> {
    plan_states(&world.plan(), &Store::peek(world.path(".pipe")), "", &Selection::default()).unwrap()
}

fn would_run(world: &World) -> String {
    let run: Vec<_> =
        states(world).into_iter().filter(|state| state.state == State::Run).map(|state| state.node).collect();
    names(&run)
}

fn state(world: &World, node: &str) -> NodeState {
    states(world).into_iter().find(|state| state.node.as_str() == node).unwrap()
}

fn only(stage: &str) -> Vec<String> {
    vec![stage.to_string()]
}

#[test]
fn a_second_run_runs_nothing() {
    let world = World::pipeline();
    assert_eq!(would_run(&world), ALL);
    assert!(!world.path(".pipe").exists(), "planning writes nothing");
    assert_eq!(world.executed(), ALL);
    assert_eq!(world.executed(), "");
    assert_eq!(would_run(&world), "");
    let outcome = world.run();
    assert_eq!(names(&outcome.finished.cached), ALL);
    assert_eq!(outcome.finished.outputs.len(), 9);
}

#[test]
fn an_attempt_that_left_something_is_told_from_none() {
    let world = World::pipeline();
    world.executed_with(Selection { until: only("pack.train"), ..Selection::default() });
    let key = state(&world, "train").key.unwrap();
    let work = world.store().take_work(key).unwrap();
    assert_eq!(state(&world, "train").reason, "it has not run yet", "it left nothing");
    fs::write(work.join("checkpoint"), "3").unwrap();
    assert_eq!(state(&world, "train").reason, "it was begun and not finished");
    assert_eq!(world.executed(), "train eval");
    assert_eq!(state(&world, "train").reason, "unchanged");
}

#[test]
fn a_parameter_reruns_its_stage_and_what_lies_below() {
    let mut world = World::pipeline();
    world.executed();
    world.fake("train").params = json!({"lr": 0.2});
    let train = state(&world, "train");
    assert_eq!((train.causes[0].kind, train.reason.as_str()), (CauseKind::Param, "lr: 0.1 -> 0.2"));
    assert_eq!(state(&world, "eval").reason, "upstream train runs");
    assert_eq!(would_run(&world), "train eval");
    assert_eq!(world.executed(), "train eval");
}

#[test]
fn going_back_is_all_cached() {
    let mut world = World::pipeline();
    world.executed();
    world.fake("tokenize.a").params = json!({"len": 9});
    assert_eq!(world.executed(), "tokenize.a pack.train train eval");
    world.fake("tokenize.a").params = json!({"len": 8});
    assert_eq!(world.executed(), "");
    world.fake("tokenize.a").params = json!({"len": 10});
    assert_eq!(
        state(&world, "tokenize.a").causes[0].before,
        json!(8),
        "compared with the latest run, not the latest work"
    );
}

#[test]
fn an_edit_that_is_normalised_away_stops_there() {
    let world = World::pipeline();
    world.executed();
    world.write("a", "a one\na two\na one\n");
    let ingest = state(&world, "ingest.a");
    assert_eq!(ingest.causes[0].kind, CauseKind::File);
    assert!(ingest.causes[0].what.ends_with("/a"), "{ingest:?}");
    assert!(
        ingest.reason.contains("12 bytes") && ingest.reason.ends_with("first differing in line 1"),
        "{}",
        ingest.reason
    );
    assert_eq!(world.executed(), "ingest.a clean.a");
    assert_eq!(world.executed(), "");
}

#[test]
fn an_edit_of_one_source_leaves_the_other_branch_alone() {
    let world = World::pipeline();
    world.executed();
    world.write("a", "a one\na 2\n");
    assert_eq!(world.executed(), "ingest.a clean.a tokenize.a pack.train train eval");
}

#[test]
fn touching_copying_and_chmod_run_nothing() {
    let world = World::pipeline();
    world.executed();
    let (from, to) = (world.path("a"), world.path("copy"));
    fs::copy(&from, &to).unwrap();
    fs::rename(&to, &from).unwrap();
    assert_eq!(world.executed(), "");
    let text = fs::read(&from).unwrap();
    fs::write(&from, text).unwrap();
    assert_eq!(world.executed(), "");
    let mut mode = fs::metadata(&from).unwrap().permissions();
    mode.set_readonly(true);
    fs::set_permissions(&from, mode).unwrap();
    assert_eq!(world.executed(), "");
}

#[test]
fn a_moved_project_and_renamed_nodes_run_nothing() {
    let mut world = World::pipeline();
    world.executed();
    let moved: PathBuf = world.folder.path().with_extension("moved");
    fs::rename(world.folder.path(), &moved).unwrap();
    let store = Store::open(moved.join(".pipe")).unwrap();
    for name in ["a", "b"] {
        world.fake(&format!("ingest.{name}")).file = Some(moved.join(name));
    }
    for (name, _, inputs) in world.nodes.values_mut() {
        *name = name.replace(".a", ".renamed");
        inputs.iter_mut().for_each(|(from, _)| *from = from.replace(".a", ".renamed"));
    }
    let states = plan_states(&world.plan(), &store, "", &Selection::default()).unwrap();
    assert!(states.iter().all(|state| state.state == State::Cached), "{states:?}");
    fs::remove_dir_all(moved).unwrap();
}

#[test]
fn a_new_stage_version_is_named_and_cut_off_where_bytes_are_equal() {
    let mut world = World::pipeline();
    world.executed();
    world.fake("pack.train").version = "1b";
    assert_eq!(state(&world, "pack.train").reason, "the code of pack changed: 1 -> 1b");
    assert_eq!(world.executed(), "pack.train");
    world.fake("pack.train").version = "2";
    assert_eq!(world.executed(), "pack.train train eval");
}

#[test]
fn reading_one_file_of_an_output_ignores_the_others() {
    let mut world = World::new();
    world.write("a", "one\n");
    world.source("ingest", "ingest", "a");
    world.node("length", "pack", json!(null), &["ingest/more/length"]);
    world.node("folder", "pack", json!(2), &["ingest/more/length"]);
    world.executed();
    world.write("a", "two\n");
    assert_eq!(world.executed(), "ingest");
}

#[test]
fn force_from_and_until() {
    let world = World::pipeline();
    assert_eq!(
        world.executed_with(Selection { until: only("pack"), ..Selection::default() }),
        "ingest.a clean.a tokenize.a ingest.b clean.b tokenize.b pack.train"
    );
    let until = Selection { until: only("clean.a"), ..Selection::default() };
    let outcome = world.run_with(&Options { selection: until, ..Options::default() });
    assert_eq!(names(&outcome.finished.cached), "ingest.a clean.a");
    assert_eq!(outcome.finished.skipped.len(), 7);
    world.executed();
    assert_eq!(
        world.executed_with(Selection { force: only("tokenize"), ..Selection::default() }),
        "tokenize.a tokenize.b"
    );
    let from = Selection { from: only("pack.train"), ..Selection::default() };
    assert_eq!(world.executed_with(from), "pack.train train eval");
    let both = Selection { from: only("pack.train"), until: only("train"), ..Selection::default() };
    assert_eq!(world.executed_with(both), "pack.train train");
    let unknown = Selection { until: only("tran"), ..Selection::default() };
    let error = plan_states(&world.plan(), &world.store(), "", &unknown).unwrap_err();
    assert!(error.to_string().contains("`tran`") && error.to_string().contains("pack.train"));
}

#[test]
fn a_hundred_cached_nodes_take_a_moment() {
    let mut world = World::new();
    world.write("a", "one\n");
    world.source("ingest", "ingest", "a");
    for i in 0..100 {
        world.node(&format!("clean.{i}"), "clean", json!(i), &["ingest"]);
    }
    world.executed();
    let once = || {
        let began = Instant::now();
        assert_eq!(world.executed(), "");
        began.elapsed()
    };
    let took = (0..5).map(|_| once()).min().unwrap();
    // 20 ms on an idle machine; this one may be running all other tests.
    assert!(took.as_secs_f64() < 0.5, "{took:?}");
}

#[test]
fn an_edit_while_reading_is_filed_under_what_was_read() {
    let mut world = World::pipeline();
    world.fake("ingest.a").twist = Twist::EditWhileReading { says: true };
    let outcome = world.run();
    assert!(World::text(&outcome, "eval").contains("a one"));
    world.fake("ingest.a").twist = Twist::None;
    let outcome = world.run();
    assert!(World::text(&outcome, "eval").contains("edited"), "the edit is not hidden behind the first run");
    world.write("a", "a two\na one\n");
    assert_eq!(world.executed(), "", "and the first run's work is still found");
}

#[test]
fn an_edit_before_reading_is_filed_under_what_was_read() {
    let mut world = World::pipeline();
    world.fake("ingest.a").twist = Twist::EditBeforeReading;
    let outcome = world.run();
    assert!(World::text(&outcome, "eval").contains("edited"));
    world.fake("ingest.a").twist = Twist::None;
    assert_eq!(world.executed(), "", "the work is found under the bytes that were read");
    world.write("a", "a two\na one\n");
    assert_eq!(
        world.executed(),
        "ingest.a clean.a tokenize.a pack.train train eval",
        "and not under those planned with"
    );
}

#[test]
fn after_an_edit_while_reading_unawares_the_node_runs_again() {
    let mut world = World::pipeline();
    world.fake("ingest.a").twist = Twist::EditWhileReading { says: false };
    let outcome = world.run();
    assert!(outcome.finished.ok);
    assert_eq!(world.fake("ingest.a").ran.load(Ordering::SeqCst), 2);
    assert!(World::text(&outcome, "eval").contains("edited"));
    assert_eq!(world.executed(), "");
}

#[test]
fn a_source_that_never_rests_fails_and_keeps_nothing() {
    let mut world = World::pipeline();
    world.fake("ingest.a").twist = Twist::KeepEditing;
    let outcome = world.run();
    assert_eq!(names(&outcome.finished.failed), "ingest.a");
    assert!(outcome.failures[0].error.contains("changed while ingest.a was reading it"), "{:?}", outcome.failures);
    world.fake("ingest.a").twist = Twist::None;
    assert!(World::text(&world.run(), "eval").contains("more"));
}
