//! InternLM2: Llama with queries, keys and values in one matrix, grouped by key-value head.

use super::{Family, GgufNames};
use crate::config::Activation;
use crate::fields::{Fields, RopeDefaults};
use crate::parts::{Part, QkvLayout};
use crate::{FilesError, ModelConfig};

pub(super) const INTERNLM2: Family = Family {
    architecture: "InternLM2ForCausalLM",
    model_type: "internlm2",
    outer: &[(Part::Embedding, "model.tok_embeddings"), (Part::FinalNorm, "model.norm"), (Part::Head, "output")],
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "attention_norm"),
        (Part::QueryKeyValue, "attention.wqkv"),
        (Part::Output, "attention.wo"),
        (Part::MlpNorm, "ffn_norm"),
        (Part::Gate, "feed_forward.w1"),
        (Part::Up, "feed_forward.w3"),
        (Part::Down, "feed_forward.w2"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames { interleaved: true, biases: &[("bias", Part::Query)], ..GgufNames::plain("internlm2") },
    read: internlm2,
};

fn internlm2(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let bias = f.flag("bias", false);
    let rope = RopeDefaults { theta: 10_000.0, ..RopeDefaults::PLAIN };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, rope)?],
        qkv_layout: QkvLayout::Grouped,
        qkv_bias: bias,
        output_bias: bias,
        ..c
    })
}
