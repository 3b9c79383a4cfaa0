//! Tokens of two kinds in one sequence, as a vision transformer has patches and latents: joined, parted, and the gradient of
//! tokens that all samples share.
//!
//! ```text
//! join   y[n] = [a[n] | b[n]]              rows of sample n; a or b may be one table for all samples
//! take   y[n] = x[n, first .. first + count]
//! put    y[n] = x[n] at first .. first + count, zeros elsewhere: the backward of take
//! sum    dtable[j] += Σ_n dy[n, first + j]                     the backward of a table, samples in a fixed order
//! ```
//! All but the last move numbers and compute none. Kernels: `kernels/tokens.cu`.

use std::ops::Range;

use crate::device::Device;
use crate::device::cuda::{Grid, Read};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::{pack, rows_per_block, warp_grid};
use crate::tensor::{Tensor, View, ViewMut};

/// Tokens to be joined.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a, X: FloatX> {
    /// (N·T, C): each sample has its own.
    Own(&'a Tensor<X>),
    /// (T, C): all samples have these.
    Shared(View<'a, X>),
    /// So many rows of zeros a sample.
    Zeros(usize),
}

/// Tokens `taken` of the `of` that each sample has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens of a sample, T.
    pub of: usize,
    /// Those that are meant.
    pub taken: Range<usize>,
}

/// A part whose rows are known: sample n's begin at row `n·step`.
struct Source<'a, X: FloatX> {
    rows: Option<View<'a, X>>,
    tokens: usize,
    step: usize,
}

impl<'a, X: FloatX> Source<'a, X> {
    fn of(part: Part<'a, X>, samples: usize, c: usize) -> Result<Self> {
        const OP: &str = "join_tokens";
        match part {
            Part::Own(x) => {
                let tokens = x.rows_cols().0.checked_div(samples).unwrap_or(0);
                x.expect(OP, "part", [samples * tokens, c])?;
                Ok(Self { rows: Some(x.view()), tokens, step: tokens })
            }
            Part::Shared(table) => {
                let tokens = table.shape().len().checked_div(c).unwrap_or(0);
                table.expect(OP, "part", [tokens, c])?;
                Ok(Self { rows: Some(table), tokens, step: 0 })
            }
            Part::Zeros(tokens) => Ok(Self { rows: None, tokens, step: 0 }),
        }
    }

    /// Returns row `token` of sample `n`, or `None` for zeros.
    fn row<'x>(&self, x: Option<&'x [X]>, n: usize, token: usize, c: usize) -> Option<&'x [X]> {
        x.map(|x| &x[(n * self.step + token) * c..][..c])
    }
}

