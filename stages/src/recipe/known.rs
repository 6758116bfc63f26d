//! Keys that Axolotl's recipes may hold and that have no field here: without effect, not supported, or renamed.
//!
//! One table, read by the schema and by the checks. A key is inert only if no value of it could change what comes out.

/// What becomes of a known key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Any value of this shape is accepted and listed as without effect.
    Inert(Shape),
    /// An error unless blank, false, empty, or one of these; the second text names what to write instead.
    Unsupported { harmless: &'static [&'static str], instead: &'static str },
    /// Means the same as another key, which takes its place with a warning.
    Renamed(&'static str),
}

/// What an inert key takes: as in Axolotl, so that a recipe that is wrong there is not praised here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Any,
    /// A boolean or `auto`.
    Flag,
    Text,
    /// Only on.
    On,
    Whole,
    Number,
    List,
    Map,
    /// One of these, separated by spaces.
    Words(&'static str),
    /// One of these, or a path.
    WordsOrPath(&'static str),
}

/// A known key: its fate, and why.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub key: &'static str,
    pub fate: Fate,
    pub why: &'static str,
}

/// A value that Axolotl takes for a key and that is not supported here.
pub struct KnownValues {
    /// Last part of the key's path.
    pub key: &'static str,
    /// Separated by spaces; one that ends with `*` covers every value that begins so.
    pub values: &'static str,
    pub why: &'static str,
    pub instead: &'static str,
}

/// Known keys of the recipe's top level.
pub fn top_level() -> impl Iterator<Item = Known> {
    expand(INERT_FLAGS, Fate::Inert(Shape::Flag))
        .chain(expand(INERT, Fate::Inert(Shape::Any)).map(shaped))
        .chain(unsupported(UNSUPPORTED))
        .chain(renamed(RENAMED))
}

/// Known keys of `datasets[]` and `test_datasets[]`.
pub fn dataset_level() -> impl Iterator<Item = Known> {
    expand(DATASET_INERT, Fate::Inert(Shape::Any))
        .chain(unsupported(DATASET_UNSUPPORTED))
        .chain(renamed(DATASET_RENAMED))
}

/// Our name of a key that other tools, or haste, call otherwise.
pub fn synonym(key: &str) -> Option<&'static str> {
    SYNONYMS.iter().find(|(names, _)| names.split(' ').any(|name| name == key)).map(|(_, ours)| *ours)
}

/// What is known of `value` under a key whose last part is `key`.
pub fn value(key: &str, value: &str) -> Option<&'static KnownValues> {
    KNOWN_VALUES.iter().find(|known| {
        known.key == key
            && known.values.split(' ').any(|name| match name.strip_suffix('*') {
                Some(start) => value.starts_with(start),
                None => name == value,
            })
    })
}

/// The key with the shape that [`SHAPES`] gives it.
fn shaped(known: Known) -> Known {
    let shape = SHAPES.iter().find(|(keys, _)| keys.split_whitespace().any(|key| key == known.key));
    Known { fate: shape.map_or(known.fate, |(_, shape)| Fate::Inert(*shape)), ..known }
}

type Grouped = &'static [(&'static str, &'static str)];
type Refused = &'static [(&'static str, &'static str, &'static str, &'static [&'static str])];

fn expand(groups: Grouped, fate: Fate) -> impl Iterator<Item = Known> {
    groups.iter().flat_map(move |(keys, why)| keys.split_whitespace().map(move |key| Known { key, fate, why }))
}

fn unsupported(groups: Refused) -> impl Iterator<Item = Known> {
    groups.iter().flat_map(|&(keys, why, instead, harmless)| {
        keys.split_whitespace().map(move |key| Known { key, fate: Fate::Unsupported { harmless, instead }, why })
    })
}

fn renamed(pairs: Grouped) -> impl Iterator<Item = Known> {
    pairs.iter().map(|&(key, to)| Known { key, fate: Fate::Renamed(to), why: "an older spelling" })
}

