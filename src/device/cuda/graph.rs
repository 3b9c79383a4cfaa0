//! A step captured as one CUDA graph: launching it again costs one call.
//!
//! A graph repeats addresses. The blocks that it uses are therefore taken from a part of the pool that nobody else is
//! given blocks of: first in a step that is launched kernel by kernel, which allocates them, then in the capture, which finds
//! them free again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUstreamCaptureMode};

use crate::device::cuda::Queue;
use crate::device::cuda::queue::{Context, device_error};
use crate::error::Result;

/// A captured step.
pub(crate) struct Graph {
    exec: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the driver API may be called from any thread with any handle of the process.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Queue {
    /// Runs `f`, whose blocks of memory come from the part of the pool that is kept for captured steps.
    pub(crate) fn reserved<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        self.pool.reserving.store(true, Ordering::Relaxed);
        let result = f();
        self.pool.reserving.store(false, Ordering::Relaxed);
        result
    }

    /// Captures what `f` queues, without running it. `f` must have run once by [`Queue::reserved`] before.
    ///
    /// # Errors
    /// What `f` reports; a call in it that waits for the device.
    pub(crate) fn capture(&self, f: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let stream = self.enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, here and below.
        unsafe { result::stream::begin_capture(stream, mode) }
            .map_err(device_error("beginning a capture"))?;
        self.pool.capturing.store(true, Ordering::Relaxed);
        let result = self.reserved(f);
        self.pool.capturing.store(false, Ordering::Relaxed);
        // SAFETY: a capture that failed is ended as well, or the stream stays unusable.
        let graph = unsafe { result::stream::end_capture(stream) };
        result?;
        let graph = graph.map_err(device_error("ending a capture"))?;
        // SAFETY: the graph was just made; what it was made into does not need it any more.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(graph);
            exec.and_then(|exec| destroyed.map(|()| exec))
        };
        let exec = exec.map_err(device_error("instantiating a graph"))?;
        Ok(Graph { exec, context: self.context.clone() })
    }

    /// Queues a captured step.
    ///
    /// # Errors
    /// A device that failed.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        let stream = self.enter()?;
        // SAFETY: both are alive, and the blocks that the graph uses are kept for it.
        unsafe { result::graph::launch(graph.exec, stream) }.map_err(device_error("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: instantiated once, destroyed once; what still runs of it goes on to its end.
            let _destroyed = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
