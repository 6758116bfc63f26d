//! What a page of `pipe ui` is about: found by what an address names, made anew whenever it is asked for.

use axum::http::StatusCode;
use pipe_engine::digest::Digest;
use pipe_engine::runs::{self, Pulse, Run};
use pipe_engine::store::Store;

use crate::failure::Failure;
use crate::page::{self, Memory, Part};

/// What an address names.
#[derive(Clone, Debug)]
pub enum Asked {
    Runs,
    Run(String),
    Compared(Vec<String>),
}

/// What there is of that: runs by their full ids.
#[derive(Clone, Debug)]
pub enum Subject {
    Runs,
    Run(String),
    Compared(Vec<String>),
}

/// Why an address has no page.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

/// Where a page stands: what it shows may have changed if this has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub text: String,
    /// Nothing more will come.
    pub is_over: bool,
}

impl Subject {
    /// # Errors
    /// There is no such run, or too few or too many of them.
    pub fn find(store: &Store, asked: &Asked) -> Result<Subject, Refusal> {
        let run = |name: &String| crate::runs::find(store, name);
        match asked {
            Asked::Runs => Ok(Subject::Runs),
            Asked::Run(name) => Ok(Subject::Run(run(name)?.id)),
            Asked::Compared(names) => {
                let runs = page::comparable(names.iter().map(run).collect::<Result<_, _>>()?);
                let runs = runs.map_err(|e| Refusal { status: StatusCode::BAD_REQUEST, message: e.message() })?;
                Ok(Subject::Compared(runs.into_iter().map(|run| run.id).collect()))
            }
        }
    }

    /// # Errors
    /// A run is gone, or the page cannot be made.
    pub fn part(&self, store: &Store, memory: &Memory) -> Result<Part, Refusal> {
        let run = |id: &String| -> Result<Run, Refusal> {
            let gone = || Refusal { status: StatusCode::NOT_FOUND, message: format!("the run `{id}` was removed") };
            runs::open(store, id).ok_or_else(gone)
        };
        Ok(match self {
            Subject::Runs => page::listed(store),
            Subject::Run(id) => page::run(store, &run(id)?, memory),
            Subject::Compared(ids) => page::compared(store, &ids.iter().map(run).collect::<Result<Vec<_>, _>>()?),
        })
    }

    pub fn state(&self, store: &Store) -> State {
        let of = |ids: &[String]| ids.iter().filter_map(|id| runs::pulse(store, id)).collect::<Vec<Pulse>>();
        let pulses = match self {
            Subject::Runs => {
                let mut all = runs::pulses(store);
                all.sort_by(|a, b| a.id.cmp(&b.id));
                // The list shows nodes, not steps.
                all.into_iter().map(|pulse| Pulse { events: 0, ..pulse }).collect()
            }
            Subject::Run(id) => of(std::slice::from_ref(id)),
            Subject::Compared(ids) => of(ids),
        };
        let is_over = !matches!(self, Subject::Runs) && !pulses.iter().any(|pulse| pulse.live);
        let text: String = Digest::of(format!("{pulses:?}").as_bytes()).to_string().chars().take(16).collect();
        State { text, is_over }
    }

    /// The address of `what` about this: its `events`, or its `body`.
    pub fn address(&self, what: &str) -> String {
        match self {
            Subject::Runs => format!("/{what}?"),
            Subject::Run(id) => format!("/runs/{}/{what}?", page::address(id)),
            Subject::Compared(ids) => {
                let runs: Vec<String> = ids.iter().map(|id| format!("run={}&", page::address(id))).collect();
                format!("/compare/{what}?{}", runs.concat())
            }
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        // Without the hint, which is about the command line: the page has links.
        Refusal { status: StatusCode::NOT_FOUND, message: failure.message() }
    }
}
