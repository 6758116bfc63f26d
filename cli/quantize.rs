//! `pipe quantize`: a model as a GGUF file of another type, or as a folder in bitsandbytes' layout.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use pipe_engine::plan::NodeName;
use pipe_stages::inspect;
use serde_json::{Value, json};

use crate::alone::{self, Made};
use crate::failure::{Failure, Outcome};
use crate::report::{self, plain::OnlyTrouble};

/// What a store keeps beside a node's output.
const MANIFEST: &str = "manifest.json";
/// Rows are cut to this many tokens unless the model was made for fewer.
const LONGEST: u64 = 2048;

/// Write a model as a GGUF file, or as a folder in bitsandbytes' layout.
#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// A Hugging Face folder or a GGUF file.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// GGUF type, such as q8_0 or q4_k_m, or nf4 or int8.
    #[arg(long = "type", value_name = "T")]
    kind: String,
    /// File to write; a folder for nf4 and int8.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// An importance matrix that guides types of few bits: a GGUF file of llama-imatrix, or of a recipe's quantize.importance.
    #[arg(long, value_name = "FILE", conflicts_with = "calibration")]
    importance: Option<PathBuf>,
    /// Measure importance on these rows.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Format of those rows, as datasets[].type.
    #[arg(long, value_name = "T", default_value = "chat_template", requires = "calibration")]
    calibration_type: String,
    /// How many of them are measured on, the first ones.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    calibration_rows: u32,
}

pub fn quantize(args: &QuantizeArgs) -> Outcome {
    let model = alone::existing(&args.model)?;
    if args.output.exists() {
        return Err(Failure::invalid(format!("{} exists already", args.output.display())).hint("name a new file"));
    }
    let importance = match (&args.importance, &args.calibration) {
        (Some(file), _) => json!({ "file": alone::existing(file)? }),
        (None, Some(_)) => json!({ "rows": args.calibration_rows }),
        (None, None) => Value::Bool(false),
    };
    let mut keys = json!({
        "base_model": model,
        "train": false,
        "quantize": { "types": [args.kind], "importance": importance },
    });
    if let Some(rows) = &args.calibration {
        let longest = inspect::context_length(&model).unwrap_or(LONGEST).min(LONGEST);
        keys["sequence_len"] = json!(longest);
        keys["datasets"] = json!([{ "path": alone::existing(rows)?, "type": args.calibration_type }]);
    }
    let made = alone::recipe(&keys, &[])?;
    let draft = beside(&args.output);
    let result = quantized(args, &made, &draft);
    let placed = result.and_then(|from| place(&from, &args.output));
    let _ = std::fs::remove_dir_all(&draft);
    placed?;
    report::note(&format!("wrote {}", args.output.display()));
    Ok(())
}

/// The folder with the result: `draft`, or one in the verb's own store where rows are measured on first.
fn quantized(args: &QuantizeArgs, made: &Made, draft: &Path) -> Result<PathBuf, Failure> {
    let plan = &made.opened.plan;
    if args.calibration.is_none() {
        alone::run(plan, "quantize", &[], draft, made.folder.path())?;
        return Ok(draft.to_path_buf());
    }
    let store = made.opened.store()?;
    let cancel = alone::interruptible()?;
    let mut outputs = alone::until(plan, &store, "quantize", Arc::new(OnlyTrouble), &cancel)?;
    outputs.shift_remove(&NodeName::new("quantize")).ok_or_else(|| Failure::stage("there is nothing to write"))
}

/// A folder on the same disk, so that the finished file is renamed and not copied.
fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!(".{name}.draft-{}", std::process::id()))
}

/// Puts the one file or folder in `from` at `output`, on whatever disk that is.
fn place(from: &Path, output: &Path) -> Outcome {
    let entries = std::fs::read_dir(from).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| Failure::stage(format!("cannot read {}: {e}", from.display())))?;
    let made = entries.iter().find(|entry| entry.file_name() != MANIFEST).map(|entry| entry.path());
    let made = made.ok_or_else(|| Failure::stage("the worker wrote no file"))?;
    // What lies in a store is read-only, and stays there.
    let stored = from.join(MANIFEST).is_file();
    if !stored && std::fs::rename(&made, output).is_ok() {
        return Ok(());
    }
    alone::copy(&made, output)
}
