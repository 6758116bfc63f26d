//! `pipe convert`: an adapter as a PEFT folder, or a model as a Hugging Face folder.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::{alone, report};

/// Write an adapter as a PEFT folder, or a GGUF model as a Hugging Face folder.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// An adapter folder, a GGUF file or a model folder.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Folder to write.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Element type: float32, float16 or bfloat16.
    #[arg(long)]
    dtype: Option<String>,
    /// Base model of an adapter, when the adapter does not say where it is.
    #[arg(long, value_name = "MODEL")]
    base_model: Option<PathBuf>,
}

pub fn convert(args: &ConvertArgs) -> Outcome {
    let source = alone::existing(&args.source)?;
    let out = alone::vacant(&args.output)?;
    match alone::adapter_config(&source)? {
        Some(config) => adapter(args, &source, &config, out),
        None => model(args, &source, out),
    }?;
    report::note(&format!("wrote {}", out.display()));
    Ok(())
}

fn adapter(args: &ConvertArgs, source: &Path, config: &Value, out: &Path) -> Outcome {
    let base = alone::base_of(config, args.base_model.as_deref())?;
    // The data is never read: it only makes the recipe one that trains, and so has a convert stage.
    let keys = json!({
        "base_model": base,
        "adapter": "lora",
        "lora_r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "lora_target_linear": true,
        "learning_rate": 1e-4,
        "output_dir": "out",
        "datasets": [{ "path": config_path(source), "type": "completion", "ds_type": "json" }],
        "convert": { "dtype": args.dtype },
    });
    let made = alone::recipe(&keys, &[])?;
    alone::run(&made.opened.plan, "convert", &[("adapter", source)], out, made.folder.path())?;
    Ok(())
}

fn config_path(source: &Path) -> PathBuf {
    source.join("adapter_config.json")
}

fn model(args: &ConvertArgs, source: &Path, out: &Path) -> Outcome {
    let keys = json!({ "base_model": source, "train": false, "merge": { "dtype": args.dtype, "base": "original" } });
    let made = alone::recipe(&keys, &[])?;
    alone::run(&made.opened.plan, "merge", &[], out, made.folder.path())?;
    Ok(())
}
