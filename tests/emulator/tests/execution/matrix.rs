//! Matrix products against a dense model, with inputs that tell every position apart.

use half::{bf16, f16};

use crate::harness::{Bench, schedules};

/// A form of `mma.sync`: name in PTX, length of sums, elements in a register.
#[derive(Clone, Copy)]
struct Form {
    name: &'static str,
    k: usize,
    each: usize,
    encode: fn(f32) -> u32,
    half_sums: bool,
    integer: bool,
}

const FORMS: [Form; 10] = [
    Form {
        name: "m16n8k16.row.col.f32.bf16.bf16.f32",
        k: 16,
        each: 2,
        encode: to_bf16,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k8.row.col.f32.bf16.bf16.f32",
        k: 8,
        each: 2,
        encode: to_bf16,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k16.row.col.f32.f16.f16.f32",
        k: 16,
        each: 2,
        encode: to_f16,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k8.row.col.f32.f16.f16.f32",
        k: 8,
        each: 2,
        encode: to_f16,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k16.row.col.f16.f16.f16.f16",
        k: 16,
        each: 2,
        encode: to_f16,
        half_sums: true,
        integer: false,
    },
    Form {
        name: "m16n8k8.row.col.f16.f16.f16.f16",
        k: 8,
        each: 2,
        encode: to_f16,
        half_sums: true,
        integer: false,
    },
    Form {
        name: "m16n8k8.row.col.f32.tf32.tf32.f32",
        k: 8,
        each: 1,
        encode: f32::to_bits,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k4.row.col.f32.tf32.tf32.f32",
        k: 4,
        each: 1,
        encode: f32::to_bits,
        half_sums: false,
        integer: false,
    },
    Form {
        name: "m16n8k16.row.col.s32.s8.s8.s32",
        k: 16,
        each: 4,
        encode: to_s8,
        half_sums: false,
        integer: true,
    },
    Form {
        name: "m16n8k32.row.col.s32.u8.s8.s32",
        k: 32,
        each: 4,
        encode: to_s8,
        half_sums: false,
        integer: true,
    },
];

fn to_bf16(v: f32) -> u32 {
    u32::from(bf16::from_f32(v).to_bits())
}

fn to_f16(v: f32) -> u32 {
    u32::from(f16::from_f32(v).to_bits())
}

fn to_s8(v: f32) -> u32 {
    u32::from(v as i8 as u8)
}

/// Row and column of A for lane, register and element, from the tables of the ISA.
fn place_a(form: Form, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    match form.each {
        2 => {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            (row, thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        }
        1 => (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 }),
        _ => {
            let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
            (row, thread * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
        }
    }
}

fn place_b(form: Form, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let row = match form.each {
        2 => thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 },
        1 => thread + 4 * i,
        _ => thread * 4 + (i & 3) + if i >= 4 { 16 } else { 0 },
    };
    (row, group)
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i >= 2 { 8 } else { 0 }, lane % 4 * 2 + (i & 1))
}

/// Registers of 32 lanes, each packed from elements of `each` to a word.
fn pack(count: usize, each: usize, element: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    let mut words = Vec::new();
    for lane in 0..32 {
        for r in 0..count {
            let bits = 32 / each;
            words.push((0..each).fold(0, |w, e| w | element(lane, r * each + e) << (bits % 32 * e)));
        }
    }
    words
}

