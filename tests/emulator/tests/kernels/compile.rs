//! Compiles the kernels of this folder.

use std::path::PathBuf;

use cuda_emulator::isa::Module;
use cuda_emulator::lower;
use cuda_emulator::toolchain::{self, Nvrtc, NvrtcVersion};

/// Reads a kernel's source by its stem.
pub fn source(stem: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(format!("{stem}.cu"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn nvrtc(version: NvrtcVersion) -> Nvrtc {
    toolchain::nvrtc(version).unwrap_or_else(|e| panic!("{e}"))
}

/// Compiles for a virtual architecture ("compute_80"), with line information.
pub fn ptx(nvrtc: &Nvrtc, source: &str, name: &str, architecture: &str) -> String {
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "-lineinfo".into()];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    nvrtc.compile(source, name, &options).unwrap_or_else(|e| panic!("{e}")).ptx
}

/// Compiles, and lowers the PTX.
pub fn module(nvrtc: &Nvrtc, source: &str, name: &str, architecture: &str) -> Module {
    let ptx = ptx(nvrtc, source, name, architecture);
    lower::module(&ptx).unwrap_or_else(|e| panic!("{name} of NVRTC {:?}: {e}", nvrtc.version()))
}
