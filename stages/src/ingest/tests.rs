#![allow(clippy::unwrap_used)]
use std::io::Write;
use std::path::PathBuf;

use super::source::{Flow, Rows};
use super::*;
use crate::project::Project;
use crate::recipe::dataset::{Dataset, Role};
use crate::rows::harness::{Done, run};

fn ingest(path: &Path, kind: &str) -> Ingest {
    let keys = DatasetKeys::default();
    let rows = RowFormat::of_type(kind, &keys).unwrap();
    let reading = Reading {
        sources: vec![path.to_path_buf()],
        parts: vec![(Slice::whole("train"), vec![0])],
        left_out: Vec::new(),
    };
    Ingest { reading, file_format: None, rows, keys, shard: None, max_rows: None, keep: Vec::new() }
}

/// As a recipe's entry reads it, in a folder of its own.
fn entry(files: &[(&str, &str)], dataset: Value) -> Result<Done, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let dataset: Dataset = serde_json::from_value(dataset).unwrap();
    let project = Project::of(&dir.path().join("recipe.yml"));
    let reading =
        files::reading(&project, &dataset, Role::Train).map_err(|wrong| format!("{}: {}", wrong.key, wrong.message))?;
    let task = Ingest {
        reading,
        file_format: None,
        rows: RowFormat::of_dataset(&dataset)?,
        keys: DatasetKeys::of(&dataset),
        shard: dataset.shards.map(|of| Shard { of, index: dataset.shards_idx.unwrap_or(0) }),
        max_rows: dataset.max_rows,
        keep: Vec::new(),
    };
    let place = dir.path().display().to_string();
    run(&task, "ingest.d", &[]).map_err(|e| e.to_string().replace(&format!("{place}/"), ""))
}

/// The texts of `n` completion rows, numbered from 0.
fn numbered(n: usize) -> String {
    (0..n).map(|i| format!("{{\"text\": \"{i}\"}}\n")).collect()
}

/// The numbers of [`numbered`] rows that were kept.
fn kept(done: &Done) -> Vec<usize> {
    let number = |data: String| data.rsplit(':').next().unwrap().trim_matches(['"', '}']).parse().unwrap();
    done.texts(ROWS_FILE, "data").into_iter().map(number).collect()
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
    assert!(message.contains("`messages` has a message 1 that has no `role` or `from`"), "{message}");
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
    let mut row: Map<String, Value> = serde_json::from_str(
        r#"{"turns": [{"who": "system", "says": "s"}, {"who": "me", "says": "q", "train": false},
            {"who": "it", "says": "a", "why": "r", "learn": true, "extra": 1}]}"#,
    )
    .unwrap();
    let read = format.examples(&mut row).unwrap()[0].to_data();
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
        (
            "auto",
            r#"{"prompt": "p", "completion": "c"}"#,
            r#"{"shape":"chat","messages":[{"role":"user","content":"p"},{"role":"assistant","content":"c"}]}"#,
        ),
        (
            "auto",
            r#"{"instruction": "i", "context": "x", "response": "o"}"#,
            r#"{"shape":"chat","messages":[{"role":"user","content":"i\n\nx"},{"role":"assistant","content":"o"}]}"#,
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
        Ok(Flow::More)
    });
    assert_eq!(digest.unwrap(), pipe_engine::digest::Digest::of(text.as_bytes()));
    assert_eq!(reported.unwrap().place, 4000);
}

