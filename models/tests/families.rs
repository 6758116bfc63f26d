//! Every family against transformers: token losses, gradients, greedy answers (tests/fixtures/families).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, ModelSource, WeightType, Weighted};
use pipe_models::decoder::{Decoder, Segments};
use pipe_models::events::Events;
use pipe_models::linear::{Pass, Weight};
use pipe_models::loss::{Targets, token_losses};
use pipe_models::norm::Norm;
use pipe_models::{adapter, load, merge, tuned};
use serde_json::Value;
use tch::{Kind, Tensor};

const PLAIN: Pass = Pass { fused: false, ..Pass::INFERENCE };

/// The committed cases, and those in a folder that is named for a wider check.
fn cases() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    let roots = std::iter::once(own).chain(std::env::var_os("PIPE_TEST_FAMILIES").map(PathBuf::from));
    let folders = roots.flat_map(|root| std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()));
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("expected.json").is_file()).collect();
    folders.sort();
    assert!(folders.len() >= 20, "{} cases", folders.len());
    folders
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

fn decoder(folder: &Path) -> Decoder {
    load::load(folder, BaseWeights::Dense, Compute::F32, &Events::to(std::io::sink())).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

/// All documents end to end, every token but the first of each to be predicted.
fn packed(want: &Value) -> (Segments, Targets) {
    let mut segments = Segments::default();
    want["documents"].as_array().unwrap().iter().for_each(|document| segments.push(&ids(document)));
    let targets = Targets::of(&segments.ids, &segments.lengths);
    (segments, targets)
}

/// Runs a check on every case and reports all that fail.
fn each(check: impl Fn(&Path, &Value) -> Result<(), String>) {
    let failed: Vec<String> = cases()
        .iter()
        .filter_map(|folder| {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            check(folder, &expected(folder)).err().map(|what| format!("{name}: {what}"))
        })
        .collect();
    assert!(failed.is_empty(), "{} fail:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn packed_documents_have_transformers_token_losses() {
    each(|folder, want| {
        let decoder = decoder(folder);
        let (segments, targets) = packed(want);
        let want: Vec<f64> = want["losses"].as_array().unwrap().iter().flat_map(numbers).collect();
        for pass in [Pass::INFERENCE, PLAIN] {
            let got = tch::no_grad(|| token_losses(&decoder, &segments, &targets, pass, 0.0)).unwrap();
            let got: Vec<f32> = Vec::try_from(got.tokens).unwrap();
            let off = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs() / w.abs().max(1e-2));
            let worst = off.fold(0.0, f64::max);
            if got.len() != want.len() || worst.is_nan() || worst > 1e-4 {
                return Err(format!("fused {}: losses off by {worst:e}", pass.fused));
            }
        }
        Ok(())
    });
}

#[test]
fn gradients_are_transformers() {
    each(|folder, want| {
        let Some(gradients) = want["gradients"].as_object() else { return Ok(()) };
        let mut decoder = decoder(folder);
        let leaves = train_everything(&mut decoder);
        let (segments, targets) = packed(want);
        token_losses(&decoder, &segments, &targets, PLAIN, 0.0).unwrap().objective.backward();
        // Norms of single heads are one tensor here and several there.
        let apart = |name: &&String| !name.contains(".norms.");
        let missing = gradients.keys().filter(apart).find(|name| leaves.iter().all(|(own, _)| own != *name));
        if let Some(name) = missing {
            return Err(format!("no gradient of {name}"));
        }
        leaves.iter().try_for_each(|(name, leaf)| same_gradient(name, leaf, &gradients[name]))
    });
}

#[test]
fn frozen_weights_pass_on_transformers_gradients() {
    each(|folder, want| {
        for recompute in [0, 1, 2] {
            let mut decoder = decoder(folder);
            if decoder.untied_head.is_none() {
                decoder.untied_head = Some(Weight::Dense(decoder.embedding.dense(Kind::Float).copy()));
            }
            let embedding = decoder.embedding.dense(Kind::Float).set_requires_grad(true);
            decoder.embedding = Weight::Dense(embedding.shallow_clone());
            // Training, but for the dropout that some families' files ask for.
            decoder.config.dropout = Default::default();
            let pass = Pass { training: Some(1), recompute, ..Pass::INFERENCE };
            let (segments, targets) = packed(want);
            token_losses(&decoder, &segments, &targets, pass, 0.0).unwrap().objective.backward();
            same_gradient("embedding", &embedding, &want["input_gradient"])?;
        }
        Ok(())
    });
}

#[test]
fn greedy_answers_are_transformers() {
    each(|folder, want| {
        let Some(continuation) = want.get("continuation") else { return Ok(()) };
        let decoder = decoder(folder);
        let mut cache = decoder.cache();
        // A second row of another length must change nothing.
        let prompts = [ids(&want["prompt"]), vec![3, 4, 5]];
        let mut logits = decoder.prefill(&prompts, &mut cache, Pass::INFERENCE).unwrap();
        let mut got = Vec::new();
        for _ in ids(continuation) {
            let next: Vec<i64> = Vec::try_from(logits.argmax(1, false)).unwrap();
            got.push(next[0]);
            logits = decoder.step(&next, &mut cache, Pass::INFERENCE).unwrap();
        }
        if got == ids(continuation) { Ok(()) } else { Err(format!("answers {got:?}, wanted {continuation}")) }
    });
}

#[test]
fn the_load_balancing_loss_is_transformers() {
    let seen = std::cell::Cell::new(0);
    each(|folder, want| {
        let Some(balance) = want.get("balance").and_then(Value::as_f64) else { return Ok(()) };
        let decoder = decoder(folder);
        let mut segments = Segments::default();
        segments.push(&ids(&want["documents"][0]));
        let coefficient = decoder.config.experts.as_ref().unwrap().balance;
        for recompute in [0, 1, 2] {
            let pass = Pass { training: Some(1), recompute, ..Pass::INFERENCE };
            let got = decoder.forward(&segments, pass).unwrap().balance.unwrap().double_value(&[]) / coefficient;
            if (got / balance - 1.0).abs() > 1e-5 {
                return Err(format!("balance {got}, wanted {balance}"));
            }
        }
        seen.set(seen.get() + 1);
        Ok(())
    });
    assert!(seen.get() > 0);
}

#[test]
fn quantised_weights_can_be_made_dense() {
    each(|folder, want| {
        let nf4 = BaseWeights::Nf4 { double_quant: true };
        let mut decoder = load::load(folder, nf4, Compute::F32, &Events::to(std::io::sink())).unwrap();
        let (segments, targets) = packed(want);
        let loss = |decoder: &Decoder| {
            let losses = tch::no_grad(|| token_losses(decoder, &segments, &targets, Pass::INFERENCE, 0.0));
            losses.unwrap().tokens.mean(Kind::Float)
        };
        let before = loss(&decoder).double_value(&[]);
        tuned::densify(&mut decoder);
        let after = loss(&decoder).double_value(&[]);
        let dense = decoder.linears().all(|linear| matches!(linear.weight, Weight::Dense(_)));
        if dense && (before / after - 1.0).abs() < 1e-5 { Ok(()) } else { Err(format!("{before} {after}")) }
    });
}

/// The families of tests/fixtures/adapters, where PEFT's names are not those of the model's files.
const ADAPTED: [&str; 4] = ["mixtral", "qwen3_moe", "gpt2", "gpt_neox"];

fn fixtures(folder: &str, family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(folder).join(family)
}

/// The largest relative difference of token losses.
fn off(decoder: &Decoder, want: &Value) -> f64 {
    let (segments, targets) = packed(want);
    let got = tch::no_grad(|| token_losses(decoder, &segments, &targets, Pass::INFERENCE, 0.0)).unwrap();
    let got: Vec<f32> = Vec::try_from(got.tokens).unwrap();
    let want: Vec<f64> = want["losses"].as_array().unwrap().iter().flat_map(numbers).collect();
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs() / w.abs().max(1e-2)).fold(0.0, f64::max)
}

