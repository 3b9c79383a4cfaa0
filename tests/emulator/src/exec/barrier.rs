//! The sixteen barriers of a block.

use super::warp::{State, Warp};
use crate::isa::BarRed;
use crate::regs::for_lanes;

/// Barriers of a block.
pub const BARRIERS: usize = 16;

/// One of them.
#[derive(Clone, Debug, Default)]
pub struct Barrier {
    /// Lanes that have arrived, for each warp.
    pub arrived: Vec<u32>,
    /// Threads that have arrived, a warp that arrives as a whole counting 32.
    pub threads: u32,
    /// Threads it takes; none: all of the block.
    pub expected: Option<u32>,
    /// Index of the instruction that came first.
    pub pc: u32,
    /// Threads with a true predicate.
    pub yes: u32,
    /// Threads with any predicate.
    pub votes: u32,
}

impl Barrier {
    /// Returns whether nobody has arrived since it last opened.
    pub fn idle(&self) -> bool {
        self.threads == 0
    }

    /// Notes that lanes of a warp have arrived; as soon as they are the whole warp, they count as 32.
    pub fn arrive(&mut self, warp: &Warp, lanes: u32, warps: usize) {
        self.arrived.resize(warps, 0);
        let arrived = &mut self.arrived[warp.index as usize];
        let whole = lanes == warp.live || (*arrived | lanes) == warp.exists && *arrived & lanes == 0;
        let before = if whole && lanes != warp.live { arrived.count_ones() } else { 0 };
        let more = if whole { 32 - before } else { lanes.count_ones() };
        self.threads = self.threads.saturating_add(more);
        *arrived |= lanes;
    }

    /// Returns whether all have arrived that it waits for.
    pub fn complete(&self, warps: &[Warp]) -> bool {
        if self.idle() {
            return false;
        }
        match self.expected {
            Some(threads) => self.threads >= threads,
            None => warps.iter().zip(&self.arrived).all(|(warp, arrived)| warp.live & !arrived == 0),
        }
    }

    /// Returns the result of a reduction.
    pub fn result(&self, op: BarRed) -> u32 {
        match op {
            BarRed::Popc => self.yes,
            BarRed::And => u32::from(self.yes == self.votes),
            BarRed::Or => u32::from(self.yes != 0),
        }
    }

    /// Closes it again.
    pub fn reset(&mut self) {
        self.arrived.iter_mut().for_each(|lanes| *lanes = 0);
        (self.threads, self.expected, self.yes, self.votes) = (0, None, 0, 0);
    }

    /// Describes it for a report: who has arrived, and who is missing.
    pub fn describe(&self, number: usize, warps: &[Warp]) -> String {
        let mut missing = Vec::new();
        for (warp, arrived) in warps.iter().zip(&self.arrived) {
            let lanes = warp.live & !arrived;
            if lanes != 0 {
                missing.push(format!("warp {} lanes {lanes:#x}", warp.index));
            }
        }
        let gone = warps.iter().filter(|warp| warp.live == 0).count();
        let expected = match self.expected {
            Some(threads) => format!("{threads} threads"),
            None => "all threads".to_owned(),
        };
        let missing = if missing.is_empty() { "nobody".to_owned() } else { missing.join(", ") };
        format!(
            "barrier {number}: {} threads have arrived of {expected}; not there: {missing}; {gone} warps have ended",
            self.threads
        )
    }
}

/// Lets those who wait at a barrier continue behind it; `write` stores results of reductions.
pub fn release(warps: &mut [Warp], number: u8, mut write: impl FnMut(&mut Warp, u32, u32)) {
    for warp in warps {
        for i in 0..warp.splits.len() {
            let split = warp.splits[i];
            if split.state == State::Barrier(number) {
                write(warp, split.pc, split.mask);
                warp.splits[i].pc += 1;
                warp.splits[i].state = State::Ready;
            }
        }
    }
}

/// Writes a value into the lanes of a register.
pub fn write_lanes(register: &mut [u32], mask: u32, value: u32) {
    for_lanes(mask, |lane| register[lane] = value);
}
