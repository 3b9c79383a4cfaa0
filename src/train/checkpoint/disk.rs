//! The few operations on files that a checkpoint needs, counted, and failing on demand for tests.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Which operations fail.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Never,
    Once(u64),
    From(u64),
}

/// A disk; or one that is full at a chosen moment.
#[derive(Debug)]
pub struct Disk {
    fault: Fault,
    operations: Cell<u64>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { fault: Fault::Never, operations: Cell::new(0) }
    }
}

impl Disk {
    /// Returns a disk on which operation `n` (from 0) fails with "no space left", half of a write done.
    pub fn full_at(n: u64) -> Self {
        Self { fault: Fault::Once(n), ..Self::default() }
    }

    /// Returns a disk on which operation `n` and all after it fail, as after a kill: nothing is tidied up either.
    pub fn gone_from(n: u64) -> Self {
        Self { fault: Fault::From(n), ..Self::default() }
    }

    /// Returns how many operations there were.
    pub fn operations(&self) -> u64 {
        self.operations.get()
    }

    /// Counts an operation and says whether it may happen.
    fn admit(&self) -> io::Result<()> {
        let n = self.operations.get();
        self.operations.set(n + 1);
        let fails = match self.fault {
            Fault::Never => false,
            Fault::Once(at) => n == at,
            Fault::From(at) => n >= at,
        };
        if fails { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
    }

    pub(super) fn create_dir(&self, path: &Path) -> Result<()> {
        self.admit().and_then(|()| fs::create_dir(path)).map_err(Error::io(path, "create folder"))
    }

    pub(super) fn create(&self, path: &Path) -> Result<File> {
        let open = || OpenOptions::new().write(true).create_new(true).open(path);
        self.admit().and_then(|()| open()).map_err(Error::io(path, "create"))
    }

    pub(super) fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
        let written = match self.admit() {
            Ok(()) => file.write_all(bytes),
            Err(full) => file.write_all(&bytes[..bytes.len() / 2]).and(Err(full)),
        };
        written.map_err(Error::io(path, "write"))
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<()> {
        self.admit().and_then(|()| file.sync_all()).map_err(Error::io(path, "flush to disk"))
    }

    /// Flushes a folder: the names in it, not the files' content.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<()> {
        let sync = || File::open(path)?.sync_all();
        self.admit().and_then(|()| sync()).map_err(Error::io(path, "flush to disk"))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.admit().and_then(|()| fs::rename(from, to)).map_err(Error::io(from, "rename"))
    }

    pub(super) fn remove_dir(&self, path: &Path) -> Result<()> {
        self.admit().and_then(|()| fs::remove_dir_all(path)).map_err(Error::io(path, "remove"))
    }
}
