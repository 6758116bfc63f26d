//! The products of decoding: a few rows by kernels of our own answer as libtorch does, and a GGUF held as its blocks as
//! the dense weights that they stand for.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pipe_job::{BaseWeights, Compute, QuantizeJob};
use pipe_models::decoder::{Decoder, Segments};
use pipe_models::events::Events;
use pipe_models::kernels::rows;
use pipe_models::linear::{Linear, Lora, Pass, Weight};
use pipe_models::{few, load, quantize, random, shim};
use tch::{Kind, Tensor};

fn quiet() -> Events {
    Events::to(std::io::sink())
}

fn quantised(name: &str, folder: &Path) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama");
    let output = folder.join(format!("{name}.gguf"));
    let job = QuantizeJob { model, outputs: vec![(name.to_string(), output.clone())], importance: None };
    quantize::quantize(&job, &quiet()).unwrap();
    output
}

/// The largest difference, as a share of the largest number.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_kind(Kind::Float);
    let largest = |x: Tensor| f64::try_from(x.abs().max()).unwrap();
    largest(wide(found) - wide(expected)) / largest(wide(expected))
}

/// Logits after a prompt and after each of some tokens more.
fn logits(decoder: &Decoder, prompt: &[i64], tokens: &[i64]) -> Vec<Tensor> {
    let mut cache = decoder.cache();
    let first = decoder.prefill(&[prompt.to_vec()], &mut cache, Pass::INFERENCE).unwrap();
    let next = tokens.iter().map(|token| decoder.step(&[*token], &mut cache, Pass::INFERENCE).unwrap());
    std::iter::once(first).chain(next.collect::<Vec<_>>()).collect()
}

#[test]
fn blocks_answer_as_the_dense_weights_they_stand_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q4_k_m", "q2_k"] {
        let path = quantised(name, folder.path());
        for (compute, tolerance) in [(Compute::F32, 3e-4), (Compute::Bf16, 4e-2)] {
            let dense = load::load(&path, BaseWeights::Dense, compute, &quiet()).unwrap();
            let stored = load::load_stored(&path, BaseWeights::Dense, compute, &quiet()).unwrap();
            let held = stored.linears().filter(|linear| matches!(linear.weight, Weight::Blocks(_))).count();
            assert_eq!(held, if rows::fast() { 14 } else { 0 }, "{name}");
            assert_eq!(matches!(stored.embedding, Weight::Blocks(_)), rows::fast(), "{name}");
            // Their numbers are the same, bit for bit.
            for (a, b) in dense.linears().zip(stored.linears()) {
                assert!(a.dense(Kind::Float).equal(&b.dense(dense.compute).to_kind(Kind::Float)), "{name} {}", a.name);
            }
            if let Weight::Blocks(blocks) = &stored.embedding {
                let ids = [5, 0, 77, 5];
                let expected = dense.embedding.dense(dense.compute).index_select(0, &Tensor::from_slice(&ids));
                assert!(blocks.select(&ids, dense.compute).equal(&expected), "{name}, {compute:?}");
            }
            // Few rows go through the blocks, many through tiles of dense weights.
            for length in [1, 3, 40, 100] {
                let prompt: Vec<i64> = (0..length).map(|i| (i * 37 + 11) % dense.vocabulary()).collect();
                let tokens = [5, 77, 130, 9];
                let (expected, found) = (logits(&dense, &prompt, &tokens), logits(&stored, &prompt, &tokens));
                for (expected, found) in expected.iter().zip(&found) {
                    let share = difference(found, expected);
                    assert!(share <= tolerance, "{name}, {compute:?}, {length} tokens: {share}");
                }
                let mut whole = Segments::default();
                whole.push(&prompt);
                let hidden = |decoder: &Decoder| decoder.hidden(&whole, Pass::INFERENCE).unwrap().to_kind(Kind::Float);
                assert!(
                    difference(&hidden(&stored), &hidden(&dense)) <= tolerance,
                    "{name}, {compute:?}, {length} tokens"
                );
            }
        }
    }
}

#[test]
fn a_quantised_base_is_quantised_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = quantised("q8_0", folder.path());
    let nf4 = BaseWeights::Nf4 { double_quant: true };
    let decoder = load::load_stored(&path, nf4, Compute::F32, &quiet()).unwrap();
    assert!(decoder.linears().all(|linear| matches!(linear.weight, Weight::Nf4(_))));
}

fn drawn(shape: [i64; 2], key: u64) -> Tensor {
    let draws: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(|i| random::normal(key, i) as f32).collect();
    Tensor::from_slice(&draws).reshape(shape)
}

