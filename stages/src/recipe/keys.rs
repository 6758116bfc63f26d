//! The recipe as written: Axolotl's flat keys that have a meaning here, and our sections.
//!
//! Every key is optional, because blank means unset; what is derived from unset keys is in `resolved`. Known keys without
//! a meaning here are in `known`. Doc texts become the schema and the reference, so they say unit and effect.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dataset::Dataset;
use super::sections::{ConvertSection, MergeSection, QuantizeSection, ReportSection, ResourcesSection};
use super::training::{BestMetric, InitLoraWeights, OptimArgs, PeftSection, Resume, SchedulerKwargs};
use super::values::{
    AdapterName, AutoFlag, Checkpointing, ExcessLength, OptimizerName, SchedulerName, SpecialTokensInContent, Strategy,
    Targets, Toggle,
};
use crate::augment::AugmentSection;
use crate::clean::CleanSection;
use crate::eval::section::EvalSection;
use crate::mix::MixSection;
use crate::split::SplitSection;
use crate::track::{ReportTo, WandbMode};

/// A fine-tuning recipe: Axolotl's flat keys, plus a section for each thing Axolotl has no key for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// The model to start from: a Hugging Face folder, a GGUF file, a hub id, or an address (`hf://`, `s3://`, ...).
    #[schemars(extend("examples" = ["mistralai/Mistral-7B-v0.1", "models/SmolLM2-135M-Instruct.gguf"]))]
    #[schemars(regex(pattern = r"\S"))]
    pub base_model: Option<String>,
    /// Folder, file or id whose config is used instead of the base model's.
    #[schemars(regex(pattern = r"\S"))]
    pub base_model_config: Option<String>,
    /// Revision of a hub model: branch, tag or commit.
    pub model_revision: Option<String>,
    /// Class name in transformers; the architecture itself is read from the model's config.
    #[schemars(extend("default" = "AutoModelForCausalLM"))]
    pub model_type: Option<String>,
    /// Class name of the tokenizer in transformers; the tokenizer itself is read from its files.
    #[schemars(extend("default" = "AutoTokenizer"))]
    pub tokenizer_type: Option<String>,
    /// Folder, hub id or address of the tokenizer, when it is not the base model's.
    #[schemars(regex(pattern = r"\S"))]
    pub tokenizer_config: Option<String>,

    /// Rows to train on.
    pub datasets: Option<Vec<Dataset>>,
    /// Rows to test on, instead of a share of `datasets`.
    pub test_datasets: Option<Vec<Dataset>>,
    /// Rows held out for evaluation: a share below 1, or a count; alias of `split.val`.
    #[schemars(range(min = 0), extend("if" = {"exclusiveMinimum": 1}, "then" = {"multipleOf": 1}), extend("default" = 0.0))]
    pub val_set_size: Option<f64>,
    /// Mix the rows of all datasets.
    #[schemars(extend("default" = true))]
    pub shuffle_merged_datasets: Option<bool>,
    /// Mix each dataset before they are put together.
    #[schemars(extend("default" = false))]
    pub shuffle_before_merging_datasets: Option<bool>,
    /// Train rows in the order of the data instead of at random.
    #[schemars(extend("default" = false))]
    pub curriculum_sampling: Option<bool>,
    /// Drop rows that are equal; the same as `clean.dedup: exact`.
    #[schemars(extend("default" = false))]
    pub dataset_exact_deduplication: Option<bool>,

    /// Longest row, in tokens.
    #[schemars(range(min = 1, max = 10_000_000), extend("default" = 512))]
    pub sequence_len: Option<u64>,
    /// Longest row in evaluation, in tokens; as `sequence_len` by default.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub eval_sequence_len: Option<u64>,
    /// What happens to longer rows.
    #[schemars(extend("default" = "drop"))]
    pub excess_length_strategy: Option<ExcessLength>,
    /// Shortest row, in tokens.
    #[schemars(extend("default" = 2))]
    pub min_sample_len: Option<u64>,
    /// Put several rows in one sequence; attention stays within each row.
    #[schemars(extend("default" = false))]
    pub sample_packing: Option<bool>,
    /// The same for evaluation; as `sample_packing` by default.
    pub eval_sample_packing: Option<bool>,
    /// Rows in one pack at most; no limit by default.
    #[schemars(range(min = 1))]
    pub sample_packing_bin_size: Option<u64>,
    /// Rows looked at together when packing; by default as many as fit in a fixed amount of memory.
    #[schemars(range(min = 1))]
    pub sample_packing_group_size: Option<u64>,
    /// Pack rows in their order.
    #[schemars(extend("default" = false))]
    pub sample_packing_sequentially: Option<bool>,
    /// Train the prompts as well as the answers.
    #[schemars(extend("default" = false))]
    pub train_on_inputs: Option<bool>,
    /// Without packing: train rows of similar length in one step, the longest first, as transformers groups them.
    #[schemars(extend("default" = false))]
    pub group_by_length: Option<bool>,

    /// Chat template: a built-in name, `tokenizer_default`, `jinja`, or a file; the tokenizer's own by default.
    #[schemars(extend("examples" = ["chatml", "llama3", "tokenizer_default"]))]
    pub chat_template: Option<String>,
    /// Text or file of the template when `chat_template` is `jinja`.
    pub chat_template_jinja: Option<String>,
    /// Extra variables for the template, such as `enable_thinking`.
    pub chat_template_kwargs: Option<IndexMap<String, Value>>,
    /// System prompt of conversations that have none.
    pub default_system_message: Option<String>,
    /// Tokens that end a turn; the end-of-sequence token by default.
    #[schemars(inner(regex(pattern = r"\S")))]
    pub eot_tokens: Option<Vec<String>>,
    /// Special tokens to set or replace.
    pub special_tokens: Option<SpecialTokens>,
    /// What special-token text inside content means.
    #[schemars(extend("default" = "parse"))]
    pub special_tokens_in_content: Option<SpecialTokensInContent>,

    /// What to train; all weights when blank.
    pub adapter: Option<AdapterName>,
    /// PEFT adapter to go on training: a folder, a hub id or an address.
    #[schemars(regex(pattern = r"\S"))]
    pub lora_model_dir: Option<String>,
    /// Hold the base in 4 bits (NF4); needed by `adapter: qlora`.
    #[schemars(extend("default" = false))]
    pub load_in_4bit: Option<bool>,
    /// Hold the base in 8 bits; only with `adapter: lora`.
    #[schemars(extend("default" = false))]
    pub load_in_8bit: Option<bool>,
    /// Settings of the 4-bit base.
    pub bnb_config_kwargs: Option<BnbConfig>,
    /// Rank of the adapter.
    #[schemars(range(min = 1, max = 65_536))]
    pub lora_r: Option<u64>,
    /// The adapter's scale is this divided by the rank.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lora_alpha: Option<f64>,
    /// Share of the adapter's inputs zeroed in training.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1, "default" = 0.0))]
    pub lora_dropout: Option<f64>,
    /// Adapt every linear module except the output head.
    pub lora_target_linear: Option<bool>,
    /// Modules to adapt: names, or one regular expression.
    #[schemars(extend("examples" = [["q_proj", "v_proj"]]))]
    pub lora_target_modules: Option<Targets>,
    /// Ranks of single modules: a pattern for the end of their names, and the rank. The first that matches counts.
    #[schemars(extend("examples" = [{"layers.0.self_attn.q_proj": 16}]))]
    pub lora_rank_pattern: Option<IndexMap<String, u64>>,
    /// Alphas of single modules, by the same kind of pattern.
    pub lora_alpha_pattern: Option<IndexMap<String, f64>>,
    /// Modules trained whole beside the adapter: `embed_tokens`, `lm_head`.
    #[schemars(extend("examples" = [["embed_tokens", "lm_head"]]))]
    pub lora_modules_to_save: Option<Vec<String>>,
    /// What the adapter holds before the first step: `true` (PEFT's default), `gaussian`, `orthogonal`, `pissa`, `pissa_niter_N` or `loftq`.
    #[schemars(extend("default" = true))]
    pub peft_init_lora_weights: Option<InitLoraWeights>,
    /// Settings of PEFT that have no key of their own.
    pub peft: Option<PeftSection>,
    /// Learning rate of the adapter's B matrices, divided by that of the A matrices (LoRA+).
    #[schemars(extend("exclusiveMinimum" = 0), extend("examples" = [16]))]
    pub loraplus_lr_ratio: Option<f64>,
    /// Learning rate of `embed_tokens` when it is trained with LoRA+; as the A matrices' by default.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub loraplus_lr_embedding: Option<f64>,
    /// Without `adapter`: train only weights whose names match. A dot is a dot; `[a:b]` at the end names rows.
    #[schemars(extend("examples" = [["^lm_head.weight$", "model.layers.2[0-9]+"]]))]
    pub unfrozen_parameters: Option<Vec<String>>,
    /// Without `adapter`: train only the last so many layers (and what `unfrozen_parameters` names).
    #[schemars(range(min = 1))]
    pub unfrozen_layers: Option<u64>,
    /// Scale by the root of the rank (rsLoRA).
    #[schemars(extend("default" = false))]
    pub peft_use_rslora: Option<bool>,
    /// Weight-decomposed adaptation (DoRA).
    #[schemars(extend("default" = false))]
    pub peft_use_dora: Option<bool>,

    /// Rows (packs, when packing) per forward pass.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub micro_batch_size: Option<u64>,
    /// Forward passes per optimizer step.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub gradient_accumulation_steps: Option<u64>,
    /// Rows per optimizer step; instead of `gradient_accumulation_steps`.
    #[schemars(range(min = 1))]
    pub batch_size: Option<u64>,
    /// Rows per forward pass in evaluation; as `micro_batch_size` by default.
    #[schemars(range(min = 1))]
    pub eval_batch_size: Option<u64>,
    /// Passes over the data.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = 1.0))]
    pub num_epochs: Option<f64>,
    /// Optimizer steps at most.
    #[schemars(range(min = 1))]
    pub max_steps: Option<u64>,
    /// The optimizer.
    #[schemars(extend("default" = "adamw_torch_fused"))]
    pub optimizer: Option<OptimizerName>,
    /// Constants of the optimizer that have no key of their own.
    pub optim_args: Option<OptimArgs>,
    /// Peak learning rate.
    #[schemars(range(max = 100), extend("exclusiveMinimum" = 0, "examples" = [0.0002]))]
    pub learning_rate: Option<f64>,
    /// Course of the learning rate.
    #[schemars(extend("default" = "cosine"))]
    pub lr_scheduler: Option<SchedulerName>,
    /// Numbers of the course: cycles, power, final rates.
    pub lr_scheduler_kwargs: Option<SchedulerKwargs>,
    /// Warm up along a parabola; with `lr_scheduler: cosine`.
    #[schemars(extend("default" = false))]
    pub lr_quadratic_warmup: Option<bool>,
    /// Share of all steps after which the cosine course stays on its floor; needs `cosine_min_lr_ratio`.
    #[schemars(range(min = 0, max = 1))]
    pub cosine_constant_lr_ratio: Option<f64>,
    /// Floor of the cosine and rex courses, as a share of the peak.
    #[schemars(range(min = 0, max = 1), extend("default" = 0.0))]
    pub cosine_min_lr_ratio: Option<f64>,
    /// Warm-up as a share of all steps.
    #[schemars(range(min = 0, max = 1))]
    pub warmup_ratio: Option<f64>,
    /// Warm-up in steps; by default 3% of all steps, at most 100.
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay.
    #[schemars(range(min = 0), extend("default" = 0.0))]
    pub weight_decay: Option<f64>,
    /// Adam's decay of the mean.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1, "default" = 0.9))]
    pub adam_beta1: Option<f64>,
    /// Adam's decay of the square.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1, "default" = 0.999))]
    pub adam_beta2: Option<f64>,
    /// Adam's epsilon.
    #[schemars(range(min = 0), extend("default" = 1e-8))]
    pub adam_epsilon: Option<f64>,
    /// Largest gradient norm; 0 for no clipping.
    #[schemars(range(min = 0), extend("default" = 1.0))]
    pub max_grad_norm: Option<f64>,
    /// Noise on the embeddings (NEFTune).
    #[schemars(range(min = 0))]
    pub neftune_noise_alpha: Option<f64>,
    /// Weight of the squared log of the softmax's denominator in the objective, such as 1e-4; 0 for none.
    #[schemars(range(min = 0), extend("default" = 0.0))]
    pub z_loss: Option<f64>,
    /// Seed of everything random.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,

    /// bfloat16 arithmetic; `auto` where the machine has it, and for adapters where AVX2 makes up for it.
    #[schemars(extend("default" = "auto"))]
    pub bf16: Option<AutoFlag>,
    /// float16 arithmetic.
    #[schemars(extend("default" = false))]
    pub fp16: Option<bool>,
    /// Recompute activations in the backward pass to save memory: every layer, or in groups of so many layers.
    #[schemars(extend("default" = false))]
    pub gradient_checkpointing: Option<Checkpointing>,

    /// Evaluate every so many steps, or at this share of all steps when below 1.
    #[schemars(extend("exclusiveMinimum" = 0), extend("if" = {"exclusiveMinimum": 1}, "then" = {"multipleOf": 1}))]
    pub eval_steps: Option<f64>,
    /// Evaluations in each epoch; 0 for none.
    #[serde(deserialize_with = "unless_zero")]
    #[schemars(with = "Option<u64>")]
    pub evals_per_epoch: Option<u64>,
    /// When to evaluate.
    pub eval_strategy: Option<Strategy>,
    /// Save every so many steps, or at this share of all steps when below 1.
    #[schemars(extend("exclusiveMinimum" = 0), extend("if" = {"exclusiveMinimum": 1}, "then" = {"multipleOf": 1}))]
    pub save_steps: Option<f64>,
    /// Checkpoints in each epoch; 0 counts as unset.
    #[serde(deserialize_with = "unless_zero")]
    #[schemars(with = "Option<u64>")]
    pub saves_per_epoch: Option<u64>,
    /// When to save.
    pub save_strategy: Option<Strategy>,
    /// Checkpoints kept.
    #[schemars(range(min = 1), extend("default" = 4))]
    pub save_total_limit: Option<u64>,
    /// A checkpoint folder of this very run to go on from; `true` for the newest, which is taken anyway.
    pub resume_from_checkpoint: Option<Resume>,
    /// Stop after so many evaluations in a row that are no better than the best.
    #[schemars(range(min = 1))]
    pub early_stopping_patience: Option<u64>,
    /// The result is the weights of the best evaluation; on by default with `early_stopping_patience`.
    #[schemars(extend("default" = false))]
    pub load_best_model_at_end: Option<bool>,
    /// What "best" is measured by; lower is better.
    #[schemars(extend("default" = "eval_loss"))]
    pub metric_for_best_model: Option<BestMetric>,
    /// Fail the run when the loss stays above this.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub loss_watchdog_threshold: Option<f64>,
    /// Steps in a row above `loss_watchdog_threshold` that are too many.
    #[schemars(range(min = 1), extend("default" = 3))]
    pub loss_watchdog_patience: Option<u64>,
    /// Optimizer steps between lines on the terminal; every step is recorded.
    #[schemars(range(min = 1))]
    pub logging_steps: Option<u64>,
    /// Who is told what training measures, beside the run's record: one tracker, or a list of them.
    pub report_to: Option<ReportTo>,
    /// The same as `report_to: tensorboard`; `false` leaves it out.
    #[schemars(extend("default" = false))]
    pub use_tensorboard: Option<bool>,
    /// The same as `report_to: mlflow`; `false` leaves it out.
    #[schemars(extend("default" = false))]
    pub use_mlflow: Option<bool>,
    /// MLflow's server over HTTP, or the folder of its file store; by default `.pipe/mlruns`. Credentials come from the environment.
    #[schemars(regex(pattern = r"\S"))]
    pub mlflow_tracking_uri: Option<String>,
    /// Experiment of the run in MLflow; setting it switches MLflow on.
    #[schemars(regex(pattern = r"\S"))]
    pub mlflow_experiment_name: Option<String>,
    /// Name of the run in MLflow; the run's id by default.
    #[schemars(regex(pattern = r"\S"))]
    pub mlflow_run_name: Option<String>,
    /// The same as `report_to: wandb`; `false` leaves it out.
    #[schemars(extend("default" = false))]
    pub use_wandb: Option<bool>,
    /// Whether the run is written for Weights & Biases; nothing is uploaded but by `wandb sync`.
    #[schemars(extend("default" = "offline"))]
    pub wandb_mode: Option<WandbMode>,
    /// Project of the run in Weights & Biases; setting it switches them on.
    #[schemars(regex(pattern = r"\S"))]
    pub wandb_project: Option<String>,
    /// Who owns the project: a user or a team.
    #[schemars(regex(pattern = r"\S"))]
    pub wandb_entity: Option<String>,
    /// Name of the run in Weights & Biases; the run's id by default.
    #[schemars(regex(pattern = r"\S"))]
    pub wandb_name: Option<String>,
    /// Id of the run in Weights & Biases; the run's own by default.
    #[schemars(regex(pattern = "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub wandb_run_id: Option<String>,
    /// Folder for the final artifacts.
    #[schemars(extend("default" = "./model-out"))]
    pub output_dir: Option<String>,

    /// Which rows to drop before anything else.
    pub clean: Option<CleanSection>,
    /// Rows for training, validation and test.
    pub split: Option<SplitSection>,
    /// More training rows from those there are.
    pub augment: Option<AugmentSection>,
    /// How datasets are put together.
    pub mix: Option<MixSection>,
    /// `false` for a recipe that only prepares data or evaluates.
    #[schemars(extend("default" = true))]
    pub train: Option<bool>,
    /// Measure the base and the tuned model.
    pub eval: Option<Toggle<EvalSection>>,
    /// The adapter as a PEFT folder.
    pub convert: Option<Toggle<ConvertSection>>,
    /// Fold the adapter into the base weights.
    pub merge: Option<Toggle<MergeSection>>,
    /// Smaller copies of the merged model.
    pub quantize: Option<Toggle<QuantizeSection>>,
    /// The closing report.
    pub report: Option<Toggle<ReportSection>>,
    /// What a run may use of the machine.
    pub resources: Option<ResourcesSection>,
}

/// Axolotl's recipes write 0 for "never", which is what unset means.
fn unless_zero<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<u64>::deserialize(from)?.filter(|n| *n > 0))
}

/// Special tokens by role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos_token: Option<String>,
    /// End of sequence.
    pub eos_token: Option<String>,
    /// Padding; never trained.
    pub pad_token: Option<String>,
    /// Unknown text.
    pub unk_token: Option<String>,
    /// Others, added where the vocabulary lacks them.
    pub additional_special_tokens: Option<Vec<String>>,
}

/// Settings of a 4-bit base, by bitsandbytes' names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BnbConfig {
    /// Quantise the scales too.
    #[schemars(extend("default" = true))]
    pub bnb_4bit_use_double_quant: Option<bool>,
    /// Number format of the codes.
    #[schemars(extend("default" = "nf4"))]
    pub bnb_4bit_quant_type: Option<FourBit>,
    /// Arithmetic type; follows `bf16` and `fp16`.
    pub bnb_4bit_compute_dtype: Option<String>,
    /// Type in which the packed weights are stored; without effect here.
    pub bnb_4bit_quant_storage: Option<String>,
}

/// Number formats of a 4-bit base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FourBit {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floats.
    Fp4,
}
