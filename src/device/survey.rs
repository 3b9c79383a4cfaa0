//! What the machine has: processor, caches, memory, and CUDA libraries where the loader would look for them.
//!
//! Files are looked at, nothing is loaded or started. What a system does not tell stays unknown.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::device::simd::Isa;
use crate::error::{Error, Result};

/// Processor and memory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The processor's own name.
    pub model: Option<String>,
    /// Cores that this process may use: the default number of threads.
    pub cores: usize,
    /// The instruction set that kernels take.
    pub isa: Isa,
    /// The caches of the first core, nearest first.
    pub caches: Vec<Cache>,
    /// Bytes of memory.
    pub memory_total: Option<u64>,
    /// Bytes that are free or can be freed.
    pub memory_available: Option<u64>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Level and kind: `L1 data`.
    pub name: String,
    /// Size.
    pub bytes: u64,
}

impl Machine {
    /// Looks at this machine.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        Self {
            model: value(&read("/proc/cpuinfo"), "model name").map(str::to_owned),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: Isa::detect(),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory_total: value(&meminfo, "MemTotal").and_then(bytes),
            memory_available: value(&meminfo, "MemAvailable").and_then(bytes),
            huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        }
    }
}

/// Returns what stands behind `key` and a colon in the first line that has both.
fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

/// Reads `24 kB`, `64K` or `2M`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "" => Some(number),
        "K" | "kB" => Some(number << 10),
        "M" => Some(number << 20),
        "G" => Some(number << 30),
        _ => None,
    }
}

/// Returns the word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

fn caches(folder: &Path) -> Vec<Cache> {
    let cache = |i: usize| {
        let read = |name| fs::read_to_string(folder.join(format!("index{i}")).join(name)).ok();
        let (level, kind, size) = (read("level")?, read("type")?, read("size")?);
        let name = match kind.trim() {
            "Unified" => format!("L{}", level.trim()),
            kind => format!("L{} {}", level.trim(), kind.to_lowercase()),
        };
        Some(Cache { name, bytes: bytes(size.trim())? })
    };
    (0..8).map_while(cache).collect()
}

/// The libraries that a CUDA back end needs, and where they are.
#[derive(Clone, Debug)]
pub struct CudaLibraries {
    /// Folders that exist and were searched, in order.
    pub searched: Vec<PathBuf>,
    /// File names with the first place they were found in.
    pub found: Vec<(&'static str, Option<PathBuf>)>,
}

/// The driver, and two versions of the run-time compiler.
const LIBRARIES: [&str; 3] = ["libcuda.so.1", "libnvrtc.so.12", "libnvrtc.so.13"];

impl CudaLibraries {
    /// Looks in the loader's folders, in the toolkit's usual ones, and in Python's packages.
    pub fn look() -> Self {
        let mut folders = listed("LD_LIBRARY_PATH");
        configured(Path::new("/etc/ld.so.conf"), 0, &mut folders);
        let usual = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/lib/wsl/lib", "/usr/local/cuda/lib64"];
        folders.extend(usual.map(PathBuf::from));
        for packages in python_packages() {
            folders.extend(entries(&packages.join("nvidia")).into_iter().map(|package| package.join("lib")));
        }
        Self::search(folders)
    }

    fn search(folders: Vec<PathBuf>) -> Self {
        let mut seen = BTreeSet::new();
        let searched: Vec<PathBuf> =
            folders.into_iter().filter(|f| f.is_dir() && seen.insert(f.clone())).collect();
        let find = |name: &str| searched.iter().map(|folder| folder.join(name)).find(|path| path.exists());
        let found = LIBRARIES.map(|name| (name, find(name))).to_vec();
        Self { searched, found }
    }
}

/// Returns the folders that an environment variable lists.
fn listed(variable: &str) -> Vec<PathBuf> {
    std::env::var_os(variable).map(|list| std::env::split_paths(&list).collect()).unwrap_or_default()
}

/// Adds the folders of a loader configuration, with what it includes.
fn configured(file: &Path, depth: usize, folders: &mut Vec<PathBuf>) {
    /// Files that include each other end here.
    const DEEPEST: usize = 4;
    let Ok(text) = fs::read_to_string(file) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include ") {
            Some(pattern) if depth < DEEPEST => {
                for file in matching(Path::new(pattern.trim())) {
                    configured(&file, depth + 1, folders);
                }
            }
            None if line.starts_with('/') => folders.push(line.into()),
            _ => {}
        }
    }
}

