//! `pipe cache`: what the store holds, whether it is sound, and letting old outputs go.

use std::time::Duration;

use clap::{Args, Subcommand};
use pipe_engine::cache::{self, Policy, Stored};
use pipe_engine::store::Store;
use serde_json::json;

use crate::args::StoreArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::report::format::{bytes, count, plural};
use crate::report::table::{Align, Column, Table};
use crate::{open, report};

/// The store of results.
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    store: StoreArgs,
    /// One JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// What is stored, most recently used first.
    Ls,
    /// Re-hash everything; exit code 1 lists the damage.
    Verify,
    /// Let old outputs go, and clear left-overs. Without a limit only left-overs go.
    Gc(GcArgs),
}

#[derive(Args, Debug)]
struct GcArgs {
    /// Keep what the last N runs of each recipe used.
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// Let go what was last used longer ago than this, such as 14d or 12h.
    #[arg(long, value_name = "D", value_parser = duration)]
    older_than: Option<Duration>,
    /// Let the least recently used go until the store holds at most this, such as 20GB.
    #[arg(long, value_name = "S", value_parser = size)]
    max_size: Option<u64>,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
}

pub fn cache(args: &CacheArgs) -> Outcome {
    let folder = open::store_here(&args.store);
    match &args.action {
        Action::Ls => {
            ls(&Store::peek(folder), args.json);
            Ok(())
        }
        Action::Verify => verify(&Store::peek(folder), args.json),
        Action::Gc(gc) => collect(&*open::store_at(&folder)?, gc, args.json),
    }
}

fn ls(store: &Store, as_json: bool) {
    let stored = cache::ls(store);
    if as_json {
        return report::json(&json!({ "store": store.root(), "outputs": stored }));
    }
    if !stored.is_empty() {
        report::print(&table(&stored).join("\n"));
    }
    let total: u64 = stored.iter().map(|one| one.bytes).sum();
    report::note(&format!("{}, {} in {}", plural(stored.len() as u64, "output"), bytes(total), store.root().display()));
}

fn table(stored: &[Stored]) -> Vec<String> {
    let mut table = Table::new(&[
        Column { head: "node", align: Align::Left, drop: 0 },
        Column { head: "output", align: Align::Left, drop: 2 },
        Column { head: "rows", align: Align::Right, drop: 3 },
        Column { head: "size", align: Align::Right, drop: 0 },
        Column { head: "last used", align: Align::Left, drop: 1 },
    ]);
    for one in stored {
        let names: Vec<&str> = one.nodes.iter().map(|node| node.as_str()).collect();
        let used = one.last_used.as_deref().unwrap_or_default();
        table.row(vec![
            names.join(", "),
            one.output.short(),
            one.rows.map(count).unwrap_or_default(),
            bytes(one.bytes),
            used.get(..16).unwrap_or(used).replace('T', " "),
        ]);
    }
    table.lines(report::width())
}

fn verify(store: &Store, as_json: bool) -> Outcome {
    let damage = cache::verify(store);
    if as_json {
        report::json(&json!({ "ok": damage.is_empty(), "damage": damage }));
    } else if !store.root().is_dir() {
        report::print(&format!("nothing is stored yet: there is no folder {}", store.root().display()));
    } else if damage.is_empty() {
        report::print(&format!("sound: {}", store.root().display()));
    } else {
        for one in &damage {
            let names: Vec<&str> = one.nodes.iter().map(|node| node.as_str()).collect();
            report::print(&format!("{} {} ({})", one.path, one.what, names.join(", ")));
        }
        report::note("the next run that needs a damaged output makes it again");
    }
    if damage.is_empty() { Ok(()) } else { Err(Failure::told(Kind::Stage)) }
}

fn collect(store: &Store, args: &GcArgs, as_json: bool) -> Outcome {
    let policy = Policy {
        keep_last: args.keep_last,
        older_than: args.older_than,
        max_size: args.max_size,
        dry_run: args.dry_run,
    };
    let collected = cache::gc(store, &policy).map_err(open::store_failure)?;
    if as_json {
        report::json(&collected);
        return Ok(());
    }
    if !collected.outputs.is_empty() {
        report::print(&table(&collected.outputs).join("\n"));
    }
    let verb = if args.dry_run { "would let go" } else { "let go" };
    let outputs = plural(collected.outputs.len() as u64, "output");
    let leftovers = plural(collected.leftovers.len() as u64, "left-over");
    report::print(&format!(
        "{verb} {outputs} and {leftovers}: {} freed, {} kept",
        bytes(collected.freed_bytes),
        bytes(collected.kept_bytes)
    ));
    Ok(())
}

/// `90s`, `30m`, `12h`, `14d`, `2w`; a bare number is days.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write 14d, 12h or 30m");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = match text[split..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "" | "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

fn size(text: &str) -> Result<u64, String> {
    pipe_stages::recipe::parse_size(text).ok_or_else(|| format!("`{text}` is no size; write 500MB or 20GB"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("14d").unwrap(), Duration::from_secs(14 * 86_400));
        assert_eq!(duration("30m").unwrap(), Duration::from_secs(1800));
        assert!(duration("soon").is_err() && duration("9999999999999999999w").is_err());
    }
}
