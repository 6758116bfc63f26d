//! Granite: Llama with constant factors on embeddings, scores, residuals and logits.

use super::llama::llama;
use super::{Family, GgufNames, OUTER, PARTS};
use crate::config::Scales;
use crate::fields::Fields;
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const GRANITE: Family = Family {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        interleaved: true,
        biases: &[("attention_bias", Part::Query), ("mlp_bias", Part::Up)],
        keys: &[
            ("embedding_multiplier", "embedding_scale"),
            ("attention_multiplier", "attention.scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ],
        ..GgufNames::plain("granite")
    },
    read: granite,
};

fn granite(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let factor = |key: &str| f.float(key).unwrap_or(1.0);
    let scales = Scales {
        embedding: factor("embedding_multiplier"),
        embedding_rounded: false,
        attention: factor("attention_multiplier"),
        attention_by_layer: false,
        residual: factor("residual_multiplier"),
        logits: 1.0 / factor("logits_scaling"),
    };
    Ok(ModelConfig { scales, ..llama(f, c)? })
}
