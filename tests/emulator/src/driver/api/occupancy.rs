//! Occupancy.

use std::ffi::c_int;

use crate::driver::abi::{Handle, In, LaunchConfig, Out};
use crate::driver::architecture::{CLUSTER_LARGEST, CLUSTER_PORTABLE};
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::occupancy;
use crate::driver::session::in_context;

use super::launch::request;

/// The shared memory that a block of some threads needs.
type SharedOfBlock = Option<extern "C" fn(c_int) -> usize>;

fn threads_of(block: c_int) -> Result<u32> {
    let threads = u32::try_from(block).ok().filter(|threads| *threads > 0);
    threads.ok_or_else(|| Code::INVALID_VALUE.because(format!("a block of {block} threads")))
}

fn check_flags(flags: u32) -> Result<()> {
    match flags > 1 {
        true => Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}"))),
        false => Ok(()),
    }
}

fn active_blocks(count: Out<c_int>, function: Handle, block: c_int, shared: usize) -> Result<()> {
    let (state, _) = in_context()?;
    let need = state.functions.get(function)?.need();
    count.set(occupancy::blocks(state.settings.device, &need, threads_of(block)?, shared as u64) as c_int)
}

fn best_block(
    grid: Out<c_int>,
    block: Out<c_int>,
    function: Handle,
    shared_of: SharedOfBlock,
    shared: usize,
    limit: c_int,
) -> Result<()> {
    let (device, need) = {
        let (state, _) = in_context()?; // not held while the program's function is called
        (state.settings.device, state.functions.get(function)?.need())
    };
    grid.check("minGridSize")?;
    block.check("blockSize")?;
    let limit = u32::try_from(limit)
        .map_err(|_| Code::INVALID_VALUE.because(format!("a limit of {limit} threads")))?;
    let shared = |threads: u32| match shared_of {
        Some(function) => function(threads as c_int) as u64,
        None => shared as u64,
    };
    let (blocks, threads) = occupancy::best_block(device, &need, limit, shared);
    grid.set(blocks as c_int)?;
    block.set(threads as c_int)
}

entries! {
    /// Returns the blocks that a multiprocessor holds.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: Out<c_int>, function: Handle, block: c_int, shared: usize) {
        active_blocks(count, function, block, shared)
    }

    /// Returns the blocks that a multiprocessor holds.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<c_int>, function: Handle, block: c_int, shared: usize, flags: u32,
    ) {
        check_flags(flags)?;
        active_blocks(count, function, block, shared)
    }

    /// Returns the block size that fills a multiprocessor best.
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, shared_of: SharedOfBlock, shared: usize, limit: c_int,
    ) {
        best_block(grid, block, function, shared_of, shared, limit)
    }

    /// Returns the block size that fills a multiprocessor best.
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, shared_of: SharedOfBlock, shared: usize, limit: c_int,
        flags: u32,
    ) {
        check_flags(flags)?;
        best_block(grid, block, function, shared_of, shared, limit)
    }

    /// Returns the dynamic shared memory that a number of blocks can have.
    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: Handle, blocks: c_int, block: c_int) {
        let (state, _) = in_context()?;
        let need = state.functions.get(function)?.need();
        let count = u32::try_from(blocks).unwrap_or(0);
        let found = occupancy::dynamic_shared(state.settings.device, &need, threads_of(block)?, count);
        let what = || Code::INVALID_VALUE.because(format!("{blocks} blocks do not fit on a multiprocessor"));
        bytes.set(found.ok_or_else(what)? as usize)
    }

    /// Returns the clusters that the device holds.
    fn cuOccupancyMaxActiveClusters(count: Out<c_int>, function: Handle, config: In<LaunchConfig>) {
        let (state, _) = in_context()?;
        let (device, function, config) = (state.settings.device, state.functions.get(function)?, config.get()?);
        let request = request(&config)?;
        let cluster = if request.cluster == [0; 3] { function.cluster() } else { request.cluster };
        let blocks = cluster.iter().map(|n| u64::from((*n).max(1))).fold(1, u64::saturating_mul);
        if !device.has_clusters() {
            return Err(Code::NOT_SUPPORTED.because(format!("{} has no clusters", device.name())));
        }
        let most = if function.large_clusters { CLUSTER_LARGEST } else { CLUSTER_PORTABLE };
        if blocks > most.into() {
            return Err(Code::INVALID_CLUSTER_SIZE.because(format!("a cluster of {blocks} blocks")));
        }
        let threads = request.block.iter().fold(1, |product: u32, n| product.saturating_mul(*n));
        let each = occupancy::blocks(device, &function.need(), threads, request.shared.into());
        // A cluster lies in one group of multiprocessors; groups of 16 are the usual ones.
        let group = u64::from(each) * 16 / blocks;
        count.set((group * u64::from(device.multiprocessors / 16)) as c_int)
    }

    /// Returns the largest cluster that can run.
    fn cuOccupancyMaxPotentialClusterSize(size: Out<c_int>, function: Handle, config: In<LaunchConfig>) {
        let (state, _) = in_context()?;
        let (device, function, config) = (state.settings.device, state.functions.get(function)?, config.get()?);
        if !device.has_clusters() {
            return Err(Code::NOT_SUPPORTED.because(format!("{} has no clusters", device.name())));
        }
        let threads = config.block.iter().fold(1, |product: u32, n| product.saturating_mul(*n));
        let each = occupancy::blocks(device, &function.need(), threads, config.shared.into());
        let most = if function.large_clusters { CLUSTER_LARGEST } else { CLUSTER_PORTABLE };
        size.set(if each == 0 { 0 } else { most as c_int })
    }
}
