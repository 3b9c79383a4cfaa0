//! Streams and their capture.

use std::ffi::c_int;

use crate::driver::abi::{Handle, HostFunction, Out};
use crate::driver::capture;
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::session::{Guard, in_context};
use crate::driver::work::{HostCall, Work};
use crate::driver::{pool, queue};

use super::context::PRIORITIES;

/// Locks the state and finds a stream.
pub(super) fn on_stream(stream: Handle) -> Result<(Guard, u64, u64)> {
    let (mut state, context) = in_context()?;
    let stream = queue::resolve(&mut state, context, stream)?;
    Ok((state, context, stream))
}

/// Like [`on_stream`] for a call that waits for a stream or asks about it: not while it is captured. For the legacy stream,
/// an operation is added, since it comes after the work of all blocking streams.
fn to_wait(stream: Handle) -> Result<(Guard, u64)> {
    let (mut state, context, stream) = on_stream(stream)?;
    capture::check_stream(&mut state, stream)?;
    capture::check_unsafe(&mut state)?;
    if state.contexts.get(context)?.legacy == stream {
        queue::push(&mut state, context, stream, Work::Nothing)?;
    }
    Ok((state, stream))
}

fn create(stream: Out<Handle>, flags: u32, priority: i32) -> Result<()> {
    let (mut state, context) = in_context()?;
    stream.check("phStream")?;
    if flags > 1 {
        return Err(Code::INVALID_VALUE.because(format!("stream flags {flags:#x}")));
    }
    let priority = priority.clamp(PRIORITIES.1, PRIORITIES.0);
    stream.set(queue::create(&mut state, context, flags, priority))
}

/// What capture information is asked for.
struct Info {
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<*const Handle>,
    edges: Out<u64>,
    count: Out<usize>,
}

fn capture_info(stream: Handle, info: &Info) -> Result<()> {
    let (mut state, context, stream) = on_stream(stream)?;
    info.status.check("captureStatus_out")?;
    if state.contexts.get(context)?.legacy == stream {
        capture::check_implicit(&mut state, context)?;
    }
    if !info.dependencies.is_null() {
        let what = "the nodes that a capturing stream depends on cannot be asked for";
        return Err(Code::NOT_SUPPORTED.because(what));
    }
    let Some(handle) = state.streams.get(stream)?.capture else { return info.status.set(0) };
    let capture = state.captures.get(handle)?;
    info.status.set(if capture.invalid { 2 } else { 1 })?;
    info.id.set_optional(handle);
    if !capture.invalid {
        info.graph.set_optional(capture.graph);
        info.edges.set_optional(0);
        info.count.set_optional(capture.tips.get(&stream).map_or(0, Vec::len));
    }
    Ok(())
}

entries! {
    /// Makes a stream.
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags, 0)
    }

    /// Makes a stream with a priority.
    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: c_int) {
        create(stream, flags, priority)
    }

    /// Destroys a stream; its work is still done.
    fn cuStreamDestroy_v2(stream: Handle) {
        if stream <= 2 {
            return Err(Code::INVALID_HANDLE.because("a default stream cannot be destroyed"));
        }
        let (mut state, _, stream) = on_stream(stream)?;
        capture::abandon(&mut state, stream)?;
        let found = state.streams.get_mut(stream)?;
        found.destroyed = true;
        found.capture = None;
        if found.pending.is_empty() {
            state.streams.remove(stream)?;
        }
        Ok(())
    }

    /// Waits for all work of a stream.
    fn cuStreamSynchronize(stream: Handle) {
        let (state, stream) = to_wait(stream)?;
        let mut state = queue::drain_stream(state, stream)?;
        pool::synchronised(&mut state);
        Ok(())
    }

    /// Asks whether all work of a stream is done: 600 if not.
    fn cuStreamQuery(stream: Handle) {
        let (state, stream) = to_wait(stream)?;
        let busy = state.has_work(stream)?;
        drop(queue::step(state)?);
        if busy { Err(Code::NOT_READY.into()) } else { Ok(()) }
    }

    /// Makes a stream wait for an event.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        let (mut state, context, stream) = on_stream(stream)?;
        match flags {
            0 => {}
            1 => return Err(Code::NOT_SUPPORTED.because("event wait nodes (CU_EVENT_WAIT_EXTERNAL)")),
            _ => return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}"))),
        }
        match capture::wait(&mut state, context, stream, event)? {
            Some(recording) => queue::push(&mut state, context, stream, Work::Wait(recording)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Calls a host function when the work before it is done.
    fn cuLaunchHostFunc(stream: Handle, function: HostFunction, data: u64) {
        let (state, context) = in_context()?;
        let function = function.ok_or_else(|| Code::INVALID_VALUE.because("the function is null"))?;
        drop(queue::submit(state, context, stream, Work::Host(HostCall { function, data }))?);
        Ok(())
    }

    /// Returns the flags of a stream.
    fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        let (state, _, stream) = on_stream(stream)?;
        flags.set(state.streams.get(stream)?.flags)
    }

    /// Returns the priority of a stream.
    fn cuStreamGetPriority(stream: Handle, priority: Out<c_int>) {
        let (state, _, stream) = on_stream(stream)?;
        priority.set(state.streams.get(stream)?.priority)
    }

    /// Returns the context of a stream.
    fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) {
        let (_state, own, _) = on_stream(stream)?;
        context.set(own)
    }

    /// Returns a number that names a stream.
    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        let (_state, _, stream) = on_stream(stream)?;
        id.set(stream)
    }

    /// Begins to capture what is submitted to a stream into a graph.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) {
        let (mut state, context, stream) = on_stream(stream)?;
        capture::begin(&mut state, context, stream, mode)
    }

    /// Ends a capture; after an error there is no graph.
    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        graph.check("phGraph")?;
        graph.set(0)?;
        let (mut state, _, stream) = on_stream(stream)?;
        graph.set(capture::end(&mut state, stream)?)
    }

    /// Asks whether a stream is being captured: 0 no, 1 yes, 2 yes, and the capture is invalid.
    fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) {
        let (id, graph, dependencies) = (Out::nothing(), Out::nothing(), Out::nothing());
        capture_info(stream, &Info { status, id, graph, dependencies, edges: Out::nothing(), count: Out::nothing() })
    }

    /// Asks about the capture of a stream.
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: Out<*const Handle>, count: Out<usize>,
    ) {
        capture_info(stream, &Info { status, id, graph, dependencies, edges: Out::nothing(), count })
    }

    /// Asks about the capture of a stream.
    fn cuStreamGetCaptureInfo_v3(
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: Out<*const Handle>, edges: Out<u64>,
        count: Out<usize>,
    ) {
        capture_info(stream, &Info { status, id, graph, dependencies, edges, count })
    }

    /// Exchanges the capture mode of this thread.
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let (_state, _) = in_context()?;
        let old = capture::exchange_mode(mode.get()?)?;
        mode.set(old)
    }
}
