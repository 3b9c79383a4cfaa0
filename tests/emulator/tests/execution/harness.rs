//! Runs PTX text on device memory.

use cuda_emulator::exec::{self, Config, Launch, LoadedModule, Outcome, Schedule};
use cuda_emulator::lower;
use cuda_emulator::memory::DeviceMemory;
use cuda_emulator::report::Kind;

/// A module, its memory, and how to run it.
pub struct Bench {
    pub memory: DeviceMemory,
    pub module: LoadedModule,
    pub config: Config,
}

/// Ordered on one thread, ordered on two, and five seeds.
pub fn schedules() -> Vec<Config> {
    let ordered = Config::default();
    let mut all = vec![ordered.clone(), Config { threads: 2, ..ordered.clone() }];
    all.extend((0..5).map(|seed| Config { seed, schedule: Schedule::Seeded, ..ordered.clone() }));
    all
}

/// Wraps a body in an entry function `k` with parameters `p0`, `p1`, ... of 64 bits.
pub fn entry(params: usize, body: &str) -> String {
    let params: Vec<String> = (0..params).map(|i| format!(".param .u64 p{i}")).collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({})\n{{\n{body}\n}}\n",
        params.join(", ")
    )
}

impl Bench {
    pub fn new(text: &str, config: Config) -> Self {
        let memory = DeviceMemory::new(1 << 30);
        let module = lower::module(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let module = exec::load(module, &memory, &config).unwrap();
        Self { memory, module, config }
    }

    pub fn bytes(&self, data: &[u8]) -> u64 {
        let at = self.memory.alloc(data.len() as u64).unwrap();
        self.memory.write(at, data).unwrap();
        at
    }

    pub fn words(&self, data: &[u32]) -> u64 {
        self.bytes(&data.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn read(&self, at: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * words];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn launch(&self, grid: u32, block: u32, dynamic_shared: u32, params: &[u64]) -> Outcome {
        let params: Vec<u8> = params.iter().flat_map(|p| p.to_le_bytes()).collect();
        let kernel = self.module.kernel("k").unwrap();
        let launch = Launch {
            kernel,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1; 3],
            dynamic_shared,
            params: &params,
        };
        exec::run(&launch, &self.memory, &self.config).unwrap()
    }
}

/// Runs a kernel that writes words to its first parameter under every schedule; checks that nothing is reported.
pub fn outputs(text: &str, (grid, block): (u32, u32), words: usize, check: impl Fn(&[u32])) {
    for config in schedules() {
        let bench = Bench::new(text, config);
        let out = bench.memory.alloc(4 * words as u64).unwrap();
        let outcome = bench.launch(grid, block, 0, &[out]);
        assert_eq!(outcome.reports, [], "{:?}", bench.config);
        check(&bench.read(out, words));
    }
}

/// Runs a kernel under every schedule; checks that each run reports a finding of a kind, and returns those of the first.
pub fn finding(text: &str, (grid, block): (u32, u32), kind: Kind, words: usize) -> String {
    let mut first = None;
    for config in schedules() {
        let bench = Bench::new(text, config);
        let out = bench.memory.alloc(4 * words as u64).unwrap();
        let outcome = bench.launch(grid, block, 0, &[out]);
        let found = outcome.reports.iter().find(|r| r.kind == kind);
        let found =
            found.unwrap_or_else(|| panic!("no {kind:?} in {:#?} ({:?})", outcome.reports, bench.config));
        first.get_or_insert(found.to_string());
    }
    first.unwrap()
}
