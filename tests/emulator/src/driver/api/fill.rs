//! Fills.

use crate::driver::abi::Handle;
use crate::driver::capture;
use crate::driver::codes::{Code, Result};
use crate::driver::copy::Fill;
use crate::driver::entry::entries;
use crate::driver::queue;
use crate::driver::session::in_context;
use crate::driver::state::State;
use crate::driver::work::Work;

/// Makes a fill after the checks that do not need a stream.
pub(super) fn checked(state: &State, fill: Fill) -> Result<Fill> {
    let element = fill.pattern.len();
    if !fill.address.is_multiple_of(element as u64) || !fill.pitch.is_multiple_of(element) {
        let what = format!(
            "{:#x} (pitch {}) is not aligned to elements of {element} bytes",
            fill.address, fill.pitch
        );
        return Err(Code::INVALID_VALUE.because(what));
    }
    let row = fill.width.checked_mul(element);
    let rows = fill.height.checked_sub(1).and_then(|rows| rows.checked_mul(fill.pitch));
    let extent = row.zip(rows).and_then(|(row, rows)| row.checked_add(rows));
    let extent = extent.ok_or_else(|| Code::INVALID_VALUE.because("larger than memory"))?;
    if fill.height > 1 && row.is_some_and(|row| row > fill.pitch) {
        let what = format!("a pitch of {} bytes for rows of {}", fill.pitch, row.unwrap_or(0));
        return Err(Code::INVALID_VALUE.because(what));
    }
    state.device_range(fill.address, extent as u64)?;
    Ok(fill)
}

/// Fills memory: in a stream, or in the legacy stream, where the host does not wait either.
fn fill(
    address: u64,
    pattern: &[u8],
    (width, height): (usize, usize),
    pitch: usize,
    stream: Option<Handle>,
) -> Result<()> {
    let (mut state, context) = in_context()?;
    if stream.is_none() {
        capture::check_unsafe(&mut state)?;
    }
    if width == 0 || height == 0 {
        return Ok(());
    }
    let fill = checked(&state, Fill { address, pattern: pattern.to_vec(), width, height, pitch })?;
    drop(queue::submit(state, context, stream.unwrap_or(0), Work::Fill(fill))?);
    Ok(())
}

entries! {
    /// Fills bytes.
    fn cuMemsetD8_v2(address: u64, value: u8, count: usize) {
        fill(address, &[value], (count, 1), 0, None)
    }

    /// Fills 16-bit elements.
    fn cuMemsetD16_v2(address: u64, value: u16, count: usize) {
        fill(address, &value.to_le_bytes(), (count, 1), 0, None)
    }

    /// Fills 32-bit elements.
    fn cuMemsetD32_v2(address: u64, value: u32, count: usize) {
        fill(address, &value.to_le_bytes(), (count, 1), 0, None)
    }

    /// Fills bytes in a stream.
    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: Handle) {
        fill(address, &[value], (count, 1), 0, Some(stream))
    }

    /// Fills 16-bit elements in a stream.
    fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: Handle) {
        fill(address, &value.to_le_bytes(), (count, 1), 0, Some(stream))
    }

    /// Fills 32-bit elements in a stream.
    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: Handle) {
        fill(address, &value.to_le_bytes(), (count, 1), 0, Some(stream))
    }

    /// Fills rows of bytes.
    fn cuMemsetD2D8_v2(address: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill(address, &[value], (width, height), pitch, None)
    }

    /// Fills rows of 16-bit elements.
    fn cuMemsetD2D16_v2(address: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill(address, &value.to_le_bytes(), (width, height), pitch, None)
    }

    /// Fills rows of 32-bit elements.
    fn cuMemsetD2D32_v2(address: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill(address, &value.to_le_bytes(), (width, height), pitch, None)
    }

    /// Fills rows of bytes in a stream.
    fn cuMemsetD2D8Async(address: u64, pitch: usize, value: u8, width: usize, height: usize, stream: Handle) {
        fill(address, &[value], (width, height), pitch, Some(stream))
    }

    /// Fills rows of 16-bit elements in a stream.
    fn cuMemsetD2D16Async(address: u64, pitch: usize, value: u16, width: usize, height: usize, stream: Handle) {
        fill(address, &value.to_le_bytes(), (width, height), pitch, Some(stream))
    }

    /// Fills rows of 32-bit elements in a stream.
    fn cuMemsetD2D32Async(address: u64, pitch: usize, value: u32, width: usize, height: usize, stream: Handle) {
        fill(address, &value.to_le_bytes(), (width, height), pitch, Some(stream))
    }
}
