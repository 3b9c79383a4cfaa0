//! Reads checkpoints, trusting nothing: no byte is handed out before its checksum agreed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorView};
use serde_json::Value;

use super::save::SEAL;
use super::{FORMAT, FileEntry, LoadedTensor, MANIFEST, Manifest, TIME_CONVENTION, dtype_of, file_name};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::train::config::{Config, Stage};

/// A checkpoint in memory, valid as a whole.
#[derive(Debug)]
pub struct Loaded {
    path: PathBuf,
    manifest: Manifest,
    files: BTreeMap<String, LoadedFile>,
}

#[derive(Debug)]
struct LoadedFile {
    metadata: Metadata,
    /// Where tensors begin in `bytes`.
    start: usize,
    bytes: Vec<u8>,
}

/// What [`latest`] found.
#[derive(Debug)]
pub struct Latest {
    /// The newest valid checkpoint; none in an empty folder.
    pub loaded: Option<Loaded>,
    /// Newer ones that are broken, with the reason, newest first: to be reported.
    pub broken: Vec<(PathBuf, Error)>,
}

/// Lists the checkpoints of a folder by step, oldest first. A folder that does not exist has none.
///
/// # Errors
/// `Error::Io` when it cannot be read.
pub fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(Error::io(checkpoints, "read"))? {
        let path = entry.map_err(Error::io(checkpoints, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.len() >= 7 && name.bytes().all(|b| b.is_ascii_digit()) {
            found.extend(name.parse::<u64>().ok().map(|step| (step, path.clone())));
        }
    }
    found.sort();
    Ok(found)
}

/// Loads the newest valid checkpoint of the folder `checkpoints`, passing over broken ones, which it names.
///
/// # Errors
/// The newest one's error when all are broken: a run never starts anew in silence.
pub fn latest(checkpoints: &Path) -> Result<Latest> {
    let mut broken = Vec::new();
    for (_, path) in list(checkpoints)?.into_iter().rev() {
        match load(&path) {
            Ok(loaded) => return Ok(Latest { loaded: Some(loaded), broken }),
            Err(e) => broken.push((path, e)),
        }
    }
    if broken.is_empty() { Ok(Latest { loaded: None, broken }) } else { Err(broken.swap_remove(0).1) }
}

/// Loads what a user calls a checkpoint: one by its own folder, or the latest of a run.
///
/// # Errors
/// Those of [`load`] and [`latest`]; `Error::Data` when the path is neither, or the run has no checkpoint yet.
pub fn find(path: &Path) -> Result<Latest> {
    if path.join(MANIFEST).exists() {
        return Ok(Latest { loaded: Some(load(path)?), broken: Vec::new() });
    }
    let checkpoints = path.join("checkpoints");
    if !checkpoints.is_dir() {
        let found = if path.exists() { "neither" } else { "nothing" };
        return Err(Error::data(path, "folder", "a run, or a checkpoint of one", found));
    }
    let latest = latest(&checkpoints)?;
    if latest.loaded.is_none() {
        return Err(Error::data(checkpoints, "folder", "a checkpoint", "none yet"));
    }
    Ok(latest)
}

/// Loads one checkpoint and verifies all of it.
///
/// # Errors
/// `Error::Data` that names file, field, expected and found, for: a manifest or file that is missing, cut, padded or
/// changed, another format, another time convention; `Error::Io` when the system cannot read.
pub fn load(path: &Path) -> Result<Loaded> {
    let manifest = read_manifest(&path.join(MANIFEST))?;
    let mut files = BTreeMap::new();
    for entry in &manifest.files {
        files.insert(entry.name.clone(), read_file(path, entry)?);
    }
    Ok(Loaded { path: path.to_owned(), manifest, files })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::data(path, "file", "to be there", "missing"),
        _ => Error::io(path, "read")(e),
    })
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let bytes = read(path)?;
    let text = unseal(&bytes).ok_or_else(|| {
        Error::data(path, "layout", "a checkpoint manifest", format!("{} bytes that are none", bytes.len()))
    })?;
    let (sum, body) = text;
    let actual = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
    if sum != actual {
        return Err(Error::data(path, "crc32c", sum, actual));
    }
    let value: Value =
        serde_json::from_str(body).map_err(|e| Error::data(path, "manifest", "valid JSON", e))?;
    expect(path, "format", &Value::from(FORMAT), value.get("format").unwrap_or(&Value::Null))?;
    let manifest: Manifest = serde_json::from_value(value)
        .map_err(|e| Error::data(path, "manifest", "all fields of its format", e))?;
    if manifest.time_convention != TIME_CONVENTION {
        return Err(Error::data(path, "time_convention", TIME_CONVENTION, manifest.time_convention));
    }
    Ok(manifest)
}

/// Takes checksum and body out of a sealed manifest.
fn unseal(bytes: &[u8]) -> Option<(&str, &str)> {
    let [begin, middle, end] = SEAL;
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix(begin)?.strip_suffix(end)?;
    let (sum, rest) = text.split_at_checked(8)?;
    Some((sum, rest.strip_prefix(middle)?))
}

