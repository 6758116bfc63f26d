//! Evaluation with the tiny model: measures, their intervals, datasets apart. Needs the worker beside the binary.

use serde_json::{Value, json};

use super::harness::{Project, fixture, rows, set};

/// Evaluates without training, so that it takes a second; in f32, for expected numbers and answers are those of f32, and a
/// processor with bf16 units would choose bf16.
const RECIPE: &str = "\
base_model: model
datasets:
  - {path: rows.jsonl, type: alpaca, label: train}
test_datasets:
  - {path: one.jsonl, type: alpaca, label: one}
  - {path: two.jsonl, type: alpaca, label: two}
sequence_len: 256
train: false
eval:
  metrics: [perplexity, exact_match, normalized_match, token_f1, bleu, chrf, rouge_l]
  max_new_tokens: 8
output_dir: out
bf16: false
";

pub fn project() -> Project {
    let project = Project::with_worker();
    project.write("rows.jsonl", &rows(0..20));
    project.write("one.jsonl", &rows(20..32));
    project.write("two.jsonl", &rows(32..40));
    project.write("recipe.yml", RECIPE);
    project
}

pub fn table(project: &Project) -> Value {
    serde_json::from_str(&project.read("out/eval/eval.json")).unwrap()
}

#[test]
fn every_measure_has_an_interval_and_is_told_by_dataset() {
    let project = project();
    let said = project.pipe(&["run", "recipe.yml"]);
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    for words in ["perplexity (test)", "chrF (test)", "BLEU (test, one)", "token F1 (test, two)", " to "] {
        assert!(said.stdout.contains(words), "no `{words}` in\n{}", said.stdout);
    }
    let table = table(&project);
    let (all, ends) = (&table["models"]["base"]["test"], &table["intervals"]["base"]["test"]);
    assert_eq!(all["rows"], 20);
    for name in ["loss", "perplexity", "exact_match", "normalized_match", "token_f1", "bleu", "chrf", "rouge_l"] {
        let (value, low, high) = (all[name].as_f64().unwrap(), ends[name][0].as_f64(), ends[name][1].as_f64());
        assert!(low <= Some(value) && Some(value) <= high, "{name}: {value} in {low:?}..{high:?}");
    }
    let [one, two] = ["one", "two"].map(|task| &table["tasks"][task]["models"]["base"]["test"]);
    assert_eq!((&one["rows"], &two["rows"]), (&json!(12), &json!(8)));
    let sum = |name: &str| one[name].as_f64().unwrap() + two[name].as_f64().unwrap();
    assert_eq!(sum("trained_tokens"), all["trained_tokens"].as_f64().unwrap());
    let mean = (0.6 * one["rouge_l"].as_f64().unwrap()) + 0.4 * two["rouge_l"].as_f64().unwrap();
    assert!((mean - all["rouge_l"].as_f64().unwrap()).abs() < 1e-12);
}

#[test]
fn what_is_measured_reruns_evaluation_alone() {
    let project = project();
    assert_eq!(project.run(&[]).code, 0);
    let whole = table(&project);
    assert_eq!(project.run(&["--set", "test_datasets[1].label=other"]).executed, set(&[]), "names change nothing");
    assert_eq!(project.run(&["--set", "eval.metrics=[bleu]"]).executed, set(&["eval"]));
    assert_eq!(project.run(&["--set", "eval.max_rows=5"]).executed, set(&["eval"]));
    let some = table(&project);
    assert_eq!(some["models"]["base"]["test"]["rows"], 5);
    assert_eq!(some["models"]["base"]["test"]["loss"], whole["models"]["base"]["test"]["loss"]);
    assert_eq!(project.run(&["--set", "eval.resamples=0"]).executed, set(&["eval"]));
    assert_eq!(table(&project)["intervals"], json!({}));
    assert_eq!(table(&project)["models"], whole["models"], "equal rows, equal answers");
}