fn kernel(form: Form) -> String {
    let (na, nb) = (form.k / (2 * form.each), form.k / (4 * form.each));
    let nc = if form.half_sums { 2 } else { 4 };
    let load = |name: &str, n: usize, param: usize| {
        let loads: Vec<String> =
            (0..n).map(|i| format!("ld.global.b32 %{name}{i}, [%rd{param}+{}];", 4 * i)).collect();
        format!(
            "mul.wide.u32 %rd9, %r1, {};\nadd.s64 %rd{param}, %rd{param}, %rd9;\n{}",
            4 * n,
            loads.join("\n")
        )
    };
    let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let stores: Vec<String> = (0..nc).map(|i| format!("st.global.b32 [%rd1+{}], %d{i};", 4 * i)).collect();
    crate::harness::entry(
        4,
        &format!(
            ".reg .b32 %r<4>;\n.reg .b32 %a<8>;\n.reg .b32 %b<8>;\n.reg .b32 %c<8>;\n.reg .b32 %d<8>;\n.reg .b64 %rd<10>;
        ld.param.u64 %rd1, [p0];
        ld.param.u64 %rd2, [p1];
        ld.param.u64 %rd3, [p2];
        ld.param.u64 %rd4, [p3];
        mov.u32 %r1, %tid.x;
        {}\n{}\n{}
        mma.sync.aligned.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};
        mul.wide.u32 %rd9, %r1, {};
        add.s64 %rd1, %rd1, %rd9;
        {}
        ret;",
            load("a", na, 2),
            load("b", nb, 3),
            load("c", nc, 4),
            form.name,
            list("d", nc),
            list("a", na),
            list("b", nb),
            list("c", nc),
            4 * nc,
            stores.join("\n"),
        ),
    )
}

/// Runs one product; matrices are functions of their position, the result is compared with the exact one.
fn check(
    form: Form,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    c: impl Fn(usize, usize) -> f32,
) {
    let sum = |v: f32| {
        if form.integer {
            v as i32 as u32
        } else if form.half_sums {
            to_f16(v)
        } else {
            v.to_bits()
        }
    };
    let (na, nb, nc) =
        (form.k / (2 * form.each), form.k / (4 * form.each), if form.half_sums { 2 } else { 4 });
    let value_a = |lane, i| {
        let (row, column) = place_a(form, lane, i);
        (form.encode)(a(row, column))
    };
    let value_b = |lane, i| {
        let (row, column) = place_b(form, lane, i);
        (form.encode)(b(row, column))
    };
    let each_c = if form.half_sums { 2 } else { 1 };
    let value_c = |lane, i| {
        let (row, column) = place_c(lane, i);
        sum(c(row, column))
    };
    let expected = pack(nc, each_c, |lane, i| {
        let (row, column) = place_c(lane, i);
        sum(c(row, column) + (0..form.k).map(|k| a(row, k) * b(k, column)).sum::<f32>())
    });
    let bench = Bench::new(&kernel(form), schedules().remove(0));
    let inputs = [pack(na, form.each, value_a), pack(nb, form.each, value_b), pack(nc, each_c, value_c)];
    let [a, b, c] = inputs.map(|words| bench.words(&words));
    let out = bench.memory.alloc(4 * 32 * nc as u64).unwrap();
    let outcome = bench.launch(1, 32, 0, &[out, a, b, c]);
    assert_eq!(outcome.reports, []);
    assert_eq!(outcome.counters.tensor_operations, 2 * 16 * 8 * form.k as u64);
    assert_eq!(bench.read(out, 32 * nc), expected, "{}", form.name);
}

#[test]
fn small_numbers_of_every_position_are_exact() {
    for form in FORMS {
        check(
            form,
            |row, k| ((row * 5 + k * 3) % 11) as f32,
            |k, n| ((k * 7 + n) % 9) as f32 - 4.0,
            |row, n| (row * 8 + n) as f32,
        );
    }
}

#[test]
fn one_hot_inputs_pick_single_elements() {
    for form in FORMS {
        // A picks row k of B by a permutation: D(row, n) = B(row · 3 mod k, n), where every element of B differs.
        check(
            form,
            |row, k| f32::from(k == row * 3 % form.k),
            |k, n| (k * 8 + n) as f32 / if form.integer { 3.0 } else { 1.0 },
            |_, _| 0.0,
        );
    }
}

