//! `cvt`, and the change of an integer's width where a register is wider than the instruction's type.

use super::Outcome;
use super::builder::{Builder, File, Parts, blank};
use super::modifiers::{FLOATS, HALVES, INTS, bit, name_of};
use crate::isa::{Alu, AluOp, NONE, Op, Round, Ty, flag};
use crate::ptx::ast::Operand;
use crate::regs::Slot;

const INT8: u32 = bit(Ty::U8) | bit(Ty::S8);

impl<'a> Builder<'_, 'a> {
    /// Lowers `cvt`.
    pub(super) fn cvt(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("pack") {
            return Err("`cvt.pack` is not supported".into());
        }
        let mut flags = 0;
        for (name, bits) in
            [("ftz", flag::FTZ), ("sat", flag::SAT), ("relu", flag::RELU), ("satfinite", flag::SATFINITE)]
        {
            flags |= if parts.modifiers.take(name) { bits } else { 0 };
        }
        let round = parts.modifiers.round();
        let ty = parts.modifiers.ty_of(INT8 | INTS | FLOATS | HALVES | bit(Ty::Tf32))?;
        let from = parts.modifiers.ty_of(INT8 | INTS | FLOATS | HALVES)?;
        parts.modifiers.finish()?;
        let pair = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
        if pair != (from == Ty::F32 && pair) || matches!(from, Ty::F16x2 | Ty::Bf16x2) {
            return Err(format!(
                "a conversion to `.{}` from `.{}` is not possible",
                name_of(ty),
                name_of(from)
            ));
        }
        rounding(ty, from, round)?;
        parts.count(2 + usize::from(pair), 2 + usize::from(pair))?;
        let a = self.relaxed_source(&parts.operands[1], from)?;
        let b = if pair { self.source(&parts.operands[2], from)? } else { NONE };
        let (d, width) = self.relaxed_dest(&parts.operands[0], ty)?;
        let convert = Alu { from, round, flags, a, b, ..blank(AluOp::Cvt, ty) };
        if width == ty.bytes() {
            self.emit(Op::Alu(Alu { d, ..convert }));
            return Ok(());
        }
        let narrow = self.temporary(ty);
        self.emit(Op::Alu(Alu { d: narrow, ..convert }));
        self.widen(d, width, ty, narrow);
        Ok(())
    }

    /// Returns an integer operand whose register may be wider than its type: the low bits count.
    pub(super) fn relaxed_source(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<Slot> {
        if let Operand::Name(name) = *operand
            && !ty.is_float()
            && let Ok(slot) = self.named_register(name)
        {
            let register = self.registers[slot as usize];
            if register.file == File::Wide && ty.bytes() < 8 {
                return Ok(self.converted(Ty::U32, Ty::U64, slot));
            }
            if register.file == File::Narrow && register.bytes > ty.bytes() {
                return Ok(slot);
            }
        }
        self.source(operand, ty)
    }

    /// Returns a result whose register may be wider than its type if that is an integer's, and the register's bytes.
    pub(super) fn relaxed_dest(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<(Slot, u32)> {
        if let Operand::Name(name) = *operand
            && !ty.is_float()
        {
            let slot = self.named_register(name)?;
            let register = self.registers[slot as usize];
            if register.file != File::Pred && register.bytes > ty.bytes() {
                return Ok((slot, register.bytes));
            }
        }
        Ok((self.dest(operand, ty)?, ty.bytes()))
    }

    /// Fills a register of `width` bytes from a value of the narrower type `ty`, with its sign if it has one.
    pub(super) fn widen(&mut self, d: Slot, width: u32, ty: Ty, a: Slot) {
        let (to, from) = match (width, ty.is_signed()) {
            (8, true) => (Ty::S64, ty),
            (8, false) => (Ty::U64, unsigned(ty)),
            (4, true) => (Ty::S32, ty),
            (4, false) => (Ty::U32, unsigned(ty)),
            (_, true) => (Ty::S16, ty),
            (_, false) => (Ty::U16, unsigned(ty)),
        };
        self.emit(Op::Alu(Alu { from, d, a, ..blank(AluOp::Cvt, to) }));
    }
}

/// Returns the unsigned type of the same width.
pub(super) fn unsigned(ty: Ty) -> Ty {
    match ty.bytes() {
        1 => Ty::U8,
        2 => Ty::U16,
        4 => Ty::U32,
        _ => Ty::U64,
    }
}

/// Checks that a rounding is given where it must be, and is one of the right kind.
fn rounding(ty: Ty, from: Ty, round: Round) -> Outcome {
    let integral = matches!(round, Round::IntNearest | Round::IntZero | Round::IntDown | Round::IntUp);
    let none = round == Round::None;
    // Two kinds of halves have neither all values of the other.
    let loses = ty.bytes() < from.bytes()
        || (ty.bytes() == 2 && ty != from)
        || matches!(ty, Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2);
    let (possible, needed) = match (from.is_float(), ty.is_float()) {
        (false, false) => (none, "has no rounding"),
        (false, true) => (!none && !integral, "needs `.rn`, `.rz`, `.rm` or `.rp`"),
        (true, false) => (integral, "needs `.rni`, `.rzi`, `.rmi` or `.rpi`"),
        (true, true) if loses => (!none && !integral, "needs a rounding"),
        (true, true) if ty == from => (none || integral, "can only be rounded to an integer"),
        (true, true) => (none, "is exact and has no rounding"),
    };
    match possible {
        true => Ok(()),
        false => Err(format!("a conversion to `.{}` from `.{}` {needed}", name_of(ty), name_of(from))),
    }
}
