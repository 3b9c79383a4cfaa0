//! What becomes of names, immediates, variables, addresses and widths.

use cuda_emulator::isa::{
    Addr, Alu, AluOp, Count, Kernel, NONE, Op, Order, Scope, Space, Special, Ty, Value, flag,
};

use super::{code, kernel, module};

/// Returns the operations of a body.
fn ops(kernel: &Kernel) -> Vec<Op> {
    code(kernel).into_iter().map(|inst| inst.op).collect()
}

fn alu(op: &Op) -> Alu {
    match op {
        Op::Alu(alu) => *alu,
        other => panic!("{other:?} is not arithmetic"),
    }
}

/// Returns what a register holds from the start.
fn constant(kernel: &Kernel, wide: bool, slot: u32) -> Value {
    let found = kernel.constants.iter().find(|c| c.wide == wide && c.slot == slot);
    found.unwrap_or_else(|| panic!("register {slot} is not constant")).value
}

/// Returns the source of a `mov` of one immediate.
fn immediate(line: &str, wide: bool) -> u64 {
    let kernel = kernel(line);
    match constant(&kernel, wide, alu(&ops(&kernel)[0]).a) {
        Value::Bits(bits) => bits,
        other => panic!("{other:?}"),
    }
}

#[test]
fn immediates_take_the_type_of_the_operand() {
    assert_eq!(immediate("mov.u32 %r1, 17;", false), 17);
    assert_eq!(immediate("mov.s32 %r1, -17;", false), 0xffff_ffef);
    assert_eq!(immediate("mov.b32 %r1, 0xFFFFFFFFU;", false), 0xffff_ffff);
    assert_eq!(immediate("mov.s16 %rs1, -2;", false), 0xfffe);
    assert_eq!(immediate("mov.u16 %rs1, 0b101;", false), 5);
    assert_eq!(immediate("mov.u32 %r1, 017;", false), 15);
    assert_eq!(immediate("mov.s64 %rd1, -1;", true), u64::MAX);
    assert_eq!(immediate("mov.u64 %rd1, 18446744073709551615;", true), u64::MAX);
    assert_eq!(immediate("mov.f32 %f1, 0fBF800000;", false), 0xbf80_0000);
    assert_eq!(immediate("mov.b32 %r1, 0f3F800000;", false), 0x3f80_0000);
    assert_eq!(immediate("mov.f32 %f1, 0.1;", false), u64::from(0.1f32.to_bits()));
    assert_eq!(immediate("mov.f32 %f1, -1e-3;", false), u64::from((-1e-3f64 as f32).to_bits()));
    assert_eq!(immediate("mov.f32 %f1, 0d3FF8000000000000;", false), u64::from(1.5f32.to_bits()));
    assert_eq!(immediate("mov.f64 %fd1, 0d3FF8000000000000;", true), 1.5f64.to_bits());
    assert_eq!(immediate("mov.f64 %fd1, 0f3FC00000;", true), 1.5f64.to_bits());
    assert_eq!(immediate("mov.u32 %r1, WARP_SZ;", false), 32);
    assert_eq!(immediate("mov.u32 %r1, (1 << 4 | 2) * 3 - 10 / 3 % 2 ^ 1;", false), 52);
    assert_eq!(immediate("mov.s32 %r1, -8 >> 1;", false), 0xffff_fffc);
    assert_eq!(immediate("mov.s32 %r1, ~0;", false), 0xffff_ffff);
    assert_eq!(immediate("mov.u64 %rd1, 0x8000000000000000 >> 63;", true), 1);
}

#[test]
fn equal_constants_share_a_register() {
    let kernel = kernel(
        "add.u32 %r1, %r2, 7; add.s32 %r3, %r4, 7; mov.u64 %rd1, 7; mov.u32 %r5, %tid.x; mov.u32 %r6, %tid.x;",
    );
    let values: Vec<_> = kernel.constants.iter().map(|c| (c.wide, c.value)).collect();
    let tid = (false, Value::Special(Special::Tid(0)));
    assert_eq!(values, [(false, Value::Bits(7)), (true, Value::Bits(7)), tid]);
}

#[test]
fn clocks_are_read_each_time() {
    let kernel = kernel(
        "mov.u32 %r1, %clock; mov.u64 %rd1, %globaltimer; add.u32 %r2, %r1, %clock; mov.u32 %r3, %laneid;",
    );
    let reads = ops(&kernel).iter().filter(|op| matches!(op, Op::ReadSpecial { .. })).count();
    assert_eq!(reads, 3);
    assert!(kernel.constants.iter().any(|c| c.value == Value::Special(Special::LaneId)));
}

