//! What happens to the sums of a product on their way out: bias, addend, activation, gradient, rounding.

use std::marker::PhantomData;

use crate::device::{Arch, Cpu};
use crate::float::FloatX;
use crate::ops::linear::activation::Activation;

/// What becomes of the sums of a row.
pub(super) trait Finish: Sync {
    /// The storage type of the results.
    type Out: Send;
    /// Turns the sums of columns `col..` of row `row` into results; `sums` is scratch afterwards.
    fn row(
        &self,
        arch: Arch,
        at: (usize, usize),
        sums: &mut [f32],
        out: &mut [Self::Out],
        second: Option<&mut [Self::Out]>,
    );
}

/// z = sums + bias + add, y = act(z): writes y and, if there is a second output, z.
pub(super) struct Forward<'a, A, W> {
    /// The activation.
    pub act: Activation,
    /// (O).
    pub bias: Option<&'a [W]>,
    /// (N, O).
    pub add: Option<&'a [A]>,
    /// O.
    pub cols: usize,
    /// The storage type of y and z.
    pub out: PhantomData<A>,
}

impl<A: FloatX, W: FloatX> Finish for Forward<'_, A, W> {
    type Out = A;
    #[inline(always)]
    fn row(
        &self,
        arch: Arch,
        (row, col): (usize, usize),
        sums: &mut [f32],
        y: &mut [A],
        z: Option<&mut [A]>,
    ) {
        if let Some(bias) = self.bias {
            add_to(sums, &bias[col..]);
        }
        if let Some(add) = self.add {
            add_to(sums, &add[row * self.cols + col..]);
        }
        if let Some(z) = z {
            store(z, sums);
        }
        match self.act {
            Activation::Identity => store(y, sums),
            Activation::Silu => store_by(
                y,
                sums,
                #[inline(always)]
                |z| Activation::Silu.apply(arch, z),
            ),
            Activation::GeluTanh => store_by(
                y,
                sums,
                #[inline(always)]
                |z| Activation::GeluTanh.apply(arch, z),
            ),
        }
    }
}

/// dx = sums · act'(z).
pub(super) struct Through<'a, A> {
    /// The activation that produced x and its pre-activation z (N, C).
    pub through: Option<(Activation, &'a [A])>,
    /// C.
    pub cols: usize,
    /// Adds to what dx holds, for an input with several consumers.
    pub add: bool,
}

impl<A: FloatX> Finish for Through<'_, A> {
    type Out = A;
    #[inline(always)]
    fn row(
        &self,
        arch: Arch,
        (row, col): (usize, usize),
        sums: &mut [f32],
        dx: &mut [A],
        _: Option<&mut [A]>,
    ) {
        match self.through {
            None | Some((Activation::Identity, _)) => {}
            Some((Activation::Silu, z)) => scale_by(
                sums,
                &z[row * self.cols + col..],
                #[inline(always)]
                |z| Activation::Silu.derivative(arch, z),
            ),
            Some((Activation::GeluTanh, z)) => scale_by(
                sums,
                &z[row * self.cols + col..],
                #[inline(always)]
                |z| Activation::GeluTanh.derivative(arch, z),
            ),
        }
        if self.add {
            add_to(sums, dx);
        }
        store(dx, sums);
    }
}

/// out += sums, added in f32.
pub(super) struct Add<A> {
    /// The storage type of the output.
    pub out: PhantomData<A>,
}

impl<A: FloatX> Finish for Add<A> {
    type Out = A;
    #[inline(always)]
    fn row(&self, _: Arch, _: (usize, usize), sums: &mut [f32], out: &mut [A], _: Option<&mut [A]>) {
        add_to(sums, out);
        store(out, sums);
    }
}

#[inline(always)]
fn add_to<X: FloatX>(sums: &mut [f32], terms: &[X]) {
    for (sum, x) in sums.iter_mut().zip(terms) {
        *sum += x.to_f32();
    }
}

#[inline(always)]
fn scale_by<X: FloatX>(sums: &mut [f32], z: &[X], slope: impl Fn(f32) -> f32) {
    for (sum, z) in sums.iter_mut().zip(z) {
        *sum *= slope(z.to_f32());
    }
}

#[inline(always)]
fn store<X: FloatX>(out: &mut [X], sums: &[f32]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = X::from_f32(*sum);
    }
}

#[inline(always)]
fn store_by<X: FloatX>(out: &mut [X], sums: &[f32], f: impl Fn(f32) -> f32) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = X::from_f32(f(*sum));
    }
}

/// Adds four rows, `stride` apart, in order: the sums are loaded and stored once.
#[inline(always)]
fn add_four<X: FloatX>(sums: &mut [f32], rows: &[X], stride: usize) {
    let n = sums.len();
    let [a, b, c, d] = std::array::from_fn(|i| &rows[i * stride..][..n]);
    for i in 0..n {
        sums[i] = sums[i] + a[i].to_f32() + b[i].to_f32() + c[i].to_f32() + d[i].to_f32();
    }
}

/// Columns that one thread sums at a time: whole cache lines of each row, and several strips of a narrow layer.
const STRIP: usize = 64;
/// Rows summed before they are added to the rest: rounding errors then grow with N/64 + 64, not with N.
const RUN: usize = 64;
/// Elements below which waking another thread costs more than it saves.
const SERIAL: usize = 1 << 14;

/// Computes db += Σ_rows dy, dy (N, O) with O the length of `db`, in an order that depends on N alone.
pub(super) fn column_sums<A: FloatX>(cpu: &Cpu, db: &mut [f32], dy: &[A]) {
    let cols = db.len();
    if cols == 0 {
        return;
    }
    let strip = |(i, db): (usize, &mut [f32])| {
        cpu.isa().run(
            #[inline(always)]
            |_| {
                for rows in dy.chunks(RUN * cols) {
                    let mut sums = [0.0; STRIP];
                    let sums = &mut sums[..db.len()];
                    let (fours, rest) = rows.split_at(rows.len() / (4 * cols) * 4 * cols);
                    for four in fours.chunks_exact(4 * cols) {
                        add_four(sums, &four[i * STRIP..], cols);
                    }
                    for row in rest.chunks_exact(cols) {
                        add_to(sums, &row[i * STRIP..]);
                    }
                    add_to(db, sums);
                }
            },
        );
    };
    if dy.len() < SERIAL || cpu.threads() == 1 {
        return db.chunks_mut(STRIP).enumerate().for_each(strip);
    }
    cpu.each(db.chunks_mut(STRIP).enumerate(), strip);
}
