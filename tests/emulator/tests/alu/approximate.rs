//! Approximate functions: within the ISA's bounds in both modes, and special values exact.

use cuda_emulator::alu::{Approx, select};
use cuda_emulator::isa::{Alu, AluOp, NONE, Round, Ty, flag};
use cuda_emulator::regs::{FULL, Regs};

use crate::harness::{Form, Random, edges, form};

fn instruction(op: AluOp, ty: Ty, flags: u16) -> Alu {
    Alu { op, ty, from: ty, round: Round::None, flags, d: 4, d2: NONE, a: 0, b: 1, c: NONE }
}

fn none(_: &Alu, _: &[u64]) -> Vec<u64> {
    Vec::new()
}

/// All approximate forms; they have no exact model.
pub fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for ftz in [0, flag::FTZ] {
        for op in [AluOp::Rcp, AluOp::Sqrt, AluOp::Rsqrt, AluOp::Ex2, AluOp::Lg2, AluOp::Sin, AluOp::Cos] {
            forms.push(form(op, Ty::F32, flag::APPROX | ftz, &[Ty::F32], Ty::F32, none));
        }
        for kind in [flag::APPROX, flag::FULL] {
            forms.push(form(AluOp::Div, Ty::F32, kind | ftz, &[Ty::F32; 2], Ty::F32, none));
        }
        forms.push(form(AluOp::Rsqrt, Ty::F64, flag::APPROX | ftz, &[Ty::F64], Ty::F64, none));
    }
    forms.push(form(AluOp::Rcp, Ty::F64, flag::APPROX | flag::FTZ, &[Ty::F64], Ty::F64, none));
    forms.push(form(AluOp::Tanh, Ty::F32, flag::APPROX, &[Ty::F32], Ty::F32, none));
    for ty in [Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2] {
        let ftz = if matches!(ty, Ty::Bf16 | Ty::Bf16x2) { flag::FTZ } else { 0 };
        forms.push(form(AluOp::Ex2, ty, flag::APPROX | ftz, &[ty], ty, none));
        forms.push(form(AluOp::Tanh, ty, flag::APPROX, &[ty], ty, none));
    }
    forms
}

/// Runs an instruction on f32 arguments.
fn run(i: &Alu, approx: Approx, arguments: &[[u32; 2]]) -> Vec<u32> {
    let f = select(i, approx).unwrap_or_else(|| panic!("no function for {i:?}"));
    let mut results = Vec::new();
    for batch in arguments.chunks(32) {
        let mut regs = Regs::new(8, 8, 8);
        for (lane, [a, b]) in batch.iter().enumerate() {
            (regs.r32[0].0[lane], regs.r32[1].0[lane]) = (*a, *b);
        }
        // SAFETY: selected for this instruction on this machine.
        unsafe { f(&mut regs, i, FULL) };
        results.extend_from_slice(&regs.r32[4].0[..batch.len()]);
    }
    results
}

fn arguments() -> Vec<[u32; 2]> {
    let edges: Vec<u32> = edges(Ty::F32).into_iter().map(|x| x as u32).collect();
    let mut random = Random(7);
    let mut all: Vec<[u32; 2]> = edges.iter().flat_map(|a| edges.iter().map(move |b| [*a, *b])).collect();
    for _ in 0..20_000 {
        let [a, b] = [random.next() as u32, random.next() as u32];
        all.push([a, b]);
        // Of moderate size, where the functions have their bends.
        all.push([a & 0x83ff_ffff | 0x3c00_0000, b & 0x83ff_ffff | 0x3c00_0000]);
        all.push([a & 0x8007_ffff | 0x3f80_0000, b & 0x81ff_ffff | 0x4200_0000]);
    }
    all
}

