//! Function bodies: statements, instructions, operands.

use super::Error;
use super::ast::{Address, Body, Instruction, Number, Operand, Span, Statement};
use super::lexer::Token;
use super::parser::{Parser, space};

/// Scopes inside each other.
const MAX_SCOPES: u32 = 256;

impl<'a> Parser<'a> {
    /// Parses `{ ... }`.
    pub(super) fn body(&mut self, body: &mut Body<'a>) -> Result<(), Error> {
        self.expect(b'{')?;
        let mut depth = 0;
        loop {
            match self.token {
                Token::Sign(b'{') => {
                    depth += 1;
                    if depth > MAX_SCOPES {
                        return self.error(format!("scopes nested deeper than {MAX_SCOPES}"));
                    }
                    self.advance()?;
                    body.statements.push(Statement::Open);
                }
                Token::Sign(b'}') if depth == 0 => return self.advance(),
                Token::Sign(b'}') => {
                    depth -= 1;
                    self.advance()?;
                    body.statements.push(Statement::Close);
                }
                Token::Sign(b';') => self.advance()?,
                Token::Dot(directive) => {
                    self.advance()?;
                    self.directive(directive, body)?;
                }
                Token::Sign(b'@') => {
                    let line = self.line;
                    self.advance()?;
                    let negated = self.take(b'!')?;
                    let guard = Some((self.name()?, negated));
                    let opcode = self.name()?;
                    self.instruction(opcode, guard, line, body)?;
                }
                Token::Word(word) => {
                    let line = self.line;
                    self.advance()?;
                    match self.take(b':')? {
                        true => self.label(word, line, body)?,
                        false => self.instruction(word, None, line, body)?,
                    }
                }
                _ => return self.unexpected("an instruction, a directive or `}`"),
            }
        }
    }

    fn label(&mut self, name: &'a str, line: u32, body: &mut Body<'a>) -> Result<(), Error> {
        match self.token {
            Token::Dot("branchtargets") => {
                self.advance()?;
                let start = body.targets.len() as u32;
                loop {
                    body.targets.push(self.name()?);
                    if !self.take(b',')? {
                        break;
                    }
                }
                let labels = Span { start, len: body.targets.len() as u32 - start };
                body.statements.push(Statement::Targets { name, labels, line });
                self.expect(b';')
            }
            Token::Dot("callprototype" | "calltargets") => self.skip_to_semicolon(),
            _ => {
                body.statements.push(Statement::Label { name, line });
                Ok(())
            }
        }
    }

    fn skip_to_semicolon(&mut self) -> Result<(), Error> {
        while self.token != Token::Sign(b';') {
            if matches!(self.token, Token::End | Token::Sign(b'{' | b'}')) {
                return self.unexpected("`;`");
            }
            self.advance()?;
        }
        self.advance()
    }

    fn directive(&mut self, directive: &'a str, body: &mut Body<'a>) -> Result<(), Error> {
        match directive {
            "reg" => self.registers(body),
            "loc" => {
                let (file, line) = self.location()?;
                body.statements.push(Statement::Loc { file, line });
                Ok(())
            }
            "pragma" => self.pragma(),
            _ => match space(directive) {
                Some(space) => {
                    let first = body.variables.len();
                    self.variables(space, false, &mut body.variables)?;
                    let declared = first as u32..body.variables.len() as u32;
                    body.statements.extend(declared.map(Statement::Variable));
                    Ok(())
                }
                None => self.error(format!("unknown directive `.{directive}`")),
            },
        }
    }

    /// `.reg .b32 %r<100>, %x;`
    fn registers(&mut self, body: &mut Body<'a>) -> Result<(), Error> {
        let mut vector = 1;
        let mut ty = self.dotted("a type")?;
        if let "v2" | "v4" = ty {
            vector = if ty == "v2" { 2 } else { 4 };
            ty = self.dotted("a type")?;
        }
        loop {
            let line = self.line;
            let name = self.name()?;
            let mut count = None;
            if self.take(b'<')? {
                let number = self.count()?;
                let Ok(number) = u32::try_from(number) else {
                    return self.error(format!("{number} registers are too many"));
                };
                count = Some(number);
                self.expect(b'>')?;
            }
            body.statements.push(Statement::Registers { ty, vector, name, count, line });
            if !self.take(b',')? {
                return self.expect(b';');
            }
        }
    }

