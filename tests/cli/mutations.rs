//! Random changes of a real recipe and its data, through the real stages: after each of them every output equals that of a
//! run from nothing, and nothing ran whose parameters and inputs had been worked on before.

use std::collections::{BTreeMap, BTreeSet};

use super::harness::{Project, Ran};

/// In the time that CI has; PIPE_MUTATIONS asks for more.
const MUTATIONS: usize = 30;

const KEYS: [(&str, &[&str]); 9] = [
    ("val_set_size", &["0.2", "0.4", "0.20"]),
    ("sequence_len", &["128", "120", "140"]),
    ("train_on_inputs", &["false", "true"]),
    ("sample_packing", &["true", "false"]),
    ("seed", &["42", "7"]),
    ("dataset_exact_deduplication", &["true", "false"]),
    ("clean", &["{normalize: true}", "{min_chars: 12}", "{}", "{dedup: exact}"]),
    ("augment", &["{repeat: 2}", "{paraphrase: ['{request}!']}", "{repeat: 1}"]),
    ("split", &["{seed: 1}", "{seed: 42}"]),
];

struct Walk {
    project: Project,
    rows: Vec<String>,
    keys: BTreeMap<&'static str, &'static str>,
    label: usize,
    random: u64,
    /// Parameters and upstream outputs of everything that was worked on, by stage, and is stored.
    done: BTreeMap<String, String>,
}

impl Walk {
    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.random >> 33) % end as u64) as usize
    }

    fn row(i: usize) -> String {
        let (ask, answer) = (format!("Please list the {i} running container"), format!("docker ps {i}"));
        format!("{}\n", serde_json::json!({ "instruction": ask, "input": "", "output": answer }))
    }

    /// Changes something; what, and whether it may change any result.
    fn mutate(&mut self) -> (String, bool) {
        let at = self.below(self.rows.len());
        let new = Self::row(1000 + self.below(5));
        match self.below(12) {
            0 => self.rows[at] = new,
            1 => self.rows.insert(at, new),
            2 => drop(self.rows.remove(at)),
            3 => self.rows.push(self.rows[at].clone()),
            4 => {
                let with =
                    [("list the", "list  the "), ("list  the ", "list the"), ("running", "stopped")][self.below(3)];
                self.rows[at] = self.rows[at].replace(with.0, with.1);
            }
            5..=8 => {
                let (key, values) = KEYS[self.below(KEYS.len())];
                let value = self.below(values.len() + 1);
                match values.get(value) {
                    Some(value) => self.keys.insert(key, value),
                    None => self.keys.remove(key),
                };
                return (format!("{key}: {:?}", values.get(value)), true);
            }
            9 => {
                self.label += 1;
                return (format!("the label is docker{}", self.label), false);
            }
            10 => return (self.damage(), true),
            _ => return ("nothing but spelling".to_string(), false),
        }
        (format!("row {at} of {}", self.rows.len()), true)
    }

    /// Harms one stored output.
    fn damage(&mut self) -> String {
        let said = self.project.pipe(&["cache", "ls", "--json"]).json();
        let outputs = said["outputs"].as_array().unwrap();
        let one = &outputs[self.below(outputs.len())];
        let folder = self.project.path("work/.pipe/objects").join(one["output"].as_str().unwrap());
        let file = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path()).min().unwrap();
        let harm = self.below(3);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        match harm {
            0 => {}
            1 => std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
            _ => {
                let mut bytes = bytes;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 8;
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let output = one["output"].as_str().unwrap();
        self.done.retain(|_, made| made != output);
        format!("harm {harm} to {}", one["nodes"])
    }

    fn write(&mut self, project: &Project) {
        let mut lines: Vec<String> = self.keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        lines.extend(["train: false\n".to_string(), "eval: false\n".to_string(), "base_model: model\n".to_string()]);
        let dataset = format!("datasets:\n  - label: docker{}\n    path: rows.jsonl\n    type: alpaca\n", self.label);
        lines.push(dataset);
        let turn = self.below(lines.len());
        lines.rotate_left(turn);
        project.write("recipe.yml", &format!("# {turn}\n{}", lines.concat()));
        project.write("rows.jsonl", &self.rows.concat());
    }

    /// For each node what it is made of, and what came out.
    fn made(project: &Project, ran: &Ran) -> BTreeMap<String, (String, String)> {
        let run = project.pipe(&["runs", "last", "--json"]).json();
        let output = |node: &str| -> String {
            let finished = ran.events.iter().rev().find(|e| e["event"] == "node_finished" && e["node"] == node);
            finished.unwrap()["output"].as_str().unwrap().to_string()
        };
        let nodes = run["plan"].as_array().unwrap().iter();
        nodes
            .map(|node| {
                let inputs: Vec<String> =
                    super::harness::list(&node["inputs"]).iter().map(|name| output(name)).collect();
                // An ingested file is its rows, in their order.
                let source = if inputs.is_empty() { project.read("rows.jsonl") } else { String::new() };
                let name = node["node"].as_str().unwrap();
                let identity = format!("{} {} {inputs:?} {source}", node["stage"], node["params"]);
                (name.to_string(), (identity, output(name)))
            })
            .collect()
    }

    fn step(&mut self, number: usize) {
        let (what, may_change) = self.mutate();
        let clean_room = Project::with_data_recipe();
        let project = std::mem::replace(&mut self.project, Project::new());
        self.write(&project);
        clean_room.write("recipe.yml", &project.read("recipe.yml"));
        clean_room.write("rows.jsonl", &project.read("rows.jsonl"));
        let (ran, expected) = (project.run(&[]), clean_room.run(&[]));
        assert_eq!((ran.code, expected.code), (0, 0), "step {number}: {what}");
        let (made, wanted) = (Self::made(&project, &ran), Self::made(&clean_room, &expected));
        let outputs = |made: &BTreeMap<String, (String, String)>| -> BTreeMap<String, String> {
            made.iter().map(|(node, (_, output))| (node.clone(), output.clone())).collect()
        };
        assert_eq!(outputs(&made), outputs(&wanted), "step {number}: {what}");
        let known = |node: &&String| self.done.contains_key(&made[*node].0);
        let needless: BTreeSet<&String> = ran.executed.iter().filter(known).collect();
        assert!(needless.is_empty(), "step {number}: {what}: {needless:?} ran again");
        assert!(may_change || ran.executed.is_empty(), "step {number}: {what}: {:?}", ran.executed);
        self.done.extend(made.into_values());
        self.project = project;
    }
}

#[test]
fn random_changes_give_the_bytes_of_a_run_from_nothing_and_nothing_runs_for_nothing() {
    let mutations = std::env::var("PIPE_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(MUTATIONS);
    let keys = BTreeMap::from([("val_set_size", "0.2"), ("sequence_len", "128")]);
    let rows = (0..24).map(Walk::row).collect();
    let project = Project::with_data_recipe();
    let mut walk = Walk { project, rows, keys, label: 0, random: 5, done: BTreeMap::new() };
    let project = std::mem::replace(&mut walk.project, Project::new());
    walk.write(&project);
    let first = project.run(&[]);
    walk.done.extend(Walk::made(&project, &first).into_values());
    walk.project = project;
    (0..mutations).for_each(|number| walk.step(number));
}
