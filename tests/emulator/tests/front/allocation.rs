//! Registers share slots: random programs must compute the same with them as without.
//!
//! A program is made as a list of steps over named registers and run here by name; its text is lowered, and the result is
//! run by slot. Both run one thread, with different values in registers that nobody has written.

use cuda_emulator::isa::{Alu, AluOp, Cmp, Kernel, NONE, Op, Value};

use super::kernel;

const REGISTERS: usize = 24;
const PREDICATES: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    Set(usize, u32),
    Add(usize, usize, usize),
    Mix(usize, usize, usize),
    Less(usize, usize, usize),
    Swap(usize, usize),
    Store(usize),
    /// To a later label, or to an earlier one as long as the budget of jumps lasts.
    Jump(usize),
}

/// A step with its guard: a predicate and whether it is negated.
type Guarded = (Step, Option<(usize, bool)>);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % limit as u64) as usize
    }
}

/// Makes a program: most registers are used in short stretches, so that slots can be shared.
fn program(random: &mut Random) -> Vec<Guarded> {
    let mut steps: Vec<Guarded> = Vec::new();
    let length = 10 + random.below(70);
    let window = 3 + random.below(REGISTERS - 3);
    steps.extend((0..2).map(|r| (Step::Set(r, r as u32 * 77), None)));
    steps.extend((0..PREDICATES).map(|p| (Step::Less(p, p % 2, (p + 1) % 2), None)));
    for i in 0..length {
        let base = i * REGISTERS / length;
        let mut register = || (base + random.below(window)) % REGISTERS;
        let (a, b, c) = (register(), register(), register());
        let step = match random.below(16) {
            0..=2 => Step::Set(a, random.below(1000) as u32),
            3..=4 => Step::Add(a, b, c),
            5..=7 => Step::Mix(a, b, c),
            8..=9 => Step::Less(random.below(PREDICATES), b, c),
            10 if a != b => Step::Swap(a, b),
            10..=12 => Step::Store(a),
            _ => Step::Jump(random.below(length + 2 + PREDICATES)),
        };
        let guard = (random.below(3) == 0).then(|| (random.below(PREDICATES), random.below(2) == 0));
        steps.push((step, guard));
    }
    steps
}

fn text(steps: &[Guarded]) -> String {
    let mut text = String::from(".reg .b32 %v<24>; .reg .pred %q<6>; .reg .b64 %w<1>;\n");
    for (i, (step, guard)) in steps.iter().enumerate() {
        text += &format!("L{i}: ");
        if let Some((p, not)) = guard {
            text += &format!("@{}%q{p} ", if *not { "!" } else { "" });
        }
        text += &match step {
            Step::Set(d, value) => format!("mov.u32 %v{d}, {value};\n"),
            Step::Add(d, a, b) => format!("add.u32 %v{d}, %v{a}, %v{b};\n"),
            Step::Mix(d, a, b) => format!("xor.b32 %v{d}, %v{a}, %v{b};\n"),
            Step::Less(p, a, b) => format!("setp.lt.u32 %q{p}, %v{a}, %v{b};\n"),
            // Through a 64-bit register, with both results in one instruction.
            Step::Swap(a, b) => {
                let guard = guard
                    .map(|(p, not)| format!("@{}%q{p} ", if not { "!" } else { "" }))
                    .unwrap_or_default();
                format!("mov.b64 %w0, {{%v{a}, %v{b}}};\n{guard}mov.b64 {{%v{b}, %v{a}}}, %w0;\n")
            }
            Step::Store(a) => format!("st.shared.u32 [0], %v{a};\n"),
            Step::Jump(to) => format!("bra L{};\n", to.min(&(steps.len() - 1))),
        };
    }
    text
}

/// Jumps that a run may take before it ends; stores are what is compared.
const JUMPS: usize = 200;

