//! XTuner's configuration names as recipes: `internlm2_1_8b_qlora_alpaca_e3` says model, method, data and epochs.
//!
//! Only names that XTuner has, of models that are supported here, and whose rows need no preparing by hand.

use super::{Lora, Rows, Setup};
use crate::import::settled;

/// A model's part of names, and what it stands for.
struct Model {
    name: &'static str,
    id: &'static str,
    template: &'static str,
    length: u64,
    accumulation: u64,
    /// Data parts of the names with `qlora`, and with `full`.
    qlora: &'static [&'static str],
    full: &'static [&'static str],
}

/// A name's data part, its epochs, and where rows are: path, configuration, row mapping.
struct Data {
    name: &'static str,
    epochs: u32,
    rows: &'static [(&'static str, Option<&'static str>, &'static str)],
    /// When it differs from the model's; such rows are not packed.
    length: Option<u64>,
}

const ALPACA: &[&str] = &["alpaca"];
const NONE: &[&str] = &[];
const ENZH: &[&str] = &["alpaca_enzh"];
const OASST: &[&str] = &["oasst1"];
const INTERNLM2: &[&str] = &["alpaca", "code_alpaca", "colorist", "oasst1", "oasst1_512", "sql"];
const INTERNLM2_CHAT: &[&str] = &["alpaca", "code_alpaca", "oasst1", "oasst1_512"];
const LLAMA: &[&str] = &[
    "alpaca",
    "alpaca_enzh",
    "alpaca_enzh_oasst1",
    "alpaca_zh",
    "code_alpaca",
    "colorist",
    "medical",
    "oasst1",
    "oasst1_512",
    "open_platypus",
    "openorca",
    "sql",
    "tiny_codes",
];

