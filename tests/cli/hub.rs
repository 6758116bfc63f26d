//! A hub of our own, as far as fetching asks for one: listings, files at a commit, a redirect to another host, and mishaps.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

/// A server on a port of this machine, until the test ends.
pub struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    /// `datasets/ORG/NAME` or `models/ORG/NAME`, and what branches mean there.
    branches: HashMap<String, HashMap<String, String>>,
    /// Files by repository and commit.
    files: HashMap<(String, String), BTreeMap<String, Vec<u8>>>,
    pub seen: Vec<Seen>,
    /// Whoever asks must bring it.
    pub token: Option<String>,
    /// The next file that is longer breaks off after so many bytes.
    pub cut: Option<usize>,
    /// Files come with a byte changed.
    pub garbled: bool,
}

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub host: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

impl Hub {
    pub fn start() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let hub = Hub { port, state: state.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, port, &state);
            }
        });
        hub
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![("HF_ENDPOINT", self.address())]
    }

    /// Makes `main` of a repository mean this commit with these files.
    pub fn publish(&self, repository: &str, commit: &str, files: &[(&str, &[u8])]) {
        let mut state = self.state.lock().unwrap();
        let branches = state.branches.entry(repository.to_string()).or_default();
        branches.insert("main".to_string(), commit.to_string());
        branches.insert(commit.to_string(), commit.to_string());
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        state.files.insert((repository.to_string(), commit.to_string()), files);
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What was asked since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

fn answer(mut stream: TcpStream, port: u16, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut seen = Seen { path: first.split(' ').nth(1).unwrap_or_default().to_string(), ..Seen::default() };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_lowercase().as_str() {
            "host" => seen.host = value.trim().to_string(),
            "range" => seen.range = Some(value.trim().to_string()),
            "authorization" => seen.token = Some(value.trim().to_string()),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.seen.push(seen.clone());
    let _ = stream.write_all(&state.respond(&seen, port));
}

impl State {
    fn respond(&mut self, seen: &Seen, port: u16) -> Vec<u8> {
        let path = seen.path.split('?').next().unwrap_or_default().trim_start_matches('/').to_string();
        if let Some(file) = path.strip_prefix("cdn/") {
            let (key, name) = file.split_once("/-/").unwrap();
            let (repository, commit) = key.rsplit_once('/').unwrap();
            let bytes = self.files[&(repository.to_string(), commit.to_string())][name].clone();
            return self.bytes(bytes, seen);
        }
        if self.token.as_ref().is_some_and(|token| seen.token.as_deref() != Some(&format!("Bearer {token}"))) {
            return head("401 Unauthorized", &[], 0);
        }
        if let Some((repository, revision)) = path.strip_prefix("api/").and_then(|rest| rest.split_once("/revision/")) {
            return self.listing(repository, revision).unwrap_or_else(|| head("404 Not Found", &[], 0));
        }
        self.file(&path, port).unwrap_or_else(|| head("404 Not Found", &[], 0))
    }

    fn listing(&self, repository: &str, revision: &str) -> Option<Vec<u8>> {
        let commit = self.branches.get(repository)?.get(revision)?;
        let sibling = |(name, bytes): (&String, &Vec<u8>)| json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": sha256(bytes), "size": bytes.len()}});
        let files = self.files.get(&(repository.to_string(), commit.clone()))?;
        let text = json!({"sha": commit, "siblings": files.iter().map(sibling).collect::<Vec<_>>()}).to_string();
        Some([head("200 OK", &[], text.len()), text.into_bytes()].concat())
    }

    /// Leads to another host, as the real one does for large files.
    fn file(&self, path: &str, port: u16) -> Option<Vec<u8>> {
        let (repository, rest) = path.split_once("/resolve/")?;
        let (commit, name) = rest.split_once('/')?;
        let repository =
            if path.starts_with("datasets/") { repository.to_string() } else { format!("models/{repository}") };
        self.files.get(&(repository.clone(), commit.to_string()))?.get(name)?;
        let place = format!("Location: http://localhost:{port}/cdn/{repository}/{commit}/-/{name}");
        Some(head("302 Found", &[place], 0))
    }

    fn bytes(&mut self, mut bytes: Vec<u8>, seen: &Seen) -> Vec<u8> {
        if self.garbled {
            bytes[0] ^= 1;
        }
        let range = seen.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = range.unwrap_or(0);
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let part = &bytes[from..];
        let end = self.cut.take_if(|cut| *cut < part.len()).unwrap_or(part.len());
        [&head(status, &[], part.len()), &part[..end]].concat()
    }
}

fn head(status: &str, headers: &[String], length: usize) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    (head + "\r\n").into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
