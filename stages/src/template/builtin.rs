//! Chat templates by name, written for this project. Each renders the same bytes as Axolotl's template of that name.

/// The text of the built-in template `name`.
pub fn text(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Every built-in name.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

const TEMPLATES: &[(&str, &str)] = &[
    ("alpaca", include_str!("../../templates/alpaca.jinja")),
    ("chatml", include_str!("../../templates/chatml.jinja")),
    ("deepseek_v2", include_str!("../../templates/deepseek_v2.jinja")),
    ("exaone", include_str!("../../templates/exaone.jinja")),
    ("falcon_h1", include_str!("../../templates/falcon_h1.jinja")),
    ("gemma", include_str!("../../templates/gemma.jinja")),
    ("gemma3", include_str!("../../templates/gemma3.jinja")),
    ("gemma3n", include_str!("../../templates/gemma3n.jinja")),
    ("llama3", include_str!("../../templates/llama3.jinja")),
    ("llava", include_str!("../../templates/llava.jinja")),
    ("metharme", include_str!("../../templates/metharme.jinja")),
    ("mistral_v1", include_str!("../../templates/mistral_v1.jinja")),
    ("mistral_v7_tekken", include_str!("../../templates/mistral_v7_tekken.jinja")),
    ("nemotron_h", include_str!("../../templates/nemotron_h.jinja")),
    ("phi_3", include_str!("../../templates/phi_3.jinja")),
    ("phi_35", include_str!("../../templates/phi_35.jinja")),
    ("pixtral", include_str!("../../templates/pixtral.jinja")),
    ("qwen2_vl", include_str!("../../templates/qwen2_vl.jinja")),
];
