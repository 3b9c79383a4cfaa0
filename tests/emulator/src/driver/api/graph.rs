//! Graphs.

use std::sync::Arc;

use crate::driver::abi::{Copy3d, FillNode, Handle, HostNode, In, KernelNode, Out, UpdateResult};
use crate::driver::codes::{Code, Result};
use crate::driver::copy::{Copy, Fill, Place, Side};
use crate::driver::entry::entries;
use crate::driver::graph::{self, Graph, add_node, graph_of};
use crate::driver::launch::{Request, prepare};
use crate::driver::queue;
use crate::driver::session::in_context;
use crate::driver::state::State;
use crate::driver::work::{HostCall, Work};

use super::copy::{check, place_of};
use super::fill::checked;

/// Flags of instantiation: free memory at a launch, upload, launch from the device, node priorities.
const INSTANTIATE_FLAGS: u64 = 0xF;
/// Memory of the graph that is still there is freed at a launch.
const AUTO_FREE: u64 = 1;
/// Launching from a kernel, which must not have such memory.
const DEVICE_LAUNCH: u64 = 4;

fn instantiate(exec: Out<Handle>, graph: Handle, flags: u64) -> Result<()> {
    let (mut state, context) = in_context()?;
    exec.check("phGraphExec")?;
    if flags & !INSTANTIATE_FLAGS != 0 || flags & (AUTO_FREE | DEVICE_LAUNCH) == AUTO_FREE | DEVICE_LAUNCH {
        return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x}")));
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(Code::NOT_SUPPORTED.because("graphs that kernels launch"));
    }
    let made = state.graphs.get(graph)?.instantiate(context)?;
    let handle = state.handle();
    state.execs.insert(handle, made);
    exec.set(handle)
}

fn kernel(state: &State, parameters: In<KernelNode>) -> Result<Work> {
    let p = parameters.get()?;
    let function = if p.function == 0 { p.kernel } else { p.function };
    let request = Request { grid: p.grid, block: p.block, shared: p.shared, ..Request::default() };
    Ok(Work::Kernel(prepare(state, function, &request, p.params, p.extra)?))
}

fn fill(state: &State, parameters: In<FillNode>) -> Result<Work> {
    let p = parameters.get()?;
    let pattern = match p.element {
        1 | 2 | 4 => p.value.to_le_bytes()[..p.element as usize].to_vec(),
        other => return Err(Code::INVALID_VALUE.because(format!("elements of {other} bytes"))),
    };
    let pitch = if p.height > 1 { p.pitch } else { 0 };
    let fill = Fill { address: p.address, pattern, width: p.width, height: p.height, pitch };
    checked(state, fill).map(Work::Fill)
}

fn copy(state: &State, parameters: In<Copy3d>) -> Result<Work> {
    let p = parameters.get()?;
    let side =
        |kind: u32, host: u64, device: u64, pitch: usize, rows: usize, at: [usize; 3]| -> Result<Side> {
            let large = || Code::INVALID_VALUE.because("an offset past the end of memory");
            let plane = pitch.checked_mul(if rows == 0 { p.height } else { rows }).ok_or_else(large)?;
            let offset = at[2].checked_mul(plane).zip(at[1].checked_mul(pitch));
            let offset =
                offset.and_then(|(z, y)| z.checked_add(y)?.checked_add(at[0])).ok_or_else(large)? as u64;
            let moved = |address: u64| address.checked_add(offset).ok_or_else(large);
            let place = match kind {
                1 => Place::Host(moved(host)?),
                2 => Place::Device(moved(device)?),
                4 => place_of(state, moved(device)?)?,
                _ => return Err(Code::NOT_SUPPORTED.because(format!("memory type {kind} in a copy node"))),
            };
            Ok(Side { place, pitch, plane })
        };
    let from =
        side(p.src_type, p.src_host, p.src_device, p.src_pitch, p.src_height, [p.src_x, p.src_y, p.src_z])?;
    let to =
        side(p.dst_type, p.dst_host, p.dst_device, p.dst_pitch, p.dst_height, [p.dst_x, p.dst_y, p.dst_z])?;
    let copy = Copy { to, from, width: p.width, height: p.height, depth: p.depth };
    check(state, &copy)?;
    Ok(Work::Copy(copy))
}

