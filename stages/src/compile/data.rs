//! The data half of the pipeline: one chain of nodes per dataset, then one pack per split.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pipe_engine::plan::{Input, Node};
use pipe_engine::problem::Problem;
use serde_json::Map;

use super::{EXAMPLES, PACKS, RAW, RENDERED, Splits, TOKENS, evaluates, input, label, node, problem};
use crate::augment::Augment;
use crate::clean::{Clean, contamination};
use crate::companions::Companions;
use crate::fetch::Need;
use crate::fingerprint::Written;
use crate::ingest::files::reading;
use crate::ingest::{DatasetKeys, FileFormat, Ingest, RowFormat, Shard};
use crate::mix::Mix;
use crate::model::BaseModel;
use crate::pack::Pack;
use crate::project::{Place, Project};
use crate::recipe::{
    Dataset, DatasetType, FileKind, Format, Recipe, Role, Source, SpecialTokensInContent, SplitName, TrainOn,
};
use crate::rows::ROWS_FILE;
use crate::split::{Part, Split};
use crate::template::prompts::PromptStyle;
use crate::template::render::{SpecialTexts, find, special_texts};
use crate::template::{Template, TemplateSource, builtin, clock};
use crate::tokenize::Tokenize;

/// A dataset that has been tokenised, and the splits its rows are in.
pub struct Tokenized {
    pub node: String,
    pub has_train: bool,
    pub splits: Splits,
}

/// Adds every dataset's chain; returns where the tokens are, in recipe order.
pub fn nodes(
    recipe: &Recipe,
    project: &Project,
    model: Option<&BaseModel>,
    splits: Splits,
    nodes: &mut Vec<Node>,
) -> Result<Vec<Tokenized>, Problem> {
    let mut all = Vec::new();
    for source in recipe.sources() {
        all.push(chain(recipe, project, model, splits, &source, nodes)?);
    }
    Ok(all)
}

/// Packs of every split that has rows.
pub fn packs(recipe: &Recipe, splits: Splits, tokenized: &[Tokenized], nodes: &mut Vec<Node>) {
    for split in [SplitName::Train, SplitName::Val, SplitName::Test] {
        let from: Vec<&Tokenized> = tokenized.iter().filter(|tokens| tokens.has(split)).collect();
        if from.is_empty() || !splits.has(split) {
            continue;
        }
        let name = split_name(split);
        let file = format!("{name}.parquet");
        let inputs = from.iter().enumerate();
        let inputs = inputs.map(|(i, tokens)| input(i.to_string(), &tokens.node, Some(&file), TOKENS)).collect();
        nodes.push(node(&format!("pack.{name}"), PACKS, inputs, pack(recipe, split)));
    }
}

/// Wires evaluation to the packs and tokens of the splits it measures; returns the names of each split's datasets.
pub fn evaluation_inputs(
    recipe: &Recipe,
    splits: Splits,
    tokenized: &[Tokenized],
    inputs: &mut Vec<Input>,
) -> BTreeMap<String, Vec<String>> {
    let mut sources = BTreeMap::new();
    let section = super::eval_section(recipe);
    let named = section.splits.unwrap_or_default();
    if section.few_shot.is_some() {
        for (i, tokens) in tokenized.iter().filter(|tokens| tokens.has_train).enumerate() {
            inputs.push(input(format!("shots.{i}"), &tokens.node, Some("train.parquet"), TOKENS));
        }
    }
    for split in [SplitName::Train, SplitName::Val, SplitName::Test] {
        let name = split_name(split);
        // Training rows are measured where they are asked for by name.
        let wanted = if split == SplitName::Train { named.contains(&split) } else { evaluates(recipe, split) };
        let own: Vec<&Tokenized> = tokenized.iter().filter(|tokens| tokens.has(split)).collect();
        if !splits.has(split) || !wanted || own.is_empty() {
            continue;
        }
        inputs.push(input(format!("packs.{name}"), &format!("pack.{name}"), Some("packs.parquet"), PACKS));
        sources.insert(name.to_string(), own.iter().map(|tokens| label(&tokens.node)).collect());
        // Answers are generated for the test rows; where there are none, for the validation rows.
        if split == SplitName::Val && splits.test {
            continue;
        }
        let file = format!("{name}.parquet");
        for (i, tokens) in own.into_iter().enumerate() {
            inputs.push(input(format!("tokens.{name}.{i}"), &tokens.node, Some(&file), TOKENS));
        }
    }
    sources
}

