//! Copies to the device that the host does not wait for: through two page-locked buffers and a stream of their own, so that the
//! next step's data travel while this step is computed.
//!
//! ```text
//! host     fill pinned[i]
//! copy     wait consumed[i] · pinned[i] → staged[i] · copied[i]
//! compute  wait copied[i] · staged[i] → target · consumed[i]
//! ```
//! The host waits before it fills a buffer until the buffer's last copy is done: it is at most two steps ahead.

use std::ffi::c_void;
use std::sync::{Arc, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};
use cudarc::driver::{DriverError, result};

use crate::device::cuda::queue::{Context, device_error};
use crate::device::cuda::{DeviceBuf, Queue};
use crate::error::Result;

/// The buffers and their stream.
pub(super) struct Staging {
    stream: sys::CUstream,
    slots: [Slot; 2],
    turn: usize,
    context: Arc<Context>,
}

struct Slot {
    pinned: *mut c_void,
    bytes: usize,
    staged: Option<DeviceBuf>,
    copied: sys::CUevent,
    consumed: sys::CUevent,
}

// SAFETY: the driver API may be called from any thread with any handle of the process; the pinned memory is this value's own.
unsafe impl Send for Staging {}

impl Staging {
    fn new(context: Arc<Context>) -> Result<Self, DriverError> {
        let event = || result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let slot = || {
            let (copied, consumed) = (event()?, event()?);
            Ok(Slot { pinned: std::ptr::null_mut(), bytes: 0, staged: None, copied, consumed })
        };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Self { stream, slots: [slot()?, slot()?], turn: 0, context })
    }
}

impl Queue {
    /// Copies to the device after everything that was queued before. The host's memory may change as soon as this returns.
    ///
    /// # Errors
    /// No memory for the buffers; a device that failed.
    pub(crate) fn stage<T: Pod>(&self, to: u64, from: &[T]) -> Result<()> {
        let compute = self.enter()?;
        let bytes: &[u8] = bytemuck::cast_slice(from);
        if bytes.is_empty() {
            return Ok(());
        }
        let failed = |what| device_error(what);
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            empty => {
                let made = Staging::new(self.context.clone()).map_err(failed("preparing copies"))?;
                empty.insert(made)
            }
        };
        staging.turn ^= 1;
        let (copy, slot) = (staging.stream, &mut staging.slots[staging.turn]);
        // SAFETY: an event of ours; one that was never recorded counts as done.
        unsafe { result::event::synchronize(slot.copied) }.map_err(failed("waiting for a copy"))?;
        if slot.bytes < bytes.len() {
            slot.grow(self, bytes.len())?;
        }
        let staged = slot.staged.as_ref().map_or(0, DeviceBuf::address);
        // SAFETY: both buffers hold as many bytes, and the last copy out of the pinned one is done. The target is a tensor of
        // as many bytes, which lives until the stream has come to its next use.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.pinned.cast::<u8>(), bytes.len());
            let pinned = std::slice::from_raw_parts(slot.pinned.cast::<u8>(), bytes.len());
            let wait = |stream, event| {
                result::stream::wait_event(stream, event, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
            };
            wait(copy, slot.consumed)
                .and_then(|()| result::memcpy_htod_async(staged, pinned, copy))
                .and_then(|()| result::event::record(slot.copied, copy))
                .and_then(|()| wait(compute, slot.copied))
                .and_then(|()| result::memcpy_dtod_async(to, staged, bytes.len(), compute))
                .and_then(|()| result::event::record(slot.consumed, compute))
        }
        .map_err(failed("copying to the device"))
    }
}

impl Slot {
    /// Makes room for `bytes`.
    fn grow(&mut self, queue: &Queue, bytes: usize) -> Result<()> {
        // The block must be there before another stream writes to it.
        self.staged = Some(queue.block(bytes)?);
        queue.synchronize()?;
        // SAFETY: nothing is copied out of the old memory any more.
        unsafe {
            if !self.pinned.is_null() {
                result::free_host(std::mem::replace(&mut self.pinned, std::ptr::null_mut()))
                    .map_err(device_error("freeing page-locked memory"))?;
            }
            self.pinned = result::malloc_host(bytes, 0).map_err(device_error("locking host memory"))?;
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: all are ours and used no more, once the stream is at its end. A context that failed has said so before.
        unsafe {
            let _done = result::stream::synchronize(self.stream);
            for slot in &mut self.slots {
                if !slot.pinned.is_null() {
                    let _freed = result::free_host(slot.pinned);
                }
                let _destroyed = (result::event::destroy(slot.copied), result::event::destroy(slot.consumed));
            }
            let _destroyed = result::stream::destroy(self.stream);
        }
    }
}
