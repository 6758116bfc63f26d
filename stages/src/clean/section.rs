//! The keys of `clean`, and what they are with every default filled in.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::language;
use crate::recipe::Mistake;
use crate::recipe::OneOrMany;

const DEFAULT_NEAR_THRESHOLD: f64 = 0.8;
const DEFAULT_NEAR_WORDS: u64 = 5;
const DEFAULT_LANGUAGE_CONFIDENCE: f64 = 0.5;
const DEFAULT_CONTAMINATION_WORDS: u64 = 13;
const DEFAULT_SAMPLES: u64 = 3;

/// Which rows to drop, and what to change in the others. Texts are changed first; rules see what they became.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CleanSection {
    /// Keep the first of equal rows, or of nearly equal ones.
    #[schemars(extend("default" = "none"))]
    pub dedup: Option<Dedup>,
    /// Similarity from which two rows count as nearly equal: the share of word runs in common.
    #[schemars(range(min = 0.1, max = 1.0), extend("default" = 0.8))]
    pub near_threshold: Option<f64>,
    /// Words in a run. Fewer find rewordings, more find copies.
    #[schemars(range(min = 1, max = 50), extend("default" = 5))]
    pub near_words: Option<u64>,
    /// Drop rows without an answer, or without any text.
    #[schemars(extend("default" = true))]
    pub drop_empty: Option<bool>,
    /// Unix line ends, no control or zero-width characters, no white space at the ends of lines and texts, and composed
    /// characters (NFC); `nfkc` makes compatible characters equal as well, such as full-width letters and ligatures.
    #[schemars(extend("default" = false))]
    pub normalize: Option<Normalize>,
    /// Take HTML out: tags, comments, scripts and styles go, entities become characters. Code in fences and backticks stays.
    #[schemars(extend("default" = false))]
    pub strip_html: Option<bool>,
    /// Take out lines that web pages carry around their text: cookie notices, share buttons, copyright lines, navigation.
    #[schemars(extend("default" = false))]
    pub strip_boilerplate: Option<bool>,
    /// Personal data that placeholders such as `[EMAIL]` take the place of; `true` for all kinds.
    #[schemars(extend("default" = false, "examples" = [["email", "phone", "card", "ip", "key"]]))]
    pub redact: Option<Redact>,
    /// Drop rows with fewer characters than this, counted over all texts of the row.
    #[schemars(range(min = 0))]
    pub min_chars: Option<u64>,
    /// Drop rows with more characters than this, counted over all texts of the row.
    #[schemars(range(min = 1))]
    pub max_chars: Option<u64>,
    /// Drop rows with fewer words than this, counted over all texts of the row.
    #[schemars(range(min = 0))]
    pub min_words: Option<u64>,
    /// Drop rows with more words than this, counted over all texts of the row.
    #[schemars(range(min = 1))]
    pub max_words: Option<u64>,
    /// Drop rows in which a smaller share of the characters that are no white space are letters or digits.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_alnum_ratio: Option<f64>,
    /// Drop rows in which a larger share of the runs of three words were there before in the same row.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_repetition: Option<f64>,
    /// Keep rows in these languages only (ISO 639 codes such as `en`); rows too short to tell are kept and counted.
    #[schemars(extend("examples" = [["en", "de"]]))]
    pub languages: Option<Vec<String>>,
    /// How sure the detection of another language must be before a row is dropped.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0.5))]
    pub min_language_confidence: Option<f64>,
    /// Regular expressions: rows in which none of them is found are dropped.
    pub keep_matching: Option<OneOrMany>,
    /// Regular expressions: rows in which one of them is found are dropped.
    #[schemars(extend("examples" = ["(?i)as an ai language model"]))]
    pub drop_matching: Option<OneOrMany>,
    /// What happens to rows with strong language: `drop` them, or `mask` the words with asterisks.
    #[schemars(extend("default" = "keep"))]
    pub profanity: Option<Profanity>,
    /// A file with words of your own beside the built-in list, one a line.
    #[schemars(regex(pattern = r"\S"))]
    pub profanity_list: Option<String>,
    /// What happens to training rows that share text with `test_datasets` or `contamination_files`.
    #[schemars(extend("default" = "ignore"))]
    pub contamination: Option<Contamination>,
    /// Benchmarks that are no `test_datasets`: JSON, JSONL or text files.
    pub contamination_files: Option<OneOrMany>,
    /// Words in the runs that rows must not share.
    #[schemars(range(min = 3, max = 50), extend("default" = 13))]
    pub contamination_words: Option<u64>,
    /// Rows shown for each rule, in the run's statistics and in `dropped.json`.
    #[schemars(range(min = 0, max = 1000), extend("default" = 3))]
    pub samples: Option<u64>,
}

