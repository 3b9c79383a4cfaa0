//! Gives virtual registers their slots: those that are never live together share one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::builder::{Builder, File, Register};
use super::liveness::{Interval, intervals};
use super::slots::visit;
use crate::isa::{Constant, Kernel, NONE};
use crate::regs::Slot;

/// Slots in use of each file: 32 bits, 64 bits, predicates.
type Counts = [u32; 3];

/// Allocates slots and fills the kernel with the code.
pub(super) fn finish(builder: Builder<'_, '_>, kernel: &mut Kernel) {
    let Builder { mut code, mut lists, registers, mut constants, locs, .. } = builder;
    let mut counts: Counts = [0; 3];
    let mut slots = vec![NONE; registers.len()];
    for Constant { slot, .. } in &mut constants {
        let place = &mut slots[*slot as usize];
        *place = fresh(&mut counts, registers[*slot as usize].file);
        *slot = *place;
    }
    match intervals(&mut code, &mut lists, &registers) {
        Some(intervals) => scan(&registers, &intervals, &mut slots, &mut counts),
        None => {
            for (slot, register) in
                slots.iter_mut().zip(&registers).filter(|(_, register)| !register.constant)
            {
                *slot = fresh(&mut counts, register.file);
            }
        }
    }
    for inst in &mut code {
        if inst.guard != NONE {
            inst.guard = slots[inst.guard as usize];
        }
        visit(&mut inst.op, &mut lists, &mut |slot, _| *slot = slots[*slot as usize]);
    }
    [kernel.r32, kernel.r64, kernel.preds] = counts;
    (kernel.code, kernel.lists, kernel.locs, kernel.constants) = (code, lists, locs, constants);
}

fn fresh(counts: &mut Counts, file: File) -> Slot {
    let count = &mut counts[file as usize];
    *count += 1;
    *count - 1
}

/// Linear scan: goes through the intervals by their beginning, and takes the lowest slot that is free.
///
/// A slot is free only after the last instruction of its interval: a result never lies where an operand of the same
/// instruction does, unless the text says so.
fn scan(registers: &[Register], intervals: &[Option<Interval>], slots: &mut [Slot], counts: &mut Counts) {
    let mut order: Vec<(u32, u32)> = Vec::new(); // beginning, register
    for (register, interval) in intervals.iter().enumerate() {
        if let Some(interval) = interval {
            order.push((interval.first, register as u32));
        }
    }
    order.sort_unstable();
    let mut busy: [BinaryHeap<Reverse<(u32, Slot)>>; 3] = Default::default(); // by end
    let mut free: [BinaryHeap<Reverse<Slot>>; 3] = Default::default();
    for (first, register) in order {
        let register = register as usize;
        let file = registers[register].file as usize;
        let Some(interval) = intervals[register] else { continue };
        while let Some(&Reverse((last, slot))) = busy[file].peek() {
            if last >= first {
                break;
            }
            busy[file].pop();
            free[file].push(Reverse(slot));
        }
        let slot = match free[file].pop() {
            Some(Reverse(slot)) => slot,
            None => fresh(counts, registers[register].file),
        };
        busy[file].push(Reverse((interval.last, slot)));
        slots[register] = slot;
    }
}
