//! A CUDA driver that runs on a CPU: it takes the PTX that NVRTC produces and executes it, warp by warp, with the checks
//! of a sanitizer and the counters of a profiler.
//!
//! ```text
//! ptx      text -> syntax tree                          (lexer, parser)
//! lower    syntax tree -> typed instructions            (names become register slots; unknown instructions are errors)
//! isa      the typed instructions: what everything below speaks
//! alu      arithmetic: one function of 32 lanes for each opcode form
//! memory   allocations, spaces, bounds, bytes never written
//! exec     warps, blocks, grids: control flow, barriers, shuffles, atomics, matrix and asynchronous operations
//! detect   races by happens-before; reports
//! counters instructions, sectors, wavefronts, per launch
//! driver   the CUDA driver API over all this: the C functions of libcuda.so
//! toolchain NVRTC and nvdisasm, fetched from the package index by version and hash
//! audit    what the compiler made of a kernel: registers, spills, instruction mix, budgets
//! ```
//! Imports point upwards in this list only.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the emulator runs on 64-bit Linux on x86");

pub mod isa;
pub mod regs;
pub mod report;

pub mod alu;
pub mod audit;
pub mod counters;
pub mod detect;
pub mod driver;
pub mod exec;
pub mod lower;
pub mod memory;
pub mod ptx;
pub mod toolchain;
