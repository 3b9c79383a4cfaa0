//! Finds the loops of a kernel's SASS, and which of them is the main one.
//!
//! A loop is a backward branch whose target every path to the branch goes through (it dominates the branch); a way back from
//! a rare case that the compiler has put at the end of the code is none. Its body is what lies between the two and can reach
//! the branch again.

use super::sass::{Class, Function, Instruction, Mix};

/// A loop: indices into the function's instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The first instruction.
    pub head: usize,
    /// The last: the branch back.
    pub tail: usize,
    /// All of the body, in order.
    pub body: Vec<usize>,
}

/// The flow of control within a kernel, without the functions it calls.
pub struct Flow<'a> {
    code: &'a [Instruction],
    successors: Vec<Vec<usize>>,
    /// Whether an instruction belongs to the kernel itself: it is reached without a call.
    pub own: Vec<bool>,
    /// Whether it is code at all, and not the padding at the end.
    pub code_end: usize,
}

impl<'a> Flow<'a> {
    /// Follows the branches.
    pub fn of(function: &'a Function) -> Flow<'a> {
        let code = function.instructions.as_slice();
        let code_end = without_padding(code);
        let successors: Vec<Vec<usize>> = (0..code_end).map(|i| successors(code, i, code_end)).collect();
        // A jump by table may go anywhere: then all is taken for the kernel's own.
        let table_jump = code[..code_end].iter().any(|i| matches!(i.base(), "BRX" | "BRXU" | "JMX"));
        let own = if table_jump { vec![true; code_end] } else { reach(&successors, 0, None) };
        Flow { code, successors, own, code_end }
    }

    /// Lists the loops, in the order of their heads; inner ones after the outer ones that begin with them.
    pub fn loops(&self) -> Vec<Loop> {
        let mut found: Vec<Loop> = Vec::new();
        for tail in (0..self.code_end).filter(|&i| self.own[i]) {
            let Some(head) = self.code[tail].branch_target().filter(|&head| head <= tail) else { continue };
            if reach(&self.successors, 0, Some(head))[tail] {
                continue; // there is a way round the head
            }
            let body = self.body(head, tail);
            match found.iter_mut().find(|l| l.head == head) {
                Some(known) => {
                    known.tail = known.tail.max(tail);
                    known.body.extend(body);
                    known.body.sort_unstable();
                    known.body.dedup();
                }
                None => found.push(Loop { head, tail, body }),
            }
        }
        found.sort_by_key(|l| (l.head, std::cmp::Reverse(l.tail)));
        found
    }

    /// The instructions between head and tail from which the tail is reached without passing the head.
    fn body(&self, head: usize, tail: usize) -> Vec<usize> {
        let mut inside = vec![false; tail - head + 1];
        inside[0] = true;
        inside[tail - head] = true;
        let mut changed = true;
        while changed {
            changed = false;
            for i in (head..=tail).rev() {
                let leads = |&next: &usize| next > head && next <= tail && inside[next - head];
                if !inside[i - head] && self.successors[i].iter().any(leads) {
                    inside[i - head] = true;
                    changed = true;
                }
            }
        }
        (head..=tail).filter(|i| inside[i - head]).collect()
    }

    /// Counts some of the instructions by class.
    pub fn mix(&self, indices: impl Iterator<Item = usize>) -> Mix {
        let mut mix = Mix::new();
        for index in indices {
            *mix.entry(self.code[index].class()).or_default() += 1;
        }
        mix
    }

    /// Returns the main loop: of the loops that have no working loop within them, the one with the most tensor
    /// instructions, or with the most instructions if there are no tensor instructions.
    ///
    /// A loop that only waits (for an mbarrier, say) is not a working one; and in a kernel with tensor instructions, neither
    /// is one without them.
    pub fn main_loop(&self) -> Option<Loop> {
        let loops = self.loops();
        let tensor = |l: &Loop| l.body.iter().filter(|&&i| self.code[i].class().is_tensor()).count();
        let any_tensor = loops.iter().any(|l| tensor(l) > 0);
        let works = |l: &Loop| if any_tensor { tensor(l) > 0 } else { !self.only_waits(l) };
        let within = |inner: &Loop, outer: &Loop| {
            inner.head != outer.head && outer.body.binary_search(&inner.head).is_ok()
        };
        let innermost = |outer: &&Loop| !loops.iter().any(|inner| works(inner) && within(inner, outer));
        let candidates = loops.iter().filter(|l| works(l)).filter(innermost);
        candidates.max_by_key(|l| (tensor(l), l.body.len(), std::cmp::Reverse(l.head))).cloned()
    }

    /// A loop with an mbarrier test or a sleep, and with neither arithmetic in floating point nor loads and stores.
    fn only_waits(&self, l: &Loop) -> bool {
        let idle = |class| {
            use Class::*;
            matches!(class, Syncs | Control | Mov | Integer | Imad | Other | Ldc | Vote | Bar)
        };
        let waits = |i: &Instruction| i.class() == Class::Syncs || i.base() == "NANOSLEEP";
        l.body.iter().any(|&i| waits(&self.code[i])) && l.body.iter().all(|&i| idle(self.code[i].class()))
    }
}

/// Where the code ends: after it there is a branch to itself and NOPs up to a multiple of 128 bytes.
fn without_padding(code: &[Instruction]) -> usize {
    let end = code.iter().rposition(|i| i.base() != "NOP").map_or(0, |last| last + 1);
    let trap = |at: usize| code[at].predicate.is_empty() && code[at].branch_target() == Some(at);
    if end > 0 && trap(end - 1) { end - 1 } else { end }
}

fn successors(code: &[Instruction], index: usize, end: usize) -> Vec<usize> {
    let instruction = &code[index];
    if instruction.never_executes() {
        return if index + 1 < end { vec![index + 1] } else { Vec::new() };
    }
    let next = Some(index + 1).filter(|_| !instruction.ends_block());
    next.into_iter().chain(instruction.branch_target()).filter(|&i| i < end).collect()
}

/// Which instructions are reached from `start` without entering `avoided`.
fn reach(successors: &[Vec<usize>], start: usize, avoided: Option<usize>) -> Vec<bool> {
    let mut reached = vec![false; successors.len()];
    let mut pending = vec![start];
    while let Some(index) = pending.pop() {
        if index >= reached.len() || reached[index] || avoided == Some(index) {
            continue;
        }
        reached[index] = true;
        pending.extend(&successors[index]);
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as in `@P0 BRA 0x10`; the address of line `i` is `16 i`.
    fn function(lines: &[&str]) -> Function {
        let instructions = lines.iter().map(|line| {
            let (predicate, rest) = match line.starts_with('@') {
                true => line.split_once(' ').unwrap(),
                false => ("", *line),
            };
            let (opcode, operands) = rest.split_once(' ').unwrap_or((rest, ""));
            let own = str::to_string;
            Instruction { predicate: own(predicate), opcode: own(opcode), operands: own(operands) }
        });
        Function { name: "f".to_string(), instructions: instructions.collect() }
    }

    #[test]
    fn nested_loops_with_a_wait_inside() {
        let f = function(&[
            "MOV R0,RZ",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0,[UR4],R2", // 1: wait loop
            "@!P0 BRA 0x10",
            "HGMMA.64x128x16.F32.BF16 R24,gdesc[UR4],R24",
            "@P1 BRA 0x10", // inner: 1..=4
            "STG.E [R2.64],R4",
            "@P2 BRA 0x0", // outer: 0..=6
            "EXIT",
            "BRA 0x80",
            "NOP",
        ]);
        let flow = Flow::of(&f);
        let loops = flow.loops();
        let heads: Vec<_> = loops.iter().map(|l| (l.head, l.tail, l.body.len())).collect();
        assert_eq!(heads, [(0, 6, 7), (1, 4, 4)]); // one loop with two ways back: the wait and the step
        assert_eq!(flow.main_loop().unwrap().head, 1);
        assert_eq!(flow.code_end, 8);
    }

    #[test]
    fn way_back_from_a_rare_case_is_no_loop() {
        let f = function(&[
            "MOV R0,RZ",
            "BRA.DIV UR4,0x40",
            "SHFL.BFLY PT,R1,R2",
            "EXIT",
            "WARPSYNC R4",
            "BRA 0x20",
        ]);
        let flow = Flow::of(&f);
        assert!(flow.loops().is_empty());
        assert!(flow.own.iter().all(|own| *own));
        assert!(flow.main_loop().is_none());
    }

    #[test]
    fn called_function_is_not_the_kernels_own() {
        let f =
            function(&["CALL.REL.NOINC $g", "EXIT", "FMUL R4,R4,R4", "@P0 BRA 0x20", "RET.REL.NODEC R2,f"]);
        let flow = Flow::of(&f);
        assert_eq!(flow.own, [true, true, false, false, false]);
        assert!(flow.main_loop().is_none());
    }

    #[test]
    fn rare_exit_within_a_loop_is_not_counted() {
        let f = function(&[
            "FADD R0,R0,R1",
            "@!P0 BRA 0x40",
            "STG.E [R2.64],R0",
            "EXIT",
            "FMUL R0,R0,R0",
            "@P1 BRA 0x0",
            "EXIT",
        ]);
        let main = Flow::of(&f).main_loop().unwrap();
        assert_eq!((main.head, main.tail, main.body), (0, 5, vec![0, 1, 4, 5]));
    }

    #[test]
    fn loop_without_tensor_work_does_not_hide_the_one_around_it() {
        let f = function(&[
            "HMMA.16816.F32.BF16 R4,R8,R12,R4",
            "MUFU.EX2 R4,R4",
            "@P0 BRA 0x10",
            "@P1 BRA 0x0",
            "FADD R0,R0,R1",
            "FADD R0,R0,R1",
            "FADD R0,R0,R1",
            "FADD R0,R0,R1",
            "FADD R0,R0,R1",
            "@P1 BRA 0x40",
            "EXIT",
        ]);
        let main = Flow::of(&f).main_loop().unwrap();
        assert_eq!((main.head, main.tail), (0, 3));
    }

    #[test]
    fn empty_code_has_no_loop() {
        assert!(Flow::of(&function(&[])).main_loop().is_none());
        assert!(Flow::of(&function(&["NOP"])).main_loop().is_none());
    }
}
