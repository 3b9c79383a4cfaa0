//! Runs a form on many operands and compares each lane with a model.

use cuda_emulator::alu::{Approx, select};
use cuda_emulator::isa::{Alu, AluOp, NONE, Round, Ty};
use cuda_emulator::regs::{FULL, Regs};

/// A seeded generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }
}

/// What a lane's results must be, from its operands.
pub type Model = fn(&Alu, &[u64]) -> Vec<u64>;

/// An instruction with its operands and its model.
#[derive(Clone)]
pub struct Form {
    pub i: Alu,
    /// Types of a, b, c, and of the operand in d2.
    pub operands: Vec<Ty>,
    /// Types of d and d2 (of d, d2, b, c for an unpacking move).
    pub results: Vec<Ty>,
    /// Takes the carry flag as the last operand and gives it as the last result.
    pub carry: bool,
    /// Fills the unused upper bits of narrow operands, as a wider source register does.
    pub dirty: bool,
    /// Tries only some of the operands: for families of forms that differ in little.
    pub sparse: bool,
    pub model: Model,
}

/// Makes a form; its registers are assigned here.
pub fn form(op: AluOp, ty: Ty, flags: u16, operands: &[Ty], result: Ty, model: Model) -> Form {
    let slot = |n: usize| if n < operands.len() { n as u32 } else { NONE };
    let i = Alu {
        op,
        ty,
        from: ty,
        round: Round::None,
        flags,
        d: 4,
        d2: slot(3),
        a: slot(0),
        b: slot(1),
        c: slot(2),
    };
    Form {
        i,
        operands: operands.to_vec(),
        results: vec![result],
        carry: false,
        dirty: false,
        sparse: false,
        model,
    }
}

impl Form {
    pub fn round(mut self, round: Round) -> Self {
        self.i.round = round;
        self
    }

    pub fn from(mut self, from: Ty) -> Self {
        self.i.from = from;
        self
    }

    /// Adds results in d2 and, for four parts, b and c.
    pub fn results(mut self, results: &[Ty]) -> Self {
        self.results = results.to_vec();
        self.i.d2 = 5;
        if results.len() == 4 {
            (self.i.b, self.i.c) = (6, 7);
        }
        self
    }
}

pub const REGISTERS: usize = 8;

pub fn bits_of(ty: Ty) -> u32 {
    if ty == Ty::Pred { 1 } else { 8 * ty.bytes() }
}

pub fn low_bits(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

fn get(regs: &Regs, ty: Ty, slot: usize, lane: usize) -> u64 {
    match ty {
        Ty::Pred => u64::from(regs.pred[slot] >> lane & 1),
        ty if ty.is_wide() => regs.r64[slot].0[lane],
        _ => u64::from(regs.r32[slot].0[lane]),
    }
}

fn set(regs: &mut Regs, ty: Ty, slot: usize, lane: usize, value: u64) {
    match ty {
        Ty::Pred => regs.pred[slot] = regs.pred[slot] & !(1 << lane) | (value as u32 & 1) << lane,
        ty if ty.is_wide() => regs.r64[slot].0[lane] = value,
        _ => regs.r32[slot].0[lane] = value as u32,
    }
}

fn random_registers(random: &mut Random) -> Regs {
    let mut regs = Regs::new(REGISTERS, REGISTERS, REGISTERS);
    for slot in 0..REGISTERS {
        for lane in 0..32 {
            regs.r32[slot].0[lane] = random.next() as u32;
            regs.r64[slot].0[lane] = random.next();
        }
        regs.pred[slot] = random.next() as u32;
    }
    regs.carry = random.next() as u32;
    regs
}

/// Values at which instructions of a type change their behaviour.
pub fn edges(ty: Ty) -> Vec<u64> {
    let bits = bits_of(ty);
    let (mantissa, exponent) = match ty {
        Ty::Pred => return vec![0, 1],
        Ty::F16 => (10, 5),
        Ty::Bf16 => (7, 8),
        Ty::F32 => (23, 8),
        Ty::F64 => (52, 11),
        Ty::F16x2 | Ty::Bf16x2 => {
            let half = edges(if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 });
            let n = half.len();
            return (0..2 * n).map(|k| half[k % n] << 16 | half[(k * 7 + k / n) % n]).collect();
        }
        _ => return integer_edges(bits),
    };
    float_edges(mantissa, exponent)
}