#[test]
fn matrices_move_between_shared_memory_and_registers() {
    for (load_trans, store_trans) in [(false, false), (true, false), (false, true), (true, true)] {
        let dot = |trans: bool| if trans { ".trans" } else { "" };
        let text = crate::harness::entry(
            1,
            &format!(
                ".reg .b32 %r<20>;\n.reg .b64 %rd<6>;\n.shared .align 16 .b8 s[1024];
            ld.param.u64 %rd1, [p0];
            mov.u32 %r1, %tid.x;
            mov.u32 %r2, s;
            shl.b32 %r3, %r1, 4;
            add.u32 %r4, %r2, %r3;
            shl.b32 %r5, %r1, 16;
            add.u32 %r6, %r5, 1;
            add.u32 %r7, %r5, 2;
            add.u32 %r8, %r5, 3;
            st.shared.v4.b32 [%r4], {{%r5, %r6, %r7, %r8}};
            bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r4];
            stmatrix.sync.aligned.m8n8.x4{}.shared.b16 [%r4+512], {{%r10, %r11, %r12, %r13}};
            bar.warp.sync -1;
            ld.shared.v4.b32 {{%r14, %r15, %r16, %r17}}, [%r4+512];
            mul.wide.u32 %rd2, %r1, 32;
            add.s64 %rd3, %rd1, %rd2;
            st.global.v4.b32 [%rd3], {{%r10, %r11, %r12, %r13}};
            st.global.v4.b32 [%rd3+16], {{%r14, %r15, %r16, %r17}};
            ret;",
                dot(load_trans),
                dot(store_trans)
            ),
        );
        // Row `lane` holds halves 0, lane, 1, lane, 2, lane, 3, lane.
        let element = |m: usize, row: usize, column: usize| {
            if column % 2 == 1 { (8 * m + row) as u32 } else { (column / 2) as u32 }
        };
        for config in schedules() {
            let bench = Bench::new(&text.replace("sm_80", "sm_90"), config);
            let out = bench.memory.alloc(1024).unwrap();
            assert_eq!(bench.launch(1, 32, 0, &[out]).reports, []);
            for (lane, words) in bench.read(out, 256).chunks(8).enumerate() {
                for m in 0..4 {
                    let (row, column) = (lane / 4, 2 * (lane % 4));
                    let held = |c: usize| if load_trans { element(m, c, row) } else { element(m, row, c) };
                    assert_eq!(
                        words[m],
                        held(column) | held(column + 1) << 16,
                        "register {m} of lane {lane}"
                    );
                    // What was stored: row `lane`, words of two columns.
                    let (tile, row) = (lane / 8, lane % 8);
                    let swapped = load_trans != store_trans;
                    let stored =
                        |c: usize| if swapped { element(tile, c, row) } else { element(tile, row, c) };
                    assert_eq!(words[4 + m], stored(2 * m) | stored(2 * m + 1) << 16);
                }
            }
        }
    }
}

#[test]
fn tensor_cores_cut_off_what_the_f32_order_keeps() {
    // 2^24 and sixteen ones. In f32 order each one is lost to rounding. Aligned to 2^24, an f32 has units of 2: the ones
    // are cut off, unless extra bits keep them.
    let form = FORMS[0];
    let model = |extra_bits: Option<u32>| {
        let tensor = match extra_bits {
            Some(extra_bits) => cuda_emulator::exec::Tensor::Truncated { extra_bits, group: 16 },
            None => cuda_emulator::exec::Tensor::Ordered,
        };
        let config = cuda_emulator::exec::Config { tensor, ..schedules().remove(0) };
        let bench = Bench::new(&kernel(form), config);
        let ones = bench.words(&[0x3F80_3F80; 128]);
        let large = bench.words(&[16_777_216f32.to_bits(); 128]);
        let out = bench.memory.alloc(512).unwrap();
        assert_eq!(bench.launch(1, 32, 0, &[out, ones, ones, large]).reports, []);
        let result = bench.read(out, 128);
        assert!(result.iter().all(|&v| v == result[0]));
        f32::from_bits(result[0])
    };
    assert_eq!(model(None), 16_777_216.0, "each addition rounds to even");
    assert_eq!(model(Some(0)), 16_777_216.0, "ones lie below the last bit");
    assert_eq!(model(Some(2)), 16_777_232.0, "two more bits keep the ones");
}
