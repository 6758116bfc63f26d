//! The functions that rewritten templates call, and the globals that templates know.

use minijinja::{Environment, Error, State, Value as Native};

use super::ast::{BinOp, CmpOp};
use super::bridge::{Function, Py, answer, arguments, event, from_native, to_native};
use super::operator;
use super::render::TemplateError;
use super::run::{CallArgs, Evaluated, Run};
use super::text::{Part, concat};
use super::transpile::{binary_sign, compare_sign};
use super::value::{Origin, SeqKind, Value};

type Answer = Result<Native, Error>;

/// Most numbers that `range` may make; Jinja's sandbox has the same bound.
const MAX_RANGE: i128 = 100_000;

const BINARY: [BinOp; 7] = [BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Div, BinOp::FloorDiv, BinOp::Mod, BinOp::Pow];
const COMPARE: [CmpOp; 8] = [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge, CmpOp::In, CmpOp::NotIn];

/// The global that holds the day to render as of, if there is one.
pub const DAY: &str = "__day";

/// A function as minijinja calls it.
type Call = fn(&mut State<'_, '_>, &[Native]) -> Answer;

/// Adds them all.
pub fn install(env: &mut Environment<'_>) {
    let functions: [(&'static str, Call); 27] = [
        ("__value", |_, args| Ok(to_native(&from_native(&first(args))))),
        ("__list", |_, args| answer(Ok(Value::list(values(args))))),
        ("__tuple", |_, args| answer(Ok(Value::tuple(values(args))))),
        ("__dict", |_, args| answer(Ok(dict(&values(args))))),
        ("__concat", |_, args| answer(concatenated(args))),
        ("__not", |_, args| Ok((!from_native(&first(args)).truthy()).into())),
        ("__negate", |_, args| answer(operator::negate(&Run, &from_native(&first(args))))),
        ("__positive", |_, args| answer(operator::positive(&Run, &from_native(&first(args))))),
        ("__binary", |_, args| answer(binary(args))),
        ("__compare", |_, args| answer(compare(args))),
        ("__attribute", |_, args| answer(attribute(args))),
        ("__item", |_, args| answer(operator::item(&Run, &from_native(&args[0]), &from_native(&args[1])))),
        ("__slice", |_, args| answer(slice(args))),
        ("__filter", filter),
        ("__is", |_, args| answer(test(args, true))),
        ("__isnt", |_, args| answer(test(args, false))),
        ("__iterate", |_, args| iterate(args)),
        ("__unpack", |_, args| iterate(args)),
        ("__named", |_, args| named(args)),
        ("__method", method),
        ("__call", |state, args| callable(&args[0])?.call(state, &args[1..])),
        ("__event", |_, args| Ok(to_native(&point(args)))),
        ("range", |_, args| answer(range(&arguments(args)))),
        ("dict", |_, args| answer(python_dict(arguments(args)))),
        ("raise_exception", |_, args| answer(raise(args))),
        ("strftime_now", |state, args| answer(strftime(state, args))),
        ("namespace", namespace),
    ];
    for (name, function) in functions {
        env.add_global(name, Native::from_object(Function(name, function)));
    }
    env.add_global("__undefined", to_native(&Value::undefined("the inline if-expression was false and has no else")));
}

fn first(args: &[Native]) -> Native {
    args.first().cloned().unwrap_or_default()
}

fn values(args: &[Native]) -> Vec<Value> {
    args.iter().map(from_native).collect()
}

fn dict(items: &[Value]) -> Value {
    let mut entries: Vec<(Value, Value)> = Vec::with_capacity(items.len() / 2);
    for pair in items.chunks_exact(2) {
        match entries.iter_mut().find(|(key, _)| key.equals(&pair[0])) {
            Some((_, old)) => *old = pair[1].clone(),
            None => entries.push((pair[0].clone(), pair[1].clone())),
        }
    }
    Value::dict(entries)
}

fn concatenated(args: &[Native]) -> Evaluated<Value> {
    let texts: Vec<_> = args.iter().map(|arg| from_native(arg).to_text()).collect();
    Run.burn(texts.iter().map(|text| text.text.len() as u64 / 64).sum())?;
    Ok(Value::Str(concat(&texts)))
}

fn binary(args: &[Native]) -> Evaluated<Value> {
    let sign = args[0].as_str().unwrap_or_default();
    let op = BINARY.into_iter().find(|op| binary_sign(*op) == sign).unwrap_or(BinOp::Add);
    operator::binary(&mut Run, op, &from_native(&args[1]), &from_native(&args[2]))
}

fn compare(args: &[Native]) -> Evaluated<Value> {
    let sign = args[0].as_str().unwrap_or_default();
    let op = COMPARE.into_iter().find(|op| compare_sign(*op) == sign).unwrap_or(CmpOp::Eq);
    operator::compare(&mut Run, op, &from_native(&args[1]), &from_native(&args[2])).map(Value::Bool)
}

fn attribute(args: &[Native]) -> Evaluated<Value> {
    operator::attribute(&Run, &from_native(&args[0]), args[1].as_str().unwrap_or_default())
}

fn slice(args: &[Native]) -> Evaluated<Value> {
    let bound = |at: usize| args.get(at).map(from_native);
    operator::slice(&mut Run, &from_native(&args[0]), &[bound(1), bound(2), bound(3)])
}

fn filter(_: &mut State<'_, '_>, args: &[Native]) -> Answer {
    let name = args[0].as_str().unwrap_or_default();
    answer(super::filter::apply(&mut Run, name, from_native(&args[1]), arguments(&args[2..])))
}

fn test(args: &[Native], wanted: bool) -> Evaluated<Value> {
    let name = args[0].as_str().unwrap_or_default();
    let more = arguments(&args[2..]).positional;
    Ok(Value::Bool(super::test::apply(&mut Run, name, &from_native(&args[1]), &more)? == wanted))
}

/// `(count, value)`: the items as a list of minijinja's, each checked to have `count` parts where that is above 0.
fn iterate(args: &[Native]) -> Answer {
    let count = args[0].as_usize().unwrap_or(0);
    let value = from_native(&args[1]);
    let items = match Run.iterate(&value) {
        Ok(items) => items,
        Err(error) => return answer(Err(error)),
    };
    Ok(Native::from_object(Py(Value::list(
        items
            .into_iter()
            .map(|item| match (&item, count) {
                (_, 0) | (Value::Seq(_), _) => item,
                // Unpacking a string or a dict walks it.
                (other, _) => Run.iterate(other).map(Value::list).unwrap_or(item),
            })
            .collect(),
    ))))
}

fn named(args: &[Native]) -> Answer {
    let Value::Dict(map) = from_native(&first(args)) else {
        return answer(Run.fail("argument after ** must be a mapping"));
    };
    Ok(Native::from_pairs(map.entries.iter().map(|(key, value)| (key.to_text().text.to_string(), to_native(value)))))
}

fn method(state: &mut State<'_, '_>, args: &[Native]) -> Answer {
    let object = from_native(&args[0]);
    let name = args[1].as_str().unwrap_or_default();
    if let Value::Native(native) = &object {
        return native.call_method(state, name, &args[2..]);
    }
    let found = match operator::attribute(&Run, &object, name) {
        Ok(found) => found,
        Err(error) => return answer(Err(error)),
    };
    match found {
        Value::Method(bound) => answer(super::method::call(&mut Run, &bound.0, bound.1, arguments(&args[2..]))),
        other => to_native(&other).call(state, &args[2..]),
    }
}

fn callable(value: &Native) -> Result<Native, Error> {
    match from_native(value) {
        Value::Native(native) => Ok(native),
        other => Ok(Native::from_object(Py(other))),
    }
}

fn point(args: &[Native]) -> Value {
    let nothing = || Value::str("");
    match args[0].as_str().unwrap_or_default() {
        "loop_begin" => event(Part::LoopBegin, 0),
        "loop_end" => event(Part::LoopEnd, 0),
        "generation_begin" => event(Part::GenerationBegin, 0),
        "generation_end" => event(Part::GenerationEnd, 0),
        _ => match args.get(1).map(from_native) {
            Some(Value::Dict(dict)) => match dict.origin {
                Some(Origin::Message(message)) => event(Part::AtMessage, message),
                Some(Origin::ToolCalls(message)) => event(Part::AtToolCall, message),
                None => nothing(),
            },
            _ => nothing(),
        },
    }
}

fn range(args: &CallArgs) -> Evaluated<Value> {
    let mut numbers = Vec::new();
    for arg in &args.positional {
        match arg.as_int() {
            Some(number) => numbers.push(number),
            None => return Run.fail(format!("'{}' object cannot be interpreted as an integer", arg.type_name())),
        }
    }
    let (start, stop, step) = match numbers.as_slice() {
        [stop] => (0, *stop, 1),
        [start, stop] => (*start, *stop, 1),
        [start, stop, step] if *step != 0 => (*start, *stop, *step),
        [_, _, _] => return Run.fail("range() arg 3 must not be zero"),
        _ => return Run.fail("range expected 1 to 3 arguments"),
    };
    let count = if (step > 0) == (start < stop) { (stop - start).abs().div_euclid(step.abs()) + 1 } else { 0 };
    if count > MAX_RANGE {
        return Run.fail(format!("range too big: the sandbox blocks ranges larger than {MAX_RANGE}"));
    }
    let mut items = Vec::new();
    let mut at = start;
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        items.push(Value::Int(at));
        at += step;
    }
    Ok(Value::seq(SeqKind::Range, items))
}

