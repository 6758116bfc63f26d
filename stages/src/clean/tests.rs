#![allow(clippy::unwrap_used)]
use arrow::array::{UInt16Array, UInt64Array};
use tempfile::TempDir;

use super::*;
use crate::rows::harness::{Done, run};

fn raw(examples: &[Example]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(ROWS_FILE);
    let mut ids = RowIds::default();
    let mut writer = TableWriter::create(&path, shapes::raw()).unwrap();
    let n = examples.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(examples.iter().map(|e| ids.name(Content::of(e))))),
        Arc::new(UInt64Array::from_iter_values(1..=n as u64)),
        Arc::new(StringArray::from_iter_values(examples.iter().map(Example::to_data))),
        Arc::new(StringArray::from(vec![None::<&str>; n])),
        Arc::new(UInt16Array::from(vec![0; n])),
    ];
    writer.write(&RecordBatch::try_new(shapes::raw(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn clean(section: &str, examples: &[Example]) -> Done {
    let section: CleanSection = serde_json::from_str(section).unwrap();
    let (_dir, path) = raw(examples);
    run(&Clean::resolve(Some(&section)), "clean.d", &[("rows", &path)]).unwrap()
}

fn row(instruction: &str, output: &str) -> Example {
    Example::Instruct { system: None, instruction: instruction.into(), input: String::new(), output: output.into() }
}

#[test]
fn unasked_only_empty_and_invalid_rows_go() {
    let bad = Example::Chat { messages: vec![serde_json::from_str(r#"{"content": "x"}"#).unwrap()], tools: None };
    let empty = Example::Chat { messages: Vec::new(), tools: None };
    let silent = serde_json::from_str(
        r#"{"shape":"chat","messages":[{"role":"user","content":"q"},{"role":"assistant","content":""}]}"#,
    );
    let rows = [row("a", "b"), row("a", "b"), row("a", " \n"), empty, bad, silent.unwrap()];
    let done = clean("{}", &rows);
    assert_eq!(done.summary.rows, Some(3));
    assert_eq!((done.stat("dropped_empty"), done.stat("dropped_invalid")), (2, 1));
    assert_eq!(clean(r#"{"drop_empty": false}"#, &rows).summary.rows, Some(5));
}

#[test]
fn lengths_and_duplicates_are_counted_by_rule() {
    let rows = [row("aa", "bb"), row("aa", "bb"), row("a", "b"), row("aaaaa", "bbbbb"), row("cc", "dd")];
    let done = clean(r#"{"dedup": "exact", "min_chars": 3, "max_chars": 9}"#, &rows);
    assert_eq!(done.summary.rows, Some(2));
    let stats = ["dropped_duplicate", "dropped_too_short", "dropped_too_long"].map(|name| done.stat(name));
    assert_eq!(stats, [1, 1, 1]);
}

#[test]
fn what_clean_takes_away_leaves_no_trace_downstream() {
    let section = r#"{"dedup": "exact", "normalize": true}"#;
    let one = clean(section, &[row("a", "b"), row("c", "d"), row("a", "b")]);
    let without_duplicate = clean(section, &[row("a", "b"), row("c", "d")]);
    let spaced = clean(section, &[row("a ", "b\r\n"), row("c", "d")]);
    assert_eq!(one.bytes(ROWS_FILE), without_duplicate.bytes(ROWS_FILE));
    assert_eq!(one.bytes(ROWS_FILE), spaced.bytes(ROWS_FILE));
    assert_eq!(spaced.stat("normalized"), 1);
    let (from, ids) = (spaced.texts(LINEAGE_FILE, "from"), spaced.texts(ROWS_FILE, "row_id"));
    assert!(from[0] != ids[0] && from[1] == ids[1]);
}

#[test]
fn near_duplicates_go_when_asked() {
    let long =
        |last: &str| row("q", &format!("{} {last}", (0..60).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ")));
    let rows = [long("one"), long("two"), row("other", "text entirely")];
    let done = clean(r#"{"dedup": "near"}"#, &rows);
    assert_eq!((done.summary.rows, done.stat("dropped_near_duplicate")), (Some(2), 1));
    assert_eq!(clean(r#"{"dedup": "exact"}"#, &rows).summary.rows, Some(3));
}

#[test]
fn dropping_everything_is_an_error_that_says_why() {
    let (_dir, path) = raw(&[row("a", "")]);
    let error = run(&Clean::resolve(None), "clean.d", &[("rows", &path)]).err().unwrap();
    assert_eq!(error.to_string(), "clean drops all 1 rows (1 empty); loosen its rules");
}

fn text(text: &str) -> Example {
    Example::Completion { text: text.to_string() }
}

/// Rows and verdicts of `tests/fixtures/near`, made with exact Jaccard and with datasketch.
#[test]
fn near_duplicates_are_those_of_exact_jaccard() {
    let fixture = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/near").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let texts: Vec<String> = fixture("rows.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_string())
        .collect();
    let expected: Value = serde_json::from_str(&fixture("expected.json")).unwrap();
    let list =
        |name: &str| -> HashSet<u64> { expected[name].as_array().unwrap().iter().filter_map(Value::as_u64).collect() };
    let (exact, datasketch) = (list("exact"), list("datasketch"));
    let rows: Vec<Example> = texts.iter().map(|line| text(line)).collect();
    let done = clean(r#"{"dedup": "near"}"#, &rows);
    let kept: HashSet<String> = done.texts(ROWS_FILE, "data").into_iter().collect();
    let dropped: HashSet<u64> =
        rows.iter().zip(0..).filter(|(row, _)| !kept.contains(&row.to_data())).map(|(_, i)| i).collect();
    let equal = done.stat("dropped_duplicate");
    assert_eq!(dropped.len() as u64, done.stat("dropped_near_duplicate") + equal);
    assert!(dropped.difference(&exact).count() <= 1, "wrongly dropped: {:?}", dropped.difference(&exact));
    assert!(exact.difference(&dropped).count() <= 1, "missed: {:?}", exact.difference(&dropped));
    assert!(exact.difference(&dropped).count() <= exact.difference(&datasketch).count());
}

#[test]
fn each_rule_counts_and_shows_what_it_drops() {
    let rows = [
        row("Say hello to the world", "Hello, world! How are you today?"),
        row("x", "one two"),
        row("Repeat", "spam and eggs spam and eggs spam and eggs spam and eggs"),
        row("Symbols", "=== --- *** +++ ??? !!! === --- ***"),
        row("Ask", "As an AI language model, I cannot do that for you."),
        row("Swear", "What the fuck is this supposed to be?"),
    ];
    let section = r#"{"min_words": 4, "max_repetition": 0.3, "min_alnum_ratio": 0.5,
        "drop_matching": "(?i)as an ai language model", "profanity": "drop"}"#;
    let done = clean(section, &rows);
    let rules = ["few_words", "repetitive", "few_letters", "matched", "profane"];
    assert_eq!(rules.map(|rule| done.stat(&format!("dropped_{rule}"))), [1, 1, 1, 1, 1]);
    assert_eq!(done.summary.rows, Some(1));
    let sample = &done.summary.stats["samples_matched"][0];
    assert_eq!(sample["why"], "(?i)as an ai language model");
    assert!(sample["text"].as_str().unwrap().starts_with("Ask As an AI"));
    let page: Value = serde_json::from_slice(&done.bytes(DROPPED_FILE)).unwrap();
    assert_eq!((&page["read"], &page["kept"], &page["dropped"]["profane"]["rows"]), (&6.into(), &1.into(), &1.into()));
    let kept = clean(r#"{"keep_matching": ["hello", "spam"], "samples": 0}"#, &rows);
    assert_eq!((kept.summary.rows, kept.stat("dropped_unmatched")), (Some(2), 4));
    assert_eq!(kept.summary.stats["samples_unmatched"].as_array().unwrap().len(), 0);
}

#[test]
fn texts_are_changed_in_every_place_where_people_write() {
    let chat: Example = serde_json::from_str(
        r#"{"shape": "chat", "messages": [{"role": "user", "content": "<p>mail jo@x.org &amp; co</p>"},
            {"role": "assistant", "content": [{"type": "text", "text": "from 10.9.8.7"}], "tool_calls":
            [{"function": {"name": "send", "arguments": {"to": "jo@x.org"}}}]}]}"#,
    )
    .unwrap();
    let done =
        clean(r#"{"strip_html": true, "redact": true, "profanity": "mask"}"#, &[chat, row("shit", "Cafe\u{301}")]);
    let data = done.texts(ROWS_FILE, "data");
    assert!(
        data[0].contains("\"mail [EMAIL] & co\"")
            && data[0].contains("from [IP]")
            && data[0].contains("\"to\":\"[EMAIL]\"")
    );
    assert!(data[1].contains("s***") && data[1].contains("Cafe\u{301}"));
    let counts = ["html", "redacted_email", "redacted_ip", "masked", "normalized"].map(|name| done.stat(name));
    assert_eq!(counts, [1, 2, 1, 1, 0]);
    let composed = clean(r#"{"normalize": true}"#, &[row("a", "Cafe\u{301}")]);
    assert!(composed.texts(ROWS_FILE, "data")[0].contains("Caf\u{e9}"));
}

#[test]
fn rows_whose_training_ranges_would_move_are_dropped_and_said() {
    let ranged = |text: &str| -> Example {
        serde_json::from_value(serde_json::json!({"shape": "chat", "messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": text, "train_detail": [{"begin_offset": 0, "end_offset": 3, "train": true}]}]}))
        .unwrap()
    };
    let done = clean(r#"{"normalize": true}"#, &[ranged("  padded "), ranged("exact")]);
    assert_eq!((done.summary.rows, done.stat("dropped_ranges")), (Some(1), 1));
}

#[test]
fn other_languages_go_when_the_detection_is_sure() {
    let rows = [
        text("The committee will meet again on Thursday to discuss what remains to be done before the summer."),
        text("Der Ausschuss trifft sich am Donnerstag wieder, um zu besprechen, was vor dem Sommer noch zu tun ist."),
        text("ok"),
    ];
    let done = clean(r#"{"languages": ["en"]}"#, &rows);
    assert_eq!((done.summary.rows, done.stat("dropped_language"), done.stat("language_unsure")), (Some(2), 1, 1));
    assert!(done.summary.stats["samples_language"][0]["why"].as_str().unwrap().starts_with("deu, "));
    assert_eq!(clean(r#"{"languages": ["en", "de"]}"#, &rows).summary.rows, Some(3));
}

#[test]
fn training_rows_that_share_text_with_evaluation_rows_are_found() {
    let long = "the quick brown fox jumps over the lazy dog while seven other animals watch from the hill";
    let tests = [row("What is the capital of France?", "Paris"), row("Tell a story", long)];
    let (_held, held) = raw(&tests);
    let evaluation = {
        let done = run(&Clean::resolve(None), "clean.t", &[("rows", &held)]).unwrap();
        (done.path(ROWS_FILE), done)
    };
    let rows = [
        row("what is the capital of FRANCE", "It is Paris."),
        row("Continue", &format!("Once, {long}, it is said.")),
        row("What is the capital of Spain?", "Madrid"),
    ];
    let (_dir, path) = raw(&rows);
    let with = |action: &str| {
        let section: CleanSection = serde_json::from_str(&format!(r#"{{"contamination": "{action}"}}"#)).unwrap();
        run(&Clean::resolve(Some(&section)), "clean.d", &[("rows", &path), ("evaluation.0", &evaluation.0)]).unwrap()
    };
    let dropped = with("drop");
    assert_eq!((dropped.summary.rows, dropped.stat("dropped_contaminated")), (Some(1), 2));
    let why: Vec<&str> =
        (0..2).map(|i| dropped.summary.stats["samples_contaminated"][i]["why"].as_str().unwrap()).collect();
    assert_eq!(why, ["asks what an evaluation row asks", "shares 5 runs of 13 words with evaluation rows"]);
    let warned = with("warn");
    assert_eq!((warned.summary.rows, warned.stat("contaminated")), (Some(3), 2));
    assert!(warned.summary.warnings[0].starts_with("2 training rows share text"));
}

#[test]
fn benchmarks_in_files_are_compared_with_too() {
    let folder = tempfile::tempdir().unwrap();
    let bench = folder.path().join("bench.jsonl");
    std::fs::write(&bench, "{\"q\": \"Name the largest planet of all\", \"a\": \"Jupiter\"}\n").unwrap();
    let section: CleanSection = serde_json::from_str(r#"{"contamination": "drop"}"#).unwrap();
    let mut cleaning = Clean::resolve(Some(&section));
    cleaning.contamination_files.push(bench.clone());
    let (_dir, path) = raw(&[row("Name the largest planet of all.", "It is Jupiter"), row("b", "c")]);
    assert_eq!(run(&cleaning, "clean.d", &[("rows", &path)]).unwrap().stat("dropped_contaminated"), 1);
    std::fs::write(&bench, "{\"q\": 1}\n{broken\n").unwrap();
    let error = run(&cleaning, "clean.d", &[("rows", &path)]).err().unwrap().to_string();
    assert!(error.contains("bench.jsonl: line 2:"), "{error}");
}

#[test]
fn a_section_that_cannot_work_says_so() {
    let wrong = |text: &str| serde_json::from_str::<CleanSection>(text).unwrap().mistakes();
    let found =
        wrong(r#"{"languages": ["en", "klingon"], "drop_matching": ["(a", "b"], "min_words": 5, "max_words": 4}"#);
    let keys: Vec<&str> = found.iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(keys, ["languages[1]", "drop_matching", "min_words"]);
    assert!(found[1].why.contains("`(a` is not a regular expression: unclosed group"), "{}", found[1].why);
    assert_eq!(wrong(r#"{"normalize": "nfkc", "redact": ["email"], "languages": ["deu"]}"#), Vec::new());
}
