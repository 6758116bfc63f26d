//! XTuner's prompt formats and row mappings as recipe values: what its `PROMPT_TEMPLATE` and `*_map_fn` names mean.

use serde_json::{Map, Value, json};

/// A prompt format: the text around a system prompt, around a question, and what ends an answer.
pub struct Prompt {
    pub name: &'static str,
    pub system: &'static str,
    pub question: &'static str,
    /// Ends the answer in place of the tokenizer's end of sequence.
    pub end: Option<&'static str>,
    /// The chat template for conversations of several turns.
    pub chat: &'static str,
}

const CHATML: Prompt = Prompt {
    name: "qwen_chat",
    system: "<|im_start|>system\n{system}<|im_end|>\n",
    question: "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    end: Some("<|im_end|>"),
    chat: "chatml",
};

const VICUNA: Prompt = Prompt {
    name: "vicuna",
    system: "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
             detailed, and polite answers to the user's questions. {system}\n ",
    question: "USER: {input} ASSISTANT:",
    end: None,
    chat: "tokenizer_default",
};

const MISTRAL: Prompt = Prompt {
    name: "mistral",
    system: "[INST] {system} [/INST]\n",
    question: "[INST] {input} [/INST]",
    end: None,
    chat: "mistral_v1",
};

const DEEPSEEK_CODER: Prompt = Prompt {
    name: "deepseek_coder",
    system: "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeekCompany, and \
             you only answer questions related to computer science. For politically sensitive questions, security and \
             privacy issues, and other non-computer science questions, you will refuse to answer. {system}\n",
    question: "### Instruction:\n{input}\n### Response:\n",
    end: None,
    chat: "tokenizer_default",
};

const PROMPTS: &[Prompt] = &[
    Prompt {
        name: "default",
        system: "<|System|>:{system}\n",
        question: "<|User|>:{input}\n<|Bot|>:",
        end: None,
        chat: "tokenizer_default",
    },
    Prompt {
        name: "zephyr",
        system: "<|system|>\n{system}\n",
        question: "<|user|>\n{input}\n<|assistant|>\n",
        end: None,
        chat: "tokenizer_default",
    },
    Prompt {
        name: "internlm_chat",
        system: "<|System|>:{system}\n",
        question: "<|User|>:{input}<eoh>\n<|Bot|>:",
        end: Some("<eoa>"),
        chat: "tokenizer_default",
    },
    Prompt { name: "internlm2_chat", ..CHATML },
    CHATML,
    Prompt {
        name: "llama2_chat",
        system: "[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as helpfully as \
                 possible, while being safe. Your answers should not include any harmful, unethical, racist, sexist, \
                 toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased and \
                 positive in nature.\n{system}\n<</SYS>>\n [/INST] ",
        question: "[INST] {input} [/INST]",
        end: None,
        chat: "tokenizer_default",
    },
    Prompt {
        name: "code_llama_chat",
        system: "{system}\n",
        question: "[INST] {input} [/INST]",
        end: None,
        chat: "tokenizer_default",
    },
    VICUNA,
    Prompt { name: "wizardlm", ..VICUNA },
    DEEPSEEK_CODER,
    Prompt { name: "deepseekcoder", ..DEEPSEEK_CODER },
    MISTRAL,
    Prompt { name: "mixtral", ..MISTRAL },
    Prompt { name: "deepseek_moe", ..MISTRAL },
    Prompt { name: "minicpm", system: "", question: "<用户> {input} <AI>", end: None, chat: "tokenizer_default" },
    Prompt {
        name: "gemma",
        system: "<start_of_turn>system\n{system}<end_of_turn>\n",
        question: "<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n",
        end: Some("<end_of_turn>"),
        chat: "gemma",
    },
    Prompt {
        name: "llama3_chat",
        system: "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        question: "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|><|start_header_id|>assistant\
                   <|end_header_id|>\n\n",
        end: Some("<|eot_id|>"),
        chat: "llama3",
    },
    Prompt {
        name: "phi3_chat",
        system: "<|system|>\n{system}<|end|>\n",
        question: "<|user|>\n{input}<|end|>\n<|assistant|>\n",
        end: Some("<|end|>"),
        chat: "phi_3",
    },
];

