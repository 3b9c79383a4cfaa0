//! Attention on the processor: the work is divided by sample, head and, where those are few, blocks of tokens.
//!
//! One task does all products of its head with operands that it packed itself, in work space of the thread that runs it: blocks of
//! scores that stay in the second cache level, and operands of T rows. How the work is divided follows from the sizes alone, and so does
//! the order of every sum.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::device::Cpu;
use crate::ops::attention::Sizes;
use crate::ops::linear::panels::Matrix;

pub(super) use crate::ops::attention::cpu_backward::{Given, backward};
pub(super) use crate::ops::attention::cpu_forward::forward;

/// Tasks that keep eight threads busy.
const ENOUGH_TASKS: usize = 16;
/// Rows or columns of scores are a multiple of this: the lanes of a vector.
pub(super) const STEP: usize = 16;
/// Sums between two rows of a block of scores: rows a power of two apart share a set of the cache.
pub(super) const GAP: usize = 16;

/// One head of one sample.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub sizes: Sizes,
    pub sample: usize,
    pub head: usize,
}

impl Head {
    /// Takes rows of q (part 0), k (1) or v (2) from (N, 3·H·K).
    pub(super) fn of_qkv<X>(self, qkv: &[X], part: usize, rows: Range<usize>) -> Matrix<'_, X> {
        self.of(qkv, 3, part, rows)
    }

    /// Takes rows of (N, H·K).
    pub(super) fn of_o<X>(self, o: &[X], rows: Range<usize>) -> Matrix<'_, X> {
        self.of(o, 1, 0, rows)
    }

    fn of<X>(self, data: &[X], parts: usize, part: usize, rows: Range<usize>) -> Matrix<'_, X> {
        let Sizes { tokens, heads, width, .. } = self.sizes;
        let stride = parts * heads * width;
        let first = (self.sample * tokens + rows.start) * stride + (part * heads + self.head) * width;
        Matrix { data: &data[first..], rows: rows.len(), columns: width, stride }
    }
}

impl Sizes {
    /// log2(e)/√K: what turns ⟨q, k⟩ into an exponent of 2.
    pub(super) fn exponent(self) -> f32 {
        std::f32::consts::LOG2_E / (self.width as f32).sqrt()
    }

    /// Cuts the tokens of a sample so that there are enough tasks, but none with fewer than `least`.
    pub(super) fn chunks(self, least: usize) -> Vec<Range<usize>> {
        let wanted = ENOUGH_TASKS.div_ceil((self.samples * self.heads).max(1));
        blocks(0..self.tokens, self.tokens.div_ceil(wanted).max(least)).collect()
    }

    /// Lists the rows of all samples that `chunks` cuts them into.
    pub(super) fn rows(self, chunks: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
        let starts = (0..self.samples).map(move |sample| sample * self.tokens);
        starts.flat_map(move |at| chunks.iter().map(move |rows| at + rows.start..at + rows.end))
    }
}

/// Cuts `range` into blocks of at most `most` (a multiple of a step), as even as multiples of a step can be.
pub(super) fn blocks(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let each = block_size(range.len(), most);
    (range.start..range.end).step_by(each).map(move |start| start..range.end.min(start + each))
}

/// Returns the size of such blocks.
pub(super) fn block_size(len: usize, most: usize) -> usize {
    len.div_ceil(len.div_ceil(most).max(1)).next_multiple_of(STEP).max(STEP)
}

/// Runs `task` on all items, on every thread with `space` units of work space of its own.
pub(super) fn run<T: Send>(cpu: &Cpu, items: Vec<T>, space: usize, task: impl Fn(&mut [u32], T) + Sync) {
    let (threads, space) = (cpu.threads().min(items.len()), space.max(1).next_multiple_of(STEP));
    let mut memory = cpu.take(threads * space * 4);
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    cpu.each(memory.as_mut_slice::<u32>().chunks_mut(space).take(threads), |space| {
        while let Some(item) = next() {
            task(space, item);
        }
    });
}

/// Cuts work space into parts of the given lengths.
pub(super) fn cut<const P: usize>(mut space: &mut [u32], lengths: [usize; P]) -> [&mut [u32]; P] {
    lengths.map(|length| {
        let (part, rest) = std::mem::take(&mut space).split_at_mut(length.next_multiple_of(STEP));
        space = rest;
        part
    })
}

/// Returns the units that parts of the given lengths take.
pub(super) fn total(lengths: &[usize]) -> usize {
    lengths.iter().map(|length| length.next_multiple_of(STEP)).sum()
}
