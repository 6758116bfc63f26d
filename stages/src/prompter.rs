//! From conversations to a model's tokens and back: the chat template, the tokenizer, and what ends an answer.

use std::path::Path;
use std::sync::Arc;

use pipe_engine::task::TaskError;
use pipe_files::{TemplateFingerprint, Tokenizer, TokenizerInfo};
use serde_json::{Map, Value, json};

use crate::fingerprint::{self, fingerprint};
use crate::template::render::{ChatTemplate, SpecialTexts, TemplateError, find, special_texts};

/// A message of a conversation, as OpenAI and chat templates have it.
pub type Message = Map<String, Value>;

/// One model's way of writing conversations.
pub struct Prompter {
    tokenizer: Arc<Tokenizer>,
    /// Or why there is none.
    template: Result<ChatTemplate, String>,
    /// Ids that end an answer.
    pub stops: Vec<i64>,
    /// What is to be said of it: that conversations are not written as the model was trained on.
    pub warning: Option<String>,
    used: Option<TemplateFingerprint>,
}

/// What to do where the template is another one: it was named.
const NAMED: &str = "leave the chat template out, and its own is used";
/// It is the model's or the adapter's own, and not as it was.
const EDITED: &str =
    "its chat_template was changed after training: put back the one it was trained with, or train it anew";
/// It is the base model's, for the adapter has none beside it.
const ABSENT: &str = "name the chat template that it was trained with, or put it beside the adapter";

/// How a model's own files say it is sampled from; absent where they are silent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<usize>,
    pub repetition_penalty: Option<f64>,
}

impl Prompter {
    /// For the model in a Hugging Face folder or GGUF file. `template` names another than the model's own.
    ///
    /// # Errors
    /// A tokenizer that cannot be read, or a template that is named and cannot be had. A model without a template of its
    /// own is fine until a conversation is asked of it.
    pub fn open(model: &Path, template: Option<&str>) -> Result<Prompter, TaskError> {
        let tokenizer = pipe_files::tokenizer(model).map_err(input)?;
        let info = TokenizerInfo::read(model).map_err(input)?;
        let special =
            SpecialTexts { bos: text(&info.bos), eos: text(&info.eos), pad: text(&info.pad), unk: text(&info.unk) };
        let texts = match template {
            Some(name) => Ok(named(name, special)?),
            None => match find(&model.display().to_string()) {
                Ok(texts) => Ok(texts),
                Err(error @ TemplateError::None { .. }) => Err(error.to_string()),
                Err(error) => return Err(input(error)),
            },
        };
        let how = if template.is_some() { NAMED } else { EDITED };
        Prompter::new(Arc::new(tokenizer), texts, info.stop_ids(), (model, how))
    }

    /// The same model tuned by the adapter in `folder`: with the template that lies beside it, where one does.
    pub fn adapted(&self, folder: &Path, model: &Path, template: Option<&str>) -> Result<Prompter, TaskError> {
        let own = pipe_files::TemplateTexts::read(folder).ok();
        let Some((text, texts)) = own.and_then(|own| Some((own.chat_template.clone()?, own))) else {
            let how = if template.is_some() { NAMED } else { ABSENT };
            return Ok(Self::open(model, template)?.checked(folder, how));
        };
        if template.is_some() {
            return Ok(Self::open(model, template)?.checked(folder, NAMED));
        }
        let mut special = special_texts(&texts);
        if special == SpecialTexts::default() {
            special = crate::template::render::specials(model).map_err(input)?;
        }
        let stops = TokenizerInfo::read(model).map_err(input)?.stop_ids();
        Prompter::new(self.tokenizer.clone(), Ok((text, special)), stops, (folder, EDITED))
    }

    fn new(
        tokenizer: Arc<Tokenizer>,
        texts: Result<(String, SpecialTexts), String>,
        stops: Vec<i64>,
        (trained, cure): (&Path, &str),
    ) -> Result<Prompter, TaskError> {
        let used = texts.as_ref().ok().map(|(text, special)| fingerprint(text, special, &tokenizer));
        let template = match texts {
            Ok((text, special)) => Ok(ChatTemplate::parse(&text, &special).map_err(input)?),
            Err(why) => Err(why),
        };
        let mut prompter = Prompter { tokenizer, template, stops, used, warning: None };
        prompter.stop_at_turns();
        Ok(prompter.checked(trained, cure))
    }

