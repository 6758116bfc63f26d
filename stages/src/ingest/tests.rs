#![allow(clippy::unwrap_used)]
use std::io::Write;

use super::*;
use crate::recipe::dataset::Dataset;
use crate::rows::harness::{Done, run};

fn ingest(path: &Path, kind: &str) -> Ingest {
    let keys = DatasetKeys::default();
    let rows = RowFormat::of_type(kind, &keys).unwrap();
    Ingest { sources: vec![path.to_path_buf()], file_format: None, rows, keys, keep: Vec::new() }
}

fn read_bytes(name: &str, bytes: &[u8], kind: &str) -> Result<Done, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let place = dir.path().display().to_string();
    run(&ingest(&path, kind), "ingest.d", &[]).map_err(|e| e.to_string().replace(&format!("{place}/"), ""))
}

fn data(name: &str, bytes: &[u8], kind: &str) -> Vec<String> {
    read_bytes(name, bytes, kind).unwrap().texts(ROWS_FILE, "data")
}

fn error(name: &str, bytes: &[u8], kind: &str) -> String {
    read_bytes(name, bytes, kind).err().unwrap()
}

const ALPACA: &str = r#"{"instruction": "Say hi", "input": "", "output": "Hi!"}"#;
const READ: &str = r#"{"shape":"instruct","instruction":"Say hi","output":"Hi!"}"#;

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_container_gives_the_same_rows_and_ids() {
    let lines = format!("{ALPACA}\n\n{ALPACA}\r\n");
    let array = format!("\u{FEFF}[\n {ALPACA},\n {ALPACA}\n]");
    let csv = "instruction,input,output\nSay hi,,Hi!\n\"Say hi\",\"\",\"Hi!\"\n";
    let zst = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("d.jsonl", lines.clone().into_bytes()),
        ("d.json", lines.clone().into_bytes()),
        ("d.json", array.clone().into_bytes()),
        ("d", array.into_bytes()),
        ("d.jsonl.gz", gz(lines.as_bytes())),
        ("d.jsonl.zst", zst),
        ("d.csv", csv.into()),
        ("d.tsv", csv.replace(',', "\t").into()),
    ];
    let expected = read_bytes(cases[0].0, &cases[0].1, "alpaca").unwrap();
    assert_eq!(expected.texts(ROWS_FILE, "data"), [READ, READ]);
    let ids = expected.texts(ROWS_FILE, "row_id");
    assert!(ids[0] != ids[1] && ids[0][..24] == ids[1][..24], "{ids:?}");
    for (name, bytes) in cases {
        let done = read_bytes(name, &bytes, "alpaca").unwrap();
        assert_eq!(done.texts(ROWS_FILE, "row_id"), ids, "{name}");
        assert_eq!(done.summary.rows, Some(2));
    }
}

#[test]
fn bad_input_says_where_and_what_to_do() {
    let broken = format!("{ALPACA}\n{{\"instruction\": \"x\", \n{ALPACA}\n");
    let message = error("d.jsonl", broken.as_bytes(), "alpaca");
    assert!(message.starts_with("d.jsonl:2: not valid JSON"), "{message}");
    let message = error("d.jsonl", b"{\"question\": \"q\", \"answer\": \"a\"}", "alpaca");
    assert!(message.contains("d.jsonl:1") && message.contains("no column `instruction`"), "{message}");
    assert!(message.contains("`question`, `answer`") && message.contains("alpaca_chat.load_qa"), "{message}");
    let message = error("d.jsonl", b"{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}", "alpaca");
    assert!(message.contains("`type: chat_template` would fit"), "{message}");
    assert!(error("d.jsonl", b"", "alpaca").contains("d.jsonl: has no rows"));
    assert!(error("d.json", b"[]", "alpaca").contains("has no rows"));
    assert!(error("d.csv", b"instruction,output\n", "alpaca").contains("has no rows"));
    let message = error("d.jsonl", b"{\"instruction\": \"a\xff\", \"output\": \"b\"}", "alpaca");
    assert!(message.starts_with("d.jsonl:1: not UTF-8"), "{message}");
    assert!(error("d.jsonl", b"\xff\xfe{\0", "alpaca").contains("UTF-16"));
    let message = error("d.csv", b"instruction,output\na,b\nc\n", "alpaca");
    assert!(message.starts_with("d.csv:3: this row has 1 fields"), "{message}");
    assert!(error("d.jsonl", b"[1, 2]\n", "alpaca").contains("must be an object"));
    let deep = format!("{{\"instruction\": {}1{}}}", "[".repeat(500), "]".repeat(500));
    assert!(error("d.jsonl", deep.as_bytes(), "alpaca").contains("d.jsonl:1: "));
    let message = run(&ingest(Path::new("/nonexistent/d.jsonl"), "alpaca"), "ingest.d", &[]).err().unwrap().to_string();
    assert!(message.contains("/nonexistent/d.jsonl: cannot be read"), "{message}");
    let message = error("d.jsonl.gz", &gz(ALPACA.as_bytes())[..30], "alpaca");
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn conversations_are_read_in_every_spelling() {
    let openai = br#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": []}], "tools": "[{\"name\": \"f\"}]"}"#;
    let read = r#"{"shape":"chat","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","tool_calls":[]}],"tools":[{"name":"f"}]}"#;
    assert_eq!(data("d.jsonl", openai, "chat_template"), [read]);
    let sharegpt = br#"[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s", "tools": ""}]"#;
    let read = r#"{"shape":"chat","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
    assert_eq!(data("d.json", sharegpt, "chat_template"), [read]);
    let csv = b"messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"q\"\"}]\"\n";
    assert_eq!(data("d.csv", csv, "chat_template").len(), 1);
    let message = error("d.jsonl", br#"{"messages": [{"content": "q"}]}"#, "chat_template");
    assert!(message.contains("message 1 of `messages` has no `role` or `from`"), "{message}");
}

#[test]
fn recipe_keys_rename_fields_roles_and_flags() {
    let dataset: Dataset = serde_json::from_str(
        r#"{"path": "d.jsonl", "type": "chat_template", "field_messages": "turns",
            "message_property_mappings": {"role": "who", "content": "says", "reasoning_content": "why"},
            "message_field_training": "learn", "roles": {"user": ["me"], "assistant": ["it"]}, "drop_system_message": true}"#,
    )
    .unwrap();
    let format = RowFormat::of_dataset(&dataset).unwrap();
    let mut row = serde_json::from_str(
        r#"{"turns": [{"who": "system", "says": "s"}, {"who": "me", "says": "q", "train": false},
            {"who": "it", "says": "a", "why": "r", "learn": true, "extra": 1}]}"#,
    )
    .unwrap();
    let read = format.example(&mut row).unwrap().to_data();
    let expected = r#"{"shape":"chat","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","reasoning_content":"r","extra":1,"train":true}]}"#;
    assert_eq!(read, expected);
}

