//! Prints lane-instructions a second of the common forms: `cargo test --release -p cuda-emulator --test alu_speed -- --ignored --nocapture`.

use std::time::Instant;

use cuda_emulator::alu::{Approx, select};
use cuda_emulator::isa::{Alu, AluOp, Cmp, NONE, Round, Ty, flag};
use cuda_emulator::regs::{FULL, Regs};

fn form(op: AluOp, ty: Ty, from: Ty, round: Round, flags: u16) -> Alu {
    Alu { op, ty, from, round, flags, d: 3, d2: NONE, a: 0, b: 1, c: 2 }
}

fn forms() -> Vec<(&'static str, Alu)> {
    let of = |op, ty| form(op, ty, ty, Round::None, 0);
    let rn = |op, ty| form(op, ty, ty, Round::Nearest, 0);
    vec![
        ("add.f32", of(AluOp::Add, Ty::F32)),
        ("mul.f32", of(AluOp::Mul, Ty::F32)),
        ("fma.rn.f32", rn(AluOp::Fma, Ty::F32)),
        ("add.ftz.f32", form(AluOp::Add, Ty::F32, Ty::F32, Round::None, flag::FTZ)),
        ("max.f32", of(AluOp::Max, Ty::F32)),
        ("div.rn.f32", rn(AluOp::Div, Ty::F32)),
        ("fma.rm.f32", form(AluOp::Fma, Ty::F32, Ty::F32, Round::Down, 0)),
        ("add.u32", of(AluOp::Add, Ty::U32)),
        ("xor.b32", of(AluOp::Xor, Ty::B32)),
        ("lop3.b32", of(AluOp::Lop3(0xe8), Ty::B32)),
        ("shl.b32", of(AluOp::Shl, Ty::B32)),
        ("mad.lo.u32", of(AluOp::Mad, Ty::U32)),
        ("mul.wide.u32", form(AluOp::Mul, Ty::U32, Ty::U32, Round::None, flag::WIDE)),
        ("setp.lt.f32", of(AluOp::Setp(Cmp::Lt, None), Ty::F32)),
        ("setp.ge.s32", of(AluOp::Setp(Cmp::Ge, None), Ty::S32)),
        ("selp.b32", of(AluOp::Selp, Ty::B32)),
        ("mov.b32", of(AluOp::Mov, Ty::B32)),
        ("add.s64", of(AluOp::Add, Ty::S64)),
        ("fma.rn.f64", rn(AluOp::Fma, Ty::F64)),
        ("fma.rn.bf16x2", rn(AluOp::Fma, Ty::Bf16x2)),
        ("fma.rn.f16x2", rn(AluOp::Fma, Ty::F16x2)),
        ("cvt.rn.f32.s32", form(AluOp::Cvt, Ty::F32, Ty::S32, Round::Nearest, 0)),
        ("cvt.rzi.s32.f32", form(AluOp::Cvt, Ty::S32, Ty::F32, Round::IntZero, 0)),
        ("cvt.rn.bf16x2.f32", form(AluOp::Cvt, Ty::Bf16x2, Ty::F32, Round::Nearest, 0)),
        ("cvt.rn.f16.f32", form(AluOp::Cvt, Ty::F16, Ty::F32, Round::Nearest, 0)),
        ("ex2.approx.f32", form(AluOp::Ex2, Ty::F32, Ty::F32, Round::None, flag::APPROX)),
        ("lg2.approx.f32", form(AluOp::Lg2, Ty::F32, Ty::F32, Round::None, flag::APPROX)),
        ("sin.approx.f32", form(AluOp::Sin, Ty::F32, Ty::F32, Round::None, flag::APPROX)),
        ("tanh.approx.f32", form(AluOp::Tanh, Ty::F32, Ty::F32, Round::None, flag::APPROX)),
        ("rsqrt.approx.f32", form(AluOp::Rsqrt, Ty::F32, Ty::F32, Round::None, flag::APPROX)),
    ]
}

/// Returns the best of some short runs, in G lanes a second: a busy machine spoils the others.
fn best_rate(mut call: impl FnMut()) -> f64 {
    const CALLS: u32 = 5000;
    let run = |_| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        f64::from(CALLS) * 32.0 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..30).map(run).fold(0.0, f64::max)
}

#[test]
#[ignore = "a measurement"]
fn lane_instructions_a_second() {
    let mut regs = Regs::new(4, 4, 4);
    for lane in 0..32 {
        for slot in 0..3 {
            regs.r32[slot].0[lane] = (1.0 + lane as f32 * 0.37 + slot as f32).to_bits();
            regs.r64[slot].0[lane] = (1.0 + lane as f64 * 0.37 + slot as f64).to_bits();
        }
    }
    for (name, i) in forms() {
        let f = select(&i, Approx::Rounded).unwrap_or_else(|| panic!("{name}"));
        let rates = [FULL, 0x0fff_f0ff].map(|mask| {
            best_rate(|| {
                // SAFETY: selected for this instruction on this machine.
                unsafe { f(std::hint::black_box(&mut regs), std::hint::black_box(&i), mask) };
            })
        });
        println!("{name:20} {:6.2} G/s, with a partial mask {:6.2} G/s", rates[0], rates[1]);
    }
}
