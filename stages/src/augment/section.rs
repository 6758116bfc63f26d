//! The keys of `augment`, and what they are with every default filled in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::wording::REQUEST;
use crate::recipe::Mistake;

const DEFAULT_SEED: u64 = 42;
const DEFAULT_REPLY: &str = "I have read it. What would you like to know?";
const DEFAULT_SWAP: &str = "Write the message that this is the answer to:\n\n{answer}";

/// How training rows are multiplied. Validation and test rows are never touched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSection {
    /// How often each row occurs.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub repeat: Option<u64>,
    /// Ways to word a request, with `{request}` for the row's own; each row gains `copies` reworded copies.
    #[schemars(extend("examples" = [["{request}, please.", "Could you tell me: {request}"]]))]
    pub paraphrase: Option<Vec<String>>,
    /// Reworded copies of each row, each with another of the `paraphrase` templates.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub copies: Option<u64>,
    /// Copies whose requests are mistyped as people do.
    pub noise: Option<NoiseSection>,
    /// A copy of each row in which the roles change places: the model learns to ask what it was asked.
    pub swap_roles: Option<SwapSection>,
    /// A copy of each conversation whose first message has paragraphs: the context comes first, the question afterwards.
    pub dialogue: Option<DialogueSection>,
    /// Rows written by a model behind an OpenAI-style endpoint.
    pub endpoint: Option<EndpointSection>,
    /// Another seed makes other choices.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
}

/// Mistyped copies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseSection {
    /// Share of words that are mistyped.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1.0), extend("default" = 0.05))]
    pub rate: Option<f64>,
    /// Copies of each row.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub copies: Option<u64>,
    /// Mistakes that are made; all of them when unset.
    pub kinds: Option<Vec<Typo>>,
}

/// Mistakes of the fingers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Typo {
    /// Two letters change places.
    Swap,
    /// A letter is missing.
    Drop,
    /// A letter is there twice.
    Double,
    /// The key beside the right one.
    Neighbour,
    /// The case of the first letter.
    Case,
}

/// Exchanged roles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SwapSection {
    /// What is asked in a row of one turn; `{answer}` stands for the row's answer.
    #[schemars(extend("default" = "Write the message that this is the answer to:\n\n{answer}"))]
    pub prompt: Option<String>,
}

/// Context and question in turns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DialogueSection {
    /// What the assistant says to the context; it is not trained.
    #[schemars(extend("default" = "I have read it. What would you like to know?"))]
    pub reply: Option<String>,
}

/// A model that writes rows, and what it may cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSection {
    /// Where `/chat/completions` is, such as `https://api.openai.com/v1` or `http://127.0.0.1:8080/v1`.
    pub url: Option<String>,
    /// The model's name there.
    pub model: Option<String>,
    /// Environment variable that holds the API key; the key itself is never stored.
    pub api_key_env: Option<String>,
    /// What the model does with a row.
    #[schemars(extend("default" = "rephrase"))]
    pub task: Option<EndpointTask>,
    /// Instruction in place of the task's own; `{request}`, `{answer}` and `{text}` stand for parts of the row.
    pub prompt: Option<String>,
    /// New rows for each row.
    #[schemars(range(min = 1, max = 100), extend("default" = 1))]
    pub copies: Option<u64>,
    /// Rows that are sent at most, chosen by content.
    #[schemars(range(min = 1))]
    pub rows: Option<u64>,
    /// Randomness of answers.
    #[schemars(range(min = 0.0, max = 2.0), extend("default" = 0.7))]
    pub temperature: Option<f64>,
    /// Longest answer, in tokens.
    #[schemars(range(min = 1), extend("default" = 1024))]
    pub max_tokens: Option<u64>,
    /// Requests at once.
    #[schemars(range(min = 1, max = 256), extend("default" = 4))]
    pub parallel: Option<u64>,
    /// Requests sent in a minute at most.
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u64>,
    /// How often a request that failed is sent again, each time after a longer wait.
    #[schemars(range(min = 0, max = 20), extend("default" = 5))]
    pub retries: Option<u64>,
    /// Seconds after which a request counts as failed.
    #[schemars(range(min = 1), extend("default" = 120))]
    pub timeout: Option<u64>,
    /// Price of a million tokens that are sent, for the cost report.
    #[schemars(range(min = 0.0))]
    pub input_price: Option<f64>,
    /// Price of a million tokens that are written.
    #[schemars(range(min = 0.0))]
    pub output_price: Option<f64>,
    /// Stop when this much has been spent; what was answered is kept.
    #[schemars(range(min = 0.0))]
    pub max_cost: Option<f64>,
}

