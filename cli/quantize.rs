//! `pipe quantize`: a model as a GGUF file of another type, or as a folder in bitsandbytes' layout.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::{alone, report};

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
}

pub fn quantize(args: &QuantizeArgs) -> Outcome {
    let model = alone::existing(&args.model)?;
    if args.output.exists() {
        return Err(Failure::invalid(format!("{} exists already", args.output.display())).hint("name a new file"));
    }
    let keys = json!({ "base_model": model, "train": false, "quantize": { "types": [args.kind] } });
    let made = alone::recipe(&keys, &[])?;
    let draft = beside(&args.output);
    let result = alone::run(&made.opened.plan, "quantize", &[], &draft, made.folder.path());
    let placed = result.and_then(|_| place(&draft, &args.output));
    let _ = std::fs::remove_dir_all(&draft);
    placed?;
    report::note(&format!("wrote {}", args.output.display()));
    Ok(())
}

/// A folder on the same disk, so that the finished file is renamed and not copied.
fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!(".{name}.draft-{}", std::process::id()))
}

fn place(draft: &Path, output: &Path) -> Outcome {
    let failed = |e: std::io::Error| Failure::stage(format!("cannot write {}: {e}", output.display()));
    let mut made = std::fs::read_dir(draft).map_err(failed)?.filter_map(Result::ok);
    let made = made.next().ok_or_else(|| Failure::stage("the worker wrote no file"))?;
    std::fs::rename(made.path(), output).map_err(failed)
}
