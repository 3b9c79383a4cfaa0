//! Stream capture and its rules.
//!
//! 900 a call that is not allowed (the capture is then invalid) · 901 the capture is invalid · 902 two captures would merge ·
//! 903 ended in another stream · 904 streams that were not joined · 905 a dependency on work outside of the capture ·
//! 906 the legacy stream would wait for a capture · 907 an event of a capture, where a real one is needed · 908 wrong thread
//!
//! Rules: CUDA driver API, cuStreamBeginCapture, cuThreadExchangeStreamCaptureMode, and the programming guide on graphs.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::thread::{self, ThreadId};

use super::codes::{Code, Result};
use super::graph::{Graph, Node};
use super::state::{Recorded, State};
use super::work::Work;

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`
pub const GLOBAL: u32 = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`
pub const RELAXED: u32 = 2;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    /// Its context.
    pub context: u64,
    /// The stream where it began and must end.
    pub origin: u64,
    /// `CUstreamCaptureMode`
    pub mode: u32,
    /// Who began it.
    pub thread: ThreadId,
    /// The graph that grows.
    pub graph: u64,
    /// A call that is not allowed was made.
    pub invalid: bool,
    /// For each stream that takes part, the nodes that its next one comes after.
    pub tips: BTreeMap<u64, Vec<u64>>,
}

thread_local! {
    /// What `cuThreadExchangeStreamCaptureMode` sets.
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// Sets the mode of this thread and returns the one before.
pub fn exchange_mode(mode: u32) -> Result<u32> {
    match mode > RELAXED {
        true => Err(Code::INVALID_VALUE.because(format!("capture mode {mode}"))),
        false => Ok(MODE.replace(mode)),
    }
}

/// Begins a capture.
pub fn begin(state: &mut State, context: u64, stream: u64, mode: u32) -> Result<()> {
    if mode > RELAXED {
        return Err(Code::INVALID_VALUE.because(format!("capture mode {mode}")));
    }
    if state.contexts.get(context)?.legacy == stream {
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED.because("the legacy stream cannot be captured"));
    }
    if state.streams.get(stream)?.capture.is_some() {
        return Err(Code::ILLEGAL_STATE.because("the stream is being captured already"));
    }
    let graph = state.handle();
    state.graphs.insert(graph, Graph::default());
    let capture = state.handle();
    let tips = BTreeMap::from([(stream, Vec::new())]);
    let thread = thread::current().id();
    state
        .captures
        .insert(capture, Capture { context, origin: stream, mode, thread, graph, invalid: false, tips });
    state.streams.get_mut(stream)?.capture = Some(capture);
    Ok(())
}

/// Ends a capture and returns its graph.
pub fn end(state: &mut State, stream: u64) -> Result<u64> {
    let Some(handle) = state.streams.get(stream)?.capture else {
        return Err(Code::ILLEGAL_STATE.because("the stream is not being captured"));
    };
    let capture = state.captures.get_mut(handle)?;
    if capture.origin != stream {
        capture.invalid = true;
        return Err(Code::STREAM_CAPTURE_UNMATCHED.because("the capture began in another stream"));
    }
    if capture.mode != RELAXED && capture.thread != thread::current().id() {
        return Err(Code::STREAM_CAPTURE_WRONG_THREAD.because("the capture began in another thread"));
    }
    let capture = close(state, handle)?;
    if capture.invalid {
        state.graphs.remove(capture.graph)?;
        return Err(Code::STREAM_CAPTURE_INVALIDATED.because("a call during the capture was not allowed"));
    }
    let joined = state.graphs.get(capture.graph)?.ancestors(&capture.tips[&stream]);
    if capture.tips.values().flatten().any(|node| !joined.contains(node)) {
        state.graphs.remove(capture.graph)?;
        let what =
            "a stream that joined by an event was not joined back into the one where the capture began";
        return Err(Code::STREAM_CAPTURE_UNJOINED.because(what));
    }
    Ok(capture.graph)
}

/// Takes all streams out of a capture.
fn close(state: &mut State, handle: u64) -> Result<Capture> {
    let capture = state.captures.remove(handle)?;
    for stream in state.streams.values_mut().filter(|stream| stream.capture == Some(handle)) {
        stream.capture = None;
    }
    Ok(capture)
}

