//! Copies.

use std::sync::Arc;

use crate::driver::abi::{Copy2d, Handle, In};
use crate::driver::capture;
use crate::driver::codes::{Code, Failure, Result};
use crate::driver::copy::{Copy, Place, Side};
use crate::driver::entry::entries;
use crate::driver::host;
use crate::driver::queue;
use crate::driver::session::{Guard, in_context};
use crate::driver::settings::Pageable;
use crate::driver::state::State;
use crate::driver::work::Work;

/// `CU_MEMORYTYPE_*`
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

/// Whether the caller waits for a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Yes,
    No,
}

/// Locks the state for a synchronous copy, which is one in the legacy stream.
fn synchronous() -> Result<(Guard, u64)> {
    let (mut state, context) = in_context()?;
    capture::check_unsafe(&mut state)?;
    Ok((state, context))
}

/// Says where an address of unknown kind is, as cuMemcpy does.
pub(super) fn place_of(state: &State, address: u64) -> Result<Place> {
    let engine = state.engine()?;
    let device = address >= crate::memory::BASE && engine.memory.allocation(address).is_some();
    match device || address >= crate::memory::BASE {
        true => Ok(Place::Device(address)),
        false => Ok(Place::Host(address)),
    }
}

/// Checks both sides of a copy.
pub(super) fn check(state: &State, copy: &Copy) -> Result<()> {
    for (side, name) in [(&copy.to, "destination"), (&copy.from, "source")] {
        let extent = side.extent((copy.width, copy.height, copy.depth));
        let extent =
            extent.ok_or_else(|| Code::INVALID_VALUE.because(format!("the {name} is larger than memory")))?;
        let named = |f: Failure| f.code.because(format!("{name}: {}", f.message));
        match side.place {
            Place::Device(address) => state.device_range(address, extent).map_err(named)?,
            Place::Host(0) => return Err(Code::INVALID_VALUE.because(format!("the {name} is null"))),
            Place::Host(address) if address.checked_add(extent).is_none() => {
                return Err(Code::INVALID_VALUE.because(format!("the {name} reaches past the end of memory")));
            }
            Place::Host(_) | Place::Staged(_) => {}
        }
    }
    Ok(())
}

/// Submits a copy: pageable memory is staged or waited for, as set, unless the copy becomes a node of a graph.
fn submit(mut state: Guard, context: u64, stream: Handle, mut copy: Copy, wait: Wait) -> Result<()> {
    if copy.width == 0 || copy.height == 0 || copy.depth == 0 {
        return Ok(());
    }
    check(&state, &copy)?;
    let resolved = queue::resolve(&mut state, context, stream)?;
    let captured = state.streams.get(resolved)?.capture.is_some();
    let mut wait = wait;
    if !captured && state.settings.pageable == Pageable::Staged {
        let pageable = |side: &Side| match side.place {
            Place::Host(address) => {
                let extent = side.extent((copy.width, copy.height, copy.depth)).unwrap_or(0);
                (state.pinned_at(address, extent as usize).is_none()).then_some((address, extent as usize))
            }
            _ => None,
        };
        if pageable(&copy.to).is_some() {
            wait = Wait::Yes;
        } else if let Some((address, extent)) = pageable(&copy.from) {
            copy.from.place = Place::Staged(Arc::new(stage(address, extent)?));
        }
    }
    let submitted = match wait {
        Wait::Yes => queue::submit_and_wait(state, context, stream, Work::Copy(copy)),
        Wait::No => queue::submit(state, context, stream, Work::Copy(copy)),
    };
    submitted.map(drop)
}

fn stage(address: u64, bytes: usize) -> Result<Vec<u8>> {
    let mut staged = Vec::new();
    let room = staged.try_reserve_exact(bytes);
    room.map_err(|_| Code::OUT_OF_MEMORY.because(format!("{bytes} bytes to stage host memory")))?;
    staged.resize(bytes, 0);
    let read = host::read(address, &mut staged);
    read.map_err(|failure| Code::INVALID_VALUE.because(format!("source: {}", failure.message)))?;
    Ok(staged)
}

/// A synchronous copy of some bytes.
fn now(to: Place, from: Place, bytes: usize, wait: Wait) -> Result<()> {
    let (state, context) = synchronous()?;
    submit(state, context, 0, Copy::row(to, from, bytes), wait)
}

/// An asynchronous copy of some bytes.
fn later(to: Place, from: Place, bytes: usize, stream: Handle) -> Result<()> {
    let (state, context) = in_context()?;
    submit(state, context, stream, Copy::row(to, from, bytes), Wait::No)
}

