//! Branches, loops, exits, barriers, deadlocks.

use cuda_emulator::report::Kind;

use crate::harness::{entry, finding, outputs};

const OUT: &str = "
    .reg .pred %p<8>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    .reg .f32 %f<20>;
    ld.param.u64 %rd1, [p0];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.s32 %r4, %r2, %r3, %r1;
    mul.wide.u32 %rd3, %r4, 4;
    add.s64 %rd4, %rd2, %rd3;
";

fn body(rest: &str) -> String {
    entry(1, &format!("{OUT}{rest}"))
}

#[test]
fn every_thread_writes_its_number() {
    outputs(&body("st.global.u32 [%rd4], %r4;\nret;"), (3, 100), 300, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32));
    });
}

#[test]
fn loops_of_different_length_in_one_warp() {
    // Collatz steps: each thread loops as long as it needs, with a nested condition.
    let text = body(
        "add.u32 %r5, %r4, 1;
        mov.u32 %r6, 0;
    LOOP:
        setp.eq.u32 %p1, %r5, 1;
        @%p1 bra DONE;
        and.b32 %r7, %r5, 1;
        setp.eq.u32 %p2, %r7, 0;
        @%p2 bra EVEN;
        mad.lo.u32 %r5, %r5, 3, 1;
        bra.uni NEXT;
    EVEN:
        shr.u32 %r5, %r5, 1;
    NEXT:
        add.u32 %r6, %r6, 1;
        bra LOOP;
    DONE:
        st.global.u32 [%rd4], %r6;
        ret;",
    );
    let steps = |mut n: u32| {
        let mut count = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
            count += 1;
        }
        count
    };
    outputs(&text, (4, 64), 256, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == steps(i as u32 + 1)), "{out:?}");
    });
}

#[test]
fn threads_that_exit_early_leave_the_others_alone() {
    let text = body(
        "st.global.u32 [%rd4], 7;
        and.b32 %r5, %r1, 3;
        setp.ne.u32 %p1, %r5, 0;
        @%p1 exit;
        bar.sync 0;
        st.global.u32 [%rd4], %r1;
        ret;",
    );
    outputs(&text, (2, 96), 192, |out| {
        for (i, &v) in out.iter().enumerate() {
            let thread = i as u32 % 96;
            assert_eq!(v, if thread.is_multiple_of(4) { thread } else { 7 });
        }
    });
}

#[test]
fn a_jump_table_sends_each_thread_elsewhere() {
    let text = body(
        "and.b32 %r5, %r1, 3;
    TARGETS: .branchtargets A, B, C, D;
        brx.idx %r5, TARGETS;
    A:  mov.u32 %r6, 10; bra OUT;
    B:  mov.u32 %r6, 20; bra OUT;
    C:  mov.u32 %r6, 30; bra OUT;
    D:  mov.u32 %r6, 40;
    OUT:
        st.global.u32 [%rd4], %r6;
        ret;",
    );
    outputs(&text, (1, 50), 50, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == 10 * (i as u32 % 4 + 1)));
    });
}

#[test]
fn a_barrier_orders_shared_memory() {
    let text = body(
        ".shared .align 4 .b8 s[1024];
        mov.u32 %r5, s;
        shl.b32 %r6, %r1, 2;
        add.u32 %r7, %r5, %r6;
        st.shared.u32 [%r7], %r1;
        bar.sync 0;
        sub.u32 %r8, 255, %r1;
        shl.b32 %r8, %r8, 2;
        add.u32 %r8, %r5, %r8;
        ld.shared.u32 %r9, [%r8];
        st.global.u32 [%rd4], %r9;
        ret;",
    );
    outputs(&text, (5, 256), 1280, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == 255 - i as u32 % 256));
    });
}

