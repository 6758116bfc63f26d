//! torchtune's YAML (`tune run RECIPE --config FILE`): components by their Python names, with their defaults.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::draft::Draft;
use super::settings::Settings;
use super::{ImportError, leftovers, number, yaml};

const KNOWN: &[(&str, &str)] = &[
    (
        "device compile log_every_n_steps log_level log_peak_memory_stats metric_logger* profiler* custom_sharded_layers \
         fsdp* data_parallel_* tensor_parallel_* use_distributed_state_dict low_cpu_ram enable_activation_offloading \
         save_adapter_weights_only activation_offloading_* use_flex context_parallel_dim dataloader* checkpointer.*",
        "nothing that comes out depends on it here",
    ),
    ("optimizer_in_bwd", "each step updates once, from the whole window's gradients"),
    ("quantizer*", "training under fake quantisation (QAT) is not done here; quantise afterwards with `quantize`"),
    ("resume_from_checkpoint", "a run resumes by itself from its last checkpoint"),
    ("optimizer.fused optimizer.foreach", "the update is the same"),
    ("loss*", "the loss is cross-entropy over trained tokens, computed in chunks"),
    ("collate_fn", "rows are packed or take a sequence each"),
    ("batch_size_val run_val_every_n_steps", "see eval_batch_size and eval_steps"),
];

pub(super) fn draft(path: &Path) -> Result<Draft, ImportError> {
    let (mut map, text) = yaml(path)?;
    let whole = Value::Object(map.clone());
    map.values_mut().for_each(|value| interpolate(value, &whole, 0));
    let settings = Settings::new(map);
    refuse(&settings)?;
    let mut draft = Draft::default();
    model_id(&settings, &text, &mut draft);
    data(&settings, &mut draft)?;
    method(&settings, &mut draft)?;
    training(&settings, &mut draft)?;
    leftovers(&mut draft, settings.rest(), KNOWN);
    Ok(draft)
}

/// `${output_dir}/logs` and the like, as OmegaConf fills them in.
fn interpolate(value: &mut Value, whole: &Value, depth: usize) {
    match value {
        Value::String(text) => {
            while let Some((before, rest)) = text.split_once("${") {
                let Some((name, after)) = rest.split_once('}') else { return };
                let found = name.split('.').try_fold(whole, |value, key| value.get(key)).and_then(Value::as_str);
                // What is not there stays as it is written.
                let Some(found) = found.filter(|_| depth < 8) else { return };
                *text = format!("{before}{found}{after}");
                if found.contains("${") {
                    return interpolate(value, whole, depth + 1);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| interpolate(item, whole, depth)),
        Value::Object(map) => map.values_mut().for_each(|item| interpolate(item, whole, depth)),
        _ => {}
    }
}

fn component(settings: &Settings, key: &str) -> String {
    settings
        .take(key)
        .and_then(|value| value.get("_component_"))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_string()
}

fn refuse(settings: &Settings) -> Result<(), ImportError> {
    let foreign = |what: &str, instead: &str| Err(ImportError::foreign(what, instead));
    if settings.has("tasks") {
        return foreign("this is a configuration for evaluation, not for training", "pipe eval MODEL --data FILE");
    }
    if !settings.has("optimizer") && settings.has("quantizer") {
        return foreign("this is a configuration for quantising, not for training", "pipe quantize DIR --type q4_k_m");
    }
    if !settings.has("optimizer") {
        return foreign("there is no `optimizer`: this is not a configuration of a training run", "pipe chat MODEL");
    }
    let loss = component(settings, "loss");
    let rl = ["reward_functions", "reward_and_value_model", "policy_model", "ref_checkpointer", "grpo_samples"];
    if rl.iter().any(|key| settings.has(key)) || loss.contains("rlhf") || loss.contains("GRPO") {
        return foreign("this trains preferences or rewards, and recipes train on text", "import an SFT configuration");
    }
    if settings.has("teacher_model") {
        return foreign("this distils a teacher's answers, and recipes train on text", "import an SFT configuration");
    }
    let dataset = component(settings, "dataset");
    if dataset.contains("multimodal") {
        return foreign("this trains on images, and recipes train on text", "import a configuration of a text model");
    }
    Ok(())
}

/// The file names folders under /tmp; its heading says which model was downloaded there.
fn model_id(settings: &Settings, text: &str, draft: &mut Draft) {
    let checkpointer = settings.nested("checkpointer");
    let folder = checkpointer.text("checkpoint_dir").unwrap_or_default();
    let downloads = text.lines().filter(|line| line.trim_start().starts_with('#')).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "download")?;
        let target = words.iter().position(|word| *word == "--output-dir").and_then(|at| words.get(at + 1));
        Some((words.get(at + 1)?.to_string(), target.map_or("", |word| word)))
    });
    let all: Vec<(String, &str)> = downloads.collect();
    let same = |a: &str, b: &str| !a.is_empty() && a.trim_end_matches('/') == b.trim_end_matches('/');
    let found = all.iter().find(|(_, target)| same(target, &folder)).or_else(|| all.first());
    match found {
        Some((id, _)) => draft.note("base_model", id.as_str(), &format!("what the file downloads to {folder}")),
        None => draft.note("base_model", folder.as_str(), "checkpoint_dir: a Hugging Face folder is needed here"),
    }
    if checkpointer.text("_component_").is_some_and(|name| name.contains("Meta")) {
        draft.lose("checkpointer: Meta's format", "name the model's Hugging Face folder as base_model");
    }
    let adapter = checkpointer.text("adapter_checkpoint");
    if let Some(adapter) = adapter {
        draft.lose(format!("checkpointer.adapter_checkpoint: {adapter}"), "name a PEFT folder as lora_model_dir");
    }
}

