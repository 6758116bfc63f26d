#![allow(clippy::unwrap_used)]

mod broken;
mod mutated;
mod placed;
mod unfriendly;

use std::fs;

use pipe_engine::problem::Severity;

use super::*;

const BASE: &str = "base_model: org/model\ndatasets:\n  - path: org/data\n    type: alpaca\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\nmicro_batch_size: 1\ngradient_accumulation_steps: 4\nlearning_rate: 2e-4\n";

fn load_text(text: &str, sets: &[&str]) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.yml");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    load(&path, &sets)
}

/// Errors and warnings as `line:column code key -> suggestion`.
fn said(loaded: &Loaded) -> Vec<String> {
    loaded
        .problems
        .iter()
        .filter(|p| p.severity != pipe_engine::problem::Severity::Notice)
        .map(|p| {
            let place = match (p.line, p.column) {
                (Some(line), Some(column)) => format!("{line}:{column}"),
                _ => "-".to_string(),
            };
            let mark = if p.is_error() { "" } else { "~" };
            let key = p.key.as_deref().unwrap_or("-");
            format!("{place} {mark}{} {key} -> {}", p.code, p.suggestion.as_deref().unwrap_or("-"))
        })
        .collect()
}

fn expect(text: &str, wanted: &[&str]) {
    let found = said(&load_text(text, &[]));
    assert_eq!(found, wanted, "for:\n{text}");
}

/// `more` after the base recipe, whose last line is 11.
fn expect_more(more: &str, wanted: &[&str]) {
    expect(&format!("{BASE}{more}"), wanted);
}

/// The base recipe with one text replaced.
fn expect_instead(old: &str, new: &str, wanted: &[&str]) {
    assert!(BASE.contains(old));
    expect(&BASE.replacen(old, new, 1), wanted);
}

#[test]
fn a_right_recipe_has_no_problems() {
    expect_more("", &[]);
}

#[test]
fn unknown_keys_name_the_nearest_key() {
    expect_more("sample_pakcing: true\n", &["12:1 unknown-key sample_pakcing -> sample_packing"]);
    expect_more("val-set-size: 0.1\n", &["12:1 unknown-key val-set-size -> val_set_size"]);
    expect_more("context_parapllel_size: 2\n", &["12:1 unknown-key context_parapllel_size -> context_parallel_size"]);
    expect_more("max_seq_length: 9\n", &["12:1 unknown-key max_seq_length -> sequence_len"]);
    expect_more("zebra_crossing: 9\n", &["12:1 unknown-key zebra_crossing -> -"]);
}

#[test]
fn a_key_at_the_wrong_level_names_its_section() {
    expect_more("train_on_eos: turn\n", &["12:1 unknown-key train_on_eos -> datasets[0].train_on_eos"]);
    expect_more("dedup: exact\n", &["12:1 unknown-key dedup -> clean.dedup"]);
    expect_more("merge:\n  lora_r: 8\n", &["13:3 unknown-key merge.lora_r -> lora_r"]);
    expect_instead("    type: alpaca", "    typ: alpaca", &["4:5 unknown-key datasets[0].typ -> type"]);
}

#[test]
fn a_misspelt_key_is_not_missed_as_well() {
    expect_instead("learning_rate", "learning_rat", &["11:1 unknown-key learning_rat -> learning_rate"]);
    expect_instead("micro_batch_size", "micro_batchsize", &["9:1 unknown-key micro_batchsize -> micro_batch_size"]);
    expect_instead("base_model", "model", &["1:1 unknown-key model -> base_model"]);
}

