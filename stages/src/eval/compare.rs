//! Two models' answers to the same rows side by side, and which of each two is the better one.
//!
//! Whoever judges does not learn which model wrote what: which answer comes first is drawn from the row's id. A judging model
//! sees every pair twice, the second time the other way round; an answer wins only where both verdicts name it, so that a
//! liking for the first place (Zheng et al. 2023) makes ties and no winners. Nothing here runs a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pipe_engine::digest::Digest;
use pipe_engine::task::{Cancel, TaskError};
use serde::Serialize;

use super::bootstrap::interval;
use super::score::{Formula, Series};
use crate::augment::endpoint::{Bill, Client, Request};
use crate::augment::section::Endpoint;
use crate::clean::contamination::asked;
use crate::conversation::Example;
use crate::rows::{batches, text_column};

const SYSTEM: &str = "You compare two answers to one request. What counts is, in this order: whether the answer is correct, whether \
                      it does what was asked and no more, and whether it is clear. Length is no merit, and neither is the order in \
                      which the answers are shown. Give your reason in a sentence or two, then end with a line of its own: \
                      VERDICT: 1, VERDICT: 2, or VERDICT: TIE";
/// Samples behind the interval of the win rate.
const RESAMPLES: usize = 1000;
const COLUMNS: [&str; 6] = ["row_id", "request", "reference", "first", "second", "verdict"];

/// One row and what two models answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub row_id: String,
    pub request: String,
    /// The row's own answer.
    pub reference: String,
    pub a: String,
    pub b: String,
}

/// Which answer is the better one, by the place it was shown at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    First,
    Second,
    Tie,
}

/// What came of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Winner {
    A,
    B,
    Neither,
}

/// The count over all pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Rows that both models answered.
    pub rows: u64,
    pub a_wins: u64,
    pub b_wins: u64,
    /// All rows without a winner; the next three say why, where it was not the verdict itself.
    pub ties: u64,
    /// Both answers are the same; nobody was asked.
    pub same: u64,
    /// The verdict changed with the order.
    pub order_decided: u64,
    /// The judge's answer held no verdict.
    pub unclear: u64,
    /// Pairs of a sheet that have no verdict yet; they count nowhere else.
    pub open: u64,
    /// Share of rows that B wins, a tie as half of one.
    pub b_win_rate: Option<f64>,
    /// 95 %, by the bootstrap over rows.
    pub interval: Option<[f64; 2]>,
}

impl Pair {
    /// Whether B's answer is shown first.
    fn is_turned(&self) -> bool {
        Digest::of(self.row_id.as_bytes()).as_bytes()[0] & 1 == 1
    }

    fn shown(&self) -> (&str, &str) {
        if self.is_turned() { (&self.b, &self.a) } else { (&self.a, &self.b) }
    }

    /// Who wins by a verdict on the pair as it is shown.
    fn winner(&self, verdict: Verdict) -> Winner {
        match (verdict, self.is_turned()) {
            (Verdict::Tie, _) => Winner::Neither,
            (Verdict::First, false) | (Verdict::Second, true) => Winner::A,
            (Verdict::First, true) | (Verdict::Second, false) => Winner::B,
        }
    }

    fn question(&self, first: &str, second: &str) -> Request {
        let reference = match self.reference.trim() {
            "" => String::new(),
            text => format!("Reference answer, for orientation:\n{text}\n\n"),
        };
        let user = format!("Request:\n{}\n\n{reference}Answer 1:\n{first}\n\nAnswer 2:\n{second}", self.request);
        Request { system: SYSTEM.to_string(), user, seed: 0 }
    }
}

