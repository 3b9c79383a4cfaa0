//! Work is late, and streams are ordered by nothing but what orders them.

mod driver_support;

use std::collections::HashSet;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use driver_support::*;

/// Page-locked floats.
fn pinned(values: &[f32]) -> &'static mut [f32] {
    let host: Pointer = made!(cuMemHostAlloc(size_of_val(values), 0));
    // SAFETY: just allocated with this size; the driver keeps it until the test ends.
    let place = unsafe { std::slice::from_raw_parts_mut(host.cast::<f32>(), values.len()) };
    place.copy_from_slice(values);
    place
}

#[test]
fn a_result_is_not_there_before_the_program_waits() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(0));
    let device = upload(&[5.0]);
    let host = pinned(&[1.0]);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, stream));
    assert_eq!(host[0], 1.0);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(host[0], 5.0);
}

#[test]
fn page_locked_memory_is_read_when_the_copy_is_done() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(0));
    let device = upload(&[0.0]);
    let host = pinned(&[1.0]);
    ok!(cuMemcpyHtoDAsync_v2(device, host.as_ptr().cast(), 4, stream));
    host[0] = 2.0; // a bug in the program: it must show
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download(device, 1), [2.0]);
}

#[test]
fn pageable_memory_is_staged_or_read_late_as_set() {
    for (option, expected) in [("staged", 1.0), ("late", 2.0)] {
        let _driver = started(&[("pageable", option)]);
        let stream: Pointer = made!(cuStreamCreate(0));
        let device: Device = made!(cuMemAlloc_v2(4));
        let mut host = [1.0f32];
        ok!(cuMemcpyHtoDAsync_v2(device, host.as_ptr().cast(), 4, stream));
        let place = &raw mut host[0];
        // SAFETY: a live variable; volatile, so that the change is made before the copy.
        unsafe { place.write_volatile(2.0) };
        ok!(cuStreamSynchronize(stream));
        assert_eq!(download(device, 1), [expected], "{option}");
    }
}

#[test]
fn a_copy_to_pageable_memory_is_waited_for() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(0));
    let device = upload(&[7.0]);
    let mut host = [0.0f32];
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, stream));
    assert_eq!(host, [7.0]);
}

#[test]
fn queries_say_600_and_let_time_pass() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(1));
    let (event, other): (Pointer, Pointer) = (made!(cuEventCreate(0)), made!(cuEventCreate(0)));
    ok!(cuEventQuery(event)); // never recorded
    ok!(cuStreamQuery(stream));
    let device = upload(&[0.0; 4]);
    ok!(cuEventRecord(event, stream));
    ok!(cuMemsetD8Async(device, 0, 16, stream));
    ok!(cuEventRecord(other, stream));
    expect!(600, cuStreamQuery(stream));
    let mut polls = 0;
    // SAFETY: a live event.
    while unsafe { cuEventQuery(other) } == 600 {
        polls += 1;
        assert!(polls < 10, "polling makes no progress");
    }
    assert!(polls > 0);
    ok!(cuEventQuery(event));
    ok!(cuStreamQuery(stream));
    let milliseconds: f32 = made!(cuEventElapsedTime_v2(event, other));
    assert!(milliseconds >= 0.0);
}

#[test]
fn elapsed_times_need_two_recorded_events_with_timing() {
    let _driver = started(&[]);
    let (start, end): (Pointer, Pointer) = (made!(cuEventCreate(0)), made!(cuEventCreate(0)));
    let silent: Pointer = made!(cuEventCreate(2));
    let mut time = 0.0;
    expect!(400, cuEventElapsedTime_v2(&mut time, start, end));
    ok!(cuEventRecord(start, LEGACY));
    ok!(cuEventRecord(silent, LEGACY));
    expect!(600, cuEventElapsedTime_v2(&mut time, start, start));
    ok!(cuCtxSynchronize());
    expect!(400, cuEventElapsedTime_v2(&mut time, start, end));
    expect!(400, cuEventElapsedTime_v2(&mut time, start, silent));
    ok!(cuEventElapsedTime_v2(&mut time, start, start));
    assert_eq!(time, 0.0);
}

