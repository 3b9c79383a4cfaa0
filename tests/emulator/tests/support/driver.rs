//! Runs a case through the C functions of the driver, as a program would: they are linked into the test.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

// Links the crate, whose functions are found by their C names.
use cuda_emulator as _;

use super::case::{Argument, Case};

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: u64) -> u32;
    fn cuCtxSynchronize() -> u32;
    fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> u32;
    fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> u32;
    fn cuModuleUnload(module: u64) -> u32;
    fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> u32;
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32;
    fn cuMemFree_v2(address: u64) -> u32;
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32;
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32;
    #[allow(clippy::too_many_arguments)]
    fn cuLaunchKernel(
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: u64,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;
    fn cuEmulatorReset() -> u32;
    fn cuEmulatorSetOption(name: *const c_char, value: *const c_char) -> u32;
}

/// CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES of cuda.h.
const MAX_DYNAMIC_SHARED: c_int = 8;

/// The driver of this process, for one test at a time.
pub struct Driver {
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// The number of a failed call, with its name.
pub type Failure = (&'static str, u32);

fn ok(name: &'static str, code: u32) -> Result<(), Failure> {
    if code == 0 { Ok(()) } else { Err((name, code)) }
}

impl Driver {
    /// Initialises the driver afresh with options, and makes the primary context current.
    pub fn start(options: &[(&str, &str)]) -> Driver {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever had the driver before has given it back with its turn.
        assert_eq!(unsafe { cuEmulatorReset() }, 0);
        for (name, value) in options {
            let (c_name, c_value) = (CString::new(*name).unwrap(), CString::new(*value).unwrap());
            // SAFETY: both are C strings that live over the call.
            let code = unsafe { cuEmulatorSetOption(c_name.as_ptr(), c_value.as_ptr()) };
            assert_eq!(code, 0, "option {name} = {value}");
        }
        let (mut device, mut context) = (0, 0);
        // SAFETY: the pointers are to live variables.
        unsafe {
            assert_eq!(cuInit(0), 0);
            assert_eq!(cuDeviceGet(&mut device, 0), 0);
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), 0);
            assert_eq!(cuCtxSetCurrent(context), 0);
        }
        Driver { _turn: turn }
    }

    /// Loads PTX, runs a case, and says which element is wrong, if one is.
    pub fn run(&self, ptx: &str, case: &Case) -> Result<Option<String>, Failure> {
        let image = CString::new(ptx).unwrap();
        let name = CString::new(case.kernel.as_str()).unwrap();
        let (mut module, mut function) = (0, 0);
        // SAFETY: the image and the name are C strings, the other pointers are to live variables.
        unsafe {
            ok("cuModuleLoadData", cuModuleLoadData(&mut module, image.as_ptr().cast()))?;
            ok("cuModuleGetFunction", cuModuleGetFunction(&mut function, module, name.as_ptr()))?;
            let shared = case.dynamic_shared as c_int;
            ok("cuFuncSetAttribute", cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared))?;
        }
        let addresses = upload(case)?;
        launch(case, function, &addresses)?;
        // SAFETY: there is nothing to hold.
        ok("cuCtxSynchronize", unsafe { cuCtxSynchronize() })?;
        let read = |at: usize, bytes: &mut [u8]| {
            // SAFETY: the target is as long as is said.
            let code = unsafe { cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), addresses[at], bytes.len()) };
            assert_eq!(code, 0, "cuMemcpyDtoH of {}", case.buffers[at].name);
        };
        let wrong = case.first_wrong(read);
        for (address, buffer) in addresses.iter().zip(&case.buffers) {
            if !buffer.freed {
                // SAFETY: the address comes from cuMemAlloc and is freed once.
                ok("cuMemFree", unsafe { cuMemFree_v2(*address) })?;
            }
        }
        // SAFETY: the module was loaded above.
        ok("cuModuleUnload", unsafe { cuModuleUnload(module) })?;
        Ok(wrong)
    }
}

fn upload(case: &Case) -> Result<Vec<u64>, Failure> {
    let mut addresses = Vec::new();
    for buffer in &case.buffers {
        let mut address = 0;
        // SAFETY: the pointer is to a live variable.
        ok("cuMemAlloc", unsafe { cuMemAlloc_v2(&mut address, buffer.len * buffer.element.bytes()) })?;
        if let Some(values) = &buffer.values {
            let bytes = buffer.element.encode(values);
            // SAFETY: the source is as long as is said.
            ok("cuMemcpyHtoD", unsafe { cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) })?;
        }
        if buffer.freed {
            // SAFETY: the address comes from cuMemAlloc and is freed once.
            ok("cuMemFree", unsafe { cuMemFree_v2(address) })?;
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// Launches with the arguments, followed by nulls for what the kernel may declare besides.
fn launch(case: &Case, function: u64, addresses: &[u64]) -> Result<(), Failure> {
    let value = |argument: &Argument| match argument {
        Argument::Buffer(name) => {
            let at = case.buffers.iter().position(|b| b.name == *name).expect("a buffer of that name");
            addresses[at].to_le_bytes().to_vec()
        }
        Argument::Bytes(bytes) => bytes.clone(),
    };
    let mut values: Vec<Vec<u8>> = case.arguments.iter().map(value).collect();
    values.resize(values.len() + 4, vec![0; 8]);
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
    let ([gx, gy, gz], [bx, by, bz]) = (case.grid, case.block);
    // SAFETY: there is a pointer for each parameter of the kernel, to a value of its size: `Case::run` has checked that.
    let code = unsafe {
        cuLaunchKernel(
            function,
            gx,
            gy,
            gz,
            bx,
            by,
            bz,
            case.dynamic_shared,
            0,
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        )
    };
    ok("cuLaunchKernel", code)
}
