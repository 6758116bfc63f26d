//! Statements: tokens to syntax tree, with Jinja's grammar. Expressions are in [`super::expression`].

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Expr, Filter, For, Macro, Name, Stmt, Target, Template};
use super::lexer::{Lexed, Token, lex};
use super::render::TemplateError;

/// Nesting beyond this is refused, so that hostile templates cannot exhaust the stack.
const MAX_DEPTH: usize = 120;

pub fn parse(source: &str) -> Result<Template, TemplateError> {
    let mut parser = Parser { tokens: lex(source)?, at: 0, names: Vec::new(), ids: HashMap::new(), depth: 0 };
    for name in PRESET_NAMES {
        parser.intern(name);
    }
    let body = parser.body(&[])?;
    Ok(Template { body, names: parser.names })
}

/// Names with fixed numbers, in this order.
pub const PRESET_NAMES: [&str; 4] = ["loop", "caller", "varargs", "kwargs"];

pub struct Parser {
    tokens: Lexed,
    at: usize,
    names: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, Name>,
    depth: usize,
}

type Parsed<T> = Result<T, TemplateError>;

impl Parser {
    pub fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub fn peek_after(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    pub fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    pub fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(TemplateError::Syntax { line: self.line(), message: message.into() })
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if &**found == name)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub fn expect_op(&mut self, op: &str) -> Parsed<()> {
        match self.skip_op(op) {
            true => Ok(()),
            false => self.fail(format!("expected '{op}', found {}", describe(self.peek()))),
        }
    }

