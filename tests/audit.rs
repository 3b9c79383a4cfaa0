//! What the compiler makes of every kernel, on a machine without a GPU: registers, spills, calls, occupancy, and what the emulator
//! counts in a launch of each, against `kernels/budgets.toml`. The tables in `kernels/README.md` and `README.md` are made
//! here: `UPDATE=1 cargo test --release --test audit` writes them, and without it the test fails when they are old.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "audit/launches.rs"]
mod launches;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::{env, fs, thread};

use cuda_emulator::audit::budget::Budgets;
use cuda_emulator::audit::check::Status;
use cuda_emulator::audit::measured::Measured;
use cuda_emulator::audit::{KernelAudit, OPTIONS, audit};
use cuda_emulator::toolchain::{NvrtcVersion, nvdisasm, nvrtc};
use flowprior::DType;

const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];

/// The type whose launches are counted, and which the tables show.
const SHOWN: DType = DType::Bf16;

/// One compilation.
#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    text: &'static str,
    dtype: DType,
    architecture: &'static str,
    version: NvrtcVersion,
}

/// Lists all compilations: with the older compiler only what most will run.
fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (name, text) in flowprior::kernels::sources() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            // A file without tensors of the storage type is compiled for f32 alone, as the engine does.
            if dtype != DType::F32 && !has_storage_type(text) {
                continue;
            }
            let job = |architecture, version| Job { name, text, dtype, architecture, version };
            jobs.extend(ARCHITECTURES.map(|a| job(a, NvrtcVersion::V13_0)));
            if dtype == SHOWN || !has_storage_type(text) || of_products(name) && dtype == DType::F32 {
                jobs.extend(["sm_80", "sm_90"].map(|a| job(a, NvrtcVersion::V12_9)));
            }
        }
    }
    jobs
}

/// Says whether kernels of the file multiply matrices: they use the most registers, and f32 has some of its own.
fn of_products(name: &str) -> bool {
    ["linear", "attention"].iter().any(|stem| name.contains(stem))
}

/// Says whether a kernel of the file has a parameter of `floatX`.
fn has_storage_type(text: &str) -> bool {
    let signatures = text.split("extern \"C\" __global__").skip(1);
    signatures.filter_map(|rest| rest.split('{').next()).any(|signature| signature.contains("floatX"))
}

/// Compiles with the options of the engine (`src/device/cuda/queue.rs`) and reads the machine code, on all cores.
fn audits(jobs: &[Job]) -> Vec<(Job, Vec<KernelAudit>)> {
    let compilers: BTreeMap<u32, _> = NvrtcVersion::ALL
        .map(|version| (version as u32, nvrtc(version).unwrap_or_else(|e| panic!("{e}"))))
        .into();
    let disassembler = nvdisasm().unwrap_or_else(|e| panic!("{e}"));
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let architecture = format!("--gpu-architecture={}", job.architecture);
            let storage = format!("-DFLOATX={}", job.dtype as usize);
            let options =
                [&architecture, &storage, "-lineinfo", "--std=c++17", "-default-device", OPTIONS[0]];
            let made = || {
                let compiled = compilers[&(job.version as u32)].compile(job.text, job.name, &options);
                let compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
                audit(&compiled, &disassembler).unwrap_or_else(|e| panic!("{}: {e}", job.name))
            };
            let audits = cached(&format!("{:?} {options:?}\n{}", job.version, job.text), made);
            found.lock().unwrap().push((*job, audits));
        }
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(job, _)| (job.name, job.dtype as usize, job.architecture));
    found
}

/// Returns what was made of the same text with the same options before, or makes it: some 200 compilations take minutes.
fn cached(key: &str, made: impl FnOnce() -> Vec<KernelAudit>) -> Vec<KernelAudit> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("audit");
    let file = folder.join(format!("{:08x}-{}.json", crc32c::crc32c(key.as_bytes()), key.len()));
    let read = || {
        let (old, audits) = serde_json::from_slice::<(String, _)>(&fs::read(&file).ok()?).ok()?;
        (old == key).then_some(audits)
    };
    read().unwrap_or_else(|| {
        let audits = made();
        // A cache that cannot be written costs time, not correctness.
        let _written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&file, serde_json::to_vec(&(key, &audits)).unwrap_or_default()));
        audits
    })
}

