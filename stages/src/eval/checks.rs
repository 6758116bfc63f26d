//! Checks of the user's own: a regular expression or a Jinja expression per answer.

use minijinja::{Environment, context};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::score::Answered;
use crate::recipe::{Metric, Mistake};

/// Instructions that a template may spend on one answer.
const FUEL: u64 = 200_000;

/// A check that every answer passes or fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// What the measure is called.
    pub name: Option<String>,
    /// An answer passes where this is found in it.
    pub regex: Option<String>,
    /// An answer passes where this Jinja template, given `answer`, `expected` and `prompt`, makes `true`; a number from 0 to 1
    /// is a score.
    pub template: Option<String>,
}

/// A check that is ready for use.
#[derive(Debug)]
pub enum Checker {
    Regex(Regex),
    Template(Box<Environment<'static>>),
}

impl Check {
    /// What is wrong with the check, by its own keys.
    pub(super) fn mistakes(&self, place: &str, taken: &[String]) -> Vec<Mistake> {
        let key = |name: &str| format!("{place}.{name}");
        let mut wrong = Vec::new();
        match &self.name {
            None => wrong.push(Mistake::missing(key("name"), "is missing: what is the check called?", None)),
            Some(name) if taken.contains(name) => {
                wrong.push(Mistake::value(key("name"), format!("is `{name}`, which names another measure"), None));
            }
            Some(name) if !is_name(name) => {
                let why = "is no name: letters, digits and `_`, beginning with a letter";
                wrong.push(Mistake::value(key("name"), why, Some("starts_with_docker".to_string())));
            }
            Some(_) => {}
        }
        match (&self.regex, &self.template) {
            (None, None) => {
                let instead = Some("regex: '^docker '".to_string());
                wrong.push(Mistake::missing(key("regex"), "is missing, and so is `template`", instead));
            }
            (Some(_), Some(_)) => {
                wrong.push(Mistake::value(key("template"), "stands beside `regex`; a check has one of the two", None));
            }
            (Some(_), None) | (None, Some(_)) => {
                let which = if self.regex.is_some() { "regex" } else { "template" };
                wrong.extend(self.checker().err().map(|why| Mistake::value(key(which), why, None)));
            }
        }
        wrong
    }

    /// The check, ready for use.
    ///
    /// # Errors
    /// Why the expression or the template cannot be read.
    pub fn checker(&self) -> Result<Checker, String> {
        if let Some(regex) = &self.regex {
            let made = Regex::new(regex);
            return made.map(Checker::Regex).map_err(|e| format!("is no regular expression: {}", one_line(&e)));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let text = self.template.clone().unwrap_or_default();
        let made = environment.add_template_owned("check", text);
        made.map_err(|e| format!("is no Jinja template: {}", one_line(&e)))?;
        Ok(Checker::Template(Box::new(environment)))
    }
}

impl Checker {
    /// The answer's score, from 0 to 1.
    ///
    /// # Errors
    /// Why the template made none of this answer.
    pub fn score(&self, row: Answered<'_>) -> Result<f64, String> {
        let environment = match self {
            Checker::Regex(regex) => return Ok(f64::from(u8::from(regex.is_match(row.answer)))),
            Checker::Template(environment) => environment,
        };
        let values = context! { answer => row.answer, expected => row.expected, prompt => row.prompt };
        let made = environment.get_template("check").and_then(|template| template.render(values));
        let made = made.map_err(|e| one_line(&e))?;
        match made.trim().to_lowercase().as_str() {
            "true" => Ok(1.0),
            "false" | "none" | "" => Ok(0.0),
            other => {
                let number = other.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
                number.ok_or_else(|| format!("it made `{}`, which is neither true, false nor from 0 to 1", made.trim()))
            }
        }
    }
}

/// Names that checks cannot have.
pub fn reserved() -> Vec<String> {
    let counts = ["loss", "tokens", "trained_tokens", "rows", "exact", "model", "split", "task", "row_id", "prompt"];
    let counts = counts.iter().chain(&["expected", "answer", "acc", "acc_norm"]).map(|name| name.to_string());
    counts.chain(Metric::ALL.iter().map(|metric| metric.name())).collect()
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Several lines of an error as one.
fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
