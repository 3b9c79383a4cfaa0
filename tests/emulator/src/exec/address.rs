//! Addresses of a warp's access: one for each lane, and how they lie to each other.

use crate::isa::{Addr, NONE};
use crate::regs::{FULL, LANES, Regs, for_lanes};

/// The addresses of an access. Those of lanes that take no part mean nothing.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Addresses(pub [u64; LANES]);

/// How the addresses of the active lanes lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The smallest.
    pub low: u64,
    /// The largest.
    pub high: u64,
    /// All lanes are active, and each address is the one before plus the size of the access.
    pub contiguous: bool,
    /// All are multiples of the size.
    pub aligned: bool,
}

impl Span {
    /// Returns the span as one of some of its lanes.
    pub fn of(self, lanes: u32) -> Self {
        Self { contiguous: self.contiguous && lanes == FULL, ..self }
    }
}

impl Addresses {
    /// Computes the addresses; those from 32-bit registers wrap at 32 bits.
    #[inline(always)]
    pub fn of(regs: &Regs, addr: Addr) -> Self {
        if addr.base == NONE {
            return Self([addr.offset as u64; LANES]);
        }
        let mut at = [0; LANES];
        if addr.wide {
            let base = &regs.r64[addr.base as usize].0;
            for lane in 0..LANES {
                at[lane] = base[lane].wrapping_add(addr.offset as u64);
            }
        } else {
            let base = &regs.r32[addr.base as usize].0;
            for lane in 0..LANES {
                at[lane] = u64::from(base[lane].wrapping_add(addr.offset as u32));
            }
        }
        Self(at)
    }

    /// Looks at the lanes of a mask, which is not empty; `size` is a power of two.
    #[inline(always)]
    pub fn span(&self, mask: u32, size: u64) -> Span {
        if mask == FULL {
            let first = self.0[0];
            let mut apart = 0;
            for lane in 0..LANES {
                apart |= self.0[lane].wrapping_sub(first) ^ (lane as u64 * size);
            }
            let high = self.0[LANES - 1];
            if apart == 0 && high >= first {
                let aligned = first & (size - 1) == 0;
                return Span { low: first, high, contiguous: true, aligned };
            }
        }
        self.scattered(mask, size)
    }

    fn scattered(&self, mask: u32, size: u64) -> Span {
        let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
        for_lanes(mask, |lane| {
            let at = self.0[lane];
            low = low.min(at);
            high = high.max(at);
            bits |= at;
        });
        Span { low, high, contiguous: false, aligned: bits & (size - 1) == 0 }
    }
}
