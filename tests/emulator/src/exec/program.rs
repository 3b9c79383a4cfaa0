//! A kernel that is ready to run: instructions with their functions, register files with their constants.

use std::sync::Arc;

use super::Config;
use super::check::check_kernel;
use super::module::LoadError;
use crate::alu::{self, AluFn};
use crate::counters::Class;
use crate::isa::{Alu, Constant, Kernel, NONE, Op, Special, Value};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::regs::{LANES, Lanes32, Lanes64, Regs, Slot};

/// What an instruction does, with as much decided as can be before it runs.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Arithmetic: a function of 32 lanes.
    Alu(AluFn, Alu),
    /// A jump.
    Bra(u32),
    /// Everything else.
    Op(Op),
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Predicate, or [`NONE`].
    pub guard: Slot,
    /// All ones if the guard is negated.
    pub flip: u32,
    /// What is done.
    pub act: Act,
}

/// A special register that is filled for each warp.
#[derive(Clone, Copy, Debug)]
pub struct SpecialConstant {
    /// Where.
    pub slot: Slot,
    /// In the 64-bit file.
    pub wide: bool,
    /// Which.
    pub special: Special,
}

/// A kernel that is ready to run.
#[derive(Debug)]
pub struct Program {
    /// As lowered.
    pub kernel: Kernel,
    /// One for each instruction of the kernel.
    pub steps: Vec<Step>,
    /// What each instruction counts as.
    pub classes: Vec<Class>,
    /// Register files of a warp that has not begun, without special registers.
    pub template: Regs,
    /// Special registers, filled for each warp.
    pub specials: Vec<SpecialConstant>,
    files: Arc<[String]>,
}

impl Program {
    /// Decodes a kernel; `globals` are the addresses of the module's variables.
    pub fn new(
        kernel: Kernel,
        globals: &[u64],
        files: Arc<[String]>,
        config: &Config,
    ) -> Result<Self, LoadError> {
        check_kernel(&kernel)?;
        let mut steps = Vec::with_capacity(kernel.code.len());
        for inst in &kernel.code {
            let act = match inst.op {
                Op::Alu(a) => {
                    let unsupported =
                        || LoadError::unsupported(&kernel.name, inst.line, &format!("{:?}", a.op));
                    Act::Alu(alu::select(&a, config.approx).ok_or_else(unsupported)?, a)
                }
                Op::Bra { target, .. } => Act::Bra(target),
                op => Act::Op(op),
            };
            steps.push(Step { guard: inst.guard, flip: if inst.guard_not { u32::MAX } else { 0 }, act });
        }
        let (template, specials) = fill_constants(&kernel, globals)?;
        let classes = kernel.code.iter().map(|inst| Class::of(&inst.op)).collect();
        Ok(Self { kernel, steps, classes, template, specials, files })
    }

    /// Returns the PTX line of an instruction, 0 if there is none.
    pub fn line(&self, pc: u32) -> u32 {
        self.kernel.code.get(pc as usize).map_or(0, |inst| inst.line)
    }

    /// Returns the source file and line of an instruction.
    pub fn source(&self, pc: u32) -> Option<(String, u32)> {
        let inst = self.kernel.code.get(pc as usize).filter(|inst| inst.loc != NONE)?;
        let loc = self.kernel.locs.get(inst.loc as usize)?;
        Some((self.files.get(loc.file as usize)?.clone(), loc.line))
    }

    /// Returns the names of source files.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Returns the registers of a list.
    #[inline(always)]
    pub fn list(&self, list: crate::isa::List) -> &[Slot] {
        &self.kernel.lists[list.start as usize..(list.start + list.len) as usize]
    }
}

fn fill_constants(kernel: &Kernel, globals: &[u64]) -> Result<(Regs, Vec<SpecialConstant>), LoadError> {
    let mut regs = Regs::new(kernel.r32 as usize, kernel.r64 as usize, kernel.preds as usize);
    let mut specials = Vec::new();
    for &Constant { slot, wide, value } in &kernel.constants {
        let bits = match value {
            Value::Bits(bits) => bits,
            Value::Global { index, offset, .. } => {
                let start = globals.get(index as usize);
                let start = start
                    .ok_or_else(|| LoadError::malformed(&kernel.name, "a variable that is not there"))?;
                start.wrapping_add_signed(offset)
            }
            Value::GenericShared(offset) => SHARED_WINDOW + offset,
            Value::GenericLocal(offset) => LOCAL_WINDOW + offset,
            Value::GenericParam(offset) => PARAM_WINDOW + offset,
            Value::Special(special) => {
                specials.push(SpecialConstant { slot, wide, special });
                0
            }
        };
        let missing = || LoadError::malformed(&kernel.name, "a constant outside of the register file");
        if wide {
            *regs.r64.get_mut(slot as usize).ok_or_else(missing)? = Lanes64([bits; LANES]);
        } else {
            *regs.r32.get_mut(slot as usize).ok_or_else(missing)? = Lanes32([bits as u32; LANES]);
        }
    }
    Ok((regs, specials))
}
