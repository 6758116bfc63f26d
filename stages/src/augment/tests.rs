#![allow(clippy::unwrap_used)]
use std::collections::HashSet;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::rows::harness::{Done, run};

mod served;

fn chat(turns: &[(&str, &str)]) -> Example {
    let messages: Vec<Value> = turns.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
    Example::parse(&json!({"shape": "chat", "messages": messages}).to_string()).unwrap()
}

fn table(examples: &[Example]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TRAIN_FILE);
    let mut writer = TableWriter::create(&path, shapes::example()).unwrap();
    let mut grown = Grown::default();
    for example in examples {
        grown.ids.push(Content::of(example).row_id(0));
        grown.data.push(example.to_data());
        grown.meta.push(None);
    }
    writer.write(&grown.rows().unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn train(requests: &[&str]) -> (TempDir, PathBuf) {
    let examples: Vec<Example> = requests.iter().map(|text| chat(&[("user", text), ("assistant", "ok")])).collect();
    table(&examples)
}

fn resolved(section: &str) -> Augment {
    let section: AugmentSection = serde_json::from_str(section).unwrap();
    assert_eq!(section.mistakes(), Vec::new());
    Augment::resolve(Some(&section))
}

fn augment_rows(section: &str, examples: &[Example]) -> Done {
    let (_dir, path) = table(examples);
    run(&resolved(section), "augment.d", &[("train", &path)]).unwrap()
}

fn augment(section: &str, requests: &[&str]) -> Done {
    let (_dir, path) = train(requests);
    run(&resolved(section), "augment.d", &[("train", &path)]).unwrap()
}

fn examples(done: &Done) -> Vec<Example> {
    done.texts(TRAIN_FILE, "data").iter().map(|data| Example::parse(data).unwrap()).collect()
}

#[test]
fn unasked_the_rows_pass_byte_for_byte() {
    let (_dir, path) = train(&["a", "b"]);
    let done = run(&Augment::resolve(None), "augment.d", &[("train", &path)]).unwrap();
    assert_eq!(done.bytes(TRAIN_FILE), std::fs::read(path).unwrap());
}

#[test]
fn copies_have_ids_of_their_own_and_lead_back() {
    let done =
        augment(r#"{"repeat": 2, "paraphrase": ["{request}, please.", "Now {request}"], "copies": 2}"#, &["a", "b"]);
    let ids = done.texts(TRAIN_FILE, "row_id");
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len(), done.stat("added")), (12, 12, 10));
    let data = done.texts(TRAIN_FILE, "data");
    assert_eq!(data.iter().filter(|row| row.contains("\"a, please.\"")).count(), 2);
    assert_eq!(data.iter().filter(|row| row.contains("\"Now b\"")).count(), 2);
    let from: HashSet<String> = done.texts(LINEAGE_FILE, "from").into_iter().collect();
    assert_eq!(from.len(), 2);
}

#[test]
fn a_rows_wording_depends_on_that_row_alone() {
    let section = r#"{"paraphrase": ["1 {request}", "2 {request}", "3 {request}"]}"#;
    let both = augment(section, &["a", "b"]).texts(TRAIN_FILE, "data");
    let alone = augment(section, &["b"]).texts(TRAIN_FILE, "data");
    assert_eq!(both[2..], alone[..]);
}

