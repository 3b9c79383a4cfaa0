//! An array inside a file, as found: any number type, any strides. Rows are read as f32, labels as integers.
//!
//! Every format's reader ends in [`Array::new`], which proves once that all elements lie inside the bytes there are;
//! nothing after it can read outside.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::data::map::Map;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};

/// Names the number type of stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it all
pub enum Element {
    F64,
    F32,
    F16,
    Bf16,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    Bool,
}

impl Element {
    /// Returns the bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::U64 | Self::I64 => 8,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::U16 | Self::I16 => 2,
            Self::U8 | Self::I8 | Self::Bool => 1,
        }
    }

    /// Returns the storage type of a data set whose shards hold such elements, if there is one.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::Bf16),
            _ => None,
        }
    }

    fn is_integer(self) -> bool {
        !matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// The order of the bytes of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// The bytes of a file, or what was unpacked from it.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// The file itself.
    Mapped(Arc<Map>),
    /// A decompressed part of it.
    Owned(Arc<Vec<u8>>),
}

impl Bytes {
    /// Returns the content.
    pub fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map.bytes(),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Says what a header claims about an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The number type.
    pub element: Element,
    /// The order of its bytes.
    pub endian: Endian,
    /// The sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    pub strides: Vec<usize>,
}

impl Layout {
    /// Describes a row-major little-endian array.
    ///
    /// # Errors
    /// More elements than fit in memory.
    pub fn row_major(path: &Path, element: Element, shape: Vec<usize>) -> Result<Self> {
        count(path, &shape)?;
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        Ok(Self { element, endian: Endian::Little, shape, strides })
    }

    /// Returns the bytes of all elements, stored without gaps.
    pub fn dense_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.bytes()
    }

    fn is_dense(&self) -> bool {
        let mut stride = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(n, s)| {
            let fits = *s == stride || *n == 1;
            stride *= n;
            fits
        })
    }
}

/// Multiplies the sizes, leaving room for eight bytes an element.
fn count(path: &Path, shape: &[usize]) -> Result<usize> {
    let nonzero = shape.iter().filter(|n| **n > 0);
    let bytes = nonzero.copied().try_fold(8usize, usize::checked_mul).filter(|n| *n <= isize::MAX as usize);
    if bytes.is_none() {
        return Err(Error::data(path, "shape", "sizes whose product fits in memory", format!("{shape:?}")));
    }
    Ok(shape.iter().product())
}

/// An array in a file. The first dimension counts rows, the others together make up the width.
#[derive(Clone, Debug)]
pub struct Array {
    path: PathBuf,
    name: String,
    bytes: Bytes,
    start: usize,
    layout: Layout,
    width: usize,
    dense: bool,
}

