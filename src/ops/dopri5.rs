//! The adaptive step of Dormand and Prince (1980), with a controller that lives on the device.
//!
//! From x with slope k1 = v(x, t), six further slopes give the solution of order 5 and an error estimate of order 4:
//! ```text
//! stage s:   y_s = x + h·Σ_j a_sj·k_j,   t_s = t + c_s·h           y_7 is the solution, k_7 its slope, the next k_1
//! error:     e = h·Σ_j e_j·k_j,          norm² = mean (e / (atol + rtol·max(|x|, |y_7|)))²  over the batch
//! decision:  norm ≤ 1 accepts;  h ← h / clamp(norm^0.17 / norm_before^0.04 / 0.9, 0.1, 5)       PI control, Hairer's constants
//! ```
//! Step size, time, norm, decision and counters are sixteen f32 in a tensor ([`Control`]), so a solve needs the host only to learn
//! that it is done. Sums have a fixed order: blocks of 4,096 elements, then the blocks. (Hairer, Nørsett and Wanner, Solving
//! Ordinary Differential Equations I, II.4 and IV.2.) Kernels: `kernels/dopri5.cu`.

use crate::device::Device;
use crate::device::cuda::Grid;
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::rows_per_block;
use crate::tensor::{Tensor, ViewMut};

/// Slopes of one step; the last is the first of the next step.
pub const SLOPES: usize = 7;

/// a of stages 2 to 7: what the slopes before are multiplied by.
const STAGES: [[f64; 6]; 6] = [
    [1.0 / 5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [3.0 / 40.0, 9.0 / 40.0, 0.0, 0.0, 0.0, 0.0],
    [44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0, 0.0, 0.0, 0.0],
    [19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0, 0.0, 0.0],
    [9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0, 0.0],
    [35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// c of stages 2 to 7.
const TIMES: [f64; 6] = [1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0];
/// Order 5 less order 4, slope by slope.
const ERROR: [f64; SLOPES] =
    [71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0];

/// Elements whose squares are added first; the kernel's number.
const SPAN: usize = 4096;

/// What a controller may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Error allowed for large numbers, relative to them.
    pub rtol: f32,
    /// Error allowed for small numbers.
    pub atol: f32,
    /// The smallest step.
    pub smallest: f32,
    /// The most tries, accepted and rejected.
    pub tries: u32,
}

/// How far a solve is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not at its end.
    Running,
    /// At its end.
    Done,
    /// The state or a slope is not finite.
    NotFinite,
    /// The tolerance asks for steps smaller than the smallest.
    TooSmall,
    /// There were as many tries as are allowed.
    TooMany,
}

/// What the host sees of a controller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// How far the solve is.
    pub status: Status,
    /// The time that is reached.
    pub t: f32,
    /// The next step.
    pub h: f32,
    /// Accepted steps.
    pub accepted: usize,
    /// Rejected steps.
    pub rejected: usize,
}

/// The places of a controller's numbers: those of `struct Control` in the kernels.
const T: usize = 0;
const H: usize = 1;
const END: usize = 2;
const NORM: usize = 3;
const NORM_BEFORE: usize = 4;
const STATUS: usize = 5;
const ACCEPT: usize = 6;
const ACCEPTED: usize = 7;
const REJECTED: usize = 8;
const LAST: usize = 9;
const WAS_REJECTED: usize = 10;
const NUMBERS: usize = 16;

/// Step size, time, error norm, decision and counters of one solve.
#[derive(Debug)]
pub struct Control(Tensor<f32>);

impl Control {
    /// Makes the controller of a solve over `span` whose first step is `first`, of the span's sign.
    ///
    /// # Errors
    /// A span or a first step that is zero or not finite; a device that failed.
    pub fn new(device: &Device, span: (f32, f32), first: f32) -> Result<Self> {
        let length = span.1 - span.0;
        if !(length * first > 0.0 && length.is_finite() && first.is_finite()) {
            let expected = "a span and a first step of the same sign";
            return Err(Error::argument(
                "dopri5",
                "first",
                expected,
                format!("{first} in {} to {}", span.0, span.1),
            ));
        }
        let mut numbers = [0.0; NUMBERS];
        (numbers[T], numbers[END], numbers[NORM_BEFORE]) = (span.0, span.1, SMALLEST_NORM);
        (numbers[H], numbers[LAST]) = limited(span.0, span.1, first);
        Ok(Self(Tensor::from_f32(device, [NUMBERS], &numbers)?))
    }

