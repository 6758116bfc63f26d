//! One example for every key whose values are not all listed by its type: for editors, the reference and suggestions.

use serde_json::Value;

/// Puts the examples into the schema, where a key has none of its own.
pub(super) fn insert(schema: &mut Value) {
    for (definition, examples) in EXAMPLES {
        let place = match *definition {
            "" => Some(&mut *schema),
            name => schema.pointer_mut(&format!("/$defs/{name}")),
        };
        let Some(properties) = place.and_then(|place| place.get_mut("properties")?.as_object_mut()) else { continue };
        for (key, example) in examples.iter() {
            if let Some(Value::Object(property)) = properties.get_mut(*key)
                && !property.contains_key("examples")
                && let Ok(example) = serde_json::from_str::<Value>(example)
            {
                property.insert("examples".to_string(), Value::Array(vec![example]));
            }
        }
    }
}

type Examples = &'static [(&'static str, &'static str)];

/// By definition in the schema (the recipe itself has no name); values are JSON.
const EXAMPLES: &[(&str, Examples)] = &[
    ("", RECIPE),
    ("Dataset", DATASET),
    ("UserDefined", USER_DEFINED),
    ("SpecialTokens", SPECIAL_TOKENS),
    ("BnbConfig", BNB_CONFIG),
    ("CleanSection", CLEAN),
    ("SplitSection", SPLIT),
    ("AugmentSection", AUGMENT),
    ("MixSection", &[("max_rows", "10000")]),
    ("EvalSection", EVAL),
    ("Check", CHECK),
    ("ChoiceSection", CHOICES),
    (
        "MergeSection",
        &[("max_shard_size", "\"5GB\""), ("adapters", "[{\"path\": \"out/other/adapter\", \"weight\": 0.3}]")],
    ),
    ("MergeAdapter", &[("path", "\"out/other/adapter\""), ("weight", "0.3")]),
    ("QuantizeSection", &[("types", "[\"q8_0\", \"q4_k_m\"]"), ("importance", "true")]),
    ("ImportanceSection", &[("rows", "128"), ("file", "\"imatrix.gguf\"")]),
    ("ReportSection", &[("title", "\"Mistral on alpaca\""), ("samples", "3")]),
    ("ResourcesSection", &[("cores", "4"), ("memory", "\"8GB\""), ("gpus", "1")]),
];

const RECIPE: Examples = &[
    ("base_model_config", "\"mistralai/Mistral-7B-v0.1\""),
    ("model_revision", "\"main\""),
    ("model_type", "\"MistralForCausalLM\""),
    ("tokenizer_type", "\"LlamaTokenizer\""),
    ("tokenizer_config", "\"mistralai/Mistral-7B-v0.1\""),
    ("datasets", "[{\"path\": \"data.jsonl\", \"type\": \"alpaca\"}]"),
    ("test_datasets", "[{\"path\": \"test.jsonl\", \"type\": \"alpaca\"}]"),
    ("val_set_size", "0.05"),
    ("sequence_len", "2048"),
    ("eval_sequence_len", "2048"),
    ("min_sample_len", "2"),
    ("sample_packing_bin_size", "200"),
    ("sample_packing_group_size", "100000"),
    ("chat_template_jinja", "\"templates/mine.jinja\""),
    ("chat_template_kwargs", "{\"enable_thinking\": false}"),
    ("default_system_message", "\"You are a helpful assistant.\""),
    ("eot_tokens", "[\"<|im_end|>\"]"),
    ("special_tokens", "{\"pad_token\": \"<pad>\"}"),
    ("lora_model_dir", "\"out/adapter\""),
    ("bnb_config_kwargs", "{\"bnb_4bit_use_double_quant\": true}"),
    ("lora_r", "16"),
    ("lora_alpha", "32"),
    ("lora_dropout", "0.05"),
    ("lora_modules_to_save", "[\"embed_tokens\", \"lm_head\"]"),
    ("loraplus_lr_ratio", "16"),
    ("loraplus_lr_embedding", "1e-6"),
    ("unfrozen_parameters", "[\"^lm_head.weight$\", \"model.layers.2[0-9]+.*\"]"),
    ("micro_batch_size", "2"),
    ("gradient_accumulation_steps", "4"),
    ("batch_size", "8"),
    ("eval_batch_size", "2"),
    ("num_epochs", "3"),
    ("max_steps", "1000"),
    ("cosine_min_lr_ratio", "0.1"),
    ("cosine_constant_lr_ratio", "0.8"),
    ("warmup_ratio", "0.03"),
    ("warmup_steps", "10"),
    ("weight_decay", "0.01"),
    ("adam_beta1", "0.9"),
    ("adam_beta2", "0.999"),
    ("adam_beta3", "0.9999"),
    ("adam_epsilon", "1e-8"),
    ("adam_epsilon2", "1e-16"),
    ("max_grad_norm", "1.0"),
    ("neftune_noise_alpha", "5"),
    ("seed", "42"),
    ("eval_steps", "50"),
    ("evals_per_epoch", "4"),
    ("save_steps", "100"),
    ("saves_per_epoch", "1"),
    ("save_total_limit", "4"),
    ("early_stopping_patience", "3"),
    ("logging_steps", "1"),
    ("report_to", "\"tensorboard\""),
    ("mlflow_tracking_uri", "\"http://localhost:5000\""),
    ("mlflow_experiment_name", "\"docker-commands\""),
    ("mlflow_run_name", "\"first-try\""),
    ("wandb_project", "\"docker-commands\""),
    ("wandb_entity", "\"my-team\""),
    ("wandb_name", "\"first-try\""),
    ("wandb_run_id", "\"k3x9q2ab\""),
    ("output_dir", "\"./outputs/mistral\""),
    ("clean", "{\"dedup\": \"exact\"}"),
    ("split", "{\"val\": 0.05, \"test\": 0.05}"),
    ("augment", "{\"repeat\": 2}"),
    ("mix", "{\"strategy\": \"interleave\"}"),
    ("eval", "{\"metrics\": [\"perplexity\"]}"),
    ("convert", "{\"dtype\": \"bfloat16\"}"),
    ("merge", "{\"dtype\": \"bfloat16\"}"),
    ("quantize", "{\"types\": [\"q4_k_m\"]}"),
    ("report", "{\"title\": \"Mistral on alpaca\"}"),
    ("resources", "{\"cores\": 4, \"memory\": \"8GB\"}"),
    ("extends", "\"base.yml\""),
    ("vars", "{\"size\": 8}"),
];

