//! Contexts.

use std::collections::HashMap;
use std::ffi::c_int;

use crate::driver::abi::{Handle, In, Out};
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::session::{self, Guard, check_sticky, in_context, initialised};
use crate::driver::state::{Context, State};
use crate::driver::{capture, host, module, pool, queue};

use super::device::on_device;

/// Priorities of streams: the least and the greatest.
pub(super) const PRIORITIES: (i32, i32) = (0, -5);

/// Limits that can be asked for, with what they are at first: stack, printf buffer, heap, depth and launches of device-side
/// kernels, L2 fetch granularity, persisting L2.
const LIMITS: [(u32, u64); 7] = [(0, 1024), (1, 1 << 20), (2, 8 << 20), (3, 2), (4, 2048), (5, 64), (6, 0)];

/// Makes a context.
pub(super) fn create(state: &mut State, flags: u32) -> u64 {
    let (handle, id) = (state.handle(), state.sequence());
    let legacy = queue::create(state, handle, 0, 0);
    let context = Context { legacy, per_thread: HashMap::new(), flags, limits: LIMITS.into(), cache: 0, id };
    state.contexts.insert(handle, context);
    handle
}

/// Waits for the work of a context and destroys all that it holds.
pub(super) fn destroy(state: Guard, context: u64) -> Result<()> {
    let failed = state.sticky;
    let mut state = match failed {
        None => queue::drain_context(state, context)?,
        Some(_) => state, // a fault has emptied the queues
    };
    let captures: Vec<u64> =
        state.captures.iter().filter(|(_, c)| c.context == context).map(|(_, c)| c.origin).collect();
    captures.into_iter().try_for_each(|stream| capture::abandon(&mut state, stream))?;
    state.streams.retain(|_, stream| stream.context != context);
    state.events.retain(|_, event| event.context != context);
    state.execs.retain(|_, exec| exec.context != context);
    let images: Vec<u64> =
        state.images.iter().filter(|(_, i)| i.context == context).map(|(image, _)| image).collect();
    images.into_iter().try_for_each(|image| module::unload(&mut state, image))?;
    let engine = state.engine()?;
    let mut gone = Vec::new();
    state.allocations.retain(|address, allocation| {
        let stays = allocation.context != context;
        if !stays {
            gone.push(*address);
        }
        stays
    });
    for address in gone {
        engine.memory.free(address).map_err(crate::driver::engine::refused)?;
    }
    let ranges: Vec<(u64, bool)> =
        state.host.iter().filter(|(_, r)| r.context == context).map(|(a, r)| (*a, r.registered)).collect();
    ranges
        .into_iter()
        .try_for_each(|(address, registered)| host::release(&mut state, address, registered))?;
    state.contexts.remove(context)?;
    pool::synchronised(&mut state);
    Ok(())
}

/// Refuses flags that no context has.
pub(super) fn check_flags(flags: u32) -> Result<()> {
    match flags > 0xFF || !matches!(flags & 7, 0 | 1 | 2 | 4) {
        true => Err(Code::INVALID_VALUE.because(format!("context flags {flags:#x}"))),
        false => Ok(()),
    }
}

fn create_current(context: Out<Handle>, flags: u32, device: c_int) -> Result<()> {
    let mut state = on_device(device)?;
    context.check("pctx")?;
    check_sticky(&state)?;
    check_flags(flags)?;
    let handle = create(&mut state, flags);
    session::push(handle);
    context.set(handle)
}

/// Requires that a handle is a context; here the error is 201.
fn check_context(state: &State, context: Handle) -> Result<()> {
    let known = state.contexts.get(context).map(|_| ());
    known.map_err(|failure| Code::INVALID_CONTEXT.because(failure.message))
}

