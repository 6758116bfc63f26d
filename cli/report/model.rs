//! A model as text: what it is, its modules grouped over layers, what a recipe would train.

use pipe_stages::inspect::{Inspected, Linear};

use super::format::{bytes, clip, count, percent};
use super::plan::parts;
use super::style::{BOLD, DIM, paint};
use super::table::{Align, Column, Table};
use crate::model::Use;

pub fn render(found: &Inspected, used: Option<&Use>, modules: bool, width: usize) -> String {
    let mut blocks = vec![facts(found)];
    if modules {
        blocks.push(table(&every(found), width));
    } else {
        blocks.push(table(&grouped(found), width));
    }
    blocks.extend(used.map(|used| trained(found, used)));
    blocks.join("\n\n")
}

fn lines(pairs: &[(&str, String)]) -> String {
    let line = |(name, value): &(&str, String)| format!("{} {value}", paint(DIM, format!("{name:<13}")));
    pairs.iter().filter(|(_, value)| !value.is_empty()).map(line).collect::<Vec<_>>().join("\n")
}

fn facts(found: &Inspected) -> String {
    let types: Vec<String> = found
        .dtypes
        .iter()
        .map(|(name, n)| format!("{name} {}", percent(*n as f64 / found.parameters.max(1) as f64)))
        .collect();
    let held: Vec<String> = found.held_bytes.iter().map(|(name, size)| format!("{name} {}", bytes(*size))).collect();
    let heads = format!(
        "{} of {} numbers, {} for keys and values",
        count(found.attention_heads),
        count(found.head_size),
        count(found.key_value_heads)
    );
    let tied = if found.tied_embeddings { "tied to the output head" } else { "apart from the output head" };
    lines(&[
        ("model", found.path.display().to_string()),
        ("architecture", found.architecture.clone()),
        ("parameters", count(found.parameters)),
        (
            "layers",
            format!(
                "{} of {} wide, {} inside",
                count(found.layers),
                count(found.hidden_size),
                count(found.intermediate_size)
            ),
        ),
        ("heads", heads),
        ("vocabulary", format!("{}, {tied}", count(found.vocabulary))),
        ("context", format!("{} tokens", count(found.context_length))),
        ("chat template", (if found.chat_template { "yes" } else { "none" }).to_string()),
        ("stored as", found.weights_problem.clone().unwrap_or_else(|| types.join(", "))),
        ("files", if found.file_bytes > 0 { bytes(found.file_bytes) } else { String::new() }),
        ("held as", held.join(", ")),
    ])
}

/// Name, times, shape and type.
type Row = [String; 4];

fn every(found: &Inspected) -> Vec<Row> {
    let row = |m: &Linear| [m.name.clone(), String::new(), shape(m), m.dtype.clone().unwrap_or_default()];
    found.modules.iter().map(row).collect()
}

/// Modules that differ in their numbers only are one line, with `N` for each number.
fn grouped(found: &Inspected) -> Vec<Row> {
    let mut rows: Vec<(Row, u64)> = Vec::new();
    for module in &found.modules {
        let name: Vec<&str> =
            module.name.split('.').map(|part| if part.parse::<u64>().is_ok() { "N" } else { part }).collect();
        let row = [name.join("."), String::new(), shape(module), module.dtype.clone().unwrap_or_default()];
        match rows.iter_mut().find(|(have, _)| *have == row) {
            Some((_, times)) => *times += 1,
            None => rows.push((row, 1)),
        }
    }
    rows.into_iter()
        .map(|([name, _, shape, dtype], times)| [name, format!("x {}", count(times)), shape, dtype])
        .collect()
}

fn shape(module: &Linear) -> String {
    format!("{} x {}", module.shape[0], module.shape[1])
}

fn table(rows: &[Row], width: usize) -> String {
    let mut table = Table::new(&[
        Column { head: "linear module", align: Align::Left, drop: 0 },
        Column { head: "", align: Align::Right, drop: 0 },
        Column { head: "out x in", align: Align::Right, drop: 0 },
        Column { head: "type", align: Align::Left, drop: 1 },
    ]);
    rows.iter().for_each(|row| table.row(row.to_vec()));
    let lines = table.lines(width);
    let painted = lines.iter().enumerate().map(|(i, line)| if i == 0 { paint(DIM, line) } else { clip(line, width) });
    painted.collect::<Vec<_>>().join("\n")
}

fn trained(found: &Inspected, used: &Use) -> String {
    let estimate = &used.estimate;
    let share = percent(estimate.trainable_parameters as f64 / found.parameters.max(1) as f64);
    let mut out = format!("{} {}\n", paint(BOLD, "with"), used.recipe.display());
    let modules = match used.targets.len() {
        0 => "the model's own weights".to_string(),
        n => format!("adapters on {} of {} linear modules", count(n as u64), count(found.modules.len() as u64)),
    };
    out.push_str(&lines(&[
        ("trains", format!("{} parameters ({share}): {modules}", count(estimate.trainable_parameters))),
        ("memory", format!("{} at peak (estimate)", bytes(estimate.total_bytes))),
    ]));
    for (name, value) in parts(estimate) {
        out.push_str(&format!("\n  {} {value}", paint(DIM, format!("{name:<11}"))));
    }
    out
}
