//! Matrix products of a warp: `mma.sync`, `D = A B + C` with A of 16 x k, B of k x 8.
//!
//! Fragments (PTX ISA, "Matrix Fragments"): with `g = lane / 4` and `t = lane mod 4`, and `e` elements in a register,
//! register `r` of A holds row `g + 8 (r mod 2)` from column `e t + 4 e (r / 2)` on; register `r` of B holds column `g`
//! from row `e t + 4 e r` on; C and D hold row `g`, then row `g + 8`, at columns `2 t` and `2 t + 1`.

use half::f16;

use super::block::BlockState;
use super::config::Tensor;
use super::engine::{Engine, Halted};
use super::step::Next;
use super::sync::Arrival;
use super::tensor::{self, Left, Right, Sums};
use super::warp::Warp;
use crate::isa::{List, MmaKind, Ty};
use crate::regs::{LANES, Lanes32, Slot};

/// A form of `mma.sync` that is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    kind: MmaKind,
    /// Elements in a register of A and B.
    each: usize,
}

impl Shape {
    /// Returns the form of a kind, if it is implemented.
    pub fn of(kind: MmaKind) -> Option<Self> {
        let floats = matches!(kind.d, Ty::F32 | Ty::F16) && matches!(kind.c, Ty::F32 | Ty::F16);
        let same = kind.a == kind.b;
        let (each, known) = match kind.a {
            Ty::F16 => (2, same && floats && matches!(kind.k, 8 | 16)),
            Ty::Bf16 => (2, same && kind.d == Ty::F32 && kind.c == Ty::F32 && matches!(kind.k, 8 | 16)),
            Ty::Tf32 => (1, same && kind.d == Ty::F32 && kind.c == Ty::F32 && matches!(kind.k, 4 | 8)),
            Ty::S8 | Ty::U8 => {
                let integers = matches!(kind.b, Ty::S8 | Ty::U8) && kind.d == Ty::S32 && kind.c == Ty::S32;
                (4, integers && matches!(kind.k, 16 | 32))
            }
            _ => (1, false),
        };
        (known && kind.m == 16 && kind.n == 8).then_some(Self { kind, each })
    }

    /// Returns whether it multiplies integers.
    pub fn integer(&self) -> bool {
        self.kind.d == Ty::S32
    }

    /// Returns the number of registers of a, b, c and d.
    pub fn registers(&self) -> [u32; 4] {
        let right = (usize::from(self.kind.k) / (4 * self.each)) as u32;
        let sums = |ty| if ty == Ty::F16 { 2 } else { 4 };
        [2 * right, right, sums(self.kind.c), sums(self.kind.d)]
    }
}

impl Engine<'_> {
    /// Executes `mma.sync`; `lists` are the registers of d, a, b, c.
    pub fn mma(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        (kind, satfinite): (MmaKind, bool),
        [d, a, b, c]: [List; 4],
    ) -> Result<Next, Halted> {
        if !self.whole_warp(warp, block, here)? {
            return Ok(warp.leave(here));
        }
        let Some(shape) = Shape::of(kind) else { return Ok(Next::Step) };
        self.tally.sums.tensor_operations += 2 * 16 * 8 * u64::from(kind.k);
        let program = self.program;
        let [d, a, b, c] = [d, a, b, c].map(|list| program.list(list));
        if shape.integer() {
            integer_product(&mut warp.regs.r32, kind, satfinite, [d, a, b, c]);
            return Ok(Next::Step);
        }
        let product = Product { kind, tensor: self.config.tensor, lists: [d, a, b, c] };
        if self.vectors {
            // SAFETY: the processor has both.
            unsafe { product.run_fma(&mut warp.regs.r32) };
        } else {
            product.run(&mut warp.regs.r32);
        }
        Ok(Next::Step)
    }
}

/// At the border of a cache line: on the stack as it comes, vectors may straddle lines, which takes a quarter longer.
#[repr(align(64))]
struct Aligned<T>(T);

