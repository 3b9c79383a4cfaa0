//! A race in words.

use super::{Memory, Party, Race};
use crate::isa::{Kernel, NONE};
use crate::regs::LANES;
use crate::report::{Kind, Report};

/// Describes a race of a kernel that was launched with this grid and these blocks. `files` are those of the module; `place`
/// gives a name to an address, such as a variable or an allocation with an offset.
pub fn report(
    race: &Race,
    kernel: &Kernel,
    files: &[String],
    (grid, block): ([u32; 3], [u32; 3]),
    place: impl Fn(Memory, u64) -> Option<String>,
) -> Report {
    let space = match race.memory {
        Memory::Shared => "shared",
        Memory::Global => "global",
    };
    let name = place(race.memory, race.address).map_or(String::new(), |name| format!(" ({name})"));
    let Race { first, second, .. } = race;
    let there = match (race.same_instruction, first.block == second.block) {
        (true, _) => format!("{} of the same instruction, with another value", thread(first, block)),
        (false, true) => thread(first, block),
        (false, false) => format!("{} of block {}", thread(first, block), triple(first.block, grid)),
    };
    let message = format!(
        "{} of {space} memory at {:#x}{name} and {} by {there} at PTX line {}{} are not ordered: {} ({} times)",
        access(second),
        race.address,
        access(first),
        line(first, kernel),
        source(first, kernel, files).map_or(String::new(), |(file, line)| format!(", {file}:{line}")),
        remedy(race),
        race.count,
    );
    Report {
        kind: Kind::Race,
        kernel: kernel.name.clone(),
        block: split(second.block, grid),
        thread: split(second.thread as u32, block),
        ptx_line: line(second, kernel),
        source: source(second, kernel, files),
        message,
    }
}

fn access(party: &Party) -> &'static str {
    match (party.copy, party.atomic, party.writes) {
        (true, _, true) => "an asynchronous copy's write",
        (true, _, false) => "an asynchronous copy's read",
        (_, true, _) => "an atomic operation",
        (_, _, true) => "a write",
        (_, _, false) => "a read",
    }
}

/// Says what would have ordered the two.
fn remedy(race: &Race) -> &'static str {
    let Race { first, second, .. } = race;
    if race.same_instruction {
        return "each lane needs an address of its own, or an atomic operation";
    }
    if first.block != second.block {
        return "blocks are ordered only by a release (__threadfence, then an atomic operation or volatile store) that the \
                other one acquires, of scope gpu, or by another launch";
    }
    if first.thread == second.thread {
        return "the copy is complete only after cp.async.wait_group or wait_all of its thread";
    }
    if first.copy {
        return "the thread that issued the copy must wait for it (cp.async.wait_group), and then both meet at a barrier";
    }
    if second.copy {
        return "a barrier is missing between the access and the issue of the copy";
    }
    if first.thread / LANES == second.thread / LANES {
        return "lanes of a warp are ordered only by __syncwarp or a barrier";
    }
    "a barrier (__syncthreads, a named barrier, an mbarrier) or a flag with fences is missing between them"
}

fn line(party: &Party, kernel: &Kernel) -> u32 {
    kernel.code.get(party.pc as usize).map_or(0, |inst| inst.line)
}

fn source(party: &Party, kernel: &Kernel, files: &[String]) -> Option<(String, u32)> {
    let loc = kernel.code.get(party.pc as usize)?.loc;
    let loc = kernel.locs.get(loc as usize).filter(|_| loc != NONE)?;
    Some((files.get(loc.file as usize)?.clone(), loc.line))
}

fn thread(party: &Party, block: [u32; 3]) -> String {
    format!("thread {}", triple(party.thread as u32, block))
}

fn triple(number: u32, sizes: [u32; 3]) -> String {
    let [x, y, z] = split(number, sizes);
    format!("({x},{y},{z})")
}

/// Splits a number with x fastest.
fn split(number: u32, sizes: [u32; 3]) -> [u32; 3] {
    let (x, y) = (sizes[0].max(1), sizes[1].max(1));
    [number % x, number / x % y, number / x / y]
}
