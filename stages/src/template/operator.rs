//! Python's operators, attribute and item access, and slices.

use std::sync::Arc;

use super::ast::{BinOp, CmpOp};
use super::method;
use super::run::{Evaluated, Run};
use super::text::{Text, concat};
use super::value::{Seq, SeqKind, Value};

/// Longest string or list that multiplication may make.
const MAX_PRODUCT: usize = 1 << 24;

pub fn negate(run: &Run, value: &Value) -> Evaluated<Value> {
    match value {
        Value::Float(value) => Ok(Value::Float(-value)),
        _ => match value.as_int() {
            Some(value) => Ok(Value::Int(-value)),
            None => unary_error(run, "-", value),
        },
    }
}

pub fn positive(run: &Run, value: &Value) -> Evaluated<Value> {
    match value {
        Value::Float(value) => Ok(Value::Float(*value)),
        _ => match value.as_int() {
            Some(value) => Ok(Value::Int(value)),
            None => unary_error(run, "+", value),
        },
    }
}

fn unary_error(run: &Run, sign: &str, value: &Value) -> Evaluated<Value> {
    match value {
        Value::Undefined(what) => run.fail(what.to_string()),
        other => run.fail(format!("bad operand type for unary {sign}: '{}'", other.type_name())),
    }
}

pub fn binary(run: &mut Run, op: BinOp, left: &Value, right: &Value) -> Evaluated<Value> {
    if let Value::Undefined(what) = left {
        return run.fail(what.to_string());
    }
    match (op, left, right) {
        (BinOp::Mod, Value::Str(format), args) => return method::percent_format(run, format, args),
        (_, _, Value::Undefined(what)) => return run.fail(what.to_string()),
        (BinOp::Add, Value::Str(a), Value::Str(b)) => {
            run.burn((a.text.len() + b.text.len()) as u64 / 64)?;
            return Ok(Value::Str(concat([a, b])));
        }
        (BinOp::Add, Value::Seq(a), Value::Seq(b)) if a.kind == b.kind && is_concrete(a.kind) => {
            run.burn((a.items.len() + b.items.len()) as u64 / 8)?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            return Ok(Value::Seq(Arc::new(Seq { kind: a.kind, items, origin: a.origin.or(b.origin) })));
        }
        (BinOp::Mul, Value::Str(_) | Value::Seq(_), count) | (BinOp::Mul, count, Value::Str(_) | Value::Seq(_)) => {
            if let Some(count) = count.as_int() {
                let repeated = if matches!(left, Value::Str(_) | Value::Seq(_)) { left } else { right };
                return repeat(run, repeated, count);
            }
        }
        _ => {}
    }
    let out = match (left.as_int(), right.as_int()) {
        (Some(a), Some(b)) => integer(run, op, a, b)?,
        _ => match (left.as_number(), right.as_number()) {
            (Some(a), Some(b)) => Some(float(run, op, a, b)?),
            _ => None,
        },
    };
    let Some(out) = out else {
        let (a, b) = (left.type_name(), right.type_name());
        return run.fail(format!("unsupported operand type(s) for {}: '{a}' and '{b}'", sign(op)));
    };
    Ok(out)
}

fn is_concrete(kind: SeqKind) -> bool {
    matches!(kind, SeqKind::List | SeqKind::Tuple)
}

fn sign(op: BinOp) -> &'static str {
    match op {
        BinOp::Add => "+",
        BinOp::Sub => "-",
        BinOp::Mul => "*",
        BinOp::Div => "/",
        BinOp::FloorDiv => "//",
        BinOp::Mod => "%",
        BinOp::Pow => "**",
    }
}

fn repeat(run: &mut Run, value: &Value, count: i128) -> Evaluated<Value> {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let size = match value {
        Value::Str(text) => text.text.len(),
        Value::Seq(seq) => seq.items.len(),
        _ => 0,
    };
    if size.saturating_mul(count) > MAX_PRODUCT {
        return run.fail("a product of a string or list is too long");
    }
    run.burn((size * count) as u64 / 16)?;
    match value {
        Value::Str(text) => Ok(Value::Str(concat(std::iter::repeat_n(text, if size == 0 { 0 } else { count })))),
        Value::Seq(seq) if is_concrete(seq.kind) => {
            let items = (0..if size == 0 { 0 } else { count }).flat_map(|_| seq.items.iter().cloned()).collect();
            Ok(Value::seq(seq.kind, items))
        }
        other => run.fail(format!("can't multiply '{}'", other.type_name())),
    }
}

