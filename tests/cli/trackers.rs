//! Trackers of a run: files and requests that other programs read, no result that depends on them, no run that fails by them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::harness::{DATA_RECIPE, Project, Ran, rows, set};

const TRAINING: &str = "\
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 5
learning_rate: 0.01
eval_steps: 5
eval:
  metrics: [perplexity]
  baseline: false
";

fn project(keys: &str) -> Project {
    let project = Project::with_worker();
    project.write("rows.jsonl", &rows(0..40));
    let recipe = DATA_RECIPE.replace("train: false\neval: false\n", TRAINING);
    project.write("recipe.yml", &format!("{recipe}{keys}"));
    project
}

fn id(ran: &Ran) -> String {
    ran.events.last().unwrap()["run"].as_str().unwrap().to_string()
}

fn losses(ran: &Ran) -> Vec<(u64, f64)> {
    let metrics = ran.events.iter().filter(|event| event["event"] == "metric");
    metrics.map(|m| (m["step"].as_u64().unwrap(), m["loss"].as_f64().unwrap())).collect()
}

fn event_file(folder: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    files.find(|path| path.to_string_lossy().contains("tfevents")).expect("an event file")
}

/// The payloads of a TFRecord file, checksums checked. CRC32C is computed bit by bit here: polynomial 0x1EDC6F41, reflected.
fn records(path: &Path) -> Vec<Vec<u8>> {
    fn masked(bytes: &[u8]) -> u32 {
        let crc = !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
        });
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }
    assert_eq!(
        masked(b"123456789"),
        0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8),
        "RFC 3720's check value"
    );
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), masked(&bytes[at..at + 8]));
        let payload = &bytes[at + 12..at + 12 + length];
        assert_eq!(word(at + 12 + length), masked(payload));
        found.push(payload.to_vec());
        at += 16 + length;
    }
    found
}

/// The number after a tag in a record: field 2 of the same value, a float of four bytes.
fn number(record: &[u8], tag: &str) -> Option<f32> {
    let needle = [&[0x0a, tag.len() as u8], tag.as_bytes(), &[0x15]].concat();
    let at = record.windows(needle.len()).position(|part| part == needle)? + needle.len();
    Some(f32::from_le_bytes(record[at..at + 4].try_into().unwrap()))
}

#[test]
fn files_of_trackers_hold_the_run_and_change_nothing() {
    let project = project("report_to: [tensorboard, mlflow]\n");
    let ran = project.run(&[]);
    assert_eq!((ran.code, ran.warnings()), (0, vec![]));
    let records = records(&event_file(&project.path("work/out/runs").join(id(&ran))));
    let losses = losses(&ran);
    assert_eq!(losses.len(), 5);
    let told: Vec<f32> = records.iter().filter_map(|record| number(record, "train/loss")).collect();
    assert_eq!(told, losses.iter().map(|(_, loss)| *loss as f32).collect::<Vec<_>>());
    assert_eq!(records.iter().filter_map(|record| number(record, "eval/loss")).count(), 1);
    assert_eq!(records.iter().filter_map(|record| number(record, "final/tuned/val/perplexity")).count(), 1);
    let found = find(&project.path("work/.pipe/mlruns"), "loss");
    let steps = found.iter().find(|path| path.parent().unwrap().ends_with("metrics")).unwrap();
    let lines = std::fs::read_to_string(steps).unwrap();
    let told: Vec<(u64, f64)> = lines
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|line| (line[2].parse().unwrap(), line[1].parse().unwrap()))
        .collect();
    assert_eq!(told, losses);
    // A run without numbers leaves nothing, and no result depends on who is told.
    let again = project.run(&["--set", "report_to=tensorboard"]);
    assert_eq!(again.executed, set(&[]));
    assert!(!project.path("work/out/runs").join(id(&again)).exists());
    let thin = project.run(&["--set", "report_to=tensorboard", "--set", "logging_steps=2", "--force", "train"]);
    let records = self::records(&event_file(&project.path("work/out/runs").join(id(&thin))));
    assert_eq!(records.iter().filter_map(|record| number(record, "train/loss")).count(), 4, "steps 1, 2, 4 and 5");
}

