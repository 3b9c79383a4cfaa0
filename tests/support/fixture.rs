//! Reads the numbers that `tests/reference/dump.py` took from PyTorch; `tests/reference/README.md` lists them.

#![allow(dead_code)] // each test program uses its own part

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

/// Holds tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// Holds one fixture file.
pub struct Fixture {
    name: String,
    bytes: Vec<u8>,
}

/// Returns where the fixture `name` lies, for code that opens safetensors files itself.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reference/fixtures/{name}.safetensors"))
}

impl Fixture {
    /// Opens `tests/reference/fixtures/<name>.safetensors`.
    pub fn open(name: &str) -> Self {
        let path = path(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { name: name.to_owned(), bytes }
    }

    /// Returns all names, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Returns shape and values; numbers stored in f32 are widened.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name));
        let values = match view.dtype() {
            Dtype::F64 => wide(view.data()),
            Dtype::F32 => narrow(view.data()),
            other => panic!("{}: {name}: expected f32 or f64, found {other:?}", self.name),
        };
        (view.shape().to_vec(), values)
    }

    /// Returns the values.
    pub fn values(&self, name: &str) -> Vec<f64> {
        self.tensor(name).1
    }

    /// Returns the values rounded to f32; exact for inputs and weights.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.values(name).into_iter().map(|x| x as f32).collect()
    }

    /// Returns the one value of a scalar.
    pub fn scalar(&self, name: &str) -> f64 {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{}: {name} is no scalar", self.name);
        values[0]
    }

    /// Returns the tensors whose name starts with `prefix`, by the rest of the name.
    pub fn prefixed(&self, prefix: &str) -> Tensors {
        let strip = |name: &String| name.strip_prefix(prefix).map(str::to_owned);
        self.names().iter().filter_map(|name| Some((strip(name)?, self.tensor(name)))).collect()
    }

    /// Returns the settings of the case.
    pub fn config(&self) -> serde_json::Value {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let text = header.metadata().as_ref().and_then(|m| m.get("config")).unwrap();
        serde_json::from_str(text).unwrap()
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Returns max |found − expected| / max |expected|; infinite where a number is missing or not finite.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() || found.iter().chain(expected).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let range = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let error = found.iter().zip(expected).fold(0.0, |m: f64, (f, e)| m.max((f - e).abs()));
    if error == 0.0 { 0.0 } else { error / range }
}

/// Panics unless `found` is within `tolerance` of `expected`, relative to the range of `expected`.
#[track_caller]
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.3e}, allowed {tolerance:.0e}");
}

fn wide(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn narrow(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
}
