//! The whole path with a tiny model: tokenize, train, eval, convert, merge, quantize. Needs the worker beside the binary.

use super::harness::{Project, Ran, copy_folder, rows, set};

const RECIPE: &str = "\
base_model: model
datasets:
  - path: rows.jsonl
    type: alpaca
    label: docker
val_set_size: 0.2
sequence_len: 256
sample_packing: true
adapter: qlora
load_in_4bit: true
lora_r: 4
lora_alpha: 8
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 2
num_epochs: 2
learning_rate: 0.01
eval:
  max_new_tokens: 8
  samples: ['Please list the 3 running container']
merge: true
quantize:
  types: [q8_0]
output_dir: out
";

fn project() -> Project {
    let project = Project::with_worker();
    project.write("rows.jsonl", &rows(0..40));
    project.write("recipe.yml", RECIPE);
    project
}

#[test]
fn a_gguf_and_a_folder_become_folders() {
    let project = project();
    let quantised = project.pipe(&["quantize", "model", "--type", "f32", "--output", "model.gguf"]);
    assert_eq!(quantised.code, 0, "{}", quantised.stderr);
    for (source, out) in [("model", "copy"), ("model.gguf", "unpacked")] {
        let said = project.pipe(&["convert", source, "--output", out, "--dtype", "float32"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(project.path("work").join(out).join("tokenizer.json").is_file());
    }
    let weights = |folder: &str| std::fs::read(project.path("work").join(folder).join("model.safetensors")).unwrap();
    assert!(weights("copy") == weights("unpacked"), "the same weights from either");
    assert_eq!(project.pipe(&["convert", "model", "--output", "copy"]).code, 2, "nothing is overwritten");
}

#[test]
fn a_recipe_from_rows_to_a_quantised_model() {
    let project = project();
    let said = project.pipe(&["run", "recipe.yml"]);
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    for word in ["perplexity (val)", "base", "tuned", "samples", "out/merged", "pipe chat out/merged"] {
        assert!(said.stdout.contains(word), "no `{word}` in\n{}", said.stdout);
    }
    for file in [
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "merged/config.json",
        "gguf/model-q8_0.gguf",
    ] {
        assert!(project.path("work/out").join(file).is_file(), "{file}");
    }
    assert_eq!(project.run(&[]).executed, set(&[]));
    let below = set(&["train", "eval", "convert", "merge", "quantize"]);
    let ran = project.run(&["--set", "learning_rate=0.02"]);
    assert_eq!(ran.executed, below);
    let metrics: Vec<_> = ran.events.iter().filter(|event| event["event"] == "metric").collect();
    assert!(!metrics.is_empty() && metrics.iter().all(|metric| metric["loss"].as_f64().unwrap() > 0.0));
    what_was_made_agrees(&project);
    assert_eq!(project.run(&["--set", "quantize.types=[f16]"]).executed, set(&["quantize"]));
    importance_guides(&project);
    assert_eq!(project.run(&["--set", "output_dir=elsewhere"]).executed, set(&[]));
    assert_eq!(project.run(&["--set", "eval.samples=['Please stop']"]).executed, set(&["eval"]));
    let spelled =
        RECIPE.replace("learning_rate: 0.01", "learning_rate: 1e-2\noptimizer: adamw_torch\nsave_total_limit: 7");
    project.write("recipe.yml", &format!("{spelled}save_steps: 3\nlogging_steps: 5\nresources:\n  memory: 2GB\n"));
    assert_eq!(project.run(&[]).executed, set(&[]), "defaults, checkpoints, logs and limits change no result");
    damaged_results(&project, &project.run(&[]));
    template_goes_along(&project);
    weights_and_secrets(&project);
}

/// Merged and quantised models stand beside what they were made of, with measures that fit what was done to them.
fn what_was_made_agrees(project: &Project) {
    let compared = ["--set", "quantize.agreement_rows=32", "--set", "merge={agreement_rows: 8}"];
    assert!(!project.pipe(&["plan", "recipe.yml"]).stdout.contains("agreement"), "only where it is asked for");
    let ran = project.run(&[&compared[..], &["--set", "learning_rate=0.02"]].concat());
    assert_eq!(ran.executed, set(&["merge.agreement", "quantize.agreement"]));
    let page = project.read("out/report.html");
    assert!(page.contains("Merged and quantised") && page.contains("q8_0"));
    let table = |node: &str| {
        let text = std::fs::read_to_string(project.output(&ran, node).join("agreement.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (merged, quantised) = (table("merge.agreement"), table("quantize.agreement"));
    let rows = [&merged, &quantised].map(|table| table["rows"].as_u64().unwrap());
    assert!(rows[0] > 0 && rows[0] <= 8 && rows[1] >= rows[0], "{rows:?}");
    let number = |table: &serde_json::Value, model: &str, name: &str| table["models"][model][name].as_f64().unwrap();
    // Merged weights are stored in 16 bits where the machine computes in them, else as they were.
    assert!(number(&merged, "merged", "same_top") > 0.9, "{merged}");
    assert!(number(&merged, "merged", "kl_divergence") < 0.01, "{merged}");
    let perplexity = ["merged", "q8_0"].map(|model| number(&quantised, model, "perplexity"));
    assert!((perplexity[1] / perplexity[0] - 1.0).abs() < 0.02, "{quantised}");
    assert!(number(&quantised, "q8_0", "same_top") > 0.9, "{quantised}");
    let eval = std::fs::read_to_string(project.path("work/out/eval/eval.json")).unwrap();
    let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
    let tuned = eval["models"]["tuned"]["val"]["perplexity"].as_f64().unwrap();
    // All rows of the split are few enough to be measured here too.
    assert!((perplexity[0] / tuned - 1.0).abs() < 0.01, "{perplexity:?} {tuned}");
    let said = project.pipe(&[&["run", "recipe.yml"], &compared[..]].concat());
    assert!(said.stdout.contains("quantised ("), "{}", said.stdout);
}

/// An importance matrix of training rows changes the types of few bits; a file of it does the same.
fn importance_guides(project: &Project) {
    let compared = ["--set", "quantize.types=[q4_1]", "--set", "quantize.agreement_rows=32"];
    let with = |more: &[&str]| project.run(&[&compared[..], more].concat());
    let bytes = |ran: &Ran| std::fs::read(project.output(ran, "quantize").join("model-q4_1.gguf")).unwrap();
    let plain = with(&[]);
    let guided = with(&["--set", "quantize.importance=true"]);
    assert_eq!(guided.executed, set(&["quantize.importance", "quantize", "quantize.agreement"]));
    assert!(bytes(&plain) != bytes(&guided));
    let matrix = project.output(&guided, "quantize.importance").join("importance.gguf");
    let ran = with(&["--set", &format!("quantize.importance.file={}", matrix.display())]);
    assert_eq!(ran.executed, set(&["quantize"]), "the same bytes are not compared again");
    assert!(bytes(&ran) == bytes(&guided));
    let out = ["--type", "q4_1", "--output"];
    let verb = |name: &str, more: &[&str]| {
        let said = project.pipe(&[&["quantize", "out/merged"], &out[..], &[name], more].concat());
        assert_eq!(said.code, 0, "{}", said.stderr);
        std::fs::read(project.path("work").join(name)).unwrap()
    };
    assert!(verb("file.gguf", &["--importance", matrix.to_str().unwrap()]) == bytes(&guided));
    let measured = verb("rows.gguf", &["--calibration", "rows.jsonl", "--calibration-type", "alpaca"]);
    assert!(measured != bytes(&guided) && measured != bytes(&plain) && measured.len() == bytes(&guided).len());
    let damaged =
        project.pipe(&["quantize", "model", "--type", "q4_1", "--output", "x.gguf", "--importance", "rows.gguf"]);
    assert_eq!(damaged.code, 2, "{}", damaged.stderr);
    assert!(damaged.stderr.contains("importance matrix"), "{}", damaged.stderr);
}

/// A trained, merged or quantised result that was harmed is made again, with the same bytes, and nothing else is.
fn damaged_results(project: &Project, ran: &Ran) {
    for node in ["train", "merge", "quantize"] {
        let folder = project.output(ran, node);
        let names = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
        let file = names.filter(|path| path.is_file() && !path.ends_with("manifest.json"));
        let file = file.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(project.run(&["--verify"]).executed, set(&[node]));
        bytes[middle] ^= 1;
        assert!(std::fs::read(&file).unwrap() == bytes, "{node} came out otherwise");
    }
}

/// What was trained with a template of its own is published with it, in every form.
fn template_goes_along(project: &Project) {
    let plain = project.read("recipe.yml");
    let chat = plain.replace("type: alpaca\n", "type: alpaca:chat_template\n");
    project.write("recipe.yml", &format!("chat_template: chatml\n{chat}"));
    let said = project.pipe(&["run", "recipe.yml"]);
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    for folder in ["adapter", "merged"] {
        let jinja = project.read(&format!("out/{folder}/chat_template.jinja"));
        assert!(jinja.contains("<|im_start|>"), "{folder}: {jinja}");
        let config = project.read(&format!("out/{folder}/tokenizer_config.json"));
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["chat_template"], jinja.as_str(), "{folder}");
    }
    let gguf = std::fs::read(project.path("work/out/gguf/model-q8_0.gguf")).unwrap();
    assert!(gguf.windows(12).any(|bytes| bytes == b"<|im_start|>"));
    other_templates_are_told(project);
    project.write("recipe.yml", &plain);
    assert_eq!(project.run(&[]).executed, set(&[]));
    assert!(!project.path("work/out/adapter/template_fingerprint.json").exists(), "no conversation was trained on");
}

/// Whoever writes to the model otherwise than it was trained hears of it; nobody else does.
fn other_templates_are_told(project: &Project) {
    const TEMPLATE: &str = "another chat template";
    let chat = |model: &str, more: &[&str]| {
        let args = [&["chat", model, "--prompt", "hi", "--temperature", "0", "--max-new-tokens", "2"], more].concat();
        let said = project.pipe(&args);
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.stderr
    };
    let adapter: &[&str] = &["--adapter", "out/adapter"];
    let gguf = "out/gguf/model-q8_0.gguf";
    for (model, more) in [("model", adapter), ("out/merged", &[]), (gguf, &[]), ("model", &[])] {
        assert_eq!(chat(model, more), "", "{model}");
        let named = [more, &["--chat-template", "llama3"]].concat();
        let told = chat(model, &named);
        assert_eq!(told.contains(TEMPLATE), (model, more) != ("model", &[]), "{model}: {told}");
    }
    let whole = |from: &str, to: &str| copy_folder(&project.path("work").join(from), &project.path("work").join(to));
    whole("out/merged", "edited");
    project.write("edited/chat_template.jinja", &project.read("edited/chat_template.jinja").replace("im_end", "end"));
    assert!(chat("edited", &[]).contains(TEMPLATE));
    // The adapter alone, without what lies beside it, is written to with the base model's template.
    whole("out/adapter", "bare");
    for file in ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(project.path("work/bare").join(file)).unwrap();
    }
    assert!(chat("model", &["--adapter", "bare"]).contains(TEMPLATE));
    assert_eq!(chat("model", &["--adapter", "bare", "--chat-template", "chatml"]), "");
    // A base whose tokens are others.
    whole("model", "other");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&project.read("other/tokenizer.json")).unwrap();
    let vocabulary = &mut tokenizer["model"]["vocab"];
    let (a, e) = (vocabulary["a"].clone(), vocabulary["e"].clone());
    (vocabulary["a"], vocabulary["e"]) = (e, a);
    project.write("other/tokenizer.json", &tokenizer.to_string());
    assert!(chat("other", adapter).contains("another tokenizer"));
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "docker ps"}]}"#;
    project.write("chat.jsonl", row);
    let eval = |model: &str, more: &[&str]| {
        let args =
            [&["eval", model, "--data", "chat.jsonl", "--json", "--set", "eval.max_new_tokens=2"], more].concat();
        let said = project.pipe(&args);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.json()["eval_loss"].as_f64().unwrap() > 0.0);
        said.stderr
    };
    for more in [&[][..], &["--set", "chat_template=chatml"]] {
        assert_eq!(eval("model", &[adapter, more].concat()), "");
    }
    for (model, more) in [("model", adapter), (gguf, &[])] {
        let named = [more, &["--set", "chat_template=llama3"]].concat();
        assert!(eval(model, &named).contains(TEMPLATE), "{model}");
    }
    assert!(eval("other", adapter).contains("another tokenizer"));
}

