//! Evaluation, merging and quantising against transformers and PEFT on the tiny model (tests/fixtures/generation).
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, Int32Array, ListArray};
use arrow::array::{ArrayRef, Int32Builder, ListBuilder, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_files::ModelFiles;
use pipe_job::{BaseWeights, Compute, EvalJob, Generation, MergeBase, MergeJob, ModelSource, QuantizeJob, WeightType};
use pipe_models::events::Events;
use pipe_models::{eval, merge, quantize};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("generation/reference.json")).unwrap()).unwrap()
}

fn source(path: &Path, base: BaseWeights, adapter: bool) -> ModelSource {
    let adapter = adapter.then(|| fixtures().join("generation/adapter"));
    ModelSource { path: path.to_owned(), adapter, base, compute: Compute::F32 }
}

fn lists(rows: &[Vec<i64>]) -> ArrayRef {
    let mut list = ListBuilder::new(Int32Builder::new());
    rows.iter().for_each(|row| list.append_value(row.iter().map(|&id| Some(id as i32))));
    Arc::new(list.finish())
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn prompts() -> Vec<Vec<i64>> {
    serde_json::from_value(reference()["prompts"].clone()).unwrap()
}

fn inputs(dir: &Path) {
    let prompts = prompts();
    // One trained token after each prompt, so that the prompt is what is asked.
    let ids: Vec<Vec<i64>> = prompts.iter().map(|p| [p.as_slice(), &[5]].concat()).collect();
    let labels: Vec<Vec<i64>> = prompts.iter().map(|p| [vec![-100; p.len()], vec![5]].concat()).collect();
    let names: Vec<String> = (0..prompts.len()).map(|i| format!("row{i}")).collect();
    let columns = vec![
        ("row_id", Arc::new(StringArray::from(names)) as ArrayRef),
        ("input_ids", lists(&ids)),
        ("labels", lists(&labels)),
    ];
    write(&dir.join("tokens.parquet"), columns);
    // Two documents to a pack.
    let packs: Vec<&[Vec<i64>]> = prompts[2..].chunks(2).collect();
    let masked = |p: &Vec<i64>| [vec![-100; 2], p[2..].to_vec()].concat();
    let columns = vec![
        ("input_ids", lists(&packs.iter().map(|p| p.concat()).collect::<Vec<_>>())),
        ("labels", lists(&packs.iter().map(|p| p.iter().flat_map(masked).collect()).collect::<Vec<_>>())),
        ("lengths", lists(&packs.iter().map(|p| p.iter().map(|d| d.len() as i64).collect()).collect::<Vec<_>>())),
    ];
    write(&dir.join("packs.parquet"), columns);
}

fn run_eval(dir: &Path, model: ModelSource, batch: usize) -> (Value, Vec<(String, Vec<i64>)>) {
    inputs(dir);
    let job = EvalJob {
        whole: None,
        baseline: model.adapter.is_some(),
        model,
        packs: vec![("val".into(), dir.join("packs.parquet"))],
        answers: vec![("test".into(), dir.join("tokens.parquet"))],
        generation: Generation {
            max_new_tokens: 24,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: vec![2],
            batch,
        },
        samples: vec![("hello".into(), vec![7, 8, 9])],
        output: dir.join("out"),
    };
    eval::eval(&job, &Events::to(std::io::sink())).unwrap();
    let losses = serde_json::from_slice(&std::fs::read(dir.join("out/losses.json")).unwrap()).unwrap();
    let file = File::open(dir.join("out/answers.parquet")).unwrap();
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let models = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap().clone();
        let ids = batch.column(3).as_any().downcast_ref::<ListArray>().unwrap().clone();
        for i in 0..batch.num_rows() {
            let row = ids.value(i);
            let row = row.as_any().downcast_ref::<Int32Array>().unwrap();
            rows.push((models.value(i).to_owned(), row.values().iter().map(|&v| i64::from(v)).collect()));
        }
    }
    (losses, rows)
}

fn answers(rows: &[(String, Vec<i64>)], model: &str) -> Vec<Vec<i64>> {
    rows.iter().filter(|(name, _)| name == model).map(|(_, ids)| ids.clone()).collect()
}

