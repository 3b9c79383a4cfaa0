//! Products against f64, over shapes around the block sizes, all storage types, instruction sets and thread counts.

use half::{bf16, f16};

use super::*;
use crate::device::{CpuOptions, Isa};

const ACTS: [Activation; 3] = [Activation::Identity, Activation::Silu, Activation::GeluTanh];

fn cpu(threads: usize, isa: Option<Isa>) -> Device {
    Device::open("cpu", CpuOptions { threads, isa, guard: true }).unwrap()
}

fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16].into_iter().filter(|i| *i <= Isa::detect())
}

/// Numbers in [−1, 1) from a hash of index and seed.
fn numbers<X: FloatX>(device: &Device, rows: usize, cols: usize, seed: u32) -> Tensor<X> {
    let value = |i: u32| {
        let mut h = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
        ((h ^ (h >> 16)) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..(rows * cols) as u32).map(value).collect();
    Tensor::from_f32(device, [rows, cols], &values).unwrap()
}

fn vector<X: FloatX>(device: &Device, len: usize, seed: u32) -> Tensor<X> {
    numbers(device, 1, len, seed).reshaped([len]).unwrap()
}

fn wide<X: FloatX>(x: &Tensor<X>) -> Vec<f64> {
    x.to_f32_vec().unwrap().into_iter().map(f64::from).collect()
}

/// Returns Σ_k a(i, k)·b(k, j) in f64.
fn sums(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|p| a(i / n, p) * b(p, i % n)).sum()).collect()
}

fn act(act: Activation, z: f64) -> f64 {
    match act {
        Activation::Identity => z,
        Activation::Silu => z / (1.0 + (-z).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            0.5 * z * (1.0 + u.tanh())
        }
    }
}

/// Returns act'(z) by a central difference, good to 1e-9.
fn slope(a: Activation, z: f64) -> f64 {
    (act(a, z + 1e-5) - act(a, z - 1e-5)) / 2e-5
}

/// Storage type's half unit in the last place, with some room; f32 has to hold the error of the sums too.
fn tolerance<X: FloatX>() -> f64 {
    match X::DTYPE {
        crate::float::DType::F32 => 1e-5,
        crate::float::DType::Bf16 => 5e-3,
        crate::float::DType::F16 => 6e-4,
    }
}

fn assert_close<X: FloatX>(what: &str, found: &Tensor<X>, expected: &[f64]) {
    let scale = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (x, y)) in wide(found).iter().zip(expected).enumerate() {
        let error = (x - y).abs() / scale;
        assert!(error <= tolerance::<X>(), "{what}: element {i} is {x}, expected {y}");
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

fn check_forward<A: FloatX, W: FloatX>(device: &Device, (n, c, o): (usize, usize, usize)) {
    let (x, w) = (numbers::<A>(device, n, c, 1), numbers::<W>(device, o, c, 2));
    let (b, add) = (vector::<W>(device, o, 3), numbers::<A>(device, n, o, 4));
    let (xs, ws, bs, adds) = (wide(&x), wide(&w), wide(&b), wide(&add));
    let plain = sums((n, o, c), |i, k| xs[i * c + k], |k, j| ws[j * c + k]);
    for a in ACTS {
        for (with_b, with_add) in [(false, false), (true, false), (true, true)] {
            let what = format!("{device:?} {} {a:?} {n}x{c}x{o} {with_b} {with_add}", A::DTYPE);
            let bias = with_b.then(|| b.view());
            let (y, z) = linear_forward(&x, w.view(), bias, with_add.then_some(&add), a).unwrap();
            let sum = |i: usize| {
                plain[i] + if with_b { bs[i % o] } else { 0.0 } + if with_add { adds[i] } else { 0.0 }
            };
            let expected: Vec<f64> = (0..n * o).map(sum).collect();
            let out: Vec<f64> = expected.iter().map(|z| act(a, *z)).collect();
            assert_close(&what, &y, &out);
            assert_eq!(z.is_none(), a == Activation::Identity);
            if let Some(z) = z {
                assert_close(&what, &z, &expected);
            }
        }
    }
}

fn check_backward<A: FloatX, W: FloatX>(device: &Device, (n, c, o): (usize, usize, usize)) {
    let what = format!("{device:?} {} {n}x{c}x{o}", A::DTYPE);
    let (x, w) = (numbers::<A>(device, n, c, 1), numbers::<W>(device, o, c, 2));
    let (dy, before) = (numbers::<A>(device, n, o, 3), numbers::<A>(device, n, c, 4));
    let (xs, ws, dys) = (wide(&x), wide(&w), wide(&dy));
    let plain = sums((n, c, o), |i, k| dys[i * o + k], |k, j| ws[k * c + j]);
    assert_close(&what, &linear_backward_input(&dy, w.view(), None).unwrap(), &plain);
    for a in ACTS {
        let dx = linear_backward_input(&dy, w.view(), Some((a, &x))).unwrap();
        let expected: Vec<f64> = plain.iter().zip(&xs).map(|(g, z)| g * slope(a, *z)).collect();
        assert_close(&format!("{what} through {a:?}"), &dx, &expected);
    }
    let mut dx = before.duplicate().unwrap();
    linear_backward_input_add(&mut dx, &dy, w.view(), None).unwrap();
    let expected: Vec<f64> = plain.iter().zip(wide(&before)).map(|(g, d)| g + d).collect();
    assert_close(&format!("{what} added"), &dx, &expected);

    let (mut dw, mut db) = (numbers::<f32>(device, o, c, 5), vector::<f32>(device, o, 6));
    let (dw_before, db_before) = (wide(&dw), wide(&db));
    linear_backward_weight(dw.view_mut(), Some(db.view_mut()), &dy, &x).unwrap();
    let plain = sums((o, c, n), |i, k| dys[k * o + i], |k, j| xs[k * c + j]);
    let expected: Vec<f64> = plain.iter().zip(dw_before).map(|(g, d)| g + d).collect();
    assert_close(&format!("{what} dw"), &dw, &expected);
    let column = |j: usize| (0..n).map(|i| dys[i * o + j]).sum::<f64>();
    let expected: Vec<f64> = db_before.iter().enumerate().map(|(j, d)| d + column(j)).collect();
    assert_close(&format!("{what} db"), &db, &expected);
}

fn check<A: FloatX, W: FloatX>(device: &Device, shape: (usize, usize, usize)) {
    check_forward::<A, W>(device, shape);
    check_backward::<A, W>(device, shape);
}

/// One, primes, around 8, 16, 48, 192 and 256, widths not multiple of 4, one tile, many tiles, nothing at all.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (2, 3, 5),
    (7, 16, 49),
    (9, 17, 47),
    (16, 31, 192),
    (130, 33, 14),
    (131, 257, 97),
    (257, 48, 193),
    (3, 515, 2),
    (64, 2, 129),
    (1, 0, 3),
    (0, 4, 3),
];