/// What a model does with a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointTask {
    /// Words the request anew; the answer stays.
    #[default]
    Rephrase,
    /// Writes a new request and its answer, with the row as example.
    SelfInstruct,
    /// Writes a conversation about what the row says.
    Dialogue,
}

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Augment {
    pub repeat: u64,
    pub paraphrase: Vec<String>,
    /// At most as many as there are templates; 0 without any.
    pub copies: u64,
    pub noise: Option<Noise>,
    /// The prompt of swapped rows of one turn.
    pub swap: Option<String>,
    /// The reply to a context.
    pub dialogue: Option<String>,
    pub endpoint: Option<Endpoint>,
    /// 0 where nothing is chosen.
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Noise {
    pub rate: f64,
    pub copies: u64,
    pub kinds: Vec<Typo>,
}

/// How an endpoint is used; what cannot change its answers is no part of the key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    pub url: String,
    pub model: String,
    pub task: EndpointTask,
    pub prompt: Option<String>,
    pub copies: u64,
    pub rows: Option<u64>,
    pub temperature: f64,
    pub max_tokens: u64,
    #[serde(skip)]
    pub api_key_env: Option<String>,
    #[serde(skip)]
    pub parallel: usize,
    #[serde(skip)]
    pub requests_per_minute: Option<u64>,
    #[serde(skip)]
    pub retries: u64,
    #[serde(skip)]
    pub timeout: u64,
    #[serde(skip)]
    pub input_price: Option<f64>,
    #[serde(skip)]
    pub output_price: Option<f64>,
    #[serde(skip)]
    pub max_cost: Option<f64>,
    /// What stands before a key's name where it is written, for messages.
    #[serde(skip)]
    pub place: &'static str,
}

impl Augment {
    /// Fills the defaults in.
    pub fn resolve(section: Option<&AugmentSection>) -> Augment {
        let section = section.cloned().unwrap_or_default();
        let paraphrase = section.paraphrase.unwrap_or_default();
        let copies = section.copies.unwrap_or(1).min(paraphrase.len() as u64);
        let endpoint = section.endpoint.map(|own| Endpoint::resolve(own, "augment.endpoint."));
        let chooses = copies > 0 || section.noise.is_some() || endpoint.is_some();
        Augment {
            repeat: section.repeat.unwrap_or(1).max(1),
            paraphrase,
            copies,
            noise: section.noise.map(|noise| Noise {
                rate: noise.rate.unwrap_or(0.05),
                copies: noise.copies.unwrap_or(1),
                kinds: noise.kinds.unwrap_or_else(|| Typo::ALL.to_vec()),
            }),
            swap: section.swap_roles.map(|swap| swap.prompt.unwrap_or_else(|| DEFAULT_SWAP.to_string())),
            dialogue: section.dialogue.map(|dialogue| dialogue.reply.unwrap_or_else(|| DEFAULT_REPLY.to_string())),
            endpoint,
            seed: if chooses { section.seed.unwrap_or(DEFAULT_SEED) } else { 0 },
        }
    }

    /// Nothing but words are put around requests: a row's copies depend on that row alone, and are not counted by kind.
    pub fn only_words(&self) -> bool {
        self.noise.is_none() && self.swap.is_none() && self.dialogue.is_none() && self.endpoint.is_none()
    }

    pub fn changes_nothing(&self) -> bool {
        self.repeat == 1 && self.copies == 0 && self.only_words()
    }
}

