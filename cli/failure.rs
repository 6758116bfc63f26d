//! Why a command did not succeed, and the one place that chooses exit codes.

use std::process::ExitCode;

use pipe_engine::problem::Problem;
use pipe_engine::task::TaskError;

/// The kinds of failure that the contract tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stage failed, or the program itself did.
    Stage,
    /// The recipe, the arguments or an input is invalid.
    Invalid,
    /// A lock or a resource could not be had in the time given.
    Busy,
    /// Asked to stop; state is resumable.
    Interrupted,
}

/// A failure, and what is still to be said about it.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    told: Told,
}

/// What the user has yet to read.
#[derive(Debug)]
pub enum Told {
    /// Everything has been printed already.
    Already,
    Message {
        what: String,
        hint: Option<String>,
    },
    Problems(Vec<Problem>),
    /// A complaint of the argument parser, which formats its own.
    Usage(Box<clap::Error>),
}

/// What every command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A failure that the display or a JSON object has already told.
    pub fn told(kind: Kind) -> Failure {
        Failure { kind, told: Told::Already }
    }

    pub fn invalid(what: impl Into<String>) -> Failure {
        Failure::new(Kind::Invalid, what)
    }

    pub fn stage(what: impl Into<String>) -> Failure {
        Failure::new(Kind::Stage, what)
    }

    pub fn busy(what: impl Into<String>) -> Failure {
        Failure::new(Kind::Busy, what)
    }

    pub fn interrupted() -> Failure {
        Failure::new(Kind::Interrupted, "interrupted; what was finished is kept, the same command goes on from there")
    }

    pub fn problems(problems: Vec<Problem>) -> Failure {
        Failure { kind: Kind::Invalid, told: Told::Problems(problems) }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        if let Told::Message { hint: slot, .. } = &mut self.told {
            *slot = Some(hint.into());
        }
        self
    }

    pub fn what(&self) -> &Told {
        &self.told
    }

    /// What happened, in one line.
    pub fn message(&self) -> String {
        match &self.told {
            Told::Message { what, .. } => what.clone(),
            Told::Problems(problems) => problems.first().map(|problem| problem.message.clone()).unwrap_or_default(),
            Told::Usage(error) => error.to_string(),
            Told::Already => String::new(),
        }
    }

    /// The exit codes of the contract.
    pub fn exit_code(&self) -> ExitCode {
        let code = match (self.kind, &self.told) {
            // `--help` and `--version` arrive as errors of the parser that are none.
            (_, Told::Usage(error)) if !error.use_stderr() => 0,
            (Kind::Stage, _) => 1,
            (Kind::Invalid, _) => 2,
            (Kind::Busy, _) => 3,
            (Kind::Interrupted, _) => 130,
        };
        ExitCode::from(code)
    }

    fn new(kind: Kind, what: impl Into<String>) -> Failure {
        Failure { kind, told: Told::Message { what: what.into(), hint: None } }
    }
}

/// Ends the process at once, after the user asked a second time.
pub fn exit_interrupted() -> ! {
    std::process::exit(130)
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Failure {
        Failure { kind: Kind::Invalid, told: Told::Usage(Box::new(error)) }
    }
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Failure {
        match error {
            TaskError::Input(what) => Failure::invalid(what),
            TaskError::Cancelled => Failure::interrupted(),
            TaskError::Store { message, hint } => Failure::stage(message).hint(hint),
            other => Failure::stage(other.to_string()),
        }
    }
}
