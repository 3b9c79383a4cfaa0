//! What the tests of operations share: cases and their runner, devices, the oracle, and plain f64 helpers.

pub mod case;
pub mod devices;
pub mod emulator;
pub mod modulation;
pub mod noise;
pub mod oracle;
pub mod random;
pub mod values;

mod tests;

pub use case::{Backward, Case, check_all, no_backward};
pub use modulation::Map;
pub use oracle::{Answer, added, answer, fresh};
pub use values::{Inputs, Tensors, Values};