#[test]
fn values_have_types() {
    expect_instead("lora_r: 8", "lora_r: eight", &["6:9 wrong-type lora_r -> 16"]);
    expect_instead("lora_r: 8", "lora_r: 8.5", &["6:9 wrong-type lora_r -> 9"]);
    expect_instead("lora_r: 8", "lora_r: \"8\"", &[]);
    expect_instead("2e-4", "\"2e-4\"", &[]);
    expect_instead("2e-4", "2,5", &["11:16 wrong-type learning_rate -> 2.5"]);
    expect_instead("org/model", "7", &["1:13 wrong-type base_model -> \"7\""]);
    expect_instead("lora_target_linear: true", "lora_target_linear: yes", &[]);
    expect_instead(
        "lora_target_linear: true",
        "lora_target_linear: 1",
        &["8:21 wrong-type lora_target_linear -> true"],
    );
    expect_more("warmup_steps: 0.1\n", &["12:15 wrong-type warmup_steps -> warmup_ratio: 0.1"]);
    expect_more("bf16: full\n", &["12:7 bad-value bf16 -> auto"]);
    let message = &load_text(&format!("{BASE}bf16: full\n"), &[]).problems[0].message;
    assert_eq!(message, "`bf16` does not take `full`; it takes true, false or auto");
    expect(
        "base_model: org/model\ntrain: no\ndatasets: data.jsonl\n",
        &["3:11 wrong-type datasets -> - path: data.jsonl"],
    );
}

#[test]
fn words_name_the_nearest_word() {
    expect_more("optimizer: adamw_torhc\n", &["12:12 bad-value optimizer -> adamw_torch"]);
    expect_more("lr_scheduler: cosin\n", &["12:15 bad-value lr_scheduler -> cosine"]);
    expect_instead("type: alpaca", "type: alpacca", &["4:11 bad-value datasets[0].type -> alpaca"]);
    expect_instead("type: alpaca", "type: sharegpt", &["4:11 unsupported-value datasets[0].type -> chat_template"]);
    expect_more("optimizer: galore_adamw\n", &["12:12 unsupported-value optimizer -> adamw_torch_fused"]);
}

#[test]
fn ranges_are_checked() {
    expect_more(
        "lora_dropout: 8.95\n",
        &["12:15 out-of-range lora_dropout -> at least 0 and less than 1, such as 0.0895"],
    );
    expect_more("num_epochs: 0\n", &["12:13 out-of-range num_epochs -> more than 0, such as 3"]);
    expect_instead("lora_r: 8", "lora_r: 0", &["6:9 out-of-range lora_r -> between 1 and 65536, such as 16"]);
    expect_more(
        "val_set_size: 1.5\n",
        &["12:15 out-of-range val_set_size -> a share of at most 1, or a whole number of rows, such as 0.015"],
    );
}

#[test]
fn what_is_known_and_not_supported_says_so() {
    let found = said(&load_text(&format!("{BASE}rl: dpo\nrelora: false\npretraining_dataset:\n"), &[]));
    assert_eq!(found, ["12:1 unsupported-key rl -> supervised datasets under `datasets`, without `rl`"]);
    let loaded = load_text(&format!("{BASE}tf32: true\nwandb_project:\n"), &[]);
    assert!(loaded.recipe.is_some());
    assert_eq!(loaded.problems.len(), 1);
    assert_eq!(loaded.problems[0].code, "inert-key");
    assert_eq!(loaded.problems[0].line, Some(12));
}

#[test]
fn contradictions_are_found_together() {
    expect_more(
        "bf16: true\nfp16: true\nwarmup_steps: 5\nwarmup_ratio: 0.1\nsample_packing: true\ngroup_by_length: true\neval_steps: 5\n",
        &[
            "13:1 conflicting-keys fp16 -> fp16: false",
            "15:1 conflicting-keys warmup_ratio -> keep one, such as `warmup_ratio`",
            "17:1 conflicting-keys group_by_length -> group_by_length: false",
            "18:1 no-eval-data eval_steps -> val_set_size: 0.05",
        ],
    );
    expect_instead("adapter: lora", "adapter: qlora", &["5:1 needs-key adapter -> load_in_4bit: true"]);
    expect_more("evals_per_epoch: 4\n", &["12:1 ~no-eval-data evals_per_epoch -> val_set_size: 0.05"]);
    expect_more("batch_size: 4\n", &["12:1 conflicting-keys batch_size -> keep `gradient_accumulation_steps`"]);
    expect_more("chat_template: jinja\n", &["12:1 needs-key chat_template -> chat_template_jinja"]);
    expect_more(
        "load_in_4bit: true\nload_in_8bit: true\n",
        &["13:1 conflicting-keys load_in_8bit -> load_in_8bit: false"],
    );
    expect_more(
        "attn_implementation: sdpa\nflash_attention: true\n",
        &["13:1 conflicting-keys flash_attention -> keep `attn_implementation`"],
    );
}

