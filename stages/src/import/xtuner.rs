//! XTuner's Python configurations, read as text, and the recipes that its configuration names stand for.
//!
//! A configuration and a name both become a [`Setup`], and a setup becomes a recipe in one way.

pub mod names;
mod python;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::draft::Draft;
use super::prompts::{dataset_keys, prompt};
use super::{ImportError, number, read};
use python::{Py, Variables};

/// What a configuration says, as far as a recipe can.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub model: String,
    pub bits: Option<u8>,
    pub double_quant: bool,
    pub lora: Option<Lora>,
    pub rows: Vec<Rows>,
    pub max_length: u64,
    pub packs: bool,
    pub batch: u64,
    pub accumulation: u64,
    pub epochs: f64,
    pub max_steps: Option<u64>,
    pub optimizer: String,
    pub lr: f64,
    pub betas: Option<(f64, f64)>,
    pub weight_decay: f64,
    pub max_norm: f64,
    pub warmup_ratio: f64,
    pub save_steps: Option<u64>,
    pub keep: Option<u64>,
    /// Questions that are asked of the model.
    pub questions: Vec<String>,
    pub every: Option<u64>,
    pub seed: Option<u64>,
}

/// The adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    pub r: u64,
    pub alpha: f64,
    pub dropout: f64,
    /// All linear modules when empty.
    pub targets: Vec<String>,
}

/// One source of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub path: String,
    pub name: Option<String>,
    pub files: Vec<String>,
    pub split: Option<String>,
    pub map_fn: String,
    pub template: String,
}

const KNOWN: &[(&str, &str)] = &[
    ("sequence_parallel_size", "one machine trains here"),
    ("use_varlen_attn", "each row attends to itself alone, always"),
    ("dataloader_num_workers num_workers", "data is read as needed"),
];

pub(super) fn draft(path: &Path) -> Result<Draft, ImportError> {
    let text = read(path)?;
    let variables = python::read(path, &text)?;
    let mut lost = Draft::default();
    let setup = setup(&variables, &mut lost)?;
    let mut draft = setup.draft();
    for found in lost.lost {
        draft.lose(found.what, found.why);
    }
    Ok(draft)
}

/// XTuner's `config = SomethingElse` and other frameworks' configurations are told apart by what they lack.
fn setup(variables: &Variables, lost: &mut Draft) -> Result<Setup, ImportError> {
    let model = variables.get("model").cloned().unwrap_or(Py::None);
    let objective = model.get("type").and_then(Py::name).unwrap_or_default();
    match objective {
        "SupervisedFinetune" => {}
        "LLaVAModel" | "InternVL_V1_5" | "LLaVA" => {
            let what = format!("`{objective}` is trained on images, and recipes train on text");
            return Err(ImportError::foreign(what, "import a configuration of a text model"));
        }
        "DPO" | "ORPO" | "RewardModel" => {
            let what = format!("`{objective}` trains preferences, and recipes train on text");
            return Err(ImportError::foreign(what, "import a configuration with SupervisedFinetune"));
        }
        _ if variables.contains_key("training_args") => {
            let what = "this configuration is for transformers' Trainer, with its settings in `training_args`";
            return Err(ImportError::foreign(what, "write them as flags: --from trl -- --model_name_or_path ..."));
        }
        _ => {
            let what =
                "there is no `model = dict(type=SupervisedFinetune, ...)`, as XTuner's 0.1 and 0.2 configurations have";
            return Err(ImportError::foreign(
                what,
                "XTuner 1's trainer scripts are programs; they cannot be read as settings",
            ));
        }
    }
    let llm = model.get("llm").cloned().unwrap_or(Py::None);
    let named = llm.get("pretrained_model_name_or_path").or(variables.get("pretrained_model_name_or_path"));
    let mut setup = Setup { model: named.and_then(Py::text).unwrap_or_default().to_string(), ..Setup::default() };
    method(&model, &llm, &mut setup, lost);
    data(variables, &mut setup, lost)?;
    training(variables, &mut setup, lost);
    for (names, why) in KNOWN {
        for name in names.split(' ') {
            if let Some(value) =
                variables.get(name).filter(|value| value.number().is_some_and(|n| n > 1.0) || value.is_true())
            {
                lost.lose(format!("{name} = {}", value.shown()), *why);
            }
        }
    }
    Ok(setup)
}

