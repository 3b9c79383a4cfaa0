//! What a check found: which kernel, which thread, where, and what is wrong.

use std::fmt;

use serde::Serialize;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An access outside of every allocation, or across the end of one.
    OutOfBounds,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A read of bytes that nobody has written.
    Uninitialised,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// Threads wait for each other for ever.
    Deadlock,
    /// Threads run, and nothing changes.
    Livelock,
    /// A barrier that only a part of a warp, or of the block, has reached.
    DivergentBarrier,
    /// A shuffle, vote or other warp-wide operation with a wrong mask, or from a lane that takes no part.
    IllegalWarpOperation,
    /// `trap`, or an instruction that must not be executed in this state.
    IllegalInstruction,
    /// An mbarrier, cp.async or other asynchronous operation that is used against its rules.
    AsyncMisuse,
}

impl Kind {
    /// Returns the CUDA error that a real device gives, and whether there is one: races and reads of uninitialised
    /// memory go unnoticed there. 700 illegal address, 715 illegal instruction, 716 misaligned address, 719 launch failed,
    /// 702 timeout.
    pub fn cuda_error(self) -> Option<u32> {
        match self {
            Kind::OutOfBounds | Kind::UseAfterFree => Some(700),
            Kind::Misaligned => Some(716),
            Kind::IllegalInstruction | Kind::IllegalWarpOperation => Some(715),
            Kind::Deadlock | Kind::Livelock => Some(702),
            Kind::DivergentBarrier | Kind::AsyncMisuse => Some(719),
            Kind::Uninitialised | Kind::Race => None,
        }
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong.
    pub kind: Kind,
    /// The kernel's name.
    pub kernel: String,
    /// blockIdx.
    pub block: [u32; 3],
    /// threadIdx.
    pub thread: [u32; 3],
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// Source file and line, where the PTX has line information.
    pub source: Option<(String, u32)>,
    /// One sentence: address, allocation, size, the other party.
    pub message: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = serde_json::to_value(self.kind).ok();
        let kind = kind.as_ref().and_then(|k| k.as_str()).unwrap_or("finding").replace('-', " ");
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, "{kind}: {} [kernel {}, block ({bx},{by},{bz})", self.message, self.kernel)?;
        write!(f, ", thread ({tx},{ty},{tz}), PTX line {}", self.ptx_line)?;
        if let Some((file, line)) = &self.source {
            write!(f, ", {file}:{line}")?;
        }
        write!(f, "]")
    }
}
