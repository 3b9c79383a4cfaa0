//! Events.

use crate::driver::abi::{Handle, Out};
use crate::driver::capture;
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::queue;
use crate::driver::session::{Guard, in_context};
use crate::driver::state::{Event, Recorded, State};
use crate::driver::work::Work;

use super::stream::on_stream;

/// `CU_EVENT_DISABLE_TIMING`
const DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`
const INTERPROCESS: u32 = 4;

fn record(event: Handle, stream: Handle, external: bool) -> Result<()> {
    let (mut state, context, stream) = on_stream(stream)?;
    if state.events.get(event)?.context != context {
        return Err(Code::INVALID_HANDLE.because("the event is of another context"));
    }
    match capture::takes(&mut state, context, stream)? {
        true if external => capture::add(&mut state, stream, Work::Record(event)).map(|_| ()),
        true => capture::record(&mut state, stream, event),
        false => queue::submit(state, context, stream, Work::Record(event)).map(|_| ()),
    }
}

/// Returns the operation that an event still waits for; an event of a capture cannot be waited for.
fn under_way(event: Handle) -> Result<(Guard, Option<u64>)> {
    let (mut state, _) = in_context()?;
    capture::check_event(&mut state, event)?;
    capture::check_unsafe(&mut state)?;
    let operation = match state.events.get(event)?.recorded {
        Recorded::By(operation) if state.recording.contains(&operation) => Some(operation),
        _ => None,
    };
    Ok((state, operation))
}

fn time_of(state: &mut State, event: Handle) -> Result<std::time::Instant> {
    capture::check_event(state, event)?;
    let found = state.events.get(event)?;
    if !found.timing {
        return Err(Code::INVALID_HANDLE.because("the event was made without timing"));
    }
    match (&found.recorded, found.time) {
        (Recorded::By(operation), _) if state.recording.contains(operation) => Err(Code::NOT_READY.into()),
        (Recorded::By(_), Some((_, time))) => Ok(time),
        _ => Err(Code::INVALID_HANDLE.because("the event was never recorded")),
    }
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Result<()> {
    let (mut state, _) = in_context()?;
    milliseconds.check("pMilliseconds")?;
    let (start, end) = (time_of(&mut state, start)?, time_of(&mut state, end)?);
    let seconds = match end.checked_duration_since(start) {
        Some(time) => time.as_secs_f64(),
        None => -start.duration_since(end).as_secs_f64(),
    };
    milliseconds.set((seconds * 1e3) as f32)
}

entries! {
    /// Makes an event.
    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        let (mut state, context) = in_context()?;
        event.check("phEvent")?;
        if flags > 7 {
            return Err(Code::INVALID_VALUE.because(format!("event flags {flags:#x}")));
        }
        if flags & INTERPROCESS != 0 {
            let timing = flags & DISABLE_TIMING == 0;
            let code = if timing { Code::INVALID_VALUE } else { Code::NOT_SUPPORTED };
            return Err(code.because("an event for several processes"));
        }
        let handle = state.handle();
        let timing = flags & DISABLE_TIMING == 0;
        state.events.insert(handle, Event { context, timing, recorded: Recorded::Never, time: None });
        event.set(handle)
    }

    /// Destroys an event.
    fn cuEventDestroy_v2(event: Handle) {
        let (mut state, _) = in_context()?;
        state.events.remove(event)?;
        Ok(())
    }

    /// Records an event in a stream.
    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream, false)
    }

    /// Records an event in a stream; with flag 1, in a capture too, as a node.
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        match flags {
            0 | 1 => record(event, stream, flags == 1),
            _ => Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}"))),
        }
    }

    /// Asks whether an event has happened: 600 if not.
    fn cuEventQuery(event: Handle) {
        match under_way(event)? {
            (_, None) => Ok(()),
            (state, Some(_)) => {
                drop(queue::step(state)?);
                Err(Code::NOT_READY.into())
            }
        }
    }

    /// Waits for an event.
    fn cuEventSynchronize(event: Handle) {
        let (state, operation) = under_way(event)?;
        if let Some(operation) = operation {
            let mut state = queue::drain_recording(state, operation)?;
            crate::driver::pool::synchronised(&mut state);
        }
        Ok(())
    }

    /// Returns the time between two events.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    /// Returns the time between two events.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
