//! Recipe keys to the resolved configurations of train, eval, convert, merge and quantize.
//!
//! Every default and derived value of these stages is decided here, as transformers, PEFT and Axolotl decide them.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use pipe_engine::problem::Problem;
use pipe_job::{
    Adapter, BaseWeights, Batching, Compute, EvalPoints, Freeze, Init, Lora, LoraPlus, MergeBase, Optimizer,
    OptimizerKind, Order, Recompute, SavePoints, Schedule, ScheduleKind, Stopping, Targets, Warmup, Watchdog,
    WeightType,
};

use super::{Machine, continued, data};
use crate::agreement::{Agreement, Compared};
use crate::companions::Companions;
use crate::convert::Convert;
use crate::eval::{Answering, Eval, TrainingSamples};
use crate::fingerprint::Written;
use crate::importance::Importance;
use crate::merge::Merge;
use crate::model::BaseModel;
use crate::project::Project;
use crate::quantize::Quantize;
use crate::recipe::{
    AdapterName, Anneal, AutoFlag, Checkpointing, EvalSection, FourBit, ImportanceSection, InitLoraWeights,
    MergeAdapter, MergeOnto, MergeSection, Metric, OptimizerName, QuantType, QuantizeSection, Recipe, Resume,
    SchedulerName, SplitName, Strategy, Targets as Named, parse_size,
};
use crate::train::Train;

/// Length of answers in evaluation when nothing is said.
const MAX_NEW_TOKENS: u64 = 128;
/// Bootstrap samples behind an interval when nothing is said.
const RESAMPLES: u64 = 1000;
/// Rows answered together when nothing is said.
const ANSWER_BATCH: u64 = 32;
/// Rows on which the importance of weights is measured when nothing is said.
const IMPORTANCE_ROWS: u64 = 128;
/// Checkpoints kept when nothing is said; Axolotl's default.
const KEPT_CHECKPOINTS: u64 = 4;

/// Steps above the watchdog's threshold that are too many when nothing is said; Axolotl's default.
const WATCHDOG_PATIENCE: u64 = 3;
/// Muon's momentum, torch's default.
const MUON_MOMENTUM: f64 = 0.95;

/// The training stage of a recipe; `sources` are the names of the datasets it trains on, `sampling` what it answers meanwhile.
pub fn train(
    recipe: &Recipe,
    project: &Project,
    model: &BaseModel,
    machine: &Machine,
    has_val: bool,
    (sources, sampling): (Vec<String>, Option<TrainingSamples>),
) -> Result<Train, Problem> {
    let threshold = recipe.loss_watchdog_threshold;
    let patience = recipe.loss_watchdog_patience.unwrap_or(WATCHDOG_PATIENCE);
    Ok(Train {
        adapter: adapter(recipe, model)?,
        base: base_weights(recipe),
        compute: compute(recipe, machine),
        batching: batching(recipe),
        optimizer: optimizer(recipe),
        schedule: schedule(recipe),
        eval: if has_val { eval_points(recipe) } else { EvalPoints::Never },
        stopping: Stopping {
            patience: recipe.early_stopping_patience,
            best: recipe.load_best_model_at_end.unwrap_or(recipe.early_stopping_patience.is_some()),
        },
        watchdog: threshold.map(|threshold| Watchdog { threshold, patience }),
        z_loss: recipe.z_loss.unwrap_or(0.0),
        sources,
        sampling,
        resume: match &recipe.resume_from_checkpoint {
            Some(Resume::Folder(folder)) => Some(project.resolve(folder)),
            Some(Resume::Newest) | None => None,
        },
        neftune_alpha: recipe.neftune_noise_alpha.unwrap_or(0.0),
        seed: recipe.seed.unwrap_or(42),
        kernels: true,
        save: SavePoints {
            every: save_points(recipe),
            keep: recipe.save_total_limit.unwrap_or(KEPT_CHECKPOINTS) as usize,
        },
        recompute: match recipe.gradient_checkpointing {
            Some(Checkpointing::On) => Recompute::Layers(1),
            Some(Checkpointing::Every(layers)) => Recompute::Layers(layers as usize),
            Some(Checkpointing::Off) | None => Recompute::Nothing,
        },
        model: model.clone(),
        worker: machine.worker.clone(),
        sequence_len: recipe.sequence_len.unwrap_or(512),
    })
}

