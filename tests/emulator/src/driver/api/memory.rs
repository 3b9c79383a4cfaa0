//! Device memory, page-locked host memory, and what a pointer is.

use crate::driver::abi::{In, Out};
use crate::driver::codes::{Code, Failure, Result};
use crate::driver::entry::entries;
use crate::driver::session::{Guard, in_context};
use crate::driver::state::State;
use crate::driver::{capture, host, pool, queue};

/// Rows of a pitched allocation begin at multiples of this.
const PITCH: usize = 512;

/// Allocates; if there is no room, after queued work is done, which may free some.
pub(super) fn allocate(
    mut state: Guard,
    context: u64,
    bytes: usize,
    from: Option<u64>,
) -> Result<(Guard, u64)> {
    let first = pool::allocate(&mut state, context, bytes as u64, from);
    match first {
        Err(Failure { code: Code::OUT_OF_MEMORY, .. }) => {
            let mut state = queue::drain_context(state, context)?;
            let address = pool::allocate(&mut state, context, bytes as u64, from)?;
            Ok((state, address))
        }
        first => first.map(|address| (state, address)),
    }
}

/// Locks the state for a call that may wait for all work: not while a capture runs.
fn not_captured() -> Result<(Guard, u64)> {
    let (mut state, context) = in_context()?;
    capture::check_unsafe(&mut state)?;
    Ok((state, context))
}

fn allocate_host(address: Out<u64>, bytes: usize, flags: u32) -> Result<()> {
    let (mut state, context) = not_captured()?;
    address.check("pp")?;
    if flags > 7 {
        return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}")));
    }
    address.set(host::allocate(&mut state, context, bytes, flags)?)
}

/// A pointer's attribute, by its type in C.
enum Attribute {
    Word(u64),
    Number(u32),
    Flag(bool),
    Tokens,
}

fn attribute(state: &State, attribute: u32, address: u64) -> Result<Attribute> {
    let device = state.allocation_at(address).filter(|(start, _)| !state.freeing.contains(start));
    let device = device.map(|(start, a)| (start, a.bytes, a.context, a.id, a.pool));
    let device = device.or_else(|| {
        let (start, bytes) = state.engine().ok()?.memory.allocation(address)?;
        (address >= crate::memory::BASE).then_some((start, bytes, 0, start, None))
    });
    let pinned = state.pinned_at(address, 1).map(|(start, r)| (start, r.bytes as u64, r.context, r.id, None));
    let Some((start, bytes, context, id, from)) = device.or(pinned) else {
        return Err(Code::INVALID_VALUE.because(format!("{address:#x} is no pointer that the driver knows")));
    };
    Ok(match attribute {
        1 => Attribute::Word(context),
        2 => Attribute::Number(if device.is_some() { 2 } else { 1 }),
        3 => Attribute::Word(address),
        4 if device.is_some() => return Err(Code::INVALID_VALUE.because("device memory has no host pointer")),
        4 => Attribute::Word(address),
        5 => Attribute::Tokens,
        6 | 8 | 10 | 15 | 21 => Attribute::Flag(false),
        7 | 20 => Attribute::Word(id),
        9 => Attribute::Number(0),
        11 | 19 => Attribute::Word(start),
        12 | 18 => Attribute::Word(bytes),
        13 => Attribute::Flag(true),
        14 => Attribute::Word(0),
        16 => Attribute::Number(3),
        17 => Attribute::Word(from.unwrap_or(0)),
        _ => return Err(Code::INVALID_VALUE.because(format!("no pointer attribute {attribute}"))),
    })
}

/// Writes an attribute where `data` points to; an error gives zeros if `forgiving`, as cuPointerGetAttributes does.
fn write_attribute(found: Result<Attribute>, number: u32, data: u64, forgiving: bool) -> Result<()> {
    let value = match found {
        Err(_) if forgiving && number == 9 => Attribute::Number(u32::MAX - 1), // CU_DEVICE_INVALID
        Err(_) if forgiving => match number {
            2 | 16 => Attribute::Number(0),
            6 | 8 | 10 | 13 | 15 | 21 => Attribute::Flag(false),
            5 => Attribute::Tokens,
            _ => Attribute::Word(0),
        },
        found => found?,
    };
    match value {
        Attribute::Word(value) => Out::at(data).set(value),
        Attribute::Number(value) => Out::at(data).set(value),
        Attribute::Flag(value) => Out::at(data).set(u32::from(value)),
        Attribute::Tokens => Err(Code::NOT_SUPPORTED.because("tokens of other devices' drivers")),
    }
}