#[test]
fn stop_texts_end_answers_and_are_cut_off() {
    let project = project();
    let free = ["--set", "eval.max_new_tokens=24", "--set", "eval.samples=['Please list']"];
    assert_eq!(project.run(&free).code, 0);
    let answer = |project: &Project| {
        let samples: Value = serde_json::from_str(&project.read("out/eval/samples.json")).unwrap();
        samples[0]["base"].as_str().unwrap().to_string()
    };
    let whole = answer(&project);
    let stop: String = whole.chars().skip(6).take(2).collect();
    let told = format!("eval.stop={}", serde_json::to_string(&[&stop]).unwrap());
    let stopped = [free.as_slice(), &["--set", &told]].concat();
    assert_eq!(project.run(&stopped).executed, set(&["eval"]));
    assert_eq!(answer(&project), whole[..whole.find(&stop).unwrap()].trim());
}

#[test]
fn the_verb_tells_measures_with_their_intervals() {
    let project = project();
    let eval = ["eval", "model", "--data", "one.jsonl", "--type", "alpaca", "--sequence-len", "256"];
    let more = ["--set", "eval.metrics=[perplexity, rouge_l]", "--set", "eval.max_new_tokens=8"];
    let said = project.pipe(&[eval.as_slice(), &more, &["--json"]].concat());
    assert_eq!(said.code, 0, "{}", said.stderr);
    let told = said.json();
    assert_eq!(told["metrics"].as_object().unwrap().keys().collect::<Vec<_>>(), ["rouge_l", "rows"]);
    assert!(told["intervals"]["perplexity"][0].as_f64() < told["perplexity"].as_f64());
    let said = project.pipe(&[eval.as_slice(), &more].concat());
    for words in ["perplexity", "ROUGE-L", " to ", "rows            12", "trained tokens"] {
        assert!(said.stdout.contains(words), "no `{words}` in\n{}", said.stdout);
    }
}

#[test]
fn answers_are_checked_by_json_expressions_and_templates() {
    let project = project();
    let checks = "eval.checks=[{name: any, regex: '.'}, {name: none, regex: 'no answer says this'}, \
                  {name: short, template: '{{ answer | length < 4000 and prompt | length > 0 }}'}, \
                  {name: same, template: '{{ answer.split() == expected.split() }}'}]";
    let set = ["--set", "eval.metrics=[exact_match, json_valid]", "--set", checks];
    let ran = project.run(&set);
    assert_eq!(ran.code, 0, "{:?}", ran.events.last());
    let scores = table(&project)["models"]["base"]["test"].clone();
    let share = |name: &str| scores[name].as_f64().unwrap();
    assert_eq!((share("none"), share("same")), (0.0, share("exact_match")));
    assert!(share("any") > 0.9 && share("json_valid") < 0.1, "{scores}");
    let broken = project.pipe(&["run", "recipe.yml", "--set", "eval.checks=[{name: odd, template: '{{ answer }}'}]"]);
    assert_eq!(broken.code, 2, "{}", broken.stderr);
    assert!(broken.stderr.contains("neither true, false nor"), "{}", broken.stderr);
}

#[test]
fn choices_score_as_in_lm_evaluation_harness() {
    let project = project();
    let questions = std::fs::read_to_string(fixture("choices/questions.jsonl")).unwrap();
    project.write("questions.jsonl", &questions);
    let set = ["--set", "eval.choices=[{path: questions.jsonl}]", "--set", "eval.metrics=[perplexity]"];
    let ran = project.run(&set);
    assert_eq!(ran.code, 0, "{:?}", ran.events.last());
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("choices/expected.json")).unwrap()).unwrap();
    let scores = table(&project)["models"]["base"]["questions"].clone();
    assert_eq!((&scores["acc"], &scores["acc_norm"]), (&expected["acc"], &expected["acc_norm"]));
    let rows = lines(&project.path("work/out/eval/choices.parquet"));
    let wanted = expected["rows"].as_array().unwrap();
    assert_eq!(rows.len(), wanted.len());
    for (got, want) in rows.iter().zip(wanted) {
        assert_eq!(got.0, want["context"].as_str().unwrap());
        for (got, want) in got.1.iter().zip(want["logprobs"].as_array().unwrap()) {
            assert!((got - want.as_f64().unwrap()).abs() < 2e-3, "{got} {want}");
        }
    }
    project.write("questions.jsonl", "{\"question\": \"2 + 2?\", \"choices\": [\"3\", \"4\"], \"answer\": \"5\"}\n");
    let said = project.pipe(&[&["run", "recipe.yml"], set.as_slice()].concat());
    assert_eq!(said.code, 2, "{}", said.stderr);
    assert!(said.stderr.contains("questions.jsonl:1: `answer` is none of the 2 choices"), "{}", said.stderr);
}

