//! The outermost layer of every C function: no panic crosses it, and every failure is told once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use super::codes::{Code, Result};
use super::journal;

thread_local! {
    /// A host function that the driver calls must not call the driver.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// How often each function was called.
static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Returns how often a function was called; 0 for one that does not exist.
pub fn calls(function: &str) -> u64 {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).get(function).copied().unwrap_or(0)
}

/// Runs the body of a C function and returns its `CUresult`.
pub fn guard(function: &'static str, body: impl FnOnce() -> Result<()>) -> u32 {
    *CALLS.lock().unwrap_or_else(PoisonError::into_inner).entry(function).or_default() += 1;
    if IN_HOST_FUNCTION.get() {
        journal::tell(&format!(
            "{function}: {}: called from a host function of a stream",
            Code::NOT_PERMITTED
        ));
        return Code::NOT_PERMITTED.0;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => {
            if !failure.message.is_empty() {
                journal::tell(&format!("{function}: {}: {}", failure.code, failure.message));
            }
            failure.code.0
        }
        Err(_) => {
            journal::tell(&format!("{function}: {}: a defect of the emulator", Code::UNKNOWN));
            Code::UNKNOWN.0
        }
    }
}

/// Marks this thread as inside of a host function while `call` runs.
pub fn host_function(call: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    call();
    IN_HOST_FUNCTION.set(false);
}

/// Defines C functions with their real names, and `symbols()`, the list of them for `cuGetProcAddress`.
macro_rules! entries {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub extern "C" fn $name($($arg: $ty),*) -> u32 {
                $crate::driver::entry::guard(stringify!($name), || $body)
            }
        )*

        /// Lists the functions of this file: name and address.
        pub(crate) fn symbols() -> Vec<(&'static str, usize)> {
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}
pub(crate) use entries;
