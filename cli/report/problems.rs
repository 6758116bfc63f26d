//! Problems with the place they are about: the source line, a caret under the column, and what to write instead.

use std::collections::HashMap;

use pipe_engine::problem::{Problem, Severity};

use super::format::plural;
use super::style::{BAD, BOLD, DIM, GOOD, NOTE, WARN, paint};

/// All problems, errors first, as they appear in the files.
pub fn render(problems: &[Problem]) -> String {
    let mut sources = Sources::default();
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| (problem.severity, problem.file.clone(), problem.line, problem.column));
    let blocks: Vec<String> = sorted.into_iter().map(|problem| block(problem, &mut sources)).collect();
    blocks.join("\n")
}

/// `2 errors, 1 warning`, or nothing.
pub fn tally(problems: &[Problem]) -> String {
    let of = |severity| problems.iter().filter(|problem| problem.severity == severity).count() as u64;
    let parts = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Notice, "notice")];
    let told = parts.into_iter().filter(|&(severity, _)| of(severity) > 0);
    told.map(|(severity, name)| plural(of(severity), name)).collect::<Vec<_>>().join(", ")
}

/// Files read once however many problems they have.
#[derive(Default)]
struct Sources(HashMap<String, Vec<String>>);

impl Sources {
    fn line(&mut self, file: &str, number: usize) -> Option<String> {
        let lines = self.0.entry(file.to_string()).or_insert_with(|| {
            let text =
                std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            text.trim_start_matches('\u{feff}').lines().map(str::to_string).collect()
        });
        lines.get(number.checked_sub(1)?).cloned()
    }
}

fn block(problem: &Problem, sources: &mut Sources) -> String {
    let (style, word) = match problem.severity {
        Severity::Error => (BAD, "error"),
        Severity::Warning => (WARN, "warning"),
        Severity::Notice => (NOTE, "notice"),
    };
    let mut out = format!(
        "{}{} {}\n",
        paint(style, word),
        paint(DIM, format!("[{}]:", problem.code)),
        paint(BOLD, &problem.message)
    );
    let gutter = problem.line.map_or(1, |line| line.to_string().len());
    let pad = " ".repeat(gutter);
    out.push_str(&format!("{pad}{} {}\n", paint(NOTE, "-->"), place(problem)));
    if let Some((line, text)) = problem.line.and_then(|line| Some((line, sources.line(&problem.file, line)?))) {
        let column = problem.column.unwrap_or(1);
        out.push_str(&format!("{} {}\n", paint(NOTE, format!("{line} |")), text.replace('\t', " ")));
        let caret = " ".repeat(column.saturating_sub(1));
        out.push_str(&format!("{} {caret}{}\n", paint(NOTE, format!("{pad} |")), paint(style, carets(&text, column))));
    }
    if let Some(suggestion) = &problem.suggestion {
        out.push_str(&format!("{pad} {} {}\n", paint(GOOD, "help:"), suggestion));
    }
    out
}

fn place(problem: &Problem) -> String {
    let mut place = problem.file.clone();
    if let Some(line) = problem.line {
        place.push_str(&format!(":{line}"));
        if let Some(column) = problem.column {
            place.push_str(&format!(":{column}"));
        }
    }
    match &problem.key {
        Some(key) if !key.is_empty() => format!("{place} {}", paint(DIM, format!("({key})"))),
        _ => place,
    }
}

/// One caret per character of the word at `column`.
fn carets(line: &str, column: usize) -> String {
    let rest: Vec<char> = line.chars().skip(column.saturating_sub(1)).collect();
    // A colon within a word, as in `alpaca:chat`, does not end it.
    let ends = |(i, c): (usize, &char)| match c {
        ':' => rest.get(i + 1).is_none_or(|next| next.is_whitespace()),
        c => c.is_whitespace() || matches!(c, ',' | '#'),
    };
    let word = rest.iter().enumerate().position(ends).unwrap_or(rest.len());
    "^".repeat(word.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carets_cover_the_word() {
        assert_eq!(carets("learning_rat: 1", 1), "^^^^^^^^^^^^");
        assert_eq!(carets("a: [x, y]", 8), "^^");
        assert_eq!(carets("type: alpaca:chta # so", 7), "^^^^^^^^^^^");
        assert_eq!(carets("datasets:", 1), "^^^^^^^^");
        assert_eq!(carets("", 5), "^");
    }

    #[test]
    fn tallies_count_each_kind() {
        let problem = |severity| Problem {
            severity,
            code: "x",
            message: String::new(),
            file: String::new(),
            line: None,
            column: None,
            key: None,
            suggestion: None,
        };
        let problems = [problem(Severity::Warning), problem(Severity::Error), problem(Severity::Error)];
        assert_eq!(tally(&problems), "2 errors, 1 warning");
    }
}
