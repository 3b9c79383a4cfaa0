//! Initialisation, devices, contexts, handles, names.

mod driver_support;

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null_mut;

use driver_support::*;

const GARBAGE: Pointer = 0x1234_5678_9ABC_usize as Pointer;

#[test]
fn nothing_works_before_init_but_the_version_and_the_names_of_errors() {
    let _driver = fresh(&[]);
    let mut count = 0;
    expect!(3, cuDeviceGetCount(&mut count));
    expect!(3, cuCtxSynchronize());
    expect!(3, cuMemFree_v2(0));
    expect!(3, cuStreamDestroy_v2(GARBAGE));
    let version: c_int = made!(cuDriverGetVersion());
    assert_eq!(version, 13000);
    expect!(1, cuInit(1));
    expect!(3, cuDeviceGetCount(&mut count));
    ok!(cuInit(0));
    ok!(cuInit(0));
    ok!(cuDeviceGetCount(&mut count));
    assert_eq!(count, 1);
}

#[test]
fn the_device_says_that_it_is_emulated_and_answers_for_its_capability() {
    for (name, text, major, minor, opt_in) in [
        ("sm_80", "CUDA emulator sm_80", 8, 0, 166_912),
        ("sm_86", "CUDA emulator sm_86", 8, 6, 101_376),
        ("9.0", "CUDA emulator sm_90", 9, 0, 232_448),
        ("120", "CUDA emulator sm_120", 12, 0, 101_376),
    ] {
        let _driver = started(&[("device", name), ("memory", "64M")]);
        let mut buffer = [0 as c_char; 64];
        ok!(cuDeviceGetName(buffer.as_mut_ptr(), 64, 0));
        // SAFETY: the driver has terminated it.
        assert_eq!(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_str(), Ok(text));
        let attribute = |number: c_int| -> c_int { made!(cuDeviceGetAttribute(number, 0)) };
        assert_eq!((attribute(75), attribute(76)), (major, minor));
        assert_eq!((attribute(10), attribute(97), attribute(115)), (32, opt_in, 1));
        let bytes: usize = made!(cuDeviceTotalMem_v2(0));
        assert_eq!(bytes, 64 << 20);
    }
}

#[test]
fn a_name_that_does_not_fit_is_cut_and_terminated() {
    let _driver = started(&[]);
    let mut buffer = [b'x' as c_char; 8];
    ok!(cuDeviceGetName(buffer.as_mut_ptr(), 5, 0));
    assert_eq!(buffer.map(|c| c as u8), *b"CUDA\0xxx");
    expect!(1, cuDeviceGetName(buffer.as_mut_ptr(), 0, 0));
}

#[test]
fn unknown_devices_and_attributes_are_refused() {
    let _driver = started(&[]);
    let mut value = 0;
    expect!(101, cuDeviceGet(&mut value, 1));
    expect!(101, cuDeviceGet(&mut value, -1));
    expect!(101, cuDeviceGetAttribute(&mut value, 1, 7));
    for attribute in [0, -1, 148, i32::MAX] {
        expect!(1, cuDeviceGetAttribute(&mut value, attribute, 0));
    }
}

#[test]
fn primary_contexts_are_counted() {
    let _driver = fresh(&[]);
    ok!(cuInit(0));
    let (mut flags, mut active) = (9, 9);
    ok!(cuDevicePrimaryCtxGetState(0, &mut flags, &mut active));
    assert_eq!((flags, active), (0, 0));
    expect!(201, cuDevicePrimaryCtxRelease_v2(0));
    let first: Pointer = made!(cuDevicePrimaryCtxRetain(0));
    let second: Pointer = made!(cuDevicePrimaryCtxRetain(0));
    assert_eq!(first, second);
    ok!(cuCtxSetCurrent(first));
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    ok!(cuCtxSynchronize());
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    ok!(cuDevicePrimaryCtxGetState(0, &mut flags, &mut active));
    assert_eq!(active, 0);
    expect!(709, cuCtxSynchronize());
    expect!(201, cuDevicePrimaryCtxRelease_v2(0));
}

#[test]
fn a_released_context_takes_its_memory_along() {
    let _driver = started(&[("memory", "64M")]);
    let _: Device = made!(cuMemAlloc_v2(48 << 20));
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    let context = made!(cuDevicePrimaryCtxRetain(0));
    ok!(cuCtxSetCurrent(context));
    let _: Device = made!(cuMemAlloc_v2(48 << 20));
}

