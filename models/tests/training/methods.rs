//! Every way of adapting the tiny model against PEFT, bitsandbytes and PyTorch (tests/fixtures/training/cases.py).

use std::path::Path;

use pipe_job::{
    Adapter, BaseWeights, EvalPoints, Freeze, Init, Lora, LoraPlus, OptimizerKind, Order, Stopping, TrainJob, Watchdog,
};
use pipe_models::ModelError;
use pipe_models::tensors::{read_tensors, write_tensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{close, fixtures, job, run};

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("training/cases.json")).unwrap()).unwrap()
}

/// The given adapter with some of its configuration changed, and tensors added.
fn adapter(dir: &Path, change: &[(&str, Value)], more: Vec<(String, Tensor)>) -> std::path::PathBuf {
    let (from, to) = (fixtures().join("training/adapter"), dir.join("adapter"));
    std::fs::create_dir_all(&to).unwrap();
    let text = std::fs::read(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    change.iter().for_each(|(key, value)| config[*key] = value.clone());
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let tensors = read_tensors(&from.join("adapter_model.safetensors")).unwrap();
    write_tensors(&to.join("adapter_model.safetensors"), tensors.into_iter().chain(more).collect(), &[]).unwrap();
    to
}

/// Trains as the case did and compares every step and what comes out.
fn check(name: &str, tolerance: f64, change: impl Fn(&mut TrainJob, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    change(&mut job, dir.path());
    let (outcome, metrics) = run(&job, None);
    outcome.unwrap();
    let case = &cases()[name];
    let steps = case["steps"].as_array().unwrap_or_else(|| panic!("no case {name}"));
    assert_eq!(metrics.len(), steps.len());
    for (metric, step) in metrics.iter().zip(steps) {
        close(metric.loss, &step["loss"], tolerance, &format!("{name}: loss of step {}", metric.step));
        close(metric.grad_norm, &step["grad_norm"], 20.0 * tolerance, &format!("{name}: norm of step {}", metric.step));
    }
    let file = ["adapter_model.safetensors", "model.safetensors"].map(|file| job.output.join(file));
    let ours = read_tensors(file.iter().find(|file| file.is_file()).unwrap()).unwrap();
    for (tensor, want) in case["final"].as_object().unwrap() {
        let own = ours.get(tensor).unwrap_or_else(|| panic!("{name}: no {tensor}"));
        let values: Vec<f32> = Vec::try_from(own.reshape([-1])).unwrap();
        let norm = own.norm().double_value(&[]);
        close(norm, &want["norm"], 10.0 * tolerance, &format!("{name}: {tensor}"));
        let scale = norm / (values.len() as f64).sqrt();
        for (value, want) in values.iter().zip(want["first"].as_array().unwrap()) {
            let off = (f64::from(*value) - want.as_f64().unwrap()).abs();
            assert!(off <= 20.0 * tolerance * scale, "{name}: {tensor}: {value} against {want}");
        }
    }
}

#[test]
fn scales_and_patterns_equal_peft() {
    check("lora", 1e-4, |_, _| {});
    check("rslora", 1e-4, |job, dir| {
        job.model.adapter = Some(adapter(dir, &[("use_rslora", json!(true))], Vec::new()))
    });
    check("patterns", 1e-4, |job, _| job.model.adapter = Some(fixtures().join("training/patterns")));
}

#[test]
fn dora_equals_peft_also_on_a_quantised_base() {
    let dora = fixtures().join("training/dora");
    for kernels in [true, false] {
        check("dora", 1e-4, |job, _| {
            (job.kernels, job.model.adapter) = (kernels, Some(dora.clone()));
        });
    }
    // The lengths it starts from are those of the quantised weights.
    check("dora_nf4", 2e-3, |job, dir| {
        job.model.base = BaseWeights::Nf4 { double_quant: true };
        let lengths = read_tensors(&fixtures().join("training/dora_nf4.safetensors")).unwrap();
        job.model.adapter = Some(adapter(dir, &[("use_dora", json!(true))], lengths.into_iter().collect()));
    });
}

#[test]
fn quantised_bases_equal_bitsandbytes() {
    check("nf4", 2e-3, |job, _| job.model.base = BaseWeights::Nf4 { double_quant: true });
    check("fp4", 2e-3, |job, _| job.model.base = BaseWeights::Fp4 { double_quant: false });
    check("int8", 2e-3, |job, _| job.model.base = BaseWeights::Int8);
}

#[test]
fn embeddings_and_head_trained_whole_equal_peft() {
    check("modules_to_save", 1e-4, |job, dir| {
        let model = read_tensors(&fixtures().join("tiny-llama/model.safetensors")).unwrap();
        let own = ["model.embed_tokens", "lm_head"]
            .map(|name| (format!("base_model.model.{name}.weight"), model["model.embed_tokens.weight"].copy()));
        let change = [("modules_to_save", json!(["embed_tokens", "lm_head"]))];
        job.model.adapter = Some(adapter(dir, &change, own.into_iter().collect()));
    });
}

#[test]
fn lora_plus_equals_peft() {
    check("loraplus", 1e-4, |job, _| {
        job.optimizer.lr = 1e-3;
        job.optimizer.lora_plus = Some(LoraPlus { ratio: 4.0, embedding_lr: None });
    });
}

#[test]
fn all_weights_or_some_equal_transformers() {
    let bare = |job: &mut TrainJob| {
        job.model.adapter = None;
        job.optimizer.lr = 1e-3;
        job.adapter = Adapter::Full;
    };
    check("full", 1e-4, |job, _| bare(job));
    check("freeze", 1e-4, |job, _| {
        bare(job);
        job.adapter =
            Adapter::Freeze(Freeze { unfrozen: vec!["^model.embed_tokens.weight$[:100]".into()], last_layers: 1 });
    });
}

#[test]
fn a_target_or_weight_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    job.model.adapter = None;
    let names = pipe_job::Targets::Names(vec!["q_proj".into(), "down_porj".into()]);
    job.adapter = Adapter::Lora(Lora { targets: names, ..Lora::default() });
    let error = run(&job, None).0.unwrap_err();
    assert!(error.is_input() && error.to_string().contains("the nearest is `down_proj`"), "{error}");
    job.adapter = Adapter::Freeze(Freeze { unfrozen: vec!["model.layers.9".into()], last_layers: 0 });
    let error = run(&job, None).0.unwrap_err();
    assert!(error.is_input() && error.to_string().contains("model.layers.9"), "{error}");
}

/// Loss of the first step from a fresh adapter with this start.
fn first_loss(init: Init, base: BaseWeights) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    (job.model.adapter, job.model.base, job.batching.max_steps) = (None, base, Some(1));
    // PEFT asks for a scale of 1 with LoftQ, whose matrices do not know it.
    job.adapter = Adapter::Lora(Lora { r: 4, alpha: 4.0, init, ..Lora::default() });
    let (outcome, metrics) = run(&job, None);
    outcome.unwrap();
    metrics[0].loss
}

