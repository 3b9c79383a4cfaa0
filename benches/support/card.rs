//! A CUDA card under test: what it reaches at most, and calls timed by its own clock.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criterion::Throughput;
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use flowprior::device::cuda::Source;
use flowprior::device::{CudaOptions, Queue};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, Error, Result, Tensor};
use half::bf16;

use crate::place::Group;

/// Bytes that are written to flush the L2 cache: more than any card's.
const FLUSH: usize = 256 << 20;
/// Elements of a copy whose bandwidth is the bar: 1 GiB read and 1 GiB written.
const COPY: usize = 1 << 28;
/// Times that a rate is measured; the median counts.
const TIMES: usize = 9;

/// A card and what it reaches at most.
pub struct Card {
    device: Device,
    queue: Arc<Queue>,
    flush: Mutex<Tensor<f32>>,
    copy: f64,
    matrix: f64,
    fma: f64,
    stream: Arc<CudaStream>,
    blas: Option<CudaBlasLT>,
}

fn failed(what: &'static str) -> impl Fn(cudarc::driver::DriverError) -> Error {
    move |error| Error::Device(format!("{what}: {error}"))
}

fn median(mut ms: Vec<f64>) -> f64 {
    ms.sort_by(f64::total_cmp);
    ms.get(ms.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Card {
    /// Opens the card and measures its copies, matrix instructions and FMA units.
    pub fn open(options: &CudaOptions) -> Result<Self> {
        let device = Device::cuda(options)?;
        let Device::Cuda(queue) = device.clone() else {
            return Err(Error::Device("not a CUDA device".into()));
        };
        if queue.name().contains("emulator") {
            let why =
                "the driver is an emulator, whose times say nothing: FLOWPRIOR_BENCH_DEVICE=emulator counts";
            return Err(Error::Usage(why.into()));
        }
        let stream = CudaContext::new(options.ordinal).map_err(failed("opening the card"))?.default_stream();
        let (copy, [matrix, fma]) =
            (copy_rate(&device, &queue)?, peaks(&queue, options.cache.as_deref(), &stream)?);
        // SAFETY: asks whether a library is there.
        let present = unsafe { cudarc::cublaslt::sys::is_culib_present() };
        let blas = present.then(|| CudaBlasLT::new(stream.clone()).ok()).flatten();
        let (major, minor) = queue.capability();
        println!(
            "{}, sm_{major}{minor}: copies {:.0} GB/s, mma.sync bf16 {:.1} TFLOP/s, FMA f32 {:.1} TFLOP/s; cuBLASLt {}",
            queue.name(),
            copy / 1e9,
            matrix / 1e12,
            fma / 1e12,
            if blas.is_some() { "is compared" } else { "is not installed" },
        );
        let flush = Mutex::new(Tensor::zeros(&device, [FLUSH / 4]));
        Ok(Self { device, queue, flush, copy, matrix, fma, stream, blas })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Times `f` with the L2 cache flushed and with what it left there.
    pub fn time<R>(
        &self,
        group: &mut Group,
        name: &str,
        throughput: Throughput,
        mut f: impl FnMut() -> Result<R>,
    ) {
        for flushed in [true, false] {
            let label = if flushed { format!("{name}, L2 flushed") } else { format!("{name}, L2 warm") };
            let seen = RefCell::new(Vec::new());
            group.throughput(throughput.clone());
            group.bench_function(label, |b| {
                b.iter_custom(|calls| {
                    let ms: Vec<f64> = (0..calls).map(|_| self.once(flushed, &mut f).unwrap()).collect();
                    let total = ms.iter().sum::<f64>();
                    seen.borrow_mut().extend(ms);
                    Duration::from_secs_f64(total / 1e3)
                });
            });
            let seen = seen.into_inner();
            if seen.is_empty() {
                return; // the filter left it out
            }
            let seconds = median(seen) / 1e3;
            match throughput {
                Throughput::BytesDecimal(bytes) => {
                    println!("    {:.0} % of copies", 100.0 * bytes as f64 / seconds / self.copy);
                }
                Throughput::Elements(flop) => {
                    let rate = flop as f64 / seconds;
                    let (matrix, fma) = (100.0 * rate / self.matrix, 100.0 * rate / self.fma);
                    println!("    {matrix:.0} % of mma.sync bf16, {fma:.0} % of FMA f32");
                }
                _ => {}
            }
        }
    }

    fn once<R>(&self, flushed: bool, f: &mut impl FnMut() -> Result<R>) -> Result<f64> {
        if flushed {
            self.flush.lock().unwrap_or_else(|e| e.into_inner()).view_mut().fill_zero();
        }
        let start = self.queue.event()?;
        f()?;
        self.queue.event()?.ms_since(&start)
    }

    /// Times cuBLASLt's product of the same shape, x (N, C) times w (O, C) transposed, in bf16, and prints its rate.
    pub fn compare(&self, (n, o, c): (usize, usize, usize)) -> Result<()> {
        let Some(blas) = &self.blas else { return Ok(()) };
        let normal = |rows: usize, columns: usize| {
            let mut values = vec![0.0; rows * columns];
            let draw = Draw::new(1, Stream::Latents, columns as u64);
            flowprior::device::Isa::detect().run(
                #[inline(always)]
                |arch| draw.fill_normal(arch, &mut values, 0, 0),
            );
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            self.stream.clone_htod(&values).map_err(failed("copying to the card"))
        };
        let (x, w) = (normal(n, c)?, normal(o, c)?);
        let mut y = self.stream.alloc_zeros::<bf16>(n * o).map_err(failed("allocating on the card"))?;
        // Its matrices are column-major: this is y transposed.
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: o as u64,
            n: n as u64,
            k: c as u64,
            alpha: 1.0,
            lda: c as i64,
            ldb: c as i64,
            beta: 0.0,
            ldc: o as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        let mut ms = Vec::new();
        for _ in 0..TIMES + 2 {
            ms.push(timed(&self.stream, || {
                // SAFETY: sizes and strides are those of the three matrices.
                let product = unsafe { blas.matmul(config, &w, &x, &mut y, None, None) };
                product.map_err(|e| Error::Device(format!("cuBLASLt: {e}")))
            })?);
        }
        let rate = 2.0 * (n * o * c) as f64 / (median(ms.split_off(2)) / 1e3);
        println!(
            "    cuBLASLt, bf16 {n}x{o}x{c}: {:.1} TFLOP/s, {:.0} % of mma.sync",
            rate / 1e12,
            100.0 * rate / self.matrix
        );
        Ok(())
    }
}

/// Returns the milliseconds that a stream takes for what `f` queues.
fn timed(stream: &Arc<CudaStream>, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
    let event = || stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(failed("recording an event"));
    let start = event()?;
    f()?;
    let end = event()?;
    end.synchronize().map_err(failed("waiting"))?;
    start.elapsed_ms(&end).map(f64::from).map_err(failed("timing"))
}

/// Returns the bytes a second of copies on the device, read and written.
fn copy_rate(device: &Device, queue: &Queue) -> Result<f64> {
    let (from, mut to) = (Tensor::<f32>::zeros(device, [COPY]), Tensor::<f32>::zeros(device, [COPY]));
    let mut ms = Vec::new();
    for _ in 0..TIMES {
        let start = queue.event()?;
        to.copy_from(&from)?;
        ms.push(queue.event()?.ms_since(&start)?);
    }
    Ok(8.0 * COPY as f64 / (median(ms) / 1e3))
}

/// Returns the FLOP a second of mma.sync in bf16 and of FMA in f32, from registers.
fn peaks(queue: &Queue, cache: Option<&Path>, stream: &Arc<CudaStream>) -> Result<[f64; 2]> {
    static SOURCE: Source =
        Source { name: "benches/support/peak.cu", text: include_str!("peak.cu"), hash: 1 };
    let (major, minor) = queue.capability();
    let options = [format!("--gpu-architecture=sm_{major}{minor}"), "--std=c++17".to_owned()];
    let compiled = queue.nvrtc().compile_cached(cache, &SOURCE, &options)?;
    let ptx = String::from_utf8_lossy(&compiled.ptx).trim_end_matches('\0').to_owned();
    let module = stream.context().load_module(Ptx::from_src(ptx)).map_err(failed("loading peak.cu"))?;
    let (blocks, rounds) = (queue.multiprocessors() * 8, 1u32 << 14);
    let mut out =
        stream.alloc_zeros::<f32>(blocks as usize * 256).map_err(failed("allocating on the card"))?;
    let mut rate = |name: &str, flop_per_round: f64| {
        let kernel = module.load_function(name).map_err(failed("finding a kernel"))?;
        let mut ms = Vec::new();
        for _ in 0..TIMES {
            let config =
                LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
            ms.push(timed(stream, || {
                // SAFETY: the kernel writes one number for each thread of the grid, and `out` has room for them.
                let launched =
                    unsafe { stream.launch_builder(&kernel).arg(&mut out).arg(&rounds).launch(config) };
                launched.map(drop).map_err(failed("launching"))
            })?);
        }
        Ok(f64::from(blocks) * f64::from(rounds) * flop_per_round / (median(ms) / 1e3))
    };
    // Eight warps with eight products of 16x8x16; 256 threads with eight FMAs.
    Ok([rate("peak_mma_bf16", 64.0 * 4096.0)?, rate("peak_fma_f32", 256.0 * 16.0)?])
}