static COUNTED: LazyLock<launches::Counted> = LazyLock::new(launches::counted);

#[test]
fn attention_moves_bytes_in_proportion_to_tokens() {
    println!("| tokens | bytes forward | backward |\n| --: | --: | --: |");
    for (tokens, forward, backward) in &COUNTED.attention {
        println!("| {tokens} | {forward} | {backward} |");
    }
    let (least, forward, backward) = COUNTED.attention[0];
    for &(tokens, f, b) in &COUNTED.attention {
        let times = (tokens / least) as u64;
        assert_eq!((f, b), (times * forward, times * backward), "{tokens} tokens");
    }
}

#[test]
fn kernels_keep_their_budgets_and_the_tables_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("kernels/budgets.toml");
    let budgets = Budgets::parse(&fs::read_to_string(&file).unwrap(), "kernels/budgets.toml");
    let budgets = budgets.unwrap_or_else(|e| panic!("{e}"));
    let measured = &COUNTED.kernels;
    let found = audits(&jobs());
    let mut exceeded = Vec::new();
    for version in NvrtcVersion::ALL {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut audits = of_type(&found, version, dtype);
            if audits.is_empty() || (version == NvrtcVersion::V12_9 && dtype != SHOWN) {
                continue;
            }
            let counted = if dtype == SHOWN { measured.clone() } else { BTreeMap::new() };
            let verdicts = budgets.check(&mut audits, &counted).unwrap_or_else(|e| panic!("{e}"));
            let bad = verdicts.iter().filter(|v| v.status == Status::Exceeded);
            exceeded.extend(bad.map(|v| format!("{dtype}, NVRTC {version:?}: {v}")));
            if version == NvrtcVersion::V13_0 && dtype == SHOWN {
                let table = table(&audits, measured, &budgets);
                println!("{table}");
                keep_current(&root.join("kernels/README.md"), &table);
                keep_current(&root.join("README.md"), &summary(&found, measured));
            }
        }
    }
    assert!(exceeded.is_empty(), "{} limits are exceeded:\n{}", exceeded.len(), exceeded.join("\n"));
}

/// Returns the kernels that a run in one storage type uses: those of the files without one too. Matrix products on tensor cores
/// are there both for 16 bits and, as `_tf32`, for f32: the same text, with limits of its own. A kernel that its file has for one
/// type only belongs to the runs of all.
fn of_type(found: &[(Job, Vec<KernelAudit>)], version: NvrtcVersion, dtype: DType) -> Vec<KernelAudit> {
    let (narrow, other) = if dtype == DType::F32 { (SHOWN, SHOWN) } else { (dtype, DType::F32) };
    let mut audits = Vec::new();
    let lacks = |of: &Job, kernel: &str| {
        let own = |job: &Job| (job.name, job.version, job.dtype) == (of.name, version, dtype);
        !found.iter().any(|(job, all)| own(job) && all.iter().any(|audit| audit.resources.kernel == kernel))
    };
    for (job, of_job) in found.iter().filter(|(job, _)| job.version == version) {
        for audit in of_job {
            let mut audit = audit.clone();
            let name = &mut audit.resources.kernel;
            let tensor = ["128x128", "128x64", "64x64"].iter().any(|tile| name.ends_with(tile));
            let wanted = match (tensor, has_storage_type(job.text)) {
                (true, _) if job.dtype == DType::F32 => {
                    name.push_str("_tf32");
                    true
                }
                (true, _) => job.dtype == narrow,
                (false, true) => job.dtype == dtype || job.dtype == other && lacks(job, name),
                (false, false) => job.dtype == DType::F32,
            };
            audits.extend(wanted.then_some(audit));
        }
    }
    audits
}

