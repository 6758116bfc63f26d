//! The recipe reference in Markdown, from the schema.

use serde_json::{Map, Value};

use super::numbers::Range;
use super::scalar::has_type;
use super::schema::schema;
use super::structure::flatten;
use super::suggest::listed;

/// Every key with its type, default and meaning.
pub fn reference_markdown() -> String {
    let schema = schema();
    let mut out = String::from(
        "# Recipe reference\n\nGenerated from the recipe's types; `pipe schema` prints the same as JSON Schema. \
         Every key may be blank, which means unset. Keys that begin with `x-` are notes of your own.\n\n",
    );
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let ours = |property: &Value| property.get("x-inert").is_none() && property.get("x-unsupported").is_none();
    out.push_str("## Keys\n\n");
    table(&mut out, &schema, properties, ours);
    for (key, property) in properties {
        section(&mut out, &schema, key, property);
    }
    out.push_str("## Known from Axolotl, without effect here\n\nAccepted, and listed by `validate`.\n\n");
    plain(&mut out, properties, "x-inert");
    out.push_str("\n## Known from Axolotl, not supported\n\nAn error unless blank or switched off.\n\n");
    plain(&mut out, properties, "x-unsupported");
    out
}

fn section(out: &mut String, root: &Value, key: &str, property: &Value) {
    if property.get("deprecated").is_some() {
        return;
    }
    let mut simple = Vec::new();
    flatten(root, property, &mut simple);
    for schema in simple.clone() {
        if let Some(items) = schema.get("items") {
            flatten(root, items, &mut simple);
        }
    }
    let list = simple.iter().any(|schema| schema.get("items").is_some());
    for schema in simple {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            let name = if list { format!("{key}[]") } else { key.to_string() };
            out.push_str(&format!("## `{name}`\n\n"));
            if let Some(text) = schema.get("description").and_then(Value::as_str) {
                out.push_str(&format!("{text}\n\n"));
            }
            table(out, root, properties, |_| true);
        }
    }
}

fn table(out: &mut String, root: &Value, properties: &Map<String, Value>, keep: impl Fn(&Value) -> bool) {
    out.push_str("| key | takes | default | meaning |\n| --- | --- | --- | --- |\n");
    for (key, property) in properties.iter().filter(|(_, property)| keep(property)) {
        let mut simple = Vec::new();
        flatten(root, property, &mut simple);
        let default = property.get("default").map_or(String::new(), |value| format!("`{value}`"));
        let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let takes = takes(&simple);
        out.push_str(&format!(
            "| `{key}` | {takes} | {default} | {} |\n",
            meaning.replace('\n', " ").replace('|', "\\|")
        ));
    }
    out.push('\n');
}

fn takes(simple: &[&Value]) -> String {
    let words: Vec<String> = super::scalar::wanted(simple).split(" or ").map(str::to_string).collect();
    let enumerated: Vec<String> =
        simple.iter().filter_map(|schema| super::scalar::enumeration(schema)).flatten().collect();
    let text = if enumerated.len() > 12 && words.len() == 1 { listed(&enumerated) } else { words.join(" or ") };
    let numeric = simple.iter().find(|schema| ["integer", "number"].iter().any(|kind| has_type(schema, kind)));
    let range = match numeric.map(|schema| Range::of(schema)) {
        Some(range) if range.is_bounded() => format!(", {}", range.words()),
        _ => String::new(),
    };
    format!("{}{range}", text.replace('|', "\\|"))
}

fn plain(out: &mut String, properties: &Map<String, Value>, mark: &str) {
    for (key, property) in properties {
        if let Some(why) = property.get(mark).and_then(Value::as_str) {
            let instead = property.get("x-instead").and_then(Value::as_str);
            let instead = instead.map_or(String::new(), |text| format!(" Instead: {text}."));
            out.push_str(&format!("- `{key}`: {why}.{instead}\n"));
        }
    }
}