const INERT_FLAGS: Grouped = &[
    ("tf32", "matrix products run in the type that bf16 and fp16 choose"),
    (
        "flash_attention xformers_attention sdp_attention flex_attention sage_attention eager_attention \
         flash_attn_cross_entropy flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum \
         gemma4_hybrid_attn_impl flash_attn_d512 sdpa_varlen fused_attn_kernel multipack_real_batches batch_flattening",
        "there is one attention here: exact, and within each packed row",
    ),
    (
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy cut_cross_entropy \
         liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation \
         liger_cross_entropy liger_fused_linear_cross_entropy use_kernels use_scattermoe use_sonicmoe \
         use_dsv4_kernels use_glm_dsa_kernels moe_bnb_fast tiled_mlp tiled_mlp_use_original_mlp torch_compile",
        "the kernels are built in",
    ),
    (
        "hf_mlflow_log_artifacts use_comet comet_online use_swanlab swanlab_log_model \
         swanlab_log_completions use_trackio use_otel_metrics include_tokens_per_second include_tkps",
        "runs are recorded under .pipe/runs; trackers that are written to are named in `report_to`",
    ),
    ("hf_use_auth_token", "nothing is uploaded"),
    (
        "dataset_keep_in_memory dataloader_pin_memory dataloader_drop_last remove_unused_columns skip_prepare_dataset \
         low_cpu_mem_usage lora_on_cpu qlora_sharded_model_loading experimental_skip_move_to_device ddp \
         ddp_broadcast_buffers ddp_find_unused_parameters pad_to_sequence_len auto_find_batch_size \
         preprocess_iterable is_preprocess pretrain_multipack_attn deepcompile use_ray fsdp_use_orig_params",
        "data and weights are read as needed, and nothing is padded",
    ),
    (
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model \
         lora_fan_in_fan_out trust_remote_code",
        "the architecture is read from the model's config, and no code of a model is run",
    ),
    ("tokenizer_use_fast tokenizer_legacy tokenizer_save_jinja_files", "the tokenizer's files say how it works"),
    (
        "strict debug save_only_model save_first_step auto_resume_from_checkpoints greater_is_better \
         resize_token_embeddings_to_32x mean_resizing_embeddings embeddings_skip_upcast lora_autocast_adapter_dtype \
         peft_autocast_adapter_dtype generate_samples generation_do_sample relora_cpu_offload",
        "nothing that comes out depends on it here",
    ),
];

const INERT: Grouped = &[
    (
        "attn_implementation flex_attn_compile_kwargs large_head_attention experts_implementation",
        "there is one attention here: exact, and within each packed row",
    ),
    (
        "chunked_cross_entropy_num_chunks tiled_mlp_num_shards torch_compile_backend torch_compile_mode \
         torch_compile_options expert_backend moe_grouped_backend moe_dequant_chunk_size",
        "the kernels are built in",
    ),
    (
        "wandb_watch wandb_log_model comet_api_key comet_workspace comet_project_name \
         comet_experiment_key comet_mode comet_experiment_config swanlab_project swanlab_experiment_name \
         swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_web_host swanlab_api_host \
         swanlab_lark_webhook_url swanlab_lark_secret swanlab_completion_log_interval \
         swanlab_completion_max_buffer trackio_project_name trackio_run_name trackio_space_id otel_metrics_host \
         otel_metrics_port profiler_steps profiler_steps_start eval_table_size gradio_title gradio_share \
         gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature",
        "runs are recorded under .pipe/runs; trackers that are written to are named in `report_to`",
    ),
    ("hub_model_id hub_strategy hub_revision push_dataset_to_hub push_to_hub_model_id", "nothing is uploaded"),
    (
        "dataset_prepared_path dataset_processes dataset_num_proc num_dataset_shards_to_save",
        "what was prepared is kept in the store and found again by its content",
    ),
    (
        "dataloader_num_workers dataloader_prefetch_factor accelerator_config gc_steps torch_empty_cache_steps \
         gc_collect_steps max_memory gpu_memory_limit device device_map pad_to_multiple_of sample_packing_eff_est \
         sample_packing_mp_start_method pretrain_multipack_buffer_size streaming_multipack_buffer_size \
         total_num_tokens total_supervised_tokens axolotl_config_path dynamic_checkpoint",
        "data and weights are read as needed, and nothing is padded",
    ),
    (
        "gradient_checkpointing_kwargs activation_offloading layer_offloading selective_checkpointing",
        "it moves memory about, and the gradients are the same",
    ),
    (
        "fsdp fsdp_config fsdp_version fsdp_final_state_dict_type deepspeed world_size local_rank ddp_timeout \
         ddp_bucket_cap_mb dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size \
         sequence_parallel_degree heads_k_stride ring_attn_func ray_run_name ray_num_workers resources_per_worker \
         expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes \
         expert_parallel_token_capacity expert_parallel_fallback_on_unsupported",
        "one process trains here; splitting the work changes memory and time, not results",
    ),
    (
        "eval_max_new_tokens num_generation_samples generation_max_new_tokens generation_temperature \
         generation_top_p generation_top_k generation_prompt_ratio bench_dataset bench_split lm_eval_batch_size \
         lm_eval_model",
        "evaluation is said in the `eval` section",
    ),
    (
        "merge_method merge_lora save_safetensors \
         base_model_ignore_patterns cls_model_config max_prompt_len spectrum_model_name save_compressed",
        "nothing that comes out depends on it here",
    ),
    (
        "trl vllm ebft rl_beta dpo_beta dpo_use_weighting dpo_label_smoothing precompute_ref_log_probs \
         dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights dpo_use_logits_to_keep \
         dpo_generate_during_eval dpo_norm_loss rpo_alpha orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight \
         kto_undesirable_weight center_rewards_coefficient",
        "it belongs to preference training",
    ),
    (
        "relora_prune_ratio relora_prune_method jagged_restart_warmup_steps jagged_restart_anneal_steps \
         qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits \
         qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size dion_momentum \
         dion_rank_fraction dion_rank_multiple_of lisa_step_interval lisa_layers_attribute eaft_alpha eaft_k \
         pose_split_on_token_ids pose_max_context_len pose_num_chunks kd_ce_alpha kd_alpha kd_temperature kd_beta \
         kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout \
         kd_temperature_min grokfast_lamb scaling_softmax_factor scaling_softmax_bias fp32_norm_classes \
         nvfp4_merge_aware_start_step model_quantization_config_kwargs gptq_groupsize gptq_model_v1 gptq_disable_exllama image_resize_algorithm \
         fp8_enable_fsdp_float8_all_gather lr_div_factor swap_embedding",
        "it tunes a method that is not switched on",
    ),
];

