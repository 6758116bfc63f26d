//! Jinja's tests: what may stand after `is`.

use super::ast::CmpOp;
use super::operator;
use super::run::{Evaluated, Run};
use super::value::{SeqKind, Value};

/// The tests there are.
const NAMES: [&str; 39] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "number",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "callable",
    "sameas",
    "escaped",
    "lower",
    "upper",
    "odd",
    "even",
    "divisibleby",
    "in",
    "eq",
    "==",
    "equalto",
    "ne",
    "!=",
    "lt",
    "<",
    "lessthan",
    "le",
    "<=",
    "gt",
    ">",
    "greaterthan",
    "ge",
    ">=",
    "filter",
    "test",
];

pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// `value is name(args)`.
pub fn apply(run: &mut Run, name: &str, value: &Value, args: &[Value]) -> Evaluated<bool> {
    if !exists(name) {
        return run.fail(format!("No test named '{name}'."));
    }
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_number().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => !matches!(
            value,
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Method(_) | Value::Native(_)
        ),
        "sequence" => match value {
            Value::Seq(seq) => matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Range),
            Value::Str(_) | Value::Dict(_) | Value::Undefined(_) => true,
            _ => false,
        },
        "callable" => match value {
            Value::Native(native) => native.as_object().is_some() && native.get_attr("name").is_ok(),
            // Jinja's Undefined has a __call__ that fails.
            other => matches!(other, Value::Method(_) | Value::Undefined(_)),
        },
        "escaped" => false,
        "lower" | "upper" => {
            let text = value.to_text();
            let (has, not) = (text.text.chars().any(char::is_lowercase), text.text.chars().any(char::is_uppercase));
            if name == "lower" { has && !not } else { not && !has }
        }
        "odd" | "even" | "divisibleby" => {
            let (Some(number), divisor) = (value.as_int(), args.first().map_or(Some(2), Value::as_int)) else {
                return run.fail(format!("'is {name}' wants an integer, not {}", value.type_name()));
            };
            match divisor.filter(|divisor| *divisor != 0) {
                Some(divisor) => (number.rem_euclid(divisor) == 0) != (name == "odd"),
                None => return run.fail("integer modulo by zero"),
            }
        }
        "filter" => super::filter::exists(&value.to_text().text),
        "test" => exists(&value.to_text().text),
        _ => return comparison(run, name, value, args),
    })
}

fn comparison(run: &mut Run, name: &str, value: &Value, args: &[Value]) -> Evaluated<bool> {
    let Some(other) = args.first() else { return run.fail(format!("'is {name}' wants an operand")) };
    let op = match name {
        "sameas" => return Ok(value.is_same(other)),
        "in" => CmpOp::In,
        "eq" | "==" | "equalto" => CmpOp::Eq,
        "ne" | "!=" => CmpOp::Ne,
        "lt" | "<" | "lessthan" => CmpOp::Lt,
        "le" | "<=" => CmpOp::Le,
        "gt" | ">" | "greaterthan" => CmpOp::Gt,
        _ => CmpOp::Ge,
    };
    operator::compare(run, op, value, other)
}
