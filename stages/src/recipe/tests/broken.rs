//! A corpus of recipes with one mistake each: the right line, key, code and remedy, and nothing else.

use super::*;

const PROBLEMS: &str = include_str!("../../../../docs/problems.md");

/// A sound recipe; every case changes one text in it.
const SOUND: &str = "\
base_model: org/model
model_type: AutoModelForCausalLM
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - path: org/data
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles:
      assistant: [gpt, model]
  - path: org/more
    type: alpaca
    split: train
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 1
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 2e-4
warmup_ratio: 0.1
bf16: auto
evals_per_epoch: 4
saves_per_epoch: 1
output_dir: ./out
eval:
  metrics: [perplexity]
  max_new_tokens: 64
merge:
  dtype: bf16
quantize:
  types: [q8_0]
";

/// What is replaced (nothing: the text is appended), by what, and what is said of it: `line code key word`, where the
/// suggestion contains the word (`-`: any will do), and `~` marks a warning; several are parted by ` | `.
pub(super) type Case = (&'static str, &'static str, &'static str);

pub(super) fn assert_cases(cases: &[Case]) {
    let failures: Vec<String> = cases.iter().filter_map(failure).collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn failure((old, new, wanted): &Case) -> Option<String> {
    assert!(old.is_empty() || SOUND.matches(old).count() == 1, "`{old}` is not there once");
    let text = if old.is_empty() { format!("{SOUND}{new}") } else { SOUND.replacen(old, new, 1) };
    let found: Vec<Problem> =
        load_text(&text, &[]).problems.into_iter().filter(|p| p.severity != Severity::Notice).collect();
    for problem in &found {
        assert!(PROBLEMS.contains(&format!("`{}`", problem.code)), "{} is not in docs/problems.md", problem.code);
    }
    let wanted: Vec<&str> = wanted.split(" | ").filter(|one| !one.is_empty()).collect();
    let right = found.len() == wanted.len() && found.iter().zip(&wanted).all(|(problem, one)| fits(problem, one));
    let shown: Vec<String> = found
        .iter()
        .map(|p| {
            let mark = if p.is_error() { "" } else { "~" };
            let line = p.line.map_or("-".to_string(), |line| line.to_string());
            format!("{mark}{line} {} {} {:?}: {}", p.code, p.key.as_deref().unwrap_or("-"), p.suggestion, p.message)
        })
        .collect();
    (!right).then(|| format!("{new:?}\n  wanted {wanted:?}\n  found  {}", shown.join("\n         ")))
}

fn fits(problem: &Problem, wanted: &str) -> bool {
    let mut parts = wanted.splitn(4, ' ');
    let mut next = || parts.next().unwrap_or("-");
    let (line, code, key, word) = (next(), next(), next(), next());
    let (warning, line) = line.strip_prefix('~').map_or((false, line), |line| (true, line));
    let place = problem.line.map_or("-".to_string(), |line| line.to_string());
    let suggestion = problem.suggestion.as_deref().unwrap_or("-");
    problem.is_error() != warning
        && line == place
        && code == problem.code
        && key == problem.key.as_deref().unwrap_or("-")
        && (word == "-" || suggestion.contains(word))
}

#[test]
fn the_base_of_the_corpus_is_sound() {
    assert_eq!(failure(&("", "", "")), None);
}

#[test]
fn misspelt_keys() {
    assert_cases(MISSPELT_KEYS);
}

const MISSPELT_KEYS: &[Case] = &[
    ("base_model", "base_modle", "1 unknown-key base_modle base_model"),
    ("lora_r: 16", "lora_rank: 16", "5 unknown-key lora_rank lora_r"),
    ("lora_r: 16", "lorar: 16", "5 unknown-key lorar lora_r"),
    ("lora_alpha", "lora_aplha", "6 unknown-key lora_aplha lora_alpha"),
    ("lora_dropout", "lora_drop_out", "7 unknown-key lora_drop_out lora_dropout"),
    ("lora_target_linear", "lora_target_liner", "8 unknown-key lora_target_liner lora_target_linear"),
    ("datasets:", "dataset:", "9 unknown-key dataset datasets"),
    ("datasets:", "Datasets:", "9 unknown-key Datasets datasets"),
    ("learning_rate", "learning-rate", "29 unknown-key learning-rate learning_rate"),
    ("learning_rate", "lr", "29 unknown-key lr learning_rate"),
    ("num_epochs", "num_train_epochs", "26 unknown-key num_train_epochs num_epochs"),
    ("num_epochs", "epochs", "26 unknown-key epochs num_epochs"),
    ("micro_batch_size", "per_device_train_batch_size", "24 unknown-key per_device_train_batch_size micro_batch_size"),
    ("micro_batch_size", "micro_batch_sizes", "24 unknown-key micro_batch_sizes micro_batch_size"),
    (
        "gradient_accumulation_steps",
        "gradient_acumulation_steps",
        "25 unknown-key gradient_acumulation_steps gradient_accumulation_steps",
    ),
    ("sequence_len", "max_seq_length", "22 unknown-key max_seq_length sequence_len"),
    ("sequence_len", "sequence_length", "22 unknown-key sequence_length sequence_len"),
    ("sample_packing", "sample_packin", "23 unknown-key sample_packin sample_packing"),
    ("optimizer", "optimiser", "27 unknown-key optimiser optimizer"),
    ("lr_scheduler", "lr_scheduler_type", "28 unknown-key lr_scheduler_type lr_scheduler"),
    ("warmup_ratio", "warmup_ration", "30 unknown-key warmup_ration warmup_ratio"),
    ("evals_per_epoch", "eval_per_epoch", "32 unknown-key eval_per_epoch evals_per_epoch"),
    ("val_set_size", "val_set_sise", "21 unknown-key val_set_sise val_set_size"),
    ("", "gradient_checkpoint: true\n", "42 unknown-key gradient_checkpoint gradient_checkpointing"),
    ("", "flash_atention: true\n", "42 unknown-key flash_atention flash_attention"),
    ("", "weigth_decay: 0.1\n", "42 unknown-key weigth_decay weight_decay"),
    ("", "wandb_projct: x\n", "42 unknown-key wandb_projct wandb_project"),
    ("", "context_parapllel_size: 2\n", "42 unknown-key context_parapllel_size context_parallel_size"),
    ("", "adam_eps: 1e-8\n", "42 unknown-key adam_eps adam_epsilon"),
    ("", "zebra_crossing: 9\n", "42 unknown-key zebra_crossing -"),
    ("", "x_note: 9\n", "42 unknown-key x_note x-note"),
];

#[test]
fn misspelt_keys_within() {
    assert_cases(MISSPELT_KEYS_WITHIN);
}

const MISSPELT_KEYS_WITHIN: &[Case] = &[
    ("    type: alpaca", "    typ: alpaca", "19 unknown-key datasets[1].typ type"),
    ("    type: alpaca", "    format: alpaca", "19 unknown-key datasets[1].format type"),
    ("    split: train", "    splits: train", "20 unknown-key datasets[1].splits split"),
    ("path: org/more", "pth: org/more", "18 unknown-key datasets[1].pth path"),
    ("field_messages", "field_message", "12 unknown-key datasets[0].field_message field_messages"),
    ("field_messages", "messages_field", "12 unknown-key datasets[0].messages_field field_messages"),
    (
        "message_property_mappings",
        "message_property_mapping",
        "13 unknown-key datasets[0].message_property_mapping message_property_mappings",
    ),
    ("max_new_tokens", "max_tokens", "37 unknown-key eval.max_tokens max_new_tokens"),
    ("  metrics", "  metric", "36 unknown-key eval.metric metrics"),
    ("  dtype", "  dtpye", "39 unknown-key merge.dtpye dtype"),
    ("  types", "  type", "41 unknown-key quantize.type types"),
    ("", "split:\n  vall: 0.1\n", "43 unknown-key split.vall val"),
    ("", "clean:\n  dedupe: exact\n", "43 unknown-key clean.dedupe dedup"),
    ("", "special_tokens:\n  pad: x\n", "43 unknown-key special_tokens.pad pad_token"),
    (
        "",
        "bnb_config_kwargs:\n  bnb_4bit_quant: nf4\n",
        "43 unknown-key bnb_config_kwargs.bnb_4bit_quant bnb_4bit_quant_type",
    ),
    ("", "resources:\n  core: 2\n", "43 unknown-key resources.core cores"),
    ("", "augment:\n  repeats: 2\n", "43 unknown-key augment.repeats repeat"),
];

#[test]
fn keys_at_the_wrong_level() {
    assert_cases(KEYS_AT_THE_WRONG_LEVEL);
}

const KEYS_AT_THE_WRONG_LEVEL: &[Case] = &[
    ("", "train_on_eos: turn\n", "42 unknown-key train_on_eos datasets[0].train_on_eos"),
    ("", "roles_to_train: [assistant]\n", "42 unknown-key roles_to_train datasets[0].roles_to_train"),
    ("", "dedup: exact\n", "42 unknown-key dedup clean.dedup"),
    ("", "metrics: [perplexity]\n", "42 unknown-key metrics eval.metrics"),
    ("", "pad_token: x\n", "42 unknown-key pad_token special_tokens.pad_token"),
    ("  dtype: bf16", "  lora_r: 8", "39 unknown-key merge.lora_r lora_r"),
    ("    split: train", "    sequence_len: 512", "20 unknown-key datasets[1].sequence_len sequence_len"),
    ("    split: train", "    val_set_size: 0.1", "20 unknown-key datasets[1].val_set_size val_set_size"),
];

#[test]
fn misspelt_values() {
    assert_cases(MISSPELT_VALUES);
}

const MISSPELT_VALUES: &[Case] = &[
    ("adapter: qlora", "adapter: qlor", "4 bad-value adapter qlora"),
    ("adapter: qlora", "adapter: QLoRA", "4 bad-value adapter qlora"),
    ("adamw_torch_fused", "adamw_torch_fuse", "27 bad-value optimizer adamw_torch_fused"),
    ("adamw_torch_fused", "adam", "27 bad-value optimizer adamw"),
    ("adamw_torch_fused", "AdamW", "27 bad-value optimizer adamw"),
    ("cosine", "cosin", "28 bad-value lr_scheduler cosine"),
    ("cosine", "Cosine", "28 bad-value lr_scheduler cosine"),
    ("bf16: auto", "bf16: atuo", "31 bad-value bf16 auto"),
    ("bf16: auto", "bf16: full", "31 bad-value bf16 auto"),
    ("type: alpaca", "type: alpacca", "19 bad-value datasets[1].type alpaca"),
    ("type: alpaca", "type: Alpaca", "19 bad-value datasets[1].type alpaca"),
    ("type: chat_template", "type: chat-template", "11 bad-value datasets[0].type chat_template"),
    ("type: chat_template", "type: chatml", "11 bad-value datasets[0].type chat_template"),
    ("type: alpaca", "type: sharegpt", "19 unsupported-value datasets[1].type chat_template"),
    ("[perplexity]", "[perplexty]", "36 bad-value eval.metrics[0] perplexity"),
    ("[q8_0]", "[q8]", "41 bad-value quantize.types[0] q8_0"),
    ("[q8_0]", "[Q4_K_M]", "41 bad-value quantize.types[0] q4_k_m"),
    ("dtype: bf16", "dtype: bfloat", "39 bad-value merge.dtype bfloat16"),
    ("", "eval_strategy: step\n", "42 bad-value eval_strategy steps"),
    ("", "excess_length_strategy: truncat\n", "42 bad-value excess_length_strategy truncate"),
    ("", "chat_template: chatlm\n", "42 unfit-value chat_template chatml"),
    ("", "chat_template: llama-3\n", "42 unfit-value chat_template llama3"),
    ("", "attn_implementation: flash\n", "42 bad-value attn_implementation flash_attention_2"),
    ("", "attn_implementation: flash_atention_2\n", "42 bad-value attn_implementation flash_attention_2"),
    ("", "clean: {dedup: exakt}\n", "42 bad-value clean.dedup exact"),
    ("    split: train", "    train_on_eos: turns", "20 bad-value datasets[1].train_on_eos turn"),
    ("    split: train", "    ds_type: jsn", "20 bad-value datasets[1].ds_type json"),
    ("type: alpaca", "type: my_module.load", "19 unsupported-value datasets[1].type chat_template"),
];

#[test]
fn wrong_types() {
    assert_cases(WRONG_TYPES);
}

const WRONG_TYPES: &[Case] = &[
    ("lora_r: 16", "lora_r: sixteen", "5 wrong-type lora_r -"),
    ("lora_r: 16", "lora_r: 16.5", "5 wrong-type lora_r 1"),
    ("lora_r: 16", "lora_r: [16]", "5 wrong-type lora_r 16"),
    ("lora_r: 16", "lora_r: {value: 16}", "5 wrong-type lora_r -"),
    ("lora_r: 16", "lora_r: true", "5 wrong-type lora_r -"),
    ("2e-4", "2,5", "29 wrong-type learning_rate 2.5"),
    ("2e-4", "2e-4.5", "29 wrong-type learning_rate -"),
    ("2e-4", "fast", "29 wrong-type learning_rate -"),
    ("num_epochs: 1", "num_epochs: three", "26 wrong-type num_epochs -"),
    ("load_in_4bit: true", "load_in_4bit: 1", "3 wrong-type load_in_4bit true"),
    ("load_in_4bit: true", "load_in_4bit: ture", "3 wrong-type load_in_4bit true"),
    ("sample_packing: true", "sample_packing: \"yes please\"", "23 wrong-type sample_packing true"),
    ("sequence_len: 2048", "sequence_len: 2k", "22 wrong-type sequence_len 2048"),
    ("sequence_len: 2048", "sequence_len: 2,048", "22 wrong-type sequence_len 2048"),
    ("sequence_len: 2048", "sequence_len: -1", "22 out-of-range sequence_len 1"),
    ("base_model: org/model", "base_model: 7", "1 wrong-type base_model \"7\""),
    ("base_model: org/model", "base_model: [org/model]", "1 wrong-type base_model org/model"),
    ("output_dir: ./out", "output_dir: 5", "34 wrong-type output_dir \"5\""),
    ("output_dir: ./out", "output_dir: true", "34 wrong-type output_dir \"true\""),
    ("[perplexity]", "perplexity", "36 wrong-type eval.metrics [perplexity]"),
    ("[q8_0]", "q8_0", "41 wrong-type quantize.types [q8_0]"),
    ("eval:\n  metrics: [perplexity]\n  max_new_tokens: 64\n", "eval: [perplexity]\n", "35 wrong-type eval -"),
    ("", "eot_tokens: <|im_end|>\n", "42 wrong-type eot_tokens [<|im_end|>]"),
    ("", "special_tokens: <pad>\n", "42 wrong-type special_tokens -"),
    ("", "clean: true\n", "42 wrong-type clean -"),
    ("", "warmup_steps: 0.1\n", "42 wrong-type warmup_steps warmup_ratio"),
    ("", "seed: random\n", "42 wrong-type seed -"),
    ("", "split: 0.1\n", "42 wrong-type split val"),
    ("role: from", "role: [from]", "14 wrong-type datasets[0].message_property_mappings.role from"),
    ("[gpt, model]", "gpt", "17 wrong-type datasets[0].roles.assistant [gpt]"),
];

#[test]
fn datasets_of_the_wrong_shape() {
    let (begin, end) = (SOUND.find("datasets:").unwrap(), SOUND.find("val_set_size").unwrap());
    let list = &SOUND[begin..end];
    let cases = [
        ("datasets: data.jsonl\n", "9 wrong-type datasets - path: data.jsonl"),
        ("datasets:\n  path: org/data\n  type: alpaca\n", "10 wrong-type datasets - path"),
        ("datasets:\n  - org/data\n", "10 wrong-type datasets[0] path: org/data"),
        ("datasets: []\n", "9 missing-key datasets datasets"),
        ("datasets:\n", "9 missing-key datasets datasets"),
        ("", "1 missing-key datasets datasets"),
        ("datasets:\n  -\n", "10 wrong-type datasets[0] -"),
        ("datasets:\n  - type: alpaca\n", "10 missing-key datasets[0].path path"),
        ("datasets:\n  - path: org/data\n", "~10 missing-key datasets[0].type type"),
        ("datasets:\n  - path:\n    type: alpaca\n", "10 missing-key datasets[0].path path"),
        ("datasets:\n  - path: ''\n    type: alpaca\n", "10 bad-value datasets[0].path -"),
        ("datasets:\n  - path: json\n    type: alpaca\n", "10 needs-key datasets[0].path data_files"),
        (
            "datasets:\n  - path: org/data\n    type: {field_instruction: q, field_outptu: a}\n",
            "11 unknown-key datasets[0].type.field_outptu field_output",
        ),
    ];
    for (new, wanted) in cases {
        let case = (list.to_string(), new, wanted);
        let text = SOUND.replacen(&case.0, new, 1);
        let found: Vec<Problem> =
            load_text(&text, &[]).problems.into_iter().filter(|p| p.severity != Severity::Notice).collect();
        assert!(found.len() == 1 && fits(&found[0], wanted), "{new:?}\n wanted {wanted}\n found {found:#?}");
    }
}

#[test]
fn numbers_out_of_range() {
    assert_cases(NUMBERS_OUT_OF_RANGE);
}

const NUMBERS_OUT_OF_RANGE: &[Case] = &[
    ("lora_dropout: 0.05", "lora_dropout: 8.95", "7 out-of-range lora_dropout 1"),
    ("lora_dropout: 0.05", "lora_dropout: -0.1", "7 out-of-range lora_dropout 0"),
    ("lora_dropout: 0.05", "lora_dropout: 1", "7 out-of-range lora_dropout 0.05"),
    ("lora_r: 16", "lora_r: 0", "5 out-of-range lora_r 1"),
    ("lora_r: 16", "lora_r: -8", "5 out-of-range lora_r 1"),
    ("lora_alpha: 32", "lora_alpha: 0", "6 out-of-range lora_alpha more than 0"),
    ("num_epochs: 1", "num_epochs: 0", "26 out-of-range num_epochs more than 0"),
    ("num_epochs: 1", "num_epochs: -3", "26 out-of-range num_epochs more than 0"),
    ("2e-4", "-2e-4", "29 out-of-range learning_rate 0"),
    ("2e-4", "0", "29 out-of-range learning_rate 0.0002"),
    ("2e-4", "2e4", "29 out-of-range learning_rate 2e-4"),
    ("2e-4", ".inf", "29 out-of-range learning_rate -"),
    ("2e-4", ".nan", "29 out-of-range learning_rate -"),
    ("micro_batch_size: 2", "micro_batch_size: 0", "24 out-of-range micro_batch_size 1"),
    ("warmup_ratio: 0.1", "warmup_ratio: 10", "30 out-of-range warmup_ratio 1"),
    ("val_set_size: 0.1", "val_set_size: -0.1", "21 out-of-range val_set_size 0"),
    ("val_set_size: 0.1", "val_set_size: 1.5", "21 out-of-range val_set_size 0.015"),
    ("val_set_size: 0.1", "split: {val: 0.6, test: 0.5}", "21 unfit-value split.val 1"),
    ("", "weight_decay: -0.1\n", "42 out-of-range weight_decay 0"),
    ("", "adam_beta2: 1.5\n", "42 out-of-range adam_beta2 1"),
    ("", "adam_beta1: 1\n", "42 out-of-range adam_beta1 0.9"),
    ("", "max_grad_norm: -1\n", "42 out-of-range max_grad_norm 0"),
    ("", "save_total_limit: 0\n", "42 out-of-range save_total_limit 1"),
    ("", "neftune_noise_alpha: -5\n", "42 out-of-range neftune_noise_alpha 0"),
    ("", "cosine_min_lr_ratio: 2\n", "42 out-of-range cosine_min_lr_ratio 1"),
    ("", "seed: -1\n", "42 out-of-range seed 0"),
    ("", "min_sample_len: 4096\n", "42 unfit-value min_sample_len 2"),
    ("", "clean: {min_chars: 50, max_chars: 10}\n", "42 unfit-value clean.min_chars 10"),
    ("evals_per_epoch: 4", "eval_steps: 2.5", "32 out-of-range eval_steps 3"),
    ("sequence_len: 2048", "sequence_len: 1e12", "22 out-of-range sequence_len 10000000"),
    ("sequence_len: 2048", "sequence_len: 99999999999999999999", "22 out-of-range sequence_len 10000000"),
];

#[test]
fn settings_that_contradict_each_other() {
    assert_cases(SETTINGS_THAT_CONTRADICT_EACH_OTHER);
}

const SETTINGS_THAT_CONTRADICT_EACH_OTHER: &[Case] = &[
    ("load_in_4bit: true\n", "", "3 needs-key adapter load_in_4bit: true"),
    ("load_in_4bit: true", "load_in_4bit: false", "3 needs-key load_in_4bit true"),
    ("load_in_4bit: true", "load_in_8bit: true", "4 conflicting-keys adapter load_in_4bit"),
    (
        "load_in_4bit: true",
        "load_in_4bit: true\nload_in_8bit: true",
        "4 conflicting-keys load_in_8bit load_in_8bit: false",
    ),
    ("adapter: qlora\n", "", "3 needs-key load_in_4bit adapter: qlora"),
    ("", "warmup_steps: 10\n", "42 conflicting-keys warmup_steps warmup_ratio"),
    ("", "eval_steps: 10\n", "42 conflicting-keys eval_steps evals_per_epoch"),
    ("", "save_steps: 10\n", "42 conflicting-keys save_steps saves_per_epoch"),
    ("", "save_strategy: epoch\n", "42 conflicting-keys save_strategy -"),
    ("", "save_strategy: no\n", "42 conflicting-keys save_strategy -"),
    ("", "eval_strategy: epoch\n", "42 conflicting-keys eval_strategy -"),
    ("", "batch_size: 8\n", "42 conflicting-keys batch_size gradient_accumulation_steps"),
    ("gradient_accumulation_steps: 4", "batch_size: 5", "25 unfit-value batch_size 4"),
    (
        "gradient_accumulation_steps: 4\n",
        "",
        "1 missing-key gradient_accumulation_steps gradient_accumulation_steps: 1",
    ),
    ("learning_rate: 2e-4\n", "", "1 missing-key learning_rate learning_rate: 2e-4"),
    ("base_model: org/model\n", "", "1 missing-key base_model base_model"),
    ("", "fp16: true\nbf16: true\n", "43 duplicate-key bf16 bf16"),
    ("bf16: auto", "bf16: true\nfp16: true", "32 conflicting-keys fp16 fp16: false"),
    ("", "group_by_length: true\n", "42 conflicting-keys group_by_length group_by_length: false"),
    ("sample_packing: true", "group_by_length: true", ""),
    ("", "test_datasets: [{path: org/test, type: alpaca}]\n", "42 conflicting-keys test_datasets split.val"),
    ("val_set_size: 0.1\n", "", "35 no-eval-data eval.metrics split.val"),
    (
        "val_set_size: 0.1\n",
        "eval_steps: 10\n",
        "32 conflicting-keys evals_per_epoch evals_per_epoch | 36 no-eval-data eval.metrics split.val",
    ),
    ("", "chat_template: jinja\n", "42 needs-key chat_template chat_template_jinja"),
    (
        "",
        "attn_implementation: sdpa\nflash_attention: true\n",
        "43 conflicting-keys flash_attention attn_implementation",
    ),
    ("", "deepspeed: ds.json\nfsdp: [full_shard]\n", "43 conflicting-keys fsdp -"),
    ("", "liger_cross_entropy: true\ncut_cross_entropy: true\n", "43 conflicting-keys cut_cross_entropy -"),
    (
        "",
        "curriculum_sampling: true\nshuffle_merged_datasets: true\n",
        "43 conflicting-keys shuffle_merged_datasets shuffle_merged_datasets: false",
    ),
    ("", "split: {val: 0.2}\n", "42 conflicting-keys split.val split.val"),
    ("[perplexity]", "[perplexity]\n  splits: [test]", "37 no-eval-data eval.splits[0] split.test"),
    (
        "lora_target_linear: true",
        "lora_target_modules: []",
        "8 unfit-value lora_target_modules lora_target_linear: true",
    ),
    (
        "lora_target_linear: true",
        "lora_target_modules: 'q_proj, v_proj'",
        "8 unfit-value lora_target_modules [q_proj, v_proj]",
    ),
    ("lora_target_linear: true", "lora_target_modules: '*.q_proj'", "8 unfit-value lora_target_modules .*"),
    ("lora_target_linear: true", "lora_target_modules: '(q_proj'", "8 unfit-value lora_target_modules )"),
    ("    split: train", "    shards_idx: 1", "20 needs-key datasets[1].shards_idx shards"),
    (
        "    field_messages: conversations",
        "    message_field_role: speaker",
        "13 conflicting-keys datasets[0].message_property_mappings message_property_mappings",
    ),
    ("merge:", "train: false\nmerge:", "39 conflicting-keys merge lora_model_dir"),
    (
        "",
        "context_parallel_size: 2\nattn_implementation: sdpa\n",
        "43 conflicting-keys attn_implementation flash_attention_2",
    ),
    ("", "fsdp_version: 2\nfsdp_config: {offload_params: true}\n", ""),
    (
        "adamw_torch_fused",
        "adamw_bnb_8bit\nfsdp_version: 2\nfsdp_config: {offload_params: true}",
        "29 conflicting-keys fsdp_config adamw_torch_8bit",
    ),
    ("", "activation_offloading: true\n", "42 needs-key activation_offloading gradient_checkpointing: true"),
    ("", "selective_checkpointing: true\n", "42 needs-key selective_checkpointing gradient_checkpointing: true"),
    ("", "max_memory: {0: 8GB}\ngpu_memory_limit: 8\n", "43 conflicting-keys gpu_memory_limit -"),
    ("", "push_dataset_to_hub: org/prepared\n", "42 needs-key push_dataset_to_hub hf_use_auth_token: true"),
    ("", "torch_compile_options: {shape_padding: true}\n", "42 needs-key torch_compile_options torch_compile: true"),
];

#[test]
fn what_is_not_supported_says_so_once() {
    assert_cases(WHAT_IS_NOT_SUPPORTED_SAYS_SO_ONCE);
}

const WHAT_IS_NOT_SUPPORTED_SAYS_SO_ONCE: &[Case] = &[
    ("", "rl: dpo\n", "42 unsupported-key rl -"),
    ("", "rl: grpo\ntrl: {num_generations: 3}\n", "42 unsupported-key rl -"),
    ("", "reward_model: true\nnum_labels: 1\n", "42 unsupported-key reward_model -"),
    ("", "processor_type: AutoProcessor\n", "42 unsupported-key processor_type -"),
    ("", "streaming: true\n", "42 unsupported-key streaming completion"),
    ("", "relora: true\njagged_restart_steps: 100\n", "42 unsupported-key relora -"),
    ("", "gptq: true\n", "42 unsupported-key gptq load_in_4bit"),
    ("", "qat: {activation_dtype: int8}\n", "42 unsupported-key qat -"),
    ("", "max_packed_sequence_len: 2048\n", "42 unsupported-key max_packed_sequence_len sample_packing"),
    ("", "plugins: [my.own.Plugin]\n", "42 unsupported-value plugins[0] remove"),
];

#[test]
fn mistakes_in_yaml() {
    assert_cases(MISTAKES_IN_YAML);
}

const MISTAKES_IN_YAML: &[Case] = &[
    ("lora_r: 16", "lora_r: 16\nlora_r: 8", "6 duplicate-key lora_r lora_r"),
    ("    type: alpaca", "    type: alpaca\n    type: alpaca", "20 duplicate-key datasets[1].type type"),
    ("  dtype: bf16", "  dtype: bf16\n  dtype: fp16", "40 duplicate-key merge.dtype dtype"),
    ("    type: alpaca", "\ttype: alpaca", "19 yaml-tab - spaces"),
    ("lora_r: 16", "\tlora_r: 16", "5 yaml-tab - spaces"),
    ("lora_r: 16", "  lora_r: 16", "5 yaml-indent - 0 spaces"),
    ("    split: train", "     split: train", "20 yaml-indent - 4 spaces"),
    ("    split: train", "   split: train", "20 yaml-indent - 4 spaces"),
    ("lora_r: 16", "lora_r:16", "5 yaml-space - lora_r: 16"),
    ("lora_r: 16", "lora_r 16", "5 yaml-colon - lora_r: 16"),
    ("lora_r: 16", "lora_r = 16", "5 yaml-colon - lora_r: 16"),
    ("./out", "\"./out", "34 yaml-quote - \""),
    ("[perplexity]", "[perplexity", "36 yaml-bracket - ]"),
    ("base_model: org/model", "base_model: org: model", "1 yaml-quote - \"org: model\""),
    ("base_model: org/model", "base_model: @org/model", "1 yaml-quote - \"@org/model\""),
    ("base_model: org/model", "base_model: *org", "1 yaml-anchor - -"),
    ("merge:", "---\nmerge:", "38 yaml-documents - -"),
    ("merge:", "<<: 5\nmerge:", "38 yaml-anchor - -"),
    ("base_model: org/model", "base_model: !include x.yml", "1 yaml-tag - -"),
    ("num_epochs: 1", "num_epochs: ${epochs}", "26 unknown-variable num_epochs -"),
    ("num_epochs: 1", "vars: {epochs: 3}\nnum_epochs: ${epoch}", "27 unknown-variable num_epochs ${epochs}"),
    ("lora_r: 16", "lora_r: “16”", "5 wrong-type lora_r 16"),
];
