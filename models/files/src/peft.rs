//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, read as they were written, under the names that
//! the model's own files have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::blocks::TensorType;
use crate::mapped::Mapped;
use crate::peft_experts::{self, Placed};
use crate::special::json_file;
use crate::targets::Exceptions;
use crate::{FilesError, ModelConfig, shards};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const NOT_SUPPORTED: &str = "is set, which is not supported; merge this adapter with PEFT and use the merged model";

/// A low-rank adapter on disk.
#[derive(Debug)]
pub struct PeftAdapter {
    pub path: PathBuf,
    pub config: PeftConfig,
    /// By module name, such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, PeftModule>,
    /// Weights of modules that were trained whole, by name, such as `model.embed_tokens.weight`.
    pub saved: BTreeMap<String, PeftTensor>,
}

/// `adapter_config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftConfig {
    pub r: usize,
    pub alpha: f64,
    /// Scale `alpha / sqrt(r)` instead of `alpha / r`.
    pub rslora: bool,
    pub dora: bool,
    pub dropout: f64,
    pub targets: PeftTargets,
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    pub modules_to_save: Vec<String>,
    /// `target_parameters`: experts that one tensor holds, and the router.
    pub target_parameters: Vec<String>,
}

/// `target_modules` as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PeftTargets {
    #[default]
    AllLinear,
    Names(Vec<String>),
    Pattern(String),
}

/// One module's matrices, row-major f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftModule {
    pub r: usize,
    /// What `B A` is multiplied by.
    pub scale: f64,
    pub inputs: usize,
    pub outputs: usize,
    /// `[r, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, r]`
    pub b: Vec<f32>,
    /// `[outputs]`, DoRA only.
    pub magnitude: Option<Vec<f32>>,
}

/// A whole weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl PeftConfig {
    /// Reads an adapter folder's configuration. Adapters this program cannot apply faithfully are refused.
    pub fn read(folder: &Path) -> Result<Self, FilesError> {
        let path = folder.join(CONFIG);
        if !path.is_file() {
            let why = "it has no adapter_config.json; name the folder that PEFT or the convert stage wrote".to_owned();
            return Err(FilesError::NoWeights { path: folder.to_owned(), why });
        }
        let config = json_file(&path)?;
        refuse(&path, &config)?;
        let number = |key: &str| config.get(key).and_then(Json::as_f64);
        let flag = |key: &str| config.get(key).and_then(Json::as_bool).unwrap_or(false);
        let pattern = |key: &str| -> Vec<(String, f64)> {
            let entries = config.get(key).and_then(Json::as_object).into_iter().flatten();
            entries.filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect()
        };
        Ok(Self {
            r: number("r").unwrap_or(8.0) as usize,
            alpha: number("lora_alpha").unwrap_or(8.0),
            rslora: flag("use_rslora"),
            dora: flag("use_dora"),
            dropout: number("lora_dropout").unwrap_or(0.0),
            targets: targets(&config),
            rank_pattern: pattern("rank_pattern").into_iter().map(|(key, rank)| (key, rank as usize)).collect(),
            alpha_pattern: pattern("alpha_pattern"),
            modules_to_save: names(config.get("modules_to_save")),
            target_parameters: names(config.get("target_parameters")),
        })
    }
}

impl PeftAdapter {
    /// Reads an adapter folder for a model. Adapters this program cannot apply faithfully are refused.
    pub fn open(path: &Path, model: &ModelConfig) -> Result<Self, FilesError> {
        let config = PeftConfig::read(path)?;
        let wrong = |key: &str, what| FilesError::Config { path: path.join(CONFIG), key: key.to_owned(), what };
        if !config.target_parameters.is_empty() && model.experts.is_none() {
            return Err(wrong("target_parameters", NOT_SUPPORTED.to_owned()));
        }
        let alphas = Exceptions::new(&config.alpha_pattern).map_err(|e| wrong("alpha_pattern", e))?;
        let ranks = Exceptions::new(&config.rank_pattern).map_err(|e| wrong("rank_pattern", e))?;
        let (modules, saved) = (BTreeMap::new(), BTreeMap::new());
        let mut adapter = Self { path: path.to_owned(), config, modules, saved };
        let file = path.join(WEIGHTS);
        adapter.read(&file)?;
        adapter.place_modules(&file, model, &ranks, &alphas)?;
        adapter.place_tables(&file, model)?;
        Ok(adapter)
    }

    fn read(&mut self, file: &Path) -> Result<(), FilesError> {
        if !file.is_file() {
            let why = "it has no adapter_model.safetensors (a .bin adapter can be saved again with PEFT)".to_owned();
            return Err(FilesError::NoWeights { path: self.path.clone(), why });
        }
        let (mapped, stored) = shards::open(file)?;
        for tensor in stored {
            let wrong = |what: &str| FilesError::Tensor {
                path: file.to_owned(),
                name: tensor.name.clone(),
                what: what.to_owned(),
            };
            let name = tensor.name.strip_prefix("base_model.model.").unwrap_or(&tensor.name);
            let values = values(&mapped, &tensor).ok_or_else(|| wrong("is neither F32, F16 nor BF16"))?;
            let Some((module, part)) = name.split_once(".lora_") else {
                let name = name.replace(".modules_to_save.default", "");
                self.saved.insert(name, PeftTensor { shape: tensor.shape.clone(), values });
                continue;
            };
            let entry = self.modules.entry(module.to_owned()).or_default();
            match (part, tensor.shape.as_slice()) {
                ("A.weight" | "A.default.weight", [r, inputs]) => {
                    (entry.r, entry.inputs, entry.a) = (*r, *inputs, values);
                }
                ("B.weight" | "B.default.weight", [outputs, _]) => (entry.outputs, entry.b) = (*outputs, values),
                ("magnitude_vector" | "magnitude_vector.weight" | "magnitude_vector.default.weight", [_]) => {
                    entry.magnitude = Some(values);
                }
                _ => return Err(wrong("is no LoRA matrix of a linear module")),
            }
        }
        Ok(())
    }

