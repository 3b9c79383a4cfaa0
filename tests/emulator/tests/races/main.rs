//! Races in kernels that NVRTC compiled: correct kernels are silent and right under ten schedules, and each of their broken
//! twins (`-DBUG=n`) is reported under every one of the ten. Reads of bytes that nobody wrote are in `unwritten.rs`.

mod cost;
mod harness;
mod unwritten;

use harness::{Case, Device, Setup, floats, input, words};

/// Asserts that two lists of numbers are the same to f32 rounding; NaN never is.
fn assert_close(found: &[f32], expected: impl Iterator<Item = f64>) {
    let mut n = 0;
    for (i, (&y, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(y) - e).abs() <= 1e-4 * (1.0 + e.abs()), "element {i}: {y} instead of {e}");
        n += 1;
    }
    assert_eq!(n, found.len());
}

#[test]
fn gemm_tile_with_two_stages_of_cp_async() {
    let (m, n, k) = (64, 128, 48);
    let (a, b) = (input(m * k, 1), input(k * n, 2));
    let setup = |device: &mut Device| {
        let c = device.zeros(m * n * 4);
        let (a, b) = (device.floats(&a), device.floats(&b));
        Setup::new([2, 1, 1], [32, 8, 1]).pointer(c).pointer(a).pointer(b).int(k as i32).output(c, m * n * 4)
    };
    let check = |out: &[u8]| {
        let dot =
            |i: usize, j: usize| (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
        assert_close(&floats(out), (0..m * n).map(|at| dot(at / n, at % n)));
    };
    Case { source: include_str!("gemm.cu"), kernel: "gemm", bugs: &[1, 2, 3, 4, 5] }.run(setup, check);
}

#[test]
fn warp_reduction_with_syncwarp() {
    let x = input(256, 3);
    let setup = |device: &mut Device| {
        let (y, x) = (device.zeros(1024), device.floats(&x));
        Setup::new([2, 1, 1], [128, 1, 1]).pointer(y).pointer(x).output(y, 1024)
    };
    let check = |out: &[u8]| {
        let sum = |at: usize| x[at / 32 * 32..at / 32 * 32 + 32].iter().map(|&v| f64::from(v)).sum();
        assert_close(&floats(out), (0..256).map(sum));
    };
    Case { source: include_str!("warp_reduce.cu"), kernel: "warp_reduce", bugs: &[1, 2, 3] }
        .run(setup, check);
}

fn last_block(kernel: &'static str, bugs: &[u32]) {
    let (blocks, threads) = (7, 64);
    let x = input(blocks * threads, 4);
    let setup = |device: &mut Device| {
        let (y, sums, count) =
            (device.zeros(threads * 4), device.zeros(blocks * threads * 4), device.zeros(4));
        let x = device.floats(&x);
        let setup = Setup::new([blocks as u32, 1, 1], [threads as u32, 1, 1]);
        setup.pointer(y).pointer(sums).pointer(count).pointer(x).output(y, threads * 4)
    };
    let check = |out: &[u8]| {
        let sum = |t: usize| (0..blocks).map(|b| 2.0 * f64::from(x[b * threads + t])).sum();
        assert_close(&floats(out), (0..threads).map(sum));
    };
    Case { source: include_str!("last_block.cu"), kernel, bugs }.run(setup, check);
}

#[test]
fn last_block_reduction_with_a_fence_in_each_thread() {
    last_block("last_block", &[1, 2, 3, 4, 5]);
}

#[test]
fn last_block_reduction_with_one_fence() {
    last_block("last_block_once", &[1, 2]);
}

fn producer_consumer(source: &'static str, kernel: &'static str, bugs: &[u32]) {
    let rounds = 6;
    let x = input(rounds * 64, 5);
    let setup = |device: &mut Device| {
        let (y, x) = (device.zeros(256), device.floats(&x));
        Setup::new([1, 1, 1], [128, 1, 1]).pointer(y).pointer(x).int(rounds as i32).output(y, 256)
    };
    let check = |out: &[u8]| {
        let sum = |t: usize| (0..rounds).map(|i| f64::from(x[i * 64 + (t + 64) * 7 % 64])).sum();
        assert_close(&floats(out), (0..64).map(sum));
    };
    Case { source, kernel, bugs }.run(setup, check);
}

#[test]
fn producers_and_consumers_with_named_barriers() {
    producer_consumer(include_str!("named.cu"), "named", &[1, 2]);
}

#[test]
fn producers_and_consumers_with_mbarriers() {
    producer_consumer(include_str!("mbarrier.cu"), "mbarrier", &[1, 2, 3, 4]);
}

#[test]
fn histogram_with_shared_atomics() {
    let n = 3000;
    let bytes: Vec<u8> = input(n, 6).iter().map(|v| (v.abs() * 255.0) as u8 % 90).collect();
    let setup = |device: &mut Device| {
        let (bins, x) = (device.zeros(1024), device.bytes(&bytes));
        Setup::new([3, 1, 1], [128, 1, 1]).pointer(bins).pointer(x).int(n as i32).output(bins, 1024)
    };
    let check = |out: &[u8]| {
        let count = |bin: usize| bytes.iter().filter(|&&b| usize::from(b) == bin).count() as u32;
        assert_eq!(words(out), (0..256).map(count).collect::<Vec<_>>());
    };
    Case { source: include_str!("histogram.cu"), kernel: "histogram", bugs: &[1, 2, 3] }.run(setup, check);
}

#[test]
fn lock_between_blocks() {
    let setup = |device: &mut Device| {
        let (sum, lock) = (device.zeros(4), device.zeros(4));
        Setup::new([9, 1, 1], [32, 1, 1]).pointer(sum).pointer(lock).output(sum, 4)
    };
    let check = |out: &[u8]| assert_eq!(floats(out), [45.0]);
    Case { source: include_str!("lock.cu"), kernel: "lock", bugs: &[1, 2, 3, 4] }.run(setup, check);
}

#[test]
fn lock_between_threads() {
    let setup = |device: &mut Device| {
        let y = device.zeros(8);
        Setup::new([2, 1, 1], [64, 1, 1]).pointer(y).output(y, 8)
    };
    let check = |out: &[u8]| assert_eq!(floats(out), [2016.0; 2]);
    Case { source: include_str!("lock.cu"), kernel: "lock_shared", bugs: &[1, 2, 3] }.run(setup, check);
}

fn flag(kernel: &'static str, bugs: &[u32]) {
    let (blocks, threads) = (4, 64);
    let x = input(threads, 7);
    let setup = |device: &mut Device| {
        let (y, data, ready) =
            (device.zeros(blocks * threads * 4), device.zeros(threads * 4), device.zeros(4));
        let x = device.floats(&x);
        let setup = Setup::new([blocks as u32, 1, 1], [threads as u32, 1, 1]);
        setup.pointer(y).pointer(data).pointer(ready).pointer(x).output(y, blocks * threads * 4)
    };
    let check = |out: &[u8]| {
        let value = |at: usize| if at < threads { 0.0 } else { 3.0 * f64::from(x[(at + 1) % threads]) };
        assert_close(&floats(out), (0..blocks * threads).map(value));
    };
    Case { source: include_str!("flag.cu"), kernel, bugs }.run(setup, check);
}

#[test]
fn volatile_flag_between_blocks() {
    flag("flag", &[1, 2, 3, 4, 5]);
}

#[test]
fn released_flag_between_blocks() {
    flag("flag_release", &[1, 2, 3, 4, 5]);
}

#[test]
fn lanes_that_store_to_one_address() {
    let setup = |device: &mut Device| {
        let y = device.zeros(128);
        Setup::new([1, 1, 1], [32, 1, 1]).pointer(y).output(y, 128)
    };
    let check = |out: &[u8]| assert_eq!(words(out), [7; 32]);
    Case { source: include_str!("values.cu"), kernel: "same_address", bugs: &[1] }.run(setup, check);
}

#[test]
fn neighbouring_bytes_do_not_conflict() {
    let setup = |device: &mut Device| {
        let y = device.zeros(128);
        Setup::new([1, 1, 1], [128, 1, 1]).pointer(y).output(y, 128)
    };
    let check = |out: &[u8]| assert_eq!(out, (0..128).map(|t: u8| t ^ 1).collect::<Vec<_>>());
    Case { source: include_str!("values.cu"), kernel: "neighbours", bugs: &[1] }.run(setup, check);
}
