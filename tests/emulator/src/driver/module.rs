//! Modules and libraries: images, functions and their attributes.

use std::collections::HashMap;
use std::sync::Arc;

use super::abi::{In, Text};
use super::architecture::{Architecture, BLOCK_THREADS, SHARED_PLAIN};
use super::codes::{Code, Failure, Result};
use super::cubin;
use super::occupancy::{self, Need};
use super::state::State;
use crate::exec::{LoadedModule, Program};

/// A loaded image.
#[derive(Debug)]
pub struct Image {
    /// Its context.
    pub context: u64,
    /// What can run.
    pub loaded: LoadedModule,
    /// Handles of functions that were asked for.
    pub functions: HashMap<String, u64>,
    /// The number in `.target`.
    pub target: u32,
    /// Loaded as a library (`cuLibrary*`) rather than as a module.
    pub library: bool,
}

/// A kernel with what can be set of it.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its module.
    pub image: u64,
    /// What runs.
    pub program: Arc<Program>,
    /// Registers of a thread: from the image for hardware if one was offered, else from the launch bounds or the setting.
    pub registers: u32,
    /// The number in `.target`.
    pub target: u32,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub max_dynamic_shared: u32,
    /// Preferred share of shared memory in percent; -1: none.
    pub carveout: i32,
    /// Clusters of more than 8 blocks are allowed.
    pub large_clusters: bool,
    /// `CUclusterSchedulingPolicy`
    pub cluster_policy: u32,
}

/// What an image is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Elf,
    Fatbin,
    Archive,
    Text,
    Unknown,
}

fn kind(image: u64) -> Kind {
    let mut start = [0u8; 4];
    for (i, byte) in start.iter_mut().enumerate() {
        match In::at(image).get_at(i) {
            Ok(found) if found != 0 => *byte = found,
            _ => break, // text that is shorter: nothing after its end is read
        }
    }
    match start {
        [0x7F, b'E', b'L', b'F'] => Kind::Elf,
        [0x50, 0xED, 0x55, 0xBA] | [0xB1, 0x43, 0x62, 0x46] => Kind::Fatbin,
        [b'!', b'<', b'a', b'r'] => Kind::Archive,
        [first, ..] if first.is_ascii_graphic() || first.is_ascii_whitespace() => Kind::Text,
        _ => Kind::Unknown,
    }
}

/// Loads an image at an address; the text of an error is also for the log of the JIT.
pub fn load(state: &mut State, context: u64, image: u64, library: bool) -> Result<u64> {
    if image == 0 {
        return Err(Code::INVALID_VALUE.because("the image is null"));
    }
    match kind(image) {
        Kind::Text => load_text(state, context, &Text::at(image).bytes(), library),
        Kind::Elf => {
            state.known_registers.extend(cubin::registers_at(image));
            Err(Code::NO_BINARY_FOR_GPU.because("an ELF image is for hardware; the emulator runs PTX"))
        }
        Kind::Fatbin => {
            Err(Code::NO_BINARY_FOR_GPU.because("a fat binary is for hardware; the emulator runs PTX text"))
        }
        Kind::Archive => Err(Code::INVALID_IMAGE.because("an archive of device code must be linked first")),
        Kind::Unknown => {
            Err(Code::INVALID_IMAGE.because("the image is neither PTX text nor a binary that is known"))
        }
    }
}

/// Loads PTX.
pub fn load_text(state: &mut State, context: u64, bytes: &[u8], library: bool) -> Result<u64> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Code::INVALID_PTX
            .because(format!("ptxas application ptx input, line {line}; error: the text is no UTF-8"))
    })?;
    let target = check_header(state, text)?;
    let loaded = state
        .engine()?
        .load(text)
        .map_err(|(code, why)| code.because(format!("ptxas application ptx input; {why}")))?;
    let image = Image { context, loaded, functions: HashMap::new(), target, library };
    let handle = state.handle();
    state.images.insert(handle, image);
    Ok(handle)
}

