//! Rows written by a model, against a server of this process: answers, retries, limits, cost, and going on after a failure.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pipe_engine::event::Silent;
use pipe_engine::plan::NodeName;
use pipe_engine::task::Cancel;

use super::*;

/// What the server answers to the n-th request with this body: status, extra headers, body.
type Reply = dyn Fn(usize, &Value) -> (u16, String, String) + Send + Sync;

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<(Value, String)>>>,
}

impl Server {
    fn start(reply: impl Fn(usize, &Value) -> (u16, String, String) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<(Value, String)>>> = Arc::default();
        let (reply, count, log): (Arc<Reply>, _, _) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (reply, count, log) = (reply.clone(), count.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &*reply, &count, &log));
            }
        });
        Server { url, seen }
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn serve(stream: TcpStream, reply: &Reply, count: &AtomicUsize, log: &Mutex<Vec<(Value, String)>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut length, mut key, mut line) = (0, String::new(), String::new());
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert!(line.starts_with("POST /v1/chat/completions "), "{line}");
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if lower.starts_with("authorization:") {
                key = line.trim().split_once(':').unwrap().1.trim().to_string();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let number = count.fetch_add(1, Ordering::SeqCst);
        log.lock().unwrap().push((body.clone(), key));
        let (status, headers, text) = reply(number, &body);
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", text.len());
        let mut stream = &stream;
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes())).is_err() {
            return;
        }
    }
}

