//! Atomic operations on global and shared memory.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use half::{bf16, f16};

use super::access::{Access, Action, Own, first_lane};
use super::address::Addresses;
use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::races;
use super::warp::Warp;
use super::window::Window;
use crate::isa::{AtomOp, NONE, Op, Space, Ty};
use crate::regs::{Regs, Slot, for_lanes};
use crate::report::Kind;

impl Engine<'_> {
    /// Executes `atom` and `red`, one lane after the other.
    pub fn atomic(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        (pc, mask): (u32, u32),
        op: &Op,
    ) -> Result<(), Halted> {
        let Op::Atom { op, ty, space, d, addr, b, c, .. } = *op else { return Ok(()) };
        let mut at = Addresses::of(&warp.regs, addr);
        let size = u64::from(ty.bytes());
        self.tally.sums.atomics += u64::from(mask.count_ones());
        let mut changed = false;
        let strength = self.strength(pc);
        for (space, lanes) in self.by_space(space, &mut at, mask, block) {
            let access = Access { who: Who::new(block, warp, pc), space, size, action: Action::Atomic };
            if lanes != 0 && !matches!(space, Space::Global | Space::Shared) {
                self.report(Kind::IllegalInstruction, access.who, lanes.trailing_zeros(), || {
                    format!("an atomic operation on {} memory", super::access::name(space))
                })?;
            }
            // The ISA: f32 additions flush subnormal numbers in global memory, but not in shared memory.
            let flush = ty == Ty::F32 && space == Space::Global;
            let mut left = lanes;
            while left != 0 {
                let own = Own { shared: &block.shared, local: &warp.local };
                let (window, span, now) = self.window(own, &access, &mut at, left)?;
                left &= !now;
                let unwritten = window.unwritten(&at, &span, now, size);
                if unwritten != 0 {
                    // Memory that was never written reads as all ones here too.
                    for_lanes(unwritten, |lane| {
                        write_poison(window.host(at.0[lane]), window.bits, at.0[lane] - window.start, size)
                    });
                    self.unwritten(&access, &at, unwritten, block, warp)?;
                }
                let regs = &mut warp.regs;
                races::strong(&mut block.races, &access, strength, &at, now, |lanes| {
                    let update = Update { op, ty, flush, d, b, c };
                    let (wrote, new) = update.run(regs, &window, &at, lanes);
                    changed |= new;
                    wrote
                });
                window.mark(&at, &span, now, size);
                self.observe(&access, &at, &span, now);
            }
        }
        if changed || d == NONE {
            block.progress += 1;
        } else {
            block.polls += u64::from(warp.looks_again(pc, at.0[first_lane(mask)]));
        }
        Ok(())
    }
}

/// An atomic operation with its registers.
struct Update {
    op: AtomOp,
    ty: Ty,
    flush: bool,
    d: Slot,
    b: Slot,
    c: Slot,
}

impl Update {
    /// Executes it for some lanes, all inside of the window. Returns those that wrote, and whether a value has changed.
    fn run(&self, regs: &mut Regs, window: &Window, at: &Addresses, lanes: u32) -> (u32, bool) {
        let Self { op, ty, flush, d, b, c } = *self;
        let (mut wrote, mut changed) = (0, false);
        for_lanes(lanes, |lane| {
            let expected = read(regs, ty, b, lane);
            let c = if op == AtomOp::Cas { read(regs, ty, c, lane) } else { 0 };
            let new = |old| apply(op, ty, flush, old, expected, c);
            // SAFETY: the window holds the access, which is aligned to its size.
            let old = unsafe { update(window.host(at.0[lane]), u64::from(ty.bytes()), new) };
            changed |= new(old) != old;
            // A comparison that fails writes nothing; every other operation does, if only the same value.
            wrote |= u32::from(op != AtomOp::Cas || old == expected) << lane;
            if d != NONE && ty.is_wide() {
                regs.r64[d as usize].0[lane] = old;
            } else if d != NONE {
                regs.r32[d as usize].0[lane] = old as u32;
            }
        });
        (wrote, changed)
    }
}

fn read(regs: &Regs, ty: Ty, slot: u32, lane: usize) -> u64 {
    if ty.is_wide() { regs.r64[slot as usize].0[lane] } else { u64::from(regs.r32[slot as usize].0[lane]) }
}

