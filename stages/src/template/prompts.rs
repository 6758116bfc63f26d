//! Prompt styles of instruction rows, by Axolotl's names: the same words in the same places as its prompters, because a
//! base model tuned on one wording is used with that wording.

use serde::Serialize;

/// How instruction rows become a prompt and an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "style", rename_all = "snake_case")]
pub enum PromptStyle {
    /// `### Instruction:` and `### Response:` headers under a preamble.
    Alpaca,
    /// `USER:` and `ASSISTANT:` turns under the same preamble.
    Chat,
    /// ChatML turns.
    Chatml,
    /// Phi's `Instruct:` and `Output:` lines.
    Phi,
    /// The recipe's own words; `{system}`, `{instruction}` and `{input}` stand for the columns.
    UserDefined { system_prompt: String, system_format: String, format: String, no_input_format: String },
}

const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further \
                          context. Write a response that appropriately completes the request.";
const WITHOUT_INPUT: &str =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

impl PromptStyle {
    /// The prompt up to where the answer starts.
    pub fn prompt(&self, system: Option<&str>, instruction: &str, input: &str) -> String {
        let preamble = system.unwrap_or(if input.is_empty() { WITHOUT_INPUT } else { WITH_INPUT });
        match self {
            PromptStyle::Alpaca if input.is_empty() => {
                format!("{preamble}\n\n### Instruction:\n{instruction}\n\n### Response:\n")
            }
            PromptStyle::Alpaca => {
                format!("{preamble}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
            }
            PromptStyle::Chat if input.is_empty() => format!("{preamble}\nUSER: {instruction}\nASSISTANT:"),
            PromptStyle::Chat => format!("{preamble}\nUSER: {instruction}\n{input}\nASSISTANT:"),
            PromptStyle::Chatml => {
                let input = if input.is_empty() { String::new() } else { format!("\n{input}") };
                format!(
                    "<|im_start|>system\n{preamble}<|im_end|>\n<|im_start|>user\n{instruction}{input}<|im_end|>\n\
                     <|im_start|>assistant\n"
                )
            }
            PromptStyle::Phi if input.is_empty() => format!("{preamble}\n\nInstruct: {instruction}. Output: "),
            PromptStyle::Phi => format!("{preamble}\n\nInstruct: {instruction}.\n{input} Output: "),
            PromptStyle::UserDefined { system_prompt, system_format, format, no_input_format } => {
                let system = system.unwrap_or(system_prompt);
                let head = if system.is_empty() { String::new() } else { fill(system_format, system, "", "") };
                let body = if input.is_empty() { no_input_format } else { format };
                head + &fill(body, system, instruction, input)
            }
        }
    }
}

/// Puts values in the place of `{system}`, `{instruction}` and `{input}`, in one pass, so that values are never read as
/// patterns.
fn fill(pattern: &str, system: &str, instruction: &str, input: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + instruction.len() + input.len());
    let mut rest = pattern;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [("{system}", system), ("{instruction}", instruction), ("{input}", input)];
        match known.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len()..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_patterns() {
        assert_eq!(fill("<{instruction}|{input}>", "", "{input}", "x"), "<{input}|x>");
    }
}
