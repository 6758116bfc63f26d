//! LLaMA-Factory's YAML (`llamafactory-cli train FILE`), both the established layout and v1's.
//!
//! Unwritten settings get the defaults of that tool where they differ from the recipe's, since they are part of what the
//! file means there.

mod datasets;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::draft::Draft;
use super::settings::Settings;
use super::{ImportError, leftovers, number, trainer_names, warmup, yaml};
use crate::template::builtin;

/// Settings without a counterpart that change no result here, or not any more.
const KNOWN: &[(&str, &str)] = &[
    (
        "do_train do_eval overwrite_output_dir overwrite_cache plot_loss report_to run_name save_only_model logging_dir \
         trust_remote_code preprocessing_num_workers preprocessing_batch_size dataloader_num_workers print_param_status \
         tokenized_path include_num_input_tokens_seen low_cpu_mem_usage use_fast_tokenizer cache_dir wandb_project \
         hub_* push_to_hub project trackio_space_id use_swanlab swanlab_* compute_accuracy disable_tqdm log_level \
         include_effective_tokens_per_second model_class data_shared_file_system sample_backend max_new_tokens",
        "nothing that comes out depends on it here",
    ),
    (
        "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels kernel_config.*",
        "the kernels are built in",
    ),
    (
        "deepspeed ddp_timeout fsdp* ray_* resources_per_worker placement_strategy dist_config.* use_kt kt_* \
         use_hyper_parallel hyper_parallel_* master_addr",
        "one machine trains here; say how many cores with `resources`",
    ),
    ("upcast_layernorm pure_bf16 use_reentrant_gc fp8*", "precision follows bf16 and fp16 here"),
    ("resize_vocab", "tokens are added to a vocabulary through special_tokens"),
    ("resume_from_checkpoint", "a run resumes by itself from its last checkpoint"),
    ("predict_with_generate do_predict", "`eval` generates answers: see eval.metrics"),
    ("image_* video_* audio_* freeze_vision_tower freeze_multi_modal_projector media_dir", "only text is trained here"),
    ("use_galore galore_*", "GaLore is not done here"),
    ("use_apollo apollo_*", "APOLLO is not done here"),
    ("use_badam badam_*", "BAdam is not done here"),
    ("use_adam_mini", "Adam-mini is not done here; AdamW takes its place"),
    ("use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha", "the loss here is cross-entropy"),
    ("mixture_of_depths", "the model is trained as it is"),
    ("oft_* module_dropout", "belongs to OFT, which is not done here"),
    ("pissa_iter pissa_convert", "belongs to PiSSA's start"),
    ("use_llama_pro", "expanded blocks are trained like any others; freeze the rest"),
    ("buffer_size streaming", "data is read in parts as needed"),
];

pub(super) fn draft(path: &Path) -> Result<Draft, ImportError> {
    let (map, _) = yaml(path)?;
    let settings = Settings::new(established(map));
    refuse(&settings)?;
    let mut draft = Draft::default();
    let model = settings.text("model_name_or_path").unwrap_or_default();
    draft.set("base_model", model);
    draft.set_some("model_revision", settings.text("model_revision").filter(|revision| revision != "main"));
    let pretraining = settings.text("stage").as_deref() == Some("pt");
    data(&settings, &mut draft, path, pretraining)?;
    method(&settings, &mut draft)?;
    training(&settings, &mut draft)?;
    let rest = settings.rest();
    leftovers(&mut draft, rest, KNOWN);
    Ok(draft)
}

/// v1's layout in the established one's names.
fn established(mut map: Map<String, Value>) -> Map<String, Value> {
    if !map.contains_key("model") || map.contains_key("model_name_or_path") {
        return map;
    }
    let renamed = [
        ("model", "model_name_or_path"),
        ("micro_batch_size", "per_device_train_batch_size"),
        ("train_dataset", "dataset"),
        ("eval_dataset", "eval_dataset"),
        ("lora_target", "lora_target"),
    ];
    for (new, old) in renamed {
        if let Some(value) = map.shift_remove(new) {
            map.insert(old.to_string(), value);
        }
    }
    let sections = [
        "peft_config",
        "quant_config",
        "init_config",
        "kernel_config",
        "dist_config",
        "optim_config",
        "lr_scheduler_config",
    ];
    for section in sections {
        let Some(Value::Object(inner)) = map.shift_remove(section) else { continue };
        let name = inner.get("name").and_then(Value::as_str).unwrap_or("").to_string();
        for (key, value) in inner {
            let key = match (section, key.as_str()) {
                ("peft_config", "name") => "finetuning_type".to_string(),
                ("peft_config", "r") => "lora_rank".to_string(),
                ("peft_config", "lora_alpha" | "lora_dropout" | "export_dir" | "adapter_name_or_path") => key,
                ("peft_config", name) if name.starts_with("freeze_") => key,
                ("peft_config", "target_modules") => "lora_target".to_string(),
                ("quant_config", "quantization_bit") => key,
                ("lr_scheduler_config", "name") => "lr_scheduler_type".to_string(),
                ("optim_config", "name") if name == "muon" => "use_muon".to_string(),
                _ => format!("{section}.{key}"),
            };
            let value = if key == "use_muon" { Value::Bool(true) } else { value };
            map.insert(key, value);
        }
    }
    map.entry("stage").or_insert_with(|| "sft".into());
    map.entry("finetuning_type").or_insert_with(|| "full".into());
    map
}