const DATASET: Examples = &[
    ("path", "\"mhenrichsen/alpaca_2k_test\""),
    ("label", "\"alpaca\""),
    ("name", "\"default\""),
    ("split", "\"train[:10%]\""),
    ("data_files", "[\"part-0.jsonl\", \"part-1.jsonl\"]"),
    ("revision", "\"main\""),
    ("field", "\"text\""),
    ("field_human", "\"question\""),
    ("field_model", "\"answer\""),
    ("field_messages", "\"conversations\""),
    ("field_tools", "\"tools\""),
    ("field_system", "\"system\""),
    ("field_thinking", "\"reasoning_content\""),
    ("template_thinking_key", "\"reasoning_content\""),
    ("message_field_role", "\"from\""),
    ("message_field_content", "\"value\""),
    ("message_property_mappings", "{\"role\": \"from\", \"content\": \"value\"}"),
    ("message_field_training", "\"train\""),
    ("message_field_training_detail", "\"train_detail\""),
    ("roles", "{\"assistant\": [\"gpt\", \"model\"]}"),
    ("roles_to_train", "[\"assistant\"]"),
    ("chat_template", "\"chatml\""),
    ("chat_template_jinja", "\"templates/mine.jinja\""),
    ("chat_template_kwargs", "{\"enable_thinking\": false}"),
    ("shards", "10"),
    ("shards_idx", "0"),
    ("weight", "0.5"),
    ("max_rows", "1000"),
];

const USER_DEFINED: Examples = &[
    ("system_prompt", "\"Answer briefly.\""),
    ("system_format", "\"{system}\\n\""),
    ("field_system", "\"system\""),
    ("field_instruction", "\"question\""),
    ("field_input", "\"context\""),
    ("field_output", "\"answer\""),
    ("format", "\"{instruction}\\n{input}\\n\""),
    ("no_input_format", "\"{instruction}\\n\""),
];

const SPECIAL_TOKENS: Examples = &[
    ("bos_token", "\"<s>\""),
    ("eos_token", "\"</s>\""),
    ("pad_token", "\"<pad>\""),
    ("unk_token", "\"<unk>\""),
    ("additional_special_tokens", "[\"<|im_start|>\", \"<|im_end|>\"]"),
];

const BNB_CONFIG: Examples = &[("bnb_4bit_compute_dtype", "\"bfloat16\""), ("bnb_4bit_quant_storage", "\"bfloat16\"")];

const CLEAN: Examples = &[("min_chars", "10"), ("max_chars", "20000"), ("near_threshold", "0.8")];

const SPLIT: Examples = &[
    ("val", "0.05"),
    ("test", "200"),
    ("seed", "42"),
    ("stratify_by", "\"category\""),
    ("group_by", "\"conversation_id\""),
];

const AUGMENT: Examples = &[("repeat", "2"), ("copies", "1"), ("seed", "42")];

const EVAL: Examples = &[
    ("metrics", "[\"perplexity\", \"exact_match\"]"),
    ("splits", "[\"val\"]"),
    ("samples", "[\"Who are you?\"]"),
    ("sample_every", "50"),
    ("max_new_tokens", "128"),
    ("max_rows", "100"),
    ("batch_size", "16"),
    ("temperature", "0.7"),
    ("stop", "[\"\\n\\n\"]"),
    ("resamples", "1000"),
    ("checks", "[{\"name\": \"is_docker\", \"regex\": \"^docker \"}]"),
    ("choices", "[{\"path\": \"questions.jsonl\"}]"),
    ("general", "\"wiki.txt\""),
    ("few_shot", "4"),
    ("export", "\"lm_eval\""),
];

const CHECK: Examples =
    &[("name", "\"is_docker\""), ("regex", "\"^docker \""), ("template", "\"{{ answer | length < 80 }}\"")];

const CHOICES: Examples = &[
    ("path", "\"questions.jsonl\""),
    ("name", "\"arc\""),
    ("prompt", "\"Question: {{ question }}\\nAnswer:\""),
    ("choices", "\"choices\""),
    ("answer", "\"answer\""),
    ("delimiter", "\" \""),
];
