//! Comparisons and selections.

use super::Outcome;
use super::builder::{Builder, Parts, blank};
use super::modifiers::{BITS, F32, FLOATS, HALVES, INT32, INTS, bit, name_of};
use crate::isa::{Alu, AluOp, Bool, Cmp, NONE, Op, Ty, flag};
use crate::ptx::ast::Operand;
use crate::regs::Slot;

impl<'a> Builder<'_, 'a> {
    /// Lowers `setp`, `set`, `selp`, `slct` and `testp`.
    pub(super) fn compare(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        match parts.opcode {
            "setp" => self.set_predicate(parts),
            "set" => self.set(parts),
            "selp" => self.select(parts),
            "slct" => self.select_by_sign(parts),
            _ => self.test_property(parts),
        }
    }

    /// `setp.lt.and.s32 p|q, a, b, !c`
    fn set_predicate(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let (cmp, combine, ftz) = comparison(parts)?;
        let ty = parts.modifiers.ty_of(BITS | INTS | FLOATS | HALVES)?;
        parts.modifiers.finish()?;
        suits(cmp, ty)?;
        let (a, b, c, not) = self.compared(parts, ty, combine)?;
        let (d, d2) = match &parts.operands[0] {
            pair @ Operand::Pair(..) => self.pair(pair, Ty::Pred, Ty::Pred)?,
            single => (self.dest_or_unused(single, Ty::Pred)?, NONE),
        };
        let flags = ftz | if not { flag::NOT_C } else { 0 };
        self.emit(Op::Alu(Alu { flags, d, d2, a, b, c, ..blank(AluOp::Setp(cmp, combine), ty) }));
        Ok(())
    }

    /// Reads the operands of a comparison: a, b, and a predicate if there is something to combine with.
    fn compared(
        &mut self,
        parts: &Parts<'a, '_>,
        ty: Ty,
        combine: Option<Bool>,
    ) -> Outcome<(Slot, Slot, Slot, bool)> {
        let operands = 3 + usize::from(combine.is_some());
        parts.count(operands, operands)?;
        let a = self.source(&parts.operands[1], ty)?;
        let b = self.source(&parts.operands[2], ty)?;
        let (c, not) = match combine {
            Some(_) => self.predicate(&parts.operands[3])?,
            None => (NONE, false),
        };
        Ok((a, b, c, not))
    }

    /// `set.lt.and.f32.s32 d, a, b, c`
    fn set(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let (cmp, combine, flags) = comparison(parts)?;
        let ty = parts.modifiers.ty_of(INT32 | F32 | HALVES | bit(Ty::U16) | bit(Ty::S16))?;
        let from = parts.modifiers.ty_of(BITS | INTS | FLOATS | HALVES)?;
        parts.modifiers.finish()?;
        suits(cmp, from)?;
        let (a, b, mut c, not) = self.compared(parts, from, combine)?;
        if not {
            let plain = c;
            c = self.temporary(Ty::Pred);
            self.alu(AluOp::Not, Ty::Pred, c, plain, NONE);
        }
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Alu(Alu { from, flags, d, a, b, c, ..blank(AluOp::Set(cmp, combine), ty) }));
        Ok(())
    }

    /// `selp.b32 d, a, b, c`: a where c holds, else b.
    fn select(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let ty = parts.modifiers.ty_of(BITS | INTS | FLOATS | HALVES)?;
        parts.modifiers.finish()?;
        parts.count(4, 4)?;
        let mut a = self.source(&parts.operands[1], ty)?;
        let mut b = self.source(&parts.operands[2], ty)?;
        let (c, not) = self.predicate(&parts.operands[3])?;
        if not {
            (a, b) = (b, a);
        }
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Alu(Alu { d, a, b, c, ..blank(AluOp::Selp, ty) }));
        Ok(())
    }

    /// `slct.f32.s32 d, a, b, c`
    fn select_by_sign(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let flags = if parts.modifiers.take("ftz") { flag::FTZ } else { 0 };
        let ty = parts.modifiers.ty_of(BITS | INTS | FLOATS)?;
        let from = parts.modifiers.ty_of(bit(Ty::S32) | F32)?;
        parts.modifiers.finish()?;
        parts.count(4, 4)?;
        let a = self.source(&parts.operands[1], ty)?;
        let b = self.source(&parts.operands[2], ty)?;
        let c = self.source(&parts.operands[3], from)?;
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Alu(Alu { from, flags, d, a, b, c, ..blank(AluOp::Slct, ty) }));
        Ok(())
    }

    /// `testp.finite.f32 p, a`
    fn test_property(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        const PROPERTIES: [&str; 6] = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let property = parts.modifiers.take_map(|m| PROPERTIES.iter().position(|&name| name == m));
        let Some(property) = property else { return Err("the property is missing".into()) };
        let ty = parts.modifiers.ty_of(FLOATS)?;
        parts.modifiers.finish()?;
        parts.count(2, 2)?;
        let a = self.source(&parts.operands[1], ty)?;
        let d = self.dest(&parts.operands[0], Ty::Pred)?;
        self.alu(AluOp::Testp(property as u8), ty, d, a, NONE);
        Ok(())
    }
}

/// Takes the comparison, what it is combined with, and `.ftz`.
fn comparison(parts: &mut Parts<'_, '_>) -> Outcome<(Cmp, Option<Bool>, u16)> {
    let cmp = parts.modifiers.take_map(|m| {
        Some(match m {
            "eq" => Cmp::Eq,
            "ne" => Cmp::Ne,
            "lt" => Cmp::Lt,
            "le" => Cmp::Le,
            "gt" => Cmp::Gt,
            "ge" => Cmp::Ge,
            "equ" => Cmp::Equ,
            "neu" => Cmp::Neu,
            "ltu" => Cmp::Ltu,
            "leu" => Cmp::Leu,
            "gtu" => Cmp::Gtu,
            "geu" => Cmp::Geu,
            "num" => Cmp::Num,
            "nan" => Cmp::Nan,
            "lo" => Cmp::Lo,
            "ls" => Cmp::Ls,
            "hi" => Cmp::Hi,
            "hs" => Cmp::Hs,
            _ => return None,
        })
    });
    let Some(cmp) = cmp else { return Err("the comparison is missing".into()) };
    let combine = parts.modifiers.take_map(|m| match m {
        "and" => Some(Bool::And),
        "or" => Some(Bool::Or),
        "xor" => Some(Bool::Xor),
        _ => None,
    });
    let ftz = if parts.modifiers.take("ftz") { flag::FTZ } else { 0 };
    Ok((cmp, combine, ftz))
}

/// Checks that a comparison exists for a type.
fn suits(cmp: Cmp, ty: Ty) -> Outcome {
    let possible = match cmp {
        Cmp::Eq | Cmp::Ne => true,
        Cmp::Lt | Cmp::Le | Cmp::Gt | Cmp::Ge => BITS & bit(ty) == 0,
        Cmp::Lo | Cmp::Ls | Cmp::Hi | Cmp::Hs => !ty.is_float() && !ty.is_signed() && BITS & bit(ty) == 0,
        _ => ty.is_float(),
    };
    match possible {
        true => Ok(()),
        false => Err(format!("this comparison is not possible with `.{}`", name_of(ty))),
    }
}
