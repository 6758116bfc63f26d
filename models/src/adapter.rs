//! PEFT adapters: which layers get one, and the two files PEFT reads and writes.
//!
//! Files carry nothing that varies between equal runs: keys are sorted, no dates, no versions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_files::{Exceptions, Part, PeftConfig, PeftTargets, Selector, is_named};
use pipe_job::{Init, Lora as Settings, Targets};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::init;
use crate::linear::{Dora, Linear, Lora, Weight};
use crate::optimizer::Parameter;
use crate::tensors::write_tensors;
use crate::{ModelError, Result};

/// The weights' file name in an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The configuration's file name in an adapter folder.
pub const CONFIG: &str = "adapter_config.json";

const PREFIX: &str = "base_model.model.";
const TABLES: [Part; 2] = [Part::Embedding, Part::Head];

/// Attaches fresh adapters to the target layers. Errors if a target matches none. `original` reads a layer's weight as the
/// base's files hold it.
pub fn attach(
    decoder: &mut Decoder,
    settings: &Settings,
    seed: u64,
    original: &mut dyn FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    if settings.r == 0 {
        return Err(ModelError::input("lora_r is 0; a low-rank adapter needs at least rank 1"));
    }
    let plan = Plan::new(settings)?;
    // Every linear layer means what does the work; what chooses experts must be named.
    let routers: Vec<&str> = match settings.targets {
        Targets::AllLinear => decoder.routers().collect(),
        _ => Vec::new(),
    };
    let names = decoder.linears().map(|linear| &linear.name);
    let names: Vec<String> = names.filter(|name| !routers.contains(&name.as_str())).cloned().collect();
    let chosen = plan.targets.choose(names.iter().map(String::as_str));
    let chosen: BTreeSet<&str> = chosen
        .map_err(|unmatched| ModelError::input(format!("lora_target_modules: {unmatched}")))?
        .into_iter()
        .collect();
    for linear in decoder.linears_mut().filter(|linear| chosen.contains(linear.name.as_str())) {
        let (r, scale) = plan.of(&linear.name, settings);
        let start = init::start(linear, settings.init, r as i64, scale, seed, original)?;
        let kept = start.moved.then(|| (start.a.copy(), start.b.copy()));
        let leaf = |x: Tensor| x.set_requires_grad(true);
        let mut lora =
            Lora { a: leaf(start.a), b: leaf(start.b), scale, dropout: settings.dropout, dora: None, start: kept };
        if settings.dora {
            lora.dora = Some(Dora { magnitude: leaf(linear.lengths(&lora)), lengths: None });
        }
        linear.lora = Some(lora);
    }
    train_whole(decoder, &settings.modules_to_save)
}

/// Makes embeddings and head trainable beside the adapter, each with weights of its own, as PEFT's `modules_to_save`.
pub fn train_whole(decoder: &mut Decoder, modules: &[String]) -> Result<()> {
    let leaf = |x: &Weight| x.dense(Kind::Float).detach().copy().set_requires_grad(true);
    for module in modules {
        match decoder.config.family.table(module) {
            Some(Part::Embedding) => decoder.replace_embedding(leaf(&decoder.embedding)),
            Some(_) => decoder.replace_head(leaf(decoder.head(crate::linear::Pass::BASE))),
            None => {
                let [embedding, head] = TABLES.map(|part| decoder.config.family.in_peft(part));
                return Err(ModelError::input(format!(
                    "lora_modules_to_save: `{module}` cannot be trained whole; {embedding} and {head} can"
                )));
            }
        }
    }
    Ok(())
}

/// The settings that go with the PEFT adapter in a folder.
pub fn settings_of(config: &PeftConfig) -> Settings {
    Settings {
        r: config.r,
        alpha: config.alpha,
        dropout: config.dropout,
        targets: match &config.targets {
            PeftTargets::AllLinear => Targets::AllLinear,
            PeftTargets::Names(names) => Targets::Names(names.clone()),
            PeftTargets::Pattern(pattern) => Targets::Regex(pattern.clone()),
        },
        rslora: config.rslora,
        dora: config.dora,
        rank_pattern: config.rank_pattern.clone(),
        alpha_pattern: config.alpha_pattern.clone(),
        modules_to_save: config.modules_to_save.clone(),
        init: Init::Kaiming,
    }
}