#[test]
fn missing_keys_are_said_once() {
    expect_instead("    type: alpaca\n", "", &["3:5 ~missing-key datasets[0].type -> type: alpaca"]);
    expect_instead("learning_rate: 2e-4\n", "", &["1:1 missing-key learning_rate -> learning_rate: 2e-4"]);
    expect_instead(
        "gradient_accumulation_steps: 4\n",
        "",
        &["1:1 missing-key gradient_accumulation_steps -> gradient_accumulation_steps: 1"],
    );
}

#[test]
fn missing_files_are_found_beside() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join(".git")).unwrap();
    fs::create_dir_all(dir.path().join("recipes")).unwrap();
    fs::write(dir.path().join("recipes/rows.jsonl"), "{}").unwrap();
    let path = dir.path().join("recipes/r.yml");
    fs::write(&path, BASE.replace("org/data", "rows.jsonl")).unwrap();
    let loaded = load(&path, &[]);
    assert_eq!(said(&loaded), ["3:11 missing-file datasets[0].path -> recipes/rows.jsonl"]);
}

#[test]
fn yaml_mistakes_are_explained() {
    expect_more("lora_r: 4\n", &["12:1 duplicate-key lora_r -> keep one `lora_r`"]);
    expect("base_model: a/b\n\tadapter: lora\n", &["2:1 yaml-tab - -> replace the tab with spaces"]);
    expect("base_model: a/b\n  adapter: lora\n", &["2:3 yaml-indent - -> indent the line by 0 spaces"]);
    expect("base_model: a/b\nlearning_rate:2e-4\nseed: 1\n", &["2:1 yaml-space - -> learning_rate: 2e-4"]);
    expect("base_model: \"a/b\nseed: 1\n", &["1:13 yaml-quote - -> end the text with \""]);
    expect("base_model: a/b\nlora_target_modules: [a, b\nseed: 1\n", &["2:22 yaml-bracket - -> end it with ]"]);
    expect("base_model: a/b\nseed\nlora_r: 1\n", &["2:1 yaml-colon - -> seed:"]);
    expect("- a\n- b\n", &["1:1 not-a-mapping - -> -"]);
    expect("", &["1:1 empty-recipe - -> -"]);
}

#[test]
fn lenient_yaml_behaves() {
    let text = format!("\u{feff}{}", BASE.replace('\n', "\r\n"));
    let recipe = load_text(&text, &[]).recipe.unwrap();
    assert_eq!(recipe.learning_rate, Some(2e-4));
    let merged = format!(
        "{BASE}x-a: &a\n  min_chars: 3\nclean:\n  <<: *a\n  dedup: exact\nspecial_tokens:\nlora_target_modules: [\n  q_proj,\n]\n"
    );
    let loaded = load_text(&merged, &["seed=7", "datasets[0].path=org/other"]);
    assert_eq!(said(&loaded), [] as [&str; 0]);
    let recipe = loaded.recipe.unwrap();
    assert_eq!(recipe.clean.unwrap().min_chars, Some(3));
    assert_eq!(recipe.seed, Some(7));
    assert_eq!(recipe.datasets.unwrap()[0].path.as_deref(), Some("org/other"));
    assert_eq!(recipe.lora_target_modules, Some(Targets::Names(vec!["q_proj".to_string()])));
}