/// Marks the capture of a stream as invalid, if there is one.
pub fn invalidate(state: &mut State, stream: u64) {
    let handle = state.streams.get(stream).ok().and_then(|stream| stream.capture);
    if let Some(capture) = handle.and_then(|handle| state.captures.get_mut(handle).ok()) {
        capture.invalid = true;
    }
}

/// Ends the capture of a stream that is destroyed.
pub fn abandon(state: &mut State, stream: u64) -> Result<()> {
    let Some(handle) = state.streams.get(stream)?.capture else { return Ok(()) };
    state.captures.get_mut(handle)?.invalid = true;
    if state.captures.get(handle)?.origin == stream {
        let capture = close(state, handle)?;
        state.graphs.remove(capture.graph)?;
    }
    Ok(())
}

/// Decides whether work goes into a graph rather than into the stream.
pub fn takes(state: &mut State, context: u64, stream: u64) -> Result<bool> {
    match state.streams.get(stream)?.capture {
        Some(handle) if state.captures.get(handle)?.invalid => {
            Err(Code::STREAM_CAPTURE_INVALIDATED.because("a call during the capture was not allowed"))
        }
        Some(_) => Ok(true),
        None => {
            if state.contexts.get(context)?.legacy == stream {
                check_implicit(state, context)?;
            }
            Ok(false)
        }
    }
}

/// Refuses work in the legacy stream while a blocking stream is captured.
pub fn check_implicit(state: &mut State, context: u64) -> Result<()> {
    let captured =
        |(_, s): &(u64, &super::state::Stream)| s.context == context && s.blocking && s.capture.is_some();
    let Some((stream, _)) = state.streams.iter().find(captured) else { return Ok(()) };
    invalidate(state, stream);
    let what = "work in the legacy stream would wait for a blocking stream that is being captured";
    Err(Code::STREAM_CAPTURE_IMPLICIT.because(what))
}

/// Refuses a call that may be unsafe while a capture runs, by the modes of the capture and of this thread.
pub fn check_unsafe(state: &mut State) -> Result<()> {
    let (mode, thread) = (MODE.get(), thread::current().id());
    let forbids = |capture: &Capture| match capture.thread == thread {
        true => capture.mode != RELAXED,
        false => capture.mode == GLOBAL && mode == GLOBAL,
    };
    let mut forbidden = false;
    if mode != RELAXED {
        for capture in state.captures.values_mut().filter(|capture| forbids(capture)) {
            capture.invalid = true;
            forbidden = true;
        }
    }
    match forbidden {
        true => Err(Code::STREAM_CAPTURE_UNSUPPORTED.because("not allowed while a stream is being captured")),
        false => Ok(()),
    }
}

/// Refuses to wait for, or to ask about, a stream that is being captured.
pub fn check_stream(state: &mut State, stream: u64) -> Result<()> {
    if state.streams.get(stream)?.capture.is_none() {
        return Ok(());
    }
    invalidate(state, stream);
    Err(Code::STREAM_CAPTURE_UNSUPPORTED
        .because("the stream is being captured: there is nothing to wait for"))
}

/// Refuses to wait for a context of which a stream is being captured.
pub fn check_context(state: &mut State, context: u64) -> Result<()> {
    let captured: Vec<u64> = state
        .streams
        .iter()
        .filter(|(_, stream)| stream.context == context && stream.capture.is_some())
        .map(|(handle, _)| handle)
        .collect();
    captured.iter().for_each(|stream| invalidate(state, *stream));
    match captured.is_empty() {
        true => Ok(()),
        false => Err(Code::STREAM_CAPTURE_UNSUPPORTED.because("a stream of the context is being captured")),
    }
}

/// Refuses an event that was recorded in a capture where a real one is needed.
pub fn check_event(state: &mut State, event: u64) -> Result<()> {
    let Recorded::Captured { capture, .. } = state.events.get(event)?.recorded else { return Ok(()) };
    if let Ok(capture) = state.captures.get_mut(capture) {
        capture.invalid = true;
    }
    Err(Code::CAPTURED_EVENT.because("the event was last recorded in a capture, so it never happens"))
}

