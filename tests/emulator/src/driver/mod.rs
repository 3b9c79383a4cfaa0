//! The CUDA driver API: the C functions of `libcuda.so`, as strict as the real ones.
//!
//! ```text
//! api/         the C functions: arguments are checked and handed on      entry: no panic crosses the boundary
//! session      who calls: initialised, current context, sticky errors    journal: fault lines, findings, counters
//! state        tables of everything that has a handle                    codes, abi: errors and structures of cuda.h
//! queue        streams: what may run next, and waiting for it            work: what an operation does
//! capture      stream capture and its rules                              graph: nodes, instantiated graphs
//! module       images, functions, their attributes                       launch: limits of a launch
//! pool, host   stream-ordered and page-locked memory                     engine: memory and execution below
//! architecture, attributes, occupancy: what the device is                settings: options
//! ```
//!
//! Work is queued and done late: nothing runs before the program waits for it or asks about it, in an order among streams
//! that the seed decides. So a wait that is missing shows.

pub mod abi;
pub mod api;
pub mod architecture;
mod attributes;
mod capture;
pub mod codes;
mod copy;
mod cubin;
mod engine;
mod entry;
mod graph;
mod host;
pub mod journal;
mod launch;
mod module;
pub mod occupancy;
mod pool;
mod queue;
mod session;
pub mod settings;
mod state;
mod work;