#[test]
fn products_agree_with_f64_on_every_instruction_set_and_storage_type() {
    for isa in isas() {
        let device = cpu(2, Some(isa));
        for shape in SHAPES {
            check::<f32, f32>(&device, shape);
            check::<bf16, bf16>(&device, shape);
            check::<f16, f16>(&device, shape);
            check::<f32, bf16>(&device, shape);
        }
    }
}

#[test]
fn long_sums_agree_with_f64() {
    let device = cpu(2, None);
    check::<f32, f32>(&device, (40, 1030, 50));
    check::<f32, f32>(&device, (1543, 10, 60));
    check::<bf16, bf16>(&device, (1543, 1050, 10));
}

/// Runs all three products and returns every bit of the results.
fn bits<A: FloatX>(device: &Device, (n, c, o): (usize, usize, usize)) -> Vec<u32> {
    let (x, w) = (numbers::<A>(device, n, c, 1), numbers::<A>(device, o, c, 2));
    let b = vector::<A>(device, o, 3);
    let (y, z) = linear_forward(&x, w.view(), Some(b.view()), None, Activation::Silu).unwrap();
    let dx = linear_backward_input(&y, w.view(), Some((Activation::GeluTanh, &x))).unwrap();
    let (mut dw, mut db) = (numbers::<f32>(device, o, c, 5), vector::<f32>(device, o, 6));
    linear_backward_weight(dw.view_mut(), Some(db.view_mut()), &y, &x).unwrap();
    let all = [
        y.to_f32_vec().unwrap(),
        z.unwrap().to_f32_vec().unwrap(),
        dx.to_f32_vec().unwrap(),
        dw.to_f32_vec().unwrap(),
        db.to_f32_vec().unwrap(),
    ];
    all.concat().into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    for isa in isas() {
        for shape in [(300, 270, 400), (1100, 300, 130), (16, 256, 768)] {
            let one = (bits::<f32>(&cpu(1, Some(isa)), shape), bits::<bf16>(&cpu(1, Some(isa)), shape));
            for threads in [2, 3, 8] {
                let device = cpu(threads, Some(isa));
                assert!(one.0 == bits::<f32>(&device, shape), "{isa:?} {shape:?} {threads} threads");
                assert!(one.1 == bits::<bf16>(&device, shape), "{isa:?} {shape:?} {threads} threads, bf16");
            }
        }
    }
}

