//! Rows of numbers as files that other programs read: npy or safetensors, by the ending of the name.

use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::train::atomic::write_atomically;

/// Writes `rows: (N, width)` as f32 to a `.npy` file, or as the tensor `name` to a `.safetensors` file.
///
/// # Errors
/// Another ending, values that are not rows, a disk that is full or read-only; the old file, if any, is intact then.
pub fn write_rows(path: &Path, name: &str, rows: &[f32], width: usize) -> Result<()> {
    if width == 0 || !rows.len().is_multiple_of(width) {
        let expected = format!("rows of {width} values");
        return Err(Error::argument("write_rows", "rows", expected, format!("{} values", rows.len())));
    }
    let shape = [rows.len() / width, width];
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => npy(rows, shape),
        Some("safetensors") => {
            let failed = |e| Error::data(path, name, "a tensor that safetensors can hold", e);
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(rows));
            safetensors::serialize([(name, view.map_err(failed)?)], None).map_err(failed)?
        }
        _ => {
            return Err(Error::Usage(format!(
                "{}: expected a name that ends in `.npy` or `.safetensors`",
                path.display()
            )));
        }
    };
    write_atomically(path, &bytes)
}

/// Checks the ending of a file's name before anything is computed.
///
/// # Errors
/// Neither `.npy` nor `.safetensors`.
pub fn check_ending(path: &Path) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy" | "safetensors") => Ok(()),
        _ => write_rows(path, "rows", &[], 1),
    }
}

/// NumPy's format 1.0: magic, version, length of the header, header padded to 64 bytes, little-endian values.
fn npy(rows: &[f32], [n, width]: [usize; 2]) -> Vec<u8> {
    const BEFORE: usize = 10;
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {width}), }}").into_bytes();
    let length = (BEFORE + header.len() + 1).next_multiple_of(64) - BEFORE;
    header.resize(length - 1, b' ');
    header.push(b'\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(&header);
    rows.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;

    #[test]
    fn both_formats_read_back_with_the_same_shape_and_bits() {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<f32> = (0..21).map(|i| (i as f32).sin()).collect();
        for name in ["rows.npy", "rows.safetensors"] {
            let path = dir.path().join(name);
            write_rows(&path, "features", &rows, 3).unwrap();
            let read = Dataset::open(&path).unwrap();
            assert_eq!((read.rows(), read.width()), (7, 3), "{name}");
            let mut out = vec![0.0; 21];
            read.gather(&(0..7).collect::<Vec<_>>(), &mut out).unwrap();
            assert_eq!(out, rows, "{name}");
        }
    }

    #[test]
    fn other_endings_and_ragged_rows_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = check_ending(&dir.path().join("rows.csv")).unwrap_err().to_string();
        assert!(message.ends_with("expected a name that ends in `.npy` or `.safetensors`"), "{message}");
        assert!(write_rows(&dir.path().join("rows.npy"), "rows", &[0.0; 7], 3).is_err());
    }
}