/// Takes a side of a 2D copy, the offset of its first byte included.
fn side(
    state: &State,
    kind: u32,
    host: u64,
    device: u64,
    pitch: usize,
    offset: (usize, usize),
) -> Result<Side> {
    let place = match kind {
        HOST => Place::Host(host),
        DEVICE => Place::Device(device),
        UNIFIED => place_of(state, device)?,
        ARRAY => return Err(Code::NOT_SUPPORTED.because("CUDA arrays")),
        _ => return Err(Code::INVALID_VALUE.because(format!("memory type {kind}"))),
    };
    let first = offset.1.checked_mul(pitch).and_then(|bytes| bytes.checked_add(offset.0));
    let add = |address: u64| first.and_then(|first| address.checked_add(first as u64));
    let moved = match place {
        Place::Host(address) => add(address).map(Place::Host),
        Place::Device(address) => add(address).map(Place::Device),
        Place::Staged(_) => None,
    };
    let place = moved.ok_or_else(|| Code::INVALID_VALUE.because("an offset past the end of memory"))?;
    Ok(Side { place, pitch, plane: 0 })
}

fn copy_2d(parameters: In<Copy2d>, stream: Option<Handle>) -> Result<()> {
    let (state, context) = match stream {
        Some(_) => in_context()?,
        None => synchronous()?,
    };
    let p = parameters.get()?;
    let pitch = |given: usize, offset: usize| match given {
        0 => Ok(p.width + offset),
        given if p.width.checked_add(offset).is_none_or(|end| end > given) && p.height > 1 => {
            Err(Code::INVALID_VALUE
                .because(format!("a pitch of {given} bytes for rows of {} from byte {offset}", p.width)))
        }
        given => Ok(given),
    };
    if p.width.checked_add(p.src_x.max(p.dst_x)).is_none() {
        return Err(Code::INVALID_VALUE.because(format!("a width of {} bytes", p.width)));
    }
    let (src_pitch, dst_pitch) = (pitch(p.src_pitch, p.src_x)?, pitch(p.dst_pitch, p.dst_x)?);
    let from = side(&state, p.src_type, p.src_host, p.src_device, src_pitch, (p.src_x, p.src_y))?;
    let to = side(&state, p.dst_type, p.dst_host, p.dst_device, dst_pitch, (p.dst_x, p.dst_y))?;
    let on_device = matches!((&to.place, &from.place), (Place::Device(_), Place::Device(_)));
    let wait = if stream.is_some() || on_device { Wait::No } else { Wait::Yes };
    let copy = Copy { to, from, width: p.width, height: p.height, depth: 1 };
    submit(state, context, stream.unwrap_or(0), copy, wait)
}

entries! {
    /// Copies to the device and waits.
    fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) {
        now(Place::Device(to), Place::Host(from), bytes, Wait::Yes)
    }

    /// Copies from the device and waits.
    fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) {
        now(Place::Host(to), Place::Device(from), bytes, Wait::Yes)
    }

    /// Copies within the device; the host does not wait.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        now(Place::Device(to), Place::Device(from), bytes, Wait::No)
    }

    /// Copies between any two addresses and waits.
    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        let (state, context) = synchronous()?;
        let copy = Copy::row(place_of(&state, to)?, place_of(&state, from)?, bytes);
        submit(state, context, 0, copy, Wait::Yes)
    }

    /// Copies to the device in a stream.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        later(Place::Device(to), Place::Host(from), bytes, stream)
    }

    /// Copies from the device in a stream.
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        later(Place::Host(to), Place::Device(from), bytes, stream)
    }

    /// Copies within the device in a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        later(Place::Device(to), Place::Device(from), bytes, stream)
    }

    /// Copies between any two addresses in a stream.
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) {
        let (state, context) = in_context()?;
        let copy = Copy::row(place_of(&state, to)?, place_of(&state, from)?, bytes);
        submit(state, context, stream, copy, Wait::No)
    }

    /// Copies between contexts, which share the one device, in a stream.
    fn cuMemcpyPeerAsync(to: u64, to_context: Handle, from: u64, from_context: Handle, bytes: usize, stream: Handle) {
        let (state, context) = in_context()?;
        state.contexts.get(to_context).and(state.contexts.get(from_context)).map_err(|f| Code::INVALID_CONTEXT.because(f.message))?;
        submit(state, context, stream, Copy::row(Place::Device(to), Place::Device(from), bytes), Wait::No)
    }

    /// Copies rows and waits, unless both sides are on the device.
    fn cuMemcpy2D_v2(parameters: In<Copy2d>) {
        copy_2d(parameters, None)
    }

    /// Copies rows and waits, unless both sides are on the device.
    fn cuMemcpy2DUnaligned_v2(parameters: In<Copy2d>) {
        copy_2d(parameters, None)
    }

    /// Copies rows in a stream.
    fn cuMemcpy2DAsync_v2(parameters: In<Copy2d>, stream: Handle) {
        copy_2d(parameters, Some(stream))
    }
}