#[test]
fn each_thread_has_a_stack_of_contexts() {
    let _driver = started(&[]);
    let primary: Pointer = made!(cuCtxGetCurrent());
    let own: Pointer = made!(cuCtxCreate_v2(0, 0));
    let current: Pointer = made!(cuCtxGetCurrent());
    assert_eq!(current, own);
    ok!(cuCtxPushCurrent_v2(primary));
    let popped: Pointer = made!(cuCtxPopCurrent_v2());
    assert_eq!(popped, primary);
    let popped: Pointer = made!(cuCtxPopCurrent_v2());
    assert_eq!(popped, own);
    let other = std::thread::spawn(|| {
        let current: Pointer = made!(cuCtxGetCurrent());
        assert!(current.is_null());
        expect!(201, cuCtxSynchronize());
    });
    other.join().unwrap();
    ok!(cuCtxSetCurrent(null_mut()));
    expect!(201, cuCtxSynchronize());
    expect!(201, cuCtxPopCurrent_v2(null_mut()));
    ok!(cuCtxDestroy_v2(own));
    expect!(201, cuCtxSetCurrent(own));
    expect!(201, cuCtxDestroy_v2(primary));
}

#[test]
fn limits_are_kept_and_unknown_ones_refused() {
    let _driver = started(&[]);
    ok!(cuCtxSetLimit(0, 4096));
    let value: usize = made!(cuCtxGetLimit(0));
    assert_eq!(value, 4096);
    expect!(215, cuCtxSetLimit(77, 1));
}

#[test]
fn garbage_handles_and_null_pointers_are_errors_and_no_crash() {
    let _driver = started(&[]);
    for handle in [GARBAGE, usize::MAX as Pointer, 3 as Pointer] {
        expect!(400, cuStreamSynchronize(handle));
        expect!(400, cuStreamDestroy_v2(handle));
        expect!(400, cuEventSynchronize(handle));
        expect!(400, cuEventDestroy_v2(handle));
        expect!(400, cuEventRecord(handle, LEGACY));
        expect!(400, cuModuleUnload(handle));
        expect!(400, cuGraphDestroy(handle));
        expect!(400, cuGraphLaunch(handle, LEGACY));
        expect!(201, cuCtxSetCurrent(handle));
        assert_eq!(launch(handle, [1; 3], [1; 3], 0, LEGACY, &mut []), 400);
        expect!(1, cuMemFree_v2(handle as Device));
        expect!(1, cuMemFreeAsync(handle as Device, LEGACY));
        expect!(1, cuMemFreeHost(handle));
    }
    expect!(400, cuStreamDestroy_v2(LEGACY));
    expect!(400, cuEventRecord(null_mut(), LEGACY));
    expect!(400, cuModuleUnload(null_mut()));
    expect!(1, cuStreamCreate(null_mut(), 0));
    expect!(1, cuEventCreate(null_mut(), 0));
    expect!(1, cuMemAlloc_v2(null_mut(), 4));
    expect!(1, cuModuleLoadData(null_mut(), c"x".as_ptr().cast()));
    let mut module = null_mut();
    expect!(1, cuModuleLoadData(&mut module, null_mut()));
    expect!(1, cuLaunchHostFunc(LEGACY, None, null_mut()));
    let mut stream = null_mut();
    expect!(1, cuStreamCreate(&mut stream, 2));
    let mut event = null_mut();
    expect!(1, cuEventCreate(&mut event, 8));
}

#[test]
fn a_handle_of_another_kind_is_refused() {
    let _driver = started(&[]);
    let stream: Pointer = made!(cuStreamCreate(0));
    let event: Pointer = made!(cuEventCreate(0));
    expect!(400, cuStreamSynchronize(event));
    expect!(400, cuEventSynchronize(stream));
    ok!(cuStreamDestroy_v2(stream));
    expect!(400, cuStreamSynchronize(stream));
}

#[test]
fn errors_have_names_and_texts() {
    for (code, name, text) in [
        (0, "CUDA_SUCCESS", "no error"),
        (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
        (
            907,
            "CUDA_ERROR_CAPTURED_EVENT",
            "operation not permitted on an event last recorded in a capturing stream",
        ),
    ] {
        let found: *const c_char = made!(cuGetErrorName_swapped(code));
        // SAFETY: texts of the driver are static and terminated.
        assert_eq!(unsafe { CStr::from_ptr(found) }.to_str(), Ok(name));
        let found: *const c_char = made!(cuGetErrorString_swapped(code));
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(found) }.to_str(), Ok(text));
    }
    let mut name = std::ptr::dangling();
    expect!(1, cuGetErrorName(12345, &mut name));
    assert!(name.is_null());
}

/// `made!` puts the result first; here it is last.
#[allow(non_snake_case)]
unsafe fn cuGetErrorName_swapped(name: *mut *const c_char, code: u32) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { cuGetErrorName(code, name) }
}