const SHAPES: &[(&str, Shape)] = &[
    ("save_safetensors", Shape::On),
    (
        "attn_implementation",
        Shape::WordsOrPath("flash_attention_2 flash_attention_3 flex_attention sdpa eager xformers sage fp8"),
    ),
    ("large_head_attention", Shape::Words("auto sdpa triton_flash")),
    ("torch_compile_mode", Shape::Words("default reduce-overhead max-autotune")),
    ("fsdp_final_state_dict_type", Shape::Words("FULL_STATE_DICT LOCAL_STATE_DICT SHARDED_STATE_DICT")),
    ("ring_attn_func", Shape::Words("varlen_llama3 batch_ring")),
    ("merge_method", Shape::Words("legacy memory_efficient")),
    ("relora_prune_method", Shape::Words("magnitude random reset")),
    (
        "torch_compile_backend expert_backend moe_grouped_backend wandb_watch wandb_log_model \
         comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode swanlab_project \
         swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_web_host \
         swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret trackio_project_name trackio_run_name \
         trackio_space_id otel_metrics_host gradio_title gradio_server_name hub_model_id hub_strategy hub_revision \
         push_dataset_to_hub dataset_prepared_path sample_packing_mp_start_method ray_run_name bench_dataset \
         bench_split metric_for_best_model cls_model_config qgalore_proj_type lisa_layers_attribute \
         kd_online_server_base_url lm_eval_model spectrum_model_name",
        Shape::Text,
    ),
    (
        "chunked_cross_entropy_num_chunks tiled_mlp_num_shards moe_dequant_chunk_size swanlab_completion_log_interval \
         swanlab_completion_max_buffer otel_metrics_port profiler_steps profiler_steps_start eval_table_size \
         gradio_server_port gradio_max_new_tokens dataset_processes dataset_num_proc num_dataset_shards_to_save \
         dataloader_num_workers dataloader_prefetch_factor gc_steps torch_empty_cache_steps gc_collect_steps \
         pad_to_multiple_of pretrain_multipack_buffer_size streaming_multipack_buffer_size fsdp_version world_size \
         local_rank ddp_timeout ddp_bucket_cap_mb dp_shard_size dp_replicate_size tensor_parallel_size \
         context_parallel_size sequence_parallel_degree heads_k_stride ray_num_workers expert_parallel_size \
         eval_max_new_tokens num_generation_samples generation_max_new_tokens generation_top_k \
         max_prompt_len jagged_restart_warmup_steps jagged_restart_anneal_steps qgalore_rank \
         qgalore_update_proj_gap qgalore_proj_bits qgalore_proj_group_size qgalore_gamma_proj qgalore_queue_size \
         dion_rank_multiple_of lisa_step_interval eaft_k pose_max_context_len pose_num_chunks kd_online_topk \
         kd_online_timeout",
        Shape::Whole,
    ),
    (
        "gradio_temperature sample_packing_eff_est generation_temperature generation_top_p generation_prompt_ratio \
         rl_beta dpo_beta dpo_label_smoothing rpo_alpha orpo_alpha simpo_gamma cpo_alpha \
         kto_desirable_weight kto_undesirable_weight center_rewards_coefficient relora_prune_ratio qgalore_scale \
         qgalore_cos_threshold dion_momentum dion_rank_fraction eaft_alpha kd_ce_alpha kd_alpha kd_temperature kd_beta \
         kd_temperature_min scaling_softmax_factor scaling_softmax_bias lr_div_factor loraplus_lr_embedding \
         grokfast_lamb",
        Shape::Number,
    ),
    ("fsdp_config accelerator_config gradient_checkpointing_kwargs torch_compile_options", Shape::Map),
    ("pose_split_on_token_ids fp32_norm_classes", Shape::List),
];