#[test]
fn starts_leave_the_model_as_it_was() {
    let plain = first_loss(Init::Kaiming, BaseWeights::Dense);
    for init in
        [Init::Gaussian, Init::Orthogonal, Init::Pissa { iterations: None }, Init::Pissa { iterations: Some(4) }]
    {
        let loss = first_loss(init, BaseWeights::Dense);
        assert!((loss / plain - 1.0).abs() < 1e-5, "{init:?}: {loss} {plain}");
    }
    assert!(first_loss(Init::Pissa { iterations: None }, BaseWeights::Dense).is_finite());
}

#[test]
fn loftq_gives_back_part_of_what_quantising_took() {
    let load = |base| {
        let events = pipe_models::events::Events::to(std::io::sink());
        pipe_models::load::load(&fixtures().join("tiny-llama"), base, pipe_job::Compute::F32, &events).unwrap()
    };
    let (whole, mut tuned) = (load(BaseWeights::Dense), load(BaseWeights::Nf4 { double_quant: false }));
    let weight = |name: &str| whole.linears().find(|linear| linear.name == name).unwrap().dense(Kind::Float);
    let settings = Lora { r: 4, alpha: 4.0, init: Init::Loftq, ..Lora::default() };
    pipe_models::adapter::attach(&mut tuned, &settings, 1, &mut |name| Ok(weight(name))).unwrap();
    for linear in tuned.linears() {
        let lost = weight(&linear.name) - linear.dense(Kind::Float);
        let lora = linear.lora.as_ref().unwrap();
        let left = tch::no_grad(|| (&lost - lora.b.matmul(&lora.a) * lora.scale).norm().double_value(&[]));
        // No matrix of rank 4 comes nearer (Eckart and Young).
        let (_, values, _) = lost.svd(true, false);
        let least = values.narrow(0, 4, values.size()[0] - 4).norm().double_value(&[]);
        assert!(
            left < lost.norm().double_value(&[]) && (left / least - 1.0).abs() < 1e-4,
            "{}: {left} {least}",
            linear.name
        );
    }
    assert!(first_loss(Init::Loftq, BaseWeights::Nf4 { double_quant: false }).is_finite());
}