#[test]
fn adapters_have_pefts_token_losses_alone_and_merged() {
    for family in ADAPTED {
        let (base, folder) = (fixtures("families", family), fixtures("adapters", family));
        let want = expected(&folder);
        let mut tuned = decoder(&base);
        let before = off(&tuned, &want);
        tuned::attach(&mut tuned, &folder, tuned::Use::Inference).unwrap();
        let after = off(&tuned, &want);
        assert!(before > 0.1 && after < 1e-4, "{family}: {before:e} without, {after:e} with the adapter");
        let dir = tempfile::tempdir().unwrap();
        let job = MergeJob {
            model: ModelSource { path: base, adapter: None, base: BaseWeights::Dense, compute: Compute::F32 },
            adapters: vec![Weighted { path: folder, weight: 1.0 }],
            base: MergeBase::Original,
            dtype: WeightType::F32,
            max_shard_bytes: 1 << 30,
            output: dir.path().to_owned(),
        };
        merge::merge(&job, &Events::to(std::io::sink())).unwrap();
        let merged = off(&decoder(dir.path()), &want);
        assert!(merged < 1e-4, "{family}: {merged:e} merged");
    }
}

#[test]
fn stacked_experts_of_another_model_are_refused() {
    let mut other = decoder(&fixtures("families", "qwen3_moe"));
    let error = tuned::attach(&mut other, &fixtures("adapters", "mixtral"), tuned::Use::Inference).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("shape of this model's experts"), "{error}");
    let mut dense = decoder(&fixtures("families", "qwen3"));
    let error = tuned::attach(&mut dense, &fixtures("adapters", "qwen3_moe"), tuned::Use::Inference).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("target_parameters"), "{error}");
}

