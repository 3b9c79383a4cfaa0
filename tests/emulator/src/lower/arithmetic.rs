//! Arithmetic, logic and bit operations: a table of what each opcode takes.

use super::builder::{Builder, Parts, blank};
use super::modifiers::{BITS, F32, FLOATS, HALVES, INT32, INT64, INTS, bit, name_of};
use super::{Outcome, unsupported};
use crate::isa::{Alu, AluOp, NONE, Op, Round, Ty, flag};

/// Rounding modifiers, beyond the bits of [`flag`].
const RND: u32 = 1 << 16;
/// `.clamp` of a shift and its like.
const CLAMP: u32 = 1 << 17;
/// `.lo` of a product.
const LO: u32 = 1 << 18;

const FTZ: u32 = flag::FTZ as u32;
const SAT: u32 = flag::SAT as u32;
const APPROX: u32 = flag::APPROX as u32;
const FULL: u32 = flag::FULL as u32;
const HI: u32 = flag::HI as u32;
const WIDE: u32 = flag::WIDE as u32;
const CC: u32 = flag::CARRY_OUT as u32;
const CARRY_IN: u32 = flag::CARRY_IN as u32;
const RELU: u32 = flag::RELU as u32;
const NAN: u32 = flag::NAN as u32;
const SHIFTAMT: u32 = flag::SHIFTAMT as u32;
const WRAP: u32 = flag::WRAP as u32;
const XORSIGN: u32 = flag::XORSIGN as u32;

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of the instruction's type.
    T,
    /// 32 bits, whatever the type.
    U,
    /// Twice the width of the type if `.wide`.
    W,
}
use Kind::{T, U, W};