/// Adds a node after all that its stream depends on; returns the node.
pub fn add(state: &mut State, stream: u64, work: Work) -> Result<u64> {
    let node = state.handle();
    let handle = state.streams.get(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
    let capture = state.captures.get_mut(handle)?;
    let tips = capture.tips.entry(stream).or_default();
    let dependencies = std::mem::replace(tips, vec![node]);
    let graph = capture.graph;
    state.graphs.get_mut(graph)?.nodes.push(Node { handle: node, work, dependencies });
    Ok(node)
}

/// Returns whether the graph that a stream captures has allocated this address and not freed it.
pub fn owns(state: &State, stream: u64, address: u64) -> Result<bool> {
    let handle = state.streams.get(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
    let nodes = &state.graphs.get(state.captures.get(handle)?.graph)?.nodes;
    let has = |wanted: &dyn Fn(&Work) -> bool| nodes.iter().any(|node| wanted(&node.work));
    Ok(has(&|work| matches!(work, Work::GraphAlloc(memory) if memory.address == address))
        && !has(&|work| matches!(work, Work::GraphFree(freed) if *freed == address)))
}

/// Records an event in a stream that is being captured.
pub fn record(state: &mut State, stream: u64, event: u64) -> Result<()> {
    let capture = state.streams.get(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
    let nodes = state.captures.get(capture)?.tips.get(&stream).cloned().unwrap_or_default();
    state.events.get_mut(event)?.recorded = Recorded::Captured { capture, nodes };
    Ok(())
}

/// Makes a stream wait for an event; returns the operation to wait for if this is outside of captures.
pub fn wait(state: &mut State, context: u64, stream: u64, event: u64) -> Result<Option<u64>> {
    let own = match takes(state, context, stream)? {
        true => state.streams.get(stream)?.capture,
        false => None,
    };
    match (own, state.events.get(event)?.recorded.clone()) {
        (_, Recorded::Never) => Ok(None),
        (None, Recorded::By(operation)) => Ok(Some(operation).filter(|o| state.recording.contains(o))),
        (Some(_), Recorded::By(_)) => Err(isolated(state, stream)),
        (own, Recorded::Captured { capture, nodes }) if state.captures.get(capture).is_ok() => {
            join(state, stream, own, capture, nodes)?;
            Ok(None)
        }
        (Some(_), Recorded::Captured { .. }) => Err(isolated(state, stream)),
        (None, Recorded::Captured { .. }) => {
            let what = "the event was last recorded in a capture that has ended, so it never happens";
            Err(Code::CAPTURED_EVENT.because(what))
        }
    }
}

fn isolated(state: &mut State, stream: u64) -> super::codes::Failure {
    invalidate(state, stream);
    let what = "a stream that is being captured cannot wait for an event recorded outside of the capture";
    Code::STREAM_CAPTURE_ISOLATION.because(what)
}

/// Brings a stream, and what it depends on, into the capture of an event.
fn join(state: &mut State, stream: u64, own: Option<u64>, capture: u64, nodes: Vec<u64>) -> Result<()> {
    if own.is_some_and(|own| own != capture) {
        invalidate(state, stream);
        state.captures.get_mut(capture)?.invalid = true;
        return Err(Code::STREAM_CAPTURE_MERGE.because("the event belongs to another capture"));
    }
    let context = state.captures.get(capture)?.context;
    if state.captures.get(capture)?.invalid {
        return Err(Code::INVALID_VALUE.because("the event belongs to a capture that is invalid"));
    }
    if state.contexts.get(context)?.legacy == stream {
        state.captures.get_mut(capture)?.invalid = true;
        return Err(Code::STREAM_CAPTURE_IMPLICIT.because("the legacy stream cannot join a capture"));
    }
    let tips = state.captures.get_mut(capture)?.tips.entry(stream).or_default();
    let known: HashSet<u64> = tips.iter().copied().collect();
    tips.extend(nodes.into_iter().filter(|node| !known.contains(node)));
    state.streams.get_mut(stream)?.capture = Some(capture);
    Ok(())
}