/// See above.
#[allow(non_snake_case)]
unsafe fn cuGetErrorString_swapped(text: *mut *const c_char, code: u32) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { cuGetErrorString(code, text) }
}

#[test]
fn functions_are_found_by_name() {
    let mut status = 9;
    let mut function: Pointer = null_mut();
    ok!(cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut function, 13000, 0, &mut status));
    assert_eq!((function as usize, status), (cuMemAlloc_v2 as *const () as usize, 0));
    expect!(500, cuGetProcAddress_v2(c"cuNothing".as_ptr(), &mut function, 13000, 0, &mut status));
    assert_eq!((function, status), (null_mut(), 1));
}

#[test]
fn options_are_checked_and_come_too_late_after_init() {
    let _driver = fresh(&[]);
    for (name, value) in [("sede", "1"), ("device", "sm_42"), ("queue", "soon"), ("checks", "races,nonsense")]
    {
        let (name, value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
        expect!(1, cuEmulatorSetOption(name.as_ptr(), value.as_ptr()));
    }
    ok!(cuInit(0));
    expect!(401, cuEmulatorSetOption(c"seed".as_ptr(), c"1".as_ptr()));
}

/// What cudarc 0.19.10 looks up in its `result` and `safe` layers.
#[rustfmt::skip]
const CUDARC: &[&str] = &[
    "cuCtxCreate_v3", "cuCtxCreate_v4", "cuCtxDestroy_v2", "cuCtxGetCacheConfig", "cuCtxGetCurrent",
    "cuCtxGetLimit", "cuCtxGetStreamPriorityRange", "cuCtxSetCacheConfig", "cuCtxSetCurrent",
    "cuCtxSetFlags", "cuCtxSetLimit", "cuCtxSynchronize", "cuDestroyExternalMemory", "cuDeviceGet",
    "cuDeviceGetAttribute", "cuDeviceGetCount", "cuDeviceGetDefaultMemPool", "cuDeviceGetMemPool",
    "cuDeviceGetName", "cuDeviceGetUuid", "cuDeviceGetUuid_v2", "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain", "cuDeviceSetMemPool", "cuDeviceTotalMem_v2", "cuEventCreate",
    "cuEventDestroy_v2", "cuEventElapsedTime", "cuEventElapsedTime_v2", "cuEventQuery", "cuEventRecord",
    "cuEventSynchronize", "cuExternalMemoryGetMappedBuffer", "cuFuncGetAttribute", "cuFuncSetAttribute",
    "cuFuncSetCacheConfig", "cuGetErrorName", "cuGetErrorString", "cuGraphDestroy", "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuGraphUpload", "cuImportExternalMemory", "cuInit",
    "cuLaunchCooperativeKernel", "cuLaunchHostFunc", "cuLaunchKernel", "cuMemAdvise_v2", "cuMemAllocAsync",
    "cuMemAllocFromPoolAsync", "cuMemAllocManaged", "cuMemAlloc_v2", "cuMemFreeAsync", "cuMemFreeHost",
    "cuMemFree_v2", "cuMemGetInfo_v2", "cuMemHostAlloc", "cuMemPoolCreate", "cuMemPoolDestroy",
    "cuMemPoolGetAttribute", "cuMemPoolSetAttribute", "cuMemPoolTrimTo", "cuMemPrefetchAsync_v2",
    "cuMemcpyDtoDAsync_v2", "cuMemcpyDtoD_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2", "cuMemcpyHtoD_v2", "cuMemcpyPeerAsync", "cuMemsetD8Async", "cuMemsetD8_v2",
    "cuModuleGetFunction", "cuModuleGetGlobal_v2", "cuModuleLoad", "cuModuleLoadData", "cuModuleUnload",
    "cuOccupancyAvailableDynamicSMemPerBlock", "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", "cuOccupancyMaxActiveClusters",
    "cuOccupancyMaxPotentialBlockSize", "cuOccupancyMaxPotentialBlockSizeWithFlags",
    "cuOccupancyMaxPotentialClusterSize", "cuProfilerStart", "cuProfilerStop", "cuStreamAttachMemAsync",
    "cuStreamBeginCapture_v2", "cuStreamCreate", "cuStreamCreateWithPriority", "cuStreamDestroy_v2",
    "cuStreamEndCapture", "cuStreamIsCapturing", "cuStreamSynchronize", "cuStreamWaitEvent",
];

#[test]
fn every_function_that_cudarc_looks_up_is_there() {
    for name in CUDARC {
        let (symbol, mut function, mut status) = (CString::new(*name).unwrap(), null_mut(), 0);
        ok!(cuGetProcAddress_v2(symbol.as_ptr(), &mut function, 13000, 0, &mut status));
        assert!(!function.is_null(), "{name}");
    }
}