    pub fn expect_name(&mut self) -> Parsed<Arc<str>> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            other => self.fail(format!("expected a name, found {}", describe(&other))),
        }
    }

    pub fn intern(&mut self, name: &str) -> Name {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = Name(self.names.len() as u32);
        let text: Arc<str> = name.into();
        self.names.push(text.clone());
        self.ids.insert(text, id);
        id
    }

    /// Runs `parse` one level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        self.depth += 1;
        let out = parse(self);
        self.depth -= 1;
        out
    }

    /// Statements until a block that starts with one of `ends`, whose name is left to read; until the end when empty.
    fn body(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        let mut out = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::End if ends.is_empty() => return Ok(out),
                Token::End => return self.fail(format!("the template ends where {} is needed", ends.join(" or "))),
                Token::Data(text) => out.push(Stmt::Data(text)),
                Token::VariableBegin => {
                    out.push(Stmt::Print(self.tuple(true)?, line));
                    match self.next() {
                        Token::VariableEnd => {}
                        other => return self.fail(format!("expected '}}}}', found {}", describe(&other))),
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(out);
                    }
                    if let Some(statement) = self.nested(Self::statement)? {
                        out.push(statement);
                    }
                    self.block_end()?;
                }
                other => return self.fail(format!("unexpected {}", describe(&other))),
            }
        }
    }

    fn block_end(&mut self) -> Parsed<()> {
        match self.next() {
            Token::BlockEnd => Ok(()),
            other => self.fail(format!("expected '%}}', found {}", describe(&other))),
        }
    }

    /// The body of a block up to and including `end`'s name.
    fn block_body(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        self.block_end()?;
        let body = self.body(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Parsed<Option<Stmt>> {
        let line = self.line();
        let name = self.expect_name()?;
        Ok(Some(match &*name {
            "for" => self.for_loop(line)?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => self.macro_definition()?,
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filter_chain()?;
                Stmt::FilterBlock(filters, self.block_body("endfilter")?)
            }
            "generation" => Stmt::Generation(self.block_body("endgeneration")?),
            "block" => {
                self.expect_name()?;
                while matches!(self.peek(), Token::Name(_)) {
                    self.next();
                }
                let body = self.block_body("endblock")?;
                if matches!(self.peek(), Token::Name(_)) {
                    self.next();
                }
                Stmt::Block(body)
            }
            "print" => Stmt::Print(self.tuple(true)?, line),
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "include" | "import" | "from" | "extends" => {
                return self.fail(format!("{{% {name} %}} is refused: a chat template cannot read other files"));
            }
            other => return self.fail(format!("unknown tag '{other}'")),
        }))
    }

    fn for_loop(&mut self, line: u32) -> Parsed<Stmt> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return self.fail("expected 'in' in {% for %}");
        }
        let iter = self.tuple(false)?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.block_end()?;
        let body = self.body(&["endfor", "else"])?;
        let mut otherwise = Vec::new();
        if self.skip_name("else") {
            self.block_end()?;
            otherwise = self.body(&["endfor"])?;
        }
        self.next();
        Ok(Stmt::For(Arc::new(For { target, iter, test, body, otherwise, recursive, line })))
    }

    fn condition(&mut self) -> Parsed<Stmt> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false)?;
            self.block_end()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.skip_name("elif") {
                continue;
            }
            let mut otherwise = Vec::new();
            if self.skip_name("else") {
                self.block_end()?;
                otherwise = self.body(&["endif"])?;
            }
            self.next();
            return Ok(Stmt::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Parsed<Stmt> {
        let target = self.target(true)?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true)?));
        }
        let filters = if self.skip_op("|") { self.filter_chain()? } else { Vec::new() };
        Ok(Stmt::SetBlock(target, filters, self.block_body("endset")?))
    }

    fn with(&mut self) -> Parsed<Stmt> {
        let mut pairs = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd) {
            if !pairs.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false)?;
            self.expect_op("=")?;
            pairs.push((target, self.expression()?));
        }
        Ok(Stmt::With(pairs, self.block_body("endwith")?))
    }

    fn macro_definition(&mut self) -> Parsed<Stmt> {
        let name = self.expect_name()?;
        let name = self.intern(&name);
        self.expect_op("(")?;
        let made = self.macro_rest(Some(name), "endmacro")?;
        Ok(Stmt::Macro(made))
    }

    fn call_block(&mut self) -> Parsed<Stmt> {
        if self.skip_op("(") {
            // The parameters come first, then the call, then the body: parse the call in between.
            let (params, defaults) = self.parameters()?;
            let call = self.expression()?;
            return self.call_rest(params, defaults, call);
        }
        let call = self.expression()?;
        self.call_rest(Vec::new(), Vec::new(), call)
    }

    fn call_rest(&mut self, params: Vec<Name>, defaults: Vec<Expr>, call: Expr) -> Parsed<Stmt> {
        if !matches!(call, Expr::Call(..)) {
            return self.fail("{% call %} needs a call");
        }
        let body = self.block_body("endcall")?;
        let made = Macro { name: None, params, defaults, body };
        Ok(Stmt::Call(Arc::new(made), call))
    }

    fn macro_rest(&mut self, name: Option<Name>, end: &str) -> Parsed<Arc<Macro>> {
        let (params, defaults) = self.parameters()?;
        let body = self.block_body(end)?;
        Ok(Arc::new(Macro { name, params, defaults, body }))
    }

    /// Parameters up to and including `)`.
    fn parameters(&mut self) -> Parsed<(Vec<Name>, Vec<Expr>)> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        while !self.skip_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            let name = self.expect_name()?;
            params.push(self.intern(&name));
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("a parameter without a default follows one with a default");
            }
        }
        Ok((params, defaults))
    }

    fn filter_chain(&mut self) -> Parsed<Vec<Filter>> {
        let mut out = vec![self.filter_name_and_args()?];
        while self.skip_op("|") {
            out.push(self.filter_name_and_args()?);
        }
        Ok(out)
    }

    fn target(&mut self, with_namespace: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if self.is_name("in") || self.is_op("=") || matches!(self.peek(), Token::BlockEnd) {
                break;
            }
            targets.push(self.single_target(with_namespace)?);
            if !self.skip_op(",") {
                break;
            }
            tuple = true;
        }
        match (targets.pop(), tuple) {
            (Some(only), false) => Ok(only),
            (Some(last), true) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
            (None, _) => self.fail("expected a name to assign to"),
        }
    }

    fn single_target(&mut self, with_namespace: bool) -> Parsed<Target> {
        if self.skip_op("(") {
            let mut inner = Vec::new();
            while !self.skip_op(")") {
                inner.push(self.single_target(with_namespace)?);
                if !self.skip_op(",") {
                    self.expect_op(")")?;
                    break;
                }
            }
            return Ok(Target::Tuple(inner));
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("can't assign to '{name}'"));
        }
        let id = self.intern(&name);
        if with_namespace && self.skip_op(".") {
            return Ok(Target::Attribute(id, self.expect_name()?));
        }
        Ok(Target::Name(id))
    }
}

/// A token in the words of an error.
pub fn describe(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_string(),
        Token::VariableBegin => "'{{'".to_string(),
        Token::VariableEnd => "'}}'".to_string(),
        Token::BlockBegin => "'{%'".to_string(),
        Token::BlockEnd => "'%}'".to_string(),
        Token::Name(name) => format!("'{name}'"),
        Token::Str(_) => "a string".to_string(),
        Token::Int(_) | Token::Float(_) => "a number".to_string(),
        Token::Op(op) => format!("'{op}'"),
        Token::End => "the end of the template".to_string(),
    }
}
