//! Faults of kernels: the error stays, one line says what happened, findings and counters can be read.

mod driver_support;

use std::ffi::{CStr, CString, c_char};

use driver_support::*;

fn poke(address: Device) -> u32 {
    let kernel = function(load(PTX), "poke");
    let mut address = address;
    let mut params: [Pointer; 1] = [(&raw mut address).cast()];
    launch(kernel, [1; 3], [1; 3], 0, LEGACY, &mut params)
}

fn first_finding() -> String {
    let mut buffer = vec![0 as c_char; 2000];
    ok!(cuEmulatorFinding(0, buffer.as_mut_ptr(), 2000));
    // SAFETY: the driver has terminated it.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_str().unwrap().to_owned()
}

#[test]
fn an_illegal_address_stays_the_answer_to_every_call() {
    let _driver = started(&[]);
    let (stream, event): (Pointer, Pointer) = (made!(cuStreamCreate(0)), made!(cuEventCreate(0)));
    let memory: Device = made!(cuMemAlloc_v2(4));
    assert_eq!(poke(0), 0); // the launch itself is fine
    ok!(cuEventRecord(event, LEGACY));
    expect!(700, cuCtxSynchronize());
    let mut address = 0;
    let mut made = LEGACY;
    expect!(700, cuCtxSynchronize());
    expect!(700, cuStreamSynchronize(stream));
    expect!(700, cuEventQuery(event));
    expect!(700, cuEventDestroy_v2(event));
    expect!(700, cuMemAlloc_v2(&mut address, 4));
    expect!(700, cuMemFree_v2(memory));
    expect!(700, cuMemsetD8Async(memory, 0, 1, stream));
    expect!(700, cuStreamCreate(&mut made, 0));
    expect!(700, cuModuleLoadData(&mut made, c"x".as_ptr().cast()));
    expect!(700, cuDevicePrimaryCtxRetain(&mut made, 0));
    let mut count = 0;
    ok!(cuDeviceGetCount(&mut count));
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    assert!(first_finding().contains("\"kernel\":\"poke\""), "{}", first_finding());
    expect!(500, cuEmulatorFinding(1, (&raw mut made).cast(), 8));
}

#[test]
fn each_kind_of_fault_has_its_error() {
    let _driver = started(&[]);
    let memory: Device = made!(cuMemAlloc_v2(8));
    assert_eq!(poke(memory + 2), 0);
    expect!(716, cuCtxSynchronize());
    drop(_driver);
    let _driver = started(&[]);
    let memory: Device = made!(cuMemAlloc_v2(8));
    assert_eq!(poke(memory + 8), 0);
    expect!(700, cuCtxSynchronize());
    drop(_driver);
    let _driver = started(&[]);
    let memory: Device = made!(cuMemAlloc_v2(8));
    ok!(cuMemFree_v2(memory));
    assert_eq!(poke(memory), 0);
    expect!(700, cuCtxSynchronize());
    assert!(first_finding().contains("use-after-free"), "{}", first_finding());
}

#[test]
fn a_fault_shows_at_the_next_call_that_waits_and_stops_what_is_queued() {
    let _driver = started(&[]);
    let host: Pointer = made!(cuMemHostAlloc(4, 0));
    let device = upload(&[1.0]);
    assert_eq!(poke(4096), 0);
    ok!(cuMemcpyDtoHAsync_v2(host, device, 4, LEGACY));
    expect!(700, cuStreamSynchronize(LEGACY));
    // SAFETY: page-locked memory of 4 bytes, which the driver has filled with ones.
    assert_eq!(unsafe { host.cast::<u32>().read() }, u32::MAX);
}

#[test]
fn freeing_memory_that_a_queued_copy_in_another_stream_uses_is_a_fault() {
    let faults = (0..16).filter(|seed| {
        let _driver = started(&[("seed", &seed.to_string())]);
        let (one, two): (Pointer, Pointer) = (made!(cuStreamCreate(1)), made!(cuStreamCreate(1)));
        let memory: Device = made!(cuMemAllocAsync(64, one));
        ok!(cuMemsetD8Async(memory, 0, 64, two));
        ok!(cuMemFreeAsync(memory, one));
        // SAFETY: no arguments.
        match unsafe { cuCtxSynchronize() } {
            0 => false,
            700 => true,
            code => panic!("{code}"),
        }
    });
    let faults = faults.count();
    assert!((1..16).contains(&faults), "{faults} of 16 seeds");
}

