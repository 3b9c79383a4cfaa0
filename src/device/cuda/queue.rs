//! One context of one device with its stream: modules, launches, copies.
//!
//! Everything goes to one stream, in order; nothing here waits for the device but what returns bytes to the host. An error
//! of the device is sticky, as CUDA's are: every later call returns it.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{DriverError, result};

use crate::device::cuda::memory::Pool;
use crate::device::cuda::staging::Staging;
use crate::device::cuda::{Argument, CudaOptions, DeviceBuf, Nvrtc, Read, Source, library};
use crate::error::{Error, Result};
use crate::float::DType;

/// The oldest architecture that our kernels run on: cp.async and bf16 tensor cores.
const OLDEST: (i32, i32) = (8, 0);

/// Says which driver call failed and why.
pub(super) fn failed(what: &str, error: DriverError) -> String {
    let name =
        error.error_name().map_or_else(|_| format!("{:?}", error.0), |n| n.to_string_lossy().into_owned());
    let text = error.error_string().map_or_else(|_| String::new(), |s| format!(": {}", s.to_string_lossy()));
    format!("CUDA, {what}: {name}{text}")
}

pub(super) fn device_error(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Device(failed(what, error))
}

/// A retained primary context and its stream.
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver API may be called from any thread with any handle of the process.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn open(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device was returned by the driver.
        let handle =
            unsafe { result::primary_ctx::retain(device) }.map_err(device_error("opening a context"))?;
        let mut context = Self { device, handle, stream: std::ptr::null_mut() };
        context.enter()?;
        context.stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(device_error("creating a stream"))?;
        Ok(context)
    }

    /// Makes this the calling thread's context; returns its stream.
    pub(super) fn enter(&self) -> Result<sys::CUstream> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.handle) }.map_err(device_error("entering the context"))?;
        Ok(self.stream)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both are ours and used no more. A context that failed reports it again here: it was said before.
        unsafe {
            if result::ctx::set_current(self.handle).is_ok() && !self.stream.is_null() {
                let _destroyed = result::stream::destroy(self.stream);
            }
            let _released = result::primary_ctx::release(self.device);
        }
    }
}

/// An opened CUDA device.
pub struct Queue {
    pub(super) context: Arc<Context>,
    pub(super) pool: Arc<Pool>,
    pub(super) staging: Mutex<Option<Staging>>,
    nvrtc: Nvrtc,
    cache: Option<PathBuf>,
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
    shared: u32,
    tf32: bool,
    modules: Mutex<Vec<Module>>,
    /// By kernel and storage type.
    functions: Mutex<Vec<Option<Function>>>,
    /// Numbers that kernels look up, by their bytes: uploaded once, kept.
    constants: Mutex<HashMap<Vec<u8>, DeviceBuf>>,
    /// The first failure of a call that could not return it.
    failure: Mutex<Option<String>>,
}

/// A loaded module: one kernel file for one storage type.
struct Module {
    source: usize,
    dtype: DType,
    handle: sys::CUmodule,
}

// SAFETY: see `Context`.
unsafe impl Send for Module {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that it was allowed so far.
    shared: u32,
}

// SAFETY: see `Context`.
unsafe impl Send for Function {}
// SAFETY: see `Context`.
unsafe impl Sync for Function {}

/// A kernel, as `build.rs` found it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Index of its file among all.
    pub source: usize,
    /// Its own index among all.
    pub index: usize,
    /// Name in the module.
    pub name: &'static CStr,
    /// What `floatX` is.
    pub dtype: DType,
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// Covers `work` units, `each` of them by one thread, in blocks of `threads`.
    pub fn covering(work: usize, each: usize, threads: u32) -> Self {
        let blocks = work.div_ceil(each * threads as usize);
        Self { blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], threads, shared: 0 }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "Queue({}, sm_{major}{minor})", self.name)
    }
}

impl Queue {
    /// Says whether the system has a driver with at least one device.
    pub fn is_present(options: &CudaOptions) -> bool {
        // SAFETY: asked after the library was opened.
        library::open_driver(options.driver.as_deref()).is_ok()
            && unsafe { sys::is_culib_present() }
            && result::init().is_ok()
            && result::device::get_count().is_ok_and(|count| count > 0)
    }

