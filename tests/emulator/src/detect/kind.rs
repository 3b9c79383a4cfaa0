//! What an access does, and which accesses conflict.

use crate::isa::{Order, Scope};

/// What an access does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A weak load.
    Read,
    /// A weak store.
    Write,
    /// A volatile, relaxed or acquiring load.
    StrongRead(Order, Scope),
    /// A volatile, relaxed or releasing store; also an operation on an mbarrier.
    StrongWrite(Order, Scope),
    /// An atomic operation, or a reduction.
    Atomic(Order, Scope),
    /// The source of an asynchronous copy: read at any time until the copy is complete.
    CopyRead,
    /// The destination of an asynchronous copy: written at any time until the copy is complete.
    CopyWrite,
}

impl Kind {
    /// Returns the flags of an access.
    pub(super) fn flags(self) -> u32 {
        let strong = |scope| if matches!(scope, Scope::Gpu | Scope::Sys) { STRONG } else { STRONG | NARROW };
        match self {
            Kind::Read => 0,
            Kind::Write => WRITES,
            Kind::StrongRead(_, scope) => strong(scope),
            Kind::StrongWrite(_, scope) => strong(scope) | WRITES,
            Kind::Atomic(_, scope) => strong(scope) | WRITES | ATOMIC,
            Kind::CopyRead => COPY,
            Kind::CopyWrite => COPY | WRITES,
        }
    }
}

/// It writes.
pub(super) const WRITES: u32 = 1;
/// It may run at the same time as other strong accesses.
pub(super) const STRONG: u32 = 2;
/// An asynchronous copy does it, between its issue and a wait.
pub(super) const COPY: u32 = 4;
/// Its strength does not reach beyond the block.
pub(super) const NARROW: u32 = 8;
/// It is an atomic operation (for the text of a report).
pub(super) const ATOMIC: u32 = 16;
const FLAGS: u32 = 31;

/// Kind, bytes of the granule and instruction of a recorded access, in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct What(u32);

impl What {
    /// Packs flags, a mask of the bytes of a granule, and an index into the kernel's code (below 8 M).
    pub(super) fn new(flags: u32, bytes: u32, pc: u32) -> Self {
        Self(flags | bytes << 5 | pc << 9)
    }

    pub(super) fn flags(self) -> u32 {
        self.0 & FLAGS
    }

    pub(super) fn bytes(self) -> u32 {
        self.0 >> 5 & 15
    }

    pub(super) fn pc(self) -> u32 {
        self.0 >> 9
    }

    pub(super) fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// Returns the same of other bytes.
    pub(super) fn of_bytes(self, bytes: u32) -> Self {
        Self(self.0 & !(15 << 5) | bytes << 5)
    }

    /// Returns whether the other access does the same to the same bytes.
    pub(super) fn is_like(self, other: What) -> bool {
        (self.0 ^ other.0) & (FLAGS | 15 << 5) == 0
    }
}

/// Returns whether two accesses of the same bytes must be ordered.
#[inline]
pub(super) fn conflict(a: u32, b: u32, same_block: bool) -> bool {
    (a | b) & WRITES != 0 && (a & b & STRONG == 0 || (!same_block && (a | b) & NARROW != 0))
}

/// Returns whether each access that conflicts with `old` conflicts with `new` too: if `new` is ordered after `old` and has all
/// its bytes, `old` can be forgotten.
#[inline]
pub(super) fn replaces(new: u32, old: u32) -> bool {
    (new & WRITES != 0 || old & WRITES == 0)
        && (new & STRONG == 0 || (old & STRONG != 0 && (old & NARROW == 0 || new & NARROW != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_atomics_do_not_conflict_among_themselves() {
        let gpu = Kind::Atomic(Order::Relaxed, Scope::Gpu).flags();
        let block = Kind::Atomic(Order::Relaxed, Scope::Cta).flags();
        let (read, write) = (Kind::Read.flags(), Kind::Write.flags());
        assert!(!conflict(read, read, false) && !conflict(gpu, gpu, false));
        assert!(conflict(read, write, true) && conflict(write, write, true));
        assert!(conflict(gpu, read, true) && conflict(write, gpu, true));
        assert!(!conflict(block, gpu, true) && conflict(block, gpu, false), "scope too small for two blocks");
        let flag = Kind::StrongRead(Order::Volatile, Scope::Sys).flags();
        assert!(!conflict(flag, gpu, false) && conflict(flag, write, false) && !conflict(flag, read, false));
    }

    #[test]
    fn what_is_replaced_loses_no_conflict() {
        let kinds = [
            Kind::Read,
            Kind::Write,
            Kind::StrongRead(Order::Volatile, Scope::Sys),
            Kind::StrongRead(Order::Relaxed, Scope::Cta),
            Kind::StrongWrite(Order::Relaxed, Scope::Gpu),
            Kind::Atomic(Order::Relaxed, Scope::Cta),
            Kind::CopyRead,
            Kind::CopyWrite,
        ]
        .map(Kind::flags);
        for new in kinds {
            for old in kinds.into_iter().filter(|&old| replaces(new, old)) {
                for later in kinds {
                    for same_block in [true, false] {
                        assert!(
                            !conflict(old, later, same_block) || conflict(new, later, same_block),
                            "{new:05b} replaced {old:05b}, {later:05b} is missed"
                        );
                    }
                }
            }
        }
    }
}