const MODELS: &[Model] = &[
    model("internlm2_1_8b", "internlm/internlm2-1_8b", "default", ALPACA, ALPACA),
    model("internlm2_7b", "internlm/internlm2-7b", "default", INTERNLM2, NONE),
    model("internlm2_20b", "internlm/internlm2-20b", "default", INTERNLM2, NONE),
    model("internlm2_chat_1_8b", "internlm/internlm2-chat-1_8b", "internlm2_chat", ALPACA, ALPACA),
    model("internlm2_chat_7b", "internlm/internlm2-chat-7b", "internlm2_chat", INTERNLM2_CHAT, NONE),
    model("internlm2_chat_20b", "internlm/internlm2-chat-20b", "internlm2_chat", INTERNLM2_CHAT, NONE),
    Model {
        accumulation: 1,
        ..model("internlm2_5_chat_7b", "internlm/internlm2_5-7b-chat", "internlm2_chat", ALPACA, NONE)
    },
    model("llama_7b", "huggyllama/llama-7b", "default", LLAMA, NONE),
    model("llama2_7b", "meta-llama/Llama-2-7b-hf", "llama2_chat", LLAMA, NONE),
    model("llama2_7b_chat", "meta-llama/Llama-2-7b-chat-hf", "llama2_chat", LLAMA, NONE),
    model("llama3_8b", "meta-llama/Meta-Llama-3-8B", "llama3_chat", NONE, ALPACA),
    model("llama3_8b_instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3_chat", ALPACA, ALPACA),
    model("yi_6b", "01-ai/Yi-6B", "default", ENZH, NONE),
    model("yi_34b", "01-ai/Yi-34B", "default", ENZH, NONE),
    model("zephyr_7b_beta", "HuggingFaceH4/zephyr-7b-beta", "zephyr", ALPACA, NONE),
    model("mixtral_8x7b", "mistralai/Mixtral-8x7B-v0.1", "mixtral", OASST, OASST),
    model("mixtral_8x7b_instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", OASST, OASST),
    model("gemma_2b", "google/gemma-2b", "default", ALPACA, ALPACA),
    model("gemma_2b_it", "google/gemma-2b-it", "gemma", ALPACA, ALPACA),
    model("gemma_7b", "google/gemma-7b", "default", ALPACA, ALPACA),
    model("gemma_7b_it", "google/gemma-7b-it", "gemma", ALPACA, ALPACA),
    model("qwen1_5_0_5b", "Qwen/Qwen1.5-0.5B", "default", ALPACA, ALPACA),
    model("qwen1_5_0_5b_chat", "Qwen/Qwen1.5-0.5B-Chat", "qwen_chat", ALPACA, ALPACA),
    model("qwen1_5_1_8b", "Qwen/Qwen1.5-1.8B", "default", ALPACA, ALPACA),
    model("qwen1_5_1_8b_chat", "Qwen/Qwen1.5-1.8B-Chat", "qwen_chat", ALPACA, ALPACA),
    model("qwen1_5_4b", "Qwen/Qwen1.5-4B", "default", ALPACA, ALPACA),
    model("qwen1_5_4b_chat", "Qwen/Qwen1.5-4B-Chat", "qwen_chat", ALPACA, ALPACA),
    model("qwen1_5_7b", "Qwen/Qwen1.5-7B", "default", ALPACA, ALPACA),
    model("qwen1_5_7b_chat", "Qwen/Qwen1.5-7B-Chat", "qwen_chat", ALPACA, ALPACA),
    model("qwen1_5_14b", "Qwen/Qwen1.5-14B", "default", ALPACA, ALPACA),
    model("qwen1_5_14b_chat", "Qwen/Qwen1.5-14B-Chat", "qwen_chat", ALPACA, ALPACA),
    model("qwen1_5_72b", "Qwen/Qwen1.5-72B", "default", ALPACA, ALPACA),
    model("qwen1_5_72b_chat", "Qwen/Qwen1.5-72B-Chat", "qwen_chat", ALPACA, ALPACA),
    Model {
        length: 4096,
        ..model("phi3_mini_4k_instruct", "microsoft/Phi-3-mini-4k-instruct", "phi3_chat", ALPACA, ALPACA)
    },
    Model {
        length: 131_072,
        ..model("phi3_mini_128k_instruct", "microsoft/Phi-3-mini-128k-instruct", "phi3_chat", ALPACA, ALPACA)
    },
    model("deepseek_coder_6_7b_base", "deepseek-ai/deepseek-coder-6.7b-base", "deepseek_coder", &["code_alpaca"], NONE),
    model(
        "deepseekcoder_6_7b_instruct",
        "deepseek-ai/deepseek-coder-6.7b-instruct",
        "deepseek_coder",
        &["code_alpaca"],
        NONE,
    ),
];

const EN: (&str, Option<&str>, &str) = ("tatsu-lab/alpaca", None, "alpaca_map_fn");
const ZH: (&str, Option<&str>, &str) = ("silk-road/alpaca-data-gpt4-chinese", None, "alpaca_zh_map_fn");
const GUANACO: (&str, Option<&str>, &str) = ("timdettmers/openassistant-guanaco", None, "oasst1_map_fn");

const DATA: &[Data] = &[
    data("alpaca", 3, &[EN]),
    data("alpaca_zh", 3, &[ZH]),
    data("alpaca_enzh", 3, &[EN, ZH]),
    data("alpaca_enzh_oasst1", 3, &[EN, ZH, GUANACO]),
    data("code_alpaca", 3, &[("HuggingFaceH4/CodeAlpaca_20K", None, "code_alpaca_map_fn")]),
    data("colorist", 5, &[("burkelibbey/colors", None, "colors_map_fn")]),
    data("medical", 1, &[("shibing624/medical", Some("finetune"), "medical_map_fn")]),
    data("oasst1", 3, &[GUANACO]),
    Data { length: Some(512), ..data("oasst1_512", 3, &[GUANACO]) },
    data("open_platypus", 3, &[("garage-bAInd/Open-Platypus", None, "alpaca_map_fn")]),
    data("openorca", 1, &[("Open-Orca/OpenOrca", None, "openorca_map_fn")]),
    data("sql", 3, &[("b-mc2/sql-create-context", None, "sql_map_fn")]),
    data("tiny_codes", 1, &[("nampdn-ai/tiny-codes", None, "tiny_codes_map_fn")]),
];