/// Files of this name below a folder.
fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => found.extend(find(&path, name)),
            false if path.file_name().unwrap() == name => found.push(path),
            false => {}
        }
    }
    found
}

/// Path, body and authorization of the requests so far.
type Asked = Arc<Mutex<Vec<(String, Value, String)>>>;

/// A server that answers as MLflow's does, and keeps what it was asked.
fn server() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Asked::default();
    let log = seen.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line, mut length, mut key) = (String::new(), String::new(), 0, String::new());
            reader.read_line(&mut first).unwrap();
            while reader.read_line(&mut line).unwrap() > 2 {
                let (name, value) = line.trim().split_once(": ").unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().unwrap(),
                    "authorization" => key = value.to_string(),
                    _ => {}
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let path = first.split(' ').nth(1).unwrap().trim_start_matches("/api/2.0/mlflow/").to_string();
            let answer = match path.as_str() {
                "experiments/search" => json!({}),
                "experiments/create" => json!({"experiment_id": "7"}),
                "runs/create" => json!({"run": {"info": {"run_id": "r1"}}}),
                _ => json!({}),
            };
            log.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap(), key));
            let answer = answer.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
            stream.write_all(format!("{head}{answer}").as_bytes()).unwrap();
        }
    });
    (url, seen)
}

#[test]
fn a_server_is_told_over_http_and_a_dead_one_fails_nothing() {
    let (url, seen) = server();
    let project = project("mlflow_experiment_name: it's docker\nmlflow_run_name: first\n");
    let uri = format!("mlflow_tracking_uri={url}");
    let environment = [("MLFLOW_TRACKING_USERNAME", "me".to_string()), ("MLFLOW_TRACKING_PASSWORD", "pw".to_string())];
    let ran = project.run_among(&["--set", &uri], &environment);
    assert_eq!((ran.code, ran.warnings()), (0, vec![]));
    let seen = seen.lock().unwrap();
    let paths: Vec<&str> = seen.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths[..3], ["experiments/search", "experiments/create", "runs/create"]);
    assert_eq!(paths.last(), Some(&"runs/update"));
    assert!(seen.iter().all(|(.., key)| key == "Basic bWU6cHc="));
    assert_eq!(seen[0].1["filter"], "name = 'it''s docker'");
    assert_eq!((&seen[2].1["experiment_id"], &seen[2].1["run_name"]), (&json!("7"), &json!("first")));
    let metrics = seen.iter().filter_map(|(_, body, _)| body["metrics"].as_array()).flatten();
    let told: Vec<(u64, f64)> = metrics
        .filter(|metric| metric["key"] == "loss")
        .map(|metric| (metric["step"].as_u64().unwrap(), metric["value"].as_f64().unwrap()))
        .collect();
    assert_eq!(told, losses(&ran));
    assert_eq!(seen.last().unwrap().1["status"], "FINISHED");
    drop(seen);
    // A port that nobody listens at, and a folder that cannot be made.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uri = format!("mlflow_tracking_uri=http://me:secret@{free}");
    project.write("out/runs", "in the way");
    let ran = project.run(&["--set", &uri, "--set", "use_tensorboard=true", "--force", "train"]);
    assert_eq!(ran.code, 0);
    let warnings = ran.warnings();
    assert!(warnings.iter().any(|w| w.starts_with(&format!("mlflow: {free} does not answer"))), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.starts_with("tensorboard: cannot write")), "{warnings:?}");
    assert!(warnings.iter().all(|w| !w.contains("secret")) && warnings.len() == 2, "{warnings:?}");
}

