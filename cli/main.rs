//! `pipe`: one YAML recipe in; a tuned, evaluated, quantised model out.
//!
//! This file is the table of contents: one module per command, `report` prints, `failure` chooses the exit code. The
//! command line decides nothing about stages; it opens recipes, asks the engine, and shows what comes back.

mod alone;
mod args;
mod cache;
mod chat;
mod compare;
mod convert;
mod doctor;
mod eval;
mod failure;
mod fetch;
mod http;
mod import;
mod job;
mod merge;
mod model;
mod open;
mod outputs;
mod page;
mod plan;
mod process;
mod quantize;
mod recipes;
mod report;
mod run;
mod runs;
mod schema;
mod serve;
mod show;
mod template;
mod trackers;
mod training;
mod ui;
mod validate;
mod why;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::{Failure, Kind, Outcome};

fn main() -> ExitCode {
    process::prepare();
    std::panic::set_hook(Box::new(tell_of_panic));
    let outcome =
        std::panic::catch_unwind(|| Cli::try_parse().map_err(Failure::from).and_then(|cli| dispatch(cli.command)));
    match outcome.unwrap_or_else(|_| Err(Failure::told(Kind::Stage))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::failure(&failure);
            failure.exit_code()
        }
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(args),
        Command::Plan(args) => plan::plan(&args),
        Command::Validate(args) => validate::validate(&args),
        Command::Fetch(args) => fetch::fetch(&args),
        Command::Why(args) => why::why(&args),
        Command::Show(args) => show::show(&args),
        Command::Schema(args) => schema::schema(&args),
        Command::Recipes(args) => recipes::recipes(&args),
        Command::Runs(args) => runs::runs(&args),
        Command::Report(args) => page::report(&args),
        Command::Ui(args) => ui::ui(&args),
        Command::Cache(args) => cache::cache(&args),
        Command::Template(args) => template::template(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Quantize(args) => quantize::quantize(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Model(args) => model::model(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}

fn tell_of_panic(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = info.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
    report::panic(text.unwrap_or("no message").lines().next().unwrap_or_default(), &place);
}
