//! A program of the CUDA driver API that knows nothing of the emulator: cudarc and NVRTC, and the paths of two libraries.
//!
//! `cargo run --release --example cudarc_nvrtc -- PATH_OF_libnvrtc.so.13 [PATH_OF_THE_DRIVER]`
//!
//! Both libraries are opened by absolute path; the loader then finds them again by their SONAME when cudarc asks for
//! `libcuda.so` and `libnvrtc.so.13`, so no environment variable is needed. With a real driver's path, it runs on a GPU.

use std::error::Error;
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::{self, Ptx};

const KERNELS: &str = r#"
extern "C" __global__ void saxpy(float* y, float a, const float* x, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void sum(float* total, const float* x, unsigned n) {
    extern __shared__ float part[];
    float s = 0.0f;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    part[threadIdx.x] = s;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(total, part[0]);
}
"#;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
}

/// Opens a library for good, by its path.
fn open(path: &Path) -> Result<()> {
    const NOW: c_int = 2;
    let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a path that ends with a zero byte; what runs at loading is the libraries' own start-up.
    match unsafe { dlopen(name.as_ptr(), NOW) }.is_null() {
        true => Err(format!("{} cannot be opened", path.display()).into()),
        false => Ok(()),
    }
}

/// Compiles for a real architecture: the machine code and the PTX.
fn compile(source: &str, capability: (i32, i32)) -> Result<(Vec<u8>, String)> {
    let program = nvrtc::result::create_program(&CString::new(source)?, Some(c"kernels.cu"))?;
    let options = [format!("--gpu-architecture=sm_{}{}", capability.0, capability.1), "-lineinfo".to_owned()];
    // SAFETY: a live program.
    if unsafe { nvrtc::result::compile_program(program, &options) }.is_err() {
        // SAFETY: as above.
        let log = unsafe { nvrtc::result::get_program_log(program)? };
        return Err(text(&log).into());
    }
    // SAFETY: the program is alive until it is destroyed here; the buffer has the size that NVRTC names.
    let (ptx, cubin) = unsafe {
        let ptx = nvrtc::result::get_ptx(program)?;
        let mut size = 0;
        nvrtc::sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut cubin = vec![0u8; size];
        nvrtc::sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        nvrtc::result::destroy_program(program)?;
        (ptx, cubin)
    };
    Ok((cubin, text(&ptx)))
}

