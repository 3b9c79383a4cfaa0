//! `mov`: registers, addresses, and vectors packed into a register or taken out of one.

use super::Outcome;
use super::builder::{Builder, Parts, blank};
use super::modifiers::{BITS, FLOATS, INTS, bit, name_of};
use crate::isa::{Alu, AluOp, NONE, Op, Special, Ty};
use crate::ptx::ast::{Operand, Span};

impl<'a> Builder<'_, 'a> {
    /// Lowers `mov`.
    pub(super) fn mov(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("b128") {
            return Err("the type `.b128` is not supported".into());
        }
        let ty = parts.modifiers.ty_of(BITS | INTS | FLOATS | bit(Ty::Pred) | bit(Ty::B8))?;
        parts.modifiers.finish()?;
        parts.count(2, 2)?;
        match (&parts.operands[0], &parts.operands[1]) {
            (Operand::Vector(span), source) => self.unpack(*span, source, ty),
            (dest, Operand::Vector(span)) => self.pack(dest, *span, ty),
            (dest, source) => self.plain_move(dest, source, ty),
        }
    }

    fn plain_move(&mut self, dest: &Operand<'a>, source: &Operand<'a>, ty: Ty) -> Outcome {
        let clock = match *source {
            Operand::Name("%clock") => Some((Special::Clock, 4)),
            Operand::Name("%clock_hi") => Some((Special::ClockHi, 4)),
            Operand::Name("%clock64") => Some((Special::Clock64, 8)),
            Operand::Name("%globaltimer") => Some((Special::GlobalTimer, 8)),
            _ => None,
        };
        if let Some((special, bytes)) = clock
            && ty.bytes() == bytes
        {
            let d = self.dest(dest, ty)?;
            self.emit(Op::ReadSpecial { special, d });
            return Ok(());
        }
        let a = self.source(source, ty)?;
        let d = self.dest(dest, ty)?;
        self.alu(AluOp::Mov, ty, d, a, NONE);
        Ok(())
    }

    /// The type of the parts: half or a quarter of the whole.
    fn part_type(whole: Ty, parts: u32) -> Outcome<Ty> {
        match (whole.bytes(), parts) {
            (8, 2) => Ok(Ty::B32),
            (4, 2) | (8, 4) => Ok(Ty::B16),
            (2, 2) | (4, 4) => Ok(Ty::B8),
            (bytes, _) => {
                let (bits, whole) = (bytes * 8, name_of(whole));
                Err(format!("a vector of {parts} parts of the {bits} bits of `.{whole}` is not supported"))
            }
        }
    }

    /// `mov.b64 d, {a, b}`
    fn pack(&mut self, dest: &Operand<'a>, span: Span, ty: Ty) -> Outcome {
        let part = Self::part_type(ty, span.len)?;
        let mut slots = [NONE; 4];
        let body = self.body;
        for (slot, operand) in slots.iter_mut().zip(span.of(&body.elements)) {
            *slot = self.source(operand, part)?;
        }
        let [a, b, c, d2] = slots;
        let d = self.dest(dest, ty)?;
        let op = if span.len == 4 { AluOp::Pack4 } else { AluOp::Pack };
        self.emit(Op::Alu(Alu { d, d2, a, b, c, ..blank(op, untyped(ty)) }));
        Ok(())
    }

    /// `mov.b64 {d, e}, a`
    fn unpack(&mut self, span: Span, source: &Operand<'a>, ty: Ty) -> Outcome {
        let part = Self::part_type(ty, span.len)?;
        let a = self.source(source, ty)?;
        let mut slots = [NONE; 4];
        let body = self.body;
        for (slot, operand) in slots.iter_mut().zip(span.of(&body.elements)) {
            *slot = self.dest_or_unused(operand, part)?;
        }
        let [d, d2, b, c] = slots;
        let op = if span.len == 4 { AluOp::Unpack4 } else { AluOp::Unpack };
        self.emit(Op::Alu(Alu { d, d2, a, b, c, ..blank(op, untyped(ty)) }));
        Ok(())
    }
}

fn untyped(ty: Ty) -> Ty {
    match ty.bytes() {
        2 => Ty::B16,
        4 => Ty::B32,
        _ => Ty::B64,
    }
}
