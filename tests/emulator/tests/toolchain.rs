//! NVRTC and nvdisasm are fetched, opened, and do their work.

use cuda_emulator::toolchain::{self, Error, NvrtcVersion};

const SCALE: &str = r#"
extern "C" __global__ void scale(float* x, float by, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { x[i] *= by; }
}
"#;

#[test]
fn each_version_compiles_to_its_ptx_version_and_to_a_cubin() {
    for (version, number, ptx_version) in
        [(NvrtcVersion::V12_9, (12, 9), ".version 8.8"), (NvrtcVersion::V13_0, (13, 0), ".version 9.0")]
    {
        let nvrtc = toolchain::nvrtc(version).unwrap();
        assert_eq!(nvrtc.version(), number);
        let options = ["--gpu-architecture=sm_80", "--ptxas-options=-v"];
        let compiled = nvrtc.compile(SCALE, "scale.cu", &options).unwrap();
        assert!(compiled.ptx.contains(ptx_version), "{}", compiled.ptx);
        assert!(compiled.ptx.contains(".visible .entry scale("));
        assert!(!compiled.ptx.contains('\0'));
        assert!(compiled.log.contains("registers"), "{}", compiled.log);
        let sass = toolchain::nvdisasm().unwrap().disassemble(&compiled.cubin.unwrap()).unwrap();
        assert!(sass.contains("FMUL") && sass.contains("LDG.E") && sass.contains(".text.scale"), "{sass}");
    }
}

#[test]
fn a_virtual_architecture_has_no_cubin() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    let compiled = nvrtc.compile(SCALE, "scale.cu", &["--gpu-architecture=compute_90"]).unwrap();
    assert!(compiled.ptx.contains(".target sm_90") && compiled.cubin.is_none());
}

#[test]
fn source_error_is_told_with_name_and_line() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    let error = nvrtc.compile("__global__ void f() {\n  nonsense;\n}", "wrong.cu", &[]).unwrap_err();
    assert!(error.to_string().contains("wrong.cu(2): error: identifier \"nonsense\""), "{error}");
    assert!(matches!(error, Error::Compile { .. }));
}

#[test]
fn unknown_option_is_told_by_name() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    let error = nvrtc.compile(SCALE, "scale.cu", &["--make-it-fast"]).unwrap_err();
    assert!(error.to_string().contains("make-it-fast"), "{error}");
}

#[test]
fn header_given_as_text_is_found() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V12_9).unwrap();
    let source = "#include \"twice.cuh\"\nextern \"C\" __global__ void f(float* x) { *x = twice(*x); }";
    let header = ("twice.cuh", "__device__ inline float twice(float x) { return 2 * x; }");
    let options = ["--gpu-architecture=sm_90"];
    let compiled = nvrtc.compile_with_headers(source, "f.cu", &options, &[header]).unwrap();
    assert!(compiled.ptx.contains(".entry f("));
    assert!(nvrtc.compile(source, "f.cu", &options).is_err());
}

#[test]
fn text_with_nul_is_refused() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    assert!(matches!(nvrtc.compile("int a;\0", "nul.cu", &[]), Err(Error::Nul(_))));
}

#[test]
fn nvdisasm_refuses_what_is_no_cubin() {
    let error = toolchain::nvdisasm().unwrap().disassemble(b"no elf").unwrap_err();
    assert!(matches!(error, Error::Disassemble(_)), "{error}");
}

#[test]
fn cub_compiles_with_the_fetched_headers() {
    let source = "#include <cub/block/block_reduce.cuh>\n\
                  extern \"C\" __global__ void sum(float* y, const float* x) {\n\
                      using Reduce = cub::BlockReduce<float, 128>;\n\
                      __shared__ typename Reduce::TempStorage storage;\n\
                      float total = Reduce(storage).Sum(x[threadIdx.x]);\n\
                      if (threadIdx.x == 0) { *y = total; }\n\
                  }";
    for version in NvrtcVersion::ALL {
        let folders = toolchain::headers(version).unwrap();
        let includes: Vec<String> = folders.iter().map(|folder| format!("-I{}", folder.display())).collect();
        let mut options: Vec<&str> = includes.iter().map(String::as_str).collect();
        options.extend(["--gpu-architecture=sm_80", "--std=c++17"]);
        let compiled = toolchain::nvrtc(version).unwrap().compile(source, "sum.cu", &options).unwrap();
        assert!(compiled.ptx.contains("shfl.sync"));
    }
}