fn flushed(x: f32, ftz: bool) -> f32 {
    if ftz && x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn half_ulp(x: f64) -> f64 {
    if x == 0.0 { 2f64.powi(-150) } else { 2f64.powi((x.abs().log2().floor() as i32).max(-126) - 24) }
}

/// The exact value (as f64) and the ISA's bound on the error.
fn expected(op: AluOp, a: f64, b: f64) -> (f64, f64) {
    use std::f64::consts::PI;
    let ulp = |y: f64| 2.0 * half_ulp(y);
    match op {
        AluOp::Rcp => (1.0 / a, ulp(1.0 / a)),
        AluOp::Sqrt => (a.sqrt(), a.sqrt() * 2f64.powi(-23)),
        AluOp::Rsqrt => (1.0 / a.sqrt(), 1.0 / a.sqrt() * 2f64.powf(-22.9)),
        AluOp::Ex2 => (2f64.powf(a), 2.0 * ulp(2f64.powf(a))),
        AluOp::Lg2 => {
            let y = a.ln() / 2f64.ln();
            (y, if a > 0.5 && a < 2.0 { 2f64.powi(-22) } else { y.abs() * 2f64.powi(-22) })
        }
        AluOp::Sin | AluOp::Cos => {
            let bound = match a.abs() {
                a if a <= 2.0 * PI => 2f64.powf(-20.5),
                a if a <= 100.0 * PI => 2f64.powf(-14.7),
                _ => 2.0, // no guarantee
            };
            (if op == AluOp::Sin { a.sin() } else { a.cos() }, bound)
        }
        AluOp::Tanh => (a.tanh(), a.tanh().abs() * 2f64.powi(-11)),
        _ => (a / b, 2.0 * ulp(a / b)),
    }
}

fn check_f32(i: &Alu) {
    let arguments = arguments();
    let ftz = i.flags & flag::FTZ != 0;
    let [rounded, perturbed] = [Approx::Rounded, Approx::Perturbed].map(|mode| run(i, mode, &arguments));
    let mut moved = 0;
    for ((bits, rounded), perturbed) in arguments.iter().zip(rounded).zip(perturbed) {
        let [a, b] = bits.map(|x| f64::from(flushed(f32::from_bits(x), ftz)));
        let huge =
            i.op == AluOp::Div && i.flags & flag::APPROX != 0 && b.abs() > 2f64.powi(126) && b.is_finite();
        let (exact, bound) = expected(i.op, a, if huge { f64::INFINITY } else { b }.copysign(b));
        let found = [rounded, perturbed].map(f32::from_bits);
        if exact.is_nan() || !(exact as f32).is_finite() || flushed(exact as f32, ftz) == 0.0 {
            special(i, *bits, exact, ftz, found);
            continue;
        }
        let error = (f64::from(found[0]) - exact).abs();
        // Subnormal results at the edge may be flushed; the model's own error is far below 2^-12 of a half ulp.
        let flushes = ftz && found[0] == 0.0 && exact.abs() <= f64::from(f32::MIN_POSITIVE);
        let limit = half_ulp(exact) * (1.0 + 2f64.powi(-12)) + 4.0 * exact.abs() * f64::EPSILON;
        assert!(error <= limit || flushes, "{i:?} of {a:e}, {b:e}: {:e}, exactly {exact:e}", found[0]);
        let error = (f64::from(found[1]) - exact).abs();
        let small = exact.abs() <= f64::from(f32::MIN_POSITIVE) * 1.01;
        // A subnormal result has no relative precision left: the rounding alone may be half of its last place.
        let bound = bound.max(half_ulp(exact)) * (1.0 + 2f64.powi(-20));
        assert!(
            error <= bound || ftz && small,
            "{i:?} of {a:e}, {b:e}: perturbed {:e}, exactly {exact:e}",
            found[1]
        );
        moved += usize::from(rounded != perturbed);
    }
    assert!(moved > arguments.len() / 20, "{i:?}: only {moved} results are perturbed");
}

/// Infinite, NaN and zero results are the same in both modes.
fn special(i: &Alu, bits: [u32; 2], exact: f64, ftz: bool, found: [f32; 2]) {
    let expected = match exact {
        exact if exact.is_nan() => f32::from_bits(0x7fff_ffff),
        exact => flushed(exact as f32, ftz),
    };
    let overflow = exact.is_finite() && expected.is_infinite() || exact != 0.0 && expected == 0.0;
    assert_eq!(found[0].to_bits(), expected.to_bits(), "{i:?} of {bits:x?}, exactly {exact:e}");
    // At the ends of the range the perturbed value may lie on the other side.
    let near = found[1].abs() >= f32::MAX || found[1].abs() <= f32::MIN_POSITIVE;
    assert!(found[1].to_bits() == expected.to_bits() || overflow && near, "{i:?} of {bits:x?} perturbed");
}

#[test]
fn approximate_f32_is_within_the_bounds() {
    for form in forms().iter().filter(|form| form.i.ty == Ty::F32) {
        check_f32(&form.i);
    }
}

#[test]
fn special_arguments_give_the_values_of_the_isa() {
    let (inf, nan) = (f32::INFINITY.to_bits(), 0x7fff_ffff);
    let negative = |x: u32| x | 1 << 31;
    let one = 1f32.to_bits();
    let tables: [(AluOp, [u32; 5]); 8] = [
        // Arguments: -infinity, -0, +0, +infinity, NaN.
        (AluOp::Rcp, [negative(0), negative(inf), inf, 0, nan]),
        (AluOp::Sqrt, [nan, negative(0), 0, inf, nan]),
        (AluOp::Rsqrt, [nan, negative(inf), inf, 0, nan]),
        (AluOp::Sin, [nan, negative(0), 0, nan, nan]),
        (AluOp::Cos, [nan, one, one, nan, nan]),
        (AluOp::Lg2, [nan, negative(inf), negative(inf), inf, nan]),
        (AluOp::Ex2, [0, one, one, inf, nan]),
        (AluOp::Tanh, [negative(one), negative(0), 0, one, nan]),
    ];
    for (op, results) in tables {
        let i = instruction(op, Ty::F32, flag::APPROX);
        let arguments = [negative(inf), negative(0), 0, inf, 0x7fc0_1234].map(|a| [a, 0]);
        assert_eq!(run(&i, Approx::Rounded, &arguments), results, "{op:?}");
    }
}

#[test]
fn division_by_a_huge_number_gives_zero_as_the_isa_says() {
    let i = instruction(AluOp::Div, Ty::F32, flag::APPROX);
    let huge = 1.5e38f32;
    let arguments = [[3f32, huge], [-3.0, huge], [f32::INFINITY, huge], [f32::MAX, 2f32.powi(126)]];
    let found = run(&i, Approx::Rounded, &arguments.map(|x| x.map(f32::to_bits)));
    assert_eq!(found, [0, 1 << 31, 0x7fff_ffff, (f32::MAX / 2f32.powi(126)).to_bits()]);
}

#[test]
fn half_functions_are_within_the_bounds() {
    for (ty, format) in [(Ty::F16, 10), (Ty::Bf16, 7)] {
        let value = |bits: u32| match ty {
            Ty::F16 => f64::from(half::f16::from_bits(bits as u16)),
            _ => f64::from(half::bf16::from_bits(bits as u16)),
        };
        let all: Vec<[u32; 2]> = (0..=0xffff).map(|bits| [bits, 0]).collect();
        let ftz = if ty == Ty::Bf16 { flag::FTZ } else { 0 };
        let (tanh_bound, ex2_bound) = if format == 10 { (-10.987, -9.9) } else { (-8.0, -7.0) };
        for (op, flags) in [(AluOp::Ex2, ftz), (AluOp::Tanh, 0)] {
            for approx in [Approx::Rounded, Approx::Perturbed] {
                let i = instruction(op, ty, flag::APPROX | flags);
                for ([bits, _], found) in all.iter().zip(run(&i, approx, &all)) {
                    let (a, y) = (value(*bits), value(found));
                    let exact = if op == AluOp::Ex2 { 2f64.powf(a) } else { a.tanh() };
                    let (largest, normal) =
                        if format == 10 { (65504.0, -14) } else { (f64::from(f32::MAX), -126) };
                    if a.is_nan() || exact > largest {
                        assert!(found == 0x7fff && a.is_nan() || y.is_infinite() || y > 0.98 * largest);
                        continue;
                    }
                    let last = 2f64.powi(normal - format);
                    let tiny = if flags != 0 { 2f64.powi(normal) } else { last / 2.0 };
                    let bound = match op {
                        AluOp::Ex2 => exact * 2f64.powf(ex2_bound) + tiny,
                        _ => 2f64.powf(tanh_bound),
                    };
                    assert!((y - exact).abs() <= bound, "{op:?} {ty:?} of {a:e}: {y:e}, exactly {exact:e}");
                }
            }
        }
    }
}

#[test]
fn gross_f64_functions_use_the_upper_words() {
    for (op, flags) in [(AluOp::Rcp, flag::FTZ), (AluOp::Rsqrt, flag::FTZ), (AluOp::Rsqrt, 0)] {
        let i = instruction(op, Ty::F64, flag::APPROX | flags);
        let f = select(&i, Approx::Rounded).expect("a legal form");
        let mut regs = Regs::new(8, 8, 8);
        let arguments = [1.0, 3.0, 0.1, 1e300, 1e-300, -0.0, 0.0, f64::INFINITY, f64::NAN, 1e-310, -2.0];
        for (lane, a) in arguments.iter().enumerate() {
            regs.r64[0].0[lane] = a.to_bits();
        }
        // SAFETY: selected for this instruction on this machine.
        unsafe { f(&mut regs, &i, FULL) };
        for (lane, a) in arguments.into_iter().enumerate() {
            let found = f64::from_bits(regs.r64[4].0[lane]);
            let flushed = if flags != 0 && a.is_subnormal() { 0.0 } else { a };
            let exact = if op == AluOp::Rcp { 1.0 / flushed } else { 1.0 / flushed.sqrt() };
            if exact.is_nan() {
                assert_eq!(found.to_bits(), if flags != 0 { 0x7fff_ffff_0000_0000 } else { 0xfff8 << 48 });
            } else if !exact.is_normal() {
                assert_eq!(found.to_bits(), exact.to_bits(), "{op:?} of {a:e}");
            } else {
                let bound = if flags != 0 { 2f64.powi(-19) } else { 2f64.powi(-51) };
                assert!((found / exact - 1.0).abs() <= bound, "{op:?} of {a:e}: {found:e}");
                assert!(flags == 0 || found.to_bits() as u32 == 0);
            }
        }
    }
}