#[test]
fn what_pissa_trained_fits_the_untouched_base() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    job.model.adapter = None;
    job.adapter = Adapter::Lora(Lora { r: 4, init: Init::Pissa { iterations: None }, ..Lora::default() });
    job.batching.max_steps = Some(5);
    run(&job, None).0.unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(job.output.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(8), &json!(16.0)));
    // The step after the fifth, from the saved adapter and from the run itself.
    job.batching.max_steps = Some(6);
    let own = run(&TrainJob { output: dir.path().join("six"), ..job.clone() }, None).1[5].loss;
    job.model.adapter = Some(job.output.clone());
    (job.output, job.checkpoints) = (dir.path().join("more"), dir.path().join("other"));
    let steps = run(&job, None).1;
    let again = steps[1].loss;
    assert!(again.is_finite() && own.is_finite());
    // Steps 1 and 6 use different packs; the saved adapter's first loss is that of a model trained five steps.
    let fresh = first_loss(Init::Kaiming, BaseWeights::Dense);
    assert!(steps[0].loss < fresh, "{} {fresh}", steps[0].loss);
}

#[test]
fn a_resumed_run_equals_a_whole_one_in_every_part_of_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    job.val = Some(job.train.clone());
    job.model.adapter = None;
    job.adapter = Adapter::Lora(Lora { r: 64, dropout: 0.1, dora: true, ..Lora::default() });
    job.optimizer.kind = OptimizerKind::AdamW8bit;
    job.optimizer.lr = 5e-2;
    job.batching.order = Order::Shuffled;
    (job.eval, job.save.every) = (EvalPoints::EverySteps(1), EvalPoints::EverySteps(3));
    job.save.keep = 2;
    job.stopping = Stopping { patience: Some(4), best: true };
    let (outcome, metrics) = run(&job, None);
    outcome.unwrap();
    let total = metrics.len() as u64;
    let files = ["adapter_model.safetensors", "metrics.jsonl"];
    let whole = files.map(|name| std::fs::read(job.output.join(name)).unwrap());
    for stop in [2, total - 1] {
        let (output, checkpoints) = (dir.path().join(format!("out{stop}")), dir.path().join(format!("points{stop}")));
        let again = TrainJob { output, checkpoints, ..job.clone() };
        assert!(matches!(run(&again, Some(stop)).0, Err(ModelError::Cancelled)));
        let kept = std::fs::read_dir(&again.checkpoints).unwrap().flatten();
        assert!(kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-")).count() <= 2);
        run(&again, None).0.unwrap();
        assert_eq!(whole, files.map(|name| std::fs::read(again.output.join(name)).unwrap()), "stopped after {stop}");
    }
}

#[test]
fn a_checkpoint_of_another_recipe_is_refused_when_named_and_ignored_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    assert!(matches!(run(&job, Some(4)).0, Err(ModelError::Cancelled)));
    job.resume = Some(job.checkpoints.join("step-00000004"));
    job.optimizer.lr *= 2.0;
    let error = run(&job, None).0.unwrap_err();
    assert!(error.is_input() && error.to_string().contains("another recipe"), "{error}");
    job.resume = None;
    assert_eq!(run(&job, None).1[0].step, 1);
}