fn method(model: &Py, llm: &Py, setup: &mut Setup, lost: &mut Draft) {
    let quantised = |key: &str| llm.at(&format!("quantization_config.{key}")).is_some_and(Py::is_true);
    setup.bits = if quantised("load_in_4bit") { Some(4) } else { quantised("load_in_8bit").then_some(8) };
    setup.double_quant = quantised("bnb_4bit_use_double_quant");
    if let Some(lora) = model.get("lora") {
        let number = |key: &str, usual: f64| lora.get(key).and_then(Py::number).unwrap_or(usual);
        let targets = match lora.get("target_modules") {
            Some(Py::List(names)) => names.iter().filter_map(Py::text).map(str::to_string).collect(),
            Some(Py::Text(pattern)) => vec![pattern.clone()],
            _ => Vec::new(),
        };
        let (r, alpha) = (number("r", 8.0) as u64, number("lora_alpha", 8.0));
        setup.lora = Some(Lora { r, alpha, dropout: number("lora_dropout", 0.0), targets });
        if let Some(modules) = lora.get("modules_to_save") {
            lost.lose(format!("modules_to_save = {}", modules.shown()), "see lora_modules_to_save");
        }
    }
    if let Some(positions) = model.get("max_position_embeddings") {
        lost.lose(format!("max_position_embeddings = {}", positions.shown()), "the model's own context length counts");
    }
}

fn data(variables: &Variables, setup: &mut Setup, lost: &mut Draft) -> Result<(), ImportError> {
    let number = |key: &str| variables.get(key).and_then(Py::number);
    setup.max_length = number("max_length").or(number("max_packed_length")).unwrap_or(2048.0) as u64;
    let dataset = variables.get("train_dataloader").and_then(|loader| loader.get("dataset"));
    let Some(dataset) = dataset.or(variables.get("train_dataset")) else {
        let what = "there is no `train_dataloader` with a `dataset`";
        return Err(ImportError::foreign(what, "import a configuration that trains"));
    };
    let mut sets = Vec::new();
    flatten(dataset, &mut sets);
    for set in sets {
        setup.packs |= set.get("pack_to_max_length").is_some_and(Py::is_true);
        setup.rows.push(rows(set, lost)?);
    }
    if setup.rows.is_empty() {
        return Err(ImportError::foreign("`train_dataloader` has no data set", "import a configuration that trains"));
    }
    Ok(())
}

/// Sets that are put together: `ConcatDataset(datasets=[...])`, `[...]`.
fn flatten<'a>(dataset: &'a Py, out: &mut Vec<&'a Py>) {
    match dataset {
        Py::List(items) => items.iter().for_each(|item| flatten(item, out)),
        _ => match dataset.get("datasets").or(dataset.get("datasets_kwargs")) {
            Some(Py::List(items)) => items.iter().for_each(|item| flatten(item, out)),
            _ => out.push(dataset),
        },
    }
}

fn rows(set: &Py, lost: &mut Draft) -> Result<Rows, ImportError> {
    let kind = set.get("type").and_then(Py::name).unwrap_or_default();
    if !matches!(kind, "process_hf_dataset" | "process_intern_repo_dataset" | "") || set.get("dataset").is_none() {
        let what = format!("the data set is built by `{kind}`, which is Python of XTuner's own");
        return Err(ImportError::foreign(what, "export its rows to JSON lines and write a recipe for them"));
    }
    let source = set.get("dataset").unwrap_or(&Py::None);
    let text = |value: Option<&Py>| value.and_then(Py::text).map(str::to_string);
    let mut rows = Rows {
        path: text(source.get("path")).unwrap_or_default(),
        name: text(source.get("name")),
        split: text(source.get("split")).or(text(set.get("split"))).filter(|split| split != "train"),
        template: set.at("template_map_fn.template").and_then(Py::name).unwrap_or("default").to_string(),
        ..Rows::default()
    };
    rows.files = match source.get("data_files") {
        Some(Py::Dict(splits)) => splits.values().filter_map(Py::text).map(str::to_string).collect(),
        Some(Py::List(files)) => files.iter().filter_map(Py::text).map(str::to_string).collect(),
        Some(Py::Text(file)) => vec![file.clone()],
        _ => Vec::new(),
    };
    if rows.path.is_empty() {
        let what = format!("the data set `{}` names no path", source.shown());
        return Err(ImportError::foreign(what, "name a file or a hub id there"));
    }
    let map_fn = set.get("dataset_map_fn");
    rows.map_fn = match map_fn {
        Some(Py::Text(name)) => format!("{name}_map_fn"),
        Some(value) => value.name().unwrap_or("default_map_fn").to_string(),
        // Without a mapping the rows hold `conversation`, whose turns have `input` and `output`.
        None => {
            lost.lose("dataset_map_fn = None", "rows with `conversation` become rows with `input` and `output`");
            "default_map_fn".to_string()
        }
    };
    if let Some(most) = set.get("max_dataset_length").and_then(Py::number) {
        lost.lose(format!("max_dataset_length = {most}"), "see datasets[].max_rows");
    }
    Ok(rows)
}