    /// Takes numbers that were a controller's.
    ///
    /// # Errors
    /// Another number of them.
    pub fn from_numbers(numbers: Tensor<f32>) -> Result<Self> {
        numbers.expect("dopri5", "numbers", [NUMBERS])?;
        Ok(Self(numbers))
    }

    /// Returns the numbers: t, h, end, norm, norm before, status, accept, accepted, rejected, last step, was rejected.
    pub fn numbers(&self) -> &Tensor<f32> {
        &self.0
    }

    /// Looks at the controller, when everything that was queued is done.
    ///
    /// # Errors
    /// A device that failed.
    pub fn look(&self) -> Result<Report> {
        let numbers = self.0.to_f32_vec()?;
        let status = match numbers[STATUS] as u32 {
            0 => Status::Running,
            1 => Status::Done,
            2 => Status::NotFinite,
            3 => Status::TooSmall,
            _ => Status::TooMany,
        };
        let (accepted, rejected) = (numbers[ACCEPTED] as usize, numbers[REJECTED] as usize);
        Ok(Report { status, t: numbers[T], h: numbers[H], accepted, rejected })
    }
}

/// `x: (..)` and the slopes so far → the state of the next stage, `(..)`, and its time, (1).
pub fn dopri5_stage(
    x: &Tensor<f32>,
    slopes: &[&Tensor<f32>],
    control: &Control,
) -> Result<(Tensor<f32>, Tensor<f32>)> {
    const OP: &str = "dopri5_stage";
    if slopes.is_empty() || slopes.len() >= SLOPES {
        return Err(Error::argument(OP, "slopes", "1 to 6 slopes", format!("{} slopes", slopes.len())));
    }
    slopes.iter().try_for_each(|k| k.expect(OP, "slopes", x.shape()))?;
    let (a, c) = (STAGES[slopes.len() - 1].map(|a| a as f32), TIMES[slopes.len() - 1] as f32);
    let (mut y, mut t) = (Tensor::like(x), Tensor::uninit(x.device(), [1]));
    match x.device() {
        Device::Cpu(cpu) => {
            let numbers = control.0.host()?;
            let (h, isa, block) = (numbers[H], cpu.isa(), rows_per_block(1));
            t.host_mut()?[0] = numbers[T] + c * h;
            let slopes: Vec<&[f32]> = slopes.iter().map(|k| k.host()).collect::<Result<_>>()?;
            let blocks = y.host_mut()?.chunks_mut(block).zip(x.host()?.chunks(block)).enumerate();
            cpu.each(blocks, |(i, (y, x))| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        y.fill(0.0);
                        for (k, a) in slopes.iter().zip(a) {
                            let k = &k[i * block..][..y.len()];
                            for (y, k) in y.iter_mut().zip(k) {
                                *y = arch.fma(a, *k, *y);
                            }
                        }
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = arch.fma(h, *y, *x);
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let n = x.len() as u64;
            let slope = |j: usize| slopes.get(j).copied().unwrap_or(x).read();
            let (k1, k2, k3, k4, k5, k6) = (slope(0)?, slope(1)?, slope(2)?, slope(3)?, slope(4)?, slope(5)?);
            let (grid, numbers, count) = (Grid::covering(x.len(), 4, 256), control.0.read()?, slopes.len());
            let (y, t, x) = (y.write()?, t.write()?, x.read()?);
            let [a1, a2, a3, a4, a5, a6] = a;
            kernels::dopri5_stage(
                queue,
                grid,
                y,
                t,
                x,
                k1,
                k2,
                k3,
                k4,
                k5,
                k6,
                numbers,
                count as u32,
                c,
                a1,
                a2,
                a3,
                a4,
                a5,
                a6,
                n,
            )?;
        }
    }
    Ok((y, t))
}

/// Returns how many partial sums the errors of `n` elements have.
pub fn dopri5_partials(n: usize) -> usize {
    n.div_ceil(SPAN)
}

/// `x`, the solution `y` and the seven slopes → the sum of (e / scale)² of each block of 4,096 elements.
pub fn dopri5_error(
    mut partials: ViewMut<'_, f32>,
    (x, y): (&Tensor<f32>, &Tensor<f32>),
    slopes: &[&Tensor<f32>; SLOPES],
    control: &Control,
    limits: &Limits,
) -> Result<()> {
    const OP: &str = "dopri5_error";
    y.expect(OP, "y", x.shape())?;
    slopes.iter().try_for_each(|k| k.expect(OP, "slopes", x.shape()))?;
    partials.as_view().expect(OP, "partials", [dopri5_partials(x.len())])?;
    let e = ERROR.map(|e| e as f32);
    match x.device() {
        Device::Cpu(cpu) => {
            let slopes: Vec<&[f32]> = slopes.iter().map(|k| k.host()).collect::<Result<_>>()?;
            let (h, isa, x, y) = (control.0.host()?[H], cpu.isa(), x.host()?, y.host()?);
            cpu.each(partials.host_mut()?.iter_mut().enumerate(), |(i, partial)| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        let range = i * SPAN..(i * SPAN + SPAN).min(x.len());
                        let mut error = [0.0f32; SPAN];
                        let error = &mut error[..range.len()];
                        for (k, e) in slopes.iter().zip(e).filter(|(_, e)| *e != 0.0) {
                            for (error, k) in error.iter_mut().zip(&k[range.clone()]) {
                                *error = arch.fma(e, *k, *error);
                            }
                        }
                        for (error, (x, y)) in error.iter_mut().zip(x[range.clone()].iter().zip(&y[range])) {
                            *error = h * *error / scale(*x, *y, limits);
                        }
                        *partial = arch.dot(error, error);
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let grid = Grid { blocks: [dopri5_partials(x.len()) as u32, 1, 1], threads: 256, shared: 0 };
            let [k1, _, k3, k4, k5, k6, k7] = slopes.map(|k| k.read());
            let (k1, k3, k4, k5, k6, k7) = (k1?, k3?, k4?, k5?, k6?, k7?);
            let (partials, n, numbers) = (partials.write()?, x.len() as u64, control.0.read()?);
            let (x, y, [e1, _, e3, e4, e5, e6, e7]) = (x.read()?, y.read()?, e);
            let Limits { rtol, atol, .. } = *limits;
            kernels::dopri5_error(
                queue, grid, partials, x, y, k1, k3, k4, k5, k6, k7, numbers, e1, e3, e4, e5, e6, e7, rtol,
                atol, n,
            )?;
        }
    }
    Ok(())
}

/// Returns what an error is measured by: not a number where the solution is not finite, so that the norm is none either.
#[inline(always)]
fn scale(x: f32, y: f32, limits: &Limits) -> f32 {
    let scale = limits.atol + limits.rtol * x.abs().max(y.abs());
    if y.is_finite() { scale } else { f32::NAN }
}

/// Decides on the step whose errors are in `partials`, of `n` elements, and chooses the next. A solve that is over stays so.
pub fn dopri5_decide(control: &mut Control, partials: &Tensor<f32>, n: usize, limits: &Limits) -> Result<()> {
    let share = 1.0 / n as f32;
    match partials.device() {
        Device::Cpu(cpu) => {
            let partials = partials.host()?;
            let sum = cpu.isa().run(
                #[inline(always)]
                |arch| arch.sum(partials),
            );
            decide(control.0.host_mut()?, (sum * share).sqrt(), limits);
        }
        Device::Cuda(queue) => {
            let grid = Grid { blocks: [1, 1, 1], threads: 256, shared: 0 };
            let count = partials.len() as u32;
            let Limits { smallest, tries, .. } = *limits;
            let (numbers, partials) = (control.0.write()?, partials.read()?);
            kernels::dopri5_decide(queue, grid, numbers, partials, count, share, smallest, tries)?;
        }
    }
    Ok(())
}

/// The exponents of PI control: 1/5 less ¾ of the second, and the second.
const EXPONENT: f32 = 0.17;
const EXPONENT_BEFORE: f32 = 0.04;
/// What a step is chosen smaller by than the estimate says.
const SAFETY: f32 = 0.9;
/// A step becomes at most ten times as large and five times as small.
const LEAST_DIVISOR: f32 = 0.1;
const MOST_DIVISOR: f32 = 5.0;
/// The smallest norm that PI control remembers, and the one it starts from.
const SMALLEST_NORM: f32 = 1e-4;

fn decide(c: &mut [f32], norm: f32, limits: &Limits) {
    c[ACCEPT] = 0.0;
    if c[STATUS] != 0.0 {
        return;
    }
    c[NORM] = norm;
    if !norm.is_finite() {
        c[STATUS] = Status::NotFinite as u32 as f32;
        return;
    }
    let power = norm.powf(EXPONENT);
    let divisor = if norm <= 1.0 {
        let divisor = power / c[NORM_BEFORE].powf(EXPONENT_BEFORE) / SAFETY;
        let least = if c[WAS_REJECTED] != 0.0 { 1.0 } else { LEAST_DIVISOR };
        c[NORM_BEFORE] = norm.max(SMALLEST_NORM);
        c[T] = if c[LAST] != 0.0 { c[END] } else { c[T] + c[H] };
        (c[ACCEPT], c[WAS_REJECTED]) = (1.0, 0.0);
        c[ACCEPTED] += 1.0;
        divisor.clamp(least, MOST_DIVISOR)
    } else {
        c[WAS_REJECTED] = 1.0;
        c[REJECTED] += 1.0;
        (power / SAFETY).min(MOST_DIVISOR)
    };
    if c[ACCEPT] != 0.0 && c[LAST] != 0.0 {
        (c[STATUS], c[H]) = (Status::Done as u32 as f32, 0.0);
        return;
    }
    (c[H], c[LAST]) = limited(c[T], c[END], c[H] / divisor);
    if c[LAST] == 0.0 && c[H].abs() < limits.smallest {
        c[STATUS] = Status::TooSmall as u32 as f32;
    } else if c[ACCEPTED] + c[REJECTED] >= limits.tries as f32 {
        c[STATUS] = Status::TooMany as u32 as f32;
    }
}

/// Returns the step that is taken where `h` is wanted, and whether it is the last: one that leaves a hundredth of itself goes all
/// the way. Others are multiples of what t is stored to, so that t + h is exact.
fn limited(t: f32, end: f32, h: f32) -> (f32, f32) {
    let rest = end - t;
    if 1.01 * h.abs() >= rest.abs() { (rest, 1.0) } else { ((t + h) - t, 0.0) }
}

/// Moves on if the step was accepted: `x ← y`, and the first slope ← the last. Else everything stays as it is.
pub fn dopri5_accept(
    (x, y): (&mut Tensor<f32>, &Tensor<f32>),
    (first, last): (&mut Tensor<f32>, &Tensor<f32>),
    control: &Control,
) -> Result<()> {
    const OP: &str = "dopri5_accept";
    y.expect(OP, "y", x.shape())?;
    first.expect(OP, "first", x.shape())?;
    last.expect(OP, "last", x.shape())?;
    match x.device().clone() {
        Device::Cpu(_) if control.0.host()?[ACCEPT] == 0.0 => {}
        Device::Cpu(_) => {
            x.copy_from(y)?;
            first.copy_from(last)?;
        }
        Device::Cuda(queue) => {
            let n = x.len();
            let grid = Grid::covering(n, 4, 256);
            let (x, first, y, last) = (x.write()?, first.write()?, y.read()?, last.read()?);
            kernels::dopri5_accept(&queue, grid, x, first, y, last, control.0.read()?, n as u64)?;
        }
    }
    Ok(())
}
