//! Kernels of the kinds that a training engine has, written correctly: right and without a report on two NVRTC versions and
//! ten schedules. Then the same kernels with planted bugs: each must be caught under every schedule.
//!
//! `NAME.cu` are the kernels, `references.rs` what they must compute, `mutations.rs` the bugs, `speed.rs` measurements.

#[path = "../support/mod.rs"]
mod support;

mod compile;
mod mutations;
mod references;
mod speed;

use cuda_emulator::toolchain::NvrtcVersion;

use mutations::{Catch, Change, Mutation};
use support::driver::Driver;
use support::numbers::Inputs;
use support::settings;

const SCHEDULES: u64 = 10;

fn check_all(version: NvrtcVersion, architecture: &str, capability: (u32, u32), schedules: u64) {
    let nvrtc = compile::nvrtc(version);
    for stem in references::STEMS {
        let name = format!("{stem}.cu");
        let module = compile::module(&nvrtc, &compile::source(stem), &name, architecture);
        for inputs in Inputs::ALL {
            for (size, case) in references::cases(stem, inputs).iter().enumerate() {
                for n in 0..schedules {
                    let config = settings::schedule(n, capability);
                    let what = format!(
                        "{name}, {version:?}, {architecture}, {inputs:?} inputs, size {size}, schedule {n}"
                    );
                    case.run(&module, &config).assert_right(&what);
                    if n < 2 {
                        let coarse = settings::coarse(config);
                        case.run(&module, &coarse).assert_right(&format!("{what}, coarse numbers"));
                    }
                }
            }
        }
    }
}

#[test]
fn correct_kernels_of_nvrtc_13_are_right_and_silent() {
    check_all(NvrtcVersion::V13_0, "compute_80", (8, 0), SCHEDULES);
}

#[test]
fn correct_kernels_of_nvrtc_12_are_right_and_silent() {
    check_all(NvrtcVersion::V12_9, "compute_80", (8, 0), SCHEDULES);
}

#[test]
fn newer_spellings_of_the_same_kernels_are_right_and_silent() {
    for (architecture, capability) in
        [("compute_89", (8, 9)), ("compute_90", (9, 0)), ("compute_120", (12, 0))]
    {
        check_all(NvrtcVersion::V13_0, architecture, capability, 2);
    }
}

/// Plants all bugs of some kernels, prints a table, and fails if one is not caught under every schedule.
fn plant(stems: &[&str]) {
    let nvrtc = compile::nvrtc(NvrtcVersion::V13_0);
    let (mut missed, mut table) = (Vec::new(), String::new());
    for mutation in mutations::all().iter().filter(|m| stems.contains(&m.stem)) {
        let (caught, by) = try_mutation(&nvrtc, mutation);
        table += &format!("| {} | {} | {caught} of {SCHEDULES} | {by} |\n", mutation.stem, mutation.name);
        if caught < SCHEDULES {
            missed.push(mutation.name);
        }
    }
    println!("| kernel | planted bug | caught | by |\n|---|---|---|---|\n{table}");
    assert!(missed.is_empty(), "not always caught: {missed:?}");
}

#[test]
fn bugs_planted_in_the_matrix_product_are_caught() {
    plant(&["matmul"]);
}

#[test]
fn bugs_planted_in_attention_are_caught() {
    plant(&["flash"]);
}

#[test]
fn bugs_planted_in_layer_norm_and_softmax_are_caught() {
    plant(&["layer_norm", "softmax"]);
}

#[test]
fn bugs_planted_in_reductions_are_caught() {
    plant(&["reduce", "split_k", "histogram"]);
}

#[test]
fn bugs_planted_in_the_scan_are_caught() {
    plant(&["scan"]);
}

#[test]
fn bugs_planted_in_elementwise_kernels_are_caught() {
    plant(&["noise", "adamw", "gather", "transpose"]);
}

/// What a program sees: the number of the error, as a real device gives it.
#[test]
fn bugs_of_the_host_are_errors_of_the_driver() {
    let nvrtc = compile::nvrtc(NvrtcVersion::V13_0);
    let bugs: [(&str, Change, u32); 3] = [
        ("adamw", |case| case.free("grad"), 700),
        ("adamw", |case| case.shorten("grad", 1), 700),
        ("gather", |case| case.set("index", 3, 20.0), 700),
    ];
    for (stem, change, code) in bugs {
        let ptx = compile::ptx(&nvrtc, &compile::source(stem), &format!("{stem}.cu"), "compute_80");
        let mut case = references::cases(stem, Inputs::Random).swap_remove(0);
        assert_eq!(Driver::start(&[]).run(&ptx, &case), Ok(None), "{stem} as it is");
        change(&mut case);
        let failure = Driver::start(&[]).run(&ptx, &case);
        assert_eq!(failure, Err(("cuCtxSynchronize", code)), "{stem}");
    }
}

#[test]
fn every_kernel_has_planted_bugs() {
    let all = mutations::all();
    assert!(all.len() >= 30, "{}", all.len());
    for stem in references::STEMS {
        assert!(all.iter().any(|m| m.stem == stem), "{stem} has none");
    }
}

/// Counts the schedules under which a bug is caught as it must be, and says by what in the last one.
fn try_mutation(nvrtc: &cuda_emulator::toolchain::Nvrtc, mutation: &Mutation) -> (u64, String) {
    let source = mutation.apply(compile::source(mutation.stem));
    let module = compile::module(nvrtc, &source, &format!("{}.cu", mutation.stem), "compute_80");
    let mut case = references::cases(mutation.stem, Inputs::Random).swap_remove(0);
    (mutation.change)(&mut case);
    let (mut caught, mut by) = (0, String::from("nothing"));
    for n in 0..SCHEDULES {
        let outcome = case.run(&module, &settings::schedule(n, (8, 0)));
        let found = match &mutation.catch {
            Catch::Report(kinds) => {
                outcome.reports.iter().find(|r| kinds.contains(&r.kind)).map(|r| r.to_string())
            }
            Catch::WrongResult => outcome.wrong.map(|w| format!("wrong result: {w}")),
        };
        match found {
            Some(found) => {
                caught += 1;
                by = found;
            }
            None => println!(
                "missed: {}, schedule {n}: {:?}",
                mutation.name,
                outcome.reports.first().map(|r| r.to_string())
            ),
        }
    }
    (caught, by)
}