#[test]
fn answers_and_losses_are_those_of_transformers_and_peft() {
    let want = reference();
    for batch in [1, 4, 32] {
        let dir = tempfile::tempdir().unwrap();
        let tiny = fixtures().join("tiny-llama");
        let (losses, rows) = run_eval(dir.path(), source(&tiny, BaseWeights::Dense, true), batch);
        for model in ["base", "tuned"] {
            let expected: Vec<Vec<i64>> = serde_json::from_value(want[model]["answers"].clone()).unwrap();
            assert_eq!(answers(&rows, model), expected, "{model} in batches of {batch}");
            let (got, want) = (&losses[model]["val"], &want[model]);
            assert_eq!(got["trained_tokens"], want["trained_tokens"]);
            let (got, want) = (got["loss_sum"].as_f64().unwrap(), want["loss_sum"].as_f64().unwrap());
            assert!((got / want - 1.0).abs() < 1e-5, "{model}: {got} {want}");
        }
        let samples: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("out/samples.json")).unwrap()).unwrap();
        assert!(samples["base"]["hello"].is_array() && samples["tuned"]["hello"].is_array());
    }
}

fn run_merge(out: &Path, base: MergeBase, weights: BaseWeights) -> ModelFiles {
    let job = MergeJob {
        model: source(&fixtures().join("tiny-llama"), weights, true),
        base,
        dtype: WeightType::F32,
        max_shard_bytes: 150_000,
        output: out.to_owned(),
    };
    merge::merge(&job, &Events::to(std::io::sink())).unwrap();
    pipe_files::write_tokenizer(&fixtures().join("tiny-llama"), out).unwrap();
    ModelFiles::open(out).unwrap()
}

#[test]
fn merging_into_the_original_gives_pefts_weights() {
    let dir = tempfile::tempdir().unwrap();
    let merged = run_merge(dir.path(), MergeBase::Original, BaseWeights::Dense);
    let want = reference()["merged"].clone();
    let mut values = Vec::new();
    merged.read_f32(want["name"].as_str().unwrap(), &mut values).unwrap();
    let first: Vec<f32> = serde_json::from_value(want["first"].clone()).unwrap();
    for (got, want) in values.iter().zip(&first) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    assert!((sum - want["sum"].as_f64().unwrap()).abs() < 1e-3);
}

#[test]
fn a_merged_qlora_model_answers_as_the_tuned_one_and_quantises() {
    let dir = tempfile::tempdir().unwrap();
    let nf4 = BaseWeights::Nf4 { double_quant: true };
    let (losses, rows) = run_eval(dir.path(), source(&fixtures().join("tiny-llama"), nf4, true), 8);
    let folder = dir.path().join("merged");
    run_merge(&folder, MergeBase::AsTrained, nf4);
    let (merged, merged_rows) = run_eval(dir.path(), source(&folder, BaseWeights::Dense, false), 8);
    assert_eq!(answers(&merged_rows, "base"), answers(&rows, "tuned"));
    let loss = |v: &Value, model: &str| v[model]["val"]["loss_sum"].as_f64().unwrap();
    assert!((loss(&merged, "base") / loss(&losses, "tuned") - 1.0).abs() < 1e-5);
    let again = dir.path().join("again");
    run_merge(&again, MergeBase::AsTrained, nf4);
    for file in ["model-00001-of-00003.safetensors", "config.json"] {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), std::fs::read(again.join(file)).unwrap(), "{file}");
    }
    let out = dir.path().join("tiny.gguf");
    let job = QuantizeJob { model: folder, outputs: vec![("q8_0".into(), out.clone())] };
    quantize::quantize(&job, &Events::to(std::io::sink())).unwrap();
    let (quantised, _) = run_eval(dir.path(), source(&out, BaseWeights::Dense, false), 8);
    assert!((loss(&quantised, "base") / loss(&merged, "base") - 1.0).abs() < 0.02);
    let unknown = QuantizeJob { model: out, outputs: vec![("q9".into(), PathBuf::from("x"))] };
    let error = quantize::quantize(&unknown, &Events::to(std::io::sink())).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("q4_k_m"), "{error}");
}
