//! Finds the CUDA driver and the run-time compiler, without any set-up of the shell.
//!
//! A library that was named explicitly is the only candidate. Otherwise the driver is looked for where the loader looks; the compiler
//! first in Python's packages (`nvidia-cuda-nvrtc`), which carry the version that they were installed for, then where the
//! loader looks. cudarc looks by name alone, so the driver is opened here first: the loader then finds the open one again
//! by the name inside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::device::survey::python_libraries;
use crate::error::{Error, Result};

/// Names under which the loader may know the driver.
const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// Names of the compiler, newest first.
const COMPILER: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Opens the driver, or the library at `explicit`. It stays open: kernels run in it until the process ends.
pub(super) fn open_driver(explicit: Option<&Path>) -> Result<()> {
    let candidates = explicit.map_or_else(|| DRIVER.map(PathBuf::from).to_vec(), |path| vec![path.into()]);
    let (library, _) = open("CUDA driver", "install the NVIDIA driver, or use `--device cpu`", candidates)?;
    std::mem::forget(library);
    Ok(())
}

/// Opens the run-time compiler, or the library at `explicit`, with what it needs.
pub(super) fn open_compiler(explicit: Option<&Path>) -> Result<(Library, PathBuf)> {
    let candidates = match explicit {
        Some(path) => vec![path.into()],
        None => {
            let mut list: Vec<PathBuf> = COMPILER.iter().flat_map(|name| python_libraries(name)).collect();
            list.extend(COMPILER.map(PathBuf::from));
            list
        }
    };
    let (library, path) =
        open("run-time compiler NVRTC", "`pip install nvidia-cuda-nvrtc` brings it", candidates)?;
    open_builtins(&path);
    Ok((library, path))
}

/// Opens the file that NVRTC opens by name when it first compiles: found beside it, whatever the loader's path is.
fn open_builtins(compiler: &Path) {
    let Some(Ok(entries)) = compiler.parent().map(std::fs::read_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("libnvrtc-builtins.so") {
            // SAFETY: the library's initialisers have no requirements. Should it fail, NVRTC says so itself.
            if let Ok(library) = unsafe { Library::new(entry.path()) } {
                std::mem::forget(library);
            }
        }
    }
}

fn open(what: &str, advice: &str, candidates: Vec<PathBuf>) -> Result<(Library, PathBuf)> {
    let mut tried = String::new();
    for path in candidates {
        // SAFETY: the initialisers of CUDA's libraries have no requirements.
        match unsafe { Library::new(&path) } {
            Ok(library) => return Ok((library, path)),
            Err(error) => {
                let comma = if tried.is_empty() { "" } else { ", " };
                let _ = write!(tried, "{comma}{} ({error})", path.display());
            }
        }
    }
    Err(Error::Device(format!("the {what} cannot be opened: {advice}; tried {tried}")))
}
