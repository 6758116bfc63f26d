//! Commands that look: plan, show, runs, schema, template, cache.

use super::harness::Project;

#[test]
fn the_plan_before_and_after() {
    let project = Project::with_data_recipe();
    let plan = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    let nodes = plan["nodes"].as_array().unwrap();
    assert!(nodes.iter().all(|node| node["state"] == "run"));
    assert!(!project.path("work/.pipe").exists(), "looking makes nothing");
    assert_eq!(project.run(&[]).code, 0);
    let plan = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    assert!(plan["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "cached" && node["key"].is_string()));
    let text = project.pipe(&["plan", "recipe.yml"]).stdout;
    assert!(text.contains("project  $ROOT/work") && text.contains("nothing to do"), "{text}");
    assert!(project.pipe(&["plan", "recipe.yml", "--dot"]).stdout.starts_with("digraph plan {"));
    assert!(project.pipe(&["plan", "recipe.yml", "--mermaid"]).stdout.starts_with("flowchart LR"));
}

#[test]
fn tokens_come_with_labels_and_text() {
    let project = Project::with_data_recipe();
    assert_eq!(project.pipe(&["show", "recipe.yml", "tokenize"]).code, 2);
    assert_eq!(project.run(&[]).code, 0);
    let shown = project.pipe(&["show", "recipe.yml", "tokenize.docker", "--rows", "2", "--json"]).json();
    let rows = shown["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let (ids, labels) = (rows[0]["input_ids"].as_array().unwrap(), rows[0]["labels"].as_array().unwrap());
    assert_eq!(ids.len(), labels.len());
    assert!(labels.iter().any(|label| label == -100) && labels.last() == ids.last());
    let text = rows[0]["text"].as_str().unwrap();
    assert!(text.contains("running container") && text.contains("docker container list"), "{text}");
    let id = rows[1]["row_id"].as_str().unwrap();
    let one = project.pipe(&["show", "recipe.yml", "tokenize.docker", "--row", id, "--json"]).json();
    assert_eq!(one["rows"][0], rows[1]);
    let pack = project.pipe(&["show", "recipe.yml", "pack.train", "--rows", "1", "--json"]).json();
    for column in ["input_ids", "labels", "position_ids", "segment_ids"] {
        assert!(pack["rows"][0][column].is_array(), "{column}");
    }
}

#[test]
fn runs_are_recorded() {
    let project = Project::with_data_recipe();
    project.run(&[]);
    project.run(&[]);
    let runs = project.pipe(&["runs", "--json"]).json();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 2);
    let last = project.pipe(&["runs", "last"]);
    assert!(last.stdout.contains("done") && last.stdout.contains("cached"), "{}", last.stdout);
    assert_eq!(project.pipe(&["runs", "none"]).code, 2);
}

#[test]
fn the_store_can_be_listed_and_emptied() {
    let project = Project::with_data_recipe();
    project.run(&[]);
    let listed = project.pipe(&["cache", "ls", "--json"]).json();
    assert!(listed["outputs"].as_array().unwrap().len() >= 5);
    assert_eq!(project.pipe(&["cache", "gc", "--max-size", "0MB", "--dry-run"]).code, 0);
    assert_eq!(project.run(&[]).executed.len(), 0);
}

#[test]
fn a_store_can_be_named_before_and_after_what_is_asked_of_it() {
    let project = Project::with_data_recipe();
    project.run(&["--cache-dir", "elsewhere"]);
    let behind = ["cache", "ls", "--json", "--cache-dir", "elsewhere"];
    for arguments in [behind, ["cache", "--cache-dir", "elsewhere", "ls", "--json"]] {
        let listed = project.pipe(&arguments).json();
        assert!(listed["outputs"].as_array().unwrap().len() >= 5, "{arguments:?}");
    }
    assert!(project.pipe(&["cache", "verify", "--cache-dir", "elsewhere"]).stdout.starts_with("sound: "));
    let mistyped = project.pipe(&["cache", "verify", "--cache-dir", "elsewere"]);
    assert!(
        mistyped.stdout.contains("there is no folder") && mistyped.stdout.contains("elsewere"),
        "{}",
        mistyped.stdout
    );
}

#[test]
fn the_schema_describes_recipes() {
    let schema = Project::new().pipe(&["schema"]).json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["base_model"].is_object());
}

#[test]
fn a_template_renders_byte_for_byte() {
    let project = Project::with_data_recipe();
    project.write("messages.json", r#"[{"role": "user", "content": "Hi"}]"#);
    let render = ["template", "render", "--template", "model", "--messages", "messages.json"];
    let said = project.pipe(&render);
    assert_eq!(said.stdout, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "{}", said.stderr);
    let said = project.pipe(&[&render[..], &["--no-generation-prompt"]].concat());
    assert_eq!(said.stdout, "<|im_start|>user\nHi<|im_end|>\n");
    project.write("no.jinja", "{{ raise_exception('roles must alternate') }}");
    let said = project.pipe(&["template", "render", "--template", "no.jinja", "--messages", "messages.json"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("roles must alternate"), "{}", said.stderr);
}