/// A product of floats.
struct Product<'a> {
    kind: MmaKind,
    tensor: Tensor,
    /// Registers of d, a, b, c.
    lists: [&'a [Slot]; 4],
}

impl Product<'_> {
    #[target_feature(enable = "avx2,fma")]
    fn run_fma(&self, r32: &mut [Lanes32]) {
        self.run(r32);
    }

    /// Unpacks the fragments into dense matrices, multiplies, and packs the result.
    #[inline(always)]
    fn run(&self, r32: &mut [Lanes32]) {
        let [d, a, b, c] = self.lists;
        let (mut left, mut right) = (Aligned::<Left>([[0.0; 16]; 16]), Aligned::<Right>([[0.0; 8]; 16]));
        let mut sums = Aligned(gather_sums(r32, self.kind.c, c));
        let (left, right, sums) = (&mut left.0, &mut right.0, &mut sums.0);
        match self.kind.a {
            Ty::Bf16 => pairs(r32, a, b, |half| f32::from_bits(half << 16), left, right),
            Ty::F16 => pairs(r32, a, b, widen_half, left, right),
            _ => singles(r32, a, b, left, right),
        }
        let k = usize::from(self.kind.k);
        match self.tensor {
            Tensor::Ordered => tensor::ordered(left, right, sums, k),
            Tensor::Truncated { extra_bits, group } => {
                // A group of tf32 products is half as many.
                let group = if self.kind.a == Ty::Tf32 { group / 2 } else { group };
                tensor::truncated(left, right, sums, k, extra_bits, group as usize);
            }
        }
        scatter_sums(r32, self.kind.d, d, sums);
    }
}

