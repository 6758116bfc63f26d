//! PEFT adapters: which layers get one, and the two files PEFT reads and writes.
//!
//! Files carry nothing that varies between equal runs: keys are sorted, no dates, no versions.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_job::{Lora as Settings, Targets};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::decoder::Decoder;
use crate::linear::{Linear, Lora};
use crate::optimizer::Parameter;
use crate::{ModelError, Result};

/// The weights' file name in an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The configuration's file name in an adapter folder.
pub const CONFIG: &str = "adapter_config.json";

const PREFIX: &str = "base_model.model.";

/// Attaches fresh adapters to the target layers. Errors if none matches or a feature is not there yet.
pub fn attach(decoder: &mut Decoder, settings: &Settings, seed: u64) -> Result<()> {
    if settings.dora {
        return Err(ModelError::input("peft_use_dora is not supported by this worker; leave it out"));
    }
    if settings.r == 0 {
        return Err(ModelError::input("lora_r is 0; a low-rank adapter needs at least rank 1"));
    }
    let scale = scale(settings);
    let matcher = Matcher::new(&settings.targets)?;
    let mut found = 0;
    // Every linear layer means what does the work; what chooses experts must be named.
    let routers: Vec<String> = match settings.targets {
        Targets::AllLinear => decoder.routers().map(str::to_string).collect(),
        _ => Vec::new(),
    };
    let chosen = |linear: &Linear| matcher.matches(&linear.name) && !routers.contains(&linear.name);
    for linear in decoder.linears_mut().filter(|linear| chosen(linear)) {
        linear.lora = Some(Lora::new(linear, settings.r as i64, scale, settings.dropout, seed));
        found += 1;
    }
    match found {
        0 => Err(ModelError::input(format!(
            "lora_target_modules {:?} matches no linear layer; this model has {}",
            settings.targets,
            module_names(decoder).join(", ")
        ))),
        _ => Ok(()),
    }
}

/// Attaches the PEFT adapter in `folder`, to go on training it or to use it. Its own configuration decides rank and scale.
pub fn load(decoder: &mut Decoder, folder: &Path) -> Result<Settings> {
    let settings = read_config(folder)?;
    let path = folder.join(WEIGHTS);
    let mut tensors = read_tensors(&path)?;
    let scale = scale(&settings);
    for linear in decoder.linears_mut() {
        let (a, b) = (tensors.remove(&key(&linear.name, "A")), tensors.remove(&key(&linear.name, "B")));
        let (outputs, inputs) = linear.shape();
        match (a, b) {
            (None, None) => continue,
            (Some(a), Some(b)) if a.size()[1] == inputs && b.size()[0] == outputs && a.size()[0] == b.size()[1] => {
                let leaf = |x: Tensor| x.to_kind(Kind::Float).set_requires_grad(true);
                linear.lora = Some(Lora { a: leaf(a), b: leaf(b), scale, dropout: settings.dropout });
            }
            _ => {
                return Err(ModelError::input(format!(
                    "{}: the adapter for {} does not fit a layer of {outputs} by {inputs}; it was made for another model",
                    path.display(),
                    linear.name
                )));
            }
        }
    }
    match tensors.keys().next() {
        Some(name) => Err(ModelError::input(format!(
            "{}: {name} belongs to no layer of this model; the adapter was made for another model",
            path.display()
        ))),
        None => Ok(settings),
    }
}

