//! A module that is loaded: its variables have addresses, its kernels are decoded.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Config, Program};
use crate::isa::Module;
use crate::memory::{self, DeviceMemory};

/// A module that cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// An instruction that is not implemented.
    #[error("kernel `{kernel}`, PTX line {line}: `{what}` is not supported")]
    Unsupported {
        /// Name of the kernel.
        kernel: String,
        /// Of the PTX text.
        line: u32,
        /// The instruction.
        what: String,
    },
    /// Typed instructions that contradict themselves.
    #[error("kernel `{kernel}`: {what}")]
    Malformed {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong.
        what: String,
    },
    /// No room for variables, and the like.
    #[error("variable `{variable}`: {error}")]
    Memory {
        /// Name of the variable.
        variable: String,
        /// Why.
        error: memory::Error,
    },
}

impl LoadError {
    pub(super) fn unsupported(kernel: &str, line: u32, what: &str) -> Self {
        Self::Unsupported { kernel: kernel.to_owned(), line, what: what.to_owned() }
    }

    pub(super) fn malformed(kernel: &str, what: &str) -> Self {
        Self::Malformed { kernel: kernel.to_owned(), what: what.to_owned() }
    }
}

/// A loaded module.
#[derive(Debug)]
pub struct LoadedModule {
    programs: HashMap<String, Arc<Program>>,
    variables: Vec<(String, u64, u64)>,
}

/// Loads a module: places its variables and decodes its kernels.
pub fn load(module: Module, memory: &DeviceMemory, config: &Config) -> Result<LoadedModule, LoadError> {
    let mut loaded = LoadedModule { programs: HashMap::new(), variables: Vec::new() };
    match loaded.fill(module, memory, config) {
        Ok(()) => Ok(loaded),
        Err(error) => {
            loaded.unload(memory);
            Err(error)
        }
    }
}

impl LoadedModule {
    fn fill(&mut self, module: Module, memory: &DeviceMemory, config: &Config) -> Result<(), LoadError> {
        for global in &module.globals {
            let place = memory.alloc_variable(
                &global.name,
                global.size.max(1),
                u64::from(global.align),
                global.constant,
            );
            let start = place.map_err(|error| LoadError::Memory { variable: global.name.clone(), error })?;
            self.variables.push((global.name.clone(), start, global.size));
        }
        let addresses: Vec<u64> = self.variables.iter().map(|v| v.1).collect();
        for (global, &start) in module.globals.iter().zip(&addresses) {
            let mut bytes = global.init.clone();
            for &(at, index, addend) in &global.relocations {
                let address = addresses.get(index as usize).map(|a| a.wrapping_add_signed(addend));
                let end = usize::try_from(at).ok().and_then(|at| at.checked_add(8));
                let (Some(address), Some(end)) = (address, end.filter(|&end| end as u64 <= global.size))
                else {
                    return Err(LoadError::malformed(
                        &global.name,
                        "an initial address outside of the variable",
                    ));
                };
                bytes.resize(bytes.len().max(end), 0);
                bytes[end - 8..end].copy_from_slice(&address.to_le_bytes());
            }
            let written = memory.write(start, &bytes);
            written.map_err(|error| LoadError::Memory { variable: global.name.clone(), error })?;
        }
        let files: Arc<[String]> = module.files.into();
        for kernel in module.kernels {
            let name = kernel.name.clone();
            let program = Program::new(kernel, &addresses, Arc::clone(&files), config)?;
            self.programs.insert(name, Arc::new(program));
        }
        Ok(())
    }

    /// Returns the kernel of a name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Program>> {
        self.programs.get(name)
    }

    /// Returns the names of all kernels, in no order.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }

    /// Returns address and size of a variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.iter().find(|v| v.0 == name).map(|v| (v.1, v.2))
    }

    /// Frees the variables.
    pub fn unload(&mut self, memory: &DeviceMemory) {
        for (_, start, _) in self.variables.drain(..) {
            // They were allocated here and are freed once; nobody else can have freed them by a legal call.
            let _ = memory.free(start);
        }
        self.programs.clear();
    }
}
