//! What a stream or a graph does: one operation.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::codes::{Code, Result};
use super::copy::{Copy, Fill};
use super::engine::{Engine, Launch};
use super::entry;
use super::graph::{GraphMemory, Plan};
use super::journal;

/// A host function with its argument.
#[derive(Clone, Copy, Debug)]
pub struct HostCall {
    /// What is called.
    pub function: extern "C" fn(*mut c_void),
    /// With what.
    pub data: u64,
}

/// An operation.
#[derive(Clone, Debug)]
pub enum Work {
    /// Runs a kernel.
    Kernel(Arc<Launch>),
    /// Copies memory.
    Copy(Copy),
    /// Fills memory.
    Fill(Fill),
    /// Records an event.
    Record(u64),
    /// Waits for the operation that records an event.
    Wait(u64),
    /// Frees device memory.
    Free(u64),
    /// Calls the program.
    Host(HostCall),
    /// Runs a graph.
    Graph(Arc<Plan>),
    /// A graph's own memory comes to life; it is there from the capture on.
    GraphAlloc(Arc<GraphMemory>),
    /// A graph's own memory is given up.
    GraphFree(u64),
    /// Nothing.
    Nothing,
}

impl Work {
    /// Does it, without the lock on the state. What has to do with the state is done when it is finished.
    pub fn run(&self, engine: &Engine, sequence: u64) -> Result<()> {
        let done = catch_unwind(AssertUnwindSafe(|| match self {
            Work::Kernel(launch) => engine.run(launch),
            Work::Copy(copy) => {
                journal::moved("copy", copy.device_bytes());
                copy.run(engine)
            }
            Work::Fill(fill) => {
                journal::moved("fill", [0, fill.bytes()]);
                fill.run(engine)
            }
            Work::Free(address) => {
                let freed = engine.memory.free(*address);
                freed.map_err(|error| Code::ILLEGAL_ADDRESS.because(format!("queued free: {error}")))
            }
            Work::Host(call) => {
                entry::host_function(|| (call.function)(call.data as *mut c_void));
                Ok(())
            }
            Work::Graph(plan) => plan.run(engine, sequence),
            Work::Record(_) | Work::Wait(_) | Work::GraphAlloc(_) | Work::GraphFree(_) | Work::Nothing => {
                Ok(())
            }
        }));
        done.unwrap_or_else(|_| Err(Code::UNKNOWN.because("a defect of the emulator, in queued work")))
    }

    /// Returns the events that are recorded when this is done.
    pub fn records(&self) -> Vec<u64> {
        match self {
            Work::Record(event) => vec![*event],
            Work::Graph(plan) => plan.records(),
            _ => Vec::new(),
        }
    }

    /// Returns the type of the graph node (`CUgraphNodeType`).
    pub fn node_type(&self) -> u32 {
        match self {
            Work::Kernel(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::Host(_) => 3,
            Work::Graph(_) => 4,
            Work::Nothing | Work::Free(_) => 5,
            Work::Wait(_) => 6,
            Work::Record(_) => 7,
            Work::GraphAlloc(_) => 10,
            Work::GraphFree(_) => 11,
        }
    }
}
