//! Readers of other people's files. Each ends in an [`Array`] whose bounds are proven.
//!
//! Headers are never believed: a size is compared with the bytes that are there before anything is allocated.

pub mod idx;
pub mod npy;
pub mod pickle;
pub mod safetensors;
pub mod torch;
pub mod zip;

use std::path::Path;
use std::sync::Arc;

use crate::data::array::{Array, Bytes};
use crate::data::map::Map;
use crate::error::{Error, Result};

/// A file format, told by the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy, one array.
    Npy,
    /// npz or `torch.save`.
    Zip,
    /// gzip, with IDX inside.
    Gzip,
    /// IDX, one array.
    Idx,
    /// safetensors.
    Safetensors,
}

impl Format {
    /// Tells the format of a mapped file.
    ///
    /// # Errors
    /// None that is known.
    pub fn of(map: &Map) -> Result<Self> {
        match map.bytes() {
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Ok(Self::Npy),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Ok(Self::Zip),
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // Before safetensors: a safetensors header that begins like this is longer than 16 MiB.
            [0, 0, kind, 1..=8, ..] if idx::element(*kind).is_some() => Ok(Self::Idx),
            [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Self::Safetensors),
            [0x80, 2..=5, ..] => {
                let expected = "a zip archive as `torch.save` writes since 1.6 (load and save it again)";
                Err(Error::data(map.path(), "format", expected, "a bare pickle"))
            }
            other => {
                let start: Vec<String> = other.iter().take(9).map(|b| format!("{b:02x}")).collect();
                let expected = "the first bytes of npy, npz, safetensors, IDX, IDX.gz or a .pt archive";
                Err(Error::data(map.path(), "format", expected, start.join(" ")))
            }
        }
    }

    /// Says whether arrays in it have names.
    pub fn has_names(self) -> bool {
        matches!(self, Self::Zip | Self::Safetensors)
    }
}

/// Opens the array called `key` in `path`, or its only array with rows and columns, whatever the format.
///
/// # Errors
/// An unknown format, a damaged file, several arrays and no `key`, a `key` where arrays have no names.
pub fn open(path: &Path, key: Option<&str>) -> Result<Array> {
    read(Arc::new(Map::open(path)?), key)
}

/// Opens a file of labels: the array `labels` of a file with names, the only array of another.
///
/// # Errors
/// As [`open`].
pub fn open_labels(path: &Path) -> Result<Array> {
    let map = Arc::new(Map::open(path)?);
    let key = Format::of(&map)?.has_names().then_some("labels");
    read(map, key)
}

/// Reads an array of a mapped file; see [`open`].
///
/// # Errors
/// As [`open`].
pub fn read(map: Arc<Map>, key: Option<&str>) -> Result<Array> {
    let format = Format::of(&map)?;
    if let Some(key) = key.filter(|_| !format.has_names()) {
        let found = format!("`{key}`");
        return Err(Error::data(map.path(), "key", "none: the file holds one array without a name", found));
    }
    let path = map.path().to_owned();
    match format {
        Format::Npy => {
            let range = 0..map.bytes().len();
            npy::read(&path, "array", Bytes::Mapped(map), range)
        }
        Format::Zip => zip::read(map, key),
        Format::Gzip => idx::read_gz(&map),
        Format::Idx => idx::read(&path, Bytes::Mapped(map)),
        Format::Safetensors => safetensors::read(map, key),
    }
}

/// Picks `key` among the named arrays of a file, or its only one with at least two dimensions.
///
/// # Errors
/// No such name, no candidate, several candidates.
pub fn pick<'a>(path: &Path, names: &[(&'a str, usize)], key: Option<&str>) -> Result<&'a str> {
    let listed = || {
        let mut all: Vec<&str> = names.iter().map(|(n, _)| *n).take(20).collect();
        all.sort_unstable();
        let more = if names.len() > all.len() { ", …" } else { "" };
        format!("`{}`{more}", all.join("`, `"))
    };
    if let Some(key) = key {
        let found = names.iter().find(|(name, _)| *name == key);
        return found
            .map(|(name, _)| *name)
            .ok_or_else(|| Error::data(path, "key", format!("one of {}", listed()), format!("`{key}`")));
    }
    let mut tables = names.iter().filter(|(_, dims)| *dims >= 2);
    match (tables.next(), tables.next()) {
        (Some((name, _)), None) => Ok(name),
        (None, _) => Err(Error::data(path, "arrays", "one with rows and columns", listed())),
        (Some(_), Some(_)) => Err(Error::data(path, "arrays", "a key: there are several arrays", listed())),
    }
}
