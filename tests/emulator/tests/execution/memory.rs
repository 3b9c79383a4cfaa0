//! Loads, stores, spaces, and what is wrong with them.

use cuda_emulator::exec::Config;
use cuda_emulator::memory::{DeviceMemory, Error};
use cuda_emulator::report::Kind;

use crate::harness::{Bench, entry, finding, outputs, schedules};

const HEAD: &str = "
    .reg .pred %p<4>;
    .reg .b16 %h<8>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<20>;
    ld.param.u64 %rd1, [p0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
";

#[test]
fn vectors_move_whole_and_narrow_integers_are_extended() {
    let text = entry(
        2,
        &format!(
            "{HEAD}
        ld.param.u64 %rd2, [p1];
        mul.wide.u32 %rd5, %r1, 16;
        add.s64 %rd6, %rd2, %rd5;
        ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd6];
        ld.global.s8 %r6, [%rd6+3];
        ld.global.u8 %r7, [%rd6+3];
        ld.global.s16 %r8, [%rd6+6];
        ld.global.v2.u16 {{%h1, %h2}}, [%rd6+8];
        cvt.u32.u16 %r9, %h2;
        ld.global.s8 %rd7, [%rd6+15];
        shr.u64 %rd8, %rd7, 32;
        cvt.u32.u64 %r10, %rd8;
        mul.wide.u32 %rd9, %r1, 32;
        add.s64 %rd10, %rd1, %rd9;
        st.global.v4.u32 [%rd10], {{%r2, %r6, %r7, %r8}};
        st.global.v2.u32 [%rd10+16], {{%r9, %r10}};
        st.global.v2.u16 [%rd10+24], {{%h2, %h1}};
        st.global.u8 [%rd10+28], %r5;
        st.global.u8 [%rd10+29], 1;
        st.global.u16 [%rd10+30], 2;
        ret;"
        ),
    );
    for config in schedules() {
        let bench = Bench::new(&text, config);
        let words: Vec<u32> = (0..4 * 48u32).map(|i| i.wrapping_mul(0x9E37_79B1) ^ 0x80F0_8080).collect();
        let (input, out) = (bench.words(&words), bench.memory.alloc(48 * 32).unwrap());
        assert_eq!(bench.launch(1, 48, 0, &[out, input]).reports, []);
        let result = bench.read(out, 48 * 8);
        for (w, r) in words.chunks(4).zip(result.chunks(8)) {
            let sign = if w[3] >> 31 == 1 { u32::MAX } else { 0 };
            let expected = [
                w[0],
                (w[0] as i32 >> 24) as u32,
                w[0] >> 24,
                (w[1] as i32 >> 16) as u32,
                w[2] >> 16,
                sign,
                w[2].rotate_left(16),
                w[3] & 0xFF | 1 << 8 | 2 << 16,
            ];
            assert_eq!(r, expected);
        }
    }
}

#[test]
fn a_vector_that_is_not_aligned_is_reported() {
    let text = entry(
        1,
        &format!(
            "{HEAD} ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd1+8];\nst.global.u32 [%rd1], %r2;\nret;"
        ),
    );
    let report = finding(&text, (1, 32), Kind::Misaligned, 64);
    assert!(report.contains("reads 16 bytes at global address"), "{report}");
}

#[test]
fn one_byte_past_the_end_is_out_of_bounds() {
    let text = entry(
        1,
        &format!(
            "{HEAD}
        cvt.u64.u32 %rd5, %r1;
        add.s64 %rd6, %rd1, %rd5;
        st.global.u8 [%rd6], %r1;
        ret;"
        ),
    );
    let bench = Bench::new(&text, Config::default());
    let out = bench.memory.alloc(95).unwrap();
    assert_eq!(bench.launch(1, 95, 0, &[out]).reports, []);
    let outcome = bench.launch(1, 96, 0, &[out]);
    let failure = outcome.failure().unwrap();
    assert_eq!((failure.kind, failure.thread), (Kind::OutOfBounds, [95, 0, 0]));
    assert!(failure.message.contains("writes 1 bytes"), "{failure}");
    assert!(failure.message.contains("0 bytes after the end of the 95 bytes allocated at"), "{failure}");
}

