//! A piece of memory that a warp accesses: loads and stores of registers, bytes never written.

use crate::isa::{NONE, Ty};
use crate::memory::Bits;
use crate::regs::{LANES, Regs, Slot, for_lanes};

use super::address::{Addresses, Span};

/// Bytes at emulated addresses `start` to `start + bytes`.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Where they lie on the host.
    pub data: *mut u8,
    /// Which were written, if that is known.
    pub bits: Option<&'a Bits>,
    /// Emulated address of the first.
    pub start: u64,
    /// How many.
    pub bytes: u64,
}

impl Window<'_> {
    /// Returns whether all accesses of a span lie inside.
    #[inline(always)]
    pub fn holds(&self, span: &Span, size: u64) -> bool {
        span.low >= self.start
            && span.high.wrapping_sub(self.start) <= self.bytes.wrapping_sub(size)
            && size <= self.bytes
    }

    /// Returns where an address inside lies on the host.
    #[inline(always)]
    pub fn host(&self, at: u64) -> *mut u8 {
        self.data.wrapping_add((at - self.start) as usize)
    }

    /// Returns the lanes that touch a byte that was never written.
    #[inline(always)]
    pub fn unwritten(&self, at: &Addresses, span: &Span, mask: u32, size: u64) -> u32 {
        let Some(bits) = self.bits else { return 0 };
        if span.contiguous && bits.all(span.low - self.start, LANES as u64 * size) {
            return 0;
        }
        let mut lanes = 0;
        let whole = u64::MAX >> (64 - size);
        for_lanes(mask, |lane| {
            let written = bits.get(at.0[lane] - self.start, size);
            lanes |= u32::from(written != whole) << lane;
        });
        lanes
    }

    /// Marks what the lanes wrote.
    #[inline(always)]
    pub fn mark(&self, at: &Addresses, span: &Span, mask: u32, size: u64) {
        let Some(bits) = self.bits else { return };
        if span.contiguous {
            bits.set(span.low - self.start, LANES as u64 * size);
        } else {
            for_lanes(mask, |lane| bits.set(at.0[lane] - self.start, size));
        }
    }

    /// Reads registers of type `ty`; signed ones of less than 32 bits are sign-extended to 32 bits.
    ///
    /// # Safety
    /// The window holds all accesses of `mask`.
    #[inline(always)]
    pub unsafe fn load(
        &self,
        regs: &mut Regs,
        ty: Ty,
        slots: &[Slot],
        at: &Addresses,
        span: &Span,
        mask: u32,
    ) {
        if span.contiguous && slots.len() == 1 && slots[0] != NONE {
            let (from, slot) = (self.host(span.low), slots[0] as usize);
            if ty.bytes() == 4 {
                // SAFETY: all lanes are inside, one after the other: 32 elements can be read at once.
                unsafe { from.copy_to_nonoverlapping(regs.r32[slot].0.as_mut_ptr().cast(), 128) };
                return;
            }
            if ty.bytes() == 8 {
                // SAFETY: as above.
                unsafe { from.copy_to_nonoverlapping(regs.r64[slot].0.as_mut_ptr().cast(), 256) };
                return;
            }
        }
        // SAFETY: passed on.
        unsafe {
            match ty {
                Ty::B8 | Ty::U8 => self.gather(regs, slots, at, mask, |p: *const u8| u32::from(p.read())),
                Ty::S8 => self.gather(regs, slots, at, mask, |p: *const i8| p.read() as i32 as u32),
                Ty::S16 => {
                    self.gather(regs, slots, at, mask, |p: *const i16| p.read_unaligned() as i32 as u32)
                }
                Ty::B16 | Ty::U16 | Ty::F16 | Ty::Bf16 => {
                    self.gather(regs, slots, at, mask, |p: *const u16| u32::from(p.read_unaligned()));
                }
                _ if ty.is_wide() => self.gather_wide(regs, slots, at, mask),
                _ => self.gather(regs, slots, at, mask, |p: *const u32| p.read_unaligned()),
            }
        }
    }

    #[inline(always)]
    unsafe fn gather<T>(
        &self,
        regs: &mut Regs,
        slots: &[Slot],
        at: &Addresses,
        mask: u32,
        read: impl Fn(*const T) -> u32,
    ) {
        for (i, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
            let to = &mut regs.r32[slot as usize].0;
            let base = self.data.wrapping_add(i * size_of::<T>());
            if mask == u32::MAX {
                for lane in 0..LANES {
                    to[lane] = read(base.wrapping_add((at.0[lane] - self.start) as usize).cast());
                }
            } else {
                for_lanes(mask, |lane| {
                    to[lane] = read(base.wrapping_add((at.0[lane] - self.start) as usize).cast());
                });
            }
        }
    }

    #[inline(always)]
    unsafe fn gather_wide(&self, regs: &mut Regs, slots: &[Slot], at: &Addresses, mask: u32) {
        for (i, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
            let to = &mut regs.r64[slot as usize].0;
            for_lanes(mask, |lane| {
                // SAFETY: the window holds the access.
                to[lane] = unsafe { self.host(at.0[lane] + 8 * i as u64).cast::<u64>().read_unaligned() };
            });
        }
    }

    /// Writes registers of type `ty`, lane after lane.
    ///
    /// # Safety
    /// The window holds all accesses of `mask`, and may be written.
    #[inline(always)]
    pub unsafe fn store(&self, regs: &Regs, ty: Ty, slots: &[Slot], at: &Addresses, span: &Span, mask: u32) {
        if span.contiguous && slots.len() == 1 {
            let (to, slot) = (self.host(span.low), slots[0] as usize);
            if ty.bytes() == 4 {
                // SAFETY: all lanes are inside, one after the other: 32 elements can be written at once.
                unsafe { to.copy_from_nonoverlapping(regs.r32[slot].0.as_ptr().cast(), 128) };
                return;
            }
            if ty.bytes() == 8 {
                // SAFETY: as above.
                unsafe { to.copy_from_nonoverlapping(regs.r64[slot].0.as_ptr().cast(), 256) };
                return;
            }
        }
        // SAFETY: passed on.
        unsafe {
            match ty.bytes() {
                1 => self.scatter(regs, slots, at, mask, |p: *mut u8, v| p.write(v as u8)),
                2 => self.scatter(regs, slots, at, mask, |p: *mut u16, v| p.write_unaligned(v as u16)),
                4 => self.scatter(regs, slots, at, mask, |p: *mut u32, v| p.write_unaligned(v)),
                _ => self.scatter_wide(regs, slots, at, mask),
            }
        }
    }

    #[inline(always)]
    unsafe fn scatter<T>(
        &self,
        regs: &Regs,
        slots: &[Slot],
        at: &Addresses,
        mask: u32,
        write: impl Fn(*mut T, u32),
    ) {
        for (i, &slot) in slots.iter().enumerate() {
            let from = &regs.r32[slot as usize].0;
            let base = self.data.wrapping_add(i * size_of::<T>());
            for_lanes(mask, |lane| {
                write(base.wrapping_add((at.0[lane] - self.start) as usize).cast(), from[lane]);
            });
        }
    }

    #[inline(always)]
    unsafe fn scatter_wide(&self, regs: &Regs, slots: &[Slot], at: &Addresses, mask: u32) {
        for (i, &slot) in slots.iter().enumerate() {
            let from = &regs.r64[slot as usize].0;
            for_lanes(mask, |lane| {
                // SAFETY: the window holds the access.
                unsafe { self.host(at.0[lane] + 8 * i as u64).cast::<u64>().write_unaligned(from[lane]) };
            });
        }
    }

    /// Lets the bytes of `lanes` that were never written read as 0xFF.
    pub fn poison(&self, regs: &mut Regs, ty: Ty, slots: &[Slot], at: &Addresses, lanes: u32) {
        let Some(bits) = self.bits else { return };
        let size = u64::from(ty.bytes());
        for_lanes(lanes, |lane| {
            for (i, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
                let written = bits.get(at.0[lane] - self.start + i as u64 * size, size);
                let mut poison = 0u64;
                for byte in (0..size).filter(|byte| written >> byte & 1 == 0) {
                    poison |= 0xFF << (8 * byte);
                }
                if ty.is_wide() {
                    regs.r64[slot as usize].0[lane] |= poison;
                } else if poison != 0 {
                    let value = regs.r32[slot as usize].0[lane] | poison as u32;
                    regs.r32[slot as usize].0[lane] = extend(ty, value);
                }
            }
        });
    }
}

fn extend(ty: Ty, value: u32) -> u32 {
    match ty {
        Ty::S8 => value as i8 as i32 as u32,
        Ty::S16 => value as i16 as i32 as u32,
        _ => value,
    }
}
