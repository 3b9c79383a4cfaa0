//! Runs kernels: warps, blocks, grids.
