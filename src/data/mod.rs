//! Data: toy distributions, the order of an epoch, and the loader.

pub mod density;
pub mod loader;
pub mod permutation;
pub mod source;
pub mod toy;

pub use density::Density;
pub use loader::{Batch, Loader};
pub use permutation::Permutation;
pub use source::{Memory, Source};
pub use toy::{Mixture, Toy};
