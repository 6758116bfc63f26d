//! A kill at any moment loses nothing but the node in flight.

use std::time::Duration;

use super::harness::{Project, rows, set};

#[test]
fn a_killed_run_is_carried_on() {
    let calm = Project::with_data_recipe();
    calm.write("rows.jsonl", &rows(0..3000));
    let undisturbed = calm.run(&[]);
    assert_eq!(undisturbed.code, 0);
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..3000));
    for delay in [5, 20, 40, 60, 80, 120] {
        let mut child = project.start(&["run", "recipe.yml", "--quiet"]);
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(project.pipe(&["cache", "verify"]).code, 0);
    }
    let ran = project.run(&[]);
    assert_eq!(ran.code, 0);
    assert_eq!(digests(&ran.events), digests(&undisturbed.events));
    assert_eq!(project.run(&[]).executed, set(&[]));
}

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..20_000));
    let mut child = project.start(&["run", "recipe.yml", "--quiet"]);
    std::thread::sleep(Duration::from_millis(60));
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    let began = std::time::Instant::now();
    let code = child.wait().unwrap().code();
    // A quick machine may have been done by then.
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(project.run(&[]).code, 0);
}

/// Output digest of every node.
fn digests(events: &[serde_json::Value]) -> std::collections::BTreeMap<String, String> {
    let finished = events.iter().filter(|event| event["event"] == "node_finished");
    finished.map(|event| (event["node"].to_string(), event["output"].to_string())).collect()
}