#[test]
fn variables_have_offsets() {
    let module = module(
        ".version 8.5\n.target sm_80\n.address_size 64\n\
         .shared .align 4 .b8 unnamed[100];\n.shared .align 8 .b8 common[20];\n.extern .shared .align 64 .b8 dynamic[];\n\
         .global .b32 g[4];\n.const .b32 c;\n\
         .entry first() { .reg .b32 %r<9>; .reg .b64 %rd<9>; .shared .align 16 .b8 own[5]; .local .b32 l[3];\n\
         { .shared .b16 own; .local .align 16 .b64 l; mov.u32 %r1, own; mov.u64 %rd1, l; }\n\
         mov.u32 %r2, common; mov.u32 %r3, own+2; mov.u32 %r4, dynamic; mov.u64 %rd2, g+8; ld.u32 %r5, [c+0]; }\n\
         .entry second() { }",
    );
    let [first, second] = &module.kernels[..] else { panic!("two kernels") };
    // common at 0..20, own at 32..37, the inner own at 38..40; the dynamic part at the next multiple of 64.
    assert_eq!((first.shared_bytes, first.dynamic_shared_align), (40, 64));
    assert_eq!((second.shared_bytes, second.dynamic_shared_align), (0, 0));
    assert_eq!(first.local_bytes, 24, "l at 0..12, the inner l at 16..24");
    let ops = ops(first);
    let value = |i: usize, wide| constant(first, wide, alu(&ops[i]).a);
    assert_eq!(value(0, false), Value::Bits(38));
    assert_eq!(value(1, true), Value::Bits(16));
    assert_eq!(value(2, false), Value::Bits(0));
    assert_eq!(value(3, false), Value::Bits(34));
    assert_eq!(value(4, false), Value::Bits(64));
    assert_eq!(value(5, true), Value::Global { index: 0, offset: 8, generic: false });
    let Op::Ld { space: Space::Generic, addr, .. } = ops[6] else { panic!("a generic load") };
    assert_eq!(constant(first, true, addr.base), Value::Global { index: 1, offset: 0, generic: true });
}

#[test]
fn globals_have_initial_values() {
    let module = module(
        ".version 8.5\n.target sm_80\n.address_size 64\n\
         .global .align 8 .u64 p[3] = {g, generic(g)+8, 5};\n\
         .global .align 16 .s16 g[2][3] = {{1, -2}, {3}};\n.const .f64 d = 0d3FF0000000000000;\n\
         .global .v2 .f32 v[2] = {1.0, 2.0};\n.global .b8 s[] = {104, 105, 0};\n.global .u32 zero;",
    );
    let [p, g, d, v, s, zero] = &module.globals[..] else { panic!("six variables") };
    assert_eq!((p.size, p.align, &p.relocations[..]), (24, 8, &[(0, 1, 0), (8, 1, 8)][..]));
    assert_eq!(p.init[16..], 5u64.to_le_bytes());
    assert_eq!((g.size, g.align), (12, 16));
    assert_eq!(g.init, [1, 0, 0xfe, 0xff, 0, 0, 3, 0], "the first row is filled up");
    assert!(d.constant && d.init == 1f64.to_le_bytes());
    assert_eq!((v.size, v.align, v.init.len()), (16, 8, 8));
    assert_eq!((s.size, &s.init[..]), (3, &b"hi\0"[..]));
    assert_eq!((zero.size, zero.init.len()), (4, 0));
}

#[test]
fn addresses() {
    let kernel = kernel(
        "ld.shared.u32 %r1, [%r2+-4]; ld.shared.u32 %r1, [%rd2+8]; ld.shared.u32 %r1, [tile+12]; ld.shared.u32 %r1, [16];
         ld.param.u32 %r1, [big+8]; ld.global.u32 %r1, [%rd3-0x10]; ld.u32 %r1, [tile+4]; mov.u64 %rd4, big;",
    );
    let addr: Vec<Addr> = ops(&kernel)
        .iter()
        .filter_map(|op| match op {
            Op::Ld { addr, .. } => Some(*addr),
            _ => None,
        })
        .collect();
    let at = |addr: Addr| (addr.base != NONE, addr.wide, addr.offset);
    assert_eq!(at(addr[0]), (true, false, -4));
    assert_eq!(at(addr[1]), (true, true, 8));
    assert_eq!(at(addr[2]), (false, true, 12));
    assert_eq!(at(addr[3]), (false, true, 16));
    assert_eq!(at(addr[4]), (false, true, 72), "out, n, x take 16 bytes; big is aligned to 64");
    assert_eq!(at(addr[5]), (true, true, -16));
    assert_eq!(constant(&kernel, true, addr[6].base), Value::GenericShared(0));
    assert_eq!(
        constant(&kernel, true, alu(&ops(&kernel)[7]).a),
        Value::Bits(64),
        "an address in the parameter space"
    );
}

