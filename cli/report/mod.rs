//! The only printer. Results go to standard output, everything about the work to standard error.
//!
//! Nothing here decides anything: it is given values and makes text of them. Colours are written always and stripped by
//! `anstream` where the output is no terminal or NO_COLOR is set.

pub mod agreement;
pub mod counts;
pub mod format;
pub mod graph;
pub mod lines;
pub mod model;
pub mod ndjson;
pub mod plain;
pub mod plan;
pub mod problems;
pub mod progress;
pub mod scores;
pub mod style;
pub mod summary;
pub mod table;
pub mod tokens;

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::failure::{Failure, Told};
use style::{BAD, GOOD, WARN, paint};

/// Prints text to standard output, ending in one newline.
pub fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    // A closed pipe (`| head`) is the reader's choice, not a failure.
    let _ = write!(out, "{text}{newline}").and_then(|()| out.flush());
}

/// Prints exactly these bytes to standard output.
pub fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Prints one JSON object to standard output.
pub fn json(value: &impl Serialize) {
    let mut text =
        serde_json::to_vec(value).unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()).into_bytes());
    text.push(b'\n');
    bytes(&text);
}

/// Prints lines to standard error; on a terminal, those wider than the window break between words.
pub fn error_lines(lines: &[String]) {
    let width = if std::io::stderr().is_terminal() { stderr_width() } else { usize::MAX };
    let mut err = anstream::stderr().lock();
    for line in lines.iter().flat_map(|text| text.split('\n')) {
        for part in format::wrap(line, width) {
            let _ = writeln!(err, "{part}");
        }
    }
}

/// Prints a remark about the work to standard error.
pub fn note(text: &str) {
    error_lines(&[text.to_string()]);
}

/// Prints a warning to standard error.
pub fn warning(text: &str) {
    note(&format!("{} {text}", paint(WARN, "warning:")));
}

/// Says what a failed command still has to say.
pub fn failure(failure: &Failure) {
    match failure.what() {
        Told::Already => {}
        Told::Usage(error) => {
            let _ = error.print();
        }
        Told::Problems(problems) => {
            error_lines(&[problems::render(problems)]);
            error_lines(&[format!("{} {}", paint(BAD, "invalid:"), problems::tally(problems))]);
        }
        Told::Message { what, hint } => {
            error_lines(&[format!("{} {what}", paint(BAD, "error:"))]);
            error_lines(&hint.iter().map(|hint| format!(" {} {hint}", paint(GOOD, "help:"))).collect::<Vec<_>>());
        }
    }
}

/// One line in place of the panic text: a panic is always this program's fault.
pub fn panic(message: &str, place: &str) {
    let lines = [format!(
        "{} pipe stopped at a mistake of its own ({message}, {place}); finished stages are kept. \
         Please report this line with what you ran.",
        paint(BAD, "internal error:")
    )];
    error_lines(&lines);
}

/// Columns of standard output: COLUMNS, else the terminal's, else 100.
pub fn width() -> usize {
    columns().or_else(|| size_of(terminal_size::terminal_size())).unwrap_or(100)
}

/// Columns of the terminal behind standard error.
pub fn stderr_width() -> usize {
    columns().or_else(|| size_of(terminal_size::terminal_size_of(std::io::stderr()))).unwrap_or(80)
}

/// Rows of the terminal behind standard error.
pub fn stderr_height() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(24, |(_, height)| usize::from(height.0))
}

/// Whether a moving display makes sense on standard error.
pub fn is_live() -> bool {
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !dumb && !is_set("CI")
}

/// `line` within the window, with or without its colours, as standard error takes it.
fn for_stderr(line: &str) -> String {
    let line = format::wrap(line, stderr_width().saturating_sub(1)).join("\n");
    match anstream::AutoStream::choice(&std::io::stderr()) {
        anstream::ColorChoice::Never => anstream::adapter::strip_str(&line).to_string(),
        _ => line,
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn columns() -> Option<usize> {
    std::env::var("COLUMNS").ok()?.parse().ok().filter(|&columns| columns >= 10)
}

fn size_of(size: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    size.map(|(width, _)| usize::from(width.0)).filter(|&width| width >= 10)
}
