//! The forward of attention in blocks: scores of some queries and some keys, then what they add to the queries' sums.
//!
//! For each block of keys: s = q·kᵀ, most' = max(most, s), p = 2^(s − most'), sums = sums·2^(most − most') + p·v (online softmax;
//! Milakov and Gimelshein 2018, Dao et al. 2022).

use std::f32::consts::LN_2;
use std::ops::Range;

use crate::device::{Arch, Cpu};
use crate::float::FloatX;
use crate::ops::attention::Sizes;
use crate::ops::attention::cpu::{GAP, Head, STEP, block_size, blocks, cut, run, total};
use crate::ops::attention::cpu_parts::{Part, parts};
use crate::ops::attention::cpu_rows::{Block, State, probabilities};
use crate::ops::linear::panels::{COLUMN_STEP, Left, Multiplier, ROW_STEP, Sums};

/// Queries of a block.
const QUERIES: usize = 32;
/// Keys of a block: the block's scores are 32 KiB.
const KEYS: usize = 256;
/// Queries of a task at least: it packs all keys and values.
const CHUNK: usize = 128;

/// Computes o and lse.
pub(super) fn forward<X: FloatX>(cpu: &Cpu, o: &mut [X], lse: &mut [f32], qkv: &[X], sizes: Sizes) {
    let multiplier = Multiplier::of::<X>(cpu.isa());
    let (heads, width, chunks) = (sizes.heads, sizes.width, sizes.chunks(CHUNK));
    let o = parts(o, heads * width, sizes.rows(&chunks), width);
    let lse = parts(lse, heads, sizes.rows(&chunks), 1);
    let items: Vec<_> = o.into_iter().zip(lse).enumerate().collect();
    let layout = Layout::new(multiplier, sizes);
    run(cpu, items, layout.space(), |space, (i, (o, lse))| {
        let (rows, head) = (i / heads, i % heads);
        let head = Head { sizes, sample: rows / chunks.len(), head };
        let queries = chunks[rows % chunks.len()].clone();
        Task { multiplier, layout, head, qkv }.run(space, queries, o, lse);
    });
}

/// The work space of a thread.
#[derive(Clone, Copy)]
struct Layout {
    /// Keys of a block.
    keys: usize,
    /// Scores from one row to the next.
    stride: usize,
    /// Sums of o from one row to the next.
    sums: usize,
    lengths: [usize; 8],
}

impl Layout {
    fn new(multiplier: Multiplier, sizes: Sizes) -> Self {
        let Sizes { tokens, width, .. } = sizes;
        let keys = block_size(tokens, KEYS);
        let (stride, sums) = (keys + GAP, width.next_multiple_of(COLUMN_STEP));
        let lengths = [
            multiplier.space(tokens, width),    // keys, transposed
            multiplier.space(width, tokens),    // values
            QUERIES * multiplier.deep(width),   // queries
            QUERIES * stride,                   // scores
            QUERIES * multiplier.units(stride), // probabilities
            QUERIES * sums,                     // sums of o
            QUERIES,                            // most
            2 * QUERIES,                        // total, factor
        ];
        Self { keys, stride, sums, lengths }
    }

    fn space(&self) -> usize {
        total(&self.lengths)
    }
}

/// All of one head, for some queries.
struct Task<'a, X> {
    multiplier: Multiplier,
    layout: Layout,
    head: Head,
    qkv: &'a [X],
}

impl<X: FloatX> Task<'_, X> {
    fn run(&self, space: &mut [u32], queries: Range<usize>, mut o: Part<'_, X>, mut lse: Part<'_, f32>) {
        let (multiplier, layout, qkv) = (self.multiplier, self.layout, self.qkv);
        let Sizes { tokens, width, .. } = self.head.sizes;
        let [keys, values, q, scores, p, sums, most, rest] = cut(space, layout.lengths);
        let (total, factor) = rest.split_at_mut(QUERIES);
        let [scores, sums, most, total, factor] =
            [scores, sums, most, total, factor].map(bytemuck::cast_slice_mut::<u32, f32>);
        let deep = multiplier.deep(width);
        for block in blocks(0..tokens, layout.keys) {
            multiplier.pack_rows(&mut keys[block.start * deep..], self.head.of_qkv(qkv, 1, block));
        }
        multiplier.pack_columns(values, self.head.of_qkv(qkv, 2, 0..tokens));
        let values = multiplier.right(values, width, tokens);
        for rows in queries.clone().step_by(QUERIES).map(|start| start..queries.end.min(start + QUERIES)) {
            let q = multiplier.copy(q, self.head.of_qkv(qkv, 0, rows.clone()));
            for block in blocks(0..tokens, layout.keys) {
                let first = block.start == 0;
                let keys = multiplier.right(&keys[block.start * deep..], block.len(), width);
                let out = Sums { sums: scores, stride: layout.stride, first: true };
                multiplier.multiply(out, q, keys, 0..multiplier.units(width));
                let (stride, scale) = (layout.stride, self.head.sizes.exponent());
                let of = Block { rows: q.rows, keys: block.len(), stride, scale };
                let state = State { most, total, factor };
                probabilities(multiplier, p, scores, of, state, first);
                if !first {
                    self.rescale(sums, &factor[..q.rows]);
                }
                let p = Left { data: p, rows: q.rows, row: multiplier.units(stride), step: 1 };
                let out = Sums { sums, stride: layout.sums, first };
                multiplier.multiply(
                    out,
                    p,
                    values,
                    multiplier.units(block.start)..multiplier.units(block.end),
                );
            }
            self.finish(
                (&mut o, &mut lse),
                rows.start - queries.start..rows.end - queries.start,
                sums,
                most,
                total,
            );
        }
    }

    /// Multiplies the rows of sums by their factors.
    fn rescale(&self, sums: &mut [f32], factors: &[f32]) {
        self.multiplier.isa().run(
            #[inline(always)]
            |_| {
                for (sums, factor) in sums.chunks_exact_mut(self.layout.sums).zip(factors) {
                    for sum in sums {
                        *sum *= factor;
                    }
                }
            },
        );
    }

    /// o = sums/total, lse = ln 2·most + ln total.
    fn finish(
        &self,
        (o, lse): (&mut Part<'_, X>, &mut Part<'_, f32>),
        rows: Range<usize>,
        sums: &[f32],
        most: &[f32],
        total: &[f32],
    ) {
        self.multiplier.isa().run(
            #[inline(always)]
            |arch: Arch| {
                for (i, row) in rows.enumerate() {
                    let inverse = 1.0 / total[i];
                    for (o, sum) in o.row(row).iter_mut().zip(&sums[i * self.layout.sums..]) {
                        *o = X::from_f32(sum * inverse);
                    }
                    // `ln` takes normal numbers; a sum is at least 1, or NaN.
                    let ln = if total[i].is_nan() { total[i] } else { arch.ln(total[i]) };
                    lse.row(row)[0] = most[i] * LN_2 + ln;
                }
            },
        );
    }
}

const _: () = assert!(QUERIES.is_multiple_of(ROW_STEP) && QUERIES.is_multiple_of(STEP));