/// The prompt format of a name.
pub fn prompt(name: &str) -> Option<&'static Prompt> {
    PROMPTS.iter().find(|prompt| prompt.name == name)
}

/// Which columns a row mapping takes: question, the rest of the question, answer; and the system prompt it sets.
struct Columns {
    map_fn: &'static str,
    question: &'static str,
    input: Option<&'static str>,
    answer: &'static str,
    system: &'static str,
}

const CODER: &str = "You are a professional programer. Please provide the corresponding code based on the description \
                     of Human.\n";
const LAWYER: &str = "你现在是一名专业的中国律师，请根据用户的问题给出准确、有理有据的回复。\n";

const COLUMNS: &[Columns] = &[
    columns("alpaca_map_fn", "instruction", Some("input"), "output", ""),
    columns("alpaca_zh_map_fn", "instruction_zh", Some("input_zh"), "output_zh", ""),
    columns(
        "arxiv_map_fn",
        "abstract",
        None,
        "title",
        "If you are an expert in writing papers, please generate a good paper title for this paper based on other \
         authors' descriptions of their abstracts.\n",
    ),
    columns("code_alpaca_map_fn", "prompt", None, "completion", CODER),
    columns(
        "colors_map_fn",
        "description",
        None,
        "color",
        "You are a professional color designer. Please provide the corresponding colors based on the description of \
         Human.\n",
    ),
    columns("crime_kg_assitant_map_fn", "input", None, "output", LAWYER),
    columns("law_reference_map_fn", "question", None, "answer", LAWYER),
    columns("default_map_fn", "input", None, "output", ""),
    columns(
        "medical_map_fn",
        "instruction",
        Some("input"),
        "output",
        "如果你是一名医生，请根据患者的描述回答医学问题。\n",
    ),
    columns("openorca_map_fn", "question", None, "response", ""),
    columns(
        "sql_map_fn",
        "context",
        Some("question"),
        "answer",
        "If you are an expert in SQL, please generate a good SQL Query for Question based on the CREATE TABLE \
         statement.\n",
    ),
    columns("stack_exchange_map_fn", "question", None, "response", ""),
    columns("tiny_codes_map_fn", "prompt", None, "response", CODER),
];

const fn columns(
    map_fn: &'static str,
    question: &'static str,
    input: Option<&'static str>,
    answer: &'static str,
    system: &'static str,
) -> Columns {
    Columns { map_fn, question, input, answer, system }
}

/// The keys of a dataset whose rows `map_fn` maps and `prompt` formats; `None` for a mapping that is not known.
pub fn dataset_keys(map_fn: &str, prompt: &Prompt) -> Option<Map<String, Value>> {
    let object = |value: Value| value.as_object().cloned();
    match map_fn {
        "pretrain_map_fn" => return object(json!({"type": "completion", "field": "text"})),
        "oasst1_map_fn" => return object(json!({"type": "completion", "field": "text"})),
        "openai_map_fn" => return object(json!({"type": "chat_template", "field_messages": "messages"})),
        "wizardlm_map_fn" | "msagent_react_map_fn" => {
            return object(json!({
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            }));
        }
        _ => {}
    }
    let columns = COLUMNS.iter().find(|columns| columns.map_fn == map_fn)?;
    let mut kind = Map::new();
    let mut set = |key: &str, value: &str| kind.insert(key.to_string(), json!(value));
    set("field_instruction", columns.question);
    set("field_output", columns.answer);
    match columns.input {
        Some(input) => {
            set("field_input", input);
            set("format", &prompt.question.replace("{input}", "{instruction}\n{input}"));
            // XTuner's mapping leaves the line break where there is no input.
            set("no_input_format", &prompt.question.replace("{input}", "{instruction}\n"));
        }
        None => {
            set("format", &prompt.question.replace("{input}", "{instruction}"));
            set("no_input_format", &prompt.question.replace("{input}", "{instruction}"));
        }
    }
    if map_fn == "openorca_map_fn" {
        set("field_system", "system_prompt");
        set("system_format", prompt.system);
    }
    if !columns.system.is_empty() {
        set("system_prompt", columns.system);
        set("system_format", prompt.system);
    }
    Some(Map::from_iter([("type".to_string(), Value::Object(kind))]))
}
