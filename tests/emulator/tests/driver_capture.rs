//! Stream capture and graphs: the rules, and what a graph does when it runs.

mod driver_support;

use std::ptr::null_mut;

use driver_support::*;

const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;
const RELAXED: i32 = 2;

fn stream() -> Pointer {
    made!(cuStreamCreate(1))
}

fn event() -> Pointer {
    made!(cuEventCreate(2))
}

/// 0 not captured, 1 captured, 2 captured and invalid.
fn status(stream: Pointer) -> i32 {
    let mut status = 9;
    ok!(cuStreamIsCapturing(stream, &mut status));
    status
}

/// Ends a capture that must have become invalid.
fn end_invalid(stream: Pointer) {
    assert_eq!(status(stream), 2);
    let mut graph = 1 as Pointer;
    expect!(901, cuStreamEndCapture(stream, &mut graph));
    assert!(graph.is_null());
    assert_eq!(status(stream), 0);
}

fn end(stream: Pointer) -> Pointer {
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(stream, &mut graph));
    graph
}

fn instantiate(graph: Pointer) -> Pointer {
    made!(cuGraphInstantiateWithFlags(graph, 0))
}

fn nodes(graph: Pointer) -> Vec<Pointer> {
    let mut count = 0;
    ok!(cuGraphGetNodes(graph, null_mut(), &mut count));
    let mut nodes = vec![null_mut(); count];
    ok!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
    nodes
}

#[test]
fn nothing_runs_while_it_is_captured_and_a_replay_uses_the_memory_as_it_is() {
    let _driver = started(&[]);
    let (stream, kernel) = (stream(), function(load(PTX), "scale"));
    let (x, y) = (upload(&[1.0, 2.0]), upload(&[0.0, 0.0]));
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    assert_eq!(scale(kernel, stream, y, x, 3.0, 2), 0);
    assert_eq!(scale(kernel, stream, y, y, 2.0, 2), 0);
    let graph = end(stream);
    assert_eq!(download(y, 2), [0.0, 0.0]);
    assert_eq!(nodes(graph).len(), 2);
    let exec = instantiate(graph);
    ok!(cuGraphDestroy(graph)); // what was instantiated lives on
    ok!(cuGraphUpload(exec, stream));
    ok!(cuGraphLaunch(exec, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download(y, 2), [6.0, 12.0]);
    ok!(cuMemcpyDtoD_v2(x, y, 8));
    ok!(cuCtxSynchronize());
    ok!(cuGraphLaunch(exec, stream));
    ok!(cuGraphExecDestroy(exec)); // the launch that is queued is still done
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download(y, 2), [36.0, 72.0]);
    expect!(400, cuGraphLaunch(exec, stream));
}