#[test]
fn loads_and_stores_of_other_widths_convert() {
    // (line, operations): a load writes its own type's file, zero-extended.
    let shape = |line: &str| -> Vec<String> {
        let describe = |op: &Op| match op {
            Op::Ld { ty, .. } => format!("ld {ty:?}"),
            Op::St { ty, .. } => format!("st {ty:?}"),
            Op::Alu(Alu { op: AluOp::Cvt, ty, from, .. }) => format!("{ty:?} from {from:?}"),
            other => format!("{other:?}"),
        };
        ops(&kernel(line)).iter().map(describe).collect()
    };
    assert_eq!(shape("ld.global.u8 %rs1, [%rd1];"), ["ld U8"]);
    assert_eq!(shape("ld.global.u16 %r1, [%rd1];"), ["ld U16"]);
    assert_eq!(shape("ld.global.s16 %rs1, [%rd1];"), ["ld U16"]);
    assert_eq!(shape("ld.global.s8 %rs1, [%rd1];"), ["ld U8", "S16 from S8"]);
    assert_eq!(shape("ld.global.s8 %r1, [%rd1];"), ["ld U8", "S32 from S8"]);
    assert_eq!(shape("ld.global.s32 %rd2, [%rd1];"), ["ld S32", "S64 from S32"]);
    assert_eq!(shape("ld.global.b32 %rd2, [%rd1];"), ["ld B32", "U64 from U32"]);
    assert_eq!(shape("st.global.u8 [%rd1], %r1;"), ["st U8"]);
    assert_eq!(shape("st.global.u32 [%rd1], %rd2;"), ["U32 from U64", "st U32"]);
    assert_eq!(shape("cvt.s8.s32 %r1, %r2;"), ["S8 from S32", "S32 from S8"]);
    assert_eq!(shape("cvt.u8.u32 %rs1, %r2;"), ["U8 from U32", "U16 from U8"]);
    assert_eq!(shape("cvt.s32.s16 %r1, %r2;"), ["S32 from S16"]);
    assert_eq!(shape("cvt.u32.u8 %r1, %rd2;"), ["U32 from U64", "U32 from U8"]);
}

#[test]
fn flags_and_fields() {
    let one = |line: &str| alu(&ops(&kernel(line))[0]);
    assert_eq!(one("add.rn.ftz.sat.f32 %f1, %f2, %f3;").flags, flag::FTZ | flag::SAT);
    assert_eq!(one("addc.cc.u32 %r1, %r2, %r3;").flags, flag::CARRY_IN | flag::CARRY_OUT);
    assert_eq!(one("subc.u32 %r1, %r2, %r3;").flags, flag::CARRY_IN);
    assert_eq!(one("madc.hi.u32 %r1, %r2, %r3, %r4;").flags, flag::CARRY_IN | flag::HI);
    assert_eq!(one("mul.wide.s32 %rd1, %r2, %r3;").flags, flag::WIDE);
    assert_eq!(one("shf.l.wrap.b32 %r1, %r2, %r3, %r4;").flags, flag::WRAP);
    assert_eq!(one("shf.l.clamp.b32 %r1, %r2, %r3, %r4;").flags, 0);
    assert_eq!(one("bfind.shiftamt.u32 %r1, %r2;").flags, flag::SHIFTAMT);
    assert_eq!(one("mad.rn.f32 %f1, %f2, %f3, %f4;").op, AluOp::Fma);
    assert_eq!(one("lop3.b32 %r1, %r2, %r3, %r4, 0xE8;").op, AluOp::Lop3(0xe8));
    assert_eq!(one("prmt.b32.rc8 %r1, %r2, %r3, %r4;").op, AluOp::Prmt(3));
    assert_eq!(one("dp4a.s32.u32 %r1, %r2, %r3, %r4;").op, AluOp::Dp4a(true, false));
    assert_eq!(one("setp.lt.and.s32 %p1, %r1, %r2, !%p2;").flags, flag::NOT_C);
    let select = kernel(
        "mov.u32 %r1, 1; mov.u32 %r2, 2; selp.b32 %r3, %r1, %r2, !%p1; st.shared.v2.u32 [0], {%r3, %r1};",
    );
    let ops = ops(&select);
    assert_eq!(
        (alu(&ops[2]).a, alu(&ops[2]).b),
        (alu(&ops[1]).d, alu(&ops[0]).d),
        "`!p` exchanges the choices"
    );
}