fn read_file(dir: &Path, entry: &FileEntry) -> Result<LoadedFile> {
    let plain = Path::new(&entry.name).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || entry.name.contains('/') {
        return Err(Error::data(dir.join(MANIFEST), "files", "plain file names", &entry.name));
    }
    let path = dir.join(&entry.name);
    let bytes = read(&path)?;
    if bytes.len() as u64 != entry.bytes {
        let (expected, found) = (format!("{} bytes", entry.bytes), format!("{} bytes", bytes.len()));
        return Err(Error::data(path, "length", expected, found));
    }
    let sum = crc32c::crc32c(&bytes);
    if sum != entry.crc32c {
        let (expected, found) = (format!("{:08x}", entry.crc32c), format!("{sum:08x}"));
        return Err(Error::data(path, "crc32c", expected, found));
    }
    let (header, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|e| Error::data(&path, "header", "safetensors", e))?;
    Ok(LoadedFile { metadata, start: size_of::<u64>() + header, bytes })
}

impl Loaded {
    /// Returns the folder it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns all that is not a tensor.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads the configuration that the run had when it was saved.
    ///
    /// # Errors
    /// `Error::Data` for a text that is none.
    pub fn config(&self) -> Result<Config> {
        toml::from_str(&self.manifest.config).map_err(|e| {
            let found = e.to_string().trim_end().replace('\n', " ");
            Error::data(self.path.join(MANIFEST), "config", "a configuration as TOML", found)
        })
    }

    /// Returns whether there is a file of this group.
    pub fn has(&self, group: &str) -> bool {
        self.files.contains_key(&file_name(group))
    }

    /// Lists the groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|name| name.trim_end_matches(".safetensors"))
    }

    /// Lists the tensors of a group, in the order of the file.
    ///
    /// # Errors
    /// `Error::Data` when there is no such group.
    pub fn names(&self, group: &str) -> Result<Vec<String>> {
        Ok(self.file(group)?.metadata.offset_keys())
    }

    /// Returns type, shape and bytes of a tensor.
    ///
    /// # Errors
    /// `Error::Data` when there is no such group or tensor.
    pub fn tensor(&self, group: &str, name: &str) -> Result<LoadedTensor<'_>> {
        let file = self.file(group)?;
        let path = || self.path.join(file_name(group));
        let info = file
            .metadata
            .info(name)
            .ok_or_else(|| Error::data(path(), name, "a tensor of this name", "none"))?;
        let (begin, end) = info.data_offsets;
        TensorView::new(info.dtype, info.shape.clone(), &file.bytes[file.start + begin..file.start + end])
            .map_err(|e| Error::data(path(), name, "bytes that fit its shape", e))
    }

    /// Copies a tensor, whose type and shape must be the ones asked for, into `out`.
    ///
    /// # Errors
    /// `Error::Data` for another type or shape; `Error::Argument` when `out` does not have the shape's length.
    pub fn read_into<X: FloatX>(
        &self,
        out: &mut [X],
        group: &str,
        name: &str,
        shape: &[usize],
    ) -> Result<()> {
        let tensor = self.tensor(group, name)?;
        if (tensor.dtype(), tensor.shape()) != (dtype_of::<X>(), shape) {
            let expected = format!("{} {shape:?}", dtype_of::<X>());
            let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
            return Err(Error::data(self.path.join(file_name(group)), name, expected, found));
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        if bytes.len() != tensor.data().len() {
            let expected = format!("{} elements of {name}", shape.iter().product::<usize>());
            return Err(Error::argument("checkpoint::read_into", "out", expected, out.len()));
        }
        bytes.copy_from_slice(tensor.data());
        Ok(())
    }

    /// Refuses a checkpoint of the other stage.
    ///
    /// # Errors
    /// `Error::Data` with both stages.
    pub fn expect_stage(&self, stage: Stage) -> Result<()> {
        let found = self.manifest.stage;
        if found == stage {
            return Ok(());
        }
        Err(Error::data(self.path.join(MANIFEST), "stage", stage.name(), found.name()))
    }

    /// Refuses a checkpoint of another architecture.
    ///
    /// # Errors
    /// `Error::Data` that names the first differing field, with both values.
    pub fn expect_architecture(&self, expected: &Value) -> Result<()> {
        expect(&self.path.join(MANIFEST), "architecture", expected, &self.manifest.architecture)
    }

    fn file(&self, group: &str) -> Result<&LoadedFile> {
        let name = file_name(group);
        self.files.get(&name).ok_or_else(|| {
            let groups: Vec<_> = self.groups().collect();
            Error::data(&self.path, "files", name, groups.join(", "))
        })
    }
}

/// Refuses the first difference of two JSON values, by its path.
fn expect(path: &Path, field: &str, expected: &Value, found: &Value) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    if let (Value::Object(expected), Value::Object(found)) = (expected, found) {
        for key in expected.keys().chain(found.keys()) {
            let of = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
            expect(path, &format!("{field}.{key}"), &of(expected), &of(found))?;
        }
    }
    Err(Error::data(path, field, expected, found))
}
