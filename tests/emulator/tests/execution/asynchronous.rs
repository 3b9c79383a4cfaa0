//! Copies that are late, and barriers that count bytes.

use cuda_emulator::report::Kind;

use crate::harness::{Bench, entry, finding, schedules};

const HEAD: &str = "
    .reg .pred %p<8>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    .shared .align 16 .b8 s[4096];
    .shared .align 8 .b8 bar[16];
    ld.param.u64 %rd1, [p0];
    ld.param.u64 %rd2, [p1];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    mul.wide.u32 %rd5, %r1, 16;
    add.s64 %rd6, %rd2, %rd5;
    mov.u32 %r2, s;
    shl.b32 %r3, %r1, 4;
    add.u32 %r4, %r2, %r3;
    mov.u32 %r5, bar;
";

/// Runs 64 threads with 1024 bytes of input under every schedule.
fn runs(body: &str, check: impl Fn(&cuda_emulator::exec::Outcome, &[u32], &[u32])) {
    for config in schedules() {
        let bench = Bench::new(&entry(2, &format!("{HEAD}{body}\nret;")), config);
        let input: Vec<u32> = (0..512).map(|i| i * i + 1).collect();
        let (out, from) = (bench.memory.alloc(256).unwrap(), bench.words(&input));
        let outcome = bench.launch(1, 64, 0, &[out, from]);
        check(&outcome, &bench.read(out, 64), &input);
    }
}

#[test]
fn a_copy_is_there_after_the_wait_and_zero_filled() {
    let body = "
        setp.lt.u32 %p1, %r1, 32;
        selp.u32 %r6, 16, 8, %p1;
        cp.async.cg.shared.global [%r4], [%rd6], 16, %r6;
        cp.async.commit_group;
        cp.async.wait_group 0;
        bar.sync 0;
        xor.b32 %r7, %r3, 1008;
        add.u32 %r7, %r2, %r7;
        ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r7];
        add.u32 %r14, %r10, %r13;
        st.global.u32 [%rd4], %r14;";
    runs(body, |outcome, out, input| {
        assert_eq!(outcome.reports, []);
        assert_eq!(outcome.counters.asynchronous_copy_bytes, 1024);
        for (i, &v) in out.iter().enumerate() {
            let from = 63 - i;
            let last = if from < 32 { input[4 * from + 3] } else { 0 };
            assert_eq!(v, input[4 * from] + last);
        }
    });
}

#[test]
fn a_copy_is_not_there_before_the_wait() {
    let body = "
        cp.async.cg.shared.global [%r4], [%rd6], 16;
        cp.async.commit_group;
        ld.shared.u32 %r10, [%r4];
        cp.async.wait_group 0;
        st.global.u32 [%rd4], %r10;";
    runs(body, |outcome, out, _| {
        let report = outcome.reports.iter().find(|r| r.kind == Kind::Uninitialised).unwrap();
        assert!(report.message.contains("asynchronous copy"), "{report}");
        assert!(out.iter().all(|&v| v == u32::MAX));
    });
}

#[test]
fn a_copy_reads_its_source_at_any_moment_before_the_wait() {
    // Nobody but the thread itself changes the source, in the middle of a loop that takes a few turns.
    let body = "
        cp.async.ca.shared.global [%r4], [%rd6], 4;
        cp.async.commit_group;
        mov.u32 %r8, 0;
    LOOP:
        add.u32 %r8, %r8, 1;
        setp.lt.u32 %p1, %r8, 60;
        @%p1 bra LOOP;
        st.global.u32 [%rd6], 7;
        cp.async.wait_group 0;
        ld.shared.u32 %r10, [%r4];
        st.global.u32 [%rd4], %r10;";
    let (early, late) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let ordered = std::cell::Cell::new(0);
    runs(body, |outcome, out, input| {
        assert!(outcome.reports.iter().all(|r| r.kind == Kind::Race) && !outcome.reports.is_empty());
        for (i, &v) in out.iter().enumerate() {
            assert!(v == 7 || v == input[4 * i], "{v} is neither the old value nor the new one");
            let sum = if v == 7 { &late } else { &early };
            sum.set(sum.get() + 1);
        }
        ordered.set(ordered.get() + 1);
        assert!(ordered.get() > 2 || early.get() == 0, "in order, copies are as late as possible");
    });
    assert!(early.get() > 0 && late.get() > 0, "{} early, {} late", early.get(), late.get());
}

