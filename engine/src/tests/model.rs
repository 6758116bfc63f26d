//! Thousands of random changes against a model of what must run and what must come out. The model knows each node's text as
//! a function of what it reads, and a set of what has been computed; it has no digests, no times and no files.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};

use serde_json::json;

use super::fake::{Twist, World, overwrite};
use crate::digest::canonical_json;
use crate::plan::NodeName;
use crate::schedule::Options;
use crate::state::{Selection, State, plan_states};

/// Mutations per seed; four seeds make two thousand.
const MUTATIONS: usize = 500;

struct Model {
    world: World,
    /// Identity of every computation whose output is stored.
    stored: HashSet<String>,
    random: u64,
    label: usize,
}

/// A node as the model sees it.
struct Expected {
    name: String,
    identity: String,
    text: String,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.write(name, &format!("{name} two\n{name} one\n"));
            world.source(&format!("ingest.{name}"), "ingest", name);
            world.node(&format!("clean.{name}"), "clean", json!(null), &[&format!("ingest.{name}")]);
            world.fake(&format!("clean.{name}")).twist = Twist::Normalise;
            world.node(&format!("tokenize.{name}"), "tokenize", json!(null), &[&format!("clean.{name}")]);
        }
        world.node("pack.train", "pack", json!(null), &["tokenize.a", "tokenize.b/text"]);
        world.node("pack.val", "pack", json!(null), &["tokenize.c", "clean.a"]);
        world.node("train", "train", json!(null), &["pack.train", "pack.val/more"]);
        world.node("eval", "eval", json!(null), &["train/text", "pack.val/text"]);
        world.node("merge", "merge", json!(null), &["train"]);
        // Different parameters everywhere: two nodes with one output would share an object, and damage.
        for (i, (_, fake, _)) in world.nodes.iter_mut() {
            fake.params = json!({"node": i, "value": 0});
        }
        Model { world, stored: HashSet::new(), random: seed, label: 0 }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.random >> 33) % end as u64) as usize
    }

    fn expected(&self) -> Vec<Expected> {
        let mut all: Vec<Expected> = Vec::new();
        for (name, fake, inputs) in self.world.nodes.values() {
            let source = fake.file.as_ref().map_or_else(String::new, |path| fs::read_to_string(path).unwrap());
            let texts: Vec<String> = (inputs.iter())
                .map(|(from, file)| {
                    let text = &all.iter().find(|node| &node.name == from).unwrap().text;
                    if file.as_deref() == Some("more") { text.len().to_string() } else { text.clone() }
                })
                .collect();
            let text = fake.text(&source, &texts);
            let params = canonical_json(&fake.params);
            let identity = format!("{} {} {params} {source:?} {texts:?}", fake.stage, fake.version);
            all.push(Expected { name: name.clone(), identity, text });
        }
        all
    }

    /// Changes something; the selection to run with.
    fn mutate(&mut self) -> (String, Selection) {
        let mut selection = Selection::default();
        let i = self.below(self.world.nodes.len());
        let name = self.world.nodes[&i].0.clone();
        let source = ["a", "b", "c"][self.below(3)];
        let source = self.world.path(source);
        let what = match self.below(14) {
            0 | 1 => {
                let value = self.below(3);
                self.world.nodes.get_mut(&i).unwrap().1.params = json!({"value": value, "node": i});
                format!("parameter of {name} is {value}")
            }
            2 | 3 => {
                let lines = ["one\n", "two\n", "two\none\n", "one\none\ntwo\n", "2wo\n"];
                let text: String = (0..2).map(|_| lines[self.below(lines.len())]).collect();
                fs::write(&source, &text).unwrap();
                format!("{} is {text:?}", source.display())
            }
            4 => self.edit_secretly(&source),
            5 => {
                let (bytes, copy) = (fs::read(&source).unwrap(), source.with_extension("copy"));
                fs::write(&copy, bytes).unwrap();
                fs::rename(copy, &source).unwrap();
                "a source was copied over itself".to_string()
            }
            6 => {
                let version = ["1", "1b", "2"][self.below(3)];
                self.world.nodes.get_mut(&i).unwrap().1.version = version;
                format!("version of {name} is {version}")
            }
            7 => self.rename_branch(),
            8 | 9 => self.damage(i),
            10 => {
                selection.force = vec![name.clone()];
                format!("force {name}")
            }
            11 => {
                selection.until = vec![name.clone()];
                format!("until {name}")
            }
            12 => {
                fs::write(self.world.path(".pipe/memo.json"), "{}").unwrap();
                "the memo is lost".to_string()
            }
            _ => {
                selection.from = vec![name.clone()];
                format!("from {name}")
            }
        };
        (what, selection)
    }

    /// Same size, same mtime.
    fn edit_secretly(&mut self, source: &std::path::Path) -> String {
        let mut bytes = fs::read(source).unwrap();
        let mtime = fs::metadata(source).unwrap().modified().unwrap();
        bytes[0] = b"xyz"[self.below(3)];
        fs::write(source, &bytes).unwrap();
        File::options().write(true).open(source).unwrap().set_modified(mtime).unwrap();
        format!("{} was edited in secret", source.display())
    }

    fn rename_branch(&mut self) -> String {
        self.label += 1;
        let (old, new) = (self.world.nodes[&0].0.clone(), format!(".label{}", self.label));
        let old = old.trim_start_matches("ingest").to_string();
        for (name, _, inputs) in self.world.nodes.values_mut() {
            if let Some(stage) = name.strip_suffix(&old) {
                *name = format!("{stage}{new}");
            }
            for (from, _) in inputs.iter_mut() {
                if let Some(stage) = from.strip_suffix(&old) {
                    *from = format!("{stage}{new}");
                }
            }
        }
        format!("{old} is now {new}")
    }

    fn damage(&mut self, i: usize) -> String {
        let store = self.world.store();
        let states = plan_states(&self.world.plan(), &store, "", &Selection::default()).unwrap();
        let (Some(object), Some(record)) = (states[i].output.clone(), states[i].record.clone()) else {
            return "nothing to damage".to_string();
        };
        let identity = self.expected()[i].identity.clone();
        assert!(self.stored.remove(&identity), "{identity} counts as stored without having been computed");
        let harm = self.below(5);
        match harm {
            0 => fs::remove_dir_all(&object).unwrap(),
            1 => fs::remove_file(object.join("more/length")).unwrap(),
            2 => overwrite(&object.join("text"), b"cut"),
            3 => {
                let mut bytes = fs::read(object.join("text")).unwrap();
                let at = self.below(bytes.len());
                bytes[at] ^= 4;
                overwrite(&object.join("text"), &bytes);
            }
            _ => fs::remove_file(store.record_path(record.key)).unwrap(),
        }
        format!("harm {harm} to {}", states[i].node)
    }

    /// Runs, and compares with what the model expects.
    fn step(&mut self, number: usize) {
        let (what, selection) = self.mutate();
        let plan = self.world.plan();
        let expected = self.expected();
        let wanted = crate::state::resolve(&plan, &selection).unwrap();
        // The compiler's order is topological here, so positions are the world's numbers.
        let run = |i: &usize| wanted.forced.contains(i) || !self.stored.contains(&expected[*i].identity);
        let must_run: BTreeSet<String> = (0..expected.len())
            .filter(|i| wanted.wanted.contains(i))
            .filter(run)
            .map(|i| expected[i].name.clone())
            .collect();
        let states = plan_states(&plan, &self.world.store(), "", &selection).unwrap();
        let planned: BTreeSet<String> =
            states.iter().filter(|state| state.state == State::Run).map(|state| state.node.to_string()).collect();
        let outcome = self.world.run_with(&Options { selection, ..Options::default() });
        assert_eq!(outcome.failures, Vec::new(), "step {number}: {what}");
        let ran: BTreeSet<String> = outcome.finished.executed.iter().map(ToString::to_string).collect();
        assert_eq!(ran, must_run, "step {number}: {what}");
        assert!(planned.is_superset(&ran), "step {number}: {what}: planned {planned:?}, ran {ran:?}");
        for i in wanted.wanted {
            let text = World::text(&outcome, &expected[i].name);
            assert_eq!(text, expected[i].text, "step {number}: {what}: {}", expected[i].name);
            assert!(outcome.finished.outputs.contains_key(&NodeName::new(expected[i].name.as_str())));
            self.stored.insert(expected[i].identity.clone());
        }
    }
}

fn walk(seed: u64) {
    let mut model = Model::new(seed);
    (0..MUTATIONS).for_each(|number| model.step(number));
}

#[test]
fn random_changes_run_exactly_what_they_must_1() {
    walk(1);
}

#[test]
fn random_changes_run_exactly_what_they_must_2() {
    walk(22);
}

#[test]
fn random_changes_run_exactly_what_they_must_3() {
    walk(333);
}

#[test]
fn random_changes_run_exactly_what_they_must_4() {
    walk(4444);
}
