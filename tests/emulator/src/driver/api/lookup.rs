//! Names: of errors, and of the functions themselves.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::OnceLock;

use crate::driver::abi::{Out, Text};
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;

fn address_of(name: &str) -> Option<usize> {
    static SYMBOLS: OnceLock<HashMap<&'static str, usize>> = OnceLock::new();
    let symbols = SYMBOLS.get_or_init(|| super::symbols().into_iter().collect());
    // A program asks for `cuMemAlloc` and gets the newest version that there is.
    let versions = ["_v4", "_v3", "_v2", ""].into_iter();
    versions.filter_map(|version| symbols.get(format!("{name}{version}").as_str())).next().copied()
}

fn find(symbol: Text, function: Out<usize>, status: Out<u32>) -> Result<()> {
    function.check("pfn")?;
    let name = symbol.get()?;
    match address_of(&name) {
        Some(address) => {
            status.set_optional(0);
            function.set(address)
        }
        None => {
            status.set_optional(1);
            function.set(0)?;
            Err(Code::NOT_FOUND.because(format!("the emulator has no `{name}`")))
        }
    }
}

entries! {
    /// Returns the name of an error.
    fn cuGetErrorName(error: u32, name: Out<*const u8>) {
        let found = Code(error).name();
        name.set(found.map_or(std::ptr::null(), str::as_ptr))?;
        found.map(|_| ()).ok_or_else(|| Code::INVALID_VALUE.because(format!("no error {error}")))
    }

    /// Returns the description of an error.
    fn cuGetErrorString(error: u32, text: Out<*const u8>) {
        let found = Code(error).text();
        text.set(found.map_or(std::ptr::null(), str::as_ptr))?;
        found.map(|_| ()).ok_or_else(|| Code::INVALID_VALUE.because(format!("no error {error}")))
    }

    /// Returns the address of a function of the driver.
    fn cuGetProcAddress(symbol: Text, function: Out<usize>, _version: c_int, _flags: u64) {
        find(symbol, function, Out::nothing())
    }

    /// Returns the address of a function of the driver.
    fn cuGetProcAddress_v2(symbol: Text, function: Out<usize>, _version: c_int, _flags: u64, status: Out<u32>) {
        find(symbol, function, status)
    }
}