/// The `eval.samples` prompts, each with the text the model is given.
pub fn samples(recipe: &Recipe, project: &Project, model: &BaseModel) -> Result<Vec<(String, String)>, Problem> {
    let prompts = super::eval_section(recipe).samples.unwrap_or_default();
    if prompts.is_empty() || !model.path.exists() {
        return Ok(prompts.into_iter().map(|prompt| (prompt.clone(), prompt)).collect());
    }
    let first = recipe.datasets.iter().flatten().next();
    let style = first
        .map(|dataset| prompt_style(recipe, Some(&model.path), dataset))
        .transpose()?
        .unwrap_or_else(PromptStyle::alpaca);
    let wrong = |why: String| problem("chat-template", "chat_template", why);
    let template = match recipe.datasets.iter().flatten().find(|dataset| uses_template(dataset)) {
        Some(dataset) => {
            let mut task = template(recipe, project, Some(model), dataset)?;
            task.day = Some(clock::today());
            task.load().map_err(|error| wrong(error.to_string()))?
        }
        None => None,
    };
    let mut kwargs: Map<_, _> = recipe.chat_template_kwargs.clone().unwrap_or_default().into_iter().collect();
    kwargs.extend(first.and_then(|dataset| dataset.chat_template_kwargs.clone()).unwrap_or_default());
    let render = |prompt: &String| match &template {
        Some(template) => {
            let mut turns: Vec<Map<_, _>> = Vec::new();
            let turn = |role: &str, text: &str| {
                Map::from_iter([("role".to_string(), role.into()), ("content".to_string(), text.into())])
            };
            turns.extend(recipe.default_system_message.iter().map(|text| turn("system", text)));
            turns.push(turn("user", prompt));
            template.render(&turns, None, &kwargs, true).map_err(|error| wrong(error.to_string()))
        }
        None => Ok(style.prompt(None, prompt, "")),
    };
    prompts.iter().map(|prompt| Ok((prompt.clone(), render(prompt)?))).collect()
}

impl Tokenized {
    fn has(&self, split: SplitName) -> bool {
        if split == SplitName::Train { self.has_train } else { self.splits.has(split) }
    }
}

fn chain(
    recipe: &Recipe,
    project: &Project,
    model: Option<&BaseModel>,
    splits: Splits,
    source: &Source<'_>,
    nodes: &mut Vec<Node>,
) -> Result<Tokenized, Problem> {
    let name = |stage: &str| format!("{stage}.{}", source.label);
    let rows = |stage: &str, kind| vec![input("rows", &name(stage), Some(ROWS_FILE), kind)];
    let test = source.role == Role::Test;
    let own = section_splits(recipe, test);
    nodes.push(node(&name("ingest"), RAW, Vec::new(), ingest(recipe, project, source)?));
    let clean = clean(recipe, project, test);
    let mut dirty = rows("ingest", RAW);
    if clean.contamination_words.is_some() {
        let tests = recipe.sources().into_iter().filter(|source| source.role == Role::Test).enumerate();
        dirty.extend(tests.map(|(i, source)| {
            let from = format!("clean.{}", source.label);
            input(format!("{}{i}", contamination::ROLE), &from, Some(ROWS_FILE), EXAMPLES)
        }));
    }
    nodes.push(node(&name("clean"), EXAMPLES, dirty, clean));
    let split =
        if test { Split::all_to(Part::Test) } else { Split::resolve(recipe.split.as_ref(), recipe.val_set_size) };
    let split = split.taking(source.dataset.weight.unwrap_or(1.0));
    nodes.push(node(&name("split"), EXAMPLES, rows("clean", EXAMPLES), split));
    let mut parts = Vec::new();
    if !test {
        let train = vec![input("train", &name("split"), Some("train.parquet"), EXAMPLES)];
        let augment = Augment::resolve(recipe.augment.as_ref());
        nodes.push(node(&name("augment"), EXAMPLES, train, augment));
        parts.push(input("train", &name("augment"), Some("train.parquet"), EXAMPLES));
    }
    for (present, part) in [(own.val, "val"), (own.test, "test")] {
        if present {
            parts.push(input(part, &name("split"), Some(&format!("{part}.parquet")), EXAMPLES));
        }
    }
    let tokens = parts.iter().map(|part| input(part.role.clone(), &name("template"), part.file.as_deref(), RENDERED));
    let tokens = tokens.collect();
    nodes.push(node(&name("template"), RENDERED, parts, template(recipe, project, model, source.dataset)?));
    nodes.push(node(&name("tokenize"), TOKENS, tokens, tokenize(recipe, project, model, source.dataset)?));
    debug_assert!(!own.val || splits.val);
    Ok(Tokenized { node: name("tokenize"), has_train: !test, splits: own })
}