fn data(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Data");
    let tokenizer = settings.nested("tokenizer");
    let length = tokenizer.whole("max_seq_len")?;
    if let Some(template) = tokenizer.text("prompt_template") {
        draft.lose(format!("tokenizer.prompt_template: {template}"), "see chat_template, or `type` with a format");
    }
    let mut entries = Vec::new();
    let mut packed = false;
    let sets = match settings.take("dataset").cloned() {
        Some(Value::Array(sets)) => sets,
        Some(one) => vec![one],
        None => Vec::new(),
    };
    for set in sets {
        let Value::Object(map) = set else { continue };
        let set = Settings::new(map);
        packed |= set.is_on("packed")?;
        entries.push(Value::Object(dataset(&set, draft)?));
        leftovers(draft, set.rest().into_iter().map(|(key, value)| (format!("dataset.{key}"), value)).collect(), KNOWN);
    }
    if entries.iter().any(|entry| entry["type"] == "chat_template") {
        draft.note("chat_template", "tokenizer_default", "the model's own");
    }
    draft.set("datasets", entries);
    let val = settings.nested("dataset_val");
    if settings.whole("run_val_every_n_steps")?.is_some() && val.has("_component_") {
        draft.lose("dataset_val", "hold out rows of the data set with val_set_size, such as 0.05");
    }
    match length {
        Some(length) => draft.set("sequence_len", length),
        None => draft.note("sequence_len", 2048, "the file sets no limit; rows longer than this are cut"),
    }
    draft.note("excess_length_strategy", "truncate", "as torchtune does; the default here drops such rows");
    if packed {
        draft.set("sample_packing", true);
    }
    if settings.flag("shuffle")? == Some(false) {
        draft.set("shuffle_merged_datasets", false);
    }
    Ok(())
}

