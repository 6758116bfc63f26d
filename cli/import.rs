//! `pipe recipes import`: a recipe from another tool's configuration.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pipe_stages::import::{self, Imported, Source, Tool};

use crate::failure::{Failure, Outcome};
use crate::report;

/// Write a recipe that does what another tool's configuration says, and list what could not be carried over.
///
/// LLaMA-Factory, XTuner and torchtune: name the file. alpaca-lora and TRL: give the script's flags after `--`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    pipe recipes import --from llama-factory qwen3_lora_sft.yaml --output recipe.yml\n  \
    pipe recipes import --from xtuner internlm2_1_8b_qlora_alpaca_e3.py\n  \
    pipe recipes import --from trl -- sft --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/Capybara")]
pub struct ImportArgs {
    /// The tool whose configuration it is.
    #[arg(long, value_enum, value_name = "TOOL")]
    from: From,
    /// Its configuration file.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where the recipe goes; standard output when unset.
    #[arg(short, long, value_name = "RECIPE")]
    output: Option<PathBuf>,
    /// Replace RECIPE if it exists.
    #[arg(long, requires = "output")]
    force: bool,
    /// The script's flags.
    #[arg(last = true, value_name = "FLAGS", allow_hyphen_values = true)]
    flags: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    LlamaFactory,
    Xtuner,
    Torchtune,
    AlpacaLora,
    Trl,
}

pub fn import(args: &ImportArgs) -> Outcome {
    let tool = match args.from {
        From::LlamaFactory => Tool::LlamaFactory,
        From::Xtuner => Tool::Xtuner,
        From::Torchtune => Tool::Torchtune,
        From::AlpacaLora => Tool::AlpacaLora,
        From::Trl => Tool::Trl,
    };
    let source = source(args, tool)?;
    if let Some(output) = args.output.as_deref().filter(|output| output.exists() && !args.force) {
        return Err(Failure::invalid(format!("{} exists already", output.display())).hint("--force replaces it"));
    }
    let folder = args.output.as_deref().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    let imported = import::import(tool, &source, folder.unwrap_or(Path::new("."))).map_err(|error| {
        let failure = Failure::invalid(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    match &args.output {
        Some(output) => write(output, &imported.text)?,
        None => report::print(&imported.text),
    }
    tell(&imported, tool);
    Ok(())
}

fn source(args: &ImportArgs, tool: Tool) -> Result<Source, Failure> {
    match (&args.file, args.flags.as_slice()) {
        (Some(_), [_, ..]) => Err(Failure::invalid("give a file or flags, not both")),
        (Some(file), []) => Ok(Source::File(file.clone())),
        (None, flags @ [_, ..]) => Ok(Source::Flags(flags.to_vec())),
        (None, []) if tool.takes_flags() => {
            let hint = "pipe recipes import --from ... -- --flag value ...";
            Err(Failure::invalid(format!("{}'s settings are flags, and there are none", tool.title())).hint(hint))
        }
        (None, []) => Err(Failure::invalid(format!("name the configuration file of {}", tool.title()))),
    }
}

fn write(output: &Path, text: &str) -> Outcome {
    let written = output.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(output, text));
    written.map_err(|e| Failure::invalid(format!("cannot write {}: {e}", output.display())))?;
    report::note(&format!("wrote {0}; check it with: pipe validate {0}", output.display()));
    Ok(())
}

/// What could not be carried over, and what the recipe still lacks.
fn tell(imported: &Imported, tool: Tool) {
    if !imported.lost.is_empty() {
        report::note(&format!("not carried over from {}:", tool.title()));
        let lines: Vec<String> = imported.lost.iter().map(|lost| format!("  {}: {}", lost.what, lost.why)).collect();
        report::error_lines(&lines);
    }
    if !imported.problems.is_empty() {
        report::note("the recipe still needs:");
        let told = imported.problems.iter().map(|problem| format!("  {}", problem.message));
        report::error_lines(&told.collect::<Vec<_>>());
    }
}