/// Writes 1 in one stream and 2 in another, and returns what is there in the end, for several seeds.
fn last_writer(flags: [Option<u32>; 2], between: impl Fn(Pointer, Pointer)) -> HashSet<u8> {
    let outcomes = (0..16).map(|seed| {
        let _driver = started(&[("seed", &seed.to_string())]);
        let stream = |flags: Option<u32>| flags.map_or(LEGACY, |flags| made!(cuStreamCreate(flags)));
        let (first, second) = (stream(flags[0]), stream(flags[1]));
        let device: Device = made!(cuMemAlloc_v2(1));
        ok!(cuMemsetD8Async(device, 1, 1, first));
        between(first, second);
        ok!(cuMemsetD8Async(device, 2, 1, second));
        ok!(cuCtxSynchronize());
        let mut byte = 0u8;
        ok!(cuMemcpyDtoH_v2((&raw mut byte).cast(), device, 1));
        byte
    });
    outcomes.collect()
}

#[test]
fn streams_without_an_order_run_in_any_order() {
    assert_eq!(last_writer([Some(0), Some(0)], |_, _| {}), HashSet::from([1, 2]));
    assert_eq!(last_writer([Some(1), Some(1)], |_, _| {}), HashSet::from([1, 2]));
}

#[test]
fn an_event_orders_streams() {
    let wait = |first: Pointer, second: Pointer| {
        let event: Pointer = made!(cuEventCreate(2));
        ok!(cuEventRecord(event, first));
        ok!(cuStreamWaitEvent(second, event, 0));
        ok!(cuEventDestroy_v2(event)); // what was recorded still counts
    };
    assert_eq!(last_writer([Some(1), Some(1)], wait), HashSet::from([2]));
}

#[test]
fn an_event_that_was_never_recorded_orders_nothing() {
    let wait = |_: Pointer, second: Pointer| {
        let event: Pointer = made!(cuEventCreate(0));
        ok!(cuStreamWaitEvent(second, event, 0));
    };
    assert_eq!(last_writer([Some(1), Some(1)], wait), HashSet::from([1, 2]));
}

#[test]
fn the_legacy_stream_is_ordered_with_blocking_streams_only() {
    assert_eq!(last_writer([None, Some(0)], |_, _| {}), HashSet::from([2]));
    assert_eq!(last_writer([Some(0), None], |_, _| {}), HashSet::from([2]));
    assert_eq!(last_writer([None, Some(1)], |_, _| {}), HashSet::from([1, 2]));
    assert_eq!(last_writer([Some(1), None], |_, _| {}), HashSet::from([1, 2]));
}

#[test]
fn waiting_for_the_legacy_stream_waits_for_blocking_streams() {
    let _driver = started(&[]);
    let (blocking, free): (Pointer, Pointer) = (made!(cuStreamCreate(0)), made!(cuStreamCreate(1)));
    let device = upload(&[5.0]);
    let host = pinned(&[0.0, 0.0]);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, blocking));
    expect!(600, cuStreamQuery(LEGACY));
    ok!(cuMemcpyDtoHAsync_v2(host[1..].as_mut_ptr().cast(), device, 4, blocking));
    ok!(cuStreamSynchronize(LEGACY));
    assert_eq!(host, [5.0, 5.0]);
    ok!(cuStreamQuery(LEGACY));
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, free));
    ok!(cuStreamQuery(LEGACY));
}

#[test]
fn work_of_a_destroyed_stream_is_still_done() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(0));
    let host = pinned(&[0.0]);
    let device = upload(&[4.0]);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, stream));
    ok!(cuStreamDestroy_v2(stream));
    expect!(400, cuStreamSynchronize(stream));
    ok!(cuCtxSynchronize());
    assert_eq!(host[0], 4.0);
}

#[test]
fn priorities_are_clamped() {
    let _driver = started(&[]);
    for (given, expected) in [(0, 0), (-3, -3), (-99, -5), (7, 0)] {
        let stream: Pointer = made!(cuStreamCreateWithPriority(0, given));
        let mut priority = 1;
        ok!(cuStreamGetPriority(stream, &mut priority));
        assert_eq!(priority, expected);
    }
}

static CALLED: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);