#[test]
fn splits_slices_shards_and_limits_choose_rows() {
    let files = [("d/train.jsonl", numbered(100)), ("d/test.jsonl", numbered(7)), ("one.jsonl", numbered(10))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let rows = |dataset: Value| entry(&files, dataset).map(|done| kept(&done));
    let of = |keys: Value| {
        let mut dataset = json!({"path": "d", "type": "completion"});
        dataset.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        rows(dataset)
    };
    assert_eq!(of(json!({})).unwrap().len(), 100);
    assert_eq!(of(json!({"split": "test"})).unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(of(json!({"split": "train[10:12]+test[-2:]"})).unwrap(), [10, 11, 5, 6]);
    assert_eq!(of(json!({"split": "train[:3%]"})).unwrap(), [0, 1, 2]);
    assert_eq!(of(json!({"split": "train[:2]+train[:1]"})).unwrap(), [0, 1, 0]);
    assert_eq!(of(json!({"split": "train[90:]", "shards": 4, "shards_idx": 1})).unwrap(), [91, 95, 99]);
    let five = of(json!({"max_rows": 5})).unwrap();
    let seven = of(json!({"max_rows": 7})).unwrap();
    assert!(five.len() == 5 && five.is_sorted() && five.iter().all(|row| seven.contains(row)), "{five:?} {seven:?}");
    assert_eq!(of(json!({"max_rows": 1000})).unwrap().len(), 100);
    assert!(
        of(json!({"split": "dev"})).unwrap_err().contains("split: there is no split `dev`; there are `train`, `test`")
    );
    assert!(of(json!({"split": "train[5:5]"})).unwrap_err().contains("has no rows"));
    let one = rows(json!({"path": "one.jsonl", "type": "completion", "split": "train[-1:]"}));
    assert_eq!(one.unwrap(), [9]);
    let pattern = rows(json!({"path": "*/te*.jsonl", "type": "completion"}));
    assert_eq!(pattern.unwrap().len(), 7);
    let named = rows(json!({"path": "json", "data_files": ["one.jsonl", "d/test.jsonl"], "type": "completion"}));
    assert_eq!(named.unwrap().len(), 17);
    let none = rows(json!({"path": "zzz*.jsonl", "type": "completion"}));
    assert!(none.unwrap_err().contains("no file fits"));
}

#[test]
fn a_value_of_another_kind_is_explained_by_the_rows_before() {
    let text = format!("{ALPACA}\n{ALPACA}\n{{\"instruction\": \"i\", \"output\": [1]}}\n");
    let message = error("d.jsonl", text.as_bytes(), "alpaca");
    assert!(message.starts_with("d.jsonl:3: `output` is a list, not a text; it is a text at "), "{message}");
    assert!(message.ends_with("d.jsonl:1"), "{message}");
    let text = format!("{ALPACA}\n{ALPACA}\n{{\"instruction\": \"i\", \"output\": 7, \"system\": \"s\"}}\n");
    let done = read_bytes("d.jsonl", text.as_bytes(), "alpaca").unwrap();
    let warnings = done.summary.warnings.join("\n");
    assert!(warnings.contains("the column `output` holds text in 2 rows (first at"), "{warnings}");
    assert!(warnings.contains("1 rows have a `system` text, which this `type` does not use"), "{warnings}");
    assert_eq!(done.summary.stats["columns"]["input"], json!({"text": 2, "absent": 1}));
    let wrapped = error("d.json", b"{\n\"data\": [{\"instruction\": \"i\"}]}", "alpaca");
    assert!(wrapped.contains("if the rows are the items of `data`"), "{wrapped}");
}

#[test]
fn names_are_believed_until_the_bytes_say_otherwise() {
    let lines = format!("{ALPACA}\n{ALPACA}\n");
    for name in ["d.csv", "d.parquet", "d.json", "d.jsonl", "d"] {
        assert_eq!(data(name, lines.as_bytes(), "alpaca"), [READ, READ], "{name}");
    }
    for (name, bytes, why) in [
        ("d.parquet", b"a,b\n1,2\n".as_slice(), "is named as Parquet"),
        ("d.jsonl", b"PK\x03\x04....", "zip archive"),
        ("d.jsonl", b"BZh91AY", "bzip2"),
        ("d.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("d.parquet", b"PAR1abcdPAR1", "cut off or damaged"),
        ("d.bin", b"hello", "set `ds_type`"),
    ] {
        let message = error(name, bytes, "alpaca");
        assert!(message.starts_with(name) && message.contains(why), "{message}");
    }
    let long = gz(lines.repeat(2000).as_bytes());
    let message = error("d.jsonl.gz", &long[..long.len() - 20], "alpaca");
    assert!(message.contains("is the file cut off?"), "{message}");
    let mut damaged = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    assert!(error("d.jsonl.zst", &damaged, "alpaca").starts_with("d.jsonl.zst:"));
    let document = data("d.md", b"# Title\n\nText\n", "completion");
    assert_eq!(document, [r##"{"shape":"completion","text":"# Title\n\nText\n"}"##]);
}

#[test]
fn tables_are_read_packed_too() {
    let dir = tempfile::tempdir().unwrap();
    let schema = Arc::new(arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new(
        "text",
        arrow::datatypes::DataType::Utf8,
        true,
    )]));
    let texts: StringArray = (0..5000).map(|i| Some(i.to_string())).collect();
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(texts)]).unwrap();
    let mut file = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &schema).unwrap();
    file.write(&batch).unwrap();
    let file = file.into_inner().unwrap();
    let mut stream = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
    stream.write(&batch).unwrap();
    let stream = stream.into_inner().unwrap();
    let mut parquet = parquet::arrow::ArrowWriter::try_new(Vec::new(), schema, None).unwrap();
    parquet.write(&batch).unwrap();
    let parquet = parquet.into_inner().unwrap();
    for (name, bytes) in [("d.arrow", file), ("s.arrow", stream), ("d.parquet", parquet)] {
        let packed = [gz(&bytes), zstd::encode_all(bytes.as_slice(), 1).unwrap(), bytes];
        for (ending, bytes) in [".gz", ".zst", ""].iter().zip(packed) {
            let path: PathBuf = dir.path().join(format!("{name}{ending}"));
            std::fs::write(&path, bytes).unwrap();
            let done = run(&ingest(&path, "completion"), "ingest.d", &[]).unwrap();
            assert_eq!(kept(&done).len(), 5000, "{name}{ending}");
            assert_eq!(kept(&done)[4999], 4999);
        }
    }
}

