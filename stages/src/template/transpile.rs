//! Jinja as transformers reads it, rewritten as minijinja source.
//!
//! Statements stay statements; every operation whose meaning differs between Python and minijinja becomes a call of one
//! of the functions in [`super::function`]. White space is settled by [`super::lexer`], so the output needs none.

use std::fmt::Write;
use std::sync::Arc;

use super::ast::{Args, BinOp, CmpOp, Expr, Filter, For, Macro, Name, Stmt, Target, Template};

/// Rewrites a template. With `events`, it also prints where loops and `{% generation %}` blocks begin and end.
pub fn transpile(template: &Template, events: bool) -> String {
    let mut writer = Writer { names: &template.names, out: String::new(), events, captures: 0, line: 1 };
    writer.body(&template.body);
    writer.out
}

/// What a rewritten template holds if, and only if, it has a `{% generation %}` block.
pub const GENERATION: &str = "{{__event('generation_begin')}}";

struct Writer<'t> {
    names: &'t [Arc<str>],
    out: String,
    events: bool,
    captures: usize,
    line: u32,
}

macro_rules! put {
    ($writer:expr, $($arg:tt)*) => {{ let _ = write!($writer.out, $($arg)*); }};
}

impl Writer<'_> {
    fn name(&self, name: Name) -> &str {
        &self.names[name.0 as usize]
    }

    fn body(&mut self, body: &[Stmt]) {
        for statement in body {
            self.statement(statement);
        }
    }

    fn event(&mut self, call: &str) {
        if self.events {
            put!(self, "{{{{__event({call})}}}}");
        }
    }

    /// Line breaks inside a tag, until its line in the output is its line in the source: errors name lines.
    fn reach(&mut self, line: u32) {
        let now = self.line.max(1 + self.out.bytes().filter(|&b| b == b'\n').count() as u32);
        for _ in now..line {
            self.out.push('\n');
        }
        self.line = now.max(line);
    }

    #[allow(clippy::too_many_lines)] // One arm per kind of statement.
    fn statement(&mut self, statement: &Stmt) {
        match statement {
            Stmt::Data(text) if !text.contains('{') => self.out.push_str(text),
            Stmt::Data(text) => {
                self.out.push_str("{{");
                self.literal(text);
                self.out.push_str("}}");
            }
            Stmt::Print(expr, line) => {
                self.out.push_str("{{");
                self.reach(*line);
                self.expr(expr);
                self.out.push_str("}}");
            }
            Stmt::For(each) => self.for_loop(each),
            Stmt::If(branches, otherwise) => {
                for (i, (test, body)) in branches.iter().enumerate() {
                    self.out.push_str(if i == 0 { "{% if " } else { "{% elif " });
                    self.expr(test);
                    self.out.push_str(" %}");
                    self.body(body);
                }
                if !otherwise.is_empty() {
                    self.out.push_str("{% else %}");
                    self.body(otherwise);
                }
                self.out.push_str("{% endif %}");
            }
            Stmt::Set(target, expr) => {
                self.out.push_str("{% set ");
                self.target(target);
                self.out.push_str(" = ");
                match target {
                    Target::Tuple(targets) => self.unpacked(targets.len(), expr),
                    _ => self.expr(expr),
                }
                self.out.push_str(" %}");
            }
            Stmt::SetBlock(target, filters, body) => {
                let captured = self.capture(body);
                self.out.push_str("{% set ");
                self.target(target);
                self.out.push_str(" = ");
                self.filtered(filters, &captured);
                self.out.push_str(" %}");
            }
            Stmt::FilterBlock(filters, body) => {
                let captured = self.capture(body);
                self.out.push_str("{{");
                self.filtered(filters, &captured);
                self.out.push_str("}}");
            }
            Stmt::With(pairs, body) => self.with(pairs, body),
            Stmt::Macro(made) => {
                let name = made.name.map_or("", |name| self.name(name)).to_string();
                put!(self, "{{% macro {name}");
                self.macro_rest(made);
                self.out.push_str("{% endmacro %}");
            }
            Stmt::Call(made, call) => {
                self.out.push_str("{% call");
                if made.params.is_empty() {
                    self.out.push(' ');
                    self.bare_call(call);
                    self.out.push_str(" %}");
                    self.body(&made.body);
                } else {
                    self.params(made);
                    self.bare_call(call);
                    self.out.push_str(" %}");
                    self.body(&made.body);
                }
                self.out.push_str("{% endcall %}");
            }
            Stmt::Generation(body) => {
                self.event("'generation_begin'");
                self.with(&[], body);
                self.event("'generation_end'");
            }
            Stmt::Block(body) => self.with(&[], body),
            Stmt::Break => self.out.push_str("{% break %}"),
            Stmt::Continue => self.out.push_str("{% continue %}"),
        }
    }

    fn capture(&mut self, body: &[Stmt]) -> String {
        self.captures += 1;
        let name = format!("__captured{}", self.captures);
        put!(self, "{{% set {name} %}}");
        self.body(body);
        self.out.push_str("{% endset %}");
        name
    }

    fn filtered(&mut self, filters: &[Filter], captured: &str) {
        for filter in filters.iter().rev() {
            put!(self, "__filter('{}',", filter.name);
        }
        put!(self, "__value({captured})");
        for filter in filters {
            self.more_args(&filter.args);
            self.out.push(')');
        }
    }

    fn with(&mut self, pairs: &[(Target, Expr)], body: &[Stmt]) {
        self.out.push_str("{% with ");
        for (i, (target, expr)) in pairs.iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            self.target(target);
            self.out.push('=');
            self.expr(expr);
        }
        self.out.push_str(" %}");
        self.body(body);
        self.out.push_str("{% endwith %}");
    }

    fn for_loop(&mut self, each: &For) {
        self.event("'loop_begin'");
        self.out.push_str("{% for ");
        self.reach(each.line);
        self.target(&each.target);
        self.out.push_str(" in ");
        match &each.target {
            Target::Tuple(targets) => put!(self, "__iterate({},", targets.len()),
            _ => self.out.push_str("__iterate(0,"),
        }
        self.expr(&each.iter);
        self.out.push(')');
        if let Some(test) = &each.test {
            self.out.push_str(" if ");
            self.expr(test);
        }
        self.out.push_str(if each.recursive { " recursive %}" } else { " %}" });
        if let (Target::Name(name), true) = (&each.target, self.events) {
            let name = self.name(*name).to_string();
            self.event(&format!("'at',{name}"));
        }
        self.body(&each.body);
        if !each.otherwise.is_empty() {
            self.out.push_str("{% else %}");
            self.body(&each.otherwise);
        }
        self.out.push_str("{% endfor %}");
        self.event("'loop_end'");
    }

    fn macro_rest(&mut self, made: &Macro) {
        self.params(made);
        self.out.push_str(" %}");
        self.body(&made.body);
    }

    fn params(&mut self, made: &Macro) {
        let first_default = made.params.len() - made.defaults.len();
        self.out.push('(');
        for (i, param) in made.params.iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            let name = self.name(*param).to_string();
            self.out.push_str(&name);
            if i >= first_default {
                self.out.push('=');
                self.expr(&made.defaults[i - first_default]);
            }
        }
        self.out.push_str(") ");
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => {
                let name = self.name(*name).to_string();
                self.out.push_str(&name);
            }
            Target::Attribute(name, attribute) => {
                let name = self.name(*name).to_string();
                put!(self, "{name}.{attribute}");
            }
            Target::Tuple(targets) => {
                self.out.push('(');
                for target in targets {
                    self.target(target);
                    self.out.push(',');
                }
                self.out.push(')');
            }
        }
    }

    fn unpacked(&mut self, count: usize, expr: &Expr) {
        put!(self, "__unpack({count},");
        self.expr(expr);
        self.out.push(')');
    }

    #[allow(clippy::too_many_lines)] // One arm per kind of expression.
    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::None => self.out.push_str("none"),
            Expr::Bool(value) => put!(self, "{value}"),
            Expr::Int(value) => put!(self, "{value}"),
            Expr::Float(value) => put!(self, "{value:?}"),
            Expr::Str(text) => self.literal(text),
            Expr::Name(name) => {
                let name = self.name(*name).to_string();
                self.out.push_str(&name);
            }
            Expr::List(items) => self.call("__list", items),
            Expr::Tuple(items) => self.call("__tuple", items),
            Expr::Concat(items) => self.call("__concat", items),
            Expr::Dict(items) => {
                self.out.push_str("__dict(");
                for (key, value) in items {
                    self.expr(key);
                    self.out.push(',');
                    self.expr(value);
                    self.out.push(',');
                }
                self.out.push(')');
            }
            Expr::Not(inner) => self.call("__not", std::slice::from_ref(inner)),
            Expr::Neg(inner) => self.call("__negate", std::slice::from_ref(inner)),
            Expr::Pos(inner) => self.call("__positive", std::slice::from_ref(inner)),
            Expr::And(left, right) => self.infix(left, " and ", right),
            Expr::Or(left, right) => self.infix(left, " or ", right),
            Expr::Binary(op, left, right, line) => {
                put!(self, "__binary('{}',", binary_sign(*op));
                self.reach(*line);
                self.pair(left, right);
            }
            Expr::Compare(first, rest) => self.comparison(first, rest),
            Expr::If(test, then, otherwise) => {
                self.out.push('(');
                self.expr(then);
                self.out.push_str(" if ");
                self.expr(test);
                self.out.push_str(" else ");
                match otherwise {
                    Some(otherwise) => self.expr(otherwise),
                    None => self.out.push_str("__undefined"),
                }
                self.out.push(')');
            }
            Expr::Attribute(object, name) => {
                self.out.push_str("__attribute(");
                self.expr(object);
                put!(self, ",'{name}')");
            }
            Expr::Item(object, key) => {
                self.out.push_str("__item(");
                self.pair(object, key);
            }
            Expr::Slice(object, parts) => {
                self.out.push_str("__slice(");
                self.expr(object);
                for part in parts {
                    self.out.push(',');
                    match part {
                        Some(part) => self.expr(part),
                        None => self.out.push_str("none"),
                    }
                }
                self.out.push(')');
            }
            Expr::Filter(value, filter) => {
                put!(self, "__filter('{}',", filter.name);
                match value {
                    Some(value) => self.expr(value),
                    None => self.out.push_str("none"),
                }
                self.more_args(&filter.args);
                self.out.push(')');
            }
            Expr::Test(value, test, negated) => {
                put!(self, "{}('{}',", if *negated { "__isnt" } else { "__is" }, test.name);
                self.expr(value);
                self.more_args(&test.args);
                self.out.push(')');
            }
            Expr::Call(..) => {
                self.out.push_str("__value(");
                self.bare_call(expr);
                self.out.push(')');
            }
        }
    }

    fn bare_call(&mut self, call: &Expr) {
        let Expr::Call(callee, args, line) = call else { return };
        match &**callee {
            Expr::Name(name) => {
                let name = self.name(*name).to_string();
                put!(self, "{name}(");
                self.reach(*line);
                self.args(args);
            }
            Expr::Attribute(object, method) => {
                self.out.push_str("__method(");
                self.reach(*line);
                self.expr(object);
                put!(self, ",'{method}'");
                self.more_args(args);
            }
            other => {
                self.out.push_str("__call(");
                self.reach(*line);
                self.expr(other);
                self.more_args(args);
            }
        }
        self.out.push(')');
    }

    fn comparison(&mut self, first: &Expr, rest: &[(CmpOp, Expr)]) {
        let mut left = first;
        self.out.push('(');
        for (i, (op, right)) in rest.iter().enumerate() {
            if i > 0 {
                self.out.push_str(" and ");
            }
            put!(self, "__compare('{}',", compare_sign(*op));
            self.pair(left, right);
            left = right;
        }
        self.out.push(')');
    }

    fn infix(&mut self, left: &Expr, op: &str, right: &Expr) {
        self.out.push('(');
        self.expr(left);
        self.out.push_str(op);
        self.expr(right);
        self.out.push(')');
    }

    fn pair(&mut self, left: &Expr, right: &Expr) {
        self.expr(left);
        self.out.push(',');
        self.expr(right);
        self.out.push(')');
    }

    fn call<E: std::borrow::Borrow<Expr>>(&mut self, function: &str, items: &[E]) {
        put!(self, "{function}(");
        for item in items {
            self.expr(item.borrow());
            self.out.push(',');
        }
        self.out.push(')');
    }

    fn more_args(&mut self, args: &Args) {
        let some =
            !args.positional.is_empty() || !args.named.is_empty() || args.star.is_some() || args.double_star.is_some();
        if some {
            self.out.push(',');
            self.args(args);
        }
    }

    fn args(&mut self, args: &Args) {
        for value in &args.positional {
            self.expr(value);
            self.out.push(',');
        }
        if let Some(star) = &args.star {
            self.out.push_str("*__iterate(0,");
            self.expr(star);
            self.out.push_str("),");
        }
        for (name, value) in &args.named {
            put!(self, "{name}=");
            self.expr(value);
            self.out.push(',');
        }
        if let Some(map) = &args.double_star {
            self.out.push_str("**__named(");
            self.expr(map);
            self.out.push_str("),");
        }
    }

    fn literal(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\0'..='\u{1f}' => put!(self, "\\u{:04x}", c as u32),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

pub fn binary_sign(op: BinOp) -> &'static str {
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

pub fn compare_sign(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "==",
        CmpOp::Ne => "!=",
        CmpOp::Lt => "<",
        CmpOp::Le => "<=",
        CmpOp::Gt => ">",
        CmpOp::Ge => ">=",
        CmpOp::In => "in",
        CmpOp::NotIn => "not in",
    }
}
