//! `pipe plan` and `pipe model show`: numbers before anything runs.

use super::harness::{Project, rows};

/// Trains the tiny model; nothing here runs it.
const RECIPE: &str = "\
base_model: model
datasets:
  - path: rows.jsonl
    type: alpaca
    label: docker
val_set_size: 0.2
sequence_len: 128
sample_packing: true
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 1
gradient_accumulation_steps: 2
num_epochs: 2
learning_rate: 1e-3
evals_per_epoch: 1
saves_per_epoch: 2
";

fn project() -> Project {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..100));
    project.write("recipe.yml", RECIPE);
    project
}

#[test]
fn estimates_are_marked_and_become_exact() {
    let project = project();
    let plan = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    let node = |plan: &serde_json::Value, name: &str| {
        plan["nodes"].as_array().unwrap().iter().find(|node| node["node"] == name).unwrap().clone()
    };
    let ingest = node(&plan, "ingest.docker");
    assert_eq!((&ingest["rows"], &ingest["estimated"]), (&100.into(), &true.into()));
    assert!(plan["train"]["estimated"] == true && plan["train"]["steps"].as_u64().unwrap() > 0);
    // q and v in two layers: 64 to 64, and 64 to 32.
    assert_eq!(plan["train"]["trainable_parameters"], 2 * 4 * (128 + 96));
    let text = project.pipe(&["plan", "recipe.yml"]).stdout;
    assert!(text.contains("~100") && text.contains("LoRA: 1,792 of 100,672 parameters"), "{text}");
    assert_eq!(project.pipe(&["run", "recipe.yml", "--until", "pack", "--quiet"]).code, 0);
    let plan = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    let packs = node(&plan, "pack.train");
    assert!(packs["estimated"].is_null() && packs["state"] == "cached");
    let (sequences, steps) = (packs["rows"].as_u64().unwrap(), plan["train"]["steps"].as_u64().unwrap());
    let per_epoch = sequences.div_ceil(2);
    assert_eq!((steps, plan["train"]["estimated"].as_bool()), (per_epoch * 2, Some(false)));
    assert_eq!(plan["train"]["evaluations"], serde_json::json!([per_epoch, steps]));
    let saves: Vec<u64> = plan["train"]["saves"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(saves.contains(&per_epoch) && !saves.contains(&steps), "{saves:?}");
    let part = |name: &str| plan["memory"][name].as_u64().unwrap();
    let parts = ["weights", "adapter", "gradients", "optimizer", "activations", "loss", "runtime"];
    let sum: u64 = parts.iter().map(|name| part(&format!("{name}_bytes"))).sum();
    assert_eq!((part("total_bytes"), part("peak_bytes")), (sum, sum));
    assert_eq!(part("adapter_bytes"), 1792 * 4);
    let text = project.pipe(&["plan", "recipe.yml"]).stdout;
    assert!(text.lines().all(|line| !line.contains('~')), "{text}");
}

#[test]
fn the_plan_fits_eighty_columns_and_draws_graphs() {
    let project = project();
    let text = project.pipe_with(&["plan", "recipe.yml"], "COLUMNS", "80").stdout;
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("node")).collect();
    assert!(table.iter().all(|line| line.chars().count() <= 80), "{text}");
    assert!(table.iter().any(|line| line.starts_with("tokenize.docker  run")), "{text}");
    // Where there is no room for reasons, numbers are shown whole or not at all.
    let text = project.pipe_with(&["plan", "recipe.yml"], "COLUMNS", "40").stdout;
    let narrow: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("node")).take(table.len() / 3).collect();
    assert!(narrow.iter().all(|line| line.chars().count() <= 40 && !line.contains('…')), "{text}");
    assert!(narrow[0].contains("state") && !narrow[0].contains("why"), "{text}");
    let dot = project.pipe(&["plan", "recipe.yml", "--dot"]).stdout;
    assert!(
        dot.contains("\"ingest.docker\" [label=\"ingest.docker\\n~100 rows\"") && dot.contains("\"train\" -> \"eval\"")
    );
    let mermaid = project.pipe(&["plan", "recipe.yml", "--mermaid"]).stdout;
    assert!(mermaid.contains("[\"ingest.docker<br/>~100 rows\"]:::run") && mermaid.contains(" --> "), "{mermaid}");
}

#[test]
fn what_is_remote_is_never_fetched_and_what_is_unknown_is_said() {
    let project = project();
    project.edit("recipe.yml", "path: rows.jsonl", "path: org/rows");
    project.edit("recipe.yml", "base_model: model", "base_model: mistralai/Mistral-7B-v0.1");
    let plan = project.pipe(&["plan", "recipe.yml", "--json"]).json();
    assert_eq!(plan["memory"]["assumed_from_name"], "mistralai/Mistral-7B-v0.1");
    // q and v: 4096 to 4096, and 4096 to 1024.
    assert_eq!(plan["train"]["trainable_parameters"], 32 * 4 * (2 * 4096 + 4096 + 1024));
    let text = project.pipe(&["plan", "recipe.yml"]).stdout;
    assert!(text.contains("known once docker has been read") && text.contains("assumed from the name"), "{text}");
    project.edit("recipe.yml", "mistralai/Mistral-7B-v0.1", "org/some-model");
    let said = project.pipe(&["plan", "recipe.yml"]);
    assert!(said.code == 0 && said.stdout.contains("cannot be estimated"), "{}", said.stdout);
}

#[test]
fn a_model_and_what_a_recipe_trains_of_it() {
    let project = project();
    let text = project.pipe(&["model", "show", "model", "--recipe", "recipe.yml"]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    for words in ["LlamaForCausalLM", "100,672", "model.layers.N.mlp.gate_proj", "adapters on 4 of 14 linear modules"] {
        assert!(text.stdout.contains(words), "{words}: {}", text.stdout);
    }
    let shown = project.pipe(&["model", "show", "model", "--modules", "--json", "--recipe", "recipe.yml"]).json();
    assert_eq!(shown["modules"].as_array().unwrap().len(), 14);
    assert_eq!(shown["modules"][0]["shape"], serde_json::json!([64, 64]));
    assert_eq!((&shown["parameters"], &shown["train"]["trainable_parameters"]), (&100_672.into(), &1792.into()));
    assert_eq!(shown["train"]["targets"].as_array().unwrap().len(), 4);
    let missing = project.pipe(&["model", "show", "nowhere"]);
    assert!(missing.code == 2 && !missing.stderr.contains("panic"), "{}", missing.stderr);
    let gguf = project.path("home");
    assert_eq!(project.pipe(&["model", "show", gguf.to_str().unwrap()]).code, 2);
}