fn text(bytes: &[c_char]) -> String {
    let bytes = bytes.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Loads the machine code, or where the device has no use for it, the PTX: what a program does anyway.
fn load(context: &Arc<CudaContext>, cubin: Vec<u8>, ptx: String) -> Result<Arc<CudaModule>> {
    match context.load_module(Ptx::from_binary(cubin)) {
        Ok(module) => {
            println!("loaded the CUBIN");
            Ok(module)
        }
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => {
            println!("the CUBIN is refused: no binary for this device; loading the PTX");
            Ok(context.load_module(Ptx::from_src(ptx))?)
        }
        Err(error) => Err(error.into()),
    }
}

struct Kernels {
    saxpy: CudaFunction,
    sum: CudaFunction,
}

/// Runs everything and checks the numbers.
pub fn run(driver: &Path, nvrtc: &Path) -> Result<()> {
    open(driver)?;
    open(nvrtc)?;
    let context = CudaContext::new(0)?;
    let capability = context.compute_capability()?;
    println!("{}, {} MiB, compute capability {capability:?}", context.name()?, context.total_mem()? >> 20);
    let (cubin, ptx) = compile(KERNELS, capability)?;
    let module = load(&context, cubin, ptx)?;
    let kernels = Kernels { saxpy: module.load_function("saxpy")?, sum: module.load_function("sum")? };
    attributes(&kernels)?;
    launches(&context, &kernels)?;
    pinned(&context)?;
    graph(&context, &kernels)?;
    refusals(&context.default_stream(), &kernels)?;
    context.synchronize()?;
    println!("all numbers are right");
    Ok(())
}

fn attributes(kernels: &Kernels) -> Result<()> {
    let blocks = kernels.sum.occupancy_max_active_blocks_per_multiprocessor(256, 1024, None)?;
    println!(
        "sum: {} registers, {blocks} blocks of 256 threads on a multiprocessor",
        kernels.sum.num_regs()?
    );
    check("occupancy", blocks >= 1)?;
    let largest = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernels.sum.set_attribute(largest, 64 << 10)?;
    check("attribute", kernels.sum.get_attribute(largest)? == 64 << 10)
}

/// Streams with event tracking, as cudarc does it by itself.
fn launches(context: &Arc<CudaContext>, kernels: &Kernels) -> Result<()> {
    let (one, two) = (context.new_stream()?, context.new_stream()?);
    let n = 10_007;
    let x: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect();
    let (device_x, mut y) = (one.clone_htod(&x)?, one.clone_htod(&vec![1.0f32; n])?);
    let start = one.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
    let (a, size) = (3.0f32, n as u32);
    let mut builder = one.launch_builder(&kernels.saxpy);
    builder.arg(&mut y).arg(&a).arg(&device_x).arg(&size);
    // SAFETY: the arguments are those of the kernel, and the arrays have n elements.
    unsafe { builder.launch(LaunchConfig::for_num_elems(size)) }?;
    let end = one.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
    let mut total = two.alloc_zeros::<f32>(1)?;
    let mut builder = two.launch_builder(&kernels.sum);
    builder.arg(&mut total).arg(&y).arg(&size);
    let config = LaunchConfig { grid_dim: (8, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 1024 };
    // SAFETY: as above; 256 floats of shared memory.
    unsafe { builder.launch(config) }?;
    let (y, total) = (two.clone_dtoh(&y)?, two.clone_dtoh(&total)?);
    two.synchronize()?;
    println!("saxpy took {:.3} ms", start.elapsed_ms(&end)?);
    check("saxpy", y.iter().zip(&x).all(|(y, x)| *y == 3.0 * x + 1.0))?;
    check("sum", total[0] == y.iter().sum::<f32>()) // small integers: exact in any order
}

fn pinned(context: &Arc<CudaContext>) -> Result<()> {
    let stream = context.new_stream()?;
    // SAFETY: written before it is read.
    let mut host = unsafe { context.alloc_pinned::<u32>(1000) }?;
    host.as_mut_slice()?.iter_mut().enumerate().for_each(|(i, v)| *v = i as u32 * 7);
    let device = stream.clone_htod(&host)?;
    host.as_mut_slice()?.fill(0); // waits for the copy first
    stream.memcpy_dtoh(&device, &mut host)?;
    check("pinned", host.as_slice()?.iter().enumerate().all(|(i, v)| *v == i as u32 * 7))
}

/// A graph of two launches, replayed: y = 2 x + (x + y) each time.
fn graph(context: &Arc<CudaContext>, kernels: &Kernels) -> Result<()> {
    // SAFETY: one stream does everything below, so nothing needs the events that cudarc would keep; they cannot be captured.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let size = 257u32;
    let x = stream.clone_htod(&vec![1.0f32; size as usize])?;
    let mut y = stream.alloc_zeros::<f32>(size as usize)?;
    stream.synchronize()?;
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    for a in [1.0f32, 2.0] {
        let mut builder = stream.launch_builder(&kernels.saxpy);
        builder.arg(&mut y).arg(&a).arg(&x).arg(&size);
        // SAFETY: as for the other launches.
        unsafe { builder.launch(LaunchConfig::for_num_elems(size)) }?;
    }
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?.ok_or("no graph was captured")?;
    check("nothing runs in a capture", stream.clone_dtoh(&y)?.iter().all(|y| *y == 0.0))?;
    graph.upload()?;
    for _ in 0..10 {
        graph.launch()?;
    }
    let found = stream.clone_dtoh(&y)?;
    stream.synchronize()?;
    check("graph", found.iter().all(|y| *y == 30.0))
}

fn refusals(stream: &Arc<CudaStream>, kernels: &Kernels) -> Result<()> {
    let (mut y, x) = (stream.alloc_zeros::<f32>(1)?, stream.alloc_zeros::<f32>(1)?);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (2048, 1, 1), shared_mem_bytes: 0 };
    let mut builder = stream.launch_builder(&kernels.saxpy);
    builder.arg(&mut y).arg(&1.0f32).arg(&x).arg(&1u32);
    // SAFETY: refused by the driver: a block has at most 1024 threads.
    let refused = unsafe { builder.launch(config) };
    check("too many threads", matches!(refused, Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE))))
}

fn check(what: &str, right: bool) -> Result<()> {
    if right { Ok(()) } else { Err(format!("{what}: wrong").into()) }
}

/// Finds the emulator where cargo puts it: beside this program, or one folder up.
pub fn emulator() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folders = program.ancestors().skip(1).take(2);
    let places = folders
        .flat_map(|folder| [folder.join("libcuda_emulator.so"), folder.join("deps/libcuda_emulator.so")]);
    places
        .into_iter()
        .find(|place| place.exists())
        .ok_or_else(|| "build the emulator first: cargo build --release".into())
}

#[allow(dead_code)] // a test runs `run` instead
fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let nvrtc = arguments.next().ok_or("usage: cudarc_nvrtc PATH_OF_libnvrtc.so [PATH_OF_THE_DRIVER]")?;
    let driver = arguments.next().map_or_else(emulator, Ok)?;
    run(&driver, &nvrtc)
}
