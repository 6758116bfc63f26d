//! `pipe merge`: adapters folded into their base model.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::{alone, report};

/// Fold adapters into their base model; writes a Hugging Face folder.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The base model: a Hugging Face folder or a GGUF file.
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// PEFT adapter folder. Repeatable: their changes of the weights are added up.
    #[arg(long = "adapter", value_name = "DIR", required = true)]
    adapters: Vec<PathBuf>,
    /// What each adapter's change is multiplied with, such as 0.7,0.3, in the order of the adapters; default 1 for each.
    #[arg(long, value_name = "W,W", value_delimiter = ',', allow_hyphen_values = true)]
    weights: Vec<f64>,
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
    let base = alone::existing(&args.base)?;
    let adapters = adapters(args)?;
    let Some(((adapter, weight), further)) = adapters.split_first() else { return Ok(()) };
    let out = alone::vacant(&args.output)?;
    let onto = if args.bits.is_some() { "as_trained" } else { "original" };
    let keys = json!({
        "base_model": base,
        "train": false,
        "load_in_4bit": args.bits.map(|_| true),
        "lora_model_dir": adapter,
        // An adapter folder that has a tokenizer also has the template it was trained with.
        "tokenizer_config": adapter.join("tokenizer.json").is_file().then_some(adapter),
        "merge": {
            "dtype": args.dtype, "max_shard_size": args.max_shard_size, "base": onto,
            "weight": weight,
            "adapters": further.iter().map(|(path, weight)| json!({ "path": path, "weight": weight })).collect::<Vec<_>>(),
        },
    });
    let made = alone::recipe(&keys, &[])?;
    let summary = alone::run(&made.opened.plan, "merge", &[], out, made.folder.path())?;
    summary.warnings.iter().for_each(|warning| report::warning(warning));
    report::note(&format!("wrote {}", out.display()));
    Ok(())
}

/// The adapters with their weights.
fn adapters(args: &MergeArgs) -> Result<Vec<(PathBuf, f64)>, Failure> {
    let (given, wanted) = (args.weights.len(), args.adapters.len());
    if given > 0 && given != wanted {
        let said = format!("--weights names {given} numbers, and there are {wanted} adapters");
        return Err(Failure::invalid(said).hint("give one weight for each --adapter, in their order"));
    }
    if let Some(weight) = args.weights.iter().find(|weight| !weight.is_finite()) {
        return Err(Failure::invalid(format!("--weights: {weight} is no number to multiply with")));
    }
    let weights = args.weights.iter().copied().chain(std::iter::repeat(1.0));
    let one = |(folder, weight): (&PathBuf, f64)| {
        let path = alone::existing(folder)?;
        if !path.join("adapter_config.json").is_file() {
            let why = format!("{} is no PEFT adapter: it has no adapter_config.json", folder.display());
            return Err(Failure::invalid(why));
        }
        Ok((path, weight))
    };
    args.adapters.iter().zip(weights).map(one).collect()
}
