//! What evaluation writes for lm-evaluation-harness, against what it makes of it (`tests/fixtures/lm_eval/generate.py`): the
//! prompts, answers, scores and hashes of its own run of the exported tasks. Needs the worker beside the binary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::evaluating;
use super::harness::{Project, fixture, set};

const EXPORT: [&str; 6] = [
    "--set",
    "eval.export=lm_eval",
    "--set",
    "eval.choices=[{path: questions.jsonl}]",
    "--set",
    "eval.metrics=[perplexity, exact_match, bleu, chrf, rouge_l]",
];
const DATE: &str = "1970-01-01T00-00-00.000000";

fn project() -> Project {
    let project = evaluating::project();
    project.write("questions.jsonl", &std::fs::read_to_string(fixture("choices/questions.jsonl")).unwrap());
    // A stop text, an answer that is right, and white space that does not count.
    project.write("one.jsonl", &std::fs::read_to_string(fixture("lm_eval/one.jsonl")).unwrap());
    project.edit("recipe.yml", "  max_new_tokens: 8\n", "  max_new_tokens: 8\n  stop: [\" network\", \"\\n\\n\"]\n");
    project
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn samples(outputs: &Path, task: &str) -> Vec<Value> {
    lines(&outputs.join(format!("samples_{task}_{DATE}.jsonl")))
}

/// Files below a folder, by name.
fn files(folder: &Path) -> BTreeSet<String> {
    let (mut found, mut todo) = (BTreeSet::new(), vec![folder.to_path_buf()]);
    while let Some(at) = todo.pop() {
        for path in std::fs::read_dir(&at).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found
}

/// Numbers in texts as numbers: the harness writes them as Python does.
fn close(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b)),
        (Value::String(a), Value::String(b)) if a != b => match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => (a - b).abs() < 2e-3,
            // Whether a choice is what the model would have written is not measured here.
            _ => a == "None" && (b == "True" || b == "False"),
        },
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9,
        (a, b) => a == b,
    }
}

fn same_as_the_harness(outputs: &Path, golden: &Value) {
    let results = json_of(&outputs.join(format!("results_{DATE}.json")));
    for task in ["pipe_test", "pipe_questions"] {
        let (ours, theirs) = (samples(outputs, task), golden["samples"][task].as_array().unwrap());
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.len() >= 20);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(
                ours.as_object().unwrap().keys().collect::<Vec<_>>(),
                theirs.as_object().unwrap().keys().collect::<Vec<_>>()
            );
            for (key, theirs) in theirs.as_object().unwrap() {
                assert!(close(&ours[key], theirs), "{task}, {key}: {} and not {theirs}", ours[key]);
            }
        }
        assert_eq!(results["task_hashes"][task], golden["task_hashes"][task]);
        for (key, theirs) in golden["results"][task].as_object().unwrap() {
            let ours = &results["results"][task][key];
            // Errors of corpus scores are drawn at random there, and left out here.
            assert!(
                close(ours, theirs) || (key.contains("_stderr") && *ours == json!("N/A")),
                "{task}, {key}: {ours}, {theirs}"
            );
        }
    }
    for key in ["versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"] {
        assert_eq!(results[key], golden[key], "{key}");
    }
}

#[test]
fn exported_tasks_and_outputs_are_what_the_harness_makes_of_them() {
    let project = project();
    let plain = project.run(&EXPORT[2..]);
    assert_eq!((plain.code, plain.executed.contains("eval")), (0, true), "{:?}", plain.events.last());
    let whole = evaluating::table(&project);
    let ran = project.run(&EXPORT);
    assert_eq!((ran.code, ran.executed.clone(), ran.warnings()), (0, set(&["eval"]), vec![]));
    assert_eq!(evaluating::table(&project), whole, "what is measured is the same");
    let folder = project.path("work/out/eval/lm_eval");
    let golden = json_of(&fixture("lm_eval/expected.json"));
    let names = |names: &[&str]| names.iter().map(|name| name.replace("DATE", DATE)).collect::<BTreeSet<String>>();
    let tasks =
        ["_rows_yaml", "rows.py", "pipe_test.yaml", "pipe_test.jsonl", "pipe_questions.yaml", "pipe_questions.jsonl"];
    assert_eq!(files(&folder.join("tasks")), names(&tasks));
    let outputs = ["results_DATE.json", "samples_pipe_test_DATE.jsonl", "samples_pipe_questions_DATE.jsonl"];
    assert_eq!(files(&folder.join("outputs/base")), names(&outputs));
    same_as_the_harness(&folder.join("outputs/base"), &golden);
    // What is scored there is what is scored here.
    let (ours, test) = (&whole["models"]["base"], &golden["results"]["pipe_test"]);
    for name in ["exact_match", "bleu", "chrf"] {
        assert!(close(&ours["test"][name], &test[format!("{name},trim")]), "{name}: {} {test}", ours["test"]);
    }
    let questions = &golden["results"]["pipe_questions"];
    assert_eq!(ours["questions"]["acc"], questions["acc,none"]);
    assert_eq!(ours["questions"]["acc_norm"], questions["acc_norm,none"]);
    let read = |name: &str| -> Value {
        serde_yaml::from_str(&std::fs::read_to_string(folder.join("tasks").join(name)).unwrap()).unwrap()
    };
    let task = read("pipe_test.yaml");
    assert_eq!(task["generation_kwargs"], golden["samples"]["pipe_test"][0]["arguments"]["gen_args_0"]["arg_1"]);
    assert_eq!(task["dataset_kwargs"], json!({"data_files": {"test": "pipe_test.jsonl"}}));
    assert_eq!(lines(&folder.join("tasks/pipe_test.jsonl"))[0]["dataset"], "one");
}