/// An opcode: operation, types, modifiers that it may have, result, operands.
struct Form(AluOp, u32, u32, Kind, &'static [Kind]);

const ANY_FLOAT: u32 = FLOATS | HALVES;
const SIGNED: u32 = bit(Ty::S16) | bit(Ty::S32) | bit(Ty::S64);
const BIT_PAIR: u32 = bit(Ty::B32) | bit(Ty::B64);
const INT_PAIR: u32 = INT32 | INT64;
const LOGIC: u32 = BITS | bit(Ty::Pred);
const APPROX_HALVES: u32 = F32 | HALVES;

/// Returns the form of an opcode.
fn form(opcode: &str) -> Option<Form> {
    use AluOp as O;
    Some(match opcode {
        "add" => Form(O::Add, INTS | ANY_FLOAT, RND | FTZ | SAT | CC, T, &[T, T]),
        "sub" => Form(O::Sub, INTS | ANY_FLOAT, RND | FTZ | SAT | CC, T, &[T, T]),
        "addc" => Form(O::Add, INT_PAIR, CC | CARRY_IN, T, &[T, T]),
        "subc" => Form(O::Sub, INT_PAIR, CC | CARRY_IN, T, &[T, T]),
        "mul" => Form(O::Mul, INTS | ANY_FLOAT, RND | FTZ | SAT | LO | HI | WIDE, W, &[T, T]),
        "mad" => Form(O::Mad, INTS | FLOATS, RND | FTZ | SAT | LO | HI | WIDE | CC, W, &[T, T, W]),
        "madc" => Form(O::Mad, INT_PAIR, LO | HI | CC | CARRY_IN, T, &[T, T, T]),
        "mul24" => Form(O::Mul24, INT32, LO | HI, T, &[T, T]),
        "mad24" => Form(O::Mad24, INT32, LO | HI | SAT, T, &[T, T, T]),
        "fma" => Form(O::Fma, ANY_FLOAT, RND | FTZ | SAT | RELU, T, &[T, T, T]),
        "div" => Form(O::Div, INTS | FLOATS, RND | FTZ | APPROX | FULL, T, &[T, T]),
        "rem" => Form(O::Rem, INTS, 0, T, &[T, T]),
        "abs" => Form(O::Abs, SIGNED | ANY_FLOAT, FTZ, T, &[T]),
        "neg" => Form(O::Neg, SIGNED | ANY_FLOAT, FTZ, T, &[T]),
        "min" => Form(O::Min, INTS | ANY_FLOAT, FTZ | NAN | XORSIGN | RELU, T, &[T, T]),
        "max" => Form(O::Max, INTS | ANY_FLOAT, FTZ | NAN | XORSIGN | RELU, T, &[T, T]),
        "sad" => Form(O::Sad, INTS, 0, T, &[T, T, T]),
        "and" => Form(O::And, LOGIC, 0, T, &[T, T]),
        "or" => Form(O::Or, LOGIC, 0, T, &[T, T]),
        "xor" => Form(O::Xor, LOGIC, 0, T, &[T, T]),
        "not" => Form(O::Not, LOGIC, 0, T, &[T]),
        "cnot" => Form(O::Cnot, BITS, 0, T, &[T]),
        "shl" => Form(O::Shl, BITS, 0, T, &[T, U]),
        "shr" => Form(O::Shr, BITS | INTS, 0, T, &[T, U]),
        "bfe" => Form(O::Bfe, INT_PAIR, 0, T, &[T, U, U]),
        "bfi" => Form(O::Bfi, BIT_PAIR, 0, T, &[T, T, U, U]),
        "bfind" => Form(O::Bfind, INT_PAIR, SHIFTAMT, U, &[T]),
        "brev" => Form(O::Brev, BIT_PAIR, 0, T, &[T]),
        "clz" => Form(O::Clz, BIT_PAIR, 0, U, &[T]),
        "popc" => Form(O::Popc, BIT_PAIR, 0, U, &[T]),
        "fns" => Form(O::Fns, bit(Ty::B32), 0, U, &[U, U, U]),
        "szext" => Form(O::Szext, INT32, WRAP | CLAMP, T, &[T, U]),
        "bmsk" => Form(O::Bmsk, bit(Ty::B32), WRAP | CLAMP, T, &[U, U]),
        "copysign" => Form(O::Copysign, FLOATS, 0, T, &[T, T]),
        "rcp" => Form(O::Rcp, FLOATS, RND | FTZ | APPROX, T, &[T]),
        "sqrt" => Form(O::Sqrt, FLOATS, RND | FTZ | APPROX, T, &[T]),
        "rsqrt" => Form(O::Rsqrt, FLOATS, FTZ | APPROX, T, &[T]),
        "ex2" => Form(O::Ex2, APPROX_HALVES, FTZ | APPROX, T, &[T]),
        "tanh" => Form(O::Tanh, APPROX_HALVES, APPROX, T, &[T]),
        "lg2" => Form(O::Lg2, F32, FTZ | APPROX, T, &[T]),
        "sin" => Form(O::Sin, F32, FTZ | APPROX, T, &[T]),
        "cos" => Form(O::Cos, F32, FTZ | APPROX, T, &[T]),
        _ => return None,
    })
}

impl<'a> Builder<'_, 'a> {
    /// Lowers the opcodes of the table and the few with a form of their own.
    pub(super) fn arithmetic(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        match parts.opcode {
            "shf" => return self.funnel_shift(parts),
            "prmt" => return self.permute(parts),
            "lop3" => return self.lookup(parts),
            "dp4a" | "dp2a" => return self.dot_product(parts),
            _ => {}
        }
        let Some(Form(op, types, allowed, result, kinds)) = form(parts.opcode) else {
            let callee = match parts.operands.first() {
                Some(crate::ptx::ast::Operand::Name(name)) if parts.opcode == "call" => Some(*name),
                _ => None,
            };
            return Err(unsupported::reason(parts.opcode, callee));
        };
        let ty = parts.modifiers.ty_of(types)?;
        let (round, mut flags) = take_flags(parts, allowed, ty)?;
        parts.modifiers.finish()?;
        flags |= if parts.opcode.ends_with('c') && allowed & CARRY_IN != 0 { flag::CARRY_IN } else { 0 };
        check_flags(parts.opcode, ty, round, flags)?;
        let op = if op == AluOp::Mad && ty.is_float() { AluOp::Fma } else { op };
        let wide = if flags & flag::WIDE != 0 { doubled(ty)? } else { ty };
        let of = |kind: Kind| match kind {
            T => ty,
            U => Ty::U32,
            W => wide,
        };
        let three = matches!(op, AluOp::Min | AluOp::Max) && ty == Ty::F32 && parts.operands.len() == 4;
        parts.count(kinds.len() + 1, kinds.len() + 1 + usize::from(three))?;
        let mut sources = [NONE; 4];
        for ((slot, operand), kind) in sources.iter_mut().zip(&parts.operands[1..]).zip(kinds) {
            *slot = self.source(operand, of(*kind))?;
        }
        let [a, b, c, d2] = sources;
        let d = self.dest(&parts.operands[0], of(result))?;
        let alu = Alu { round, flags, d, d2, a, b, c, ..blank(op, ty) };
        if flags & flag::RELU != 0 && ty == Ty::S32 {
            let (first, zero) = (self.temporary(ty), self.bits(false, 0));
            self.emit(Op::Alu(Alu { d: first, flags: 0, ..alu }));
            self.alu(AluOp::Max, ty, d, first, zero);
        } else if three {
            let c = self.source(&parts.operands[3], ty)?;
            let first = self.temporary(ty);
            self.emit(Op::Alu(Alu { d: first, ..alu }));
            self.emit(Op::Alu(Alu { a: first, b: c, ..alu }));
        } else {
            self.emit(Op::Alu(alu));
        }
        Ok(())
    }

    /// `shf.l.wrap.b32 d, a, b, c`
    fn funnel_shift(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let op = parts.modifiers.take_map(|m| match m {
            "l" => Some(AluOp::ShfL),
            "r" => Some(AluOp::ShfR),
            _ => None,
        });
        let Some(op) = op else { return Err("`.l` or `.r` is missing".into()) };
        let wrap = parts.modifiers.take("wrap");
        if !wrap {
            parts.modifiers.need("clamp")?;
        }
        self.words(parts, op, if wrap { flag::WRAP } else { 0 }, Ty::B32)
    }

    /// Emits an operation of three 32-bit operands, once only the type is left of the modifiers.
    fn words(&mut self, parts: &mut Parts<'a, '_>, op: AluOp, flags: u16, ty: Ty) -> Outcome {
        parts.modifiers.ty_of(bit(ty))?;
        parts.modifiers.finish()?;
        parts.count(4, 4)?;
        let a = self.source(&parts.operands[1], Ty::B32)?;
        let b = self.source(&parts.operands[2], Ty::B32)?;
        let c = self.source(&parts.operands[3], Ty::B32)?;
        let d = self.dest(&parts.operands[0], Ty::B32)?;
        self.emit(Op::Alu(Alu { flags, d, a, b, c, ..blank(op, ty) }));
        Ok(())
    }

    /// `prmt.b32{.mode} d, a, b, c`
    fn permute(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let mode = parts.modifiers.take_map(|m| {
            ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
                .iter()
                .position(|&mode| mode == m)
                .map(|i| i as u8 + 1)
        });
        self.words(parts, AluOp::Prmt(mode.unwrap_or(0)), 0, Ty::B32)
    }

    /// `lop3.b32 d, a, b, c, table` and `lop3.or.b32 d|p, a, b, c, table, q`
    fn lookup(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let combine = parts.modifiers.take_map(|m| match m {
            "or" => Some(AluOp::Or),
            "and" => Some(AluOp::And),
            _ => None,
        });
        parts.modifiers.ty_of(bit(Ty::B32))?;
        parts.modifiers.finish()?;
        parts.count(5 + usize::from(combine.is_some()), 5 + usize::from(combine.is_some()))?;
        let table = self.immediate(&parts.operands[4], 255)? as u8;
        let a = self.source(&parts.operands[1], Ty::B32)?;
        let b = self.source(&parts.operands[2], Ty::B32)?;
        let c = self.source(&parts.operands[3], Ty::B32)?;
        let Some(combine) = combine else {
            let d = self.dest(&parts.operands[0], Ty::B32)?;
            self.emit(Op::Alu(Alu { d, a, b, c, ..blank(AluOp::Lop3(table), Ty::B32) }));
            return Ok(());
        };
        let q = self.source(&parts.operands[5], Ty::Pred)?;
        let (d, p) = self.pair(&parts.operands[0], Ty::B32, Ty::Pred)?;
        if p == NONE {
            return Err("the first operand must be `d|p`".into());
        }
        let (result, zero, some) = (self.temporary(Ty::B32), self.bits(false, 0), self.temporary(Ty::Pred));
        self.emit(Op::Alu(Alu { d: result, a, b, c, ..blank(AluOp::Lop3(table), Ty::B32) }));
        self.alu(AluOp::Setp(crate::isa::Cmp::Ne, None), Ty::B32, some, result, zero);
        self.alu(AluOp::Mov, Ty::B32, d, result, NONE);
        self.alu(combine, Ty::Pred, p, some, q);
        Ok(())
    }

    /// `dp4a.atype.btype` and `dp2a.lo.atype.btype`
    fn dot_product(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let four = parts.opcode == "dp4a";
        let high = !four && parts.modifiers.take("hi");
        if !four && !high {
            parts.modifiers.need("lo")?;
        }
        let (a, b) = (parts.modifiers.ty_of(INT32)?, parts.modifiers.ty_of(INT32)?);
        let (sa, sb) = (a.is_signed(), b.is_signed());
        parts.modifiers.finish()?;
        parts.count(4, 4)?;
        let ty = if sa || sb { Ty::S32 } else { Ty::U32 };
        let op = if four { AluOp::Dp4a(sa, sb) } else { AluOp::Dp2a(sa, sb) };
        let a = self.source(&parts.operands[1], Ty::B32)?;
        let b = self.source(&parts.operands[2], Ty::B32)?;
        let c = self.source(&parts.operands[3], ty)?;
        let d = self.dest(&parts.operands[0], ty)?;
        let flags = if high { flag::HI } else { 0 };
        self.emit(Op::Alu(Alu { flags, d, a, b, c, ..blank(op, ty) }));
        Ok(())
    }
}

