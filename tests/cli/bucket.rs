//! A server that speaks S3, started for one test and gone with it: moto, which `make test` installs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The server looks for a signature, and does not check it.
const SIGNED: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none";

/// A running server with one bucket, `shared`.
pub struct Bucket {
    child: Child,
    port: u16,
}

impl Bucket {
    pub fn start() -> Bucket {
        let home = std::env::var_os("PIPE_HOME").map(PathBuf::from);
        let home = home.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache/pipe"));
        let serve = home.join("bucket-5.2.5/serve");
        assert!(serve.exists(), "there is no {}: install it with `python3 scripts/setup.py bucket`", serve.display());
        let mut command = Command::new(serve);
        command.args(["-H", "127.0.0.1", "-p", "0"]).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = |line: &str| line.split_once("http://127.0.0.1:")?.1.trim().parse::<u16>().ok();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| port(&line)).expect("the server starts");
        // It logs every request, and would stop when nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        let bucket = Bucket { child, port };
        assert_eq!(bucket.send("PUT", "/shared", b"").0, 200);
        bucket
    }

    /// What a program needs to know to use it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        environment(self.port)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        assert_eq!(self.send("PUT", &format!("/shared/{name}"), bytes).0, 200);
    }

    /// An object's bytes.
    pub fn get(&self, name: &str) -> Vec<u8> {
        let (status, bytes) = self.send("GET", &format!("/shared/{name}"), b"");
        assert_eq!(status, 200, "{name}");
        bytes
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = format!("127.0.0.1:{}", self.port);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {SIGNED}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end))
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The variables that lead to a server on this port.
pub fn environment(port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_string()),
        ("AWS_ACCESS_KEY_ID", "test".to_string()),
        ("AWS_SECRET_ACCESS_KEY", "not-a-secret-of-anybody".to_string()),
        ("AWS_REGION", "us-east-1".to_string()),
    ]
}
