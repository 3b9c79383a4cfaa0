//! Zip archives: `.npz` of NumPy and `.pt` of `torch.save`. Stored members are used in place, packed ones unpacked.

use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use crate::data::array::{Array, Bytes};
use crate::data::formats::{npy, pick, torch};
use crate::data::map::Map;
use crate::error::{Error, Result};

/// The most that DEFLATE can pack into one byte.
const MAX_RATIO: u64 = 1032;

/// An open archive.
pub struct Archive<'a> {
    map: &'a Arc<Map>,
    zip: ZipArchive<Cursor<&'a [u8]>>,
}

impl<'a> Archive<'a> {
    /// Reads the directory of a mapped archive.
    ///
    /// # Errors
    /// A damaged directory.
    pub fn open(map: &'a Arc<Map>) -> Result<Self> {
        let zip =
            ZipArchive::new(Cursor::new(map.bytes())).map_err(|e| damaged(map.path(), "directory", e))?;
        Ok(Self { map, zip })
    }

    /// Returns the path of the archive.
    pub fn path(&self) -> &'a Path {
        self.map.path()
    }

    /// Lists the members; names that are no UTF-8 are left out.
    pub fn names(&self) -> Vec<String> {
        self.zip.file_names().filter_map(|n| n.ok().map(|n| n.into_owned())).collect()
    }

    /// Returns the content of `name` with its checksum verified, and the part of those bytes that is the member.
    ///
    /// # Errors
    /// No such member, encryption, an unknown packing, sizes that cannot be true, a wrong checksum.
    pub fn member(&mut self, name: &str) -> Result<(Bytes, Range<usize>)> {
        let path = self.map.path();
        let available = self.map.bytes().len() as u64;
        let mut member = self.zip.by_name(name).map_err(|e| damaged(path, name, e))?;
        let (size, packed) = (member.size(), member.compressed_size());
        let stored = member.compression() == CompressionMethod::Stored;
        let possible = if stored { packed } else { packed.saturating_mul(MAX_RATIO) };
        if packed > available || size > possible {
            let expected =
                format!("at most {possible} bytes from {packed} packed ones in a file of {available}");
            return Err(Error::data(path, format!("`{name}` size"), expected, size));
        }
        let start = member.data_start().filter(|s| *s <= available);
        if let (true, Some(start)) = (stored, start) {
            let range = start as usize..(start + size).min(available) as usize;
            let mut crc = flate2::Crc::new();
            crc.update(&self.map.bytes()[range.clone()]);
            if crc.sum() != member.crc32() {
                let (expected, found) = (format!("{:08x}", member.crc32()), format!("{:08x}", crc.sum()));
                return Err(Error::data(path, format!("`{name}` checksum"), expected, found));
            }
            return Ok((Bytes::Mapped(self.map.clone()), range));
        }
        let mut content = Vec::new(); // grows with what arrives, not by what the header claims
        let read = member.by_ref().take(size.saturating_add(1)).read_to_end(&mut content);
        read.map_err(|e| Error::data(path, format!("`{name}`"), "an intact member", e))?;
        if content.len() as u64 != size {
            let found = format!("{} bytes or more", content.len());
            return Err(Error::data(path, format!("`{name}` size"), format!("{size} bytes"), found));
        }
        let range = 0..content.len();
        Ok((Bytes::Owned(Arc::new(content)), range))
    }
}

/// Opens array `key` of an `.npz` or tensor `key` of a `.pt` archive.
///
/// # Errors
/// As [`Archive::member`] and the readers of the two formats; neither of them.
pub fn read(map: Arc<Map>, key: Option<&str>) -> Result<Array> {
    let mut archive = Archive::open(&map)?;
    let names = archive.names();
    if let Some(pickle) = names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl")) {
        return torch::read(&mut archive, pickle, key);
    }
    let mut arrays = Vec::new();
    for name in names.iter().filter(|n| n.ends_with(".npy")) {
        if key.is_none_or(|key| name.trim_end_matches(".npy") == key) {
            arrays.push(npz_array(&mut archive, name)?);
        }
    }
    let listed: Vec<(&str, usize)> = match key {
        Some(_) => names.iter().filter_map(|n| n.strip_suffix(".npy")).map(|n| (n, 2)).collect(),
        None => arrays.iter().map(|a| (a.name(), a.shape().len())).collect(),
    };
    if listed.is_empty() {
        let expected = "members called *.npy (npz) or data.pkl (.pt)";
        return Err(Error::data(map.path(), "archive", expected, format!("{} others", names.len())));
    }
    let picked = pick(map.path(), &listed, key)?.to_owned();
    let found = arrays.into_iter().find(|a| a.name() == picked);
    found.ok_or_else(|| Error::data(map.path(), "archive", format!("`{picked}`"), "nothing"))
}

fn npz_array(archive: &mut Archive<'_>, name: &str) -> Result<Array> {
    let path = archive.path();
    let (bytes, range) = archive.member(name)?;
    npy::read(path, name.trim_end_matches(".npy"), bytes, range)
}

fn damaged(path: &Path, field: &str, error: zip::result::ZipError) -> Error {
    Error::data(path, format!("zip {field}"), "an intact archive", error)
}
