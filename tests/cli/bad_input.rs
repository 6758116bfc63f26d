//! Whatever is wrong with what was given: one clear error with its place and remedy, and the contract's exit code.

use super::harness::{Project, rows};

/// What a command says of bad input, checked to be told like one.
fn complaint(project: &Project, code: i32, args: &[&str]) -> String {
    let said = project.pipe(args);
    assert_eq!(said.code, code, "{}\n{}", said.stdout, said.stderr);
    for word in ["panicked", "RUST_BACKTRACE", "unwrap"] {
        assert!(!said.stderr.contains(word), "{}", said.stderr);
    }
    (said.stderr + &said.stdout).replace("$ROOT/work", "$PROJECT")
}

fn assert_tells(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
}

#[test]
fn a_recipe_that_is_not_there() {
    let project = Project::new();
    assert_tells(&complaint(&project, 2, &["run", "none.yml"]), &["none.yml", "error"]);
}

#[test]
fn an_unknown_key_names_the_nearest_one_and_its_place() {
    let project = Project::with_data_recipe();
    project.edit("recipe.yml", "sequence_len", "sequence_length");
    let text = complaint(&project, 2, &["validate", "recipe.yml"]);
    assert_tells(&text, &["recipe.yml:7:1", "sequence_length", "sequence_len", "^^^"]);
    let problems = project.pipe(&["validate", "recipe.yml", "--json"]).json();
    assert_eq!(problems["valid"], false);
    let problem = &problems["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(7), Some(1)));
    assert!(problem["suggestion"].as_str().unwrap().contains("sequence_len"));
}

#[test]
fn every_problem_is_told_at_once() {
    let project = Project::with_data_recipe();
    project.edit("recipe.yml", "sequence_len: 128", "sequence_len: long\nlora_rank: 4");
    project.edit("recipe.yml", "rows.jsonl", "lines.jsonl");
    let problems = project.pipe(&["validate", "recipe.yml", "--json"]).json();
    assert!(problems["problems"].as_array().unwrap().len() >= 3, "{problems}");
}

#[test]
fn a_tokenizer_that_is_cut_off() {
    let project = Project::with_data_recipe();
    project.write("model/tokenizer.json", "{\"model\": {\"vocab\": {\"<s>\": 1, ");
    insta::assert_snapshot!(complaint(&project, 2, &["validate", "recipe.yml"]), @r"
    error[unusable-tokenizer]: $PROJECT/model/tokenizer.json: the tokenizer cannot be used: its JSON: EOF while parsing an object at line 1 column 31
     --> recipe.yml:1:13 (base_model)
    1 | base_model: model
      |             ^^^^^
      help: a model with its tokenizer files whole

    recipe.yml: invalid (1 error)
    ");
}

#[test]
fn a_missing_file() {
    let project = Project::with_data_recipe();
    project.edit("recipe.yml", "rows.jsonl", "lines.jsonl");
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["lines.jsonl", "recipe.yml:3"]);
}

#[test]
fn a_wrong_column() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n");
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["rows.jsonl", "instruction", "question"]);
}

#[test]
fn a_broken_line_names_its_row() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &(rows(0..3) + "{\"instruction\": \n" + &rows(4..6)));
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["rows.jsonl:4"]);
    // Mended, the next run goes on.
    project.write("rows.jsonl", &rows(0..20));
    assert_eq!(project.run(&[]).code, 0);
}

#[test]
fn an_empty_dataset() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", "");
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["rows.jsonl"]);
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let project = Project::with_data_recipe();
    assert_eq!(project.run(&[]).code, 0);
    project.write(".pipe/format", "999\n");
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["999", "--cache-dir"]);
}

#[test]
fn a_store_that_cannot_be_written_is_a_resource_not_had() {
    let project = Project::with_data_recipe();
    project.write("taken", "a file");
    assert_tells(&complaint(&project, 3, &["run", "recipe.yml", "--cache-dir", "taken/below"]), &["taken"]);
}

#[test]
fn a_node_that_is_not_there() {
    let project = Project::with_data_recipe();
    for args in [["why", "recipe.yml", "trian"], ["show", "recipe.yml", "trian"]] {
        assert_tells(&complaint(&project, 2, &args), &["trian", "pack.train"]);
    }
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml", "--until", "trian"]), &["trian", "pack.train"]);
}

#[test]
fn arguments_that_make_no_sense() {
    let project = Project::new();
    for args in [&["rnu"][..], &["run"], &["run", "x.yml", "--set", "novalue"], &["run", "x.yml", "--jobs", "0"]] {
        complaint(&project, 2, args);
    }
    assert_eq!(project.pipe(&["--help"]).code, 0);
    assert_eq!(project.pipe(&["--version"]).code, 0);
}

#[test]
fn a_row_that_the_template_cannot_render_is_placed_through_all_that_was_done_to_it() {
    let project = Project::with_data_recipe();
    let talk = |ask: &str, answer: &str| {
        let messages = [("user", ask), ("assistant", answer)]
            .map(|(role, content)| serde_json::json!({ "role": role, "content": content }));
        format!("{}\n", serde_json::json!({ "messages": messages }))
    };
    let mut talks: Vec<String> = (0..9).map(|i| talk(&format!("  list {i}"), "docker ps")).collect();
    talks[6] = talk("wipe  it", "docker rm");
    project.write("rows.jsonl", &talks.concat());
    project.edit("recipe.yml", "alpaca", "chat_template");
    let template = "{% for m in messages %}{% if 'wipe' in m.content %}{{ raise_exception('not allowed') }}{% endif %}{{ m.content }}{% endfor %}";
    let settings = format!(
        "clean: {{normalize: true}}\naugment: {{repeat: 2}}\nchat_template: jinja\nchat_template_jinja: \"{template}\"\n"
    );
    project.write("recipe.yml", &(project.read("recipe.yml") + &settings));
    assert_tells(&complaint(&project, 2, &["run", "recipe.yml"]), &["not allowed", "rows.jsonl:7"]);
}
