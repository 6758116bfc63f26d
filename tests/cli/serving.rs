//! `pipe serve` over HTTP and `pipe chat` on a pipe, with a tiny model. Needs the worker beside the binary.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{Project, address_of, copy_folder, fixture};

/// The tiny model, a PEFT adapter of it, and the same adapter with twice the strength.
fn project() -> Project {
    let project = Project::with_worker();
    copy_folder(&fixture("generation/adapter"), &project.path("work/calm/adapter"));
    copy_folder(&fixture("generation/adapter"), &project.path("work/strong"));
    project.edit("strong/adapter_config.json", "\"lora_alpha\": 8", "\"lora_alpha\": 16");
    project
}

/// A running server.
struct Server {
    child: Child,
    address: String,
    said: std::thread::JoinHandle<String>,
}

impl Server {
    fn start(project: &Project, args: &[&str], environment: &[(&str, &str)]) -> Server {
        let args = [&["serve", "model", "--port", "0", "--dtype", "float32"], args].concat();
        let mut child = project.start_serving(&args, environment);
        let (address, said, lines) = address_of(&mut child);
        let said = std::thread::spawn(move || lines.map_while(Result::ok).fold(said, |all, line| all + "\n" + &line));
        Server { child, address, said }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut answer = agent().get(format!("http://{}{path}", self.address)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.post_with(path, body.to_string().as_bytes(), &[("content-type", "application/json")])
    }

    fn post_with(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = agent().post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.send(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// The answer of a chat request that succeeds.
    fn chat(&self, body: &Value) -> Value {
        let (status, text) = self.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The chunks of a chat request that streams; the mark at the end is checked and left out.
    fn stream(&self, body: &Value) -> Vec<Value> {
        let (status, text) = self.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text.split("\n\n").filter(|event| event.starts_with("data: ")).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        events.iter().map(|event| serde_json::from_str(&event[6..]).unwrap()).collect()
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
        line.split_once(' ').unwrap().1.parse().unwrap()
    }

    /// Asks it to stop; its exit code and everything it said.
    fn stop(mut self) -> (Option<i32>, String) {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        let code = self.child.wait().unwrap().code();
        (code, self.said.join().unwrap())
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

fn asked(model: &str, text: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": text }],
        "temperature": 0,
        "max_tokens": 24,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A greedy chat of so many tokens at most.
fn chat(most: &str) -> Vec<&str> {
    "chat model --dtype float32 --temperature 0 --max-new-tokens".split(' ').chain([most]).collect()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn joined(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

fn error(answer: &(u16, String)) -> (u16, Value) {
    let body: Value = serde_json::from_str(&answer.1).unwrap_or_else(|_| panic!("{}", answer.1));
    for key in ["message", "type", "param", "code"] {
        assert!(body["error"].get(key).is_some(), "{body}");
    }
    (answer.0, body["error"].clone())
}

#[test]
fn a_served_model_answers_as_openais_clients_expect() {
    let project = project();
    let server = Server::start(&project, &["--adapter", "calm/adapter", "--adapter", "strong"], &[]);
    assert_eq!(server.get("/health").0, 200);
    let listed: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
    let names: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["model", "calm", "strong"]);
    assert_eq!(server.get("/v1/models/strong").0, 200);

    // The three answer differently, and as `pipe chat` does.
    let answers: Vec<Value> = names.iter().map(|name| server.chat(&asked(name, "Please list", json!({})))).collect();
    assert!(text(&answers[0]) != text(&answers[1]) && text(&answers[1]) != text(&answers[2]));
    let command = chat("24");
    for (adapter, answer) in [(None, &answers[0]), (Some("calm/adapter"), &answers[1]), (Some("strong"), &answers[2])] {
        let adapter: Vec<&str> = adapter.map_or(vec![], |folder| vec!["--adapter", folder]);
        let said = project.pipe(&[&command[..], &["--prompt", "Please list"], &adapter].concat());
        assert_eq!((said.code, said.stdout.as_str()), (0, format!("{}\n", text(answer)).as_str()), "{}", said.stderr);
        assert_eq!(said.stderr, "", "--prompt prints the answer only");
    }
    let usage = &answers[0]["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );

    let page = server.get("/");
    assert!(page.0 == 200 && page.1.contains("page.js") && !page.1.contains("://"), "{}", page.1);
    assert!(server.metric("pipe_answer_tokens_total") > 50.0);
    assert_eq!(server.metric("pipe_requests_open"), 0.0);
    let (code, said) = server.stop();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn streams_limits_stops_and_seeds_are_openais() {
    let project = project();
    let server = Server::start(&project, &[], &[]);
    let answer = server.chat(&asked("model", "Please list", json!({})));
    let (whole, usage) = (text(&answer), &answer["usage"]);

    // A stream says the same in pieces.
    let streaming = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = server.stream(&asked("model", "Please list", streaming));
    assert_eq!(joined(&chunks), whole);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let last = &chunks[chunks.len() - 2..];
    assert_eq!(last[0]["choices"][0]["finish_reason"], answer["choices"][0]["finish_reason"]);
    assert_eq!((&last[1]["usage"], &last[1]["choices"]), (usage, &json!([])));

    // Limits and stop texts.
    let short = server.chat(&asked("model", "Please list", json!({ "max_completion_tokens": 3 })));
    assert_eq!(
        (short["usage"]["completion_tokens"].as_u64(), short["choices"][0]["finish_reason"].as_str()),
        (Some(3), Some("length"))
    );
    assert!(whole.starts_with(text(&short)));
    let middle = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[middle..].chars().take(3).collect();
    let stopped = server.chat(&asked("model", "Please list", json!({ "stop": [stop] })));
    assert_eq!(text(&stopped), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    // A draw depends on its seed alone.
    let drawn = |seed: u64| {
        text(&server.chat(&asked("model", "Please list", json!({ "temperature": 1, "seed": seed })))).to_string()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));

    let (status, body) = server.post(
        "/v1/completions",
        &json!({ "model": "model", "prompt": "Please list", "max_tokens": 4, "temperature": 0 }),
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &body["object"], &body["usage"]["completion_tokens"]),
        (200, &json!("text_completion"), &json!(4))
    );

    let (code, said) = server.stop();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_a_server_does_not_do_it_refuses_by_name() {
    let project = project();
    let key = "correct-horse-battery";
    let limits = ["--max-body", "4000", "--max-tokens", "8"];
    let server = Server::start(&project, &limits, &[("PIPE_API_KEY", key)]);
    let bearer = format!("Bearer {key}");
    let json_type = ("content-type", "application/json");
    let send = |body: &[u8]| server.post_with("/v1/chat/completions", body, &[json_type, ("authorization", &bearer)]);
    let of = |more: Value| send(asked("model", "x", more).to_string().as_bytes());

    assert_eq!(error(&server.post("/v1/chat/completions", &asked("model", "x", json!({})))).0, 401);
    assert_eq!(error(&server.get("/v1/models")).0, 401);
    let (status, why) =
        error(&server.post_with("/v1/chat/completions", b"{}", &[json_type, ("authorization", "Bearer wrong")]));
    assert_eq!((status, &why["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(server.get("/health").0, 200, "whoever watches needs no key");

    let long = of(json!({ "max_tokens": 500 }));
    let long: Value = serde_json::from_str(&long.1).unwrap();
    assert!(long["usage"]["completion_tokens"].as_u64().unwrap() <= 8, "{long}");

    for (more, param) in [
        (json!({ "n": 2 }), "n"),
        (json!({ "logprobs": true }), "logprobs"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "colour": "blue" }), "colour"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages[0].content[0]"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "f" } }] }), "tools"),
        (json!({ "messages": [{ "role": "user", "content": "word ".repeat(600) }] }), "messages"),
    ] {
        let (status, why) = error(&of(more.clone()));
        assert_eq!((status, &why["param"]), (400, &json!(param)), "{more}: {why}");
    }
    let (status, why) = error(&of(json!({ "model": "other" })));
    assert_eq!((status, &why["code"]), (404, &json!("model_not_found")));
    for body in [&b""[..], b"[]", b"{\"model\":", b"\xff\xfe", b"null"] {
        assert_eq!(error(&send(body)).0, 400);
    }
    assert_eq!(error(&send(&vec![b' '; 100_000])).0, 413);
    let form = [("content-type", "text/plain"), ("authorization", bearer.as_str())];
    assert_eq!(error(&server.post_with("/v1/chat/completions", b"{}", &form)).0, 415);
    let stranger = [json_type, ("authorization", bearer.as_str()), ("origin", "http://evil.example")];
    assert_eq!(server.post_with("/v1/chat/completions", b"{}", &stranger).0, 403);
    assert_eq!(error(&server.get("/v2")).0, 404);
    assert_eq!(error(&server.get("/v1/chat/completions")).0, 405);
    let (code, said) = server.stop();
    assert!(code == Some(0) && !said.contains(key), "{said}");
}

#[test]
fn many_at_once_are_answered_as_each_alone_and_who_leaves_frees_a_place() {
    let project = project();
    let server = Server::start(&project, &["--adapter", "strong", "--max-running", "4"], &[]);
    let bodies: Vec<Value> = (0..24)
        .map(|i| {
            let model = if i % 3 == 0 { "strong" } else { "model" };
            asked(
                model,
                &format!("Please list the {i} running container"),
                json!({ "max_tokens": 5 + i, "stream": i % 2 == 0 }),
            )
        })
        .collect();
    let answer = |body: &Value| match body["stream"] == true {
        true => joined(&server.stream(body)),
        false => text(&server.chat(body)).to_string(),
    };
    let alone: Vec<String> = bodies.iter().map(answer).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        // In between, clients that go away without hearing their answer.
        let (server, answer) = (&server, &answer);
        let leavers: Vec<_> = (0..12).map(|i| scope.spawn(move || leave(server, i))).collect();
        let running: Vec<_> = bodies.iter().map(|body| scope.spawn(move || answer(body))).collect();
        leavers.into_iter().for_each(|leaver| leaver.join().unwrap());
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let began = Instant::now();
    while server.metric("pipe_requests_open") > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(5), "somebody's place is still taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.stop().0, Some(0));
}

/// Sends a request and closes the connection, at once or after the first bytes of the answer.
fn leave(server: &Server, number: usize) {
    let body =
        asked("model", "Please list", json!({ "max_tokens": 400, "stream": number.is_multiple_of(2) })).to_string();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    if number % 4 < 2 {
        let _ = stream.read(&mut [0; 64]);
    }
}

#[test]
fn the_turns_of_a_conversation_are_read_once() {
    let project = project();
    let server = Server::start(&project, &[], &[]);
    let question = "Please list every container that is running on this machine now";
    // The worker tells of its cache after the end of an answer.
    let chat = |body: &Value| {
        let answer = server.chat(body);
        let began = Instant::now();
        while server.metric("pipe_cache_blocks_used") > 0.0 {
            assert!(began.elapsed() < Duration::from_secs(5), "blocks are still held");
            std::thread::sleep(Duration::from_millis(20));
        }
        answer
    };
    let first = chat(&asked("model", question, json!({})));
    let free = server.metric("pipe_cache_blocks_free");
    assert_eq!(server.metric("pipe_prompt_tokens_cached_total"), 0.0);
    let again = chat(&asked("model", question, json!({})));
    assert_eq!(text(&first), text(&again));
    let once = server.metric("pipe_prompt_tokens_cached_total");
    let prompt = first["usage"]["prompt_tokens"].as_f64().unwrap();
    assert!(prompt > 16.0 && once == ((prompt - 1.0) / 16.0).floor() * 16.0, "{once} of {prompt} tokens");
    let turns = json!({ "messages": [
        { "role": "user", "content": question },
        { "role": "assistant", "content": text(&first) },
        { "role": "user", "content": "And the stopped ones?" },
    ] });
    chat(&asked("model", "", turns));
    assert!(server.metric("pipe_prompt_tokens_cached_total") > once);
    assert_eq!(server.metric("pipe_cache_blocks_free"), free, "what is kept can be had");
    assert_eq!(server.metric("pipe_preemptions_total"), 0.0);
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_worker_that_dies_is_started_again() {
    let project = project();
    let server = Server::start(&project, &[], &[]);
    let before = server.chat(&asked("model", "Please list", json!({})));
    let workers = Command::new("pgrep").args(["-P", &server.child.id().to_string()]).output().unwrap();
    let worker = String::from_utf8(workers.stdout).unwrap();
    Command::new("kill").args(["-ABRT", worker.trim()]).status().unwrap();
    let began = Instant::now();
    let after = loop {
        let (status, body) = server.post("/v1/chat/completions", &asked("model", "Please list", json!({})));
        match status {
            200 => break serde_json::from_str::<Value>(&body).unwrap(),
            _ => assert!(matches!(status, 500 | 503) && began.elapsed() < Duration::from_secs(30), "{status} {body}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(text(&after), text(&before));
    assert_eq!(server.metric("pipe_worker_restarts_total"), 1.0);
    let (code, said) = server.stop();
    assert!(code == Some(0) && said.contains("signal 6"), "{said}");
}

#[test]
fn a_server_that_cannot_serve_says_why() {
    let project = project();
    let says = |args: &[&str], code: i32, word: &str| {
        let said = project.pipe(&[&["serve", "model", "--port", "0"], args].concat());
        assert!(said.code == code && said.stderr.contains(word), "{args:?}: {} {}", said.code, said.stderr);
    };
    says(&["--adapter", "nothing"], 2, "nothing");
    says(&["--adapter", "calm"], 2, "adapter_config.json");
    says(&["--adapter", "model=strong"], 2, "two models are called `model`");
    says(&["--api-key-env", "UNSET"], 2, "UNSET");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let said = project.pipe(&["serve", "model", "--port", &taken.local_addr().unwrap().port().to_string()]);
    assert!(said.code == 3 && said.stderr.contains("--port 0"), "{}", said.stderr);
}

#[test]
fn a_chat_obeys_its_commands() {
    let project = project();
    let mut child =
        project.start_hearing(&["chat", "model", "--dtype", "float32", "--temperature", "0", "--max-new-tokens", "12"]);
    let lines = "Please list\n/adapter strong\n/reset\nPlease list\n/adapter off\n/reset\nPlease list\n/system Be short\n/reset\nPlease list\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let alone = |args: &[&str]| project.pipe(&[&chat("12")[..], &["--prompt", "Please list"], args].concat()).stdout;
    let expected = [alone(&[]), alone(&["--adapter", "strong"]), alone(&[]), alone(&["--system", "Be short"])];
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected.concat());
    assert!(expected[0] != expected[1] && expected[0] != expected[3], "{expected:?}");
    let mut child = project.start_hearing(&chat("12"));
    let lines = "Please list\n/adapter strong\n/reset\nPlease list\n/adapter off\n/reset\nPlease list\n/system Be short\n/reset\nPlease list\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let alone = |args: &[&str]| {
        let command = [
            "chat",
            "model",
            "--dtype",
            "float32",
            "--temperature",
            "0",
            "--max-new-tokens",
            "12",
            "--prompt",
            "Please list",
        ];
        project.pipe(&[&command[..], args].concat()).stdout
    };
    let expected = [alone(&[]), alone(&["--adapter", "strong"]), alone(&[]), alone(&["--system", "Be short"])];
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected.concat());
    assert!(expected[0] != expected[1] && expected[0] != expected[3], "{expected:?}");
    let mut child = project.start_hearing(&["chat", "model"]);
    child.stdin.take().unwrap().write_all(b"/nonsense\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(2));
}

impl Project {
    fn start_serving(&self, args: &[&str], environment: &[(&str, &str)]) -> Child {
        let mut command = self.command("work", args);
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn start_hearing(&self, args: &[&str]) -> Child {
        let mut command = self.command("work", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}