impl Endpoint {
    /// An endpoint that is described outside a recipe, and answers without chance unless told otherwise.
    ///
    /// # Errors
    /// A key that is unknown, missing, of another type, or of no use outside `augment`.
    pub fn of_keys(mut keys: Map<String, Value>, place: &'static str) -> Result<Endpoint, String> {
        if let Some(key) = ["task", "prompt", "copies", "rows"].into_iter().find(|key| keys.contains_key(*key)) {
            return Err(format!("{place}{key}: is for augment alone"));
        }
        keys.entry("temperature").or_insert_with(|| 0.0.into());
        let section: EndpointSection =
            serde_json::from_value(keys.into()).map_err(|error| format!("{}: {error}", place.trim_end()))?;
        match section.mistakes().first() {
            Some(wrong) => Err(format!("{place}{}: {}", wrong.key.trim_start_matches("endpoint."), wrong.why)),
            None => Ok(Endpoint::resolve(section, place)),
        }
    }

    fn resolve(section: EndpointSection, place: &'static str) -> Endpoint {
        Endpoint {
            url: section.url.unwrap_or_default().trim_end_matches('/').to_string(),
            model: section.model.unwrap_or_default(),
            task: section.task.unwrap_or_default(),
            prompt: section.prompt,
            copies: section.copies.unwrap_or(1),
            rows: section.rows,
            temperature: section.temperature.unwrap_or(0.7),
            max_tokens: section.max_tokens.unwrap_or(1024),
            api_key_env: section.api_key_env,
            parallel: section.parallel.unwrap_or(4) as usize,
            requests_per_minute: section.requests_per_minute,
            retries: section.retries.unwrap_or(5),
            timeout: section.timeout.unwrap_or(120),
            input_price: section.input_price,
            output_price: section.output_price,
            max_cost: section.max_cost,
            place,
        }
    }
}

impl AugmentSection {
    /// What is wrong with the section's values.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        for (i, template) in self.paraphrase.iter().flatten().enumerate() {
            if !template.contains(REQUEST) {
                let why = format!("`{template}` does not contain `{REQUEST}`, the place of the row's own text");
                wrong.push(Mistake::value(format!("paraphrase[{i}]"), why, Some(format!("{template} {REQUEST}"))));
            }
        }
        if let Some(prompt) = self.swap_roles.as_ref().and_then(|swap| swap.prompt.as_ref())
            && !prompt.contains("{answer}")
        {
            let why = "does not contain `{answer}`, the place of the row's own answer".to_string();
            wrong.push(Mistake::value("swap_roles.prompt", why, Some(format!("{prompt} {{answer}}"))));
        }
        if let Some(endpoint) = &self.endpoint {
            wrong.extend(endpoint.mistakes());
        }
        wrong
    }
}

impl EndpointSection {
    fn mistakes(&self) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        let mut say = |key: &str, why: &str, instead: Option<&str>| {
            wrong.push(Mistake::value(format!("endpoint.{key}"), why, instead.map(str::to_string)));
        };
        match self.url.as_deref() {
            None => {}
            Some(url) if !(url.starts_with("http://") || url.starts_with("https://")) => {
                say("url", "begins with neither `http://` nor `https://`", Some("http://127.0.0.1:8080/v1"));
            }
            Some(url) if url.trim_end_matches('/').ends_with("/chat/completions") => {
                say("url", "ends in `/chat/completions`, which is added to it", Some("the part before"));
            }
            Some(url) if url.contains('@') => {
                say("url", "holds a password; a recipe is no place for one", Some("api_key_env"));
            }
            Some(_) => {}
        }
        if self.model.as_ref().is_some_and(|model| model.trim().is_empty()) {
            say("model", "is empty: which model is asked?", None);
        }
        if let Some(name) = &self.api_key_env {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.len() < 64;
            if !plain || name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("sk") {
                say(
                    "api_key_env",
                    "is the name of an environment variable, never the key itself",
                    Some("OPENAI_API_KEY"),
                );
            }
        }
        if self.max_cost.is_some() && self.input_price.is_none() && self.output_price.is_none() {
            say("max_cost", "cannot be watched without `input_price` and `output_price`", Some("output_price: 0.6"));
        }
        if self.url.is_none() {
            let url = Some("url: http://127.0.0.1:8080/v1".to_string());
            wrong.push(Mistake::missing("endpoint.url", "is missing: where is the endpoint?", url));
        }
        if self.model.is_none() {
            wrong.push(Mistake::missing("endpoint.model", "is missing: which model is asked?", None));
        }
        wrong
    }
}

impl Typo {
    pub const ALL: [Typo; 5] = [Typo::Swap, Typo::Drop, Typo::Double, Typo::Neighbour, Typo::Case];
}
