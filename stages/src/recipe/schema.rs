//! The JSON Schema of recipes, made from the typed keys, the table of known ones, and YAML's leniency.
//!
//! `validate` walks a recipe against this same schema, so what an editor marks and what the command refuses are one thing.

use serde_json::{Map, Value, json};

use super::known::{self, Fate, Known, Shape};
use super::{Recipe, examples};

/// Words that count as booleans where a boolean is wanted, beside `true` and `false`.
pub(super) const BOOLEANS: [(&str, bool); 18] = [
    ("yes", true),
    ("Yes", true),
    ("YES", true),
    ("on", true),
    ("On", true),
    ("ON", true),
    ("true", true),
    ("True", true),
    ("TRUE", true),
    ("no", false),
    ("No", false),
    ("NO", false),
    ("off", false),
    ("Off", false),
    ("OFF", false),
    ("false", false),
    ("False", false),
    ("FALSE", false),
];

/// Texts that count as numbers where a number is wanted: quoted ones, and `1e-4`, which older YAML reads as text.
pub(super) const NUMBER_TEXT: &str = r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$";
pub(super) const INTEGER_TEXT: &str = r"^[-+]?[0-9][0-9_]*(\.0*)?$";
const SIGNED_TEXT: &str = "^[-+]?";
const UNSIGNED_TEXT: &str = r"^\+?";
/// Largest whole number that every reader of JSON holds exactly.
pub(super) const MOST_EXACT: u64 = (1 << 53) - 1;
/// Text with a slash in it.
pub(super) const PATH_TEXT: &str = "/";

