//! Loads and stores of a whole warp side by side in global memory: most accesses of most kernels.
//!
//! Here one look at bounds, bits and history serves all lanes. What does not fit in is left to [`super::access`], which
//! handles everything and words the reports.

use super::block::BlockState;
use super::engine::Engine;
use super::races;
use super::warp::Warp;
use super::window::Window;
use crate::counters::{Direction, Traffic};
use crate::detect::Kind;
use crate::isa::{Addr, List, NONE, Ty};
use crate::regs::{FULL, LANES, Regs, Slot};

impl<'a> Engine<'a> {
    /// Executes a weak `ld` of all lanes, if they lie side by side where the instruction was last, in written memory.
    #[inline(always)]
    pub fn load_row(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        pc: u32,
        (ty, dst): (Ty, List),
        addr: Addr,
    ) -> bool {
        let size = u64::from(ty.bytes() * dst.len);
        let slots = self.program.list(dst);
        let Some((window, first)) = self.row(&warp.regs, pc, addr, size, false) else { return false };
        let bits = window.bits;
        if bits.is_some_and(|bits| !bits.all(first - window.start, LANES as u64 * size)) {
            return false;
        }
        // SAFETY: `row` has checked that the window holds all lanes.
        if !unsafe { window.load_row(&mut warp.regs, ty, slots, first) } {
            return false;
        }
        races::row(&mut block.races, (warp.index, pc), Kind::Read, size, first);
        self.count_row(Direction::Load, size, first);
        true
    }

    /// The same for a weak `st`.
    #[inline(always)]
    pub fn store_row(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        pc: u32,
        (ty, src): (Ty, List),
        addr: Addr,
    ) -> bool {
        let size = u64::from(ty.bytes() * src.len);
        let slots = self.program.list(src);
        let Some((window, first)) = self.row(&warp.regs, pc, addr, size, true) else { return false };
        // SAFETY: `row` has checked that the window holds all lanes, and may be written.
        if !unsafe { window.store_row(&warp.regs, ty, slots, first) } {
            return false;
        }
        races::row(&mut block.races, (warp.index, pc), Kind::Write, size, first);
        if let Some(bits) = window.bits {
            bits.set(first - window.start, LANES as u64 * size);
        }
        block.progress += 1;
        self.count_row(Direction::Store, size, first);
        true
    }

    /// Returns the memory and the first address of lanes side by side.
    #[inline(always)]
    fn row(&self, regs: &Regs, pc: u32, addr: Addr, size: u64, writes: bool) -> Option<(Window<'a>, u64)> {
        if addr.base == NONE || !addr.wide {
            return None;
        }
        let base = &regs.r64[addr.base as usize].0;
        let mut apart = 0;
        for lane in 0..LANES {
            apart |= base[lane].wrapping_sub(base[0]) ^ (lane as u64 * size);
        }
        let first = base[0].wrapping_add(addr.offset as u64);
        let (view, all) = (self.view, LANES as u64 * size);
        let region = view.region(self.regions[pc as usize])?;
        let (start, bytes) = (region.start(), region.bytes());
        let inside = all <= bytes && first >= start && first - start <= bytes - all;
        if apart != 0 || !inside || first & (size - 1) != 0 || (writes && region.read_only()) {
            return None;
        }
        Some((Window { data: region.data(), bits: region.bits(), start, bytes }, first))
    }

    #[inline(always)]
    fn count_row(&mut self, direction: Direction, size: u64, first: u64) {
        let traffic = Traffic { direction, size, mask: FULL, contiguous: true, low: first };
        self.tally.global(&traffic, &[0; LANES]);
    }
}

impl Window<'_> {
    /// Reads registers of all lanes side by side; not those of 8 bits, nor of three in a row.
    ///
    /// # Safety
    /// The window holds all lanes.
    #[inline(always)]
    unsafe fn load_row(&self, regs: &mut Regs, ty: Ty, slots: &[Slot], first: u64) -> bool {
        let from = self.host(first);
        // SAFETY: passed on; each function reads the lanes' bytes only.
        unsafe {
            match (ty.bytes(), slots.len()) {
                (2, 1) if ty == Ty::S16 => load::<i16, 1>(regs, slots, from, |v| v as i32 as u32),
                (2, 1) => load::<u16, 1>(regs, slots, from, u32::from),
                (4, 1) => load::<u32, 1>(regs, slots, from, |v| v),
                (4, 2) => load::<u32, 2>(regs, slots, from, |v| v),
                (4, 4) => load::<u32, 4>(regs, slots, from, |v| v),
                (8, 1) if slots[0] != NONE => {
                    let to = regs.r64[slots[0] as usize].0.as_mut_ptr();
                    to.cast::<u8>().copy_from_nonoverlapping(from, 8 * LANES);
                }
                _ => return false,
            }
        }
        true
    }

    /// Writes registers of all lanes side by side; not those of 8 bits, nor of three in a row.
    ///
    /// # Safety
    /// The window holds all lanes, and may be written.
    #[inline(always)]
    unsafe fn store_row(&self, regs: &Regs, ty: Ty, slots: &[Slot], first: u64) -> bool {
        let to = self.host(first);
        // SAFETY: passed on; each function writes the lanes' bytes only.
        unsafe {
            match (ty.bytes(), slots.len()) {
                (2, 1) => store::<u16, 1>(regs, slots, to, |v| v as u16),
                (4, 1) => store::<u32, 1>(regs, slots, to, |v| v),
                (4, 2) => store::<u32, 2>(regs, slots, to, |v| v),
                (4, 4) => store::<u32, 4>(regs, slots, to, |v| v),
                (8, 1) => {
                    let from = regs.r64[slots[0] as usize].0.as_ptr();
                    to.copy_from_nonoverlapping(from.cast(), 8 * LANES);
                }
                _ => return false,
            }
        }
        true
    }
}

/// Reads `N` elements for each lane.
///
/// # Safety
/// `32 · N` elements can be read.
#[inline(always)]
unsafe fn load<T: Copy, const N: usize>(
    regs: &mut Regs,
    slots: &[Slot],
    from: *const u8,
    value: impl Fn(T) -> u32,
) {
    for (i, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
        let to = &mut regs.r32[slot as usize].0;
        for lane in 0..LANES {
            // SAFETY: element `i` of this lane, as the caller promises.
            to[lane] = value(unsafe { from.cast::<T>().add(lane * N + i).read_unaligned() });
        }
    }
}

/// Writes `N` elements for each lane.
///
/// # Safety
/// `32 · N` elements can be written.
#[inline(always)]
unsafe fn store<T, const N: usize>(regs: &Regs, slots: &[Slot], to: *mut u8, value: impl Fn(u32) -> T) {
    for (i, &slot) in slots.iter().enumerate() {
        let from = &regs.r32[slot as usize].0;
        for lane in 0..LANES {
            // SAFETY: element `i` of this lane, as the caller promises.
            unsafe { to.cast::<T>().add(lane * N + i).write_unaligned(value(from[lane])) };
        }
    }
}