impl Array {
    /// Places an array at byte `start` of `bytes`; `name` says in messages which one of the file's it is.
    ///
    /// # Errors
    /// No dimension at all, or elements beyond the end of the bytes.
    pub fn new(path: &Path, name: &str, bytes: Bytes, start: usize, layout: Layout) -> Result<Self> {
        let bad = |field: &str, expected: String, found: String| {
            Err(Error::data(path, format!("`{name}` {field}"), expected, found))
        };
        if layout.shape.is_empty() {
            return bad("shape", "at least one dimension".into(), "a scalar".into());
        }
        let elements = count(path, &layout.shape)?;
        let last = layout.shape.iter().zip(&layout.strides).try_fold(0usize, |last, (n, stride)| {
            n.saturating_sub(1).checked_mul(*stride).and_then(|step| last.checked_add(step))
        });
        let end = if elements == 0 { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
        let needed =
            end.and_then(|end| end.checked_mul(layout.element.bytes())).and_then(|n| n.checked_add(start));
        let len = bytes.get().len();
        if needed.is_none_or(|needed| needed > len) {
            let expected = match needed {
                Some(needed) => {
                    format!("at least {needed} bytes for shape {:?} of {}", layout.shape, layout.element)
                }
                None => format!("strides that stay in memory for shape {:?}", layout.shape),
            };
            return bad("length", expected, format!("{len} bytes"));
        }
        let width = layout.shape[1..].iter().product();
        let dense = layout.is_dense();
        Ok(Self { path: path.to_owned(), name: name.to_owned(), bytes, start, layout, width, dense })
    }

    /// Returns the file it is in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number type.
    pub fn element(&self) -> Element {
        self.layout.element
    }

    /// Returns the sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// Returns the size of the first dimension.
    pub fn rows(&self) -> usize {
        self.layout.shape[0]
    }

    /// Returns the product of all other dimensions.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Builds an error about this array.
    pub fn error(&self, field: impl fmt::Display, expected: impl ToString, found: impl ToString) -> Error {
        Error::data(&self.path, format!("`{}` {field}", self.name), expected, found)
    }

    /// Views the whole array as numbers, without a copy.
    ///
    /// # Errors
    /// Another number type or byte order, strides with gaps, an offset in the file that does not fit the type.
    pub fn view<X: FloatX + Pod>(&self) -> Result<&[X]> {
        if self.layout.element.dtype() != Some(X::DTYPE) {
            return Err(self.error("dtype", X::DTYPE, self.layout.element));
        }
        if !self.dense || !self.is_native() {
            return Err(self.error("layout", "row-major, in this machine's byte order", "another one"));
        }
        let bytes = &self.bytes.get()[self.start..self.start + self.layout.dense_bytes()];
        bytemuck::try_cast_slice(bytes).map_err(|_| {
            let expected = format!("a multiple of {} for a view without a copy", size_of::<X>());
            self.error("offset in the file", expected, self.start)
        })
    }

    /// Reads row `row` to `out` (width). The caller has checked `row`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let to_f32 = |x: f64| x as f32;
        match self.layout.element {
            Element::F64 => self.read(row, out, |b| to_f32(f64::from_le_bytes(b))),
            Element::F32 => self.read(row, out, f32::from_le_bytes),
            Element::F16 => self.read(row, out, |b| FloatX::to_f32(f16::from_le_bytes(b))),
            Element::Bf16 => self.read(row, out, |b| FloatX::to_f32(bf16::from_le_bytes(b))),
            Element::U8 => self.read(row, out, |[b]: [u8; 1]| b as f32),
            Element::I8 => self.read(row, out, |b| i8::from_le_bytes(b) as f32),
            Element::U16 => self.read(row, out, |b| u16::from_le_bytes(b) as f32),
            Element::I16 => self.read(row, out, |b| i16::from_le_bytes(b) as f32),
            Element::U32 => self.read(row, out, |b| u32::from_le_bytes(b) as f32),
            Element::I32 => self.read(row, out, |b| i32::from_le_bytes(b) as f32),
            Element::U64 => self.read(row, out, |b| u64::from_le_bytes(b) as f32),
            Element::I64 => self.read(row, out, |b| i64::from_le_bytes(b) as f32),
            Element::Bool => self.read(row, out, |[b]: [u8; 1]| (b != 0) as u8 as f32),
        }
    }

    /// Reads the label at `row` of an array with one integer per row. The caller has checked `row`.
    ///
    /// # Errors
    /// A number that is no integer in 0..2³¹.
    pub fn label(&self, row: usize) -> Result<u32> {
        let one = |f: &dyn Fn(&Self, &mut [i128; 1])| {
            let mut out = [0];
            f(self, &mut out);
            out[0]
        };
        let value = match self.layout.element {
            Element::U8 | Element::Bool => one(&|a, o| a.read(row, o, |[b]: [u8; 1]| b as i128)),
            Element::I8 => one(&|a, o| a.read(row, o, |b| i8::from_le_bytes(b) as i128)),
            Element::U16 => one(&|a, o| a.read(row, o, |b| u16::from_le_bytes(b) as i128)),
            Element::I16 => one(&|a, o| a.read(row, o, |b| i16::from_le_bytes(b) as i128)),
            Element::U32 => one(&|a, o| a.read(row, o, |b| u32::from_le_bytes(b) as i128)),
            Element::I32 => one(&|a, o| a.read(row, o, |b| i32::from_le_bytes(b) as i128)),
            Element::U64 => one(&|a, o| a.read(row, o, |b| u64::from_le_bytes(b) as i128)),
            Element::I64 => one(&|a, o| a.read(row, o, |b| i64::from_le_bytes(b) as i128)),
            _ => return Err(self.error("dtype", "integers as labels", self.layout.element)),
        };
        u32::try_from(value)
            .ok()
            .filter(|v| *v <= i32::MAX as u32)
            .ok_or_else(|| self.error(format!("row {row}"), "a label from 0 to 2147483647", value))
    }

