//! `pipe eval --compare`: two models' answers against each other. Needs the worker beside the binary.

use super::harness::{Project, Said, copy_folder, fixture, rows};

const PAIR: [&str; 6] = ["eval", "--compare", "model", "strong", "--data", "rows.jsonl"];
const REST: [&str; 8] =
    ["--base-model", "model", "--type", "alpaca", "--sequence-len", "128", "--set", "eval.max_new_tokens=8"];

/// The tiny model, and an adapter of it that answers otherwise.
fn project() -> Project {
    let project = Project::with_worker();
    copy_folder(&fixture("generation/adapter"), &project.path("work/strong"));
    project.edit("strong/adapter_config.json", "\"lora_alpha\": 8", "\"lora_alpha\": 64");
    project.write("rows.jsonl", &rows(0..12));
    project
}

fn compare(project: &Project, args: &[&str]) -> Said {
    project.pipe(&[&PAIR[..], &REST[..], args].concat())
}

#[test]
fn people_judge_a_blind_sheet() {
    let project = project();
    let said = compare(&project, &["--sheet", "pairs.csv"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let sheet = project.read("pairs.csv");
    assert!(sheet.starts_with("row_id,request,reference,first,second,verdict\n"), "{sheet}");
    assert!(sheet.contains("Please list the") && !sheet.contains("strong"), "{sheet}");
    let mut table: Vec<Vec<String>> = Vec::new();
    let mut reader = csv::Reader::from_reader(sheet.as_bytes());
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_string).collect();
    for record in reader.records() {
        table.push(record.unwrap().iter().map(str::to_string).collect());
    }
    let pairs = table.len();
    assert!(pairs > 2, "{sheet}");
    let written = |verdicts: &[&str]| {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&header).unwrap();
        for (row, verdict) in table.iter().zip(verdicts.iter().cycle()) {
            writer.write_record(row[..5].iter().map(String::as_str).chain([*verdict])).unwrap();
        }
        project.write("filled.csv", &String::from_utf8(writer.into_inner().unwrap()).unwrap());
    };
    written(&["tie"]);
    let said = compare(&project, &["--verdicts", "filled.csv", "--json"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let told = said.json();
    assert_eq!((&told["tally"]["rows"], &told["tally"]["ties"]), (&12.into(), &12.into()));
    assert_eq!((told["tally"]["b_win_rate"].as_f64(), told["judge"].is_null()), (Some(0.5), true));
    written(&["1"]);
    let said = compare(&project, &["--verdicts", "filled.csv"]);
    assert!(said.stdout.contains("B win rate") && said.stdout.contains("rows        12"), "{}", said.stdout);
    written(&["best"]);
    let said = compare(&project, &["--verdicts", "filled.csv"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("filled.csv:2: the verdict is `best`"), "{}", said.stderr);
    let said = compare(&project, &["--sheet", "pairs.csv"]);
    assert_eq!((said.code, said.stderr.contains("pairs.csv exists already")), (2, true), "{}", said.stderr);
}

#[test]
fn what_cannot_be_judged_is_refused_before_a_model_runs() {
    let project = project();
    for (args, words) in [
        (&[][..], "--sheet pairs.csv"),
        (&["--judge", "url=http://127.0.0.1:9/v1"], "--judge model: is missing"),
        (&["--judge", "url=ftp://x", "--judge", "model=m"], "--judge url: begins with neither"),
        (&["--judge", "rows=4"], "--judge rows: is for augment alone"),
        (&["--judge", "modle=m"], "unknown field `modle`"),
        (&["--sheet", "a.csv", "--verdicts", "b.csv"], "cannot be used with"),
    ] {
        let said = compare(&project, args);
        assert_eq!(said.code, 2, "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains(words), "{args:?}: {}", said.stderr);
    }
    assert!(!project.path("work/.pipe").exists());
    let said = project.pipe(&["eval", "--data", "rows.jsonl"]);
    assert_eq!(said.code, 2, "{}", said.stderr);
}
