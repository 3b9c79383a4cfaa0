//! What can be wrong with a request to device memory.

use std::fmt;

/// A request that device memory refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is not so much memory.
    #[error("out of device memory: {bytes} bytes wanted, {free} free")]
    OutOfMemory {
        /// Wanted.
        bytes: u64,
        /// Left.
        free: u64,
    },
    /// An allocation or a mapping of no bytes.
    #[error("an allocation of 0 bytes")]
    Empty,
    /// An address that is not the start of an allocation.
    #[error("{address:#x} is not the start of an allocation")]
    NotAnAllocation {
        /// As given.
        address: u64,
    },
    /// An allocation that was freed before.
    #[error("the {bytes} bytes at {address:#x} were freed before")]
    FreedTwice {
        /// As given.
        address: u64,
        /// Size of the allocation.
        bytes: u64,
    },
    /// Host memory that is mapped already, or cannot be.
    #[error(
        "the {bytes} bytes of host memory at {address:#x} cannot be mapped, or a part of them is mapped already"
    )]
    Overlap {
        /// First byte.
        address: u64,
        /// Size.
        bytes: u64,
    },
    /// An access outside of every allocation.
    #[error("{0}")]
    Fault(Fault),
}

/// Why an access is impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Not, or not all of it, in an allocation.
    OutOfBounds,
    /// In one that was freed.
    UseAfterFree,
}

/// An impossible access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub kind: FaultKind,
    /// Its first byte.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// Where that is, in words: allocation and distance.
    pub place: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}: {}", self.bytes, self.address, self.place)
    }
}