/// Joins the tokens of `samples` samples: → (N·(A + B), C), A and B the tokens of the parts.
///
/// # Errors
/// Parts of another width than `c`, or whose rows are no whole samples.
pub fn join_tokens<X: FloatX>(
    device: &Device,
    samples: usize,
    c: usize,
    parts: [Part<'_, X>; 2],
) -> Result<Tensor<X>> {
    let [a, b] = parts.map(|part| Source::of(part, samples, c));
    let (a, b) = (a?, b?);
    let tokens = a.tokens + b.tokens;
    let mut y = Tensor::uninit(device, [samples * tokens, c]);
    match device {
        Device::Cpu(cpu) => {
            let block = rows_per_block(c);
            let [of_a, of_b] = [a.rows, b.rows].map(|rows| rows.map(|rows| rows.host()).transpose());
            let (of_a, of_b) = (of_a?, of_b?);
            cpu.each(y.host_mut()?.chunks_mut((block * c).max(1)).enumerate(), |(at, y)| {
                for (i, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
                    let (n, token) = ((at * block + i) / tokens, (at * block + i) % tokens);
                    let row = match token.checked_sub(a.tokens) {
                        None => a.row(of_a, n, token, c),
                        Some(token) => b.row(of_b, n, token, c),
                    };
                    match row {
                        Some(row) => y.copy_from_slice(row),
                        None => y.fill(X::from_f32(0.0)),
                    }
                }
            });
        }
        Device::Cuda(queue) => {
            let grid = warp_grid::<X>(samples * tokens, c, 1);
            let [of_a, of_b] = [a.rows, b.rows].map(|rows| rows.map_or(Ok(Read::none()), |rows| rows.read()));
            let [n, a_tokens, b_tokens, c] = [samples, a.tokens, b.tokens, c].map(|x| x as u32);
            let [a_step, b_step] = [a.step, b.step].map(|x| x as u32);
            let y = y.write()?;
            kernels::join_tokens(queue, grid, y, of_a?, of_b?, n, a_tokens, b_tokens, a_step, b_step, c)?;
        }
    }
    Ok(y)
}

/// `x: (N·T, C)` → `y: (N·count, C)`.
///
/// # Errors
/// Rows that are no whole samples, or a span that is not in them.
pub fn take_tokens<X: FloatX>(x: &Tensor<X>, span: &Span) -> Result<Tensor<X>> {
    let (samples, c) = span.check("take_tokens", x)?;
    let (first, count) = (span.taken.start, span.taken.len());
    let mut y = Tensor::uninit(x.device(), [samples * count, c]);
    match x.device() {
        Device::Cpu(cpu) => {
            let (x, block) = (x.host()?, rows_per_block(c));
            cpu.each(y.host_mut()?.chunks_mut((block * c).max(1)).enumerate(), |(at, y)| {
                for (i, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
                    let row = at * block + i;
                    let from = row / count * span.of + first + row % count;
                    y.copy_from_slice(&x[from * c..][..c]);
                }
            });
        }
        Device::Cuda(queue) => {
            let grid = warp_grid::<X>(samples * count, c, 1);
            let [n, of, first, count, c] = [samples, span.of, first, count, c].map(|x| x as u32);
            kernels::take_tokens(queue, grid, y.write()?, x.read()?, n, of, first, count, c)?;
        }
    }
    Ok(y)
}

/// `x: (N·count, C)` → `y: (N·T, C)` with zeros around: the backward of [`take_tokens`] of the first or the last tokens.
///
/// # Errors
/// A span in the middle, or rows that are no whole samples.
pub fn put_tokens<X: FloatX>(x: &Tensor<X>, span: &Span) -> Result<Tensor<X>> {
    let (n, c) = x.rows_cols();
    let Span { of, taken } = span;
    let samples = n.checked_div(taken.len()).unwrap_or(0);
    x.expect("put_tokens", "x", [samples * taken.len(), c])?;
    let rest = Part::Zeros(of.saturating_sub(taken.len()));
    let parts = match (taken.start, taken.end) {
        (0, _) => [Part::Own(x), rest],
        (_, end) if end == *of => [rest, Part::Own(x)],
        _ => {
            let expected = format!("the first or the last of {of} tokens");
            return Err(Error::argument("put_tokens", "span", expected, format!("{taken:?}")));
        }
    };
    join_tokens(x.device(), samples, c, parts)
}

/// `dy: (N·T, C)` → adds to `dtable: (count, C)` what the samples' tokens of the span sum to.
///
/// # Errors
/// Rows that are no whole samples, or a table of another shape.
pub fn sum_tokens<X: FloatX>(mut dtable: ViewMut<'_, f32>, dy: &Tensor<X>, span: &Span) -> Result<()> {
    const OP: &str = "sum_tokens";
    let (samples, c) = span.check(OP, dy)?;
    let (first, count) = (span.taken.start, span.taken.len());
    dtable.as_view().expect(OP, "dtable", [count, c])?;
    match dy.device() {
        Device::Cpu(cpu) => {
            let (dtable, dy, isa) = (dtable.host_mut()?, dy.host()?, cpu.isa());
            cpu.each(dtable.chunks_mut(c.max(1)).enumerate(), |(j, dtable)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for n in 0..samples {
                            let row = &dy[(n * span.of + first + j) * c..][..c];
                            for (sum, dy) in dtable.iter_mut().zip(row) {
                                *sum += dy.to_f32();
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let blocks = u32::try_from(count * c.div_ceil(32 * pack::<X>())).unwrap_or(u32::MAX);
            let grid = Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 };
            let [n, of, first, c] = [samples, span.of, first, c].map(|x| x as u32);
            kernels::sum_tokens(queue, grid, dtable.write()?, dy.read()?, n, of, first, c)?;
        }
    }
    Ok(())
}

impl Span {
    /// Returns samples and width of rows that the span is of.
    fn check<X: FloatX>(&self, op: &'static str, x: &Tensor<X>) -> Result<(usize, usize)> {
        let (n, c) = x.rows_cols();
        let samples = n.checked_div(self.of).unwrap_or(0);
        x.expect(op, "x", [samples * self.of, c])?;
        if self.taken.is_empty() || self.taken.end > self.of {
            let expected = format!("some of {} tokens", self.of);
            return Err(Error::argument(op, "span", expected, format!("{:?}", self.taken)));
        }
        Ok((samples, c))
    }
}
