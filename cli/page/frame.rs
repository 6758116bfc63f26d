//! What is around a page's content, and the templates that make HTML of both. Every value is escaped on its way out, and the
//! page itself forbids whatever it does not bring along.

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, Output, State, context, escape_formatter};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pipe_engine::digest::Digest;
use serde::Serialize;

use super::facts::{Comparison, Missing, Page, Runs};
use crate::failure::Failure;
use crate::report::{format, tokens};

/// The content of a page.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Part {
    Run(Box<Page>),
    Runs(Runs),
    Comparison(Box<Comparison>),
    Missing(Missing),
}

/// How a page is served by `pipe ui`; both are empty for a page that stays as it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Served {
    /// Where changes are told.
    pub events: String,
    /// Where the content is then.
    pub body: String,
}

impl Part {
    fn template(&self) -> &'static str {
        match self {
            Part::Run(_) => "run.html",
            Part::Runs(_) => "runs.html",
            Part::Comparison(_) => "compare.html",
            Part::Missing(_) => "missing.html",
        }
    }

    fn title(&self) -> String {
        match self {
            Part::Run(page) => page.title.clone(),
            Part::Runs(_) => "runs".to_string(),
            Part::Comparison(comparison) => format!("{} runs compared", comparison.runs.len()),
            Part::Missing(_) => "no such page".to_string(),
        }
    }
}

/// A page as a file of its own; `content` says what it is about.
pub fn file(part: &Part, content: &str) -> Result<String, Failure> {
    render(part, Some(content), None)
}

/// A page of the server.
pub fn served(part: &Part, served: &Served) -> Result<String, Failure> {
    render(part, None, Some(served))
}

/// The content alone, to be put in an open page's place.
pub fn body(part: &Part) -> Result<String, Failure> {
    let context = context! { page => Serde(part), served => Serde(Served::default()) };
    environment().and_then(|e| e.get_template(part.template())?.render(context)).map_err(broken)
}

fn render(part: &Part, content: Option<&str>, served: Option<&Served>) -> Result<String, Failure> {
    // What is not known before the page is made cannot be written into a row: only this script runs.
    let nonce = Digest::of(serde_json::to_string(part).unwrap_or_default().as_bytes()).to_string();
    let made = environment().and_then(|environment| {
        environment.get_template("page.html")?.render(context! {
            page => Serde(part),
            title => part.title(),
            part => part.template(),
            content => content,
            served => Serde(served),
            style => include_str!("page.css"),
            script => include_str!("page.js"),
            follow => include_str!("live.js"),
            nonce => nonce,
        })
    });
    made.map_err(broken)
}

/// A template that does not fit its facts is this program's fault.
fn broken(error: Error) -> Failure {
    Failure::stage(format!("the page cannot be made: {error:#}"))
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_formatter(shown);
    environment.add_filter("count", format::count);
    environment.add_filter("seconds", format::seconds);
    environment.add_filter("bytes", format::bytes);
    environment.add_filter("percent", format::percent);
    environment.add_filter("address", |text: &str| address(text));
    environment.add_template("page.html", include_str!("page.html.jinja"))?;
    environment.add_template("chart.html", include_str!("chart.html.jinja"))?;
    environment.add_template("run.html", include_str!("run.html.jinja"))?;
    environment.add_template("runs.html", include_str!("runs.html.jinja"))?;
    environment.add_template("compare.html", include_str!("compare.html.jinja"))?;
    environment.add_template("missing.html", include_str!("missing.html.jinja"))?;
    Ok(environment)
}

/// A name as a part of an address.
pub fn address(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string().replace("%2D", "-")
}

/// Writes a value escaped, with the characters that control a display made visible.
fn shown(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => escape_formatter(out, state, &Value::from(tokens::visible(text))),
        _ => escape_formatter(out, state, value),
    }
}