fn assert_rows_independent<A: FloatX>(device: &Device) {
    let (n, c, o) = (331, 290, 110);
    let (x, w) = (numbers::<A>(device, n, c, 1), numbers::<A>(device, o, c, 2));
    let forward = |x: &Tensor<A>| linear_forward(x, w.view(), None, None, Activation::Silu).unwrap().0;
    let whole = forward(&x);
    let back = linear_backward_input(&whole, w.view(), None).unwrap();
    for (start, end) in [(0, 1), (5, 21), (17, 150), (330, 331)] {
        let part = &x.to_f32_vec().unwrap()[start * c..end * c];
        let y = forward(&Tensor::from_f32(device, [end - start, c], part).unwrap());
        let dx = linear_backward_input(&y, w.view(), None).unwrap();
        assert!(
            y.to_f32_vec().unwrap() == whole.to_f32_vec().unwrap()[start * o..end * o],
            "{device:?} rows {start}..{end}"
        );
        assert!(
            dx.to_f32_vec().unwrap() == back.to_f32_vec().unwrap()[start * c..end * c],
            "{device:?} dx {start}..{end}"
        );
    }
}

fn assert_packed_and_in_parts<A: FloatX>(device: &Device) {
    let Device::Cpu(handle) = device else { unreachable!("opened as the processor") };
    for (c, o) in [(128, 128), (37, 130), (1100, 50), (1, 7)] {
        let parts =
            [64, 64, 31].map(|n| (numbers::<A>(device, n, c, n as u32), numbers::<A>(device, n, o, 9)));
        let w = numbers::<A>(device, o, c, 2);
        let mut panels = Panels::room(handle, w.view()).unwrap();
        panels.fill(w.view()).unwrap();
        let packed = Weight::new(w.view(), Some(&panels));
        let same = |a: &Tensor<A>, b: &Tensor<A>| assert!(a.to_f32_vec().unwrap() == b.to_f32_vec().unwrap());
        for (x, dy) in &parts {
            let forward = |w: Weight<'_, A>| linear_forward(x, w, None, None, Activation::Silu).unwrap().0;
            same(&forward(packed), &forward(w.view().into()));
            let backward = |w: Weight<'_, A>| linear_backward_input(dy, w, None).unwrap();
            same(&backward(packed), &backward(w.view().into()));
        }
        let joined = |parts: [&Tensor<A>; 3], width: usize| {
            let values: Vec<f32> = parts.into_iter().flat_map(|part| part.to_f32_vec().unwrap()).collect();
            Tensor::<A>::from_f32(device, [159, width], &values).unwrap()
        };
        let (x, dy) = (joined(parts.each_ref().map(|p| &p.0), c), joined(parts.each_ref().map(|p| &p.1), o));
        let sums = |sum: &dyn Fn(ViewMut<f32>, ViewMut<f32>)| {
            let (mut dw, mut db) = (numbers::<f32>(device, o, c, 5), vector::<f32>(device, o, 6));
            sum(dw.view_mut(), db.view_mut());
            [dw.to_f32_vec().unwrap(), db.to_f32_vec().unwrap()]
        };
        let whole = sums(&|dw, db| linear_backward_weight(dw, Some(db), &dy, &x).unwrap());
        let parts: Vec<_> = parts.iter().map(|(x, dy)| (dy, x)).collect();
        let in_parts =
            sums(&|dw, db| linear_backward_weight_parts(Start::Value, dw, Some(db), &parts).unwrap());
        assert!(whole == in_parts, "{device:?} {} {c} {o}", A::DTYPE);
        let from_zero = |parts: &[(&Tensor<A>, &Tensor<A>)], start: Start, value: f32| {
            let mut dw = Tensor::<f32>::from_f32(device, [o, c], &vec![value; o * c]).unwrap();
            linear_backward_weight_parts(start, dw.view_mut(), None, parts).unwrap();
            dw.to_f32_vec().unwrap()
        };
        for parts in [&parts[..], &[(&dy, &x)]] {
            assert!(from_zero(parts, Start::Zero, f32::NAN) == from_zero(parts, Start::Value, 0.0));
        }
    }
}

#[test]
fn packed_weights_and_rows_in_parts_give_the_same_bits() {
    for isa in isas() {
        assert_packed_and_in_parts::<f32>(&cpu(2, Some(isa)));
        assert_packed_and_in_parts::<bf16>(&cpu(2, Some(isa)));
        assert_packed_and_in_parts::<f16>(&cpu(1, Some(isa)));
    }
}