#[test]
fn groups_are_waited_for_in_order() {
    let body = "
        cp.async.ca.shared.global [%r4], [%rd6], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r4+4], [%rd6+4], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.u32 %r10, [%r4];
        ld.shared.u32 %r11, [%r4+4];
        cp.async.wait_all;
        ld.shared.u32 %r12, [%r4+4];
        sub.u32 %r13, %r12, %r10;
        setp.eq.u32 %p1, %r11, -1;
        selp.u32 %r13, %r13, 0, %p1;
        st.global.u32 [%rd4], %r13;";
    runs(body, |outcome, out, input| {
        // The second group is read before its wait, and nothing else is wrong.
        let lines: Vec<u32> = outcome.reports.iter().map(|r| r.ptx_line).collect();
        assert!(!lines.is_empty() && lines.iter().all(|&line| line == lines[0]), "{:?}", outcome.reports);
        assert!(outcome.reports.iter().any(|r| r.kind == Kind::Uninitialised));
        for (i, &v) in out.iter().enumerate() {
            assert_eq!(v, input[4 * i + 1] - input[4 * i]);
        }
    });
}

#[test]
fn an_mbarrier_hands_data_from_one_warp_to_another() {
    // Warp 0 fills, warp 1 reads: two rounds, phases 0 and 1, through a copy that arrives by itself.
    let body = "
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra READY;
        mbarrier.init.shared.b64 [%r5], 32;
        mbarrier.init.shared.b64 [%r5+8], 32;
    READY:
        bar.sync 0;
        mov.u32 %r8, 0;
        mov.u32 %r9, 0;
        setp.ge.u32 %p2, %r1, 32;
        @%p2 bra CONSUMER;
    PRODUCER:
        setp.eq.u32 %p3, %r8, 0;
        @%p3 bra FILL;
        sub.u32 %r10, %r8, 1;
        and.b32 %r10, %r10, 1;
    FREE:
        mbarrier.try_wait.parity.shared.b64 %p4, [%r5+8], %r10;
        @!%p4 bra FREE;
    FILL:
        cp.async.ca.shared.global [%r4], [%rd6], 16;
        cp.async.mbarrier.arrive.noinc.shared.b64 [%r5];
        add.s64 %rd6, %rd6, 512;
        add.u32 %r8, %r8, 1;
        setp.lt.u32 %p5, %r8, 2;
        @%p5 bra PRODUCER;
        st.global.u32 [%rd4], %r8;
        bra OUT;
    CONSUMER:
        and.b32 %r10, %r8, 1;
    FULL:
        mbarrier.try_wait.parity.shared.b64 %p4, [%r5], %r10;
        @!%p4 bra FULL;
        ld.shared.u32 %r11, [%r4+-512];
        add.u32 %r9, %r9, %r11;
        mbarrier.arrive.shared.b64 %rd10, [%r5+8];
        add.u32 %r8, %r8, 1;
        setp.lt.u32 %p5, %r8, 2;
        @%p5 bra CONSUMER;
        st.global.u32 [%rd4], %r9;
    OUT:";
    runs(body, |outcome, out, input| {
        assert_eq!(outcome.reports, []);
        assert!(out[..32].iter().all(|&v| v == 2));
        for (i, &v) in out[32..].iter().enumerate() {
            assert_eq!(v, input[4 * i] + input[4 * i + 128]);
        }
    });
}

#[test]
fn an_mbarrier_that_never_completes_is_a_livelock() {
    let text = entry(
        2,
        &format!(
            "{HEAD}
        mbarrier.init.shared.b64 [%r5], 2;
        mbarrier.arrive.shared.b64 %rd10, [%r5];
    WAIT:
        mbarrier.try_wait.parity.shared.b64 %p4, [%r5], 0;
        @!%p4 bra WAIT;
        ret;"
        ),
    )
    .replace("ld.param.u64 %rd2, [p1];", "")
    .replace(", .param .u64 p1", "");
    let report = finding(&text, (1, 1), Kind::Livelock, 1);
    assert!(report.contains("waits for 1 of 2 arrivals"), "{report}");
}

#[test]
fn too_many_arrivals_are_refused() {
    let text = entry(
        2,
        &format!(
            "{HEAD}
        mbarrier.init.shared.b64 [%r5], 2;
        mbarrier.arrive.shared.b64 %rd10, [%r5], 3;
        ret;"
        ),
    )
    .replace("ld.param.u64 %rd2, [p1];", "")
    .replace(", .param .u64 p1", "");
    finding(&text, (1, 1), Kind::AsyncMisuse, 1);
}