fn completion(text: &str) -> String {
    json!({"choices": [{"message": {"role": "assistant", "content": text}}],
           "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
    .to_string()
}

fn fine(text: &str) -> (u16, String, String) {
    (200, String::new(), completion(text))
}

/// The request inside the prompt for rephrasing.
fn asked(body: &Value) -> String {
    body["messages"][0]["content"].as_str().unwrap().rsplit("\n\n").next().unwrap().to_string()
}

fn section(server: &Server, more: &str) -> String {
    format!(r#"{{"endpoint": {{"url": "{}", "model": "m"{more}}}}}"#, server.url)
}

/// Runs with answers kept in `kept`, as two runs of one store do.
fn run_in(kept: &std::path::Path, section: &str, input: &std::path::Path) -> Result<Done, TaskError> {
    let dir = tempfile::tempdir().unwrap();
    let ctx = Context {
        node: NodeName::new("augment.d"),
        inputs: [("train".to_string(), input.to_path_buf())].into_iter().collect(),
        files: Default::default(),
        earlier: None,
        out: dir.path().to_path_buf(),
        work: dir.path().join("work"),
        kept: kept.to_path_buf(),
        threads: 2,
        cancel: Cancel::default(),
        sink: Arc::new(Silent),
        read: Default::default(),
    };
    let summary = resolved(section).run(&ctx)?;
    Ok(Done { dir, summary })
}

#[test]
fn rows_are_reworded_and_answers_are_bought_once() {
    let server = Server::start(|_, body| fine(&format!("\"Kindly {}\"", asked(body))));
    let kept = tempfile::tempdir().unwrap();
    let (_dir, path) = train(&["a", "b", "c"]);
    let text = section(&server, r#", "copies": 2, "input_price": 1, "output_price": 10"#);
    let first = run_in(kept.path(), &text, &path).unwrap();
    let texts: Vec<String> = examples(&first).iter().map(|example| example.texts()[0].to_string()).collect();
    assert_eq!(texts, ["a", "Kindly a", "Kindly a", "b", "Kindly b", "Kindly b", "c", "Kindly c", "Kindly c"]);
    let bill = &first.summary.stats["endpoint"];
    assert_eq!((&bill["requests"], &bill["cached"], &bill["input_tokens"]), (&json!(6), &json!(0), &json!(600)));
    // 600 tokens at 1 and 60 at 10 a million.
    assert!((bill["cost"].as_f64().unwrap() - 0.0012).abs() < 1e-12);
    let second = run_in(kept.path(), &text, &path).unwrap();
    assert_eq!((server.requests(), &second.summary.stats["endpoint"]["cached"]), (6, &json!(6)));
    assert_eq!(first.bytes(TRAIN_FILE), second.bytes(TRAIN_FILE));
    let (_more, longer) = train(&["a", "b", "c", "d"]);
    run_in(kept.path(), &text, &longer).unwrap();
    assert_eq!(server.requests(), 8);
}

#[test]
fn failures_are_retried_and_a_run_goes_on_where_it_stopped() {
    let healthy = Arc::new(AtomicUsize::new(0));
    let well = healthy.clone();
    let server = Server::start(move |number, body| match asked(body).as_str() {
        "b" if well.load(Ordering::SeqCst) == 0 => (503, String::new(), "busy".into()),
        _ if number == 0 => (429, "Retry-After: 0\r\n".into(), "slow down".into()),
        text => fine(&format!("{text}!")),
    });
    let kept = tempfile::tempdir().unwrap();
    let (_dir, path) = train(&["a", "b"]);
    let text = section(&server, r#", "retries": 1, "parallel": 1"#);
    let error = run_in(kept.path(), &text, &path).err().unwrap().to_string();
    assert!(error.contains("status 503: busy, 2 times in a row; what was answered is kept"), "{error}");
    let before = server.requests();
    healthy.store(1, Ordering::SeqCst);
    let done = run_in(kept.path(), &text, &path).unwrap();
    assert_eq!((server.requests() - before, &done.summary.stats["endpoint"]["cached"]), (1, &json!(1)));
    assert_eq!(examples(&done)[3].texts()[0], "b!");
}

#[test]
fn a_refused_key_stops_at_once_and_is_quoted_nowhere() {
    // The one variable that every test process has; its value stands for the key.
    let key = std::env::var("PATH").unwrap();
    let server = Server::start(move |_, _| (401, String::new(), format!("bad key {key}")));
    let kept = tempfile::tempdir().unwrap();
    let (_dir, path) = train(&["a"]);
    let error = run_in(kept.path(), &section(&server, r#", "api_key_env": "PATH""#), &path).err().unwrap().to_string();
    let key = std::env::var("PATH").unwrap();
    assert!(error.contains("401") && error.contains("it comes from PATH") && !error.contains(key.trim()), "{error}");
    let seen = server.seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].1.clone()), (1, format!("Bearer {}", key.trim())));
    assert!(!seen[0].0.to_string().contains(key.trim()));
    drop(seen);
    let unset = section(&server, r#", "api_key_env": "NO_SUCH_VARIABLE_HERE""#);
    assert!(run_in(kept.path(), &unset, &path).err().unwrap().to_string().contains("NO_SUCH_VARIABLE_HERE is not set"));
}

#[test]
fn new_rows_and_conversations_are_read_from_json_and_the_rest_is_counted() {
    let server = Server::start(|_, body| match asked(body) {
        text if text.contains("\"request\"") && body["messages"][0]["content"].as_str().unwrap().contains("odd") => {
            fine("no idea")
        }
        text if text.contains("\"request\"") => fine("Sure: {\"request\": \"new\", \"answer\": \"fresh\"} Bye"),
        _ => fine(r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]"#),
    });
    let kept = tempfile::tempdir().unwrap();
    let (_dir, path) = train(&["what is it", "an odd one"]);
    let done = run_in(kept.path(), &section(&server, r#", "task": "self_instruct""#), &path).unwrap();
    let made = examples(&done);
    assert_eq!((made.len(), &made[1]), (3, &chat(&[("user", "new"), ("assistant", "fresh")])));
    assert_eq!(done.stat("answers_unusable"), 1);
    assert_eq!(done.summary.stats["samples_unusable"][0]["why"], "no JSON object in the answer");
    let done = run_in(kept.path(), &section(&server, r#", "task": "dialogue", "rows": 1"#), &path).unwrap();
    assert_eq!(done.stat("added_endpoint"), 1);
    assert!(examples(&done).contains(&chat(&[("user", "q"), ("assistant", "r")])));
}

#[test]
fn rate_and_cost_are_limited() {
    let server = Server::start(|_, body| fine(&format!("{}?", asked(body))));
    let kept = tempfile::tempdir().unwrap();
    let (_dir, path) = train(&["a", "b", "c", "d"]);
    let began = Instant::now();
    run_in(kept.path(), &section(&server, r#", "requests_per_minute": 600"#), &path).unwrap();
    // Four requests a tenth of a second apart.
    assert!(began.elapsed().as_millis() >= 300, "{:?}", began.elapsed());
    let fresh = tempfile::tempdir().unwrap();
    let dear = section(&server, r#", "output_price": 100000, "max_cost": 1.5, "parallel": 1"#);
    let error = run_in(fresh.path(), &dear, &path).err().unwrap().to_string();
    assert!(error.contains("2.0000 of augment.endpoint.max_cost (1.5) is spent"), "{error}");
}
