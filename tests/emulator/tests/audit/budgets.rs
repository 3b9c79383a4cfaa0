//! Budgets: what they let pass, what they refuse, and what they say.

use std::collections::BTreeMap;

use cuda_emulator::audit::KernelAudit;
use cuda_emulator::audit::budget::Budgets;
use cuda_emulator::audit::check::{Status, Verdict};
use cuda_emulator::audit::measured::Measured;
use cuda_emulator::toolchain::NvrtcVersion;

use super::{KERNELS, audit_source, kernel};

fn check(text: &str, audits: &mut [KernelAudit], measured: &BTreeMap<String, Measured>) -> Vec<Verdict> {
    Budgets::parse(text, "budgets.toml").unwrap().check(audits, measured).unwrap()
}

/// The messages of all limits of the file that are not kept.
fn exceeded(text: &str, architecture: &str) -> Vec<String> {
    let mut audits = audit_source(KERNELS, NvrtcVersion::V13_0, architecture);
    let verdicts = check(text, &mut audits, &BTreeMap::new());
    assert!(verdicts.iter().all(|v| v.status != Status::NotChecked));
    verdicts.iter().filter(|v| v.status == Status::Exceeded).map(Verdict::to_string).collect()
}

fn refused(text: &str) -> String {
    let audits = &mut audit_source(KERNELS, NvrtcVersion::V13_0, "sm_80");
    let checked = Budgets::parse(text, "budgets.toml").and_then(|b| b.check(audits, &BTreeMap::new()));
    checked.unwrap_err().to_string()
}

#[test]
fn strict_defaults_refuse_each_fault_by_name() {
    let text = "[default]\nmax_spill_bytes = 0\nmax_calls = 0\nmax_fchk = 0\nmax_f64 = 0\n";
    for architecture in ["sm_80", "sm_90", "sm_120"] {
        let audits = audit_source(KERNELS, NvrtcVersion::V13_0, architecture);
        let spilling = &kernel(&audits, "spilling").resources;
        let messages = exceeded(text, architecture);
        let doubles = kernel(&audits, "doubling").mix[&cuda_emulator::audit::sass::Class::F64];
        assert_eq!(
            messages,
            [
                format!("doubling on {architecture}: max_f64 = 0, found {doubles}"),
                format!("dividing on {architecture}: max_calls = 0, found 1"),
                format!("dividing on {architecture}: max_fchk = 0, found 1"),
                format!(
                    "spilling on {architecture}: max_spill_bytes = 0, found {}",
                    spilling.spill_stores + spilling.spill_loads
                ),
            ]
        );
    }
}

#[test]
fn kernel_goes_before_default_and_architecture_before_both() {
    let text = "[default]\nmax_calls = 0\n\
                [default.architecture.sm_80]\nmax_registers = 1\n\
                [kernel.dividing]\nmax_calls = 1\n\
                [kernel.dividing.architecture.sm_90]\nmax_calls = 0\n\
                [kernel.layer_norm]\nmax_registers = 255\n";
    let calls = |architecture: &str| {
        let messages = exceeded(text, architecture);
        messages.iter().filter(|m| m.contains("max_calls")).count()
    };
    assert_eq!((calls("sm_80"), calls("sm_90")), (0, 1));
    let registers = |architecture: &str| {
        let messages = exceeded(text, architecture);
        messages.iter().filter(|m| m.contains("max_registers")).count()
    };
    assert_eq!((registers("sm_80"), registers("sm_90")), (6, 0)); // all but layer_norm
}

#[test]
fn limits_of_the_main_loop() {
    let kept = "[kernel.matmul]\nmax_registers = 128\nmin_blocks_per_sm = 4\nmin_occupancy = 0.4\n\
                max_instructions = { F64 = 0, CALL = 0 }\nmin_instructions = { LDGSTS = 8 }\n\
                [kernel.matmul.main_loop]\nmin_tensor_share = 0.15\nmax_length = 105\nmax_other_per_tensor = 5.5\n\
                max_issue_per_tensor_clock = 0.85\nmax_shared_per_tensor_clock = 1.5\n\
                max = { LDSM = 8 }\nmin = { HMMA = 16 }\n";
    assert_eq!(exceeded(kept, "sm_80"), [""; 0]);
    let refused = "[kernel.matmul.main_loop]\nmin_tensor_share = 0.3\nmax_shared_per_tensor_clock = 1.0\nmax = { LDSM = 7 }\n\
                   min = { MUFU = 1 }\n";
    let messages = exceeded(refused, "sm_80");
    assert!(
        messages[0].starts_with("matmul on sm_80: main_loop.min_tensor_share = 0.3, found 0.1"),
        "{messages:?}"
    );
    assert_eq!(
        messages[1..],
        [
            "matmul on sm_80: main_loop.max_shared_per_tensor_clock = 1, found 1.5",
            "matmul on sm_80: main_loop.max.LDSM = 7, found 8",
            "matmul on sm_80: main_loop.min.MUFU = 1, found 0",
        ]
    );
}

