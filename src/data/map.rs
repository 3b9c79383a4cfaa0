//! A file mapped into memory, to read. The only unsafe code of `data`.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A mapped file. Its length is that of the file when it was opened.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    bytes: Mmap,
}

impl Map {
    /// Maps `path`.
    ///
    /// The file must not be cut short while it is mapped: the system then ends the process at the next read of a lost
    /// page (SIGBUS). Writers here never change a finished file; they write a new one and rename it.
    ///
    /// # Errors
    /// A path that cannot be opened or is no regular file, an empty file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let meta = file.metadata().map_err(Error::io(path, "read the length"))?;
        if !meta.is_file() {
            return Err(Error::data(path, "path", "a regular file", "something else"));
        }
        if meta.len() == 0 {
            return Err(Error::data(path, "length", "at least one byte", "an empty file"));
        }
        // SAFETY: the mapping is private to this struct, read-only, and outlived by every slice of it (they borrow
        // the struct). No code of this program writes to a file that it has mapped. Another process that changes the
        // bytes meanwhile can change values under a slice, which all readers tolerate: they are plain numbers, and
        // lengths and offsets are copied out and checked once, at opening.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Returns the content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
