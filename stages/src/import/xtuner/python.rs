//! Python configuration files as values: assignments of literals, lists, `dict(...)`, names and simple arithmetic.
//!
//! Nothing is run. What this reader does not understand becomes an unknown value, and the rest of the file is still read:
//! configurations hold imports, hooks and conditions that no setting depends on.

mod expression;
mod token;

use std::path::Path;

use indexmap::IndexMap;

use super::super::ImportError;
use token::{Kind, Token};

/// A value of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Py {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Py>),
    /// `dict(...)` or `{...}`.
    Dict(IndexMap<String, Py>),
    /// A dotted name that is not assigned in the file: `torch.float16`, `PROMPT_TEMPLATE.default`.
    Name(String),
    /// Any other call, by the name called; keyword arguments only.
    Call(String, IndexMap<String, Py>),
    /// Something this reader does not understand.
    Unknown,
}

/// The variables of a file as they stand at its end.
pub type Variables = IndexMap<String, Py>;

impl Py {
    pub fn text(&self) -> Option<&str> {
        match self {
            Py::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The last part of a name: `default` of `PROMPT_TEMPLATE.default`.
    pub fn name(&self) -> Option<&str> {
        match self {
            Py::Name(name) | Py::Call(name, _) => Some(name.rsplit('.').next().unwrap_or(name)),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Py::Int(n) => Some(*n as f64),
            Py::Float(n) => Some(*n),
            _ => None,
        }
    }

    pub fn is_true(&self) -> bool {
        *self == Py::Bool(true)
    }

    /// An entry of a dictionary or a keyword of a call.
    pub fn get(&self, key: &str) -> Option<&Py> {
        match self {
            Py::Dict(map) | Py::Call(_, map) => map.get(key).filter(|value| **value != Py::None),
            _ => None,
        }
    }

    /// The same through several levels.
    pub fn at(&self, path: &str) -> Option<&Py> {
        path.split('.').try_fold(self, |value, key| value.get(key))
    }

    /// On one line, for messages.
    pub fn shown(&self) -> String {
        match self {
            Py::None => "None".to_string(),
            Py::Bool(flag) => (if *flag { "True" } else { "False" }).to_string(),
            Py::Int(n) => n.to_string(),
            Py::Float(n) => n.to_string(),
            Py::Text(text) => format!("{text:?}"),
            Py::List(items) => format!("[{}]", items.iter().map(Py::shown).collect::<Vec<_>>().join(", ")),
            Py::Dict(_) => "dict(...)".to_string(),
            Py::Name(name) => name.clone(),
            Py::Call(name, _) => format!("{name}(...)"),
            Py::Unknown => "an expression".to_string(),
        }
    }
}

/// Reads a file's top-level assignments, in order.
///
/// # Errors
/// `ImportError::Syntax` for text that is no Python: an open string or bracket.
pub fn read(path: &Path, text: &str) -> Result<Variables, ImportError> {
    let wrong = |(line, column, why): (usize, usize, String)| ImportError::Syntax {
        path: path.to_path_buf(),
        place: format!(":{line}:{column}"),
        why,
    };
    let tokens = token::tokens(text).map_err(wrong)?;
    let mut variables = Variables::new();
    // Statements inside `if`, `with` and `def` are indented; whether they happen is not known, so they do not count.
    for line in tokens.split(|token| token.kind == Kind::Newline).filter(|line| !line.is_empty()) {
        if line[0].column == 1 {
            assign(line, &mut variables);
        }
    }
    Ok(variables)
}

fn assign(line: &[Token], variables: &mut Variables) {
    let Kind::Name(target) = &line[0].kind else { return };
    // An annotation changes nothing: `lr: float = 2e-4`.
    let operator = match line.get(1).map(|token| &token.kind) {
        Some(Kind::Operator(":")) => match line.iter().position(|token| token.kind == Kind::Operator("=")) {
            Some(at) => at,
            None => return,
        },
        _ => 1,
    };
    let Some(Kind::Operator(sign)) = line.get(operator).map(|token| &token.kind) else { return };
    let value = expression::value(&line[operator + 1..], variables);
    let value = match *sign {
        "=" => value,
        "+=" | "-=" | "*=" | "/=" => {
            let before = variables.get(target).cloned().unwrap_or(Py::Unknown);
            expression::combine(&sign[..1], before, value)
        }
        _ => return,
    };
    variables.insert(target.clone(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Variables {
        read(Path::new("config.py"), text).unwrap()
    }

    #[test]
    fn assignments_become_values() {
        let text = "\
# Copyright
from torch.optim import AdamW
path = 'org/' 'name'  # a comment
n = 4
n *= 2
lr = 2e-4
betas = (0.9, 0.999)
template = PROMPT_TEMPLATE.default
sampler = Parallel \\
    if n > 1 else Default
model = dict(
    type=Finetune,
    llm=dict(path=path, dtype=torch.float16),
    lora=dict(type=LoraConfig, r=64, targets=None))
if n > 100:
    n = 3
data = [{'a': 1, \"b\": '''x
y'''}]
";
        let read = values(text);
        assert_eq!(read["path"], Py::Text("org/name".into()));
        assert_eq!(read["n"], Py::Int(8));
        assert_eq!(read["lr"], Py::Float(2e-4));
        assert_eq!(read["betas"], Py::List(vec![Py::Float(0.9), Py::Float(0.999)]));
        assert_eq!(read["template"].name(), Some("default"));
        assert_eq!(read["sampler"], Py::Name("Parallel".into()));
        let model = &read["model"];
        assert_eq!(model.at("llm.path").and_then(Py::text), Some("org/name"));
        assert_eq!(model.at("lora.r"), Some(&Py::Int(64)));
        assert_eq!(model.at("lora.targets"), None);
        let Py::List(items) = &read["data"] else { panic!() };
        assert_eq!(items[0].get("b"), Some(&Py::Text("x\ny".into())));
    }

    #[test]
    fn what_is_not_understood_stays_apart() {
        let read = values("a = [i for i in range(3)]\nb = lambda x: x\nc = 1\nd = load(path='x')\n");
        assert_eq!([&read["a"], &read["b"]], [&Py::Unknown, &Py::Unknown]);
        assert_eq!(read["c"], Py::Int(1));
        assert_eq!(read["d"].at("path").and_then(Py::text), Some("x"));
    }

    #[test]
    fn an_open_bracket_has_a_place() {
        let error = read(Path::new("c.py"), "a = 1\nb = dict(\n  x=1\n").unwrap_err().to_string();
        assert!(error.contains("c.py:2:9"), "{error}");
        assert!(read(Path::new("c.py"), "a = 'x\n").is_err());
        let deep = format!("a = {}1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert_eq!(values(&deep)["a"], Py::Unknown);
    }
}
