//! The typed instructions: what `lower` makes of PTX text, and what is executed.
//!
//! Forms and semantics: PTX ISA, chapter "Instruction Set" (<https://docs.nvidia.com/cuda/parallel-thread-execution/>).

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

/// An instruction with its guard and its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// The predicate under which lanes take part, or [`NONE`].
    pub guard: Slot,
    /// Whether the guard is negated (`@!p`).
    pub guard_not: bool,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Place in the source: an index into [`Kernel::locs`], or [`NONE`].
    pub loc: u32,
}

/// A place in a .cu file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loc {
    /// Index into [`Module::files`].
    pub file: u32,
    /// From 1.
    pub line: u32,
}

/// What a constant register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// The same bits in all lanes.
    Bits(u64),
    /// The address of a module variable plus an offset: known when the module is loaded.
    Global {
        /// Index into [`Module::globals`].
        index: u32,
        /// Bytes.
        offset: i64,
        /// A generic address, else one of the variable's own space. Global and constant ones are the same.
        generic: bool,
    },
    /// The generic address of a variable in shared memory, from its offset.
    GenericShared(u64),
    /// The generic address of a variable in local memory, from its offset.
    GenericLocal(u64),
    /// The generic address of a parameter, from its offset. (`mov` from a `.param` variable gives the offset itself, as
    /// `Bits`: an address in the parameter space, which `cvta.param` then makes generic.)
    GenericParam(u64),
    /// A special register that does not change while a warp runs.
    Special(Special),
}

/// A register that is filled when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Which one.
    pub slot: Slot,
    /// In the 64-bit file.
    pub wide: bool,
    /// With what.
    pub value: Value,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// As in the PTX.
    pub name: String,
    /// In the parameter buffer.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Bytes.
    pub align: u32,
}

/// An entry function.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// As in the PTX.
    pub name: String,
    /// In order.
    pub params: Vec<Param>,
    /// Instructions; control never leaves at the end (an `Exit` is last).
    pub code: Vec<Inst>,
    /// Register lists of instructions.
    pub lists: Vec<Slot>,
    /// Source places.
    pub locs: Vec<Loc>,
    /// Registers in the 32-bit file, constants included.
    pub r32: u32,
    /// In the 64-bit file.
    pub r64: u32,
    /// Predicates.
    pub preds: u32,
    /// Registers that are filled at the start.
    pub constants: Vec<Constant>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Alignment of the dynamic shared memory that follows, 0 if the kernel declares none.
    pub dynamic_shared_align: u32,
    /// Bytes of local memory for each thread.
    pub local_bytes: u32,
    /// `.maxntid`, with 0 for none; `.reqntid` too, then exact.
    pub max_threads: [u32; 3],
    /// `.reqntid` was given.
    pub exact_threads: bool,
    /// `.minnctapersm`, or 0.
    pub min_blocks: u32,
    /// `.reqnctapercluster`, with 0 for none.
    pub cluster: [u32; 3],
}

/// A module-level variable in global or constant memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// As in the PTX.
    pub name: String,
    /// In constant memory.
    pub constant: bool,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub align: u32,
    /// The first bytes; all others are zero.
    pub init: Vec<u8>,
    /// Addresses of other variables inside the initial value: offset, index of the variable, addend.
    pub relocations: Vec<(u64, u32, i64)>,
}

/// A module: what `cuModuleLoadData` takes.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`
    pub version: (u32, u32),
    /// `.target`, e.g. `sm_80` or `sm_90a`.
    pub target: String,
    /// Variables.
    pub globals: Vec<Global>,
    /// Entry functions.
    pub kernels: Vec<Kernel>,
    /// Names of source files (`.file`).
    pub files: Vec<String>,
}
