//! Inside a stage: rows that did not change are taken over, and no byte differs from a run from nothing.

use super::harness::{Project, Ran};

/// Output digest and counts of every node of the last run.
fn results(ran: &Ran) -> std::collections::BTreeMap<String, String> {
    let finished = ran.events.iter().filter(|event| event["event"] == "node_finished");
    finished
        .map(|event| {
            (event["node"].to_string(), format!("{} {} {}", event["output"], event["stats"], event["warnings"]))
        })
        .collect()
}

/// `rows_computed` and `rows_reused` of a node.
fn by_rows(ran: &Ran, node: &str) -> (u64, u64) {
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
        // A duplicate ends at clean, and what did not run counts no rows.
        let ran = ["augment.chats", "template.chats", "tokenize.chats"].into_iter();
        for node in ran.filter(|node| warm.executed.contains(*node)) {
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
