//! What the tests of the driver share: prototypes of `cuda.h`, written here once more and not taken from the crate, so that
//! a wrong signature there shows; a fresh driver for each test; kernels.

#![allow(dead_code, non_snake_case, missing_docs)] // each test file uses a part; names are those of cuda.h

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

// Links the crate, whose functions are found by their C names.
use cuda_emulator as _;

pub type Pointer = *mut c_void;
pub type Device = u64;

#[repr(C)]
pub struct Copy2D {
    pub src_x: usize,
    pub src_y: usize,
    pub src_type: c_int,
    pub src_host: *const c_void,
    pub src_device: Device,
    pub src_array: Pointer,
    pub src_pitch: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_type: c_int,
    pub dst_host: Pointer,
    pub dst_device: Device,
    pub dst_array: Pointer,
    pub dst_pitch: usize,
    pub width: usize,
    pub height: usize,
}

#[repr(C)]
pub struct KernelNode {
    pub function: Pointer,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: *mut Pointer,
    pub extra: *mut Pointer,
    pub kernel: Pointer,
    pub context: Pointer,
}

#[repr(C)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: Pointer,
    pub attributes: *mut [u32; 18],
    pub count: u32,
}

unsafe extern "C" {
    pub fn cuInit(flags: u32) -> u32;
    pub fn cuDriverGetVersion(version: *mut c_int) -> u32;
    pub fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32;
    pub fn cuDeviceGetCount(count: *mut c_int) -> u32;
    pub fn cuDeviceGetName(name: *mut c_char, size: c_int, device: c_int) -> u32;
    pub fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> u32;
    pub fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32;
    pub fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> u32;
    pub fn cuDevicePrimaryCtxRetain(context: *mut Pointer, device: c_int) -> u32;
    pub fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32;
    pub fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut u32, active: *mut c_int) -> u32;
    pub fn cuCtxCreate_v2(context: *mut Pointer, flags: u32, device: c_int) -> u32;
    pub fn cuCtxDestroy_v2(context: Pointer) -> u32;
    pub fn cuCtxGetCurrent(context: *mut Pointer) -> u32;
    pub fn cuCtxSetCurrent(context: Pointer) -> u32;
    pub fn cuCtxPushCurrent_v2(context: Pointer) -> u32;
    pub fn cuCtxPopCurrent_v2(context: *mut Pointer) -> u32;
    pub fn cuCtxSynchronize() -> u32;
    pub fn cuCtxGetLimit(value: *mut usize, limit: c_int) -> u32;
    pub fn cuCtxSetLimit(limit: c_int, value: usize) -> u32;
    pub fn cuStreamCreate(stream: *mut Pointer, flags: u32) -> u32;
    pub fn cuStreamCreateWithPriority(stream: *mut Pointer, flags: u32, priority: c_int) -> u32;
    pub fn cuStreamGetPriority(stream: Pointer, priority: *mut c_int) -> u32;
    pub fn cuStreamDestroy_v2(stream: Pointer) -> u32;
    pub fn cuStreamSynchronize(stream: Pointer) -> u32;
    pub fn cuStreamQuery(stream: Pointer) -> u32;
    pub fn cuStreamWaitEvent(stream: Pointer, event: Pointer, flags: u32) -> u32;
    pub fn cuStreamBeginCapture_v2(stream: Pointer, mode: c_int) -> u32;
    pub fn cuStreamEndCapture(stream: Pointer, graph: *mut Pointer) -> u32;
    pub fn cuStreamIsCapturing(stream: Pointer, status: *mut c_int) -> u32;
    pub fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) -> u32;
    pub fn cuLaunchHostFunc(stream: Pointer, function: Option<extern "C" fn(Pointer)>, data: Pointer) -> u32;
    pub fn cuEventCreate(event: *mut Pointer, flags: u32) -> u32;
    pub fn cuEventDestroy_v2(event: Pointer) -> u32;
    pub fn cuEventRecord(event: Pointer, stream: Pointer) -> u32;
    pub fn cuEventQuery(event: Pointer) -> u32;
    pub fn cuEventSynchronize(event: Pointer) -> u32;
    pub fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: Pointer, end: Pointer) -> u32;
    pub fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32;
    pub fn cuMemAlloc_v2(address: *mut Device, bytes: usize) -> u32;
    pub fn cuMemFree_v2(address: Device) -> u32;
    pub fn cuMemAllocAsync(address: *mut Device, bytes: usize, stream: Pointer) -> u32;
    pub fn cuMemFreeAsync(address: Device, stream: Pointer) -> u32;
    pub fn cuMemHostAlloc(address: *mut Pointer, bytes: usize, flags: u32) -> u32;
    pub fn cuMemFreeHost(address: Pointer) -> u32;
    pub fn cuMemHostRegister_v2(address: Pointer, bytes: usize, flags: u32) -> u32;
    pub fn cuMemHostUnregister(address: Pointer) -> u32;
    pub fn cuMemHostGetDevicePointer_v2(device: *mut Device, address: Pointer, flags: u32) -> u32;
    pub fn cuMemHostGetFlags(flags: *mut u32, address: Pointer) -> u32;
    pub fn cuMemcpyHtoD_v2(to: Device, from: *const c_void, bytes: usize) -> u32;
    pub fn cuMemcpyDtoH_v2(to: Pointer, from: Device, bytes: usize) -> u32;
    pub fn cuMemcpyDtoD_v2(to: Device, from: Device, bytes: usize) -> u32;
    pub fn cuMemcpyHtoDAsync_v2(to: Device, from: *const c_void, bytes: usize, stream: Pointer) -> u32;
    pub fn cuMemcpyDtoHAsync_v2(to: Pointer, from: Device, bytes: usize, stream: Pointer) -> u32;
    pub fn cuMemcpyDtoDAsync_v2(to: Device, from: Device, bytes: usize, stream: Pointer) -> u32;
    pub fn cuMemcpy2D_v2(parameters: *const Copy2D) -> u32;
    pub fn cuMemsetD8_v2(address: Device, value: u8, count: usize) -> u32;
    pub fn cuMemsetD8Async(address: Device, value: u8, count: usize, stream: Pointer) -> u32;
    pub fn cuMemsetD16Async(address: Device, value: u16, count: usize, stream: Pointer) -> u32;
    pub fn cuMemsetD32Async(address: Device, value: u32, count: usize, stream: Pointer) -> u32;
    pub fn cuPointerGetAttribute(data: Pointer, attribute: c_int, address: Device) -> u32;
    pub fn cuDeviceGetDefaultMemPool(pool: *mut Pointer, device: c_int) -> u32;
    pub fn cuMemPoolGetAttribute(pool: Pointer, attribute: c_int, value: Pointer) -> u32;
    pub fn cuMemPoolSetAttribute(pool: Pointer, attribute: c_int, value: Pointer) -> u32;
    pub fn cuMemPoolTrimTo(pool: Pointer, keep: usize) -> u32;
    pub fn cuModuleLoadData(module: *mut Pointer, image: *const c_void) -> u32;
    pub fn cuModuleLoadDataEx(
        module: *mut Pointer,
        image: *const c_void,
        count: u32,
        options: *mut c_int,
        values: *mut Pointer,
    ) -> u32;
    pub fn cuModuleUnload(module: Pointer) -> u32;
    pub fn cuModuleGetFunction(function: *mut Pointer, module: Pointer, name: *const c_char) -> u32;
    pub fn cuModuleGetGlobal_v2(
        address: *mut Device,
        bytes: *mut usize,
        module: Pointer,
        name: *const c_char,
    ) -> u32;
    pub fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Pointer) -> u32;
    pub fn cuFuncSetAttribute(function: Pointer, attribute: c_int, value: c_int) -> u32;
    pub fn cuLaunchKernel(
        function: Pointer,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        shared: u32,
        stream: Pointer,
        params: *mut Pointer,
        extra: *mut Pointer,
    ) -> u32;
    pub fn cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: Pointer,
        params: *mut Pointer,
        extra: *mut Pointer,
    ) -> u32;
    pub fn cuLaunchCooperativeKernel(
        function: Pointer,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        shared: u32,
        stream: Pointer,
        params: *mut Pointer,
    ) -> u32;
    pub fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        count: *mut c_int,
        function: Pointer,
        block: c_int,
        shared: usize,
    ) -> u32;
    pub fn cuGraphCreate(graph: *mut Pointer, flags: u32) -> u32;
    pub fn cuGraphDestroy(graph: Pointer) -> u32;
    pub fn cuGraphAddKernelNode_v2(
        node: *mut Pointer,
        graph: Pointer,
        dependencies: *const Pointer,
        count: usize,
        parameters: *const KernelNode,
    ) -> u32;
    pub fn cuGraphGetNodes(graph: Pointer, nodes: *mut Pointer, count: *mut usize) -> u32;
    pub fn cuGraphNodeGetType(node: Pointer, kind: *mut c_int) -> u32;
    pub fn cuGraphInstantiateWithFlags(exec: *mut Pointer, graph: Pointer, flags: u64) -> u32;
    pub fn cuGraphUpload(exec: Pointer, stream: Pointer) -> u32;
    pub fn cuGraphLaunch(exec: Pointer, stream: Pointer) -> u32;
    pub fn cuGraphExecDestroy(exec: Pointer) -> u32;
    pub fn cuGraphExecKernelNodeSetParams_v2(
        exec: Pointer,
        node: Pointer,
        parameters: *const KernelNode,
    ) -> u32;
    pub fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32;
    pub fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32;
    pub fn cuGetProcAddress_v2(
        symbol: *const c_char,
        function: *mut Pointer,
        version: c_int,
        flags: u64,
        status: *mut c_int,
    ) -> u32;
    pub fn cuEmulatorReset() -> u32;
    pub fn cuEmulatorSetOption(name: *const c_char, value: *const c_char) -> u32;
    pub fn cuEmulatorFindingCount(count: *mut u64) -> u32;
    pub fn cuEmulatorFinding(index: usize, buffer: *mut c_char, size: usize) -> u32;
}

