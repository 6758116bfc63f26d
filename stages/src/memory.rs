//! How much memory training will take, from the model's shape and the recipe's settings, before anything is loaded.
//!
//! An estimate for people and for the scheduler; it reads the model's configuration, never its weights.

use std::path::Path;

use pipe_files::ModelConfig;
use pipe_job::{Adapter, BaseWeights, Batching, Compute, Lora, Optimizer, OptimizerKind, Targets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// The model, as held during training.
    pub weights_bytes: u64,
    /// Adapter weights and their gradients; for full training the gradients of all weights.
    pub adapter_bytes: u64,
    pub optimizer_bytes: u64,
    /// What one micro-batch keeps for the backward pass, the head and the loss included.
    pub activations_bytes: u64,
    /// libtorch itself and its buffers.
    pub runtime_bytes: u64,
    /// The sum.
    pub peak_bytes: u64,
    /// Weights that get gradients.
    pub trainable_parameters: u64,
    pub parameters: u64,
}

/// What the estimate needs of the training stage's parameters.
#[derive(Clone, Debug, Deserialize)]
struct Settings {
    adapter: Adapter,
    base: BaseWeights,
    compute: Compute,
    batching: Batching,
    optimizer: Optimizer,
}

/// Resident size of the worker with libtorch loaded and nothing else, measured on Linux with the CPU build.
const RUNTIME: u64 = 250_000_000;
/// Positions whose logits are held at once by head and loss.
const HEAD_CHUNK: u64 = 512;

/// The estimate for training the model at `model` with the stage parameters `train`; `None` when the model's
/// configuration is not on this machine.
pub fn estimate(model: &Path, train: &Value, sequence_len: u64, checkpointing: bool) -> Option<Estimate> {
    let config = ModelConfig::read(model).ok()?;
    let settings: Settings = serde_json::from_value(train.clone()).ok()?;
    let linear: u64 = config.modules().iter().map(|module| (module.outputs * module.inputs) as u64).sum();
    let parameters = config.parameters();
    let width = bytes_of(settings.compute);
    let weights_bytes = match settings.base {
        BaseWeights::Dense => parameters * width,
        BaseWeights::Nf4 { double_quant } | BaseWeights::Fp4 { double_quant } => {
            let bits = if double_quant { 4.127 } else { 4.5 };
            (linear as f64 * bits / 8.0) as u64 + (parameters - linear) * width
        }
        BaseWeights::Int8 => linear + (parameters - linear) * width,
    };
    let (trainable_parameters, each) = match &settings.adapter {
        // Trained weights are float32, and so are their gradients; the part that is trained is known once the model is read.
        Adapter::Full | Adapter::Freeze(_) => (parameters, 8),
        // Adapters are float32, and so are their gradients.
        Adapter::Lora(lora) => (adapted(&config, lora), 8),
    };
    let state = match settings.optimizer.kind {
        OptimizerKind::AdamW => 8,
        OptimizerKind::AdamW8bit => 2,
        OptimizerKind::Lion | OptimizerKind::Muon => 4,
        // Rows and columns instead of a matrix.
        OptimizerKind::Adafactor | OptimizerKind::Sgd => 0,
    };
    let tokens = settings.batching.micro_batch as u64 * sequence_len;
    let mut out = Estimate {
        weights_bytes,
        adapter_bytes: trainable_parameters * each,
        optimizer_bytes: trainable_parameters * state,
        activations_bytes: activations(&config, tokens, width, checkpointing),
        runtime_bytes: RUNTIME,
        peak_bytes: 0,
        trainable_parameters,
        parameters,
    };
    out.peak_bytes =
        out.weights_bytes + out.adapter_bytes + out.optimizer_bytes + out.activations_bytes + out.runtime_bytes;
    Some(out)
}

/// Per token and layer the backward pass keeps about eight vectors of the hidden size and four of the inner one; with
/// checkpointing only each layer's input, and one layer in full while it is recomputed.
fn activations(config: &ModelConfig, tokens: u64, width: u64, checkpointing: bool) -> u64 {
    let (hidden, inner, layers) = (config.hidden as u64, config.intermediate as u64, config.layers as u64);
    let layer = tokens * (8 * hidden + 4 * inner) * width;
    let kept = if checkpointing { tokens * hidden * width * layers + layer } else { layer * layers };
    // Logits and their gradient, in float32.
    kept + HEAD_CHUNK.min(tokens) * config.vocab as u64 * 8
}

fn adapted(config: &ModelConfig, lora: &Lora) -> u64 {
    let is_target = |name: &str| match &lora.targets {
        Targets::Names(names) => names.iter().any(|n| n == name || name.ends_with(&format!(".{n}"))),
        // A pattern is taken to mean every module: an upper bound.
        Targets::AllLinear | Targets::Regex(_) => true,
    };
    let modules = config.modules();
    let targets = modules.iter().filter(|module| is_target(&module.name));
    targets.map(|module| (lora.r * (module.inputs + module.outputs)) as u64).sum()
}

fn bytes_of(compute: Compute) -> u64 {
    match compute {
        Compute::F32 => 4,
        Compute::Bf16 | Compute::F16 => 2,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_parts_of_the_tiny_llama() {
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-llama"));
        let lora = json!({"kind": "lora", "r": 4, "alpha": 8.0, "dropout": 0.0, "targets": {"kind": "all_linear"},
            "rslora": false, "dora": false});
        let train = json!({
            "adapter": lora,
            "base": {"kind": "nf4", "double_quant": true},
            "compute": "f32",
            "batching": {"micro_batch": 1, "accumulation": 1, "epochs": 1.0, "max_steps": null, "shuffle": true},
            "optimizer": {"kind": "adam_w", "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
                "weight_decay": 0.0, "max_grad_norm": 1.0},
        });
        let found = estimate(model, &train, 128, false).unwrap();
        // Per layer: q and o 64 to 64, k and v 64 to 32, gate and up 64 to 128, down 128 to 64.
        let per_layer = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128);
        assert_eq!(found.trainable_parameters, 2 * 4 * per_layer);
        assert_eq!(found.optimizer_bytes, found.trainable_parameters * 8);
        assert_eq!(found.parameters, 416 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128));
        assert!(found.weights_bytes < found.parameters * 4);
        assert!(estimate(model, &train, 128, true).unwrap().activations_bytes < found.activations_bytes);
    }
}
