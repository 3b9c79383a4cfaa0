//! How many loads of global memory a thread has under way at once: what hides the latency of memory in a kernel that
//! streams.

use super::sass::{Class, Instruction};

/// Returns the most global loads that are issued before an instruction needs one of them, going through the code in its
/// order. Branches forward are taken for not taken; at a jump that always leaves, the count starts anew.
pub fn loads_in_flight(code: &[Instruction]) -> u32 {
    let mut pending: Vec<std::ops::Range<u32>> = Vec::new();
    let mut most = 0;
    for instruction in code {
        let load = instruction.class() == Class::Ldg;
        let operands = match instruction.operands.split_once(',') {
            Some((_, sources)) if load => sources, // its own target does not wait for itself
            _ => instruction.operands.as_str(),
        };
        for register in registers(operands) {
            if let Some(needed) = pending.iter().position(|range| range.contains(&register)) {
                pending.drain(..=needed); // loads return in order
            }
        }
        if instruction.ends_block() {
            pending.clear();
        }
        if load && let Some(first) = registers(&instruction.operands).next() {
            pending.push(first..first + instruction.bytes_per_thread().div_ceil(4));
            most = most.max(pending.len());
        }
    }
    most as u32
}

/// The numbers of the general registers that operands name: `R4,[R2.64+0x10],UR6` has 4 and 2.
fn registers(operands: &str) -> impl Iterator<Item = u32> {
    let words = operands.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('R')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(lines: &[&str]) -> u32 {
        let instructions = lines.iter().map(|line| {
            let (opcode, operands) = line.split_once(' ').unwrap_or((line, ""));
            let own = str::to_string;
            Instruction { predicate: String::new(), opcode: own(opcode), operands: own(operands) }
        });
        loads_in_flight(&instructions.collect::<Vec<_>>())
    }

    #[test]
    fn loads_count_until_one_is_needed() {
        assert_eq!(most(&["LDG.E R4,[R2.64]", "LDG.E R5,[R2.64+0x4]", "FADD R6,R4,R5"]), 2);
        assert_eq!(most(&["LDG.E R4,[R2.64]", "FADD R6,R4,R4", "LDG.E R5,[R2.64+0x4]"]), 1);
        assert_eq!(most(&["FADD R6,R4,R5", "EXIT"]), 0);
    }

    #[test]
    fn wide_load_is_needed_by_each_of_its_registers() {
        let wide = |used| most(&["LDG.E.128.CONSTANT R4,[R2.64]", used, "LDG.E R12,[R2.64+0x10]"]);
        assert_eq!(wide("FADD R9,R7,R9"), 1); // R4 to R7 are loaded
        assert_eq!(wide("FADD R9,R8,R9"), 2);
    }

    #[test]
    fn load_through_a_loaded_address_waits() {
        assert_eq!(most(&["LDG.E.64 R4,[R2.64]", "LDG.E R6,[R4.64]", "LDG.E R7,[R4.64+0x4]"]), 2);
    }

    #[test]
    fn earlier_loads_are_back_when_a_later_one_is() {
        let code =
            ["LDG.E R4,[R2.64]", "LDG.E R5,[R2.64]", "LDG.E R6,[R2.64]", "FADD R9,R5,R9", "LDG.E R7,[R2.64]"];
        assert_eq!(most(&code), 3); // R6 and R7 at the end
    }

    #[test]
    fn uniform_registers_and_jumps() {
        assert_eq!(most(&["LDG.E R4,[R2.64]", "UIADD3 UR4,UR4,UR5,URZ", "LDG.E R5,[R2.64]"]), 2);
        assert_eq!(most(&["LDG.E R4,[R2.64]", "EXIT", "LDG.E R5,[R2.64]"]), 1);
    }
}
