//! From where to where each register holds a value that may still be read.
//!
//! The analysis is that of one thread: lanes write only their own part of a register, so what holds for every path of a
//! thread holds for a warp whose lanes are apart. A guarded write may not happen, so it does not end what was there before.

use super::builder::Register;
use super::slots::{Use, visit};
use crate::isa::{Inst, NONE, Op};
use crate::regs::Slot;

/// First and last instruction at which a register is occupied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub first: u32,
    pub last: u32,
}

/// Bits of one live set times the number of blocks: above this the analysis is not worth its memory.
const MAX_BITS: usize = 1 << 26;
/// Words that the iteration may look at before it gives up: real code needs a few passes.
const MAX_WORK: usize = 1 << 28;

/// A straight piece of code.
struct Block {
    start: u32,
    end: u32,
    next: Vec<u32>,
}

/// Returns the interval of each register, `None` for one that is never used, or `None` if the code is too large.
pub(super) fn intervals(
    code: &mut [Inst],
    lists: &mut [Slot],
    registers: &[Register],
) -> Option<Vec<Option<Interval>>> {
    let blocks = blocks(code, lists);
    let shared = across_blocks(code, lists, &blocks, registers);
    let count = shared.iter().filter(|&&index| index != NONE).count();
    let words = count.div_ceil(64);
    if words.saturating_mul(64).saturating_mul(blocks.len()) > MAX_BITS {
        return None;
    }
    let (read_first, written) = local_sets(code, lists, &blocks, registers, &shared, words);
    let (live_in, live_out) = solve(&blocks, read_first, &written, words)?;
    let mut found = vec![None; registers.len()];
    for (i, inst) in code.iter_mut().enumerate() {
        each(inst, lists, registers, |slot, _, _| extend(&mut found[slot as usize], i as u32));
    }
    for slot in 0..registers.len() {
        let index = shared[slot] as usize;
        if shared[slot] == NONE {
            continue;
        }
        let (word, mask) = (index / 64, 1u64 << (index % 64));
        for (b, block) in blocks.iter().enumerate() {
            if live_in[b * words + word] & mask != 0 {
                extend(&mut found[slot], block.start);
            }
            if live_out[b * words + word] & mask != 0 {
                extend(&mut found[slot], block.end - 1);
            }
        }
    }
    Some(found)
}

fn extend(interval: &mut Option<Interval>, at: u32) {
    let old = interval.unwrap_or(Interval { first: at, last: at });
    *interval = Some(Interval { first: old.first.min(at), last: old.last.max(at) });
}

/// Calls `f` for each register of an instruction that is not constant, guard included, with its use and whether a write
/// surely happens.
fn each(inst: &mut Inst, lists: &mut [Slot], registers: &[Register], mut f: impl FnMut(Slot, Use, bool)) {
    let guarded = inst.guard != NONE;
    if guarded {
        f(inst.guard, Use::Read, false);
    }
    visit(&mut inst.op, lists, &mut |slot, how| {
        let register = registers[*slot as usize];
        if !register.constant {
            f(*slot, how, !guarded || register.temporary);
        }
    });
}

fn blocks(code: &[Inst], lists: &[Slot]) -> Vec<Block> {
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for (i, inst) in code.iter().enumerate() {
        match inst.op {
            Op::Bra { target, .. } => leader[target as usize] = true,
            Op::Brx { targets, .. } => {
                for &target in &lists[targets.start as usize..(targets.start + targets.len) as usize] {
                    leader[target as usize] = true;
                }
            }
            Op::Exit | Op::Trap => {}
            _ => continue,
        }
        leader[i + 1] = true;
    }
    let mut starts: Vec<u32> = (0..code.len()).filter(|&i| leader[i]).map(|i| i as u32).collect();
    starts.push(code.len() as u32);
    let of = |place: u32| starts.partition_point(|&start| start <= place) as u32 - 1;
    starts
        .windows(2)
        .map(|pair| {
            let last = &code[pair[1] as usize - 1];
            let mut next: Vec<u32> = Vec::new();
            match last.op {
                Op::Bra { target, .. } => next.push(of(target)),
                Op::Brx { targets, .. } => {
                    let targets = &lists[targets.start as usize..(targets.start + targets.len) as usize];
                    next.extend(targets.iter().map(|&target| of(target)));
                    next.sort_unstable();
                    next.dedup();
                }
                _ => {}
            }
            let ends = matches!(last.op, Op::Bra { .. } | Op::Brx { .. } | Op::Exit | Op::Trap)
                && last.guard == NONE;
            if !ends && (pair[1] as usize) < code.len() {
                next.push(of(pair[1]));
            }
            Block { start: pair[0], end: pair[1], next }
        })
        .collect()
}

