//! Turns the syntax tree into typed instructions.
//!
//! Names become register slots: each virtual register is one at first, then registers that are never live together share
//! one (`liveness`, `allocate`). Immediates, special registers and the addresses of variables become constant registers.
//! A form that the instruction set of [`crate::isa`] has not, or that is not PTX, is an error; nothing is skipped.

use crate::isa;
use crate::ptx;

mod allocate;
mod arithmetic;
mod asynchronous;
mod atomics;
mod builder;
mod compare;
mod control;
mod convert;
mod kernel;
mod liveness;
mod matrix;
mod memory;
mod modifiers;
mod moves;
mod names;
mod operand;
mod slots;
mod unsupported;
mod variables;
mod warp;

/// Why a module cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {}{reason}", if instruction.is_empty() { String::new() } else { format!("`{instruction}`: ") })]
pub struct Error {
    /// Line of the text, from 1.
    pub line: u32,
    /// The opcode with its modifiers; empty where it is not about an instruction.
    pub instruction: String,
    /// What is wrong.
    pub reason: String,
}

impl From<ptx::Error> for Error {
    fn from(error: ptx::Error) -> Self {
        Self { line: error.line, instruction: String::new(), reason: error.message }
    }
}

impl Error {
    fn new(line: u32, reason: impl Into<String>) -> Self {
        Self { line, instruction: String::new(), reason: reason.into() }
    }
}

/// What the handlers of single instructions return: the reason of a refusal as prose.
type Outcome<T = ()> = Result<T, String>;

/// Reads a text and lowers all its kernels.
///
/// # Errors
/// The first thing in the text that is wrong, or that cannot be executed.
pub fn module(text: &str) -> Result<isa::Module, Error> {
    let tree = ptx::parse(text)?;
    kernel::lower(&tree)
}
