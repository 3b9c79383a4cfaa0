//! SASS instructions, as nvdisasm prints them in JSON, and the class that each belongs to.
//!
//! Opcodes: CUDA Binary Utilities, chapter "Instruction Set Reference"
//! (<https://docs.nvidia.com/cuda/cuda-binary-utilities/#instruction-set-reference>).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Error;

/// Bytes of an instruction, on every architecture since sm_70.
pub const INSTRUCTION_BYTES: u32 = 16;

/// How many instructions of each class there are.
pub type Mix = BTreeMap<Class, u32>;

/// A class of instructions: one opcode, or several that do the same work. Its name here, in tables and in budgets, is in
/// capitals: `HMMA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Class {
    /// Matrix product of a warp in f16, bf16, tf32.
    Hmma,
    /// The same in integers (IMMA, BMMA).
    Imma,
    /// The same in 8 bits or fewer of floating point (QMMA, OMMA).
    Qmma,
    /// Matrix product of a warpgroup: HGMMA, and IGMMA, QGMMA, BGMMA.
    Hgmma,
    /// Matrix product in tensor memory, sm_100: UTCHMMA and others.
    Utcmma,
    /// ldmatrix.
    Ldsm,
    /// stmatrix.
    Stsm,
    /// cp.async.
    Ldgsts,
    /// Bulk and tensor-map copies: UTMALDG, UTMASTG, UBLKCP and others.
    Tma,
    /// Loads and stores of tensor memory, sm_100: LDTM, STTM.
    Tmem,
    /// Shared memory: load.
    Lds,
    /// Shared memory: store.
    Sts,
    /// Global memory: load.
    Ldg,
    /// Global memory: store.
    Stg,
    /// Local memory: load.
    Ldl,
    /// Local memory: store.
    Stl,
    /// Loads and stores whose space is found at run time: LD, ST.
    Generic,
    /// Atomics and reductions in memory.
    Atom,
    /// Constant memory and kernel parameters.
    Ldc,
    /// Approximate functions.
    Mufu,
    /// f32 minimum and maximum.
    Fmnmx,
    /// f32 multiply-add.
    Ffma,
    /// f32 addition.
    Fadd,
    /// f32 multiplication.
    Fmul,
    /// f32 comparison and selection.
    Fsetp,
    /// Arithmetic on two f16 or bf16: HFMA2 and others.
    Hfma2,
    /// Anything in f64, conversions too.
    F64,
    /// Conversions.
    Convert,
    /// Integer multiply-add.
    Imad,
    /// Other integer and logical arithmetic.
    Integer,
    /// Moves, and reads of special registers.
    Mov,
    /// Shuffles.
    Shfl,
    /// Votes, matches, reductions of a warp.
    Vote,
    /// Barriers of a block.
    Bar,
    /// mbarrier operations.
    Syncs,
    /// Calls.
    Call,
    /// The test before the slow path of a division.
    Fchk,
    /// Branches and convergence.
    Control,
    /// Everything else; and what never executes, being under a predicate that is always false.
    Other,
}

impl Class {
    /// Returns the name in capitals.
    pub fn name(self) -> String {
        format!("{self:?}").to_uppercase()
    }

