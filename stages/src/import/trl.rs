//! TRL's `trl sft` and `sft.py` flags, with the defaults of its SFTConfig, ModelConfig and transformers' arguments.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::draft::Draft;
use super::peft::default_targets;
use super::settings::Settings;
use super::{ImportError, flags, leftovers, number, trainer_names, warmup, yaml};

const KNOWN: &[(&str, &str)] = &[
    ("push_to_hub hub_* logging_dir log_level disable_tqdm project trackio_*", "nothing is sent anywhere"),
    (
        "report_to run_name",
        "`report_to` names the trackers that runs are written for here: tensorboard, mlflow, wandb (offline)",
    ),
    (
        "trust_remote_code dataset_num_proc dataloader_* overwrite_output_dir do_train do_eval lora_task_type env \
         remove_unused_columns pad_to_multiple_of save_only_model include_num_input_tokens_seen",
        "nothing that comes out depends on it here",
    ),
    (
        "attn_implementation use_liger_kernel loss_type activation_offloading padding_free torch_compile optim_target_modules \
         gradient_checkpointing_kwargs",
        "the kernels are built in",
    ),
    ("deepspeed fsdp* accelerator_config ddp_* num_processes local_rank", "one machine trains here"),
    ("dtype torch_dtype model_init_kwargs", "precision follows bf16 and fp16 here"),
    ("packing_strategy eval_packing", "packing is best fit, and no row is cut"),
    ("resume_from_checkpoint", "a run resumes by itself from its last checkpoint"),
    ("router_aux_loss_coef", "the model's own coefficient counts"),
    ("dataset_streaming", "data is read in parts as needed"),
    ("load_best_model_at_end metric_for_best_model", "the last adapter is kept; checkpoints hold the others"),
];

/// Data sets of TRL's own pages that hold plain text instead of messages.
const TEXTS: &[&str] = &["stanfordnlp/imdb", "trl-lib/tldr"];

pub(super) fn draft(words: &[String]) -> Result<Draft, ImportError> {
    let (before, flags) = flags::read(words)?;
    refuse(&before)?;
    let settings = Settings::new(with_file(flags)?);
    settings.take("config");
    let Some(model) = settings.text("model_name_or_path") else {
        return Err(ImportError::Flags { what: "there is no --model_name_or_path".to_string() });
    };
    let mut draft = Draft::default();
    draft.set("base_model", model.as_str());
    draft.set_some("model_revision", settings.text("model_revision").filter(|revision| revision != "main"));
    data(&settings, &mut draft)?;
    method(&settings, &mut draft, &model)?;
    training(&settings, &mut draft)?;
    leftovers(&mut draft, settings.rest(), KNOWN);
    Ok(draft)
}

/// `--config FILE` holds what the flags do not say.
fn with_file(flags: Map<String, Value>) -> Result<Map<String, Value>, ImportError> {
    let Some(Value::String(file)) = flags.get("config") else { return Ok(flags) };
    let (mut map, _) = yaml(Path::new(file))?;
    map.extend(flags);
    Ok(map)
}

/// Scripts of other objectives share most flags, and mean something else.
fn refuse(before: &[String]) -> Result<(), ImportError> {
    let named = before.iter().rev().find_map(|word| {
        let stem = word.rsplit('/').next().unwrap_or(word);
        stem.strip_suffix(".py").or((word == stem && word != "trl").then_some(stem))
    });
    match named {
        None => Ok(()),
        Some(name) if name.starts_with("sft") || matches!(name, "python" | "python3" | "accelerate" | "launch") => {
            Ok(())
        }
        Some(name) => {
            let what = format!("`{name}` is not supervised fine-tuning, and recipes train on text");
            Err(ImportError::foreign(what, "import the flags of `trl sft`"))
        }
    }
}

fn data(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Data");
    let template = settings.text("chat_template_path");
    let entries = entries(settings, draft)?;
    if entries.is_empty() {
        return Err(ImportError::Flags { what: "there is no --dataset_name".to_string() });
    }
    if let Some(path) = template {
        draft.note("chat_template", path, "chat_template_path");
    }
    draft.set("datasets", entries.clone());
    let evaluates = settings.text("eval_strategy").is_some_and(|strategy| strategy != "no");
    let split = settings.text("dataset_test_split").unwrap_or_else(|| "test".to_string());
    if evaluates {
        let mut test = entries[0].clone();
        test["split"] = json!(split);
        test["label"] = json!(split);
        draft.set("test_datasets", json!([test]));
        for key in ["eval_steps", "per_device_eval_batch_size"] {
            if let Some(value) = settings.text(key) {
                draft.lose(
                    format!("{key}: {value}"),
                    "the test split is measured after training; split.val is during it",
                );
            }
        }
    }
    if let Some(eos) = settings.text("eos_token") {
        draft.set("special_tokens", json!({"eos_token": eos}));
    }
    settings.take("pad_token");
    draft.set("sequence_len", settings.whole("max_length")?.unwrap_or(1024));
    draft.note("excess_length_strategy", "truncate", "as TRL does; the default here drops such rows");
    if settings.text("truncation_mode").is_some_and(|mode| mode != "keep_start") {
        draft.lose("truncation_mode: keep_end", "long rows lose their end");
    }
    if settings.is_on("packing")? {
        draft.set("sample_packing", true);
    }
    settings.take("shuffle_dataset");
    Ok(())
}

