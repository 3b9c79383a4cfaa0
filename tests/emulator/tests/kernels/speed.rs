//! How fast kernels run with all checks on. By hand: `cargo test --release -p cuda-emulator --test kernels -- --ignored --nocapture`.

use cuda_emulator::exec::Config;
use cuda_emulator::toolchain::NvrtcVersion;

use crate::support::case::Case;
use crate::support::numbers::{Element, Inputs, Random};
use crate::{compile, references};

const AXPY: &str = r#"
extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) { return; }
    float v = x[i];
    for (int k = 0; k < 32; k++) { v = fmaf(v, a, 0.5f); }
    y[i] = v;
}
"#;

/// The best of three runs on one thread: seconds of the launch, and lane-instructions.
fn seconds(case: &Case, source: &str, name: &str) -> (f64, u64) {
    let module = compile::module(&compile::nvrtc(NvrtcVersion::V13_0), source, name, "compute_80");
    let once = || {
        let outcome = case.run(&module, &Config::default());
        outcome.assert_right(name);
        (outcome.seconds, outcome.instructions)
    };
    (0..3).map(|_| once()).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn speed_of_elementwise_and_matrix_kernels() {
    let n = 1 << 20;
    let mut case = Case::new("axpy", [n as u32 / 256, 1, 1], [256, 1, 1]);
    case.output("y", Element::F32, n);
    case.input("x", Element::F32, &Inputs::Random.numbers(&mut Random(1), n));
    case.float(0.5);
    case.int(n as i32);
    let (time, instructions) = seconds(&case, AXPY, "axpy.cu");
    println!(
        "element-wise: {:.2} G lane-instructions/s ({instructions} in {time:.3} s)",
        instructions as f64 / time / 1e9
    );

    let case = references::cases("adamw", Inputs::Random).swap_remove(0);
    println!(
        "AdamW of {} elements runs too: {:?}",
        case.buffers[0].len,
        seconds(&case, &compile::source("adamw"), "adamw.cu")
    );

    let size = [512, 512, 512];
    let case = references::matmul(Inputs::Random, &mut Random(2), size);
    let (time, _) = seconds(&case, &compile::source("matmul"), "matmul.cu");
    let operations = 2.0 * size.iter().product::<usize>() as f64;
    println!("mma.sync: {:.2} GFLOP/s (512 x 512 x 512 in {time:.3} s)", operations / time / 1e9);
}