/// The adapter's trained tensors in a fixed order, named as in PEFT's file.
pub fn parameters(decoder: &Decoder) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    for linear in decoder.linears() {
        if let Some(lora) = &linear.lora {
            let pair = [("A", &lora.a), ("B", &lora.b)];
            parameters
                .extend(pair.map(|(side, x)| Parameter { name: key(&linear.name, side), tensor: x.shallow_clone() }));
        }
    }
    parameters
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`.
pub fn save(decoder: &Decoder, settings: &Settings, base: &Path, folder: &Path) -> Result<()> {
    let tensors = parameters(decoder).into_iter().map(|p| (p.name, p.tensor)).collect();
    // PEFT's own saver marks its files this way, and transformers asks for it.
    write_tensors(&folder.join(WEIGHTS), tensors, &[("format", "pt")])?;
    let path = folder.join(CONFIG);
    let mut text = serde_json::to_string_pretty(&config(decoder, settings, base)).unwrap_or_default();
    text.push('\n');
    std::fs::write(&path, text).map_err(|e| ModelError::io(&path, e))
}

/// Writes f32 tensors, sorted by name.
pub fn write_tensors(path: &Path, tensors: Vec<(String, Tensor)>, metadata: &[(&str, &str)]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| ModelError::work(format!("{}: {e}", path.display()));
    let mut held = BTreeMap::new();
    for (name, tensor) in tensors {
        let values: Vec<f32> = Vec::try_from(tensor.detach().to_kind(Kind::Float).contiguous().reshape([-1]))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        held.insert(name, (shape, bytes));
    }
    let mut views = Vec::with_capacity(held.len());
    for (name, (shape, bytes)) in &held {
        views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| failed(&e))?));
    }
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| failed(&e))
}

/// Reads every tensor of a safetensors file (f32, bf16 or f16) as f32.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|e| ModelError::io(path, e))?;
    let broken = |e: &dyn std::fmt::Display| ModelError::input(format!("{} is damaged: {e}", path.display()));
    let all = SafeTensors::deserialize(&bytes).map_err(|e| broken(&e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in all.iter() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            other => return Err(broken(&format!("{name} holds {other:?}, expected a floating type"))),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?.to_device(Device::Cpu).to_kind(Kind::Float);
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

fn scale(settings: &Settings) -> f64 {
    if settings.rslora { settings.alpha / (settings.r as f64).sqrt() } else { settings.alpha / settings.r as f64 }
}

fn key(layer: &str, side: &str) -> String {
    format!("{PREFIX}{layer}.lora_{side}.weight")
}

/// The last parts of the linear layers' names, each once.
fn module_names(decoder: &Decoder) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for last in decoder.linears().filter_map(|linear| linear.name.rsplit('.').next()) {
        if !names.contains(&last) {
            names.push(last);
        }
    }
    names
}

/// What PEFT needs to load the adapter; keys in its order of meaning, targets sorted.
fn config(decoder: &Decoder, settings: &Settings, base: &Path) -> Value {
    let last = |linear: &Linear| linear.name.rsplit('.').next().unwrap_or_default().to_string();
    let targets = match &settings.targets {
        Targets::Regex(pattern) => json!(pattern),
        _ => {
            let adapted = decoder.linears().filter(|linear| linear.lora.is_some());
            json!(adapted.map(last).collect::<std::collections::BTreeSet<_>>())
        }
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.to_string_lossy(),
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": decoder.config.family.conv1d,
        "init_lora_weights": true,
        "inference_mode": true,
        "modules_to_save": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

fn read_config(folder: &Path) -> Result<Settings> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| ModelError::io(&path, e))?;
    let wrong = |what: &str| ModelError::input(format!("{}: {what}", path.display()));
    let config: Value = serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
    if config["peft_type"] != "LORA" {
        return Err(wrong("only LoRA adapters are supported"));
    }
    for unsupported in ["use_dora", "modules_to_save", "rank_pattern", "alpha_pattern"] {
        let value = &config[unsupported];
        let empty = value.is_null() || value == &json!(false) || value == &json!({}) || value == &json!([]);
        if !empty {
            return Err(wrong(&format!("{unsupported} is set, which is not supported")));
        }
    }
    let targets = match &config["target_modules"] {
        Value::String(pattern) if pattern == "all-linear" => Targets::AllLinear,
        Value::String(pattern) => Targets::Regex(pattern.clone()),
        Value::Array(names) => Targets::Names(names.iter().filter_map(|n| n.as_str().map(str::to_string)).collect()),
        _ => return Err(wrong("target_modules is missing")),
    };
    Ok(Settings {
        r: config["r"].as_u64().ok_or_else(|| wrong("r is missing"))? as usize,
        alpha: config["lora_alpha"].as_f64().ok_or_else(|| wrong("lora_alpha is missing"))?,
        dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
        targets,
        rslora: config["use_rslora"].as_bool().unwrap_or(false),
        dora: false,
    })
}

/// PEFT's rule: a list matches whole names or suffixes after a dot, a string is a regular expression over the whole name.
struct Matcher<'a>(&'a Targets);

impl<'a> Matcher<'a> {
    fn new(targets: &'a Targets) -> Result<Self> {
        match targets {
            Targets::Regex(pattern) => Err(ModelError::input(format!(
                "lora_target_modules as a regular expression ({pattern}) is not supported by this worker; list the names"
            ))),
            _ => Ok(Self(targets)),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self.0 {
            Targets::AllLinear => true,
            Targets::Names(names) => names.iter().any(|target| {
                name == target || name.strip_suffix(target.as_str()).is_some_and(|head| head.ends_with('.'))
            }),
            Targets::Regex(_) => false,
        }
    }
}
