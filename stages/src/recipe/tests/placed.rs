//! Recipes whose model and data lie on this machine: what the files say is held against what the recipe asks.

use super::*;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 416, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}"#;

/// A project with a model, an adapter, data, and the base recipe with more lines; what is said of it.
fn placed(config: &str, more: &str) -> Vec<String> {
    placed_beside(&[], config, more)
}

/// The same with further files, or none where their text is empty.
fn placed_beside(files: &[(&str, &str)], config: &str, more: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("model/config.json", config);
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-llama/model.safetensors");
    fs::copy(weights, dir.path().join("model/model.safetensors")).unwrap();
    write("model/tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"<s>": 1, "</s>": 2, "<|im_end|>": 3}}}"#);
    write("model/tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    write("adapter/adapter_config.json", r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 16}"#);
    write("rows.jsonl", &"{\"instruction\": \"a\", \"output\": \"b\"}\n".repeat(20));
    write("chats.jsonl", &"{\"messages\": []}\n".repeat(2000));
    for (name, text) in files {
        match text.is_empty() {
            true => fs::remove_file(dir.path().join(name)).unwrap(),
            false => write(name, text),
        }
    }
    let text = BASE.replace("org/model", "model").replace("org/data", "rows.jsonl");
    // The last of two equal keys counts: cases write over the base's lines.
    let mut lines: Vec<&str> = text.lines().collect();
    for line in more.lines().filter(|line| !line.starts_with(' ')) {
        let key = line.split(':').next().unwrap();
        if let Some(at) = lines.iter().position(|old| old.starts_with(&format!("{key}:"))) {
            let end = lines[at + 1..].iter().position(|old| !old.starts_with(' ')).map_or(lines.len(), |n| at + 1 + n);
            lines.drain(at..end);
        }
    }
    write("r.yml", &format!("{}\n{more}", lines.join("\n")));
    said(&load(&dir.path().join("r.yml"), &[]))
        .into_iter()
        .map(|line| line.split_once(' ').map_or(String::new(), |(_, rest)| rest.to_string()))
        .collect()
}

fn assert_placed(more: &str, wanted: &[&str]) {
    assert_eq!(placed(CONFIG, more), wanted, "for:\n{more}");
}

const CHATS: &str = "datasets:\n  - path: chats.jsonl\n    type: chat_template\n";

#[test]
fn what_fits_the_model_is_sound() {
    assert_placed("", &[]);
    assert_placed("lora_target_linear: false\nlora_target_modules: [q_proj, mlp.up_proj]\nsequence_len: 1024\n", &[]);
    assert_placed(&format!("chat_template: chatml\n{CHATS}"), &[]);
    assert_placed(&format!("eot_tokens: [</s>]\nchat_template: llama3\n{CHATS}"), &[]);
    assert_placed("special_tokens: {pad_token: <pad>, eos_token: </s>}\n", &[]);
}

#[test]
fn a_model_whose_weights_are_of_another() {
    let larger = CONFIG.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let wanted = "unsupported-model base_model -> a folder with its .safetensors files whole";
    assert_eq!(placed(&larger, ""), [wanted]);
    assert_eq!(placed(&larger, "train: false\n"), [""; 0]);
}

#[test]
fn a_tokenizer_that_is_not_whole() {
    let wanted = |key: &str| format!("unusable-tokenizer {key} -> a model with its tokenizer files whole");
    for (file, text) in [
        ("model/tokenizer.json", "{\"model\": {\"vocab\": {\"<s>\": 1, "),
        ("model/tokenizer.json", "{\"version\": \"1.0\"}"),
        ("model/tokenizer.json", ""),
    ] {
        assert_eq!(placed_beside(&[(file, text)], CONFIG, ""), [wanted("base_model")], "{text}");
    }
    let older = [("model/tokenizer.json", ""), ("model/tokenizer.model", "no model at all")];
    assert_eq!(placed_beside(&older, CONFIG, ""), [wanted("base_model")]);
    let other = [("other/tokenizer.json", "{")];
    assert_eq!(placed_beside(&other, CONFIG, "tokenizer_config: other\n"), [wanted("tokenizer_config")]);
}

#[test]
fn rows_longer_than_the_model() {
    assert_placed("sequence_len: 4096\n", &["unfit-value sequence_len -> at most 1024"]);
    assert_placed("sequence_len: 2048\n", &["~out-of-range sequence_len -> 1024"]);
    assert_placed("eval_sequence_len: 4096\n", &["unfit-value eval_sequence_len -> at most 1024"]);
}

#[test]
fn targets_that_match_no_module() {
    let wrong = "lora_target_linear: false\nlora_target_modules: [q_proj, v_porj]\n";
    assert_placed(wrong, &["no-module lora_target_modules[1] -> v_proj"]);
    let gpt = placed(CONFIG, "lora_target_linear: false\nlora_target_modules: [c_attn]\n");
    assert_eq!(gpt.len(), 1);
    assert!(gpt[0].starts_with("no-module lora_target_modules[0] -> ") && gpt[0].contains("q_proj"), "{gpt:?}");
}

#[test]
fn modules_that_cannot_be_trained_whole() {
    assert_placed("lora_modules_to_save: [model.embed_tokens, lm_head]\n", &[]);
    assert_placed("lora_modules_to_save: [lm_heads]\n", &["no-module lora_modules_to_save[0] -> lm_head"]);
    assert_placed("lora_modules_to_save: [norm]\n", &["no-module lora_modules_to_save[0] -> embed_tokens, lm_head"]);
    // GPT-2's name for the embedding.
    assert_placed("lora_modules_to_save: [wte]\n", &["no-module lora_modules_to_save[0] -> embed_tokens, lm_head"]);
}

#[test]
fn a_checkpoint_that_is_not_there() {
    assert_placed("resume_from_checkpoint: adapter\n", &[]);
    assert_placed("resume_from_checkpoint: adaptr\n", &["missing-file resume_from_checkpoint -> adapter"]);
    assert_placed("resume_from_checkpoint: out/checkpoint-9\n", &["missing-file resume_from_checkpoint -> true"]);
}

#[test]
fn turns_that_end_in_no_token() {
    let llama = format!("chat_template: llama3\n{CHATS}");
    assert_placed(&llama, &["not-a-token chat_template -> tokenizer_default"]);
    assert_placed("eot_tokens: [<|eot_id|>]\n", &["not-a-token eot_tokens[0] -> </s>"]);
    let special = "special_tokens: {eos_token: <|im_stop|>}\n";
    assert_placed(special, &["not-a-token special_tokens.eos_token -> lora_modules_to_save: [embed_tokens, lm_head]"]);
}

#[test]
fn an_adapter_that_the_recipe_contradicts() {
    assert_placed("lora_model_dir: adapter\nlora_r: 4\n", &[]);
    assert_placed("lora_model_dir: adapter\n", &["conflicting-keys lora_model_dir -> lora_r: 4"]);
}

#[test]
fn a_network_that_is_not_known() {
    let other = CONFIG.replace("LlamaForCausalLM", "ZebraForCausalLM");
    assert_eq!(placed(&other, ""), ["unsupported-model base_model -> another `base_model`"]);
    assert_eq!(placed(&other, "train: false\n"), [] as [&str; 0]);
}

#[test]
fn splits_and_batches_that_leave_nothing() {
    assert_placed("val_set_size: 20\n", &["unfit-value val_set_size -> 0.1"]);
    assert_placed("val_set_size: 5\n", &[]);
    let large = "micro_batch_size: 8\ngradient_accumulation_steps: 16\n";
    assert_placed(large, &["~few-rows gradient_accumulation_steps -> gradient_accumulation_steps: 2"]);
}

#[test]
fn names_of_templates_and_paths() {
    assert_placed("chat_template: chatlm\n", &["unfit-value chat_template -> chatml"]);
    assert_placed("chat_template: ./mine.jinja\n", &["missing-file chat_template -> -"]);
    assert_placed(
        "datasets:\n  - path: row.jsonl\n    type: alpaca\n",
        &["missing-file datasets[0].path -> rows.jsonl"],
    );
    assert_placed("base_model: modle\n", &["~missing-file base_model -> -"]);
    assert_placed("base_model: ./modle\n", &["missing-file base_model -> ./model"]);
}