#[test]
fn memory_orders() {
    let order = |line: &str| match ops(&kernel(line))[0] {
        Op::Ld { order, scope, .. } | Op::St { order, scope, .. } => (order, scope),
        Op::Atom { order, scope, .. } | Op::Fence { order, scope, .. } => (order, scope),
        other => panic!("{other:?}"),
    };
    assert_eq!(order("ld.acquire.gpu.global.u32 %r1, [%rd1];"), (Order::Acquire, Scope::Gpu));
    assert_eq!(order("ld.volatile.global.u32 %r1, [%rd1];").0, Order::Volatile);
    assert_eq!(order("st.global.u32 [%rd1], %r1;").0, Order::Weak);
    assert_eq!(order("atom.global.add.u32 %r1, [%rd1], 1;"), (Order::Relaxed, Scope::Gpu));
    assert_eq!(order("atom.acq_rel.sys.global.add.u32 %r1, [%rd1], 1;"), (Order::AcqRel, Scope::Sys));
    assert_eq!(order("membar.gl;"), (Order::Sc, Scope::Gpu));
    assert_eq!(order("fence.acq_rel.cta;"), (Order::AcqRel, Scope::Cta));
}

#[test]
fn operations_with_choices() {
    let op = |line: &str| ops(&kernel(line)).pop().expect("an operation");
    assert!(matches!(op("bar.sync 3;"), Op::BarSync { bar: Count::Imm(3), count: None, aligned: true }));
    assert!(matches!(
        op("barrier.sync %r1, 64;"),
        Op::BarSync { bar: Count::Reg(_), count: Some(Count::Imm(64)), aligned: false }
    ));
    assert!(matches!(
        op("cp.async.ca.shared.global [%r1], [%rd1], 4;"),
        Op::CpAsync { size: 4, src: None, ignore: NONE, .. }
    ));
    assert!(matches!(
        op("cp.async.cg.shared.global [%r1], [%rd1], 16, %p1;"),
        Op::CpAsync { src: None, ignore: 0, .. }
    ));
    assert!(matches!(
        op("cp.async.cg.shared.global [%r1], [%rd1], 16, 3;"),
        Op::CpAsync { src: Some(Count::Imm(3)), .. }
    ));
    assert!(matches!(op("red.global.add.u32 [%rd1], 1;"), Op::Atom { d: NONE, .. }));
    assert!(matches!(op("atom.global.exch.f32 %f1, [%rd1], %f2;"), Op::Atom { ty: Ty::B32, .. }));
    assert!(matches!(op("shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;"), Op::Shfl { p: NONE, .. }));
    assert!(matches!(op("exit;"), Op::Exit));
}

#[test]
fn heads_of_kernels() {
    let module = module(
        ".version 8.5\n.target sm_90a\n.address_size 64\n\
         .entry a(.param .u8 x, .param .align 64 .b8 y[3], .param .u64 z) .maxntid 128, 2 .minnctapersm 3 {}\n\
         .entry b() .reqntid 32 .reqnctapercluster 2, 1, 1 {}",
    );
    let [a, b] = &module.kernels[..] else { panic!("two kernels") };
    let params: Vec<_> = a.params.iter().map(|p| (p.name.as_str(), p.offset, p.size, p.align)).collect();
    assert_eq!(params, [("x", 0, 1, 1), ("y", 64, 3, 64), ("z", 72, 8, 8)]);
    assert_eq!((a.max_threads, a.exact_threads, a.min_blocks), ([128, 2, 1], false, 3));
    assert_eq!((b.max_threads, b.exact_threads, b.cluster), ([32, 1, 1], true, [2, 1, 1]));
    assert_eq!((module.version, module.target.as_str()), ((8, 5), "sm_90a"));
}