/// The records of a run of Weights & Biases: fragments joined, none over a block's end, checksums checked. CRC-32 is computed bit by
/// bit here: polynomial 0x04C11DB7, reflected.
fn wandb_records(path: &Path) -> Vec<Vec<u8>> {
    fn crc(bytes: impl Iterator<Item = u8>) -> u32 {
        !bytes.fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }
    assert_eq!(crc(b"123456789".iter().copied()), 0xcbf4_3926, "the polynomial's check value");
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..7], b":W&B\xe1\xbe\0");
    let (mut at, mut found, mut open) = (7, Vec::new(), None::<Vec<u8>>);
    while at < bytes.len() {
        let left = 32768 - at % 32768;
        if left < 7 {
            assert!(bytes[at..at + left].iter().all(|byte| *byte == 0));
            at += left;
            continue;
        }
        let (sum, kind) = (u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()), bytes[at + 6]);
        let length = usize::from(u16::from_le_bytes(bytes[at + 4..at + 6].try_into().unwrap()));
        assert!(7 + length <= left, "a fragment crosses a block's end");
        let part = &bytes[at + 7..at + 7 + length];
        assert_eq!(crc(std::iter::once(kind).chain(part.iter().copied())), sum, "at {at}");
        match (kind, &mut open) {
            (1, None) => found.push(part.to_vec()),
            (2, None) => open = Some(part.to_vec()),
            (3, Some(begun)) => begun.extend(part),
            (4, Some(begun)) => {
                begun.extend(part);
                found.extend(open.take());
            }
            other => panic!("kind {} out of order", other.0),
        }
        at += 7 + length;
    }
    assert!(open.is_none());
    found
}

/// A protobuf message's fields: number, and the number or the bytes it has.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            value |= u64::from(first & 0x7f) << shift;
            *bytes = rest;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => found.push((tag >> 3, varint(&mut bytes), Vec::new())),
            2 => {
                let length = varint(&mut bytes) as usize;
                found.push((tag >> 3, 0, bytes[..length].to_vec()));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

fn field(bytes: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(bytes).into_iter().find(|(own, ..)| *own == number).map(|(.., bytes)| bytes)
}

fn words(bytes: &[u8], number: u64) -> String {
    String::from_utf8(field(bytes, number).unwrap_or_default()).unwrap()
}

/// Names and values of a record's items, the names under `key`.
fn items(body: &[u8], key: u64) -> Vec<(String, Value)> {
    let items = fields(body).into_iter().filter(|(number, ..)| *number == 1);
    items.map(|(.., item)| (words(&item, key), serde_json::from_str(&words(&item, 16)).unwrap())).collect()
}

#[test]
fn an_offline_run_of_wandb_holds_the_run() {
    let keys = "wandb_project: docker\nwandb_entity: me\nwandb_name: first\nwandb_run_id: k3x9\nwandb_mode: offline\nwandb_watch:\n";
    let project = project(keys);
    let ran = project.run(&[]);
    assert_eq!((ran.code, ran.warnings()), (0, vec![]));
    let all: Vec<PathBuf> =
        std::fs::read_dir(project.path("work/out/wandb")).unwrap().flatten().map(|entry| entry.path()).collect();
    let [folder] = &all[..] else { panic!("{all:?}") };
    let name = folder.file_name().unwrap().to_string_lossy();
    let parts: Vec<&str> = name.split('-').collect();
    assert!(matches!(parts[..], ["offline", "run", time, "k3x9"] if time.len() == 15), "{name}");
    let records = wandb_records(&folder.join("run-k3x9.wandb"));
    for (number, record) in (1..).zip(&records) {
        assert_eq!(fields(record)[0], (1, number, vec![]), "records are numbered");
        assert_eq!(words(&field(record, 200).unwrap(), 1), "k3x9");
    }
    let body = |number: u64| records.iter().filter_map(move |record| field(record, number));
    assert_eq!(field(&records[0], 21).map(|header| field(&header, 1).is_some()), Some(true));
    let run = body(17).next().unwrap();
    assert_eq!([1, 2, 3, 8].map(|number| words(&run, number)), ["k3x9", "me", "docker", "first"]);
    let config = items(&field(&run, 4).unwrap(), 1);
    assert!(config.contains(&("optimizer.lr".to_string(), json!(0.01))), "{config:?}");
    let rows: Vec<Vec<(String, Value)>> = body(2).map(|history| items(&history, 2)).collect();
    let of = |row: &[(String, Value)], name: &str| row.iter().find(|(own, _)| own == name).map(|(_, v)| v.clone());
    let told: Vec<(u64, f64)> = rows
        .iter()
        .filter_map(|row| Some((of(row, "train/global_step")?.as_u64()?, of(row, "train/loss")?.as_f64()?)))
        .collect();
    assert_eq!(told, losses(&ran));
    assert_eq!(rows.iter().filter(|row| of(row, "eval/loss").is_some()).count(), 1);
    assert_eq!(rows.iter().filter(|row| of(row, "final/tuned/val/perplexity").is_some()).count(), 1);
    assert_eq!(
        rows.iter().map(|row| of(row, "_step").unwrap()).collect::<Vec<_>>(),
        (0..7).map(|n| json!(n)).collect::<Vec<_>>()
    );
    assert_eq!(body(3).count(), rows.len(), "each row is also the newest summary");
    let exit = fields(&field(records.last().unwrap(), 18).unwrap());
    assert!(exit.iter().all(|(number, value, _)| *number == 2 || *value == 0), "{exit:?}");
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("files/wandb-summary.json")).unwrap()).unwrap();
    assert_eq!(summary["train/loss"], told.last().unwrap().1);
    // Nothing depends on it, and one that cannot be written fails nothing.
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::remove_dir(project.path("work/out/wandb")).unwrap();
    assert_eq!(project.run(&["--set", "wandb_mode=disabled"]).executed, set(&[]));
    assert!(!project.path("work/out/wandb").exists());
    project.write("out/wandb", "in the way");
    let ran = project.run(&["--force", "train"]);
    let warnings = ran.warnings();
    assert!(ran.code == 0 && warnings.len() == 1 && warnings[0].starts_with("wandb: cannot write"), "{warnings:?}");
}

