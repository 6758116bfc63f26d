//! Killing runs at any moment, alone and two at once: nothing finished is lost, nothing half-made is seen, and the end is
//! what an undisturbed run gives.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::fake::{Twist, World};
use crate::cache::verify;
use crate::schedule::Options;
use crate::store::Store;

const KILLS: u64 = 200;
/// Tells a copy of this test program to be the victim.
const VICTIM: &str = "PIPE_TEST_VICTIM";

/// The recipe of generation `n`: everything from tokenize on is new, and training has checkpoints.
fn world(folder: Option<&Path>, n: u64) -> World {
    let mut world = World::pipeline();
    for name in ["a", "b"] {
        let file = folder.map_or_else(|| world.path(name), |folder| folder.join(name));
        world.fake(&format!("ingest.{name}")).file = Some(file);
        world.fake(&format!("tokenize.{name}")).params = json!({"len": n});
    }
    world.fake("train").twist = Twist::Steps(6);
    world
}

/// Run by [`spawn`] in a process of its own; as a test by itself it does nothing.
#[test]
fn victim() {
    let Ok(order) = std::env::var(VICTIM) else { return };
    let (n, folder) = order.split_once(' ').unwrap();
    let folder = Path::new(folder);
    let world = world(Some(folder), n.parse().unwrap());
    let store = std::sync::Arc::new(Store::open(folder.join(".pipe")).unwrap());
    let sink = std::sync::Arc::new(crate::event::Silent);
    crate::schedule::run(&world.plan(), &store, &Options::default(), sink, &Default::default()).unwrap();
}

fn spawn(folder: &Path, n: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::victim", "--test-threads", "1"])
        .env(VICTIM, format!("{n} {}", folder.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_at_any_moment_nothing_finished_is_lost() {
    let disturbed = world(None, 0);
    let folder = disturbed.folder.path();
    let mut random = 7u64;
    let mut delay = |most: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Duration::from_micros((random >> 33) % (most * 1000))
    };
    for kill in 0..KILLS {
        // Ten attempts per generation: later ones take up what earlier ones left.
        let mut victims = vec![spawn(folder, kill / 10)];
        if kill % 3 == 0 {
            victims.push(spawn(folder, kill / 10));
        }
        std::thread::sleep(delay(60));
        for victim in &mut victims {
            victim.kill().unwrap();
        }
        for victim in &mut victims {
            victim.wait().unwrap();
        }
        if kill % 20 == 0 && folder.join(".pipe").is_dir() {
            assert_eq!(verify(&Store::peek(folder.join(".pipe"))), Vec::new(), "after kill {kill}");
        }
    }
    let last = KILLS / 10;
    let (disturbed, clean) = (world(Some(folder), last), world(None, last));
    let store = std::sync::Arc::new(Store::open(folder.join(".pipe")).unwrap());
    let sink = std::sync::Arc::new(crate::event::Silent);
    let after =
        crate::schedule::run(&disturbed.plan(), &store, &Options::default(), sink, &Default::default()).unwrap();
    assert!(after.finished.ok, "{:?}", after.failures);
    assert_eq!(contents(&after), contents(&clean.run()));
    assert_eq!(verify(&store), Vec::new());
    assert_eq!(fs::read_dir(store.root().join("drafts")).unwrap().count(), 0);
    let quarantined = fs::read_dir(store.root().join("quarantine")).unwrap().count();
    assert_eq!(quarantined, 0, "a kill never leaves a bad object");
}

/// Name and bytes of every output file by node; object folders are named by their content.
fn contents(outcome: &crate::schedule::Outcome) -> BTreeMap<String, (String, String)> {
    (outcome.finished.outputs.iter())
        .map(|(node, folder)| {
            let digest = folder.file_name().unwrap().to_string_lossy().into_owned();
            (node.to_string(), (digest, fs::read_to_string(folder.join("text")).unwrap()))
        })
        .collect()
}
