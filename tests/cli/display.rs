//! What a run shows where nobody watches: events that tell everything, and plain lines.

use std::collections::BTreeMap;

use serde_json::Value;

use super::harness::{Project, strings};

/// A project with one data set that works and one that cannot be read.
fn half_broken() -> Project {
    let project = Project::with_data_recipe();
    project.write("more.jsonl", "{\"instruction\": \"list\", \"output\": \"ls\"}\nno row\n");
    project.edit("recipe.yml", "val_set_size", "  - path: more.jsonl\n    type: alpaca\n    label: more\nval_set_size");
    project
}

/// A display made from nothing but the lines: the state of every node.
fn replayed(events: &[Value]) -> BTreeMap<String, String> {
    let first = &events[0];
    assert_eq!(first["event"], "run_started");
    let mut states: BTreeMap<String, String> =
        strings(&first["nodes"]).into_iter().map(|node| (node, "waiting".to_string())).collect();
    for event in &events[1..events.len() - 1] {
        let node = event["node"].as_str().unwrap_or_else(|| panic!("about no node: {event}"));
        let state = states.get_mut(node).unwrap_or_else(|| panic!("not announced: {event}"));
        let (from, to) = match event["event"].as_str().unwrap() {
            "node_started" => ("waiting", "running"),
            "node_finished" if event["outcome"] == "executed" => ("running", "executed"),
            "node_finished" => ("waiting", "cached"),
            "node_failed" => ("running", "failed"),
            "node_skipped" => ("waiting", "skipped"),
            _ => continue,
        };
        assert_eq!(state, from, "{event}");
        *state = to.to_string();
    }
    states
}

#[test]
fn the_events_alone_rebuild_the_display() {
    for (project, args, code) in [
        (Project::with_data_recipe(), &[][..], 0),
        (half_broken(), &[], 2),
        (half_broken(), &["--fail-fast"], 2),
        (half_broken(), &["--until", "clean"], 2),
    ] {
        let ran = project.run(args);
        assert_eq!(ran.code, code);
        let last = ran.events.last().unwrap();
        let states = replayed(&ran.events);
        for (node, state) in &states {
            // What the selection leaves out is never spoken of, and counts as skipped.
            let list = if state == "waiting" { "skipped" } else { state };
            assert!(strings(&last[list]).contains(node), "{node} is {state}: {last}");
        }
        let told: usize =
            ["executed", "cached", "skipped", "failed"].map(|list| strings(&last[list]).len()).iter().sum();
        assert_eq!(told, states.len());
        assert!(ran.events.iter().all(|event| event["time"].as_str().unwrap().ends_with('Z')));
        // The record of the run holds the same lines.
        let id = last["run"].as_str().unwrap();
        let record = std::fs::read_to_string(project.path("work/.pipe/runs").join(id).join("events.jsonl")).unwrap();
        let recorded: Vec<Value> = record.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds = |events: &[Value]| -> Vec<String> {
            events.iter().map(|event| format!("{} {}", event["event"], event["node"])).collect()
        };
        assert_eq!(kinds(&recorded), kinds(&ran.events));
    }
}

#[test]
fn no_codes_reach_a_pipe() {
    for name in ["NO_COLOR", "CI", "TERM"] {
        let project = half_broken();
        let said = project.pipe_with(&["run", "recipe.yml"], name, "1");
        assert_eq!(said.code, 2);
        for text in [&said.stdout, &said.stderr] {
            assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{name}: {text:?}");
        }
        assert!(said.stderr.contains("more.jsonl:2"), "{}", said.stderr);
    }
}
