//! Literals and constant expressions.

use super::Error;
use super::ast::Number;
use super::lexer::Token;
use super::parser::Parser;

/// Parentheses and signs inside each other.
const MAX_DEPTH: u32 = 64;

/// Reads a literal: decimal, `0x`, `0b`, octal, with an optional `U`; `0f`, `0d`; decimal with a point or an exponent.
pub(super) fn literal(text: &str) -> Result<Number, String> {
    let bad = || format!("`{text}` is not a number");
    let prefix = text.get(..2).unwrap_or("").to_ascii_lowercase();
    let hex = |digits: &str, length: usize| match digits.len() == length {
        true => u64::from_str_radix(digits, 16).map_err(|_| bad()),
        false => Err(format!("`{text}` needs {length} hexadecimal digits")),
    };
    match prefix.as_str() {
        "0f" => return Ok(Number::Single(hex(&text[2..], 8)? as u32)),
        "0d" => return Ok(Number::Double { value: f64::from_bits(hex(&text[2..], 16)?), exact: true }),
        _ => {}
    }
    if prefix != "0x" && text.contains(['.', 'e', 'E']) {
        let value: f64 = text.parse().map_err(|_| bad())?;
        return Ok(Number::Double { value, exact: false });
    }
    let digits = text.strip_suffix(['u', 'U']).unwrap_or(text);
    let (digits_only, radix) = match prefix.as_str() {
        "0x" => (digits.get(2..).unwrap_or(""), 16),
        "0b" => (digits.get(2..).unwrap_or(""), 2),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if digits_only.is_empty() || !digits_only.bytes().all(|b| (b as char).is_digit(radix)) {
        return Err(bad());
    }
    let bits =
        u64::from_str_radix(digits_only, radix).map_err(|_| format!("`{text}` does not fit into 64 bits"))?;
    Ok(Number::Integer { bits, unsigned: digits.len() != text.len() || bits > i64::MAX as u64 })
}

impl<'a> Parser<'a> {
    /// Reads a constant expression: literals, signs, parentheses, `~ * / % + - << >> & ^ |` with the precedence of C.
    pub(super) fn expression(&mut self) -> Result<Number, Error> {
        self.binary(0, 0)
    }

    fn binary(&mut self, minimum: u8, depth: u32) -> Result<Number, Error> {
        let mut left = self.unary(depth)?;
        while let Some(level) = precedence(self.token) {
            if level < minimum {
                break;
            }
            let sign = self.token;
            self.advance()?;
            let right = self.binary(level + 1, depth + 1)?;
            left = combine(sign, left, right).map_err(|message| self.error_value(message))?;
        }
        Ok(left)
    }

    fn unary(&mut self, depth: u32) -> Result<Number, Error> {
        if depth > MAX_DEPTH {
            return self.error(format!("an expression nested deeper than {MAX_DEPTH}"));
        }
        match self.token {
            Token::Sign(b'-') => {
                self.advance()?;
                Ok(match self.unary(depth + 1)? {
                    Number::Integer { bits, unsigned } if unsigned && bits > 1 << 63 => {
                        return self.error(format!("-{bits} does not fit into 64 bits"));
                    }
                    Number::Integer { bits, .. } => {
                        Number::Integer { bits: bits.wrapping_neg(), unsigned: false }
                    }
                    Number::Single(bits) => Number::Single(bits ^ 1 << 31),
                    Number::Double { value, exact } => Number::Double { value: -value, exact },
                })
            }
            Token::Sign(b'+') => {
                self.advance()?;
                self.unary(depth + 1)
            }
            Token::Sign(b'~') => {
                self.advance()?;
                match self.unary(depth + 1)? {
                    Number::Integer { bits, unsigned } => Ok(Number::Integer { bits: !bits, unsigned }),
                    _ => self.error("`~` of a floating-point number"),
                }
            }
            Token::Sign(b'(') => {
                self.advance()?;
                let value = self.binary(0, depth + 1)?;
                self.expect(b')')?;
                Ok(value)
            }
            Token::Word("WARP_SZ") => {
                self.advance()?;
                Ok(Number::Integer { bits: 32, unsigned: false })
            }
            Token::Number(text) => {
                let value = literal(text).map_err(|message| self.error_value(message))?;
                self.advance()?;
                Ok(value)
            }
            _ => self.unexpected("a number"),
        }
    }

    /// Reads a number that is not negative.
    pub(super) fn count(&mut self) -> Result<u64, Error> {
        match self.expression()? {
            Number::Integer { bits, unsigned } if unsigned || bits <= i64::MAX as u64 => Ok(bits),
            _ => self.error("a number that is not negative is needed here"),
        }
    }
}

fn precedence(token: Token<'_>) -> Option<u8> {
    Some(match token {
        Token::Sign(b'|') => 0,
        Token::Sign(b'^') => 1,
        Token::Sign(b'&') => 2,
        Token::ShiftLeft | Token::ShiftRight => 3,
        Token::Sign(b'+' | b'-') => 4,
        Token::Sign(b'*' | b'/') | Token::Word("%") => 5,
        _ => return None,
    })
}

fn combine(sign: Token<'_>, left: Number, right: Number) -> Result<Number, String> {
    let (Number::Integer { bits: a, unsigned: ua }, Number::Integer { bits: b, unsigned: ub }) =
        (left, right)
    else {
        return Err("constant expressions are of integers".into());
    };
    let unsigned = ua || ub;
    let zero = || "a division by zero in a constant expression".to_string();
    let bits = match sign {
        Token::Sign(b'|') => a | b,
        Token::Sign(b'^') => a ^ b,
        Token::Sign(b'&') => a & b,
        Token::Sign(b'+') => a.wrapping_add(b),
        Token::Sign(b'-') => a.wrapping_sub(b),
        Token::Sign(b'*') => a.wrapping_mul(b),
        Token::ShiftLeft => a.checked_shl(u32::try_from(b).unwrap_or(64)).unwrap_or(0),
        Token::ShiftRight if unsigned => a.checked_shr(u32::try_from(b).unwrap_or(64)).unwrap_or(0),
        Token::ShiftRight => ((a as i64) >> b.min(63)) as u64,
        Token::Sign(b'/') if unsigned => a.checked_div(b).ok_or_else(zero)?,
        Token::Sign(b'/') if b == 0 => return Err(zero()),
        Token::Sign(b'/') => (a as i64).wrapping_div(b as i64) as u64,
        _ if b == 0 => return Err(zero()),
        _ if unsigned => a % b,
        _ => (a as i64).wrapping_rem(b as i64) as u64,
    };
    Ok(Number::Integer { bits, unsigned })
}
