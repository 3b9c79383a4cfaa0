//! Stream-ordered allocation: pools and what they say of themselves.

use super::codes::{Code, Result};
use super::engine::refused;
use super::state::{Allocation, State};

/// A memory pool.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Bytes that stay reserved at a synchronisation.
    pub threshold: u64,
    /// The three reuse policies: they are kept and change nothing, since no address is given out twice.
    pub reuse: [u32; 3],
    /// Bytes in use.
    pub used: u64,
    /// The most so far.
    pub used_high: u64,
    /// Bytes that are kept from the system.
    pub reserved: u64,
    /// The most so far.
    pub reserved_high: u64,
    /// Bytes that it may have; 0: no limit.
    pub maximum: u64,
}

/// Reserved memory comes in pieces of this many bytes.
const PIECE: u64 = 2 << 20;

impl Pool {
    /// Makes an empty one.
    pub fn new(maximum: u64) -> Self {
        Self { threshold: 0, reuse: [1; 3], used: 0, used_high: 0, reserved: 0, reserved_high: 0, maximum }
    }

    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.used_high = self.used_high.max(self.used);
        self.reserved = self.reserved.max(self.used.next_multiple_of(PIECE));
        self.reserved_high = self.reserved_high.max(self.reserved);
    }

    /// Gives back what is reserved above a number of bytes.
    pub fn trim(&mut self, keep: u64) {
        let needed = self.used.max(keep).next_multiple_of(PIECE);
        self.reserved = self.reserved.min(needed);
    }

    /// Returns an attribute (`CUmemPool_attribute`).
    pub fn attribute(&self, attribute: u32) -> Option<u64> {
        Some(match attribute {
            1..=3 => self.reuse[attribute as usize - 1].into(),
            4 => self.threshold,
            5 => self.reserved,
            6 => self.reserved_high,
            7 => self.used,
            8 => self.used_high,
            _ => return None,
        })
    }

    /// Sets an attribute; the high-water marks can be set to 0 only.
    pub fn set_attribute(&mut self, attribute: u32, value: u64) -> Result<()> {
        match (attribute, value) {
            (1..=3, _) => self.reuse[attribute as usize - 1] = u32::from(value != 0),
            (4, _) => self.threshold = value,
            (6, 0) => self.reserved_high = self.reserved,
            (8, 0) => self.used_high = self.used,
            _ => {
                let what = format!("attribute {attribute} of a memory pool cannot be set to {value}");
                return Err(Code::INVALID_VALUE.because(what));
            }
        }
        Ok(())
    }
}

/// Returns whether an attribute has 32 bits (else 64).
pub fn is_narrow(attribute: u32) -> bool {
    matches!(attribute, 1..=3)
}

/// Allocates from a pool, or plainly.
pub fn allocate(state: &mut State, context: u64, bytes: u64, pool: Option<u64>) -> Result<u64> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE.because("an allocation of 0 bytes"));
    }
    if let Some(pool) = pool {
        let pool = state.pools.get(pool)?;
        if pool.maximum != 0 && pool.used.saturating_add(bytes) > pool.maximum {
            let what =
                format!("{bytes} bytes from a pool of {}, of which {} are in use", pool.maximum, pool.used);
            return Err(Code::OUT_OF_MEMORY.because(what));
        }
    }
    let address = state.engine()?.memory.alloc(bytes).map_err(refused)?;
    if let Some(pool) = pool {
        state.pools.get_mut(pool)?.take(bytes);
    }
    let id = state.sequence();
    state.allocations.insert(address, Allocation { bytes, context, pool, id });
    Ok(address)
}

/// Takes an allocation out of the tables, so that no call can use it any more; its bytes stay until they are freed.
pub fn forget(state: &mut State, address: u64) -> Result<Allocation> {
    let Some(allocation) = state.allocations.remove(&address) else {
        let engine = state.engine()?;
        let place = engine.memory.fault(address, 1);
        return Err(
            Code::INVALID_VALUE.because(format!("{address:#x} is not the start of an allocation: {place}"))
        );
    };
    if let Some(pool) = allocation.pool.and_then(|pool| state.pools.get_mut(pool).ok()) {
        pool.used = pool.used.saturating_sub(allocation.bytes);
    }
    Ok(allocation)
}

/// Lets the pools give back what they may: at each synchronisation.
pub fn synchronised(state: &mut State) {
    for pool in state.pools.values_mut() {
        let keep = pool.threshold;
        pool.trim(keep);
    }
}
