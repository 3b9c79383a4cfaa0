//! Clocks that work takes at least: the arithmetic behind "model bound". A bound, not a measured time: it knows no latency,
//! no cache, and no instruction that waits for another.

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, PARTITIONS};
use super::sass::{Class, Instruction};

/// The least clocks of one pass of a loop, with one warp on each of a multiprocessor's four partitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopClocks {
    /// Tensor cores. None if the shape of an instruction is not in its text (UTCHMMA has it in a register).
    pub tensor: Option<f64>,
    /// Issue: one instruction a clock and partition.
    pub issue: f64,
    /// Shared memory: one wavefront of 128 bytes a clock for all four. What HGMMA reads for itself is not counted.
    pub shared: f64,
}

impl LoopClocks {
    /// Adds up the instructions of one pass.
    pub fn of<'a>(
        instructions: impl Iterator<Item = &'a Instruction>,
        architecture: Architecture,
    ) -> LoopClocks {
        let mut clocks = LoopClocks { tensor: Some(0.0), ..LoopClocks::default() };
        for instruction in instructions {
            clocks.issue += 1.0;
            clocks.shared += f64::from(instruction.ideal_wavefronts() * PARTITIONS);
            if instruction.class().is_tensor() {
                let of_one = tensor_clocks(instruction, architecture);
                clocks.tensor = clocks.tensor.zip(of_one).map(|(sum, one)| sum + one);
            }
        }
        clocks
    }

    /// Returns what takes longest.
    pub fn bound(&self) -> Bound {
        let rest =
            if self.shared > self.issue { (self.shared, Bound::Shared) } else { (self.issue, Bound::Issue) };
        match self.tensor {
            Some(tensor) if tensor >= rest.0 => Bound::Tensor,
            _ => rest.1,
        }
    }
}

/// What bounds the time from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Tensor cores.
    Tensor,
    /// Shared memory.
    Shared,
    /// Issue of instructions.
    Issue,
    /// Memory of the device.
    Dram,
}

impl Bound {
    /// Returns its name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Tensor => "tensor",
            Bound::Shared => "shared",
            Bound::Issue => "issue",
            Bound::Dram => "DRAM",
        }
    }
}

/// Clocks of a partition's tensor core (HGMMA keeps those of all four busy, with a quarter of the work each).
fn tensor_clocks(instruction: &Instruction, architecture: Architecture) -> Option<f64> {
    let rate = f64::from(architecture.tensor_rate);
    let parts = if instruction.class() == Class::Hgmma { 1.0 } else { f64::from(PARTITIONS) };
    Some(multiply_adds(instruction)? * parts / rate)
}

/// Multiply-adds of one instruction, in units of the time that one of 16-bit numbers takes: tf32 takes twice as long, 8 bits
/// half as long; of a sparse product half is skipped.
pub fn multiply_adds(instruction: &Instruction) -> Option<f64> {
    let (m, n, k) = instruction.modifiers().find_map(shape)?;
    let sparse = if instruction.modifiers().any(|x| x == "SP") { 0.5 } else { 1.0 };
    let bits = instruction.modifiers().find_map(element_bits).unwrap_or(16.0);
    Some(f64::from(m) * f64::from(n) * f64::from(k) * bits / 16.0 * sparse)
}

/// `16816` is 16×8×16, `8832` is 8×8×32, `64x128x16` is itself.
fn shape(modifier: &str) -> Option<(u32, u32, u32)> {
    if let Some((m, rest)) = modifier.split_once('x') {
        let (n, k) = rest.split_once('x')?;
        return Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?));
    }
    match modifier.strip_prefix("168") {
        Some(k) => Some((16, 8, k.parse().ok()?)),
        None => Some((8, 8, modifier.strip_prefix("88")?.parse().ok()?)),
    }
}

fn element_bits(modifier: &str) -> Option<f64> {
    match modifier {
        "TF32" => Some(32.0),
        "S8" | "U8" | "E4M3" | "E5M2" | "E3M2" | "E2M3" => Some(8.0),
        "S4" | "U4" | "E2M1" => Some(4.0),
        "B1" => Some(1.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: &str) -> Instruction {
        Instruction { predicate: String::new(), opcode: opcode.to_string(), operands: String::new() }
    }

    fn clocks(architecture: &str, opcodes: &[(&str, usize)]) -> LoopClocks {
        let repeated = opcodes.iter().flat_map(|(opcode, count)| vec![instruction(opcode); *count]);
        let all: Vec<Instruction> = repeated.collect();
        LoopClocks::of(all.iter(), Architecture::named(architecture).unwrap())
    }

    #[test]
    fn product_of_128_by_128_by_32_is_at_the_shared_memory_limit() {
        // A warp tile of 64×32, k 32: per warp 32 HMMA, 12 LDSM, 4 LDGSTS, 125 instructions. On an A100 8 warps take
        // 128·128·32 / 1024 = 512 tensor clocks, (12 + 4)·4·8 = 512 of shared memory, 125·8/4 = 250 of issue; here of 4 warps.
        let step =
            [("HMMA.16816.F32.BF16", 32), ("LDSM.16.M88.4", 12), ("LDGSTS.E.BYPASS.128", 4), ("IMAD", 77)];
        let a100 = clocks("sm_80", &step);
        assert_eq!(a100, LoopClocks { tensor: Some(256.0), issue: 125.0, shared: 256.0 });
        assert_eq!(a100.bound(), Bound::Tensor);
        let h100 = clocks("sm_90", &step);
        assert_eq!(h100, LoopClocks { tensor: Some(128.0), issue: 125.0, shared: 256.0 });
        assert_eq!(h100.bound(), Bound::Shared);
    }

    #[test]
    fn warpgroup_product_of_n_256_takes_128_clocks() {
        let step = clocks("sm_90a", &[("HGMMA.64x256x16.F32.BF16", 8), ("IMAD", 145)]);
        assert_eq!(step, LoopClocks { tensor: Some(1024.0), issue: 153.0, shared: 0.0 });
    }

    #[test]
    fn narrow_sparse_and_wide_elements() {
        for (opcode, units) in [
            ("HMMA.1688.F32.TF32", 2048.0),
            ("HMMA.16816.F16", 2048.0),
            ("IMMA.16832.S8.S8", 2048.0),
            ("QMMA.16832.F32.E4M3.E5M2", 2048.0),
            ("HMMA.SP.16832.F32.BF16", 2048.0),
            ("IMMA.8816.U8.U8", 512.0),
            ("QGMMA.64x128x32.F32.E4M3.E4M3", 131072.0),
        ] {
            assert_eq!(multiply_adds(&instruction(opcode)), Some(units), "{opcode}");
        }
    }

    #[test]
    fn shape_that_is_not_in_the_text_is_not_guessed() {
        let step = clocks("sm_100", &[("HMMA.16816.F32.BF16", 1), ("UTCHMMA", 1)]);
        assert_eq!(step.tensor, None);
    }
}
