//! CUB's block-wide collectives, compiled by NVRTC with NVIDIA's header wheels, must be right and silent: the emulator and
//! its checks meet code that was not written with them in mind.

#[path = "../support/mod.rs"]
mod support;

use cuda_emulator::isa::Module;
use cuda_emulator::lower;
use cuda_emulator::toolchain::{self, NvrtcVersion};

use support::case::Case;
use support::numbers::{Element, Random};
use support::settings;

const SOURCE: &str = include_str!("blocks.cu");
const ITEMS: usize = 4;
const SCHEDULES: u64 = 5;

fn module(threads: usize, version: NvrtcVersion) -> Module {
    let nvrtc = toolchain::nvrtc(version).unwrap_or_else(|e| panic!("{e}"));
    let headers = toolchain::headers(version).unwrap_or_else(|e| panic!("{e}"));
    let mut options =
        vec!["--gpu-architecture=compute_80".to_string(), "--std=c++17".into(), "-lineinfo".into()];
    options.extend([format!("-DTHREADS={threads}"), format!("-DITEMS={ITEMS}")]);
    options.extend(headers.iter().map(|folder| format!("--include-path={}", folder.display())));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let compiled = nvrtc.compile(SOURCE, "blocks.cu", &options).unwrap_or_else(|e| panic!("{e}"));
    lower::module(&compiled.ptx).unwrap_or_else(|e| panic!("{e}"))
}

fn run(case: &Case, module: &Module, what: &str) {
    for n in 0..SCHEDULES {
        let config = settings::schedule(n, (8, 0));
        for checks in settings::CHECKS {
            let config = cuda_emulator::exec::Config { checks, ..config.clone() };
            let what = format!("{}, {what}, schedule {n}, {checks:?}", case.kernel);
            case.run(module, &config).assert_right(&what);
        }
    }
}

/// Runs the cases that `make` gives for each block size and compiler, under each schedule and set of checks.
fn check(make: impl Fn(usize, &mut Random) -> Vec<Case>) {
    for threads in [64, 128, 256] {
        for version in NvrtcVersion::ALL {
            let module = module(threads, version);
            for case in make(threads, &mut Random(threads as u64)) {
                run(&case, &module, &format!("{threads} threads, {version:?}"));
            }
        }
    }
}

/// A case of as many blocks as n elements need, with the two outputs that every kernel has.
fn start(kernel: &str, threads: usize, tile: usize, n: usize) -> Case {
    Case::new(kernel, [n.div_ceil(tile) as u32, 1, 1], [threads as u32, 1, 1])
}

#[test]
fn block_reduce_is_right() {
    check(|threads, random| {
        let n = threads * 2 + 37;
        let x: Vec<f64> = (0..n).map(|_| random.below(2001) as f64 - 1000.0).collect();
        let make = |kernel| {
            let mut case = start(kernel, threads, threads, n);
            case.output("sums", Element::F32, n.div_ceil(threads));
            case.output("tops", Element::F32, n.div_ceil(threads));
            case.input("x", Element::F32, &x);
            case.int(n as i32);
            // Whole numbers: exact in any order.
            case.expect_exactly("sums", x.chunks(threads).map(|tile| tile.iter().sum()).collect());
            let top = |tile: &[f64]| tile.iter().copied().fold(f64::MIN, f64::max);
            case.expect_exactly("tops", x.chunks(threads).map(top).collect());
            case
        };
        ["reduce_warps", "reduce_raking"].map(make).into()
    });
}

#[test]
fn block_scan_is_right() {
    check(|threads, random| {
        let (tile, n) = (threads * ITEMS, threads * ITEMS + 101);
        let x: Vec<f64> = (0..n).map(|_| random.below(1000) as f64).collect();
        let make = |kernel| {
            let mut case = start(kernel, threads, tile, n);
            case.output("y", Element::U32, n);
            case.output("totals", Element::U32, n.div_ceil(tile));
            case.input("x", Element::U32, &x);
            case.int(n as i32);
            let before = |i: usize| x[i / tile * tile..i].iter().sum();
            case.expect_exactly("y", (0..n).map(before).collect());
            case.expect_exactly("totals", x.chunks(tile).map(|tile| tile.iter().sum()).collect());
            case
        };
        ["scan_warps", "scan_raking"].map(make).into()
    });
}

#[test]
fn block_radix_sort_is_right_and_stable() {
    check(|threads, random| {
        let (tile, n) = (threads * ITEMS, threads * ITEMS + 101);
        // Half of the keys are few and repeat, so that stability shows; the others use all bits.
        let key =
            |r: &mut Random, i| if i % 2 == 1 { r.below(10) as f64 } else { (r.bits() as u32 >> 1) as f64 };
        let x: Vec<f64> = (0..n).map(|i| key(random, i)).collect();
        let mut case = start("sort_pairs", threads, tile, n);
        case.output("keys", Element::U32, n);
        case.output("places", Element::U32, n);
        case.input("x", Element::U32, &x);
        case.int(n as i32);
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        for tile in x.chunks(tile) {
            let mut order: Vec<usize> = (0..tile.len()).collect();
            order.sort_by(|&a, &b| tile[a].total_cmp(&tile[b])); // stable
            keys.extend(order.iter().map(|&i| tile[i]));
            places.extend(order.iter().map(|&i| i as f64));
        }
        case.expect_exactly("keys", keys);
        case.expect_exactly("places", places);
        vec![case]
    });
}