const REMOVED: &str = "it was removed from Axolotl, which stops at it, and nothing takes its place here";

const UNSUPPORTED: Refused = &[
    (
        "rl reward_model process_reward_model num_labels",
        "preference and reward training are not supported",
        "supervised datasets under `datasets`, without `rl`",
        &[],
    ),
    (
        "pretraining_dataset streaming pretraining_sample_concatenation",
        "streamed pretraining is not supported",
        "`datasets` with `type: completion`",
        &[],
    ),
    (
        "processor_type processor_kwargs image_size role_boundaries freeze_mm_modules is_multimodal",
        "images and sound are not supported",
        "a text model without `processor_type`",
        &[],
    ),
    (
        "lora_target_parameters peft_layers_to_transform peft_layers_pattern \
         peft_layer_replication peft_trainable_token_indices peft_ensure_weight_tying lora_exclude_modules",
        "adapters are chosen by module here",
        "`lora_target_modules`, as names or one regular expression",
        &[],
    ),
    ("mora", "this kind of adapter initialisation is not supported", "`peft_use_dora` or `peft_use_rslora`", &[]),
    (
        "relora lisa_n_layers jagged_restart_steps",
        "restarted and layer-wise schedules are not supported",
        "`lr_scheduler: cosine`",
        &[],
    ),
    (
        "embedding_lr embedding_lr_scale lr_groups optim_target_modules torchdistx_path adam_beta3 adam_epsilon2 dion_lr \
         grokfast_alpha",
        "one learning rate holds for all trained weights",
        "`learning_rate` and `lr_scheduler`",
        &[],
    ),
    (
        "tokens added_tokens_overrides",
        "adding tokens to the vocabulary is not supported",
        "`special_tokens` with tokens that the vocabulary has",
        &[],
    ),
    (
        "fix_untrained_tokens shrink_embeddings reinit_weights",
        "the base's embeddings stay as they are",
        "no such key",
        &[],
    ),
    (
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval lm_eval_tasks lm_eval_post_train",
        "these measures are not supported",
        "`eval: {metrics: [perplexity, exact_match]}`",
        &[],
    ),
    ("unsloth_cross_entropy_loss", REMOVED, "`cut_cross_entropy`", &[]),
    ("unsloth_lora_mlp", REMOVED, "`lora_mlp_kernel`", &[]),
    ("unsloth_lora_qkv", REMOVED, "`lora_qkv_kernel`", &[]),
    ("unsloth_lora_o", REMOVED, "`lora_o_kernel`", &[]),
    ("unsloth_rms_norm flash_attn_rms_norm", REMOVED, "`liger_rms_norm`", &[]),
    ("unsloth_rope", REMOVED, "`liger_rope`", &[]),
    ("gptq", "a GPTQ base is not supported", "`load_in_4bit: true`", &[]),
    (
        "quantize_moe_experts expert_quantization nonexpert_quantization nvfp4_merge_aware dsv4_fp8_nonexpert_mode \
         dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all dsv4_fp4_grouped_mode gemma4_fp8_nonexpert \
         gemma4_nf4_nonexpert model_quantization_config qat quantization use_onebitllms llmcompressor fp8 mxfp4",
        "this number format is not supported",
        "`load_in_4bit: true`, and `quantize` for the result",
        &[],
    ),
    (
        "bfloat16 float16",
        "weights in half precision without a mixed-precision scheme are not supported",
        "`bf16: true`",
        &[],
    ),
    ("float32", "it is said by the other two", "`bf16: false` and `fp16: false`", &[]),
    ("fp32_norms", "norms compute as transformers' do", "no such key", &[]),
    (
        "spectrum_top_fraction",
        "choosing weights by their spectrum is not supported",
        "`unfrozen_parameters` with the weights' names",
        &[],
    ),
    (
        "model_config model_kwargs rope_scaling llama4_linearized_experts",
        "overriding the model's config is not supported",
        "a model folder with the config you want, under `base_model`",
        &[],
    ),
    (
        "tokenizer_use_mistral_common",
        "mistral-common's tokenisation is not supported",
        "`chat_template: tokenizer_default`",
        &[],
    ),
    (
        "max_packed_sequence_len",
        "it was removed from Axolotl as well",
        "`sample_packing: true` and `sequence_len`",
        &[],
    ),
    (
        "s2_attention use_pose scaling_softmax",
        "this way to stretch the context is not supported",
        "`sequence_len`",
        &[],
    ),
    (
        "dataset_shard_num dataset_shard_idx",
        "sharding is said for each dataset",
        "`datasets[0].shards` and `datasets[0].shards_idx`",
        &[],
    ),
    (
        "trainer_cls diffusion hatchery kd_trainer use_eaft dense_mixer liger_use_token_scaling nemo_gym_enabled \
         swap_layers mup",
        "this training method is not supported",
        "supervised fine-tuning without it",
        &[],
    ),
    (
        "nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port nemo_gym_server_timeout \
         nemo_gym_verify_timeout nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name \
         nemo_gym_multi_turn nemo_gym_max_turns",
        "this training method is not supported",
        "supervised fine-tuning without it",
        &[],
    ),
];