#[test]
fn a_loss_that_stays_high_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    job.watchdog = Some(Watchdog { threshold: 0.5, patience: 3 });
    let (outcome, metrics) = run(&job, None);
    let error = outcome.unwrap_err();
    assert!(!error.is_input() && error.to_string().contains("loss_watchdog_threshold"), "{error}");
    assert_eq!(metrics.len(), 3);
}

#[test]
fn the_z_loss_pulls_the_denominator_to_one() {
    let losses = |z_loss| {
        let dir = tempfile::tempdir().unwrap();
        let job = TrainJob { z_loss, ..job(dir.path()) };
        run(&job, None).1.iter().map(|metric| (metric.loss, metric.grad_norm)).collect::<Vec<_>>()
    };
    let (without, with) = (losses(0.0), losses(1e-2));
    assert!((without[0].0 - with[0].0).abs() < 1e-5 && (without[0].1 / with[0].1 - 1.0).abs() > 1e-4);
    let tiny = losses(1e-12);
    assert!(without.iter().zip(&tiny).all(|(a, b)| (a.0 / b.0 - 1.0).abs() < 1e-4));
}

#[test]
fn optimizers_equal_their_references() {
    use pipe_job::Optimizer as Settings;
    use pipe_models::optimizer::{Optimizer, Parameter};
    let text = std::fs::read(fixtures().join("optimizers/reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    let made = |shape: &[i64], f: &dyn Fn(f64) -> f64| {
        let count: i64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| f(i as f64) as f32).collect();
        Tensor::from_slice(&values).reshape(shape)
    };
    let kinds = [
        ("adam_w", OptimizerKind::AdamW, 0.0, 1e-6),
        ("adam_w8bit", OptimizerKind::AdamW8bit, 0.0, 2e-5),
        ("adafactor", OptimizerKind::Adafactor, 0.0, 1e-5),
        ("lion", OptimizerKind::Lion, 0.0, 1e-6),
        ("muon", OptimizerKind::Muon, 0.95, 2e-3),
        ("sgd", OptimizerKind::Sgd, 0.0, 1e-6),
        ("sgd_momentum", OptimizerKind::Sgd, 0.9, 1e-6),
    ];
    for (name, kind, momentum, tolerance) in kinds {
        let shapes: [(&str, &[i64]); 2] = [("matrix.weight", &[70, 90]), ("norm.weight", &[130])];
        let tensors = shapes.map(|(_, shape)| made(shape, &|i| (i * 0.11).cos()).set_requires_grad(true));
        let named = shapes.iter().zip(&tensors);
        let parameters = named.map(|((name, _), x)| Parameter::new((*name).to_string(), x.shallow_clone())).collect();
        let settings = Settings {
            kind,
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 0.0,
            momentum,
            lora_plus: None,
        };
        let mut optimizer = Optimizer::new(settings, parameters).unwrap();
        for step in 0..6 {
            for ((_, shape), tensor) in shapes.iter().zip(&tensors) {
                let gradient = made(shape, &|i| (i * 0.37 + f64::from(step)).sin() * (-(i % 11.0)).exp() * 0.1);
                (tensor * gradient).sum(Kind::Float).backward();
            }
            optimizer.step(1e-2, 1.0, None);
            optimizer.forget_gradients();
        }
        for ((key, _), tensor) in shapes.iter().zip(&tensors) {
            let values: Vec<f32> = Vec::try_from(tensor.detach().reshape([-1])).unwrap();
            let want: Vec<f64> = serde_json::from_value(reference[name][*key].clone()).unwrap();
            for (i, want) in want.iter().enumerate() {
                let own = f64::from(values[i * 37]);
                assert!((own - want).abs() <= tolerance, "{name} {key} {i}: {own} against {want}");
            }
        }
    }
    let map: Vec<f32> = serde_json::from_value(reference["unsigned_map"].clone()).unwrap();
    assert_eq!(pipe_models::nf4::unsigned_dynamic_map().to_vec(), map);
}