/// What training answers on its way, where `eval.sample_every` asks for it; `samples` renders the prompts.
pub fn sampling(
    recipe: &Recipe,
    project: &Project,
    model: &BaseModel,
    samples: impl Fn() -> Result<Vec<(String, String)>, Problem>,
) -> Result<Option<TrainingSamples>, Problem> {
    let section = eval_section(recipe);
    let Some(every) = section.sample_every else { return Ok(None) };
    let answering = answering(recipe, project, model, &section);
    Ok(Some(TrainingSamples { every, prompts: samples()?, answering }))
}

fn answering(recipe: &Recipe, project: &Project, model: &BaseModel, section: &EvalSection) -> Answering {
    Answering {
        max_new_tokens: section.max_new_tokens.unwrap_or(MAX_NEW_TOKENS) as usize,
        temperature: section.temperature.unwrap_or(0.0),
        stop_tokens: recipe.eot_tokens.clone().unwrap_or_default(),
        stop: section.stop.clone().unwrap_or_default(),
        batch: section.batch_size.unwrap_or(ANSWER_BATCH) as usize,
        tokenizer: data::tokenizer_path(recipe, project, Some(model)).unwrap_or_else(|| model.path.clone()),
    }
}

/// The evaluation stage; `samples` pairs each prompt with its rendered text, `written` is how the rows' conversations are
/// where the model was trained elsewhere, `sources` are the datasets' names by split.
pub fn eval(
    recipe: &Recipe,
    project: &Project,
    model: &BaseModel,
    machine: &Machine,
    (samples, written): (Vec<(String, String)>, Option<Written>),
    sources: BTreeMap<String, Vec<String>>,
    tuned: bool,
) -> Eval {
    let section = eval_section(recipe);
    let sequence_len = recipe.eval_sequence_len.or(recipe.sequence_len).unwrap_or(512);
    let at = |path: Option<&str>| project.resolve(path.unwrap_or_default());
    let choices = section.choices.iter().flatten();
    Eval {
        samples,
        written,
        answering: answering(recipe, project, model, &section),
        choices: choices.map(|own| own.resolve(at(own.path.as_deref()), sequence_len)).collect(),
        sequence_len: if section.general.is_some() { sequence_len as usize } else { 0 },
        general: section.general.iter().flat_map(|files| &files.0).map(|path| project.resolve(path)).collect(),
        metrics: section.metrics.unwrap_or_else(|| vec![Metric::Perplexity, Metric::ExactMatch]),
        baseline: tuned && section.baseline.unwrap_or(true),
        max_rows: section.max_rows.map(|rows| rows as usize),
        resamples: section.resamples.unwrap_or(RESAMPLES) as usize,
        checks: section.checks.unwrap_or_default(),
        few_shot: section.few_shot.unwrap_or(0) as usize,
        export: section.export,
        base: base_weights(recipe),
        compute: compute(recipe, machine),
        sources,
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

pub fn convert(recipe: &Recipe, model: &BaseModel, companions: Companions, machine: &Machine) -> Convert {
    let section = recipe.convert.as_ref().and_then(|toggle| toggle.on());
    // An adapter is small and keeps its precision; a model comes in the type it was trained in.
    let own = if recipe.adapter.is_none() { own_type(recipe, machine) } else { WeightType::F32 };
    let dtype = section.and_then(|section| section.dtype).map_or(own, |dtype| dtype.weight_type());
    Convert { dtype, base_model: model.written.clone(), companions, model: model.clone() }
}

pub fn merge(
    recipe: &Recipe,
    project: &Project,
    section: &MergeSection,
    model: &BaseModel,
    companions: Companions,
    machine: &Machine,
) -> Merge {
    let own = own_type(recipe, machine);
    let further = |adapter: &MergeAdapter| {
        let path = project.resolve(adapter.path.as_deref().unwrap_or_default());
        (path, adapter.weight.unwrap_or(1.0))
    };
    let size = section.max_shard_size.as_deref().and_then(parse_size);
    Merge {
        dtype: section.dtype.map_or(own, |dtype| dtype.weight_type()),
        base: match section.base {
            Some(MergeOnto::Original) => MergeBase::Original,
            Some(MergeOnto::AsTrained) | None => MergeBase::AsTrained,
        },
        max_shard_bytes: size.unwrap_or(5_000_000_000),
        weight: section.weight.unwrap_or(1.0),
        further: section.adapters.iter().flatten().map(further).collect(),
        weights: base_weights(recipe),
        compute: compute(recipe, machine),
        companions,
        model: model.clone(),
        worker: machine.worker.clone(),
    }
}

fn own_type(recipe: &Recipe, machine: &Machine) -> WeightType {
    match compute(recipe, machine) {
        Compute::F32 => WeightType::F32,
        Compute::F16 => WeightType::F16,
        Compute::Bf16 => WeightType::Bf16,
    }
}

pub fn quantize(
    section: &QuantizeSection,
    project: &Project,
    model: &BaseModel,
    machine: &Machine,
    merged: bool,
) -> Quantize {
    let types = section.types.clone().unwrap_or_else(|| vec![QuantType::Q8_0]);
    let file = importance_section(section).and_then(|own| own.file.as_deref());
    let importance = file.map(|file| project.resolve(file));
    Quantize { types, importance, model: model.clone(), merged, worker: machine.worker.clone() }
}

fn importance_section(section: &QuantizeSection) -> Option<&ImportanceSection> {
    section.importance.as_ref().and_then(|toggle| toggle.on())
}

/// Measuring the importance of weights on training rows, where it is wanted and not there already.
pub fn importance(
    recipe: &Recipe,
    section: &QuantizeSection,
    quantize: &Quantize,
    machine: &Machine,
) -> Option<Importance> {
    let own = importance_section(section).filter(|own| own.file.is_none())?;
    Some(Importance {
        rows: own.rows.unwrap_or(IMPORTANCE_ROWS) as usize,
        compute: compute(recipe, machine),
        model: quantize.model.clone(),
        merged: quantize.merged,
        worker: machine.worker.clone(),
    })
}

/// The comparison of a merged model with base and adapter; none where the base was merged as it is.
pub fn merge_agreement(
    recipe: &Recipe,
    section: &MergeSection,
    model: &BaseModel,
    machine: &Machine,
    split: &'static str,
) -> Option<Agreement> {
    let base = base_weights(recipe);
    let rows = section.agreement_rows.unwrap_or(0) as usize;
    let alone = section.adapters.is_none() && section.weight.is_none_or(|weight| weight == 1.0);
    let compared = rows > 0 && alone && base != BaseWeights::Dense && section.base != Some(MergeOnto::Original);
    compared.then(|| agreement(recipe, model, machine, split, rows, Compared::Merged { base }))
}

/// The comparison of quantised files with the model that they were made of.
pub fn quantize_agreement(
    recipe: &Recipe,
    quantize: &Quantize,
    section: &QuantizeSection,
    machine: &Machine,
    split: &'static str,
) -> Option<Agreement> {
    let rows = section.agreement_rows.unwrap_or(0) as usize;
    let of = Compared::Quantised { types: quantize.types.clone(), merged: quantize.merged };
    (rows > 0).then(|| agreement(recipe, &quantize.model, machine, split, rows, of))
}

fn agreement(
    recipe: &Recipe,
    model: &BaseModel,
    machine: &Machine,
    split: &'static str,
    rows: usize,
    of: Compared,
) -> Agreement {
    let (model, worker) = (model.clone(), machine.worker.clone());
    Agreement { of, rows, compute: compute(recipe, machine), split, model, worker }
}

/// The arithmetic type: `bf16: auto` is bf16 where the machine has instructions for it, or where an adapter is trained and our
/// own products make up for them; else float32.
pub fn compute(recipe: &Recipe, machine: &Machine) -> Compute {
    match (recipe.bf16.unwrap_or(AutoFlag::Auto), recipe.fp16.unwrap_or(false)) {
        (AutoFlag::On, _) => Compute::Bf16,
        (_, true) => Compute::F16,
        (AutoFlag::Auto, false) if machine.bf16 => Compute::Bf16,
        (AutoFlag::Auto, false) if machine.bf16_adapters && recipe.adapter.is_some() => Compute::Bf16,
        (AutoFlag::Auto | AutoFlag::Off, false) => Compute::F32,
    }
}

fn adapter(recipe: &Recipe, model: &BaseModel) -> Result<Adapter, Problem> {
    if recipe.adapter.is_none() {
        let unfrozen = recipe.unfrozen_parameters.clone().unwrap_or_default();
        let last_layers = recipe.unfrozen_layers.unwrap_or(0) as usize;
        let all = unfrozen.is_empty() && last_layers == 0;
        return Ok(if all { Adapter::Full } else { Adapter::Freeze(Freeze { unfrozen, last_layers }) });
    }
    if let Some(folder) = model.adapter.as_ref().filter(|folder| folder.join("adapter_config.json").is_file()) {
        return continued::adapter(recipe, folder).map(Adapter::Lora);
    }
    let lora = Lora {
        r: recipe.lora_r.unwrap_or(8) as usize,
        alpha: recipe.lora_alpha.unwrap_or(16.0),
        dropout: recipe.lora_dropout.unwrap_or(0.0),
        targets: targets(recipe),
        rslora: recipe.peft_use_rslora.unwrap_or(false),
        dora: recipe.peft_use_dora.unwrap_or(false),
        rank_pattern: pattern(&recipe.lora_rank_pattern).map(|(key, rank)| (key, rank as usize)).collect(),
        alpha_pattern: pattern(&recipe.lora_alpha_pattern).collect(),
        modules_to_save: recipe.lora_modules_to_save.clone().unwrap_or_default(),
        init: match recipe.peft_init_lora_weights {
            _ if loftq(recipe) => Init::Loftq,
            Some(InitLoraWeights::Gaussian) => Init::Gaussian,
            Some(InitLoraWeights::Orthogonal) => Init::Orthogonal,
            Some(InitLoraWeights::Pissa(iterations)) => Init::Pissa { iterations },
            _ => Init::Kaiming,
        },
    };
    continued::check_targets(&lora, model)?;
    Ok(Adapter::Lora(lora))
}

fn pattern<T: Copy>(map: &Option<IndexMap<String, T>>) -> impl Iterator<Item = (String, T)> {
    map.iter().flatten().map(|(key, value)| (key.clone(), *value))
}

/// LoftQ is said by its settings or by the name of the start.
fn loftq(recipe: &Recipe) -> bool {
    let settings = recipe.peft.as_ref().is_some_and(|peft| peft.loftq_config.is_some());
    settings || recipe.peft_init_lora_weights == Some(InitLoraWeights::Loftq)
}

/// `lora_target_linear` covers every module that `lora_target_modules` could add.
fn targets(recipe: &Recipe) -> Targets {
    match &recipe.lora_target_modules {
        _ if recipe.lora_target_linear == Some(true) => Targets::AllLinear,
        Some(Named::Names(names)) => Targets::Names(names.clone()),
        Some(Named::Regex(regex)) if regex == "all-linear" => Targets::AllLinear,
        Some(Named::Regex(regex)) => Targets::Regex(regex.clone()),
        None => Targets::AllLinear,
    }
}

fn base_weights(recipe: &Recipe) -> BaseWeights {
    if recipe.load_in_8bit == Some(true) {
        return BaseWeights::Int8;
    }
    let four_bit = recipe.load_in_4bit.unwrap_or(recipe.adapter == Some(AdapterName::Qlora));
    let settings = recipe.bnb_config_kwargs.clone().unwrap_or_default();
    let double_quant = settings.bnb_4bit_use_double_quant.unwrap_or(true);
    match settings.bnb_4bit_quant_type {
        // PEFT gives LoftQ a base that was quantised without double quantisation, and holds it dequantised.
        _ if !four_bit && loftq(recipe) => BaseWeights::Nf4 { double_quant: false },
        _ if !four_bit => BaseWeights::Dense,
        Some(FourBit::Fp4) => BaseWeights::Fp4 { double_quant },
        Some(FourBit::Nf4) | None => BaseWeights::Nf4 { double_quant },
    }
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
        order: match in_order {
            _ if recipe.group_by_length == Some(true) => Order::ByLength,
            true => Order::Stored,
            false => Order::Shuffled,
        },
    }
}

fn optimizer(recipe: &Recipe) -> Optimizer {
    use OptimizerName as Name;
    let kind = match recipe.optimizer.unwrap_or(Name::AdamwTorchFused) {
        // torchao's 8-bit state has the same map and the same blocks as bitsandbytes'.
        Name::AdamwBnb8bit | Name::Adamw8bit | Name::PagedAdamw8bit | Name::AdamwTorch8bit | Name::AoAdamw8bit => {
            OptimizerKind::AdamW8bit
        }
        Name::AdamwTorch
        | Name::AdamwTorchFused
        | Name::AdamwHf
        | Name::PagedAdamw
        | Name::PagedAdamw32bit
        | Name::AdamwTorch4bit
        | Name::AoAdamw4bit => OptimizerKind::AdamW,
        Name::Adafactor => OptimizerKind::Adafactor,
        Name::Lion32bit | Name::Lion8bit | Name::PagedLion32bit | Name::PagedLion8bit | Name::LionPytorch => {
            OptimizerKind::Lion
        }
        Name::Muon => OptimizerKind::Muon,
        Name::Sgd => OptimizerKind::Sgd,
    };
    let momentum = if kind == OptimizerKind::Muon { MUON_MOMENTUM } else { 0.0 };
    Optimizer {
        kind,
        lr: recipe.learning_rate.unwrap_or(0.0),
        beta1: recipe.adam_beta1.unwrap_or(0.9),
        beta2: recipe.adam_beta2.unwrap_or(0.999),
        epsilon: recipe.adam_epsilon.unwrap_or(1e-8),
        weight_decay: recipe.weight_decay.unwrap_or(0.0),
        max_grad_norm: recipe.max_grad_norm.unwrap_or(1.0),
        momentum: recipe.optim_args.as_ref().and_then(|args| args.momentum).unwrap_or(momentum),
        lora_plus: recipe.loraplus_lr_ratio.map(|ratio| LoraPlus { ratio, embedding_lr: recipe.loraplus_lr_embedding }),
    }
}

fn schedule(recipe: &Recipe) -> Schedule {
    use SchedulerName as Name;
    let name = recipe.lr_scheduler.unwrap_or(Name::Cosine);
    let warmup = match (recipe.warmup_steps, recipe.warmup_ratio) {
        (Some(steps), _) => Warmup::Steps(steps),
        (None, Some(ratio)) => Warmup::Ratio(ratio),
        (None, None) => Warmup::Auto,
    };
    let numbers = recipe.lr_scheduler_kwargs.clone().unwrap_or_default();
    let floor = recipe.cosine_min_lr_ratio.unwrap_or(0.0);
    let own_floor = numbers.min_lr.map(|rate| rate / recipe.learning_rate.unwrap_or(1.0)).or(numbers.min_lr_rate);
    let cosine = |min_ratio: f64, until: f64| ScheduleKind::Cosine {
        min_ratio,
        until,
        cycles: numbers.num_cycles.unwrap_or(0.5),
    };
    let kind = match name {
        Name::Constant | Name::ConstantWithWarmup => ScheduleKind::Constant,
        Name::Linear => ScheduleKind::Linear,
        Name::Cosine => cosine(floor, recipe.cosine_constant_lr_ratio.filter(|_| floor > 0.0).unwrap_or(1.0)),
        Name::CosineWithMinLr => cosine(own_floor.unwrap_or(floor), 1.0),
        Name::CosineWithRestarts => ScheduleKind::CosineRestarts { cycles: numbers.num_cycles.unwrap_or(1.0) },
        Name::Polynomial => {
            ScheduleKind::Polynomial { end: numbers.lr_end.unwrap_or(1e-7), power: numbers.power.unwrap_or(1.0) }
        }
        Name::InverseSqrt => ScheduleKind::InverseSqrt { timescale: numbers.timescale },
        Name::OneCycle => ScheduleKind::OneCycle {
            rise: numbers.pct_start,
            cosine: numbers.anneal_strategy != Some(Anneal::Linear),
            div: numbers.div_factor.unwrap_or(25.0),
            final_div: numbers.final_div_factor.unwrap_or(1e4),
        },
        Name::Rex => ScheduleKind::Rex { min_ratio: floor },
    };
    Schedule {
        kind,
        // transformers' `constant` ignores warm-up; `constant_with_warmup` is the one that has it.
        warmup: if name == Name::Constant { Warmup::Steps(0) } else { warmup },
        quadratic_warmup: name == Name::Cosine && recipe.lr_quadratic_warmup == Some(true),
    }
}

fn eval_points(recipe: &Recipe) -> EvalPoints {
    points(recipe.eval_strategy, recipe.eval_steps, recipe.evals_per_epoch, recipe, EvalPoints::Never)
}

/// Axolotl saves at the end of each epoch when nothing is said.
pub fn save_points(recipe: &Recipe) -> EvalPoints {
    points(recipe.save_strategy, recipe.save_steps, recipe.saves_per_epoch, recipe, EvalPoints::EveryEpoch)
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
        (Some(Strategy::Epoch), ..) => EvalPoints::EveryEpoch,
        // As Axolotl: so many times in each of the epochs, spread over the steps that there are, `max_steps` or fewer.
        (_, Some(n), _) => EvalPoints::EveryShare((1.0 / (n as f64 * recipe.num_epochs.unwrap_or(1.0))).min(1.0)),
        (_, None, Some(share)) if share < 1.0 => EvalPoints::EveryShare(share),
        (_, None, Some(steps)) => EvalPoints::EverySteps(steps as u64),
        (_, None, None) => unsaid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_the_type_that_this_machine_trains_in_at_least_as_fast() {
        let machine = |bf16, bf16_adapters| Machine { bf16, bf16_adapters, ..Machine::default() };
        let adapter = |adapter| Recipe { adapter, ..Recipe::default() };
        for (bf16, bf16_adapters, trained, expected) in [
            (false, false, Some(AdapterName::Lora), Compute::F32),
            (false, true, Some(AdapterName::Lora), Compute::Bf16),
            (false, true, None, Compute::F32),
            (true, false, None, Compute::Bf16),
        ] {
            assert_eq!(compute(&adapter(trained), &machine(bf16, bf16_adapters)), expected, "{trained:?}");
        }
        let off = Recipe { bf16: Some(AutoFlag::Off), ..adapter(Some(AdapterName::Qlora)) };
        assert_eq!(compute(&off, &machine(true, true)), Compute::F32);
    }
}
