//! What the race check costs. By hand: `cargo test --release -p cuda-emulator --test races -- --ignored --nocapture`.

use cuda_emulator::exec::{Checks, Config};

use crate::harness::{Device, Setup, input, launch_with};

/// CPU time of this thread in nanoseconds, to some milliseconds: other work on the machine does not count.
fn now() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Prints the time of a kernel with and without the check of races.
fn compare(name: &str, source: &str, kernel: &str, setup: impl Fn(&mut Device) -> Setup) {
    let mut times = [u64::MAX; 2];
    for _ in 0..3 {
        for (time, races) in times.iter_mut().zip([false, true]) {
            let checks = Checks { races, ..Checks::default() };
            let config = Config { checks, ..Config::default() };
            let mut begin = 0;
            let (reports, _) = launch_with(&config, source, kernel, 0, |device| {
                let setup = setup(device);
                begin = now();
                setup
            });
            *time = (*time).min(now() - begin);
            assert!(reports.is_empty(), "{reports:?}");
        }
    }
    let [without, with] = times.map(|t| t as f64 / 1e6);
    println!(
        "{name}: {without:.1} ms, with the race check {with:.1} ms, {:+.0} %",
        100.0 * (with / without - 1.0)
    );
}

#[test]
#[ignore = "a measurement"]
fn cost_of_the_check() {
    let (m, n, k) = (512, 512, 512);
    compare("tiled product, f32", include_str!("gemm.cu"), "gemm", |device| {
        let (c, a, b) =
            (device.zeros(m * n * 4), device.floats(&input(m * k, 1)), device.floats(&input(k * n, 2)));
        Setup::new([8, 8, 1], [32, 8, 1]).pointer(c).pointer(a).pointer(b).int(k as i32).output(c, 4)
    });
    let (m, n, k) = (1024, 1024, 512);
    compare("tiled product, mma.sync", include_str!("../kernels/matmul.cu"), "matmul", |device| {
        let (c, a, b) = (device.zeros(m * n * 4), device.zeros(m * k * 2), device.zeros(k * n * 2));
        let setup = Setup::new([16, 16, 1], [128, 1, 1]).pointer(c).pointer(a).pointer(b);
        setup.int(m as i32).int(n as i32).int(k as i32).output(c, 4)
    });
    let n = 1 << 22;
    let source = "extern \"C\" __global__ void axpy(float* y, const float* x, float a, int n) {\n\
                  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) { y[i] += a * x[i]; } }";
    compare("y += a x", source, "axpy", |device| {
        let (y, x) = (device.zeros(n * 4), device.zeros(n * 4));
        Setup::new([n as u32 / 256, 1, 1], [256, 1, 1])
            .pointer(y)
            .pointer(x)
            .int(0)
            .int(n as i32)
            .output(y, 4)
    });
}