#[test]
fn named_barriers_count_their_threads() {
    // Warps 0 and 1 meet at barrier 1 and warps 2 and 3 at barrier 2; warp 1 only arrives.
    let text = body(
        ".shared .align 4 .b8 s[16];
        mov.u32 %r5, s;
        shr.u32 %r6, %r1, 5;
        setp.ge.u32 %p1, %r6, 2;
        @%p1 bra SECOND;
        setp.eq.u32 %p2, %r6, 0;
        @%p2 bra WAIT;
        setp.eq.u32 %p3, %r1, 32;
        @%p3 st.shared.u32 [%r5], 77;
        bar.arrive 1, 64;
        mov.u32 %r9, 1;
        bra OUT;
    WAIT:
        bar.sync 1, 64;
        ld.shared.u32 %r9, [%r5];
        bra OUT;
    SECOND:
        bar.sync 2, 64;
        mov.u32 %r9, 2;
    OUT:
        st.global.u32 [%rd4], %r9;
        ret;",
    );
    outputs(&text, (2, 128), 256, |out| {
        for (i, &v) in out.iter().enumerate() {
            assert_eq!(v, [77, 1, 2, 2][i / 32 % 4]);
        }
    });
}

#[test]
fn barrier_reductions_count_all_threads() {
    let text = body(
        "and.b32 %r5, %r1, 1;
        setp.eq.u32 %p1, %r5, 1;
        bar.red.popc.u32 %r6, 0, %p1;
        bar.red.and.pred %p2, 0, %p1;
        bar.red.or.pred %p3, 0, !%p1;
        selp.u32 %r7, 1000, 0, %p2;
        selp.u32 %r8, 2000, 0, %p3;
        add.u32 %r6, %r6, %r7;
        add.u32 %r6, %r6, %r8;
        st.global.u32 [%rd4], %r6;
        ret;",
    );
    outputs(&text, (1, 100), 100, |out| assert!(out.iter().all(|&v| v == 2050), "{out:?}"));
}

#[test]
fn a_thread_that_holds_a_lock_runs_while_others_of_its_warp_spin() {
    let text = entry(
        1,
        "
        .reg .pred %p<4>;
        .reg .b32 %r<10>;
        .reg .b64 %rd<4>;
        .shared .align 4 .b8 lock[8];
        ld.param.u64 %rd1, [p0];
        mov.u32 %r1, lock;
        mov.u32 %r2, %tid.x;
        setp.ne.u32 %p1, %r2, 0;
        @%p1 bra READY;
        st.shared.u32 [%r1], 0;
        st.shared.u32 [%r1+4], 0;
    READY:
        bar.sync 0;
    SPIN:
        atom.shared.cas.b32 %r3, [%r1], 0, 1;
        setp.ne.u32 %p2, %r3, 0;
        @%p2 bra SPIN;
        ld.volatile.shared.u32 %r4, [%r1+4];
        add.u32 %r4, %r4, 1;
        st.volatile.shared.u32 [%r1+4], %r4;
        atom.shared.exch.b32 %r3, [%r1], 0;
        bar.sync 0;
        ld.shared.u32 %r4, [%r1+4];
        @!%p1 st.global.u32 [%rd1], %r4;
        ret;",
    );
    outputs(&text, (1, 70), 1, |out| assert_eq!(out, [70]));
}

#[test]
fn blocks_that_wait_for_later_blocks_get_them() {
    // A barrier of the whole grid: more blocks than one host thread begins with.
    let text = body(
        "setp.ne.u32 %p1, %r1, 0;
        @%p1 bra MET;
        ld.global.u64 %rd5, [flag];
        atom.global.add.u32 %r5, [counter], 1;
    WAIT:
        ld.volatile.global.u32 %r6, [counter];
        setp.lt.u32 %p2, %r6, 40;
        @%p2 bra WAIT;
    MET:
        bar.sync 0;
        ld.volatile.global.u32 %r7, [counter];
        st.global.u32 [%rd4], %r7;
        ret;",
    )
    .replace(
        ".visible",
        ".global .align 4 .u32 counter = 0;\n.global .align 8 .u64 flag = counter;\n.visible",
    );
    outputs(&text, (40, 33), 40 * 33, |out| assert!(out.iter().all(|&v| v == 40)));
}

