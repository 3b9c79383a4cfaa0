//! NVRTC, the compiler from CUDA C++ to PTX and CUBIN, opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libloading::Library;

use super::Error;

/// `nvrtcProgram`.
type Program = *mut c_void;
type SizeFn = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type TextFn = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type CreateFn = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// nvrtcResult NVRTC_ERROR_COMPILATION of nvrtc.h.
const ERROR_COMPILATION: c_int = 6;

/// What NVRTC makes of a source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The PTX text.
    pub ptx: String,
    /// The machine code, where the architecture is a real one (`--gpu-architecture=sm_80`, not `compute_80`).
    pub cubin: Option<Vec<u8>>,
    /// Warnings, and with `--ptxas-options=-v` the registers, spills and memory of each kernel.
    pub log: String,
}

/// An opened NVRTC. Several versions may be open at once, and threads may share one.
pub struct Nvrtc {
    create: CreateFn,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    ptx: (SizeFn, TextFn),
    cubin: (SizeFn, TextFn),
    log: (SizeFn, TextFn),
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    version: (u32, u32),
    path: PathBuf,
    _library: Library,
    _builtins: Vec<Library>,
}

impl Nvrtc {
    /// Opens the library at a path, or by a bare name where the loader looks.
    pub fn open(path: &Path) -> Result<Nvrtc, Error> {
        let builtins = open_builtins(path)?;
        // SAFETY: opening runs the library's initialisers; NVRTC's have no requirements (nvrtc.h).
        let library = unsafe { Library::new(path) };
        let library = library.map_err(|e| Error::Open(format!("{}: {e}", path.display())))?;
        let shown = path.display().to_string();
        /// Looks a function up; its type is the one of the field it is assigned to.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the field's type is this function's signature in nvrtc.h, unchanged from CUDA 11.1 to 13; the
                // library is kept open as long as the pointer (`_library`).
                let symbol = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *symbol.map_err(|source| Error::Symbol { library: shown.clone(), source })?
            }};
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!("nvrtcVersion");
        let mut nvrtc = Nvrtc {
            create: function!("nvrtcCreateProgram"),
            destroy: function!("nvrtcDestroyProgram"),
            compile: function!("nvrtcCompileProgram"),
            ptx: (function!("nvrtcGetPTXSize"), function!("nvrtcGetPTX")),
            cubin: (function!("nvrtcGetCUBINSize"), function!("nvrtcGetCUBIN")),
            log: (function!("nvrtcGetProgramLogSize"), function!("nvrtcGetProgramLog")),
            error_string: function!("nvrtcGetErrorString"),
            version: (0, 0),
            path: path.to_path_buf(),
            _library: library,
            _builtins: builtins,
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        nvrtc.check("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        nvrtc.version = (major as u32, minor as u32);
        Ok(nvrtc)
    }

    /// Opens an installed NVRTC: first the loader's usual places, then the Python packages `nvidia-cuda-nvrtc` and
    /// `nvidia-cuda-nvrtc-cu12` of the `python3` on the PATH.
    pub fn find_installed() -> Result<Nvrtc, Error> {
        let mut candidates = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from).to_vec();
        for packages in site_packages() {
            candidates.push(packages.join("nvidia/cu13/lib/libnvrtc.so.13"));
            candidates.push(packages.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"));
        }
        let mut looked = Vec::new();
        for candidate in candidates {
            match Nvrtc::open(&candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => looked.push(format!("  {error}")),
            }
        }
        Err(Error::Open(format!("it is installed in none of the usual places:\n{}", looked.join("\n"))))
    }

    /// Returns major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Returns the path or name under which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles one source. `name` is what messages and `.loc` lines call it.
    pub fn compile(&self, source: &str, name: &str, options: &[&str]) -> Result<Compiled, Error> {
        self.compile_with_headers(source, name, options, &[])
    }

    /// Compiles one source with headers (name as in `#include`, text) that are in no folder.
    pub fn compile_with_headers(
        &self,
        source: &str,
        name: &str,
        options: &[&str],
        headers: &[(&str, &str)],
    ) -> Result<Compiled, Error> {
        let program = self.create_program(source, name, headers)?;
        let strings = c_strings(options, "an option")?;
        let pointers = pointers(&strings);
        // SAFETY: the program is alive; the array has as many NUL-terminated strings as is said.
        let code = unsafe { (self.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = text(program.bytes("nvrtcGetProgramLog", self.log)?);
        if code == ERROR_COMPILATION {
            return Err(Error::Compile { name: name.to_string(), options: options.join(" "), log });
        }
        self.check("nvrtcCompileProgram", code).map_err(|error| with_log(error, &log))?;
        let ptx = text(program.bytes("nvrtcGetPTX", self.ptx)?);
        let cubin = program.bytes("nvrtcGetCUBIN", self.cubin)?;
        Ok(Compiled { ptx, cubin: Some(cubin).filter(|c| !c.is_empty()), log })
    }

    fn create_program(
        &self,
        source: &str,
        name: &str,
        headers: &[(&str, &str)],
    ) -> Result<ProgramGuard<'_>, Error> {
        let source = c_string(source, name)?;
        let name = c_string(name, "the name")?;
        let (names, texts): (Vec<&str>, Vec<&str>) = headers.iter().copied().unzip();
        let (names, texts) = (c_strings(&names, "a header's name")?, c_strings(&texts, "a header")?);
        let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
        let mut handle = ptr::null_mut();
        // SAFETY: all strings are NUL-terminated and alive over the call, which copies them; both arrays have as many.
        let code = unsafe {
            (self.create)(
                &mut handle,
                source.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        Ok(ProgramGuard { handle, nvrtc: self })
    }

    fn check(&self, function: &'static str, code: c_int) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any number and returns a static string.
        let message = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(Error::Nvrtc { function, message: message.to_string_lossy().into_owned() })
    }
}

/// A program that is destroyed when it goes out of scope.
struct ProgramGuard<'a> {
    handle: Program,
    nvrtc: &'a Nvrtc,
}

impl ProgramGuard<'_> {
    /// Fetches a result through its pair of functions: first its size, then its bytes.
    fn bytes(&self, function: &'static str, (size, fill): (SizeFn, TextFn)) -> Result<Vec<u8>, Error> {
        let mut count = 0;
        // SAFETY: the program is alive, and the pointer is to a live integer.
        self.nvrtc.check(function, unsafe { size(self.handle, &mut count) })?;
        let mut bytes = vec![0u8; count];
        if count > 0 {
            // SAFETY: the program is alive, and the buffer has the size that NVRTC asked for.
            self.nvrtc.check(function, unsafe { fill(self.handle, bytes.as_mut_ptr().cast()) })?;
        }
        Ok(bytes)
    }
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle comes from nvrtcCreateProgram and is destroyed once. There is nobody to tell of a failure.
        unsafe { (self.nvrtc.destroy)(&mut self.handle) };
    }
}

