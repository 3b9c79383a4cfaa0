//! A bit for each byte: whether it was ever written.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Buffer;

/// Who writes the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One host thread: plain loads and stores.
    OneThread,
    /// Several host threads: words change atomically.
    Threads,
}

/// Bits of `bytes` bytes, all unset at first.
#[derive(Debug)]
pub struct Bits {
    words: Buffer,
    sharing: Sharing,
}

/// `n` set bits, `n` from 1 to 64.
#[inline(always)]
fn ones(n: u64) -> u64 {
    u64::MAX >> (64 - n)
}

impl Bits {
    /// Makes bits for so many bytes, or nothing if the host has no room.
    pub fn new(bytes: u64, sharing: Sharing) -> Option<Self> {
        // One word more than needed, so that a group of 64 bits that starts anywhere can be read as two words.
        Some(Self { words: Buffer::zeroed((bytes.div_ceil(64) + 1) * 8)?, sharing })
    }

    #[inline(always)]
    fn word(&self, index: u64) -> &AtomicU64 {
        debug_assert!((index + 1) * 8 <= self.words.bytes());
        // SAFETY: callers stay within the bytes that `new` was given, which the debug assertion states; the buffer is
        // zeroed, aligned to 16, lives as long as `self` and is only used as atomic words.
        unsafe { AtomicU64::from_ptr(self.words.data().cast::<u64>().add(index as usize)) }
    }

    /// Returns the bits of `n` bytes (1 to 64) from `at`.
    #[inline(always)]
    pub fn get(&self, at: u64, n: u64) -> u64 {
        let (word, shift) = (at / 64, at % 64);
        let mut bits = self.word(word).load(Relaxed) >> shift;
        if shift + n > 64 {
            bits |= self.word(word + 1).load(Relaxed) << (64 - shift);
        }
        bits & ones(n)
    }

    /// Returns whether all bytes of a range were written.
    #[inline(always)]
    pub fn all(&self, mut at: u64, mut n: u64) -> bool {
        if at.is_multiple_of(64) {
            while n >= 64 {
                if self.word(at / 64).load(Relaxed) != u64::MAX {
                    return false;
                }
                (at, n) = (at + 64, n - 64);
            }
        }
        while n > 0 {
            let part = n.min(64 - at % 64);
            if self.get(at, part) != ones(part) {
                return false;
            }
            (at, n) = (at + part, n - part);
        }
        true
    }

    /// Marks bytes as written.
    #[inline(always)]
    pub fn set(&self, mut at: u64, mut n: u64) {
        while n > 0 {
            let part = n.min(64 - at % 64);
            self.raise(at / 64, ones(part) << (at % 64));
            (at, n) = (at + part, n - part);
        }
    }

    /// Marks bytes as never written.
    #[inline(always)]
    pub fn clear(&self, mut at: u64, mut n: u64) {
        while n > 0 {
            let part = n.min(64 - at % 64);
            self.lower(at / 64, ones(part) << (at % 64));
            (at, n) = (at + part, n - part);
        }
    }

    /// Sets the bits of `n` bytes (1 to 64) to `bits`.
    pub fn put(&self, at: u64, n: u64, bits: u64) {
        let (word, shift) = (at / 64, at % 64);
        let bits = bits & ones(n);
        self.raise(word, bits << shift);
        self.lower(word, (!bits & ones(n)) << shift);
        if shift + n > 64 {
            self.raise(word + 1, bits >> (64 - shift));
            self.lower(word + 1, (!bits & ones(n)) >> (64 - shift));
        }
    }

    /// Copies bits; ranges in the same bits must not overlap.
    pub fn copy_from(&self, mut at: u64, source: &Bits, mut from: u64, mut n: u64) {
        while n > 0 {
            let part = n.min(64 - at % 64);
            self.put(at, part, source.get(from, part));
            (at, from, n) = (at + part, from + part, n - part);
        }
    }

    #[inline(always)]
    fn raise(&self, index: u64, bits: u64) {
        let word = self.word(index);
        let old = word.load(Relaxed);
        if old & bits == bits {
            return;
        }
        match self.sharing {
            Sharing::OneThread => word.store(old | bits, Relaxed),
            Sharing::Threads => _ = word.fetch_or(bits, Relaxed),
        }
    }

    #[inline(always)]
    fn lower(&self, index: u64, bits: u64) {
        let word = self.word(index);
        let old = word.load(Relaxed);
        if old & bits == 0 {
            return;
        }
        match self.sharing {
            Sharing::OneThread => word.store(old & !bits, Relaxed),
            Sharing::Threads => _ = word.fetch_and(!bits, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_set_and_clear_exactly_their_bytes() {
        for sharing in [Sharing::OneThread, Sharing::Threads] {
            for (at, n) in [(0, 1), (63, 2), (5, 130), (64, 64), (1, 255), (191, 65)] {
                let bits = Bits::new(256, sharing).unwrap();
                bits.set(at, n);
                for byte in 0..256 {
                    assert_eq!(
                        bits.get(byte, 1) == 1,
                        byte >= at && byte < at + n,
                        "byte {byte} of {at}+{n}"
                    );
                }
                assert!(bits.all(at, n));
                bits.clear(at, n);
                assert!((0..256).all(|byte| bits.get(byte, 1) == 0));
            }
        }
    }

    #[test]
    fn copies_carry_bits_at_any_offset() {
        let (from, to) =
            (Bits::new(300, Sharing::OneThread).unwrap(), Bits::new(300, Sharing::Threads).unwrap());
        for byte in (0..300).filter(|b| b % 3 == 0 || b % 7 == 0) {
            from.set(byte, 1);
        }
        to.set(0, 300);
        to.copy_from(17, &from, 40, 201);
        for byte in 0..300 {
            let copied = (17..218).contains(&byte);
            let expected = if copied { from.get(byte + 23, 1) } else { 1 };
            assert_eq!(to.get(byte, 1), expected, "byte {byte}");
        }
    }
}
