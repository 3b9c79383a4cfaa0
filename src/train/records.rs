//! The records of a run, read back from `metrics.jsonl`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The records of a run, in order.
#[derive(Clone, Debug, Default)]
pub struct Records(Vec<Map<String, Value>>);

/// One quantity over the steps of a run; NaN where it was not finite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Track {
    /// Finished steps.
    pub steps: Vec<f64>,
    /// The values.
    pub values: Vec<f64>,
}

impl Records {
    /// Reads all records; a last line that a kill tore is left out.
    ///
    /// # Errors
    /// `Error::Data` with the number of a line that is no record; `Error::Io`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let record = |(number, line): (usize, &str)| {
            let bad = |e| Error::data(path, format!("line {}", number + 1), "a record", e);
            serde_json::from_str(line).map_err(bad)
        };
        Ok(Self(whole.lines().enumerate().map(record).collect::<Result<_>>()?))
    }

    /// Returns the quantity `name` of the records of `kind` ("train", "eval").
    pub fn track(&self, kind: &str, name: &str) -> Track {
        let mut track = Track::default();
        for record in self.0.iter().filter(|r| r.get("kind").and_then(Value::as_str) == Some(kind)) {
            if let (Some(step), Some(value)) = (record.get("step"), record.get(name)) {
                track.steps.push(step.as_f64().unwrap_or(f64::NAN));
                track.values.push(value.as_f64().unwrap_or(f64::NAN));
            }
        }
        track
    }
}

impl Track {
    /// Says whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Moves step 0 to 1, so that it has a place on a logarithmic axis.
    pub fn from_one(mut self) -> Self {
        self.steps.iter_mut().for_each(|step| *step = step.max(1.0));
        self
    }

    /// Returns the first and the last value that are finite.
    pub fn ends(&self) -> Option<(f64, f64)> {
        let mut finite = self.values.iter().copied().filter(|v| v.is_finite());
        let first = finite.next()?;
        Some((first, finite.next_back().unwrap_or(first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_keep_kinds_apart_and_show_nulls_as_nan() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = "{\"step\":0,\"kind\":\"eval\",\"loss\":2.0}\n{\"step\":5,\"kind\":\"train\",\"loss\":1.5}\n\
                    {\"step\":9,\"kind\":\"eval\",\"loss\":null,\"nll\":3}\n{\"step\":10,\"ki";
        fs::write(&path, text).unwrap();
        let records = Records::read(&path).unwrap();
        let loss = records.track("eval", "loss").from_one();
        assert_eq!((loss.steps, loss.values[0]), (vec![1.0, 9.0], 2.0));
        assert!(loss.values[1].is_nan());
        assert_eq!(records.track("eval", "nll").ends(), Some((3.0, 3.0)));
        assert!(records.track("eval", "lr").is_empty());
        fs::write(&path, "{\"step\":0}\nno\n").unwrap();
        assert!(Records::read(&path).unwrap_err().to_string().contains("line 2"));
    }
}