/// The adapter's trained tensors in a fixed order, named as in PEFT's file.
pub fn parameters(decoder: &Decoder) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    let mut add = |name: String, tensor: &Tensor| parameters.push(Parameter::new(name, tensor.shallow_clone()));
    for linear in decoder.linears() {
        let Some(lora) = &linear.lora else { continue };
        add(key(&linear.name, "A.weight"), &lora.a);
        add(key(&linear.name, "B.weight"), &lora.b);
        if let Some(dora) = &lora.dora {
            add(key(&linear.name, "magnitude_vector"), &dora.magnitude);
        }
    }
    for (part, table) in TABLES.into_iter().zip([Some(&decoder.embedding), decoder.untied_head.as_ref()]) {
        let name = decoder.config.family.in_peft(part);
        if let Some(tensor) = table.and_then(Weight::tensor).filter(|tensor| tensor.requires_grad()) {
            add(format!("{PREFIX}{name}.weight"), tensor);
        }
    }
    parameters
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`, to go on top of the untouched base.
pub fn save(decoder: &Decoder, settings: &Settings, folder: &Path) -> Result<()> {
    let mut tensors: BTreeMap<String, Tensor> = parameters(decoder).into_iter().map(|p| (p.name, p.tensor)).collect();
    let mut settings = settings.clone();
    let moved = decoder.linears().filter_map(|linear| Some((linear, linear.lora.as_ref()?.start.as_ref()?)));
    let mut any = false;
    for (linear, (a, b)) in moved {
        any = true;
        // What training changed, as one adapter of twice the rank: B A - B0 A0.
        let join = |tensors: &mut BTreeMap<String, Tensor>, part: &str, other: &Tensor, dim: i64| {
            if let Some(tensor) = tensors.get_mut(&key(&linear.name, part)) {
                *tensor = tch::no_grad(|| Tensor::cat(&[&*tensor, other], dim));
            }
        };
        join(&mut tensors, "A.weight", a, 0);
        join(&mut tensors, "B.weight", &-b, 1);
    }
    if any {
        // The scale stays alpha / r, or alpha / sqrt(r).
        let grow = if settings.rslora { 2f64.sqrt() } else { 2.0 };
        settings.r *= 2;
        settings.alpha *= grow;
        settings.rank_pattern.iter_mut().for_each(|(_, rank)| *rank *= 2);
        settings.alpha_pattern.iter_mut().for_each(|(_, alpha)| *alpha *= grow);
        settings.init = Init::Kaiming;
    }
    // PEFT's own saver marks its files this way, and transformers asks for it.
    write_tensors(&folder.join(WEIGHTS), tensors.into_iter().collect(), &[("format", "pt")])?;
    let path = folder.join(CONFIG);
    let mut text = serde_json::to_string_pretty(&config(decoder, &settings)).unwrap_or_default();
    text.push('\n');
    std::fs::write(&path, text).map_err(|e| ModelError::io(&path, e))
}

/// Targets, ranks and alphas ready to be asked.
struct Plan {
    targets: Selector,
    ranks: Exceptions<usize>,
    alphas: Exceptions<f64>,
}

impl Plan {
    fn new(settings: &Settings) -> Result<Self> {
        let wrong = |key: &str| {
            let key = key.to_owned();
            move |what: String| ModelError::input(format!("{key}: {what}"))
        };
        let targets = match &settings.targets {
            Targets::AllLinear => Selector::All,
            Targets::Names(names) => Selector::Names(names.clone()),
            Targets::Regex(pattern) => Selector::pattern(pattern).map_err(wrong("lora_target_modules"))?,
        };
        let ranks = Exceptions::new(&settings.rank_pattern).map_err(wrong("lora_rank_pattern"))?;
        let alphas = Exceptions::new(&settings.alpha_pattern).map_err(wrong("lora_alpha_pattern"))?;
        Ok(Self { targets, ranks, alphas })
    }

    /// Rank and scale of a module.
    fn of(&self, name: &str, settings: &Settings) -> (usize, f64) {
        let r = self.ranks.of(name).unwrap_or(settings.r).max(1);
        let alpha = self.alphas.of(name).unwrap_or(settings.alpha);
        (r, if settings.rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 })
    }
}

fn key(layer: &str, part: &str) -> String {
    format!("{PREFIX}{layer}.lora_{part}")
}

/// What PEFT needs to load the adapter; keys in its order of meaning, targets sorted.
fn config(decoder: &Decoder, settings: &Settings) -> Value {
    let last = |linear: &Linear| linear.name.rsplit('.').next().unwrap_or_default().to_string();
    let targets = match &settings.targets {
        Targets::Regex(pattern) => json!(pattern),
        Targets::Names(names) if names.iter().any(|name| name.contains('.')) => json!(names),
        _ => {
            let adapted = decoder.linears().filter(|linear| linear.lora.is_some());
            json!(adapted.map(last).collect::<BTreeSet<_>>())
        }
    };
    let pattern = |entries: Vec<(String, Value)>| Value::Object(entries.into_iter().collect());
    let ranks = settings.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
    let alphas = settings.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), json!(alpha))).collect();
    let whole: Vec<&str> = settings.modules_to_save.iter().map(|name| saved_name(decoder, name)).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        // Where the base lies is no part of what was trained; whoever publishes the adapter names it.
        "base_model_name_or_path": null,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": decoder.config.family.conv1d,
        "init_lora_weights": init_name(settings.init),
        "inference_mode": true,
        "modules_to_save": if whole.is_empty() { Value::Null } else { json!(whole) },
        "layers_pattern": null,
        "layers_to_transform": null,
        "rank_pattern": pattern(ranks),
        "alpha_pattern": pattern(alphas),
    })
}

/// A whole module's name in PEFT: as written, where the model's own module ends so.
fn saved_name<'a>(decoder: &Decoder, written: &'a str) -> &'a str {
    let own = decoder.config.family.table(written).map(|part| decoder.config.family.in_peft(part));
    own.filter(|own| !is_named(own, written)).unwrap_or(written)
}

/// PEFT starts an adapter anew before it loads one, so a start that changes the base must not be named.
fn init_name(init: Init) -> Value {
    match init {
        Init::Gaussian => json!("gaussian"),
        Init::Orthogonal => json!("orthogonal"),
        Init::Kaiming | Init::Pissa { .. } | Init::Loftq => json!(true),
    }
}
