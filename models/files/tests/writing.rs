//! Writing folders and GGUF files: nothing is lost on the way round, and quantising costs what it should.
//!
//! `PIPE_TEST_KEEP=DIR` leaves what is written for the reference scripts in tests/fixtures.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pipe_files::{
    FolderWriter, GgufKind, ModelFiles, TensorType, TokenizerInfo, tokenizer, write_config, write_gguf, write_tokenizer,
};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama")
}

fn smollm2() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("HOME")?).join(".cache/pipe/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    path.is_file().then_some(path)
}

/// A folder to write to: kept where the environment names one.
fn scratch(name: &str) -> (Option<tempfile::TempDir>, PathBuf) {
    match std::env::var_os("PIPE_TEST_KEEP") {
        Some(keep) => {
            let path = PathBuf::from(keep).join(name);
            std::fs::create_dir_all(&path).unwrap();
            (None, path)
        }
        None => {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_owned();
            (Some(dir), path)
        }
    }
}

fn write_folder(model: &ModelFiles, kind: TensorType, max: u64, out: &Path) {
    let tensors = model.config().tensors();
    let mut writer = FolderWriter::create(out, &tensors, kind, max).unwrap();
    let mut values = Vec::new();
    for place in &tensors {
        model.read_f32(&place.name, &mut values).unwrap();
        model.release(&place.name);
        writer.write(&place.name, &values).unwrap();
    }
    writer.finish().unwrap();
    write_config(model, kind, out).unwrap();
    write_tokenizer(model.path(), out).unwrap();
}

/// Largest absolute difference and mean squared error over all tensors.
fn compare(a: &ModelFiles, b: &ModelFiles) -> (f32, f64) {
    assert_eq!(a.names(), b.names());
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let (mut largest, mut sum, mut count) = (0f32, 0f64, 0usize);
    for name in a.names() {
        a.read_f32(&name, &mut x).unwrap();
        b.read_f32(&name, &mut y).unwrap();
        for (p, q) in x.iter().zip(&y) {
            largest = largest.max((p - q).abs());
            sum += f64::from(p - q).powi(2);
        }
        count += x.len();
    }
    (largest, sum / count as f64)
}

fn gguf(model: &ModelFiles, kind: GgufKind, out: &Path) -> ModelFiles {
    assert!(write_gguf(model, kind, None, out, &mut |_, _| true).unwrap());
    ModelFiles::open(out).unwrap()
}

#[test]
fn folder_to_gguf_and_back_keeps_every_bit_and_every_token() {
    let (_keep, dir) = scratch("tiny");
    let source = ModelFiles::open(&tiny()).unwrap();
    let file = gguf(&source, GgufKind::F32, &dir.join("tiny-f32.gguf"));
    assert_eq!(compare(&source, &file).0, 0.0);
    assert_eq!(file.config().ropes, source.config().ropes);
    assert_eq!(file.config().norm, source.config().norm);
    let back = dir.join("back");
    write_folder(&file, TensorType::F32, 100_000, &back);
    assert!(back.join("model.safetensors.index.json").is_file(), "200 KB in shards of 100 KB");
    let again = ModelFiles::open(&back).unwrap();
    assert_eq!(compare(&source, &again).0, 0.0);
    let (one, two, three) = (tokenizer(&tiny()).unwrap(), tokenizer(file.path()).unwrap(), tokenizer(&back).unwrap());
    for text in ["Hello, world! 123 it's\n\n  x", "<|im_start|>user\nhi<|im_end|>\n", "naïve 日本 🙂"] {
        let ids = one.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(two.encode(text, true).unwrap().get_ids(), ids);
        assert_eq!(three.encode(text, true).unwrap().get_ids(), ids);
    }
    let (a, b) = (TokenizerInfo::read(&tiny()).unwrap(), TokenizerInfo::read(&back).unwrap());
    assert_eq!((a.bos, a.eos, a.pad, a.chat_template), (b.bos, b.eos, b.pad, b.chat_template));
}

/// A family's fixture with a tokenizer of as many tokens as its vocabulary.
fn family(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = ModelFiles::open(to).unwrap().config().vocab as u64;
    json["added_tokens"] = serde_json::json!([]);
    json["model"]["merges"] = serde_json::json!([]);
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < vocabulary);
    std::fs::write(to.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(to.join("tokenizer_config.json"), "{}").unwrap();
}

