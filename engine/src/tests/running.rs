//! The scheduler: at once, failing, stopping, and two runs on one store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use super::fake::{Recorder, Twist, World, names};
use crate::event::{Event, Silent};
use crate::runs;
use crate::schedule::{Budget, FailureKind, Options};
use crate::task::Cancel;

fn wide(nodes: usize, twist: Twist) -> World {
    let mut world = World::new();
    for i in 0..nodes {
        world.node(&format!("clean.{i}"), "clean", json!(i), &[]);
        world.fake(&format!("clean.{i}")).twist = twist.clone();
    }
    world
}

fn budget(cores: usize) -> Options {
    Options { budget: Budget { cores, memory_bytes: 100, gpus: 0 }, ..Options::default() }
}

#[test]
fn independent_nodes_run_at_once_within_the_budget() {
    let slow = Twist::Slow(Duration::from_millis(60));
    for (cores, jobs, most) in [(3, None, 3), (1, None, 1), (4, Some(2), 2)] {
        let world = wide(6, slow.clone());
        world.run_with(&Options { jobs, ..budget(cores) });
        assert_eq!(world.busy.most.load(Ordering::SeqCst), most);
    }
    let mut world = wide(4, slow);
    for (_, fake, _) in world.nodes.values_mut() {
        fake.memory_bytes = 60;
    }
    world.run_with(&budget(4));
    assert_eq!(world.busy.most.load(Ordering::SeqCst), 1, "two would not fit into memory");
}

#[test]
fn a_node_that_wants_more_memory_than_there_is_runs_alone_and_is_told_of() {
    let mut world = wide(3, Twist::Slow(Duration::from_millis(60)));
    world.fake("clean.1").memory_bytes = 3_000_000_000;
    let recorder = Arc::new(Recorder::default());
    let budget = Budget { cores: 4, memory_bytes: 2_000_000_000, gpus: 0 };
    world.nodes.values_mut().for_each(|(_, fake, _)| fake.memory_bytes = fake.memory_bytes.max(1));
    let outcome = world.run_watched(&Options { budget, ..Options::default() }, recorder.clone(), &Cancel::default());
    assert_eq!((outcome.finished.executed.len(), world.busy.most.load(Ordering::SeqCst)), (3, 2));
    let events = recorder.0.lock().unwrap();
    let warnings: Vec<_> = events
        .iter()
        .filter_map(
            |event| if let Event::Warning { node, message } = event { Some((node.as_str(), message)) } else { None },
        )
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].0, "clean.1");
    assert!(warnings[0].1.starts_with("it is expected to take 3.0 GB of memory, more than the 2.0 GB"), "{warnings:?}");
}

#[test]
fn the_longest_path_goes_first() {
    let mut world = World::new();
    world.node("clean.a", "clean", json!("a"), &[]);
    world.node("clean.b", "clean", json!("b"), &[]);
    world.node("train", "train", json!(1), &["clean.b"]);
    world.fake("train").resources.weight = 50;
    let recorder = Arc::new(Recorder::default());
    world.run_watched(&Options { jobs: Some(1), ..Options::default() }, recorder.clone(), &Cancel::default());
    let events = recorder.0.lock().unwrap();
    let started: Vec<_> = events
        .iter()
        .filter_map(|e| if let Event::NodeStarted { node, .. } = e { Some(node.clone()) } else { None })
        .collect();
    assert_eq!(names(&started), "clean.b train clean.a");
}

#[test]
fn a_failure_stops_its_branch_only() {
    let mut world = World::pipeline();
    world.fake("clean.a").twist = Twist::Fail;
    let outcome = world.run();
    assert!(!outcome.finished.ok);
    assert_eq!(names(&outcome.finished.failed), "clean.a");
    assert_eq!(names(&outcome.finished.executed), "ingest.a ingest.b clean.b tokenize.b");
    assert_eq!(names(&outcome.finished.skipped), "tokenize.a pack.train train eval");
    assert_eq!((outcome.failures[0].kind, outcome.failures[0].error.as_str()), (FailureKind::Failed, "told to fail"));
    world.fake("clean.a").twist = Twist::Normalise;
    assert_eq!(world.executed(), "clean.a tokenize.a pack.train train eval");
}