/// Takes the modifiers that an opcode may have.
fn take_flags(parts: &mut Parts<'_, '_>, allowed: u32, ty: Ty) -> Outcome<(Round, u16)> {
    const NAMES: [(&str, u32); 15] = [
        ("ftz", FTZ),
        ("sat", SAT),
        ("approx", APPROX),
        ("full", FULL),
        ("hi", HI),
        ("wide", WIDE),
        ("cc", CC),
        ("relu", RELU),
        ("NaN", NAN),
        ("shiftamt", SHIFTAMT),
        ("wrap", WRAP),
        ("clamp", CLAMP),
        ("lo", LO),
        ("xorsign", XORSIGN),
        ("abs", XORSIGN),
    ];
    let mut flags = 0;
    for (name, bits) in NAMES {
        if allowed & bits != 0 && parts.modifiers.take(name) {
            flags |= bits;
        }
    }
    let halves = flags & (LO | HI | WIDE);
    if halves.count_ones() > 1 {
        return Err("only one of `.lo`, `.hi` and `.wide` is possible".into());
    }
    let round = if allowed & RND != 0 { parts.modifiers.round() } else { Round::None };
    if matches!(
        round,
        Round::NearestAway | Round::IntNearest | Round::IntZero | Round::IntDown | Round::IntUp
    ) {
        return Err("the rounding is not one of `.rn`, `.rz`, `.rm`, `.rp`".into());
    }
    if allowed & LO != 0 && (halves == 0) != ty.is_float() {
        return Err("`.lo`, `.hi` or `.wide` belong to products of integers, and to all of them".into());
    }
    Ok((round, (flags & 0xffff) as u16))
}

