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
use pipe_files::{Importance, ModelFiles};
use pipe_job::{
    AgreementJob, Asked, BaseWeights, Compute, EvalJob, Generation, ImportanceJob, MergeBase, MergeJob, ModelSource,
    QuantizeJob, WeightType, Weighted,
};
use pipe_models::events::Events;
use pipe_models::int8::Int8;
use pipe_models::nf4::{Format, Nf4};
use pipe_models::{agreement, eval, importance, merge, quantize};
use serde_json::{Value, json};
use tch::Kind;

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
        model: source(&fixtures().join("tiny-llama"), weights, false),
        adapters: vec![Weighted { path: fixtures().join("generation/adapter"), weight: 1.0 }],
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

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

/// The comparison of `others` with `reference` on the prompts.
fn agree(dir: &Path, reference: ModelSource, others: Vec<(String, ModelSource)>, rows: usize) -> Value {
    inputs(dir);
    let output = dir.join("agreement.json");
    let packs = dir.join("packs.parquet");
    let job = AgreementJob { reference: ("base".into(), reference), others, packs, rows, output: output.clone() };
    agreement::agreement(&job, &Events::to(std::io::sink())).unwrap();
    serde_json::from_slice(&std::fs::read(output).unwrap()).unwrap()
}

#[test]
fn models_are_as_far_apart_as_transformers_finds_them() {
    let (want, losses, dir) = (fixture("agreement/reference.json"), reference(), tempfile::tempdir().unwrap());
    let model = |adapter| source(&fixtures().join("tiny-llama"), BaseWeights::Dense, adapter);
    let found = agree(dir.path(), model(false), vec![("tuned".into(), model(true))], 100);
    assert_eq!((&found["rows"], &found["trained_tokens"]), (&json!(8), &want["trained_tokens"]));
    let near = |got: &Value, want: f64, what: &str| {
        let got = got.as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 1e-4, "{what}: {got} {want}");
    };
    for name in ["base", "tuned"] {
        let loss = losses[name]["loss_sum"].as_f64().unwrap() / losses[name]["trained_tokens"].as_f64().unwrap();
        near(&found["models"][name]["loss"], loss, name);
        near(&found["models"][name]["perplexity"], loss.exp(), name);
    }
    for measure in ["kl_divergence", "same_top", "mean_logit_difference", "max_logit_difference"] {
        near(&found["models"]["tuned"][measure], want[measure].as_f64().unwrap(), measure);
    }
    let few = agree(dir.path(), model(false), vec![], 3);
    assert_eq!((&few["rows"], &few["models"]["base"]["same_top"]), (&json!(3), &Value::Null));
}

#[test]
fn a_merge_onto_four_bits_agrees_with_base_and_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let nf4 = BaseWeights::Nf4 { double_quant: true };
    let tuned = source(&fixtures().join("tiny-llama"), nf4, true);
    let folders = [("merged", MergeBase::AsTrained), ("original", MergeBase::Original)].map(|(name, base)| {
        run_merge(&dir.path().join(name), base, nf4);
        (name.to_owned(), source(&dir.path().join(name), BaseWeights::Dense, false))
    });
    let found = agree(dir.path(), tuned, folders.to_vec(), 100);
    let measure = |model: &str, name: &str| found["models"][model][name].as_f64().unwrap();
    assert_eq!(measure("merged", "same_top"), 1.0);
    assert!(measure("merged", "max_logit_difference") < 1e-4, "{found}");
    // The adapter was trained for the rounded weights; the others are another model.
    assert!(measure("original", "mean_logit_difference") > 0.01, "{found}");
}

#[test]
fn weighted_adapters_add_up_as_in_peft() {
    let want = fixture("weighted/reference.json");
    let weights: Vec<f64> = serde_json::from_value(want["weights"].clone()).unwrap();
    let folders = ["weighted/adapter", "generation/adapter"].map(|name| fixtures().join(name));
    let dir = tempfile::tempdir().unwrap();
    let job = |paths: &[PathBuf], weights: &[f64]| MergeJob {
        model: source(&fixtures().join("tiny-llama"), BaseWeights::Dense, false),
        adapters: paths.iter().zip(weights).map(|(path, &weight)| Weighted { path: path.clone(), weight }).collect(),
        base: MergeBase::Original,
        dtype: WeightType::F32,
        max_shard_bytes: 1 << 30,
        output: dir.path().to_owned(),
    };
    merge::merge(&job(&folders, &weights), &Events::to(std::io::sink())).unwrap();
    let merged = ModelFiles::open(dir.path()).unwrap();
    let mut values = Vec::new();
    for (name, want) in want["tensors"].as_object().unwrap() {
        merged.read_f32(name, &mut values).unwrap();
        let first: Vec<f32> = serde_json::from_value(want["first"].clone()).unwrap();
        values.iter().zip(&first).for_each(|(got, want)| assert!((got - want).abs() < 2e-6, "{name}: {got} {want}"));
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        assert!((sum - want["sum"].as_f64().unwrap()).abs() < 1e-3, "{name}");
    }
    // One that turns the weights has no share.
    let alone = dir.path().join("dora");
    with_magnitudes(&folders[0], &alone);
    let error = merge::merge(&job(&[folders[1].clone(), alone], &weights), &Events::to(std::io::sink())).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("DoRA"), "{error}");
}

