//! `kernel-audit`: what it prints and how it exits.

use std::path::Path;
use std::process::{Command, Output};

use cuda_emulator::counters::Counters;
use serde_json::Value;

/// Runs it on `kernels.cu` in a folder with the given files.
fn audit(files: &[(&str, &str)], arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audit/kernels.cu");
    Command::new(env!("CARGO_BIN_EXE_kernel-audit"))
        .arg(source)
        .args(["--architectures", "sm_80"])
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What the driver writes of a launch: a quarter of the sectors is used, and banks collide.
fn counters() -> String {
    let mut counters = Counters { kernel: "matmul".to_string(), block: [128, 1, 1], ..Counters::default() };
    counters.instructions.warps = 1000;
    (counters.global_loads.bytes, counters.global_loads.sectors) = (800, 100);
    (counters.shared_loads.wavefronts, counters.shared_loads.ideal_wavefronts) = (13, 4);
    let line = serde_json::json!({ "launch": 0, "dynamic_shared": 0, "counters": counters });
    format!("{line}\n")
}

#[test]
fn without_budgets_it_prints_tables_and_succeeds() {
    let output = audit(&[], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let header = text.lines().find(|line| line.starts_with("kernel ")).unwrap();
    let row = text.lines().find(|line| line.starts_with("spilling ")).unwrap();
    // Words begin and numbers end where their column's name does.
    assert_eq!(header.find("architecture"), row.find("sm_80"));
    let end_of = |name: &str| header.find(name).unwrap() + name.len();
    assert_eq!(row.as_bytes()[end_of("registers") - 2..end_of("registers") + 1], *b"32 ");
    assert_eq!(header.chars().count(), row.chars().count());
    assert!(text.ends_with("No budgets.\n") && !text.contains("Counted by the emulator"), "{text}");
}

#[test]
fn exceeded_budget_exits_with_1_and_is_named() {
    let budgets = "[default]\nmax_spill_bytes = 0\n[kernel.matmul.counters]\nmax_wavefront_ratio = 1.02\n";
    let output = audit(&[("b.toml", budgets)], &["--budgets", "b.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("- EXCEEDED: spilling on sm_80: max_spill_bytes = 0, found "), "{text}");
    assert!(text.contains("- not checked: matmul on sm_80: counters.max_wavefront_ratio"), "{text}");
    assert!(text.ends_with("Budgets: 6 kept, 1 exceeded, 1 not checked.\n"), "{text}");
    let kept = audit(&[("b.toml", "[kernel.matmul]\nmax_spill_bytes = 0\n")], &["--budgets", "b.toml"]);
    assert_eq!(kept.status.code(), Some(0));
}

#[test]
fn counters_are_read_and_compared() {
    let budgets = "[kernel.matmul.counters]\nmax_wavefront_ratio = 1.02\nmin_sector_efficiency = 0.95\nmin_bytes_per_instruction = 0.5\n";
    let arguments = ["--budgets", "b.toml", "--counters", "c.jsonl"];
    let output = audit(&[("b.toml", budgets), ("c.jsonl", &counters())], &arguments);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for line in [
        "- EXCEEDED: matmul on sm_80: counters.max_wavefront_ratio = 1.02, found 3.25",
        "- EXCEEDED: matmul on sm_80: counters.min_sector_efficiency = 0.95, found 0.25",
        "Budgets: 1 kept, 2 exceeded, 0 not checked.",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert!(text.contains("Counted by the emulator"));
}

#[test]
fn markdown_has_the_same_columns_in_every_row() {
    let text =
        stdout(&audit(&[("c.jsonl", &counters())], &["--format", "markdown", "--counters", "c.jsonl"]));
    let mut tables = 0;
    let mut columns = 0;
    for line in text.lines() {
        match line.matches('|').count() {
            0 => columns = 0,
            count if columns == 0 => (columns, tables) = (count, tables + 1),
            count => assert_eq!(count, columns, "{line}"),
        }
    }
    assert_eq!(tables, 3, "{text}");
}

#[test]
fn json_holds_all_of_it() {
    let output =
        audit(&[("b.toml", "[kernel.dividing]\nmax_calls = 0\n")], &["--format", "json", "-b", "b.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kernels = report["kernels"].as_array().unwrap();
    let matmul = kernels.iter().find(|k| k["kernel"] == "matmul").unwrap();
    assert_eq!(matmul["main_loop"]["mix"]["HMMA"], 16);
    assert_eq!(matmul["occupancy"]["blocks"], 7);
    assert_eq!(matmul["architecture"], "sm_80");
    assert_eq!(report["verdicts"][0]["status"], "exceeded");
    assert_eq!(report["verdicts"][0]["limit"], "max_calls");
}

#[test]
fn without_an_answer_it_exits_with_2_and_says_why() {
    for (files, arguments, words) in [
        (&[][..], &["--budgets", "none.toml"][..], "none.toml"),
        (&[("b.toml", "[default]\nmax_spils = 0\n")], &["--budgets", "b.toml"], "max_spils"),
        (&[("b.toml", "[kernel.matmull]\nmax_calls = 0\n")], &["--budgets", "b.toml"], "matmull"),
        (&[("c.jsonl", "{}\n")], &["--counters", "c.jsonl"], "c.jsonl, line 1"),
        (&[], &["--nvrtc", "/nowhere/libnvrtc.so"], "/nowhere/libnvrtc.so"),
        (&[], &["another.cu"], "another.cu"),
        (&[], &["--", "-DWARP=", "--no-such-option"], "no-such-option"),
        (&[], &["--architectures", "sm_75"], "sm_75 is no architecture"),
    ] {
        let output = audit(files, arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(words), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