/// Runs a program; a value is `None` if it comes from a register that nobody has written. The run ends where such a value
/// decides something.
fn run_by_name(steps: &[Guarded]) -> Vec<Option<u32>> {
    let (mut v, mut q) = ([None; REGISTERS], [None; PREDICATES]);
    let (mut stores, mut at, mut jumps) = (Vec::new(), 0, 0);
    let both = |a: Option<u32>, b: Option<u32>| a.zip(b);
    while let Some((step, guard)) = steps.get(at) {
        at += 1;
        match guard.map(|(p, not)| q[p].map(|value: bool| value != not)) {
            Some(None) => break,
            Some(Some(false)) => continue,
            _ => {}
        }
        match *step {
            Step::Set(d, value) => v[d] = Some(value),
            Step::Add(d, a, b) => v[d] = both(v[a], v[b]).map(|(a, b)| a.wrapping_add(b)),
            Step::Mix(d, a, b) => v[d] = both(v[a], v[b]).map(|(a, b)| a ^ b),
            Step::Less(p, a, b) => q[p] = both(v[a], v[b]).map(|(a, b)| a < b),
            Step::Swap(a, b) => v.swap(a, b),
            Step::Store(a) => stores.push(v[a]),
            Step::Jump(to) => {
                jumps += 1;
                if jumps == JUMPS {
                    break;
                }
                at = to.min(steps.len() - 1);
            }
        }
    }
    stores
}

/// Runs the instructions until so many values are stored.
fn run_by_slot(kernel: &Kernel, most: usize) -> Vec<u32> {
    let mut narrow = vec![0x2222_2222u32; kernel.r32 as usize];
    let mut wide = vec![0x3333_3333_3333_3333u64; kernel.r64 as usize];
    let mut pred = vec![true; kernel.preds as usize];
    for constant in &kernel.constants {
        let Value::Bits(bits) = constant.value else { panic!("only numbers are used") };
        assert!(!constant.wide);
        narrow[constant.slot as usize] = bits as u32;
    }
    let (mut stores, mut at, mut jumps) = (Vec::new(), 0usize, 0);
    while stores.len() < most {
        let inst = &kernel.code[at];
        at += 1;
        if inst.guard != NONE && pred[inst.guard as usize] == inst.guard_not {
            continue;
        }
        match inst.op {
            Op::Exit => return stores,
            Op::Bra { target, .. } => {
                jumps += 1;
                if jumps == JUMPS {
                    return stores;
                }
                at = target as usize;
            }
            Op::St { src, .. } => stores.push(narrow[kernel.lists[src.start as usize] as usize]),
            Op::Alu(Alu { op, d, d2, a, b, .. }) => {
                let (d, d2, a, b) = (d as usize, d2 as usize, a as usize, b as usize);
                match op {
                    AluOp::Mov => narrow[d] = narrow[a],
                    AluOp::Add => narrow[d] = narrow[a].wrapping_add(narrow[b]),
                    AluOp::Xor => narrow[d] = narrow[a] ^ narrow[b],
                    AluOp::Setp(Cmp::Lt, None) => pred[d] = narrow[a] < narrow[b],
                    AluOp::Pack => wide[d] = u64::from(narrow[a]) | u64::from(narrow[b]) << 32,
                    AluOp::Unpack => (narrow[d], narrow[d2]) = (wide[a] as u32, (wide[a] >> 32) as u32),
                    other => panic!("{other:?} was not in the text"),
                }
            }
            other => panic!("{other:?} was not in the text"),
        }
    }
    stores
}

#[test]
fn random_programs_compute_the_same_with_shared_slots() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut stores, mut saved) = (0, 0);
    for round in 0..4000 {
        let steps = program(&mut random);
        let text = text(&steps);
        let kernel = kernel(&text);
        let expected = run_by_name(&steps);
        let found = run_by_slot(&kernel, expected.len());
        assert_eq!(found.len(), expected.len(), "round {round}:\n{text}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                expected.is_none_or(|value| value == *found),
                "round {round}: {found}, not {expected:?}\n{text}"
            );
        }
        stores += expected.iter().flatten().count();
        let used = kernel.r32 as usize - kernel.constants.len();
        saved += REGISTERS.saturating_sub(used);
    }
    assert!(stores > 20_000, "the programs hardly store anything: {stores}");
    println!("{stores} values stored, {saved} slots saved");
    assert!(saved > 20_000, "hardly any slot is shared: {saved}");
}

