//! Reads what ptxas prints under `--ptxas-options=-v`: registers, spills, stack and shared memory of each kernel.

use serde::{Deserialize, Serialize};

use super::Error;

/// What a kernel uses of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The kernel's name, as in the PTX.
    pub kernel: String,
    /// `sm_80` and the like.
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes a thread stores to local memory for want of registers, in the kernel and the functions it calls.
    pub spill_stores: u32,
    /// Bytes it loads back.
    pub spill_loads: u32,
    /// Bytes of local memory of a thread: arrays, spills, frames of calls.
    pub stack: u32,
    /// Bytes of shared memory of a block that the compiler knows of.
    pub static_shared: u32,
}

/// Reads a log; kernels in its order.
pub fn parse_log(log: &str) -> Result<Vec<Resources>, Error> {
    let mut kernels: Vec<Resources> = Vec::new();
    let mut complete = true;
    for line in log.lines().filter(|line| line.starts_with("ptxas")) {
        if let Some((kernel, architecture)) = entry(line) {
            finish(complete, &kernels)?;
            complete = false;
            let (kernel, architecture) = (kernel.to_string(), architecture.to_string());
            kernels.push(Resources { kernel, architecture, ..Resources::default() });
        }
        let Some(current) = kernels.last_mut() else { continue };
        if let Some(bytes) = number_before(line, " bytes spill stores") {
            current.spill_stores += bytes;
            current.spill_loads += number_before(line, " bytes spill loads").unwrap_or(0);
            current.stack = current.stack.max(number_before(line, " bytes stack frame").unwrap_or(0));
        }
        if let Some(registers) = number_before(line, " registers") {
            current.registers = registers;
            current.static_shared = number_before(line, " bytes smem").unwrap_or(0);
            let cumulative = number_before(line, " bytes cumulative stack size").unwrap_or(0);
            current.stack = current.stack.max(cumulative);
            complete = true;
        }
    }
    finish(complete, &kernels)?;
    Ok(kernels)
}

/// Returns an error if the log of the last kernel was cut off.
fn finish(complete: bool, kernels: &[Resources]) -> Result<(), Error> {
    match kernels.last() {
        Some(last) if !complete => Err(Error::Log(last.kernel.clone())),
        _ => Ok(()),
    }
}

/// `Compiling entry function 'NAME' for 'sm_80'`.
fn entry(line: &str) -> Option<(&str, &str)> {
    let rest = line.split_once("Compiling entry function '")?.1;
    let (kernel, rest) = rest.split_once("' for '")?;
    Some((kernel, rest.split_once('\'')?.0))
}

/// The number that stands directly before `unit`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = line.split_once(unit)?.0;
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(before, |at| &before[at + 1..]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "k.cu(3): warning #177-D: 12 registers are not used\n\
        ptxas info    : 24 bytes gmem\n\
        ptxas info    : Compiling entry function 'calls' for 'sm_90a'\n\
        ptxas info    : Function properties for calls\n\
        ptxas         .     80 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 30 registers, used 1 barriers, 96 bytes cumulative stack size, 20480 bytes smem, 380 bytes cmem[0]\n\
        ptxas info    : Function properties for callee\n\
        ptxas         .     16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Compiling entry function 'plain' for 'sm_90a'\n\
        ptxas info    : Function properties for plain\n\
        ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 10 registers, used 0 barriers\n";

    #[test]
    fn spills_of_called_functions_count_and_kernels_do_not_mix() {
        let kernels = parse_log(LOG).unwrap();
        let calls = Resources {
            kernel: "calls".to_string(),
            architecture: "sm_90a".to_string(),
            registers: 30,
            spill_stores: 12,
            spill_loads: 16,
            stack: 96,
            static_shared: 20480,
        };
        let plain = Resources {
            kernel: "plain".to_string(),
            architecture: "sm_90a".to_string(),
            registers: 10,
            ..Resources::default()
        };
        assert_eq!(kernels, [calls, plain]);
    }

    #[test]
    fn log_that_ends_within_a_kernel_is_refused() {
        let cut = LOG.split_inclusive('\n').take(5).collect::<String>();
        assert!(parse_log(&cut).unwrap_err().to_string().contains("calls"));
    }
}
