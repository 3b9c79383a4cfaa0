//! Arithmetic: registers in, registers out, each lane on its own.

use crate::isa::Ty;
use crate::regs::Slot;

/// An arithmetic instruction: registers in, registers out, each lane on its own.
///
/// Operands lie in the file of their type. `ty` is the type of the instruction (`add.s32`), for `cvt` that of the result;
/// `from` is the source type of `cvt`, and the comparison's type of `set`; elsewhere it equals `ty`. The instruction's own
/// types rule, not the registers': `cvt` with `from` U8 reads the low 8 bits of its operand. A result below 32 bits is
/// zero-extended, a signed one too: where the register is wider, `lower` adds a second `cvt`. Shift amounts, the position
/// and length of `bfe` and `bfi`, and the results of `popc`, `clz` and `bfind` are 32 bits for every `ty`. `d` is never
/// [`NONE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alu {
    /// What is computed.
    pub op: AluOp,
    /// The type of the instruction.
    pub ty: Ty,
    /// The source type, where it is another one.
    pub from: Ty,
    /// Rounding of floats, or to an integer.
    pub round: Round,
    /// Flags: see [`flag`].
    pub flags: u16,
    /// First result.
    pub d: Slot,
    /// Second result (`setp` with two predicates; the upper half of an unpacking move), or [`NONE`].
    pub d2: Slot,
    /// First operand.
    pub a: Slot,
    /// Second operand.
    pub b: Slot,
    /// Third operand; for `setp` with a boolean operation and for `selp`, a predicate.
    pub c: Slot,
}

/// An operand that is not there, or a result that nobody wants (`_`).
pub const NONE: Slot = Slot::MAX;

/// Modifiers of arithmetic instructions.
pub mod flag {
    /// `.ftz`: subnormal inputs and results become zero, with their sign.
    pub const FTZ: u16 = 1 << 0;
    /// `.sat`: to [0, 1] for floats, to the type's limits for integers.
    pub const SAT: u16 = 1 << 1;
    /// `.approx`
    pub const APPROX: u16 = 1 << 2;
    /// `.full` of a division
    pub const FULL: u16 = 1 << 3;
    /// `.hi` half of a product (`mul`, `mad`)
    pub const HI: u16 = 1 << 4;
    /// `.wide` product: the result has twice the width
    pub const WIDE: u16 = 1 << 5;
    /// `.cc`: writes the carry flag
    pub const CARRY_OUT: u16 = 1 << 6;
    /// `addc`, `subc`, `madc`: reads the carry flag
    pub const CARRY_IN: u16 = 1 << 7;
    /// `.relu`: negative results and NaN as the ISA says
    pub const RELU: u16 = 1 << 8;
    /// `.NaN` of `min`, `max`
    pub const NAN: u16 = 1 << 9;
    /// `.shiftamt` of `bfind`
    pub const SHIFTAMT: u16 = 1 << 10;
    /// `.wrap` of a funnel shift (else clamp)
    pub const WRAP: u16 = 1 << 11;
    /// `.xorsign.abs` of `min`, `max`
    pub const XORSIGN: u16 = 1 << 12;
    /// `setp`: the predicate operand `c` is negated (`!p`); `selp` never has it
    pub const NOT_C: u16 = 1 << 13;
    /// `.satfinite` of a conversion
    pub const SATFINITE: u16 = 1 << 14;
}

/// Rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Round {
    /// None given: nearest even where the instruction rounds.
    None,
    /// `.rn`
    Nearest,
    /// `.rna`: nearest, ties away from zero
    NearestAway,
    /// `.rz`
    Zero,
    /// `.rm`
    Down,
    /// `.rp`
    Up,
    /// `.rni`
    IntNearest,
    /// `.rzi`
    IntZero,
    /// `.rmi`
    IntDown,
    /// `.rpi`
    IntUp,
}

/// A comparison. The `U` forms of floats are true where an operand is NaN; `Lo` and its like compare unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
    Lo,
    Ls,
    Hi,
    Hs,
}

/// How a comparison is combined with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Bool {
    And,
    Or,
    Xor,
}

/// What an arithmetic instruction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AluOp {
    // moves and selection
    Mov,
    /// d = {a, b}: two halves become one register of `ty` (b32 of two 16-bit, b64 of two 32-bit)
    Pack,
    /// {d, d2} = a, `ty` that of a
    Unpack,
    /// d = {a, b, c, d2}: four 16-bit registers become a b64; all four slots are in the 32-bit file, d2 is the last operand
    Pack4,
    /// Like `Unpack` for four 16-bit parts: results d, d2, b, c; a is the source
    Unpack4,
    Selp,
    /// d = c >= 0 ? a : b, `from` the type of c
    Slct,
    Setp(Cmp, Option<Bool>),
    /// d of `ty` (u32, s32: all ones; f32: 1.0), compared as `from`
    Set(Cmp, Option<Bool>),
    // integers
    Add,
    Sub,
    Mul,
    Mad,
    Mul24,
    Mad24,
    Div,
    Rem,
    Min,
    Max,
    Abs,
    Neg,
    Sad,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    ShfL,
    ShfR,
    /// bfe d, a, b (position), c (length)
    Bfe,
    /// bfi d, a, b, c (position), d2 (length, an operand)
    Bfi,
    Bfind,
    Brev,
    Clz,
    Popc,
    /// mode 0: the default form; 1 to 6: f4e b4e rc8 ecl ecr rc16
    Prmt(u8),
    /// lookup table
    Lop3(u8),
    /// signed a, signed b
    Dp4a(bool, bool),
    /// signed a, signed b; upper halves of b with flag HI
    Dp2a(bool, bool),
    /// find n-th set
    Fns,
    /// szext d, a, b
    Szext,
    /// bmsk d, a, b
    Bmsk,
    // floats
    Fma,
    Copysign,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    /// testp: 0 finite, 1 infinite, 2 number, 3 notanumber, 4 normal, 5 subnormal
    Testp(u8),
    /// from `from` to `ty`; `ty` of two halves (f16x2, bf16x2) takes a into the upper, b into the lower half
    Cvt,
}
