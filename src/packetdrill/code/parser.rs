//! Parses and evaluates in one pass. `live` is off in branches that don't count, so that `a and b` doesn't trip over b.

use super::lexer::Token;
use super::value::Value;
use super::{Names, operate};

pub(super) enum Statement {
    Nothing,
    Print(String),
}

pub(super) struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    names: &'a mut Names,
    live: bool,
    /// How deep brackets and signs are nested here.
    depth: usize,
}

type Outcome = Result<Value, String>;

/// Nothing that a person writes is nested deeper, and each level takes some of the thread's stack.
const DEEPEST: usize = 64;

/// Binary operators by how strongly they bind, weakest first.
const LEVELS: [&[&str]; 6] = [&["|"], &["^"], &["&"], &["<<", ">>"], &["+", "-"], &["*", "/", "//", "%"]];

impl<'a> Parser<'a> {
    pub fn new(tokens: &'a [Token], names: &'a mut Names) -> Self {
        Self { tokens, at: 0, names, live: true, depth: 0 }
    }

    /// Runs the next statement. None at the end.
    pub fn statement(&mut self) -> Result<Option<Statement>, String> {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        let start = self.at;
        if self.peek().is_none() {
            return Ok(None);
        }
        let done = if self.take_name("assert") {
            self.assertion()?;
            Statement::Nothing
        } else if self.take_name("pass") {
            Statement::Nothing
        } else if self.take_name("print") {
            let value = if self.peek() == Some(&Token::End) { Value::Text(String::new()) } else { self.tuple()? };
            Statement::Print(match value {
                Value::Tuple(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                one => one.to_string(),
            })
        } else if let (Some(Token::Name(name)), Some(Token::Mark("="))) = (self.peek(), self.tokens.get(self.at + 1)) {
            let name = name.clone();
            self.at += 2;
            let value = self.tuple()?;
            self.names.assigned.insert(name, value);
            Statement::Nothing
        } else {
            self.tuple()?;
            Statement::Nothing
        };
        match self.peek() {
            Some(Token::End) | None => Ok(Some(done)),
            Some(_) => Err(format!("this is no statement: {}", self.text(start))),
        }
    }

    fn assertion(&mut self) -> Result<(), String> {
        let start = self.at;
        let holds = self.expression()?.is_true();
        let what = spell(&self.tokens[start..self.at]);
        // The message is worth its evaluation only when it is needed, but its form is always checked.
        self.live = !holds;
        let message = if self.take(",") { Some(self.expression()?) } else { None };
        self.live = true;
        match (holds, message) {
            (true, _) => Ok(()),
            (false, None) => Err(format!("assertion failed: {what}")),
            (false, Some(message)) => Err(format!("assertion failed: {what}: {message}")),
        }
    }

    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, mark: &str) -> bool {
        let there = matches!(self.peek(), Some(Token::Mark(m)) if *m == mark);
        self.at += usize::from(there);
        there
    }

    fn take_name(&mut self, name: &str) -> bool {
        let there = matches!(self.peek(), Some(Token::Name(n)) if n == name);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, mark: &str) -> Result<(), String> {
        if self.take(mark) { Ok(()) } else { Err(format!("expected {mark} at: {}", self.text(self.at))) }
    }

    /// The rest of the statement from a token on.
    fn text(&self, from: usize) -> String {
        let end = self.tokens[from..].iter().position(|t| *t == Token::End).map_or(self.tokens.len(), |n| from + n);
        spell(&self.tokens[from..end])
    }

