//! Prepares the CUDA kernels: inlines our headers, and makes a typed launcher of each kernel's C signature, so that a
//! wrong number, order, type or mutability of arguments is a compile error in Rust.
//!
//! Reads `kernels/*.cu` and `kernels/*.cuh`; writes `kernels.rs` in `OUT_DIR`, which `src/kernels.rs` includes. A `.cu` file is
//! compiled once for each storage type, with `floatX` defined as that type; a kernel without a `floatX` parameter exists
//! in the module of f32 alone.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Everything that can be wrong here is wrong in a kernel file: file, line and what to do.
type Result<T, E = String> = std::result::Result<T, E>;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    let written = generate(Path::new("kernels")).and_then(|text| {
        let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run by cargo only")?;
        let path = PathBuf::from(out).join("kernels.rs");
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    });
    if let Err(message) = written {
        // Cargo shows a failed build script's standard error as it is.
        eprintln!("{message}");
        std::process::exit(1);
    }
}

/// Returns the Rust text for all kernel files of a folder.
fn generate(folder: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            names.push(path);
        }
    }
    names.sort();
    let (mut sources, mut launchers, mut count) = (String::new(), String::new(), 0);
    for (index, path) in names.iter().enumerate() {
        let text = read(path)?;
        let inlined = inline(path, &text, &mut BTreeSet::new())?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let _ = writeln!(
            sources,
            "    Source {{ name: {:?}, text: {inlined:?}, hash: 0x{:016x} }},",
            format!("kernels/{stem}.cu"),
            fnv1a(inlined.as_bytes())
        );
        for kernel in signatures(path, &text)? {
            launchers.push_str(&kernel.launcher(index, count, &stem));
            count += 1;
        }
    }
    let files = names.len();
    Ok(format!(
        "/// The kernel files, headers inlined.\npub(crate) static SOURCES: [Source; {files}] = [\n{sources}];\n\n\
         {launchers}"
    ))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Replaces `#include "x.cuh"` by the header, once; `#line` keeps messages pointing at the real files.
