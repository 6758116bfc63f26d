//! Recipe keys to the resolved configurations of train, eval, convert, merge and quantize.
//!
//! Every default and derived value of these stages is decided here, as transformers, PEFT and Axolotl decide them.

use pipe_job::{
    Adapter, BaseWeights, Batching, Compute, EvalPoints, Lora, MergeBase, Optimizer, OptimizerKind, SavePoints,
    Schedule, ScheduleKind, Targets, Warmup, WeightType,
};

use super::Machine;
use crate::convert::Convert;
use crate::eval::Eval;
use crate::merge::Merge;
use crate::model::BaseModel;
use crate::quantize::Quantize;
use crate::recipe::{
    AdapterName, AutoFlag, BnbConfig, Checkpointing, EvalSection, MergeOnto, MergeSection, Metric, OptimizerName,
    QuantType, QuantizeSection, Recipe, SchedulerName, SplitName, Strategy, Targets as Named, parse_size,
};
use crate::train::Train;

/// Length of answers in evaluation when nothing is said.
const MAX_NEW_TOKENS: u64 = 128;
/// Rows answered together when nothing is said.
const ANSWER_BATCH: u64 = 32;
/// Checkpoints kept when nothing is said; Axolotl's default.
const KEPT_CHECKPOINTS: u64 = 4;

/// The training stage of a recipe.
pub fn train(recipe: &Recipe, model: &BaseModel, machine: &Machine, has_val: bool) -> Train {
    Train {
        adapter: adapter(recipe),
        base: base_weights(recipe),
        compute: compute(recipe, machine),
        batching: batching(recipe),
        optimizer: optimizer(recipe),
        schedule: schedule(recipe),
        eval: if has_val { eval_points(recipe) } else { EvalPoints::Never },
        neftune_alpha: recipe.neftune_noise_alpha.unwrap_or(0.0),
        seed: recipe.seed.unwrap_or(42),
        kernels: true,
        save: SavePoints {
            every: save_points(recipe),
            keep: recipe.save_total_limit.unwrap_or(KEPT_CHECKPOINTS) as usize,
        },
        gradient_checkpointing: recipe.gradient_checkpointing == Some(Checkpointing::On),
        model: model.clone(),
        worker: machine.worker.clone(),
        memory_bytes: 0,
    }
}

/// The evaluation stage; `samples` pairs each prompt with its rendered text.
pub fn eval(
    recipe: &Recipe,
    model: &BaseModel,
    machine: &Machine,
    samples: Vec<(String, String)>,
    tuned: bool,
) -> Eval {
    let section = eval_section(recipe);
    Eval {
        metrics: section.metrics.unwrap_or_else(|| vec![Metric::Perplexity, Metric::ExactMatch]),
        samples,
        max_new_tokens: section.max_new_tokens.unwrap_or(MAX_NEW_TOKENS) as usize,
        temperature: section.temperature.unwrap_or(0.0),
        baseline: tuned && section.baseline.unwrap_or(true),
        base: base_weights(recipe),
        compute: compute(recipe, machine),
        stop: recipe.eot_tokens.clone().unwrap_or_default(),
        batch: section.batch_size.unwrap_or(ANSWER_BATCH) as usize,
        model: model.clone(),
        worker: machine.worker.clone(),
    }
}

/// The `eval` section with every key unset where the recipe has none.
pub fn eval_section(recipe: &Recipe) -> EvalSection {
    recipe.eval.as_ref().and_then(|toggle| toggle.on()).cloned().unwrap_or_default()
}

/// Whether evaluation reads this split, if it exists.
pub fn evaluates(recipe: &Recipe, split: SplitName) -> bool {
    eval_section(recipe).splits.is_none_or(|splits| splits.contains(&split))
}

pub fn convert(recipe: &Recipe, model: &BaseModel) -> Convert {
    let section = recipe.convert.as_ref().and_then(|toggle| toggle.on());
    let dtype = section.and_then(|section| section.dtype).map_or(WeightType::F32, |dtype| dtype.weight_type());
    Convert { dtype, base_model: model.written.clone(), model: model.clone() }
}

pub fn merge(recipe: &Recipe, section: &MergeSection, model: &BaseModel, machine: &Machine) -> Merge {
    let own = match compute(recipe, machine) {
        Compute::F32 => WeightType::F32,
        Compute::F16 => WeightType::F16,
        Compute::Bf16 => WeightType::Bf16,
    };
    let size = section.max_shard_size.as_deref().and_then(parse_size);
    Merge {
        dtype: section.dtype.map_or(own, |dtype| dtype.weight_type()),
        base: match section.base {
            Some(MergeOnto::Original) => MergeBase::Original,
            Some(MergeOnto::AsTrained) | None => MergeBase::AsTrained,
        },
        max_shard_bytes: size.unwrap_or(5_000_000_000),
        weights: base_weights(recipe),
        compute: compute(recipe, machine),
        model: model.clone(),
        worker: machine.worker.clone(),
    }
}

pub fn quantize(section: &QuantizeSection, model: &BaseModel, machine: &Machine, merged: bool) -> Quantize {
    let types = section.types.clone().unwrap_or_else(|| vec![QuantType::Q8_0]);
    Quantize { types, model: model.clone(), merged, worker: machine.worker.clone() }
}

/// The arithmetic type: `bf16: auto` is bf16 where the machine has instructions for it, else float32.
pub fn compute(recipe: &Recipe, machine: &Machine) -> Compute {
    match (recipe.bf16.unwrap_or(AutoFlag::Auto), recipe.fp16.unwrap_or(false)) {
        (AutoFlag::On, _) => Compute::Bf16,
        (_, true) => Compute::F16,
        (AutoFlag::Auto, false) if machine.bf16 => Compute::Bf16,
        (AutoFlag::Auto | AutoFlag::Off, false) => Compute::F32,
    }
}