/// Refuses PTX that is newer than this driver or device; returns the number of the target.
fn check_header(state: &State, text: &str) -> Result<u32> {
    let header = Header::read(text);
    if let Some((line, version)) = header.version {
        let newest = state.settings.newest_ptx();
        if version > newest {
            let ((major, minor), (a, b)) = (version, newest);
            let what = format!(
                "line {line}; fatal: unsupported .version {major}.{minor}; current version is {a}.{b}"
            );
            return Err(Code::UNSUPPORTED_PTX_VERSION.because(format!("ptxas application ptx input, {what}")));
        }
    }
    let Some((line, target)) = header.target else { return Ok(0) };
    if !state.settings.device.runs(&target) {
        let device = state.settings.device.name();
        let what =
            format!("line {line}; fatal: .target {target} is newer than, or not for, the device ({device})");
        return Err(Code::INVALID_PTX.because(format!("ptxas application ptx input, {what}")));
    }
    let digits: String = target.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse().unwrap_or(0))
}

/// `.version` and the first name of `.target`, each with its line.
#[derive(Debug, Default, PartialEq)]
struct Header {
    version: Option<(usize, (u32, u32))>,
    target: Option<(usize, String)>,
}

impl Header {
    /// Finds the two directives, comments skipped; what is malformed is left to the parser.
    fn read(text: &str) -> Self {
        let (mut header, mut rest, mut line) = (Header::default(), text, 1);
        while let Some(c) = rest.chars().next() {
            let length = match () {
                _ if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
                _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                _ if c.is_whitespace() => c.len_utf8(),
                _ => {
                    rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len()).max(c.len_utf8())
                }
            };
            let (word, after) = rest.split_at(length);
            let argument = || after.split_whitespace().next().unwrap_or_default();
            match word {
                ".version" => header.version = parse_version(argument()).map(|version| (line, version)),
                ".target" => {
                    let name = argument().split(',').next().unwrap_or_default();
                    header.target = Some((line, name.to_owned())).filter(|(_, name)| name.starts_with("sm_"));
                    return header;
                }
                ".address_size" | ".visible" | ".entry" | ".func" => return header,
                _ => {}
            }
            line += word.matches('\n').count();
            rest = after;
        }
        header
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Finds a kernel of an image by its name, and makes a handle for it.
pub fn function(state: &mut State, image: u64, name: &str) -> Result<u64> {
    let found = state.images.get(image)?;
    if let Some(function) = found.functions.get(name) {
        return Ok(*function);
    }
    let Some(program) = found.loaded.kernel(name).cloned() else {
        let mut names: Vec<&str> = found.loaded.kernels().collect();
        names.sort_unstable();
        return Err(Code::NOT_FOUND.because(format!("no kernel `{name}`; there are: {}", names.join(", "))));
    };
    let (target, registers) = (found.target, registers(state, &program));
    let handle = state.handle();
    let function = Function {
        image,
        registers,
        target,
        max_dynamic_shared: SHARED_PLAIN.saturating_sub(program.kernel.shared_bytes),
        carveout: -1,
        large_clusters: false,
        cluster_policy: 0,
        program,
    };
    state.functions.insert(handle, function);
    state.images.get_mut(image)?.functions.insert(name.to_owned(), handle);
    Ok(handle)
}

/// Estimates the registers of a thread: PTX does not say.
fn registers(state: &State, program: &Program) -> u32 {
    let kernel = &program.kernel;
    if let Some(known) = state.known_registers.get(&kernel.name) {
        return *known;
    }
    let threads: u32 = kernel.max_threads.iter().map(|n| (*n).max(1)).product();
    let (bounded, blocks) = (kernel.max_threads[0] != 0, kernel.min_blocks.max(1));
    let placeholder = state.settings.registers;
    match bounded {
        true => {
            let largest = super::architecture::REGISTERS / threads.saturating_mul(blocks).max(1) / 8 * 8;
            placeholder.min(largest.clamp(16, 255))
        }
        false => placeholder,
    }
}

impl Function {
    /// Returns the most threads of a block.
    pub fn max_threads(&self) -> u32 {
        let kernel = &self.program.kernel;
        let declared: u32 = match kernel.max_threads[0] {
            0 => BLOCK_THREADS,
            _ => kernel.max_threads.iter().fold(1, |product, n| product.saturating_mul((*n).max(1))),
        };
        let mut threads = declared.min(BLOCK_THREADS);
        while threads > 32 && !occupancy::registers_fit(self.registers, threads) {
            threads = (threads - 1) / 32 * 32;
        }
        threads
    }