/// The splits that one dataset's rows fall into.
fn section_splits(recipe: &Recipe, test: bool) -> Splits {
    let split = recipe.split.clone().unwrap_or_default();
    let val = split.val.or(recipe.val_set_size).unwrap_or(0.0);
    Splits { val: !test && val > 0.0, test: test || split.test.unwrap_or(0.0) > 0.0 }
}

/// Test rows are measured as they are: only rows that say nothing are dropped from them.
fn clean(recipe: &Recipe, project: &Project, test: bool) -> Clean {
    if test {
        return Clean::resolve(None);
    }
    let mut section = recipe.clean.clone().unwrap_or_default();
    if recipe.dataset_exact_deduplication == Some(true) {
        section.dedup.get_or_insert(crate::clean::Dedup::Exact);
    }
    let looks = section.contamination.is_some_and(|action| action != crate::clean::Contamination::Ignore);
    let swears = section.profanity.is_some_and(|action| action != crate::clean::Profanity::Keep);
    let files = section.contamination_files.iter().flat_map(|files| &files.0).filter(|_| looks);
    Clean {
        profanity_list: section.profanity_list.as_ref().filter(|_| swears).map(|path| project.resolve(path)),
        contamination_files: files.map(|path| project.resolve(path)).collect(),
        ..Clean::resolve(Some(&section))
    }
}

/// Labels and weights of the datasets that are trained on, in the order of pack's inputs.
fn mix(recipe: &Recipe) -> Option<Mix> {
    let sources = recipe.sources().into_iter().filter(|source| source.role == Role::Train);
    let datasets: Vec<(String, f64)> =
        sources.map(|source| (source.label, source.dataset.weight.unwrap_or(1.0))).collect();
    Mix::resolve(recipe.mix.as_ref(), &datasets)
}

fn ingest(recipe: &Recipe, project: &Project, source: &Source<'_>) -> Result<Ingest, Problem> {
    let dataset = source.dataset;
    let rows = RowFormat::of_dataset(dataset).map_err(|why| problem("dataset-type", "datasets", why))?;
    let split = recipe.split.clone().unwrap_or_default();
    Ok(Ingest {
        reading: reading(project, dataset, source.role)
            .map_err(|wrong| problem("dataset-files", "datasets", format!("`{}`: {}", wrong.key, wrong.message)))?,
        file_format: dataset.ds_type.map(file_format),
        rows,
        keys: DatasetKeys::of(dataset),
        shard: dataset.shards.map(|of| Shard { of: of.max(1), index: dataset.shards_idx.unwrap_or(0) }),
        max_rows: dataset.max_rows,
        keep: split.stratify_by.into_iter().chain(split.group_by).collect(),
    })
}

fn file_format(kind: FileKind) -> FileFormat {
    match kind {
        FileKind::Json => FileFormat::Json,
        FileKind::Jsonl => FileFormat::Jsonl,
        FileKind::Csv => FileFormat::Csv,
        FileKind::Tsv => FileFormat::Tsv,
        FileKind::Parquet => FileFormat::Parquet,
        FileKind::Arrow => FileFormat::Arrow,
        FileKind::Text => FileFormat::Text,
        FileKind::Markdown => FileFormat::Markdown,
    }
}

