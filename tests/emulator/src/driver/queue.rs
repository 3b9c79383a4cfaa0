//! Streams: submitting work, choosing what runs next, and waiting.
//!
//! Every operation has a number, ascending over all streams. An event is named by the number of the operation that recorded
//! it, and the rules of the legacy stream are comparisons of numbers. The operation with the lowest number can always run,
//! so no order of streams can end in a deadlock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use super::abi::Handle;
use super::capture;
use super::codes::{Code, Result};
use super::engine::Engine;
use super::journal;
use super::session::{self, Guard, check_sticky};
use super::settings::Queue;
use super::state::{Operation, Recorded, State, Stream};
use super::work::{HostCall, Work};

/// Operations that may wait in all streams together, as in a real driver's launch queue; a call that finds more works off
/// half of them.
const DEPTH: usize = 1024;

/// Makes a stream.
pub fn create(state: &mut State, context: u64, flags: u32, priority: i32) -> u64 {
    let stream = Stream {
        context,
        blocking: flags & 1 == 0,
        flags,
        priority,
        pending: VecDeque::new(),
        busy: false,
        capture: None,
        destroyed: false,
    };
    let handle = state.handle();
    state.streams.insert(handle, stream);
    handle
}

/// Finds the stream of a handle: 0 and 1 are the legacy stream, 2 that of this thread.
pub fn resolve(state: &mut State, context: u64, handle: Handle) -> Result<u64> {
    match handle {
        0 | 1 => Ok(state.contexts.get(context)?.legacy),
        2 => {
            let thread = thread::current().id();
            if let Some(stream) = state.contexts.get(context)?.per_thread.get(&thread) {
                return Ok(*stream);
            }
            let stream = create(state, context, 0, 0);
            state.contexts.get_mut(context)?.per_thread.insert(thread, stream);
            Ok(stream)
        }
        handle => {
            let stream = state.streams.get(handle)?;
            if stream.destroyed {
                return Err(Code::INVALID_HANDLE.because(format!("stream {handle:#x} was destroyed")));
            }
            if stream.context != context {
                return Err(Code::INVALID_HANDLE.because(format!("stream {handle:#x} is of another context")));
            }
            Ok(handle)
        }
    }
}

/// Puts work at the end of a stream, or into the graph that it captures; returns its number if it is queued.
pub fn push(state: &mut State, context: u64, stream: u64, work: Work) -> Result<Option<u64>> {
    if capture::takes(state, context, stream)? {
        capture::add(state, stream, work)?;
        return Ok(None);
    }
    let sequence = state.sequence();
    for event in work.records() {
        if let Ok(event) = state.events.get_mut(event) {
            event.recorded = Recorded::By(sequence);
            state.recording.insert(sequence);
        }
    }
    state.streams.get_mut(stream)?.pending.push_back(Operation { sequence, work });
    Ok(Some(sequence))
}

/// Submits work as a C function does: at the end of a stream, then what the settings want to be done at once.
pub fn submit(mut state: Guard, context: u64, stream: Handle, work: Work) -> Result<Guard> {
    let stream = resolve(&mut state, context, stream)?;
    let Some(sequence) = push(&mut state, context, stream, work)? else { return Ok(state) };
    match state.settings.queue {
        Queue::Immediate => finish(state, sequence, stream),
        Queue::Worker => {
            start_worker(&mut state);
            Ok(state)
        }
        Queue::Late if pending(&state) > DEPTH => {
            let state = drain(state, |state| pending(state) <= DEPTH / 2);
            check_sticky(&state)?;
            Ok(state)
        }
        Queue::Late => Ok(state),
    }
}

/// Submits work and waits until it is done; in a capture, only adds it.
pub fn submit_and_wait(mut state: Guard, context: u64, stream: Handle, work: Work) -> Result<Guard> {
    let stream = resolve(&mut state, context, stream)?;
    match push(&mut state, context, stream, work)? {
        Some(sequence) => finish(state, sequence, stream),
        None => Ok(state),
    }
}

fn finish(state: Guard, sequence: u64, stream: u64) -> Result<Guard> {
    let state = drain(state, |state| {
        let front = state.streams.get(stream).ok().and_then(|s| s.pending.front());
        front.is_none_or(|operation| operation.sequence > sequence)
    });
    check_sticky(&state)?;
    Ok(state)
}

fn pending(state: &State) -> usize {
    state.streams.iter().map(|(_, stream)| stream.pending.len()).sum()
}

fn start_worker(state: &mut State) {
    session::driver().changed.notify_all();
    if !state.worker {
        state.worker = true;
        thread::spawn(|| {
            let mut state = session::lock();
            loop {
                // After a reset, the settings may want no worker any more.
                let idle = |state: &State| pending(state) == 0 || state.settings.queue != Queue::Worker;
                state = session::wait(drain(state, idle));
            }
        });
    }
}

/// Waits for all work of a stream.
pub fn drain_stream(state: Guard, stream: u64) -> Result<Guard> {
    let state = drain(state, |state| state.streams.get(stream).map_or(true, |s| s.pending.is_empty()));
    check_sticky(&state)?;
    Ok(state)
}