/// Numbers the registers that are named in more than one block, or read in one before they are written there.
fn across_blocks(
    code: &mut [Inst],
    lists: &mut [Slot],
    blocks: &[Block],
    registers: &[Register],
) -> Vec<u32> {
    let mut seen = vec![NONE; registers.len()]; // the block in which a register was seen first
    let mut shared = vec![NONE; registers.len()];
    let mut count = 0;
    for (b, block) in blocks.iter().enumerate() {
        let b = b as u32;
        for inst in &mut code[block.start as usize..block.end as usize] {
            each(inst, lists, registers, |slot, how, surely| {
                let slot = slot as usize;
                let local = seen[slot] == b || (seen[slot] == NONE && how == Use::Write && surely);
                if !local && shared[slot] == NONE {
                    shared[slot] = count;
                    count += 1;
                }
                seen[slot] = b;
            });
        }
    }
    shared
}

/// Returns, for each block, what it reads before it writes it, and what it surely writes.
fn local_sets(
    code: &mut [Inst],
    lists: &mut [Slot],
    blocks: &[Block],
    registers: &[Register],
    shared: &[u32],
    words: usize,
) -> (Vec<u64>, Vec<u64>) {
    let mut read_first = vec![0u64; blocks.len() * words];
    let mut written = vec![0u64; blocks.len() * words];
    for (b, block) in blocks.iter().enumerate() {
        for inst in &mut code[block.start as usize..block.end as usize] {
            each(inst, lists, registers, |slot, how, surely| {
                let index = shared[slot as usize];
                if index == NONE {
                    return;
                }
                let (word, mask) = (b * words + index as usize / 64, 1u64 << (index % 64));
                match how {
                    Use::Read if written[word] & mask == 0 => read_first[word] |= mask,
                    Use::Write if surely => written[word] |= mask,
                    _ => {}
                }
            });
        }
    }
    (read_first, written)
}

/// Iterates backwards until nothing changes; returns what is live before and after each block, or `None` if it gave up.
fn solve(
    blocks: &[Block],
    mut live_in: Vec<u64>,
    kill: &[u64],
    words: usize,
) -> Option<(Vec<u64>, Vec<u64>)> {
    let mut live_out = vec![0u64; blocks.len() * words];
    if words == 0 {
        return Some((live_in, live_out));
    }
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); blocks.len()];
    for (b, block) in blocks.iter().enumerate() {
        for &next in &block.next {
            before[next as usize].push(b as u32);
        }
    }
    let mut waiting: Vec<u32> = (0..blocks.len() as u32).collect();
    let mut queued = vec![true; blocks.len()];
    let mut work = 0;
    while let Some(b) = waiting.pop() {
        let b = b as usize;
        queued[b] = false;
        work += words * (1 + blocks[b].next.len());
        if work > MAX_WORK {
            return None;
        }
        let mut changed = false;
        for word in 0..words {
            let at = b * words + word;
            let out = blocks[b].next.iter().fold(0, |out, &next| out | live_in[next as usize * words + word]);
            live_out[at] = out;
            let into = live_in[at] | (out & !kill[at]);
            changed |= into != live_in[at];
            live_in[at] = into;
        }
        if changed {
            for &earlier in &before[b] {
                if !std::mem::replace(&mut queued[earlier as usize], true) {
                    waiting.push(earlier);
                }
            }
        }
    }
    Some((live_in, live_out))
}
