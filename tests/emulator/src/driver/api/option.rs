//! Functions that only the emulator has, for programs that open it by its path: options and findings.

use crate::driver::abi::{Out, Text, write_text};
use crate::driver::codes::Code;
use crate::driver::entry::{calls, entries};
use crate::driver::host;
use crate::driver::journal;
use crate::driver::session::{clear_stack, lock};
use crate::driver::settings::Settings;
use crate::driver::state::State;

entries! {
    /// Sets an option before `cuInit`: the names of the environment variables, in small letters without `CUDA_EMULATOR_`.
    fn cuEmulatorSetOption(name: Text, value: Text) {
        let mut state = lock();
        if state.engine.is_some() {
            return Err(Code::ILLEGAL_STATE.because("options are set before cuInit, or after cuEmulatorReset"));
        }
        let (name, value) = (name.get()?, value.get()?);
        let set = state.settings.set(&name, &value);
        set.map_err(|failure| failure.code.because(format!("option `{name}`: {}", failure.message)))
    }

    /// Forgets everything, queued work too: as if the process had just begun. Options are as in the environment again, a
    /// program's own handles and pointers are dead, and no other thread may use the driver meanwhile.
    fn cuEmulatorReset() {
        let settings = Settings::from_environment()?;
        let mut state = lock();
        if state.running || state.streams.iter().any(|(_, stream)| stream.busy) {
            return Err(Code::ILLEGAL_STATE.because("work runs just now, or a host function"));
        }
        host::release_all(&mut state);
        let worker = state.worker;
        *state = State::new(settings);
        state.worker = worker;
        clear_stack();
        journal::clear_findings();
        Ok(())
    }

    /// Returns how often a function of the driver was called, 0 for one that there is not.
    fn cuEmulatorCallCount(function: Text, count: Out<u64>) {
        count.set(calls(&function.get()?))
    }

    /// Returns the number of findings of all launches so far.
    fn cuEmulatorFindingCount(count: Out<u64>) {
        count.set(journal::finding_count())
    }

    /// Writes a finding as JSON into a buffer; 500 if there are not so many.
    fn cuEmulatorFinding(index: usize, buffer: Out<u8>, size: usize) {
        buffer.check("buffer")?;
        let found = journal::finding_at(index).ok_or(Code::NOT_FOUND)?;
        let text = serde_json::to_string(&found).map_err(|error| Code::UNKNOWN.because(error.to_string()))?;
        write_text(buffer, size, &text);
        Ok(())
    }
}