/// Makes the unwritten bytes of an access all ones.
fn write_poison(host: *mut u8, bits: Option<&crate::memory::Bits>, at: u64, size: u64) {
    let Some(bits) = bits else { return };
    let written = bits.get(at, size);
    for byte in (0..size).filter(|byte| written >> byte & 1 == 0) {
        // SAFETY: the window that `host` comes from holds the access.
        unsafe { host.add(byte as usize).write(0xFF) };
    }
}

/// Replaces the value at an address by a function of it; returns the old one.
///
/// # Safety
/// `size` bytes at `host`, which is aligned to them, are valid.
unsafe fn update(host: *mut u8, size: u64, f: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: as above; memory of kernels is only reached through raw pointers, so an atomic view of it is sound.
    unsafe {
        match size {
            2 => {
                let cell = AtomicU16::from_ptr(host.cast());
                let old = cell.fetch_update(SeqCst, SeqCst, |old| Some(f(u64::from(old)) as u16));
                u64::from(old.unwrap_or_else(|old| old))
            }
            4 => {
                let cell = AtomicU32::from_ptr(host.cast());
                let old = cell.fetch_update(SeqCst, SeqCst, |old| Some(f(u64::from(old)) as u32));
                u64::from(old.unwrap_or_else(|old| old))
            }
            _ => {
                let cell = AtomicU64::from_ptr(host.cast());
                cell.fetch_update(SeqCst, SeqCst, |old| Some(f(old))).unwrap_or_else(|old| old)
            }
        }
    }
}

/// Computes the new value.
fn apply(op: AtomOp, ty: Ty, flush: bool, old: u64, b: u64, c: u64) -> u64 {
    match ty {
        Ty::F32 => {
            let flushed = |v: f32| if flush && v.is_subnormal() { 0f32.copysign(v) } else { v };
            let sum = flushed(f32::from_bits(old as u32)) + flushed(f32::from_bits(b as u32));
            u64::from(flushed(sum).to_bits())
        }
        Ty::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        Ty::F16 | Ty::Bf16 => u64::from(half(op, ty, old as u16, b as u16)),
        Ty::F16x2 | Ty::Bf16x2 => {
            let part =
                |shift: u32| u64::from(half(op, ty, (old >> shift) as u16, (b >> shift) as u16)) << shift;
            part(0) | part(16)
        }
        _ if ty.is_wide() => integer(op, ty.is_signed(), old, b, c),
        _ => narrow(op, ty, old as u32, b as u32, c as u32),
    }
}

fn narrow(op: AtomOp, ty: Ty, old: u32, b: u32, c: u32) -> u64 {
    let widen = |v: u32| if ty.is_signed() { v as i32 as i64 as u64 } else { u64::from(v) };
    match op {
        AtomOp::Inc => u64::from(if old >= b { 0 } else { old + 1 }),
        AtomOp::Dec => u64::from(if old == 0 || old > b { b } else { old - 1 }),
        AtomOp::Cas if ty.bytes() == 2 => u64::from(if old == b & 0xFFFF { c & 0xFFFF } else { old }),
        _ => integer(op, ty.is_signed(), widen(old), widen(b), widen(c)) & 0xFFFF_FFFF,
    }
}

fn integer(op: AtomOp, signed: bool, old: u64, b: u64, c: u64) -> u64 {
    match op {
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::Min if signed => (old as i64).min(b as i64) as u64,
        AtomOp::Max if signed => (old as i64).max(b as i64) as u64,
        AtomOp::Min => old.min(b),
        AtomOp::Max => old.max(b),
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        // Only of u32, in `narrow`.
        AtomOp::Inc | AtomOp::Dec => old,
    }
}

/// An operation on one f16 or bf16.
fn half(op: AtomOp, ty: Ty, old: u16, b: u16) -> u16 {
    let (a, b) = match ty {
        Ty::F16 | Ty::F16x2 => (f16::from_bits(old).to_f64(), f16::from_bits(b).to_f64()),
        _ => (bf16::from_bits(old).to_f64(), bf16::from_bits(b).to_f64()),
    };
    let value = match op {
        AtomOp::Min => minimum(a, b),
        AtomOp::Max => -minimum(-a, -b),
        _ => a + b,
    };
    match ty {
        _ if value.is_nan() => 0x7FFF,
        Ty::F16 | Ty::F16x2 => f16::from_f64(value).to_bits(),
        // The sum of two bf16 is exact in f64 but may not be in f32: round once.
        _ => bf16::from_f64(value).to_bits(),
    }
}

/// The smaller one; one that is not NaN if there is one; -0 before +0.
fn minimum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}