    /// Opens a device.
    ///
    /// # Errors
    /// No driver or no NVRTC (with all places that were tried), no such device, a card older than sm_80, or an NVRTC that
    /// does not know the card.
    pub fn open(options: &CudaOptions) -> Result<Self> {
        library::open_driver(options.driver.as_deref())?;
        // SAFETY: looks whether the library that was just opened is found by name.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Device(
                "the CUDA driver is open, but not found by the name libcuda.so".into(),
            ));
        }
        result::init().map_err(device_error("starting the driver"))?;
        let count = result::device::get_count().map_err(device_error("counting devices"))?;
        let ordinal = options.ordinal;
        if ordinal as i64 >= count as i64 {
            return Err(Error::Device(format!(
                "cuda:{ordinal} was asked for; the driver has {count} devices"
            )));
        }
        let device = result::device::get(ordinal as i32).map_err(device_error("opening a device"))?;
        let name = result::device::get_name(device).map_err(device_error("asking a device's name"))?;
        let capability = capability(device)?;
        let (major, minor) = capability;
        if capability < OLDEST {
            return Err(Error::Device(format!(
                "{name} is sm_{major}{minor}; kernels need sm_80 or newer (Ampere): use `--device cpu`"
            )));
        }
        let nvrtc = Nvrtc::open(options.compiler.as_deref())?;
        if !nvrtc.knows(capability) {
            let (found_major, found_minor) = nvrtc.version();
            return Err(Error::Device(format!(
                "NVRTC {found_major}.{found_minor} cannot compile for {name} (sm_{major}{minor}): install a newer \
                 nvidia-cuda-nvrtc"
            )));
        }
        let multiprocessors = ask(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = ask(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let context = Arc::new(Context::open(device)?);
        let pool = Arc::new(Pool::new(context.clone(), options.guard));
        Ok(Self {
            context,
            pool,
            staging: Mutex::default(),
            nvrtc,
            cache: options.cache.clone(),
            name,
            capability,
            multiprocessors: multiprocessors.unsigned_abs(),
            shared: shared.unsigned_abs(),
            tf32: options.tf32,
            modules: Mutex::default(),
            functions: Mutex::default(),
            constants: Mutex::default(),
            failure: Mutex::default(),
        })
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Returns the newest CUDA version that the driver supports, major and minor.
    ///
    /// # Errors
    /// A driver that does not say.
    pub fn driver_version(&self) -> Result<(i32, i32)> {
        let mut version = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(device_error("asking the driver's version"))?;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// Returns the number of multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Returns the bytes of shared memory that a block may have, static and dynamic.
    pub fn shared_memory(&self) -> u32 {
        self.shared
    }

    /// Returns whether matrices of f32 are multiplied rounded to tf32.
    pub fn tf32(&self) -> bool {
        self.tf32
    }

    /// Returns the compiler.
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// Takes a block of device memory; its content is whatever it held last. When there is none, the next use of the
    /// device says so.
    pub(crate) fn take(&self, bytes: usize) -> Option<DeviceBuf> {
        self.pool.take(bytes).map_err(|error| self.remember(error.to_string())).ok()
    }

    /// Makes the context current, unless something failed before; returns the stream.
    pub(super) fn enter(&self) -> Result<sys::CUstream> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(Error::Device(message.clone())),
            None => self.context.enter(),
        }
    }

    /// Copies to the device. The host's memory may change as soon as this returns.
    pub(crate) fn upload<T: Pod>(&self, to: u64, from: &[T]) -> Result<()> {
        let stream = self.enter()?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the target has room for `from` (its tensor has that many elements), and the copy is waited for.
        unsafe {
            result::memcpy_htod_async(to, from, stream).and_then(|()| result::stream::synchronize(stream))
        }
        .map_err(device_error("copying to the device"))
    }

    /// Takes a block of device memory that is no tensor.
    pub(crate) fn block(&self, bytes: usize) -> Result<DeviceBuf> {
        self.pool.take(bytes)
    }

    /// Copies numbers to a block of their own.
    pub(crate) fn uploaded<T: Pod>(&self, values: &[T]) -> Result<DeviceBuf> {
        let block = self.pool.take(size_of_val(values))?;
        self.upload(block.address(), values)?;
        Ok(block)
    }

    /// Returns the address of a few numbers that stay the same for the run: copied when they are first asked for.
    pub(crate) fn constant<T: Pod>(&self, values: &[T]) -> Result<Read<'_, T>> {
        let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if !constants.contains_key(bytes) {
            let block = self.pool.take_lasting(size_of_val(values))?;
            self.upload(block.address(), values)?;
            constants.insert(bytes.to_vec(), block);
        }
        Ok(Read::at(constants.get(bytes).map_or(0, DeviceBuf::address)))
    }

    /// Copies to the host, when all that was queued before is done.
    pub(crate) fn download<T: Pod>(&self, to: &mut [T], from: u64) -> Result<()> {
        let stream = self.enter()?;
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the source has as many elements as `to`, and the copy is waited for.
        unsafe {
            result::memcpy_dtoh_async(to, from, stream).and_then(|()| result::stream::synchronize(stream))
        }
        .map_err(device_error("copying from the device"))
    }

    /// Copies within the device.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let stream = self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both tensors have as many bytes, and live until the stream has come to their next use.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
            .map_err(device_error("copying on the device"))
    }

    /// Sets bytes to zero. Should it fail, the next use of the device says so.
    pub(crate) fn zero(&self, at: u64, bytes: usize) {
        let Ok(stream) = self.enter() else { return };
        if bytes == 0 {
            return;
        }
        // SAFETY: the range lies inside its tensor.
        if let Err(error) = unsafe { result::memset_d8_async(at, 0, bytes, stream) } {
            self.remember(failed("filling device memory", error));
        }
    }

    /// Keeps the first failure of a call that cannot return it.
    fn remember(&self, message: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }

    /// Returns the error of an operation that has no kernel here.
    pub(crate) fn lacks(&self, operation: &str) -> Error {
        Error::Device(format!("{operation} has no CUDA kernel yet; use `--device cpu`"))
    }

    /// Waits until everything that was queued is done.
    pub fn synchronize(&self) -> Result<()> {
        let stream = self.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(stream) }.map_err(device_error("waiting for the device"))
    }

    /// Queues a kernel. Called by the launchers that `build.rs` makes, which know the kernel's arguments.
    pub(crate) fn launch<const N: usize>(
        &self,
        sources: &[Source],
        kernel: &Kernel,
        grid: Grid,
        arguments: &[Argument; N],
    ) -> Result<()> {
        let stream = self.enter()?;
        if grid.blocks.contains(&0) {
            return Ok(()); // nothing to do, and the driver refuses an empty grid
        }
        let function = self.function(sources, kernel, grid.shared)?;
        let mut pointers: [*mut c_void; N] =
            std::array::from_fn(|i| std::ptr::from_ref(&arguments[i]).cast_mut().cast());
        let [x, y, z] = grid.blocks;
        // SAFETY: the launcher was made from the kernel's signature, so number, order and sizes of arguments are the
        // kernel's; tensors behind addresses live until the stream has come to their next use.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared,
                stream,
                &mut pointers,
            )
        }
        .map_err(|e| Error::Device(failed(&format!("launching {:?} with {grid:?}", kernel.name), e)))
    }

    /// Returns a kernel, compiled and loaded when it is first used, and allowed at least so much dynamic shared memory. What it was
    /// allowed before stays so, since another thread may be about to launch it.
    fn function(&self, sources: &[Source], kernel: &Kernel, shared: u32) -> Result<sys::CUfunction> {
        let at = kernel.index * 3 + kernel.dtype as usize;
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if functions.len() <= at {
            functions.resize(at + 1, None);
        }
        let function = match &mut functions[at] {
            Some(function) => function,
            empty => {
                let module = self.module(sources, kernel)?;
                // SAFETY: the module is loaded and stays so as long as `self` lives.
                let handle = unsafe { result::module::get_function(module, kernel.name.to_owned()) }
                    .map_err(|e| {
                        Error::Device(failed(&format!("finding the kernel {:?}", kernel.name), e))
                    })?;
                empty.insert(Function { handle, shared: 0 })
            }
        };
        if shared > function.shared {
            // SAFETY: as above. The driver wants to be told of more than 48 KiB.
            unsafe { result::function::set_function_attribute(function.handle, DYNAMIC, shared as i32) }
                .map_err(device_error("reserving shared memory"))?;
            function.shared = shared;
        }
        Ok(function.handle)
    }

    /// Returns the module of a kernel file for a storage type.
    fn module(&self, sources: &[Source], kernel: &Kernel) -> Result<sys::CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let found = modules.iter().find(|m| m.source == kernel.source && m.dtype == kernel.dtype);
        if let Some(module) = found {
            return Ok(module.handle);
        }
        let source = &sources[kernel.source];
        let (major, minor) = self.capability;
        let options = [
            format!("--gpu-architecture=sm_{major}{minor}"),
            format!("-DFLOATX={}", kernel.dtype as usize),
            "-lineinfo".to_owned(),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
        ];
        let compiled = self.nvrtc.compile_cached(self.cache.as_deref(), source, &options)?;
        // SAFETY: a whole CUBIN, as NVRTC made it, or the cache kept it with its checksum.
        let loaded = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        let handle = match loaded {
            // The driver has no use for this machine code (it is older, or another one): it compiles the PTX itself.
            Err(DriverError(
                sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | sys::CUresult::CUDA_ERROR_INVALID_IMAGE,
            )) => {
                // SAFETY: PTX that ends with a zero byte.
                unsafe { result::module::load_data(compiled.ptx.as_ptr().cast()) }
            }
            other => other,
        }
        .map_err(|e| Error::Device(failed(&format!("loading {}", source.name), e)))?;
        modules.push(Module { source: kernel.source, dtype: kernel.dtype, handle });
        Ok(handle)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: loaded here, and nothing can be launched any more. The stream is waited for by unloading.
            let _unloaded = unsafe { result::module::unload(module.handle) };
        }
    }
}

/// Asks a device for its compute capability.
fn capability(device: sys::CUdevice) -> Result<(i32, i32)> {
    let major = ask(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, ask(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// Asks a device for one of its numbers.
fn ask(device: sys::CUdevice, attribute: Attribute) -> Result<i32> {
    // SAFETY: the device was returned by the driver.
    let answer = unsafe { result::device::get_attribute(device, attribute) };
    answer.map_err(device_error("asking the device about itself"))
}
