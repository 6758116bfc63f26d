//! Reading model files against references: the `gguf` package's values, llama.cpp's ids, damaged files' messages.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pipe_files::{FilesError, Gguf, ModelConfig, ModelFiles, TensorType, TokenizerInfo};
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The quickstart's model, where it was downloaded.
fn smollm2() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("HOME")?).join(".cache/pipe/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    path.is_file().then_some(path)
}

#[test]
fn every_block_type_decodes_to_the_reference_bits() {
    let cases = fixture("gguf/blocks.json");
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 11);
    for (code, case) in cases {
        let dtype = TensorType::from_code(code.parse().unwrap()).unwrap();
        let want = unhex(case["values"].as_str().unwrap());
        let mut got = vec![0f32; want.len() / 4];
        dtype.decode(&unhex(case["bytes"].as_str().unwrap()), &mut got);
        let got: Vec<u8> = got.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(got, want, "{}", case["name"]);
    }
}

#[test]
fn gguf_tokenizer_gives_llama_cpp_ids() {
    let Some(path) = smollm2() else { return };
    let tokenizer = pipe_files::tokenizer(&path).unwrap();
    let mut cases = fixture("tokenizer/smollm2_ids.json");
    // A larger set of references, kept outside the repository, can be named for a deeper check.
    if let Some(more) = std::env::var_os("PIPE_TEST_IDS") {
        cases = serde_json::from_slice(&std::fs::read(more).unwrap()).unwrap();
    }
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text, true).unwrap();
        assert_eq!(json!(got.get_ids()), case["ids"], "{text:?}");
        if !text.is_empty() {
            assert_eq!(tokenizer.decode(got.get_ids(), false).unwrap(), text);
        }
    }
}

#[test]
fn gguf_metadata_becomes_configuration_and_special_tokens() {
    let Some(path) = smollm2() else { return };
    let model = ModelFiles::open(&path).unwrap();
    let config = model.config();
    assert_eq!((config.hidden, config.layers, config.heads, config.kv_heads), (576, 30, 9, 3));
    assert_eq!((config.norm.eps, config.ropes[0].theta, config.tied_embeddings), (1e-5, 100_000.0, true));
    assert_eq!(config.parameters(), 134_515_008);
    assert_eq!(config.modules().len(), 210);
    let info = TokenizerInfo::read(&path).unwrap();
    assert_eq!(info.eos.unwrap().text, "<|im_end|>");
    assert_eq!(info.stops, [2]);
    assert!(!info.add_bos);
    assert!(info.chat_template.unwrap().contains("im_start"));
}

/// A config.json of a tiny network, with changes.
fn tiny(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn folder(config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// Writes safetensors with the given tensors, all f32 zeros.
fn weights(dir: &Path, tensors: &[(String, Vec<usize>)]) {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(n, s)| (n.clone(), s.clone(), vec![0; s.iter().product::<usize>() * 4])).collect();
    let views = data.iter().map(|(n, s, d)| {
        (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), d).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

fn error(path: &Path) -> String {
    let error = ModelFiles::open(path).unwrap_err();
    assert!(error.is_input());
    error.to_string()
}

#[test]
fn each_problem_with_a_folder_names_place_and_remedy() {
    assert!(error(Path::new("/nowhere/model")).contains("/nowhere/model"));
    let dir = folder(&tiny(json!({})));
    assert!(error(dir.path()).contains("expected model.safetensors"));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(error(dir.path()).contains("pickle"));

    let config = ModelConfig::read(dir.path()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> =
        config.tensors().into_iter().map(|place| (place.name.clone(), place.stored_shape())).collect();
    weights(dir.path(), &tensors);
    assert_eq!(ModelFiles::open(dir.path()).unwrap().names().len(), tensors.len());
    tensors[1].1 = vec![9];
    weights(dir.path(), &tensors);
    assert!(error(dir.path()).contains("input_layernorm"), "{}", error(dir.path()));
    tensors.remove(1);
    weights(dir.path(), &tensors);
    assert!(error(dir.path()).contains("is missing"));

    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    assert!(error(dir.path()).contains("model.safetensors is damaged"), "{}", error(dir.path()));

    let other = folder(&tiny(json!({"architectures": ["OPTForCausalLM"]})));
    let text = error(other.path());
    assert!(text.contains("OPTForCausalLM") && text.contains("LlamaForCausalLM"), "{text}");
    for (key, value) in [
        ("hidden_act", json!("fancy")),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("rope_scaling", json!({"rope_type": "fancy", "factor": 2})),
        ("hidden_size", json!(null)),
        ("num_key_value_heads", json!(3)),
    ] {
        let dir = folder(&tiny(json!({key: value})));
        assert!(error(dir.path()).contains(key), "{key}: {}", error(dir.path()));
    }
}

#[test]
fn a_cut_gguf_is_reported_at_every_length() {
    let Some(path) = smollm2() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.gguf");
    let bytes = std::fs::read(path).unwrap();
    for len in [0, 3, 4, 10, 24, 200, 5000, 1_000_000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..len]).unwrap();
        match Gguf::open(&cut) {
            Err(FilesError::Damaged { what, .. }) => assert!(!what.is_empty()),
            other => panic!("{len}: {other:?}"),
        }
    }
    // Read once while it is the same file, and anew when it is not.
    std::fs::write(&cut, &bytes).unwrap();
    let whole = Gguf::open(&cut).unwrap();
    assert!(std::sync::Arc::ptr_eq(&whole, &Gguf::open(&cut).unwrap()));
    std::fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(bytes.len() as u64 - 1).unwrap();
    assert!(matches!(Gguf::open(&cut), Err(FilesError::Damaged { .. })));
}