/// Configurations that train nothing, or something that recipes do not describe.
fn refuse(settings: &Settings) -> Result<(), ImportError> {
    if settings.has("export_dir") {
        let instead = "pipe merge BASE --adapter ADAPTER --output DIR, then pipe quantize DIR --type q4_k_m";
        return Err(ImportError::foreign("this is a configuration for exporting a model, not for training", instead));
    }
    if !settings.has("model_name_or_path") {
        let what = "there is no `model_name_or_path`: this is not a configuration of a training run";
        return Err(ImportError::foreign(what, "name a file that `llamafactory-cli train` takes"));
    }
    if !settings.has("stage") && !settings.has("dataset") {
        let what = "there is neither `stage` nor `dataset`: this is a configuration for inference";
        return Err(ImportError::foreign(what, "pipe chat MODEL --adapter ADAPTER"));
    }
    let stage = settings.text("stage").unwrap_or_else(|| "sft".to_string());
    let objective = match stage.as_str() {
        "sft" | "pt" => return Ok(()),
        "dpo" => "preference optimisation (dpo)",
        "kto" => "preference optimisation (kto)",
        "rm" => "a reward model (rm)",
        "ppo" => "reinforcement learning (ppo)",
        other => {
            return Err(ImportError::Value {
                key: "stage".to_string(),
                value: other.to_string(),
                wanted: "one of sft, pt, dpo, kto, rm, ppo".to_string(),
            });
        }
    };
    let what = format!("`stage: {stage}` trains {objective}, and recipes train on text (sft and pt)");
    Err(ImportError::foreign(what, "set `stage: sft` in a copy to carry over everything but the objective"))
}

fn data(settings: &Settings, draft: &mut Draft, path: &Path, pretraining: bool) -> Result<(), ImportError> {
    draft.section("Data");
    let catalogue = datasets::Catalogue::near(path, &settings.text("dataset_dir").unwrap_or_else(|| "data".into()));
    let template = settings.text("template");
    let style = Style::of(template.as_deref(), pretraining, settings)?;
    if let Some(name) = &style.chat_template {
        draft.note("chat_template", name.as_str(), &style.remark);
    }
    if settings.flag("enable_thinking")? == Some(false) {
        draft.set("chat_template_kwargs", json!({"enable_thinking": false}));
    }
    draft.set_some("default_system_message", settings.text("default_system"));
    let most = settings.whole("max_samples")?;
    let lists = [("dataset", "datasets"), ("eval_dataset", "test_datasets")];
    for (theirs, ours) in lists {
        let mut entries = Vec::new();
        for name in settings.names(theirs).unwrap_or_default() {
            entries.extend(catalogue.entries(&name, &style, most, draft)?);
        }
        if !entries.is_empty() {
            draft.set(ours, entries);
        }
    }
    let val = settings.number("val_size")?.filter(|size| *size > 0.0);
    if let Some(size) = val {
        draft.set("val_set_size", number(size));
    }
    draft.set("sequence_len", settings.whole("cutoff_len")?.unwrap_or(2048));
    if !pretraining {
        draft.note("excess_length_strategy", "truncate", "as LLaMA-Factory does; the default here drops such rows");
    }
    let packing = settings.flag("packing")?.unwrap_or(pretraining);
    if settings.is_on("neat_packing")? || packing {
        draft.note("sample_packing", true, "each row attends to itself alone, as with neat_packing");
    }
    if settings.is_on("train_on_prompt")? {
        draft.set("train_on_inputs", true);
    }
    if settings.is_on("mask_history")? {
        draft.lose("mask_history: true", "every answer of a conversation is trained, not only the last");
    }
    if let Some(strategy) = settings.text("mix_strategy").filter(|strategy| strategy != "concat") {
        draft.lose(format!("mix_strategy: {strategy}"), "see the `mix` section");
    }
    if settings.is_on("disable_shuffling")? {
        draft.set("shuffle_merged_datasets", false);
    }
    Ok(())
}

/// How rows become text: the chat template, or a plain prompt.
pub(super) struct Style {
    /// For `chat_template`.
    pub chat_template: Option<String>,
    pub remark: String,
    /// `type` of alpaca-like rows.
    pub rows: Value,
    pub pretraining: bool,
}

