//! The parts of the tiny llama's memory, counted by hand.

use super::*;
use serde_json::json;

fn train(adapter: Value) -> Value {
    json!({
        "adapter": adapter,
        "base": {"kind": "nf4", "double_quant": true},
        "compute": "f32",
        "batching": {"micro_batch": 1, "accumulation": 1, "epochs": 1.0, "max_steps": null, "order": "shuffled"},
        "optimizer": {"kind": "adam_w", "lr": 1e-3},
    })
}

fn lora(targets: Value) -> Value {
    json!({"kind": "lora", "r": 4, "alpha": 8.0, "dropout": 0.0, "targets": targets, "rslora": false, "dora": false})
}

fn found(train: &Value, recompute: Recompute) -> Estimate {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-llama"));
    estimate(model, "tiny", train, Tokens { sequence_len: 128, fullest: None, recompute }).unwrap()
}

#[test]
fn the_parts_of_the_tiny_llama() {
    let all = found(&train(lora(json!({"kind": "all_linear"}))), Recompute::Nothing);
    // Per layer: q and o 64 to 64, k and v 64 to 32, gate and up 64 to 128, down 128 to 64.
    let per_layer = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128);
    assert_eq!(all.trainable_parameters, 2 * 4 * per_layer);
    assert_eq!(all.adapter_bytes, all.trainable_parameters * 4);
    assert_eq!(all.gradients_bytes, all.trainable_parameters * 4);
    assert_eq!(all.optimizer_bytes, all.trainable_parameters * 8);
    assert_eq!(all.parameters, 416 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128));
    // Unpacked where arithmetic is f32, packed where it is bf16.
    assert_eq!(all.weights_bytes, all.parameters * 4);
    assert_eq!(all.chunk_tokens, 128);
    // What norms read 2 x 64; q, k, v 64 + 32 + 32; o 64; gate and up 2 x 128; seven narrow products of 4.
    let kept = 2 * 64 + 128 + 64 + 2 * 128 + 7 * 4;
    let scores = 4 * 128 * 128 * 2 * 4;
    let activations = (128.0 * f64::from(kept * 2 * 4) * 1.12 + f64::from(scores)) as u64;
    assert_eq!(all.activations_bytes, activations);
    let parts = [all.weights_bytes, all.adapter_bytes, all.gradients_bytes, all.optimizer_bytes, all.activations_bytes];
    assert_eq!(all.total_bytes, parts.iter().sum::<u64>() + all.loss_bytes + all.runtime_bytes);
    // Without the kernels, what norms give and what goes into down as well.
    let mut plain = train(lora(json!({"kind": "all_linear"})));
    plain["kernels"] = json!(false);
    let more = f64::from((2 * 64 + 128) * 2 * 4) * 128.0 * 1.12;
    assert!((found(&plain, Recompute::Nothing).activations_bytes as f64 - activations as f64 - more).abs() <= 1.0);
    let less = found(&train(lora(json!({"kind": "all_linear"}))), Recompute::Layers);
    assert!(less.activations_bytes < all.activations_bytes);
    let mut narrow = train(lora(json!({"kind": "all_linear"})));
    narrow["compute"] = json!("bf16");
    let narrow = found(&narrow, Recompute::Nothing);
    assert!(narrow.weights_bytes < all.parameters * 2);
    assert_eq!(narrow.activations_bytes, activations / 2 + 64 * 128 * 2);
}

#[test]
fn layers_below_the_first_adapted_one_keep_nothing() {
    let of = |pattern: &str| found(&train(lora(json!({"kind": "regex", "value": pattern}))), Recompute::Nothing);
    let (both, upper) = (of(".*proj"), of(".*layers\\.1\\..*proj"));
    let scores = 4 * 128 * 128 * 2 * 4;
    assert_eq!(upper.activations_bytes - scores, (both.activations_bytes - scores) / 2);
}

#[test]
fn targets_are_counted_as_peft_finds_them() {
    let count = |targets: Value| found(&train(lora(targets)), Recompute::Nothing).trainable_parameters;
    assert_eq!(count(json!({"kind": "names", "value": ["q_proj"]})), 2 * 4 * 128);
    assert_eq!(count(json!({"kind": "names", "value": ["model.layers.1.self_attn.q_proj", "proj"]})), 4 * 128);
    assert_eq!(count(json!({"kind": "regex", "value": ".*layers\\.0.*(q|k)_proj"})), 4 * (128 + 96));
    let full = found(&train(json!({"kind": "full"})), Recompute::Nothing);
    assert_eq!((full.trainable_parameters, full.adapter_bytes), (full.parameters, 0));
}

#[test]
fn weights_that_are_trained_are_held_in_f32_whatever_the_arithmetic() {
    let mut full = train(json!({"kind": "full"}));
    full["base"] = json!({"kind": "dense"});
    let wide = found(&full, Recompute::Nothing);
    full["compute"] = json!("bf16");
    let narrow = found(&full, Recompute::Nothing);
    for estimate in [&wide, &narrow] {
        let trained = estimate.trainable_parameters;
        assert_eq!([estimate.weights_bytes, estimate.gradients_bytes], [trained * 4, trained * 4]);
        assert_eq!(estimate.optimizer_bytes, trained * 8);
    }
    // Half of the activations, and the copies of all weights in bf16.
    let scores = 4 * 128 * 128 * 2 * 2;
    let halved = (wide.activations_bytes - 2 * scores) / 2 + scores;
    assert_eq!(narrow.activations_bytes, halved + narrow.parameters * 2);
    let recomputed = found(&full, Recompute::Layers);
    assert!(recomputed.activations_bytes < narrow.activations_bytes);
}

#[test]
fn stored_packs_tell_how_many_tokens_go_together() {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-llama"));
    let train = train(lora(json!({"kind": "all_linear"})));
    let chunk = |row: u64, pack: u64| {
        let tokens = Tokens { sequence_len: 2048, fullest: Some(Fullest { row, pack }), recompute: Recompute::Nothing };
        estimate(model, "tiny", &train, tokens).unwrap().chunk_tokens
    };
    // One short pack, short rows in full packs, a row longer than a chunk.
    assert_eq!((chunk(412, 412), chunk(100, 2000), chunk(1500, 2000)), (412, 512, 1500));
}