/// The JSON Schema of recipes (draft 2020-12).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Recipe).to_value();
    lenient(&mut schema);
    insert_known(&mut schema, None, known::top_level());
    insert_known(&mut schema, Some("Dataset"), known::dataset_level());
    if let Some(properties) = properties(&mut schema, None) {
        properties.insert(
            "extends".to_string(),
            json!({"description": "Base recipes beneath this one, relative to this file.", "anyOf": [
                {"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
        );
        properties.insert(
            "vars".to_string(),
            json!({"description": "Values for `${name}` anywhere in the recipe.", "type": ["object", "null"]}),
        );
        properties.insert("plugins".to_string(), plugins());
    }
    if let Value::Object(map) = &mut schema {
        map.insert("title".to_string(), json!("Recipe"));
    }
    examples::insert(&mut schema);
    schema
}

/// The properties of a definition, or of the recipe itself.
fn properties<'s>(schema: &'s mut Value, definition: Option<&str>) -> Option<&'s mut Map<String, Value>> {
    let place = match definition {
        Some(name) => schema.get_mut("$defs")?.get_mut(name)?,
        None => schema,
    };
    place.get_mut("properties")?.as_object_mut()
}

fn plugins() -> Value {
    json!({
        "description": "Axolotl's plugins of kernels that are built in here; others are not supported.",
        "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
        "x-inert": "the kernels are built in"
    })
}

fn insert_known(schema: &mut Value, definition: Option<&str>, known: impl Iterator<Item = Known>) {
    let Some(properties) = properties(schema, definition) else { return };
    let (renamed, others): (Vec<Known>, Vec<Known>) = known.partition(|k| matches!(k.fate, Fate::Renamed(_)));
    for key in others {
        properties.insert(key.key.to_string(), known_schema(&key));
    }
    for key in renamed {
        let Fate::Renamed(to) = key.fate else { continue };
        let Some(Value::Object(mut target)) = properties.get(to).cloned() else { continue };
        target.insert("description".to_string(), json!(format!("{} of `{to}`.", key.why)));
        target.insert("deprecated".to_string(), json!(true));
        properties.insert(key.key.to_string(), Value::Object(target));
    }
}

fn known_schema(key: &Known) -> Value {
    match key.fate {
        Fate::Inert(shape) => {
            let mut schema = shape_schema(shape);
            if let Value::Object(map) = &mut schema {
                map.insert("description".to_string(), json!(format!("Accepted, without effect: {}.", key.why)));
                map.insert("x-inert".to_string(), json!(key.why));
            }
            schema
        }
        Fate::Unsupported { harmless, instead } => {
            let mut values = vec![json!(null), json!(false), json!(0)];
            for text in harmless {
                values.extend(serde_json::from_str::<Value>(text).ok().filter(|value| !values.contains(value)));
            }
            let mut no: Vec<Value> = BOOLEANS.iter().filter(|(_, on)| !on).map(|(word, _)| json!(word)).collect();
            if harmless.contains(&"true") {
                no = words(&[]);
            }
            values.extend(no);
            values.push(json!(""));
            json!({
                "description": format!("Not supported: {}. Instead: {instead}.", key.why),
                "anyOf": [{"enum": values}, {"type": "array", "maxItems": 0}, {"type": "object", "maxProperties": 0}],
                "x-unsupported": key.why,
                "x-instead": instead
            })
        }
        Fate::Renamed(_) => Value::Null,
    }
}

fn shape_schema(shape: Shape) -> Value {
    let one_of = |names: &str| names.split(' ').map(|name| json!(name)).collect::<Vec<Value>>();
    match shape {
        Shape::Any => json!({}),
        Shape::Flag => {
            json!({"anyOf": [{"type": ["boolean", "null"]}, {"type": "string", "enum": words(&["auto"])}]})
        }
        Shape::Text => json!({"type": ["string", "null"]}),
        // Off is written as false, as with a switch.
        Shape::Whole => json!({"anyOf": [
            {"type": ["integer", "boolean", "null"], "maximum": MOST_EXACT},
            {"type": "string", "pattern": INTEGER_TEXT}, {"type": "string", "enum": words(&[])}
        ]}),
        Shape::Number => json!({"anyOf": [
            {"type": ["number", "boolean", "null"]},
            {"type": "string", "pattern": NUMBER_TEXT}, {"type": "string", "enum": words(&[])}
        ]}),
        Shape::List => json!({"type": ["array", "null"]}),
        Shape::Map => json!({"type": ["object", "null"]}),
        Shape::Words(names) => json!({"anyOf": [{"type": "string", "enum": one_of(names)}, {"type": "null"}]}),
        Shape::WordsOrPath(names) => json!({"anyOf": [
            {"type": "string", "enum": one_of(names)}, {"type": "string", "pattern": PATH_TEXT}, {"type": "null"}
        ]}),
    }
}

fn words(more: &[&str]) -> Vec<Value> {
    BOOLEANS.iter().map(|(word, _)| json!(word)).chain(more.iter().map(|word| json!(word))).collect()
}

/// Adds what YAML recipes may write: blank for unset everywhere, words for booleans, texts for numbers; and flattens
/// enums, which read better as one list.
fn lenient(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("format");
    if map.get("default") == Some(&Value::Null) {
        map.remove("default");
    }
    for key in ["properties", "$defs"] {
        if let Some(Value::Object(inner)) = map.get_mut(key) {
            inner.values_mut().for_each(lenient);
            if key == "properties" {
                inner.values_mut().for_each(nullable);
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = map.get_mut(key) {
            lenient(inner);
            if key == "additionalProperties" {
                nullable(inner);
            }
        }
    }
    if let Some(Value::Array(options)) = map.get_mut("anyOf") {
        options.iter_mut().for_each(lenient);
    }
    if map.contains_key("properties") {
        map.insert("patternProperties".to_string(), json!({"^x-": {}}));
    }
    flatten_enum(map);
    loosen_scalar(map);
}

/// `oneOf` constants, as schemars writes documented enums, as one `enum` with descriptions beside it.
fn flatten_enum(map: &mut Map<String, Value>) {
    let Some(Value::Array(options)) = map.get("oneOf") else { return };
    let mut names = Vec::new();
    let mut texts = Vec::new();
    for option in options {
        let text = option.get("description").cloned().unwrap_or(json!(""));
        match (option.get("const"), option.get("enum")) {
            (Some(name), _) => {
                names.push(name.clone());
                texts.push(text);
            }
            (None, Some(Value::Array(several))) => {
                names.extend(several.iter().cloned());
                texts.extend(several.iter().map(|_| text.clone()));
            }
            _ => return,
        }
    }
    map.remove("oneOf");
    map.insert("type".to_string(), json!("string"));
    map.insert("enum".to_string(), Value::Array(names));
    map.insert("enumDescriptions".to_string(), Value::Array(texts));
}

/// Moves a boolean or number into an `anyOf` beside the texts that mean one.
fn loosen_scalar(map: &mut Map<String, Value>) {
    let has = |map: &Map<String, Value>, name: &str| match map.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    };
    let (boolean, integer) = (has(map, "boolean"), has(map, "integer"));
    if !boolean && !integer && !has(map, "number") {
        return;
    }
    let mut own = Map::new();
    for key in ["type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum"] {
        if let Some(value) = map.remove(key) {
            own.insert(key.to_string(), value);
        }
    }
    if integer && !own.contains_key("maximum") {
        own.insert("maximum".to_string(), json!(MOST_EXACT));
    }
    let text = match boolean {
        true => json!({"type": "string", "enum": words(&[])}),
        false => json!({"type": "string", "pattern": number_text(&own, integer)}),
    };
    map.insert("anyOf".to_string(), json!([own, text]));
}

/// The form of quoted numbers, as far as their range can be told from it: the sign, and whether 0 is one.
fn number_text(own: &Map<String, Value>, integer: bool) -> String {
    let bound = |key: &str| own.get(key).and_then(Value::as_f64);
    let (least, above) = (bound("minimum"), bound("exclusiveMinimum"));
    let body = if integer { INTEGER_TEXT } else { NUMBER_TEXT }.trim_start_matches("^[-+]?");
    let positive = least.is_some_and(|low| low > 0.0) || above.is_some_and(|low| low >= 0.0);
    match (positive, least.is_some_and(|low| low >= 0.0)) {
        (true, _) => format!("{UNSIGNED_TEXT}(?=[0-9_.]*[1-9]){body}"),
        (_, true) => format!("{UNSIGNED_TEXT}{body}"),
        _ => format!("{SIGNED_TEXT}{body}"),
    }
}

/// Whether a pattern is one of numbers, which are read as numbers.
pub(super) fn is_number_text(pattern: &str) -> bool {
    pattern.starts_with(SIGNED_TEXT) || pattern.starts_with(UNSIGNED_TEXT)
}

fn nullable(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    if map.contains_key("x-inert") || map.contains_key("x-unsupported") {
        return;
    }
    match map.get_mut("type") {
        Some(Value::String(one)) => {
            let one = one.clone();
            map.insert("type".to_string(), json!([one, "null"]));
        }
        Some(Value::Array(several)) if !several.contains(&json!("null")) => several.push(json!("null")),
        Some(_) => {}
        None => match map.get_mut("anyOf") {
            Some(Value::Array(options)) => {
                let has = options.iter().any(|option| match option.get("type") {
                    Some(Value::String(one)) => one == "null",
                    Some(Value::Array(several)) => several.contains(&json!("null")),
                    _ => false,
                });
                if !has {
                    options.push(json!({"type": "null"}));
                }
            }
            _ => {
                if let Some(reference) = map.remove("$ref") {
                    map.insert("anyOf".to_string(), json!([{"$ref": reference}, {"type": "null"}]));
                }
            }
        },
    }
    if let Some(Value::Array(values)) = map.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
}
