//! How often a warp's access must pass through shared memory: 32 banks of 4 bytes each.
//!
//! A pass serves one word of each bank, to any number of threads. Accesses of 8 bytes are served for half a warp at a
//! time and those of 16 for a quarter, except that threads that all want the same words need one pass.

use crate::regs::{LANES, for_lanes};

/// Passes of one access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wavefronts {
    /// With the conflicts that there are.
    pub real: u64,
    /// For the same number of different words without conflicts.
    pub ideal: u64,
}

/// Banks of shared memory.
const BANKS: usize = 32;
/// Words that a group of threads asks for at most.
const WORDS: usize = 64;

/// Different words that a group of threads asks for, by bank.
struct Words {
    words: [u32; WORDS],
    count: usize,
    used: [u8; BANKS],
    first: [u32; BANKS],
}

impl Words {
    fn new() -> Self {
        Self { words: [0; WORDS], count: 0, used: [0; BANKS], first: [u32::MAX; BANKS] }
    }

    fn add(&mut self, word: u32) {
        let bank = word as usize % BANKS;
        if self.first[bank] == word {
            return;
        }
        if self.used[bank] != 0 && self.words[..self.count].contains(&word) {
            return;
        }
        if self.count < WORDS {
            self.words[self.count] = word;
            self.count += 1;
        }
        self.first[bank] = word;
        self.used[bank] += 1;
    }

    fn passes(&self) -> u64 {
        u64::from(self.used.iter().copied().max().unwrap_or(0))
    }
}

/// Counts the passes of an access of `size` bytes at each address of a mask.
pub fn wavefronts(at: &[u64; LANES], size: u64, mask: u32) -> Wavefronts {
    let group = match size {
        0..=4 => 32,
        8 => 16,
        16 => 8,
        _ => 4,
    };
    if let Some(first) = same_address(at, mask) {
        let words = (first + size).div_ceil(4) - first / 4;
        let passes = words.div_ceil(BANKS as u64);
        return Wavefronts { real: passes, ideal: passes };
    }
    let (mut real, mut different) = (0, 0);
    for start in (0..LANES).step_by(group) {
        let lanes = mask & (((1u64 << group) - 1) << start) as u32;
        if let Some(words) = without_conflict(at, size, lanes) {
            real += u64::from(lanes != 0);
            different += words;
            continue;
        }
        let mut words = Words::new();
        for_lanes(lanes, |lane| {
            for word in at[lane] / 4..(at[lane] + size).div_ceil(4) {
                words.add(word as u32);
            }
        });
        real += words.passes();
        different += words.count as u64;
    }
    let ideal = different.div_ceil(BANKS as u64).max(1);
    Wavefronts { real: real.max(ideal), ideal }
}

/// Returns the number of words of some lanes if each lies in a bank of its own.
fn without_conflict(at: &[u64; LANES], size: u64, lanes: u32) -> Option<u64> {
    if !(4..=32).contains(&size) {
        return None;
    }
    let each = u32::MAX >> (32 - size / 4);
    let (mut used, mut clash, mut odd) = (0u32, 0, 0);
    for_lanes(lanes, |lane| {
        let banks = each << (at[lane] / 4 % BANKS as u64);
        clash |= used & banks;
        used |= banks;
        odd |= at[lane] & (size - 1);
    });
    (clash == 0 && odd == 0).then_some(u64::from(used.count_ones()))
}

/// Returns the address, if all lanes have the same.
fn same_address(at: &[u64; LANES], mask: u32) -> Option<u64> {
    let first = at[(mask.trailing_zeros() & 31) as usize];
    if mask != 0 && at[mask.ilog2() as usize] != first {
        return None;
    }
    let mut same = true;
    for_lanes(mask, |lane| same &= at[lane] == first);
    same.then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(size: u64, address: impl Fn(u64) -> u64) -> (u64, u64) {
        let at: [u64; LANES] = std::array::from_fn(|lane| address(lane as u64));
        let Wavefronts { real, ideal } = wavefronts(&at, size, u32::MAX);
        (real, ideal)
    }

    #[test]
    fn consecutive_words_need_no_second_pass() {
        assert_eq!(passes(4, |l| 4 * l), (1, 1));
        assert_eq!(passes(8, |l| 8 * l), (2, 2));
        assert_eq!(passes(16, |l| 16 * l), (4, 4));
        assert_eq!(passes(2, |l| 2 * l), (1, 1));
        assert_eq!(passes(1, |l| l), (1, 1));
    }

    #[test]
    fn one_word_is_read_by_all_at_once() {
        assert_eq!(passes(4, |_| 64), (1, 1));
        assert_eq!(passes(16, |_| 64), (1, 1));
        assert_eq!(passes(4, |l| 4 * (l / 8)), (1, 1));
    }

    #[test]
    fn a_stride_of_two_words_conflicts_twice_and_of_32_words_32_times() {
        assert_eq!(passes(4, |l| 8 * l), (2, 1));
        assert_eq!(passes(4, |l| 128 * l), (32, 1));
        assert_eq!(passes(4, |l| 132 * l), (1, 1));
    }

    #[test]
    fn lanes_without_conflict_are_counted_as_one_by_one() {
        for (size, stride, mask) in [(4, 4, 0x0FF0_F00F), (8, 8, 0x3333), (16, 16, 0xFF00_00FF), (4, 36, 7)] {
            let at: [u64; LANES] = std::array::from_fn(|lane| lane as u64 * stride);
            let group = (1u32 << (LANES as u64 * 4 / size).min(31)) - 1;
            let mut words = Words::new();
            for_lanes(mask & group, |lane| {
                (at[lane] / 4..(at[lane] + size) / 4).for_each(|word| words.add(word as u32));
            });
            assert_eq!(without_conflict(&at, size, mask & group), Some(words.count as u64));
            assert_eq!(words.passes(), 1);
        }
        assert_eq!(without_conflict(&[0; LANES], 4, 3), None, "the same word twice is left to the long way");
    }

    #[test]
    fn rows_of_a_16_byte_access_conflict_in_their_quarter_only() {
        // Eight rows, 128 bytes apart: all in the same four banks.
        assert_eq!(passes(16, |l| 128 * (l % 8) + 16 * (l / 8)), (32, 4));
        // The same, with the usual exclusive-or of row and column.
        assert_eq!(passes(16, |l| 128 * (l % 8) + 16 * ((l / 8) ^ (l % 8))), (4, 4));
    }
}