fn python_dict(args: CallArgs) -> Evaluated<Value> {
    let mut items = Vec::new();
    match args.positional.first() {
        Some(Value::Dict(from)) => items.extend(from.entries.iter().flat_map(|(k, v)| [k.clone(), v.clone()])),
        Some(pairs) => {
            for pair in Run.iterate(pairs)? {
                items.extend(Run.iterate(&pair)?.into_iter().take(2));
            }
        }
        None => {}
    }
    items.extend(args.named.into_iter().flat_map(|(name, value)| [Value::str(name), value]));
    Ok(dict(&items))
}

fn namespace(_: &mut State<'_, '_>, args: &[Native]) -> Answer {
    let made = minijinja::functions::namespace(None)?;
    let args = arguments(args);
    let Value::Dict(fields) = (match python_dict(args) {
        Ok(fields) => fields,
        Err(error) => return answer(Err(error)),
    }) else {
        return Ok(made);
    };
    let pairs = fields.entries.iter().map(|(key, value)| (key.to_text().text.to_string(), to_native(value)));
    minijinja::functions::namespace(Some(Native::from_pairs(pairs).into()))
}

fn raise(args: &[Native]) -> Evaluated<Value> {
    Err(TemplateError::Raised(from_native(&first(args)).to_text().text.to_string()))
}

fn strftime(state: &State<'_, '_>, args: &[Native]) -> Evaluated<Value> {
    let format = from_native(&first(args)).to_text();
    let day = state.lookup(DAY);
    match super::clock::strftime(&format.text, day.as_ref().and_then(Native::as_str)) {
        Ok(text) => Ok(Value::str(text)),
        Err(message) => Run.fail(message),
    }
}