    /// Returns what the occupancy calculator needs.
    pub fn need(&self) -> Need {
        Need {
            registers: self.registers,
            static_shared: self.program.kernel.shared_bytes,
            max_threads: self.max_threads(),
            carveout: self.carveout,
        }
    }

    /// Returns the cluster that the kernel itself asks for; zeros if none.
    pub fn cluster(&self) -> [u32; 3] {
        match self.program.kernel.cluster {
            [0, _, _] => [0; 3],
            declared => declared.map(|n| n.max(1)),
        }
    }

    /// Returns an attribute (`CUfunction_attribute`).
    pub fn attribute(&self, device: &Architecture, attribute: u32) -> Option<i32> {
        let kernel = &self.program.kernel;
        let cluster = self.cluster();
        let value = match attribute {
            0 => self.max_threads(),
            1 => kernel.shared_bytes,
            2 => 0, // constant memory of the kernel's own: PTX has it at module level
            3 => kernel.local_bytes,
            4 => self.registers,
            5 => self.target,
            6 => device.capability.0 * 10 + device.capability.1,
            7 => 0,
            8 => self.max_dynamic_shared,
            9 => return Some(self.carveout),
            10 => 0,
            11..=13 => cluster[attribute as usize - 11],
            14 => self.large_clusters.into(),
            15 => self.cluster_policy,
            _ => return None,
        };
        i32::try_from(value).ok()
    }

    /// Sets an attribute.
    pub fn set_attribute(&mut self, device: &Architecture, attribute: u32, value: i32) -> Result<()> {
        let refuse = |why: String| -> Failure { Code::INVALID_VALUE.because(why) };
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) => {
                let largest = device.shared_opt_in().saturating_sub(self.program.kernel.shared_bytes);
                if bytes > largest {
                    let (name, fixed) = (&self.program.kernel.name, self.program.kernel.shared_bytes);
                    return Err(refuse(format!(
                        "{bytes} bytes of dynamic shared memory for `{name}`; at most {largest} beside its {fixed} static ones"
                    )));
                }
                self.max_dynamic_shared = bytes;
            }
            (9, _) if (-1..=100).contains(&value) => self.carveout = value,
            (14, Ok(0 | 1)) if device.has_clusters() => self.large_clusters = value == 1,
            (15, Ok(policy @ 0..=2)) if device.has_clusters() => self.cluster_policy = policy,
            _ => return Err(refuse(format!("function attribute {attribute} cannot be set to {value}"))),
        }
        Ok(())
    }
}

/// Unloads an image; the caller has waited for all work.
pub fn unload(state: &mut State, handle: u64) -> Result<()> {
    let mut image = state.images.remove(handle)?;
    let engine = state.engine()?;
    image.loaded.unload(&engine.memory);
    state.functions.retain(|_, function| function.image != handle);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_behind_comments() {
        let text =
            "// .version 1.0\n/* .target sm_10\n*/\n.version 8.7\n.target sm_90a, debug\n.address_size 64\n";
        let header = Header::read(text);
        assert_eq!(header.version, Some((4, (8, 7))));
        assert_eq!(header.target, Some((5, "sm_90a".to_owned())));
    }

    #[test]
    fn malformed_headers_are_nothing() {
        for text in [
            "",
            ".version",
            ".version x.y",
            ".target",
            "/*",
            "//",
            ".version 4294967296.0 .target foo",
            "\u{e9}",
        ] {
            assert_eq!(Header::read(text), Header::default(), "{text}");
        }
    }
}
