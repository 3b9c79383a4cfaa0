//! Launches.

use crate::driver::abi::{Handle, In, LaunchAttribute, LaunchConfig};
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::launch::{Request, prepare};
use crate::driver::queue;
use crate::driver::session::in_context;
use crate::driver::work::Work;

fn launch(
    function: Handle,
    request: &Request,
    stream: Handle,
    params: In<In<u8>>,
    extra: In<u64>,
) -> Result<()> {
    let (state, context) = in_context()?;
    let prepared = prepare(&state, function, request, params, extra)?;
    drop(queue::submit(state, context, stream, Work::Kernel(prepared))?);
    Ok(())
}

/// Reads the attributes of a launch.
pub(super) fn request(config: &LaunchConfig) -> Result<Request> {
    let mut request =
        Request { grid: config.grid, block: config.block, shared: config.shared, ..Request::default() };
    for i in 0..config.count as usize {
        let LaunchAttribute { id, value, .. } = config.attributes.get_at(i)?;
        match id {
            2 => request.cooperative = value[0] != 0,
            4 => {
                if value[..3].contains(&0) {
                    return Err(Code::INVALID_VALUE.because(format!("cluster {:?}", &value[..3])));
                }
                request.cluster = [value[0], value[1], value[2]];
            }
            // Hints: access policy, synchronisation policy, cluster scheduling, overlap with the kernel before (which ends
            // first here), priority, memory domains, preferred cluster, carveout.
            0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 11 | 14 | 16 => {}
            7 | 12 | 13 => return Err(Code::NOT_SUPPORTED.because(format!("launch attribute {id}"))),
            _ => return Err(Code::INVALID_VALUE.because(format!("no launch attribute {id}"))),
        }
    }
    Ok(request)
}

entries! {
    /// Launches a kernel.
    fn cuLaunchKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, params: In<In<u8>>, extra: In<u64>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(function, &Request { grid, block, shared, ..Request::default() }, stream, params, extra)
    }

    /// Launches a kernel with attributes.
    fn cuLaunchKernelEx(config: In<LaunchConfig>, function: Handle, params: In<In<u8>>, extra: In<u64>) {
        let config = config.get()?;
        launch(function, &request(&config)?, config.stream, params, extra)
    }

    /// Launches a kernel of which all blocks run at the same time.
    fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, params: In<In<u8>>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let request = Request { grid, block, shared, cooperative: true, ..Request::default() };
        launch(function, &request, stream, params, In::at(0))
    }
}
