//! Runs kernels: warps, blocks, grids.
//!
//! ```text
//! module    a loaded module: variables have addresses;  program   a kernel, decoded;  check   what it may rely on
//! grid      blocks over host threads;  block   warps in turns;  warp   groups of threads that are at one instruction
//! step      one instruction after the other;  engine   what a host thread needs for that
//! access    loads and stores, with all checks;  row   those of a whole warp side by side;  window, address   the bytes
//!           behind them;  atomic
//! barrier   barriers of a block;  collective   shuffles, votes;  mbarrier;  copies   asynchronous copies
//! races     what the race detector is told
//! matrix    ldmatrix, stmatrix;  mma   matrix products;  special   special registers
//! ```
//!
//! Asynchronous operations are entries of a queue until they are done, apart from the instruction that issued them, so
//! that other kinds (bulk copies, warpgroup products) are further entries with conditions of their own.

mod access;
mod address;
mod atomic;
mod barrier;
mod block;
mod check;
mod collective;
mod config;
mod copies;
mod engine;
mod findings;
mod grid;
mod launch;
mod local;
mod matrix;
mod mbarrier;
mod mma;
mod module;
mod program;
mod races;
mod random;
mod row;
mod special;
mod step;
mod sync;
mod tensor;
mod warp;
mod window;

pub use config::{Checks, Config, Limits, Schedule, Tensor};
pub use grid::run;
pub use launch::{Launch, LaunchError, Outcome};
pub use module::{LoadError, LoadedModule, load};
pub use program::Program;
