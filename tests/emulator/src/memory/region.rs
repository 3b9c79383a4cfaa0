//! An allocation: its bytes, and which of them were written.

use super::{Bits, Buffer, Sharing};

/// What an unwritten byte reads as.
const POISON: u8 = 0xFF;

/// An allocation of device memory, or a piece of mapped host memory.
#[derive(Debug)]
pub struct Region {
    start: u64,
    bytes: u64,
    data: *mut u8,
    /// None for host memory: who wrote it there is not known.
    owned: Option<(Buffer, Bits)>,
    name: Option<String>,
    read_only: bool,
}

// SAFETY: the bytes are only reached through raw pointers and are plain data; which threads of a program may touch which
// bytes is that program's affair, as on a device.
unsafe impl Send for Region {}
// SAFETY: as above; the bits are atomic.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn owned(start: u64, bytes: u64, name: Option<String>, read_only: bool) -> Option<Self> {
        let (buffer, bits) = (Buffer::zeroed(bytes)?, Bits::new(bytes, Sharing::Threads)?);
        Some(Self { start, bytes, data: buffer.data(), owned: Some((buffer, bits)), name, read_only })
    }

    pub(super) fn host(host: *mut u8, bytes: u64) -> Self {
        Self { start: host as u64, bytes, data: host, owned: None, name: None, read_only: false }
    }

    /// Returns the device address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the device address after the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Returns the size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns where the bytes lie on the host.
    pub fn data(&self) -> *mut u8 {
        self.data
    }

    /// Returns which bytes were written; none for host memory, where that is not known.
    pub fn bits(&self) -> Option<&Bits> {
        self.owned.as_ref().map(|(_, bits)| bits)
    }

    /// Returns whether this is mapped host memory.
    pub fn is_host(&self) -> bool {
        self.owned.is_none()
    }

    /// Returns whether kernels must not write here.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Names the region for a report.
    pub fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("the {} bytes of variable `{name}` at {:#x}", self.bytes, self.start),
            None if self.is_host() => {
                format!("the {} bytes of mapped host memory at {:#x}", self.bytes, self.start)
            }
            None => format!("the {} bytes allocated at {:#x}", self.bytes, self.start),
        }
    }

    pub(super) fn mark_written(&self) {
        if let Some(bits) = self.bits() {
            bits.set(0, self.bytes);
        }
    }

    pub(super) fn read(&self, at: u64, out: &mut [u8]) {
        debug_assert!(at + out.len() as u64 <= self.bytes);
        // SAFETY: the caller has checked the range; `out` is host memory of its own.
        unsafe { self.data.add(at as usize).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        let Some(bits) = self.bits() else { return };
        for (i, part) in out.chunks_mut(64).enumerate() {
            let written = bits.get(at + 64 * i as u64, part.len() as u64);
            if written.trailing_ones() as usize >= part.len() {
                continue;
            }
            for (bit, byte) in part.iter_mut().enumerate() {
                *byte |= if written >> bit & 1 == 1 { 0 } else { POISON };
            }
        }
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        debug_assert!(at + data.len() as u64 <= self.bytes);
        // SAFETY: the caller has checked the range. The host slice may be mapped memory itself, hence `copy_from`.
        unsafe { self.data.add(at as usize).copy_from(data.as_ptr(), data.len()) };
        if let Some(bits) = self.bits() {
            bits.set(at, data.len() as u64);
        }
    }

    pub(super) fn fill(&self, at: u64, pattern: &[u8], bytes: u64) {
        debug_assert!(at + bytes <= self.bytes);
        let mut done = (pattern.len() as u64).min(bytes);
        // SAFETY: the caller has checked the range; the filled part doubles and is copied behind itself.
        unsafe {
            let to = self.data.add(at as usize);
            to.copy_from(pattern.as_ptr(), done as usize);
            while done < bytes {
                let part = done.min(bytes - done);
                to.add(done as usize).copy_from_nonoverlapping(to, part as usize);
                done += part;
            }
        }
        if let Some(bits) = self.bits() {
            bits.set(at, bytes);
        }
    }

    pub(super) fn copy_from(&self, at: u64, source: &Region, from: u64, bytes: u64) {
        debug_assert!(at + bytes <= self.bytes && from + bytes <= source.bytes);
        // SAFETY: the caller has checked both ranges, which may overlap.
        unsafe { self.data.add(at as usize).copy_from(source.data.add(from as usize), bytes as usize) };
        match (self.bits(), source.bits()) {
            (Some(to), Some(bits)) if self.start != source.start => to.copy_from(at, bits, from, bytes),
            (Some(to), Some(bits)) => {
                // The same allocation: ranges may overlap, so take the bits out first.
                let whole: Vec<u64> =
                    (0..bytes).step_by(64).map(|i| bits.get(from + i, (bytes - i).min(64))).collect();
                for (i, word) in whole.into_iter().enumerate() {
                    let i = 64 * i as u64;
                    to.put(at + i, (bytes - i).min(64), word);
                }
            }
            (Some(to), None) => to.set(at, bytes),
            (None, _) => {}
        }
    }
}
