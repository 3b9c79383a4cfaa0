//! What an instruction counts as.

use serde::{Deserialize, Serialize};

use crate::isa::{Alu, AluOp, Op, Space, Ty, flag};

/// What an instruction does, coarsely: which unit of a multiprocessor it occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Integer arithmetic, logic, shifts, comparisons.
    Integer,
    /// f32.
    Float,
    /// f16 and bf16.
    Half,
    /// f64.
    Double,
    /// Approximate functions, and IEEE division and roots.
    Special,
    /// Between types.
    Conversion,
    /// Moves and selections.
    Move,
    /// Loads and stores of global memory.
    Global,
    /// Of shared memory.
    Shared,
    /// Of local memory.
    Local,
    /// Of constants and parameters.
    Constant,
    /// With generic addresses.
    Generic,
    /// Atomic operations.
    Atomic,
    /// Jumps, exits.
    Control,
    /// Barriers and fences.
    Barrier,
    /// Shuffles, votes and their like.
    Warp,
    /// Matrix products.
    Tensor,
    /// `ldmatrix`, `stmatrix`.
    Matrix,
    /// Asynchronous copies, and waiting for them.
    Asynchronous,
    /// Anything else.
    Other,
}

impl Class {
    /// Returns the class of an instruction.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::Alu(alu) => Self::of_alu(alu),
            Op::Ld { space, .. } | Op::St { space, .. } => Self::of_space(*space),
            Op::Hint { .. } | Op::Yield | Op::Brkpt | Op::ReadSpecial { .. } => Class::Other,
            Op::Atom { .. } => Class::Atomic,
            Op::CpAsync { .. } | Op::CpAsyncCommit | Op::CpAsyncWait { .. } | Op::CpAsyncWaitAll => {
                Class::Asynchronous
            }
            Op::CpAsyncArrive { .. } | Op::Mbar { .. } | Op::MbarWait { .. } => Class::Asynchronous,
            Op::LdMatrix { .. } | Op::StMatrix { .. } => Class::Matrix,
            Op::Mma { .. } => Class::Tensor,
            Op::Fence { .. } | Op::BarSync { .. } | Op::BarArrive { .. } | Op::BarRed { .. } => {
                Class::Barrier
            }
            Op::BarWarp { .. } => Class::Barrier,
            Op::Cvta { .. } | Op::IsSpace { .. } => Class::Integer,
            Op::Bra { .. } | Op::Brx { .. } | Op::Exit | Op::Trap => Class::Control,
            _ => Class::Warp,
        }
    }

    fn of_space(space: Space) -> Self {
        match space {
            Space::Generic => Class::Generic,
            Space::Global => Class::Global,
            Space::Shared => Class::Shared,
            Space::Local => Class::Local,
            Space::Const | Space::Param => Class::Constant,
        }
    }

    fn of_alu(alu: &Alu) -> Self {
        match alu.op {
            AluOp::Mov | AluOp::Pack | AluOp::Unpack | AluOp::Pack4 | AluOp::Unpack4 | AluOp::Selp => {
                Class::Move
            }
            AluOp::Slct => Class::Move,
            AluOp::Cvt => Class::Conversion,
            AluOp::Rcp | AluOp::Sqrt | AluOp::Rsqrt | AluOp::Ex2 | AluOp::Lg2 | AluOp::Sin => Class::Special,
            AluOp::Cos | AluOp::Tanh => Class::Special,
            AluOp::Div if alu.ty.is_float() || alu.flags & flag::APPROX != 0 => Class::Special,
            AluOp::Set(..) => Self::of_type(alu.from),
            _ => Self::of_type(alu.ty),
        }
    }

    fn of_type(ty: Ty) -> Self {
        match ty {
            Ty::F32 | Ty::Tf32 => Class::Float,
            Ty::F64 => Class::Double,
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => Class::Half,
            _ => Class::Integer,
        }
    }
}
