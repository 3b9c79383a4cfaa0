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

/// Opens the array called `key` in `path`, or its only array with rows and columns, whatever the format.
///
/// Formats are told apart by their first bytes: npy, npz, safetensors, IDX, IDX.gz, and archives of `torch.save`.
///
/// # Errors
/// None of these formats, a damaged file, several arrays and no `key`.
pub fn open(path: &Path, key: Option<&str>) -> Result<Array> {
    let map = Arc::new(Map::open(path)?);
    let bytes = map.bytes();
    let no_key = |array: Array| match key {
        Some(key) => Err(Error::data(path, "key", "no key: the format holds one unnamed array", key)),
        None => Ok(array),
    };
    match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => {
            let range = 0..bytes.len();
            no_key(npy::read(path, "array", Bytes::Mapped(map), range)?)
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] => zip::read(map, key),
        [0x1f, 0x8b, ..] => no_key(idx::read_gz(&map)?),
        [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::read(map, key),
        [0, 0, kind, 1..=8, ..] if idx::element(*kind).is_some() => {
            no_key(idx::read(path, Bytes::Mapped(map))?)
        }
        [0x80, 2..=5, ..] => Err(Error::data(
            path,
            "format",
            "a zip archive as `torch.save` writes since 1.6 (load and save it again)",
            "a bare pickle",
        )),
        _ => {
            let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            let expected = "the first bytes of npy, npz, safetensors, IDX, IDX.gz or a .pt archive";
            Err(Error::data(path, "format", expected, start.join(" ")))
        }
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