entries! {
    /// Returns the free and the whole memory of the device.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (state, _) = in_context()?;
        let memory = state.settings.memory;
        let reserved: u64 = state.pools.iter().map(|(_, pool)| pool.reserved - pool.used.min(pool.reserved)).sum();
        free.set(memory.saturating_sub(state.engine()?.memory.used()).saturating_sub(reserved) as usize)?;
        total.set(memory as usize)
    }

    /// Allocates device memory.
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let (state, context) = not_captured()?;
        address.check("dptr")?;
        let (_state, allocated) = allocate(state, context, bytes, None)?;
        address.set(allocated)
    }

    /// Allocates rows of device memory.
    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        let (state, context) = not_captured()?;
        address.check("dptr")?;
        pitch.check("pPitch")?;
        if !matches!(element, 4 | 8 | 16) {
            return Err(Code::INVALID_VALUE.because(format!("elements of {element} bytes; 4, 8 or 16 are possible")));
        }
        let row = width.checked_next_multiple_of(PITCH);
        let bytes = row.and_then(|row| row.checked_mul(height));
        let bytes = bytes.ok_or_else(|| Code::OUT_OF_MEMORY.because(format!("{height} rows of {width} bytes")))?;
        let (_state, allocated) = allocate(state, context, bytes, None)?;
        pitch.set(row.unwrap_or(0))?;
        address.set(allocated)
    }

    /// Frees device memory after all work is done.
    fn cuMemFree_v2(address: u64) {
        let (state, context) = not_captured()?;
        if address == 0 {
            return Ok(());
        }
        let mut state = queue::drain_context(state, context)?;
        pool::forget(&mut state, address)?;
        state.engine()?.memory.free(address).map_err(crate::driver::engine::refused)
    }

    /// Returns the allocation that holds an address.
    fn cuMemGetAddressRange_v2(start: Out<u64>, bytes: Out<usize>, address: u64) {
        let (state, _) = in_context()?;
        state.device_range(address, 1).map_err(|failure| Code::NOT_FOUND.because(failure.message))?;
        let found = state.engine()?.memory.allocation(address).ok_or(Code::NOT_FOUND)?;
        start.set_optional(found.0);
        bytes.set_optional(found.1 as usize);
        Ok(())
    }

    /// Allocates page-locked host memory.
    fn cuMemAllocHost_v2(address: Out<u64>, bytes: usize) {
        allocate_host(address, bytes, 0)
    }

    /// Allocates page-locked host memory.
    fn cuMemHostAlloc(address: Out<u64>, bytes: usize, flags: u32) {
        allocate_host(address, bytes, flags)
    }

    /// Frees page-locked host memory after all work is done.
    fn cuMemFreeHost(address: u64) {
        let (state, context) = not_captured()?;
        let mut state = queue::drain_context(state, context)?;
        host::release(&mut state, address, false)
    }

    /// Page-locks memory of the program.
    fn cuMemHostRegister_v2(address: u64, bytes: usize, flags: u32) {
        let (mut state, context) = not_captured()?;
        if flags > 0xF || flags & 4 != 0 {
            return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}")));
        }
        host::register(&mut state, context, address, bytes, flags)
    }

    /// Ends what cuMemHostRegister began, after all work is done.
    fn cuMemHostUnregister(address: u64) {
        let (state, context) = not_captured()?;
        let mut state = queue::drain_context(state, context)?;
        host::release(&mut state, address, true)
    }

    /// Returns the address under which a kernel finds page-locked memory: the same.
    fn cuMemHostGetDevicePointer_v2(device: Out<u64>, address: u64, flags: u32) {
        let (state, _) = in_context()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x} must be 0")));
        }
        match state.pinned_at(address, 1) {
            Some(_) => device.set(address),
            None => Err(Code::INVALID_VALUE.because(format!("{address:#x} is not page-locked"))),
        }
    }

    /// Returns the flags of page-locked memory.
    fn cuMemHostGetFlags(flags: Out<u32>, address: u64) {
        let (state, _) = in_context()?;
        let found = state.pinned_at(address, 1).filter(|(_, range)| !range.registered);
        let what = || Code::INVALID_VALUE.because(format!("{address:#x} is not page-locked memory from the driver"));
        // With unified addressing, all of it is mapped.
        flags.set(found.ok_or_else(what)?.1.flags | 2)
    }

    /// Returns an attribute of a pointer.
    fn cuPointerGetAttribute(data: u64, number: u32, address: u64) {
        let (state, _) = in_context()?;
        write_attribute(attribute(&state, number, address), number, data, false)
    }

    /// Returns several attributes of a pointer; those of an unknown one are zero.
    fn cuPointerGetAttributes(count: u32, numbers: In<u32>, data: In<u64>, address: u64) {
        let (state, _) = in_context()?;
        for i in 0..count as usize {
            let number = numbers.get_at(i)?;
            if !(1..=21).contains(&number) {
                return Err(Code::INVALID_VALUE.because(format!("no pointer attribute {number}")));
            }
            write_attribute(attribute(&state, number, address), number, data.get_at(i)?, true)?;
        }
        Ok(())
    }

    /// Sets an attribute of a pointer.
    fn cuPointerSetAttribute(value: In<u32>, number: u32, address: u64) {
        let (state, _) = in_context()?;
        value.get()?;
        attribute(&state, 1, address)?;
        match number {
            6 => Ok(()), // synchronous copies are synchronous for all memory
            _ => Err(Code::INVALID_VALUE.because(format!("pointer attribute {number} cannot be set"))),
        }
    }
}
