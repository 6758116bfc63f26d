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

/// Names a small, full-able disk for [`on_a_small_disk`].
const SMALL_DISK: &str = "PIPE_TEST_SMALL_DISK";

/// Run by [`a_full_disk_is_said_and_loses_nothing`] where a small disk is mounted; as a test by itself it does nothing.
#[test]
fn on_a_small_disk() {
    let Ok(disk) = std::env::var(SMALL_DISK) else { return };
    let mut world = World::at(&disk).with_pipeline();
    world.fake("train").twist = Twist::Big(1 << 20);
    let outcome = world.run();
    assert_eq!(super::fake::names(&outcome.finished.failed), "train");
    assert_eq!(outcome.finished.executed.len(), 7);
    assert!(outcome.failures[0].hint.as_deref().unwrap().starts_with("free space"), "{:?}", outcome.failures);
    let left = |folder: &str| fs::read_dir(world.path(".pipe").join(folder)).unwrap().count();
    assert_eq!((left("drafts"), left("quarantine")), (0, 0));
    let filler = Path::new(&disk).join("filler");
    while let Ok(mut file) = fs::File::options().create(true).append(true).open(&filler) {
        if std::io::Write::write_all(&mut file, &[0; 512]).is_err() {
            break;
        }
    }
    let sink = std::sync::Arc::new(crate::event::Silent);
    let store = std::sync::Arc::new(Store::open(world.path(".pipe")).unwrap());
    let full = crate::schedule::run(&world.plan(), &store, &Options::default(), sink, &Default::default());
    // What is stored is still found, or the run says at once that it cannot be recorded.
    match full {
        Ok(outcome) => assert_eq!(outcome.finished.cached.len(), 7),
        Err(error) => assert!(error.to_string().contains("disk is full"), "{error}"),
    }
    fs::remove_file(filler).unwrap();
    world.fake("train").twist = Twist::None;
    assert_eq!(world.executed(), "train eval");
    assert_eq!(verify(&world.store()), Vec::new());
}

/// Needs the right to mount a memory disk in a name space of its own; where that is denied nothing can be shown.
#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let in_space = |script: &str| {
        Command::new("unshare")
            .args(["-rm", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .env(SMALL_DISK, disk.path())
            .output()
    };
    let mount = format!("mount -t tmpfs -o size=600k none \"${SMALL_DISK}\"");
    if !in_space(&mount).is_ok_and(|output| output.status.success()) {
        return;
    }
    let output = in_space(&format!("{mount} && \"$0\" --exact tests::crash::on_a_small_disk --nocapture")).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
