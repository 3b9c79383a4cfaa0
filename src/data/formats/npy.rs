//! NumPy's `.npy`: magic, version, header length, a Python dictionary, raw numbers. Versions 1 to 3, any byte order,
//! C and Fortran order. Format: numpy/lib/format.py.

use std::ops::Range;
use std::path::Path;

use crate::data::array::{Array, Bytes, Element, Endian, Layout};
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself refuses longer headers unless told to trust the file.
const MAX_HEADER: usize = 10_000;

/// Returns the array of the npy file that is bytes `range` of `bytes`.
///
/// # Errors
/// Another format, a header that claims more than there is, bytes left over, numbers that are no plain type.
pub fn read(path: &Path, name: &str, bytes: Bytes, range: Range<usize>) -> Result<Array> {
    let content = bytes.get().get(range.clone()).unwrap_or(&[]);
    let (layout, data) = header(path, name, content)?;
    let expected = data.checked_add(layout.dense_bytes());
    if expected != Some(content.len()) {
        let expected = expected.map_or("fewer elements".to_owned(), |n| format!("{n} bytes"));
        let expected = format!("{expected} for shape {:?} of {}", layout.shape, layout.element);
        return Err(Error::data(
            path,
            format!("`{name}` length"),
            expected,
            format!("{} bytes", content.len()),
        ));
    }
    Array::new(path, name, bytes, range.start + data, layout)
}

/// Parses a header; returns the layout and the offset of the first element.
fn header(path: &Path, name: &str, bytes: &[u8]) -> Result<(Layout, usize)> {
    let bad = |field: &str, expected: &str, found: String| {
        Error::data(path, format!("`{name}` npy {field}"), expected, found)
    };
    let short = || bad("header", "a whole header", format!("{} bytes", bytes.len()));
    if !bytes.starts_with(MAGIC) {
        return Err(bad("magic", "\\x93NUMPY", format!("{:02x?}", &bytes[..bytes.len().min(6)])));
    }
    let (length, text) = match bytes.get(6..12).ok_or_else(short)? {
        [1, _, a, b, ..] => (u16::from_le_bytes([*a, *b]) as usize, 10),
        [2 | 3, _, a, b, c, d] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        other => return Err(bad("version", "1, 2 or 3", format!("{}", other[0]))),
    };
    if length > MAX_HEADER {
        return Err(bad("header length", "at most 10000 bytes", length.to_string()));
    }
    let text = bytes.get(text..text + length).map(|t| (t, text + length)).ok_or_else(short)?;
    let (text, data) =
        (std::str::from_utf8(text.0).map_err(|e| bad("header", "text", e.to_string()))?, text.1);
    let fields = Dictionary::parse(text).ok_or_else(|| {
        bad(
            "header",
            "a dictionary of descr, fortran_order and shape",
            text.trim().chars().take(120).collect(),
        )
    })?;
    let (element, endian) = dtype(&fields.descr).ok_or_else(|| {
        bad("descr", "a plain float, integer or bool type (<f4, <f2, <f8, |u1, <i8, …)", fields.descr.clone())
    })?;
    let mut layout = Layout::row_major(path, element, fields.shape)?;
    layout.endian = endian;
    if fields.fortran_order {
        let mut stride = 1;
        for (s, n) in layout.strides.iter_mut().zip(&layout.shape) {
            *s = stride;
            stride *= n;
        }
    }
    Ok((layout, data))
}

fn dtype(descr: &str) -> Option<(Element, Endian)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let endian = match order {
        "<" | "|" => Endian::Little,
        ">" => Endian::Big,
        "=" if cfg!(target_endian = "little") => Endian::Little,
        _ => return None,
    };
    let element = match kind {
        "f8" => Element::F64,
        "f4" => Element::F32,
        "f2" => Element::F16,
        "u1" => Element::U8,
        "i1" => Element::I8,
        "u2" => Element::U16,
        "i2" => Element::I16,
        "u4" => Element::U32,
        "i4" => Element::I32,
        "u8" => Element::U64,
        "i8" => Element::I64,
        "b1" => Element::Bool,
        _ => return None,
    };
    Some((element, endian))
}

/// The Python literal of a header.
struct Dictionary {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Dictionary {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }` with its keys in any order, each once.
    fn parse(text: &str) -> Option<Self> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        while !rest.is_empty() {
            let (key, after) = quoted(rest)?;
            let value = after.trim_start().strip_prefix(':')?.trim_start();
            let after = match key {
                "descr" if descr.is_none() => {
                    let (value, after) = quoted(value)?;
                    descr = Some(value.to_owned());
                    after
                }
                "fortran_order" if fortran_order.is_none() => {
                    let truth = value.starts_with("True");
                    fortran_order = Some(truth);
                    value.strip_prefix(if truth { "True" } else { "False" })?
                }
                "shape" if shape.is_none() => {
                    let (inside, after) = value.strip_prefix('(')?.split_once(')')?;
                    let sizes = inside.split(',').map(str::trim).filter(|s| !s.is_empty());
                    let sizes = sizes.map(|s| s.trim_end_matches('L').parse().ok());
                    shape = Some(sizes.collect::<Option<Vec<usize>>>()?);
                    after
                }
                _ => return None,
            };
            let after = after.trim_start();
            rest = after.strip_prefix(',').or(after.is_empty().then_some(after))?.trim_start();
        }
        Some(Self { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }
}

/// Splits a quoted string off the front.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_are_read_whatever_their_order() {
        let found =
            Dictionary::parse("{\"shape\": (3, 4L,), 'fortran_order': True, 'descr': '>i2'}  \n").unwrap();
        assert_eq!((found.descr.as_str(), found.fortran_order, found.shape), (">i2", true, vec![3, 4]));
        assert_eq!(
            Dictionary::parse("{'descr': '|u1', 'fortran_order': False, 'shape': ()}").unwrap().shape,
            Vec::<usize>::new()
        );
    }

    #[test]
    fn anything_else_is_no_dictionary() {
        for text in [
            "",
            "{}",
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        ] {
            assert!(Dictionary::parse(text).is_none(), "{text}");
        }
    }
}