impl Style {
    fn of(template: Option<&str>, pretraining: bool, settings: &Settings) -> Result<Style, ImportError> {
        if pretraining {
            return Ok(Style { chat_template: None, remark: String::new(), rows: json!("completion"), pretraining });
        }
        let plain = |rows: Value| Style { chat_template: None, remark: String::new(), rows, pretraining };
        let Some(template) = template else {
            return Ok(Style::chat("tokenizer_default", "the model's own template, as no `template` is named"));
        };
        // A template's reasoning variants differ in how thoughts are kept, which the model's own template knows.
        settings.take("preserve_thinking");
        Ok(match template {
            "alpaca" => plain(json!("alpaca")),
            "empty" => plain(json!({"format": "{instruction}\n{input}", "no_input_format": "{instruction}"})),
            "default" => plain(json!({
                "system_format": "System: {system}\n",
                "format": "Human: {instruction}\n{input}\nAssistant:",
                "no_input_format": "Human: {instruction}\nAssistant:",
            })),
            "llama3" | "chatml" | "gemma" | "gemma3" => Style::chat(template, ""),
            "phi" => Style::chat("phi_3", "LLaMA-Factory's `phi`"),
            name if builtin::text(name).is_some() => Style::chat(name, ""),
            name => Style::chat("tokenizer_default", &format!("the model's own template, in place of `{name}`")),
        })
    }

    fn chat(name: &str, remark: &str) -> Style {
        Style {
            chat_template: Some(name.to_string()),
            remark: remark.to_string(),
            rows: json!("alpaca:chat_template"),
            pretraining: false,
        }
    }
}

fn method(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("What is trained");
    let kind = settings.text("finetuning_type").unwrap_or_else(|| "lora".to_string());
    let bits = quantization(settings, draft)?;
    match kind.as_str() {
        "lora" => lora(settings, draft, bits)?,
        "full" => draft.note("adapter", Value::Null, "blank: all weights are trained"),
        "freeze" => freeze(settings, draft)?,
        "oft" => {
            draft.lose("finetuning_type: oft", "orthogonal adapters are not trained here; a LoRA takes their place");
            draft.set("adapter", if bits == Some(4) { "qlora" } else { "lora" });
            draft.set("lora_r", 8);
            draft.set("lora_alpha", 16);
            draft.set("lora_target_linear", true);
        }
        other => {
            return Err(ImportError::Value {
                key: "finetuning_type".to_string(),
                value: other.to_string(),
                wanted: "one of lora, full, freeze, oft".to_string(),
            });
        }
    }
    if settings.is_on("use_muon")? {
        draft.set("optimizer", "muon");
    }
    Ok(())
}

fn quantization(settings: &Settings, draft: &mut Draft) -> Result<Option<u64>, ImportError> {
    let bits = settings.whole("quantization_bit")?;
    let method =
        settings.text("quantization_method").filter(|method| !matches!(method.as_str(), "bnb" | "bitsandbytes"));
    if let Some(method) = method {
        draft.lose(format!("quantization_method: {method}"), "bases are quantised as bitsandbytes does");
    }
    settings.take("quantization_device_map");
    match bits {
        Some(4) => {
            draft.set("load_in_4bit", true);
            let double = settings.flag("double_quantization")?.unwrap_or(true);
            let kind = settings.text("quantization_type").unwrap_or_else(|| "nf4".to_string());
            if !double || kind != "nf4" {
                let config = json!({"bnb_4bit_use_double_quant": double, "bnb_4bit_quant_type": kind});
                draft.set("bnb_config_kwargs", config);
            }
        }
        Some(8) => draft.set("load_in_8bit", true),
        Some(other) => {
            draft.lose(format!("quantization_bit: {other}"), "a base has 4 bits, 8, or its own precision");
        }
        None => {}
    }
    Ok(bits)
}