#[test]
fn limit_on_something_that_is_not_there_is_exceeded() {
    let text = "[kernel.doubling]\nmin_blocks_per_sm = 1\nmain_loop = { max_length = 10 }\n\
                [kernel.layer_norm.main_loop]\nmax_issue_per_tensor_clock = 1\n";
    assert_eq!(
        exceeded(text, "sm_80"),
        [
            "doubling on sm_80: min_blocks_per_sm = 1, but the block's size is unknown: set `threads`",
            "doubling on sm_80: main_loop.max_length = 10, but there is no loop",
            "layer_norm on sm_80: main_loop.max_issue_per_tensor_clock = 1, but there are no tensor instructions of known shape",
        ]
    );
}

#[test]
fn facts_of_the_launch_decide_on_the_occupancy() {
    let text = |shared| {
        format!(
            "[kernel.doubling]\nthreads = 1024\ndynamic_shared = {shared}\nmin_blocks_per_sm = 2\nmin_occupancy = 1.0\n"
        )
    };
    assert_eq!(exceeded(&text(0), "sm_80"), [""; 0]);
    let messages = exceeded(&text(100_000), "sm_80");
    assert_eq!(
        messages,
        [
            "doubling on sm_80: min_blocks_per_sm = 2, found 1",
            "doubling on sm_80: min_occupancy = 1, found 0.5"
        ]
    );
}

#[test]
fn mistakes_in_the_file_are_named() {
    for (text, words) in [
        ("[default]\nmax_spils = 0\n", &["budgets.toml", "max_spils", "max_spill_bytes", "line 2"][..]),
        ("[defaults]\nmax_calls = 0\n", &["defaults"]),
        ("[kernel.matmull]\nmax_calls = 0\n", &["no kernel matmull", "layer_norm, matmul, spilling"]),
        ("[kernel.matmul.main_loop]\nmax = { HMAM = 3 }\n", &["HMAM", "HMMA"]),
        ("[kernel.matmul.main_loop]\nmax_lenght = 3\n", &["max_lenght"]),
        ("[kernel.matmul.architecture.sm_70]\nmax_calls = 0\n", &["sm_70", "sm_80"]),
        ("[kernel.matmul.architecture.sm_80.architecture.sm_90]\nmax_calls = 0\n", &["within"]),
        ("[default]\nmax_calls = -1\n", &["max_calls", "-1"]),
        ("[default]\nmax_calls = \"none\"\n", &["line 2"]),
        ("max_calls = 0\n", &["max_calls"]),
        ("[step]\nmax_launch = 1\n", &["max_launch"]),
        ("[default\n", &["line 1"]),
    ] {
        let message = refused(text);
        for word in words {
            assert!(message.contains(word), "`{text}` gives `{message}`, without `{word}`");
        }
    }
}

#[test]
fn counters_are_compared_or_reported_as_missing() {
    let text = "[kernel.matmul.counters]\nmax_wavefront_ratio = 1.02\nmin_sector_efficiency = 0.95\n\
                minimal_bytes = 1000\nmax_bytes_ratio = 1.1\nmin_bytes_per_instruction = 7.2\n\
                [step]\nmax_launches = 1\nmax_global_bytes = 2048\n";
    let mut audits = audit_source(KERNELS, NvrtcVersion::V13_0, "sm_80");
    let verdicts = check(text, &mut audits, &BTreeMap::new());
    assert_eq!(verdicts.len(), 6);
    assert!(
        verdicts
            .iter()
            .all(|v| v.status == Status::NotChecked && v.to_string().contains("counters are not given"))
    );

    let measured = Measured {
        launches: 2,
        warp_instructions: 100,
        global_bytes: 1000,
        global_sectors: 64,
        shared_wavefronts: 103,
        ideal_wavefronts: 100,
        threads: 64,
        ..Measured::default()
    };
    let verdicts = check(text, &mut audits, &BTreeMap::from([("matmul".to_string(), measured)]));
    let found: Vec<_> = verdicts.iter().map(|v| (v.found.unwrap(), v.status)).collect();
    assert_eq!(
        found,
        [
            (1.03, Status::Exceeded),
            (1000.0 / 2048.0, Status::Exceeded),
            (1.024, Status::Kept), // 1024 bytes of sectors a launch
            (10.0, Status::Kept),
            (2.0, Status::Exceeded),
            (2048.0, Status::Kept),
        ]
    );
    assert_eq!(verdicts[4].to_string(), "all launches on the emulator: step.max_launches = 1, found 2");
    let matmul = audits.iter().find(|a| a.resources.kernel == "matmul").unwrap();
    assert_eq!(matmul.threads, Some(64)); // counted, and not the launch bound of 128
}

#[test]
fn example_of_the_readme_is_valid() {
    let readme = include_str!("../../README.md");
    let example = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let budgets = Budgets::parse(example, "README.md").unwrap();
    let limits = budgets.limits("matmul", "sm_90a").unwrap();
    assert_eq!((limits.max_registers, limits.max_spill_bytes, limits.threads), (None, Some(0), Some(128)));
    assert_eq!(budgets.limits("matmul", "sm_90").unwrap().max_registers, Some(168));
    assert_eq!(budgets.limits("layer_norm", "sm_80").unwrap().counters.min_bytes_per_instruction, Some(7.2));
}
