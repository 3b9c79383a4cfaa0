//! The typed instructions: what `lower` makes of PTX text, and what is executed.
//!
//! Forms and semantics: PTX ISA, chapter "Instruction Set" (<https://docs.nvidia.com/cuda/parallel-thread-execution/>).

mod alu;
mod program;

pub use alu::*;
pub use program::*;

use crate::regs::Slot;

/// A type suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// Untyped bits.
    B8,
    /// Untyped bits.
    B16,
    /// Untyped bits.
    B32,
    /// Untyped bits.
    B64,
    /// Untyped bits, for vector moves only.
    B128,
    /// Unsigned.
    U8,
    /// Unsigned.
    U16,
    /// Unsigned.
    U32,
    /// Unsigned.
    U64,
    /// Signed.
    S8,
    /// Signed.
    S16,
    /// Signed.
    S32,
    /// Signed.
    S64,
    /// IEEE half precision.
    F16,
    /// Two halves.
    F16x2,
    /// The upper half of an f32.
    Bf16,
    /// Two of them.
    Bf16x2,
    /// Single precision.
    F32,
    /// Single precision with 10 explicit bits of mantissa, in 32 bits.
    Tf32,
    /// Double precision.
    F64,
    /// A predicate.
    Pred,
}

impl Ty {
    /// Returns the size in bytes; a predicate has none.
    pub fn bytes(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
            Ty::Pred => 0,
        }
    }

    /// Returns whether a register of this type lies in the 64-bit file.
    pub fn is_wide(self) -> bool {
        self.bytes() == 8
    }

    /// Returns whether values are signed integers.
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Returns whether values are floating point.
    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::Tf32 | Ty::F64)
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Any: the address says which.
    Generic,
    /// Device memory.
    Global,
    /// The memory of a block; addresses start at 0.
    Shared,
    /// The memory of a thread.
    Local,
    /// Read only device memory.
    Const,
    /// The arguments of a kernel.
    Param,
}

/// An address: the value of a register plus an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr {
    /// The register, of the 64-bit file if `wide`; variables are constants in registers; [`NONE`] for an absolute address.
    pub base: Slot,
    /// Where `base` lies.
    pub wide: bool,
    /// Bytes.
    pub offset: i64,
}

/// Memory ordering of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Order {
    Weak,
    Volatile,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    /// `fence.sc`
    Sc,
}

/// Threads that an ordering speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Scope {
    Cta,
    Cluster,
    Gpu,
    Sys,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AtomOp {
    And,
    Or,
    Xor,
    Add,
    Min,
    Max,
    Inc,
    Dec,
    Exch,
    Cas,
}

/// A shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// A reduction of `bar.red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BarRed {
    Popc,
    And,
    Or,
}

/// Shape and element type of a matrix operation; A is row-major, B column-major, accumulators f32 or f16 (or s32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmaKind {
    /// Rows of A.
    pub m: u8,
    /// Columns of B.
    pub n: u8,
    /// Length of the sums.
    pub k: u8,
    /// Elements of A.
    pub a: Ty,
    /// Elements of B.
    pub b: Ty,
    /// Elements of the result and of the accumulator: F32, F16 or S32.
    pub d: Ty,
    /// Elements of the accumulator.
    pub c: Ty,
}

/// Number of bytes, or where they are: an immediate or a 32-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Count {
    Imm(u32),
    Reg(Slot),
}

/// An mbarrier operation other than a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum MbarOp {
    Init,
    Inval,
    Arrive,
    ArriveDrop,
    /// Arrives after it has raised the transaction count.
    ArriveExpectTx,
    ExpectTx,
    CompleteTx,
    /// `noComplete`
    ArriveNoComplete,
    PendingCount,
}

