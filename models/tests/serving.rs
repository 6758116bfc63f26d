//! Requests that join and leave a running batch get the answers that transformers and PEFT give them alone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use pipe_job::{Ask, BaseWeights, Command, Compute, End, Event, ModelSource, Sampling, ServeJob};
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

/// Everything that a worker says to these commands, by request, and how each ended.
fn serve(rows: usize, cache_tokens: u64, commands: Vec<Command>) -> BTreeMap<u64, (Vec<i64>, Option<End>)> {
    let model = ModelSource {
        path: fixtures().join("tiny-llama"),
        adapter: None,
        base: BaseWeights::Dense,
        compute: Compute::F32,
    };
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
    let mut answers = BTreeMap::<u64, (Vec<i64>, Option<End>)>::new();
    for event in told.events() {
        match event {
            Event::Ready { cache_tokens: found, .. } => assert_eq!(found as u64, cache_tokens),
            Event::Tokens { tokens } => {
                tokens.into_iter().for_each(|(id, token)| answers.entry(id).or_default().0.push(token));
            }
            Event::Ended { id, end } => assert_eq!(answers.entry(id).or_default().1.replace(end), None),
            _ => {}
        }
    }
    answers
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
