//! What the tests share: fixtures, small data sets, and a check of messages.

use std::fs;
use std::path::{Path, PathBuf};

use flowprior::data::import::Options;
use flowprior::data::manifest::Classes;
use flowprior::data::writer::Labels;
use flowprior::data::{Dataset, DatasetWriter, Spec};
use flowprior::{Error, Result};

/// Returns the path of a file that `fixtures/make.py` wrote.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name)
}

/// The table in the fixtures: 4 rows of 3 values.
pub fn table() -> Vec<f32> {
    (0..12).map(|i| i as f32 * 0.5 - 2.0).collect()
}

/// Returns all rows of a data set.
pub fn all_rows(dataset: &Dataset) -> Vec<f32> {
    let ids: Vec<u64> = (0..dataset.rows()).collect();
    let mut out = vec![0.0; ids.len() * dataset.width()];
    dataset.gather(&ids, &mut out).unwrap();
    out
}

/// Writes `rows` labelled rows of 3 values in shards of `shard_rows`; row i has label i mod 3.
pub fn labelled(out: &Path, rows: usize, shard_rows: usize) -> Dataset {
    let labels = Labels::Classes(Classes { classes: 3, names: Vec::new() });
    let spec = Spec { shard_rows: Some(shard_rows), labels, ..Spec::new(3) };
    let mut writer = DatasetWriter::create(out, spec).unwrap();
    let values: Vec<f32> = (0..rows * 3).map(|i| (i as f32).sin()).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|i| i % 3).collect();
    writer.push(&values, Some(&labels)).unwrap();
    writer.finish().unwrap()
}

/// Changes the manifest of a data set by hand.
pub fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("dataset.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Imports one file with the options for its key.
pub fn import_one(input: &Path, options: &Options) -> Result<(tempfile::TempDir, Dataset)> {
    let folder = tempfile::tempdir().unwrap();
    let dataset = flowprior::data::import::import(&[input.to_owned()], options, &folder.path().join("out"))?;
    Ok((folder, dataset))
}

/// Checks that a message has all of `parts` (file, field, expected, found) and that the program would end with 3.
#[track_caller]
pub fn assert_refused<T>(result: Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("accepted; expected a message with {parts:?}") };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    assert_eq!(error.exit_code(), 3, "{message}");
    assert!(matches!(error, Error::Io { .. }) || message.contains(": expected "), "{message}");
}