fn dataset(set: &Settings, draft: &mut Draft) -> Result<Map<String, Value>, ImportError> {
    let component = set.text("_component_").unwrap_or_default();
    let name = component.rsplit('.').next().unwrap_or_default();
    let source = set.text("source");
    // Component, its source, our type, whether prompts are trained by default.
    let (usual, kind, inputs): (Option<&str>, Value, bool) = match name {
        "alpaca_dataset" => (Some("tatsu-lab/alpaca"), json!("alpaca"), true),
        "alpaca_cleaned_dataset" => (Some("yahma/alpaca-cleaned"), json!("alpaca"), true),
        "samsum_dataset" => {
            let kind = json!({"field_instruction": "dialogue", "field_output": "summary",
                "format": "Summarize this dialogue:\n{instruction}\n---\nSummary:\n"});
            (Some("Samsung/samsum"), kind, false)
        }
        "grammar_dataset" => {
            let kind = json!({"field_instruction": "input", "field_output": "output",
                "format": "Correct this to standard English: {instruction}\n---\nCorrected: "});
            (Some("liweili/c4_200m"), kind, false)
        }
        "instruct_dataset" => {
            let kind = json!({"field_instruction": "input", "field_output": "output", "format": "{instruction}"});
            (None, kind, false)
        }
        "slimorca_dataset" => (Some("Open-Orca/SlimOrca-Dedup"), json!("chat_template"), false),
        "chat_dataset" => (None, json!("chat_template"), false),
        "text_completion_dataset" => (None, json!("completion"), false),
        "cnn_dailymail_articles_dataset" => (Some("ccdv/cnn_dailymail"), json!("completion"), false),
        "wikitext_dataset" => (Some("EleutherAI/wikitext_document_level"), json!("completion"), false),
        _ => {
            let what = format!("`{component}` makes its rows in Python, which is not run here");
            return Err(ImportError::foreign(what, "import a configuration with one of torchtune's text data sets"));
        }
    };
    let Some(path) = source.or(usual.map(str::to_string)) else {
        let what = format!("the data set `{component}` names no `source`");
        return Err(ImportError::foreign(what, "name a file or a hub id there"));
    };
    let mut entry = Map::from_iter([("path".to_string(), json!(path)), ("type".to_string(), kind)]);
    columns(set, name, &mut entry, draft);
    for (theirs, ours) in [("data_files", "data_files"), ("split", "split"), ("subset", "name")] {
        entry.extend(set.take(theirs).filter(|value| **value != json!("train")).map(|v| (ours.to_string(), v.clone())));
    }
    let trains_inputs = set.flag("train_on_input")?.or(set.flag("train_on_inputs")?).unwrap_or(inputs);
    if trains_inputs && entry["type"] != "completion" {
        entry.insert("train_on_inputs".to_string(), json!(true));
    }
    Ok(entry)
}

fn columns(set: &Settings, name: &str, entry: &mut Map<String, Value>, draft: &mut Draft) {
    let map = set.take("column_map").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(Value::Object(kind)) = entry.get_mut("type") {
        for (ours, theirs) in [("field_instruction", ["input", "dialogue"]), ("field_output", ["output", "summary"])] {
            if let Some(column) = theirs.iter().find_map(|key| map.get(*key)) {
                kind.insert(ours.to_string(), column.clone());
            }
        }
    } else if entry["type"] == "completion" {
        let column = set.text("column").unwrap_or_else(|| {
            (if name.starts_with("cnn") {
                "article"
            } else if name.starts_with("wiki") {
                "page"
            } else {
                "text"
            })
            .into()
        });
        entry.insert("field".to_string(), json!(column));
    } else if entry["type"] == "chat_template" {
        let column = set.text("conversation_column").unwrap_or_else(|| "conversations".to_string());
        entry.insert("field_messages".to_string(), json!(column));
        if set.text("conversation_style").is_none_or(|style| style == "sharegpt") {
            entry.insert("message_property_mappings".to_string(), json!({"role": "from", "content": "value"}));
        }
    } else if !map.is_empty() {
        draft.lose(format!("dataset.column_map: {}", Value::Object(map)), "rename the columns in the data");
    }
    if let Some(prompt) = set.text("new_system_prompt") {
        draft.set("default_system_message", prompt);
    }
}

fn method(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("What is trained");
    let model = settings.nested("model");
    let component = model.text("_component_").unwrap_or_default();
    let builder = component.rsplit('.').next().unwrap_or_default().to_string();
    let quantised = builder.starts_with("qlora_") || model.is_on("quantize_base")?;
    if !builder.starts_with("lora_") && !builder.starts_with("qlora_") {
        draft.note("adapter", Value::Null, "blank: all weights are trained");
        leftovers(draft, model.rest(), KNOWN);
        return Ok(());
    }
    if quantised {
        draft.set("load_in_4bit", true);
    }
    draft.set("adapter", if quantised { "qlora" } else { "lora" });
    draft.set("lora_r", model.whole("lora_rank")?.unwrap_or(8));
    draft.set("lora_alpha", number(model.number("lora_alpha")?.unwrap_or(16.0)));
    draft.set("lora_dropout", model.number("lora_dropout")?.unwrap_or(0.0));
    let attention = model.names("lora_attn_modules").unwrap_or_else(|| vec!["q_proj".into(), "v_proj".into()]);
    let mut targets: Vec<String> = attention.into_iter().map(|name| name.replace("output_proj", "o_proj")).collect();
    if model.is_on("apply_lora_to_mlp")? {
        targets.extend(["gate_proj", "up_proj", "down_proj"].map(str::to_string));
    }
    if targets.len() == 7 {
        draft.set("lora_target_linear", true);
    } else if component.contains(".phi3.") || component.contains(".phi4.") {
        // These models keep q, k and v in one matrix, and gate and up in another.
        draft.note("lora_target_linear", true, &format!("in place of {}", targets.join(", ")));
    } else {
        draft.set("lora_target_modules", targets);
    }
    if model.is_on("apply_lora_to_output")? {
        draft.lose("model.apply_lora_to_output: True", "the output head is not adapted");
    }
    if model.is_on("use_dora")? {
        draft.set("peft_use_dora", true);
    }
    leftovers(draft, model.rest(), KNOWN);
    Ok(())
}