/// Calls a C function and compares its result.
#[macro_export]
macro_rules! expect {
    ($code:literal, $function:ident($($argument:expr),* $(,)?)) => {{
        #[allow(clippy::macro_metavars_in_unsafe)] // each test would else repeat the same sentence at every call
        // SAFETY: the arguments are what cuda.h asks for, or wrong ones that the emulator must refuse.
        let code = unsafe { $function($($argument),*) };
        assert_eq!(code, $code, "{}", stringify!($function($($argument),*)));
    }};
}

/// Calls a C function that must succeed.
#[macro_export]
macro_rules! ok {
    ($function:ident($($argument:expr),* $(,)?)) => { $crate::expect!(0, $function($($argument),*)) };
}

/// Calls a C function that makes something, and returns that.
#[macro_export]
macro_rules! made {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: all results are plain numbers or pointers, for which zero is a value.
        let mut made = unsafe { std::mem::zeroed() };
        $crate::ok!($function(&mut made $(, $argument)*));
        made
    }};
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Takes the driver, as it is before cuInit, with options.
pub fn fresh(options: &[(&str, &str)]) -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ok!(cuEmulatorReset());
    for (name, value) in options {
        let (name, value) = (CString::new(*name).unwrap(), CString::new(*value).unwrap());
        ok!(cuEmulatorSetOption(name.as_ptr(), value.as_ptr()));
    }
    guard
}