    /// Returns whether this is work of the tensor cores.
    pub fn is_tensor(self) -> bool {
        matches!(self, Class::Hmma | Class::Imma | Class::Qmma | Class::Hgmma | Class::Utcmma)
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instruction {
    /// The guard, such as `@!P0`; empty if there is none.
    #[serde(default)]
    pub predicate: String,
    /// Opcode with modifiers: `LDG.E.128.CONSTANT`.
    pub opcode: String,
    /// Operands without blanks.
    #[serde(default)]
    pub operands: String,
}

/// The code of a kernel, with the functions it calls.
#[derive(Clone, Debug, Deserialize)]
pub struct Function {
    /// The kernel's name.
    #[serde(rename = "function-name")]
    pub name: String,
    /// Its instructions; number `i` lies at byte `i * INSTRUCTION_BYTES`.
    #[serde(rename = "sass-instructions")]
    pub instructions: Vec<Instruction>,
}

/// Reads the output of `nvdisasm -json`: a list of two, a header and the functions.
pub fn parse_json(json: &str) -> Result<Vec<Function>, Error> {
    let (_, functions): (serde_json::Value, Vec<Function>) =
        serde_json::from_str(json).map_err(|e| Error::Disassembly(e.to_string()))?;
    Ok(functions)
}

impl Instruction {
    /// Returns the opcode without modifiers.
    pub fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Returns the modifiers.
    pub fn modifiers(&self) -> impl Iterator<Item = &str> {
        self.opcode.split('.').skip(1)
    }

    /// Returns whether the guard is always false: the compiler pads with such instructions.
    pub fn never_executes(&self) -> bool {
        matches!(self.predicate.as_str(), "@!PT" | "@!UPT")
    }

    /// Returns whether this is a jump that is written as a call: the compilers for sm_80 and sm_89 leave a loop of warps
    /// that have come together with `@P0 CALL.REL.NOINC 0x3a30`. A real call names a function.
    fn is_call_as_jump(&self) -> bool {
        self.opcode.starts_with("CALL.REL") && self.operands.starts_with("0x")
    }

    /// Returns whether control never passes to the next instruction.
    pub fn ends_block(&self) -> bool {
        let guarded = !self.predicate.is_empty() || self.operands.starts_with(['!', 'P', 'U']);
        let leaves = matches!(self.base(), "EXIT" | "RET" | "BRA" | "JMP" | "BRX" | "BRXU" | "JMX" | "KILL");
        (leaves || self.is_call_as_jump())
            && !self.opcode.contains(".DIV")
            && !(guarded && self.base() != "BRX")
    }

    /// Returns the index of the instruction that a direct branch goes to: its last operand.
    pub fn branch_target(&self) -> Option<usize> {
        if !matches!(self.base(), "BRA" | "JMP") && !self.is_call_as_jump() {
            return None;
        }
        let address = self.operands.rsplit(',').next()?.strip_prefix("0x")?;
        let address = u32::from_str_radix(address, 16).ok()?;
        Some((address / INSTRUCTION_BYTES) as usize)
    }

    /// Returns the class.
    pub fn class(&self) -> Class {
        if self.never_executes() {
            return Class::Other;
        }
        let base = self.base();
        let double = |m: &str| matches!(m, "F64" | "RCP64H" | "RSQ64H");
        if matches!(base, "DADD" | "DMUL" | "DFMA" | "DMNMX" | "DSETP" | "DMMA")
            || self.modifiers().any(double)
        {
            return Class::F64;
        }
        if self.is_call_as_jump() {
            return Class::Control;
        }
        if base == "IMAD" && self.modifiers().next() == Some("MOV") {
            return Class::Mov;
        }
        class_of(base)
    }

    /// Returns the bytes that one thread moves in a load or store: the number in the opcode, 4 without one.
    pub fn bytes_per_thread(&self) -> u32 {
        let mut bytes = 4;
        for modifier in self.modifiers() {
            match modifier {
                "U8" | "S8" => bytes = 1,
                "U16" | "S16" | "F16" => bytes = 2,
                "64" => bytes = 8,
                "128" => bytes = 16,
                "256" => bytes = 32,
                _ => {}
            }
        }
        bytes
    }

    /// Returns the number of 128-byte wavefronts in which a whole warp reads or writes shared memory if no two threads
    /// are in each other's way.
    pub fn ideal_wavefronts(&self) -> u32 {
        match self.class() {
            // LDSM.16.M88.4: four matrices of 8 rows of 16 bytes.
            Class::Ldsm | Class::Stsm => {
                self.modifiers().filter_map(|m| m.parse().ok()).last().map_or(1, matrices)
            }
            Class::Lds | Class::Sts | Class::Ldgsts => (self.bytes_per_thread() * 32).div_ceil(128),
            _ => 0,
        }
    }
}

/// The count in `LDSM.16.M88.4`; without it the last number is the element's 16 bits, and there is one matrix.
fn matrices(number: u32) -> u32 {
    if number <= 4 { number } else { 1 }
}

fn class_of(base: &str) -> Class {
    match base {
        "HMMA" => Class::Hmma,
        "IMMA" | "BMMA" => Class::Imma,
        "QMMA" | "OMMA" => Class::Qmma,
        "HGMMA" | "IGMMA" | "QGMMA" | "BGMMA" => Class::Hgmma,
        "LDSM" => Class::Ldsm,
        "STSM" => Class::Stsm,
        "LDGSTS" => Class::Ldgsts,
        "LDTM" | "STTM" | "LDT" | "STT" => Class::Tmem,
        "LDS" => Class::Lds,
        "STS" => Class::Sts,
        "LDG" => Class::Ldg,
        "STG" => Class::Stg,
        "LDL" => Class::Ldl,
        "STL" => Class::Stl,
        "LD" | "ST" => Class::Generic,
        "LDC" | "LDCU" | "ULDC" => Class::Ldc,
        "MUFU" => Class::Mufu,
        "FMNMX" | "FMNMX3" => Class::Fmnmx,
        "FFMA" | "FFMA2" | "FFMA32I" => Class::Ffma,
        "FADD" | "FADD2" | "FADD32I" => Class::Fadd,
        "FMUL" | "FMUL2" | "FMUL32I" => Class::Fmul,
        "FSETP" | "FSET" | "FSEL" => Class::Fsetp,
        "IMAD" | "UIMAD" | "IMAD32I" => Class::Imad,
        "MOV" | "UMOV" | "MOV32I" | "CS2R" | "CS2UR" | "S2R" | "S2UR" | "R2UR" | "R2P" | "P2R" | "PRMT"
        | "UPRMT" => Class::Mov,
        "SHFL" => Class::Shfl,
        "VOTE" | "VOTEU" | "MATCH" | "REDUX" | "CREDUX" => Class::Vote,
        "BAR" | "B2R" => Class::Bar,
        "SYNCS" => Class::Syncs,
        "CALL" => Class::Call,
        "FCHK" => Class::Fchk,
        _ => class_of_family(base),
    }
}

/// Opcodes that are many, and are known by how they begin.
fn class_of_family(base: &str) -> Class {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| base.starts_with(prefix));
    if begins(&["UTC"]) && base.ends_with("MMA") {
        Class::Utcmma
    } else if begins(&["UTMA", "UBLK", "UTMACMDFLUSH"]) {
        Class::Tma
    } else if begins(&["ATOM", "RED", "SUATOM", "SURED"]) {
        Class::Atom
    } else if begins(&["HFMA2", "HADD2", "HMUL2", "HMNMX2", "HSET", "VHMNMX"]) {
        Class::Hfma2
    } else if begins(&["F2", "I2", "FRND", "UF2", "UI2"]) {
        Class::Convert
    } else if begins(&[
        "BRA", "BRX", "BSSY", "BSYNC", "BREAK", "BMOV", "EXIT", "RET", "JMP", "JMX", "WARPSYNC", "YIELD",
    ]) {
        Class::Control
    } else if begins(&[
        "IADD", "ISETP", "IMNMX", "IABS", "ISCADD", "LEA", "LOP", "PLOP3", "SHF", "SHL", "SHR", "SEL",
        "BREV", "FLO", "POPC", "SGXT", "BMSK", "IDP", "VIADD", "VIMNMX", "VABSDIFF", "UIADD", "UISETP",
        "ULEA", "ULOP", "UPLOP3", "USHF", "USEL", "UBREV", "UFLO", "UPOPC", "USGXT", "UBMSK", "UIMNMX",
        "UVIADD", "UVIMNMX", "UIABS", "UP2UR", "UR2UP",
    ]) {
        Class::Integer
    } else {
        Class::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(text: &str) -> Instruction {
        let (predicate, text) = match text.strip_prefix('@') {
            Some(_) => text.split_once(' ').unwrap(),
            None => ("", text),
        };
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        let own = str::to_string;
        Instruction { predicate: own(predicate), opcode: own(opcode), operands: own(operands) }
    }

    #[test]
    fn classes_of_instructions_that_look_alike() {
        for (text, class) in [
            ("HMMA.16816.F32.BF16 R4,R8,R12,R4", Class::Hmma),
            ("HFMA2.MMA R0,-RZ,RZ,0,0", Class::Hfma2), // a move by way of the half-precision pipe: no tensor work
            ("IMAD.MOV.U32 R1,RZ,RZ,c[0x0][0x28]", Class::Mov),
            ("IMAD.WIDE R2,R4,R5,c[0x0][0x160]", Class::Imad),
            ("F2F.F64.F32 R4,R2", Class::F64),
            ("F2F.F32.F64 R4,R2", Class::F64),
            ("F2FP.BF16.F32.PACK_AB R4,R2,R3", Class::Convert),
            ("MUFU.RCP64H R7,R6", Class::F64),
            ("MUFU.RCP R7,R6", Class::Mufu),
            ("@!PT LDS RZ,[RZ]", Class::Other),
            ("@!P0 LDS R3,[R4]", Class::Lds),
            ("LDGSTS.E.BYPASS.128 [R11],[R2.64]", Class::Ldgsts),
            ("LDGDEPBAR", Class::Other),
            ("REDUX.SUM UR5,R4", Class::Vote),
            ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64],R5", Class::Atom),
            ("UTMALDG.2D [UR8],[UR4]", Class::Tma),
            ("UTCHMMA gdesc[UR4],gdesc[UR6],tmem[UR8]", Class::Utcmma),
            ("UTCBAR [UR4],URZ", Class::Other),
            ("CALL.REL.NOINC $__internal_0_$f", Class::Call),
            ("@P0 CALL.REL.NOINC 0x3a30", Class::Control),
        ] {
            assert_eq!(instruction(text).class(), class, "{text}");
        }
    }

    #[test]
    fn width_and_wavefronts() {
        for (text, bytes, wavefronts) in [
            ("LDG.E.128.CONSTANT R4,[R2.64]", 16, 0),
            ("LDG.E.U16 R4,[R2.64]", 2, 0),
            ("STG.E [R2.64],R4", 4, 0),
            ("LDG.E.ENL2.256 R4,R8,[R2.64]", 32, 0),
            ("LDS.U8 R4,[R2]", 1, 1),
            ("STS.128 [R2],R4", 16, 4),
            ("LDSM.16.M88.4 R40,[R67+0x1400]", 4, 4),
            ("LDSM.16.MT88.2 R40,[R67]", 4, 2),
            ("LDSM.16.M88 R40,[R67]", 4, 1),
            ("LDGSTS.E.BYPASS.128 [R11],[R2.64]", 16, 4),
        ] {
            let instruction = instruction(text);
            assert_eq!(
                (instruction.bytes_per_thread(), instruction.ideal_wavefronts()),
                (bytes, wavefronts),
                "{text}"
            );
        }
    }

    #[test]
    fn branches_and_ends() {
        for (text, target, ends) in [
            ("BRA 0x750", Some(0x75), true),
            ("@!P0 BRA 0x750", Some(0x75), false),
            ("BRA.U UP0,0x1b0", Some(0x1b), false),
            ("BRA.U !UP0,0x1b0", Some(0x1b), false),
            ("@!P1 BRA !P2,0x7d0", Some(0x7d), false),
            ("BRA.DIV UR4,0x900", Some(0x90), false),
            ("EXIT", None, true),
            ("@P0 EXIT", None, false),
            ("RET.REL.NODEC R4,dividing", None, true),
            ("BRX R12,-0x2a0", None, true),
            ("CALL.REL.NOINC $f", None, false),
            ("@P0 CALL.REL.NOINC 0x3a30", Some(0x3a3), false),
            ("CALL.REL.NOINC 0x3a30", Some(0x3a3), true),
        ] {
            let instruction = instruction(text);
            assert_eq!((instruction.branch_target(), instruction.ends_block()), (target, ends), "{text}");
        }
    }

    #[test]
    fn class_name_is_the_one_of_json() {
        for class in [Class::Hmma, Class::F64, Class::Hfma2, Class::Other] {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }

    #[test]
    fn output_of_another_shape_is_refused() {
        assert!(parse_json("[{}]").is_err());
        assert!(
            parse_json("[{}, [{\"function-name\": \"f\"}]]")
                .unwrap_err()
                .to_string()
                .contains("sass-instructions")
        );
    }
}
