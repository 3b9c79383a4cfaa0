//! The state of the driver: tables of everything that has a handle.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

use super::capture::Capture;
use super::codes::{Code, Failure, Result};
use super::engine::Engine;
use super::graph::{Exec, Graph};
use super::module::{Function, Image};
use super::pool::Pool;
use super::settings::Settings;
use super::work::Work;

/// Handles are numbers that no pointer can be, so that a program that follows one faults at once.
const FIRST_HANDLE: u64 = 0x4C55_4441_0000_0000;

/// Objects of one kind, by handle.
#[derive(Debug)]
pub struct Table<T> {
    kind: &'static str,
    entries: HashMap<u64, T>,
}

impl<T> Table<T> {
    fn new(kind: &'static str) -> Self {
        Self { kind, entries: HashMap::new() }
    }

    fn unknown(&self, handle: u64) -> Failure {
        let kind = self.kind;
        Code::INVALID_HANDLE.because(format!("{handle:#x} is no {kind}, or one that was destroyed"))
    }

    /// Finds one; an unknown handle is error 400.
    pub fn get(&self, handle: u64) -> Result<&T> {
        self.entries.get(&handle).ok_or_else(|| self.unknown(handle))
    }

    /// Finds one to change it.
    pub fn get_mut(&mut self, handle: u64) -> Result<&mut T> {
        match self.entries.contains_key(&handle) {
            true => self.entries.get_mut(&handle).ok_or_else(|| Code::UNKNOWN.into()),
            false => Err(self.unknown(handle)),
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, handle: u64) -> Result<T> {
        self.entries.remove(&handle).ok_or_else(|| self.unknown(handle))
    }

    /// Puts one in.
    pub fn insert(&mut self, handle: u64, value: T) {
        self.entries.insert(handle, value);
    }

    /// Lists all.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().map(|(handle, value)| (*handle, value))
    }

    /// Lists all, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut()
    }

    /// Drops those that `keep` refuses.
    pub fn retain(&mut self, keep: impl FnMut(&u64, &mut T) -> bool) {
        self.entries.retain(keep);
    }
}

/// A context.
#[derive(Debug)]
pub struct Context {
    /// The stream of handle 0.
    pub legacy: u64,
    /// Per-thread default streams.
    pub per_thread: HashMap<ThreadId, u64>,
    /// `CU_CTX_*`
    pub flags: u32,
    /// Values of `cuCtxSetLimit`.
    pub limits: HashMap<u32, u64>,
    /// `CUfunc_cache`
    pub cache: u32,
    /// A number of its own.
    pub id: u64,
}

/// Something to do, in the order of a stream.
#[derive(Debug)]
pub struct Operation {
    /// Ascending over all streams; names the operation.
    pub sequence: u64,
    /// What.
    pub work: Work,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its context.
    pub context: u64,
    /// Orders itself after the legacy stream, and that after it.
    pub blocking: bool,
    /// `CU_STREAM_*`
    pub flags: u32,
    /// As given, clamped.
    pub priority: i32,
    /// Not done yet; the first one may be running.
    pub pending: VecDeque<Operation>,
    /// The first operation is a host function that runs just now.
    pub busy: bool,
    /// The capture that it takes part in.
    pub capture: Option<u64>,
    /// Goes away when nothing is pending.
    pub destroyed: bool,
}

/// Where an event was recorded last.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// Nowhere.
    Never,
    /// By this operation.
    By(u64),
    /// In a capture, after these nodes.
    Captured {
        /// The capture.
        capture: u64,
        /// All that its stream depended on.
        nodes: Vec<u64>,
    },
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// Its context.
    pub context: u64,
    /// Elapsed times can be asked for.
    pub timing: bool,
    /// See [`Recorded`].
    pub recorded: Recorded,
    /// When, and by which operation.
    pub time: Option<(u64, Instant)>,
}

/// Device memory that the program allocated.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    /// Bytes.
    pub bytes: u64,
    /// Owner.
    pub context: u64,
    /// The pool that it came from, for stream-ordered ones.
    pub pool: Option<u64>,
    /// A number of its own.
    pub id: u64,
}

/// Page-locked host memory.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// Bytes.
    pub bytes: usize,
    /// `CU_MEMHOSTALLOC_*` or `CU_MEMHOSTREGISTER_*`
    pub flags: u32,
    /// The program's own memory, registered.
    pub registered: bool,
    /// Owner.
    pub context: u64,
    /// A number of its own.
    pub id: u64,
}

/// The primary context.
#[derive(Debug, Default)]
pub struct Primary {
    /// While it is active.
    pub context: Option<u64>,
    /// Retained so often.
    pub count: u32,
    /// `CU_CTX_*`
    pub flags: u32,
}

