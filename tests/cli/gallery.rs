//! Every shipped recipe is valid and makes a plan, and the binary carries all of them.

use std::path::{Path, PathBuf};

use super::harness::Project;

/// Files in recipes/.
const SHIPPED: usize = 37;
/// Names of XTuner's configurations that stand for recipes.
const ALIASES: usize = 112;

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut recipes: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "yml")).collect();
    recipes.sort();
    recipes
}

#[test]
fn every_recipe_validates_and_plans() {
    let project = Project::new();
    let recipes = shipped();
    for recipe in &recipes {
        let path = recipe.to_str().unwrap();
        let store = project.path("store");
        let said = project.pipe(&["validate", path]);
        assert_eq!(said.code, 0, "{path}: {}", said.stderr);
        let said = project.pipe(&["plan", path, "--json", "--cache-dir", store.to_str().unwrap()]);
        assert_eq!(said.code, 0, "{path}: {}", said.stderr);
        assert!(said.json()["nodes"].as_array().unwrap().len() > 5, "{path}");
    }
    assert_eq!(recipes.len(), SHIPPED, "count the recipes again");
}

#[test]
fn the_binary_carries_every_recipe() {
    let project = Project::new();
    let listed = project.pipe(&["recipes", "list", "--json"]).json();
    let listed = listed["recipes"].as_array().unwrap();
    assert_eq!(listed.len(), shipped().len());
    for (row, path) in listed.iter().zip(shipped()) {
        let name = row["name"].as_str().unwrap();
        assert_eq!(name, path.file_stem().unwrap());
        assert!(!row["purpose"].as_str().unwrap().is_empty(), "{name} does not say what it is for");
        assert_eq!(project.pipe(&["recipes", "show", name]).stdout, std::fs::read_to_string(&path).unwrap());
    }
}

#[test]
fn copying_does_not_overwrite() {
    let project = Project::new();
    let copy = ["recipes", "copy", "smollm2-135m-qlora-docker", "mine.yml"];
    assert_eq!(project.pipe(&copy).code, 0);
    let said = project.pipe(&copy);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("--force"));
    assert_eq!(project.pipe(&[&copy[..], &["--force"]].concat()).code, 0);
    assert_eq!(project.pipe(&["recipes", "copy", "none", "x.yml"]).code, 2);
}

#[test]
fn every_name_of_xtuner_is_a_recipe() {
    let project = Project::new();
    let listed = project.pipe(&["recipes", "list", "-p", "_e", "--json"]).json();
    let names: Vec<&str> =
        listed["aliases"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), ALIASES);
    for name in names {
        let said = project.pipe(&["recipes", "copy", name, "."]);
        assert_eq!(said.code, 0, "{name}: {}", said.stderr);
        let file = format!("{name}.yml");
        let plan = project.pipe(&["plan", &file, "--json"]);
        assert_eq!(plan.code, 0, "{name}: {}", plan.stderr);
        let nodes = plan.json()["nodes"].clone();
        assert!(nodes.as_array().unwrap().iter().any(|node| node["node"] == "train"), "{name}");
    }
}

#[test]
fn xtuners_flagship_is_what_it_is_there() {
    let project = Project::new();
    let text = project.pipe(&["recipes", "show", "internlm2_1_8b_qlora_alpaca_e3"]).stdout;
    for line in [
        "base_model: internlm/internlm2-1_8b",
        "- path: tatsu-lab/alpaca",
        "load_in_4bit: true",
        "lora_r: 64",
        "lora_alpha: 16",
        "sequence_len: 2048",
        "gradient_accumulation_steps: 16",
        "num_epochs: 3",
        "learning_rate: 0.0002",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let said = project.pipe(&["recipes", "show", "internlm2_1_8b_qlora_alpaka_e3"]);
    assert!(said.code == 2 && said.stderr.contains("internlm2_1_8b_qlora_alpaca_e3"), "{}", said.stderr);
}
