//! Expressions of a configuration as values. What is not understood is [`Py::Unknown`], never an error.

use indexmap::IndexMap;

use super::token::{Kind, Token};
use super::{Py, Variables};

/// Deepest nesting that is followed.
const DEEPEST: usize = 60;

/// The value of a whole line's right side.
pub fn value(tokens: &[Token], variables: &Variables) -> Py {
    let mut reader = Reader { tokens, at: 0, variables, depth: 0 };
    let first = reader.conditional();
    let value = if reader.is(",") { reader.tuple(first) } else { first };
    match (value, reader.at == tokens.len()) {
        (Some(value), true) => value,
        _ => Py::Unknown,
    }
}

/// `left sign right` for numbers, texts and lists.
pub fn combine(sign: &str, left: Py, right: Py) -> Py {
    if let (Py::Int(a), Py::Int(b)) = (&left, &right) {
        let whole = match sign {
            "+" => a.checked_add(*b),
            "-" => a.checked_sub(*b),
            "*" => a.checked_mul(*b),
            "//" => a.checked_div_euclid(*b),
            "%" => a.checked_rem_euclid(*b),
            "**" => u32::try_from(*b).ok().and_then(|b| a.checked_pow(b)),
            _ => None,
        };
        if let Some(whole) = whole {
            return Py::Int(whole);
        }
    }
    if let (Some(a), Some(b)) = (left.number(), right.number()) {
        let result = match sign {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            "/" => a / b,
            "**" => a.powf(b),
            _ => f64::NAN,
        };
        return if result.is_finite() { Py::Float(result) } else { Py::Unknown };
    }
    match (sign, left, right) {
        ("+", Py::Text(a), Py::Text(b)) => Py::Text(a + &b),
        ("+", Py::List(mut a), Py::List(b)) => {
            a.extend(b);
            Py::List(a)
        }
        _ => Py::Unknown,
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    variables: &'a Variables,
    depth: usize,
}

impl Reader<'_> {
    fn kind(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.kind(), Some(Kind::Operator(have)) if *have == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.kind(), Some(Kind::Name(have)) if have == word)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    /// `a if condition else b`
    fn conditional(&mut self) -> Option<Py> {
        self.depth += 1;
        let found = if self.depth > DEEPEST { None } else { self.conditional_within() };
        self.depth -= 1;
        found
    }

    fn conditional_within(&mut self) -> Option<Py> {
        let yes = self.either()?;
        if !self.eat_word("if") {
            return Some(yes);
        }
        let condition = self.either()?;
        if !self.eat_word("else") {
            return None;
        }
        let no = self.conditional()?;
        Some(match truth(&condition) {
            Some(true) => yes,
            Some(false) => no,
            None => Py::Unknown,
        })
    }

    /// `or`, `and`, `not` and comparisons; only their truth matters.
    fn either(&mut self) -> Option<Py> {
        let mut left = self.comparison()?;
        while self.is_word("or") || self.is_word("and") {
            let or = self.is_word("or");
            self.at += 1;
            let right = self.comparison()?;
            left = match (truth(&left), or) {
                (Some(true), true) | (Some(false), false) => left,
                (Some(_), _) => right,
                (None, _) => Py::Unknown,
            };
        }
        Some(left)
    }

    fn comparison(&mut self) -> Option<Py> {
        if self.eat_word("not") {
            let value = self.comparison()?;
            return Some(truth(&value).map_or(Py::Unknown, |value| Py::Bool(!value)));
        }
        let left = self.sum()?;
        let Some(Kind::Operator(sign @ ("==" | "!=" | "<" | ">" | "<=" | ">="))) = self.kind() else {
            if self.is_word("is") || self.is_word("in") || self.is_word("for") {
                return None;
            }
            return Some(left);
        };
        let sign = *sign;
        self.at += 1;
        let right = self.sum()?;
        let order = match (left.number(), right.number()) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ => left.text().zip(right.text()).map(|(a, b)| a.cmp(b)),
        };
        Some(order.map_or(Py::Unknown, |order| {
            Py::Bool(match sign {
                "==" => order.is_eq(),
                "!=" => order.is_ne(),
                "<" => order.is_lt(),
                ">" => order.is_gt(),
                "<=" => order.is_le(),
                _ => order.is_ge(),
            })
        }))
    }

    fn sum(&mut self) -> Option<Py> {
        let mut left = self.product()?;
        while let Some(Kind::Operator(sign @ ("+" | "-"))) = self.kind() {
            let sign = *sign;
            self.at += 1;
            left = combine(sign, left, self.product()?);
        }
        Some(left)
    }

    fn product(&mut self) -> Option<Py> {
        let mut left = self.signed()?;
        while let Some(Kind::Operator(sign @ ("*" | "/" | "//" | "%" | "**"))) = self.kind() {
            let sign = *sign;
            self.at += 1;
            left = combine(sign, left, self.signed()?);
        }
        Some(left)
    }

    fn signed(&mut self) -> Option<Py> {
        if self.eat("-") {
            return Some(match self.atom()? {
                Py::Int(n) => Py::Int(n.checked_neg()?),
                Py::Float(n) => Py::Float(-n),
                _ => Py::Unknown,
            });
        }
        self.atom()
    }

    fn atom(&mut self) -> Option<Py> {
        let kind = self.kind()?.clone();
        self.at += 1;
        let value = match kind {
            Kind::Int(n) => Py::Int(n),
            Kind::Float(n) => Py::Float(n),
            Kind::Text(mut text) => {
                while let Some(Kind::Text(more)) = self.kind() {
                    text.push_str(more);
                    self.at += 1;
                }
                Py::Text(text)
            }
            Kind::Name(name) => return self.named(name),
            Kind::Operator("(") => {
                if self.eat(")") {
                    return Some(Py::List(Vec::new()));
                }
                let first = self.conditional();
                let value = if self.is(",") { self.tuple(first) } else { first };
                return if self.eat(")") { value } else { None };
            }
            Kind::Operator("[") => return self.list(),
            Kind::Operator("{") => return self.braces(),
            _ => return None,
        };
        Some(value)
    }

    fn tuple(&mut self, first: Option<Py>) -> Option<Py> {
        let mut items = vec![first?];
        while self.eat(",") {
            if self.is(")") || self.kind().is_none() {
                break;
            }
            items.push(self.conditional()?);
        }
        Some(Py::List(items))
    }

    fn list(&mut self) -> Option<Py> {
        let mut items = Vec::new();
        while !self.eat("]") {
            items.push(self.conditional()?);
            if !self.eat(",") && !self.is("]") {
                return None;
            }
        }
        Some(Py::List(items))
    }

    fn braces(&mut self) -> Option<Py> {
        let mut map = IndexMap::new();
        while !self.eat("}") {
            let Py::Text(key) = self.conditional()? else { return None };
            if !self.eat(":") {
                return None;
            }
            map.insert(key, self.conditional()?);
            if !self.eat(",") && !self.is("}") {
                return None;
            }
        }
        Some(Py::Dict(map))
    }

    /// A word: a constant, a variable, a dotted name, or a call of one.
    fn named(&mut self, word: String) -> Option<Py> {
        match word.as_str() {
            "None" => return Some(Py::None),
            "True" => return Some(Py::Bool(true)),
            "False" => return Some(Py::Bool(false)),
            "lambda" | "await" | "yield" => return None,
            _ => {}
        }
        let mut name = word;
        let mut value = self.variables.get(&name).cloned();
        loop {
            if self.eat(".") {
                let Some(Kind::Name(part)) = self.kind() else { return None };
                name = format!("{name}.{part}");
                value = value.and_then(|value| value.get(part).cloned());
                self.at += 1;
            } else if self.eat("(") {
                let arguments = self.arguments()?;
                let call = if name == "dict" { Py::Dict(arguments) } else { Py::Call(name.clone(), arguments) };
                value = Some(call);
            } else if self.eat("[") {
                let index = self.conditional()?;
                if !self.eat("]") {
                    return None;
                }
                value = match (value, index) {
                    (Some(Py::List(items)), Py::Int(n)) => items.get(usize::try_from(n).ok()?).cloned(),
                    (Some(Py::Dict(map)), Py::Text(key)) => map.get(&key).cloned(),
                    _ => Some(Py::Unknown),
                };
            } else {
                return Some(value.unwrap_or(Py::Name(name)));
            }
        }
    }

    /// Keyword arguments; positional ones are settings of nothing and are read over.
    fn arguments(&mut self) -> Option<IndexMap<String, Py>> {
        let mut map = IndexMap::new();
        while !self.eat(")") {
            let spread = self.eat("**") || self.eat("*");
            let keyword = match (self.kind(), self.tokens.get(self.at + 1).map(|token| &token.kind)) {
                (Some(Kind::Name(name)), Some(Kind::Operator("="))) => Some(name.clone()),
                _ => None,
            };
            if let Some(keyword) = keyword {
                self.at += 2;
                map.insert(keyword, self.conditional()?);
            } else if let Py::Dict(more) = self.conditional()?
                && spread
            {
                map.extend(more);
            }
            if !self.eat(",") && !self.is(")") {
                return None;
            }
        }
        Some(map)
    }
}

/// Whether Python would take the value for true; unknown for names.
fn truth(value: &Py) -> Option<bool> {
    match value {
        Py::None => Some(false),
        Py::Bool(flag) => Some(*flag),
        Py::Int(n) => Some(*n != 0),
        Py::Float(n) => Some(*n != 0.0),
        Py::Text(text) => Some(!text.is_empty()),
        Py::List(items) => Some(!items.is_empty()),
        Py::Dict(map) => Some(!map.is_empty()),
        Py::Name(_) | Py::Call(..) | Py::Unknown => None,
    }
}
