//! `pipe eval --compare A B`: two models' answers against each other, judged by a model or by people.

use std::path::{Path, PathBuf};

use clap::Args;
use pipe_engine::plan::NodeName;
use pipe_engine::task::Cancel;
use pipe_stages::augment::endpoint::Bill;
use pipe_stages::augment::section::Endpoint;
use pipe_stages::eval::compare::{Pair, Tally, judge, pairs, read_sheet, write_sheet};
use pipe_stages::rows::ROWS_FILE;
use serde_json::{Map, Value, json};

use crate::args::{StoreArgs, key_value};
use crate::eval::{Asked, EvalArgs, evaluate};
use crate::failure::{Failure, Outcome};
use crate::report::format::{count, measure};
use crate::report::summary::{Measured, Scale};
use crate::{alone, open, report};

/// What comparing takes besides the rows.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Two models, or PEFT adapters, whose answers are set against each other.
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    compare: Vec<PathBuf>,
    /// The model that adapters among them belong to; by default the one that they name.
    #[arg(long, value_name = "MODEL", requires = "compare")]
    base_model: Option<PathBuf>,
    /// A judging model: url, model, and other keys of augment.endpoint. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, requires = "compare", conflicts_with_all = ["sheet", "verdicts"])]
    judge: Vec<(String, String)>,
    /// Write the pairs as a CSV table in which people put 1, 2 or tie.
    #[arg(long, value_name = "FILE", requires = "compare", conflicts_with = "verdicts")]
    sheet: Option<PathBuf>,
    /// Count such a table once it is filled in.
    #[arg(long, value_name = "FILE", requires = "compare")]
    verdicts: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn compare(args: &EvalArgs) -> Outcome {
    let own = &args.comparison;
    let endpoint = if own.judge.is_empty() { None } else { Some(endpoint(&own.judge)?) };
    if endpoint.is_none() && own.sheet.is_none() && own.verdicts.is_none() {
        return Err(Failure::invalid("--compare needs somebody who judges").hint(
            "a model: --judge url=http://127.0.0.1:8080/v1 --judge model=NAME; people: --sheet pairs.csv, then --verdicts pairs.csv",
        ));
    }
    if let Some(taken) = own.sheet.as_deref().filter(|path| path.exists()) {
        return Err(Failure::invalid(format!("{} exists already", taken.display())).hint("name a new file"));
    }
    let cancel = alone::interruptible()?;
    let store = open::store_here(&own.store);
    let pairs = answered(args, &store, &cancel)?;
    if let Some(path) = &own.sheet {
        let written = write_sheet(&pairs, path)?;
        let alike = pairs.len() as u64 - written;
        let alike = if alike > 0 { format!(" ({} more are answered alike)", count(alike)) } else { String::new() };
        report::note(&format!(
            "wrote {} pairs to {}{alike}; put 1, 2 or tie into the last column, then run this again with --verdicts",
            count(written),
            path.display(),
        ));
        return Ok(());
    }
    let (tally, bill) = match (&endpoint, &own.verdicts) {
        (Some(endpoint), _) => {
            let tell = |done: usize, all: usize| {
                if done.is_multiple_of(20) {
                    report::note(&format!("judge  {done}/{all} verdicts"));
                }
            };
            let (tally, bill) = judge(&pairs, endpoint, &store.join("kept").join("answers"), &cancel, tell)?;
            (tally, Some(bill))
        }
        (None, Some(path)) => (read_sheet(&pairs, path)?, None),
        (None, None) => return Ok(()),
    };
    if tally.open > 0 {
        report::warning(&format!("{} pairs have no verdict yet and are left out", count(tally.open)));
    }
    if args.json {
        report::json(&json!({ "a": own.compare[0], "b": own.compare[1], "tally": tally, "judge": bill }));
    } else {
        report::print(&text(&own.compare, &tally, bill.as_ref()));
    }
    Ok(())
}

/// Both models' answers, from the store where they are there already.
fn answered(args: &EvalArgs, store: &Path, cancel: &Cancel) -> Result<Vec<Pair>, Failure> {
    let mut tables = Vec::new();
    let mut rows = Vec::new();
    for named in &args.comparison.compare {
        let given = alone::existing(named)?;
        let (model, adapter) = match alone::adapter_config(&given)? {
            Some(config) => (alone::base_of(&config, args.comparison.base_model.as_deref())?, Some(given)),
            None => (given, None),
        };
        report::note(&format!("answers of {}", named.display()));
        let asked = Asked { model: &model, adapter: adapter.as_deref(), metrics: &["exact_match"] };
        let evaluated = evaluate(args, &asked, Some(store), cancel)?;
        let answers = evaluated.outputs.get(&NodeName::new("eval")).map(|folder| folder.join("answers.parquet"));
        let answers = answers.filter(|path| path.is_file());
        tables.push(answers.ok_or_else(|| Failure::invalid("the rows have no answers to write"))?);
        let cleaned = evaluated.outputs.iter().filter(|(node, _)| node.stage() == "clean");
        rows.extend(cleaned.map(|(_, folder)| folder.join(ROWS_FILE)));
    }
    Ok(pairs(&tables[0], &tables[1], &rows)?)
}

fn endpoint(keys: &[(String, String)]) -> Result<Endpoint, Failure> {
    let value = |text: &str| match text.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() < 9e15 => json!(number as i64),
        Ok(number) => json!(number),
        Err(_) => json!(text),
    };
    // A model may be named by a number; a limit is one.
    let text = |key: &str| matches!(key, "url" | "model" | "api_key_env");
    let keys: Map<String, Value> =
        keys.iter().map(|(key, told)| (key.clone(), if text(key) { json!(told) } else { value(told) })).collect();
    Endpoint::of_keys(keys, "--judge ").map_err(Failure::invalid)
}

fn text(models: &[PathBuf], tally: &Tally, bill: Option<&Bill>) -> String {
    let mut lines = vec![
        ("A", models[0].display().to_string()),
        ("B", models[1].display().to_string()),
        ("rows", count(tally.rows)),
        ("A wins", count(tally.a_wins)),
        ("B wins", count(tally.b_wins)),
    ];
    let causes = [
        (tally.same, "answered alike"),
        (tally.order_decided, "decided by the order"),
        (tally.unclear, "without a verdict"),
    ];
    let causes: Vec<String> =
        causes.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{} {why}", count(*n))).collect();
    let ties = count(tally.ties);
    lines.push(("ties", if causes.is_empty() { ties } else { format!("{ties}  ({})", causes.join(", ")) }));
    if let Some(value) = tally.b_win_rate {
        let told = Measured { value, interval: tally.interval }.told(Scale::Share);
        lines.push(("B win rate", format!("{told}, a tie as half a win")));
    }
    if let Some(bill) = bill {
        let cost = bill.cost.map_or_else(String::new, |cost| format!(", cost {}", measure(cost)));
        let (sent, cached) = (count(bill.requests), count(bill.cached));
        lines.push(("judge", format!("{sent} requests, {cached} from before{cost}")));
    }
    lines.iter().map(|(name, told)| format!("{name:<11} {told}")).collect::<Vec<_>>().join("\n")
}