/// The same adapter as DoRA's, every row of length one.
fn with_magnitudes(folder: &Path, out: &Path) {
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ones = 1f32.to_le_bytes().repeat(1024);
    let mut tensors = file.tensors();
    for (name, outputs) in file.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape()[0])) {
        if let Some(module) = name.strip_suffix("B.weight") {
            let (dtype, data) = (safetensors::Dtype::F32, &ones[..4 * outputs]);
            let magnitude = safetensors::tensor::TensorView::new(dtype, vec![outputs], data).unwrap();
            tensors.push((format!("{module}magnitude_vector"), magnitude));
        }
    }
    std::fs::create_dir(out).unwrap();
    safetensors::serialize_to_file(tensors, None, &out.join("adapter_model.safetensors")).unwrap();
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let config = config.replace("\"use_dora\": false", "\"use_dora\": true");
    std::fs::write(out.join("adapter_config.json"), config).unwrap();
}

#[test]
fn importance_is_what_hooks_in_transformers_hear() {
    let (want, dir) = (fixture("importance/reference.json"), tempfile::tempdir().unwrap());
    inputs(dir.path());
    let (output, model) = (dir.path().join("importance.gguf"), fixtures().join("tiny-llama"));
    let job = ImportanceJob {
        model: source(&model, BaseWeights::Dense, false),
        packs: dir.path().join("packs.parquet"),
        rows: 100,
        output: output.clone(),
    };
    importance::importance(&job, &Events::to(std::io::sink())).unwrap();
    let found = Importance::read(&output).unwrap();
    let names = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    assert_eq!(found.len(), want.as_object().unwrap().len());
    for (name, want) in want.as_object().unwrap() {
        let (layer, part) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
        let own = names.iter().find(|(theirs, _)| *theirs == part).unwrap().1;
        let (count, sums): (f64, Vec<f64>) = serde_json::from_value(json!([want["count"], want["sums"]])).unwrap();
        let means = found.mean_squares(&format!("blk.{layer}.{own}.weight")).unwrap();
        assert_eq!(means.len(), sums.len(), "{name}");
        for (got, want) in means.iter().zip(sums) {
            assert!((f64::from(*got) * count / want - 1.0).abs() < 1e-4, "{name}: {got} {want}");
        }
    }
    guides_the_encoders(dir.path(), &model, &output);
}

/// With it, what the model multiplies with the weights comes out closer.
fn guides_the_encoders(dir: &Path, model: &Path, importance: &Path) {
    let measured = Importance::read(importance).unwrap();
    let original = ModelFiles::open(model).unwrap();
    let mut errors = Vec::new();
    for guide in [None, Some(importance.to_owned())] {
        let out = dir.join(format!("{}.gguf", guide.is_some()));
        let job =
            QuantizeJob { model: model.to_owned(), outputs: vec![("q4_1".into(), out.clone())], importance: guide };
        quantize::quantize(&job, &Events::to(std::io::sink())).unwrap();
        let read = ModelFiles::open(&out).unwrap();
        let (mut exact, mut rounded) = (Vec::new(), Vec::new());
        let mut error = 0.0;
        for (name, part) in [("mlp.down_proj", "ffn_down"), ("self_attn.o_proj", "attn_output")] {
            let tensor = format!("model.layers.0.{name}.weight");
            original.read_f32(&tensor, &mut exact).unwrap();
            read.read_f32(&tensor, &mut rounded).unwrap();
            let weights = measured.mean_squares(&format!("blk.0.{part}.weight")).unwrap();
            let pairs = exact.iter().zip(&rounded).zip(weights.iter().cycle());
            error += pairs.map(|((a, b), w)| f64::from((a - b).powi(2) * w)).sum::<f64>();
        }
        errors.push(error);
    }
    assert!(errors[1] < 0.9 * errors[0], "{errors:?}");
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
    let job = QuantizeJob { model: folder, outputs: vec![("q8_0".into(), out.clone())], importance: None };
    quantize::quantize(&job, &Events::to(std::io::sink())).unwrap();
    let (quantised, _) = run_eval(dir.path(), source(&out, BaseWeights::Dense, false), 8);
    assert!((loss(&quantised, "base") / loss(&merged, "base") - 1.0).abs() < 0.02);
    let unknown = QuantizeJob { model: out, outputs: vec![("q9".into(), PathBuf::from("x"))], importance: None };
    let error = quantize::quantize(&unknown, &Events::to(std::io::sink())).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("q4_k_m"), "{error}");
}

/// A folder in bitsandbytes' layout is read as the weights that it was quantised to.
fn reads_as_quantised(folder: &Path, kind: &str) {
    let (original, read) =
        (ModelFiles::open(&fixtures().join("tiny-llama")).unwrap(), ModelFiles::open(folder).unwrap());
    let (mut values, mut own) = (Vec::new(), Vec::new());
    for place in original.config().tensors() {
        original.read_f32(&place.name, &mut values).unwrap();
        read.read_f32(&place.name, &mut own).unwrap();
        if place.is_quantised() {
            let (rows, columns) = (place.shape[0], place.shape[1]);
            let tensor = match kind {
                "nf4" => Nf4::quantize(Format::Nf4, &values, rows, columns, true).dequantize(Kind::Float),
                _ => Int8::quantize(&values, rows, columns).dequantize(Kind::Float),
            };
            // Four-bit weights are computed with in the type that the folder names, which is the tiny model's.
            let tensor = if kind == "nf4" { tensor.to_kind(Kind::Half).to_kind(Kind::Float) } else { tensor };
            values = Vec::try_from(tensor.reshape([-1])).unwrap();
        }
        assert_eq!(own, values, "{kind} {}", place.name);
    }
}

#[test]
fn bitsandbytes_folders_hold_what_transformers_saves() {
    let want = std::fs::read(fixtures().join("bitsandbytes/saved.json")).unwrap();
    let want: Value = serde_json::from_slice(&want).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (kind, tensors) in want.as_object().unwrap() {
        let out = dir.path().join(kind);
        let outputs = vec![(kind.clone(), out.clone())];
        let job = QuantizeJob { model: fixtures().join("tiny-llama"), outputs, importance: None };
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
        reads_as_quantised(&out, kind);
    }
}