fn uses_template(dataset: &Dataset) -> bool {
    dataset.format().is_some_and(Format::uses_chat_template)
}

/// Where template and tokenizer are read: `tokenizer_config` when given, else the base model.
pub fn tokenizer_path(recipe: &Recipe, project: &Project, model: Option<&BaseModel>) -> Option<PathBuf> {
    match &recipe.tokenizer_config {
        Some(path) => Some(project.model(path, None, Need::Tokenizer)),
        // Its tokenizer may be here before its weights are.
        None => model
            .and(recipe.base_model.as_deref())
            .map(|written| project.model(written, recipe.model_revision.as_deref(), Need::Tokenizer)),
    }
}

fn template(
    recipe: &Recipe,
    project: &Project,
    model: Option<&BaseModel>,
    dataset: &Dataset,
) -> Result<Template, Problem> {
    let tokenizer = tokenizer_path(recipe, project, model);
    let style = prompt_style(recipe, tokenizer.as_deref(), dataset)?;
    let source = match uses_template(dataset) {
        true => template_source(recipe, project, tokenizer.as_ref(), dataset)?,
        false => TemplateSource::Unused,
    };
    let mut kwargs = recipe.chat_template_kwargs.clone().unwrap_or_default();
    kwargs.extend(dataset.chat_template_kwargs.clone().unwrap_or_default());
    Ok(Template {
        day: clock::day_of(&source),
        source,
        tokenizer,
        kwargs: kwargs.into_iter().collect(),
        default_system: recipe.default_system_message.clone(),
        style,
        special: special(recipe),
    })
}

/// The recipe's own special tokens.
fn special(recipe: &Recipe) -> SpecialTexts {
    let special = recipe.special_tokens.clone().unwrap_or_default();
    SpecialTexts {
        bos: special.bos_token.unwrap_or_default(),
        eos: special.eos_token.unwrap_or_default(),
        pad: special.pad_token.unwrap_or_default(),
        unk: special.unk_token.unwrap_or_default(),
    }
}

/// How the rows' conversations are written, where some row is one.
pub fn written(recipe: &Recipe, project: &Project, model: &BaseModel) -> Result<Option<Written>, Problem> {
    let source = recipe.sources().into_iter().find(|source| uses_template(source.dataset));
    source.map(|source| Ok(template(recipe, project, Some(model), source.dataset)?.written())).transpose()
}

/// Which template a dataset uses: its own key, the recipe's, or the tokenizer's.
fn template_source(
    recipe: &Recipe,
    project: &Project,
    tokenizer: Option<&PathBuf>,
    dataset: &Dataset,
) -> Result<TemplateSource, Problem> {
    let name = dataset.chat_template.as_ref().or(recipe.chat_template.as_ref());
    let jinja = dataset.chat_template_jinja.as_ref().or(recipe.chat_template_jinja.as_ref());
    let own = || match tokenizer {
        Some(path) => Ok(TemplateSource::Model(path.clone())),
        None => Err(problem("chat-template", "chat_template", "no base_model to take a chat template from".into())),
    };
    let text_or_file = |jinja: &str| match project.place(jinja) {
        Place::Local(path) => TemplateSource::File(path),
        _ => TemplateSource::Text(jinja.to_string()),
    };
    match (name.map(String::as_str), jinja) {
        (None | Some("jinja"), Some(jinja)) => Ok(text_or_file(jinja)),
        (None | Some("tokenizer_default"), _) => own(),
        (Some(name), _) => {
            let fallback = name.strip_prefix("tokenizer_default_fallback_");
            let has_own =
                |path: &PathBuf| pipe_files::TemplateTexts::read(path).is_ok_and(|info| info.chat_template.is_some());
            if fallback.is_some() && tokenizer.is_some_and(has_own) {
                return own();
            }
            let name = fallback.unwrap_or(name);
            match (builtin::text(name), project.place(name)) {
                (Some(text), _) => Ok(TemplateSource::Text(text.to_string())),
                (None, Place::Local(path)) => Ok(TemplateSource::File(path)),
                (None, _) => {
                    let why = find(name).err().map(|error| error.to_string()).unwrap_or_default();
                    Err(problem("chat-template", "chat_template", why))
                }
            }
        }
    }
}