/// Opens `libnvrtc-builtins.so.*` beside NVRTC. NVRTC asks for it by its bare name, and not every version (13.0 is one) has
/// a search path of its own; the loader takes a library of that name that is open already.
fn open_builtins(path: &Path) -> Result<Vec<Library>, Error> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(Vec::new()); // a bare name: both are where the loader looks
    };
    let mut opened = Vec::new();
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            continue;
        }
        // SAFETY: it holds data for NVRTC; its initialisers have no requirements.
        let library = unsafe { Library::new(entry.path()) };
        opened.push(library.map_err(|e| Error::Open(format!("{}: {e}", entry.path().display())))?);
    }
    Ok(opened)
}

/// Asks Python for its package folders; none if there is no Python.
fn site_packages() -> Vec<PathBuf> {
    let script = "import site; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
    let output = Command::new("python3").args(["-c", script]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// A C string of NVRTC, without its NUL.
fn text(mut bytes: Vec<u8>) -> String {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn c_string(text: &str, what: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Nul(what.to_string()))
}

fn c_strings(texts: &[&str], what: &str) -> Result<Vec<CString>, Error> {
    texts.iter().map(|text| c_string(text, what)).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}

fn with_log(error: Error, log: &str) -> Error {
    match error {
        Error::Nvrtc { function, message } if !log.trim().is_empty() => {
            Error::Nvrtc { function, message: format!("{message}\n{}", log.trim_end()) }
        }
        other => other,
    }
}
