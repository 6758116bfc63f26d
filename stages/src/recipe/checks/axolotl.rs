//! Axolotl's checks on keys that do nothing here, so that a recipe that is wrong there is not praised here.

use super::Facts;
use crate::recipe::values::{AdapterName, Checkpointing, OptimizerName};

pub(super) fn check(facts: &mut Facts<'_>) {
    attention(facts);
    losses(facts);
    processes(facts);
    checkpointing(facts);
    needed(facts);
    plugins(facts);
}

/// Whether the key is written and neither false, zero nor empty.
fn on(facts: &Facts<'_>, key: &str) -> bool {
    facts.tree.at(key).is_some_and(|node| match node.scalar() {
        Some(scalar) => {
            let off = ["", "~", "null", "false", "False", "FALSE", "no", "No", "off", "Off", "0", "1"];
            // One process, one part: 1 is as good as unset for the sizes asked about here.
            !off.contains(&&*scalar.text)
        }
        None => node.items().is_none_or(|items| !items.is_empty()) && node.entries().is_none_or(|map| !map.is_empty()),
    })
}

fn text<'f>(facts: &Facts<'f>, key: &str) -> Option<&'f str> {
    facts.tree.at(key).filter(|node| !node.is_null())?.scalar().map(|scalar| &*scalar.text)
}

fn attention(facts: &mut Facts<'_>) {
    let flags = [
        "flash_attention",
        "xformers_attention",
        "sdp_attention",
        "flex_attention",
        "sage_attention",
        "eager_attention",
    ];
    let chosen: Vec<&str> = flags.into_iter().filter(|key| on(facts, key)).collect();
    if facts.written("attn_implementation") && !chosen.is_empty() {
        facts.conflict(["attn_implementation", chosen[0]], "both choose the attention", "keep `attn_implementation`");
    } else if chosen.len() > 1 {
        facts.conflict([chosen[0], chosen[1]], "both choose the attention", "keep one, such as `attn_implementation`");
    }
    let implementation = text(facts, "attn_implementation");
    let flash = implementation.map_or(chosen.contains(&"flash_attention"), |name| name.contains("flash"));
    for key in ["context_parallel_size", "sequence_parallel_degree"] {
        if !on(facts, key) {
            continue;
        }
        if !flash {
            let other = chosen.first().copied().unwrap_or("attn_implementation");
            let remedy = "attn_implementation: flash_attention_2";
            facts.conflict([key, other], "a row is split over processes only by flash attention", remedy);
        }
        if facts.recipe.sample_packing == Some(true) && facts.recipe.micro_batch_size.is_some_and(|size| size > 1) {
            let why = "packed rows are split over processes one at a time";
            facts.conflict([key, "micro_batch_size"], why, "micro_batch_size: 1");
        }
    }
}

/// Only one way to compute the loss.
fn losses(facts: &mut Facts<'_>) {
    let ways =
        ["cut_cross_entropy", "chunked_cross_entropy", "liger_cross_entropy", "liger_fused_linear_cross_entropy"];
    let chosen: Vec<&str> = ways.into_iter().filter(|key| on(facts, key)).collect();
    if let [first, second, ..] = chosen[..] {
        let remedy = format!("keep one, such as `{first}`");
        facts.conflict([first, second], "both replace the cross-entropy", &remedy);
    }
}

fn processes(facts: &mut Facts<'_>) {
    let split = ["fsdp", "fsdp_config"].into_iter().find(|key| on(facts, key));
    if let Some(fsdp) = split
        && on(facts, "deepspeed")
    {
        facts.conflict(["deepspeed", fsdp], "both split the model over processes", "keep one of the two");
    }
    let second = ["fsdp_version", "fsdp_config.fsdp_version", "fsdp_config.version"]
        .into_iter()
        .any(|key| text(facts, key) == Some("2"));
    let eight = matches!(facts.recipe.optimizer, Some(OptimizerName::Adamw8bit | OptimizerName::AdamwBnb8bit));
    if second && split.is_some() && eight {
        facts.conflict(
            ["fsdp_config", "optimizer"],
            "FSDP2 cannot split bitsandbytes' 8-bit state",
            "optimizer: adamw_torch_8bit",
        );
    }
    if on(facts, "max_memory") && on(facts, "gpu_memory_limit") {
        facts.conflict(["max_memory", "gpu_memory_limit"], "both limit the memory", "keep one, such as `max_memory`");
    }
}

fn checkpointing(facts: &mut Facts<'_>) {
    for key in ["activation_offloading", "selective_checkpointing"] {
        let off = matches!(facts.recipe.gradient_checkpointing, None | Some(Checkpointing::Off));
        if on(facts, key) && off && facts.sound(&[key, "gradient_checkpointing"]) {
            let message = format!("`{key}` needs `gradient_checkpointing`");
            facts.error("needs-key", key, message, Some("gradient_checkpointing: true".to_string()));
        }
    }
    let reentrant = "gradient_checkpointing_kwargs.use_reentrant";
    if on(facts, "selective_checkpointing") && on(facts, reentrant) {
        let remedy = "use_reentrant: false";
        facts.conflict(["selective_checkpointing", reentrant], "what is kept is chosen without re-entry only", remedy);
    }
    let offload = text(facts, "activation_offloading").filter(|kind| *kind != "hidden_states");
    if on(facts, "selective_checkpointing") && on(facts, "activation_offloading") && offload.is_some() {
        let why = "what is kept cannot be moved away as well";
        let remedy = "activation_offloading: hidden_states";
        facts.conflict(["selective_checkpointing", "activation_offloading"], why, remedy);
    }
}

/// Keys that ask for another one.
fn needed(facts: &mut Facts<'_>) {
    let pairs = [
        ("push_dataset_to_hub", "hf_use_auth_token", "hf_use_auth_token: true"),
        ("torch_compile_options", "torch_compile", "torch_compile: true"),
        ("deepcompile", "deepspeed", "deepspeed"),
        ("peft_layers_pattern", "peft_layers_to_transform", "peft_layers_to_transform"),
    ];
    for (key, other, remedy) in pairs {
        if on(facts, key) && !on(facts, other) && facts.sound(&[key, other]) {
            facts.error("needs-key", key, format!("`{key}` needs `{other}`"), Some(remedy.to_string()));
        }
    }
    let adapts = matches!(facts.recipe.adapter, Some(AdapterName::Lora | AdapterName::Qlora));
    if adapts && on(facts, "flash_attn_fuse_mlp") {
        let remedy = "flash_attn_fuse_mlp: false";
        facts.conflict(["adapter", "flash_attn_fuse_mlp"], "fused modules cannot be adapted", remedy);
    }
}

fn plugins(facts: &mut Facts<'_>) {
    let inert = ["cut_cross_entropy", "liger", "kernels", "swanlab", "expert_parallel"];
    let Some(items) = facts.tree.at("plugins").and_then(|node| node.items()) else { return };
    let names: Vec<String> =
        items.iter().filter_map(|item| item.scalar()).map(|scalar| scalar.text.to_string()).collect();
    for (i, name) in names.iter().enumerate() {
        let carried = inert.iter().any(|part| name.starts_with(&format!("axolotl.integrations.{part}.")));
        if !carried {
            let why = match name.starts_with("axolotl.integrations.") {
                true => "is known from Axolotl and not supported here: only kernels that are built in are",
                false => "is Python code, and none is run here",
            };
            let message = format!("the plugin `{name}` {why}");
            facts.error("unsupported-value", &format!("plugins[{i}]"), message, Some("remove this plugin".to_string()));
        }
    }
}