fn training(variables: &Variables, setup: &mut Setup, lost: &mut Draft) {
    let at = |key: &str, path: &str| variables.get(key).and_then(|value| value.at(path));
    let number = |key: &str| variables.get(key).and_then(Py::number);
    let optimizer = |key: &str| at("optim_wrapper", &format!("optimizer.{key}")).and_then(Py::number);
    setup.batch = number("batch_size").unwrap_or(1.0) as u64;
    setup.accumulation = at("optim_wrapper", "accumulative_counts")
        .and_then(Py::number)
        .or(number("accumulative_counts"))
        .unwrap_or(1.0)
        .max(1.0) as u64;
    setup.max_steps = at("train_cfg", "max_iters").and_then(Py::number).map(|n| n as u64);
    setup.epochs = at("train_cfg", "max_epochs").and_then(Py::number).or(number("max_epochs")).unwrap_or(1.0);
    let name = at("optim_wrapper", "optimizer.type").or(variables.get("optim_type")).and_then(Py::name);
    setup.optimizer = match name {
        Some("PagedAdamW32bit") => "paged_adamw_32bit".to_string(),
        Some("AdamW") | None => "adamw_torch".to_string(),
        Some("SGD") => "sgd".to_string(),
        Some(other) => {
            lost.lose(format!("optim_type = {other}"), "AdamW takes its place");
            "adamw_torch".to_string()
        }
    };
    setup.lr = optimizer("lr").or(number("lr")).unwrap_or(2e-4);
    if let Some(Py::List(betas)) = at("optim_wrapper", "optimizer.betas")
        && let [first, second] = betas.as_slice()
    {
        setup.betas = first.number().zip(second.number());
    }
    setup.weight_decay = optimizer("weight_decay").unwrap_or(0.0);
    setup.max_norm = at("optim_wrapper", "clip_grad.max_norm").and_then(Py::number).unwrap_or(0.0);
    setup.warmup_ratio = number("warmup_ratio").or(number("warm_up_ratio")).unwrap_or(0.0);
    setup.save_steps = number("save_steps").map(|n| n as u64);
    setup.keep = number("save_total_limit").filter(|n| *n > 0.0).map(|n| n as u64);
    setup.every = number("evaluation_freq").map(|n| n as u64);
    if let Some(Py::List(inputs)) = variables.get("evaluation_inputs") {
        setup.questions = inputs.iter().filter_map(Py::text).map(str::to_string).collect();
    }
    setup.seed = at("randomness", "seed").and_then(Py::number).map(|n| n as u64);
    if let Some(Py::Text(path)) = variables.get("load_from") {
        lost.lose(format!("load_from = {path:?}"), "a PEFT adapter to go on from is lora_model_dir");
    }
}

impl Setup {
    /// The recipe that does the same.
    pub fn draft(&self) -> Draft {
        let mut draft = Draft::default();
        draft.set("base_model", self.model.as_str());
        if self.bits == Some(4) {
            draft.set("load_in_4bit", true);
        }
        if self.bits == Some(8) {
            draft.set("load_in_8bit", true);
        }
        if self.bits == Some(4) && !self.double_quant {
            draft.set("bnb_config_kwargs", json!({"bnb_4bit_use_double_quant": false}));
        }
        self.draft_data(&mut draft);
        draft.section("What is trained");
        if let Some(lora) = &self.lora {
            draft.set("adapter", if self.bits == Some(4) { "qlora" } else { "lora" });
            draft.set("lora_r", lora.r);
            draft.set("lora_alpha", number(lora.alpha));
            draft.set("lora_dropout", number(lora.dropout));
            if lora.targets.is_empty() {
                draft.set("lora_target_linear", true);
            } else {
                draft.set("lora_target_modules", lora.targets.clone());
            }
        } else {
            draft.note("adapter", Value::Null, "blank: all weights are trained");
        }
        self.draft_training(&mut draft);
        draft
    }