#[test]
fn fail_fast_stops_the_rest() {
    let mut world = wide(3, Twist::Slow(Duration::from_secs(20)));
    world.fake("clean.0").twist = Twist::Fail;
    let began = Instant::now();
    let outcome = world.run_with(&Options { fail_fast: true, ..budget(4) });
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(names(&outcome.finished.failed), "clean.0");
    assert_eq!(names(&outcome.finished.skipped), "clean.1 clean.2");
    assert!(!outcome.interrupted);
}

#[test]
fn a_panic_is_a_failed_node() {
    let mut world = World::pipeline();
    world.fake("train").twist = Twist::Panic;
    let outcome = world.run();
    assert_eq!(outcome.failures[0].kind, FailureKind::Bug);
    let error = &outcome.failures[0].error;
    assert!(error.contains("told to panic") && error.contains("fake.rs"), "{error}");
}

#[test]
fn a_missing_source_is_the_users_mistake() {
    let world = World::pipeline();
    std::fs::remove_file(world.path("a")).unwrap();
    let outcome = world.run();
    assert_eq!(outcome.failures[0].kind, FailureKind::Input);
    assert!(outcome.failures[0].error.contains("cannot read"), "{:?}", outcome.failures);
    assert_eq!(names(&outcome.finished.executed), "ingest.b clean.b tokenize.b");
}

#[test]
fn cancelling_stops_soon_even_when_a_task_does_not_listen() {
    for twist in [Twist::Slow(Duration::from_secs(20)), Twist::Deaf(Duration::from_secs(4))] {
        let mut world = World::pipeline();
        world.fake("train").twist = twist;
        let cancel = Cancel::default();
        let later = cancel.clone();
        let began = Instant::now();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            later.cancel();
        });
        let outcome = world.run_watched(&Options::default(), Arc::new(Silent), &cancel);
        assert!(outcome.interrupted && !outcome.finished.ok);
        assert!(began.elapsed() < Duration::from_millis(2400));
        assert_eq!(names(&outcome.finished.skipped), "train eval");
    }
}

#[test]
fn two_runs_at_once_share_every_node() {
    let mut world = World::pipeline();
    for (_, fake, _) in world.nodes.values_mut() {
        if fake.stage != "clean" {
            fake.twist = Twist::Slow(Duration::from_millis(40));
        }
    }
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| world.run())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(outcomes.iter().all(|outcome| outcome.finished.ok));
    assert!(world.nodes.values().all(|(_, fake, _)| fake.ran.load(Ordering::SeqCst) == 1));
    let executed: usize = outcomes.iter().map(|outcome| outcome.finished.executed.len()).sum();
    assert_eq!(executed, 9);
}

#[test]
fn two_nodes_of_one_key_are_computed_once() {
    let mut world = World::new();
    world.node("clean.a", "clean", json!("same"), &[]);
    world.node("clean.b", "clean", json!("same"), &[]);
    let outcome = world.run();
    assert_eq!((outcome.finished.executed.len(), outcome.finished.cached.len()), (1, 1));
    assert_eq!(outcome.finished.outputs.len(), 2);
}

#[test]
fn every_run_is_recorded() {
    let world = World::pipeline();
    world.run();
    let second = world.run();
    let store = world.store();
    let listed = runs::list(&store);
    assert_eq!(listed.len(), 2);
    let run = runs::find(&store, "last").unwrap();
    assert_eq!(run.id, second.finished.run);
    assert_eq!(run.plan.len(), 9);
    assert!(!run.live);
    let finished = run.finished.unwrap();
    assert_eq!((finished.result, finished.nodes.len()), (second.finished, 9));
    let events = runs::events(&store, &run.id);
    assert!(matches!(events.first().unwrap().event, Event::RunStarted { .. }));
    assert!(matches!(events.last().unwrap().event, Event::RunFinished(_)));
    assert_eq!(events.len(), 11);
}

#[test]
fn an_attempt_takes_over_the_work_of_the_one_before_and_no_straggler_writes_into_it() {
    let world = World::new();
    let store = world.store();
    let key = crate::digest::Digest::of(b"key");
    let first = store.take_work(key).unwrap();
    std::fs::write(first.join("checkpoint"), "3").unwrap();
    let second = store.take_work(key).unwrap();
    assert_eq!(std::fs::read_to_string(second.join("checkpoint")).unwrap(), "3");
    assert!(std::fs::write(first.join("checkpoint"), "4").is_err());
    assert_eq!(std::fs::read_dir(store.work(key)).unwrap().count(), 1);
}
