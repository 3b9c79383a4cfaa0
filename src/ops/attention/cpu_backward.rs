//! The backward of attention in blocks of keys and queries; p is made again from the scores and lse.
//!
//! For each block of keys and then of queries: s = q·kᵀ and dp = do·vᵀ give p and ds, then dv += pᵀ·do, dk += dsᵀ·q, dq += ds·k.
//! dk and dv are summed in the order of queries, dq in that of keys. Where there are few heads, a task takes some of the keys and has a
//! sum dq of its own; these are added in the order of keys.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use crate::device::{Arch, Cpu};
use crate::float::FloatX;
use crate::ops::attention::Sizes;
use crate::ops::attention::cpu::{GAP, Head, block_size, blocks, cut, run, total};
use crate::ops::attention::cpu_parts::{Part, parts};
use crate::ops::attention::cpu_rows::{Block, Known, Pairs, gradients};
use crate::ops::linear::panels::{COLUMN_STEP, Left, Multiplier, ROW_STEP, Right, Sums};
use crate::ops::{add_partials, widen};

/// Queries of a block.
const QUERIES: usize = 128;
/// Keys of a block: both blocks of products are 64 KiB.
const KEYS: usize = 128;
/// Keys of a task at least.
const CHUNK: usize = 128;

/// What a backward is given, in host memory.
#[derive(Clone, Copy)]
pub(super) struct Given<'a, X> {
    /// (N, H·K).
    pub d_o: &'a [X],
    /// (N, H·K).
    pub o: &'a [X],
    /// (N, H).
    pub lse: &'a [f32],
    /// (N, 3·H·K).
    pub qkv: &'a [X],
}

/// Computes dqkv.
pub(super) fn backward<X: FloatX>(cpu: &Cpu, dqkv: &mut [X], given: Given<'_, X>, sizes: Sizes) {
    let multiplier = Multiplier::of::<X>(cpu.isa());
    let Sizes { samples, heads, width, .. } = sizes;
    let chunks = sizes.chunks(CHUNK);
    let layout = Layout::new(multiplier, sizes, chunks.len() == 1);
    // Part i·H + h of each is head h of rows i: a chunk of a sample.
    let mut kinds = [const { Vec::new() }; 3];
    for (i, part) in parts(dqkv, 3 * heads * width, sizes.rows(&chunks), width).into_iter().enumerate() {
        kinds[i / heads % 3].push(part);
    }
    let [dq, dk, dv] = kinds;
    let task = |i: usize| {
        let head = Head { sizes, sample: i / heads / chunks.len(), head: i % heads };
        (Task { multiplier, layout, head, given }, chunks[i / heads % chunks.len()].clone())
    };
    if chunks.len() == 1 {
        let items: Vec<_> = dq.into_iter().zip(dk).zip(dv).enumerate().collect();
        return run(cpu, items, layout.space(), |space, (i, ((mut dq, dk), dv))| {
            let (task, keys) = task(i);
            let (space, sums) = space.split_at_mut(total(&layout.lengths));
            let sums = bytemuck::cast_slice_mut(&mut sums[..layout.dq]);
            task.run(space, keys, sums, dk, dv);
            task.write(&mut dq, 0, sums, sizes.inverse_root());
        });
    }
    let mut sums = cpu.take(samples * chunks.len() * heads * layout.dq * 4);
    let sums = sums.as_mut_slice::<f32>();
    let items: Vec<_> = sums.chunks_mut(layout.dq).zip(dk).zip(dv).enumerate().collect();
    run(cpu, items, layout.space(), |space, (i, ((dq, dk), dv))| {
        let (task, keys) = task(i);
        task.run(space, keys, dq, dk, dv);
    });
    let sums = &*sums;
    let longest = chunks.iter().map(|rows| rows.len() * layout.sums).max().unwrap_or(0);
    run(cpu, dq.into_iter().enumerate().collect(), longest, |space, (i, mut dq)| {
        let (task, queries) = task(i);
        let total = bytemuck::cast_slice_mut(&mut space[..queries.len() * layout.sums]);
        total.fill(0.0);
        for chunk in 0..chunks.len() {
            let i = (task.head.sample * chunks.len() + chunk) * heads + task.head.head;
            add_to(cpu, total, &sums[i * layout.dq + queries.start * layout.sums..]);
        }
        task.write(&mut dq, 0, total, sizes.inverse_root());
    });
}

/// y += x, as far as y goes.
fn add_to(cpu: &Cpu, y: &mut [f32], x: &[f32]) {
    cpu.isa().run(
        #[inline(always)]
        |arch| add_partials(arch, y, &x[..y.len()]),
    );
}