fn training(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Training");
    draft.set("micro_batch_size", settings.whole("batch_size")?.unwrap_or(1));
    draft.set("gradient_accumulation_steps", settings.whole("gradient_accumulation_steps")?.unwrap_or(1));
    let epochs = settings.number("epochs")?.unwrap_or(1.0);
    draft.set("num_epochs", number(epochs));
    if let Some(most) = settings.whole("max_steps_per_epoch")? {
        draft.note("max_steps", most * epochs.max(1.0) as u64, "max_steps_per_epoch x epochs");
    }
    optimizer(settings, draft)?;
    let scheduler = settings.nested("lr_scheduler");
    let name = scheduler.text("_component_").unwrap_or_default();
    match name.rsplit('.').next().unwrap_or_default() {
        "get_cosine_schedule_with_warmup" => {
            draft.set("lr_scheduler", "cosine");
            draft.set("warmup_steps", scheduler.whole("num_warmup_steps")?.unwrap_or(0));
        }
        "" => draft.note("lr_scheduler", "constant", "the file has no lr_scheduler"),
        other => {
            draft.lose(format!("lr_scheduler: {other}"), "a constant rate takes its place; see lr_scheduler");
            draft.set("lr_scheduler", "constant");
        }
    }
    leftovers(draft, scheduler.rest(), KNOWN);
    let clip = settings.number("clip_grad_norm")?;
    draft.note("max_grad_norm", number(clip.unwrap_or(0.0)), if clip.is_none() { "no clipping" } else { "" });
    match settings.text("dtype").as_deref() {
        Some("fp32" | "float32") => draft.set("bf16", false),
        _ => draft.note("bf16", "auto", "bf16 where this machine computes in it"),
    }
    if settings.is_on("enable_activation_checkpointing")? {
        draft.set("gradient_checkpointing", true);
    }
    draft.set_some("seed", settings.whole("seed")?);
    draft.set("saves_per_epoch", 1);
    draft.set_some("output_dir", settings.text("output_dir"));
    Ok(())
}

fn optimizer(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    let optimizer = settings.nested("optimizer");
    let component = optimizer.text("_component_").unwrap_or_default();
    // PyTorch and bitsandbytes both decay weights by 0.01 unless told otherwise.
    let (name, decay) = match component.as_str() {
        "torch.optim.AdamW" => ("adamw_torch", 0.01),
        "bitsandbytes.optim.PagedAdamW" => ("paged_adamw_32bit", 0.01),
        "bitsandbytes.optim.PagedAdamW8bit" => ("paged_adamw_8bit", 0.01),
        "bitsandbytes.optim.AdamW8bit" => ("adamw_bnb_8bit", 0.01),
        "torch.optim.SGD" => ("sgd", 0.0),
        other => {
            draft.lose(format!("optimizer: {other}"), "AdamW takes its place");
            ("adamw_torch", 0.01)
        }
    };
    draft.set("optimizer", name);
    if let Some(rate) = optimizer.number("lr")? {
        draft.set("learning_rate", rate);
    }
    draft.set("weight_decay", number(optimizer.number("weight_decay")?.unwrap_or(decay)));
    if let Some(Value::Array(betas)) = optimizer.take("betas") {
        for (key, beta) in ["adam_beta1", "adam_beta2"].into_iter().zip(betas) {
            draft.set(key, beta.clone());
        }
    }
    draft.set_some("adam_epsilon", optimizer.number("eps")?);
    leftovers(draft, optimizer.rest(), KNOWN);
    Ok(())
}
