//! Compiles a source with and without its bugs, and runs it under ten schedules.

use cuda_emulator::exec::{self, Config, Limits, Schedule};
use cuda_emulator::lower;
use cuda_emulator::memory::DeviceMemory;
use cuda_emulator::report::{Kind, Report};
use cuda_emulator::toolchain::{self, NvrtcVersion};

/// A kernel, and the numbers of its bugs.
pub struct Case<'a> {
    pub source: &'static str,
    pub kernel: &'static str,
    pub bugs: &'a [u32],
}

/// Device memory of one run.
pub struct Device(DeviceMemory);

impl Device {
    pub fn bytes(&mut self, data: &[u8]) -> u64 {
        let address = self.0.alloc(data.len() as u64).unwrap();
        self.0.write(address, data).unwrap();
        address
    }

    /// Allocates bytes that nobody writes.
    pub fn unwritten(&mut self, bytes: usize) -> u64 {
        self.0.alloc(bytes as u64).unwrap()
    }

    pub fn zeros(&mut self, bytes: usize) -> u64 {
        self.bytes(&vec![0; bytes])
    }

    pub fn floats(&mut self, values: &[f32]) -> u64 {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }
}

/// Grid, arguments, and where the results will be.
#[derive(Clone, Default)]
pub struct Setup {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    params: Vec<u8>,
    output: (u64, usize),
}

impl Setup {
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, ..Self::default() }
    }

    pub fn pointer(mut self, address: u64) -> Self {
        self.params.resize(self.params.len().next_multiple_of(8), 0);
        self.params.extend(address.to_le_bytes());
        self
    }

    pub fn int(mut self, value: i32) -> Self {
        self.params.extend(value.to_le_bytes());
        self
    }

    pub fn output(mut self, address: u64, bytes: usize) -> Self {
        self.output = (address, bytes);
        self
    }
}

impl Case<'_> {
    /// Runs the correct kernel, checks its results, and runs each bug.
    pub fn run(&self, setup: impl Fn(&mut Device) -> Setup, check: impl Fn(&[u8])) {
        for seed in 0..10 {
            let (reports, output) = launch(self.source, self.kernel, 0, seed, &setup);
            let texts: Vec<_> = reports.iter().map(Report::to_string).collect();
            assert!(
                reports.is_empty(),
                "schedule {seed}: the correct kernel has findings:\n{}",
                texts.join("\n")
            );
            check(&output);
        }
        for &bug in self.bugs {
            for seed in 0..10 {
                let (reports, _) = launch(self.source, self.kernel, bug, seed, &setup);
                // A broken pipeline may also hang, or use an mbarrier before it is one.
                let race = reports.iter().find(|r| r.kind != Kind::Uninitialised);
                let Some(race) = race else {
                    panic!("bug {bug} is not seen under schedule {seed}: {reports:#?}")
                };
                if seed == 0 {
                    println!("{} bug {bug}: {race}", self.kernel);
                }
                assert!(race.source.is_some() && race.ptx_line > 0, "{race}");
            }
        }
    }
}

/// Compiles and runs a kernel; schedule 0 is the one in order.
pub fn launch(
    source: &str,
    kernel: &str,
    bug: u32,
    seed: u64,
    setup: impl FnOnce(&mut Device) -> Setup,
) -> (Vec<Report>, Vec<u8>) {
    let schedule = if seed == 0 { Schedule::Ordered } else { Schedule::Seeded };
    let limits = Limits { polling: 1 << 14, ..Limits::default() };
    let config = Config { seed, schedule, threads: 1 + seed as usize % 2, limits, ..Config::default() };
    launch_with(&config, source, kernel, bug, setup)
}

/// Compiles and runs a kernel with these settings.
pub fn launch_with(
    config: &Config,
    source: &str,
    kernel: &str,
    bug: u32,
    setup: impl FnOnce(&mut Device) -> Setup,
) -> (Vec<Report>, Vec<u8>) {
    let module = compiled(source, bug);
    let mut device = Device(DeviceMemory::new(1 << 28));
    let setup = setup(&mut device);
    let loaded = exec::load(module, &device.0, config).unwrap();
    let launch = exec::Launch {
        kernel: loaded.kernel(kernel).unwrap(),
        grid: setup.grid,
        block: setup.block,
        cluster: [1; 3],
        dynamic_shared: 0,
        params: &setup.params,
    };
    let outcome = exec::run(&launch, &device.0, config).unwrap();
    let mut output = vec![0; setup.output.1];
    device.0.read(setup.output.0, &mut output).unwrap();
    (outcome.reports, output)
}

fn compiled(source: &str, bug: u32) -> cuda_emulator::isa::Module {
    use std::collections::HashMap;
    use std::sync::{Mutex, OnceLock};
    static DONE: OnceLock<Mutex<HashMap<(String, u32), String>>> = OnceLock::new();
    let mut done = DONE.get_or_init(Mutex::default).lock().unwrap();
    let ptx = done.entry((source.to_owned(), bug)).or_insert_with(|| {
        let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
        let define = format!("-DBUG={bug}");
        let options = ["--gpu-architecture=compute_80", "-lineinfo", "--std=c++17", &define];
        nvrtc.compile(source, "kernel.cu", &options).unwrap().ptx
    });
    lower::module(ptx).unwrap_or_else(|error| panic!("{error}\n{ptx}"))
}

/// Makes reproducible numbers in [-1, 1).
pub fn input(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / 2147483648.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).into_iter().map(f32::from_bits).collect()
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
