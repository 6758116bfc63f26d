//! `datasets[].type` by name: which columns a row has, and in whose words it becomes a prompt.
//!
//! One table, read by the schema, by ingest (columns) and by template (words). The names and their columns are Axolotl's;
//! a few formats that people have and Axolotl does not know are added, and `:chat_template` after a one-turn format lets
//! the chat template render it.

use std::borrow::Cow;
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// A row format that a recipe names.
#[derive(Clone, Copy, Debug)]
pub struct Format(&'static Kind);

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: String,
    pub about: String,
    pub reads: Reads,
    pub words: Words,
}

/// The shape of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// A list of messages.
    Chat,
    /// A prompt and its answer.
    OneTurn(OneTurn),
    /// `instruction` and `instances`.
    SelfInstruct,
    /// A text, all of it trained.
    Text,
    /// Pieces of text, each trained or not.
    Segments,
    /// Token ids.
    Tokens,
    /// Told from the columns of the first row.
    Auto,
}

/// The columns of a one-turn row. A value is a column's name, or a text with columns in braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTurn {
    pub system: &'static str,
    pub instruction: &'static str,
    pub input: Input,
    /// The first whose columns are all there.
    pub output: &'static [&'static str],
}

/// The second part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    None,
    /// A column that rows may lack.
    Maybe(&'static str),
    /// A column that rows must have.
    Must(&'static str),
    /// A column that lists the choices of a question.
    Choices(&'static str),
}

/// In whose words a row is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// The chat template's.
    ChatTemplate,
    /// Rows carry their text as it is.
    Own,
    /// The fixed words of a prompt.
    Prompt(Prompter, Turns),
    /// Llama 2's `[INST]` turns.
    Llama2,
    /// Pygmalion's `<|user|>` turns.
    Pygmalion,
}

/// Who words the prompt; the names are those of Axolotl's prompters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompter {
    Alpaca,
    Unprompted,
    Concise,
    MultipleChoiceExplain,
    MultipleChoiceConcise,
    SummarizeTldr,
    Reflect,
    SystemData,
    OpenOrca,
    OrcaMini,
    Context,
    ContextV2,
    CreativeAnswer,
    Creative,
    Metharme,
    /// Prompt and answer, nothing between.
    Raw,
}

/// How a prompter writes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    Instruct,
    Chat,
    Chatml,
    Phi,
}

impl Format {
    /// The format of this name.
    pub fn named(name: &str) -> Option<Format> {
        let name = name.strip_suffix(".load").unwrap_or(name);
        KINDS.iter().find(|kind| kind.name == name).map(Format)
    }

    /// Every format, in the order of the table.
    pub fn all() -> impl Iterator<Item = Format> {
        KINDS.iter().map(Format)
    }

    pub fn pretokenized() -> Format {
        Format::all().find(|format| format.reads() == Reads::Tokens).unwrap_or(Format(&KINDS[0]))
    }

    /// The name written in recipes.
    pub fn name(self) -> &'static str {
        &self.0.name
    }

    pub fn reads(self) -> Reads {
        self.0.reads
    }

    pub fn words(self) -> Words {
        self.0.words
    }

    /// Whether rows are rendered by a chat template.
    pub fn uses_chat_template(self) -> bool {
        self.0.words == Words::ChatTemplate
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Format) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Format {}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        Format::named(&name)
            .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&name), &"the name of a row format"))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl JsonSchema for Format {
    fn schema_name() -> Cow<'static, str> {
        "Format".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |kind: &Kind| serde_json::json!({"type": "string", "const": kind.name, "description": kind.about});
        let options: Vec<_> = KINDS.iter().map(one).collect();
        json_schema!({"description": "Row formats by name.", "oneOf": options})
    }
}

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(kinds);

const INSTRUCTION: OneTurn =
    OneTurn { system: "", instruction: "instruction", input: Input::Maybe("input"), output: &["output"] };
const SYSTEM: OneTurn = OneTurn { system: "system", ..INSTRUCTION };
const ORCA: OneTurn =
    OneTurn { system: "system_prompt", instruction: "question", input: Input::None, output: &["response"] };
const QUESTION: OneTurn = OneTurn { system: "", instruction: "question", input: Input::None, output: &["answer"] };
const CHOICES: OneTurn = OneTurn { input: Input::Choices("choices"), output: &["solution", "explanation"], ..QUESTION };

