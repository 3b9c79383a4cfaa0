//! Device memory: allocations, bounds, bytes never written.
//!
//! Device addresses are opaque: they start at [`BASE`], above all that a process can map, so that a host that follows one
//! faults. An address is never given out twice, and red zones lie between allocations, so an access to freed memory or past
//! an end is always recognised. Each byte has a bit that says whether it was ever written; bytes without it read as 0xFF
//! (a NaN in f32 and bf16), which costs nothing for memory that is never touched.

mod bits;
mod buffer;
mod error;
mod region;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use bits::{Bits, Sharing};
pub use buffer::Buffer;
pub use error::{Error, Fault, FaultKind};
pub use region::Region;
pub use view::View;

use crate::detect::Spare;

/// The first device address: the end of the 47-bit user space of a host process.
pub const BASE: u64 = 1 << 48;
/// The end of device addresses; windows of generic addresses lie above.
pub const END: u64 = 2 << 48;
/// Generic addresses of shared memory, one part of [`SHARED_STRIDE`] bytes for each block of a cluster.
pub const SHARED_WINDOW: u64 = END;
/// Bytes of the shared window that belong to a block of a cluster.
pub const SHARED_STRIDE: u64 = 1 << 24;
/// Generic addresses of a thread's local memory.
pub const LOCAL_WINDOW: u64 = END + (1 << 32);
/// Generic addresses of kernel parameters.
pub const PARAM_WINDOW: u64 = END + (2 << 32);
/// Bytes of each window.
pub const WINDOW_BYTES: u64 = 1 << 32;

/// Alignment of every allocation.
const ALIGN: u64 = 512;
/// Free bytes between two allocations, at least: an index that is off by a few rows still hits none.
const RED_ZONE: u64 = 64 << 10;
/// Freed ranges that are remembered by name. Older ones are still recognised as belonging to nobody.
const QUARANTINE: usize = 1 << 16;

/// The memory of the emulated device.
#[derive(Debug)]
pub struct DeviceMemory {
    limit: u64,
    table: RwLock<Table>,
    history: Mutex<Spare>,
}

#[derive(Debug)]
struct Table {
    live: BTreeMap<u64, Arc<Region>>,
    freed: VecDeque<(u64, u64)>, // start and bytes, oldest first
    next: u64,
    used: u64,
}

impl DeviceMemory {
    /// Makes an empty memory that gives out at most `limit` bytes at a time.
    pub fn new(limit: u64) -> Self {
        let table = Table { live: BTreeMap::new(), freed: VecDeque::new(), next: BASE, used: 0 };
        Self { limit, table: RwLock::new(table), history: Mutex::default() }
    }

    /// Returns the number of bytes that [`DeviceMemory::alloc`] gives out at most.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of allocated bytes.
    pub fn used(&self) -> u64 {
        self.table().used
    }

    /// Takes the host memory in which the last launch recorded what was accessed.
    pub fn take_history(&self) -> Spare {
        std::mem::take(&mut *self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps host memory of a launch for the next one.
    pub fn keep_history(&self, history: Spare) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = history;
    }

    /// Allocates memory that reads as 0xFF and counts as never written.
    pub fn alloc(&self, bytes: u64) -> Result<u64, Error> {
        self.place(bytes, ALIGN, None, false)
    }

    /// Allocates a module variable: zeroed, aligned, and named in reports.
    pub fn alloc_variable(&self, name: &str, bytes: u64, align: u64, read_only: bool) -> Result<u64, Error> {
        let start =
            self.place(bytes, align.max(ALIGN).next_power_of_two(), Some(name.to_owned()), read_only)?;
        if let Some(region) = self.table().live.get(&start) {
            region.mark_written();
        }
        Ok(start)
    }

    fn place(&self, bytes: u64, align: u64, name: Option<String>, read_only: bool) -> Result<u64, Error> {
        if bytes == 0 {
            return Err(Error::Empty);
        }
        let mut table = self.table_mut();
        let free = self.limit.saturating_sub(table.used);
        let start = table.next.next_multiple_of(align);
        let after = start.checked_add(bytes).and_then(|end| end.checked_add(RED_ZONE));
        let after = after.filter(|after| bytes <= free && *after <= END);
        let region = after.and_then(|_| Region::owned(start, bytes, name, read_only));
        let (Some(after), Some(region)) = (after, region) else {
            return Err(Error::OutOfMemory { bytes, free });
        };
        table.next = after;
        table.used += bytes;
        table.live.insert(start, Arc::new(region));
        Ok(start)
    }

    /// Frees an allocation. Kernels that run at this moment keep its bytes alive until they end.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let mut table = self.table_mut();
        let Some(region) = table.live.get(&address).filter(|r| !r.is_host()) else {
            return Err(match table.freed_around(address) {
                Some((start, bytes)) if start == address => Error::FreedTwice { address, bytes },
                _ => Error::NotAnAllocation { address },
            });
        };
        let bytes = region.bytes();
        table.used -= bytes;
        table.live.remove(&address);
        table.freed.push_back((address, bytes));
        if table.freed.len() > QUARANTINE {
            table.freed.pop_front();
        }
        Ok(())
    }

