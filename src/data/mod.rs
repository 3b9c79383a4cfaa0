//! Data: stored features, toy distributions, the order of an epoch, and the loader.
//!
//! A [`Source`] makes batch k a pure function of (seed, k); a [`Loader`] only prepares it early. Stored features are a
//! [`Dataset`]: mapped shards that [`import`](import::import) makes from other people's files.

pub mod array;
pub mod builtin;
mod class_map;
pub mod dataset;
pub mod density;
pub mod formats;
pub mod import;
pub mod loader;
pub mod manifest;
pub mod map;
pub mod pca;
pub mod permutation;
pub mod projection;
pub mod source;
pub mod stats;
pub mod toy;
pub mod writer;

pub use dataset::Dataset;
pub use density::Density;
pub use loader::{Batch, Loader};
pub use permutation::Permutation;
pub use projection::Projection;
pub use source::{Memory, Source};
pub use stats::Stats;
pub use toy::{Mixture, Toy};
pub use writer::{DatasetWriter, Spec};
