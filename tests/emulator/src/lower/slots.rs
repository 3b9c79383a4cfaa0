//! Visits the registers of an instruction.

use crate::isa::{Addr, Alu, AluOp, Count, List, NONE, Op};
use crate::regs::Slot;

/// What an instruction does with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}
use Use::{Read, Write};

/// Calls `f` for each register of an instruction; it may replace it.
pub(super) fn visit(op: &mut Op, lists: &mut [Slot], f: &mut impl FnMut(&mut Slot, Use)) {
    match op {
        Op::Alu(alu) => arithmetic(alu, f),
        Op::Ld { dst, addr, .. } => {
            address(addr, f);
            list(*dst, lists, Write, f);
        }
        Op::St { src, addr, .. } => {
            address(addr, f);
            list(*src, lists, Read, f);
        }
        Op::Hint { addr, .. } | Op::CpAsyncArrive { addr, .. } => address(addr, f),
        Op::Atom { .. } | Op::CpAsync { .. } | Op::Mbar { .. } | Op::MbarWait { .. } => shared(op, f),
        Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::Mma { .. } => matrix(op, lists, f),
        Op::Cvta { d, a, .. } | Op::IsSpace { d, a, .. } => {
            one(a, Read, f);
            one(d, Write, f);
        }
        Op::Brx { index, .. } => one(index, Read, f),
        Op::ActiveMask { d } | Op::ReadSpecial { d, .. } => one(d, Write, f),
        Op::BarSync { .. } | Op::BarArrive { .. } | Op::BarRed { .. } => barrier(op, f),
        Op::BarWarp { .. }
        | Op::Shfl { .. }
        | Op::Vote { .. }
        | Op::Match { .. }
        | Op::Redux { .. }
        | Op::Elect { .. } => {
            warp(op, f);
        }
        Op::CpAsyncCommit
        | Op::CpAsyncWait { .. }
        | Op::CpAsyncWaitAll
        | Op::Fence { .. }
        | Op::Bra { .. }
        | Op::Exit
        | Op::Trap
        | Op::Brkpt
        | Op::Yield => {}
    }
}

fn one(slot: &mut Slot, how: Use, f: &mut impl FnMut(&mut Slot, Use)) {
    if *slot != NONE {
        f(slot, how);
    }
}

fn list(list: List, lists: &mut [Slot], how: Use, f: &mut impl FnMut(&mut Slot, Use)) {
    let start = list.start as usize;
    for slot in lists.get_mut(start..start + list.len as usize).unwrap_or(&mut []) {
        one(slot, how, f);
    }
}

fn address(addr: &mut Addr, f: &mut impl FnMut(&mut Slot, Use)) {
    one(&mut addr.base, Read, f);
}

fn count(count: &mut Count, f: &mut impl FnMut(&mut Slot, Use)) {
    if let Count::Reg(slot) = count {
        one(slot, Read, f);
    }
}

fn arithmetic(alu: &mut Alu, f: &mut impl FnMut(&mut Slot, Use)) {
    let Alu { op, d, d2, a, b, c, .. } = alu;
    // Two operations use the slots of operands for results, and two the other way round.
    let (results, operands) = match op {
        AluOp::Unpack4 => (vec_of([d, d2, b, c]), vec_of([a])),
        AluOp::Pack4 | AluOp::Bfi => (vec_of([d]), vec_of([a, b, c, d2])),
        _ => (vec_of([d, d2]), vec_of([a, b, c])),
    };
    for slot in operands.into_iter().flatten() {
        one(slot, Read, f);
    }
    for slot in results.into_iter().flatten() {
        one(slot, Write, f);
    }
}

/// Fills up to four places, so that both lists have one type and live on the stack.
fn vec_of<const N: usize>(slots: [&mut Slot; N]) -> [Option<&mut Slot>; 4] {
    let mut list = [None, None, None, None];
    for (place, slot) in list.iter_mut().zip(slots) {
        *place = Some(slot);
    }
    list
}

fn shared(op: &mut Op, f: &mut impl FnMut(&mut Slot, Use)) {
    match op {
        Op::Atom { d, addr, b, c, .. } => {
            address(addr, f);
            one(b, Read, f);
            one(c, Read, f);
            one(d, Write, f);
        }
        Op::CpAsync { src, dst, from, ignore, .. } => {
            address(dst, f);
            address(from, f);
            one(ignore, Read, f);
            if let Some(src) = src {
                count(src, f);
            }
        }
        Op::Mbar { d, addr, count: number, .. } => {
            address(addr, f);
            if let Some(number) = number {
                count(number, f);
            }
            one(d, Write, f);
        }
        Op::MbarWait { d, addr, state, .. } => {
            address(addr, f);
            one(state, Read, f);
            one(d, Write, f);
        }
        _ => {}
    }
}

fn matrix(op: &mut Op, lists: &mut [Slot], f: &mut impl FnMut(&mut Slot, Use)) {
    match op {
        Op::LdMatrix { regs, addr, .. } => {
            address(addr, f);
            list(*regs, lists, Write, f);
        }
        Op::StMatrix { regs, addr, .. } => {
            address(addr, f);
            list(*regs, lists, Read, f);
        }
        Op::Mma { d, a, b, c, .. } => {
            list(*a, lists, Read, f);
            list(*b, lists, Read, f);
            list(*c, lists, Read, f);
            list(*d, lists, Write, f);
        }
        _ => {}
    }
}

fn barrier(op: &mut Op, f: &mut impl FnMut(&mut Slot, Use)) {
    match op {
        Op::BarSync { bar, count: threads, .. } => {
            count(bar, f);
            if let Some(threads) = threads {
                count(threads, f);
            }
        }
        Op::BarArrive { bar, count: threads, .. } => {
            count(bar, f);
            count(threads, f);
        }
        Op::BarRed { bar, count: threads, d, p, .. } => {
            count(bar, f);
            if let Some(threads) = threads {
                count(threads, f);
            }
            one(p, Read, f);
            one(d, Write, f);
        }
        _ => {}
    }
}

fn warp(op: &mut Op, f: &mut impl FnMut(&mut Slot, Use)) {
    match op {
        Op::BarWarp { mask } => one(mask, Read, f),
        Op::Shfl { d, p, a, b, c, mask, .. } => {
            for slot in [a, b, c, mask] {
                one(slot, Read, f);
            }
            one(d, Write, f);
            one(p, Write, f);
        }
        Op::Vote { d, p, mask, .. } => {
            one(p, Read, f);
            one(mask, Read, f);
            one(d, Write, f);
        }
        Op::Match { d, p, a, mask, .. } => {
            one(a, Read, f);
            one(mask, Read, f);
            one(d, Write, f);
            one(p, Write, f);
        }
        Op::Redux { d, a, mask, .. } => {
            one(a, Read, f);
            one(mask, Read, f);
            one(d, Write, f);
        }
        Op::Elect { d, p, mask } => {
            one(mask, Read, f);
            one(d, Write, f);
            one(p, Write, f);
        }
        _ => {}
    }
}