fn inline(path: &Path, text: &str, seen: &mut BTreeSet<PathBuf>) -> Result<String> {
    let mut out = format!("#line 1 {:?}\n", path.display().to_string());
    for (number, line) in (1..).zip(text.lines()) {
        match line.trim().strip_prefix("#include") {
            Some(name) => {
                let name = name.trim();
                let Some(name) = name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) else {
                    return Err(format!(
                        "{}:{number}: `{line}`: only our own headers can be included",
                        path.display()
                    ));
                };
                let header = path.with_file_name(name);
                if seen.insert(header.clone()) {
                    out.push_str(&inline(&header, &read(&header)?, seen)?);
                }
                let _ = writeln!(out, "#line {} {:?}", number + 1, path.display().to_string());
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(out)
}

/// The 64-bit hash of Fowler, Noll and Vo: names a source in the cache; nobody attacks our own sources.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ *b as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A kernel's signature.
struct Kernel {
    name: String,
    line: usize,
    parameters: Vec<Parameter>,
}

struct Parameter {
    name: String,
    kind: Kind,
}

/// What a launcher takes.
enum Kind {
    /// A tensor's elements: the element type in Rust, and whether the kernel writes them.
    Pointer {
        element: &'static str,
        writes: bool,
    },
    Number(&'static str),
}

/// Element types of pointers, in C and in Rust; `X` is the storage type.
const POINTERS: [(&str, &str); 5] = [
    ("floatX", "X"),
    ("float", "f32"),
    ("unsigned", "u32"),
    ("unsigned long long", "u64"),
    ("unsigned char", "u8"),
];
/// Types of numbers, in C and in Rust.
const NUMBERS: [(&str, &str); 4] =
    [("unsigned", "u32"), ("unsigned long long", "u64"), ("int", "i32"), ("float", "f32")];

/// Finds all kernels of a file.
fn signatures(path: &Path, text: &str) -> Result<Vec<Kernel>> {
    const START: &str = "extern \"C\" __global__ void";
    let mut kernels = Vec::new();
    for (at, _) in text.match_indices(START) {
        let line = text[..at].matches('\n').count() + 1;
        let wrong = |what: &str| format!("{}:{line}: {what}", path.display());
        let mut rest = text[at + START.len()..].trim_start();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            let end = bounds.find(')').ok_or_else(|| wrong("`__launch_bounds__` has no end"))?;
            rest = bounds[end + 1..].trim_start();
        }
        let open = rest.find('(').ok_or_else(|| wrong("a kernel without parameters in parentheses"))?;
        let close = rest.find(')').ok_or_else(|| wrong("the list of parameters has no end"))?;
        let name = rest[..open].trim().to_owned();
        let parameters = rest[open + 1..close].split(',').map(|p| parameter(p).map_err(|e| wrong(&e)));
        kernels.push(Kernel { name, line, parameters: parameters.collect::<Result<_>>()? });
    }
    if text.matches("__global__").count() != kernels.len() {
        return Err(format!("{}: write each kernel as `{START} name(…)`", path.display()));
    }
    Ok(kernels)
}

fn parameter(text: &str) -> Result<Parameter> {
    let text = text.replace("__restrict__", " ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    let (kind, name) = text.rsplit_once([' ', '*']).ok_or(format!("`{text}`: no type and name"))?;
    let (kind, pointer) = match text[kind.len()..].starts_with('*') || kind.ends_with('*') {
        true => (kind.trim_end_matches('*').trim(), true),
        false => (kind.trim(), false),
    };
    let (kind, constant) = match kind.strip_prefix("const ") {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    let find = |list: &[(&str, &'static str)]| list.iter().find(|(c, _)| *c == kind).map(|(_, rust)| *rust);
    let found = match pointer {
        true => find(&POINTERS).map(|element| Kind::Pointer { element, writes: !constant }),
        false => find(&NUMBERS).map(Kind::Number),
    };
    let known = || {
        let list = |l: &[(&str, &str)], star| {
            l.iter().map(|(c, _)| format!("{c}{star}")).collect::<Vec<_>>().join(", ")
        };
        format!("{}, {}", list(&POINTERS, "*"), list(&NUMBERS, ""))
    };
    let kind = found.ok_or_else(|| {
        format!("parameter `{text}`: a kernel can take {}; extend build.rs if it must", known())
    })?;
    Ok(Parameter { name: name.to_owned(), kind })
}

impl Kernel {
    /// Writes the function that launches it.
    fn launcher(&self, file: usize, index: usize, stem: &str) -> String {
        let name = &self.name;
        let generic = self.parameters.iter().any(|p| matches!(p.kind, Kind::Pointer { element: "X", .. }));
        let (generics, dtype) = if generic { ("<X: FloatX>", "X::DTYPE") } else { ("", "DType::F32") };
        let (mut list, mut arguments) = (String::new(), String::new());
        for Parameter { name, kind } in &self.parameters {
            let (taken, given) = match kind {
                Kind::Pointer { element, writes: true } => {
                    (format!("Write<'_, {element}>"), format!("{name}.address()"))
                }
                Kind::Pointer { element, writes: false } => {
                    (format!("Read<'_, {element}>"), format!("{name}.address()"))
                }
                Kind::Number(number) => (number.to_string(), name.clone()),
            };
            let _ = writeln!(list, "    {name}: {taken},");
            let _ = write!(arguments, "Argument::from({given}), ");
        }
        format!(
            "/// `kernels/{stem}.cu`, line {}.\n#[allow(clippy::too_many_arguments)]\n\
             pub(crate) fn {name}{generics}(\n    queue: &Queue,\n    grid: Grid,\n{list}) -> Result<()> {{\n    \
             let kernel = Kernel {{ source: {file}, index: {index}, name: c\"{name}\", dtype: {dtype} }};\n    \
             queue.launch(&SOURCES, &kernel, grid, &[{arguments}])\n}}\n\n",
            self.line
        )
    }
}
