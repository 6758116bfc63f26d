//! A kill at any moment loses nothing but the node in flight.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::harness::{Project, rows, set};

#[test]
fn a_killed_run_is_carried_on() {
    let calm = Project::with_data_recipe();
    calm.write("rows.jsonl", &rows(0..3000));
    let undisturbed = calm.run(&[]);
    assert_eq!(undisturbed.code, 0);
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..3000));
    for delay in [5, 20, 40, 60, 80, 120] {
        let mut child = project.start(&["run", "recipe.yml", "--quiet"]);
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(project.pipe(&["cache", "verify"]).code, 0);
    }
    let ran = project.run(&[]);
    assert_eq!(ran.code, 0);
    assert_eq!(digests(&ran.events), digests(&undisturbed.events));
    assert_eq!(project.run(&[]).executed, set(&[]));
}

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..20_000));
    let mut child = project.start_telling(&["run", "recipe.yml", "--json"]);
    let mut events = BufReader::new(child.stdout.take().unwrap());
    // The handler is there before the first node begins.
    let mut first = String::new();
    while !first.contains("node_started") {
        first.clear();
        assert!(events.read_line(&mut first).unwrap() > 0, "it ended before a node began");
    }
    let rest = std::thread::spawn(move || std::io::copy(&mut events, &mut std::io::sink()));
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    let began = std::time::Instant::now();
    let code = child.wait().unwrap().code();
    // A quick machine may have been done by then.
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    rest.join().unwrap().unwrap();
    assert_eq!(project.run(&[]).code, 0);
}

/// Output digest of every node.
pub fn digests(events: &[serde_json::Value]) -> std::collections::BTreeMap<String, String> {
    let finished = events.iter().filter(|event| event["event"] == "node_finished");
    finished.map(|event| (event["node"].to_string(), event["output"].to_string())).collect()
}

/// A whole recipe with a tiny training that writes a checkpoint at every step.
pub fn with_training() -> Project {
    let project = Project::with_worker();
    project.write("rows.jsonl", &rows(0..60));
    project.write("recipe.yml", TRAINING);
    project
}

const TRAINING: &str = "\
base_model: model
datasets:
  - path: rows.jsonl
    type: alpaca
    label: docker
val_set_size: 0.2
sequence_len: 256
sample_packing: true
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 1
num_epochs: 2
learning_rate: 0.01
save_steps: 1
eval: false
merge: true
quantize:
  types: [q8_0]
output_dir: out
";

#[test]
fn a_recipe_with_training_killed_again_and_again_ends_with_the_same_bytes() {
    let (calm, project) = (with_training(), with_training());
    let began = std::time::Instant::now();
    let undisturbed = calm.run(&[]);
    assert_eq!(undisturbed.code, 0);
    let whole = began.elapsed();
    let mut random = 11u64;
    for _ in 0..12 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut child = project.start(&["run", "recipe.yml", "--quiet"]);
        std::thread::sleep(whole.mul_f64((random >> 33) as f64 / (1u64 << 31) as f64));
        let _ = child.kill();
        let _ = child.wait();
        let verified = project.pipe(&["cache", "verify"]);
        assert_eq!(verified.code, 0, "{}", verified.stdout);
    }
    let ran = project.run(&[]);
    assert_eq!(ran.code, 0);
    assert_eq!(digests(&ran.events), digests(&undisturbed.events));
    for file in ["adapter/adapter_model.safetensors", "gguf/model-q8_0.gguf"] {
        let bytes = |project: &Project| std::fs::read(project.path("work/out").join(file)).unwrap();
        assert!(bytes(&project) == bytes(&calm), "{file}");
    }
    assert_eq!(project.run(&[]).executed, set(&[]));
}

/// Reads events until one of them is the awaited one.
pub fn read_until(
    child: &mut std::process::Child,
    awaited: impl Fn(&serde_json::Value) -> bool,
) -> Vec<serde_json::Value> {
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.as_mut().unwrap()));
    let mut events = Vec::new();
    while let Some(Ok(line)) = lines.next() {
        events.push(serde_json::from_str(&line).unwrap());
        if awaited(events.last().unwrap()) {
            return events;
        }
    }
    panic!("never came: {events:?}");
}

#[test]
fn a_second_run_takes_over_at_once_when_the_first_one_dies() {
    let (calm, project) = (with_training(), with_training());
    let undisturbed = calm.run(&["--until", "train"]);
    let long = ["run", "recipe.yml", "--until", "train", "--json"];
    let mut first = project.start_telling(&long);
    read_until(&mut first, |event| event["event"] == "metric" && event["step"] == 2);
    let mut second = project.start_telling(&long);
    let waits = |event: &serde_json::Value| event["event"] == "warning" && event["node"] == "train";
    let seen = read_until(&mut second, waits);
    assert!(seen.last().unwrap()["message"].as_str().unwrap().contains("waiting for it"), "{seen:?}");
    first.kill().unwrap();
    let died = std::time::Instant::now();
    read_until(&mut second, |event| event["event"] == "node_started" && event["node"] == "train");
    assert!(died.elapsed() < Duration::from_secs(2), "{:?}", died.elapsed());
    first.wait().unwrap();
    let rest = read_until(&mut second, |event| event["event"] == "run_finished");
    assert_eq!(second.wait().unwrap().code(), Some(0));
    let all: Vec<_> = seen.into_iter().chain(rest).collect();
    assert_eq!(digests(&all), digests(&undisturbed.events));
}

