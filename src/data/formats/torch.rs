//! Tensors in an archive that `torch.save` wrote. The pickle is read, never run: see [`pickle`].

use crate::data::array::{Array, Endian, Layout};
use crate::data::formats::zip::Archive;
use crate::data::formats::{pick, pickle};
use crate::error::{Error, Result};

/// Opens tensor `key`, or the only one with rows and columns. `pickle` is the archive's member `…/data.pkl`.
///
/// # Errors
/// A pickle that holds more than tensors, a view outside its storage, a storage of another length, big-endian data.
pub fn read(archive: &mut Archive<'_>, pickle: &str, key: Option<&str>) -> Result<Array> {
    let path = archive.path();
    let folder = pickle.strip_suffix("data.pkl").unwrap_or("");
    check_byte_order(archive, &format!("{folder}byteorder"))?;
    let (bytes, range) = archive.member(pickle)?;
    let tensors = pickle::tensors(&bytes.get()[range])
        .map_err(|(expected, found)| Error::data(path, format!("`{pickle}`"), expected, found))?;
    let names: Vec<(&str, usize)> = tensors.iter().map(|(n, t)| (n.as_str(), t.shape.len())).collect();
    let name = pick(path, &names, key)?;
    let Some((_, info)) = tensors.iter().find(|(n, _)| n == name) else {
        return Err(Error::data(path, "tensors", format!("`{name}`"), "nothing"));
    };
    let (bytes, range) = archive.member(&format!("{folder}data/{}", info.storage))?;
    let size = info.element.bytes();
    if info.elements.checked_mul(size) != Some(range.len()) {
        let expected = format!("{} elements of {size} bytes", info.elements);
        return Err(Error::data(
            path,
            format!("`{name}` storage"),
            expected,
            format!("{} bytes", range.len()),
        ));
    }
    let mut layout = Layout::row_major(path, info.element, info.shape.clone())?;
    layout.strides.clone_from(&info.strides);
    layout.endian = Endian::Little;
    check_view(&layout, info.offset, info.elements).ok_or_else(|| {
        Error::data(path, format!("`{name}` strides"), "a view inside its storage", "one beyond it")
    })?;
    Array::new(path, name, bytes, range.start + info.offset * size, layout)
}

/// Checks that the last element of the view is one of the storage's.
fn check_view(layout: &Layout, offset: usize, elements: usize) -> Option<()> {
    if layout.shape.contains(&0) {
        return (offset <= elements).then_some(());
    }
    let dims = layout.shape.iter().zip(&layout.strides);
    let last = dims
        .into_iter()
        .try_fold(offset, |last, (n, stride)| (n - 1).checked_mul(*stride)?.checked_add(last))?;
    (last < elements).then_some(())
}

fn check_byte_order(archive: &mut Archive<'_>, name: &str) -> Result<()> {
    if !archive.names().iter().any(|n| n == name) {
        return Ok(()); // written before torch 2.0, which recorded it first
    }
    let (bytes, range) = archive.member(name)?;
    match &bytes.get()[range] {
        b"little" => Ok(()),
        other => {
            let found: String = String::from_utf8_lossy(other).chars().take(20).collect();
            Err(Error::data(archive.path(), format!("`{name}`"), "little", found))
        }
    }
}
