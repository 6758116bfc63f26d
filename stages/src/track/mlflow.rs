//! MLflow, by its REST interface or as its file store.
//!
//! REST: <https://mlflow.org/docs/latest/rest-api.html>, version 2.0. The file store is what `mlflow` reads with
//! `MLFLOW_ALLOW_FILE_STORE=true` and what `mlflow migrate-filestore` takes over into a database.

mod files;
mod server;

use std::path::PathBuf;

use self::files::FileStore;
use self::server::Server;
use super::{Kind, Point, RunFacts, TrackError, Tracker};
use crate::project::Project;

/// Experiment of runs that name none, as in MLflow.
const DEFAULT_EXPERIMENT: &str = "Default";

/// Where MLflow's data go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Folder(PathBuf),
    /// Beginning of the server's addresses, without a slash at the end.
    Server(String),
}

/// What `mlflow_tracking_uri` means; `None` for databases and services that are not written to.
pub fn address(uri: &str, project: &Project) -> Option<Address> {
    let uri = uri.trim();
    match uri.split_once(':') {
        Some(("http" | "https", rest)) if rest.starts_with("//") && rest.len() > 2 => {
            Some(Address::Server(uri.trim_end_matches('/').to_string()))
        }
        Some(("file", rest)) => Some(Address::Folder(project.resolve(rest.strip_prefix("//").unwrap_or(rest)))),
        Some((scheme, _)) if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => None,
        _ if uri == "databricks" || uri.is_empty() => None,
        _ => Some(Address::Folder(project.resolve(uri))),
    }
}

/// How a server knows who writes; from the environment, never from a recipe.
#[derive(Clone, Default)]
pub struct Credentials {
    pub username: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
}

/// A run to be written.
pub(in crate::track) struct RunToBe {
    pub experiment: String,
    pub name: String,
    pub facts: RunFacts,
}

/// A number as MLflow keeps it.
pub(in crate::track) struct Number {
    pub key: String,
    pub value: f64,
    pub step: u64,
    pub time: i64,
}

/// Where a run is written, once it is begun.
pub(in crate::track) trait Store: Send {
    fn begin(&mut self, run: &RunToBe) -> Result<(), TrackError>;
    fn log(&mut self, numbers: &[Number]) -> Result<(), TrackError>;
    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError>;
}

/// Writes one run.
pub struct Mlflow {
    store: Box<dyn Store>,
    run: RunToBe,
    is_begun: bool,
}

impl Mlflow {
    /// A run of `experiment`, named `name`, or as the run itself is.
    pub fn new(
        address: Address,
        credentials: Credentials,
        experiment: Option<&str>,
        name: Option<&str>,
        facts: RunFacts,
    ) -> Mlflow {
        let store: Box<dyn Store> = match address {
            Address::Folder(folder) => Box::new(FileStore::new(folder)),
            Address::Server(url) => Box::new(Server::new(url, credentials)),
        };
        let experiment = experiment.unwrap_or(DEFAULT_EXPERIMENT).to_string();
        let name = name.unwrap_or(&facts.run).to_string();
        Mlflow { store, run: RunToBe { experiment, name, facts }, is_begun: false }
    }
}

impl Tracker for Mlflow {
    fn name(&self) -> &'static str {
        "mlflow"
    }

    fn log(&mut self, points: &[Point]) -> Result<(), TrackError> {
        let numbers: Vec<Number> = points.iter().flat_map(numbers).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        if !self.is_begun {
            self.store.begin(&self.run)?;
            self.is_begun = true;
        }
        self.store.log(&numbers)
    }

    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError> {
        if self.is_begun { self.store.end(ok, time) } else { Ok(()) }
    }
}

fn numbers(point: &Point) -> impl Iterator<Item = Number> {
    point.values.iter().map(|(name, value)| Number {
        key: key(&point.kind, name),
        value: *value,
        step: point.step,
        time: point.time,
    })
}

/// transformers' names: `loss`, `eval_loss`. MLflow takes letters, digits and a few signs.
fn key(kind: &Kind, name: &str) -> String {
    let key = match kind {
        Kind::Train => name.to_string(),
        Kind::Eval(split) if split == "val" => format!("eval_{name}"),
        Kind::Eval(split) => format!("eval_{split}_{name}"),
        Kind::Final => format!("final/{name}"),
    };
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_-./ :".contains(c) { c } else { '_' };
    key.chars().map(allowed).collect()
}
