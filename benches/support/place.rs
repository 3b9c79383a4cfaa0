//! Where benches run: `FLOWPRIOR_BENCH_DEVICE` is `cpu`, `cuda` or `emulator`.
//!
//! On a card, times come from CUDA events around one call, once with the L2 cache flushed before it and once with what the call before
//! left there, and are set beside the copy bandwidth and the rate of matrix instructions that were measured in the same run. On the
//! emulator there are no times: it prints what one call counts.

use std::cell::RefCell;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use cuda_emulator::audit::measured::{self, Measured};
use flowprior::device::{CudaOptions, Queue};
use flowprior::{Device, Result};

use crate::card::Card;
use crate::emulator;
use crate::units::Timed;

pub type Group<'a> = BenchmarkGroup<'a, Timed>;

/// Where benches run.
pub enum Place {
    Cpu(Device),
    Card(Box<Card>),
    Emulated { device: Device, counters: PathBuf },
}

/// Returns the place, opened when it is first asked for.
pub fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        open().unwrap_or_else(|e| {
            eprintln!("{e}");
            std::process::exit(4);
        })
    })
}

/// Returns its device.
pub fn device() -> &'static Device {
    match place() {
        Place::Cpu(device) | Place::Emulated { device, .. } => device,
        Place::Card(card) => card.device(),
    }
}

fn open() -> Result<Place> {
    match std::env::var("FLOWPRIOR_BENCH_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Ok(Place::Cpu(Device::cpu()?)),
        Ok("cuda") => Ok(Place::Card(Box::new(Card::open(&CudaOptions::from_env())?))),
        Ok("emulator") => {
            let counters = std::env::temp_dir().join(format!("flowprior-bench-{}.jsonl", std::process::id()));
            let settings =
                [("counters", counters.to_str().unwrap_or_default()), ("checks", "none"), ("threads", "0")];
            let device = Device::cuda(&emulator::options_with(&settings))?;
            println!("The device is an emulator: what follows was counted, nothing was timed.\n");
            println!(
                "| call | launches | MB asked for | sectors | 16-byte | wavefronts | matrix instructions, GFLOP |"
            );
            println!("| :-- | --: | --: | --: | --: | --: | --: |");
            Ok(Place::Emulated { device, counters })
        }
        Ok(other) => panic!("FLOWPRIOR_BENCH_DEVICE is cpu, cuda or emulator, not `{other}`"),
    }
}

/// Opens a group of cases.
pub fn group<'a>(c: &'a mut Criterion<Timed>, name: &str) -> Group<'a> {
    GROUP.with_borrow_mut(|group| name.clone_into(group));
    let mut group = c.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    group
}

thread_local! {
    /// The group that is open.
    static GROUP: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Times or counts `f`; `throughput` is what one call moves or computes.
pub fn time<R>(
    group: &mut Group,
    name: impl Into<String>,
    throughput: Throughput,
    mut f: impl FnMut() -> Result<R>,
) {
    let name = name.into();
    match place() {
        Place::Cpu(_) => {
            group.throughput(throughput);
            group.bench_function(name, |b| b.iter(|| black_box(f().unwrap())));
        }
        Place::Card(card) => card.time(group, &name, throughput, f),
        Place::Emulated { device: Device::Cuda(queue), counters } => {
            let full = GROUP.with_borrow(|group| format!("{group}/{name}"));
            if wanted(&full) {
                let row = counted(queue, counters, f).unwrap_or_else(|e| panic!("{full}: {e}"));
                println!("| {full} | {row} |");
            }
        }
        Place::Emulated { .. } => {}
    }
}

/// Says whether the filter on the command line, if there is one, lets a case through.
fn wanted(name: &str) -> bool {
    std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).all(|filter| name.contains(&filter))
}

/// Counts one call, after one that loads what has to be loaded.
fn counted<R>(queue: &Queue, counters: &PathBuf, mut f: impl FnMut() -> Result<R>) -> Result<String> {
    f()?;
    queue.synchronize()?;
    let lines = || std::fs::read_to_string(counters).unwrap_or_default();
    let before = lines().lines().count();
    f()?;
    queue.synchronize()?;
    let text: Vec<String> = lines().lines().skip(before).map(str::to_owned).collect();
    let kernels = measured::parse(&text.join("\n"), "counters").unwrap_or_else(|e| panic!("{e}"));
    let sum = |of: fn(&Measured) -> u64| kernels.values().map(of).sum::<u64>();
    let bytes = sum(|m| m.global_bytes);
    let share = |of: fn(&Measured) -> Option<f64>| {
        let weighed = kernels.values().filter_map(|m| Some((of(m)?, m.global_bytes as f64)));
        let (sum, weight) = weighed.fold((0.0, 0.0), |(s, w), (share, bytes)| (s + share * bytes, w + bytes));
        if weight > 0.0 { format!("{:.0} %", 100.0 * sum / weight) } else { String::new() }
    };
    let worst = kernels.values().filter_map(Measured::wavefront_ratio).fold(0.0, f64::max);
    Ok(format!(
        "{} | {:.2} | {} | {} | {} | {:.2}",
        sum(|m| m.launches),
        bytes as f64 / 1e6,
        share(Measured::sector_efficiency),
        share(Measured::wide_share),
        if worst > 0.0 { format!("{worst:.2}") } else { String::new() },
        sum(|m| m.tensor_operations) as f64 / 1e9,
    ))
}
