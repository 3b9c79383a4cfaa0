//! Moments of the stream, to time what is between them on the device's own clock.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags};

use crate::device::cuda::Queue;
use crate::device::cuda::queue::{Context, device_error};
use crate::error::Result;

/// The moment when everything is done that was queued before it.
pub struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver API may be called from any thread with any handle of the process.
unsafe impl Send for Event {}

impl Queue {
    /// Marks this moment of the stream; nothing is waited for.
    ///
    /// # Errors
    /// A device that failed.
    pub fn event(&self) -> Result<Event> {
        let stream = self.enter()?;
        let failed = device_error("recording an event");
        let handle = result::event::create(CUevent_flags::CU_EVENT_DEFAULT).map_err(&failed)?;
        let event = Event { handle, context: self.context.clone() };
        // SAFETY: both are alive.
        unsafe { result::event::record(handle, stream) }.map_err(failed)?;
        Ok(event)
    }
}

impl Event {
    /// Waits for this moment; returns the milliseconds since another.
    ///
    /// # Errors
    /// A device that failed.
    pub fn ms_since(&self, earlier: &Self) -> Result<f64> {
        self.context.enter()?;
        // SAFETY: both events are alive and recorded.
        let ms = unsafe {
            result::event::synchronize(self.handle)
                .and_then(|()| result::event::elapsed(earlier.handle, self.handle))
        };
        ms.map(f64::from).map_err(device_error("timing"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: ours, and used no more. A context that failed has said so before.
            let _destroyed = unsafe { result::event::destroy(self.handle) };
        }
    }
}