/// Prompts and log-likelihoods.
fn lines(path: &std::path::Path) -> Vec<(String, Vec<f64>)> {
    use arrow::array::{Array, Float64Array, ListArray, StringArray};
    let file = std::fs::File::open(path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut lines = Vec::new();
    for batch in reader.map(Result::unwrap) {
        let prompts = batch.column_by_name("prompt").unwrap().as_any().downcast_ref::<StringArray>().unwrap();
        let lists = batch.column_by_name("logprobs").unwrap().as_any().downcast_ref::<ListArray>().unwrap();
        for i in 0..batch.num_rows() {
            let list = lists.value(i);
            let list = list.as_any().downcast_ref::<Float64Array>().unwrap();
            lines.push((prompts.value(i).to_string(), list.values().to_vec()));
        }
    }
    lines
}

#[test]
fn training_is_watched_and_what_it_forgot_is_measured() {
    let project = project();
    project.write("general.txt", &"The running container and the old image are large files. ".repeat(40));
    let trains = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\nlearning_rate: 0.01\n\
                  micro_batch_size: 1\ngradient_accumulation_steps: 1\nmax_steps: 4\nsample_packing: true\n";
    project.edit("recipe.yml", "train: false\n", trains);
    let plain = project.run(&["--until", "convert"]);
    assert_eq!(plain.code, 0);
    let sampled = ["--set", "eval.samples=['Please list']", "--set", "eval.sample_every=2"];
    assert_eq!(
        project.run(&[&["--until", "convert"], sampled.as_slice()].concat()).executed,
        set(&[]),
        "no new training"
    );
    let more = ["--set", "eval.general=general.txt", "--set", "eval.few_shot=2", "--force", "train"];
    let ran = project.run(&[sampled.as_slice(), &more].concat());
    assert_eq!(ran.code, 0, "{:?}", ran.events.last());
    let samples = ran.events.iter().filter(|event| event["event"] == "sample");
    let steps: Vec<u64> = samples.map(|sample| sample["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 2, 4], "before the first step, every two, and at the end");
    assert!(!ran.executed.contains("convert"), "sampling changes nothing that is trained");
    let table = table(&project);
    let loss = |model: &str| table["models"][model]["general"]["loss"].as_f64().unwrap();
    let change = &table["changes"]["general"]["loss"];
    assert!((change["value"].as_f64().unwrap() - (loss("tuned") - loss("base"))).abs() < 1e-12);
    assert!(change["interval"][0].as_f64() <= change["value"].as_f64());
    assert_eq!(table["models"]["few_shot"]["test"]["rows"], 20);
    assert!(table["models"]["few_shot"]["test"]["perplexity"].is_null());
}

#[test]
fn mistakes_of_the_section_are_told_before_anything_runs() {
    let project = project();
    for (set, word) in [
        ("eval.metrics=[bleuu]", "bleu"),
        ("eval.stop=['']", "eval.stop[0]"),
        ("eval.max_rows=0", "max_rows"),
        ("eval.resamples=-1", "resamples"),
        ("eval.checks=[{regex: a}]", "eval.checks[0].name"),
        ("eval.checks=[{name: a}]", "eval.checks[0].regex"),
        ("eval.checks=[{name: bleu, regex: a}]", "names another measure"),
        ("eval.checks=[{name: a, regex: '('}]", "is no regular expression"),
        ("eval.checks=[{name: a, template: '{{'}]", "is no Jinja template"),
        ("eval.choices=[{name: a}]", "eval.choices[0].path"),
        ("eval.choices=[{path: gone.jsonl}]", "gone.jsonl"),
        ("eval.choices=[{path: rows.jsonl, name: test}]", "filed under `test`"),
        ("eval.general=gone.txt", "gone.txt"),
        ("eval.sample_every=5", "eval.samples"),
    ] {
        let said = project.pipe(&["run", "recipe.yml", "--set", set]);
        assert_eq!(said.code, 2, "{set}: {}\n{}", said.stdout, said.stderr);
        assert!(said.stderr.contains(word), "{set}: no `{word}` in\n{}", said.stderr);
    }
}
