//! `pipe template render`: one conversation through a chat template, byte for byte.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pipe_stages::template::render::{ChatTemplate, TemplateError, find, specials};
use serde_json::{Map, Value};

use crate::failure::{Failure, Outcome};
use crate::report;

/// Chat templates.
#[derive(Args, Debug)]
pub struct TemplateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Render one conversation; prints exactly the rendered bytes.
    Render(RenderArgs),
}

#[derive(Args, Debug)]
struct RenderArgs {
    /// A built-in name, a .jinja file, a model or tokenizer folder, or a GGUF file.
    #[arg(long, value_name = "T")]
    template: String,
    /// JSON: a list of messages, or an object with `messages` and perhaps `tools`. `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// JSON list of tools.
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Template arguments, such as {"enable_thinking": false}.
    #[arg(long, value_name = "JSON")]
    kwargs: Option<String>,
    /// Folder or GGUF whose bos, eos and pad tokens the template sees; default: the template's own folder.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Do not end with the words that begin an answer.
    #[arg(long)]
    no_generation_prompt: bool,
}

pub fn template(args: &TemplateArgs) -> Outcome {
    let Action::Render(args) = &args.action;
    render(args)
}

fn render(args: &RenderArgs) -> Outcome {
    let (source, mut special) = find(&args.template).map_err(|e| refused(&e))?;
    if let Some(tokenizer) = &args.tokenizer {
        special = specials(tokenizer).map_err(|e| refused(&e))?;
    }
    let (messages, own_tools) = conversation(&args.messages)?;
    let tools = args.tools.as_deref().map(json).transpose()?.or(own_tools);
    let template = ChatTemplate::parse(&source, &special).map_err(|e| refused(&e))?;
    let kwargs = kwargs(args.kwargs.as_deref())?;
    let text =
        template.render(&messages, tools.as_ref(), &kwargs, !args.no_generation_prompt).map_err(|e| refused(&e))?;
    report::bytes(text.as_bytes());
    Ok(())
}

/// Whatever a template refuses was given by the user.
fn refused(error: &TemplateError) -> Failure {
    Failure::invalid(error.to_string())
}

/// Messages, and tools where the file brings them.
type Conversation = (Vec<Map<String, Value>>, Option<Value>);

fn conversation(path: &Path) -> Result<Conversation, Failure> {
    let wrong = |what: &str| {
        Failure::invalid(format!("{}: {what}", path.display()))
            .hint(r#"write a JSON list such as [{"role": "user", "content": "Hello"}]"#)
    };
    let (list, tools) = match json(path)? {
        Value::Array(list) => (list, None),
        Value::Object(mut object) => {
            let tools = object.remove("tools").filter(|tools| !tools.is_null());
            match object.remove("messages") {
                Some(Value::Array(list)) => (list, tools),
                _ => return Err(wrong("the object has no list `messages`")),
            }
        }
        _ => return Err(wrong("this is neither a list of messages nor an object with `messages`")),
    };
    let messages = list.into_iter().enumerate().map(|(i, message)| match message {
        Value::Object(message) => Ok(message),
        _ => Err(wrong(&format!("message {} is not an object", i + 1))),
    });
    Ok((messages.collect::<Result<_, _>>()?, tools))
}

fn kwargs(text: Option<&str>) -> Result<Map<String, Value>, Failure> {
    match text.map(serde_json::from_str::<Value>) {
        None => Ok(Map::new()),
        Some(Ok(Value::Object(kwargs))) => Ok(kwargs),
        Some(Ok(_)) => Err(Failure::invalid("--kwargs wants a JSON object, such as {\"enable_thinking\": false}")),
        Some(Err(e)) => Err(Failure::invalid(format!("--kwargs is not JSON: {e}"))),
    }
}

fn json(path: &Path) -> Result<Value, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        Failure::invalid(format!("{}:{line}:{column}: this is not JSON: {e}", path.display()))
    })
}
