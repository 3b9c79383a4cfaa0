//! The module level: directives, variables, functions.

use super::Error;
use super::ast::{Body, Function, Initial, Module, Number, Space, Variable};
use super::lexer::{Lexer, Token};

/// Braces inside each other in an initialiser.
const MAX_NESTING: usize = 8;
/// Entries of an initialiser.
const MAX_INITIAL: usize = 1 << 22;

/// The state of the parser: one token ahead.
#[derive(Clone, Debug)]
pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token that is looked at.
    pub(super) token: Token<'a>,
    /// Its line.
    pub(super) line: u32,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, Error> {
        let mut lexer = Lexer::new(text);
        let token = lexer.next()?;
        Ok(Self { line: lexer.line, lexer, token })
    }

    /// Steps to the next token.
    pub(super) fn advance(&mut self) -> Result<(), Error> {
        self.token = self.lexer.next()?;
        self.line = self.lexer.line;
        Ok(())
    }

    pub(super) fn error_value(&self, message: impl Into<String>) -> Error {
        Error { line: self.line, message: message.into() }
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(self.error_value(message))
    }

    /// Says what was expected instead of the present token.
    pub(super) fn unexpected<T>(&self, expected: &str) -> Result<T, Error> {
        let found = match self.token {
            Token::Word(text) | Token::Number(text) => format!("`{text}`"),
            Token::Dot(text) => format!("`.{text}`"),
            Token::Text(text) => format!("\"{text}\""),
            Token::Sign(sign) => format!("`{}`", sign as char),
            Token::ShiftLeft => "`<<`".into(),
            Token::ShiftRight => "`>>`".into(),
            Token::End => "the end of the text".into(),
        };
        self.error(format!("expected {expected}, found {found}"))
    }

    /// Takes a sign if it is there.
    pub(super) fn take(&mut self, sign: u8) -> Result<bool, Error> {
        let there = self.token == Token::Sign(sign);
        if there {
            self.advance()?;
        }
        Ok(there)
    }

    /// Takes a sign that must be there.
    pub(super) fn expect(&mut self, sign: u8) -> Result<(), Error> {
        match self.take(sign)? {
            true => Ok(()),
            false => self.unexpected(&format!("`{}`", sign as char)),
        }
    }

    /// Takes an identifier.
    pub(super) fn name(&mut self) -> Result<&'a str, Error> {
        match self.token {
            Token::Word(name) => {
                self.advance()?;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Takes `.name`.
    pub(super) fn dotted(&mut self, expected: &str) -> Result<&'a str, Error> {
        match self.token {
            Token::Dot(name) => {
                self.advance()?;
                Ok(name)
            }
            _ => self.unexpected(expected),
        }
    }

    /// Parses the whole text.
    pub(super) fn module(mut self) -> Result<Module<'a>, Error> {
        let mut module = Module { address_size: 32, ..Module::default() };
        if self.token != Token::Dot("version") {
            return self.unexpected("`.version` as the first directive");
        }
        while self.token != Token::End {
            if self.take(b';')? {
                continue;
            }
            let directive = self.dotted("a directive")?;
            match directive {
                "version" => module.version = self.version()?,
                "target" => self.target(&mut module.target)?,
                "address_size" => module.address_size = self.count()? as u32,
                "file" => self.file(&mut module.files)?,
                "section" => self.skip_section()?,
                "loc" => self.skip_line_directive()?,
                "pragma" => self.pragma()?,
                _ => self.linked(directive, &mut module)?,
            }
        }
        Ok(module)
    }

    fn version(&mut self) -> Result<(u32, u32), Error> {
        let Token::Number(text) = self.token else { return self.unexpected("a version number") };
        let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match parts {
            Some(version) => {
                self.advance()?;
                Ok(version)
            }
            None => self.unexpected("a version number like 8.0"),
        }
    }

    fn target(&mut self, target: &mut Vec<&'a str>) -> Result<(), Error> {
        loop {
            target.push(self.name()?);
            if !self.take(b',')? {
                return Ok(());
            }
        }
    }

    /// `.file number "name" [, time, size]`
    fn file(&mut self, files: &mut Vec<(u32, &'a str)>) -> Result<(), Error> {
        let number = self.count()?;
        let Ok(number) = u32::try_from(number) else { return self.error("a file number above 32 bits") };
        let Token::Text(name) = self.token else { return self.unexpected("a file name in quotes") };
        self.advance()?;
        files.push((number, name));
        for _ in 0..2 {
            if self.take(b',')? {
                self.count()?;
            }
        }
        Ok(())
    }

    /// Skips `.section name { ... }`: debug information.
    fn skip_section(&mut self) -> Result<(), Error> {
        match self.token {
            Token::Dot(_) | Token::Word(_) | Token::Text(_) => self.advance()?,
            _ => return self.unexpected("a section name"),
        }
        self.expect(b'{')?;
        let mut depth = 1u32;
        while depth > 0 {
            match self.token {
                Token::Sign(b'{') => depth += 1,
                Token::Sign(b'}') => depth -= 1,
                Token::End => return self.unexpected("`}` at the end of the section"),
                _ => {}
            }
            self.advance()?;
        }
        Ok(())
    }

    fn skip_line_directive(&mut self) -> Result<(), Error> {
        self.location().map(|_| ())
    }

    /// `.pragma "text";` Pragmas guide an optimiser and change no meaning.
    pub(super) fn pragma(&mut self) -> Result<(), Error> {
        loop {
            let Token::Text(_) = self.token else { return self.unexpected("a pragma in quotes") };
            self.advance()?;
            if !self.take(b',')? {
                return self.expect(b';');
            }
        }
    }

    /// Parses what follows `.visible` and its like: a function or a variable.
    fn linked(&mut self, first: &'a str, module: &mut Module<'a>) -> Result<(), Error> {
        let (mut directive, mut external) = (first, false);
        while matches!(directive, "visible" | "extern" | "weak" | "common") {
            external |= directive == "extern";
            directive = self.dotted("a function or a variable")?;
        }
        match directive {
            "entry" | "func" => {
                let function = self.function(directive == "entry")?;
                module.functions.push(function);
                Ok(())
            }
            "alias" => self.error("`.alias` is not supported"),
            _ => match space(directive) {
                Some(space) => self.variables(space, external, &mut module.variables),
                None => self.error(format!("unknown directive `.{directive}`")),
            },
        }
    }

    fn function(&mut self, entry: bool) -> Result<Function<'a>, Error> {
        let line = self.line;
        if self.token == Token::Dot("attribute") {
            self.attribute()?;
        }
        if self.token == Token::Sign(b'(') {
            self.parameters()?; // the result of a .func
        }
        let name = self.name()?;
        let params = if self.token == Token::Sign(b'(') { self.parameters()? } else { Vec::new() };
        let mut function = Function { entry, name, params, directives: Vec::new(), body: None, line };
        loop {
            match self.token {
                Token::Dot("pragma") => {
                    self.advance()?;
                    self.pragma()?;
                }
                Token::Dot(directive) => {
                    self.advance()?;
                    function.directives.push(self.performance(directive)?);
                }
                Token::Sign(b'{') => {
                    let mut body = Body::default();
                    self.body(&mut body)?;
                    function.body = Some(body);
                    return Ok(function);
                }
                Token::Sign(b';') => {
                    self.advance()?;
                    return Ok(function);
                }
                _ => return self.unexpected("a directive, `{` or `;` after the function's head"),
            }
        }
    }

    /// Reads the numbers of `.maxntid 128, 1, 1` and its like.
    fn performance(&mut self, directive: &'a str) -> Result<(&'a str, [u64; 3], u32), Error> {
        let numbers = match directive {
            "maxntid" | "reqntid" | "reqnctapercluster" => 3,
            "maxnreg"
            | "minnctapersm"
            | "maxnctapersm"
            | "maxclusterrank"
            | "abi_preserve"
            | "abi_preserve_control" => 1,
            "explicitcluster" | "noreturn" | "blocksareclusters" => return Ok((directive, [0; 3], 0)),
            _ => return self.error(format!("unknown directive `.{directive}`")),
        };
        let (mut values, mut count) = ([1; 3], 0);
        loop {
            values[count as usize] = self.count()?;
            count += 1;
            if count == numbers || !self.take(b',')? {
                return Ok((directive, values, count));
            }
        }
    }

    fn attribute(&mut self) -> Result<(), Error> {
        self.advance()?;
        self.expect(b'(')?;
        while !self.take(b')')? {
            if self.token == Token::End {
                return self.unexpected("`)`");
            }
            self.advance()?;
        }
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Variable<'a>>, Error> {
        self.expect(b'(')?;
        let mut list = Vec::new();
        if self.take(b')')? {
            return Ok(list);
        }
        loop {
            match self.dotted("`.param`")? {
                "param" | "reg" => list.push(self.variable(Space::Param, false)?),
                other => return self.error(format!("expected `.param`, found `.{other}`")),
            }
            if !self.take(b',')? {
                self.expect(b')')?;
                return Ok(list);
            }
        }
    }

    /// Parses `.global ... a, b = 1;` after the space.
    pub(super) fn variables(
        &mut self,
        space: Space,
        external: bool,
        list: &mut Vec<Variable<'a>>,
    ) -> Result<(), Error> {
        let first = self.variable(space, external)?;
        let (align, ty, vector) = (first.align, first.ty, first.vector);
        list.push(first);
        while self.take(b',')? {
            let empty = Variable {
                space,
                external,
                align,
                ty,
                vector,
                name: "",
                length: None,
                initial: None,
                line: self.line,
            };
            list.push(self.declarator(empty)?);
        }
        self.expect(b';')
    }

    fn variable(&mut self, space: Space, external: bool) -> Result<Variable<'a>, Error> {
        let line = self.line;
        let mut variable = Variable {
            space,
            external,
            align: None,
            ty: "",
            vector: 1,
            name: "",
            length: None,
            initial: None,
            line,
        };
        loop {
            match self.dotted("a type")? {
                "align" => variable.align = Some(self.count()?),
                "attribute" => {
                    return self.error("`.attribute` of variables (managed memory) is not supported");
                }
                "v2" => variable.vector = 2,
                "v4" => variable.vector = 4,
                "v8" => variable.vector = 8,
                ty => {
                    variable.ty = ty;
                    break;
                }
            }
        }
        if self.token == Token::Dot("ptr") {
            self.advance()?;
            while let Token::Dot(attribute) = self.token {
                self.advance()?;
                match attribute {
                    "align" => drop(self.count()?),
                    "global" | "shared" | "local" | "const" | "generic" => {}
                    _ => return self.error(format!("unknown attribute `.{attribute}` of a pointer")),
                }
            }
        }
        self.declarator(variable)
    }

    /// `name[4][2] = {...}`
    fn declarator(&mut self, mut variable: Variable<'a>) -> Result<Variable<'a>, Error> {
        variable.name = self.name()?;
        variable.length = Some(1);
        let mut lengths: Vec<u64> = Vec::new(); // of the array, outer first; 0 for []
        while self.take(b'[')? {
            let length = if self.token == Token::Sign(b']') { 0 } else { self.count()? };
            self.expect(b']')?;
            if lengths.len() == MAX_NESTING {
                return self.error(format!("more than {MAX_NESTING} array dimensions"));
            }
            lengths.push(length);
        }
        if let Some((&first, rest)) = lengths.split_first() {
            let inner = rest.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
            let whole = inner.and_then(|inner| first.checked_mul(inner)).filter(|&n| n <= i64::MAX as u64);
            let (Some(inner), Some(whole)) = (inner, whole) else {
                return self.error("an array length above 64 bits");
            };
            if inner == 0 {
                return self.error("only the first dimension may be left open");
            }
            variable.length = if first == 0 { None } else { Some(whole) };
        }
        if self.take(b'=')? {
            let mut initial = Vec::new();
            self.initialiser(&lengths, variable.vector, &mut initial)?;
            variable.initial = Some(initial);
        }
        Ok(variable)
    }

    /// Reads an initialiser into a flat list; the end of an inner row fills it up.
    fn initialiser(
        &mut self,
        lengths: &[u64],
        vector: u32,
        list: &mut Vec<Initial<'a>>,
    ) -> Result<(), Error> {
        let mut starts: Vec<u64> = Vec::new(); // of the open rows, in elements
        let mut position = 0u64;
        loop {
            if self.take(b'{')? {
                if starts.len() > MAX_NESTING {
                    return self.error("an initialiser nested too deeply");
                }
                starts.push(position);
                if self.token != Token::Sign(b'}') {
                    continue;
                }
            } else {
                list.push(self.initial()?);
                position += 1;
                if list.len() > MAX_INITIAL {
                    return self.error(format!("more than {MAX_INITIAL} initial values"));
                }
            }
            while self.take(b'}')? {
                let Some(start) = starts.pop() else { return self.error("one `}` too many") };
                if !starts.is_empty() {
                    let inner = lengths.get(starts.len()..).unwrap_or(&[]).iter();
                    let end = start
                        .saturating_add(inner.fold(u64::from(vector), |n, &length| n.saturating_mul(length)));
                    if position > end {
                        return self.error("more initial values than the row has elements");
                    }
                    position = end;
                    list.push(Initial::PadTo(end));
                }
            }
            if starts.is_empty() {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn initial(&mut self) -> Result<Initial<'a>, Error> {
        let word = match self.token {
            Token::Word(word) if word != "WARP_SZ" => word,
            _ => return Ok(Initial::Number(self.expression()?)),
        };
        self.advance()?;
        let generic = word == "generic" && self.take(b'(')?;
        let name = if generic { self.name()? } else { word };
        let mut offset = self.offset()?;
        if generic {
            self.expect(b')')?;
            offset = offset.wrapping_add(self.offset()?);
        }
        Ok(Initial::Address { name, offset, generic })
    }

    /// Reads `+8`, `-8`, `+-8`, or nothing.
    pub(super) fn offset(&mut self) -> Result<i64, Error> {
        match self.token {
            Token::Sign(b'+') => self.advance()?,
            Token::Sign(b'-') => {}
            _ => return Ok(0),
        }
        match self.expression()? {
            Number::Integer { bits, .. } => Ok(bits as i64),
            _ => self.error("an offset must be an integer"),
        }
    }
}

/// Returns the state space of a variable's directive.
pub(super) fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Param,
        _ => return None,
    })
}