    /// With a warning where the model or adapter at `trained` was trained on conversations that were written otherwise.
    fn checked(mut self, trained: &Path, cure: &str) -> Prompter {
        self.warning = self.used.as_ref().and_then(|used| fingerprint::warning(trained, used, cure));
        self
    }

    /// A conversation as the tokens after which an answer begins.
    ///
    /// # Errors
    /// What the template or its absence has to say.
    pub fn conversation(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        kwargs: &Map<String, Value>,
    ) -> Result<Vec<i64>, String> {
        let template = self.template.as_ref().map_err(Clone::clone)?;
        let text = template.render(messages, tools, kwargs, true).map_err(|error| error.to_string())?;
        self.encode(&text, false)
    }

    /// A text as tokens, with what the tokenizer puts around texts.
    pub fn text(&self, text: &str) -> Result<Vec<i64>, String> {
        self.encode(text, true)
    }

    /// A reader of an answer's tokens. Special tokens are left out unless they are `kept`.
    pub fn reader(&self, kept: bool) -> AnswerText {
        AnswerText { tokenizer: self.tokenizer.clone(), skip: !kept, ids: Vec::new(), told: 0, read: 0 }
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, String> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|error| format!("tokenising: {error}"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Adds the special token that the template puts behind an answer, which is not in every model's list.
    fn stop_at_turns(&mut self) {
        const PROBE: &str = "probe7answer";
        let Ok(template) = &self.template else { return };
        let messages = [message("user", "a"), message("assistant", PROBE)];
        let Ok(text) = template.render(&messages, None, &Map::new(), false) else { return };
        let Some((_, after)) = text.rsplit_once(PROBE) else { return };
        let Ok(first) = self.encode(after.trim_start(), false) else { return };
        let Some(&id) = first.first() else { return };
        let added = self.tokenizer.get_added_tokens_decoder();
        let special = u32::try_from(id).ok().and_then(|id| added.get(&id)).is_some_and(|token| token.special);
        if special && !self.stops.contains(&id) {
            self.stops.push(id);
        }
    }
}

/// An answer's text as its tokens come. Bytes of an unfinished character are held back until it is whole.
pub struct AnswerText {
    tokenizer: Arc<Tokenizer>,
    skip: bool,
    ids: Vec<u32>,
    /// Tokens whose text has been given.
    told: usize,
    /// The first token of the stretch that is decoded anew, so that what depends on neighbours comes out right.
    read: usize,
}

impl AnswerText {
    /// Takes a token; gives the text that it completes.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        self.more(false)
    }

    /// The rest: an unfinished character as the replacement character.
    pub fn finish(&mut self) -> String {
        self.more(true)
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn more(&mut self, all: bool) -> String {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip).unwrap_or_default();
        let (before, now) = (decode(&self.ids[self.read..self.told]), decode(&self.ids[self.read..]));
        if (now.ends_with('\u{fffd}') && !all) || now.len() <= before.len() {
            return String::new();
        }
        let more = now.get(before.len()..).unwrap_or_default().to_string();
        self.read = self.told;
        self.told = self.ids.len();
        more
    }
}

/// What `generation_config.json` beside a model says of sampling.
pub fn sampling_defaults(model: &Path) -> SamplingDefaults {
    let read = std::fs::read(model.join("generation_config.json"));
    let file: Value = read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let number = |key: &str| file.get(key).and_then(Value::as_f64);
    SamplingDefaults {
        temperature: number("temperature").filter(|t| *t >= 0.0),
        top_p: number("top_p").filter(|p| *p > 0.0 && *p <= 1.0),
        top_k: file.get("top_k").and_then(Value::as_u64).map(|k| k as usize),
        repetition_penalty: number("repetition_penalty").filter(|p| *p > 0.0),
    }
}

/// A message of plain text.
pub fn message(role: &str, content: &str) -> Message {
    [("role", json!(role)), ("content", json!(content))].into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

fn named(name: &str, special: SpecialTexts) -> Result<(String, SpecialTexts), TaskError> {
    let (text, own) = find(name).map_err(input)?;
    Ok((text, if own == SpecialTexts::default() { special } else { own }))
}

fn text(token: &Option<pipe_files::SpecialToken>) -> String {
    token.as_ref().map(|token| token.text.clone()).unwrap_or_default()
}

fn input(error: impl std::fmt::Display) -> TaskError {
    TaskError::Input(error.to_string())
}
