//! Snapshots of free latents over a run, for figures and animations, and for other programs.
//!
//! ```text
//! RUN/snapshots/0000250.npy    the latents (L, D) after 250 steps, f32
//! ```
//! Taken every `train.snapshots_every` steps, before the first and after the last. A snapshot is a function of the step alone and is
//! written whole or not at all: a run that continues from a checkpoint writes those after it again, with the same bits.

use std::fs;
use std::path::{Path, PathBuf};

use crate::data::formats;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::train::export::write_rows;

/// The folder of the snapshots in a run folder.
const FOLDER: &str = "snapshots";

/// The latents of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Finished steps.
    pub step: u64,
    /// The latents, (L, D).
    pub latents: Vec<f32>,
    /// D.
    pub width: usize,
}

/// Keeps `latents: (L, D)` of a step in the run folder `run`.
///
/// # Errors
/// `Error::Io`.
pub fn write(run: &Path, step: u64, latents: &Tensor<f32>) -> Result<()> {
    let folder = run.join(FOLDER);
    fs::create_dir_all(&folder).map_err(Error::io(&folder, "create folder"))?;
    let path = folder.join(format!("{step:07}.npy"));
    write_rows(&path, "latents", &latents.on_host()?, latents.rows_cols().1)
}

/// Removes snapshots after `step`: those of a session that went further than the checkpoint that the run continues from.
///
/// # Errors
/// `Error::Io`.
pub fn remove_after(run: &Path, step: u64) -> Result<()> {
    let mut later = list(run)?.into_iter().filter(|(at, _)| *at > step);
    later.try_for_each(|(_, path)| fs::remove_file(&path).map_err(Error::io(&path, "remove")))
}

/// Reads all snapshots of a run folder, the earliest first; none where the run took none.
///
/// # Errors
/// A file that is damaged, or has another number of latents or another width than the first.
pub fn read(run: &Path) -> Result<Vec<Snapshot>> {
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for (step, path) in list(run)? {
        let array = formats::open(&path, None)?;
        let (rows, width) = (array.rows(), array.width());
        let mut latents = vec![0.0; rows * width];
        latents.chunks_exact_mut(width.max(1)).enumerate().for_each(|(i, row)| array.read_row(i, row));
        if let Some(first) = snapshots.first()
            && (first.latents.len(), first.width) != (latents.len(), width)
        {
            let expected =
                format!("{} × {}, as step {}", first.latents.len() / first.width, first.width, first.step);
            return Err(array.error("shape", expected, format!("{rows} × {width}")));
        }
        snapshots.push(Snapshot { step, latents, width });
    }
    Ok(snapshots)
}

/// Lists the files of all snapshots by their steps; other files are left alone.
fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "read"))? {
        let path = entry.map_err(Error::io(&folder, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_suffix(".npy").and_then(|step| step.parse().ok()) {
            found.push((step, path.clone()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn write_at(run: &Path, step: u64, rows: usize) {
        let values: Vec<f32> = (0..rows * 2).map(|i| i as f32 + step as f32).collect();
        let latents = Tensor::from_f32(&Device::cpu_with_threads(1).unwrap(), [rows, 2], &values).unwrap();
        write(run, step, &latents).unwrap();
    }

    #[test]
    fn snapshots_come_back_in_the_order_of_their_steps() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read(run.path()).unwrap(), []);
        for step in [500, 0, 12_500_000] {
            write_at(run.path(), step, 3);
        }
        let found = read(run.path()).unwrap();
        assert_eq!(found.iter().map(|s| s.step).collect::<Vec<_>>(), [0, 500, 12_500_000]);
        assert_eq!((found[1].width, &found[1].latents[..3]), (2, &[500.0, 501.0, 502.0][..]));
        remove_after(run.path(), 500).unwrap();
        assert_eq!(read(run.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_of_other_latents_and_a_torn_file_are_refused() {
        let run = tempfile::tempdir().unwrap();
        write_at(run.path(), 0, 3);
        write_at(run.path(), 250, 4);
        let message = read(run.path()).unwrap_err().to_string();
        assert!(message.contains("3 × 2, as step 0") && message.contains("4 × 2"), "{message}");
        fs::write(run.path().join("snapshots/0000250.npy"), b"\x93NUMPY").unwrap();
        let message = read(run.path()).unwrap_err().to_string();
        assert!(message.contains("0000250.npy"), "{message}");
    }
}
