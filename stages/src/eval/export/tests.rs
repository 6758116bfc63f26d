//! What is written, where the harness reads it; the rest is compared with the harness itself in tests/cli/exporting.rs.

use serde_json::json;

use super::tasks::flow;
use super::{Task, distinct, mean, outputs, task_name};

#[test]
fn hashes_are_those_of_the_harness() {
    // lm_eval.utils.hash_string of these texts, and of json.dumps(doc, indent=2, ensure_ascii=False).
    assert_eq!(outputs::hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(outputs::hash("2"), "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35");
    let doc =
        json!({"prompt": "a \"b\"\n\u{1}\u{7f}\u{2028} é 日本", "choices": ["x", "y\t"], "answer": 1, "none": []});
    let text = serde_json::to_string_pretty(&doc).unwrap();
    assert_eq!(outputs::hash(&text), "6622a906c167a19139811f32ad9a61eb6cb5bb46d74258817033d65a269f7089");
}

#[test]
fn yaml_keeps_every_text() {
    let texts = [
        "",
        "yes",
        "null",
        "1e-7",
        "\n\n",
        "a: b # c",
        "{{ x }}",
        "'\"\\",
        "\u{7f}\u{85}\u{2028}",
        "naïve 😀",
        "!function a.b",
    ];
    for text in texts {
        let read: serde_yaml::Value = serde_yaml::from_str(&flow(&json!({"until": [text]}))).unwrap();
        assert_eq!(read["until"][0].as_str(), Some(text), "{}", flow(&json!(text)));
    }
    assert_eq!(
        flow(&json!({"a": [1, 0.0000001, true, null], "b": {}})),
        "{\"a\": [1, 0.0000001, true, null], \"b\": {}}"
    );
}

#[test]
fn names_are_plain_and_different() {
    assert_eq!(task_name("my questions, all*"), "pipe_my_questions__all_");
    let task = |name: &str| Task {
        name: task_name(name),
        config: Vec::new(),
        filter: "none",
        docs: Vec::new(),
        outcomes: Default::default(),
    };
    let mut tasks = [task("a b"), task("a_b"), task("a-b"), task("a.b")];
    distinct(&mut tasks);
    assert_eq!(tasks.map(|task| task.name), ["pipe_a_b", "pipe_a_b_2", "pipe_a-b", "pipe_a_b_3"]);
}

#[test]
fn a_mean_has_the_harness_s_standard_error() {
    // lm_eval.api.metrics.mean_stderr([1, 0, 0, 1, 1]).
    let score = mean("acc", &[1.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!((score.value, score.error), (0.6, Some(0.24494897427831783)));
    assert_eq!(mean("acc", &[1.0]).error, None);
}
