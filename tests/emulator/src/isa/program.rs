//! What instructions are parts of: kernels, modules, and what is placed before a warp starts.

use crate::isa::{Op, Special};
use crate::regs::Slot;

/// An instruction with its guard and its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// The predicate under which lanes take part, or [`NONE`](crate::isa::NONE).
    pub guard: Slot,
    /// Whether the guard is negated (`@!p`).
    pub guard_not: bool,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Place in the source: an index into [`Kernel::locs`], or [`NONE`](crate::isa::NONE).
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