    /// Checks every module's matrices and gives it its scale and its name in the model.
    fn place_modules(
        &mut self,
        file: &Path,
        model: &ModelConfig,
        ranks: &Exceptions<usize>,
        alphas: &Exceptions<f64>,
    ) -> Result<(), FilesError> {
        let wrong =
            |name: &str, what: String| FilesError::Tensor { path: file.to_owned(), name: name.to_owned(), what };
        let by_parameter = !self.config.target_parameters.is_empty();
        for (name, module) in std::mem::take(&mut self.modules) {
            let placed = peft_experts::placed(model, &name, module, by_parameter)
                .ok_or_else(|| wrong(&name, "does not have the shape of this model's experts".to_owned()))?;
            for Placed { name: own, target, module: mut m } in placed {
                let rank = ranks.of(&target).unwrap_or(self.config.r);
                let whole = m.r == rank && m.a.len() == m.r * m.inputs && m.b.len() == m.outputs * m.r;
                let magnitude = m.magnitude.as_ref().map(Vec::len) == self.config.dora.then_some(m.outputs);
                if !whole || !magnitude || m.r == 0 || m.b.is_empty() {
                    let what = format!("does not have the two matrices of rank {rank} that adapter_config.json says");
                    return Err(wrong(&name, what));
                }
                let alpha = alphas.of(&target).unwrap_or(self.config.alpha);
                m.scale = if self.config.rslora { alpha / (m.r as f64).sqrt() } else { alpha / m.r as f64 };
                self.modules.insert(own, m);
            }
        }
        Ok(())
    }

    /// Checks that whole weights are among `modules_to_save`, and gives embedding and head their names in the model.
    fn place_tables(&mut self, file: &Path, model: &ModelConfig) -> Result<(), FilesError> {
        for (name, tensor) in std::mem::take(&mut self.saved) {
            let module = name.strip_suffix(".weight").unwrap_or(&name);
            if !self.config.modules_to_save.iter().any(|saved| crate::targets::is_named(module, saved)) {
                let what = "is neither a LoRA matrix nor one of modules_to_save; only LoRA, rsLoRA and DoRA adapters of \
                            linear modules are read";
                return Err(FilesError::Tensor { path: file.to_owned(), name, what: what.to_owned() });
            }
            let table = model.family.table(module).filter(|_| module != name);
            let own = table.map(|part| format!("{}.weight", model.family.in_files(part)));
            self.saved.insert(own.unwrap_or(name), tensor);
        }
        Ok(())
    }
}

fn targets(config: &Json) -> PeftTargets {
    match config.get("target_modules") {
        Some(Json::String(pattern)) if pattern != "all-linear" => PeftTargets::Pattern(pattern.clone()),
        Some(list @ Json::Array(_)) => PeftTargets::Names(names(Some(list))),
        _ => PeftTargets::AllLinear,
    }
}

fn names(list: Option<&Json>) -> Vec<String> {
    let items = list.and_then(Json::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Settings under which the matrices mean something else.
fn refuse(path: &Path, config: &Json) -> Result<(), FilesError> {
    let wrong = |key: &str, what: String| FilesError::Config { path: path.to_owned(), key: key.to_owned(), what };
    let kind = config.get("peft_type").and_then(Json::as_str).unwrap_or("LORA");
    if kind != "LORA" {
        return Err(wrong("peft_type", format!("is {kind:?}; only LORA adapters are supported")));
    }
    let set = |key: &str| match config.get(key) {
        None | Some(Json::Null | Json::Bool(false)) => false,
        Some(Json::Array(items)) => !items.is_empty(),
        Some(Json::Object(items)) => !items.is_empty(),
        Some(_) => true,
    };
    for key in [
        "trainable_token_indices",
        "layer_replication",
        "megatron_config",
        "lora_bias",
        "alora_invocation_tokens",
        "use_qalora",
    ] {
        if set(key) {
            return Err(wrong(key, NOT_SUPPORTED.to_owned()));
        }
    }
    match config.get("bias").and_then(Json::as_str) {
        None | Some("none") => Ok(()),
        Some(other) => Err(wrong("bias", format!("is {other:?}; only \"none\" is supported"))),
    }
}

fn values(mapped: &Mapped, tensor: &shards::Stored) -> Option<Vec<f32>> {
    let dtype = match tensor.dtype {
        safetensors::Dtype::F32 => TensorType::F32,
        safetensors::Dtype::F16 => TensorType::F16,
        safetensors::Dtype::BF16 => TensorType::Bf16,
        _ => return None,
    };
    let mut out = vec![0.0; tensor.shape.iter().product()];
    dtype.decode(&mapped.bytes()[tensor.offset..tensor.offset + tensor.len], &mut out);
    Some(out)
}