/// Checks that the modifiers suit the type.
fn check_flags(opcode: &str, ty: Ty, round: Round, flags: u16) -> Outcome {
    let no = |modifier: &str| Err(format!("`.{modifier}` is not possible with `.{}`", name_of(ty)));
    let float = ty.is_float();
    match () {
        _ if !float && round != Round::None => no("rn"),
        _ if !float && flags & flag::FTZ != 0 => no("ftz"),
        _ if !float && flags & (flag::APPROX | flag::FULL) != 0 => no("approx"),
        _ if !float && flags & (flag::NAN | flag::XORSIGN) != 0 => no("NaN"),
        _ if flags & flag::RELU != 0 && relu_types(opcode) & bit(ty) == 0 => no("relu"),
        _ if float && flags & flag::CARRY_OUT != 0 => no("cc"),
        _ if flags & flag::SAT != 0 && !matches!(ty, Ty::S32 | Ty::F32 | Ty::F16 | Ty::F16x2) => no("sat"),
        _ if flags & flag::CARRY_OUT != 0 && !matches!(ty.bytes(), 4 | 8) => no("cc"),
        _ => need_precision(opcode, ty, round, flags),
    }
}

/// Returns the types with which an opcode may have `.relu`.
fn relu_types(opcode: &str) -> u32 {
    if opcode == "fma" { HALVES } else { bit(Ty::S32) }
}

/// Division and its like must say how exact they are.
fn need_precision(opcode: &str, ty: Ty, round: Round, flags: u16) -> Outcome {
    let approximate = flags & (flag::APPROX | flag::FULL) != 0;
    let stated = match opcode {
        "div" | "rcp" | "sqrt" if ty.is_float() => approximate != (round != Round::None),
        "fma" => round != Round::None,
        "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => approximate,
        _ => true,
    };
    match stated {
        true => Ok(()),
        false => Err("one of `.approx` and a rounding is needed".into()),
    }
}

fn doubled(ty: Ty) -> Outcome<Ty> {
    Ok(match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        Ty::S32 => Ty::S64,
        _ => return Err(format!("`.wide` is not possible with `.{}`", name_of(ty))),
    })
}