fn integer(run: &Run, op: BinOp, a: i128, b: i128) -> Evaluated<Option<Value>> {
    let value = match op {
        BinOp::Add => a.checked_add(b),
        BinOp::Sub => a.checked_sub(b),
        BinOp::Mul => a.checked_mul(b),
        BinOp::Div | BinOp::FloorDiv | BinOp::Mod if b == 0 => return run.fail("division by zero"),
        BinOp::Div => return Ok(Some(Value::Float(a as f64 / b as f64))),
        BinOp::FloorDiv => Some(a.div_euclid(b) - i128::from(b < 0 && a.rem_euclid(b) != 0)),
        BinOp::Mod => Some(a - b * (a.div_euclid(b) - i128::from(b < 0 && a.rem_euclid(b) != 0))),
        BinOp::Pow if b < 0 => return Ok(Some(Value::Float((a as f64).powf(b as f64)))),
        BinOp::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    match value {
        Some(value) => Ok(Some(Value::Int(value))),
        None => run.fail("an integer grew beyond 128 bits"),
    }
}

fn float(run: &Run, op: BinOp, a: f64, b: f64) -> Evaluated<Value> {
    if b == 0.0 && matches!(op, BinOp::Div | BinOp::FloorDiv | BinOp::Mod) {
        return run.fail("float division by zero");
    }
    Ok(Value::Float(match op {
        BinOp::Add => a + b,
        BinOp::Sub => a - b,
        BinOp::Mul => a * b,
        BinOp::Div => a / b,
        BinOp::FloorDiv => (a / b).floor(),
        BinOp::Mod => a - b * (a / b).floor(),
        BinOp::Pow => a.powf(b),
    }))
}

pub fn compare(run: &mut Run, op: CmpOp, left: &Value, right: &Value) -> Evaluated<bool> {
    match op {
        CmpOp::Eq => return Ok(left.equals(right)),
        CmpOp::Ne => return Ok(!left.equals(right)),
        CmpOp::In => return contains(run, right, left),
        CmpOp::NotIn => return Ok(!contains(run, right, left)?),
        _ => {}
    }
    for side in [left, right] {
        if let Value::Undefined(what) = side {
            return run.fail(what.to_string());
        }
    }
    let Some(order) = left.compare(right) else {
        let (a, b) = (left.type_name(), right.type_name());
        return run.fail(format!("order is not defined between instances of '{a}' and '{b}'"));
    };
    Ok(match op {
        CmpOp::Lt => order.is_lt(),
        CmpOp::Le => order.is_le(),
        CmpOp::Gt => order.is_gt(),
        _ => order.is_ge(),
    })
}

/// `needle in container`.
pub fn contains(run: &mut Run, container: &Value, needle: &Value) -> Evaluated<bool> {
    match (container, needle) {
        (Value::Str(text), Value::Str(needle)) => Ok(text.text.contains(&*needle.text)),
        (Value::Str(_), other) => {
            run.fail(format!("'in <string>' requires string as left operand, not {}", other.type_name()))
        }
        (Value::Dict(dict), key) => Ok(dict.get(key).is_some()),
        (container, needle) => {
            let items = run.iterate(container)?;
            Ok(items.iter().any(|item| item.equals(needle)))
        }
    }
}

/// `object.name` as the sandbox resolves it: an attribute first, then an item.
pub fn attribute(run: &Run, object: &Value, name: &str) -> Evaluated<Value> {
    if let Value::Undefined(what) = object {
        return run.fail(what.to_string());
    }
    if let Some(found) = python_attribute(object, name) {
        return Ok(found);
    }
    if let Value::Dict(dict) = object
        && let Some(value) = dict.get_str(name)
    {
        return Ok(value.clone());
    }
    Ok(missing(object, name))
}

fn missing(object: &Value, name: &str) -> Value {
    match object {
        Value::None => Value::undefined(&format!("'None' has no attribute '{name}'")),
        other => Value::undefined(&format!("'{} object' has no attribute '{name}'", other.type_name())),
    }
}

/// `object[key]` as the sandbox resolves it: an item first, then an attribute.
pub fn item(run: &Run, object: &Value, key: &Value) -> Evaluated<Value> {
    if let Value::Undefined(what) = object {
        return run.fail(what.to_string());
    }
    let found = match (object, key) {
        (Value::Dict(dict), key) => dict.get(key).cloned(),
        (Value::Seq(seq), key) if is_concrete(seq.kind) || seq.kind == SeqKind::Range => {
            key.as_int().and_then(|at| index(at, seq.items.len())).map(|at| seq.items[at].clone())
        }
        (Value::Str(text), key) => key.as_int().and_then(|at| character(text, at)).map(Value::Str),
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    Ok(match key {
        Value::Str(name) => match python_attribute(object, &name.text) {
            Some(found) => found,
            None => missing(object, &name.text),
        },
        other => missing(object, &other.repr()),
    })
}

fn index(at: i128, length: usize) -> Option<usize> {
    let at = if at < 0 { at + length as i128 } else { at };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn character(text: &Text, at: i128) -> Option<Text> {
    let count = text.text.chars().count();
    let at = index(at, count)?;
    let (start, c) = text.text.char_indices().nth(at)?;
    Some(text.slice(start, start + c.len_utf8()))
}

/// Python attributes proper: methods, and what minijinja's own objects have.
fn python_attribute(object: &Value, name: &str) -> Option<Value> {
    match object {
        Value::Native(native) => {
            let found = native.get_attr(name).ok().filter(|found| !found.is_undefined())?;
            Some(super::bridge::from_native(&found))
        }
        other => method::bound(other, name),
    }
}

pub fn slice(run: &mut Run, object: &Value, bounds: &[Option<Value>; 3]) -> Evaluated<Value> {
    if let Value::Undefined(what) = object {
        return run.fail(what.to_string());
    }
    let mut numbers = [None; 3];
    for (number, bound) in numbers.iter_mut().zip(bounds) {
        *number = match bound {
            None | Some(Value::None) => None,
            Some(value) => match value.as_int() {
                Some(value) => Some(value),
                None => return run.fail("slice indices must be integers or None"),
            },
        };
    }
    let step = numbers[2].unwrap_or(1);
    if step == 0 {
        return run.fail("slice step cannot be zero");
    }
    match object {
        Value::Str(text) => {
            let starts: Vec<usize> = text.text.char_indices().map(|(at, _)| at).chain([text.text.len()]).collect();
            let picked = picks(starts.len() - 1, numbers[0], numbers[1], step);
            run.burn(picked.len() as u64 / 8)?;
            if step == 1 {
                let (from, to) = match (picked.first(), picked.last()) {
                    (Some(&first), Some(&last)) => (starts[first], starts[last + 1]),
                    _ => (0, 0),
                };
                return Ok(Value::Str(text.slice(from, to)));
            }
            let pieces: Vec<Text> = picked.iter().map(|&at| text.slice(starts[at], starts[at + 1])).collect();
            Ok(Value::Str(concat(&pieces)))
        }
        Value::Seq(seq) if is_concrete(seq.kind) || seq.kind == SeqKind::Range => {
            let picked = picks(seq.items.len(), numbers[0], numbers[1], step);
            run.burn(picked.len() as u64 / 8)?;
            let items = picked.into_iter().map(|at| seq.items[at].clone()).collect();
            Ok(Value::Seq(Arc::new(Seq { kind: seq.kind, items, origin: seq.origin })))
        }
        other => run.fail(format!("'{}' object is not subscriptable by a slice", other.type_name())),
    }
}

/// The indices that Python's slice picks.
fn picks(length: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> Vec<usize> {
    let n = length as i128;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clamp = |at: i128| (if at < 0 { at + n } else { at }).clamp(low, high);
    let mut at = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let mut out = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        out.push(at as usize);
        at += step;
    }
    out
}
