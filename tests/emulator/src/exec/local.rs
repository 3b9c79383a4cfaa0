//! Memory that belongs to one block or warp: shared memory, local memory, parameters.

use super::window::Window;
use crate::memory::{Bits, Buffer, Sharing};

/// Bytes with addresses from 0, used by one host thread at a time.
#[derive(Debug)]
pub struct OwnMemory {
    buffer: Buffer,
    bits: Option<Bits>,
    bytes: u64,
}

impl OwnMemory {
    /// Allocates memory that counts as never written, or nothing if the host has no room.
    pub fn new(bytes: u64) -> Option<Self> {
        let (buffer, bits) = (Buffer::zeroed(bytes)?, Bits::new(bytes, Sharing::OneThread)?);
        Some(Self { buffer, bits: Some(bits), bytes })
    }

    /// Makes memory that holds a copy of these bytes, all written.
    pub fn holding(content: &[u8]) -> Option<Self> {
        let buffer = Buffer::zeroed(content.len() as u64)?;
        // SAFETY: the buffer is new and has room for all of them.
        unsafe { buffer.data().copy_from_nonoverlapping(content.as_ptr(), content.len()) };
        Some(Self { buffer, bits: None, bytes: content.len() as u64 })
    }

    /// Returns the size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the whole of it, for accesses.
    #[inline(always)]
    pub fn window(&self) -> Window<'_> {
        Window { data: self.buffer.data(), bits: self.bits.as_ref(), start: 0, bytes: self.bytes }
    }

    /// Forgets everything, for the next block.
    pub fn forget(&self) {
        if let Some(bits) = &self.bits {
            bits.clear(0, self.bytes);
        }
    }
}
