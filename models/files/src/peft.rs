//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, read as they were written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::blocks::TensorType;
use crate::mapped::Mapped;
use crate::special::json_file;
use crate::{FilesError, shards};

/// A low-rank adapter on disk.
#[derive(Debug)]
pub struct PeftAdapter {
    pub path: PathBuf,
    pub r: usize,
    pub alpha: f64,
    /// Scale `alpha / sqrt(r)` instead of `alpha / r`.
    pub rslora: bool,
    pub dora: bool,
    pub dropout: f64,
    /// By module name, such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, PeftModule>,
}

/// One module's matrices, row-major f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftModule {
    pub r: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// `[r, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, r]`
    pub b: Vec<f32>,
    /// `[outputs]`, DoRA only.
    pub magnitude: Option<Vec<f32>>,
}

impl PeftAdapter {
    /// Reads an adapter folder. Adapters this program cannot apply faithfully are refused.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let config_path = path.join("adapter_config.json");
        if !config_path.is_file() {
            let why = "it has no adapter_config.json; name the folder that PEFT or the convert stage wrote".to_owned();
            return Err(FilesError::NoWeights { path: path.to_owned(), why });
        }
        let config = json_file(&config_path)?;
        refuse(&config_path, &config)?;
        let number = |key: &str| config.get(key).and_then(Json::as_f64);
        let flag = |key: &str| config.get(key).and_then(Json::as_bool).unwrap_or(false);
        let mut adapter = Self {
            path: path.to_owned(),
            r: number("r").unwrap_or(8.0) as usize,
            alpha: number("lora_alpha").unwrap_or(8.0),
            rslora: flag("use_rslora"),
            dora: flag("use_dora"),
            dropout: number("lora_dropout").unwrap_or(0.0),
            modules: BTreeMap::new(),
        };
        adapter.read(&path.join("adapter_model.safetensors"))?;
        Ok(adapter)
    }

    /// What `B A` is multiplied by.
    pub fn scale(&self) -> f64 {
        if self.rslora { self.alpha / (self.r as f64).sqrt() } else { self.alpha / self.r as f64 }
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
            let Some((module, part)) = name.split_once(".lora_") else {
                return Err(wrong("is no LoRA matrix; only plain LoRA, rsLoRA and DoRA adapters are read"));
            };
            let values = values(&mapped, &tensor).ok_or_else(|| wrong("is neither F32, F16 nor BF16"))?;
            let entry = self.modules.entry(module.to_owned()).or_default();
            match (part, tensor.shape.as_slice()) {
                ("A.weight" | "A.default.weight", [r, inputs]) => {
                    (entry.r, entry.inputs, entry.a) = (*r, *inputs, values);
                }
                ("B.weight" | "B.default.weight", [outputs, _]) => (entry.outputs, entry.b) = (*outputs, values),
                ("magnitude_vector" | "magnitude_vector.weight", [_]) => entry.magnitude = Some(values),
                _ => return Err(wrong("is no LoRA matrix of a linear module")),
            }
        }
        self.check(file)
    }

    fn check(&self, file: &Path) -> Result<(), FilesError> {
        for (name, m) in &self.modules {
            let whole = m.r == self.r && m.a.len() == m.r * m.inputs && m.b.len() == m.outputs * m.r;
            let magnitude = m.magnitude.as_ref().map(Vec::len) == self.dora.then_some(m.outputs);
            if !whole || !magnitude || m.r == 0 || m.b.is_empty() {
                let what = format!("does not have the two matrices of rank {} that adapter_config.json says", self.r);
                return Err(FilesError::Tensor { path: file.to_owned(), name: name.clone(), what });
            }
        }
        Ok(())
    }
}

/// Settings under which the matrices mean something else.
fn refuse(path: &Path, config: &Json) -> Result<(), FilesError> {
    let wrong = |key: &str, what: String| FilesError::Config { path: path.to_owned(), key: key.to_owned(), what };
    let kind = config.get("peft_type").and_then(Json::as_str).unwrap_or("LORA");
    if kind != "LORA" {
        return Err(wrong("peft_type", format!("is {kind:?}; only LORA adapters are supported")));
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if config.get(key).and_then(Json::as_object).is_some_and(|o| !o.is_empty()) {
            return Err(wrong(
                key,
                "is not supported; merge this adapter with PEFT and use the merged model".to_owned(),
            ));
        }
    }
    if let Some(saved) = config.get("modules_to_save").filter(|v| v.as_array().is_some_and(|a| !a.is_empty())) {
        return Err(wrong(
            "modules_to_save",
            format!("is {saved}; merge this adapter with PEFT and use the merged model"),
        ));
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