#[test]
fn values_that_follow_each_other_share_a_slot() {
    let mut body = String::from(".reg .b32 %v<1000>;\nmov.u32 %v0, %tid.x;\n");
    for i in 1..1000 {
        body += &format!("add.u32 %v{i}, %v{}, 1;\n", i - 1);
    }
    let kernel = kernel(&(body + "st.shared.u32 [0], %v999;"));
    let constants = kernel.constants.len() as u32;
    assert!(kernel.r32 <= constants + 2, "{} slots for a chain, {constants} of them constant", kernel.r32);
}

#[test]
fn a_loop_keeps_what_it_needs_in_the_next_round() {
    let kernel = kernel(
        "mov.u32 %r1, 5; mov.u32 %r2, 0;
         AGAIN: add.u32 %r3, %r2, %r1; add.u32 %r4, %r3, 1; add.u32 %r5, %r4, 1; mov.u32 %r2, %r5;
         setp.lt.u32 %p1, %r2, 100; @%p1 bra AGAIN; st.shared.u32 [0], %r2;",
    );
    let slot = |i: usize| match kernel.code[i].op {
        Op::Alu(alu) => alu.d,
        _ => NONE,
    };
    let (five, sum) = (slot(0), slot(1));
    for i in 2..5 {
        assert_ne!(slot(i), five, "instruction {i} overwrites the 5 that the next round reads");
    }
    assert_ne!(five, sum);
}

#[test]
fn results_and_operands_of_one_instruction_are_apart() {
    let kernel = kernel(
        "mov.u32 %r1, %tid.x; mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r2, {%rs2, %rs1}; st.shared.u32 [0], %r2;",
    );
    let unpack = kernel.code.iter().find_map(|inst| match inst.op {
        Op::Alu(alu) if alu.op == AluOp::Unpack => Some(alu),
        _ => None,
    });
    let alu = unpack.expect("an unpacking move");
    assert!(alu.d != alu.a && alu.d2 != alu.a && alu.d != alu.d2);
}

#[test]
fn a_guarded_write_keeps_the_old_value() {
    let kernel = kernel(
        "mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; setp.lt.u32 %p1, %r1, 3; @%p1 mov.u32 %r2, 7;
         add.u32 %r3, %r1, 1; st.shared.u32 [0], %r3; st.shared.u32 [4], %r2;",
    );
    let d = |i: usize| match kernel.code[i].op {
        Op::Alu(alu) => alu.d,
        _ => NONE,
    };
    assert_eq!(d(1), d(3), "both writes are of %r2");
    assert_ne!(d(4), d(1), "%r3 must not overwrite %r2, which lives on");
}

#[test]
fn a_guarded_write_in_a_loop_keeps_the_value_of_the_round_before() {
    let kernel = kernel(
        "mov.u32 %r1, 5; mov.u32 %r2, 0;
         AGAIN: setp.gt.u32 %p1, %r2, 100; @%p1 mov.u32 %r1, 7; add.u32 %r3, %r1, %r2;
         add.u32 %r4, %r3, 1; add.u32 %r5, %r4, 1; mov.u32 %r2, %r5;
         setp.lt.u32 %p2, %r2, 500; @%p2 bra AGAIN; st.shared.u32 [0], %r2;",
    );
    let d = |i: usize| match kernel.code[i].op {
        Op::Alu(alu) => alu.d,
        _ => NONE,
    };
    for i in 4..8 {
        assert_ne!(d(i), d(0), "instruction {i} overwrites %r1, which the next round may read");
    }
}
