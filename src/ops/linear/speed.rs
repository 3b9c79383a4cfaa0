//! Speed of the products beside the crate `gemm`, in turn, in one run: `cargo test --release speed -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;

use super::*;
use crate::device::{CpuOptions, Isa};
use crate::ops::linear::kernel::{Begin, Block, COLS, Format, Panel, ROWS};

const ROUNDS: usize = 7;

/// (N, C, O) of the forward product.
const SHAPES: [(usize, usize, usize); 9] = [
    (2048, 1024, 1024),
    (2048, 1024, 3072),
    (2048, 384, 1536),
    (16, 1024, 3072),
    (256, 512, 512),
    (256, 256, 256),
    (256, 128, 128),
    (256, 256, 2),
    (256, 2, 256),
];

/// Returns GFLOP/s of `flops` done by `f`, the best of some calls.
fn rate(flops: f64, mut f: impl FnMut()) -> f64 {
    let times = (2e8 / flops).clamp(1.0, 300.0) as usize;
    let mut least = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        f();
        least = least.min(start.elapsed().as_secs_f64());
    }
    flops / least / 1e9
}

fn best(rounds: &[[f64; 5]], i: usize) -> f64 {
    rounds.iter().map(|r| r[i]).fold(0.0, f64::max)
}

/// Multiplies by the crate: `c (m, n) = a (m, k) · b (k, n)` with strides (row, column).
fn peer(
    threads: usize,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
    (a, ars, acs): (&[f32], usize, usize),
    (b, brs, bcs): (&[f32], usize, usize),
) {
    let parallel = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    assert!(a.len() >= m * k && b.len() >= k * n && c.len() >= m * n);
    // SAFETY: the asserts, and strides of dense matrices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            acs as isize,
            ars as isize,
            b.as_ptr(),
            bcs as isize,
            brs as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallel,
        );
    }
}

fn measure<X: FloatX>(threads: usize, (n, c, o): (usize, usize, usize)) {
    let device = Device::open("cpu", CpuOptions { threads, ..Default::default() }).unwrap();
    let fill = |rows, cols| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
        (Tensor::<X>::from_f32(&device, [rows, cols], &values).unwrap(), values)
    };
    let ((x, xs), (w, ws), (dy, dys)) = (fill(n, c), fill(o, c), fill(n, o));
    let mut dw = Tensor::<f32>::zeros(&device, [o, c]);
    let flops = 2.0 * (n * c * o) as f64;
    let (mut y, mut dx, mut peer_dw) = (vec![0.0; n * o], vec![0.0; n * c], vec![0.0; o * c]);
    let mut round = || {
        let mut ours = || {
            let forward = rate(flops, || {
                black_box(linear_forward(&x, w.view(), None, None, Activation::Silu).unwrap());
            });
            let input = rate(flops, || {
                black_box(linear_backward_input(&dy, w.view(), None).unwrap());
            });
            let weight = rate(flops, || linear_backward_weight(dw.view_mut(), None, &dy, &x).unwrap());
            [forward, input, weight]
        };
        let [forward, input, weight] = device.scope(&mut ours);
        let theirs = rate(flops, || peer(threads, (n, o, c), &mut y, (&xs, c, 1), (&ws, 1, c)));
        let theirs_weight = rate(flops, || peer(threads, (o, c, n), &mut peer_dw, (&dys, 1, o), (&xs, c, 1)));
        black_box(&mut dx);
        [forward, input, weight, theirs, theirs_weight]
    };
    let rounds: Vec<[f64; 5]> = (0..ROUNDS).map(|_| round()).collect();
    let b = |i| best(&rounds, i);
    println!(
        "{:>5} {threads}t {n:>5}x{c:>4}x{o:>4}: forward+silu {:6.1}  dx {:6.1}  dw {:6.1} | gemm f32 NT {:6.1} TN {:6.1}",
        X::DTYPE,
        b(0),
        b(1),
        b(2),
        b(3),
        b(4)
    );
}

/// Returns seconds of the fastest of many short calls, which a busy machine leaves alone now and then.
fn fastest(mut f: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..3000).map(once).fold(f64::INFINITY, f64::min)
}

/// Prints GFLOP/s of multiply-adds on registers alone and of the kernels on panels in the nearest caches.
fn print_peaks() {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() >= Isa::Avx512 {
        // SAFETY: AVX-512 was detected.
        let seconds = fastest(|| unsafe { registers_avx512(1000) });
        println!("registers f32: {:.1} GFLOP/s", 1000.0 * 24.0 * 32.0 / seconds / 1e9);
    }
    for (format, units) in [(Format::Single, 128), (Format::Single, 256), (Format::Pair, 256)] {
        for (row, step, width) in [(units, 1, 48), (1, ROWS, 48), (units, 1, 16)] {
            let (a, b) = (vec![0x3f80_3f80; units * ROWS], vec![0x3f80_3f80; units * COLS]);
            let mut sums = vec![0.0; ROWS * COLS];
            let a = Panel { data: &a, rows: ROWS, row, step };
            let (next, b_step, begin) = (a, width, Begin::Zero);
            let block = Block { format, a, next, b: &b, b_step, ahead: &[], width, units, begin };
            let seconds = fastest(|| {
                for _ in 0..10 {
                    std::hint::black_box(&block).run(Isa::detect(), &mut sums, COLS);
                }
            });
            let per_unit = if format == Format::Pair { 4.0 } else { 2.0 };
            let rate = 10.0 * per_unit * (units * width * ROWS) as f64 / seconds / 1e9;
            println!("kernel {format:?} step {step} 8x{width} over {units} units: {rate:.1} GFLOP/s");
        }
    }
}

/// Runs 24 independent chains of multiply-adds, as many as the kernels do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn registers_avx512(times: usize) {
    use std::arch::x86_64::*;
    let (x, mut acc) = (_mm512_set1_ps(0.5), [_mm512_setzero_ps(); 24]);
    for _ in 0..times {
        for acc in &mut acc {
            *acc = _mm512_fmadd_ps(*acc, x, x);
        }
    }
    std::hint::black_box(acc);
}

#[test]
#[ignore = "prints speeds, checks nothing"]
fn speed_beside_gemm() {
    print_peaks();
    for threads in [1, 2] {
        for shape in SHAPES {
            measure::<f32>(threads, shape);
            measure::<bf16>(threads, shape);
        }
    }
}