#[test]
fn hostile_rows_are_data_or_located_errors() {
    let ten_megabytes = "x".repeat(10 << 20);
    for (text, expected) in [
        (format!("{{\"text\": \"{ten_megabytes}\"}}"), Some(1)),
        ("{\"text\": \"a\\u0000b\"}".to_string(), Some(1)),
        ("{\"text\": \"\u{202e}abc\u{2066}\"}".to_string(), Some(1)),
        ("\u{FEFF}{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n".to_string(), Some(2)),
        ("{\"text\": 1e999}".to_string(), None),
        ("{\"text\": \"a\", \"text\": \"b\"}".to_string(), None),
        ("{\"text\": \"a\u{0}b\"}".to_string(), None),
        (format!("{{\"text\": {}}}", "[".repeat(1 << 20)), None),
        ("{\"text\": \"\\udc00\"}".to_string(), None),
        ("{\"text\": {\"a\": 1}}".to_string(), None),
        ("\u{0}\u{0}\u{0}".to_string(), None),
    ] {
        let shown: String = text.chars().take(40).collect();
        match (read_bytes("d.jsonl", text.as_bytes(), "completion"), expected) {
            (Ok(done), Some(rows)) => assert_eq!(done.summary.rows, Some(rows), "{shown}"),
            (Err(message), None) => assert!(message.starts_with("d.jsonl:1: ") && message.len() < 600, "{message}"),
            (Ok(_), None) => panic!("read: {shown}"),
            (Err(message), Some(_)) => panic!("{shown}: {message}"),
        }
    }
    assert!(error("d.csv", b"a,a\n1,2\n", "completion").contains("the column `a` twice"));
    let csv = data("d.csv", b"\xef\xbb\xbftext,n\r\n\"a\r\nb\",1\r\n", "completion");
    assert_eq!(csv, [r#"{"shape":"completion","text":"a\r\nb"}"#]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]

    /// Whatever the bytes: rows or an error that names the file, and never a panic.
    #[test]
    fn no_bytes_are_too_strange(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        splice in 0usize..200,
        name in proptest::sample::select(vec!["d.jsonl", "d.json", "d.csv", "d.tsv", "d.txt", "d.md", "d.parquet", "d.arrow", "d.jsonl.gz", "d"]),
        kind in proptest::sample::select(vec!["alpaca", "chat_template", "completion", "input_output", "pretokenized", "auto"]),
    ) {
        let sound = format!("{ALPACA}\n{{\"messages\": [{{\"role\": \"user\", \"content\": [\"q\"]}}], \"text\": 1}}\n");
        let mut mixed = sound.into_bytes();
        let at = splice.min(mixed.len());
        mixed.splice(at..at, bytes.iter().copied());
        for bytes in [bytes, mixed] {
            if let Err(message) = read_bytes(name, &bytes, kind) {
                proptest::prop_assert!(message.starts_with(name) && !message.contains("panicked"), "{}", message);
            }
        }
    }
}
