//! Who calls: the lock on the state, what must hold before a call does anything, and the stack of current contexts that
//! each host thread has.

use std::cell::RefCell;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::codes::{Code, Failure, Result};
use super::journal;
use super::settings::Settings;
use super::state::State;

/// The lock on the state.
pub type Guard = MutexGuard<'static, State>;

/// The driver of this process.
pub struct Driver {
    state: Mutex<State>,
    /// Something was done, or is to be done.
    pub changed: Condvar,
}

thread_local! {
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Returns the driver; the first call reads the environment.
pub fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let settings = Settings::from_environment().unwrap_or_else(|failure| {
            // No result code can carry this; a wrong setting must not pass unseen, and cuInit will fail.
            journal::tell(&failure.message);
            Settings { memory: 0, ..Settings::default() }
        });
        Driver { state: Mutex::new(State::new(settings)), changed: Condvar::new() }
    })
}

/// Locks the state, whether initialised or not.
pub fn lock() -> Guard {
    driver().state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits until another thread has changed the state.
pub fn wait(guard: Guard) -> Guard {
    driver().changed.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits until another thread has changed the state, but not for long.
pub fn wait_briefly(guard: Guard) -> Guard {
    let waited = driver().changed.wait_timeout(guard, Duration::from_millis(100));
    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
}

/// Locks the state for a call that needs `cuInit` only.
pub fn initialised() -> Result<Guard> {
    let state = lock();
    state.engine()?;
    Ok(state)
}

/// Locks the state for a call that needs a current context; after a fault, it returns the fault's error.
pub fn in_context() -> Result<(Guard, u64)> {
    let state = initialised()?;
    let context =
        current().ok_or_else(|| Code::INVALID_CONTEXT.because("no context is current in this thread"))?;
    if state.contexts.get(context).is_err() {
        return Err(Code::CONTEXT_IS_DESTROYED.because("the current context was destroyed"));
    }
    check_sticky(&state)?;
    Ok((state, context))
}

/// Returns the error of an earlier fault, without a second line about it.
pub fn check_sticky(state: &State) -> Result<()> {
    state.sticky.map_or(Ok(()), |code| Err(Failure::from(code)))
}

/// Returns the current context of this thread.
pub fn current() -> Option<u64> {
    CURRENT.with_borrow(|stack| stack.last().copied())
}

/// Makes a context current: replaces the top of the stack; `None` takes it away.
pub fn set_current(context: Option<u64>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
}

/// Pushes a context.
pub fn push(context: u64) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Pops a context.
pub fn pop() -> Option<u64> {
    CURRENT.with_borrow_mut(Vec::pop)
}

/// Empties the stack.
pub fn clear_stack() {
    CURRENT.with_borrow_mut(Vec::clear);
}