/// Everything that is not arithmetic.
///
/// Lists of registers that are longer than a few lie in [`Kernel::lists`]; a [`List`] names a part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Alu(Alu),
    /// `dst` has 1, 2, 4 or 8 registers of the file of `ty` (a slot may be NONE). 8 and 16 bits are zero-extended: `lower`
    /// makes signed types unsigned, and adds a conversion where the register is wider.
    Ld {
        ty: Ty,
        space: Space,
        order: Order,
        scope: Scope,
        dst: List,
        addr: Addr,
    },
    St {
        ty: Ty,
        space: Space,
        order: Order,
        scope: Scope,
        src: List,
        addr: Addr,
    },
    /// `ldu`, `prefetch`, `prefetchu`, `applypriority`, `discard`: checked for nothing but form.
    Hint {
        space: Space,
        addr: Addr,
    },
    /// `atom` (d is a register) and `red` (d is NONE). Elements of `ty`; f16x2 and bf16x2 are two operations.
    Atom {
        op: AtomOp,
        ty: Ty,
        space: Space,
        order: Order,
        scope: Scope,
        d: Slot,
        addr: Addr,
        b: Slot,
        c: Slot,
    },
    /// `cp.async`: `size` bytes from global to shared memory; `src` of them are read, the rest is zero.
    CpAsync {
        size: u8,
        src: Option<Count>,
        dst: Addr,
        from: Addr,
        ignore: Slot,
    },
    CpAsyncCommit,
    /// Waits until at most `left` groups are under way.
    CpAsyncWait {
        left: u32,
    },
    CpAsyncWaitAll,
    /// `cp.async.mbarrier.arrive`
    CpAsyncArrive {
        no_inc: bool,
        addr: Addr,
    },
    /// 8 x 8 matrices of 16-bit elements; `regs` has 1, 2 or 4.
    LdMatrix {
        trans: bool,
        regs: List,
        addr: Addr,
    },
    StMatrix {
        trans: bool,
        regs: List,
        addr: Addr,
    },
    /// `lists`: registers of d, a, b, c one after the other, lengths by `kind`.
    Mma {
        kind: MmaKind,
        d: List,
        a: List,
        b: List,
        c: List,
        satfinite: bool,
    },
    /// `membar`, `fence`, `fence.proxy` (weak order).
    Fence {
        order: Order,
        scope: Scope,
        proxy: bool,
    },
    /// space d = generic a (or the other way): `to` generic if false.
    Cvta {
        to: bool,
        space: Space,
        wide: bool,
        d: Slot,
        a: Slot,
    },
    IsSpace {
        space: Space,
        d: Slot,
        a: Slot,
    },
    /// Jumps to an instruction of the kernel.
    Bra {
        target: u32,
        uni: bool,
    },
    /// `brx.idx`: index register and targets as a list.
    Brx {
        index: Slot,
        targets: List,
    },
    /// `ret` and `exit` of a kernel.
    Exit,
    Trap,
    Brkpt,
    /// `bar.sync`, `barrier.sync`; `count` None: all threads of the block.
    BarSync {
        bar: Count,
        count: Option<Count>,
        aligned: bool,
    },
    BarArrive {
        bar: Count,
        count: Count,
        aligned: bool,
    },
    /// d is a 32-bit register for Popc, a predicate otherwise; `p` may be negated.
    BarRed {
        op: BarRed,
        bar: Count,
        count: Option<Count>,
        d: Slot,
        p: Slot,
        not: bool,
        aligned: bool,
    },
    BarWarp {
        mask: Slot,
    },
    Shfl {
        mode: Shuffle,
        d: Slot,
        p: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    },
    Vote {
        mode: Vote,
        d: Slot,
        p: Slot,
        not: bool,
        mask: Slot,
    },
    /// `match.any` / `match.all` (p: predicate or NONE), values of 32 or 64 bits.
    Match {
        all: bool,
        wide: bool,
        d: Slot,
        p: Slot,
        a: Slot,
        mask: Slot,
    },
    /// ty u32, s32 or b32.
    Redux {
        op: AtomOp,
        ty: Ty,
        d: Slot,
        a: Slot,
        mask: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    Elect {
        d: Slot,
        p: Slot,
        mask: Slot,
    },
    /// `nanosleep`, `setmaxnreg`, `griddepcontrol`, `pmevent`: nothing to compute; a yield to other warps.
    Yield,
    /// d: state (64 bits) or NONE; count: number of arrivals or bytes. PendingCount: d is the 32-bit count, and the base of
    /// `addr` the register with the state.
    Mbar {
        op: MbarOp,
        order: Order,
        scope: Scope,
        d: Slot,
        addr: Addr,
        count: Option<Count>,
    },
    /// d: predicate; state (64-bit register) or, if `parity`, a phase (32-bit).
    MbarWait {
        try_wait: bool,
        parity: bool,
        d: Slot,
        addr: Addr,
        state: Slot,
    },
    /// Reads a special register whose value changes while a warp runs.
    ReadSpecial {
        special: Special,
        d: Slot,
    },
}

/// A part of [`Kernel::lists`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// First entry.
    pub start: u32,
    /// Number of entries.
    pub len: u32,
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    /// 0, 1, 2 for x, y, z.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    /// Changes while a warp runs; 32 bits.
    Clock,
    ClockHi,
    /// Changes while a warp runs; 64 bits.
    Clock64,
    GlobalTimer,
    DynamicSmemSize,
    TotalSmemSize,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
}