#[test]
fn trackers_that_are_not_written_to_are_refused() {
    let project = Project::with_data_recipe();
    let told = |keys: &[&str]| {
        let sets: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        let said = project.pipe(&[&["run", "recipe.yml", "--dry-run"], &sets[..]].concat());
        (said.code, said.stderr)
    };
    let (code, said) = told(&["report_to=swanlab"]);
    assert!(code == 2 && said.contains("tensorboard"), "{said}");
    let (code, said) = told(&["report_to=wandb", "wandb_mode=online"]);
    assert!(code == 2 && said.contains("wandb sync") && said.contains("offline"), "{said}");
    let (code, said) = told(&["report_to=wandb", "wandb_run_id=../../x"]);
    assert!(code == 2 && said.contains("wandb_run_id"), "{said}");
    assert_eq!(told(&["report_to=none", "use_wandb=true"]).0, 2);
    let (code, said) = told(&["wandb_name=x"]);
    assert!(code == 0 && said.contains("does nothing"), "{said}");
    let (code, said) = told(&["report_to=[tensorboard, comet_ml]"]);
    assert!(code == 2 && said.contains("report_to[1]"), "{said}");
    let (code, said) = told(&["mlflow_tracking_uri=postgresql://me:hunter2@host/db", "report_to=mlflow"]);
    assert!(code == 2 && said.contains("mlflow server") && !said.contains("hunter2 "), "{said}");
    assert_eq!(told(&["report_to=[none, mlflow]"]).0, 2);
    let (code, said) = told(&["mlflow_run_name=x"]);
    assert!(code == 0 && said.contains("does nothing"), "{said}");
    assert_eq!(told(&["wandb_project=x", "use_wandb=true"]).0, 0, "Axolotl's recipes have it, and nothing is sent");
}