#[test]
fn whole_tables_are_saved_under_pefts_names() {
    // Llama's own name is left as the settings have it.
    let names = [
        ("llama", "model.embed_tokens", "embed_tokens"),
        ("gpt2", "transformer.wte", "transformer.wte"),
        ("gpt_neox", "gpt_neox.embed_in", "gpt_neox.embed_in"),
    ];
    for (family, embedding, listed) in names {
        let mut decoder = decoder(&fixtures("families", family));
        let settings = adapter::settings_of(&pipe_files::PeftConfig {
            r: 2,
            alpha: 4.0,
            modules_to_save: vec!["embed_tokens".into(), "lm_head".into()],
            ..Default::default()
        });
        adapter::attach(&mut decoder, &settings, 1, &mut |_| unreachable!()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter::save(&decoder, &settings, dir.path()).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(config["modules_to_save"], serde_json::json!([listed, "lm_head"]), "{family}");
        let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for name in [embedding, "lm_head"] {
            tensors.tensor(&format!("base_model.model.{name}.weight")).unwrap();
        }
        // What was written is read again.
        tuned::attach(&mut self::decoder(&fixtures("families", family)), dir.path(), tuned::Use::Inference).unwrap();
    }
}

/// Makes every weight a leaf that is trained; each with its name.
fn train_everything(decoder: &mut Decoder) -> Vec<(String, Tensor)> {
    let outer = |part: pipe_files::Part| {
        let found = decoder.config.tensors().into_iter().find(|place| place.part == part && !place.bias);
        found.map(|place| place.module().to_owned()).unwrap_or_default()
    };
    let [embedding, positions, head] =
        [pipe_files::Part::Embedding, pipe_files::Part::Positions, pipe_files::Part::Head].map(outer);
    let mut leaves = Vec::new();
    let mut leaf = |name: String, tensor: &mut Tensor| {
        *tensor = tensor.set_requires_grad(true);
        leaves.push((name, tensor.shallow_clone()));
    };
    decoder.embedding.tensor_mut().into_iter().for_each(|table| leaf(format!("{embedding}.weight"), table));
    decoder.positions.iter_mut().for_each(|table| leaf(format!("{positions}.weight"), table));
    let untied = decoder.untied_head.iter_mut().filter_map(Weight::tensor_mut);
    untied.for_each(|table| leaf(format!("{head}.weight"), table));
    decoder.head_bias.iter_mut().for_each(|bias| leaf(format!("{head}.bias"), bias));
    let norm = |norm: &mut Norm, leaf: &mut dyn FnMut(String, &mut Tensor)| {
        let weight = norm.weight.as_mut().filter(|weight| weight.dim() == 1);
        weight.into_iter().for_each(|weight| leaf(format!("{}.weight", norm.name), weight));
        norm.bias.iter_mut().for_each(|bias| leaf(format!("{}.bias", norm.name), bias));
    };
    norm(&mut decoder.norm, &mut leaf);
    for layer in &mut decoder.layers {
        layer.norms_mut().for_each(|own| norm(own, &mut leaf));
        for linear in layer.linears_mut() {
            let name = linear.name.clone();
            if let Weight::Dense(weight) = &mut linear.weight {
                leaf(format!("{name}.weight"), weight);
            }
            linear.bias.iter_mut().for_each(|bias| leaf(format!("{name}.bias"), bias));
        }
    }
    leaves
}

/// Compares norm and sum; an expert that no token reached has no gradient in one of the two.
fn same_gradient(name: &str, leaf: &Tensor, want: &Value) -> Result<(), String> {
    if want.is_null() {
        return Err(format!("transformers has no gradient of {name}"));
    }
    let grad = leaf.grad();
    let got = match grad.defined() {
        true => [grad.norm().double_value(&[]), grad.sum(Kind::Double).double_value(&[])],
        false => [0.0, 0.0],
    };
    let want = numbers(want);
    let scale = want[0].max(1e-3);
    let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / scale).fold(0.0, f64::max);
    if off < 1e-3 { Ok(()) } else { Err(format!("gradient of {name} {got:?}, wanted {want:?}")) }
}