/// The rows that both of two `answers.parquet` answer, in the order of the first. `rows` are tables of examples, from which
/// the requests come.
pub fn pairs(a: &Path, b: &Path, rows: &[PathBuf]) -> Result<Vec<Pair>, TaskError> {
    let mut others: BTreeMap<String, String> = BTreeMap::new();
    each(b, &["row_id", "answer"], |[row_id, answer]| {
        others.insert(row_id.to_string(), answer.to_string());
        Ok(())
    })?;
    let mut requests: BTreeMap<String, String> = BTreeMap::new();
    for table in rows {
        each(table, &["row_id", "data"], |[row_id, data]| {
            if others.contains_key(row_id) {
                let example = Example::parse(data).map_err(|why| TaskError::Failed(format!("row {row_id}: {why}")))?;
                requests.insert(row_id.to_string(), asked(&example).join("\n\n").trim().to_string());
            }
            Ok(())
        })?;
    }
    let mut pairs = Vec::new();
    each(a, &["row_id", "prompt", "expected", "answer"], |[row_id, prompt, expected, answer]| {
        if let Some(other) = others.get(row_id) {
            let request = requests.get(row_id).filter(|text| !text.is_empty()).cloned();
            pairs.push(Pair {
                row_id: row_id.to_string(),
                request: request.unwrap_or_else(|| prompt.to_string()),
                reference: expected.to_string(),
                a: answer.to_string(),
                b: other.clone(),
            });
        }
        Ok(())
    })?;
    Ok(pairs)
}

/// Has a model judge every pair, both ways round. Answers are kept under `kept`, so that no verdict is paid for twice.
///
/// # Errors
/// The endpoint fails, or none of its answers holds a verdict.
pub fn judge(
    pairs: &[Pair],
    endpoint: &Endpoint,
    kept: &Path,
    cancel: &Cancel,
    tell: impl Fn(usize, usize) + Sync,
) -> Result<(Tally, Bill), TaskError> {
    let client = Client::new(endpoint, kept, cancel)?;
    let different: Vec<&Pair> = pairs.iter().filter(|pair| pair.a != pair.b).collect();
    let both = different.iter().flat_map(|pair| {
        let (first, second) = pair.shown();
        [pair.question(first, second), pair.question(second, first)]
    });
    let questions: Vec<Request> = both.collect();
    let answers = client.ask(&questions, |done| tell(done, questions.len()))?;
    let verdicts: Vec<Option<Verdict>> = answers.iter().map(|answer| verdict_in(&answer.text)).collect();
    if let (Some(answer), true) = (answers.first(), verdicts.iter().all(Option::is_none)) {
        return Err(TaskError::Failed(format!(
            "none of the judge's answers ends with a verdict; the first is `{}`",
            answer.text.trim()
        )));
    }
    let mut tally = Tally { same: (pairs.len() - different.len()) as u64, ..Tally::default() };
    let mut winners = vec![Winner::Neither; pairs.len() - different.len()];
    for (pair, both) in different.into_iter().zip(verdicts.chunks_exact(2)) {
        let [Some(shown), Some(turned)] = both else {
            tally.unclear += 1;
            winners.push(Winner::Neither);
            continue;
        };
        let (one, two) = (pair.winner(*shown), pair.winner(turned.turned()));
        tally.order_decided += u64::from(one != two);
        winners.push(if one == two { one } else { Winner::Neither });
    }
    Ok((tally.filled(&winners), client.bill()))
}

impl Verdict {
    fn turned(self) -> Verdict {
        match self {
            Verdict::First => Verdict::Second,
            Verdict::Second => Verdict::First,
            Verdict::Tie => Verdict::Tie,
        }
    }
}

impl Tally {
    fn filled(mut self, winners: &[Winner]) -> Tally {
        let count = |wanted: Winner| winners.iter().filter(|&&winner| winner == wanted).count() as u64;
        (self.a_wins, self.b_wins, self.ties) = (count(Winner::A), count(Winner::B), count(Winner::Neither));
        self.rows = winners.len() as u64;
        let mut series = Series::new(Formula::Mean);
        for winner in winners {
            let share = match winner {
                Winner::A => 0.0,
                Winner::B => 1.0,
                Winner::Neither => 0.5,
            };
            series.push(&[share, 1.0]);
        }
        self.b_win_rate = series.value();
        self.interval = interval(&series, RESAMPLES);
        self
    }
}