#[test]
fn shared_local_and_parameter_memory_have_ends_too() {
    let shared = entry(
        1,
        &format!("{HEAD} .shared .align 4 .b8 s[64];\nmov.u32 %r2, s;\nst.shared.u32 [%r2+64], %r1;\nret;"),
    );
    assert!(finding(&shared, (1, 1), Kind::OutOfBounds, 1).contains("shared address 0x40"));
    let local = entry(
        1,
        &format!(
            "{HEAD} .local .align 4 .b8 l[16];\nmov.u32 %r2, l;\nmad.lo.u32 %r2, %r1, 4, %r2;\nst.local.u32 [%r2], 1;\nret;"
        ),
    );
    assert!(finding(&local, (1, 8), Kind::OutOfBounds, 1).contains("thread (4,0,0)"));
    let null = entry(
        1,
        &format!("{HEAD} mov.u64 %rd5, 0;\nld.global.u32 %r2, [%rd5];\nst.global.u32 [%rd1], %r2;\nret;"),
    );
    assert!(finding(&null, (1, 1), Kind::OutOfBounds, 1).contains("null pointer"));
}

#[test]
fn freed_memory_is_named() {
    let text = entry(1, &format!("{HEAD} ld.global.u32 %r2, [%rd4];\nst.global.u32 [%rd4], %r2;\nret;"));
    for config in schedules() {
        let bench = Bench::new(&text, config);
        let old = bench.words(&[1; 32]);
        bench.memory.free(old).unwrap();
        let _new = bench.words(&[2; 32]);
        let outcome = bench.launch(1, 32, 0, &[old]);
        let failure = outcome.failure().unwrap();
        assert_eq!(failure.kind, Kind::UseAfterFree);
        assert!(failure.message.contains(&format!("128 bytes at {old:#x} that were freed")), "{failure}");
    }
}

#[test]
fn bytes_that_nobody_wrote_are_reported_and_read_as_ones() {
    let spaces = [
        ("global", "add.s64 %rd5, %rd4, 512;\nld.global.u32 %r2, [%rd5];"),
        ("shared", ".shared .align 4 .b8 s[256];\nmov.u32 %r3, s;\nld.shared.u32 %r2, [%r3+128];"),
        (
            "local",
            ".local .align 4 .b8 l[16];\nmov.u32 %r3, l;\nst.local.u16 [%r3+8], 4660;\nld.local.u32 %r2, [%r3+8];",
        ),
    ];
    for (space, load) in spaces {
        let text = entry(1, &format!("{HEAD} {load}\nst.global.u32 [%rd4], %r2;\nret;"));
        for config in schedules() {
            let bench = Bench::new(&text, config);
            let out = bench.memory.alloc(1024).unwrap();
            let outcome = bench.launch(1, 32, 0, &[out]);
            assert_eq!(outcome.reports.len(), 1, "{:?}", outcome.reports);
            assert_eq!(outcome.reports[0].kind, Kind::Uninitialised);
            assert!(outcome.reports[0].message.contains(space), "{}", outcome.reports[0]);
            let expected = if space == "local" { 0xFFFF_1234 } else { u32::MAX };
            assert!(bench.read(out, 32).iter().all(|&v| v == expected));
        }
    }
}

#[test]
fn generic_addresses_reach_every_space() {
    let text = entry(
        1,
        &format!(
            "{HEAD}
        .shared .align 8 .b8 s[256];
        .local .align 4 .b8 l[16];
        mov.u64 %rd5, s;
        cvta.shared.u64 %rd6, %rd5;
        mov.u64 %rd7, l;
        cvta.local.u64 %rd8, %rd7;
        setp.lt.u32 %p1, %r1, 16;
        add.s64 %rd6, %rd6, %rd3;
        selp.b64 %rd9, %rd6, %rd8, %p1;
        st.u32 [%rd9], %r1;
        ld.u32 %r2, [%rd9];
        isspacep.shared %p2, %rd9;
        selp.u32 %r3, 100, 200, %p2;
        add.u32 %r2, %r2, %r3;
        cvta.to.shared.u64 %rd10, %rd6;
        @%p1 ld.shared.u32 %r4, [%rd10];
        @%p1 add.u32 %r2, %r2, %r4;
        st.u32 [%rd4], %r2;
        ret;"
        ),
    );
    outputs(&text, (1, 32), 32, |out| {
        for (i, &v) in out.iter().enumerate() {
            let i = i as u32;
            assert_eq!(v, if i < 16 { 100 + 2 * i } else { 200 + i });
        }
    });
}