#[test]
fn findings_that_hardware_does_not_notice_are_reported_or_fail_as_set() {
    for (findings, code) in [("report", 0), ("fail", 719)] {
        let _driver = started(&[("findings", findings)]);
        let kernel = function(load(PTX), "scale");
        let (y, x): (Device, Device) = (made!(cuMemAlloc_v2(4)), made!(cuMemAlloc_v2(4)));
        assert_eq!(scale(kernel, LEGACY, y, x, 1.0, 1), 0);
        // SAFETY: no arguments.
        assert_eq!(unsafe { cuCtxSynchronize() }, code);
        let count: u64 = made!(cuEmulatorFindingCount());
        assert_eq!(count, 1);
        assert!(first_finding().contains("uninitialised"), "{}", first_finding());
    }
}

#[test]
fn checks_can_be_switched_off() {
    let _driver = started(&[("checks", "none")]);
    let kernel = function(load(PTX), "scale");
    let (y, x): (Device, Device) = (made!(cuMemAlloc_v2(4)), made!(cuMemAlloc_v2(4)));
    assert_eq!(scale(kernel, LEGACY, y, x, 1.0, 1), 0);
    assert!(download(y, 1)[0].is_nan()); // memory that was never written is a NaN
    let count: u64 = made!(cuEmulatorFindingCount());
    assert_eq!(count, 0);
}

#[test]
fn lines_and_counters_go_to_files() {
    let folder = std::env::temp_dir().join(format!("cuda-emulator-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (report, counters) = (folder.join("report.txt"), folder.join("counters.jsonl"));
    {
        let options = [("report", report.to_str().unwrap()), ("counters", counters.to_str().unwrap())];
        let _driver = started(&options);
        let kernel = function(load(PTX), "scale");
        let (y, x) = (upload(&[0.0; 100]), upload(&[1.0; 100]));
        assert_eq!(scale(kernel, LEGACY, y, x, 1.0, 100), 0);
        assert_eq!(scale(kernel, LEGACY, y, x, 1.0, 50), 0);
        ok!(cuCtxSynchronize());
        expect!(1, cuMemFree_v2(x + 4));
        assert_eq!(poke(x + 400), 0);
        expect!(700, cuCtxSynchronize());
        let _reset = CString::new("closes nothing: files are appended to").unwrap();
    }
    let lines = std::fs::read_to_string(&counters).unwrap();
    let all = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let (moved, launches): (Vec<_>, Vec<_>) = all.partition(|line| line["moved"].is_string());
    assert_eq!(moved.len(), 2); // the two uploads of 100 numbers
    assert!(
        moved
            .iter()
            .all(|line| line["moved"] == "copy" && line["bytes_read"] == 0 && line["bytes_written"] == 400)
    );
    assert_eq!(launches.len(), 3);
    assert_eq!(launches[0]["counters"]["kernel"], "scale");
    assert_eq!(launches[2]["findings"], 1);
    let measured = cuda_emulator::audit::measured::parse(&lines, "counters.jsonl").unwrap();
    assert_eq!((measured["scale"].launches, measured["poke"].launches), (2, 1)); // kernel-audit reads the file
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("cuMemFree_v2: CUDA_ERROR_INVALID_VALUE (1): "), "{text}");
    let line = PTX.lines().position(|line| line.contains("st.global.u32")).unwrap() + 1;
    assert!(text.contains(&format!("kernel poke, block (0,0,0), thread (0,0,0), PTX line {line}")), "{text}");
    assert!(text.lines().all(|line| line.starts_with("cuda-emulator: ")), "{text}");
    std::fs::remove_dir_all(&folder).unwrap();
}