/// Which rows count as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// None: every row stays.
    #[default]
    None,
    /// Rows with equal content.
    Exact,
    /// Rows with equal content, and rows that share most of their words in order.
    Near,
}

/// How far texts are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalize {
    #[default]
    Off,
    /// Invisible differences, and composed characters.
    Nfc,
    /// Compatible characters too.
    Nfkc,
}

/// What happens to strong language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profanity {
    #[default]
    Keep,
    /// The words lose all letters but the first.
    Mask,
    /// The row goes.
    Drop,
}

/// What happens to training rows that evaluation rows share text with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Contamination {
    #[default]
    Ignore,
    /// They stay, and are counted and shown.
    Warn,
    Drop,
}

/// Kinds of personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pii {
    /// Mail addresses.
    Email,
    /// Telephone numbers.
    Phone,
    /// Payment cards whose check digit is right.
    Card,
    /// IP addresses, but for loopback and unspecified ones.
    Ip,
    /// API keys, tokens and private keys.
    Key,
}

/// All kinds of personal data, or some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redact(pub Vec<Pii>);

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clean {
    pub dedup: Dedup,
    /// Threshold and words of a run, only where `dedup` is near.
    pub near: Option<(f64, u64)>,
    pub drop_empty: bool,
    pub normalize: Normalize,
    pub strip_html: bool,
    pub strip_boilerplate: bool,
    pub redact: Vec<Pii>,
    pub min_chars: Option<u64>,
    pub max_chars: Option<u64>,
    pub min_words: Option<u64>,
    pub max_words: Option<u64>,
    pub min_alnum_ratio: Option<f64>,
    pub max_repetition: Option<f64>,
    /// Codes of three letters.
    pub languages: Vec<String>,
    /// Only where there are languages.
    pub min_language_confidence: Option<f64>,
    pub keep_matching: Vec<String>,
    pub drop_matching: Vec<String>,
    pub profanity: Profanity,
    pub contamination: Contamination,
    /// Only where contamination is looked for.
    pub contamination_words: Option<u64>,
    pub samples: u64,
    /// Read for its words; its content is in the key, its path is not.
    #[serde(skip)]
    pub profanity_list: Option<PathBuf>,
    #[serde(skip)]
    pub contamination_files: Vec<PathBuf>,
}

impl Clean {
    /// Fills the defaults in. Paths are the caller's to resolve.
    pub fn resolve(section: Option<&CleanSection>) -> Clean {
        let section = section.cloned().unwrap_or_default();
        let dedup = section.dedup.unwrap_or_default();
        let near = (
            section.near_threshold.unwrap_or(DEFAULT_NEAR_THRESHOLD),
            section.near_words.unwrap_or(DEFAULT_NEAR_WORDS),
        );
        let languages: Vec<String> =
            section.languages.iter().flatten().filter_map(|code| language::code(code)).map(str::to_string).collect();
        let confidence = section.min_language_confidence.unwrap_or(DEFAULT_LANGUAGE_CONFIDENCE);
        let contamination = section.contamination.unwrap_or_default();
        let looks = contamination != Contamination::Ignore;
        let list = |patterns: Option<OneOrMany>| patterns.unwrap_or_default().0;
        Clean {
            dedup,
            near: (dedup == Dedup::Near).then_some(near),
            drop_empty: section.drop_empty.unwrap_or(true),
            normalize: section.normalize.unwrap_or_default(),
            strip_html: section.strip_html.unwrap_or(false),
            strip_boilerplate: section.strip_boilerplate.unwrap_or(false),
            redact: section.redact.unwrap_or_default().0,
            min_chars: section.min_chars.filter(|&least| least > 0),
            max_chars: section.max_chars,
            min_words: section.min_words.filter(|&least| least > 0),
            max_words: section.max_words,
            min_alnum_ratio: section.min_alnum_ratio.filter(|&least| least > 0.0),
            max_repetition: section.max_repetition,
            min_language_confidence: (!languages.is_empty()).then_some(confidence),
            languages,
            keep_matching: list(section.keep_matching),
            drop_matching: list(section.drop_matching),
            profanity: section.profanity.unwrap_or_default(),
            contamination,
            contamination_words: looks.then_some(section.contamination_words.unwrap_or(DEFAULT_CONTAMINATION_WORDS)),
            samples: section.samples.unwrap_or(DEFAULT_SAMPLES),
            profanity_list: None,
            contamination_files: Vec::new(),
        }
    }
}