fn adapter(recipe: &Recipe) -> Adapter {
    if recipe.adapter.is_none() {
        return Adapter::Full;
    }
    Adapter::Lora(Lora {
        r: recipe.lora_r.unwrap_or(8) as usize,
        alpha: recipe.lora_alpha.unwrap_or(16.0),
        dropout: recipe.lora_dropout.unwrap_or(0.0),
        targets: targets(recipe),
        rslora: recipe.peft_use_rslora.unwrap_or(false),
        dora: recipe.peft_use_dora.unwrap_or(false),
    })
}

/// `lora_target_linear` covers every module that `lora_target_modules` could add.
fn targets(recipe: &Recipe) -> Targets {
    match &recipe.lora_target_modules {
        _ if recipe.lora_target_linear == Some(true) => Targets::AllLinear,
        Some(Named::Names(names)) => Targets::Names(names.clone()),
        Some(Named::Regex(regex)) => Targets::Regex(regex.clone()),
        None => Targets::AllLinear,
    }
}

fn base_weights(recipe: &Recipe) -> BaseWeights {
    let four_bit = recipe.load_in_4bit.unwrap_or(recipe.adapter == Some(AdapterName::Qlora));
    if !four_bit {
        return BaseWeights::Dense;
    }
    let double = recipe
        .bnb_config_kwargs
        .as_ref()
        .and_then(|BnbConfig { bnb_4bit_use_double_quant, .. }| *bnb_4bit_use_double_quant);
    BaseWeights::Nf4 { double_quant: double.unwrap_or(true) }
}

fn batching(recipe: &Recipe) -> Batching {
    let micro_batch = recipe.micro_batch_size.unwrap_or(1);
    let accumulation = match (recipe.gradient_accumulation_steps, recipe.batch_size) {
        (Some(steps), _) => steps,
        (None, Some(batch)) => (batch / micro_batch).max(1),
        (None, None) => 1,
    };
    let in_order = recipe.shuffle_merged_datasets == Some(false) || recipe.curriculum_sampling == Some(true);
    Batching {
        micro_batch: micro_batch as usize,
        accumulation: accumulation as usize,
        epochs: recipe.num_epochs.unwrap_or(1.0),
        max_steps: recipe.max_steps,
        shuffle: !in_order,
    }
}

fn optimizer(recipe: &Recipe) -> Optimizer {
    use OptimizerName as Name;
    let kind = match recipe.optimizer.unwrap_or(Name::AdamwTorchFused) {
        Name::Sgd => OptimizerKind::Sgd,
        // The 8-bit and 4-bit variants save memory on large models; an adapter's state is small, and 32 bits are exact.
        _ => OptimizerKind::AdamW,
    };
    Optimizer {
        kind,
        lr: recipe.learning_rate.unwrap_or(0.0),
        beta1: recipe.adam_beta1.unwrap_or(0.9),
        beta2: recipe.adam_beta2.unwrap_or(0.999),
        epsilon: recipe.adam_epsilon.unwrap_or(1e-8),
        weight_decay: recipe.weight_decay.unwrap_or(0.0),
        max_grad_norm: recipe.max_grad_norm.unwrap_or(1.0),
    }
}

fn schedule(recipe: &Recipe) -> Schedule {
    let name = recipe.lr_scheduler.unwrap_or(SchedulerName::Cosine);
    let warmup = match (recipe.warmup_steps, recipe.warmup_ratio) {
        (Some(steps), _) => Warmup::Steps(steps),
        (None, Some(ratio)) => Warmup::Ratio(ratio),
        (None, None) => Warmup::Auto,
    };
    Schedule {
        kind: match name {
            SchedulerName::Constant | SchedulerName::ConstantWithWarmup => ScheduleKind::Constant,
            SchedulerName::Linear => ScheduleKind::Linear,
            SchedulerName::Cosine => ScheduleKind::Cosine,
        },
        // transformers' `constant` ignores warm-up; `constant_with_warmup` is the one that has it.
        warmup: if name == SchedulerName::Constant { Warmup::Steps(0) } else { warmup },
        min_lr_ratio: recipe.cosine_min_lr_ratio.unwrap_or(0.0),
    }
}

fn eval_points(recipe: &Recipe) -> EvalPoints {
    points(recipe.eval_strategy, recipe.eval_steps, recipe.evals_per_epoch, recipe, EvalPoints::Never)
}

/// Axolotl saves at the end of each epoch when nothing is said.
pub fn save_points(recipe: &Recipe) -> EvalPoints {
    points(recipe.save_strategy, recipe.save_steps, recipe.saves_per_epoch, recipe, EvalPoints::PerEpoch(1))
}

fn points(
    strategy: Option<Strategy>,
    steps: Option<f64>,
    per_epoch: Option<u64>,
    recipe: &Recipe,
    unsaid: EvalPoints,
) -> EvalPoints {
    match (strategy, per_epoch, steps) {
        (Some(Strategy::No), ..) => EvalPoints::Never,
        (Some(Strategy::Epoch), ..) => EvalPoints::PerEpoch(1),
        (_, Some(n), _) => EvalPoints::PerEpoch(n),
        // A share of all steps, as transformers reads it.
        (_, None, Some(share)) if share < 1.0 => {
            EvalPoints::PerEpoch((1.0 / (share * recipe.num_epochs.unwrap_or(1.0))).round().max(1.0) as u64)
        }
        (_, None, Some(steps)) => EvalPoints::EverySteps(steps as u64),
        (_, None, None) => unsaid,
    }
}