/// Returns the files of a pattern whose last part may be `*` with an ending.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    match name.strip_prefix('*') {
        None => vec![pattern.to_owned()],
        Some(ending) => {
            let fits = |path: &PathBuf| path.to_string_lossy().ends_with(ending);
            entries(folder).into_iter().filter(fits).collect()
        }
    }
}

/// Returns where Python's NVIDIA packages have a library of this name.
pub(super) fn python_libraries(name: &str) -> Vec<PathBuf> {
    let packages = python_packages().into_iter().flat_map(|packages| entries(&packages.join("nvidia")));
    packages.map(|package| package.join("lib").join(name)).filter(|path| path.exists()).collect()
}

/// Returns the places where Python keeps packages.
fn python_packages() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(|variable| std::env::var_os(variable).map(PathBuf::from))
        .collect();
    roots.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    roots.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let is_python =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let pythons = roots.iter().flat_map(|root| entries(&root.join("lib"))).filter(is_python);
    pythons.flat_map(|python| [python.join("site-packages"), python.join("dist-packages")]).collect()
}

/// Returns what is in a folder, sorted; nothing where there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Writes a small file to a folder and removes it again.
///
/// # Errors
/// What the system refuses.
pub fn write_test(folder: &Path) -> Result<()> {
    let path = folder.join(format!(".flowprior-write-test-{}", std::process::id()));
    fs::write(&path, b"flowprior").map_err(Error::io(&path, "write"))?;
    fs::remove_file(&path).map_err(Error::io(&path, "remove"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_choices_of_the_system_are_read() {
        assert_eq!(
            [bytes("64K"), bytes("2 kB"), bytes("3M"), bytes("7")].map(Option::unwrap),
            [65_536, 2048, 3_145_728, 7]
        );
        assert_eq!([bytes("x"), bytes("12 parsecs")], [None, None]);
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(value("a: 1\nmodel name\t: B: C\n", "model name"), Some("B: C"));
    }

    #[test]
    fn libraries_are_found_where_the_loader_would_look() {
        let root = tempfile::tempdir().unwrap();
        let (conf, more) = (root.path().join("ld.so.conf"), root.path().join("more"));
        let libs = [root.path().join("one"), root.path().join("two")];
        libs.iter().chain([&more]).for_each(|folder| fs::create_dir(folder).unwrap());
        fs::write(&conf, format!("include {}/*.conf\n# comment\n", more.display())).unwrap();
        let text = format!("{}\n{}\n/nowhere/at/all\n", libs[0].display(), libs[1].display());
        fs::write(more.join("a.conf"), text).unwrap();
        fs::write(more.join("b.txt"), "/tmp\n").unwrap();
        fs::write(libs[1].join("libnvrtc.so.13"), "").unwrap();
        let mut folders = Vec::new();
        configured(&conf, 0, &mut folders);
        let found = CudaLibraries::search(folders);
        assert_eq!(found.searched, libs);
        let expected = [None, None, Some(libs[1].join("libnvrtc.so.13"))];
        assert_eq!(found.found.into_iter().map(|(_, path)| path).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_folder_that_is_not_there_fails_the_write_test() {
        let root = tempfile::tempdir().unwrap();
        write_test(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(write_test(&root.path().join("missing")).unwrap_err().to_string().contains("cannot write"));
    }
}