#[test]
fn other_formats_become_their_shapes() {
    for (kind, row, expected) in [
        (
            "alpaca:chat_template",
            r#"{"instruction": "i", "input": "x", "output": "o"}"#,
            r#"{"shape":"chat","messages":[{"role":"user","content":"i\n\nx"},{"role":"assistant","content":"o"}]}"#,
        ),
        ("completion", r#"{"text": "t"}"#, r#"{"shape":"completion","text":"t"}"#),
        (
            "input_output",
            r#"{"segments": [{"label": true, "text": "t"}]}"#,
            r#"{"shape":"segments","segments":[{"label":true,"text":"t"}]}"#,
        ),
        (
            "pretokenized",
            r#"{"input_ids": [1, 2], "labels": [-100, 2]}"#,
            r#"{"shape":"tokens","input_ids":[1,2],"labels":[-100,2]}"#,
        ),
        (
            "self_instruct",
            r#"{"instruction": "i", "instances": [{"input": "x", "output": "o"}]}"#,
            r#"{"shape":"instruct","instruction":"i","input":"x","output":"o"}"#,
        ),
        (
            "jeopardy",
            r#"{"question": "q", "category": "c", "answer": 42}"#,
            r#"{"shape":"instruct","instruction":"q","input":"c","output":"what is 42"}"#,
        ),
        ("auto", r#"{"prompt": "p", "completion": "c"}"#, r#"{"shape":"instruct","instruction":"p","output":"c"}"#),
        (
            "auto",
            r#"{"instruction": "i", "context": "x", "response": "o"}"#,
            r#"{"shape":"instruct","instruction":"i","input":"x","output":"o"}"#,
        ),
        ("auto", r#"{"text": "t", "meta": 1}"#, r#"{"shape":"completion","text":"t"}"#),
    ] {
        assert_eq!(data("d.jsonl", row.as_bytes(), kind), [expected], "{kind}");
    }
    assert!(error("d.jsonl", b"{\"zzz\": 1}", "auto").contains("set `type` to one of"));
    assert!(error("d.jsonl", br#"{"input_ids": [1], "labels": []}"#, "pretokenized").contains("must be equal"));
    assert_eq!(data("d.txt", b"one\n\ntwo", "completion").len(), 2);
}

#[test]
fn tables_of_our_own_and_foreign_types_are_read() {
    use arrow::array::{Int32Array, ListBuilder, StringBuilder};
    use arrow::datatypes::{DataType, Field, Schema};
    let dir = tempfile::tempdir().unwrap();
    let mut list = ListBuilder::new(StringBuilder::new());
    list.append_value([Some("x"), None]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(arrow::array::LargeStringArray::from(vec!["i"])),
        Arc::new(Int32Array::from(vec![7])),
        Arc::new(list.finish()),
    ];
    let schema = Arc::new(Schema::new(vec![
        Field::new("instruction", DataType::LargeUtf8, true),
        Field::new("output", DataType::Int32, true),
        Field::new("extra", columns[2].data_type().clone(), true),
    ]));
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let parquet = dir.path().join("d.parquet");
    let file = std::fs::File::create(&parquet).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, schema.clone(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let ipc = dir.path().join("d.arrow");
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(std::fs::File::create(&ipc).unwrap(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    for path in [parquet, ipc] {
        let done = run(&ingest(&path, "alpaca"), "ingest.d", &[]).unwrap();
        assert_eq!(done.texts(ROWS_FILE, "data"), [r#"{"shape":"instruct","instruction":"i","output":"7"}"#]);
    }
}

#[test]
fn the_bytes_read_are_reported_and_rows_far_apart_keep_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    let row = |i: usize| format!("{{\"text\": \"{i} {}\"}}\n", "x".repeat(3000));
    let text: String = (0..4000).map(row).collect();
    std::fs::write(&path, &text).unwrap();
    let task = ingest(&path, "completion");
    let done = run(&task, "ingest.d", &[]).unwrap();
    assert_eq!(done.summary.rows, Some(4000));
    let mut reported = None;
    let digest = source::read(&path, FileFormat::Jsonl, &mut |rows| {
        if let Rows::Json { spans, .. } = rows {
            reported = spans.last().copied();
        }
        Ok(())
    });
    assert_eq!(digest.unwrap(), pipe_engine::digest::Digest::of(text.as_bytes()));
    assert_eq!(reported.unwrap().place, 4000);
}