/// Weights replaced in place reach what reads weights; an API key reaches nothing that is written.
fn weights_and_secrets(project: &Project) {
    let weights = project.path("work/model/model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut other = good.clone();
    let last = other.len() - 1;
    other[last] ^= 0x01;
    std::fs::write(&weights, other).unwrap();
    let why = project.pipe(&["why", "recipe.yml", "train"]);
    assert!(why.stdout.contains("model.safetensors"), "{}", why.stdout);
    assert_eq!(project.run(&["--until", "convert"]).executed, set(&["train", "convert"]));
    std::fs::write(&weights, good).unwrap();
    assert_eq!(project.run(&[]).executed, set(&[]));
    let key = "abcdef0123456789secretvalue";
    project.write("recipe.yml", &format!("{RECIPE}use_comet: true\ncomet_api_key: {key}\n"));
    let ran = project.run(&[]);
    assert_eq!((ran.code, ran.executed), (0, set(&[])));
    let found = std::process::Command::new("grep").args(["-r", key]).arg(project.path("work/.pipe")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(project.pipe(&["runs", "last", "--json"]).stdout.contains("comet_api_key: (secret)"));
}

#[test]
fn the_verbs_work_on_existing_folders() {
    let project = project();
    assert_eq!(project.run(&["--until", "convert"]).code, 0);
    let merge =
        project.pipe(&["merge", "model", "--adapter", "out/adapter", "--output", "whole", "--dtype", "float32"]);
    assert_eq!(merge.code, 0, "{}", merge.stderr);
    adapters_add_up(&project);
    let quantize = project.pipe(&["quantize", "whole", "--type", "q8_0", "--output", "whole.gguf"]);
    assert_eq!(quantize.code, 0, "{}", quantize.stderr);
    let eval = ["eval", "whole.gguf", "--data", "rows.jsonl", "--type", "alpaca", "--sequence-len", "256", "--json"];
    let said = project.pipe(&eval);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.json()["eval_loss"].as_f64().unwrap() > 0.0);
    let answer = ["chat", "whole", "--prompt", "Please list", "--temperature", "0", "--max-new-tokens", "4"];
    let said = project.pipe(&answer);
    assert_eq!(said.code, 0, "{}", said.stderr);
}

/// Twice half an adapter is the adapter; what cannot be added up is told before anything runs.
fn adapters_add_up(project: &Project) {
    let merge = |more: &[&str]| {
        let args = ["merge", "model", "--dtype", "float32", "--adapter", "out/adapter", "--adapter", "out/adapter"];
        project.pipe(&[&args[..], more].concat())
    };
    let said = merge(&["--weights", "1.5,-0.5", "--output", "halves"]);
    assert_eq!((said.code, said.stderr.contains("warning")), (0, false), "{}", said.stderr);
    assert_eq!(merge(&["--weights", "0,0", "--output", "untouched"]).code, 0);
    let read = |folder: &str| up_projection(&project.path("work").join(folder).join("model.safetensors"));
    let (once, halves, base) = (read("whole"), read("halves"), read("untouched"));
    assert!(once.iter().zip(&halves).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(once.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-4));
    let said = merge(&["--weights", "0.5", "--output", "none"]);
    assert_eq!((said.code, said.stderr.contains("2 adapters")), (2, true), "{}", said.stderr);
    // Another base's: its matrices do not fit.
    let config = project.read("out/adapter/adapter_config.json");
    copy_folder(&project.path("work/out/adapter"), &project.path("work/stranger"));
    project.write("stranger/adapter_config.json", &config.replace("\"r\": 4", "\"r\": 8"));
    let said =
        project.pipe(&["merge", "model", "--adapter", "out/adapter", "--adapter", "stranger", "--output", "none"]);
    assert_eq!((said.code, said.stderr.contains("stranger")), (2, true), "{}", said.stderr);
}

/// A weight of a float32 folder.
fn up_projection(path: &std::path::Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..head]).unwrap();
    let place = &header["model.layers.0.mlp.up_proj.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|end| head + place[end].as_u64().unwrap() as usize);
    bytes[from..to].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