impl CleanSection {
    /// What is wrong with the section's values.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        for (i, name) in self.languages.iter().flatten().enumerate() {
            if language::code(name).is_none() {
                let why = format!("`{name}` is no language that can be told: use an ISO 639 code");
                wrong.push(Mistake::value(format!("languages[{i}]"), why, Some("en".to_string())));
            }
        }
        for (key, patterns) in [("keep_matching", &self.keep_matching), ("drop_matching", &self.drop_matching)] {
            for pattern in patterns.iter().flat_map(|list| &list.0) {
                if let Err(error) = Regex::new(pattern) {
                    let why = error.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    let why = format!("`{pattern}` is not a regular expression: {why}");
                    wrong.push(Mistake::value(key, why, None));
                }
            }
        }
        let bounds = [
            ("min_chars", self.min_chars, "max_chars", self.max_chars),
            ("min_words", self.min_words, "max_words", self.max_words),
        ];
        for (low, least, high, most) in bounds {
            if let (Some(least), Some(most)) = (least, most)
                && least > most
            {
                let why = format!("is {least} and `clean.{high}` {most}: every row would be dropped");
                wrong.push(Mistake::value(low, why, Some(format!("at most {most}"))));
            }
        }
        wrong
    }

    /// Keys that say how to do what is not asked for: the key, and what would ask for it.
    pub fn idle(&self) -> Vec<(&'static str, &'static str)> {
        let near = self.dedup == Some(Dedup::Near);
        let checks = self.contamination.is_some_and(|action| action != Contamination::Ignore);
        let swears = self.profanity.is_some_and(|action| action != Profanity::Keep);
        let all = [
            ("near_threshold", self.near_threshold.is_some() && !near, "dedup: near"),
            ("near_words", self.near_words.is_some() && !near, "dedup: near"),
            (
                "min_language_confidence",
                self.min_language_confidence.is_some() && self.languages.is_none(),
                "languages: [en]",
            ),
            ("profanity_list", self.profanity_list.is_some() && !swears, "profanity: drop"),
            ("contamination_files", self.contamination_files.is_some() && !checks, "contamination: warn"),
            ("contamination_words", self.contamination_words.is_some() && !checks, "contamination: warn"),
        ];
        all.into_iter().filter(|(_, idle, _)| *idle).map(|(key, _, instead)| (key, instead)).collect()
    }
}

impl Pii {
    pub const ALL: [Pii; 5] = [Pii::Email, Pii::Phone, Pii::Card, Pii::Ip, Pii::Key];

    pub fn name(self) -> &'static str {
        match self {
            Pii::Email => "email",
            Pii::Phone => "phone",
            Pii::Card => "card",
            Pii::Ip => "ip",
            Pii::Key => "key",
        }
    }
}

impl Normalize {
    fn name(self) -> &'static str {
        match self {
            Normalize::Off => "off",
            Normalize::Nfc => "nfc",
            Normalize::Nfkc => "nfkc",
        }
    }
}

impl<'de> Deserialize<'de> for Normalize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Normalize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, nfc or nfkc")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Normalize, E> {
                Ok(if on { Normalize::Nfc } else { Normalize::Off })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Normalize, E> {
                match text {
                    "nfc" => Ok(Normalize::Nfc),
                    "nfkc" => Ok(Normalize::Nfkc),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for Normalize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Normalize::Off => to.serialize_bool(false),
            form => to.serialize_str(form.name()),
        }
    }
}

impl JsonSchema for Normalize {
    fn schema_name() -> Cow<'static, str> {
        "Normalize".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["nfc", "nfkc"]}]})
    }
}

impl<'de> Deserialize<'de> for Redact {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Redact;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a list of kinds")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Redact, E> {
                Ok(Redact(if on { Pii::ALL.to_vec() } else { Vec::new() }))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Redact, A::Error> {
                let mut kinds = Vec::new();
                while let Some(kind) = seq.next_element::<Pii>()? {
                    kinds.push(kind);
                }
                // The order of the list says nothing.
                kinds.sort_unstable();
                kinds.dedup();
                Ok(Redact(kinds))
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for Redact {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl JsonSchema for Redact {
    fn schema_name() -> Cow<'static, str> {
        "Redact".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kind = generator.subschema_for::<Pii>();
        json_schema!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": kind}]})
    }
}