#[test]
fn every_family_survives_gguf_and_a_folder() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families");
    let roots = std::iter::once(own).chain(std::env::var_os("PIPE_TEST_FAMILIES").map(PathBuf::from));
    let cases = roots.flat_map(|root| std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()));
    let (_keep, dir) = scratch("families");
    let mut written = 0;
    for case in cases.filter(|path| path.join("config.json").is_file()) {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let source = dir.join(&name).join("source");
        family(&case, &source);
        let source = ModelFiles::open(&source).unwrap();
        let out = dir.join(&name).join("model.gguf");
        let file = match write_gguf(&source, GgufKind::F32, None, &out, &mut |_, _| true) {
            Ok(_) => ModelFiles::open(&out).unwrap_or_else(|e| panic!("{name}: {e}")),
            // What GGUF has no keys for is refused, and only that.
            Err(error) => {
                assert!(error.to_string().contains("cannot be written as GGUF"), "{name}: {error}");
                continue;
            }
        };
        written += 1;
        // A norm's weight that counts from one passes through 1 + w.
        let slack = if source.config().norm.from_one { 1e-6 } else { 0.0 };
        assert!(compare(&source, &file).0 <= slack, "{name}");
        let back = dir.join(&name).join("back");
        write_folder(&file, TensorType::F32, u64::MAX, &back);
        let back = ModelFiles::open(&back).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(compare(&source, &back).0 <= slack, "{name}");
        let (a, b) = (source.config(), back.config());
        assert_eq!((&a.parts, &a.layer_kinds, a.parallel), (&b.parts, &b.layer_kinds, b.parallel), "{name}");
        // The load-balancing loss belongs to training, of which GGUF says nothing.
        let experts = |c: &pipe_files::ModelConfig| {
            c.experts.clone().map(|experts| pipe_files::Experts { balance: 0.0, ..experts })
        };
        assert_eq!((a.activation, a.qk_norm, experts(a)), (b.activation, b.qk_norm, experts(b)), "{name}");
        assert_eq!(
            (a.final_softcap, a.attention_softcap, a.clip_qkv),
            (b.final_softcap, b.attention_softcap, b.clip_qkv)
        );
        for length in [1, 1000] {
            let at = |c: &pipe_files::ModelConfig| -> Vec<f32> {
                c.ropes.iter().flat_map(|rope| rope.inverse_frequencies(length)).collect()
            };
            for (x, y) in at(a).iter().zip(at(b)) {
                assert!((x / y - 1.0).abs() < 1e-5, "{name} at {length}: {:?} {:?}", a.ropes, b.ropes);
            }
        }
    }
    assert!(written >= 11, "{written}");
}

#[test]
fn equal_input_gives_equal_bytes_and_a_stopped_write_leaves_nothing() {
    let (_keep, dir) = scratch("equal");
    let source = ModelFiles::open(&tiny()).unwrap();
    let (a, b) = (dir.join("a.gguf"), dir.join("b.gguf"));
    gguf(&source, GgufKind::Q4KM, &a);
    gguf(&source, GgufKind::Q4KM, &b);
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    let stopped = dir.join("stopped.gguf");
    assert!(!write_gguf(&source, GgufKind::Q8_0, None, &stopped, &mut |done, _| done < 3).unwrap());
    let left = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("stopped")));
    assert_eq!(left.count(), 0);
}

#[test]
fn quantising_costs_less_than_the_format_allows() {
    let Some(path) = smollm2() else { return };
    let (_keep, dir) = scratch("smollm2");
    let source = ModelFiles::open(&path).unwrap();
    // Bounds are llama.cpp's own errors on this model (tests/fixtures/gguf/errors.py) and half a percent.
    for (kind, name, bound) in [
        (GgufKind::Q8_0, "q8_0", 1e-6),
        (GgufKind::Q4KM, "q4_k_m", 1e-3),
        (GgufKind::Q6K, "q6_k", 1e-3),
        (GgufKind::Q5KM, "q5_k_m", 1e-3),
    ] {
        let file = gguf(&source, kind, &dir.join(format!("{name}.gguf")));
        let (_, error) = compare(&source, &file);
        assert!(error < bound, "{name}: {error}");
    }
    write_folder(&source, TensorType::Bf16, u64::MAX, &dir.join("folder"));
}
