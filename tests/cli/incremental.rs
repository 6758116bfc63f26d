//! Only what changed runs again. Each scenario states the exact set.

use std::collections::BTreeSet;

use super::harness::{DATA_RECIPE, Project, copy_folder, rows, set};

fn ran_once() -> Project {
    let project = Project::with_data_recipe();
    let ran = project.run(&[]);
    assert_eq!(ran.code, 0);
    assert!(ran.cached.is_empty() && ran.executed.len() >= 6, "{:?}", ran.executed);
    project
}

fn executed(project: &Project, args: &[&str]) -> BTreeSet<String> {
    let ran = project.run(args);
    assert_eq!(ran.code, 0);
    ran.executed
}

#[test]
fn nothing_changed() {
    let project = ran_once();
    assert_eq!(executed(&project, &[]), set(&[]));
    let elsewhere = project.pipe_in("home", &["run", "../work/recipe.yml", "--json"]);
    assert!(elsewhere.stdout.lines().last().unwrap().contains("\"executed\":[]"), "{}", elsewhere.stdout);
    let text = project.pipe(&["run", "recipe.yml"]);
    assert!(text.stdout.contains("nothing to do"), "{}", text.stdout);
}

#[test]
fn a_moved_project_is_the_same_project() {
    let project = ran_once();
    std::fs::rename(project.path("work"), project.path("moved")).unwrap();
    let said = project.pipe_in("moved", &["run", "recipe.yml", "--json"]);
    assert!(said.stdout.lines().last().unwrap().contains("\"executed\":[]"), "{}", said.stdout);
}

#[test]
fn spelling_is_not_meaning() {
    let project = ran_once();
    let spelled = DATA_RECIPE
        .replace("val_set_size: 0.2\nsequence_len: 128", "# a remark\nsequence_len: 128\nval_set_size: 2e-1");
    project.write("recipe.yml", &spelled.replace('\n', "\r\n"));
    assert_eq!(executed(&project, &[]), set(&[]));
    std::fs::rename(project.path("work/recipe.yml"), project.path("work/base.yml")).unwrap();
    project.write("recipe.yml", "extends: base.yml\noutput_dir: elsewhere\n");
    if project.pipe(&["validate", "recipe.yml"]).code == 0 {
        assert_eq!(executed(&project, &[]), set(&[]));
    }
}

#[test]
fn touching_and_copying_change_nothing() {
    let project = ran_once();
    let text = project.read("rows.jsonl");
    std::fs::remove_file(project.path("work/rows.jsonl")).unwrap();
    project.write("rows.jsonl", &text);
    assert_eq!(executed(&project, &[]), set(&[]));
}

#[test]
fn an_edit_of_equal_size_and_time_is_seen() {
    let project = ran_once();
    let path = project.path("work/rows.jsonl");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    project.edit("rows.jsonl", "list the 7 running", "list the 7 stopped");
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(executed(&project, &[]).contains("ingest.docker"));
}

#[test]
fn a_stage_runs_with_what_lies_below_it() {
    let project = ran_once();
    let ran = executed(&project, &["--set", "sequence_len=120"]);
    assert!(!ran.contains("ingest.docker") && !ran.contains("clean.docker"), "{ran:?}");
    assert!(ran.contains("pack.train"), "{ran:?}");
    // Back again: everything is still known.
    assert_eq!(executed(&project, &[]), set(&[]));
    let below = executed(&project, &["--from", "tokenize"]);
    assert_eq!(below, set(&["tokenize.docker", "pack.train", "pack.val"]));
    assert_eq!(executed(&project, &["--force", "clean"]), set(&["clean.docker"]));
}

#[test]
fn a_duplicate_row_ends_at_clean() {
    let project = Project::with_data_recipe();
    project.write("recipe.yml", &format!("{DATA_RECIPE}clean:\n  dedup: exact\n"));
    assert_eq!(project.run(&[]).code, 0);
    project.write("rows.jsonl", &(rows(0..20) + &rows(3..4)));
    assert_eq!(executed(&project, &[]), set(&["ingest.docker", "clean.docker"]));
}

#[test]
fn another_dataset_s_branch_is_left_alone() {
    let project = Project::with_data_recipe();
    project.write("more.jsonl", &rows(100..110));
    project.edit("recipe.yml", "val_set_size", "  - path: more.jsonl\n    type: alpaca\n    label: more\nval_set_size");
    assert_eq!(project.run(&[]).code, 0);
    project.edit("rows.jsonl", "list the 7 running", "list the 7 stopped");
    let ran = executed(&project, &[]);
    assert!(ran.contains("tokenize.docker") && !ran.iter().any(|node| node.ends_with(".more")), "{ran:?}");
}

#[test]
fn a_damaged_output_is_made_again() {
    let project = ran_once();
    let state = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    assert_eq!(state["run"], 0);
    let outputs = project.run(&[]).events.pop().unwrap()["outputs"].clone();
    let folder = outputs["tokenize.docker"]
        .as_str()
        .unwrap()
        .replace("$ROOT", project.path("").canonicalize().unwrap().to_str().unwrap());
    std::fs::remove_file(std::path::Path::new(&folder).join("train.parquet")).unwrap();
    let said = project.pipe(&["cache", "verify"]);
    assert_eq!(said.code, 1, "{}", said.stdout);
    assert_eq!(executed(&project, &[]), set(&["tokenize.docker"]));
    assert_eq!(project.pipe(&["cache", "verify"]).code, 0);
}