const fn model(
    name: &'static str,
    id: &'static str,
    template: &'static str,
    qlora: &'static [&'static str],
    full: &'static [&'static str],
) -> Model {
    Model { name, id, template, length: 2048, accumulation: 16, qlora, full }
}

const fn data(
    name: &'static str,
    epochs: u32,
    rows: &'static [(&'static str, Option<&'static str>, &'static str)],
) -> Data {
    Data { name, epochs, rows, length: None }
}

/// Every name, in the order of the models.
pub fn all() -> Vec<String> {
    let of = |model: &Model, method: &str, sets: &[&str]| -> Vec<String> {
        let data = sets.iter().filter_map(|set| DATA.iter().find(|data| data.name == *set));
        data.map(|data| format!("{}_{method}_{}_e{}", model.name, data.name, data.epochs)).collect()
    };
    MODELS.iter().flat_map(|model| [of(model, "full", model.full), of(model, "qlora", model.qlora)].concat()).collect()
}

/// What a name is for, in one line.
pub fn purpose(name: &str) -> Option<String> {
    let (model, qlora, data) = parts(name)?;
    let method = if qlora { "QLoRA" } else { "All weights" };
    let rows: Vec<&str> = data.rows.iter().map(|(path, ..)| *path).collect();
    Some(format!("{method} of {} on {}, as XTuner's configuration of this name.", model.id, rows.join(" and ")))
}

/// The recipe of a name.
pub fn recipe(name: &str) -> Option<String> {
    let (model, qlora, data) = parts(name)?;
    let setup = setup(model, qlora, data);
    let head = [
        format!("Purpose: {}", purpose(name)?),
        format!("Command: pipe run {name}.yml"),
        "Minutes: not measured; `pipe plan` prints the optimizer steps".to_string(),
        "Memory: not measured; `pipe plan` prints an estimate by part".to_string(),
        "Result: not measured; an adapter (or the model, for full) under output_dir".to_string(),
    ];
    let mut draft = setup.draft();
    draft.section("");
    draft.set("output_dir", format!("./outputs/{name}"));
    Some(settled(draft, &head, &std::env::temp_dir()).text)
}

fn parts(name: &str) -> Option<(&'static Model, bool, &'static Data)> {
    let split = |method: &str| name.split_once(method).map(|(model, rest)| (model, method == "_qlora_", rest));
    let (model, qlora, rest) = split("_qlora_").or_else(|| split("_full_"))?;
    let (set, epochs) = rest.rsplit_once("_e")?;
    let model = MODELS.iter().find(|known| known.name == model)?;
    let data = DATA.iter().find(|known| known.name == set && epochs == known.epochs.to_string())?;
    let has = if qlora { model.qlora } else { model.full };
    has.contains(&set).then_some((model, qlora, data))
}

fn setup(model: &Model, qlora: bool, data: &Data) -> Setup {
    let rows = data.rows.iter().map(|(path, name, map_fn)| Rows {
        path: path.to_string(),
        name: name.map(str::to_string),
        map_fn: map_fn.to_string(),
        template: model.template.to_string(),
        ..Rows::default()
    });
    Setup {
        model: model.id.to_string(),
        bits: qlora.then_some(4),
        double_quant: qlora,
        lora: qlora.then(|| Lora { r: 64, alpha: 16.0, dropout: 0.1, targets: Vec::new() }),
        rows: rows.collect(),
        max_length: data.length.unwrap_or(model.length),
        packs: data.length.is_none(),
        batch: 1,
        accumulation: model.accumulation,
        epochs: f64::from(data.epochs),
        optimizer: "adamw_torch".to_string(),
        lr: if qlora { 2e-4 } else { 2e-5 },
        max_norm: 1.0,
        warmup_ratio: 0.03,
        save_steps: Some(500),
        keep: Some(2),
        ..Setup::default()
    }
}
