#![allow(clippy::unwrap_used)]
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::*;

fn pair(number: usize, a: &str, b: &str) -> Pair {
    let row_id = format!("{number:032x}");
    Pair { row_id, request: format!("Question {number}?"), reference: String::new(), a: a.into(), b: b.into() }
}

/// Answers each chat request by what `judge` makes of the two answers in it.
fn server(requests: usize, judge: fn(&str, &str) -> String) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let work = std::thread::spawn(move || {
        for _ in 0..requests {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let user = body["messages"][1]["content"].as_str().unwrap();
            assert!(!user.contains("model") && body["temperature"] == 0.0, "{user}");
            let (_, answers) = user.split_once("Answer 1:\n").unwrap();
            let (first, second) = answers.split_once("\n\nAnswer 2:\n").unwrap();
            let answer = json!({"choices": [{"message": {"content": judge(first, second)}}], "usage": {}}).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + &answer).as_bytes()).unwrap();
        }
    });
    (url, work)
}

fn endpoint(url: &str) -> Endpoint {
    let keys = json!({"url": url, "model": "judge"});
    Endpoint::of_keys(keys.as_object().unwrap().clone(), "--judge ").unwrap()
}

fn judged(pairs: &[Pair], asked: usize, by: fn(&str, &str) -> String) -> Result<Tally, TaskError> {
    let (url, work) = server(asked, by);
    let kept = tempfile::tempdir().unwrap();
    let done = judge(pairs, &endpoint(&url), kept.path(), &Cancel::default(), |_, _| {});
    work.join().unwrap();
    // A second time nothing is asked: the server is gone.
    if let Ok((tally, bill)) = &done {
        let (again, free) = judge(pairs, &endpoint(&url), kept.path(), &Cancel::default(), |_, _| {}).unwrap();
        assert_eq!((&again, free.cached, bill.requests), (tally, asked as u64, asked as u64));
    }
    done.map(|(tally, _)| tally)
}

#[test]
fn the_better_answer_wins_wherever_it_stands() {
    let mut pairs: Vec<Pair> = (0..12).map(|i| pair(i, "bad", "good")).collect();
    pairs.extend((12..15).map(|i| pair(i, "good", "bad")));
    pairs.push(pair(15, "alike", "alike"));
    assert!(pairs.iter().any(Pair::is_turned) && !pairs.iter().all(Pair::is_turned));
    let by = |first: &str, _: &str| format!("Reason.\n**Verdict: {}**", if first == "good" { 1 } else { 2 });
    let tally = judged(&pairs, 30, by).unwrap();
    assert_eq!((tally.rows, tally.a_wins, tally.b_wins, tally.ties, tally.same), (16, 3, 12, 1, 1));
    assert_eq!((tally.order_decided, tally.unclear), (0, 0));
    assert_eq!(tally.b_win_rate, Some(12.5 / 16.0));
    let [low, high] = tally.interval.unwrap();
    assert!(low > 0.5 && high < 1.0, "{low} {high}");
}

#[test]
fn a_judge_that_likes_the_first_place_decides_nothing() {
    let pairs: Vec<Pair> = (0..6).map(|i| pair(i, "bad", "good")).collect();
    let tally = judged(&pairs, 12, |_, _| "VERDICT: 1".to_string()).unwrap();
    assert_eq!((tally.a_wins, tally.b_wins, tally.ties, tally.order_decided), (0, 0, 6, 6));
    assert_eq!(tally.b_win_rate, Some(0.5));
}

#[test]
fn a_judge_without_verdicts_is_an_error_and_a_single_lapse_a_tie() {
    let pairs: Vec<Pair> = (0..3).map(|i| pair(i, "bad", if i == 0 { "strange" } else { "good" })).collect();
    let lapse = |first: &str, second: &str| match [first, second].contains(&"strange") {
        true => "I cannot say.".to_string(),
        false => format!("verdict: {}", if first == "good" { "1" } else { "2" }),
    };
    let tally = judged(&pairs, 6, lapse).unwrap();
    assert_eq!((tally.b_wins, tally.unclear, tally.ties), (2, 1, 1));
    let error = judged(&pairs[..1], 2, lapse).unwrap_err().to_string();
    assert!(error.contains("I cannot say."), "{error}");
}

#[test]
fn a_sheet_is_blind_and_counts_when_it_is_filled_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.csv");
    let pairs: Vec<Pair> =
        (0..8).map(|i| pair(i, "bad, \"quoted\"", if i == 7 { "bad, \"quoted\"" } else { "good\nline" })).collect();
    assert_eq!(write_sheet(&pairs, &path).unwrap(), 7);
    let blank = read_sheet(&pairs, &path).unwrap();
    assert_eq!((blank.open, blank.rows, blank.same), (7, 1, 1));
    let mut reader = csv::Reader::from_path(&path).unwrap();
    let mut filled = csv::Writer::from_path(folder.path().join("filled.csv")).unwrap();
    filled.write_record(COLUMNS).unwrap();
    for (i, record) in reader.records().enumerate() {
        let record = record.unwrap();
        let verdict = if i == 0 {
            "tie"
        } else if &record[3] == "good\nline" {
            "1"
        } else {
            "2"
        };
        filled.write_record(record.iter().take(5).chain([verdict])).unwrap();
    }
    filled.flush().unwrap();
    let tally = read_sheet(&pairs, &folder.path().join("filled.csv")).unwrap();
    assert_eq!((tally.a_wins, tally.b_wins, tally.ties, tally.open), (0, 6, 2, 0));
}

#[test]
fn a_sheet_of_other_rows_answers_or_words_is_refused_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.csv");
    let pairs = [pair(1, "a", "b")];
    let (first, second) = pairs[0].shown();
    let refused = |line: &str| {
        std::fs::write(&path, format!("row_id,first,second,verdict\n{line}\n")).unwrap();
        read_sheet(&pairs, &path).unwrap_err().to_string()
    };
    let row = &pairs[0].row_id;
    assert!(refused(&format!("{row},{first},{second},3")).contains("sheet.csv:2: the verdict is `3`"));
    assert!(refused(&format!("{row},{second},{first},1")).contains("write a new sheet"));
    assert!(refused("ff,a,b,1").contains("row ff is none"));
    assert!(
        refused(&format!("{row},{first},{second},1\n{row},{first},{second},1"))
            .contains(":3: the same row as in line 2")
    );
    std::fs::write(&path, "x,y\n1,2\n").unwrap();
    assert!(read_sheet(&pairs, &path).unwrap_err().to_string().contains("they are x, y"));
}
