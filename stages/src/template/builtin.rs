//! Chat templates by name, written for this project. Each renders the same bytes as Axolotl's template of that name.
//!
//! Some names share a file and differ in what a line before it sets.

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
    ("aya", include_str!("../../templates/command_r.jinja")),
    ("baichuan", include_str!("../../templates/baichuan.jinja")),
    ("chatglm", include_str!("../../templates/chatglm.jinja")),
    ("chatml", include_str!("../../templates/chatml.jinja")),
    ("cohere", include_str!("../../templates/command_r.jinja")),
    (
        "command_a",
        concat!(
            "{%- set plain = not documents -%}{%- set only_documents = true -%}",
            include_str!("../../templates/command_a.jinja")
        ),
    ),
    (
        "command_a_rag",
        concat!(
            "{%- set plain = false -%}{%- set only_documents = true -%}",
            include_str!("../../templates/command_a.jinja")
        ),
    ),
    (
        "command_a_tool_use",
        concat!(
            "{%- set plain = false -%}{%- set only_documents = false -%}",
            include_str!("../../templates/command_a.jinja")
        ),
    ),
    ("deepseek_v2", include_str!("../../templates/deepseek_v2.jinja")),
    ("deepseek_v3", include_str!("../../templates/deepseek_v3.jinja")),
    ("exaone", include_str!("../../templates/exaone.jinja")),
    ("exaone4", include_str!("../../templates/exaone4.jinja")),
    ("falcon_h1", include_str!("../../templates/falcon_h1.jinja")),
    ("gemma", include_str!("../../templates/gemma.jinja")),
    ("gemma3", include_str!("../../templates/gemma3.jinja")),
    ("gemma3n", include_str!("../../templates/gemma3n.jinja")),
    ("gemma4", include_str!("../../templates/gemma4.jinja")),
    ("gemma4_unified", include_str!("../../templates/gemma4.jinja")),
    ("glm4", include_str!("../../templates/glm4.jinja")),
    ("internlm2", include_str!("../../templates/internlm2.jinja")),
    ("jamba", include_str!("../../templates/jamba.jinja")),
    ("llama2", include_str!("../../templates/llama2.jinja")),
    ("llama3", include_str!("../../templates/llama3.jinja")),
    ("llama3_2_vision", include_str!("../../templates/llama3_2_vision.jinja")),
    ("llama4", include_str!("../../templates/llama4.jinja")),
    ("llava", include_str!("../../templates/llava.jinja")),
    ("metharme", include_str!("../../templates/metharme.jinja")),
    ("mistral_v1", include_str!("../../templates/mistral_v1.jinja")),
    ("mistral_v2v3", concat!("{%- set gap = ' ' -%}", include_str!("../../templates/mistral_instruct.jinja"))),
    ("mistral_v3_tekken", concat!("{%- set gap = '' -%}", include_str!("../../templates/mistral_instruct.jinja"))),
    ("mistral_v7_tekken", include_str!("../../templates/mistral_v7_tekken.jinja")),
    ("nemotron_h", include_str!("../../templates/nemotron_h.jinja")),
    ("phi_3", include_str!("../../templates/phi_3.jinja")),
    ("phi_35", include_str!("../../templates/phi_35.jinja")),
    ("phi_4", include_str!("../../templates/phi_4.jinja")),
    ("pixtral", include_str!("../../templates/pixtral.jinja")),
    ("qwen2_vl", include_str!("../../templates/qwen2_vl.jinja")),
    ("qwen3", concat!("{%- set images = false -%}", include_str!("../../templates/qwen3.jinja"))),
    ("qwen3_5", concat!("{%- set images = true -%}", include_str!("../../templates/qwen3.jinja"))),
    ("qwen_25", include_str!("../../templates/qwen_25.jinja")),
    ("vicuna", include_str!("../../templates/vicuna.jinja")),
    ("xverse", include_str!("../../templates/xverse.jinja")),
    ("yi", include_str!("../../templates/yi.jinja")),
    ("zephyr", include_str!("../../templates/zephyr.jinja")),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Map, Value};

    use super::*;
    use crate::template::render::{ChatTemplate, SpecialTexts, TemplateError};

    fn fixture(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/templates");
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    fn digest(text: &str) -> String {
        let value = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        format!("{}:{value:016x}", text.len())
    }

    fn rendered(template: &ChatTemplate, case: &Value, prompt: bool) -> String {
        let messages: Vec<Map<String, Value>> = serde_json::from_value(case["messages"].clone()).unwrap();
        let kwargs = case["kwargs"].as_object().cloned().unwrap_or_default();
        match template.render(&messages, case.get("tools"), &kwargs, prompt) {
            Ok(text) => digest(&text),
            Err(TemplateError::Raised(message)) => format!("raised {message}"),
            Err(_) => "fails".to_string(),
        }
    }

    #[test]
    fn every_name_renders_the_bytes_of_its_namesake() {
        let cases: BTreeMap<String, Value> = serde_json::from_str(&fixture("conversations.json")).unwrap();
        let expected: BTreeMap<String, BTreeMap<String, [String; 2]>> =
            serde_json::from_str(&fixture("renderings.json")).unwrap();
        assert_eq!(expected.len(), 36);
        let special = SpecialTexts { bos: "<s>".into(), eos: "</s>".into(), pad: "<pad>".into(), unk: "<unk>".into() };
        let mut wrong = Vec::new();
        for (name, renderings) in &expected {
            let mut template =
                ChatTemplate::parse(text(name).unwrap_or_else(|| panic!("no {name}")), &special).unwrap();
            template.set_day("2026-11-25");
            for (case, pair) in renderings {
                for (prompt, expected) in [false, true].into_iter().zip(pair) {
                    if rendered(&template, &cases[case], prompt) != *expected {
                        wrong.push(format!("{name} {case} {prompt}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} differ: {wrong:#?}", wrong.len());
    }

    #[test]
    fn older_families_render_as_their_authors_describe() {
        let special = SpecialTexts { bos: "<s>".into(), eos: "</s>".into(), ..SpecialTexts::default() };
        let turn = |role: &str, text: &str| {
            Map::from_iter([("role".to_string(), role.into()), ("content".to_string(), text.into())])
        };
        let messages = [turn("system", "S"), turn("user", "Q"), turn("assistant", "A"), turn("user", "R")];
        let expected = [
            ("vicuna", "<s>S USER: Q ASSISTANT: A</s> USER: R ASSISTANT:"),
            ("chatglm", "[gMASK]sop<|system|>\n S<|user|>\n Q<|assistant|>\n A<|user|>\n R<|assistant|>"),
            ("glm4", "[gMASK]<sop><|system|>\nS<|user|>\nQ<|assistant|>\nA<|user|>\nR<|assistant|>\n"),
            ("baichuan", "S<reserved_106>Q<reserved_107>A</s><reserved_106>R<reserved_107>"),
            ("xverse", "S\n\nHuman: Q\n\nAssistant: A</s>Human: R\n\nAssistant: "),
            ("llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST]"),
            ("zephyr", "<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nR</s>\n<|assistant|>\n"),
        ];
        for (name, expected) in expected {
            let template = ChatTemplate::parse(text(name).unwrap(), &special).unwrap();
            assert_eq!(template.render(&messages, None, &Map::new(), true).unwrap(), expected, "{name}");
        }
        for name in ["yi", "internlm2"] {
            let template = ChatTemplate::parse(text(name).unwrap(), &special).unwrap();
            let text = template.render(&messages, None, &Map::new(), true).unwrap();
            assert!(text.ends_with("<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"), "{name}: {text}");
        }
    }
}
