//! PTX that Triton made must run right, as it is: the compiler is proven on hardware, so where a result is wrong or a check
//! speaks up, the emulator is to blame.
//!
//! Kernels: `kernels.py`. Snapshots and their manifest: `ptx/`, made by `generate.py`. References: `problems.rs` and
//! `attention.rs`, in f64, from the formulas.

#[path = "../support/mod.rs"]
mod support;

mod attention;
mod manifest;
mod problems;

use cuda_emulator::isa::Module;
use cuda_emulator::lower;

use manifest::Entry;
use support::case::Case;
use support::driver::Driver;
use support::numbers::Inputs;
use support::{philox, settings};

const SCHEDULES: u64 = 5;

/// Runs all snapshots of these kernels, on each target, with each kind of input, schedule and set of checks.
fn check(kernels: &[&str]) {
    let mut snapshots = 0;
    for entry in manifest::read().iter().filter(|e| kernels.contains(&e.kernel.as_str())) {
        let module = lower::module(&entry.ptx()).unwrap_or_else(|e| panic!("{}: {e}", entry.file));
        for inputs in Inputs::ALL {
            for (size, case) in problems::cases(entry, inputs).iter().enumerate() {
                run_everywhere(
                    entry,
                    &module,
                    case,
                    &format!("{}, {inputs:?} inputs, size {size}", entry.file),
                );
            }
        }
        snapshots += 1;
    }
    assert!(snapshots >= 3 * kernels.len(), "only {snapshots} snapshots of {kernels:?}");
}

fn run_everywhere(entry: &Entry, module: &Module, case: &Case, what: &str) {
    for n in 0..SCHEDULES {
        let config = settings::schedule(n, entry.capability());
        for checks in settings::CHECKS {
            let config = cuda_emulator::exec::Config { checks, ..config.clone() };
            case.run(module, &config).assert_right(&format!("{what}, schedule {n}, {checks:?}"));
        }
        let coarse = settings::coarse(config);
        case.run(module, &coarse).assert_right(&format!("{what}, schedule {n}, coarse numbers"));
    }
}

#[test]
fn matrix_products_are_right() {
    check(&["matmul"]);
}

#[test]
fn softmax_is_right() {
    check(&["softmax"]);
}

#[test]
fn layer_norm_is_right() {
    check(&["layer_norm"]);
}

#[test]
fn attention_forward_is_right() {
    check(&["attention_forward"]);
}

#[test]
fn attention_backward_is_right() {
    check(&["attention_backward_delta", "attention_backward_kv", "attention_backward_q"]);
}

#[test]
fn random_numbers_are_those_of_philox() {
    philox::check();
    check(&["dropout", "noise"]);
}

#[test]
fn atomics_and_locks_are_right() {
    check(&["reduce_atomic", "accumulate_locked"]);
}

#[test]
fn running_sums_and_sort_are_right() {
    check(&["cumulate"]);
}

#[test]
fn every_snapshot_runs_through_the_driver() {
    for target in [80, 86, 89] {
        let device = format!("sm_{target}");
        // A finding of any kind makes the launch fail.
        let driver = Driver::start(&[("device", &device), ("findings", "fail"), ("seed", "3")]);
        for entry in manifest::read().iter().filter(|e| e.target == target) {
            let case = &problems::cases(entry, Inputs::Random)[0];
            let wrong = driver.run(&entry.ptx(), case).unwrap_or_else(|e| panic!("{}: {e:?}", entry.file));
            assert_eq!(wrong, None, "{}", entry.file);
        }
    }
}

#[test]
fn every_snapshot_is_listed_and_lowers() {
    let entries = manifest::read();
    for entry in &entries {
        let module = lower::module(&entry.ptx()).unwrap_or_else(|e| panic!("{}: {e}", entry.file));
        assert_eq!(module.target, format!("sm_{}", entry.target));
        let kernel = module.kernels.iter().find(|k| k.name == entry.kernel).expect("the kernel is there");
        assert_eq!(kernel.params.len(), entry.arguments.len() + entry.hidden_pointers, "{}", entry.file);
    }
    let files = std::fs::read_dir(manifest::folder()).unwrap().flatten();
    let snapshots = files.filter(|f| f.path().extension().is_some_and(|e| e == "ptx")).count();
    assert_eq!(snapshots, entries.len());
}
