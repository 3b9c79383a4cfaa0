//! A launch of a kernel together with what must come out of it.

use std::time::Instant;

use cuda_emulator::exec::{self, Config};
use cuda_emulator::isa::Module;
use cuda_emulator::memory::DeviceMemory;
use cuda_emulator::report::Report;

use super::numbers::Element;

/// An array in device memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: &'static str,
    pub element: Element,
    pub len: usize,
    /// What the host writes before the launch; None: nothing, the kernel must write it first.
    pub values: Option<Vec<f64>>,
    /// The host frees it before the launch.
    pub freed: bool,
}

/// A kernel argument.
#[derive(Clone, Debug)]
pub enum Argument {
    /// The address of the buffer of that name.
    Buffer(&'static str),
    /// The bytes of a number or structure.
    Bytes(Vec<u8>),
}

/// What a buffer must hold after the launch: |got - value| <= tolerance for each element, where NaN fails.
#[derive(Clone, Debug)]
pub struct Expected {
    pub name: &'static str,
    pub values: Vec<f64>,
    pub tolerances: Vec<f64>,
}

/// A launch with its reference.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub buffers: Vec<Buffer>,
    pub arguments: Vec<Argument>,
    pub expected: Vec<Expected>,
}

impl Case {
    pub fn new(kernel: &str, grid: [u32; 3], block: [u32; 3]) -> Case {
        Case { kernel: kernel.to_string(), grid, block, ..Case::default() }
    }

    /// Adds an array that the host writes, and an argument with its address. Returns the values as rounded to the type.
    pub fn input(&mut self, name: &'static str, element: Element, values: &[f64]) -> Vec<f64> {
        let values = element.round(values);
        self.buffers.push(Buffer {
            name,
            element,
            len: values.len(),
            values: Some(values.clone()),
            freed: false,
        });
        self.arguments.push(Argument::Buffer(name));
        values
    }

    /// Adds an array that the kernel writes, and an argument with its address.
    pub fn output(&mut self, name: &'static str, element: Element, len: usize) {
        self.buffers.push(Buffer { name, element, len, values: None, freed: false });
        self.arguments.push(Argument::Buffer(name));
    }

    pub fn int(&mut self, value: i32) {
        self.arguments.push(Argument::Bytes(value.to_le_bytes().to_vec()));
    }

    pub fn float(&mut self, value: f32) {
        self.arguments.push(Argument::Bytes(value.to_le_bytes().to_vec()));
    }

    /// States what an array must hold: equal, or within a tolerance for each element.
    pub fn expect(&mut self, name: &'static str, values: Vec<f64>, tolerances: Vec<f64>) {
        assert_eq!(values.len(), tolerances.len());
        self.expected.push(Expected { name, values, tolerances });
    }

    pub fn expect_exactly(&mut self, name: &'static str, values: Vec<f64>) {
        let tolerances = vec![0.0; values.len()];
        self.expect(name, values, tolerances);
    }

    fn buffer(&mut self, name: &str) -> &mut Buffer {
        self.buffers.iter_mut().find(|b| b.name == name).expect("a buffer of that name")
    }

    /// Plants a bug: the array has fewer elements.
    pub fn shorten(&mut self, name: &str, by: usize) {
        let buffer = self.buffer(name);
        buffer.len -= by;
        buffer.values.iter_mut().for_each(|values| values.truncate(buffer.len));
    }

    /// Plants a bug: the host frees the array before the launch.
    pub fn free(&mut self, name: &str) {
        self.buffer(name).freed = true;
    }

    /// Plants a bug: the host never writes the array.
    pub fn forget(&mut self, name: &str) {
        self.buffer(name).values = None;
    }

    /// Plants a bug: one element has another value.
    pub fn set(&mut self, name: &str, index: usize, value: f64) {
        self.buffer(name).values.as_mut().expect("an input")[index] = value;
    }

