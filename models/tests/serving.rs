//! Requests that join and leave a running batch get the answers that transformers and PEFT give them alone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use pipe_job::{Ask, BaseWeights, CacheFill, Command, Compute, End, Event, ModelSource, Sampling, ServeJob};
use pipe_models::events::Events;
use pipe_models::serve;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A writer that others can read from.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Told {
    fn events(&self) -> Vec<Event> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn greedy(max_new_tokens: usize) -> Sampling {
    Sampling {
        max_new_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
        stop: vec![2],
    }
}

/// What was said to each request, and how it ended.
type Answers = BTreeMap<u64, (Vec<i64>, Option<End>)>;

/// Everything that a worker says to these commands.
fn serve(rows: usize, cache_tokens: u64, commands: Vec<Command>) -> Answers {
    serve_from(&fixtures().join("tiny-llama"), rows, cache_tokens, commands).0
}

/// The same of a model, which has the tiny one's shape, with what the cache had done by the end.
fn serve_from(model: &Path, rows: usize, cache_tokens: u64, commands: Vec<Command>) -> (Answers, CacheFill) {
    let model =
        ModelSource { path: model.to_path_buf(), adapter: None, base: BaseWeights::Dense, compute: Compute::F32 };
    // Two layers, two heads of 16 numbers each, keys and values, four bytes.
    let cache_bytes = cache_tokens * 2 * 2 * 16 * 2 * 4;
    let adapters = vec![("tuned".to_string(), fixtures().join("generation/adapter"))];
    let told = Told::default();
    let (send, receive) = channel();
    let asked = commands.iter().filter(|command| matches!(command, Command::Ask(_))).count();
    commands.into_iter().for_each(|command| send.send(command).unwrap());
    let job = ServeJob { model, adapters, rows, cache_bytes };
    let events = Events::to(told.clone());
    let work = std::thread::spawn(move || serve::serve(&job, &receive, &events));
    let ended = || told.events().iter().filter(|event| matches!(event, Event::Ended { .. })).count();
    while ended() < asked && !work.is_finished() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(send);
    assert_eq!(work.join().unwrap().unwrap_err().to_string(), "cancelled", "the end of the commands ends the work");
    let (mut answers, mut fill) = (Answers::new(), CacheFill::default());
    for event in told.events() {
        match event {
            Event::Ready { cache_tokens: found, .. } => assert_eq!(found as u64, cache_tokens),
            Event::Tokens { tokens } => {
                tokens.into_iter().for_each(|(id, token)| answers.entry(id).or_default().0.push(token));
            }
            Event::Ended { id, end } => assert_eq!(answers.entry(id).or_default().1.replace(end), None),
            Event::Cache(now) => fill = now,
            _ => {}
        }
    }
    (answers, fill)
}

fn ask(id: u64, adapter: Option<&str>, ids: &[i64], most: usize) -> Command {
    let adapter = adapter.map(str::to_string);
    Command::Ask(Box::new(Ask { id, adapter, ids: ids.to_vec(), sampling: greedy(most) }))
}

/// Rows of tokens.
type Rows = Vec<Vec<i64>>;

/// Prompts, and the answers to them by model.
fn reference() -> (Rows, BTreeMap<&'static str, Rows>) {
    let bytes = std::fs::read(fixtures().join("generation/reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&bytes).unwrap();
    let of = |model: &'static str| (model, serde_json::from_value(reference[model]["answers"].clone()).unwrap());
    (serde_json::from_value(reference["prompts"].clone()).unwrap(), [of("base"), of("tuned")].into_iter().collect())
}

#[test]
fn answers_do_not_depend_on_who_else_is_answered() {
    let (prompts, expected) = reference();
    // One at a time; some of both models with others waiting; a cache that holds two; all at once.
    for (rows, cache) in [(1, 4096), (3, 4096), (8, 200), (64, 4096)] {
        let mut commands = Vec::new();
        for (i, prompt) in prompts.iter().enumerate() {
            commands.push(ask(2 * i as u64, None, prompt, 24));
            commands.push(ask(2 * i as u64 + 1, Some("tuned"), prompt, 24));
        }
        let answers = serve(rows, cache, commands);
        for (model, first) in [("base", 0), ("tuned", 1)] {
            for (i, wanted) in expected[model].iter().enumerate() {
                let (ids, end) = &answers[&(2 * i as u64 + first)];
                assert_eq!(ids, wanted, "{model} {i} with {rows} rows, {cache} tokens");
                let end = end.as_ref().unwrap();
                assert_eq!(*end, if ids.len() < 24 { End::Stop } else { End::Length });
            }
        }
    }
}

#[test]
fn what_cannot_be_answered_is_refused_and_what_is_not_wanted_ends() {
    let attach = |path: &Path| Command::Attach { name: "late".into(), path: path.to_path_buf() };
    let answers = serve(
        2,
        100,
        vec![
            ask(1, None, &[], 4),
            ask(2, None, &[9999], 4),
            ask(3, Some("unknown"), &[5], 4),
            ask(4, None, &[5; 90], 40),
            ask(5, None, &[5; 600], 1),
            attach(&fixtures().join("tiny-llama")),
            ask(6, Some("late"), &[5], 4),
            attach(&fixtures().join("generation/adapter")),
            ask(7, Some("late"), &[5, 6, 7], 4),
            ask(8, None, &[5, 6, 7], 80),
            Command::Stop { id: 8 },
        ],
    );
    let ended = |id: u64| answers[&id].1.clone().unwrap();
    for (id, word) in [(1, "empty"), (2, "vocabulary"), (3, "unknown"), (4, "cache"), (5, "made for"), (6, "late")] {
        let End::Refused { message } = ended(id) else { panic!("{id}: {:?}", ended(id)) };
        assert!(message.contains(word), "{id}: {message}");
        assert!(answers[&id].0.is_empty());
    }
    assert_eq!((answers[&7].0.len(), ended(7)), (4, End::Length));
    assert_eq!(ended(8), End::Stopped);
}

/// Asks for every prompt of the fixtures, each with so many tokens of its answer, which must be gone on with.
fn going_on(given: &[usize]) -> (Vec<Command>, Vec<(u64, Vec<i64>)>) {
    let (prompts, expected) = reference();
    let (mut commands, mut wanted) = (Vec::new(), Vec::new());
    for (model, adapter) in [("base", None), ("tuned", Some("tuned"))] {
        for (prompt, answer) in prompts.iter().zip(&expected[model]) {
            for &given in given {
                let id = commands.len() as u64;
                commands.push(ask(id, adapter, &[&prompt[..], &answer[..given]].concat(), 24 - given));
                wanted.push((id, answer[given..].to_vec()));
            }
        }
    }
    (commands, wanted)
}

#[test]
fn what_begins_alike_is_read_once_and_answered_as_if_alone() {
    for (rows, cache) in [(1, 4096), (1, 400), (64, 4096)] {
        let (commands, wanted) = going_on(&[0, 5, 0, 20, 23]);
        let (answers, fill) = serve_from(&fixtures().join("tiny-llama"), rows, cache, commands);
        for (id, wanted) in wanted {
            assert_eq!(answers[&id].0, wanted, "request {id} with {rows} rows, {cache} tokens");
        }
        assert!(fill.found >= 500, "only {} tokens were found", fill.found);
        assert_eq!((fill.used, fill.free as u64), (0, cache.div_ceil(16)), "all blocks are given back");
    }
}

#[test]
fn rows_that_wait_for_room_say_what_they_would_have_said() {
    let drawn = |id: u64, ids: &[i64]| {
        let sampling = Sampling { temperature: 1.0, seed: id, frequency_penalty: 0.5, ..greedy(24) };
        Command::Ask(Box::new(Ask { id, adapter: None, ids: ids.to_vec(), sampling }))
    };
    let commands = || {
        let (mut commands, wanted) = going_on(&[0]);
        let (prompts, _) = reference();
        commands.extend(prompts.iter().zip(100..).map(|(prompt, id)| drawn(id, prompt)));
        (commands, wanted)
    };
    let (alone, _) = serve_from(&fixtures().join("tiny-llama"), 1, 4096, commands().0);
    let mut preempted = 0;
    for cache in [90, 128, 200] {
        let (commands, wanted) = commands();
        let (answers, fill) = serve_from(&fixtures().join("tiny-llama"), 16, cache, commands);
        for (id, wanted) in wanted {
            assert_eq!(answers[&id].0, wanted, "request {id} with {cache} tokens");
        }
        assert_eq!(answers, alone, "{cache} tokens");
        assert_eq!(fill.used, 0, "{fill:?}");
        preempted += fill.preempted;
    }
    assert!(preempted > 0, "nobody had to wait");
}

#[test]
fn an_adapter_that_takes_anothers_name_answers_for_itself() {
    let (prompts, _) = reference();
    let adapter = fixtures().join("generation/adapter");
    let stronger = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&adapter).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), stronger.path().join(file.file_name())).unwrap();
    }
    let config = stronger.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text_of_twice = text.replace("\"lora_alpha\": 8", "\"lora_alpha\": 16");
    assert_ne!(text, text_of_twice);
    std::fs::write(&config, text_of_twice).unwrap();
    let attach = |path: &Path| Command::Attach { name: "it".into(), path: path.to_path_buf() };
    let last = &prompts[9];
    let after = |path: &Path| serve(1, 4096, vec![attach(path), ask(1, Some("it"), last, 24)]);
    let (weak, strong) = (after(&adapter)[&1].0.clone(), after(stronger.path())[&1].0.clone());
    assert_ne!(weak, strong);
    let commands = vec![
        attach(&adapter),
        ask(1, Some("it"), last, 24),
        ask(2, Some("it"), last, 24),
        attach(stronger.path()),
        ask(3, Some("it"), last, 24),
    ];
    // One row at a time, and commands are taken between two tokens: the last of the three may begin before the first is over.
    let answers = serve(1, 4096, commands);
    assert_eq!(answers[&3].0, strong);
}

#[test]
fn positions_that_stretch_with_the_length_are_neither_shared_nor_read_again() {
    let model = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixtures().join("tiny-llama")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
    }
    let config = model.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let factors = |by: f64| vec![by; 8];
    json["rope_scaling"] = serde_json::json!({
        "rope_type": "longrope", "short_factor": factors(1.0), "long_factor": factors(3.0),
        "original_max_position_embeddings": 40, "factor": 12.8,
    });
    std::fs::write(&config, json.to_string()).unwrap();
    let (prompts, _) = reference();
    let commands = || {
        let of = |round: u64| prompts.iter().zip(100 * round..).map(|(prompt, id)| ask(id, None, prompt, 24));
        of(0).chain(of(1)).collect::<Vec<_>>()
    };
    let alone = serve_from(model.path(), 1, 4096, commands());
    let together = serve_from(model.path(), 16, 128, commands());
    assert_eq!(together.0, alone.0);
    assert_eq!((together.1.found, together.1.preempted, together.1.used), (0, 0, 0));
    let (plain, _) = serve_from(&fixtures().join("tiny-llama"), 1, 4096, commands());
    assert_ne!(plain, alone.0, "the positions are stretched");
}
