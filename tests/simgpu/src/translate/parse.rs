//! Tokens to a [`Module`].

use super::{
    Untranslated,
    ast::{Function, Instruction, Linkage, Module, Operand, Predicate, Space, Statement, Variable},
    lex::{Kind, Token, lex},
    types::Type,
};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, Untranslated>;

/// # Errors
/// Text that is not PTX, or a form of it that is not known here.
pub(super) fn parse(ptx: &str) -> Result<Module> {
    let mut parser = Parser { tokens: lex(ptx)?, at: 0, text: ptx };
    let mut module = Module::default();
    while let Some(token) = parser.peek() {
        match token {
            Kind::File(number, path) => {
                module.files.insert(number, path.to_owned());
                parser.at += 1;
            }
            Kind::Location(..) => parser.at += 1,
            Kind::Directive("version" | "address_size") => {
                parser.at += 1;
                parser.number()?;
            }
            Kind::Directive("target") => {
                parser.at += 1;
                module.target = parser.list(Parser::word)?[0].to_owned();
            }
            Kind::Directive("visible" | "extern" | "weak" | "common") => parser.at += 1,
            Kind::Directive("pragma") => parser.skip_statement(),
            Kind::Directive("entry") => module.functions.push(parser.function(Linkage::Entry)?),
            Kind::Directive("func") => module.functions.push(parser.function(Linkage::Function)?),
            _ => module.variables.extend(parser.variables()?),
        }
    }
    Ok(module)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    text: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Kind<'a>> {
        self.ahead(0)
    }

    fn ahead(&self, distance: usize) -> Option<Kind<'a>> {
        self.tokens.get(self.at + distance).map(|token| token.kind)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn error(&self, reason: &str) -> Untranslated {
        let line = self.line();
        Untranslated::new(line, self.text.lines().nth(line - 1).unwrap_or(""), reason)
    }

    /// Steps over `symbol` if it comes next.
    fn accept(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(Kind::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: char) -> Result<()> {
        if self.accept(symbol) { Ok(()) } else { Err(self.error(&format!("expected {symbol:?}"))) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.error("expected a name")),
        }
    }

    fn directive(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Kind::Directive(name)) => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.error("expected a directive")),
        }
    }

    fn count<T: TryFrom<i128>>(&mut self) -> Result<T> {
        let Operand::Integer(value) = self.number()? else { return Err(self.error("expected an integer")) };
        value.try_into().map_err(|_| self.error("number out of range"))
    }

    /// One `item`, or several with commas between.
    fn list<T>(&mut self, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.accept(',') {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn skip_statement(&mut self) {
        while self.peek().is_some() && !self.accept(';') {
            self.at += 1;
        }
    }

    fn function(&mut self, linkage: Linkage) -> Result<Function> {
        self.at += 1;
        let returns = self.parameters()?;
        let name = self.word()?.to_owned();
        let parameters = self.parameters()?;
        let mut attributes = BTreeMap::new();
        let body = loop {
            match self.peek() {
                Some(Kind::Directive("pragma")) => self.skip_statement(),
                Some(Kind::Directive(attribute)) => {
                    self.at += 1;
                    let values = if let Some(Kind::Number(_)) = self.peek() {
                        self.list(Self::count)?
                    } else {
                        vec![]
                    };
                    attributes.insert(attribute.to_owned(), values);
                }
                Some(Kind::Location(..)) => self.at += 1,
                Some(Kind::Symbol('{')) => {
                    self.at += 1;
                    break Some(self.block()?);
                }
                _ => {
                    self.expect(';')?;
                    break None;
                }
            }
        };
        Ok(Function { linkage, name, returns, parameters, attributes, body })
    }

    /// `(.param .u64 a, .param .align 8 .b8 b[24])`; nothing where there is no parenthesis.
    fn parameters(&mut self) -> Result<Vec<Variable>> {
        if !self.accept('(') || self.accept(')') {
            return Ok(vec![]);
        }
        let parameters = self.list(|parser| {
            let (element, align) = parser.declaration()?;
            parser.declarator(Space::Parameter, element, align)
        })?;
        self.expect(')')?;
        Ok(parameters)
    }

    /// Variables of one statement, to its semicolon.
    fn variables(&mut self) -> Result<Vec<Variable>> {
        let space = match self.peek() {
            Some(Kind::Directive("global")) => Space::Global,
            Some(Kind::Directive("const")) => Space::Constant,
            Some(Kind::Directive("shared")) => Space::Shared,
            Some(Kind::Directive("local")) => Space::Local,
            Some(Kind::Directive("param")) => Space::Parameter,
            _ => return Err(self.error("unknown statement")),
        };
        let (element, align) = self.declaration()?;
        let mut variables = vec![];
        loop {
            variables.push(self.declarator(space, element, align)?);
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(variables)
    }

    /// `.param .align 8 .b8`: the element's type and the alignment.
    fn declaration(&mut self) -> Result<(Type, Option<usize>)> {
        let (mut element, mut align) = (None, None);
        while let Some(Kind::Directive(name)) = self.peek() {
            self.at += 1;
            match name {
                "align" => align = Some(self.count()?),
                // `.ptr .global .align 16` says what a pointer points to.
                "ptr" => {
                    while let Some(Kind::Directive(name)) = self.peek() {
                        self.at += if name == "align" { 2 } else { 1 };
                    }
                }
                "global" | "const" | "shared" | "local" | "param" => {}
                _ => {
                    let known = Type::parse(name);
                    element = Some(known.ok_or_else(|| self.error(&format!("unknown type .{name}")))?);
                }
            }
        }
        Ok((element.ok_or_else(|| self.error("a variable without a type"))?, align))
    }

    /// `name[4][8] = {1, 2}`.
    fn declarator(&mut self, space: Space, element: Type, align: Option<usize>) -> Result<Variable> {
        let line = self.line();
        let name = self.word()?.to_owned();
        let mut count = Some(1);
        while self.accept('[') {
            let dimension =
                if let Some(Kind::Number(_)) = self.peek() { Some(self.count::<usize>()?) } else { None };
            count = count.zip(dimension).map(|(product, dimension)| product * dimension);
            self.expect(']')?;
        }
        let initial = match self.accept('=').then(|| self.operand()).transpose()? {
            Some(Operand::Vector(values)) => flatten(values),
            value => value.into_iter().collect(),
        };
        Ok(Variable { space, name, element, count, align: align.unwrap_or(element.bytes()), initial, line })
    }

    /// Statements up to and with the closing brace.
    fn block(&mut self) -> Result<Vec<Statement>> {
        let mut statements = vec![];
        while !self.accept('}') {
            match self.peek().ok_or_else(|| self.error("a brace is not closed"))? {
                Kind::Symbol('{') => {
                    self.at += 1;
                    statements.push(Statement::Block(self.block()?));
                }
                Kind::Symbol(';') => self.at += 1,
                Kind::File(..) => self.at += 1,
                Kind::Location(file, line) => {
                    self.at += 1;
                    statements.push(Statement::Location(file, line));
                }
                Kind::Directive("reg") => statements.push(self.registers()?),
                Kind::Directive("pragma") => self.skip_statement(),
                Kind::Directive(_) => {
                    statements.extend(self.variables()?.into_iter().map(Statement::Variable))
                }
                Kind::Word(name) if self.ahead(1) == Some(Kind::Symbol(':')) => {
                    self.at += 2;
                    statements.push(self.labelled(name)?);
                }
                _ => statements.push(self.instruction()?),
            }
        }
        Ok(statements)
    }

    fn labelled(&mut self, name: &str) -> Result<Statement> {
        if self.peek() != Some(Kind::Directive("branchtargets")) {
            return Ok(Statement::Label(name.to_owned()));
        }
        self.at += 1;
        let targets = self.list(|parser| parser.word().map(str::to_owned))?;
        self.expect(';')?;
        Ok(Statement::Targets(name.to_owned(), targets))
    }

    fn registers(&mut self) -> Result<Statement> {
        self.at += 1;
        let name = self.directive()?;
        let register = Type::parse(name).ok_or_else(|| self.error(&format!("registers of type .{name}")))?;
        let mut names = vec![];
        loop {
            let name = self.word()?;
            if self.accept('<') {
                let count: u32 = self.count()?;
                names.extend((0..count).map(|i| format!("{name}{i}")));
                self.expect('>')?;
            } else {
                names.push(name.to_owned());
            }
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers(register, names))
    }

    fn instruction(&mut self) -> Result<Statement> {
        let line = self.line();
        let predicate = if self.accept('@') {
            Some(Predicate { negated: self.accept('!'), register: self.word()?.to_owned() })
        } else {
            None
        };
        let mut parts = self.word()?.split('.').map(str::to_owned);
        let opcode = parts.next().unwrap_or_default();
        let modifiers = parts.collect();
        let mut operands = vec![];
        if !self.accept(';') {
            operands = self.list(Self::operand)?;
            self.expect(';')?;
        }
        Ok(Statement::Instruction(Instruction { opcode, modifiers, predicate, operands, line }))
    }

    fn operand(&mut self) -> Result<Operand> {
        for (open, close) in [('{', '}'), ('(', ')')] {
            if self.accept(open) {
                if self.accept(close) {
                    return Ok(Operand::Vector(vec![]));
                }
                let items = self.list(Self::operand)?;
                self.expect(close)?;
                return Ok(Operand::Vector(items));
            }
        }
        if self.accept('[') {
            return self.address();
        }
        if self.accept('!') {
            return Ok(Operand::Not(self.word()?.to_owned()));
        }
        let Some(Kind::Word(name)) = self.peek() else { return self.number() };
        self.at += 1;
        if self.accept('|') {
            return Ok(Operand::Pair(name.to_owned(), self.word()?.to_owned()));
        }
        match self.offset()? {
            Some(offset) => Ok(Operand::Offset(name.to_owned(), offset)),
            None => Ok(Operand::Name(name.to_owned())),
        }
    }

    fn address(&mut self) -> Result<Operand> {
        let base = match self.peek() {
            Some(Kind::Word(name)) => {
                self.at += 1;
                Operand::Name(name.to_owned())
            }
            _ => self.number()?,
        };
        let offset = self.offset()?.unwrap_or(0);
        let coordinates = match self.accept(',').then(|| self.operand()).transpose()? {
            Some(Operand::Vector(coordinates)) => coordinates,
            Some(_) => return Err(self.error("coordinates expected")),
            None => vec![],
        };
        self.expect(']')?;
        Ok(Operand::Address { base: Box::new(base), offset, coordinates })
    }

    /// `+4`, `+-4` or `-4` after an address.
    fn offset(&mut self) -> Result<Option<i64>> {
        match self.peek() {
            Some(Kind::Symbol('+')) => self.at += 1,
            Some(Kind::Symbol('-')) => {}
            _ => return Ok(None),
        }
        self.count().map(Some)
    }

    fn number(&mut self) -> Result<Operand> {
        let negative = self.accept('-');
        let Some(Kind::Number(text)) = self.peek() else { return Err(self.error("expected an operand")) };
        let hexadecimal = |digits: &str, width: usize| {
            u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == width && !negative)
        };
        let literal = match text.get(..2) {
            Some("0f" | "0F") => hexadecimal(&text[2..], 8).map(|bits| Operand::Float32(bits as u32)),
            Some("0d" | "0D") => hexadecimal(&text[2..], 16).map(Operand::Float64),
            Some("0x" | "0X") => u64::from_str_radix(text[2..].trim_end_matches('U'), 16).ok().map(integer),
            _ if text.contains('.') => text.parse().ok().map(|value: f64| {
                let value = if negative { -value } else { value };
                Operand::Float64(value.to_bits())
            }),
            _ => text.trim_end_matches('U').parse::<u64>().ok().map(integer),
        };
        let literal = literal.ok_or_else(|| self.error(&format!("number {text}")))?;
        self.at += 1;
        Ok(match literal {
            Operand::Integer(value) if negative => Operand::Integer(-value),
            other => other,
        })
    }
}

fn integer(value: u64) -> Operand {
    Operand::Integer(value.into())
}

fn flatten(values: Vec<Operand>) -> Vec<Operand> {
    let each = values.into_iter().flat_map(|value| match value {
        Operand::Vector(inner) => flatten(inner),
        other => vec![other],
    });
    each.collect()
}
