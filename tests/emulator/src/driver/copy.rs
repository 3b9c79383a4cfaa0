//! Copies and fills: rows of bytes between device and host memory.

use std::sync::Arc;

use super::codes::{Code, Failure, Result};
use super::engine::Engine;
use super::host;
use crate::memory::Error;

/// Bytes that go through a buffer at a time.
const CHUNK: usize = 1 << 20;

/// One side of a copy.
#[derive(Clone, Debug)]
pub enum Place {
    /// A device address.
    Device(u64),
    /// A host address, read or written when the copy is done.
    Host(u64),
    /// Host memory that was read when the call was made.
    Staged(Arc<Vec<u8>>),
}

/// A side with the distances of its rows and planes.
#[derive(Clone, Debug)]
pub struct Side {
    /// Where the first byte is.
    pub place: Place,
    /// Bytes from row to row.
    pub pitch: usize,
    /// Bytes from plane to plane.
    pub plane: usize,
}

/// A copy of `width` bytes in each of `height` rows of `depth` planes.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Where to.
    pub to: Side,
    /// Where from.
    pub from: Side,
    /// Bytes of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Planes.
    pub depth: usize,
}

/// A fill of `width` elements in each of `height` rows.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Where.
    pub address: u64,
    /// The element: 1, 2 or 4 bytes.
    pub pattern: Vec<u8>,
    /// Elements of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from row to row.
    pub pitch: usize,
}

impl Side {
    /// Makes a side of one row.
    pub fn row(place: Place) -> Self {
        Self { place, pitch: 0, plane: 0 }
    }

    fn offset(&self, y: usize, z: usize) -> usize {
        z * self.plane + y * self.pitch
    }

    /// Returns how far the last byte of a copy is from the first, plus one; `None` if that is no address.
    pub fn extent(&self, copy: (usize, usize, usize)) -> Option<u64> {
        let (width, height, depth) = copy;
        let rows = height.checked_sub(1)?.checked_mul(self.pitch)?;
        let planes = depth.checked_sub(1)?.checked_mul(self.plane)?;
        rows.checked_add(planes)?.checked_add(width).map(|bytes| bytes as u64)
    }
}

/// A fault of the device in the middle of queued work: memory was freed in the meantime.
fn fault(error: Error) -> Failure {
    Code::ILLEGAL_ADDRESS.because(format!("queued copy or fill: {error}"))
}

impl Copy {
    /// Makes a copy of some bytes.
    pub fn row(to: Place, from: Place, bytes: usize) -> Self {
        Self { to: Side::row(to), from: Side::row(from), width: bytes, height: 1, depth: 1 }
    }

    /// Returns the bytes of device memory that it reads, and that it writes.
    pub fn device_bytes(&self) -> [u64; 2] {
        let bytes = (self.width * self.height * self.depth) as u64;
        [&self.from, &self.to].map(|side| if matches!(side.place, Place::Device(_)) { bytes } else { 0 })
    }

    /// Does it.
    pub fn run(&self, engine: &Engine) -> Result<()> {
        for z in 0..self.depth {
            for y in 0..self.height {
                self.run_row(engine, self.to.offset(y, z), self.from.offset(y, z))?;
            }
        }
        Ok(())
    }

    fn run_row(&self, engine: &Engine, to: usize, from: usize) -> Result<()> {
        match (&self.to.place, &self.from.place) {
            (Place::Device(d), Place::Device(s)) => {
                let (d, s) = (d + to as u64, s + from as u64);
                engine.memory.copy(d, s, self.width as u64).map_err(fault)
            }
            (Place::Device(d), Place::Staged(bytes)) => {
                let row = bytes.get(from..from + self.width).ok_or(Code::UNKNOWN)?;
                engine.memory.write(d + to as u64, row).map_err(fault)
            }
            (Place::Device(d), Place::Host(s)) => self.in_chunks(|at, buffer| {
                host::read(s + (from + at) as u64, buffer)?;
                engine.memory.write(d + (to + at) as u64, buffer).map_err(fault)
            }),
            (Place::Host(d), Place::Device(s)) => self.in_chunks(|at, buffer| {
                engine.memory.read(s + (from + at) as u64, buffer).map_err(fault)?;
                host::write(d + (to + at) as u64, buffer)
            }),
            (Place::Host(d), Place::Host(s)) => self.in_chunks(|at, buffer| {
                host::read(s + (from + at) as u64, buffer)?;
                host::write(d + (to + at) as u64, buffer)
            }),
            (Place::Host(d), Place::Staged(bytes)) => {
                let row = bytes.get(from..from + self.width).ok_or(Code::UNKNOWN)?;
                host::write(d + to as u64, row)
            }
            (Place::Staged(_), _) => Err(Code::UNKNOWN.because("a copy into staged memory")),
        }
    }

    fn in_chunks(&self, mut each: impl FnMut(usize, &mut [u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; self.width.min(CHUNK)];
        let mut at = 0;
        while at < self.width {
            let bytes = CHUNK.min(self.width - at);
            each(at, &mut buffer[..bytes])?;
            at += bytes;
        }
        Ok(())
    }
}

impl Fill {
    /// Returns the bytes that it writes.
    pub fn bytes(&self) -> u64 {
        (self.pattern.len() * self.width * self.height) as u64
    }

    /// Does it.
    pub fn run(&self, engine: &Engine) -> Result<()> {
        for y in 0..self.height {
            let row = self.address + (y * self.pitch) as u64;
            engine.memory.fill(row, &self.pattern, self.width as u64).map_err(fault)?;
        }
        Ok(())
    }
}