fn entries(settings: &Settings, draft: &mut Draft) -> Result<Vec<Value>, ImportError> {
    let only = settings.is_on("assistant_only_loss")? || settings.is_on("completion_only_loss")?;
    let column = settings.text("dataset_text_field").filter(|column| !column.is_empty());
    let split = settings.text("dataset_train_split").filter(|split| split != "train");
    let one = |path: &str, name: Option<String>, split: Option<String>| {
        let mut entry = Map::from_iter([("path".to_string(), json!(path))]);
        entry.extend(name.map(|name| ("name".to_string(), json!(name))));
        entry.extend(split.map(|split| ("split".to_string(), json!(split))));
        if column.is_some() || TEXTS.contains(&path) {
            entry.insert("type".to_string(), json!("completion"));
            entry.insert("field".to_string(), json!(column.as_deref().unwrap_or("text")));
        } else {
            entry.insert("type".to_string(), json!("chat_template"));
            if !only {
                // Without assistant_only_loss, TRL trains conversations whole.
                entry.insert("train_on_inputs".to_string(), json!(true));
            }
        }
        Value::Object(entry)
    };
    let mut entries = Vec::new();
    if let Some(Value::Array(listed)) = settings.take("datasets").cloned() {
        for set in listed {
            let text = |key: &str| set.get(key).and_then(Value::as_str).map(str::to_string);
            entries.extend(text("path").map(|path| one(&path, text("name"), text("split"))));
            for key in ["data_dir", "data_files", "columns", "fraction"] {
                if let Some(value) = set.get(key).filter(|value| !value.is_null()) {
                    draft.lose(format!("datasets[].{key}: {}", super::draft::inline(value)), "set it by hand");
                }
            }
        }
    } else if let Some(path) = settings.text("dataset_name") {
        entries.push(one(&path, settings.text("dataset_config"), split));
    }
    let guessed = column.is_none() && entries.iter().any(|entry| entry["type"] == "chat_template");
    if guessed {
        draft.lose("the columns of the data set", "taken to hold `messages`; TRL looks at the rows to decide");
    }
    Ok(entries)
}

fn method(settings: &Settings, draft: &mut Draft, model: &str) -> Result<(), ImportError> {
    draft.section("What is trained");
    let (four, eight) = (settings.is_on("load_in_4bit")?, settings.is_on("load_in_8bit")?);
    let nested = settings.is_on("use_bnb_nested_quant")?;
    let kind = settings.text("bnb_4bit_quant_type").unwrap_or_else(|| "nf4".to_string());
    settings.take("bnb_4bit_quant_storage");
    if four {
        draft.set("load_in_4bit", true);
        let config = json!({"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested});
        draft.note("bnb_config_kwargs", config, "TRL does not quantise the scales unless use_bnb_nested_quant");
    }
    if eight {
        draft.set("load_in_8bit", true);
    }
    if !settings.is_on("use_peft")? {
        draft.note("adapter", Value::Null, "blank: all weights are trained");
        return Ok(());
    }
    draft.set("adapter", if four { "qlora" } else { "lora" });
    draft.set("lora_r", settings.whole("lora_r")?.unwrap_or(16));
    draft.set("lora_alpha", number(settings.number("lora_alpha")?.unwrap_or(32.0)));
    draft.set("lora_dropout", settings.number("lora_dropout")?.unwrap_or(0.05));
    match settings.names("lora_target_modules") {
        Some(names) if names == ["all-linear"] => draft.set("lora_target_linear", true),
        Some(names) => draft.set("lora_target_modules", names),
        None => draft.note("lora_target_modules", default_targets(model), "what PEFT adapts by default"),
    }
    draft.set_some("lora_modules_to_save", settings.names("lora_modules_to_save"));
    for (theirs, ours) in [("use_rslora", "peft_use_rslora"), ("use_dora", "peft_use_dora")] {
        if settings.is_on(theirs)? {
            draft.set(ours, true);
        }
    }
    Ok(())
}

fn training(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Training");
    draft.set("micro_batch_size", settings.whole("per_device_train_batch_size")?.unwrap_or(8));
    draft.set("gradient_accumulation_steps", settings.whole("gradient_accumulation_steps")?.unwrap_or(1));
    draft.set("num_epochs", number(settings.number("num_train_epochs")?.unwrap_or(3.0)));
    draft.set_some("max_steps", settings.number("max_steps")?.filter(|n| *n > 0.0).map(|n| n as u64));
    draft.set("learning_rate", settings.number("learning_rate")?.unwrap_or(2e-5));
    trainer_names(draft, settings.text("optim"), settings.text("lr_scheduler_type"), ("adamw_torch_fused", "linear"));
    warmup(draft, settings.number("warmup_steps")?, settings.number("warmup_ratio")?);
    for key in ["weight_decay", "max_grad_norm", "neftune_noise_alpha", "adam_beta1", "adam_beta2", "adam_epsilon"] {
        draft.set_some(key, settings.number(key)?.map(number));
    }
    draft.set_some("seed", settings.whole("seed")?);
    if settings.is_on("fp16")? {
        draft.set("bf16", false);
        draft.set("fp16", true);
    } else if settings.flag("bf16")? == Some(false) {
        draft.set("bf16", false);
    } else {
        draft.note("bf16", "auto", "bf16 where this machine computes in it");
    }
    if settings.flag("gradient_checkpointing")?.unwrap_or(true) {
        draft.note("gradient_checkpointing", true, "TRL's default; costs time, saves memory");
    }
    match settings.text("save_strategy").as_deref() {
        Some("epoch") => draft.set("saves_per_epoch", 1),
        Some("no") => draft.set("save_strategy", "no"),
        _ => draft.set("save_steps", number(settings.number("save_steps")?.unwrap_or(500.0))),
    }
    draft.set_some("save_total_limit", settings.whole("save_total_limit")?);
    draft.set("logging_steps", number(settings.number("logging_steps")?.filter(|n| *n >= 1.0).unwrap_or(10.0)));
    draft.set_some("output_dir", settings.text("output_dir"));
    Ok(())
}
