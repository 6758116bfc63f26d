//! OLMo (norms without weights, clamped projections) and OLMo 2 (norms after each part, normed queries and keys).

use super::{Family, GgufNames, OUTER, PARTS, no_output_bias, untied};
use crate::config::{Activation, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::parts::{Part, QkNorm};
use crate::{FilesError, ModelConfig};

pub(super) const OLMO: Family = Family {
    architecture: "OlmoForCausalLM",
    model_type: "olmo",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        interleaved: true,
        keys: &[("clip_qkv", "attention.clamp_kqv")],
        biases: &[("attention_bias", Part::Query)],
        lacks: no_output_bias,
        ..GgufNames::plain("olmo")
    },
    read: olmo,
};

pub(super) const OLMO2: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::QueryNorm, "self_attn.q_norm"),
        (Part::KeyNorm, "self_attn.k_norm"),
        (Part::Output, "self_attn.o_proj"),
        (Part::AttentionPostNorm, "post_attention_layernorm"),
        (Part::Gate, "mlp.gate_proj"),
        (Part::Up, "mlp.up_proj"),
        (Part::Down, "mlp.down_proj"),
        (Part::MlpPostNorm, "post_feedforward_layernorm"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        biases: &[("attention_bias", Part::Query)],
        lacks: |c| untied(c).or_else(|| no_output_bias(c)),
        ..GgufNames::plain("olmo2")
    },
    read: olmo2,
};

fn olmo(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let norm = NormStyle { centred: true, eps: 1e-5, from_one: false, weight: false, bias: false };
    Ok(ModelConfig { norm, clip_qkv: f.float("clip_qkv"), ..shared(f, c)? })
}

fn olmo2(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.norm.eps = f.float("rms_norm_eps").unwrap_or(1e-5);
    Ok(ModelConfig { qk_norm: QkNorm::Whole, ..shared(f, c)? })
}

fn shared(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let bias = f.flag("attention_bias", false);
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        qkv_bias: bias,
        output_bias: bias,
        ..c
    })
}