#[test]
fn the_verb_exports_into_a_new_folder() {
    let project = project();
    let eval =
        ["eval", "model", "--data", "two.jsonl", "--type", "alpaca", "--sequence-len", "256", "--export", "for-them"];
    let more = ["--set", "eval.max_new_tokens=8", "--set", "eval.max_rows=3", "--json"];
    let said = project.pipe(&[eval.as_slice(), &more].concat());
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("for-them"), "{}", said.stderr);
    let folder: PathBuf = project.path("work/for-them");
    assert_eq!(lines(&folder.join("tasks/pipe_test.jsonl")).len(), 3);
    let results = json_of(&folder.join(format!("outputs/base/results_{DATE}.json")));
    let measured = &results["results"]["pipe_test"];
    assert_eq!(measured["exact_match,trim"], said.json()["metrics"]["exact_match"]);
    assert_eq!(measured["sample_len"], 3);
    let again = project.pipe(&eval);
    assert!(again.code == 2 && again.stderr.contains("for-them exists already"), "{}", again.stderr);
    let nothing = ["--export", "other", "--set", "eval.metrics=[perplexity]"];
    let said = project.pipe(&[&eval[..8], &nothing].concat());
    assert!(said.code == 2 && said.stderr.contains("nothing to write"), "{}", said.stderr);
    assert!(!project.path("work/other").exists());
}

#[test]
fn rows_without_answers_leave_the_verb_nothing_to_export() {
    let project = project();
    project.write("texts.jsonl", &"{\"text\": \"docker lists the running containers\"}\n".repeat(3));
    let eval = ["eval", "model", "--data", "texts.jsonl", "--type", "completion", "--sequence-len", "256"];
    let said = project.pipe(&[&eval[..], &["--export", "for-them", "--json"]].concat());
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.json()["perplexity"].as_f64().unwrap() > 1.0, "what could be measured is told");
    for told in ["there is nothing to write into for-them: no row was answered", "--type alpaca"] {
        assert!(said.stderr.contains(told), "no `{told}` in:\n{}", said.stderr);
    }
    assert!(!said.stderr.contains("wrote"), "{}", said.stderr);
    assert!(!project.path("work/for-them").exists());
}

#[test]
fn rows_that_do_not_fit_are_no_evaluation() {
    let project = project();
    project.write("texts.jsonl", &"{\"text\": \"docker lists the running containers\"}\n".repeat(3));
    let eval = ["eval", "model", "--data", "texts.jsonl", "--type", "completion", "--sequence-len", "2"];
    let said = project.pipe(&eval);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{}", said.stderr);
    for told in [
        "none of 3 rows can be used: 3 have more than sequence_len (2) tokens",
        "no row of texts.jsonl can be evaluated",
    ] {
        assert!(said.stderr.contains(told), "no `{told}` in:\n{}", said.stderr);
    }
}

#[test]
fn a_tuned_model_s_answers_stand_beside_the_base_s() {
    let project = project();
    let trains = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\nlearning_rate: 0.01\n\
                  micro_batch_size: 1\ngradient_accumulation_steps: 1\nmax_steps: 2\nsample_packing: true\n";
    project.edit("recipe.yml", "train: false\n", trains);
    let ran = project.run(&[&EXPORT[..], &["--set", "eval.few_shot=1"]].concat());
    assert_eq!(ran.code, 0, "{:?}", ran.events.last());
    let outputs = project.path("work/out/eval/lm_eval/outputs");
    let models: BTreeSet<String> =
        std::fs::read_dir(&outputs).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    assert_eq!(models, set(&["base", "tuned"]));
    let table = evaluating::table(&project);
    for model in ["base", "tuned"] {
        let results = json_of(&outputs.join(model).join(format!("results_{DATE}.json")));
        let (told, ours) = (&results["results"], &table["models"][model]);
        assert_eq!(told["pipe_test"]["chrf,trim"], ours["test"]["chrf"]);
        assert_eq!(told["pipe_questions"]["acc_norm,none"], ours["questions"]["acc_norm"]);
        assert_eq!(results["model_name"], model);
    }
    let prompts = |model: &str| {
        let samples = samples(&outputs.join(model), "pipe_test");
        samples.iter().map(|sample| sample["prompt_hash"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(prompts("base"), prompts("tuned"));
}