    /// The parameter buffer, laid out as the kernel declares it; what follows the arguments is null.
    fn parameters(&self, module: &Module, addresses: &[u64]) -> Vec<u8> {
        let kernel =
            module.kernels.iter().find(|k| k.name == self.kernel).expect("the kernel is in the module");
        let end = kernel.params.iter().map(|p| p.offset + p.size).max().unwrap_or(0);
        let mut bytes = vec![0; end as usize];
        assert!(self.arguments.len() <= kernel.params.len());
        for (argument, param) in self.arguments.iter().zip(&kernel.params) {
            let value = match argument {
                Argument::Buffer(name) => {
                    let at =
                        self.buffers.iter().position(|b| b.name == *name).expect("a buffer of that name");
                    addresses[at].to_le_bytes().to_vec()
                }
                Argument::Bytes(bytes) => bytes.clone(),
            };
            assert_eq!(value.len(), param.size as usize, "argument {} of {}", param.name, self.kernel);
            bytes[param.offset as usize..][..value.len()].copy_from_slice(&value);
        }
        bytes
    }

    /// Runs the case on a device of its own.
    pub fn run(&self, module: &Module, config: &Config) -> Outcome {
        let memory = DeviceMemory::new(1 << 30);
        let loaded = exec::load(module.clone(), &memory, config).expect("the module loads");
        let mut addresses = Vec::new();
        for buffer in &self.buffers {
            let address = memory.alloc((buffer.len * buffer.element.bytes()) as u64).unwrap();
            if let Some(values) = &buffer.values {
                memory.write(address, &buffer.element.encode(values)).unwrap();
            }
            if buffer.freed {
                memory.free(address).unwrap();
            }
            addresses.push(address);
        }
        let launch = exec::Launch {
            kernel: loaded.kernel(&self.kernel).expect("the kernel is in the module"),
            grid: self.grid,
            block: self.block,
            cluster: [1; 3],
            dynamic_shared: self.dynamic_shared,
            params: &self.parameters(module, &addresses),
        };
        let start = Instant::now();
        let outcome = exec::run(&launch, &memory, config).expect("the launch is legal");
        let seconds = start.elapsed().as_secs_f64();
        let wrong = self.first_wrong(|at, bytes| memory.read(addresses[at], bytes).unwrap());
        Outcome {
            reports: outcome.reports,
            wrong,
            instructions: outcome.counters.instructions.lanes,
            seconds,
        }
    }

    /// Says which output is wrong first; `read` fetches the bytes of the n-th buffer.
    pub fn first_wrong(&self, read: impl Fn(usize, &mut [u8])) -> Option<String> {
        for expected in &self.expected {
            let at =
                self.buffers.iter().position(|b| b.name == expected.name).expect("a buffer of that name");
            let buffer = &self.buffers[at];
            let mut bytes = vec![0; buffer.len * buffer.element.bytes()];
            read(at, &mut bytes);
            let got = buffer.element.decode(&bytes);
            assert_eq!(got.len(), expected.values.len(), "length of {}", expected.name);
            for (i, got) in got.iter().enumerate() {
                let (want, tolerance) = (expected.values[i], expected.tolerances[i]);
                let right = (got - want).abs() <= tolerance; // false for NaN
                if !right {
                    let name = expected.name;
                    return Some(format!("{name}[{i}] is {got}, expected {want} within {tolerance:.3e}"));
                }
            }
        }
        None
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub reports: Vec<Report>,
    /// The first element that is not as expected.
    pub wrong: Option<String>,
    /// Instructions, counted once for each lane.
    pub instructions: u64,
    /// What the launch took.
    pub seconds: f64,
}

impl Outcome {
    /// Panics unless all outputs are right and no check has found anything.
    pub fn assert_right(&self, what: &str) {
        if let Some(report) = self.reports.first() {
            panic!("{what}: {} reports, the first: {report}", self.reports.len());
        }
        if let Some(wrong) = &self.wrong {
            panic!("{what}: {wrong}");
        }
    }
}
