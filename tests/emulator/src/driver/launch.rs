//! Launches: the limits that the driver checks before a kernel is queued.

use std::sync::Arc;

use super::abi::In;
use super::architecture::{Architecture, BLOCK_THREADS, CLUSTER_LARGEST, CLUSTER_PORTABLE};
use super::codes::{Code, Failure, Result};
use super::engine::Launch;
use super::module::Function;
use super::occupancy;
use super::state::State;

/// The mark of `extra`: the address of the parameter buffer follows.
const BUFFER_POINTER: u64 = 1;
/// The mark of `extra`: the address of its size follows.
const BUFFER_SIZE: u64 = 2;

/// What a program asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Blocks of a cluster; zeros: as the kernel says.
    pub cluster: [u32; 3],
    /// All blocks must run at the same time.
    pub cooperative: bool,
}

/// Checks a launch and copies its parameters.
pub fn prepare(
    state: &State,
    function: u64,
    request: &Request,
    params: In<In<u8>>,
    extra: In<u64>,
) -> Result<Arc<Launch>> {
    let function = state.functions.get(function)?;
    let device = state.settings.device;
    let refuse =
        |code: Code, why: String| code.because(format!("kernel `{}`: {why}", function.program.kernel.name));
    check_sizes(request).map_err(|why| refuse(Code::INVALID_VALUE, why))?;
    check_function(function, request).map_err(|(code, why)| refuse(code, why))?;
    let cluster = check_cluster(device, function, request).map_err(|(code, why)| refuse(code, why))?;
    if request.cooperative {
        check_cooperative(device, function, request)
            .map_err(|why| refuse(Code::COOPERATIVE_LAUNCH_TOO_LARGE, why))?;
    }
    let name = &function.program.kernel.name;
    let add_name = |f: Failure| f.code.because(format!("kernel `{name}`: {}", f.message));
    let launch = Launch {
        program: Arc::clone(&function.program),
        grid: request.grid,
        block: request.block,
        cluster,
        dynamic_shared: request.shared,
        params: gather(function, params, extra).map_err(add_name)?,
    };
    launch.check(&*state.engine()?).map_err(add_name)?;
    Ok(Arc::new(launch))
}

