//! `pipe eval`: how good a model is on rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indexmap::IndexMap;
use pipe_engine::digest::Digest;
use pipe_engine::event::{Event, Sink};
use pipe_engine::plan::{self, Input, Node, NodeName};
use pipe_engine::task::{Cancel, Context, SourceFile, Summary, Task, TaskError, View};
use pipe_stages::compile::{Machine, TRAINED, compile};
use pipe_stages::inspect;
use serde_json::{Value, json};

use crate::alone::Made;
use crate::args::key_value;
use crate::compare::{CompareArgs, compare};
use crate::failure::{Failure, Outcome};
use crate::report::format::count;
use crate::report::scores;
use crate::report::summary::Measured;
use crate::{alone, job, report};

/// Rows are cut to this many tokens unless the model or the command says otherwise.
const LONGEST: u64 = 2048;

/// Measure a model on rows: perplexity, exact match, and what `--set eval.metrics=[...]` asks for.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// A Hugging Face folder or a GGUF file.
    #[arg(value_name = "MODEL", required_unless_present = "compare", conflicts_with = "compare")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pub comparison: CompareArgs,
    /// Rows to measure on.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// PEFT adapter folder.
    #[arg(long, value_name = "DIR", conflicts_with = "compare")]
    adapter: Option<PathBuf>,
    /// Format of the rows, as datasets[].type.
    #[arg(long = "type", value_name = "T", default_value = "chat_template")]
    kind: String,
    /// Longest row in tokens [default: 2048, or what the model was made for if that is less]
    #[arg(long, value_name = "N")]
    sequence_len: Option<u64>,
    /// Set a recipe key. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Write the questions and answers for lm-evaluation-harness into this new folder.
    #[arg(long, value_name = "DIR", conflicts_with = "compare")]
    export: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

pub fn eval(args: &EvalArgs) -> Outcome {
    let Some(model) = &args.model else { return compare(args) };
    let adapter = args.adapter.as_deref().map(alone::existing).transpose()?;
    let export = args.export.as_deref().map(alone::vacant).transpose()?;
    let asked =
        Asked { model: &alone::existing(model)?, adapter: adapter.as_deref(), metrics: &["perplexity", "exact_match"] };
    let evaluated = evaluate(args, &asked, None, &alone::interruptible()?)?;
    let folder = evaluated.outputs.get(&NodeName::new("eval"));
    let measures = folder.and_then(|folder| measures(folder)).ok_or_else(|| {
        let told = format!("no row of {} can be evaluated", args.data.display());
        Failure::stage(told).hint("a row needs a token to predict, and no more tokens than --sequence-len")
    })?;
    if args.json {
        report::json(&measures)
    } else {
        report::print(&text(&measures))
    }
    let exported = folder.map(|folder| folder.join("lm_eval"));
    export.map_or(Ok(()), |to| place(exported.filter(|folder| folder.is_dir()).as_deref(), to))
}

/// Puts what was exported where it was asked for.
fn place(exported: Option<&Path>, to: &Path) -> Outcome {
    let Some(exported) = exported else {
        let told = format!("there is nothing to write into {}: no row was answered", to.display());
        let hint = "a row needs a prompt and an answer, as those of --type alpaca have";
        return Err(Failure::stage(told).hint(hint));
    };
    alone::copy(exported, to)?;
    report::note(&format!("wrote {}", to.display()));
    Ok(())
}

/// A model to evaluate; paths are absolute.
pub struct Asked<'a> {
    pub model: &'a Path,
    pub adapter: Option<&'a Path>,
    pub metrics: &'a [&'a str],
}

/// What evaluating a model left; the outputs are gone with it unless the store was named.
pub struct Evaluated {
    pub outputs: IndexMap<NodeName, PathBuf>,
    _made: Made,
}

/// Evaluates a model on the rows, up to and with the eval stage.
pub fn evaluate(
    args: &EvalArgs,
    asked: &Asked<'_>,
    store: Option<&Path>,
    cancel: &Cancel,
) -> Result<Evaluated, Failure> {
    let Asked { model, adapter, metrics } = asked;
    let longest = inspect::context_length(model).unwrap_or(LONGEST).min(LONGEST);
    let keys = json!({
        "base_model": model,
        "train": false,
        // An adapter folder that has a tokenizer also has the template it was trained with.
        "tokenizer_config": adapter.filter(|folder| folder.join("tokenizer.json").is_file()),
        "sequence_len": args.sequence_len.unwrap_or(longest),
        "test_datasets": [{ "path": alone::existing(&args.data)?, "type": args.kind }],
        "eval": { "metrics": metrics, "baseline": false, "export": args.export.as_ref().map(|_| "lm_eval") },
    });
    let made = alone::recipe_in(store, &keys, &args.set)?;
    let machine = Machine::here(pipe_stages::worker::Worker { program: job::worker()? });
    let mut nodes = compile(&made.opened.recipe, &made.opened.project, &machine).map_err(Failure::problems)?;
    if let Some(adapter) = adapter {
        wire(&mut nodes, adapter);
    }
    let plan = plan::plan(nodes).map_err(|e| Failure::stage(e.to_string()))?;
    let store = made.opened.store()?;
    let outputs = alone::until(&plan, &store, "eval", Arc::new(OnlyWarnings), cancel)?;
    Ok(Evaluated { outputs, _made: made })
}