fn lora(settings: &Settings, draft: &mut Draft, bits: Option<u64>) -> Result<(), ImportError> {
    draft.set("adapter", if bits == Some(4) { "qlora" } else { "lora" });
    let rank = settings.whole("lora_rank")?.unwrap_or(8);
    draft.set("lora_r", rank);
    match settings.number("lora_alpha")? {
        Some(alpha) => draft.set("lora_alpha", number(alpha)),
        None => draft.note("lora_alpha", rank * 2, "its default: twice the rank"),
    }
    draft.set_some("lora_dropout", settings.number("lora_dropout")?.filter(|share| *share > 0.0));
    let targets = settings.names("lora_target").unwrap_or_else(|| vec!["all".to_string()]);
    if targets.iter().any(|name| name == "all") {
        draft.set("lora_target_linear", true);
    } else {
        draft.set("lora_target_modules", targets);
    }
    draft.set_some("lora_modules_to_save", settings.names("additional_target"));
    draft.set_some("lora_model_dir", settings.names("adapter_name_or_path").and_then(|paths| paths.into_iter().next()));
    let variants = [("use_rslora", "peft_use_rslora"), ("use_dora", "peft_use_dora")];
    for (theirs, ours) in variants {
        if settings.is_on(theirs)? {
            draft.set(ours, true);
        }
    }
    if let Some(ratio) = settings.number("loraplus_lr_ratio")? {
        draft.set("loraplus_lr_ratio", number(ratio));
        draft.set_some("loraplus_lr_embedding", settings.number("loraplus_lr_embedding")?);
    }
    if settings.is_on("pissa_init")? {
        let start = settings.number("pissa_iter")?.filter(|n| *n > 0.0);
        draft.set("peft_init_lora_weights", start.map_or("pissa".to_string(), |n| format!("pissa_niter_{n}")));
    }
    Ok(())
}

fn freeze(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    let layers = settings.number("freeze_trainable_layers")?.unwrap_or(2.0);
    let modules = settings.names("freeze_trainable_modules").unwrap_or_else(|| vec!["all".to_string()]);
    let why = "name what is trained with `unfrozen_parameters`, by patterns; without it all weights are";
    draft.lose(format!("finetuning_type: freeze (layers {layers}, modules {})", modules.join(", ")), why);
    settings.take("freeze_extra_modules");
    Ok(())
}

fn training(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    draft.section("Training");
    let defaulted = |draft: &mut Draft, key: &str, value: Option<u64>, usual: u64| match value {
        Some(n) => draft.set(key, n),
        None => draft.note(key, usual, "its default"),
    };
    defaulted(draft, "micro_batch_size", settings.whole("per_device_train_batch_size")?, 8);
    defaulted(draft, "gradient_accumulation_steps", settings.whole("gradient_accumulation_steps")?, 1);
    match settings.number("learning_rate")? {
        Some(rate) => draft.set("learning_rate", rate),
        None => draft.note("learning_rate", 5e-5, "its default"),
    }
    draft.set("num_epochs", number(settings.number("num_train_epochs")?.unwrap_or(3.0)));
    draft.set_some("max_steps", settings.number("max_steps")?.filter(|n| *n > 0.0).map(|n| n as u64));
    if draft.get("optimizer").is_none() {
        trainer_names(draft, settings.text("optim"), settings.text("lr_scheduler_type"), ("adamw_torch", "linear"));
    } else if let Some(schedule) = settings.text("lr_scheduler_type") {
        draft.set("lr_scheduler", schedule);
    }
    warmup(draft, settings.number("warmup_steps")?, settings.number("warmup_ratio")?);
    draft.set_some("weight_decay", settings.number("weight_decay")?.map(number));
    draft.set_some("max_grad_norm", settings.number("max_grad_norm")?.map(number));
    draft.set_some("neftune_noise_alpha", settings.number("neftune_noise_alpha")?.map(number));
    draft.set_some("seed", settings.whole("seed")?);
    if settings.is_on("fp16")? {
        draft.set("bf16", false);
        draft.set("fp16", true);
    } else if settings.is_on("bf16")? || settings.is_on("pure_bf16")? {
        draft.note("bf16", "auto", "bf16 where this machine computes in it");
    }
    if !settings.is_on("disable_gradient_checkpointing")? {
        draft.note("gradient_checkpointing", true, "its default; costs time, saves memory");
    }
    points(settings, draft)?;
    draft.set_some("output_dir", settings.text("output_dir"));
    Ok(())
}

fn points(settings: &Settings, draft: &mut Draft) -> Result<(), ImportError> {
    let evaluates = draft.get("val_set_size").is_some();
    let strategy = settings.text("eval_strategy").or(settings.text("evaluation_strategy"));
    let steps = settings.number("eval_steps")?;
    draft.set_some("eval_batch_size", settings.whole("per_device_eval_batch_size")?.filter(|_| evaluates));
    match strategy.as_deref() {
        Some("steps") if evaluates => draft.set("eval_steps", number(steps.unwrap_or(500.0))),
        Some("epoch") if evaluates => draft.set("evals_per_epoch", 1),
        _ => {}
    }
    match settings.text("save_strategy").as_deref() {
        Some("epoch") => draft.set("saves_per_epoch", 1),
        Some("no") => draft.set("save_strategy", "no"),
        _ => draft.set("save_steps", number(settings.number("save_steps")?.unwrap_or(500.0))),
    }
    draft.set_some("save_total_limit", settings.whole("save_total_limit")?);
    draft.set_some("logging_steps", settings.number("logging_steps")?.filter(|n| *n >= 1.0).map(number));
    draft.set_some("early_stopping_patience", settings.whole("early_stopping_steps")?);
    Ok(())
}