#[test]
fn another_tokenizer_in_place_reaches_what_depends_on_it() {
    let project = ran_once();
    project.edit("model/tokenizer.json", "\"single_word\":false", "\"single_word\":true");
    let ran = project.run(&[]);
    assert!(!ran.executed.contains("ingest.docker") && !ran.executed.contains("split.docker"), "{:?}", ran.executed);
    copy_folder(&super::harness::fixture("tiny-llama"), &project.path("work/model"));
    assert_eq!(executed(&project, &[]), set(&[]));
}

#[test]
fn why_names_the_cause() {
    let project = ran_once();
    let why = project.pipe(&["why", "recipe.yml", "pack.train", "--set", "sequence_len=64", "--json"]).json();
    let text = why.to_string();
    assert!(text.contains("\"state\":\"run\"") && text.contains("64") || text.contains("upstream"), "{text}");
    project.edit("rows.jsonl", "list the 7 running", "list the 7 stopped");
    let why = project.pipe(&["why", "recipe.yml", "ingest.docker", "--json"]).json();
    assert_eq!(why["nodes"][0]["causes"][0]["kind"], "file");
}

/// Output digest and counts of every node of the last run.
fn results(ran: &super::harness::Ran) -> std::collections::BTreeMap<String, String> {
    let finished = ran.events.iter().filter(|event| event["event"] == "node_finished");
    finished
        .map(|event| {
            (event["node"].to_string(), format!("{} {} {}", event["output"], event["stats"], event["warnings"]))
        })
        .collect()
}

/// `rows_computed` and `rows_reused` of a node.
fn by_rows(ran: &super::harness::Ran, node: &str) -> (u64, u64) {
    let event = ran.events.iter().find(|event| event["event"] == "node_finished" && event["node"] == node).unwrap();
    (event["rows_computed"].as_u64().unwrap(), event["rows_reused"].as_u64().unwrap())
}

/// Conversations with what there is to remark on: special tokens in content, several roles, empty turns.
fn conversations(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let line = |i: usize| {
        let ask =
            if i.is_multiple_of(7) { format!("what is <|im_end|> {i}?") } else { format!("list container {i} please") };
        let answer = if i.is_multiple_of(11) { String::new() } else { format!("docker ps {i}") };
        let messages = serde_json::json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": ask},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "ok"},
        ]);
        format!("{}\n", serde_json::json!({ "messages": messages }))
    };
    numbers.into_iter().map(line).collect()
}

const CHAT_RECIPE: &str = "\
base_model: model
datasets:
  - path: rows.jsonl
    type: chat_template
    label: chats
    roles_to_train: [assistant, user]
val_set_size: 0.2
augment:
  repeat: 2
  paraphrase: ['{request}!', 'Tell me: {request}']
  copies: 1
sequence_len: 256
sample_packing: true
train: false
eval: false
";

fn chats(lines: &[String]) -> Project {
    let project = Project::with_data_recipe();
    project.write("recipe.yml", CHAT_RECIPE);
    project.write("rows.jsonl", &lines.concat());
    project
}

#[test]
fn rows_that_did_not_change_are_taken_over_and_no_byte_differs() {
    let lines = conversations(0..400);
    let project = chats(&lines);
    let cold = project.run(&[]);
    assert_eq!(cold.code, 0);
    assert_eq!(by_rows(&cold, "tokenize.chats").1, 0);
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change); 8] = [
        ("one edited", |lines| lines[200] = conversations([1200]).remove(0)),
        ("some inserted at the front", |lines| drop(lines.splice(0..0, conversations(1000..1030)))),
        ("some deleted in the middle", |lines| drop(lines.drain(100..160))),
        ("one duplicated", |lines| lines.push(lines[50].clone())),
        ("two halves changed places", |lines| lines.rotate_left(180)),
        ("every tenth edited", |lines| {
            for i in (0..lines.len()).step_by(10) {
                lines[i] = conversations([2000 + i]).remove(0);
            }
        }),
        ("all others", |lines| *lines = conversations(5000..5200)),
        ("the first ones again", |lines| *lines = conversations(0..300)),
    ];
    let mut now = lines;
    for (what, change) in changes {
        change(&mut now);
        project.write("rows.jsonl", &now.concat());
        let warm = project.run(&[]);
        let cold = chats(&now).run(&[]);
        assert_eq!(results(&warm), results(&cold), "{what}");
        for node in ["augment.chats", "template.chats", "tokenize.chats"] {
            let ((computed, reused), (all, none)) = (by_rows(&warm, node), by_rows(&cold, node));
            assert_eq!((computed + reused, none), (all, 0), "{what}: {node}");
        }
        if what == "one edited" {
            let (computed, reused) = by_rows(&warm, "tokenize.chats");
            // The row itself and its copies, unless the new one fell into validation.
            assert!((1..=4).contains(&computed) && reused > 1200, "{computed} {reused}");
        }
    }
    assert_eq!(project.pipe(&["cache", "verify"]).code, 0);
}

#[test]
fn nothing_is_taken_over_from_other_code_parameters_or_damaged_outputs() {
    let lines = conversations(0..60);
    let project = chats(&lines);
    assert_eq!(project.run(&[]).code, 0);
    project.edit("model/tokenizer_config.json", "message['role'] + ", "message['role'] + ' ' + ");
    let ran = project.run(&[]);
    assert_eq!(by_rows(&ran, "template.chats").1, 0);
    assert_eq!(by_rows(&project.run(&["--force", "tokenize"]), "tokenize.chats").1, 0, "forced means all of it");
    let folder = project.output(&ran, "tokenize.chats");
    std::fs::remove_file(folder.join("train.parquet")).unwrap();
    std::fs::write(folder.join("train.parquet"), "no table").unwrap();
    project.write("rows.jsonl", &conversations(1..60).concat());
    let warm = project.run(&[]);
    assert_eq!((warm.code, by_rows(&warm, "tokenize.chats").1), (0, 0));
}
