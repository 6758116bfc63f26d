//! alpaca-lora's flags (`python finetune.py --base_model ... --data_path ...`), with that script's defaults.

use serde_json::{Value, json};

use super::draft::Draft;
use super::settings::Settings;
use super::{ImportError, flags, leftovers, number};

const KNOWN: &[(&str, &str)] = &[
    ("wandb_*", "`report_to: wandb` writes an offline run, which `wandb sync` sends"),
    ("resume_from_checkpoint", "a run resumes by itself; to go on from an adapter, name it as lora_model_dir"),
    ("add_eos_token", "every answer ends with the end-of-sequence token here"),
];

pub(super) fn draft(words: &[String]) -> Result<Draft, ImportError> {
    let (_, map) = flags::read(words)?;
    let settings = Settings::new(map);
    let mut draft = Draft::default();
    let Some(model) = settings.text("base_model") else {
        return Err(ImportError::Flags { what: "there is no --base_model".to_string() });
    };
    draft.set("base_model", model);
    draft.note("load_in_8bit", true, "the script always loads the base in 8 bits");
    data(&settings, &mut draft)?;
    draft.section("What is trained");
    draft.set("adapter", "lora");
    draft.set("lora_r", settings.whole("lora_r")?.unwrap_or(8));
    draft.set("lora_alpha", number(settings.number("lora_alpha")?.unwrap_or(16.0)));
    draft.set("lora_dropout", settings.number("lora_dropout")?.unwrap_or(0.05));
    let targets = settings.names("lora_target_modules").unwrap_or_else(|| vec!["q_proj".into(), "v_proj".into()]);
    draft.set("lora_target_modules", targets);
    training(&settings, &mut draft)?;
    leftovers(&mut draft, settings.rest(), KNOWN);
    Ok(draft)
}

fn data(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Data");
    let path = settings.text("data_path").unwrap_or_else(|| "yahma/alpaca-cleaned".to_string());
    let template = settings.text("prompt_template_name").unwrap_or_else(|| "alpaca".to_string());
    let kind: Value = match template.as_str() {
        "alpaca" | "" => json!("alpaca"),
        "alpaca_legacy" => json!({
            "format": "Below is an instruction that describes a task, paired with an input that provides further context. \
                       Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                       ### Input:\n{input}\n\n### Response:",
            "no_input_format": "Below is an instruction that describes a task. Write a response that appropriately \
                                completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:",
        }),
        "alpaca_short" => json!({
            "format": "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "no_input_format": "### Instruction:\n{instruction}\n\n### Response:\n",
        }),
        other => {
            let why = "write its two prompts as `type: {format: ..., no_input_format: ...}`; the alpaca prompt takes its place";
            draft.lose(format!("prompt_template_name: {other}"), why);
            json!("alpaca")
        }
    };
    draft.set("datasets", json!([{"path": path, "type": kind}]));
    let val = settings.number("val_set_size")?.unwrap_or(2000.0);
    if val > 0.0 {
        draft.set("val_set_size", number(val));
    }
    draft.set("sequence_len", settings.whole("cutoff_len")?.unwrap_or(256));
    draft.note("excess_length_strategy", "truncate", "as the script does; the default here drops such rows");
    if settings.flag("train_on_inputs")?.unwrap_or(true) {
        draft.note("train_on_inputs", true, "the script's default");
    }
    if settings.is_on("group_by_length")? {
        draft.set("group_by_length", true);
    }
    Ok(())
}

fn training(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Training");
    let batch = settings.whole("batch_size")?.unwrap_or(128);
    let micro = settings.whole("micro_batch_size")?.unwrap_or(4).max(1);
    draft.set("micro_batch_size", micro);
    draft.note("gradient_accumulation_steps", (batch / micro).max(1), &format!("batch_size {batch} / {micro}"));
    draft.set("num_epochs", number(settings.number("num_epochs")?.unwrap_or(3.0)));
    draft.set("learning_rate", settings.number("learning_rate")?.unwrap_or(3e-4));
    draft.set("optimizer", "adamw_torch");
    draft.set("lr_scheduler", "linear");
    draft.set("warmup_steps", 100);
    draft.note("bf16", "auto", "the script computes in fp16; bf16 has the same speed and a wider range");
    let evaluates = draft.get("val_set_size").is_some();
    if evaluates {
        draft.set("eval_steps", 200);
    }
    draft.set("save_steps", 200);
    draft.set("save_total_limit", 3);
    draft.set("logging_steps", 10);
    draft.set("output_dir", settings.text("output_dir").unwrap_or_else(|| "./lora-alpaca".to_string()));
    if evaluates {
        draft.lose("load_best_model_at_end: True", "the last adapter is kept; checkpoints hold the others");
    }
    Ok(())
}
