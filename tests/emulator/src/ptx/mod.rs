//! Reads PTX text into a syntax tree.
//!
//! The grammar is that of the PTX ISA, chapters "Syntax" and "Directives". Debug sections are skipped; everything else that
//! is not understood is an error with its line. No input makes the parser recurse or allocate beyond a fixed measure:
//! scopes are flat statements, expressions have a depth limit, and tokens are slices of the text.

pub mod ast;
mod body;
mod lexer;
mod number;
mod parser;

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct Error {
    /// Line of the text, from 1.
    pub line: u32,
    /// What was found, and what was expected.
    pub message: String,
}

/// Texts above this size are refused: line numbers and list positions are 32 bits.
pub const MAX_TEXT: usize = 256 << 20;

/// Parses a module.
///
/// # Errors
/// The first thing that is not PTX.
pub fn parse(text: &str) -> Result<ast::Module<'_>, Error> {
    if text.len() > MAX_TEXT {
        let message = format!("the text has {} bytes, more than {MAX_TEXT}", text.len());
        return Err(Error { line: 1, message });
    }
    parser::Parser::new(text)?.module()
}