fn integer_edges(bits: u32) -> Vec<u64> {
    let mut values =
        vec![0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0x7f80, 0x5a5a];
    for power in [8, 15, 16, 23, 24, 31, 32, 53, 62, 63] {
        let value = 1u64 << power;
        values.extend([
            value - 1,
            value,
            value + 1,
            value.wrapping_neg(),
            value.wrapping_neg().wrapping_sub(1),
        ]);
    }
    values.extend([
        u64::MAX,
        u64::MAX - 1,
        0x5555_5555_5555_5555,
        0xaaaa_aaaa_aaaa_aaaa,
        0x0123_4567_89ab_cdef,
    ]);
    let mut values: Vec<u64> = values.into_iter().map(|v| low_bits(v, bits)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn float_edges(mantissa: u32, exponent: u32) -> Vec<u64> {
    let infinity = ((1u64 << exponent) - 1) << mantissa;
    let bias = (1u64 << (exponent - 1)) - 1;
    let one = bias << mantissa;
    let half = 1u64 << (mantissa - 1);
    let normal = 1u64 << mantissa;
    let mut values = vec![0, 1, 2, 3, normal - 1, normal, normal + 1, 2 * normal, infinity - 1, infinity - 2];
    values.extend([infinity, infinity + 1, infinity + half, infinity + 2 * half - 1]);
    values.extend([one, one - 1, one + 1, one - normal, one + half, one + normal, one + normal + half / 2]);
    // The last place is a half, one, two; and a sum or product there is a tie.
    for power in [u64::from(mantissa) - 1, u64::from(mantissa), u64::from(mantissa) + 1] {
        values.extend([one + (power << mantissa), one + (power << mantissa) + 1]);
    }
    values.extend([half << 1 | half, one + (bias - 1) / 2 * normal, one / 2 + 5]);
    let sign = 1u64 << (mantissa + exponent);
    let negative: Vec<u64> = values.iter().map(|v| v | sign).collect();
    values.extend(negative);
    values
}

/// A random value: any bits, or (for floats) a number of moderate size, so that sums do not degenerate.
fn random_value(ty: Ty, random: &mut Random, edges: &[u64]) -> u64 {
    let any = random.next();
    match random.next() % 4 {
        0 => random.pick(edges),
        1 if ty == Ty::F32 => any & 0x81ff_ffff | 0x3e00_0000,
        1 if ty == Ty::F64 => any & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000,
        1 => low_bits(any >> (random.next() % 64), bits_of(ty)),
        _ => low_bits(any, bits_of(ty)),
    }
}

/// Returns operands: edge values crossed pairwise, then random ones.
fn operands(form: &Form, random: &mut Random) -> Vec<Vec<u64>> {
    let mut types = form.operands.clone();
    if form.carry {
        types.push(Ty::Pred);
    }
    let edges: Vec<Vec<u64>> = types.iter().map(|ty| edges(*ty)).collect();
    let mut tuples = Vec::new();
    let mut fill = |fixed: &[(usize, u64)], random: &mut Random| {
        let mut tuple: Vec<u64> =
            types.iter().zip(&edges).map(|(ty, edges)| random_value(*ty, random, edges)).collect();
        for (n, value) in fixed {
            tuple[*n] = *value;
        }
        tuples.push(tuple);
    };
    for a in 0..types.len() {
        for x in &edges[a] {
            fill(&[(a, *x)], random);
            for b in a + 1..types.len() {
                for y in &edges[b] {
                    fill(&[(a, *x), (b, *y)], random);
                }
            }
        }
    }
    for _ in 0..1024 {
        fill(&[], random);
    }
    tuples
}

/// Runs a form on its operands and fails at the first lane that differs from the model.
pub fn check(form: &Form, approx: Approx) {
    let f = select(&form.i, approx).unwrap_or_else(|| panic!("no function for {:?}", form.i));
    let mut random = Random(0x5eed ^ form.i.flags as u64);
    let mut tuples = operands(form, &mut random);
    if form.sparse {
        tuples = tuples.into_iter().step_by(11).collect();
    }
    for batch in tuples.chunks(32) {
        for mask in [FULL, random.next() as u32 & random.next() as u32, random.next() as u32] {
            let mut regs = random_registers(&mut random);
            load(form, batch, &mut regs, &mut random);
            let before = regs.clone();
            // SAFETY: selected for this instruction on this machine.
            unsafe { f(&mut regs, &form.i, mask) };
            compare(form, batch, mask, &before, &regs);
        }
        check_aliased(form, f, batch, &mut random);
    }
}

fn load(form: &Form, batch: &[Vec<u64>], regs: &mut Regs, random: &mut Random) {
    for (lane, tuple) in batch.iter().enumerate() {
        for (n, ty) in form.operands.iter().enumerate() {
            let dirt = if form.dirty && bits_of(*ty) < 32 { random.next() << bits_of(*ty) } else { 0 };
            set(regs, *ty, n, lane, tuple[n] | dirt);
        }
        if form.carry {
            regs.carry = regs.carry & !(1 << lane) | (tuple[form.operands.len()] as u32) << lane;
        }
    }
}

/// Registers of the results, in order.
fn result_slots(form: &Form) -> Vec<usize> {
    [form.i.d, form.i.d2, 6, 7].iter().take(form.results.len()).map(|slot| *slot as usize).collect()
}

fn compare(form: &Form, batch: &[Vec<u64>], mask: u32, before: &Regs, after: &Regs) {
    let mut expected = before.clone();
    for (lane, tuple) in batch.iter().enumerate().filter(|(lane, _)| mask >> lane & 1 != 0) {
        let values = (form.model)(&form.i, tuple);
        for ((slot, ty), value) in result_slots(form).into_iter().zip(&form.results).zip(&values) {
            let found = get(after, *ty, slot, lane);
            assert_eq!(
                found, *value,
                "{:?} of {tuple:x?}: found {found:#x}, expected {value:#x} (register {slot})",
                form.i
            );
            set(&mut expected, *ty, slot, lane, *value);
        }
        if form.carry {
            let value = values[form.results.len()] as u32;
            assert_eq!(after.carry >> lane & 1, value, "carry of {:?} for {tuple:x?}", form.i);
            expected.carry = after.carry;
        }
    }
    // Lanes past the batch have random operands: only those outside the mask are known.
    let unchecked = if batch.len() < 32 { mask & (FULL << batch.len()) } else { 0 };
    let outside = !(mask & !unchecked);
    for slot in 0..REGISTERS {
        for lane in (0..32).filter(|lane| unchecked >> lane & 1 == 0) {
            assert_eq!(after.r32[slot].0[lane], expected.r32[slot].0[lane], "{:?} r32 {slot}", form.i);
            assert_eq!(after.r64[slot].0[lane], expected.r64[slot].0[lane], "{:?} r64 {slot}", form.i);
        }
        let difference = (after.pred[slot] ^ expected.pred[slot]) & !unchecked;
        assert_eq!(difference, 0, "{:?} predicate {slot}", form.i);
    }
    assert_eq!((after.carry ^ before.carry) & outside & !unchecked, 0, "{:?} carry outside the mask", form.i);
    if !form.carry {
        assert_eq!(after.carry, before.carry, "{:?} changes the carry flag", form.i);
    }
}

/// A result may lie in the register of an operand.
fn check_aliased(form: &Form, f: cuda_emulator::alu::AluFn, batch: &[Vec<u64>], random: &mut Random) {
    let result = form.results[0];
    let same_file = |ty: Ty| (ty == Ty::Pred, ty.is_wide()) == (result == Ty::Pred, result.is_wide());
    for n in (0..form.operands.len()).filter(|n| same_file(form.operands[*n])) {
        let mut regs = random_registers(random);
        load(form, batch, &mut regs, random);
        let aliased = Alu { d: n as u32, ..form.i };
        // SAFETY: the function does not depend on the slots.
        unsafe { f(&mut regs, &aliased, FULL) };
        for (lane, tuple) in batch.iter().enumerate() {
            let expected = (form.model)(&form.i, tuple)[0];
            assert_eq!(get(&regs, result, n, lane), expected, "{:?} onto operand {n}", form.i);
        }
    }
}

/// Checks each form of a table.
pub fn check_all(forms: &[Form]) {
    assert!(!forms.is_empty());
    for form in forms {
        check(form, Approx::Rounded);
    }
}
