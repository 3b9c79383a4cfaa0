//! Host memory: page-locked allocations, and access to addresses that the program gave and may have freed since.

use std::alloc::{Layout, alloc, dealloc};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::codes::{Code, Result};
use super::engine::refused;
use super::state::{HostRange, State};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Opens the process's own memory, through which a wrong address is an error and no crash.
fn own_memory() -> Option<&'static File> {
    static MEMORY: OnceLock<Option<File>> = OnceLock::new();
    MEMORY.get_or_init(|| OpenOptions::new().read(true).write(true).open("/proc/self/mem").ok()).as_ref()
}

fn unreachable(address: u64, bytes: usize) -> super::codes::Failure {
    Code::ILLEGAL_ADDRESS
        .because(format!("{bytes} bytes of host memory at {address:#x} are not there (any more)"))
}

/// Reads host memory.
pub fn read(address: u64, out: &mut [u8]) -> Result<()> {
    match own_memory() {
        Some(memory) => memory.read_exact_at(out, address).map_err(|_| unreachable(address, out.len())),
        None => {
            // SAFETY: without /proc, the promise of the C caller is all there is: the range is readable until the copy is done.
            unsafe { std::ptr::copy(address as *const u8, out.as_mut_ptr(), out.len()) };
            Ok(())
        }
    }
}

/// Writes host memory.
pub fn write(address: u64, data: &[u8]) -> Result<()> {
    match own_memory() {
        Some(memory) => memory.write_all_at(data, address).map_err(|_| unreachable(address, data.len())),
        None => {
            // SAFETY: as in `read`, for writing.
            unsafe { std::ptr::copy(data.as_ptr(), address as *mut u8, data.len()) };
            Ok(())
        }
    }
}

fn layout(bytes: usize) -> Result<Layout> {
    let layout = Layout::from_size_align(bytes, PAGE);
    layout.map_err(|_| Code::OUT_OF_MEMORY.because(format!("{bytes} bytes of page-locked memory")))
}

/// Allocates page-locked memory, filled with 0xFF: a NaN, so that reading before writing shows.
pub fn allocate(state: &mut State, context: u64, bytes: usize, flags: u32) -> Result<u64> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE.because("0 bytes of page-locked memory"));
    }
    let layout = layout(bytes)?;
    // SAFETY: the size is not 0.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return Err(Code::OUT_OF_MEMORY.because(format!("{bytes} bytes of page-locked memory")));
    }
    // SAFETY: just allocated with this size.
    unsafe { std::ptr::write_bytes(start, 0xFF, bytes) };
    let id = state.sequence();
    let range = HostRange { bytes, flags, registered: false, context, id };
    if let Err(failure) = add(state, start as u64, range) {
        // SAFETY: allocated above with this layout, and not given to anybody.
        unsafe { dealloc(start, layout) };
        return Err(failure);
    }
    Ok(start as u64)
}

/// Registers the program's own memory.
pub fn register(state: &mut State, context: u64, address: u64, bytes: usize, flags: u32) -> Result<()> {
    if address == 0 || bytes == 0 {
        return Err(Code::INVALID_VALUE.because(format!("registering {bytes} bytes at {address:#x}")));
    }
    let end = address.checked_add(bytes as u64);
    let end = end.ok_or_else(|| Code::INVALID_VALUE.because("a range past the end of the address space"))?;
    let before = state.host.range(..end).next_back();
    if before.is_some_and(|(start, range)| start + range.bytes as u64 > address) {
        return Err(Code::HOST_MEMORY_ALREADY_REGISTERED.because(format!("{bytes} bytes at {address:#x}")));
    }
    let mut last = [0];
    if read(address, &mut last).and_then(|()| read(end - 1, &mut last)).is_err() {
        return Err(Code::INVALID_VALUE.because(format!("{bytes} bytes at {address:#x} are not all mapped")));
    }
    let id = state.sequence();
    add(state, address, HostRange { bytes, flags, registered: true, context, id })
}

fn add(state: &mut State, address: u64, range: HostRange) -> Result<()> {
    let engine = state.engine()?;
    // SAFETY: allocated here, or promised by the caller of cuMemHostRegister: mapped until it is freed or unregistered, which
    // waits for all work.
    unsafe { engine.memory.map_host(address as *mut u8, range.bytes as u64) }.map_err(refused)?;
    state.host.insert(address, range);
    Ok(())
}

/// Frees (or unregisters) a range; the caller has waited for all work.
pub fn release(state: &mut State, address: u64, registered: bool) -> Result<()> {
    match state.host.get(&address) {
        Some(range) if range.registered == registered => {}
        _ if registered => {
            return Err(Code::HOST_MEMORY_NOT_REGISTERED.because(format!("{address:#x}")));
        }
        _ => {
            let what = format!("{address:#x} is not the start of page-locked memory from the driver");
            return Err(Code::INVALID_VALUE.because(what));
        }
    }
    let range = state.host.remove(&address).ok_or(Code::UNKNOWN)?;
    state.engine()?.memory.unmap_host(address).map_err(refused)?;
    if !range.registered {
        // SAFETY: from `allocate`, with the same layout; it was in the table, so it is freed once.
        unsafe { dealloc(address as *mut u8, layout(range.bytes)?) };
    }
    Ok(())
}

/// Frees all ranges, when the program starts anew.
pub fn release_all(state: &mut State) {
    let ranges: Vec<(u64, bool)> =
        state.host.iter().map(|(address, range)| (*address, range.registered)).collect();
    for (address, registered) in ranges {
        // All are in the table, so this cannot fail; the table is thrown away next.
        let _ = release(state, address, registered);
    }
}