/// Returns a row for each kernel.
fn table(audits: &[KernelAudit], measured: &BTreeMap<String, Measured>, budgets: &Budgets) -> String {
    let mut out = String::from(
        "| kernel | registers, sm_80 | sm_90 | occupancy, sm_80 | sm_90 | spills | 16-byte | sectors | bytes | wavefronts |\n\
         | :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    let on = |kernel: &str, architecture: &str| {
        let mut all = audits.iter();
        all.find(|a| a.resources.kernel == kernel && a.resources.architecture == architecture)
    };
    let mut names: Vec<&str> = audits.iter().map(|a| a.resources.kernel.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (Some(a), Some(b)) = (on(name, "sm_80"), on(name, "sm_90")) else { continue };
        let occupancy =
            |a: &KernelAudit| a.occupancy.map_or("".into(), |o| format!("{:.0} %", 100.0 * o.share));
        let spills = a.resources.spill_stores + a.resources.spill_loads;
        let counted = measured.get(name);
        let percent = |of: fn(&Measured) -> Option<f64>| {
            counted.and_then(of).map_or(String::new(), |share| format!("{:.0} %", 100.0 * share))
        };
        let minimal = budgets.limits(name, "sm_80").ok().and_then(|l| l.counters.minimal_bytes);
        let ratio = counted.zip(minimal).map(|(m, bytes)| m.sector_bytes_per_launch() / bytes as f64);
        let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.2}"));
        out += &format!(
            "| {name} | {} | {} | {} | {} | {spills} | {} | {} | {} | {} |\n",
            a.resources.registers,
            b.resources.registers,
            occupancy(a),
            occupancy(b),
            percent(Measured::wide_share),
            percent(Measured::sector_efficiency),
            number(ratio),
            number(counted.and_then(Measured::wavefront_ratio)),
        );
    }
    out
}

/// Returns a few lines about all kernels.
fn summary(found: &[(Job, Vec<KernelAudit>)], measured: &BTreeMap<String, Measured>) -> String {
    let all: Vec<&KernelAudit> = found.iter().flat_map(|(_, audits)| audits).collect();
    let mut names: Vec<&str> = all.iter().map(|a| a.resources.kernel.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let files = flowprior::kernels::sources().count();
    let spills: u32 = all.iter().map(|a| a.resources.spill_stores + a.resources.spill_loads).sum();
    // Kernels that move next to nothing have nothing to waste.
    let moving = measured.values().filter(|m| m.global_bytes > 1 << 17);
    let least = moving.filter_map(Measured::sector_efficiency).fold(f64::MAX, f64::min);
    let worst = measured.values().filter_map(Measured::wavefront_ratio).fold(0.0, f64::max);
    format!(
        "{} kernels in {files} files, {} compilations (f32, bf16, f16; {}; two compilers): {spills} bytes spilled.\n\
         Counted by the emulator: kernels that move more than 128 KiB use at least {:.0} % of every sector; at most {worst:.2} wavefronts\n\
         of shared memory are taken where one would do. One row a kernel: [kernels/README.md](kernels/README.md).\n",
        names.len(),
        found.len(),
        ARCHITECTURES.join(", "),
        100.0 * least,
    )
}

/// Compares the part of a file between the two marks with `text`, or writes it there.
fn keep_current(path: &Path, text: &str) {
    const MARKS: [&str; 2] = ["<!-- kernels:begin -->\n", "<!-- kernels:end -->"];
    let old = fs::read_to_string(path).unwrap();
    let parts =
        old.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?)));
    let Some((before, (_, after))) = parts else { panic!("{} lacks the marks {MARKS:?}", path.display()) };
    let new = format!("{before}{}{text}{}{after}", MARKS[0], MARKS[1]);
    if env::var_os("UPDATE").is_some() {
        fs::write(path, new).unwrap();
    } else {
        assert!(new == old, "{} is old: run with UPDATE=1. It should say\n{text}", path.display());
    }
}