fn host(parameters: In<HostNode>) -> Result<Work> {
    let HostNode { function, data } = parameters.get()?;
    let function = function.ok_or_else(|| Code::INVALID_VALUE.because("the function is null"))?;
    Ok(Work::Host(HostCall { function, data }))
}

/// Adds a node that `work` makes.
fn add(
    node: Out<Handle>,
    graph: Handle,
    dependencies: (In<Handle>, usize),
    work: impl FnOnce(&State) -> Result<Work>,
) -> Result<()> {
    let (mut state, _) = in_context()?;
    node.check("phGraphNode")?;
    state.graphs.get(graph)?;
    let made = work(&state)?;
    node.set(add_node(&mut state, graph, dependencies.0.list(dependencies.1)?, made)?)
}

/// Lists handles as the driver does: the count alone, or as many as there is room for, the rest null.
fn list(found: &[Handle], places: Out<Handle>, count: Out<usize>) -> Result<()> {
    if places.is_null() {
        return count.set(found.len());
    }
    let room = count.get()?;
    for i in 0..room {
        places.set_at(i, found.get(i).copied().unwrap_or(0));
    }
    count.set(found.len().min(room))
}

entries! {
    /// Makes an empty graph.
    fn cuGraphCreate(graph: Out<Handle>, flags: u32) {
        let (mut state, _) = in_context()?;
        graph.check("phGraph")?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE.because(format!("flags {flags:#x} must be 0")));
        }
        let handle = state.handle();
        state.graphs.insert(handle, Graph::default());
        graph.set(handle)
    }

    /// Copies a graph.
    fn cuGraphClone(copy: Out<Handle>, original: Handle) {
        let (mut state, _) = in_context()?;
        copy.check("phGraphClone")?;
        let mut graph = state.graphs.get(original)?.clone();
        let fresh: std::collections::HashMap<u64, u64> =
            graph.nodes.iter().map(|node| node.handle).collect::<Vec<_>>().into_iter().map(|n| (n, state.handle())).collect();
        for node in &mut graph.nodes {
            node.handle = fresh[&node.handle];
            node.dependencies.iter_mut().for_each(|d| *d = fresh.get(d).copied().unwrap_or(*d));
        }
        let handle = state.handle();
        state.graphs.insert(handle, graph);
        copy.set(handle)
    }

    /// Destroys a graph; what was instantiated from it lives on.
    fn cuGraphDestroy(graph: Handle) {
        let (mut state, _) = in_context()?;
        if state.captures.iter().any(|(_, capture)| capture.graph == graph) {
            return Err(Code::INVALID_VALUE.because("the graph is being captured"));
        }
        state.graphs.remove(graph)?;
        Ok(())
    }

    /// Adds a kernel.
    fn cuGraphAddKernelNode_v2(
        node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<KernelNode>,
    ) {
        add(node, graph, (dependencies, count), |state| kernel(state, parameters))
    }

    /// Adds a copy.
    fn cuGraphAddMemcpyNode(
        node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<Copy3d>, _context: Handle,
    ) {
        add(node, graph, (dependencies, count), |state| copy(state, parameters))
    }

    /// Adds a fill.
    fn cuGraphAddMemsetNode(
        node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<FillNode>, _context: Handle,
    ) {
        add(node, graph, (dependencies, count), |state| fill(state, parameters))
    }

    /// Adds a host function.
    fn cuGraphAddHostNode(
        node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<HostNode>,
    ) {
        add(node, graph, (dependencies, count), |_| host(parameters))
    }

    /// Adds a node that does nothing.
    fn cuGraphAddEmptyNode(node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize) {
        add(node, graph, (dependencies, count), |_| Ok(Work::Nothing))
    }

    /// Adds a node that records an event.
    fn cuGraphAddEventRecordNode(
        node: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, event: Handle,
    ) {
        add(node, graph, (dependencies, count), |state| state.events.get(event).map(|_| Work::Record(event)))
    }

    /// Adds dependencies between nodes that are there.
    fn cuGraphAddDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        let (mut state, _) = in_context()?;
        let (from, to) = (from.list(count)?, to.list(count)?);
        let graph = state.graphs.get_mut(graph)?;
        for (from, to) in from.into_iter().zip(to) {
            let known = graph.node(from).is_some();
            let node = graph.nodes.iter_mut().find(|node| node.handle == to);
            match node {
                Some(node) if known && !node.dependencies.contains(&from) => node.dependencies.push(from),
                _ => return Err(Code::INVALID_VALUE.because("a dependency of unknown nodes, or one that is there")),
            }
        }
        Ok(())
    }

    /// Lists the nodes of a graph.
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let (state, _) = in_context()?;
        let found: Vec<Handle> = state.graphs.get(graph)?.nodes.iter().map(|node| node.handle).collect();
        list(&found, nodes, count)
    }

    /// Lists the nodes that depend on none.
    fn cuGraphGetRootNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let (state, _) = in_context()?;
        let roots = state.graphs.get(graph)?.nodes.iter().filter(|node| node.dependencies.is_empty());
        list(&roots.map(|node| node.handle).collect::<Vec<_>>(), nodes, count)
    }

    /// Lists what a node depends on.
    fn cuGraphNodeGetDependencies(node: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let (state, _) = in_context()?;
        let graph = state.graphs.get(graph_of(&state, node)?)?;
        list(graph.node(node).map(|node| node.dependencies.as_slice()).unwrap_or_default(), nodes, count)
    }

    /// Returns the type of a node.
    fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) {
        let (state, _) = in_context()?;
        let graph = state.graphs.get(graph_of(&state, node)?)?;
        kind.set(graph.node(node).map_or(5, |node| node.work.node_type()))
    }

    /// Sets the parameters of a kernel node.
    fn cuGraphKernelNodeSetParams_v2(node: Handle, parameters: In<KernelNode>) {
        let (mut state, _) = in_context()?;
        let made = kernel(&state, parameters)?;
        let graph = graph_of(&state, node)?;
        let found = state.graphs.get_mut(graph)?.nodes.iter_mut().find(|n| n.handle == node);
        match found {
            Some(found) if found.work.node_type() == made.node_type() => {
                found.work = made;
                Ok(())
            }
            _ => Err(Code::INVALID_VALUE.because("the node is no kernel")),
        }
    }

    /// Instantiates a graph.
    fn cuGraphInstantiateWithFlags(exec: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(exec, graph, flags)
    }

    /// Sends an instantiated graph to the device: it needs nothing there.
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        let (mut state, context) = in_context()?;
        state.execs.get(exec)?;
        queue::resolve(&mut state, context, stream)?;
        Ok(())
    }

    /// Launches an instantiated graph.
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        let (state, context) = in_context()?;
        let plan = Arc::clone(&state.execs.get(exec)?.plan);
        drop(queue::submit(state, context, stream, Work::Graph(plan))?);
        Ok(())
    }

    /// Destroys an instantiated graph; launches that are queued are still done.
    fn cuGraphExecDestroy(exec: Handle) {
        let (mut state, _) = in_context()?;
        state.execs.remove(exec)?;
        Ok(())
    }

    /// Sets the parameters of a kernel node of an instantiated graph.
    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, parameters: In<KernelNode>) {
        let (mut state, _) = in_context()?;
        let made = kernel(&state, parameters)?;
        state.execs.get_mut(exec)?.replace(node, made)
    }

    /// Sets the parameters of a fill node of an instantiated graph.
    fn cuGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, parameters: In<FillNode>, _context: Handle) {
        let (mut state, _) = in_context()?;
        let made = fill(&state, parameters)?;
        state.execs.get_mut(exec)?.replace(node, made)
    }

    /// Sets the parameters of a copy node of an instantiated graph.
    fn cuGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, parameters: In<Copy3d>, _context: Handle) {
        let (mut state, _) = in_context()?;
        let made = copy(&state, parameters)?;
        state.execs.get_mut(exec)?.replace(node, made)
    }

    /// Takes over the parameters of a graph of the same shape.
    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, result: Out<UpdateResult>) {
        let (mut state, _) = in_context()?;
        let graph: graph::Graph = state.graphs.get(graph)?.clone();
        let updated = state.execs.get_mut(exec)?.update(&graph);
        let (code, node) = updated.err().unwrap_or((0, 0));
        result.set_optional(UpdateResult { result: code, node, from: 0 });
        match code {
            0 => Ok(()),
            _ => Err(Code::GRAPH_EXEC_UPDATE_FAILURE.because(format!("the graph has another shape (result {code})"))),
        }
    }
}
