//! GPT-2 and distilgpt2: learned positions, packed projections stored as `[inputs, outputs]`.

use super::{Family, GgufNames};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::Fields;
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const GPT2: Family = Family {
    architecture: "GPT2LMHeadModel",
    model_type: "gpt2",
    outer: &[
        (Part::Embedding, "transformer.wte"),
        (Part::Positions, "transformer.wpe"),
        (Part::FinalNorm, "transformer.ln_f"),
        (Part::Head, "lm_head"),
    ],
    layers: "transformer.h",
    parts: &[
        (Part::AttentionNorm, "ln_1"),
        (Part::QueryKeyValue, "attn.c_attn"),
        (Part::Output, "attn.c_proj"),
        (Part::MlpNorm, "ln_2"),
        (Part::Up, "mlp.c_fc"),
        (Part::Down, "mlp.c_proj"),
    ],
    conv1d: true,
    pads: false,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        keys: &[
            ("n_embd", "embedding_length"),
            ("n_layer", "block_count"),
            ("n_head", "attention.head_count"),
            ("n_positions", "context_length"),
            ("n_inner", "feed_forward_length"),
            ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ],
        ..GgufNames::plain("gpt2")
    },
    read: gpt2,
};

fn gpt2(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    f.refuse(
        "add_cross_attention",
        f.flag("add_cross_attention", false),
        "is true; only decoders without an encoder are trained",
    )?;
    c.max_positions = f.optional_size(&["n_positions", "max_position_embeddings"])?.unwrap_or(1024);
    if !f.flag("scale_attn_weights", true) {
        c.scales.attention = 1.0;
    }
    c.scales.attention_by_layer = f.flag("scale_attn_by_inverse_layer_idx", false);
    let residual = f.float("resid_pdrop").unwrap_or(0.1);
    Ok(ModelConfig {
        norm: NormStyle { centred: true, eps: f.float("layer_norm_epsilon").unwrap_or(1e-5), bias: true, ..c.norm },
        activation: f.activation(&["activation_function"], Activation::GeluTanh)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        tied_embeddings: f.flag("tie_word_embeddings", true),
        dropout: Dropout {
            embedding: f.float("embd_pdrop").unwrap_or(0.1),
            attention: f.float("attn_pdrop").unwrap_or(0.1),
            attention_output: residual,
            mlp_output: residual,
        },
        ..c
    })
}
