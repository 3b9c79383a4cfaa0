//! IDX, the format of MNIST and its family: two zero bytes, type, number of dimensions, big-endian sizes and numbers.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::data::array::{Array, Bytes, Element, Endian, Layout};
use crate::data::map::Map;
use crate::error::{Error, Result};

/// Returns the number type of an IDX type byte.
pub fn element(kind: u8) -> Option<Element> {
    match kind {
        0x08 => Some(Element::U8),
        0x09 => Some(Element::I8),
        0x0b => Some(Element::I16),
        0x0c => Some(Element::I32),
        0x0d => Some(Element::F32),
        0x0e => Some(Element::F64),
        _ => None,
    }
}

/// Reads an IDX file.
///
/// # Errors
/// Another format, or a length that differs from what the header says.
pub fn read(path: &Path, bytes: Bytes) -> Result<Array> {
    let (layout, start) = header(path, bytes.get())?;
    check_length(path, &layout, start, bytes.get().len())?;
    Array::new(path, "array", bytes, start, layout)
}

/// Reads a gzipped IDX file; unpacks at most what the header announces, and one byte to see whether there is more.
///
/// # Errors
/// As [`read`], and a damaged gzip stream.
pub fn read_gz(map: &Map) -> Result<Array> {
    let path = map.path();
    let damaged = |e: std::io::Error| Error::data(path, "gzip stream", "an intact one", e);
    let mut stream = MultiGzDecoder::new(map.bytes());
    let mut unpacked = Vec::new();
    (&mut stream).take(4).read_to_end(&mut unpacked).map_err(damaged)?;
    let dims = unpacked.get(3).copied().unwrap_or(0) as u64;
    (&mut stream).take(4 * dims.min(8)).read_to_end(&mut unpacked).map_err(damaged)?;
    let (layout, _) = header(path, &unpacked)?;
    // Growing with what really arrives, not by what the header claims.
    stream.take(layout.dense_bytes() as u64 + 1).read_to_end(&mut unpacked).map_err(damaged)?;
    read(path, Bytes::Owned(Arc::new(unpacked)))
}

fn header(path: &Path, bytes: &[u8]) -> Result<(Layout, usize)> {
    let bad = |field: &str, expected: &str, found: String| {
        Error::data(path, format!("IDX {field}"), expected, found)
    };
    let (kind, dims) = match bytes {
        [0, 0, kind, dims, ..] => (*kind, *dims as usize),
        _ => {
            return Err(bad(
                "magic",
                "two zero bytes, type, dimensions",
                format!("{:02x?}", &bytes[..bytes.len().min(4)]),
            ));
        }
    };
    let element =
        element(kind).ok_or_else(|| bad("type", "08, 09, 0b, 0c, 0d or 0e", format!("{kind:02x}")))?;
    if !(1..=8).contains(&dims) {
        return Err(bad("dimensions", "1 to 8", dims.to_string()));
    }
    let start = 4 + 4 * dims;
    let sizes = bytes
        .get(4..start)
        .ok_or_else(|| bad("header", "sizes of all dimensions", format!("{} bytes", bytes.len())))?;
    let (sizes, _) = sizes.as_chunks::<4>();
    let shape = sizes.iter().map(|b| u32::from_be_bytes(*b) as usize).collect();
    let mut layout = Layout::row_major(path, element, shape)?;
    layout.endian = Endian::Big;
    Ok((layout, start))
}

fn check_length(path: &Path, layout: &Layout, start: usize, found: usize) -> Result<()> {
    let expected = start + layout.dense_bytes();
    if found != expected {
        let found = if found > expected { "more".to_owned() } else { format!("{found} bytes") };
        let expected = format!("{expected} bytes for shape {:?} of {}", layout.shape, layout.element);
        return Err(Error::data(path, "length", expected, found));
    }
    Ok(())
}