/// What the contract wants of `eval.json`'s one model and split, and what more it says of them.
fn measures(folder: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(folder.join("eval.json")).ok()?;
    let table: Value = serde_json::from_str(&text).ok()?;
    let (model, splits) = table.get("models")?.as_object()?.iter().next()?;
    let mut metrics = splits.get("test")?.as_object()?.clone();
    let mut take = |name: &str| metrics.shift_remove(name).unwrap_or(Value::Null);
    let [loss, perplexity, tokens, trained] = ["loss", "perplexity", "tokens", "trained_tokens"].map(&mut take);
    let intervals = table.pointer(&format!("/intervals/{model}/test")).cloned();
    Some(json!({
        "eval_loss": loss,
        "perplexity": perplexity,
        "tokens": tokens,
        "trained_tokens": trained,
        "metrics": metrics,
        "intervals": intervals.unwrap_or_else(|| json!({})),
    }))
}

/// One line per measure, with its interval.
fn text(measures: &Value) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |name: &str, measure: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let ends = &measures["intervals"][measure];
        let interval = ends[0].as_f64().zip(ends[1].as_f64()).map(|(low, high)| [low, high]);
        lines.push((name.to_string(), Measured { value, interval }.told(scores::scale(measure))));
    };
    line("loss", "loss", measures["eval_loss"].as_f64());
    line("perplexity", "perplexity", measures["perplexity"].as_f64());
    for (measure, value) in measures["metrics"].as_object().into_iter().flatten().filter(|(name, _)| *name != "rows") {
        line(&scores::spoken(measure), measure, value.as_f64());
    }
    let counts = [("rows", &measures["metrics"]["rows"]), ("trained tokens", &measures["trained_tokens"])];
    lines.extend(counts.iter().filter_map(|(name, number)| Some((name.to_string(), count(number.as_u64()?)))));
    let widest = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, told)| format!("{name:<widest$}  {told}")).collect::<Vec<_>>().join("\n")
}

/// What evaluation has to say of the model and what packing has of rows that are left out, and nothing of the stages before.
struct OnlyWarnings;

impl Sink for OnlyWarnings {
    fn emit(&self, event: Event) {
        if let Event::NodeFinished(done) = &event
            && ["pack", "eval"].contains(&done.node.stage())
        {
            done.warnings.iter().for_each(|warning| report::warning(warning));
        }
    }
}

/// Gives the eval node an adapter that lies outside the store.
fn wire(nodes: &mut Vec<Node>, adapter: &Path) {
    let name = NodeName::new("adapter");
    let task = Arc::new(AdapterFolder { folder: adapter.to_path_buf() });
    nodes.push(Node { name: name.clone(), kind: TRAINED, inputs: Vec::new(), task });
    for node in nodes.iter_mut().filter(|node| node.name.stage() == "eval") {
        node.inputs.push(Input { role: "adapter".to_string(), from: name.clone(), file: None, kind: TRAINED });
    }
}

/// Brings a folder's files into the plan.
struct AdapterFolder {
    folder: PathBuf,
}

impl Task for AdapterFolder {
    fn stage(&self) -> &'static str {
        "adapter"
    }

    fn version(&self) -> String {
        "1".to_string()
    }

    fn params(&self) -> Value {
        Value::Null
    }

    fn files(&self) -> Vec<SourceFile> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        let role = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.map(|path| SourceFile { role: role(&path), path, view: View::Whole }).collect()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        for (role, path) in &ctx.files {
            let bytes = std::fs::read(path).map_err(TaskError::io(format!("reading {}", path.display())))?;
            ctx.report_read(role, Digest::of(&bytes));
            std::fs::write(ctx.out().join(role), bytes).map_err(TaskError::io("copying the adapter"))?;
        }
        Ok(Summary::default())
    }
}