#[test]
fn copies_and_fills_become_nodes_that_read_host_memory_at_each_launch() {
    let _driver = started(&[]);
    let stream = stream();
    let (device, pinned): (Device, Pointer) = (made!(cuMemAlloc_v2(16)), made!(cuMemHostAlloc(4, 0)));
    let host = pinned.cast::<u32>();
    // SAFETY: 4 bytes of page-locked memory, here and below.
    unsafe { host.write(1) };
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    ok!(cuMemsetD32Async(device, 9, 4, stream));
    ok!(cuMemcpyHtoDAsync_v2(device + 4, pinned, 4, stream));
    ok!(cuMemcpyDtoDAsync_v2(device + 8, device + 4, 4, stream));
    let graph = end(stream);
    let kinds = nodes(graph).into_iter().map(|node| {
        let mut kind = 0;
        ok!(cuGraphNodeGetType(node, &mut kind));
        kind
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [2, 1, 1]);
    let exec = instantiate(graph);
    for value in [5, 6] {
        // SAFETY: as above.
        unsafe { host.write(value) };
        ok!(cuGraphLaunch(exec, stream));
        ok!(cuStreamSynchronize(stream));
        let mut found = [0u32; 4];
        ok!(cuMemcpyDtoH_v2(found.as_mut_ptr().cast(), device, 16));
        assert_eq!(found, [9, value, value, 9]);
    }
}

#[test]
fn begin_and_end_are_checked() {
    let _driver = started(&[]);
    let (one, two) = (stream(), stream());
    let mut graph = null_mut();
    expect!(900, cuStreamBeginCapture_v2(LEGACY, GLOBAL));
    expect!(1, cuStreamBeginCapture_v2(one, 3));
    expect!(401, cuStreamEndCapture(one, &mut graph));
    ok!(cuStreamBeginCapture_v2(one, GLOBAL));
    expect!(401, cuStreamBeginCapture_v2(one, GLOBAL));
    expect!(401, cuStreamEndCapture(two, &mut graph));
    assert_eq!((status(one), status(two)), (1, 0));
    let empty = end(one);
    assert!(nodes(empty).is_empty());
    ok!(cuGraphLaunch(instantiate(empty), one));
    ok!(cuCtxSynchronize());
}

#[test]
fn waiting_for_a_captured_stream_invalidates_the_capture() {
    let _driver = started(&[]);
    let stream = stream();
    for call in [cuStreamSynchronize as unsafe extern "C" fn(Pointer) -> u32, cuStreamQuery] {
        ok!(cuStreamBeginCapture_v2(stream, RELAXED));
        expect!(900, call(stream));
        end_invalid(stream);
    }
    let device: Device = made!(cuMemAlloc_v2(4));
    ok!(cuStreamBeginCapture_v2(stream, RELAXED));
    expect!(900, cuCtxSynchronize());
    expect!(901, cuMemsetD8Async(device, 0, 4, stream));
    end_invalid(stream);
}

#[test]
fn calls_that_may_be_unsafe_are_refused_by_the_modes() {
    let _driver = started(&[]);
    let (stream, other) = (stream(), stream());
    let (mut address, idle) = (0, event());
    for mode in [GLOBAL, THREAD_LOCAL] {
        ok!(cuStreamBeginCapture_v2(stream, mode));
        expect!(900, cuMemAlloc_v2(&mut address, 4));
        end_invalid(stream);
        ok!(cuStreamBeginCapture_v2(stream, mode));
        expect!(900, cuEventQuery(idle));
        end_invalid(stream);
        ok!(cuStreamBeginCapture_v2(stream, mode));
        expect!(900, cuStreamSynchronize(other));
        end_invalid(stream);
    }
    ok!(cuStreamBeginCapture_v2(stream, RELAXED));
    ok!(cuMemAlloc_v2(&mut address, 4));
    ok!(cuEventQuery(idle));
    ok!(cuStreamSynchronize(other));
    end(stream);
    // A thread can lift the ban for itself.
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    let mut mode = RELAXED;
    ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
    assert_eq!(mode, GLOBAL);
    ok!(cuMemAlloc_v2(&mut address, 4));
    ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
    assert_eq!(mode, RELAXED);
    end(stream);
    let mut wrong = 3;
    expect!(1, cuThreadExchangeStreamCaptureMode(&mut wrong));
}

#[test]
fn a_global_capture_binds_other_threads_and_a_local_one_does_not() {
    let _driver = started(&[]);
    let stream = stream();
    let context: Pointer = made!(cuCtxGetCurrent());
    let in_another_thread = |code: u32| {
        let context = context as usize;
        let call = move || {
            let mut address = 0;
            ok!(cuCtxSetCurrent(context as Pointer));
            // SAFETY: a place for the address.
            unsafe { cuMemAlloc_v2(&mut address, 4) }
        };
        assert_eq!(std::thread::spawn(call).join().unwrap(), code);
    };
    ok!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    in_another_thread(0);
    end(stream);
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    in_another_thread(900);
    end_invalid(stream);
}

#[test]
fn a_capture_ends_in_its_own_thread_unless_it_is_relaxed() {
    let _driver = started(&[]);
    let (local, relaxed) = (stream(), stream());
    let context: Pointer = made!(cuCtxGetCurrent());
    ok!(cuStreamBeginCapture_v2(local, THREAD_LOCAL));
    ok!(cuStreamBeginCapture_v2(relaxed, RELAXED));
    let (context, one, two) = (context as usize, local as usize, relaxed as usize);
    let ends = move || {
        let mut graph = null_mut();
        ok!(cuCtxSetCurrent(context as Pointer));
        expect!(908, cuStreamEndCapture(one as Pointer, &mut graph));
        ok!(cuStreamEndCapture(two as Pointer, &mut graph));
    };
    std::thread::spawn(ends).join().unwrap();
    end(local);
}

#[test]
fn the_legacy_stream_must_not_wait_for_a_blocking_capture() {
    let _driver = started(&[]);
    let device: Device = made!(cuMemAlloc_v2(4));
    let blocking: Pointer = made!(cuStreamCreate(0));
    ok!(cuStreamBeginCapture_v2(blocking, RELAXED));
    expect!(906, cuMemsetD8Async(device, 0, 4, LEGACY));
    end_invalid(blocking);
    ok!(cuStreamBeginCapture_v2(blocking, RELAXED));
    let mut found = 0;
    expect!(906, cuStreamIsCapturing(LEGACY, &mut found));
    end_invalid(blocking);
    let free = stream();
    ok!(cuStreamBeginCapture_v2(free, RELAXED));
    ok!(cuMemsetD8Async(device, 0, 4, LEGACY));
    end(free);
}

#[test]
fn streams_join_by_events_and_must_be_joined_back() {
    let _driver = started(&[]);
    let (one, two, kernel) = (stream(), stream(), function(load(PTX), "scale"));
    let (x, y) = (upload(&[1.0]), upload(&[0.0]));
    let (fork, back) = (event(), event());
    let begin = || {
        ok!(cuStreamBeginCapture_v2(one, GLOBAL));
        assert_eq!(scale(kernel, one, y, x, 2.0, 1), 0);
        ok!(cuEventRecord(fork, one));
        ok!(cuStreamWaitEvent(two, fork, 0));
        assert_eq!(status(two), 1);
        assert_eq!(scale(kernel, two, y, y, 10.0, 1), 0);
    };
    begin();
    let mut graph = null_mut();
    expect!(904, cuStreamEndCapture(one, &mut graph));
    assert_eq!((status(one), status(two), graph), (0, 0, null_mut()));
    begin();
    expect!(903, cuStreamEndCapture(two, &mut graph));
    end_invalid(one);
    begin();
    ok!(cuEventRecord(back, two));
    ok!(cuStreamWaitEvent(one, back, 0));
    assert_eq!(scale(kernel, one, y, y, 0.5, 1), 0);
    let exec = instantiate(end(one));
    ok!(cuGraphLaunch(exec, two));
    ok!(cuStreamSynchronize(two));
    assert_eq!(download(y, 1), [10.0]);
}

#[test]
fn branches_of_a_graph_run_in_any_order() {
    let outcomes = (0..16).map(|seed| {
        let _driver = started(&[("seed", &seed.to_string())]);
        let (one, two) = (stream(), stream());
        let device: Device = made!(cuMemAlloc_v2(1));
        let (fork, back) = (event(), event());
        ok!(cuStreamBeginCapture_v2(one, GLOBAL));
        ok!(cuEventRecord(fork, one));
        ok!(cuStreamWaitEvent(two, fork, 0));
        ok!(cuMemsetD8Async(device, 1, 1, one));
        ok!(cuMemsetD8Async(device, 2, 1, two));
        ok!(cuEventRecord(back, two));
        ok!(cuStreamWaitEvent(one, back, 0));
        ok!(cuGraphLaunch(instantiate(end(one)), one));
        ok!(cuCtxSynchronize());
        let mut byte = 0u8;
        ok!(cuMemcpyDtoH_v2((&raw mut byte).cast(), device, 1));
        byte
    });
    assert_eq!(outcomes.collect::<std::collections::HashSet<_>>(), [1, 2].into());
}

#[test]
fn a_capture_cannot_depend_on_work_outside_of_it() {
    let _driver = started(&[]);
    let (one, two) = (stream(), stream());
    let outside = event();
    ok!(cuEventRecord(outside, two));
    ok!(cuStreamBeginCapture_v2(one, GLOBAL));
    expect!(905, cuStreamWaitEvent(one, outside, 0));
    end_invalid(one);
    ok!(cuStreamBeginCapture_v2(one, GLOBAL));
    ok!(cuStreamWaitEvent(one, event(), 0)); // never recorded: nothing to wait for
    end(one);
}

#[test]
fn an_event_of_a_capture_never_happens() {
    let _driver = started(&[]);
    let (one, two) = (stream(), stream());
    let inside = event();
    for query in [cuEventQuery as unsafe extern "C" fn(Pointer) -> u32, cuEventSynchronize] {
        ok!(cuStreamBeginCapture_v2(one, RELAXED));
        ok!(cuEventRecord(inside, one));
        expect!(907, query(inside));
        end_invalid(one);
    }
    ok!(cuStreamBeginCapture_v2(one, RELAXED));
    ok!(cuEventRecord(inside, one));
    end(one);
    expect!(907, cuEventSynchronize(inside));
    expect!(907, cuStreamWaitEvent(two, inside, 0));
    ok!(cuEventRecord(inside, two)); // recorded anew, it is an event again
    ok!(cuEventSynchronize(inside));
}

#[test]
fn two_captures_cannot_merge() {
    let _driver = started(&[]);
    let (one, two, inside) = (stream(), stream(), event());
    ok!(cuStreamBeginCapture_v2(one, RELAXED));
    ok!(cuStreamBeginCapture_v2(two, RELAXED));
    ok!(cuEventRecord(inside, one));
    expect!(902, cuStreamWaitEvent(two, inside, 0));
    end_invalid(one);
    end_invalid(two);
}

#[test]
fn a_destroyed_stream_ends_its_capture() {
    let _driver = started(&[]);
    let one = stream();
    ok!(cuStreamBeginCapture_v2(one, GLOBAL));
    ok!(cuStreamDestroy_v2(one));
    let _: Device = made!(cuMemAlloc_v2(4));
}

#[test]
fn a_graph_owns_the_memory_that_its_capture_allocates() {
    let _driver = started(&[]);
    let (stream, outside): (Pointer, Device) = (stream(), made!(cuMemAlloc_v2(4)));
    let mut address: Device = 0;
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    ok!(cuMemAllocAsync(&mut address, 4, stream));
    ok!(cuMemsetD32Async(address, 77, 1, stream));
    ok!(cuMemcpyDtoDAsync_v2(outside, address, 4, stream));
    expect!(1, cuMemFreeAsync(outside, stream));
    ok!(cuMemFreeAsync(address, stream));
    expect!(1, cuMemFreeAsync(address, stream));
    let graph = end(stream);
    let exec = instantiate(graph);
    for _ in 0..2 {
        ok!(cuGraphLaunch(exec, stream));
    }
    ok!(cuCtxSynchronize());
    let mut value = 0u32;
    ok!(cuMemcpyDtoH_v2((&raw mut value).cast(), outside, 4));
    assert_eq!(value, 77);
    ok!(cuGraphExecDestroy(exec));
    ok!(cuMemcpyDtoH_v2((&raw mut value).cast(), address, 4));
    ok!(cuGraphDestroy(graph));
    expect!(1, cuMemcpyDtoH_v2((&raw mut value).cast(), address, 4));
}

#[test]
fn kernel_nodes_are_made_and_updated() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "scale");
    let (mut x, mut y, mut n) = (upload(&[2.0]), upload(&[0.0]), 1u32);
    let mut a = 3.0f32;
    let mut params: [Pointer; 4] =
        [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    let mut node = KernelNode {
        function: kernel,
        grid: [1; 3],
        block: [32, 1, 1],
        shared: 0,
        params: params.as_mut_ptr(),
        extra: null_mut(),
        kernel: null_mut(),
        context: null_mut(),
    };
    let graph: Pointer = made!(cuGraphCreate(0));
    let handle: Pointer = made!(cuGraphAddKernelNode_v2(graph, null_mut(), 0, &node));
    let mut second = null_mut();
    expect!(1, cuGraphAddKernelNode_v2(&mut second, graph, [LEGACY].as_ptr(), 1, &node));
    let exec = instantiate(graph);
    ok!(cuGraphLaunch(exec, LEGACY));
    assert_eq!(download(y, 1), [6.0]);
    let place = &raw mut a;
    // SAFETY: a live variable that the parameters point to.
    unsafe { place.write_volatile(5.0) };
    ok!(cuGraphExecKernelNodeSetParams_v2(exec, handle, &node));
    ok!(cuGraphLaunch(exec, LEGACY));
    assert_eq!(download(y, 1), [10.0]);
    node.block = [2048, 1, 1];
    expect!(1, cuGraphExecKernelNodeSetParams_v2(exec, handle, &node));
    expect!(1, cuGraphExecKernelNodeSetParams_v2(exec, LEGACY, &node));
}

#[test]
fn a_fault_in_a_graph_is_a_fault() {
    let _driver = started(&[]);
    let (stream, kernel) = (stream(), function(load(PTX), "poke"));
    let mut address: Device = 64;
    ok!(cuStreamBeginCapture_v2(stream, GLOBAL));
    assert_eq!(launch(kernel, [1; 3], [1; 3], 0, stream, &mut [(&raw mut address).cast()]), 0);
    ok!(cuGraphLaunch(instantiate(end(stream)), stream));
    expect!(700, cuStreamSynchronize(stream));
}