    fn draft_data(&self, draft: &mut Draft) {
        draft.section("Data");
        let mut entries = Vec::new();
        let mut chat = None;
        let mut end = None;
        for rows in &self.rows {
            let known = prompt(&rows.template);
            if known.is_none() {
                draft.lose(format!("PROMPT_TEMPLATE.{}", rows.template), "XTuner's default prompt takes its place");
            }
            let Some(prompt) = known.or(prompt("default")) else { continue };
            let mut entry = Map::from_iter([("path".to_string(), json!(rows.path))]);
            if !rows.files.is_empty() {
                entry.insert("data_files".to_string(), json!(rows.files));
            }
            entry.extend(rows.name.as_ref().map(|name| ("name".to_string(), json!(name))));
            entry.extend(rows.split.as_ref().map(|split| ("split".to_string(), json!(split))));
            match dataset_keys(&rows.map_fn, prompt) {
                Some(keys) => entry.extend(keys),
                None => {
                    let why = "rows are taken to hold `input` and `output`; see `type` in the recipe reference";
                    draft.lose(format!("dataset_map_fn = {}", rows.map_fn), why);
                    entry.extend(dataset_keys("default_map_fn", prompt).unwrap_or_default());
                }
            }
            remarks(&rows.map_fn, draft);
            match &entry["type"] {
                Value::String(kind) if kind == "chat_template" => chat = Some(prompt.chat),
                Value::Object(_) => end = end.or(prompt.end),
                _ => {}
            }
            entries.push(Value::Object(entry));
        }
        if let Some(chat) = chat {
            draft.set("chat_template", chat);
        }
        draft.set("datasets", entries);
        if let Some(end) = end {
            draft.note("special_tokens", json!({"eos_token": end}), "ends every answer, as XTuner's template says");
        }
        draft.set("sequence_len", self.max_length);
        draft.note("excess_length_strategy", "truncate", "XTuner cuts long rows; the default here drops them");
        draft.set("sample_packing", self.packs);
    }

    fn draft_training(&self, draft: &mut Draft) {
        draft.section("Training");
        draft.set("micro_batch_size", self.batch);
        draft.set("gradient_accumulation_steps", self.accumulation);
        draft.set("num_epochs", number(self.epochs));
        draft.set_some("max_steps", self.max_steps);
        draft.set("learning_rate", self.lr);
        draft.set("optimizer", self.optimizer.as_str());
        draft.set("lr_scheduler", "cosine");
        draft.set("warmup_ratio", self.warmup_ratio);
        draft.set("weight_decay", number(self.weight_decay));
        if let Some((first, second)) = self.betas.filter(|betas| *betas != (0.9, 0.999)) {
            draft.set("adam_beta1", first);
            draft.set("adam_beta2", second);
        }
        draft.set("max_grad_norm", number(self.max_norm));
        draft.note("bf16", "auto", "bf16 where this machine computes in it");
        draft.note("gradient_checkpointing", true, "as XTuner; costs time, saves memory");
        draft.set_some("save_steps", self.save_steps);
        draft.set_some("save_total_limit", self.keep);
        draft.set_some("seed", self.seed);
        if !self.questions.is_empty() {
            draft.section("Questions that the base and the tuned model are asked");
            let mut section = json!({"samples": self.questions});
            if let Some(every) = self.every {
                section["sample_every"] = json!(every);
            }
            draft.set("eval", section);
        }
    }
}

/// What a row mapping does that a recipe does not.
fn remarks(map_fn: &str, draft: &mut Draft) {
    let why = match map_fn {
        "oasst1_map_fn" => "the text is trained whole, with its `### Human:` and `### Assistant:` marks",
        "colors_map_fn" => "the description is taken whole, with the colour's name before the colon",
        "msagent_react_map_fn" => "tool calls are trained as they are written, not rewritten to ReAct's lines",
        "alpaca_map_fn" => "rows whose output is `<nooutput>` are kept; drop them from the data",
        _ => return,
    };
    draft.lose(format!("dataset_map_fn = {map_fn}"), why);
}
