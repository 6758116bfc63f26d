//! Evaluation, merging and quantising against transformers and PEFT on the tiny model (tests/fixtures/generation).
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int32Builder, Int64Array, ListArray, ListBuilder, RecordBatch,
    StringArray, StringBuilder, UInt16Builder,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_files::ModelFiles;
use pipe_job::{
    Asked, BaseWeights, Compute, EvalJob, Generation, MergeBase, MergeJob, ModelSource, QuantizeJob, WeightType,
};
use pipe_models::events::Events;
use pipe_models::{eval, merge, quantize};
use serde_json::{Value, json};

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

/// Every document is a row of its own length's name.
fn row_ids(packs: &[&[Vec<i64>]]) -> ArrayRef {
    let mut list = ListBuilder::new(StringBuilder::new());
    packs.iter().for_each(|pack| list.append_value(pack.iter().map(|d| Some(format!("length {}", d.len())))));
    Arc::new(list.finish())
}

/// The second document of every pack is from the second dataset.
fn sources(packs: &[&[Vec<i64>]]) -> ArrayRef {
    let mut list = ListBuilder::new(UInt16Builder::new());
    packs.iter().for_each(|pack| list.append_value((0..pack.len()).map(|place| Some(place as u16))));
    Arc::new(list.finish())
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
        ("row_ids", row_ids(&packs)),
        ("sources", sources(&packs)),
    ];
    write(&dir.join("packs.parquet"), columns);
}

fn eval_job(dir: &Path, model: ModelSource, batch: usize) -> EvalJob {
    inputs(dir);
    EvalJob {
        whole: None,
        baseline: model.adapter.is_some(),
        model,
        packs: vec![("val".into(), dir.join("packs.parquet"))],
        answers: vec![Asked { split: "test".into(), source: 0, rows: dir.join("tokens.parquet"), base_as: None }],
        tokenizer: None,
        generation: Generation {
            max_new_tokens: 24,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: vec![2],
            stop_texts: vec![],
            batch,
        },
        samples: vec![("hello".into(), vec![7, 8, 9])],
        output: dir.join("out"),
    }
}

fn run_eval(dir: &Path, model: ModelSource, batch: usize) -> (Value, Vec<(String, Vec<i64>)>) {
    let job = eval_job(dir, model, batch);
    let rows = answered(dir, &job);
    (losses(dir), rows)
}

/// The answers by model.
fn answered(dir: &Path, job: &EvalJob) -> Vec<(String, Vec<i64>)> {
    eval::eval(job, &Events::to(std::io::sink())).unwrap();
    let mut rows = Vec::new();
    for batch in read(&dir.join("out/answers.parquet")) {
        let (models, ids) = (column::<StringArray>(&batch, "model"), column::<ListArray>(&batch, "output_ids"));
        for i in 0..batch.num_rows() {
            let row = ids.value(i);
            let row = row.as_any().downcast_ref::<Int32Array>().unwrap();
            rows.push((models.value(i).to_owned(), row.values().iter().map(|&v| i64::from(v)).collect()));
        }
    }
    rows
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

fn column<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str) -> A {
    batch.column_by_name(name).unwrap().as_any().downcast_ref::<A>().unwrap().clone()
}

