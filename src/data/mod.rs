//! Data: stored features, toy distributions, the order of an epoch, and the loader.

pub mod array;
pub mod density;
pub mod formats;
pub mod loader;
pub mod map;
pub mod permutation;
pub mod source;
pub mod stats;
pub mod toy;

pub use density::Density;
pub use loader::{Batch, Loader};
pub use permutation::Permutation;
pub use source::{Memory, Source};
pub use stats::Stats;
pub use toy::{Mixture, Toy};