extern "C" fn host_function(data: Pointer) {
    // SAFETY: no arguments; the driver must refuse the call here.
    INSIDE.store(unsafe { cuCtxSynchronize() }, SeqCst);
    CALLED.store(data as usize as u32, SeqCst);
}

#[test]
fn host_functions_run_in_order_and_must_not_call_the_driver() {
    let _driver = started(&[]);
    ok!(cuLaunchHostFunc(LEGACY, Some(host_function), 42 as Pointer));
    assert_eq!(CALLED.load(SeqCst), 0);
    ok!(cuCtxSynchronize());
    assert_eq!((CALLED.load(SeqCst), INSIDE.load(SeqCst)), (42, 800));
}

extern "C" fn wait_for_flag(data: Pointer) {
    // SAFETY: the test passes a flag that lives for ever.
    let flag = unsafe { &*data.cast::<AtomicU32>() };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while flag.load(SeqCst) == 0 && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    flag.fetch_add(1, SeqCst);
}

#[test]
fn a_host_function_may_wait_for_the_thread_that_asks_about_it() {
    let _driver = started(&[]);
    static FLAG: AtomicU32 = AtomicU32::new(0);
    let (one, two): (Pointer, Pointer) = (made!(cuStreamCreate(1)), made!(cuStreamCreate(1)));
    let device = upload(&[0.0]);
    ok!(cuLaunchHostFunc(one, Some(wait_for_flag), (&raw const FLAG).cast_mut().cast()));
    ok!(cuMemsetD8Async(device, 0, 4, two));
    expect!(600, cuStreamQuery(one));
    expect!(600, cuStreamQuery(one));
    ok!(cuStreamSynchronize(two)); // another stream goes on
    expect!(600, cuStreamQuery(one));
    FLAG.store(1, SeqCst);
    ok!(cuStreamSynchronize(one));
    assert_eq!(FLAG.load(SeqCst), 2);
}

#[test]
fn a_worker_does_the_work_without_a_wait() {
    let _driver = started(&[("queue", "worker")]);
    let stream: Pointer = made!(cuStreamCreate(1));
    let device = upload(&[3.0]);
    let host = pinned(&[0.0]);
    let place = host.as_mut_ptr();
    ok!(cuMemcpyDtoHAsync_v2(place.cast(), device, 4, stream));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // SAFETY: page-locked and live.
    while unsafe { place.read_volatile() } != 3.0 {
        assert!(std::time::Instant::now() < end, "the worker does nothing");
        std::thread::yield_now();
    }
    ok!(cuCtxSynchronize());
}

#[test]
fn immediate_work_is_done_when_the_call_returns() {
    let _driver = started(&[("queue", "immediate")]);
    let stream: Pointer = made!(cuStreamCreate(1));
    let device = upload(&[3.0]);
    let host = pinned(&[0.0]);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), device, 4, stream));
    assert_eq!(host[0], 3.0);
}

#[test]
fn a_long_queue_is_worked_off() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(1));
    let device: Device = made!(cuMemAlloc_v2(4));
    for i in 0..5000 {
        ok!(cuMemsetD32Async(device, i, 1, stream));
    }
    ok!(cuStreamSynchronize(stream));
    let mut value = 0u32;
    ok!(cuMemcpyDtoH_v2((&raw mut value).cast(), device, 4));
    assert_eq!(value, 4999);
}

#[test]
fn threads_share_the_driver() {
    let _driver = started(&[]);
    let context: Pointer = made!(cuCtxGetCurrent());
    let context = context as usize;
    std::thread::scope(|scope| {
        for i in 0..4u32 {
            scope.spawn(move || {
                ok!(cuCtxSetCurrent(context as Pointer));
                for _ in 0..50 {
                    let stream: Pointer = made!(cuStreamCreate(1));
                    let device: Device = made!(cuMemAllocAsync(4, stream));
                    ok!(cuMemsetD32Async(device, i, 1, stream));
                    let mut value = u32::MAX;
                    ok!(cuMemcpyDtoHAsync_v2((&raw mut value).cast(), device, 4, stream));
                    assert_eq!(value, i);
                    ok!(cuMemFreeAsync(device, stream));
                    ok!(cuStreamDestroy_v2(stream));
                }
            });
        }
    });
    expect!(400, cuStreamWaitEvent(LEGACY, null_mut(), 0));
}
