//! What grows while a function is lowered: virtual registers, constants, instructions.
//!
//! Until `allocate` has run, a slot is the number of a virtual register, whatever its file.

use std::collections::HashMap;

use super::Outcome;
use super::modifiers::Modifiers;
use super::names::{Labels, Names};
use super::variables::Symbols;
use crate::isa::{Alu, AluOp, Constant, Inst, List, Loc, NONE, Op, Round, Ty, Value};
use crate::ptx::ast::{Body, Operand, Span};
use crate::regs::Slot;

/// A register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    /// 32 bits and below.
    Narrow,
    /// 64 bits.
    Wide,
    /// Predicates.
    Pred,
}

/// A virtual register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Register {
    pub file: File,
    /// 0 for a predicate.
    pub bytes: u32,
    /// Made by the lowering inside one instruction: written as often as it is read, so a guarded write is a full one.
    pub temporary: bool,
    /// Filled at the start and never written.
    pub constant: bool,
}

impl Register {
    /// Adds a register and returns its number.
    pub(super) fn push(list: &mut Vec<Register>, ty: Ty, temporary: bool) -> Slot {
        let file = match ty {
            Ty::Pred => File::Pred,
            _ if ty.is_wide() => File::Wide,
            _ => File::Narrow,
        };
        list.push(Register { file, bytes: ty.bytes(), temporary, constant: false });
        list.len() as Slot - 1
    }
}

/// A branch whose target is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch<'a> {
    pub inst: u32,
    pub scope: u32,
    pub label: &'a str,
    pub line: u32,
}

/// Everything about one instruction of the text.
#[derive(Clone, Debug)]
pub(super) struct Parts<'a, 'b> {
    pub opcode: &'a str,
    pub modifiers: Modifiers<'a, 'b>,
    pub operands: &'b [Operand<'a>],
}

impl<'a> Parts<'a, '_> {
    /// Checks the number of operands.
    pub(super) fn count(&self, least: usize, most: usize) -> Outcome {
        let found = self.operands.len();
        match (least..=most).contains(&found) {
            true => Ok(()),
            false if least == most => Err(format!("{found} operands, {least} are needed")),
            false => Err(format!("{found} operands, {least} to {most} are needed")),
        }
    }
}

/// A function while it is lowered.
#[derive(Debug)]
pub(super) struct Builder<'m, 'a> {
    pub symbols: &'m mut Symbols<'a>,
    pub body: &'m Body<'a>,
    pub names: Names<'a>,
    pub labels: Labels<'a, u32>,
    pub targets: Labels<'a, Span>,
    pub registers: Vec<Register>,
    pub constants: Vec<Constant>,
    known: HashMap<(bool, Value), Slot>,
    pub code: Vec<Inst>,
    pub lists: Vec<Slot>,
    pub locs: Vec<Loc>,
    pub branches: Vec<Branch<'a>>,
    /// Line, place and guard of the instruction at hand; `op` is replaced.
    pub frame: Inst,
}

impl<'m, 'a> Builder<'m, 'a> {
    pub(super) fn new(symbols: &'m mut Symbols<'a>, body: &'m Body<'a>) -> Self {
        Self {
            symbols,
            body,
            names: Names::new(),
            labels: Labels::new(),
            targets: Labels::new(),
            registers: Vec::new(),
            constants: Vec::new(),
            known: HashMap::new(),
            code: Vec::new(),
            lists: Vec::new(),
            locs: Vec::new(),
            branches: Vec::new(),
            frame: Inst { op: Op::Exit, guard: NONE, guard_not: false, line: 0, loc: NONE },
        }
    }

    pub(super) fn emit(&mut self, op: Op) {
        self.code.push(Inst { op, ..self.frame });
    }

    pub(super) fn register(&mut self, ty: Ty, temporary: bool) -> Slot {
        Register::push(&mut self.registers, ty, temporary)
    }

    /// Makes a register for a value inside one instruction.
    pub(super) fn temporary(&mut self, ty: Ty) -> Slot {
        self.register(ty, true)
    }

    /// Returns the register that holds a constant.
    pub(super) fn constant(&mut self, wide: bool, value: Value) -> Slot {
        if let Some(&slot) = self.known.get(&(wide, value)) {
            return slot;
        }
        let slot = self.register(if wide { Ty::B64 } else { Ty::B32 }, false);
        self.registers[slot as usize].constant = true;
        self.constants.push(Constant { slot, wide, value });
        self.known.insert((wide, value), slot);
        slot
    }

    pub(super) fn bits(&mut self, wide: bool, bits: u64) -> Slot {
        self.constant(wide, Value::Bits(bits))
    }

    pub(super) fn list(&mut self, slots: &[Slot]) -> List {
        let start = self.lists.len() as u32;
        self.lists.extend_from_slice(slots);
        List { start, len: slots.len() as u32 }
    }

    /// Emits an instruction with one result and up to two operands.
    pub(super) fn alu(&mut self, op: AluOp, ty: Ty, d: Slot, a: Slot, b: Slot) {
        self.emit(Op::Alu(Alu { d, a, b, ..blank(op, ty) }));
    }

    /// Converts a value into a new temporary register.
    pub(super) fn converted(&mut self, to: Ty, from: Ty, a: Slot) -> Slot {
        let d = self.temporary(to);
        self.emit(Op::Alu(Alu { from, d, a, ..blank(AluOp::Cvt, to) }));
        d
    }
}

/// Returns an instruction without operands.
pub(super) fn blank(op: AluOp, ty: Ty) -> Alu {
    Alu { op, ty, from: ty, round: Round::None, flags: 0, d: NONE, d2: NONE, a: NONE, b: NONE, c: NONE }
}