/// What is published beside weights: the tokenizer, and the template of the first dataset that uses one.
pub fn companions(recipe: &Recipe, project: &Project, model: &BaseModel) -> Result<Companions, Problem> {
    let tokenizer = tokenizer_path(recipe, project, Some(model)).unwrap_or_else(|| model.path.clone());
    let named = recipe.chat_template.is_some() || recipe.chat_template_jinja.is_some();
    let trained = recipe.datasets.iter().flatten().find(|dataset| uses_template(dataset)).cloned();
    let untrained = || (named && recipe.datasets.is_none()).then(Dataset::default);
    let template = match trained.or_else(untrained) {
        Some(dataset) => template_source(recipe, project, Some(&tokenizer), &dataset)?,
        None => TemplateSource::Unused,
    };
    Ok(Companions { tokenizer, template, special: special(recipe) })
}

fn prompt_style(recipe: &Recipe, tokenizer: Option<&Path>, dataset: &Dataset) -> Result<PromptStyle, Problem> {
    let own = recipe.special_tokens.as_ref().and_then(|special| special.eos_token.clone());
    let eos = || own.or_else(|| eos_text(tokenizer?)).unwrap_or_default();
    Ok(match &dataset.kind {
        Some(DatasetType::UserDefined(words)) => {
            PromptStyle::user_defined(words).map_err(|why| problem("bad-value", "datasets", why))?
        }
        Some(DatasetType::Named(format)) => PromptStyle::of(format.words(), eos),
        None => PromptStyle::alpaca(),
    })
}

fn eos_text(tokenizer: &Path) -> Option<String> {
    let info = pipe_files::TemplateTexts::read(tokenizer).ok()?;
    Some(special_texts(&info).eos)
}

fn tokenize(
    recipe: &Recipe,
    project: &Project,
    model: Option<&BaseModel>,
    dataset: &Dataset,
) -> Result<Tokenize, Problem> {
    let missing =
        || problem("missing-key", "base_model", "base_model is missing: the tokenizer is read from it".into());
    let special = recipe.special_tokens.clone().unwrap_or_default();
    let added = special.additional_special_tokens.unwrap_or_default();
    let train_on_eos = dataset.train_on_eos.unwrap_or(TrainOn::Turn);
    Ok(Tokenize {
        roles_to_train: dataset.roles_to_train.clone().unwrap_or_else(|| vec!["assistant".to_string()]),
        train_on_inputs: dataset.train_on_inputs.or(recipe.train_on_inputs).unwrap_or(false),
        train_on_eos,
        train_on_eot: dataset.train_on_eot.unwrap_or(train_on_eos),
        eot_tokens: recipe.eot_tokens.clone().unwrap_or_default(),
        added_tokens: added,
        eos_token: special.eos_token,
        special_in_content: recipe.special_tokens_in_content.unwrap_or(SpecialTokensInContent::Parse),
        tokenizer: tokenizer_path(recipe, project, model).ok_or_else(missing)?,
    })
}

fn pack(recipe: &Recipe, split: SplitName) -> Pack {
    let train = split == SplitName::Train;
    let packing = recipe.sample_packing.unwrap_or(false);
    let length = recipe.sequence_len.unwrap_or(512);
    Pack {
        sequence_len: if train { length } else { recipe.eval_sequence_len.unwrap_or(length) },
        packing: if train { packing } else { recipe.eval_sample_packing.unwrap_or(packing) },
        excess_length: recipe.excess_length_strategy.unwrap_or(crate::recipe::ExcessLength::Drop),
        min_sample_len: recipe.min_sample_len.unwrap_or(2),
        sequential: recipe.sample_packing_sequentially.unwrap_or(false),
        bin_size: recipe.sample_packing_bin_size,
        group_size: recipe.sample_packing_group_size,
        mix: if train { mix(recipe) } else { None },
    }
}

fn split_name(split: SplitName) -> &'static str {
    match split {
        SplitName::Train => "train",
        SplitName::Val => "val",
        SplitName::Test => "test",
    }
}
