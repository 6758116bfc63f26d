//! `pipe merge`: an adapter folded into its base model.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::{alone, report};

/// Fold an adapter into its base model; writes a Hugging Face folder.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The base model: a Hugging Face folder or a GGUF file.
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder to write.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Element type: bfloat16, float16 or float32.
    #[arg(long)]
    dtype: Option<String>,
    /// Largest weight file, such as 5GB.
    #[arg(long, value_name = "SIZE")]
    max_shard_size: Option<String>,
    /// 4 merges into the 4-bit base that QLoRA trained on.
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(4..=4))]
    bits: Option<u8>,
}

pub fn merge(args: &MergeArgs) -> Outcome {
    let (base, adapter) = (alone::existing(&args.base)?, alone::existing(&args.adapter)?);
    if !adapter.join("adapter_config.json").is_file() {
        return Err(Failure::invalid(format!(
            "{} is no PEFT adapter: it has no adapter_config.json",
            args.adapter.display()
        )));
    }
    let out = alone::vacant(&args.output)?;
    let onto = if args.bits.is_some() { "as_trained" } else { "original" };
    let keys = json!({
        "base_model": base,
        "train": false,
        "load_in_4bit": args.bits.map(|_| true),
        "lora_model_dir": adapter,
        // An adapter folder that has a tokenizer also has the template it was trained with.
        "tokenizer_config": adapter.join("tokenizer.json").is_file().then_some(&adapter),
        "merge": { "dtype": args.dtype, "max_shard_size": args.max_shard_size, "base": onto },
    });
    let made = alone::recipe(&keys, &[])?;
    alone::run(&made.opened.plan, "merge", &[], out, made.folder.path())?;
    report::note(&format!("wrote {}", out.display()));
    Ok(())
}