    /// Makes pinned host memory visible to kernels, at its own address.
    ///
    /// # Safety
    /// `[host, host + bytes)` stays mapped and writable until [`DeviceMemory::unmap_host`], and for as long as a kernel
    /// runs that was started before.
    pub unsafe fn map_host(&self, host: *mut u8, bytes: u64) -> Result<u64, Error> {
        if bytes == 0 {
            return Err(Error::Empty);
        }
        let start = host as u64;
        let mut table = self.table_mut();
        let end = start.checked_add(bytes).filter(|end| *end <= BASE);
        let before = end.and_then(|end| table.live.range(..end).next_back());
        if end.is_none() || start == 0 || before.is_some_and(|(_, r)| r.end() > start) {
            return Err(Error::Overlap { address: start, bytes });
        }
        table.live.insert(start, Arc::new(Region::host(host, bytes)));
        Ok(start)
    }

    /// Ends what [`DeviceMemory::map_host`] began.
    pub fn unmap_host(&self, address: u64) -> Result<(), Error> {
        let mut table = self.table_mut();
        if !table.live.get(&address).is_some_and(|r| r.is_host()) {
            return Err(Error::NotAnAllocation { address });
        }
        table.live.remove(&address);
        Ok(())
    }

    /// Returns start and size of the allocation that holds an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        self.table().holding(address).map(|r| (r.start(), r.bytes()))
    }

    /// Copies device memory to the host.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        if out.is_empty() {
            return Ok(());
        }
        let region = self.region(address, out.len() as u64)?;
        region.read(address - region.start(), out);
        Ok(())
    }

    /// Copies host memory to the device.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let region = self.region(address, data.len() as u64)?;
        region.write(address - region.start(), data);
        Ok(())
    }

    /// Writes a pattern `count` times, one after the other.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), Error> {
        if pattern.is_empty() || count == 0 {
            return Ok(());
        }
        let bytes = count.saturating_mul(pattern.len() as u64);
        let region = self.region(address, bytes)?;
        region.fill(address - region.start(), pattern, bytes);
        Ok(())
    }

    /// Copies within device memory; which bytes were never written is copied too.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, target) = (self.region(from, bytes)?, self.region(to, bytes)?);
        target.copy_from(to - target.start(), &source, from - source.start(), bytes);
        Ok(())
    }

    /// Takes the allocations that a kernel sees. Those freed later stay readable through it.
    pub fn view(&self) -> View {
        View::new(self.table().live.values().cloned().collect())
    }

    /// Says what is wrong with an access.
    pub fn fault(&self, address: u64, bytes: u64) -> Fault {
        let table = self.table();
        if let Some((start, size)) = table.freed_around(address) {
            let place = format!("{} bytes into {size} bytes at {start:#x} that were freed", address - start);
            return Fault { kind: FaultKind::UseAfterFree, address, bytes, place };
        }
        Fault { kind: FaultKind::OutOfBounds, address, bytes, place: table.neighbourhood(address) }
    }

    fn region(&self, address: u64, bytes: u64) -> Result<Arc<Region>, Error> {
        let region = self.table().holding(address).filter(|r| bytes <= r.end() - address).cloned();
        region.ok_or_else(|| Error::Fault(self.fault(address, bytes)))
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn holding(&self, address: u64) -> Option<&Arc<Region>> {
        let (_, region) = self.live.range(..=address).next_back()?;
        (address < region.end()).then_some(region)
    }

    fn freed_around(&self, address: u64) -> Option<(u64, u64)> {
        self.freed.iter().rev().copied().find(|&(start, bytes)| address >= start && address - start < bytes)
    }

    fn neighbourhood(&self, address: u64) -> String {
        let before = self.live.range(..=address).next_back().map(|(_, r)| r);
        let after = self.live.range(address..).next().map(|(_, r)| r);
        match (before, after) {
            (Some(r), _) if address < r.end() => {
                format!("across the end of {}, {} bytes before it", r.describe(), r.end() - address)
            }
            (Some(r), Some(next)) if next.start() - address < address - r.end() => {
                format!("{} bytes before {}", next.start() - address, next.describe())
            }
            (Some(r), _) if r.end() >= BASE => {
                format!("{} bytes after the end of {}", address - r.end(), r.describe())
            }
            (_, Some(r)) if r.start() - address < RED_ZONE => {
                format!("{} bytes before {}", r.start() - address, r.describe())
            }
            _ if address < 4096 => "a null pointer".to_owned(),
            _ => "in no allocation".to_owned(),
        }
    }
}