/// Checks against the limits of every device.
fn check_sizes(request: &Request) -> std::result::Result<(), String> {
    let Request { grid, block, .. } = *request;
    if grid.contains(&0) || block.contains(&0) {
        return Err(format!("grid {grid:?} and block {block:?}: a dimension is 0"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return Err(format!("grid {grid:?}: at most 2147483647, 65535, 65535"));
    }
    let threads = block.iter().map(|n| u128::from(*n)).product::<u128>();
    if block[0] > 1024 || block[1] > 1024 || block[2] > 64 || threads > BLOCK_THREADS.into() {
        return Err(format!("block {block:?}: at most 1024, 1024, 64, and {BLOCK_THREADS} threads"));
    }
    Ok(())
}

/// Checks against what the kernel declares and needs.
fn check_function(function: &Function, request: &Request) -> std::result::Result<(), (Code, String)> {
    let kernel = &function.program.kernel;
    let (block, declared) = (request.block, kernel.max_threads);
    let threads = block.iter().product::<u32>();
    let most: u32 = declared.iter().fold(1, |product, n| product.saturating_mul((*n).max(1)));
    if kernel.exact_threads && block != declared.map(|n| n.max(1)) {
        return Err((Code::INVALID_VALUE, format!("block {block:?}, but .reqntid {declared:?}")));
    }
    if declared[0] != 0 && threads > most {
        return Err((
            Code::INVALID_VALUE,
            format!("{threads} threads in a block, but .maxntid allows {most}"),
        ));
    }
    if !occupancy::registers_fit(function.registers, threads) {
        let why = format!(
            "{threads} threads of {} registers are more than a multiprocessor has",
            function.registers
        );
        return Err((Code::LAUNCH_OUT_OF_RESOURCES, why));
    }
    if request.shared > function.max_dynamic_shared {
        let why = format!(
            "{} bytes of dynamic shared memory; {} are allowed (above 48 KiB with the static {}, cuFuncSetAttribute \
             MAX_DYNAMIC_SHARED_SIZE_BYTES is needed first)",
            request.shared, function.max_dynamic_shared, kernel.shared_bytes
        );
        return Err((Code::INVALID_VALUE, why));
    }
    Ok(())
}

/// Checks the cluster and returns its size.
fn check_cluster(
    device: &Architecture,
    function: &Function,
    request: &Request,
) -> std::result::Result<[u32; 3], (Code, String)> {
    let declared = function.cluster();
    let cluster = match (request.cluster, declared) {
        ([0, 0, 0], [0, 0, 0]) => return Ok([1; 3]),
        ([0, 0, 0], declared) => declared,
        (asked, [0, 0, 0]) => asked,
        (asked, declared) if asked == declared => asked,
        (asked, declared) => {
            let why = format!("cluster {asked:?}, but the kernel is compiled for {declared:?}");
            return Err((Code::INVALID_VALUE, why));
        }
    };
    let blocks = cluster.iter().map(|n| u128::from(*n)).product::<u128>();
    if blocks == 0 || (0..3).any(|i| !request.grid[i].is_multiple_of(cluster[i])) {
        let why = format!("grid {:?} is not a multiple of the cluster {cluster:?}", request.grid);
        return Err((Code::INVALID_VALUE, why));
    }
    if blocks > 1 && !device.has_clusters() {
        return Err((
            Code::INVALID_VALUE,
            format!("a cluster of {blocks} blocks; {} has none", device.name()),
        ));
    }
    let most = if function.large_clusters { CLUSTER_LARGEST } else { CLUSTER_PORTABLE };
    if blocks > most.into() {
        let why = format!(
            "a cluster of {blocks} blocks; at most {CLUSTER_PORTABLE}, or {CLUSTER_LARGEST} with opt-in"
        );
        return Err((Code::INVALID_CLUSTER_SIZE, why));
    }
    Ok(cluster)
}

/// Checks that all blocks can run at the same time.
fn check_cooperative(
    device: &Architecture,
    function: &Function,
    request: &Request,
) -> std::result::Result<(), String> {
    let threads = request.block.iter().product();
    let each = occupancy::blocks(device, &function.need(), threads, request.shared.into());
    let fit = u64::from(each) * u64::from(device.multiprocessors);
    let blocks = request.grid.iter().map(|n| u128::from(*n)).product::<u128>();
    match blocks > fit.into() {
        true => {
            Err(format!("a cooperative launch of {blocks} blocks, of which {fit} can run at the same time"))
        }
        false => Ok(()),
    }
}

/// Copies the parameters into one buffer.
fn gather(function: &Function, params: In<In<u8>>, extra: In<u64>) -> Result<Vec<u8>> {
    let kernel = &function.program.kernel;
    let size = kernel.params.iter().map(|p| p.offset as usize + p.size as usize).max().unwrap_or(0);
    if !extra.is_null() {
        if !params.is_null() {
            return Err(Code::INVALID_VALUE.because("both kernelParams and extra are given"));
        }
        return from_extra(extra, size);
    }
    let mut buffer = vec![0; size];
    if params.is_null() && size > 0 {
        return Err(
            Code::INVALID_VALUE.because(format!("no parameters are given; it has {}", kernel.params.len()))
        );
    }
    for (i, param) in kernel.params.iter().enumerate() {
        let value = params.get_at(i)?;
        if value.is_null() {
            return Err(Code::INVALID_VALUE
                .because(format!("the pointer to parameter {i} (`{}`) is null", param.name)));
        }
        for byte in 0..param.size as usize {
            buffer[param.offset as usize + byte] = value.get_at(byte)?;
        }
    }
    Ok(buffer)
}

/// Takes the buffer that `extra` names.
fn from_extra(extra: In<u64>, size: usize) -> Result<Vec<u8>> {
    let (mut address, mut length, mut at) = (0, None, 0);
    while at < 8 {
        match extra.get_at(at)? {
            0 => break,
            BUFFER_POINTER => address = extra.get_at(at + 1)?,
            BUFFER_SIZE => length = Some(In::<usize>::at(extra.get_at(at + 1)?).get()?),
            other => {
                return Err(Code::INVALID_VALUE.because(format!("`extra` has the unknown mark {other:#x}")));
            }
        }
        at += 2;
    }
    match length {
        Some(length) if length >= size => In::<u8>::at(address).list(size),
        length => {
            let given = length.unwrap_or(0);
            Err(Code::INVALID_VALUE
                .because(format!("a parameter buffer of {given} bytes; the kernel takes {size}")))
        }
    }
}
