//! Device memory: a pool whose blocks are used again, so that a step's addresses are the same every time.
//!
//! Blocks are handed out and taken back in the order of one stream, so a block may be used again while the kernels that
//! used it last are still under way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;

use crate::device::cuda::Queue;
use crate::device::cuda::queue::{Context, device_error, failed};
use crate::error::{Error, Result};

/// Blocks are multiples of this: vector accesses and whole sectors stay inside.
const UNIT: usize = 256;
/// Bytes of a sentinel, on either side of a block.
const SENTINEL: usize = UNIT;
/// Fills sentinels; no float of any width that a kernel would write by chance.
const GUARD: u8 = 0xa5;

pub(super) struct Pool {
    context: Arc<Context>,
    /// Free blocks by size, and those that are kept for captured steps.
    free: Mutex<[HashMap<usize, Vec<CUdeviceptr>>; 2]>,
    /// Blocks are taken from those that are kept for captured steps.
    pub(super) reserving: AtomicBool,
    /// The stream records what is queued: nothing can be waited for.
    pub(super) capturing: AtomicBool,
    allocations: AtomicU64,
    held: AtomicU64,
    guard: bool,
}

/// A block of device memory that goes back to its pool when dropped.
pub(crate) struct DeviceBuf {
    address: CUdeviceptr,
    bytes: usize,
    reserved: bool,
    pool: Arc<Pool>,
}

impl Pool {
    pub(super) fn new(context: Arc<Context>, guard: bool) -> Self {
        Self {
            context,
            free: Mutex::default(),
            reserving: AtomicBool::new(false),
            capturing: AtomicBool::new(false),
            allocations: AtomicU64::new(0),
            held: AtomicU64::new(0),
            guard,
        }
    }

    pub(super) fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes a block; its content is whatever it held last.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuf> {
        self.take_from(self.reserving.load(Ordering::Relaxed), bytes)
    }

    /// Takes a block that outlives a step: none of those that are kept for captured steps.
    pub(super) fn take_lasting(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuf> {
        self.take_from(false, bytes)
    }

    fn take_from(self: &Arc<Self>, reserved: bool, bytes: usize) -> Result<DeviceBuf> {
        let bytes = bytes.next_multiple_of(UNIT).max(UNIT) + if self.guard { 2 * SENTINEL } else { 0 };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free[reserved as usize].get_mut(&bytes).and_then(Vec::pop);
        drop(free);
        let address = match found {
            Some(address) => address,
            None if self.capturing.load(Ordering::Relaxed) => {
                let what = format!("a step that is captured needs {bytes} bytes more than the one before it");
                return Err(Error::Device(what));
            }
            None => self.allocate(bytes)?,
        };
        let block = DeviceBuf { address, bytes, reserved, pool: self.clone() };
        if self.guards() {
            block.fill(0, bytes, 0xff)?; // all-ones is NaN in f32, bf16 and f16
            block.fill(0, SENTINEL, GUARD)?;
            block.fill(bytes - SENTINEL, SENTINEL, GUARD)?;
        }
        Ok(block)
    }

    /// Says whether buffers are filled and looked at now.
    fn guards(&self) -> bool {
        self.guard && !self.capturing.load(Ordering::Relaxed)
    }

    fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        let stream = self.context.enter()?;
        // SAFETY: the stream is alive; the block is used on it alone.
        match unsafe { result::malloc_async(stream, bytes) } {
            Ok(address) => {
                self.allocations.fetch_add(1, Ordering::Relaxed);
                self.held.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(address)
            }
            Err(error) => {
                let (free, total) = result::mem_get_info().unwrap_or_default();
                let held = self.bytes_held();
                Err(Error::Device(format!(
                    "{}: {bytes} bytes were asked for; this run holds {held}, the device has {free} of {total} free; \
                     `flowprior plan` says what a smaller batch or width takes",
                    failed("allocating device memory", error)
                )))
            }
        }
    }
}

impl DeviceBuf {
    /// Returns the address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address + if self.pool.guard { SENTINEL as u64 } else { 0 }
    }

    fn fill(&self, offset: usize, bytes: usize, value: u8) -> Result<()> {
        let stream = self.pool.context.enter()?;
        // SAFETY: the range lies inside the block.
        unsafe { result::memset_d8_async(self.address + offset as u64, value, bytes, stream) }
            .map_err(|e| Error::Device(failed("filling device memory", e)))
    }

    /// Reads both sentinels; waits for the device.
    fn is_intact(&self) -> Result<bool> {
        let stream = self.pool.context.enter()?;
        let mut sentinels = [0u8; 2 * SENTINEL];
        let (first, last) = sentinels.split_at_mut(SENTINEL);
        let end = self.address + (self.bytes - SENTINEL) as u64;
        // SAFETY: both ranges lie inside the block, and the stream is waited for before the bytes are looked at.
        unsafe {
            result::memcpy_dtoh_async(first, self.address, stream)
                .and_then(|()| result::memcpy_dtoh_async(last, end, stream))
                .and_then(|()| result::stream::synchronize(stream))
        }
        .map_err(|e| Error::Device(failed("reading sentinels", e)))?;
        Ok(sentinels.iter().all(|b| *b == GUARD))
    }
}

impl std::fmt::Debug for DeviceBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuf({} bytes at {:#x})", self.bytes, self.address)
    }
}

impl Queue {
    /// Returns how many blocks of tensor memory were taken from the driver so far.
    pub fn allocations(&self) -> u64 {
        self.pool.allocations()
    }

    /// Returns the bytes of tensor memory held, in use or waiting to be used again.
    pub fn bytes_held(&self) -> u64 {
        self.pool.bytes_held()
    }

    /// Returns the bytes of device memory that are free, and of all.
    ///
    /// # Errors
    /// A device that failed.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(device_error("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for DeviceBuf {
    fn drop(&mut self) {
        if self.pool.guards() && !std::thread::panicking() {
            // A device that failed cannot be asked, and has said why already.
            let whole = self.is_intact().unwrap_or(true);
            assert!(whole, "a kernel wrote outside its buffer of {} bytes", self.bytes - 2 * SENTINEL);
        }
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free[self.reserved as usize].entry(self.bytes).or_default().push(self.address);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Ok(stream) = self.context.enter() else { return };
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for address in free.iter_mut().flat_map(|part| part.drain()).flat_map(|(_, list)| list) {
            // SAFETY: allocated here and in nobody's hands. A context that failed frees all of its memory itself.
            let _freed = unsafe { result::free_async(address, stream) };
        }
    }
}
