//! Recipes as an unfriendly reviewer would break them: one mistake, one answer, at the line where it was made.

use super::broken::{Case, assert_cases};

#[test]
fn punctuation_and_indentation() {
    assert_cases(PUNCTUATION_AND_INDENTATION);
}

const PUNCTUATION_AND_INDENTATION: &[Case] = &[
    ("  - path: org/more", "  -path: org/more", "18 yaml-space - - path: org/more"),
    ("  - path: org/data", "  -path: org/data", "10 yaml-space - - path: org/data"),
    ("      role: from", "\t\trole: from", "14 yaml-tab - spaces"),
    ("      role: from", "      role from", "14 yaml-colon - role: from"),
    ("  metrics: [perplexity]", "  metrics: [perplexity}", "36 yaml-bracket - ]"),
    ("output_dir: ./out", "output_dir: 'it's here'", "34 yaml-quote - ''s"),
    ("", "x-a: *later\nx-b: &later 1\n", "42 yaml-anchor - -"),
    ("", "clean: {<<: exact}\n", "42 yaml-anchor - -"),
    ("lora_dropout: 0.05", "lora_dropout: ${drop}", "7 unknown-variable lora_dropout drop"),
    ("lora_r: 16", "vars: {rank: high}\nlora_r: ${rank}", "6 wrong-type lora_r 16"),
    (
        "base_model: org/model\n",
        "base_model: org/model\nbase_model: org/other\n",
        "2 duplicate-key base_model base_model",
    ),
];

#[test]
fn kinds_and_units() {
    assert_cases(KINDS_AND_UNITS);
}

const KINDS_AND_UNITS: &[Case] = &[
    ("2e-4", "\"2e-4 \"", "29 wrong-type learning_rate 2e-4"),
    ("2e-4", "2e-4 # fine", ""),
    ("2e-4", "-0.0", "29 out-of-range learning_rate 0.0002"),
    ("2e-4", "'-0.0'", "29 out-of-range learning_rate 0.0002"),
    ("2e-4", "\"200\"", "29 out-of-range learning_rate 0.0002"),
    ("sequence_len: 2048", "sequence_len: \"1,000\"", "22 wrong-type sequence_len 1000"),
    ("sequence_len: 2048", "sequence_len: \"99999999\"", "22 out-of-range sequence_len 10000000"),
    ("sequence_len: 2048", "sequence_len: 2e3", "22 wrong-type sequence_len 2000"),
    ("val_set_size: 0.1", "val_set_size: 10%", "21 wrong-type val_set_size 0.1"),
    ("val_set_size: 0.1", "val_set_size: 10.5", "21 out-of-range val_set_size 0.105"),
    ("val_set_size: 0.1", "val_set_size: \"1.5\"", "21 out-of-range val_set_size 0.015"),
    ("sample_packing: true", "sample_packing: \"True\"", ""),
    ("sample_packing: true", "sample_packing: y", "23 wrong-type sample_packing true"),
    ("sample_packing: true", "sample_packing: yess", "23 wrong-type sample_packing true"),
    ("sample_packing: true", "sample_packing: offf", "23 wrong-type sample_packing false"),
    ("sample_packing: true", "sample_packing: [true]", "23 wrong-type sample_packing true"),
    ("num_epochs: 1", "num_epochs: [1, 2]", "26 wrong-type num_epochs 3"),
    ("    split: train", "    split: no", "20 wrong-type datasets[1].split \"no\""),
    ("    split: train", "    name: 2024-01-31", "20 wrong-type datasets[1].name \"2024-01-31\""),
    ("lora_r: 16", "lora_r: 016", "5 wrong-type lora_r 16"),
    ("path: org/more", "path: \"\"", "18 bad-value datasets[1].path alpaca"),
    ("lora_dropout: 0.05", "lora_dropout: 1.0", "7 out-of-range lora_dropout 0.05"),
    ("", "mix: {replay: {dataset: more, share: 1}}\n", "42 out-of-range mix.replay.share less than 1"),
    ("", "adam_beta3: .nan\n", "42 unsupported-key adam_beta3 learning_rate"),
    ("", "qat: -.inf\n", "42 unsupported-key qat load_in_4bit"),
    ("", "adam_beta2: \"1.0\"\n", "42 out-of-range adam_beta2 0.999"),
];

#[test]
fn words_that_are_nearly_right() {
    assert_cases(WORDS_THAT_ARE_NEARLY_RIGHT);
}

const WORDS_THAT_ARE_NEARLY_RIGHT: &[Case] = &[
    ("[q8_0]", "[q4_k_n]", "41 bad-value quantize.types[0] q4_k_m"),
    ("      role: from", "      rol: from", "14 unfit-value datasets[0].message_property_mappings.rol role"),
    (
        "      content: value",
        "      contents: value",
        "15 unfit-value datasets[0].message_property_mappings.contents content",
    ),
    ("      assistant: [gpt, model]", "      asistant: [gpt]", "17 unfit-value datasets[0].roles.asistant assistant"),
    (
        "    split: train",
        "    roles_to_train: [assitant]",
        "~20 no-effect datasets[1].roles_to_train chat_template | 20 unfit-value datasets[1].roles_to_train[0] assistant",
    ),
    (
        "lora_target_linear: true",
        "lora_target_module: [q_proj]",
        "8 unknown-key lora_target_module lora_target_modules",
    ),
    ("", "unsloth_rope: 'yes'\n", "42 unsupported-key unsloth_rope liger_rope"),
    ("", "unsloth_rope: 'no'\n", ""),
    ("", "save_safetensors: no\n", "42 unsupported-value save_safetensors true"),
    ("", "peft_init_lora_weights: false\n", "42 unsupported-value peft_init_lora_weights true"),
    ("", "save_strategy: best\n", "42 unsupported-value save_strategy load_best_model_at_end: true"),
    ("", "eval_strategy: best\n", "42 bad-value eval_strategy -"),
];

#[test]
fn keys_that_do_not_go_together() {
    assert_cases(KEYS_THAT_DO_NOT_GO_TOGETHER);
}

const KEYS_THAT_DO_NOT_GO_TOGETHER: &[Case] = &[
    ("", "split: {val: 1.5}\n", "42 out-of-range split.val 0.015"),
    ("val_set_size: 0.1", "split: {val: 2.5, test: 0.1}", "21 out-of-range split.val 0.025"),
    ("", "unfrozen_parameters: [lm_head]\n", "~42 no-effect unfrozen_parameters lora_modules_to_save"),
    ("adapter: qlora", "adapter: lora", ""),
    ("", "warmup_steps: 10\n", "42 conflicting-keys warmup_steps warmup_ratio"),
    ("", "early_stopping_patience: 3\n", ""),
    (
        "val_set_size: 0.1\nsequence_len",
        "early_stopping_patience: 3\nsequence_len",
        "21 no-eval-data early_stopping_patience val_set_size | 36 no-eval-data eval.metrics split.val",
    ),
    ("", "eval_sample_packing: true\n", ""),
    ("", "train: false\n", "42 conflicting-keys train -"),
];