/// The work space of a thread.
#[derive(Clone, Copy)]
struct Layout {
    /// Queries of a block.
    queries: usize,
    /// Keys of a block.
    keys: usize,
    /// Scores from one row to the next.
    stride: usize,
    /// Sums of dq, dk and dv from one row to the next.
    sums: usize,
    /// Sums of dq of all tokens.
    dq: usize,
    /// Whether they are in the work space.
    with_dq: bool,
    lengths: [usize; 17],
}

impl Layout {
    fn new(multiplier: Multiplier, sizes: Sizes, with_dq: bool) -> Self {
        let Sizes { tokens, width, .. } = sizes;
        let (queries, keys) = (block_size(tokens, QUERIES), block_size(tokens, KEYS));
        let (stride, sums) = (keys + GAP, width.next_multiple_of(COLUMN_STEP));
        let rows = tokens.next_multiple_of(ROW_STEP);
        let pairs = if multiplier.pairs() { queries / 2 * stride } else { 0 };
        let lengths = [
            rows * multiplier.deep(width),   // q, rows
            rows * multiplier.deep(width),   // do, rows
            multiplier.space(width, tokens), // q, columns
            multiplier.space(width, tokens), // do, columns
            multiplier.space(keys, width),   // k, rows as columns
            multiplier.space(keys, width),   // v, rows as columns
            multiplier.space(width, keys),   // k, columns
            queries * stride,                // s
            queries * stride,                // dp
            pairs,                           // p
            pairs,                           // ds
            pairs,                           // ds, rows
            keys * sums,                     // dk
            keys * sums,                     // dv
            rows,                            // lse
            rows,                            // delta
            2 * width,                       // a row of do and o
        ];
        Self { queries, keys, stride, sums, dq: rows * sums, with_dq, lengths }
    }

    fn space(&self) -> usize {
        total(&self.lengths) + if self.with_dq { self.dq } else { 0 }
    }
}

impl Sizes {
    /// 1/√K.
    fn inverse_root(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// All of one head, for some keys.
struct Task<'a, X> {
    multiplier: Multiplier,
    layout: Layout,
    head: Head,
    given: Given<'a, X>,
}

impl<X: FloatX> Task<'_, X> {
    /// Computes dk and dv of `keys`, and what these keys add to dq of all tokens, in f32 and without the factor 1/√K.
    fn run(
        &self,
        space: &mut [u32],
        keys: Range<usize>,
        dq: &mut [f32],
        mut dk: Part<'_, X>,
        mut dv: Part<'_, X>,
    ) {
        let (multiplier, layout, head, given) = (self.multiplier, self.layout, self.head, self.given);
        let Sizes { tokens, width, .. } = head.sizes;
        let [q, d_o, q_columns, d_o_columns, k_rows, v_rows, k_columns, s, dp, rest @ ..] =
            cut(space, layout.lengths);
        let [p, ds, ds_rows, dk_sums, dv_sums, lse, delta, row] = rest;
        let [s, dp, dk_sums, dv_sums, lse, delta, row] =
            [s, dp, dk_sums, dv_sums, lse, delta, row].map(bytemuck::cast_slice_mut::<u32, f32>);
        self.know(lse, delta, row);
        let q = multiplier.copy(q, head.of_qkv(given.qkv, 0, 0..tokens));
        let d_o = multiplier.copy(d_o, head.of_o(given.d_o, 0..tokens));
        multiplier.pack_columns(q_columns, head.of_qkv(given.qkv, 0, 0..tokens));
        multiplier.pack_columns(d_o_columns, head.of_o(given.d_o, 0..tokens));
        let operands = Operands {
            q,
            d_o,
            q_columns: multiplier.right(q_columns, width, tokens),
            d_o_columns: multiplier.right(d_o_columns, width, tokens),
            lse,
            delta,
        };
        for block in blocks(keys.clone(), layout.keys) {
            multiplier.pack_rows(k_rows, head.of_qkv(given.qkv, 1, block.clone()));
            multiplier.pack_rows(v_rows, head.of_qkv(given.qkv, 2, block.clone()));
            multiplier.pack_columns(k_columns, head.of_qkv(given.qkv, 1, block.clone()));
            let of_keys = OfKeys {
                keys: block.len(),
                k_rows: multiplier.right(k_rows, block.len(), width),
                v_rows: multiplier.right(v_rows, block.len(), width),
                k_columns: multiplier.right(k_columns, width, block.len()),
                first: block.start == keys.start,
            };
            for queries in blocks(0..tokens, layout.queries) {
                let pairs = Pairs { p, ds, ds_rows };
                let dq = &mut dq[queries.start * layout.sums..];
                self.block(&operands, &of_keys, queries, (s, dp, pairs), [dq, dk_sums, dv_sums]);
            }
            let (row, sums) = (block.start - keys.start, block.len() * layout.sums);
            self.write(&mut dk, row, &dk_sums[..sums], head.sizes.inverse_root());
            self.write(&mut dv, row, &dv_sums[..sums], 1.0);
        }
    }