#[test]
fn an_interrupted_training_stops_soon_and_goes_on_from_its_checkpoint() {
    let (calm, project) = (with_training(), with_training());
    let undisturbed = calm.run(&["--until", "train"]);
    let steps = |events: &[serde_json::Value]| -> Vec<u64> {
        let metrics = events.iter().filter(|event| event["event"] == "metric");
        metrics.map(|event| event["step"].as_u64().unwrap()).collect()
    };
    let all = steps(&undisturbed.events);
    let mut child = project.start_telling(&["run", "recipe.yml", "--until", "train", "--json"]);
    let lines = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut seen = Vec::new();
    for line in std::io::BufRead::lines(lines) {
        seen.push(serde_json::from_str(&line.unwrap()).unwrap());
        if steps(&seen).len() == 4 {
            break;
        }
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let began = std::time::Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let resumed = project.run(&["--until", "train"]);
    assert_eq!(digests(&resumed.events), digests(&undisturbed.events));
    let after = steps(&resumed.events);
    assert!(after[0] >= 4 && after.last() == all.last() && after.len() < all.len(), "{after:?} of {all:?}");
    assert!(resumed.executed.contains("train") && !resumed.executed.contains("tokenize.docker"));
}

#[test]
fn a_worker_that_crashes_is_one_failed_node_with_its_last_words() {
    let project = with_training();
    let falls = "read job\necho 'loading the model' >&2\necho 'about to fall' >&2\nkill -SEGV $$\n";
    let script = script(&project, "fall.sh", falls);
    let said = project.pipe_with(&["run", "recipe.yml"], "PIPE_TORCH", script.to_str().unwrap());
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("signal 11") && said.stderr.contains("about to fall"), "{}", said.stderr);
    assert_eq!(project.run(&["--until", "train"]).executed, set(&["train"]), "nothing before it was lost");
}

#[test]
fn a_worker_that_is_killed_says_what_to_try_and_where_training_goes_on() {
    let project = with_training();
    let worker = Path::new(env!("CARGO_BIN_EXE_pipe")).with_file_name("pipe-torch");
    let script = script(&project, "noted.sh", &format!("echo $$ > worker\nexec '{}'\n", worker.display()));
    let until_train = ["run", "recipe.yml", "--until", "train"];
    let mut command = project.command("work", &[&until_train[..], &["--json"]].concat());
    let mut child = command.env("PIPE_TORCH", &script).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    events.find(|event| event["event"] == "metric" && event["step"] == 3).unwrap();
    std::process::Command::new("kill").args(["-KILL", project.read("worker").trim()]).status().unwrap();
    let failed = events.find(|event| event["event"] == "node_failed").unwrap();
    events.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("signal 9") && error.contains("micro_batch_size"), "{error}");
    let (_, step) = error.split_once("the recipe goes on after step ").expect(error);
    let step: String = step.chars().take_while(char::is_ascii_digit).collect();
    let again = project.pipe_with(&until_train, "PIPE_TORCH", script.to_str().unwrap());
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stderr.contains(&format!("resumed after step {step} of ")), "{step}: {}", again.stderr);
}

/// A program to run in the worker's place.
fn script(project: &Project, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    project.write(name, &format!("#!/bin/sh\n{text}"));
    let path = project.path("work").join(name);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Needs the right to mount a memory disk in a name space of its own; where that is denied nothing can be shown.
#[allow(clippy::print_stderr)] // A test that cannot be run here says so.
#[test]
fn a_full_disk_is_said_and_the_next_run_goes_on() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &rows(0..4000));
    std::fs::create_dir(project.path("work/.pipe")).unwrap();
    let pipe = env!("CARGO_BIN_EXE_pipe");
    let script = format!(
        "mount -t tmpfs -o size=400k none .pipe || exit 77\n\
         {pipe} run recipe.yml; echo code $?\n\
         ls .pipe/drafts .pipe/quarantine\n\
         mount -o remount,size=64m .pipe\n\
         {pipe} run recipe.yml --json; echo code $?; {pipe} cache verify; echo code $?\n"
    );
    let output = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .current_dir(project.path("work"))
        .env("HOME", project.path("home"))
        .output();
    let Ok(output) = output.as_ref().map(|output| (output.status, &output.stdout, &output.stderr)) else { return };
    let (out, err) = (String::from_utf8_lossy(output.1), String::from_utf8_lossy(output.2));
    if !out.contains("code") {
        eprintln!("not shown: no memory disk can be mounted here: {err}");
        return;
    }
    let codes: Vec<&str> = out.lines().filter(|line| line.starts_with("code")).collect();
    assert_eq!(codes, ["code 1", "code 0", "code 0"], "{out}\n{err}");
    assert!(err.contains("No space left") || err.contains("disk is full"), "{err}");
    assert!(err.contains("pipe cache gc"), "{err}");
    assert!(out.contains(".pipe/drafts:\n\n.pipe/quarantine:\n"), "left-overs:\n{out}");
    let last: serde_json::Value =
        serde_json::from_str(out.lines().rev().find(|line| line.contains("run_finished")).unwrap()).unwrap();
    let cached = super::harness::strings(&last["cached"]);
    assert!(cached.contains("ingest.docker"), "what was finished is kept: {cached:?}");
}
