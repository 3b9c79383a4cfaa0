//! The history of 4 KiB of global memory, in little room: most lines were accessed by one warp, side by side.

use super::global::{Entry, LINE, Line, Piece};
use super::kind::{COPY, WRITES, What};
use super::shared::Clash;
use super::threads::Threads;
use crate::regs::LANES;

/// Lines of a part.
pub(super) const LINES: usize = 32;

/// The part in one line of an access by a whole warp side by side.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub(super) block: u32,
    pub(super) epoch: u32,
    pub(super) what: What,
    /// Warp, bytes of a lane, and where lane 0 is; or [`NOTHING`] or [`ELSEWHERE`].
    shape: u32,
}

/// `shape` where nothing was accessed.
const NOTHING: u32 = 0;
/// `shape` of the write, if the line is the one of number `epoch` in the list.
const ELSEWHERE: u32 = u32::MAX;
const PRESENT: u32 = 1 << 30;
const ALL_LANES: (u32, u32) = (0, LANES as u32 - 1);

impl Row {
    /// Makes the row of a warp with `1 << shift` bytes for each lane, lane 0 at `start` counted from the line's begin.
    #[inline(always)]
    pub(super) fn new(
        (block, warp): (u32, usize),
        epoch: u32,
        what: What,
        (start, shift): (i64, u32),
    ) -> Self {
        let shape = PRESENT | (warp as u32) << 16 | shift << 12 | (start + 512) as u32;
        Self { block, epoch, what, shape }
    }

    /// Returns it as a record of the general kind.
    pub(super) fn entry(&self) -> Entry {
        if self.shape == NOTHING {
            return Entry::default();
        }
        let (start, shift) = (i64::from(self.shape & 0xFFF) - 512, self.shape >> 12 & 15);
        let piece = Piece::of_row(start, shift, ALL_LANES).unwrap_or_default();
        let warp = (self.shape >> 16) as u8;
        Entry { piece, block: self.block, epoch: self.epoch, what: self.what, warp }
    }

    /// Turns a record into a row, if it is one.
    fn of(entry: &Entry) -> Option<Self> {
        let Entry { piece, block, epoch, what, warp } = *entry;
        if piece.granules == 0 {
            return Some(Self::default());
        }
        let (start, shift) = (i64::from(piece.start), u32::from(piece.shift));
        let whole = shift < 5 && Piece::of_row(start, shift, ALL_LANES) == Some(piece);
        (whole && what.bytes() == 15).then(|| Self::new((block, warp.into()), epoch, what, (start, shift)))
    }

    /// Returns whether this is nothing, or an access of the same bytes by the same threads that is complete.
    #[inline(always)]
    fn is_own(&self, new: &Row) -> bool {
        self.shape == NOTHING || (self.shape == new.shape && self.block == new.block && !self.what.is(COPY))
    }
}

/// The accesses to a line: at most a write and a read, both of whole warps.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Rows {
    write: Row,
    read: Row,
}

/// The history of 4 KiB of global memory.
#[derive(Default)]
pub(super) struct Part {
    rows: [Rows; LINES],
    /// Lines with other accesses.
    lines: Vec<Line>,
}

impl Part {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.rows = Default::default();
        self.lines.clear();
    }

    /// Records a weak access if nobody was at the line but the same threads, in the same way: each byte is then touched by
    /// one thread only, whatever it knows.
    #[inline(always)]
    pub(super) fn touch_row(&mut self, line: u64, new: &Row) -> bool {
        let at = &mut self.rows[line as usize % LINES];
        if !at.write.is_own(new) || !at.read.is_own(new) {
            return false;
        }
        if new.what.is(WRITES) {
            at.write = *new;
            at.read.shape = NOTHING;
        } else {
            at.read = *new;
        }
        true
    }

    /// Records an access to a line; `clash` is called for each recorded access that it races with.
    pub(super) fn touch(&mut self, line: u64, new: &Entry, threads: &Threads, clash: &mut impl FnMut(Clash)) {
        debug_assert!(new.piece.granules != 0 && LINE == 128);
        let at = &mut self.rows[line as usize % LINES];
        if at.write.shape == ELSEWHERE {
            return self.lines[at.write.epoch as usize].touch(line, new, threads, clash);
        }
        let mut whole = Line { write: at.write.entry(), read: at.read.entry(), lists: None };
        whole.touch(line, new, threads, clash);
        let rows = (Row::of(&whole.write), Row::of(&whole.read));
        *at = match rows {
            (Some(write), Some(read)) if whole.lists.is_none() => Rows { write, read },
            _ => {
                self.lines.push(whole);
                let (shape, epoch) = (ELSEWHERE, self.lines.len() as u32 - 1);
                Rows { write: Row { shape, epoch, ..Row::default() }, read: Row::default() }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_records_they_stand_for() {
        for shift in 0..5 {
            for start in (-496..128i64).step_by(1 << shift) {
                let row = Row::new((7, 31), 9, What::new(WRITES, 15, 77), (start, shift));
                let entry = row.entry();
                let touches = start + (32 << shift) > 0;
                assert_eq!(entry.piece.granules != 0, touches, "{start} {shift}");
                if touches {
                    let again = Row::of(&entry).unwrap();
                    assert_eq!((again.shape, again.block, again.epoch), (row.shape, 7, 9));
                    assert_eq!((entry.warp, entry.what.pc()), (31, 77));
                }
            }
        }
    }
}
