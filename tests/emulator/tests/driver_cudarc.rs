//! The example as a test: cudarc and NVRTC, the emulator opened by its path.

use cuda_emulator::toolchain::{self, NvrtcVersion};

#[path = "../examples/cudarc_nvrtc.rs"]
mod program;

#[test]
fn a_program_of_cudarc_and_nvrtc_runs_without_an_environment() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).expect("NVRTC 13.0 from its wheel");
    let driver = program::emulator().expect("the emulator beside this test");
    program::run(&driver, nvrtc.path()).expect("the program's own checks");
}
