//! Results that two stores share through an S3 server.

use super::bucket::{self, Bucket};
use super::harness::{Project, Ran, rows, set};

const REMOTE: &str = "s3://shared/results";

fn run(project: &Project, bucket: &Bucket) -> Ran {
    let ran = project.run_among(&["--remote", REMOTE], &bucket.environment());
    assert_eq!(ran.code, 0);
    ran
}

/// Where an output's file is in the bucket.
fn shared(project: &Project, ran: &Ran, node: &str, file: &str) -> String {
    let object = project.output(ran, node);
    format!("results/objects/{}/{file}", object.file_name().unwrap().to_str().unwrap())
}

#[test]
fn a_second_store_takes_what_the_first_one_made_and_damage_costs_one_node() {
    let bucket = Bucket::start();
    let first = Project::with_data_recipe();
    let made = run(&first, &bucket);
    assert!(made.cached.is_empty() && made.executed.len() >= 7, "{:?}", made.cached);

    let second = Project::with_data_recipe();
    let taken = run(&second, &bucket);
    assert_eq!((taken.executed, &taken.cached), (set(&[]), &made.executed));
    let finished = taken.events.iter().filter(|event| event["event"] == "node_finished");
    assert!(finished.clone().count() > 0 && finished.clone().all(|event| event["from_remote"] == true));
    let packs =
        |project: &Project, ran: &Ran| std::fs::read(project.output(ran, "pack.train").join("packs.parquet")).unwrap();
    let again = second.run(&[]);
    assert_eq!((again.executed.len(), packs(&second, &again)), (0, packs(&first, &made)));

    let name = shared(&first, &made, "tokenize.docker", "train.parquet");
    let mut bytes = bucket.get(&name);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bucket.put(&name, &bytes);
    let third = Project::with_data_recipe();
    let repaired = run(&third, &bucket);
    assert_eq!(repaired.executed, set(&["tokenize.docker"]));
    let warnings = repaired.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("is damaged: train.parquet"), "{warnings:?}");
    // What was made again replaced it.
    assert_eq!(run(&Project::with_data_recipe(), &bucket).executed, set(&[]));
    keeps_secrets(&third, &bucket, &shared(&first, &made, "ingest.docker", "manifest.json"));
}

/// Neither the local store nor the shared one knows how it was reached.
fn keeps_secrets(project: &Project, bucket: &Bucket, manifest: &str) {
    let (_, secret) = bucket.environment().into_iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap();
    let mut folders = vec![project.path("work")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", path.display());
            }
        }
    }
    assert!(String::from_utf8(bucket.get(manifest)).unwrap().contains("\"digest\""));
}

#[test]
fn a_server_that_is_gone_costs_a_warning_and_no_run() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let project = Project::with_data_recipe();
    let mut environment = bucket::environment(port);
    environment.push(("PIPE_REMOTE_CACHE", REMOTE.to_string()));
    let ran = project.run_among(&[], &environment);
    assert_eq!((ran.code, ran.cached.len()), (0, 0));
    let warnings = ran.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("not shared for the rest of this run"), "{warnings:?}");
    let again = project.run_among(&[], &environment);
    assert_eq!((again.code, again.executed.len()), (0, 0));
}

#[test]
fn a_folder_is_a_shared_store_too_and_a_wrong_address_is_an_argument() {
    let (first, second) = (Project::with_data_recipe(), Project::with_data_recipe());
    let folder = format!("file://{}", first.path("shared").display());
    first.run(&["--remote", &folder]);
    assert_eq!(second.run(&["--remote", &folder]).executed, set(&[]));
    second.write("rows.jsonl", &rows(0..21));
    assert!(second.run(&["--remote", &folder]).executed.contains("ingest.docker"));
    for wrong in ["bucket/prefix", "ftp://x/y", "s3://"] {
        let said = first.pipe(&["run", "recipe.yml", "--remote", wrong]);
        assert!(
            said.code == 2 && said.stderr.contains("--remote") && said.stderr.contains("s3://bucket"),
            "{}",
            said.stderr
        );
    }
}

#[test]
fn rows_in_a_bucket_are_fetched_once() {
    let bucket = Bucket::start();
    for (name, numbers) in [("a", 0..10), ("b", 10..20)] {
        bucket.put(&format!("rows/part-{name}.jsonl"), rows(numbers).as_bytes());
    }
    bucket.put("rows/notes.bin", b"not rows");
    let local = Project::with_data_recipe();
    let whole = local.run(&[]);
    for path in ["s3://shared/rows/part-*.jsonl", "s3://shared/rows"] {
        let project = Project::with_data_recipe();
        project.edit("recipe.yml", "path: rows.jsonl", &format!("path: {path}"));
        let plan = project.pipe_among(&["plan", "recipe.yml", "--json"], &bucket.environment());
        assert!(plan.code == 0 && plan.stdout.contains("would be fetched"), "{}{}", plan.stdout, plan.stderr);
        let ran = project.run_among(&[], &bucket.environment());
        assert_eq!(ran.code, 0);
        // The same rows, so the same work from there on; where they came from is no part of it.
        assert_eq!(project.output(&ran, "pack.train").file_name(), local.output(&whole, "pack.train").file_name());
        // Nothing of the environment is needed any more.
        assert_eq!(project.run(&[]).executed, set(&[]));
    }
    let project = Project::with_data_recipe();
    project.edit("recipe.yml", "path: rows.jsonl", "path: s3://shared/nothing.jsonl");
    let said = project.pipe_among(&["fetch", "recipe.yml"], &bucket.environment());
    assert!(
        said.code == 2 && said.stderr.contains("recipe.yml:3:5") && said.stderr.contains("there is nothing"),
        "{}",
        said.stderr
    );
}
