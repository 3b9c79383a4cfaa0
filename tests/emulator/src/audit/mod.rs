//! What the compiler made of a kernel, against budgets: registers, spills, occupancy, instructions in all and in the main
//! loop, and with the emulator's counters the memory traffic of real launches.
//!
//! It needs NVRTC and nvdisasm ([`crate::toolchain`]) and no GPU. What it says of time is a bound from arithmetic
//! ([`model`]), never a measured speed.

pub mod architecture;
pub mod budget;
pub mod check;
pub mod flight;
pub mod loops;
pub mod measured;
pub mod model;
pub mod ptxas;
pub mod sass;
pub mod table;

use serde::{Deserialize, Serialize};

use crate::toolchain::{self, Compiled, Nvdisasm};
use architecture::{Architecture, Occupancy};
use loops::Flow;
use model::LoopClocks;
use ptxas::Resources;
use sass::{Class, Function, Mix};

/// Options that NVRTC must be given for an audit, beside `--gpu-architecture=sm_XX`.
pub const OPTIONS: [&str; 1] = ["--ptxas-options=-v"];

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool is missing or has failed.
    #[error(transparent)]
    Toolchain(#[from] toolchain::Error),
    /// The source was compiled to PTX only.
    #[error("there is no machine code to look at: compile for `--gpu-architecture=sm_XX`, not `compute_XX`")]
    NoCubin,
    /// The log lacks a kernel's registers.
    #[error("the log does not say what kernel {0} uses: compile with `--ptxas-options=-v`")]
    Log(String),
    /// The disassembly is not as expected.
    #[error("the disassembly cannot be read: {0}")]
    Disassembly(String),
    /// No table for an architecture.
    #[error("{name} is no architecture the audit knows; it knows {known}")]
    Architecture {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The file of counters is wrong.
    #[error("{file}, line {line}: {message}")]
    Counters {
        /// Its path or name.
        file: String,
        /// The line's number.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// The budget file is wrong.
    #[error("{file}: {message}")]
    Budget {
        /// Its path or name.
        file: String,
        /// What is wrong with it.
        message: String,
    },
}

/// What is known of one kernel on one architecture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelAudit {
    /// Registers, spills, memory.
    #[serde(flatten)]
    pub resources: Resources,
    /// Threads of a block, if known: from `__launch_bounds__`, or set by [`KernelAudit::launched_with`].
    pub threads: Option<u32>,
    /// Dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// How the blocks fit on a multiprocessor, where the number of threads is known.
    pub occupancy: Option<Occupancy>,
    /// Instructions, those of called functions too.
    pub instructions: u32,
    /// Of these, the ones in called functions.
    pub called_instructions: u32,
    /// The instructions by class.
    pub mix: Mix,
    /// Share of the loads and stores of global memory, cp.async too, that move 16 bytes or more. None without any.
    pub wide_share: Option<f64>,
    /// Global loads that a thread has under way at once.
    pub loads_in_flight: u32,
    /// The loop in which the time goes.
    pub main_loop: Option<MainLoop>,
}

/// The main loop of a kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MainLoop {
    /// Byte offset of its first instruction.
    pub first: u32,
    /// Byte offset of the branch back.
    pub last: u32,
    /// Instructions.
    pub instructions: u32,
    /// The same by class.
    pub mix: Mix,
    /// The least clocks of a pass.
    pub clocks: LoopClocks,
}

/// Audits all kernels of a compiled source, in the order of the log.
pub fn audit(compiled: &Compiled, nvdisasm: &Nvdisasm) -> Result<Vec<KernelAudit>, Error> {
    let cubin = compiled.cubin.as_ref().ok_or(Error::NoCubin)?;
    let functions = sass::parse_json(&nvdisasm.disassemble_json(cubin)?)?;
    let all_resources = ptxas::parse_log(&compiled.log)?;
    if let Some(function) = functions.iter().find(|f| all_resources.iter().all(|r| r.kernel != f.name)) {
        return Err(Error::Log(function.name.clone()));
    }
    let mut audits = Vec::new();
    for resources in all_resources {
        let function = functions.iter().find(|f| f.name == resources.kernel).ok_or_else(|| {
            Error::Disassembly(format!("kernel {} is in the log and not in the code", resources.kernel))
        })?;
        let threads = launch_bound(&compiled.ptx, &resources.kernel);
        audits.push(KernelAudit::of(resources, function, threads)?);
    }
    Ok(audits)
}