/// Converts an f16 without a branch, so that a loop over it becomes vector code: the exponent is moved by a
/// multiplication, which is right for subnormal numbers too.
#[inline(always)]
fn widen_half(half: u32) -> f32 {
    let magnitude = f32::from_bits((half & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
    let special = if half & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

/// Unpacks fragments with two elements in a register. Eight neighbours of a row of A lie in four neighbouring lanes.
#[inline(always)]
fn pairs(
    r32: &[Lanes32],
    a: &[Slot],
    b: &[Slot],
    value: impl Fn(u32) -> f32,
    left: &mut Left,
    right: &mut Right,
) {
    for (r, &slot) in a.iter().enumerate() {
        let register = &r32[slot as usize].0;
        let (row, column) = (8 * (r % 2), 8 * (r / 2));
        for (g, words) in register.chunks_exact(4).enumerate() {
            let to = &mut left[(row + g) & 15][column & 8..][..8];
            for i in 0..8 {
                to[i] = value(words[i / 2] >> (16 * (i % 2)) & 0xFFFF);
            }
        }
    }
    for (r, &slot) in b.iter().enumerate() {
        let register = &r32[slot as usize].0;
        for t in 0..4 {
            let words: [u32; 8] = std::array::from_fn(|g| register[4 * g + t]);
            right[(8 * r + 2 * t) & 15] = words.map(|word| value(word & 0xFFFF));
            right[(8 * r + 2 * t + 1) & 15] = words.map(|word| value(word >> 16));
        }
    }
}

/// Unpacks fragments of tf32; the bits below its ten of mantissa are not looked at.
#[inline(always)]
fn singles(r32: &[Lanes32], a: &[Slot], b: &[Slot], left: &mut Left, right: &mut Right) {
    let value = |bits: u32| f32::from_bits(bits & 0xFFFF_E000);
    for (r, &slot) in a.iter().enumerate() {
        let register = &r32[slot as usize].0;
        for lane in 0..LANES {
            left[8 * (r % 2) + lane / 4][4 * (r / 2) + lane % 4] = value(register[lane]);
        }
    }
    for (r, &slot) in b.iter().enumerate() {
        let register = &r32[slot as usize].0;
        for t in 0..4 {
            right[(4 * r + t) & 15] = std::array::from_fn(|g| value(register[4 * g + t]));
        }
    }
}

#[inline(always)]
fn gather_sums(r32: &[Lanes32], ty: Ty, c: &[Slot]) -> Sums {
    let mut sums = [[0.0; 8]; 16];
    if ty == Ty::F16 {
        for (r, &slot) in c.iter().enumerate() {
            for (lane, word) in r32[slot as usize].0.iter().enumerate() {
                sums[lane / 4 + 8 * r][2 * (lane % 4)] = widen_half(word & 0xFFFF);
                sums[lane / 4 + 8 * r][2 * (lane % 4) + 1] = widen_half(word >> 16);
            }
        }
        return sums;
    }
    for (half, pair) in c.chunks_exact(2).enumerate() {
        let (even, odd) = (&r32[pair[0] as usize].0, &r32[pair[1] as usize].0);
        for g in 0..8 {
            let row = &mut sums[(8 * half + g) & 15];
            for t in 0..4 {
                row[2 * t] = f32::from_bits(even[4 * g + t]);
                row[2 * t + 1] = f32::from_bits(odd[4 * g + t]);
            }
        }
    }
    sums
}

#[inline(always)]
fn scatter_sums(r32: &mut [Lanes32], ty: Ty, d: &[Slot], sums: &Sums) {
    if ty == Ty::F16 {
        let half =
            |value: f32| u32::from(if value.is_nan() { 0x7FFF } else { f16::from_f32(value).to_bits() });
        for (r, &slot) in d.iter().enumerate() {
            for (lane, word) in r32[slot as usize].0.iter_mut().enumerate() {
                let row = &sums[lane / 4 + 8 * r];
                *word = half(row[2 * (lane % 4)]) | half(row[2 * (lane % 4) + 1]) << 16;
            }
        }
        return;
    }
    for (r, &slot) in d.iter().enumerate() {
        let register = &mut r32[slot as usize].0;
        for g in 0..8 {
            let row = &sums[(g + 8 * (r / 2)) & 15];
            for t in 0..4 {
                register[4 * g + t] = row[2 * t + r % 2].to_bits();
            }
        }
    }
}

/// A product of 8-bit integers: exact, then wrapped or clamped to 32 bits.
fn integer_product(r32: &mut [Lanes32], kind: MmaKind, satfinite: bool, [d, a, b, c]: [&[Slot]; 4]) {
    let value = |ty: Ty, byte: u32| if ty == Ty::S8 { i64::from(byte as i8) } else { i64::from(byte as u8) };
    let (mut left, mut right) = ([[0i64; 32]; 16], [[0i64; 8]; 32]);
    for (r, &slot) in a.iter().enumerate() {
        for (lane, bits) in r32[slot as usize].0.iter().enumerate() {
            for byte in 0..4 {
                let column = 16 * (r / 2) + 4 * (lane % 4) + byte;
                left[8 * (r % 2) + lane / 4][column] = value(kind.a, bits >> (8 * byte) & 0xFF);
            }
        }
    }
    for (r, &slot) in b.iter().enumerate() {
        for (lane, bits) in r32[slot as usize].0.iter().enumerate() {
            for byte in 0..4 {
                right[16 * r + 4 * (lane % 4) + byte][lane / 4] = value(kind.b, bits >> (8 * byte) & 0xFF);
            }
        }
    }
    let before: Vec<Lanes32> = c.iter().map(|&slot| r32[slot as usize]).collect();
    for (r, &slot) in d.iter().enumerate() {
        for lane in 0..LANES {
            let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
            let products = (0..usize::from(kind.k)).map(|k| left[row][k] * right[k][column]).sum::<i64>();
            let sum = i64::from(before[r].0[lane] as i32) + products;
            let clamped = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            r32[slot as usize].0[lane] = (if satfinite { clamped } else { sum }) as u32;
        }
    }
}
