//! What a step of the reference costs on a CUDA device, counted by the emulator: launches, bytes of device memory against the least
//! that must move and against PyTorch's eager sequence, allocations, waits.
//!
//! The table is `benches/results/step_accounting.md`: `UPDATE=1 cargo test --release --test accounting` writes it, and without it
//! the test fails when it is old.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "accounting/paper.rs"]
mod paper;

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use flowprior::Device;
use flowprior::train::config::{Config, Sources, Stage, Target};
use flowprior::train::timing::{Steps, completed};
use paper::Paper;
use serde_json::Value;

/// Calls that give or take memory, or have the host wait. An event is waited for where a pinned buffer is filled again, two
/// steps later.
const ALLOCATIONS: [&str; 4] = ["cuMemAllocAsync", "cuMemAlloc_v2", "cuMemFreeAsync", "cuMemHostAlloc"];
const WAITS: [&str; 4] = ["cuStreamSynchronize", "cuCtxSynchronize", "cuEventQuery", "cuMemcpyDtoH_v2"];

/// What one step did.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    /// Launches of each kernel.
    launches: BTreeMap<String, u64>,
    copies: u64,
    fills: u64,
    /// Bytes of all sectors that each launch touched, once a launch; and of copies and fills.
    bytes: u64,
}

/// Adds up the lines of the counters' file from `from` on.
fn count(file: &Path, from: usize) -> Counted {
    let mut counted = Counted::default();
    for line in fs::read_to_string(file).unwrap().lines().skip(from) {
        let line: Value = serde_json::from_str(line).unwrap();
        match line["moved"].as_str() {
            Some(what) => {
                counted.bytes +=
                    line["bytes_read"].as_u64().unwrap() + line["bytes_written"].as_u64().unwrap();
                *(if what == "copy" { &mut counted.copies } else { &mut counted.fills }) += 1;
            }
            None => {
                let counters = &line["counters"];
                let sectors = |access: &str| counters[access]["footprint"].as_u64().unwrap();
                counted.bytes += 32 * (sectors("global_loads") + sectors("global_stores"));
                *counted.launches.entry(counters["kernel"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
    }
    counted
}

fn config(stage: Stage) -> Config {
    let preset = if stage == Stage::Pretrain { "reference-prior" } else { "reference-align" };
    let sources = Sources { stage: Some(stage), preset: Some(preset.to_owned()), file: None };
    let sets = ["device=cuda".to_owned(), "dtype=bf16".to_owned()];
    completed(Config::load(&sources, &sets).unwrap(), (stage == Stage::Align).then_some(Target::Latents))
}

#[test]
fn a_step_moves_little_more_than_it_must_and_waits_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let counters = folder.path().join("counters.jsonl");
    emulator::lend_here(&counters);
    let mut table = String::new();
    for stage in [Stage::Pretrain, Stage::Align] {
        let mut steps = Steps::prepare(&config(stage)).unwrap();
        let Device::Cuda(queue) = steps.device.clone() else { panic!("the step is to run on the card") };
        // Kernel by kernel, then captured.
        (0..2).for_each(|_| steps.queue().unwrap());
        queue.synchronize().unwrap();
        let lines = || fs::read_to_string(&counters).unwrap().lines().count();
        let calls = |names: &[&str]| names.iter().map(|name| emulator::calls(name)).sum::<u64>();
        let before = (lines(), calls(&ALLOCATIONS), calls(&WAITS), calls(&["cuGraphLaunch"]));
        steps.queue().unwrap();
        let (allocations, waits) = (calls(&ALLOCATIONS) - before.1, calls(&WAITS) - before.2);
        assert_eq!(calls(&["cuGraphLaunch"]) - before.3, 1, "the step is one graph");
        queue.synchronize().unwrap();
        let counted = count(&counters, before.0);
        let paper = Paper::of(&steps.work, stage);
        let launches: u64 = counted.launches.values().sum();
        println!("{stage:?}: {counted:#?}");
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let (least, eager) = (paper.least, paper.eager.bytes);
        table += &format!(
            "| {} | {launches} | {} | {:.3} | {:.3} | {:.2} | {} | {:.3} | {:.1} | {allocations} | {waits} |\n",
            if stage == Stage::Pretrain { "stage 1" } else { "stage 2" },
            counted.copies + counted.fills,
            gib(counted.bytes),
            gib(least),
            counted.bytes as f64 / least as f64,
            paper.eager.kernels,
            gib(eager),
            eager as f64 / counted.bytes as f64,
        );
        assert_eq!((allocations, waits), (0, 0), "{stage:?}");
    }
    keep_current(&table);
}

/// Compares the table with the file's, or writes it there.
fn keep_current(table: &str) {
    const MARKS: [&str; 2] = ["<!-- table:begin -->\n", "<!-- table:end -->"];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/step_accounting.md");
    let old = fs::read_to_string(&path).unwrap();
    let parts =
        old.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?)));
    let Some((before, (_, after))) = parts else { panic!("{} lacks the marks {MARKS:?}", path.display()) };
    let head = "| step | launches | copies, fills | GiB moved | least | times | launches of PyTorch | its GiB | times | allocations | waits |\n\
                | :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n";
    let new = format!("{before}{}{head}{table}{}{after}", MARKS[0], MARKS[1]);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, new).unwrap();
    } else {
        assert!(new == old, "{} is old: run with UPDATE=1. It should say\n{head}{table}", path.display());
    }
}
