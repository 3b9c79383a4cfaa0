//! The CUDA driver emulator and its compiler, ready to be opened.

#![allow(dead_code)] // each test program takes what it needs

use std::path::{Path, PathBuf};
use std::process::Command;
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

/// Returns the compiler: NVRTC 13.0, or 12.9 where `FLOWPRIOR_TEST_NVRTC=12` asks for it.
///
/// The card is `CUDA_EMULATOR_DEVICE`, its schedule `CUDA_EMULATOR_SEED`; see the emulator's README.
fn compiler() -> PathBuf {
    let version = match std::env::var("FLOWPRIOR_TEST_NVRTC").as_deref() {
        Ok("12") => NvrtcVersion::V12_9,
        Ok(other) if other != "13" => panic!("FLOWPRIOR_TEST_NVRTC is 12 or 13, not {other}"),
        _ => NvrtcVersion::V13_0,
    };
    nvrtc(version).unwrap_or_else(|e| panic!("{e}")).path().to_owned()
}

/// Returns what opens the emulated card. Races and reads of bytes never written are errors.
pub fn options() -> CudaOptions {
    options_with(&[])
}

/// The same, and writes a line for each launch to `counters`.
pub fn counting(counters: &Path) -> CudaOptions {
    options_with(&[("counters", counters.to_str().unwrap())])
}

/// The same, with more settings of the emulator.
pub fn options_with(more: &[(&str, &str)]) -> CudaOptions {
    static SETTINGS: Once = Once::new();
    let driver = driver();
    SETTINGS.call_once(|| set(&driver, &[&[("findings", "fail"), ("threads", "1")], more].concat()));
    let compiler = compiler();
    let cache = driver.parent().map(|folder| folder.join("kernel-cache"));
    CudaOptions { ordinal: 0, driver: Some(driver), compiler: Some(compiler), cache, ..Default::default() }
}

/// Lets a process that is about to start use the emulated card. Races and reads of bytes never written end it.
pub fn lend(command: &mut Command) {
    let driver = driver();
    command.env("FLOWPRIOR_KERNEL_CACHE", driver.with_file_name("kernel-cache"));
    command.env("FLOWPRIOR_CUDA_DRIVER", driver).env("FLOWPRIOR_NVRTC", compiler());
    command.env("CUDA_EMULATOR_FINDINGS", "fail").env("CUDA_EMULATOR_THREADS", "1");
}

/// Makes the emulated card what this process opens by itself, without checks, with a line for each launch in `counters`.
/// To be called first, while there is one thread.
pub fn lend_here(counters: &Path) {
    let mut command = Command::new("true");
    lend(&mut command);
    for (name, value) in command.get_envs() {
        // SAFETY: nobody else reads the environment, as no other thread runs yet.
        unsafe { std::env::set_var(name, value.unwrap_or_default()) };
    }
    set(&driver(), &[("checks", "none"), ("threads", "0"), ("counters", counters.to_str().unwrap())]);
}

/// Returns how often this process has called a function of the driver.
pub fn calls(function: &str) -> u64 {
    type CallCount = unsafe extern "C" fn(*const std::ffi::c_char, *mut u64) -> u32;
    let (name, mut count) = (std::ffi::CString::new(function).unwrap(), 0);
    // SAFETY: the emulator's initialisers have no requirements; the function takes a string that ends with zero and a live number.
    unsafe {
        let library = Library::new(driver()).unwrap();
        let call_count: Symbol<'_, CallCount> = library.get(b"cuEmulatorCallCount").unwrap();
        assert_eq!(call_count(name.as_ptr(), &mut count), 0, "{function}");
        std::mem::forget(library);
    }
    count
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