impl KernelAudit {
    fn of(resources: Resources, function: &Function, threads: Option<u32>) -> Result<KernelAudit, Error> {
        let architecture = Architecture::named(&resources.architecture)?;
        let flow = Flow::of(function);
        let main_loop = flow.main_loop().map(|found| {
            let instructions = found.body.iter().map(|&i| &function.instructions[i]);
            MainLoop {
                first: found.head as u32 * sass::INSTRUCTION_BYTES,
                last: found.tail as u32 * sass::INSTRUCTION_BYTES,
                instructions: found.body.len() as u32,
                mix: flow.mix(found.body.iter().copied()),
                clocks: LoopClocks::of(instructions, architecture),
            }
        });
        let mut audit = KernelAudit {
            resources,
            threads: None,
            dynamic_shared: 0,
            occupancy: None,
            instructions: flow.code_end as u32,
            called_instructions: flow.own.iter().filter(|own| !**own).count() as u32,
            mix: flow.mix(0..flow.code_end),
            wide_share: wide_share(&function.instructions[..flow.code_end]),
            loads_in_flight: flight::loads_in_flight(&function.instructions[..flow.code_end]),
            main_loop,
        };
        if let Some(threads) = threads {
            audit.launched_with(threads, 0)?;
        }
        Ok(audit)
    }

    /// Sets the block's size and dynamic shared memory, and finds the occupancy.
    pub fn launched_with(&mut self, threads: u32, dynamic_shared: u32) -> Result<(), Error> {
        let architecture = Architecture::named(&self.resources.architecture)?;
        let shared = self.resources.static_shared.saturating_add(dynamic_shared);
        self.threads = Some(threads);
        self.dynamic_shared = dynamic_shared;
        self.occupancy = Some(architecture.occupancy(threads, self.resources.registers, shared));
        Ok(())
    }

    /// Returns how many instructions of some classes there are.
    pub fn count(&self, classes: &[Class]) -> u32 {
        count(&self.mix, classes)
    }
}

impl MainLoop {
    /// Returns how many instructions of some classes there are.
    pub fn count(&self, classes: &[Class]) -> u32 {
        count(&self.mix, classes)
    }

    /// Returns how many instructions keep the tensor cores busy.
    pub fn tensor(&self) -> u32 {
        self.mix.iter().filter(|(class, _)| class.is_tensor()).map(|(_, n)| n).sum()
    }
}

fn count(mix: &Mix, classes: &[Class]) -> u32 {
    classes.iter().filter_map(|class| mix.get(class)).sum()
}

fn wide_share(instructions: &[sass::Instruction]) -> Option<f64> {
    let global = |i: &&sass::Instruction| matches!(i.class(), Class::Ldg | Class::Stg | Class::Ldgsts);
    let all = instructions.iter().filter(global).count();
    let wide = instructions.iter().filter(global).filter(|i| i.bytes_per_thread() >= 16).count();
    (all > 0).then(|| wide as f64 / all as f64)
}

/// The product of `.maxntid` or `.reqntid` between a kernel's name and its body.
fn launch_bound(ptx: &str, kernel: &str) -> Option<u32> {
    let (_, rest) = ptx.split_once(&format!(".entry {kernel}("))?;
    let head = rest.split_once('{')?.0;
    let line = head.lines().find_map(|line| {
        let line = line.trim();
        line.strip_prefix(".maxntid").or_else(|| line.strip_prefix(".reqntid"))
    })?;
    line.split(',').map(|n| n.trim().parse::<u32>().ok()).try_fold(1u32, |product, n| product.checked_mul(n?))
}
