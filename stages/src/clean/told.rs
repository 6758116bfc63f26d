//! What clean says of its work: how many rows each rule dropped and each change touched, with samples, in the statistics and
//! in `dropped.json` beside the rows.

use std::path::Path;

use indexmap::IndexMap;
use pipe_engine::task::{Summary, TaskError};
use serde::Serialize;
use serde_json::{Value, json};

use super::edit::{Edits, redacted_names};
use super::rules::Reason;

/// The file beside the rows. No stage reads it.
pub const DROPPED_FILE: &str = "dropped.json";

/// Counts and samples so far.
#[derive(Default)]
pub struct Told {
    dropped: IndexMap<Reason, Dropped>,
    edited: IndexMap<String, u64>,
    /// Rows in which the language could not be told, or other remarks that drop nothing.
    noted: IndexMap<&'static str, Dropped>,
}

#[derive(Default, Serialize)]
struct Dropped {
    rows: u64,
    samples: Vec<Sample>,
}

/// A row that went, or that something was said of.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub row_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    pub text: String,
}

impl Told {
    /// Counts a dropped row; the sample is only made while some are wanted.
    pub fn drop(&mut self, reason: Reason, most: u64, sample: impl FnOnce() -> Sample) {
        self.dropped.entry(reason).or_default().add(most, sample);
    }

    /// Counts a row that stays.
    pub fn note(&mut self, what: &'static str, most: u64, sample: impl FnOnce() -> Sample) {
        self.noted.entry(what).or_default().add(most, sample);
    }

    pub fn edits(&mut self, edits: &Edits) {
        let flags = [
            ("html", edits.html),
            ("boilerplate", edits.boilerplate),
            ("normalized", edits.normalized),
            ("masked", edits.masked),
        ];
        for (name, _) in flags.iter().filter(|(_, on)| *on) {
            *self.edited.entry((*name).to_string()).or_default() += 1;
        }
        for (name, &n) in redacted_names().zip(&edits.redacted).filter(|(_, n)| **n > 0) {
            *self.edited.entry(name).or_default() += u64::from(n);
        }
    }

    /// How many rows each rule dropped, in words.
    pub fn tally(&self) -> String {
        let told: Vec<String> = self.dropped.iter().map(|(why, d)| format!("{} {}", d.rows, why.name())).collect();
        told.join(", ")
    }

    pub fn noted(&self, what: &str) -> u64 {
        self.noted.get(what).map_or(0, |noted| noted.rows)
    }

    pub fn write(&self, out: &Path, read: u64, kept: u64) -> Result<(), TaskError> {
        let path = out.join(DROPPED_FILE);
        let page =
            json!({"read": read, "kept": kept, "dropped": self.dropped, "noted": self.noted, "changed": self.edited});
        let text = serde_json::to_string_pretty(&page).map_err(|e| TaskError::Failed(e.to_string()))?;
        std::fs::write(&path, text + "\n").map_err(TaskError::io(format!("cannot write {}", path.display())))
    }

    pub fn summarise(&self, summary: &mut Summary) {
        let stats = &mut summary.stats;
        stats.insert("normalized".into(), 0.into());
        for (name, &n) in &self.edited {
            stats.insert(name.clone(), n.into());
        }
        let all =
            self.dropped.iter().map(|(reason, dropped)| (format!("dropped_{}", reason.name()), reason.name(), dropped));
        let noted = self.noted.iter().map(|(&what, noted)| (what.to_string(), what, noted));
        for (count, name, dropped) in all.chain(noted) {
            stats.insert(count, dropped.rows.into());
            let samples: Vec<Value> =
                dropped.samples.iter().map(|s| serde_json::to_value(s).unwrap_or_default()).collect();
            stats.insert(format!("samples_{name}"), samples.into());
        }
    }
}

impl Dropped {
    fn add(&mut self, most: u64, sample: impl FnOnce() -> Sample) {
        self.rows += 1;
        if (self.samples.len() as u64) < most {
            self.samples.push(sample());
        }
    }
}
