//! Attention on the processor, row by row: the specification.
//!
//! A sample is one task. Work space is one head in f32, a few rows of T scores, and in the backward dk and dv.

use crate::device::{Arch, Cpu};
use crate::float::FloatX;
use crate::ops::attention::Sizes;
use crate::ops::{narrow, widen};

/// What a backward is given, in host memory.
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

/// Computes o and lse.
pub(super) fn forward<X: FloatX>(cpu: &Cpu, o: &mut [X], lse: &mut [f32], qkv: &[X], sizes: Sizes) {
    let Sizes { samples, tokens: t, heads, width: k } = sizes;
    let (row, space) = (heads * k, 3 * t * k + t + k);
    let mut scratch = cpu.take(samples * space * 4);
    let work = o.chunks_mut(t * row).zip(lse.chunks_mut(t * heads)).zip(qkv.chunks(3 * t * row));
    cpu.each(work.zip(scratch.as_mut_slice::<f32>().chunks_mut(space)), |(((o, lse), qkv), scratch)| {
        let [head, p, sum] = parts(scratch, [3 * t * k, t, k]);
        cpu.isa().run(
            #[inline(always)]
            |arch| {
                for h in 0..heads {
                    let [queries, keys, values] = read_head(head, qkv, sizes, h);
                    for (i, q) in queries.chunks_exact(k).enumerate() {
                        scores(arch, p, q, keys, k);
                        lse[i * heads + h] = softmax(arch, p);
                        weighted_sum(arch, sum, p, values);
                        narrow(&mut o[i * row + h * k..][..k], sum);
                    }
                }
            },
        );
    });
}

/// Computes dqkv.
pub(super) fn backward<X: FloatX>(cpu: &Cpu, dqkv: &mut [X], given: Given<'_, X>, sizes: Sizes) {
    let Sizes { samples, tokens: t, heads, width: k } = sizes;
    let (row, space) = (heads * k, 5 * t * k + 2 * t + 3 * k);
    let mut scratch = cpu.take(samples * space * 4);
    let given = &given;
    let work = dqkv.chunks_mut(3 * t * row).zip(scratch.as_mut_slice::<f32>().chunks_mut(space));
    cpu.each(work.enumerate(), |(b, (dqkv, scratch))| {
        let [head, dk, dv, p, ds, d_o, o, dq] = parts(scratch, [3 * t * k, t * k, t * k, t, t, k, k, k]);
        let qkv = &given.qkv[b * 3 * t * row..][..3 * t * row];
        let scale = scale(k);
        cpu.isa().run(
            #[inline(always)]
            |arch| {
                for h in 0..heads {
                    let [queries, keys, values] = read_head(head, qkv, sizes, h);
                    dk.fill(0.0);
                    dv.fill(0.0);
                    for (i, q) in queries.chunks_exact(k).enumerate() {
                        let at = (b * t + i) * row + h * k;
                        widen(d_o, &given.d_o[at..at + k]);
                        widen(o, &given.o[at..at + k]);
                        scores(arch, p, q, keys, k);
                        let lse = given.lse[(b * t + i) * heads + h];
                        let delta = arch.dot(d_o, o);
                        for ((p, ds), v) in p.iter_mut().zip(ds.iter_mut()).zip(values.chunks_exact(k)) {
                            *p = arch.exp(*p - lse);
                            *ds = *p * (arch.dot(d_o, v) - delta) * scale;
                        }
                        weighted_sum(arch, dq, ds, keys);
                        add_outer(arch, dk, ds, q);
                        add_outer(arch, dv, p, d_o);
                        narrow(&mut dqkv[3 * i * row + h * k..][..k], dq);
                    }
                    for (part, sums) in [&*dk, &*dv].into_iter().enumerate() {
                        for (j, sums) in sums.chunks_exact(k).enumerate() {
                            narrow(&mut dqkv[(3 * j + 1 + part) * row + h * k..][..k], sums);
                        }
                    }
                }
            },
        );
    });
}

/// K^-½.
fn scale(k: usize) -> f32 {
    (k as f32).sqrt().recip()
}

/// Cuts work space into parts.
fn parts<const P: usize>(mut space: &mut [f32], lengths: [usize; P]) -> [&mut [f32]; P] {
    lengths.map(|length| {
        let (part, rest) = std::mem::take(&mut space).split_at_mut(length);
        space = rest;
        part
    })
}

/// Widens q, k and v (T, K) of head `h` of one sample.
#[inline(always)]
fn read_head<'a, X: FloatX>(head: &'a mut [f32], qkv: &[X], sizes: Sizes, h: usize) -> [&'a [f32]; 3] {
    let Sizes { tokens: t, heads, width: k, .. } = sizes;
    for (part, out) in head.chunks_exact_mut(t * k).enumerate() {
        for (i, out) in out.chunks_exact_mut(k).enumerate() {
            widen(out, &qkv[((3 * i + part) * heads + h) * k..][..k]);
        }
    }
    let (q, rest) = head.split_at(t * k);
    let (k, v) = rest.split_at(t * k);
    [q, k, v]
}

/// s_j = ⟨q, k_j⟩/√K.
#[inline(always)]
fn scores(arch: Arch, s: &mut [f32], q: &[f32], keys: &[f32], k: usize) {
    for (s, key) in s.iter_mut().zip(keys.chunks_exact(k)) {
        *s = arch.dot(q, key) * scale(k);
    }
}

/// Turns scores into probabilities; returns their log-sum-exp.
#[inline(always)]
fn softmax(arch: Arch, p: &mut [f32]) -> f32 {
    // NaN is passed over here and comes back through the sum.
    let most = p.iter().fold(f32::NEG_INFINITY, |most, s| most.max(*s));
    for p in p.iter_mut() {
        *p = arch.exp(*p - most);
    }
    let sum = arch.sum(p);
    let inverse = 1.0 / sum;
    for p in p.iter_mut() {
        *p *= inverse;
    }
    most + sum.ln()
}

/// y = Σ_j w_j·x_j, rows of x in order.
#[inline(always)]
fn weighted_sum(arch: Arch, y: &mut [f32], w: &[f32], x: &[f32]) {
    y.fill(0.0);
    for (w, x) in w.iter().zip(x.chunks_exact(y.len())) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = arch.fma(*w, *x, *y);
        }
    }
}

/// y_j += w_j·x.
#[inline(always)]
fn add_outer(arch: Arch, y: &mut [f32], w: &[f32], x: &[f32]) {
    for (w, y) in w.iter().zip(y.chunks_exact_mut(x.len())) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = arch.fma(*w, *x, *y);
        }
    }
}
