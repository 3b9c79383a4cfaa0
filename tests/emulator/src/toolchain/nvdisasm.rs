//! nvdisasm: CUBIN to SASS, the machine's own instructions.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::Error;

/// The disassembler, at a path.
#[derive(Clone, Debug)]
pub struct Nvdisasm {
    program: PathBuf,
}

impl Nvdisasm {
    /// Takes an installed program.
    pub fn at(program: PathBuf) -> Nvdisasm {
        Nvdisasm { program }
    }

    /// Returns the SASS text of all code in a CUBIN: sections `.text.KERNEL`, labels, instructions with their offsets.
    pub fn disassemble(&self, cubin: &[u8]) -> Result<String, Error> {
        self.run("--print-code", cubin)
    }

    /// Returns the same as JSON: each function's name and list of instructions.
    pub fn disassemble_json(&self, cubin: &[u8]) -> Result<String, Error> {
        self.run("--emit-json", cubin)
    }

    fn run(&self, option: &str, cubin: &[u8]) -> Result<String, Error> {
        let io_error = |path: PathBuf| |source| Error::Io { path, source };
        let mut file =
            tempfile::Builder::new().suffix(".cubin").tempfile().map_err(io_error(std::env::temp_dir()))?;
        file.write_all(cubin).and_then(|()| file.flush()).map_err(io_error(file.path().to_path_buf()))?;
        let output = Command::new(&self.program)
            .arg(option)
            .arg(file.path())
            .output()
            .map_err(io_error(self.program.clone()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Disassemble(text.trim().to_string()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