    /// Adds the products of one block of queries and keys.
    fn block(
        &self,
        of: &Operands<'_>,
        of_keys: &OfKeys<'_>,
        queries: Range<usize>,
        (s, dp, pairs): (&mut [f32], &mut [f32], Pairs<'_>),
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let (multiplier, Layout { stride, sums, .. }) = (self.multiplier, self.layout);
        let rows = queries.len().next_multiple_of(ROW_STEP);
        let depth = 0..multiplier.units(self.head.sizes.width);
        let (q, d_o) = (of.q.part(queries.start, rows), of.d_o.part(queries.start, rows));
        multiplier.multiply(Sums { sums: s, stride, first: true }, q, of_keys.k_rows, depth.clone());
        multiplier.multiply(Sums { sums: dp, stride, first: true }, d_o, of_keys.v_rows, depth);
        let block = Block { rows, keys: of_keys.keys, stride, scale: self.head.sizes.exponent() };
        let known = Known { lse: &of.lse[queries.start..], delta: &of.delta[queries.start..] };
        let Pairs { p, ds, ds_rows } = pairs;
        gradients(
            multiplier,
            s,
            dp,
            Pairs { p: &mut *p, ds: &mut *ds, ds_rows: &mut *ds_rows },
            block,
            known,
        );
        let (p, ds, ds_rows): (&[u32], &[u32], &[u32]) = match multiplier.pairs() {
            true => (p, ds, ds_rows),
            false => (bytemuck::cast_slice(s), bytemuck::cast_slice(dp), bytemuck::cast_slice(dp)),
        };
        let turned = |data| Left { data, rows: of_keys.keys, row: 1, step: stride };
        let units = multiplier.units(queries.start)..multiplier.units(queries.end);
        let into = |sums_of, first| Sums { sums: sums_of, stride: sums, first };
        let first = queries.start == 0;
        multiplier.multiply(into(dv, first), turned(p), of.d_o_columns, units.clone());
        multiplier.multiply(into(dk, first), turned(ds), of.q_columns, units);
        let ds = Left { data: ds_rows, rows, row: multiplier.units(stride), step: 1 };
        multiplier.multiply(
            into(dq, of_keys.first),
            ds,
            of_keys.k_columns,
            0..multiplier.units(of_keys.keys),
        );
    }

    /// Writes log2(e)·lse and delta = ⟨do, o⟩ of all tokens; rows behind them are to be zeros of p and ds.
    fn know(&self, lse: &mut [f32], delta: &mut [f32], row: &mut [f32]) {
        let Sizes { tokens, heads, width, .. } = self.head.sizes;
        let (d_o, o) = row.split_at_mut(width);
        self.multiplier.isa().run(
            #[inline(always)]
            |arch: Arch| {
                for i in 0..tokens {
                    widen(d_o, self.head.of_o(self.given.d_o, i..i + 1).data);
                    widen(o, self.head.of_o(self.given.o, i..i + 1).data);
                    delta[i] = arch.dot(d_o, &o[..width]);
                    let at = (self.head.sample * tokens + i) * heads + self.head.head;
                    lse[i] = self.given.lse[at] * LOG2_E;
                }
            },
        );
        lse[tokens..].fill(f32::INFINITY);
        delta[tokens..].fill(0.0);
    }

    /// Writes sums·factor to the rows of a part from `row` on: as many as there are sums, or rows of the part.
    fn write(&self, part: &mut Part<'_, X>, row: usize, sums: &[f32], factor: f32) {
        self.multiplier.isa().run(
            #[inline(always)]
            |_| {
                for (row, sums) in (row..part.rows()).zip(sums.chunks_exact(self.layout.sums)) {
                    for (out, sum) in part.row(row).iter_mut().zip(sums) {
                        *out = X::from_f32(sum * factor);
                    }
                }
            },
        );
    }
}

/// Operands of all queries.
struct Operands<'a> {
    q: Left<'a>,
    d_o: Left<'a>,
    q_columns: Right<'a>,
    d_o_columns: Right<'a>,
    lse: &'a [f32],
    delta: &'a [f32],
}

/// Operands of a block of keys.
struct OfKeys<'a> {
    keys: usize,
    k_rows: Right<'a>,
    v_rows: Right<'a>,
    k_columns: Right<'a>,
    /// Whether dq has no sums yet.
    first: bool,
}