/// Formats whose turns a suffix chooses, as Axolotl's handlers do.
const STYLED: &[(&str, &str, OneTurn, Prompter)] = &[
    ("alpaca", "`instruction`, `input` (optional), `output`; the alpaca prompt", INSTRUCTION, Prompter::Alpaca),
    (
        "gpteacher",
        "`instruction`, `input` (optional), `response`; the alpaca prompt",
        OneTurn { output: &["response"], ..INSTRUCTION },
        Prompter::Alpaca,
    ),
    (
        "oasst",
        "`INSTRUCTION` and `RESPONSE`; the alpaca prompt",
        OneTurn { system: "", instruction: "INSTRUCTION", input: Input::None, output: &["RESPONSE"] },
        Prompter::Alpaca,
    ),
    (
        "jeopardy",
        "`question`, `category`, `answer`; the answer is put as a question",
        OneTurn { input: Input::Must("category"), output: &["what is {answer}"], ..QUESTION },
        Prompter::Alpaca,
    ),
    (
        "reflection",
        "`instruction`, `input` (optional), `output`, `reflection`, `corrected`",
        OneTurn {
            output: &[
                "### Thought:\n{output}\n\n### Agent Reflection:\n{reflection}\n\n### Final Response:\n{corrected}",
            ],
            ..INSTRUCTION
        },
        Prompter::Reflect,
    ),
    (
        "explainchoice",
        "`question`, `choices`, `solution` or `explanation`; asks for reasons",
        CHOICES,
        Prompter::MultipleChoiceExplain,
    ),
    (
        "concisechoice",
        "`question`, `choices`, `solution` or `explanation`; asks for brevity",
        CHOICES,
        Prompter::MultipleChoiceConcise,
    ),
    (
        "summarizetldr",
        "`article` and `summary`",
        OneTurn { instruction: "article", output: &["summary"], ..QUESTION },
        Prompter::SummarizeTldr,
    ),
];

const SUFFIXES: &[(&str, Turns, &str)] = &[
    ("", Turns::Instruct, ""),
    (":instruct", Turns::Instruct, "; `### Instruction:` headers"),
    (":chat", Turns::Chat, "; turns named `USER:` and `ASSISTANT:`"),
    (":chatml", Turns::Chatml, "; ChatML turns"),
    (":phi", Turns::Phi, "; Phi's `<|user|>` turns"),
];

/// Formats with one wording.
const SINGLE: &[(&str, &str, OneTurn, Prompter, Turns)] = &[
    ("alpaca_chat", "columns as alpaca; `USER:` and `ASSISTANT:`", INSTRUCTION, Prompter::Alpaca, Turns::Chat),
    ("alpaca_chat.load_qa", "`question` and `answer`", QUESTION, Prompter::Concise, Turns::Chat),
    (
        "alpaca_chat.load_concise",
        "columns as alpaca; asks for a concise answer",
        INSTRUCTION,
        Prompter::Concise,
        Turns::Chat,
    ),
    (
        "alpaca_chat.load_camel_ai",
        "`message_1` and `message_2`",
        OneTurn { instruction: "message_1", output: &["message_2"], ..QUESTION },
        Prompter::Concise,
        Turns::Chat,
    ),
    (
        "alpaca_chat.load_no_prompt",
        "columns as alpaca; turns without a preamble",
        INSTRUCTION,
        Prompter::Unprompted,
        Turns::Chat,
    ),
    ("alpaca_instruct", "columns as alpaca; the alpaca prompt", INSTRUCTION, Prompter::Alpaca, Turns::Instruct),
    (
        "alpaca_instruct.load_no_prompt",
        "columns as alpaca; headers without a preamble",
        INSTRUCTION,
        Prompter::Unprompted,
        Turns::Instruct,
    ),
    ("alpaca_w_system", "columns as alpaca and `system`; chat turns", SYSTEM, Prompter::SystemData, Turns::Chat),
    (
        "alpaca_w_system.load_chat",
        "columns as alpaca and `system`; chat turns",
        SYSTEM,
        Prompter::SystemData,
        Turns::Chat,
    ),
    (
        "alpaca_w_system.load_instruct",
        "columns as alpaca and `system`; `### Instruction:` headers",
        SYSTEM,
        Prompter::SystemData,
        Turns::Instruct,
    ),
    (
        "alpaca_w_system.load_open_orca",
        "`system_prompt`, `question`, `response`; `### Human:` headers",
        ORCA,
        Prompter::OpenOrca,
        Turns::Instruct,
    ),
    (
        "alpaca_w_system.load_open_orca_chatml",
        "`system_prompt`, `question`, `response`; ChatML turns",
        ORCA,
        Prompter::OpenOrca,
        Turns::Chatml,
    ),
    (
        "orcamini",
        "`system_prompt`, `question`, `response`; `### User:` headers",
        ORCA,
        Prompter::OrcaMini,
        Turns::Instruct,
    ),
    (
        "context_qa",
        "`article`, `question`, `answer`",
        OneTurn { instruction: "{article}\n===\n{question}", ..QUESTION },
        Prompter::Context,
        Turns::Chat,
    ),
    (
        "context_qa.load_v2",
        "`context`, `question`, `answer`",
        OneTurn {
            instruction: "Context: {context}\nQuestion: {question}\n",
            output: &["Answer: {answer}"],
            ..QUESTION
        },
        Prompter::ContextV2,
        Turns::Chat,
    ),
    (
        "context_qa.load_404",
        "`article` and `unanswerable_question`; the answer is that the article does not say",
        OneTurn {
            instruction: "{article}\n===\n{unanswerable_question}",
            output: &[
                "The context provided does not contain any information about your inquiry. Therefore, I'm unable to \
                       answer your question based on the given context.",
            ],
            ..QUESTION
        },
        Prompter::Context,
        Turns::Chat,
    ),
    (
        "creative_acr.load_answer",
        "`instruction` and `revision`",
        OneTurn { instruction: "instruction", output: &["revision"], ..QUESTION },
        Prompter::CreativeAnswer,
        Turns::Chat,
    ),
    (
        "metharme",
        "`prompt` and `generation`",
        OneTurn { instruction: "prompt", output: &["generation"], ..QUESTION },
        Prompter::Metharme,
        Turns::Instruct,
    ),
    (
        "dolly",
        "`instruction`, `context` (optional), `response`; the alpaca prompt (ours, not Axolotl's)",
        OneTurn { input: Input::Maybe("context"), output: &["response"], ..INSTRUCTION },
        Prompter::Alpaca,
        Turns::Instruct,
    ),
    (
        "prompt_completion",
        "`prompt` and `completion`, nothing between them (ours, not Axolotl's)",
        OneTurn { instruction: "prompt", output: &["completion"], ..QUESTION },
        Prompter::Raw,
        Turns::Instruct,
    ),
    (
        "question_answer",
        "`question` and `answer`; the alpaca prompt (ours, not Axolotl's)",
        QUESTION,
        Prompter::Alpaca,
        Turns::Instruct,
    ),
];

