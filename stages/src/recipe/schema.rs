//! The JSON Schema of recipes, made from the typed keys, the table of known ones, and YAML's leniency.
//!
//! `validate` walks a recipe against this same schema, so what an editor marks and what the command refuses are one thing.

use serde_json::{Map, Value, json};

use super::known::{self, Fate, Known, Shape};
use super::numbers::Range;
use super::{Recipe, examples, requirements, scalar};

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

/// Text with a slash in it.
pub(super) const PATH_TEXT: &str = "/";
/// Text that is not only white space.
pub(super) const NOT_BLANK: &str = r"\S";
/// A dataset's label.
pub(super) const LABEL: &str = "^[A-Za-z0-9_][A-Za-z0-9_.-]*$";
/// Axolotl's plugins of what is built in here.
pub(super) const PLUGIN: &str = r"^axolotl\.integrations\.(cut_cross_entropy|liger|kernels|swanlab|expert_parallel)\.";
/// Text with a variable in it; `$${name}` is none.
const VARIABLE: &str = r"(^|[^$])\$\{[A-Za-z0-9_.-]+\}";
pub(super) const VARIABLE_REF: &str = "#/$defs/Variable";

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
    with_variables(&mut schema);
    requirements::insert(&mut schema);
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
        "anyOf": [{"type": "array", "items": {"type": "string", "pattern": PLUGIN}}, {"type": "null"}],
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
        Shape::Whole => number_or_switch("integer"),
        Shape::Number => number_or_switch("number"),
        Shape::On => json!({"anyOf": [
            {"enum": [true, null], "type": ["boolean", "null"]}, {"type": "string", "enum": on_words()}
        ]}),
        Shape::List => json!({"type": ["array", "null"]}),
        Shape::Map => json!({"type": ["object", "null"]}),
        Shape::Words(names) => json!({"anyOf": [{"type": "string", "enum": one_of(names)}, {"type": "null"}]}),
        Shape::WordsOrPath(names) => json!({"anyOf": [
            {"type": "string", "enum": one_of(names)}, {"type": "string", "pattern": PATH_TEXT}, {"type": "null"}
        ]}),
    }
}

/// Off is written as false, as with a switch.
fn number_or_switch(kind: &str) -> Value {
    let mut own = Map::from_iter([("type".to_string(), json!([kind, "boolean", "null"]))]);
    Range::close(&mut own, kind == "integer");
    let pattern = Range::of(&json!(own)).pattern();
    json!({"anyOf": [own, {"type": "string", "pattern": pattern}, {"type": "string", "enum": words(&[])}]})
}

fn on_words() -> Vec<Value> {
    BOOLEANS.iter().filter(|(_, on)| *on).map(|(word, _)| json!(word)).collect()
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
    let keys = ["type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "if", "then"];
    for key in keys {
        if let Some(value) = map.remove(key) {
            own.insert(key.to_string(), value);
        }
    }
    if !boolean {
        Range::close(&mut own, integer);
    }
    let text = match boolean {
        true if own.get("enum") == Some(&json!([true])) => json!({"type": "string", "enum": on_words()}),
        true => json!({"type": "string", "enum": words(&[])}),
        false => json!({"type": "string", "pattern": Range::of(&json!(own)).pattern()}),
    };
    map.insert("anyOf".to_string(), json!([own, text]));
}

/// Lets a variable stand wherever a value of another form than text is wanted: it is judged once it is filled in.
fn with_variables(schema: &mut Value) {
    let mut places: Vec<&mut Value> = Vec::new();
    let Value::Object(root) = schema else { return };
    for (key, value) in root.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(inner)) => {
                let outside = ["extends", "vars"];
                places.extend(inner.iter_mut().filter(|(key, _)| !outside.contains(&key.as_str())).map(|(_, v)| v));
            }
            ("$defs", Value::Object(inner)) => inner.values_mut().for_each(within),
            _ => {}
        }
    }
    places.into_iter().for_each(variable);
    root.entry("$defs").or_insert_with(|| json!({}))["Variable"] = json!({
        "description": "Names a variable of `vars`; the value is judged once it is filled in.",
        "type": "string", "pattern": VARIABLE
    });
}

/// Variables in the values that a schema holds.
fn within(schema: &mut Value) {
    if let Some(Value::Object(inner)) = schema.get_mut("properties") {
        inner.values_mut().for_each(variable);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = schema.get_mut(key) {
            variable(inner);
        }
    }
    if let Some(Value::Array(options)) = schema.get_mut("anyOf") {
        options.iter_mut().for_each(within);
    }
}

/// A variable as one more alternative, unless any text fits.
fn variable(schema: &mut Value) {
    within(schema);
    let Value::Object(map) = schema else { return };
    let any_text = |one: &Value| {
        let pattern = one.get("pattern").and_then(Value::as_str);
        scalar::has_type(one, "string") && one.get("enum").is_none() && pattern.is_none_or(|form| form == NOT_BLANK)
    };
    let takes_text =
        any_text(&json!(map)) || map.get("anyOf").and_then(Value::as_array).is_some_and(|all| all.iter().any(any_text));
    if map.contains_key("x-unsupported") || takes_text || scalar::is_any(&json!(map)) {
        return;
    }
    let reference = json!({"$ref": VARIABLE_REF});
    if let Some(Value::Array(options)) = map.get_mut("anyOf") {
        options.push(reference);
        return;
    }
    let about = ["description", "default", "examples", "deprecated", "x-inert", "title"];
    let own: Vec<String> = map.keys().filter(|key| !about.contains(&key.as_str())).cloned().collect();
    let own: Map<String, Value> =
        own.into_iter().filter_map(|key| map.remove(&key).map(|value| (key, value))).collect();
    map.insert("anyOf".to_string(), json!([own, reference]));
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
