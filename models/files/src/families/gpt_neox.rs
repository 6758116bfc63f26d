//! GPT-NeoX and Pythia: parallel blocks with two norms, partly rotated heads, one packed projection.

use super::{Family, GgufNames, biased, untied};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::parts::{Part, QkvLayout};
use crate::{FilesError, ModelConfig};

pub(super) const GPT_NEOX: Family = Family {
    architecture: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    outer: &[
        (Part::Embedding, "gpt_neox.embed_in"),
        (Part::FinalNorm, "gpt_neox.final_layer_norm"),
        (Part::Head, "embed_out"),
    ],
    layers: "gpt_neox.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::QueryKeyValue, "attention.query_key_value"),
        (Part::Output, "attention.dense"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::Up, "mlp.dense_h_to_4h"),
        (Part::Down, "mlp.dense_4h_to_h"),
    ],
    conv1d: false,
    pads: false,
    gguf: GgufNames {
        activation: Activation::Gelu,
        keys: &[
            ("layer_norm_eps", "attention.layer_norm_epsilon"),
            ("rotary_emb_base", "rope.freq_base"),
            ("use_parallel_residual", "use_parallel_residual"),
        ],
        biases: &[("attention_bias", Part::QueryKeyValue)],
        partial: Some("rotary_pct"),
        lacks: |c| untied(c).or_else(|| biased(c)),
        ..GgufNames::plain("gptneox")
    },
    read: gpt_neox,
};

fn gpt_neox(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let rope = RopeDefaults {
        theta_key: "rotary_emb_base",
        partial: Some(0.25),
        partial_key: "rotary_pct",
        ..RopeDefaults::PLAIN
    };
    let bias = f.flag("attention_bias", true);
    let hidden = f.float("hidden_dropout").unwrap_or(0.0);
    Ok(ModelConfig {
        norm: NormStyle { centred: true, eps: f.float("layer_norm_eps").unwrap_or(1e-5), bias: true, ..c.norm },
        activation: f.activation(&["hidden_act"], Activation::Gelu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, rope)?],
        parallel: f.flag("use_parallel_residual", true),
        qkv_layout: QkvLayout::Grouped,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: true,
        dropout: Dropout { embedding: hidden, attention_output: hidden, mlp_output: hidden, ..c.dropout },
        ..c
    })
}
