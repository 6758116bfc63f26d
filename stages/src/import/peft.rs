//! What PEFT adapts when a configuration names no modules; tools that leave it to PEFT mean this.

/// Parts of a model's name or id, and the modules that PEFT adapts by default in its family.
const DEFAULTS: &[(&[&str], &[&str])] = &[
    (&["gpt-neox", "pythia", "dolly"], &["query_key_value"]),
    (&["falcon"], &["query_key_value"]),
    (&["gpt2"], &["c_attn"]),
    (&["phi-3", "phi3", "phi-4", "phi4"], &["qkv_proj"]),
    (&["phi-2", "phi-1", "phi2"], &["q_proj", "v_proj", "fc1", "fc2"]),
    (&["internlm2"], &["wqkv"]),
    (
        &["starcoder2", "stablelm", "granite", "olmo", "qwen", "llama", "mistral", "mixtral", "gemma", "vicuna", "yi-"],
        &["q_proj", "v_proj"],
    ),
];

/// The modules for a model, by its id; those of Llama when the id tells nothing.
pub(super) fn default_targets(model: &str) -> Vec<&'static str> {
    let model = model.to_lowercase();
    let found = DEFAULTS.iter().find(|(names, _)| names.iter().any(|name| model.contains(name)));
    found.map_or_else(|| vec!["q_proj", "v_proj"], |(_, modules)| modules.to_vec())
}
