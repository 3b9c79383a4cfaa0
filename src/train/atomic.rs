//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to a temporary file beside `path`, brings it to the disk, and renames it.
///
/// # Errors
/// `Error::Io`; a file that was there before is intact then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".tmp-{name}"));
    let mut file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the error that matters is the one of the write
    }
    written.map_err(Error::io(&temporary, "write"))?;
    fs::rename(&temporary, path).map_err(Error::io(path, "rename"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|d| d.sync_all()).map_err(Error::io(folder, "flush to disk"))
}
