//! Arithmetic: one function of 32 lanes for each opcode form.
//!
//! [`select`] is asked once, when a kernel is loaded; what it returns is called for each instruction of each warp. The
//! functions compute all 32 lanes (every operation is defined for every bit pattern) and store those of the mask.
//!
//! ```text
//! lanes    how operands are read and results stored; loops compiled for plain x86-64 and for AVX2 with FMA
//! moves    mov, packing moves, selp, slct
//! integer  add to sad, div, rem; carry: the forms that read or write the carry flag
//! bits     logic, shifts, bit fields, permutations
//! compare  setp, set, testp
//! single   f32;  double  f64;  half  f16, bf16 and pairs of them;  approximate  ex2, sin and their like
//! elementary the functions of `approximate` in f64
//! rounding exact rounding in each direction, the base of `single` and `convert`; soft64 the same for f64
//! convert  cvt
//! ```
//! A value narrower than 32 bits lies zero-extended in the 32-bit file, whatever its type: `cvt.s8.s32` leaves eight
//! bits. Where a register is wider than the type of a result, `lower` adds the extension.

mod approximate;
mod bits;
mod carry;
mod compare;
mod convert;
mod convert_any;
mod double;
mod elementary;
mod half;
mod integer;
mod lanes;
mod moves;
mod rounding;
mod single;
mod soft64;

use crate::isa::{self, AluOp, Ty};
use crate::regs::Regs;

/// How approximate functions (`sin.approx` and its like) are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Approx {
    /// Correctly rounded.
    #[default]
    Rounded,
    /// With an error that depends on the input, up to the maximum that the ISA states.
    Perturbed,
}

/// Executes an instruction for the lanes of a mask.
///
/// # Safety
/// It must come from [`select`] for this very instruction, on this machine.
pub type AluFn = unsafe fn(&mut Regs, &isa::Alu, mask: u32);

/// Returns the function for an instruction's form, or nothing if the ISA has no such form.
///
/// The function panics if an operand's slot lies outside its file; a result in [`isa::NONE`] is dropped.
pub fn select(i: &isa::Alu, approx: Approx) -> Option<AluFn> {
    match i.op {
        AluOp::Mov | AluOp::Pack | AluOp::Unpack | AluOp::Pack4 | AluOp::Unpack4 => moves::select(i),
        AluOp::Selp | AluOp::Slct => moves::select(i),
        AluOp::Setp(..) | AluOp::Set(..) | AluOp::Testp(_) => compare::select(i),
        AluOp::Cvt => convert::select(i),
        AluOp::Ex2 | AluOp::Lg2 | AluOp::Sin | AluOp::Cos | AluOp::Tanh | AluOp::Rsqrt => {
            approximate::select(i, approx)
        }
        _ => match i.ty {
            Ty::F32 if i.flags & (isa::flag::APPROX | isa::flag::FULL) != 0 => approximate::select(i, approx),
            Ty::F64 if i.flags & isa::flag::APPROX != 0 => approximate::select(i, approx),
            Ty::F32 => single::select(i),
            Ty::F64 => double::select(i),
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => half::select(i),
            _ => integer::select(i).or_else(|| carry::select(i)).or_else(|| bits::select(i)),
        },
    }
}

/// Returns whether an instruction has no flags but these.
fn flags_within(i: &isa::Alu, allowed: u16) -> bool {
    i.flags & !allowed == 0
}

/// Returns whether an instruction has this flag.
#[inline(always)]
fn has(i: &isa::Alu, flag: u16) -> bool {
    i.flags & flag != 0
}
