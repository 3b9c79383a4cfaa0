//! The CUDA driver emulator and its compiler, ready to be opened.

#![allow(dead_code)] // each test program takes what it needs

use std::path::{Path, PathBuf};
use std::sync::Once;

use cuda_emulator::toolchain::{NvrtcVersion, nvrtc};
use flowprior::device::CudaOptions;
use libloading::{Library, Symbol};

/// Returns the emulator's library, which is built beside the tests.
fn driver() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.with_file_name("libcuda_emulator.so");
    assert!(path.is_file(), "{} is missing: it is built with the tests", path.display());
    path
}

/// Returns what opens the emulated card. Races and reads of bytes never written are errors.
pub fn options() -> CudaOptions {
    options_with(&[])
}

/// The same, and writes a line for each launch to `counters`.
pub fn counting(counters: &Path) -> CudaOptions {
    options_with(&[("counters", counters.to_str().unwrap())])
}

fn options_with(more: &[(&str, &str)]) -> CudaOptions {
    static SETTINGS: Once = Once::new();
    let driver = driver();
    SETTINGS.call_once(|| set(&driver, &[&[("findings", "fail"), ("threads", "1")], more].concat()));
    let compiler = nvrtc(NvrtcVersion::V13_0).unwrap_or_else(|e| panic!("{e}")).path().to_owned();
    let cache = driver.parent().map(|folder| folder.join("kernel-cache"));
    CudaOptions { ordinal: 0, driver: Some(driver), compiler: Some(compiler), cache, guard: false }
}

/// Sets options of the emulator before it starts.
fn set(driver: &PathBuf, options: &[(&str, &str)]) {
    type Set = unsafe extern "C" fn(*const std::ffi::c_char, *const std::ffi::c_char) -> u32;
    // SAFETY: the emulator's initialisers have no requirements; the function takes two strings that end with zero.
    unsafe {
        let library = Library::new(driver).unwrap();
        let set: Symbol<'_, Set> = library.get(b"cuEmulatorSetOption").unwrap();
        for (name, value) in options {
            let (name, value) =
                (std::ffi::CString::new(*name).unwrap(), std::ffi::CString::new(*value).unwrap());
            assert_eq!(set(name.as_ptr(), value.as_ptr()), 0, "{name:?}");
        }
        std::mem::forget(library);
    }
}