/// Takes the driver with the primary context current.
pub fn started(options: &[(&str, &str)]) -> MutexGuard<'static, ()> {
    let guard = fresh(options);
    ok!(cuInit(0));
    let context = made!(cuDevicePrimaryCtxRetain(0));
    ok!(cuCtxSetCurrent(context));
    guard
}

/// The kernels of the tests: `scale(y, x, a, n)`, `poke(address)` writes 4 bytes, `big` has 40,000 bytes of shared memory,
/// `bounded` at most 64 threads, `exact` exactly 32 x 2, and the variable `table`.
pub const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .u32 table[3] = {7, 8, 9};
.visible .entry scale(.param .u64 y, .param .u64 x, .param .f32 a, .param .u32 n) {
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %d<8>;
    ld.param.u64 %d1, [y];
    ld.param.u64 %d2, [x];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %d3, %r5, 4;
    add.s64 %d4, %d2, %d3;
    add.s64 %d5, %d1, %d3;
    ld.global.f32 %f2, [%d4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%d5], %f3;
DONE:
    ret;
}
.visible .entry poke(.param .u64 address) {
    .reg .b32 %r<2>;
    .reg .b64 %d<2>;
    ld.param.u64 %d1, [address];
    mov.u32 %r1, 1;
    st.global.u32 [%d1], %r1;
    ret;
}
.visible .entry big() {
    .shared .align 4 .b8 tile[40000];
    ret;
}
.visible .entry bounded() .maxntid 64, 1, 1 {
    ret;
}
.visible .entry exact() .reqntid 32, 2, 1 {
    ret;
}
";

/// Loads PTX.
pub fn load(text: &str) -> Pointer {
    let text = CString::new(text).unwrap();
    made!(cuModuleLoadData(text.as_ptr().cast()))
}

/// Finds a kernel of [`PTX`], or of another module.
pub fn function(module: Pointer, name: &str) -> Pointer {
    let name = CString::new(name).unwrap();
    made!(cuModuleGetFunction(module, name.as_ptr()))
}

/// Launches with parameters of any types.
pub fn launch(
    function: Pointer,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Pointer,
    params: &mut [Pointer],
) -> u32 {
    let [gx, gy, gz] = grid;
    let [bx, by, bz] = block;
    let none = std::ptr::null_mut();
    // SAFETY: the parameters are pointers to values of the kernel's types.
    unsafe { cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, params.as_mut_ptr(), none) }
}

/// Launches `scale` over `n` elements.
pub fn scale(function: Pointer, stream: Pointer, y: Device, x: Device, a: f32, n: u32) -> u32 {
    let (mut y, mut x, mut a, mut n) = (y, x, a, n);
    let mut params: [Pointer; 4] =
        [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    launch(function, [n.div_ceil(64).max(1), 1, 1], [64, 1, 1], 0, stream, &mut params)
}

/// Makes device memory with these values.
pub fn upload(values: &[f32]) -> Device {
    let address = made!(cuMemAlloc_v2(size_of_val(values)));
    ok!(cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values)));
    address
}

/// Reads device memory.
pub fn download(address: Device, count: usize) -> Vec<f32> {
    let mut values = vec![0.0f32; count];
    ok!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, count * 4));
    values
}

/// Waits for no stream in particular.
pub const LEGACY: Pointer = std::ptr::null_mut();
