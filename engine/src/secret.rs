//! What must not be written down: passwords, tokens and API keys that a recipe, a setting or an address holds.
//!
//! Keys of the cache cover resolved parameters only, and no stage has a secret among them. What is recorded of a run is the
//! recipe as written, and passes through here. It errs on the side of hiding.

use serde_json::Value;

const HIDDEN: &str = "(secret)";
/// Ends of key names whose values are secret.
const NAMES: [&str; 9] =
    ["api_key", "apikey", "secret", "password", "passwd", "auth_token", "access_token", "hub_token", "webhook_url"];
/// Beginnings of well-known tokens, as their makers give them out so that they can be found.
const PREFIXES: [&str; 12] =
    ["hf_", "sk-", "ghp_", "gho_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "AKIA", "ASIA", "wandb_v1_", "AIza"];
/// A shorter word is no token.
const SHORTEST: usize = 16;

/// The value without its secrets.
pub fn hidden(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(hidden_text(text)),
        Value::Array(items) => Value::Array(items.iter().map(hidden).collect()),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let value = if is_secret(key) && !value.is_null() { HIDDEN.into() } else { hidden(value) };
                (key.clone(), value)
            };
            Value::Object(map.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}

/// The text without its secrets: `key: value` and `key=value` lines, known tokens, and passwords in addresses.
pub fn hidden_text(text: &str) -> String {
    text.split_inclusive('\n').map(hidden_line).collect()
}

fn hidden_line(line: &str) -> String {
    let ending = &line[line.trim_end_matches(['\n', '\r']).len()..];
    if let Some(at) = line.find([':', '=']) {
        let name = line[..at].trim().trim_start_matches("- ").trim_matches(['"', '\'']);
        let value = line[at + 1..].trim();
        if is_secret(name) && !value.is_empty() && !value.starts_with('#') {
            return format!("{} {HIDDEN}{ending}", &line[..=at]);
        }
    }
    let edge = |c: char| c.is_whitespace() || "\"'`,;()[]{}<>".contains(c);
    line.split_inclusive(edge).map(|word| hidden_word(word, edge)).collect()
}

/// One word with the character that ends it.
fn hidden_word(word: &str, edge: impl Fn(char) -> bool) -> String {
    let bare = word.trim_end_matches(&edge);
    let end = &word[bare.len()..];
    if let Some(at) = PREFIXES.iter().filter_map(|prefix| bare.find(prefix)).min() {
        let starts = bare[..at].chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric());
        let body = bare[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').next().unwrap_or("");
        if starts && body.len() >= SHORTEST && body.chars().any(|c| c.is_ascii_digit()) {
            return format!("{}{HIDDEN}{}{end}", &bare[..at], &bare[at + body.len()..]);
        }
    }
    if let Some((scheme, rest)) = bare.split_once("://")
        && let Some((user, host)) = rest.split('/').next().and_then(|authority| authority.rsplit_once('@'))
    {
        let path = &rest[user.len() + 1 + host.len()..];
        return format!("{scheme}://{HIDDEN}@{host}{path}{end}");
    }
    word.to_string()
}

fn is_secret(name: &str) -> bool {
    let name = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    NAMES.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_untouched() {
        let recipe = "base_model: x # sk-ip this\ncomet_api_key: abc123\r\nspecial_tokens:\n  eos_token: </s>\n\
                      max_new_tokens: 5\npath: s3://me:pass@host/a?b=1\nnote: \"hf_abcdefghij0123456789\"\n";
        let expected = "base_model: x # sk-ip this\ncomet_api_key: (secret)\r\nspecial_tokens:\n  eos_token: </s>\n\
                      max_new_tokens: 5\npath: s3://(secret)@host/a?b=1\nnote: \"(secret)\"\n";
        assert_eq!(hidden_text(recipe), expected);
        let value = json!({"swanlab_api_key": "k", "other": ["a=ghp_0123456789abcdefABCDEF", 1], "hub_token": null});
        assert_eq!(
            hidden(&value),
            json!({"swanlab_api_key": "(secret)", "other": ["a=(secret)", 1], "hub_token": null})
        );
        assert_eq!(hidden_text("swanlab_api_key=abc"), "swanlab_api_key= (secret)");
        assert_eq!(hidden_text("task-0123456789abcdef"), "task-0123456789abcdef");
    }
}