const OTHERS: &[(&str, &str, Reads, Words)] = &[
    (
        "chat_template",
        "`messages` (or `field_messages`) rendered by the chat template",
        Reads::Chat,
        Words::ChatTemplate,
    ),
    ("messages", "as `chat_template`", Reads::Chat, Words::ChatTemplate),
    ("input_output", "`segments`: pieces of text, each trained or not", Reads::Segments, Words::Own),
    ("completion", "`text` (or `field`), all of it trained", Reads::Text, Words::Own),
    ("pretokenized", "`input_ids`, `attention_mask`, `labels`: already tokenised", Reads::Tokens, Words::Own),
    ("llama2_chat", "`conversations` of `from` and `value`; Llama 2's `[INST]` turns", Reads::Chat, Words::Llama2),
    ("pygmalion", "`conversations` of `role` and `value`; Pygmalion's turns", Reads::Chat, Words::Pygmalion),
    (
        "self_instruct",
        "`instruction` and `instances`, each with `input` and `output`; the alpaca prompt (ours, not Axolotl's)",
        Reads::SelfInstruct,
        Words::Prompt(Prompter::Alpaca, Turns::Instruct),
    ),
    (
        "self_instruct:chat_template",
        "columns as self_instruct; rendered with the chat template (ours, not Axolotl's)",
        Reads::SelfInstruct,
        Words::ChatTemplate,
    ),
    (
        "auto",
        "told from the columns of the first row, and rendered with the chat template (ours, not Axolotl's)",
        Reads::Auto,
        Words::ChatTemplate,
    ),
];

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut add = |name: String, about: String, reads, words| {
        kinds.push(Kind { name, about: format!("{about}."), reads, words });
    };
    for (name, about, columns, prompter) in STYLED {
        for (suffix, turns, how) in SUFFIXES {
            let has = *prompter != Prompter::Reflect || matches!(turns, Turns::Instruct | Turns::Chat);
            if has {
                let words = Words::Prompt(*prompter, *turns);
                add(
                    format!("{name}{suffix}"),
                    format!("{about}{how}"),
                    Reads::OneTurn(columns_for(columns, words)),
                    words,
                );
            }
        }
    }
    for (name, about, columns, prompter, turns) in SINGLE {
        add(name.to_string(), about.to_string(), Reads::OneTurn(*columns), Words::Prompt(*prompter, *turns));
    }
    for (name, about, reads, words) in OTHERS {
        add(name.to_string(), about.to_string(), *reads, *words);
    }
    let one_turn = STYLED.iter().map(|(name, _, columns, _)| (name, columns));
    for (name, columns) in one_turn.chain(SINGLE.iter().map(|(name, _, columns, ..)| (name, columns))) {
        let about = format!("columns as {name}; rendered with the chat template (ours, not Axolotl's)");
        add(format!("{name}:chat_template"), about, Reads::OneTurn(*columns), Words::ChatTemplate);
    }
    // Messages show the first dozen: what most recipes want, and no name in five wordings.
    kinds.sort_by_key(|kind| (kind.name != "chat_template", kind.name.contains(':')));
    kinds
}

/// The chat wording of `reflection` ends before the corrected answer, as Axolotl's does.
fn columns_for(columns: &OneTurn, words: Words) -> OneTurn {
    match words {
        Words::Prompt(Prompter::Reflect, Turns::Chat) => {
            OneTurn { output: &["\nTHOUGHT: {output}\nASSISTANT REFLECTION: {reflection}\nASSISTANT:"], ..*columns }
        }
        _ => *columns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_to_their_formats() {
        let names: Vec<&str> = Format::all().map(Format::name).collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(names.len(), unique.len());
        for name in names {
            assert_eq!(Format::named(name).map(Format::name), Some(name));
        }
        assert_eq!(Format::named("context_qa.load").map(Format::name), Some("context_qa"));
        assert_eq!(Format::named("alpacca"), None);
        assert_eq!(Format::pretokenized().name(), "pretokenized");
    }
}