/// Waits for all work of a context.
pub fn drain_context(state: Guard, context: u64) -> Result<Guard> {
    let busy = move |stream: &Stream| stream.context == context && !stream.pending.is_empty();
    let state = drain(state, |state| !state.streams.iter().any(|(_, stream)| busy(stream)));
    check_sticky(&state)?;
    Ok(state)
}

/// Waits for an operation that records an event.
pub fn drain_recording(state: Guard, sequence: u64) -> Result<Guard> {
    let state = drain(state, |state| !state.recording.contains(&sequence));
    check_sticky(&state)?;
    Ok(state)
}

/// Runs one operation, whichever the seed picks: time passes when a program asks whether something is done.
pub fn step(state: Guard) -> Result<Guard> {
    let mut stepped = false;
    let state = drain(state, |_| std::mem::replace(&mut stepped, true));
    check_sticky(&state)?;
    Ok(state)
}

/// Runs operations, in a seeded order among streams, until `done` or nothing is left or a fault.
fn drain(mut state: Guard, mut done: impl FnMut(&State) -> bool) -> Guard {
    while state.sticky.is_none() && !done(&state) {
        if state.running {
            state = session::wait(state);
            continue;
        }
        let Some(engine) = state.engine.clone() else { break };
        let Some((stream, sequence, work)) = pick(&mut state) else {
            if !state.streams.iter().any(|(_, stream)| stream.busy) {
                break;
            }
            state = session::wait_briefly(state);
            continue;
        };
        if let Work::Host(call) = work {
            state = call_host(state, engine, (stream, sequence), call);
            continue;
        }
        state.running = true;
        drop(state);
        let outcome = work.run(&engine, sequence);
        state = session::lock();
        state.running = false;
        complete(&mut state, stream, sequence, work, outcome);
        session::driver().changed.notify_all();
    }
    state
}

/// Calls a host function in a thread of its own: it may wait for the very thread that waits here. Most end soon, and nothing
/// else is begun until then, so that the order stays that of the seed.
fn call_host(mut state: Guard, engine: Arc<Engine>, place: (u64, u64), call: HostCall) -> Guard {
    let (stream, sequence) = place;
    let work = Work::Host(call);
    let run = move || {
        let outcome = work.run(&engine, sequence);
        let mut state = session::lock();
        if let Ok(stream) = state.streams.get_mut(stream) {
            stream.busy = false;
        }
        complete(&mut state, stream, sequence, work, outcome);
        session::driver().changed.notify_all();
    };
    if let Ok(found) = state.streams.get_mut(stream) {
        found.busy = true;
    }
    let started = thread::Builder::new().spawn(run);
    if let Err(error) = started {
        let what = format!("no thread for a host function: {error}");
        complete(&mut state, stream, sequence, Work::Nothing, Err(Code::OPERATING_SYSTEM.because(what)));
        return state;
    }
    session::wait_briefly(state)
}

/// Chooses an operation that may run now, and takes its work out; its number stays at the front of its stream.
fn pick(state: &mut State) -> Option<(u64, u64, Work)> {
    let mut ready: Vec<u64> =
        state.streams.iter().filter(|(_, stream)| may_run(state, stream)).map(|(handle, _)| handle).collect();
    ready.sort_unstable();
    if ready.is_empty() {
        return None;
    }
    let stream = ready[state.draw(ready.len())];
    let operation = state.streams.get_mut(stream).ok()?.pending.front_mut()?;
    Some((stream, operation.sequence, std::mem::replace(&mut operation.work, Work::Nothing)))
}

/// Decides whether the first operation of a stream has all that it waits for.
fn may_run(state: &State, stream: &Stream) -> bool {
    let Some(first) = stream.pending.front().filter(|_| !stream.busy) else { return false };
    if matches!(first.work, Work::Wait(recording) if state.recording.contains(&recording)) {
        return false;
    }
    let Ok(context) = state.contexts.get(stream.context) else { return true };
    let before = |other: &Stream| other.pending.front().is_some_and(|front| front.sequence < first.sequence);
    let legacy = state.streams.get(context.legacy).ok();
    if legacy.is_some_and(|legacy| std::ptr::eq(legacy, stream)) {
        let same = |other: &Stream| other.context == stream.context && other.blocking;
        return !state.streams.iter().any(|(_, other)| same(other) && before(other));
    }
    !stream.blocking || !legacy.is_some_and(before)
}

fn complete(state: &mut State, stream: u64, sequence: u64, work: Work, outcome: Result<()>) {
    for event in work.records() {
        if let Ok(event) = state.events.get_mut(event) {
            event.time = Some((sequence, std::time::Instant::now()));
        }
    }
    state.recording.remove(&sequence);
    if let Work::Free(address) = work {
        state.freeing.remove(&address);
    }
    if let Ok(found) = state.streams.get_mut(stream) {
        // After a fault, the queue was emptied in the meantime.
        if found.pending.front().is_some_and(|front| front.sequence == sequence) {
            found.pending.pop_front();
        }
        if found.destroyed && found.pending.is_empty() {
            state.streams.retain(|handle, _| *handle != stream);
        }
    }
    if let Err(failure) = outcome {
        let told = if failure.message.is_empty() { "" } else { ": " };
        journal::tell(&format!("asynchronous error {}{told}{}", failure.code, failure.message));
        state.fail(failure.code);
    }
}
