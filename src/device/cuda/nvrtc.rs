//! NVRTC, the compiler from CUDA C++ to machine code and PTX, and a cache of what it made.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::{fs, ptr};

use libloading::Library;

use crate::device::cuda::library::open_compiler;
use crate::error::{Error, Result};

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// An opened NVRTC; threads may share it.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log: (Size, Fill),
    ptx: (Size, Fill),
    cubin: (Size, Fill),
    message: unsafe extern "C" fn(c_int) -> *const c_char,
    version: (i32, i32),
    architectures: Vec<i32>,
    _library: Library,
}

/// What NVRTC makes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code of the architecture that was asked for.
    pub cubin: Vec<u8>,
    /// PTX, for drivers that have no use for the machine code; ends with a zero byte.
    pub ptx: Vec<u8>,
}

impl Nvrtc {
    /// Opens the library at `explicit`, or the first one that is found.
    ///
    /// # Errors
    /// None is found (all places that were tried are listed), or one that lacks a function.
    pub fn open(explicit: Option<&Path>) -> Result<Self> {
        let (library, path) = open_compiler(explicit)?;
        /// Looks up a function of the type that is expected.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the types above are those of nvrtc.h, the same in 12.0 to 13; `_library` outlives the pointer.
                let symbol = unsafe { library.get($name) };
                *symbol.map_err(|e| Error::Device(format!("{}: {e}", path.display())))?
            }};
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!(b"nvrtcVersion");
        let count: unsafe extern "C" fn(*mut c_int) -> c_int = function!(b"nvrtcGetNumSupportedArchs");
        let list: unsafe extern "C" fn(*mut c_int) -> c_int = function!(b"nvrtcGetSupportedArchs");
        let mut nvrtc = Self {
            create: function!(b"nvrtcCreateProgram"),
            destroy: function!(b"nvrtcDestroyProgram"),
            compile: function!(b"nvrtcCompileProgram"),
            log: (function!(b"nvrtcGetProgramLogSize"), function!(b"nvrtcGetProgramLog")),
            ptx: (function!(b"nvrtcGetPTXSize"), function!(b"nvrtcGetPTX")),
            cubin: (function!(b"nvrtcGetCUBINSize"), function!(b"nvrtcGetCUBIN")),
            message: function!(b"nvrtcGetErrorString"),
            version: (0, 0),
            architectures: Vec::new(),
            _library: library,
        };
        let (mut major, mut minor, mut known) = (0, 0, 0);
        // SAFETY: the pointers are to live integers.
        nvrtc.check("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        // SAFETY: as above.
        nvrtc.check("nvrtcGetNumSupportedArchs", unsafe { count(&mut known) })?;
        let mut architectures = vec![0; known.max(0) as usize];
        // SAFETY: the vector has as many elements as the library said.
        nvrtc.check("nvrtcGetSupportedArchs", unsafe { list(architectures.as_mut_ptr()) })?;
        nvrtc.architectures = architectures;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    /// Returns major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Says whether it can compile for compute capability `major`.`minor`.
    pub fn knows(&self, (major, minor): (i32, i32)) -> bool {
        self.architectures.contains(&(10 * major + minor))
    }

    /// Compiles `source`, or takes from the folder `cache` what was made of the same text with the same options before.
    ///
    /// # Errors
    /// The compiler's log, line by line, with the names of our files.
    pub fn compile_cached(
        &self,
        cache: Option<&Path>,
        source: &Source,
        options: &[String],
    ) -> Result<Compiled> {
        let Some(cache) = cache else { return self.compile(source, options) };
        let (major, minor) = self.version;
        let key = format!("{:016x} nvrtc {major}.{minor} {}", source.hash, options.join(" "));
        let name = format!("{}-{:08x}.bin", source.stem(), crc32c::crc32c(key.as_bytes()));
        let file = cache.join(name);
        if let Some(found) = read_entry(&file, &key) {
            return Ok(found);
        }
        let compiled = self.compile(source, options)?;
        // A cache that cannot be written costs time, not correctness.
        let _kept = write_entry(&file, &key, &compiled);
        Ok(compiled)
    }

    fn compile(&self, source: &Source, options: &[String]) -> Result<Compiled> {
        let text = c_string(source.text)?;
        let name = c_string(source.name)?;
        let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = Guard { handle: ptr::null_mut(), nvrtc: self };
        // SAFETY: text and name are alive and end with zero; there are no headers.
        let code = unsafe {
            (self.create)(&mut program.handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check("nvrtcCreateProgram", code)?;
        // SAFETY: the program is alive, the array has as many strings as is said.
        let code = unsafe { (self.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        if code != 0 {
            let log = program.result(self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches(['\0', '\n']).replace('\n', "\n  ");
            return Err(Error::Device(format!(
                "{} does not compile ({}):\n  {log}",
                source.name,
                self.text(code)
            )));
        }
        Ok(Compiled { cubin: program.result(self.cubin)?, ptx: program.result(self.ptx)? })
    }

    fn text(&self, code: c_int) -> String {
        // SAFETY: the function takes any number and returns a static string.
        unsafe { CStr::from_ptr((self.message)(code)) }.to_string_lossy().into_owned()
    }

    fn check(&self, function: &str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Error::Device(format!("{function}: {}", self.text(code)))) }
    }
}

/// A kernel file with its headers inlined, as `build.rs` prepared it.
#[derive(Debug)]
pub struct Source {
    /// For messages: `kernels/linear.cu`.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// Of the text.
    pub hash: u64,
}

impl Source {
    fn stem(&self) -> &str {
        Path::new(self.name).file_stem().and_then(|s| s.to_str()).unwrap_or("kernel")
    }
}

/// A program, destroyed at the end.
struct Guard<'a> {
    handle: Program,
    nvrtc: &'a Nvrtc,
}

impl Guard<'_> {
    /// Fetches a result: first its size, then its bytes.
    fn result(&self, (size, fill): (Size, Fill)) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is alive, the pointer is to a live integer.
        self.nvrtc.check("NVRTC: size of a result", unsafe { size(self.handle, &mut bytes) })?;
        let mut result = vec![0u8; bytes];
        // SAFETY: the buffer has the size that was just asked for.
        self.nvrtc.check("NVRTC: a result", unsafe { fill(self.handle, result.as_mut_ptr().cast()) })?;
        Ok(result)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made by `create`, destroyed once.
            unsafe { (self.nvrtc.destroy)(&mut self.handle) };
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Device(format!("a zero byte in what NVRTC is given: {text:.40?}")))
}