/// `{model: {split: {loss_sum, trained_tokens}}}`, summed over the documents.
fn losses(dir: &Path) -> Value {
    let mut sums = json!({});
    for batch in read(&dir.join("out/losses.parquet")) {
        let (models, splits) = (column::<StringArray>(&batch, "model"), column::<StringArray>(&batch, "split"));
        let (loss, trained) =
            (column::<Float64Array>(&batch, "loss_sum"), column::<Int64Array>(&batch, "trained_tokens"));
        for i in 0..batch.num_rows() {
            let sum = &mut sums[models.value(i)][splits.value(i)];
            sum["loss_sum"] = json!(sum["loss_sum"].as_f64().unwrap_or(0.0) + loss.value(i));
            sum["trained_tokens"] = json!(sum["trained_tokens"].as_i64().unwrap_or(0) + trained.value(i));
        }
    }
    sums
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

#[test]
fn every_document_has_a_loss_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    run_eval(dir.path(), source(&fixtures().join("tiny-llama"), BaseWeights::Dense, true), 8);
    let batches = read(&dir.path().join("out/losses.parquet"));
    let documents: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(documents, 2 * (prompts().len() - 2), "one line per model and document");
    let batch = &batches[0];
    let (tokens, trained) = (column::<Int64Array>(batch, "tokens"), column::<Int64Array>(batch, "trained_tokens"));
    let (rows, loss) = (column::<StringArray>(batch, "row_id"), column::<Float64Array>(batch, "loss_sum"));
    for i in 0..batch.num_rows() {
        assert_eq!(rows.value(i), format!("length {}", tokens.value(i)));
        assert_eq!(trained.value(i), tokens.value(i) - 2);
        assert!(loss.value(i) > 0.0);
    }
    let sources = column::<arrow::array::UInt16Array>(batch, "source");
    assert_eq!(&sources.values()[..2], &[0, 1]);
}

#[test]
fn an_answer_ends_with_the_token_that_completes_a_stop_text() {
    let tokenizer = pipe_files::tokenizer(&fixtures().join("tiny-llama")).unwrap();
    let text = |ids: &[i64]| {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        tokenizer.decode(&ids, true).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut job = eval_job(dir.path(), source(&fixtures().join("tiny-llama"), BaseWeights::Dense, false), 8);
    let free = answered(dir.path(), &job);
    let longest = free.iter().max_by_key(|(_, ids)| ids.len()).unwrap();
    let stop: String = text(&longest.1).chars().skip(4).take(3).collect();
    job.generation.stop_texts = vec![stop.clone()];
    job.tokenizer = Some(fixtures().join("tiny-llama"));
    let mut cut = 0;
    for ((_, free), (_, ids)) in free.iter().zip(answered(dir.path(), &job)) {
        assert_eq!(&free[..ids.len()], ids.as_slice(), "what comes before is the same");
        assert!(!text(&ids[..ids.len().saturating_sub(1)]).contains(&stop));
        assert_eq!(text(free).contains(&stop), text(&ids).contains(&stop));
        cut += usize::from(ids.len() < free.len());
    }
    assert!(cut > 0, "no answer holds {stop:?}");
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

#[test]
fn bitsandbytes_folders_hold_what_transformers_saves() {
    let want = std::fs::read(fixtures().join("bitsandbytes/saved.json")).unwrap();
    let want: Value = serde_json::from_slice(&want).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (kind, tensors) in want.as_object().unwrap() {
        let out = dir.path().join(kind);
        let job = QuantizeJob { model: fixtures().join("tiny-llama"), outputs: vec![(kind.clone(), out.clone())] };
        quantize::quantize(&job, &Events::to(std::io::sink())).unwrap();
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.as_object().unwrap();
        let mut names: Vec<&str> = file.names().into_iter().collect();
        names.sort_unstable();
        assert_eq!(names, tensors.keys().map(String::as_str).collect::<Vec<_>>(), "{kind}");
        for (name, want) in tensors {
            let got = file.tensor(name).unwrap();
            if name.contains("quant_state") {
                assert_eq!(&serde_json::from_slice::<Value>(got.data()).unwrap(), want, "{name}");
                continue;
            }
            assert_eq!(serde_json::json!(got.shape()), want["shape"], "{kind} {name}");
            if let Some(hex) = want["bytes"].as_str() {
                let own: String = got.data().iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(own, hex, "{kind} {name}");
            }
        }
        let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["quant_method"], "bitsandbytes");
        assert!(out.join("tokenizer.json").is_file());
        let opened = ModelFiles::open(&out).unwrap_err();
        assert!(opened.to_string().contains("quantization_config"), "{opened}");
    }
}
