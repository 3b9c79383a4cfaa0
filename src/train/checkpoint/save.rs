//! Writes checkpoints: temporary folder, fsync, rename, prune.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use super::load::{list, load};
use super::{Disk, FileEntry, Group, MANIFEST, Manifest, TEMPORARY, TensorRef, file_name, folder};
use crate::error::{Error, Result};

/// What safetensors headers are padded to.
const HEADER_ALIGN: usize = 8;

/// Saves a checkpoint in the folder `checkpoints`, then removes all but the newest `keep` (1 is taken for 0).
///
/// A valid checkpoint of the same step that is already there is kept, and nothing is written: a run that is resumed and
/// stopped at once finds the one it came from. One that is there but broken is replaced.
///
/// # Errors
/// `Error::Io` that names the file; all earlier checkpoints are then intact, and what was written of the new one is
/// removed, as far as the disk allows. `Error::Argument` for a tensor whose bytes do not fit its shape, or a name used
/// twice.
pub fn save(checkpoints: &Path, manifest: &Manifest, groups: &[Group<'_>], keep: usize) -> Result<PathBuf> {
    save_on(&Disk::default(), checkpoints, manifest, groups, keep)
}

/// Does what [`save`] does on a disk that may fail.
///
/// # Errors
/// Those of [`save`].
pub fn save_on(
    disk: &Disk,
    checkpoints: &Path,
    manifest: &Manifest,
    groups: &[Group<'_>],
    keep: usize,
) -> Result<PathBuf> {
    check(groups)?;
    let target = folder(checkpoints, manifest.step);
    remove_leftovers(disk, checkpoints)?;
    if target.exists() {
        if load(&target).is_ok() {
            return Ok(target);
        }
        drop_folder(disk, &target)?;
    }
    let temporary = checkpoints.join(format!("{TEMPORARY}{:07}", manifest.step));
    if let Err(e) = write_all(disk, checkpoints, &temporary, &target, manifest, groups) {
        // Gives the space back; a failure here adds nothing to the one that is reported.
        let _ = disk.remove_dir(&temporary);
        return Err(e);
    }
    prune(disk, checkpoints, manifest.step, keep)?;
    Ok(target)
}

fn write_all(
    disk: &Disk,
    checkpoints: &Path,
    temporary: &Path,
    target: &Path,
    manifest: &Manifest,
    groups: &[Group<'_>],
) -> Result<()> {
    disk.create_dir(temporary)?;
    let mut manifest = manifest.clone();
    manifest.files.clear();
    for group in groups {
        manifest.files.push(write_group(disk, temporary, group, &manifest.time_convention)?);
    }
    let path = temporary.join(MANIFEST);
    let mut file = disk.create(&path)?;
    disk.write(&mut file, &path, &seal(&manifest, &path)?)?;
    disk.sync(&file, &path)?;
    disk.sync_dir(temporary)?;
    disk.rename(temporary, target)?;
    disk.sync_dir(checkpoints)
}

/// Writes one safetensors file and returns its length and checksum.
fn write_group(disk: &Disk, dir: &Path, group: &Group<'_>, time_convention: &str) -> Result<FileEntry> {
    let name = file_name(group.file);
    let path = dir.join(&name);
    let mut sorted: Vec<&TensorRef<'_>> = group.tensors.iter().collect();
    // Wide types first, so that each tensor is aligned; then by name, so that equal states are equal bytes.
    sorted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header(&path, &sorted, time_convention)?;
    let mut entry = FileEntry { name, bytes: 0, crc32c: 0 };
    let mut file = disk.create(&path)?;
    for bytes in std::iter::once(header.as_slice()).chain(sorted.iter().map(|t| t.bytes.as_ref())) {
        disk.write(&mut file, &path, bytes)?;
        entry.bytes += bytes.len() as u64;
        entry.crc32c = crc32c::crc32c_append(entry.crc32c, bytes);
    }
    disk.sync(&file, &path)?;
    Ok(entry)
}

/// Builds length and JSON header of a safetensors file.
fn header(path: &Path, sorted: &[&TensorRef<'_>], time_convention: &str) -> Result<Vec<u8>> {
    let mut offset = 0;
    let mut infos = Vec::new();
    for t in sorted {
        let end = offset + t.bytes.len();
        let info = TensorInfo { dtype: t.dtype, shape: t.shape.clone(), data_offsets: (offset, end) };
        infos.push((t.name.to_string(), info));
        offset = end;
    }
    let notes = HashMap::from([("time_convention".to_owned(), time_convention.to_owned())]);
    let invalid = |e: String| Error::data(path, "header", "tensors that safetensors can describe", e);
    let metadata = Metadata::new(Some(notes), infos).map_err(|e| invalid(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| invalid(e.to_string()))?;
    json.resize(json.len().next_multiple_of(HEADER_ALIGN), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

/// The manifest between these three is JSON as a whole, and every byte of it is checked.
pub(super) const SEAL: [&str; 3] = ["{\"crc32c\":\"", "\",\"manifest\":\n", "\n}\n"];

/// Writes the manifest with its own checksum in front.
fn seal(manifest: &Manifest, path: &Path) -> Result<Vec<u8>> {
    let body = serde_json::to_string_pretty(manifest)
        .map_err(|e| Error::data(path, "manifest", "values that JSON can hold", e))?;
    let [begin, middle, end] = SEAL;
    Ok(format!("{begin}{:08x}{middle}{body}{end}", crc32c::crc32c(body.as_bytes())).into_bytes())
}

/// Removes all but the newest `keep` of the checkpoints up to `step`, which was just saved.
fn prune(disk: &Disk, checkpoints: &Path, step: u64, keep: usize) -> Result<()> {
    let older: Vec<_> = list(checkpoints)?.into_iter().filter(|(s, _)| *s < step).collect();
    let dropped = older.len().saturating_sub(keep.max(1) - 1);
    older[..dropped].iter().try_for_each(|(_, path)| drop_folder(disk, path))
}

/// Removes a checkpoint, out of sight first.
fn drop_folder(disk: &Disk, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!("{TEMPORARY}dropped-{name}"));
    disk.rename(path, &hidden)?;
    disk.remove_dir(&hidden)
}

/// Removes what interrupted saves left behind.
fn remove_leftovers(disk: &Disk, checkpoints: &Path) -> Result<()> {
    for entry in std::fs::read_dir(checkpoints).map_err(Error::io(checkpoints, "read"))? {
        let entry = entry.map_err(Error::io(checkpoints, "read"))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            disk.remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

fn check(groups: &[Group<'_>]) -> Result<()> {
    let mut files = BTreeSet::new();
    for group in groups {
        if !files.insert(group.file) {
            return Err(Error::argument("checkpoint::save", "groups", "each file once", group.file));
        }
        let mut names = BTreeSet::new();
        for t in &group.tensors {
            let bits = t.shape.iter().product::<usize>() * t.dtype.bitsize();
            if bits != t.bytes.len() * 8 {
                let expected = format!("{} bytes of {} {:?}", bits / 8, t.name, t.shape);
                return Err(Error::argument("checkpoint::save", "bytes", expected, t.bytes.len()));
            }
            if !names.insert(t.name.as_ref()) {
                return Err(Error::argument("checkpoint::save", "tensors", "each name once", &t.name));
            }
        }
    }
    Ok(())
}