    /// Checks that this can hold the labels of `rows` rows.
    ///
    /// # Errors
    /// Another number of entries, more than one per row, floats.
    pub fn expect_labels(&self, rows: usize) -> Result<()> {
        if !self.layout.element.is_integer() {
            return Err(self.error("dtype", "integers as labels", self.layout.element));
        }
        if self.rows() != rows || self.width != 1 {
            return Err(self.error(
                "shape",
                format!("[{rows}], one label per row"),
                format!("{:?}", self.shape()),
            ));
        }
        Ok(())
    }

    fn is_native(&self) -> bool {
        let native = if cfg!(target_endian = "little") { Endian::Little } else { Endian::Big };
        self.layout.endian == native || self.layout.element.bytes() == 1
    }

    /// Decodes one row, element by element; `decode` takes little-endian bytes.
    fn read<T, const N: usize>(&self, row: usize, out: &mut [T], decode: impl Fn([u8; N]) -> T) {
        let bytes = self.bytes.get();
        if self.dense && self.layout.endian == Endian::Little {
            let start = self.start + row * self.width * N;
            let (elements, _) = bytes[start..start + self.width * N].as_chunks::<N>();
            out.iter_mut().zip(elements).for_each(|(y, b)| *y = decode(*b));
            return;
        }
        let (shape, strides) = (&self.layout.shape[1..], &self.layout.strides[1..]);
        for (i, y) in out.iter_mut().enumerate().take(self.width) {
            let (mut rest, mut at) = (i, row * self.layout.strides[0]);
            for (n, stride) in shape.iter().zip(strides).rev() {
                at += rest % n * stride;
                rest /= n;
            }
            let mut element = [0; N];
            element.copy_from_slice(&bytes[self.start + at * N..][..N]);
            if self.layout.endian == Endian::Big {
                element.reverse();
            }
            *y = decode(element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(bytes: Vec<u8>, layout: Layout) -> Result<Array> {
        Array::new(Path::new("a.bin"), "x", Bytes::Owned(Arc::new(bytes)), 0, layout)
    }

    fn layout(element: Element, shape: &[usize]) -> Layout {
        Layout::row_major(Path::new("a.bin"), element, shape.to_vec()).unwrap()
    }

    #[test]
    fn strides_and_byte_order_are_followed() {
        // Column-major 2 × 3 of big-endian u16: columns (0, 1), (2, 3), (4, 5).
        let bytes = (0u16..6).flat_map(u16::to_be_bytes).collect();
        let mut layout = layout(Element::U16, &[2, 3]);
        layout.strides = vec![1, 2];
        layout.endian = Endian::Big;
        let array = array(bytes, layout).unwrap();
        let mut row = [0.0; 3];
        array.read_row(1, &mut row);
        assert_eq!(row, [1.0, 3.0, 5.0]);
        assert!(array.view::<f32>().is_err());
    }

    #[test]
    fn elements_beyond_the_end_are_refused_before_any_is_read() {
        let short = array(vec![0; 23], layout(Element::F32, &[2, 3])).unwrap_err().to_string();
        assert_eq!(
            short,
            "a.bin: `x` length: expected at least 24 bytes for shape [2, 3] of f32, found 23 bytes"
        );
        let mut far = layout(Element::U8, &[2, 2]);
        far.strides = vec![usize::MAX, usize::MAX];
        assert!(array(vec![0; 99], far).unwrap_err().to_string().contains("strides that stay in memory"));
        let huge = Layout::row_major(Path::new("a"), Element::U8, vec![usize::MAX, 2, 0]);
        assert!(huge.unwrap_err().to_string().contains("fits in memory"));
    }

    #[test]
    fn labels_are_integers_in_range() {
        let bytes = [3i64, -1, 1 << 40].iter().flat_map(|v| v.to_le_bytes()).collect();
        let labels = array(bytes, layout(Element::I64, &[3])).unwrap();
        labels.expect_labels(3).unwrap();
        assert_eq!(labels.label(0).unwrap(), 3);
        for row in [1, 2] {
            assert!(labels.label(row).unwrap_err().to_string().contains("a label from 0"));
        }
        assert!(labels.expect_labels(4).is_err());
        assert!(array(vec![0; 12], layout(Element::F32, &[3])).unwrap().expect_labels(3).is_err());
    }
}
