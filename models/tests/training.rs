//! The training loop against transformers, PEFT and PyTorch on the tiny model (tests/fixtures/training).
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int32Builder, ListBuilder, RecordBatch};
use parquet::arrow::ArrowWriter;
use pipe_job::{
    Adapter, BaseWeights, Batching, Compute, EvalPoints, Event, Lora, Metric, ModelSource, Optimizer, OptimizerKind,
    Order, Recompute, SavePoints, Schedule, ScheduleKind, Stopping, TrainJob, Warmup,
};
use pipe_models::events::Events;
use pipe_models::{ModelError, train};
use serde_json::Value;

#[path = "training/methods.rs"]
mod methods;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("training/reference.json")).unwrap()).unwrap()
}

/// One list of numbers per pack, gathered from its documents.
fn column(take: impl Fn(&Value) -> Vec<i32>) -> ArrayRef {
    let mut list = ListBuilder::new(Int32Builder::new());
    for pack in reference()["packs"].as_array().unwrap() {
        let values: Vec<i32> = pack.as_array().unwrap().iter().flat_map(&take).collect();
        list.append_value(values.into_iter().map(Some));
    }
    Arc::new(list.finish())
}

fn write_packs(path: &Path) {
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as i32).collect();
    let columns = vec![
        ("input_ids", column(|document| numbers(&document["ids"]))),
        ("labels", column(|document| numbers(&document["labels"]))),
        ("lengths", column(|document| vec![document["ids"].as_array().unwrap().len() as i32])),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn job(dir: &Path) -> TrainJob {
    write_packs(&dir.join("packs.parquet"));
    let settings = &reference()["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap();
    let lora = Lora { r: 4, ..Lora::default() };
    TrainJob {
        model: ModelSource {
            path: fixtures().join("tiny-llama"),
            adapter: Some(fixtures().join("training/adapter")),
            base: BaseWeights::Dense,
            compute: Compute::F32,
        },
        adapter: Adapter::Lora(lora),
        train: dir.join("packs.parquet"),
        val: None,
        sources: Vec::new(),
        batching: Batching {
            micro_batch: 1,
            accumulation: number("window") as usize,
            epochs: 1.0,
            max_steps: Some(number("steps") as u64),
            order: Order::Stored,
        },
        optimizer: Optimizer {
            kind: OptimizerKind::AdamW,
            lr: number("lr"),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: number("weight_decay"),
            max_grad_norm: number("clip"),
            momentum: 0.0,
            lora_plus: None,
        },
        schedule: Schedule {
            kind: ScheduleKind::Cosine { min_ratio: 0.0, until: 1.0, cycles: 0.5 },
            warmup: Warmup::Steps(number("warmup") as u64),
            quadratic_warmup: false,
        },
        eval: EvalPoints::Never,
        save: SavePoints { every: EvalPoints::Never, keep: 1 },
        stopping: Stopping::default(),
        watchdog: None,
        sampling: None,
        recompute: Recompute::Nothing,
        neftune_alpha: 0.0,
        z_loss: 0.0,
        seed: 3,
        kernels: true,
        output: dir.join("out"),
        checkpoints: dir.join("checkpoints"),
        resume: None,
    }
}

/// Collects metrics, and asks to stop after one of them.
#[derive(Clone, Default)]
struct Listener {
    metrics: Arc<Mutex<Vec<Metric>>>,
    stop_after: Option<u64>,
    events: Arc<Mutex<Option<Events>>>,
}

impl Write for Listener {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Ok(Event::Metric(metric)) = serde_json::from_slice(line) {
            if self.stop_after == Some(metric.step) {
                self.events.lock().unwrap().as_ref().unwrap().cancel();
            }
            self.metrics.lock().unwrap().push(metric);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn run(job: &TrainJob, stop_after: Option<u64>) -> (Result<(), ModelError>, Vec<Metric>) {
    let listener = Listener { stop_after, ..Listener::default() };
    let events = Events::to(listener.clone());
    *listener.events.lock().unwrap() = Some(events.clone());
    let outcome = train::run(job, &events);
    *listener.events.lock().unwrap() = None;
    let metrics = listener.metrics.lock().unwrap().clone();
    (outcome, metrics)
}

fn close(ours: f64, theirs: &Value, tolerance: f64, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1e-12), "{what}: {ours} against {theirs}");
}

fn check_against_peft(change: impl Fn(&mut TrainJob)) {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    change(&mut job);
    let (outcome, metrics) = run(&job, None);
    outcome.unwrap();
    let reference = reference();
    let steps = reference["steps"].as_array().unwrap();
    assert_eq!(metrics.len(), steps.len());
    for (metric, step) in metrics.iter().zip(steps) {
        let at = |what: &str| format!("step {} {what}", metric.step);
        assert_eq!(metric.trained_tokens, step["trained"].as_u64().unwrap());
        close(metric.lr, &step["lr"], 1e-12, &at("lr"));
        close(metric.loss, &step["loss"], 1e-4, &at("loss"));
        close(metric.grad_norm, &step["grad_norm"], 1e-3, &at("gradient norm"));
    }
}

#[test]
fn twelve_steps_equal_peft_with_fused_kernels() {
    check_against_peft(|_| {});
}

#[test]
fn twelve_steps_equal_peft_without_them() {
    check_against_peft(|job| job.kernels = false);
}

#[test]
fn recomputing_activations_changes_nothing() {
    check_against_peft(|job| job.recompute = Recompute::Layers(1));
    check_against_peft(|job| job.recompute = Recompute::Layers(2));
}

#[test]
fn micro_batches_change_nothing() {
    check_against_peft(|job| {
        job.batching.micro_batch = 2;
        job.batching.accumulation = 1;
    });
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path());
    job.model.adapter = None;
    job.model.base = BaseWeights::Nf4 { double_quant: true };
    job.model.compute = Compute::Bf16;
    job.batching.order = Order::Shuffled;
    if let Adapter::Lora(lora) = &mut job.adapter {
        lora.dropout = 0.1;
    }
    run(&job, None).0.unwrap();
    let files = ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"];
    let whole = files.map(|name| std::fs::read(job.output.join(name)).unwrap());

    job.output = dir.path().join("again");
    assert!(matches!(run(&job, Some(5)).0, Err(ModelError::Cancelled)));
    assert!(!job.output.exists());
    let (outcome, metrics) = run(&job, None);
    outcome.unwrap();
    assert_eq!(metrics[0].step, 6);
    assert_eq!(whole, files.map(|name| std::fs::read(job.output.join(name)).unwrap()));
}

#[test]
fn a_foreign_token_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let path = dir.path().join("packs.parquet");
    let mut ids = ListBuilder::new(Int32Builder::new());
    ids.append_value([Some(1), Some(9_999)]);
    let ids: ArrayRef = Arc::new(ids.finish());
    let mut lengths = ListBuilder::new(Int32Builder::new());
    lengths.append_value([Some(2)]);
    let columns =
        vec![("input_ids", ids.clone()), ("labels", ids), ("lengths", Arc::new(lengths.finish()) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let error = run(&job, None).0.unwrap_err();
    assert!(error.is_input() && error.to_string().contains("9999"), "{error}");
}
