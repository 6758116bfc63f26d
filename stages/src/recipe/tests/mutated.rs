//! Shipped recipes, cut up and put together wrongly: whatever comes out is read or refused with places that exist.
//!
//! A thousand by default. `PIPE_FUZZ_SECONDS=3600 cargo test --release -p pipe-stages mutated -- --nocapture` goes on
//! for an hour with new seeds, and says how many were read and which took longest.

#![allow(clippy::print_stderr)]

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::*;
use crate::compile::{Machine, compile};
use crate::worker::Worker;

/// Pieces of YAML, of recipes and of neither.
const PIECES: &[&str] = &[
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "\"",
    "'",
    "#",
    "|",
    ">-",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!binary ",
    "? ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "\t",
    "\r\n",
    "\u{feff}",
    "\u{2028}",
    "\0",
    "é",
    "  ",
    "\n",
    "${x}",
    "${",
    "~",
    "null",
    "yes",
    "off",
    "on",
    "0x1F",
    "0o17",
    "017",
    "1_000",
    "1e999",
    "-1e-999",
    ".nan",
    "-.inf",
    "1:30",
    "2001-01-01",
    "99999999999999999999",
    "-0",
    "1e-4",
    "true",
    "auto",
    "x-note: 1\n",
    "extends: r.yml\n",
    "extends: [r.yml, none.yml]\n",
    "vars: {x: 1}\n",
    "base_model: ",
    "datasets:",
    "  - path: ",
    "adapter: ",
    "qlora",
    "lora_r: 0\n",
    "clean: ",
    "split: {val: 2}\n",
    "mix: ",
    "eval: true\n",
    "quantize: ",
    "augment: ",
];

/// SplitMix64: equal on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

fn shipped() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    // What YAML has that they do not use.
    let anchors =
        "x-a: &a {k: [1, 'two', \"three\"]}\nclean: {<<: *a, dedup: exact}\nmerge: true\nvars: {a: 1}\nseed: ${a}\n";
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    texts.chain([format!("{BASE}{anchors}")]).collect()
}

/// One change of a text. Cuts fall between characters.
fn mutate(text: &mut String, random: &mut Random, all: &[String]) {
    let boundary = |text: &str, at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_string).collect();
    let (line, other) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(10) {
        0 | 1 => {
            let at = random.below(text.len() + 1);
            text.insert_str(boundary(text, at), random.of(PIECES));
            return;
        }
        2 => {
            let from = random.below(text.len() + 1);
            let (from, to) = (boundary(text, from), from + random.below(12));
            let to = boundary(text, to.min(text.len())).max(from);
            text.replace_range(from..to, "");
            return;
        }
        3 if !lines.is_empty() => drop(lines.remove(line)),
        4 if !lines.is_empty() => lines.insert(line, lines[other].clone()),
        5 if lines.len() > 1 => lines.swap(line, other),
        6 if !lines.is_empty() => lines[line].insert_str(0, random.of(&[" ", "  ", "      ", "- ", "\t", "# "])),
        7 if !lines.is_empty() => {
            // Another value for the line's key.
            let key = lines[line].split(':').next().unwrap_or_default().to_string();
            lines[line] = format!("{key}: {}\n", random.of(PIECES));
        }
        8 => {
            let theirs: Vec<&str> = all[random.below(all.len())].split_inclusive('\n').collect();
            let from = random.below(theirs.len());
            lines.extend(theirs[from..].iter().take(1 + random.below(6)).map(|line| line.to_string()));
        }
        _ => {
            let again = random.of(PIECES).repeat(1 + random.below(300));
            lines.insert(line.min(lines.len()), again);
        }
    }
    *text = lines.concat();
}

/// Reads one recipe as `pipe plan` would, and holds what is said of it against its text.
fn read(text: &str) {
    let loaded = load_text(text, &[]);
    let lines = text.split(['\n', '\r']).count();
    let errors = loaded.problems.iter().filter(|problem| problem.is_error()).count();
    assert_eq!(loaded.recipe.is_some(), errors == 0);
    for problem in &loaded.problems {
        assert!(!problem.message.is_empty() && !problem.message.contains("panicked"), "{problem:?}");
        assert!(problem.code != "bad-value" || !problem.message.contains("its own schema"), "{problem:?}");
        if let (Some(line), true) = (problem.line, problem.file.ends_with("r.yml")) {
            assert!((1..=lines + 1).contains(&line), "{problem:?} in {lines} lines");
            assert!(problem.column.is_some_and(|column| column > 0), "{problem:?}");
        }
    }
    if let Some(recipe) = &loaded.recipe {
        let machine = Machine { worker: Worker::default(), bf16: false, bf16_adapters: false };
        let nodes = compile(recipe, &loaded.project, &machine);
        if let Ok(nodes) = nodes {
            pipe_engine::plan::plan(nodes).unwrap();
        }
    }
}

fn case(seed: u64, all: &[String]) -> (String, Duration) {
    let mut random = Random(seed);
    let mut text = all[random.below(all.len())].clone();
    for _ in 0..=random.below(6) {
        mutate(&mut text, &mut random, all);
    }
    let started = Instant::now();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read(&text))) {
        eprintln!("seed {seed}, the recipe:\n{text}");
        std::panic::resume_unwind(panic);
    }
    (text, started.elapsed())
}

#[test]
fn whatever_is_written_is_read_or_refused() {
    let all = shipped();
    let Some(seconds) = env::var("PIPE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()) else {
        (0..1000).for_each(|seed| drop(case(seed, &all)));
        return;
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = u64::from(std::process::id()) << 32;
    let (mut count, mut longest) = (0, (String::new(), Duration::ZERO));
    while Instant::now() < end {
        let (text, took) = case(first + count, &all);
        count += 1;
        if took > longest.1 {
            longest = (text, took);
        }
    }
    eprintln!("{count} recipes; the longest took {:?}, of {} bytes", longest.1, longest.0.len());
}