/// Everything.
#[derive(Debug)]
pub struct State {
    /// Read once; can be changed until `cuInit`.
    pub settings: Settings,
    /// Present after `cuInit`.
    pub engine: Option<Arc<Engine>>,
    /// The error of a fault, which every later call returns.
    pub sticky: Option<Code>,
    /// The one primary context.
    pub primary: Primary,
    /// Contexts.
    pub contexts: Table<Context>,
    /// Streams, default ones too.
    pub streams: Table<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Modules and libraries.
    pub images: Table<Image>,
    /// Functions and kernels.
    pub functions: Table<Function>,
    /// Graphs.
    pub graphs: Table<Graph>,
    /// Instantiated graphs.
    pub execs: Table<Exec>,
    /// Memory pools.
    pub pools: Table<Pool>,
    /// Running captures.
    pub captures: Table<Capture>,
    /// Device memory by address.
    pub allocations: BTreeMap<u64, Allocation>,
    /// Page-locked host memory by address.
    pub host: BTreeMap<u64, HostRange>,
    /// Memory whose stream-ordered free is queued.
    pub freeing: BTreeSet<u64>,
    /// Operations that record an event and are not done.
    pub recording: BTreeSet<u64>,
    /// Registers of kernels, from images for hardware that were offered and refused.
    pub known_registers: HashMap<String, u32>,
    /// The default pool of the device.
    pub default_pool: u64,
    /// The pool that `cuMemAllocAsync` takes from.
    pub current_pool: u64,
    /// An operation runs just now.
    pub running: bool,
    /// A thread works the queue off.
    pub worker: bool,
    next: u64,
    sequence: u64,
    random: u64,
}

impl State {
    /// Makes the state before `cuInit`.
    pub fn new(settings: Settings) -> Self {
        Self {
            random: 0,
            settings,
            engine: None,
            sticky: None,
            primary: Primary::default(),
            contexts: Table::new("context"),
            streams: Table::new("stream"),
            events: Table::new("event"),
            images: Table::new("module or library"),
            functions: Table::new("function"),
            graphs: Table::new("graph"),
            execs: Table::new("executable graph"),
            pools: Table::new("memory pool"),
            captures: Table::new("capture"),
            allocations: BTreeMap::new(),
            host: BTreeMap::new(),
            freeing: BTreeSet::new(),
            recording: BTreeSet::new(),
            known_registers: HashMap::new(),
            default_pool: 0,
            current_pool: 0,
            running: false,
            worker: false,
            next: 0,
            sequence: 0,
        }
    }

    /// Makes a handle that was never given out.
    pub fn handle(&mut self) -> u64 {
        self.next += 1;
        FIRST_HANDLE + 16 * self.next
    }

    /// Makes the number of an operation.
    pub fn sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Begins the choices that a seed stands for.
    pub fn seed(&mut self, seed: u64) {
        self.random = seed ^ 0xD1B5_4A32_D192_ED03;
    }

    /// Draws a number below `limit`, which is not 0 (splitmix64).
    pub fn draw(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % limit as u64) as usize
    }

    /// Returns the device, or error 3.
    pub fn engine(&self) -> Result<Arc<Engine>> {
        self.engine.clone().ok_or_else(|| Code::NOT_INITIALIZED.because("cuInit was not called"))
    }

    /// Finds the allocation that holds an address.
    pub fn allocation_at(&self, address: u64) -> Option<(u64, Allocation)> {
        let (start, allocation) = self.allocations.range(..=address).next_back()?;
        (address - start < allocation.bytes).then_some((*start, *allocation))
    }

    /// Finds the page-locked range that holds all of `[address, address + bytes)`.
    pub fn pinned_at(&self, address: u64, bytes: usize) -> Option<(u64, HostRange)> {
        let (start, range) = self.host.range(..=address).next_back()?;
        let inside = (address - start).checked_add(bytes as u64).is_some_and(|end| end <= range.bytes as u64);
        (inside && address - start < range.bytes as u64).then_some((*start, *range))
    }

    /// Requires that a range is device memory, all of it in one allocation that is not being freed; else error 1.
    pub fn device_range(&self, address: u64, bytes: u64) -> Result<()> {
        let engine = self.engine()?;
        match engine.memory.allocation(address) {
            Some((start, _)) if self.freeing.contains(&start) => {
                Err(Code::INVALID_VALUE.because(format!("{address:#x} lies in memory that was freed")))
            }
            Some((start, size)) if bytes <= size - (address - start) => Ok(()),
            Some((start, size)) => Err(Code::INVALID_VALUE.because(format!(
                "{bytes} bytes at {address:#x} reach past the end of the {size} bytes at {start:#x}"
            ))),
            None => {
                let fault = engine.memory.fault(address, bytes);
                Err(Code::INVALID_VALUE.because(format!("not device memory: {fault}")))
            }
        }
    }

    /// Returns whether a stream has work, or for the legacy stream any blocking stream; marks that only wait are none.
    pub fn has_work(&self, stream: u64) -> Result<bool> {
        let found = self.streams.get(stream)?;
        if self.contexts.get(found.context)?.legacy != stream {
            return Ok(!found.pending.is_empty());
        }
        let same = |other: &Stream| other.context == found.context && other.blocking;
        // Work that runs just now has been taken out of its operation.
        let works = |other: &Stream| {
            let mut pending = other.pending.iter();
            (self.running || other.busy) && !other.pending.is_empty()
                || pending.any(|o| !matches!(o.work, Work::Nothing))
        };
        Ok(self.streams.iter().any(|(_, other)| same(other) && works(other)))
    }

    /// Forgets all work after a fault, and remembers the error.
    pub fn fail(&mut self, code: Code) {
        self.sticky = Some(code);
        self.streams.values_mut().for_each(|stream| stream.pending.clear());
        self.recording.clear();
        self.streams.retain(|_, stream| !stream.destroyed);
    }
}