const RENAMED: Grouped = &[
    ("noisy_embedding_alpha", "neftune_noise_alpha"),
    ("evaluation_strategy", "eval_strategy"),
    ("revision_of_model", "model_revision"),
    ("type_of_model", "model_type"),
    ("overrides_of_model_config", "model_config"),
    ("overrides_of_model_kwargs", "model_kwargs"),
];

const DATASET_INERT: Grouped = &[
    ("trust_remote_code preprocess_shards", "no code of a dataset is run"),
    (
        "step_separator max_completion_length train_on_last_step_only field_chosen field_rejected",
        "it belongs to preference training",
    ),
];

const DATASET_UNSUPPORTED: Refused = &[
    ("conversation", "it went with the sharegpt format", "`chat_template`", &[]),
    (
        "input_transform input_format logprobs_field temperature",
        "Python transforms and distillation columns are not supported",
        "`message_property_mappings` or a `type` map",
        &[],
    ),
    ("skip", "skipping rows is not supported", "`split: train[100:]`", &["0"]),
    ("length sequence_length min_input_id max_input_id", "made-up datasets are not supported", "a `path` to rows", &[]),
];

const DATASET_RENAMED: Grouped = &[("text_column", "field")];

const SYNONYMS: Grouped = &[
    ("lr", "learning_rate"),
    ("model model_name model_name_or_path base pretrained_model", "base_model"),
    ("dataset data train_data train_datasets data_path", "datasets"),
    ("eval_datasets val_datasets test_data eval_dataset", "test_datasets"),
    ("epochs num_train_epochs max_epochs n_epochs epoch", "num_epochs"),
    ("per_device_train_batch_size train_batch_size micro_batch", "micro_batch_size"),
    ("per_device_eval_batch_size", "eval_batch_size"),
    ("grad_accum gradient_accumulation grad_accumulation_steps accumulation_steps", "gradient_accumulation_steps"),
    ("max_seq_length max_seq_len max_length cutoff_len seq_len model_max_length context_length", "sequence_len"),
    ("lora_rank rank r", "lora_r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("lora_target target_modules lora_targets lora_modules", "lora_target_modules"),
    ("additional_target modules_to_save", "lora_modules_to_save"),
    ("lr_scheduler_type scheduler lr_schedule", "lr_scheduler"),
    ("optim", "optimizer"),
    ("adam_eps", "adam_epsilon"),
    ("eta_min min_lr_ratio", "cosine_min_lr_ratio"),
    ("sample_packing_seq_len_multiplier", "micro_batch_size"),
    ("clip_grad gradient_clipping grad_clip clip_grad_norm", "max_grad_norm"),
    ("template", "chat_template"),
    ("packing pack", "sample_packing"),
    ("torch_dtype dtype precision", "bf16"),
    ("output output_path out_dir", "output_dir"),
    ("val_size test_size validation_split eval_split", "val_set_size"),
    ("warmup", "warmup_steps"),
    ("finetuning_type peft_type full_finetune full_finetuning use_lora use_qlora", "adapter"),
    ("use_rslora", "peft_use_rslora"),
    ("use_dora lora_use_dora", "peft_use_dora"),
    ("random_seed", "seed"),
    ("gradient_checkpoint activation_checkpointing", "gradient_checkpointing"),
    ("file file_name dataset_path", "path"),
    ("format", "type"),
    ("dedupe deduplicate deduplication", "dedup"),
];

const KNOWN_VALUES: &[KnownValues] = &[
    KnownValues {
        key: "chat_template",
        values: "mistral_v2v3 mistral_v3_tekken cohere llama3_2_vision llama4 deepseek_v3 jamba qwen_25 qwen3 qwen3_5 \
                 exaone4 gemma4 gemma4_unified command_a command_a_tool_use command_a_rag aya",
        why: "this template is not built in",
        instead: "tokenizer_default",
    },
    KnownValues {
        key: "optimizer",
        values: "adagrad lomo adalomo rmsprop* galore* ademamix* apollo* grokadamw schedule_free* \
                 optimi_adamw ao_adamw_fp8 adopt_adamw came_pytorch dion sinkgd flash_* q_galore* paged_ademamix* \
                 adamw_anyprecision adamw_apex_fused adamw_torch_xla adamw_torch_npu_fused stable_adamw \
                 nadam radam",
        why: "this optimizer is not supported",
        instead: "adamw_torch_fused",
    },
    KnownValues {
        key: "lr_scheduler",
        values: "cosine_warmup_with_min_lr reduce_lr_on_plateau warmup_stable_decay greedy",
        why: "this schedule is not supported",
        instead: "cosine",
    },
    KnownValues {
        key: "report_to",
        values: "all comet comet_ml swanlab trackio neptune clearml dagshub dvclive flyte codecarbon azure_ml",
        why: "this tracker is not written to yet",
        instead: "tensorboard",
    },
    KnownValues {
        key: "wandb_mode",
        values: "online run shared",
        why: "nothing is uploaded; an offline run is sent by `wandb sync`",
        instead: "offline",
    },
    KnownValues { key: "adapter", values: "llama-adapter mora", why: "this adapter is not supported", instead: "lora" },
    KnownValues {
        key: "type",
        values: "sharegpt*",
        why: "Axolotl removed it too; conversations are read as chat_template, with the columns named by field_messages and message_property_mappings",
        instead: "chat_template",
    },
    KnownValues {
        key: "type",
        values: "chat_template.* chatml.* llama3.* zephyr.* bradley_terry* user_defined.* passthrough* dpo* kto* orpo* \
                 stepwise_supervised ebft_* grpo*",
        why: "preference and reward formats are not supported",
        instead: "chat_template",
    },
    KnownValues {
        key: "type",
        values: "pretrain",
        why: "streamed pretraining is not supported",
        instead: "completion",
    },
    KnownValues {
        key: "type",
        values: "creative_acr* _synthetic user_defined",
        why: "this format is not supported",
        instead: "alpaca, chat_template or a `type` map of columns",
    },
    KnownValues {
        key: "gradient_checkpointing",
        values: "disk full selective",
        why: "recomputing is by whole layers here",
        instead: "true, or a number of layers",
    },
    KnownValues {
        key: "save_strategy",
        values: "best",
        why: "checkpoints are for going on after an interruption, and the best weights are kept by another key",
        instead: "load_best_model_at_end: true",
    },
    KnownValues {
        key: "save_safetensors",
        values: "false False FALSE no No NO off Off OFF",
        why: "it asks for pickled weights, and none are written",
        instead: "true",
    },
    KnownValues {
        key: "peft_init_lora_weights",
        values: "false False FALSE no No NO off Off OFF",
        why: "an adapter of noise breaks the model before the first step",
        instead: "true",
    },
];
