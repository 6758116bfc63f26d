//! Every shipped recipe is valid and makes a plan, and the binary carries all of them.

use std::path::{Path, PathBuf};

use super::harness::Project;

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
    assert!(recipes.len() >= 2, "saw {} recipes", recipes.len());
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