#[test]
fn bases_variables_and_assignments() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base.yml"), format!("{BASE}vars: {{size: 8}}\nlora_dropout: 9\n")).unwrap();
    let path = dir.path().join("r.yml");
    fs::write(&path, "extends: base.yml\nlora_r: ${size}\nvars: {size: 32}\noutput_dir: out-${size}\nseed: ${sise}\n")
        .unwrap();
    let loaded = load(&path, &["learning_rate=fast".to_string()]);
    let places: Vec<(String, Option<usize>, &str)> =
        loaded.problems.iter().map(|p| (p.file.rsplit('/').next().unwrap().to_string(), p.line, p.code)).collect();
    assert_eq!(
        places,
        [
            ("r.yml".to_string(), Some(5), "unknown-variable"),
            ("base.yml".to_string(), Some(13), "out-of-range"),
            ("--set".to_string(), None, "wrong-type"),
        ]
    );
    fs::write(&path, "extends: r.yml\n").unwrap();
    assert_eq!(said(&load(&path, &[]))[0], "1:10 extends-cycle - -> -");
}

#[test]
fn labels_are_unique() {
    let text = BASE.replace(
        "  - path: org/data\n    type: alpaca\n",
        "  - {path: org/data, type: alpaca}\n  - {path: other/data, type: alpaca}\n  - {path: a/data, type: alpaca, label: mine}\n",
    );
    let recipe = load_text(&format!("{text}test_datasets: [{{path: b/data, type: alpaca}}]\n"), &[]).recipe.unwrap();
    let labels: Vec<String> = recipe.sources().into_iter().map(|source| source.label).collect();
    assert_eq!(labels, ["data", "data-2", "mine", "data-3"]);
}

#[test]
fn bombs_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..30 {
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    for text in [bomb, "[".repeat(500_000), "a: ".to_string() + &"{a: ".repeat(5000), "k: v\n".repeat(1_100_000)] {
        let loaded = load_text(&text, &[]);
        assert!(loaded.recipe.is_none());
        assert_eq!(loaded.problems[0].code, "yaml-limits", "{:?}", loaded.problems);
    }
}

#[test]
fn the_flagship_is_valid() {
    let text = "base_model: mistralai/Mistral-7B-v0.1\nmodel_type: MistralForCausalLM\ntokenizer_type: LlamaTokenizer\nload_in_8bit: false\nload_in_4bit: true\ndatasets:\n  - path: mhenrichsen/alpaca_2k_test\n    type: alpaca\ndataset_prepared_path: last_run_prepared\nval_set_size: 0.1\noutput_dir: ./outputs/qlora-out\nadapter: qlora\nlora_model_dir:\nsequence_len: 8192\nsample_packing: true\nlora_r: 32\nlora_alpha: 16\nlora_dropout: 0.05\nlora_target_linear: true\nlora_target_modules: [gate_proj, down_proj]\nwandb_project:\nwandb_entity:\nwandb_watch:\nwandb_name:\nwandb_log_model:\ngradient_accumulation_steps: 4\nmicro_batch_size: 2\nnum_epochs: 1\noptimizer: adamw_bnb_8bit\nlr_scheduler: cosine\nlearning_rate: 0.0002\nbf16: auto\ntf32: false\ngradient_checkpointing: true\nresume_from_checkpoint:\nlogging_steps: 1\nattn_implementation: flash_attention_2\nloss_watchdog_threshold: 5.0\nloss_watchdog_patience: 3\nwarmup_ratio: 0.1\nevals_per_epoch: 4\nsaves_per_epoch: 1\nweight_decay: 0.0\nspecial_tokens:\n";
    let loaded = load_text(text, &[]);
    assert_eq!(said(&loaded), [] as [&str; 0]);
    assert!(loaded.recipe.is_some());
}

#[test]
fn generated_files_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        ("schemas/recipe.schema.json", serde_json::to_string_pretty(&schema()).unwrap() + "\n"),
        ("docs/recipe-reference.md", reference_markdown()),
    ];
    for (name, wanted) in files {
        let path = root.join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{name} is not current; run the tests with UPDATE_GENERATED=1");
    }
}