/// First bytes of a cache file; the number is the layout's version.
const MAGIC: &[u8] = b"flowprior kernel 1\n";

/// Reads a cache file: magic, lengths of key, machine code and PTX, these three, CRC-32C of all. `None` for anything else,
/// and for a file that others than its owner may write.
fn read_entry(path: &Path, key: &str) -> Option<Compiled> {
    use std::os::unix::fs::PermissionsExt;
    let about = fs::metadata(path).ok()?;
    if about.permissions().mode() & 0o022 != 0 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let (content, check) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*check) {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let mut lengths = [0usize; 3];
    for length in &mut lengths {
        let (head, tail) = rest.split_first_chunk::<8>()?;
        (*length, rest) = (u64::from_le_bytes(*head) as usize, tail);
    }
    let (stored, rest) = rest.split_at_checked(lengths[0])?;
    let (cubin, ptx) = rest.split_at_checked(lengths[1])?;
    (stored == key.as_bytes() && ptx.len() == lengths[2])
        .then(|| Compiled { cubin: cubin.to_vec(), ptx: ptx.to_vec() })
}

/// Writes a cache file that only its owner can read or write, in one piece.
fn write_entry(path: &Path, key: &str, compiled: &Compiled) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut bytes = MAGIC.to_vec();
    let parts = [key.as_bytes(), &compiled.cubin, &compiled.ptx];
    parts.iter().for_each(|part| bytes.extend((part.len() as u64).to_le_bytes()));
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let moved = file.write_all(&bytes).and_then(|()| fs::rename(&temporary, path));
    if moved.is_err() {
        let _gone = fs::remove_file(&temporary);
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_file_is_taken_only_whole_and_for_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels/axpy.bin");
        let compiled = Compiled { cubin: vec![1, 2, 3], ptx: b"ptx\0".to_vec() };
        write_entry(&path, "key", &compiled).unwrap();
        assert_eq!(read_entry(&path, "key"), Some(compiled));
        assert_eq!(read_entry(&path, "other"), None);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[1..], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read_entry(&path, "key"), None);
        }
        let mut flipped = whole.clone();
        flipped[MAGIC.len() + 26] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(read_entry(&path, "key"), None);
    }

    #[test]
    fn a_cache_file_that_others_can_write_is_not_taken() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("axpy.bin");
        write_entry(&path, "key", &Compiled { cubin: vec![], ptx: vec![0] }).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(read_entry(&path, "key"), None);
    }
}