#[test]
fn a_barrier_in_a_branch_of_a_warp_is_divergent() {
    let text = body(
        "setp.lt.u32 %p1, %r1, 10;
        @%p1 bra A;
        bar.sync 0;
        bra OUT;
    A:  bar.sync 0;
    OUT: st.global.u32 [%rd4], 0;
        ret;",
    );
    let report = finding(&text, (1, 64), Kind::DivergentBarrier, 64);
    assert!(report.contains("0x000003ff") || report.contains("0xfffffc00"), "{report}");
}

#[test]
fn warps_at_different_barriers_are_a_deadlock() {
    let text = body(
        "setp.lt.u32 %p1, %r1, 32;
        @%p1 bra A;
        bar.sync 1;
        bra OUT;
    A:  bar.sync 2;
    OUT: st.global.u32 [%rd4], 0;
        ret;",
    );
    let report = finding(&text, (1, 64), Kind::Deadlock, 64);
    assert!(report.contains("barrier 1: 32 threads") && report.contains("barrier 2: 32 threads"), "{report}");
}

#[test]
fn waiting_for_a_flag_that_nobody_sets_is_a_livelock() {
    let text = body(
        "WAIT:
        ld.volatile.global.u32 %r5, [flag];
        setp.eq.u32 %p1, %r5, 0;
        @%p1 bra WAIT;
        st.global.u32 [%rd4], 0;
        ret;",
    )
    .replace(".visible", ".global .align 4 .u32 flag;\n.visible");
    finding(&text, (2, 32), Kind::Livelock, 64);
}

#[test]
fn a_trap_is_an_illegal_instruction_at_its_line() {
    let text = body("setp.eq.u32 %p1, %r1, 5;\n@%p1 trap;\nst.global.u32 [%rd4], 0;\nret;");
    let line = text.lines().position(|l| l.contains("trap")).unwrap() + 1;
    let report = finding(&text, (1, 32), Kind::IllegalInstruction, 32);
    assert!(report.contains("thread (5,0,0)") && report.contains(&format!("PTX line {line}")), "{report}");
}

#[test]
fn volatile_reads_of_many_addresses_are_work_and_no_livelock() {
    // 300,000 reads in a row, and none of them sees a change.
    let text = body(
        "mov.u32 %r5, 0;
        mov.u64 %rd5, table;
    LOOP:
        and.b32 %r6, %r5, 1023;
        mul.wide.u32 %rd6, %r6, 4;
        add.s64 %rd7, %rd5, %rd6;
        ld.volatile.global.u32 %r7, [%rd7];
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p1, %r5, 300000;
        @%p1 bra LOOP;
        st.global.u32 [%rd4], %r7;
        ret;",
    )
    .replace(".visible", ".global .align 4 .u32 table[1024];\n.visible");
    let bench = crate::harness::Bench::new(&text, cuda_emulator::exec::Config::default());
    let out = bench.memory.alloc(128).unwrap();
    assert_eq!(bench.launch(1, 32, 0, &[out]).reports, []);
    assert_eq!(bench.read(out, 32), [0; 32]);
}

#[test]
fn the_instructions_of_a_block_are_limited() {
    let text = body("AGAIN:\nst.global.u32 [%rd4], %r5;\nadd.u32 %r5, %r5, 1;\nbra AGAIN;\nret;");
    let mut config = cuda_emulator::exec::Config::default();
    config.limits.total = 100_000;
    let bench = crate::harness::Bench::new(&text, config);
    let out = bench.memory.alloc(128).unwrap();
    let outcome = bench.launch(1, 32, 0, &[out]);
    assert_eq!(outcome.failure().unwrap().kind, Kind::Livelock);
}