/// One column more, and an operand that is summed over its rows is packed instead of read where it lies.
#[test]
fn operands_read_where_they_lie_give_the_bits_of_packed_ones() {
    for isa in isas() {
        let (device, n, o, c) = (cpu(2, Some(isa)), 130, 40, 112);
        let (dy, x, w) =
            (numbers(&device, n, o, 1), numbers(&device, n, c + 1, 2), numbers(&device, o, c + 1, 3));
        let cut = |wide: &Tensor<f32>| -> Tensor<f32> {
            let rows = wide.rows_cols().0;
            let values = wide.to_f32_vec().unwrap();
            let values: Vec<f32> = values.chunks_exact(c + 1).flat_map(|row| &row[..c]).copied().collect();
            Tensor::from_f32(&device, [rows, c], &values).unwrap()
        };
        let dw = |x: &Tensor<f32>| {
            let mut dw = Tensor::<f32>::zeros(&device, [o, x.rows_cols().1]);
            linear_backward_weight(dw.view_mut(), None, &dy, x).unwrap();
            dw
        };
        let dx = |w: &Tensor<f32>| linear_backward_input(&dy, w.view(), None).unwrap();
        let bits =
            |x: &Tensor<f32>| -> Vec<u32> { x.to_f32_vec().unwrap().iter().map(|x| x.to_bits()).collect() };
        assert!(bits(&dw(&cut(&x))) == bits(&cut(&dw(&x))), "{isa:?}");
        assert!(bits(&dx(&cut(&w))) == bits(&cut(&dx(&w))), "{isa:?}");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    for isa in isas() {
        assert_rows_independent::<f32>(&cpu(2, Some(isa)));
        assert_rows_independent::<bf16>(&cpu(2, Some(isa)));
    }
}

fn assert_nan_stays<A: FloatX>(device: &Device) {
    let (n, c, o) = (21, 35, 50);
    let mut values = numbers::<A>(device, n, c, 1).to_f32_vec().unwrap();
    for bad in [0, 34] {
        let kept = std::mem::replace(&mut values[13 * c + bad], f32::NAN);
        let x = Tensor::<A>::from_f32(device, [n, c], &values).unwrap();
        let w = numbers::<A>(device, o, c, 2);
        let (y, _) = linear_forward(&x, w.view(), None, None, Activation::GeluTanh).unwrap();
        for (i, y) in y.to_f32_vec().unwrap().iter().enumerate() {
            assert_eq!(y.is_nan(), i / o == 13, "{device:?} {} element {i}", A::DTYPE);
        }
        let mut dw = Tensor::<f32>::zeros(device, [o, c]);
        linear_backward_weight(dw.view_mut(), None, &numbers(device, n, o, 3), &x).unwrap();
        for (i, dw) in dw.to_f32_vec().unwrap().iter().enumerate() {
            assert_eq!(dw.is_nan(), i % c == bad, "{device:?} {} element {i} of dw", A::DTYPE);
        }
        values[13 * c + bad] = kept;
    }
}

#[test]
fn a_nan_reaches_its_row_and_no_other() {
    for isa in isas() {
        assert_nan_stays::<f32>(&cpu(1, Some(isa)));
        assert_nan_stays::<bf16>(&cpu(1, Some(isa)));
        assert_nan_stays::<f16>(&cpu(1, Some(isa)));
    }
}

#[test]
fn the_second_step_takes_no_memory_from_the_system() {
    let device = cpu(2, None);
    let Device::Cpu(handle) = &device else { unreachable!("opened as the processor") };
    bits::<f32>(&device, (300, 270, 400));
    let taken = handle.allocations();
    for _ in 0..5 {
        bits::<f32>(&device, (300, 270, 400));
    }
    assert_eq!(handle.allocations(), taken);
}

#[test]
fn wrong_shapes_are_named() {
    let device = cpu(1, None);
    let (x, w) = (numbers::<f32>(&device, 3, 4, 1), numbers::<f32>(&device, 5, 6, 2));
    let message =
        linear_forward(&x, w.view(), None, None, Activation::Silu).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "linear_forward: `w` has shape [5, 6], expected shape [5, 4]");
    let message = linear_backward_input(&x, w.view(), None).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "linear_backward_input: `w` has shape [5, 6], expected shape [4, 6]");
    let mut dw = Tensor::<f32>::zeros(&device, [4, 4]);
    let message = linear_backward_weight(dw.view_mut(), None, &x, &w).unwrap_err().to_string();
    assert_eq!(message, "linear_backward_weight: `x` has shape [5, 6], expected shape [3, 6]");
    let parts = [(&x, &x), (&x, &x)];
    let message =
        linear_backward_weight_parts(Start::Value, dw.view_mut(), None, &parts).unwrap_err().to_string();
    assert!(message.contains("the same even number of rows in all parts but the last"), "{message}");
}
