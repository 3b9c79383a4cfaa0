//! What a step of the reference costs on a CUDA device, counted by the emulator: launches, bytes of device memory against the least
//! that must move and against PyTorch's eager sequence, allocations, waits.
//!
//! The table is `benches/results/step_accounting.md`: `UPDATE=1 cargo test --release --test accounting -- --ignored` writes it, and
//! without `UPDATE` the test fails when it is old. A smaller network is counted in every run of the tests.

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

/// Kernels that are listed: those that move most.
const LISTED: usize = 12;

const HEAD: &str = "| step | launches | copies, fills | GiB moved | least | times | launches of PyTorch | its GiB | times | allocations | waits |\n\
     | :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n";

/// What one step did.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    /// Launches and bytes of each kernel.
    kernels: BTreeMap<String, (u64, u64)>,
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
                let bytes = 32 * (sectors("global_loads") + sectors("global_stores"));
                counted.bytes += bytes;
                let kernel = counters["kernel"].as_str().unwrap().to_owned();
                let (launches, sum) = counted.kernels.entry(kernel).or_default();
                (*launches, *sum) = (*launches + 1, *sum + bytes);
            }
        }
    }
    counted
}

/// Returns the kernels that move most, the first of them first.
fn largest(kernels: BTreeMap<String, (u64, u64)>) -> Vec<(String, (u64, u64))> {
    let mut all: Vec<_> = kernels.into_iter().collect();
    all.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    all.truncate(LISTED);
    all
}

/// One step of a stage of the reference, with `more` settings, counted.
struct Step {
    counted: Counted,
    paper: Paper,
    allocations: u64,
    waits: u64,
}

fn step(stage: Stage, counters: &Path, more: &[&str]) -> Step {
    let preset = if stage == Stage::Pretrain { "reference-prior" } else { "reference-align" };
    let sources = Sources { stage: Some(stage), preset: Some(preset.to_owned()), file: None };
    let sets: Vec<String> =
        ["device=cuda", "dtype=bf16"].iter().chain(more).map(|set| set.to_string()).collect();
    let config = Config::load(&sources, &sets).unwrap();
    let config = completed(config, (stage == Stage::Align).then_some(Target::Latents));
    let mut steps = Steps::prepare(&config).unwrap();
    let Device::Cuda(queue) = steps.device.clone() else { panic!("the step is to run on the card") };
    // Kernel by kernel; then captured and run, to be counted.
    steps.queue().unwrap();
    queue.synchronize().unwrap();
    let before = fs::read_to_string(counters).unwrap().lines().count();
    steps.queue().unwrap();
    queue.synchronize().unwrap();
    let counted = count(counters, before);
    // The next is only queued: that says which calls it takes, and running it would take as long again.
    let calls = |names: &[&str]| names.iter().map(|name| emulator::calls(name)).sum::<u64>();
    let before = [&ALLOCATIONS[..], &WAITS, &["cuGraphLaunch"]].map(calls);
    steps.queue().unwrap();
    let now = [&ALLOCATIONS[..], &WAITS, &["cuGraphLaunch"]].map(calls);
    assert_eq!(now[2] - before[2], 1, "the step is one graph");
    let paper = Paper::of(&steps.work, stage);
    Step { counted, paper, allocations: now[0] - before[0], waits: now[1] - before[1] }
}

fn counters() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counters.jsonl");
    emulator::lend_here(&file);
    (folder, file)
}

/// One test runs at a time: without `--ignored` this one, with it the next.
#[test]
fn a_step_is_one_graph_that_takes_no_memory_and_waits_for_nothing() {
    let (_folder, counters) = counters();
    for (stage, most) in [(Stage::Pretrain, 2.0), (Stage::Align, 1.3)] {
        let step = step(stage, &counters, &["model.width=256", "model.depth=2"]);
        assert_eq!((step.allocations, step.waits), (0, 0), "{stage:?}");
        let ratio = step.counted.bytes as f64 / step.paper.least as f64;
        println!("{stage:?}: {ratio:.2} of the least bytes");
        assert!((0.9..most).contains(&ratio), "{stage:?}: {ratio} of the least bytes");
    }
}

#[test]
#[ignore = "minutes: the emulator computes two steps of the reference's size"]
fn the_table_of_the_reference_is_current() {
    let (_folder, counters) = counters();
    let (mut table, mut kernels) = (String::new(), String::new());
    for (kind, stage) in [(Stage::Pretrain, "stage 1"), (Stage::Align, "stage 2")] {
        let Step { counted, paper, allocations, waits } = step(kind, &counters, &[]);
        let launches: u64 = counted.kernels.values().map(|(launches, _)| launches).sum();
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let (least, eager) = (paper.least, paper.eager.bytes);
        table += &format!(
            "| {stage} | {launches} | {} | {:.3} | {:.3} | {:.2} | {} | {:.3} | {:.1} | {allocations} | {waits} |\n",
            counted.copies + counted.fills,
            gib(counted.bytes),
            gib(least),
            counted.bytes as f64 / least as f64,
            paper.eager.kernels,
            gib(eager),
            eager as f64 / counted.bytes as f64,
        );
        for (kernel, (launches, bytes)) in largest(counted.kernels) {
            kernels +=
                &format!("| {stage} | {kernel} | {launches} | {:.1} |\n", bytes as f64 / (1 << 20) as f64);
        }
    }
    keep_current(&format!(
        "{HEAD}{table}\n| step | kernel | launches | MiB |\n| :-- | :-- | --: | --: |\n{kernels}"
    ));
}

/// Compares the table with the file's, or writes it there.
fn keep_current(table: &str) {
    const MARKS: [&str; 2] = ["<!-- table:begin -->\n", "<!-- table:end -->"];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/step_accounting.md");
    let old = fs::read_to_string(&path).unwrap();
    let parts =
        old.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?)));
    let Some((before, (_, after))) = parts else { panic!("{} lacks the marks {MARKS:?}", path.display()) };
    let new = format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, new).unwrap();
    } else {
        assert!(new == old, "{} is old: run with UPDATE=1. It should say\n{table}", path.display());
    }
}