entries! {
    /// Makes a context and makes it current.
    fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: c_int) {
        create_current(context, flags, device)
    }

    /// Makes a context and makes it current; execution affinity is not supported.
    fn cuCtxCreate_v3(context: Out<Handle>, affinity: In<u64>, count: c_int, flags: u32, device: c_int) {
        if count != 0 || !affinity.is_null() {
            return Err(Code::UNSUPPORTED_EXEC_AFFINITY.because("execution affinity"));
        }
        create_current(context, flags, device)
    }

    /// Makes a context and makes it current; affinity and graphics are not supported.
    fn cuCtxCreate_v4(context: Out<Handle>, parameters: In<[u64; 3]>, flags: u32, device: c_int) {
        if !parameters.is_null() && parameters.get()? != [0; 3] {
            return Err(Code::NOT_SUPPORTED.because("a context with execution affinity or for graphics"));
        }
        create_current(context, flags, device)
    }

    /// Destroys a context.
    fn cuCtxDestroy_v2(context: Handle) {
        let state = initialised()?;
        check_context(&state, context)?;
        if state.primary.context == Some(context) {
            return Err(Code::INVALID_CONTEXT.because("the primary context is released, not destroyed"));
        }
        if session::current() == Some(context) {
            session::pop();
        }
        destroy(state, context)
    }

    /// Returns the current context of this thread, or null.
    fn cuCtxGetCurrent(context: Out<Handle>) {
        drop(initialised()?);
        context.set(session::current().unwrap_or(0))
    }

    /// Makes a context current, or none.
    fn cuCtxSetCurrent(context: Handle) {
        let state = initialised()?;
        if context != 0 {
            check_context(&state, context)?;
        }
        session::set_current(Some(context).filter(|context| *context != 0));
        Ok(())
    }

    /// Pushes a context.
    fn cuCtxPushCurrent_v2(context: Handle) {
        let state = initialised()?;
        check_context(&state, context)?;
        session::push(context);
        Ok(())
    }

    /// Pops the current context.
    fn cuCtxPopCurrent_v2(context: Out<Handle>) {
        drop(initialised()?);
        match session::pop() {
            Some(popped) => {
                context.set_optional(popped);
                Ok(())
            }
            None => Err(Code::INVALID_CONTEXT.because("no context is current in this thread")),
        }
    }

    /// Returns the device of the current context.
    fn cuCtxGetDevice(device: Out<c_int>) {
        drop(in_context()?);
        device.set(0)
    }

    /// Returns the flags of the current context.
    fn cuCtxGetFlags(flags: Out<u32>) {
        let (state, context) = in_context()?;
        flags.set(state.contexts.get(context)?.flags)
    }

    /// Sets the flags of the current context.
    fn cuCtxSetFlags(flags: u32) {
        let (mut state, context) = in_context()?;
        check_flags(flags)?;
        state.contexts.get_mut(context)?.flags = flags;
        Ok(())
    }

    /// Returns a number that names a context.
    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        let (state, current) = in_context()?;
        let context = if context == 0 { current } else { context };
        check_context(&state, context)?;
        id.set(state.contexts.get(context)?.id)
    }

    /// Returns the version of the API.
    fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        let (state, current) = in_context()?;
        check_context(&state, if context == 0 { current } else { context })?;
        version.set(3020)
    }

    /// Waits for all work of the current context.
    fn cuCtxSynchronize() {
        let (mut state, context) = in_context()?;
        capture::check_context(&mut state, context)?;
        capture::check_unsafe(&mut state)?;
        let mut state = queue::drain_context(state, context)?;
        pool::synchronised(&mut state);
        Ok(())
    }

    /// Returns a limit.
    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let (state, context) = in_context()?;
        let found = state.contexts.get(context)?.limits.get(&limit);
        value.set(*found.ok_or_else(|| Code::UNSUPPORTED_LIMIT.because(format!("limit {limit}")))? as usize)
    }

    /// Sets a limit.
    fn cuCtxSetLimit(limit: u32, value: usize) {
        let (mut state, context) = in_context()?;
        let found = state.contexts.get_mut(context)?.limits.get_mut(&limit);
        *found.ok_or_else(|| Code::UNSUPPORTED_LIMIT.because(format!("limit {limit}")))? = value as u64;
        Ok(())
    }

    /// Returns the preference between first level cache and shared memory.
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        let (state, context) = in_context()?;
        config.set(state.contexts.get(context)?.cache)
    }

    /// Sets the preference between first level cache and shared memory; it changes nothing.
    fn cuCtxSetCacheConfig(config: u32) {
        let (mut state, context) = in_context()?;
        if config > 3 {
            return Err(Code::INVALID_VALUE.because(format!("cache preference {config}")));
        }
        state.contexts.get_mut(context)?.cache = config;
        Ok(())
    }

    /// Returns the least and the greatest priority of streams.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        drop(in_context()?);
        least.set_optional(PRIORITIES.0);
        greatest.set_optional(PRIORITIES.1);
        Ok(())
    }

    /// Begins profiling: the counters of launches are always written if a file is set.
    fn cuProfilerStart() {
        drop(in_context()?);
        Ok(())
    }

    /// Ends profiling.
    fn cuProfilerStop() {
        drop(in_context()?);
        Ok(())
    }
}
