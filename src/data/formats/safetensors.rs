//! Arrays in a `.safetensors` file, found in place. The crate checks the header: offsets inside the file, no gaps, no
//! overlaps, sizes that fit shape and type.

use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata};
use safetensors::{SafeTensorError, SafeTensors};

use crate::data::array::{Array, Bytes, Element, Layout};
use crate::data::formats::pick;
use crate::data::map::Map;
use crate::error::{Error, Result};

/// The longest header read; a file of ten thousand tensors has about one megabyte.
const MAX_HEADER: u64 = 16 << 20;

/// A mapped file with a checked header.
pub struct File {
    map: Arc<Map>,
    header: usize,
    metadata: Metadata,
}

impl File {
    /// Parses the header of a mapped file.
    ///
    /// # Errors
    /// A header that is damaged, longer than 16 MiB, or does not describe exactly the bytes that follow.
    pub fn parse(map: Arc<Map>) -> Result<Self> {
        let path = map.path();
        let bytes = map.bytes();
        if let Some(length) =
            bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).filter(|n| *n > MAX_HEADER)
        {
            let expected = format!("at most {MAX_HEADER} bytes");
            return Err(Error::data(path, "header length", expected, format!("{length} bytes")));
        }
        let (header, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|e| damaged(path, bytes.len(), e))?;
        Ok(Self { map, header, metadata })
    }

    /// Lists the tensors with their number of dimensions, in the order of their data.
    pub fn names(&self) -> Vec<(String, usize)> {
        let dims = |name: &String| self.metadata.info(name).map_or(0, |info| info.shape.len());
        self.metadata.offset_keys().into_iter().map(|name| (name.clone(), dims(&name))).collect()
    }

    /// Returns the tensor `name`.
    ///
    /// # Errors
    /// No such tensor, or a number type that features and labels cannot have.
    pub fn array(&self, name: &str) -> Result<Array> {
        let path = self.map.path();
        let Some(info) = self.metadata.info(name) else {
            let names: Vec<String> = self.names().into_iter().map(|(n, _)| n).take(20).collect();
            let found = format!("only `{}`", names.join("`, `"));
            return Err(Error::data(path, "tensors", format!("`{name}`"), found));
        };
        let element = element(info.dtype).ok_or_else(|| {
            let found = format!("{:?}", info.dtype);
            Error::data(path, format!("`{name}` dtype"), "a plain float, integer or bool type", found)
        })?;
        let layout = Layout::row_major(path, element, info.shape.clone())?;
        let start = 8 + self.header + info.data_offsets.0;
        Array::new(path, name, Bytes::Mapped(self.map.clone()), start, layout)
    }
}

/// Opens `key`, or `features`, or the only tensor with rows and columns.
///
/// # Errors
/// As [`File::parse`] and [`pick`].
pub fn read(map: Arc<Map>, key: Option<&str>) -> Result<Array> {
    let file = File::parse(map)?;
    let names = file.names();
    let names: Vec<(&str, usize)> = names.iter().map(|(n, dims)| (n.as_str(), *dims)).collect();
    let key = key.or(names.iter().any(|(n, _)| *n == "features").then_some("features"));
    file.array(pick(file.map.path(), &names, key)?)
}

fn element(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::U8 => Element::U8,
        Dtype::I8 => Element::I8,
        Dtype::U16 => Element::U16,
        Dtype::I16 => Element::I16,
        Dtype::U32 => Element::U32,
        Dtype::I32 => Element::I32,
        Dtype::U64 => Element::U64,
        Dtype::I64 => Element::I64,
        Dtype::BOOL => Element::Bool,
        _ => return None,
    })
}

fn damaged(path: &Path, length: usize, error: SafeTensorError) -> Error {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            let expected = "exactly the bytes that the tensors in the header take";
            Error::data(path, "length", expected, format!("{length} bytes"))
        }
        SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooSmall => {
            let expected = "a header length and as many bytes after it";
            Error::data(path, "header length", expected, format!("{length} bytes"))
        }
        other => Error::data(path, "header", "a safetensors header", other),
    }
}
