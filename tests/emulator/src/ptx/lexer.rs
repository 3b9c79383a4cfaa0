//! Splits the text into tokens: slices of it, nothing is copied.

use super::Error;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An identifier, with `%`, `$` or `_` where it has them.
    Word(&'a str),
    /// `.name`, without the dot, with all its `::` parts.
    Dot(&'a str),
    /// A number, not yet read.
    Number(&'a str),
    /// A string, without its quotes.
    Text(&'a str),
    /// One character.
    Sign(u8),
    /// `<<`
    ShiftLeft,
    /// `>>`
    ShiftRight,
    /// The end of the text.
    End,
}

/// The place of the next token.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    position: usize,
    /// Line of the last token.
    pub(super) line: u32,
    next_line: u32,
}

/// Returns whether a byte may continue an identifier.
fn follows(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0, line: 1, next_line: 1 }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.position + ahead).copied().unwrap_or(0)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error { line: self.next_line, message: message.into() })
    }

    /// Returns the next token.
    pub(super) fn next(&mut self) -> Result<Token<'a>, Error> {
        self.skip_blanks()?;
        self.line = self.next_line;
        let start = self.position;
        if start >= self.text.len() {
            return Ok(Token::End);
        }
        let first = self.byte(0);
        self.position += 1;
        match first {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'%' => {
                self.skip_name();
                Ok(Token::Word(self.slice(start)))
            }
            b'.' => {
                self.skip_name();
                while self.byte(0) == b':' && self.byte(1) == b':' && follows(self.byte(2)) {
                    self.position += 2;
                    self.skip_name();
                }
                match self.slice(start + 1) {
                    "" => self.error("a dot without a name"),
                    name => Ok(Token::Dot(name)),
                }
            }
            b'0'..=b'9' => {
                self.skip_number(first);
                Ok(Token::Number(self.slice(start)))
            }
            b'"' => self.string(start + 1),
            b'<' if self.byte(0) == b'<' => {
                self.position += 1;
                Ok(Token::ShiftLeft)
            }
            b'>' if self.byte(0) == b'>' => {
                self.position += 1;
                Ok(Token::ShiftRight)
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'@' | b'!'
            | b'|' | b'+' | b'-' | b'*' | b'/' | b'&' | b'^' | b'~' | b'=' => Ok(Token::Sign(first)),
            _ => {
                let found = self.text.get(start..).and_then(|rest| rest.chars().next()).unwrap_or('?');
                self.error(format!("unexpected character {found:?}"))
            }
        }
    }

    fn slice(&self, start: usize) -> &'a str {
        self.text.get(start..self.position).unwrap_or("")
    }

    fn skip_name(&mut self) {
        let bytes = self.text.as_bytes();
        while self.position < bytes.len() && follows(bytes[self.position]) {
            self.position += 1;
        }
    }

    /// Numbers take letters too (`0x1F`, `0fBF800000`, `16U`), and decimal ones a point and an exponent with a sign.
    fn skip_number(&mut self, first: u8) {
        let prefix = self.byte(0).to_ascii_lowercase();
        let decimal = first != b'0' || !matches!(prefix, b'x' | b'b' | b'f' | b'd');
        loop {
            let byte = self.byte(0);
            let exponent = decimal && matches!(byte, b'e' | b'E') && matches!(self.byte(1), b'+' | b'-');
            if exponent {
                self.position += 2;
            } else if byte.is_ascii_alphanumeric()
                || (decimal && byte == b'.' && self.byte(1).is_ascii_digit())
            {
                self.position += 1;
            } else {
                return;
            }
        }
    }

    fn string(&mut self, start: usize) -> Result<Token<'a>, Error> {
        loop {
            match self.byte(0) {
                b'"' => {
                    let text = self.slice(start);
                    self.position += 1;
                    return Ok(Token::Text(text));
                }
                b'\\' if self.byte(1) != b'\n' => self.position += 2,
                b'\n' => return self.error("a string without an end"),
                _ if self.position >= self.text.len() => return self.error("a string without an end"),
                _ => self.position += 1,
            }
        }
    }

    fn skip_blanks(&mut self) -> Result<(), Error> {
        loop {
            match self.byte(0) {
                b'\n' => {
                    self.next_line += 1;
                    self.position += 1;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.position += 1,
                b'/' if self.byte(1) == b'/' => {
                    let rest = &self.text.as_bytes()[self.position..];
                    self.position += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
                }
                b'/' if self.byte(1) == b'*' => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), Error> {
        let (begin, line) = (self.position, self.next_line);
        let rest = &self.text.as_bytes()[begin + 2..];
        let Some(length) = rest.windows(2).position(|pair| pair == b"*/") else {
            return Err(Error { line, message: "a comment without an end".into() });
        };
        self.next_line += rest[..length].iter().filter(|&&b| b == b'\n').count() as u32;
        self.position = begin + length + 4;
        Ok(())
    }
}