/// What the last line that begins with `VERDICT:` says.
fn verdict_in(text: &str) -> Option<Verdict> {
    let upper = text.to_uppercase();
    let (_, last) = upper.rsplit_once("VERDICT:")?;
    word(last.trim_start_matches([' ', '*', '`', '"']).split(|c: char| !c.is_alphanumeric()).next()?)
}

fn word(text: &str) -> Option<Verdict> {
    match text.trim().to_uppercase().as_str() {
        "1" | "FIRST" => Some(Verdict::First),
        "2" | "SECOND" => Some(Verdict::Second),
        "TIE" | "=" => Some(Verdict::Tie),
        _ => None,
    }
}

/// Writes the pairs that differ as a table for people, with an empty column for the verdict: 1, 2 or tie.
pub fn write_sheet(pairs: &[Pair], path: &Path) -> Result<u64, TaskError> {
    let failed = |error: csv::Error| TaskError::Failed(format!("cannot write {}: {error}", path.display()));
    let mut sheet = csv::Writer::from_path(path).map_err(failed)?;
    sheet.write_record(COLUMNS).map_err(failed)?;
    let mut written = 0;
    for pair in pairs.iter().filter(|pair| pair.a != pair.b) {
        let (first, second) = pair.shown();
        sheet.write_record([&pair.row_id, &pair.request, &pair.reference, first, second, ""]).map_err(failed)?;
        written += 1;
    }
    sheet.flush().map_err(TaskError::io(format!("cannot write {}", path.display())))?;
    Ok(written)
}

/// Counts a sheet that people filled in.
///
/// # Errors
/// The sheet is no such table, a verdict is no verdict, or a row is not one of these pairs: other rows, or other answers.
pub fn read_sheet(pairs: &[Pair], path: &Path) -> Result<Tally, TaskError> {
    let wrong = |line: u64, why: String| TaskError::Input(format!("{}:{line}: {why}", path.display()));
    let failed = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        wrong(line, error.to_string())
    };
    let mut sheet = csv::Reader::from_path(path).map_err(failed)?;
    let header = sheet.headers().map_err(failed)?.clone();
    let place = |name: &str| header.iter().position(|column| column.trim() == name);
    let [Some(row_id), Some(first), Some(second), Some(verdict)] = ["row_id", "first", "second", "verdict"].map(place)
    else {
        let there = header.iter().collect::<Vec<_>>().join(", ");
        return Err(wrong(1, format!("the columns should be {}, and they are {there}", COLUMNS.join(", "))));
    };
    let known: BTreeMap<&str, &Pair> = pairs.iter().map(|pair| (pair.row_id.as_str(), pair)).collect();
    let mut winners = vec![Winner::Neither; pairs.iter().filter(|pair| pair.a == pair.b).count()];
    let mut tally = Tally { same: winners.len() as u64, ..Tally::default() };
    let mut told = BTreeMap::new();
    for record in sheet.records() {
        let record = record.map_err(failed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |place: usize| record.get(place).unwrap_or_default();
        let Some(pair) = known.get(cell(row_id)) else {
            return Err(wrong(line, format!("row {} is none of the rows that both models answered", cell(row_id))));
        };
        if (cell(first), cell(second)) != pair.shown() {
            return Err(wrong(
                line,
                "these are not the answers that the models give now; write a new sheet".to_string(),
            ));
        }
        if let Some(before) = told.insert(pair.row_id.as_str(), line) {
            return Err(wrong(line, format!("the same row as in line {before}")));
        }
        match (cell(verdict).trim(), word(cell(verdict))) {
            ("", _) => tally.open += 1,
            (_, Some(verdict)) => winners.push(pair.winner(verdict)),
            (other, None) => return Err(wrong(line, format!("the verdict is `{other}`; write 1, 2 or tie"))),
        }
    }
    Ok(tally.filled(&winners))
}

fn each<const N: usize>(
    table: &Path,
    columns: &[&str; N],
    mut take: impl FnMut([&str; N]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    for batch in batches(table, columns, 1024)? {
        let batch = batch?;
        let texts = columns.iter().map(|name| text_column(&batch, name)).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            take(std::array::from_fn(|column| texts[column].value(row)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