#[test]
fn variables_of_a_module_are_initialised_and_constants_cannot_be_written() {
    let globals =
        ".const .align 4 .u32 table[4] = {10, 20, 30, 40};\n.global .align 4 .u32 zero[2];\n.visible";
    let read = entry(
        1,
        &format!(
            "{HEAD}
        and.b32 %r2, %r1, 3;
        mul.wide.u32 %rd5, %r2, 4;
        mov.u64 %rd6, table;
        add.s64 %rd6, %rd6, %rd5;
        ld.const.u32 %r3, [%rd6];
        ld.global.u32 %r4, [zero+4];
        add.u32 %r3, %r3, %r4;
        st.global.u32 [%rd4], %r3;
        ret;"
        ),
    );
    outputs(&read.replace(".visible", globals), (1, 32), 32, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == 10 * (i as u32 % 4 + 1)));
    });
    let write = entry(
        1,
        &format!("{HEAD} mov.u64 %rd5, table;\ncvta.const.u64 %rd6, %rd5;\nst.u32 [%rd6], 1;\nret;"),
    );
    let report = finding(&write.replace(".visible", globals), (1, 1), Kind::OutOfBounds, 1);
    assert!(report.contains("`table`") && report.contains("constant"), "{report}");
}

#[test]
fn a_huge_allocation_costs_nothing_until_it_is_touched() {
    let text = entry(1, &format!("{HEAD} st.global.u32 [%rd4], %r1;\nret;"));
    let bench = Bench { memory: DeviceMemory::new(16 << 30), ..Bench::new(&text, Config::default()) };
    let at = bench.memory.alloc(5 << 30).unwrap();
    let end = at + (5 << 30) - 128;
    assert_eq!(bench.launch(1, 32, 0, &[end]).reports, []);
    assert_eq!(bench.read(end, 32), (0..32).collect::<Vec<_>>());
    assert_eq!(bench.read(at, 2), [u32::MAX; 2]);
    assert_eq!(bench.memory.used(), 5 << 30);
}

#[test]
fn the_host_meets_the_same_limits() {
    let memory = DeviceMemory::new(4096);
    let a = memory.alloc(1000).unwrap();
    assert!(a.is_multiple_of(512) && a >> 47 != 0, "no address of a host process");
    assert!(matches!(memory.alloc(4000), Err(Error::OutOfMemory { free: 3096, .. })));
    assert_eq!(memory.alloc(0), Err(Error::Empty));
    memory.fill(a, &[1, 2], 500).unwrap();
    assert!(matches!(memory.write(a + 999, &[0; 2]), Err(Error::Fault(_))));
    assert!(memory.fault(a + 1000, 1).place.contains("0 bytes after the end of the 1000 bytes"));
    let b = memory.alloc(1000).unwrap();
    memory.write(b + 100, &[9; 50]).unwrap();
    memory.copy(a + 3, b + 90, 100).unwrap();
    let mut bytes = [0; 104];
    memory.read(a, &mut bytes).unwrap();
    assert_eq!(bytes[..3], [1, 2, 1]);
    assert!(bytes[3..13].iter().all(|&v| v == 0xFF), "what nobody wrote stays unwritten in a copy");
    assert!(bytes[13..63].iter().all(|&v| v == 9));
    assert!(bytes[63..103].iter().all(|&v| v == 0xFF));
    assert_eq!(bytes[103], 2);
    memory.free(a).unwrap();
    assert_eq!(memory.free(a), Err(Error::FreedTwice { address: a, bytes: 1000 }));
    assert_eq!(memory.free(b + 1), Err(Error::NotAnAllocation { address: b + 1 }));
    assert!(memory.read(a, &mut bytes).unwrap_err().to_string().contains("freed"));
    assert_eq!(memory.used(), 1000);
}

#[test]
fn counters_tell_scattered_from_contiguous_accesses() {
    let kernel = |stride: u32| {
        entry(
            1,
            &format!(
                "{HEAD} .shared .align 4 .b8 s[4096];
            mul.lo.u32 %r2, %r1, {stride};
            mul.wide.u32 %rd5, %r2, 1;
            add.s64 %rd6, %rd1, %rd5;
            ld.global.u32 %r3, [%rd6];
            mov.u32 %r4, s;
            add.u32 %r5, %r4, %r2;
            st.shared.u32 [%r5], %r3;
            ret;"
            ),
        )
    };
    for (stride, sectors, wavefronts) in [(4, 4, 1), (8, 8, 2), (128, 32, 32)] {
        let bench = Bench::new(&kernel(stride), Config::default());
        let input = bench.words(&[5; 1024]);
        let counters = bench.launch(1, 32, 0, &[input]).counters;
        assert_eq!((counters.global_loads.bytes, counters.global_loads.sectors), (128, sectors));
        assert_eq!(counters.shared_stores.wavefronts, wavefronts);
        assert_eq!(counters.shared_stores.ideal_wavefronts, 1);
        assert_eq!(counters.instructions.lanes, 32 * counters.instructions.warps);
    }
}
