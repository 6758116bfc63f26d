//! Expressions: Jinja's precedence, filters, tests and calls.

use std::sync::Arc;

use super::ast::{Args, BinOp, CmpOp, Expr, Filter};
use super::lexer::Token;
use super::parser::{Parser, describe};
use super::render::TemplateError;

type Parsed<T> = Result<T, TemplateError>;

impl Parser {
    /// One expression, with the inline `if`.
    pub fn expression(&mut self) -> Parsed<Expr> {
        self.nested(|parser| {
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                let test = parser.or()?;
                let otherwise = if parser.skip_name("else") { Some(Box::new(parser.expression()?)) } else { None };
                value = Expr::If(Box::new(test), Box::new(value), otherwise);
            }
            Ok(value)
        })
    }

    /// One expression, or several with commas between as a tuple.
    pub fn tuple(&mut self, with_condition: bool) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() && !is_tuple || self.tuple_ends() {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match (items.pop(), is_tuple) {
            (Some(only), false) => Ok(only),
            (Some(last), true) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
            (None, _) => self.fail(format!("expected an expression, found {}", describe(self.peek()))),
        }
    }

    fn tuple_ends(&self) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd | Token::End)
            || self.is_op(")")
            || self.is_name("recursive")
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.skip_name("not") {
            return self.nested(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Token::Op("==") => CmpOp::Eq,
                Token::Op("!=") => CmpOp::Ne,
                Token::Op("<") => CmpOp::Lt,
                Token::Op("<=") => CmpOp::Le,
                Token::Op(">") => CmpOp::Gt,
                Token::Op(">=") => CmpOp::Ge,
                Token::Name(name) if &**name == "in" => CmpOp::In,
                Token::Name(name) if &**name == "not" => match self.peek_after() {
                    Token::Name(name) if &**name == "in" => {
                        self.next();
                        CmpOp::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.next();
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { left } else { Expr::Compare(Box::new(left), rest) })
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.concat()?;
        loop {
            let op = match self.peek() {
                Token::Op("+") => BinOp::Add,
                Token::Op("-") => BinOp::Sub,
                _ => return Ok(left),
            };
            let line = self.line();
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?), line);
        }
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.power()?;
        loop {
            let op = match self.peek() {
                Token::Op("*") => BinOp::Mul,
                Token::Op("/") => BinOp::Div,
                Token::Op("//") => BinOp::FloorDiv,
                Token::Op("%") => BinOp::Mod,
                _ => return Ok(left),
            };
            let line = self.line();
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?), line);
        }
    }

    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        while self.is_op("**") {
            let line = self.line();
            self.next();
            left = Expr::Binary(BinOp::Pow, Box::new(left), Box::new(self.unary(true)?), line);
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Parsed<Expr> {
        self.nested(|parser| {
            let value = if parser.skip_op("-") {
                Expr::Neg(Box::new(parser.unary(false)?))
            } else if parser.skip_op("+") {
                Expr::Pos(Box::new(parser.unary(false)?))
            } else {
                parser.primary()?
            };
            let value = parser.postfix(value)?;
            if with_filters { parser.filters_and_tests(value) } else { Ok(value) }
        })
    }

    fn primary(&mut self) -> Parsed<Expr> {
        match self.next() {
            Token::Name(name) => Ok(match &*name {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => Expr::Name(self.intern(&name)),
            }),
            Token::Str(text) => {
                let mut whole = text.to_string();
                while let Token::Str(more) = self.peek() {
                    whole.push_str(more);
                    self.next();
                }
                Ok(Expr::Str(whole.into()))
            }
            Token::Int(value) => Ok(Expr::Int(value)),
            Token::Float(value) => Ok(Expr::Float(value)),
            Token::Op("(") => {
                if self.skip_op(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let value = self.tuple(true)?;
                self.expect_op(")")?;
                Ok(value)
            }
            Token::Op("[") => Ok(Expr::List(self.items_until("]")?)),
            Token::Op("{") => self.dict(),
            other => self.fail(format!("unexpected {}", describe(&other))),
        }
    }

    fn items_until(&mut self, close: &str) -> Parsed<Vec<Expr>> {
        let mut items = Vec::new();
        while !self.skip_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(close) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    fn dict(&mut self) -> Parsed<Expr> {
        let mut items = Vec::new();
        while !self.skip_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push((key, self.expression()?));
        }
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            let line = self.line();
            if self.skip_op(".") {
                value = match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(value), name),
                    Token::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                    other => return self.fail(format!("expected a name after '.', found {}", describe(&other))),
                };
            } else if self.skip_op("[") {
                value = self.subscript(value)?;
            } else if self.skip_op("(") {
                value = Expr::Call(Box::new(value), Box::new(self.arguments()?), line);
            } else {
                return Ok(value);
            }
        }
    }

    fn subscript(&mut self, value: Expr) -> Parsed<Expr> {
        let mut parts: [Option<Box<Expr>>; 3] = [None, None, None];
        let mut colons = 0;
        let mut items = Vec::new();
        while !self.skip_op("]") {
            if self.skip_op(":") {
                colons += 1;
                if colons > 2 {
                    return self.fail("a slice has at most three parts");
                }
            } else if colons == 0 && self.skip_op(",") {
            } else {
                let part = self.expression()?;
                match colons {
                    0 => items.push(part),
                    n => parts[n] = Some(Box::new(part)),
                }
            }
        }
        if colons > 0 {
            parts[0] = items.pop().map(Box::new);
            return Ok(Expr::Slice(Box::new(value), parts));
        }
        match (items.pop(), items.is_empty()) {
            (Some(only), true) => Ok(Expr::Item(Box::new(value), Box::new(only))),
            (Some(last), false) => {
                items.push(last);
                Ok(Expr::Item(Box::new(value), Box::new(Expr::Tuple(items))))
            }
            (None, _) => self.fail("expected a subscript"),
        }
    }

    /// Arguments up to and including `)`.
    fn arguments(&mut self) -> Parsed<Args> {
        let mut args = Args::default();
        let mut first = true;
        while !self.skip_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("**") {
                args.double_star = Some(Box::new(self.expression()?));
            } else if self.skip_op("*") {
                args.star = Some(Box::new(self.expression()?));
            } else if let (Token::Name(name), Token::Op("=")) = (self.peek().clone(), self.peek_after()) {
                self.next();
                self.next();
                args.named.push((name, self.expression()?));
            } else if args.named.is_empty() {
                args.positional.push(self.expression()?);
            } else {
                return self.fail("a positional argument follows a named one");
            }
        }
        Ok(args)
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            let line = self.line();
            if self.skip_op("|") {
                let filter = self.filter_name_and_args()?;
                value = Expr::Filter(Some(Box::new(value)), Box::new(filter));
            } else if self.skip_name("is") {
                value = self.test(value)?;
            } else if self.skip_op("(") {
                value = Expr::Call(Box::new(value), Box::new(self.arguments()?), line);
            } else {
                return Ok(value);
            }
        }
    }

    pub fn filter_name_and_args(&mut self) -> Parsed<Filter> {
        let name = self.dotted_name()?;
        let args = if self.skip_op("(") { self.arguments()? } else { Args::default() };
        Ok(Filter { name, args })
    }

    fn dotted_name(&mut self) -> Parsed<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_operand = match self.peek() {
            Token::Name(word) => !matches!(&**word, "else" | "or" | "and" | "is"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            _ => self.is_op("[") || self.is_op("{"),
        };
        let args = if self.skip_op("(") {
            self.arguments()?
        } else if takes_operand && !self.is_name("if") {
            let operand = self.primary()?;
            Args { positional: vec![self.postfix(operand)?], ..Args::default() }
        } else {
            Args::default()
        };
        Ok(Expr::Test(Box::new(value), Box::new(Filter { name, args }), negated))
    }
}