fn layer([outputs, inputs]: [i64; 2], bias: bool, lora: bool, (weight, kind): (Kind, Kind)) -> Linear {
    Linear {
        name: format!("layer {outputs}"),
        weight: Weight::Dense(drawn([outputs, inputs], outputs as u64).to_kind(weight)),
        bias: bias.then(|| drawn([1, outputs], 7).reshape([outputs]).to_kind(kind)),
        lora: lora.then(|| Lora {
            a: drawn([5, inputs], 8),
            b: drawn([outputs, 5], 9),
            scale: 0.3,
            dropout: 0.0,
            dora: None,
            start: None,
        }),
        heard: None,
    }
}

fn some_layers(weight: Kind, kind: Kind) -> [Linear; 3] {
    let layer = |outputs: i64, bias: bool, lora: bool| layer([outputs, 72], bias, lora, (weight, kind));
    [layer(33, false, false), layer(700, true, true), layer(1, true, false)]
}

#[test]
fn layers_answer_as_libtorch_has_them_answer() {
    if !rows::fast() {
        return;
    }
    for (weight, kind) in [(Kind::Float, Kind::Float), (Kind::BFloat16, Kind::Float), (Kind::BFloat16, Kind::BFloat16)]
    {
        let layers = some_layers(weight, kind);
        let tolerance = if kind == Kind::Float { 2e-6 } else { 1.5e-2 };
        for count in [1, 2, 5, 16] {
            let x = drawn([count, 72], 3).to_kind(kind);
            let all = tch::no_grad(|| few::forward(&layers.each_ref(), &x, Pass::INFERENCE)).unwrap();
            for (layer, found) in layers.iter().zip(&all) {
                assert_eq!((found.kind(), found.size()), (kind, vec![count, layer.shape().0]));
                let (bias, lora) = (layer.bias.as_ref(), layer.lora.as_ref());
                let [expected] = shim::linears(&x, [shim::Layer { weight: &layer.weight, bias, lora, seed: None }]);
                assert!(difference(found, &expected) <= tolerance, "{weight:?}, {kind:?}, {count} rows");
            }
            // A row's answer is its own, whoever shares the batch.
            let last =
                tch::no_grad(|| few::forward(&layers.each_ref(), &x.narrow(0, count - 1, 1), Pass::INFERENCE)).unwrap();
            for (alone, found) in last.iter().zip(&all) {
                assert!(alone.equal(&found.narrow(0, count - 1, 1)), "{weight:?}, {kind:?}, {count} rows");
            }
        }
    }
}

#[test]
fn sums_and_gated_layers_are_those_of_the_steps_one_by_one() {
    if !rows::fast() {
        return;
    }
    for kinds in [(Kind::Float, Kind::Float), (Kind::BFloat16, Kind::Float), (Kind::BFloat16, Kind::BFloat16)] {
        let (kind, infer) = (kinds.1, Pass::INFERENCE);
        let gate = layer([700, 72], true, true, kinds);
        let up = layer([700, 72], false, true, kinds);
        let down = layer([72, 700], true, true, kinds);
        for count in [1, 2, 5, 16] {
            let (x, onto) = (drawn([count, 72], 3).to_kind(kind), drawn([count, 72], 4).to_kind(kind));
            let _guard = tch::no_grad_guard();
            let one = |layer: &Linear, x: &Tensor| few::forward(&[layer], x, infer).unwrap().pop().unwrap();
            let added = few::added(&down, &x.repeat([1, 10]).narrow(1, 0, 700), &onto, infer).unwrap();
            assert!(
                added.equal(&(&onto + one(&down, &x.repeat([1, 10]).narrow(1, 0, 700)))),
                "{kinds:?}, {count} rows"
            );
            let found = few::gated([&gate, &up, &down], &x, &onto, infer).unwrap();
            let steps = &onto + one(&down, &shim::swiglu(&one(&gate, &x), &one(&up, &x)));
            assert_eq!((found.kind(), found.size()), (steps.kind(), steps.size()));
            assert!(difference(&found, &steps) <= 1e-6, "{kinds:?}, {count} rows");
        }
    }
}

#[test]
fn gradients_training_and_many_rows_are_left_to_libtorch() {
    let layers = some_layers(Kind::Float, Kind::Float);
    let x = drawn([2, 72], 3);
    assert!(few::forward(&layers.each_ref(), &x, Pass::INFERENCE).is_none());
    let none = |x: &Tensor, pass: Pass| tch::no_grad(|| few::forward(&layers.each_ref(), x, pass)).is_none();
    assert!(none(&x, Pass { training: Some(1), ..Pass::INFERENCE }));
    assert!(none(&x, Pass { fused: false, ..Pass::INFERENCE }));
    assert!(none(&drawn([65, 72], 3), Pass::INFERENCE));
}
