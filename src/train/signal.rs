//! Signals that ask a run to stop: the step is finished, a checkpoint saved, and the program leaves with code 75.
//!
//! SIGTERM and SIGUSR1 come from schedulers, SIGINT from a keyboard. A second SIGINT ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::error::{Error, Result};

/// The exit code of a program that a second SIGINT ends: 128 + 2, as shells do.
const INTERRUPTED: i32 = 130;

/// Remembers that a signal asked the run to stop.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Starts to listen to SIGTERM, SIGINT and SIGUSR1.
    ///
    /// # Errors
    /// `Error::Device` when the system refuses a handler.
    pub fn listen() -> Result<Self> {
        let stop = Self::default();
        let interrupted = Arc::new(AtomicBool::new(false));
        // Handlers run in the order of their registration: at the first SIGINT `interrupted` is still false.
        let refused = |e| Error::Device(format!("cannot listen to signals: {e}"));
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&interrupted))
            .map_err(refused)?;
        flag::register(SIGINT, interrupted).map_err(refused)?;
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            flag::register(signal, Arc::clone(&stop.0)).map_err(refused)?;
        }
        Ok(stop)
    }

    /// Returns whether a signal came: ask once after each step.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks the run to stop, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Runs `signals_child` in a process of its own, which raises `signals` at itself.
    fn child(signals: &str) -> std::io::Result<std::process::Output> {
        Command::new(std::env::current_exe()?)
            .args(["--exact", "train::signal::tests::signals_child", "--ignored", "--nocapture"])
            .env("FLOWPRIOR_TEST_SIGNALS", signals)
            .output()
    }

    #[test]
    #[ignore = "a helper of the tests below, in a process of its own"]
    fn signals_child() -> Result<(), Box<dyn std::error::Error>> {
        let stop = StopFlag::listen()?;
        assert!(!stop.requested());
        for signal in std::env::var("FLOWPRIOR_TEST_SIGNALS")?.split(',') {
            signal_hook::low_level::raise(signal.parse()?)?;
            assert!(stop.requested());
        }
        Ok(())
    }

    #[test]
    fn each_signal_sets_the_flag_and_lets_the_step_finish() -> std::io::Result<()> {
        for signals in [SIGTERM, SIGINT, SIGUSR1].map(|s| s.to_string()) {
            let output = child(&signals)?;
            assert_eq!(output.status.code(), Some(0), "{signals}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the helper did not run");
        }
        assert_eq!(child(&format!("{SIGTERM},{SIGINT},{SIGTERM}"))?.status.code(), Some(0));
        Ok(())
    }

    #[test]
    fn a_second_interrupt_ends_the_program_at_once() -> std::io::Result<()> {
        assert_eq!(child(&format!("{SIGINT},{SIGINT}"))?.status.code(), Some(130));
        Ok(())
    }
}