    fn tuple(&mut self) -> Outcome {
        let first = self.expression()?;
        if !self.take(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while !matches!(self.peek(), Some(Token::End | Token::Mark(")" | "]")) | None) {
            all.push(self.expression()?);
            if !self.take(",") {
                break;
            }
        }
        Ok(Value::Tuple(all))
    }

    fn expression(&mut self) -> Outcome {
        self.deeper(Self::condition)
    }

    /// One level down, as far as there are levels.
    fn deeper(&mut self, part: fn(&mut Self) -> Outcome) -> Outcome {
        if self.depth == DEEPEST {
            return Err("this is nested too deep".into());
        }
        self.depth += 1;
        let value = part(self);
        self.depth -= 1;
        value
    }

    fn condition(&mut self) -> Outcome {
        let value = self.disjunction()?;
        if !self.take_name("if") {
            return Ok(value);
        }
        let condition = self.disjunction()?.is_true();
        if !self.take_name("else") {
            return Err("an if without an else".into());
        }
        let other = self.expression()?;
        Ok(if condition { value } else { other })
    }

    fn disjunction(&mut self) -> Outcome {
        let mut value = self.conjunction()?;
        while self.take_name("or") {
            let (live, decided) = (self.live, value.is_true());
            self.live &= !decided;
            let other = self.conjunction()?;
            self.live = live;
            value = if decided { value } else { other };
        }
        Ok(value)
    }

    fn conjunction(&mut self) -> Outcome {
        let mut value = self.negation()?;
        while self.take_name("and") {
            let (live, decided) = (self.live, !value.is_true());
            self.live &= !decided;
            let other = self.negation()?;
            self.live = live;
            value = if decided { value } else { other };
        }
        Ok(value)
    }

    fn negation(&mut self) -> Outcome {
        if self.take_name("not") {
            return Ok(Value::Bool(!self.deeper(Self::negation)?.is_true()));
        }
        self.comparison()
    }

    /// `1 <= x <= 2` holds when both do.
    fn comparison(&mut self) -> Outcome {
        let mut left = self.level(0)?;
        let mut holds = None;
        while let Some(op) = self.comparator() {
            let right = self.level(0)?;
            let now = !self.live || operate::compare(op, &left, &right)?;
            holds = Some(holds.unwrap_or(true) && now);
            left = right;
        }
        Ok(holds.map_or(left, Value::Bool))
    }

    fn comparator(&mut self) -> Option<&'static str> {
        for op in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.take(op) {
                return Some(op);
            }
        }
        if self.take_name("in") {
            return Some("in");
        }
        if self.take_name("is") {
            return Some(if self.take_name("not") { "is not" } else { "is" });
        }
        let next_is_in = matches!(self.tokens.get(self.at + 1), Some(Token::Name(n)) if n == "in");
        if next_is_in && self.take_name("not") {
            self.at += 1;
            return Some("not in");
        }
        None
    }

    fn level(&mut self, level: usize) -> Outcome {
        let Some(ops) = LEVELS.get(level) else { return self.unary() };
        let mut value = self.level(level + 1)?;
        while let Some(op) = ops.iter().find(|op| matches!(self.peek(), Some(Token::Mark(m)) if m == *op)) {
            self.at += 1;
            let right = self.level(level + 1)?;
            value = if self.live { operate::binary(op, &value, &right)? } else { Value::Int(1) };
        }
        Ok(value)
    }

    fn unary(&mut self) -> Outcome {
        for op in ["-", "+", "~"] {
            if self.take(op) {
                let value = self.deeper(Self::unary)?;
                return if self.live { operate::unary(op, &value) } else { Ok(value) };
            }
        }
        let base = self.atom()?;
        if self.take("**") {
            let exponent = self.deeper(Self::unary)?;
            return if self.live { operate::binary("**", &base, &exponent) } else { Ok(base) };
        }
        Ok(base)
    }

    fn atom(&mut self) -> Outcome {
        let token = self.peek().ok_or("the code ends too early")?;
        self.at += 1;
        match token {
            Token::Int(n) => Ok(Value::Int(*n)),
            Token::Float(x) => Ok(Value::Float(*x)),
            Token::Text(s) => Ok(Value::Text(s.clone())),
            Token::Mark("(") => {
                if self.take(")") {
                    return Ok(Value::Tuple(Vec::new()));
                }
                let value = self.tuple()?;
                self.expect(")")?;
                Ok(value)
            }
            Token::Mark("[") => {
                let value =
                    if self.peek() == Some(&Token::Mark("]")) { Value::Tuple(Vec::new()) } else { self.tuple()? };
                self.expect("]")?;
                Ok(if let Value::Tuple(_) = value { value } else { Value::Tuple(vec![value]) })
            }
            Token::Name(name) => self.named(name),
            _ => Err(format!("expected a value at: {}", self.text(self.at - 1))),
        }
    }

    fn named(&mut self, name: &str) -> Outcome {
        match name {
            "True" => return Ok(Value::Bool(true)),
            "False" => return Ok(Value::Bool(false)),
            "None" => return Ok(Value::None),
            _ => {}
        }
        if !self.take("(") {
            let unknown = || format!("{name} is no name that this runner knows");
            return if self.live { self.names.get(name).ok_or_else(unknown) } else { Ok(Value::Int(1)) };
        }
        let mut arguments = Vec::new();
        while !self.take(")") {
            arguments.push(self.expression()?);
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        if self.live { operate::call(name, &arguments) } else { Ok(Value::Int(1)) }
    }
}

fn spell(tokens: &[Token]) -> String {
    let word = |t: &Token| match t {
        Token::Name(n) => n.clone(),
        Token::Int(n) => n.to_string(),
        Token::Float(x) => x.to_string(),
        Token::Text(s) => format!("'{s}'"),
        Token::Mark(m) => (*m).to_owned(),
        Token::End => String::new(),
    };
    tokens.iter().map(word).collect::<Vec<_>>().join(" ")
}