#[test]
fn a_template_without_its_place_is_refused() {
    let section: AugmentSection = serde_json::from_str(r#"{"paraphrase": ["hello"]}"#).unwrap();
    assert_eq!(section.mistakes()[0].why, "`hello` does not contain `{request}`, the place of the row's own text");
}

#[test]
fn typing_mistakes_are_few_repeatable_and_never_in_code() {
    let text =
        "Please explain carefully which containers were started yesterday, and run `docker inspect containers` again.";
    let section = r#"{"noise": {"rate": 0.5, "copies": 20}}"#;
    let done = augment(section, &[text]);
    let noisy: Vec<String> = examples(&done)[1..].iter().map(|example| example.texts()[0].to_string()).collect();
    assert_eq!((noisy.len() as u64, done.stat("added_noise")), (20, 20));
    assert!(noisy.iter().collect::<HashSet<_>>().len() > 15);
    for (copy, clean) in noisy.iter().map(|copy| (copy, text)) {
        assert!(copy.contains("`docker inspect containers`"), "{copy}");
        let (copied, words): (Vec<&str>, Vec<&str>) = (copy.split(' ').collect(), clean.split(' ').collect());
        assert_eq!(copied.len(), words.len());
        for (a, b) in copied.iter().zip(&words) {
            assert!(strsim::osa_distance(a, b) <= 1 && (a.len() as i64 - b.len() as i64).abs() <= 1, "{a} {b}");
        }
    }
    // About half of the ten words that are long enough.
    let changed: usize =
        noisy.iter().map(|copy| copy.split(' ').zip(text.split(' ')).filter(|(a, b)| a != b).count()).sum();
    assert!((60..140).contains(&changed), "{changed} of 200 words");
    assert_eq!(done.bytes(TRAIN_FILE), augment(section, &[text]).bytes(TRAIN_FILE));
    let case = augment(r#"{"noise": {"rate": 1, "kinds": ["case"]}}"#, &["Show every image"]);
    assert_eq!(examples(&case)[1].texts()[0], "show Every Image");
}

#[test]
fn swapped_rows_ask_what_was_asked() {
    let long = chat(&[("system", "be kind"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]);
    let short = chat(&[("user", "u1"), ("assistant", "a1")]);
    let plain = Example::Instruct { system: None, instruction: "i".into(), input: "x".into(), output: "o".into() };
    let odd = chat(&[("user", "u1"), ("user", "u2"), ("assistant", "a1")]);
    let done = augment_rows(r#"{"swap_roles": {"prompt": "For: {answer}"}}"#, &[long, short, plain, odd]);
    let made = examples(&done);
    assert_eq!((made.len(), done.stat("added_swap_roles")), (7, 3));
    assert_eq!(made[1], chat(&[("user", "a1"), ("assistant", "u2")]));
    assert_eq!(made[3], chat(&[("user", "For: a1"), ("assistant", "u1")]));
    let wanted =
        Example::Instruct { system: None, instruction: "For: o".into(), input: "".into(), output: "i\n\nx".into() };
    assert_eq!(made[5], wanted);
}

#[test]
fn a_context_comes_before_its_question_and_the_reply_is_not_trained() {
    let row = chat(&[("user", "Fish swim.\n\nBirds fly.\n\nWhat do fish do?"), ("assistant", "They swim.")]);
    let flat = chat(&[("user", "one paragraph"), ("assistant", "ok")]);
    let done = augment_rows(r#"{"dialogue": {"reply": "Yes?"}}"#, &[row, flat]);
    let made = examples(&done);
    assert_eq!(made.len(), 3);
    let Example::Chat { messages, .. } = &made[1] else { panic!("no chat") };
    let said: Vec<(&str, &str)> =
        messages.iter().map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap())).collect();
    let wanted = [
        ("user", "Fish swim.\n\nBirds fly."),
        ("assistant", "Yes?"),
        ("user", "What do fish do?"),
        ("assistant", "They swim."),
    ];
    assert_eq!(said, wanted);
    assert_eq!((messages[1].get("train"), messages[3].get("train")), (Some(&json!(false)), None));
}

#[test]
fn an_endpoint_without_place_or_with_a_key_in_the_recipe_is_refused() {
    let wrong = |text: &str| {
        let section: AugmentSection = serde_json::from_str(text).unwrap();
        section.mistakes().into_iter().map(|mistake| format!("{} {}", mistake.key, mistake.why)).collect::<Vec<_>>()
    };
    assert_eq!(wrong(r#"{"endpoint": {"url": "localhost:8080"}}"#).len(), 2);
    let key = format!(r#"{{"endpoint": {{"url": "http://x/v1", "model": "m", "api_key_env": "sk-{}"}}}}"#, "abc123");
    assert!(wrong(&key)[0].contains("never the key itself"));
    assert!(
        wrong(r#"{"endpoint": {"url": "http://x/v1", "model": "m", "max_cost": 1}}"#)[0].contains("cannot be watched")
    );
    assert_eq!(wrong(r#"{"endpoint": {"url": "http://x/v1", "model": "m"}}"#), Vec::<String>::new());
}