    /// `.loc file line column[, function_name label[+n], inlined_at file line column]`
    pub(super) fn location(&mut self) -> Result<(u32, u32), Error> {
        let place = self.place()?;
        while self.take(b',')? {
            match self.name()? {
                "function_name" => {
                    self.name()?;
                    self.offset()?;
                }
                "inlined_at" => drop(self.place()?),
                word => return self.error(format!("unknown attribute `{word}` of `.loc`")),
            }
        }
        Ok(place)
    }

    fn place(&mut self) -> Result<(u32, u32), Error> {
        let mut numbers = [0u32; 3];
        for number in &mut numbers {
            let Token::Number(text) = self.token else { return self.unexpected("a number of `.loc`") };
            let Ok(value) = text.parse() else { return self.unexpected("a number of `.loc`") };
            *number = value;
            self.advance()?;
        }
        Ok((numbers[0], numbers[1]))
    }

    fn instruction(
        &mut self,
        opcode: &'a str,
        guard: Option<(&'a str, bool)>,
        line: u32,
        body: &mut Body<'a>,
    ) -> Result<(), Error> {
        let start = body.modifiers.len() as u32;
        while let Token::Dot(modifier) = self.token {
            body.modifiers.push(modifier);
            self.advance()?;
        }
        let modifiers = Span { start, len: body.modifiers.len() as u32 - start };
        let start = body.operands.len() as u32;
        if opcode == "call" {
            self.call(body)?;
        } else if !self.take(b';')? {
            loop {
                let operand = self.operand(body)?;
                body.operands.push(operand);
                if !self.take(b',')? {
                    break;
                }
            }
            self.expect(b';')?;
        }
        let operands = Span { start, len: body.operands.len() as u32 - start };
        let instruction = Instruction { opcode, modifiers, guard, operands, line };
        body.statements.push(Statement::Instruction(instruction));
        Ok(())
    }

    /// Keeps only the callee of `call (result), name, (arguments);`.
    fn call(&mut self, body: &mut Body<'a>) -> Result<(), Error> {
        if self.take(b'(')? {
            while !self.take(b')')? {
                if !matches!(self.token, Token::Word(_) | Token::Sign(b',')) {
                    return self.unexpected("the result of a call");
                }
                self.advance()?;
            }
            self.expect(b',')?;
        }
        let callee = self.name()?;
        body.operands.push(Operand::Name(callee));
        self.skip_to_semicolon()
    }

    fn operand(&mut self, body: &mut Body<'a>) -> Result<Operand<'a>, Error> {
        match self.token {
            Token::Sign(b'{') => {
                self.advance()?;
                self.vector(body)
            }
            Token::Sign(b'[') => {
                self.advance()?;
                self.address()
            }
            _ => self.scalar(),
        }
    }

    fn vector(&mut self, body: &mut Body<'a>) -> Result<Operand<'a>, Error> {
        let start = body.elements.len() as u32;
        loop {
            let element = self.scalar()?;
            body.elements.push(element);
            if !self.take(b',')? {
                self.expect(b'}')?;
                return Ok(Operand::Vector(Span { start, len: body.elements.len() as u32 - start }));
            }
        }
    }

    fn scalar(&mut self) -> Result<Operand<'a>, Error> {
        match self.token {
            Token::Sign(b'!') => {
                self.advance()?;
                Ok(Operand::Not(self.name()?))
            }
            Token::Word(name) if name != "WARP_SZ" => {
                self.advance()?;
                match self.token {
                    Token::Dot(component) => {
                        self.advance()?;
                        Ok(Operand::Component(name, component))
                    }
                    Token::Sign(b'|') => {
                        self.advance()?;
                        Ok(Operand::Pair(name, self.name()?))
                    }
                    Token::Sign(b'+' | b'-') => Ok(Operand::Sum(name, self.offset()?)),
                    _ => Ok(Operand::Name(name)),
                }
            }
            _ => Ok(Operand::Number(self.expression()?)),
        }
    }

    /// Reads an address after its `[`.
    fn address(&mut self) -> Result<Operand<'a>, Error> {
        let mut address = Address { base: None, offset: 0, coordinates: false };
        if let Token::Word(name) = self.token {
            self.advance()?;
            address.base = Some(name);
            address.offset = self.offset()?;
        } else {
            match self.expression()? {
                Number::Integer { bits, .. } => address.offset = bits as i64,
                _ => return self.error("an address must be an integer"),
            }
        }
        while self.take(b',')? {
            address.coordinates = true;
            let braces = self.take(b'{')?;
            loop {
                self.scalar()?;
                if !braces || !self.take(b',')? {
                    break;
                }
            }
            if braces {
                self.expect(b'}')?;
            }
        }
        self.expect(b']')?;
        Ok(Operand::Address(address))
    }
}
