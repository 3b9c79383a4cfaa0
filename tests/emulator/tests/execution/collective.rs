//! Shuffles, votes, matches, reductions of a warp.

use cuda_emulator::report::Kind;

use crate::harness::{entry, finding, outputs};

const HEAD: &str = "
    .reg .pred %p<8>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    ld.param.u64 %rd1, [p0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
";
const TAIL: &str = "st.global.u32 [%rd4], %r9;\nret;";

fn body(rest: &str) -> String {
    entry(1, &format!("{HEAD}{rest}\n{TAIL}"))
}

#[test]
fn shuffles_move_values_within_segments() {
    // Segments of 8: c = (32 - 8) << 8 | clamp.
    let shuffle = |mode: &str, b: u32, c: u32| {
        body(&format!(
            "add.u32 %r2, %r1, 100;
            shfl.sync.{mode}.b32 %r3|%p1, %r2, {b}, {c}, -1;
            selp.u32 %r4, 1000, 0, %p1;
            add.u32 %r9, %r3, %r4;"
        ))
    };
    /// The lane that a lane reads, if there is one in its segment.
    type Source = fn(u32) -> Option<u32>;
    let cases: [(&str, u32, u32, Source); 4] = [
        ("down", 3, 0x181F, |l| (l % 8 + 3 < 8).then_some(l + 3)),
        ("up", 2, 0x1800, |l| (l % 8 >= 2).then(|| l - 2)),
        ("bfly", 5, 0x181F, |l| Some(l ^ 5)),
        ("idx", 6, 0x181F, |l| Some(l / 8 * 8 + 6)),
    ];
    for (mode, b, c, source) in cases {
        outputs(&shuffle(mode, b, c), (1, 64), 64, |out| {
            for (i, &v) in out.iter().enumerate() {
                let (warp, lane) = (i as u32 / 32 * 32, i as u32 % 32);
                let expected = match source(lane) {
                    Some(from) => 1100 + warp + from,
                    None => 100 + warp + lane,
                };
                assert_eq!(v, expected, "{mode} lane {lane}");
            }
        });
    }
}

#[test]
fn lanes_that_come_to_a_waiting_one_through_a_jump_back_complete_it() {
    // Lane 31 is back at the shuffle, or at the barrier, and waits there while the others still work; these then come to it
    // through a jump back, without stopping on the way.
    for wait in ["shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;", "bar.sync 0;\nmov.u32 %r9, %r1;"] {
        let text = body(&format!(
            "mov.u32 %r2, 0;
            setp.eq.u32 %p1, %r1, 31;
            AGAIN: {wait}
            add.u32 %r2, %r2, 1;
            setp.ge.u32 %p2, %r2, 3;
            @%p2 bra DONE;
            @%p1 bra AGAIN;
            xor.b32 %r3, %r2, %r1;
            bra.uni AGAIN;
            DONE:"
        ));
        let neighbour = u32::from(wait.starts_with("shfl"));
        outputs(&text, (1, 32), 32, |out| {
            out.iter().enumerate().for_each(|(lane, &v)| assert_eq!(v, lane as u32 ^ neighbour));
        });
    }
}

#[test]
fn halves_of_a_warp_shuffle_on_their_own_paths() {
    let text = body(
        "setp.lt.u32 %p1, %r1, 16;
        @%p1 bra LOW;
        shfl.sync.bfly.b32 %r9, %r1, 1, 31, 0xffff0000;
        add.u32 %r9, %r9, 1000;
        bra JOIN;
    LOW:
        shfl.sync.bfly.b32 %r9, %r1, 2, 31, 0xffff;
    JOIN:
        bar.warp.sync -1;
        shfl.sync.bfly.b32 %r9, %r9, 16, 31, -1;",
    );
    outputs(&text, (1, 32), 32, |out| {
        for (i, &v) in out.iter().enumerate() {
            let from = i as u32 ^ 16;
            assert_eq!(v, if from < 16 { from ^ 2 } else { 1000 + (from ^ 1) });
        }
    });
}

#[test]
fn votes_matches_reductions_and_elections() {
    let text = body(
        "and.b32 %r2, %r1, 3;
        setp.eq.u32 %p1, %r2, 1;
        vote.sync.ballot.b32 %r3, %p1, -1;
        vote.sync.any.pred %p2, %p1, -1;
        vote.sync.all.pred %p3, !%p1, -1;
        match.any.sync.b32 %r4, %r2, -1;
        match.all.sync.b32 %r5|%p4, %r2, -1;
        redux.sync.add.s32 %r6, %r1, -1;
        redux.sync.max.u32 %r7, %r2, -1;
        popc.b32 %r8, %r4;
        selp.u32 %r10, 1, 0, %p2;
        selp.u32 %r11, 2, 0, %p3;
        selp.u32 %r12, 4, 0, %p4;
        add.u32 %r9, %r10, %r11;
        add.u32 %r9, %r9, %r12;
        mad.lo.u32 %r9, %r8, 10, %r9;
        mad.lo.u32 %r9, %r6, 1000, %r9;
        mad.lo.u32 %r9, %r7, 1000000, %r9;
        setp.ne.u32 %p5, %r3, 0x22222222;
        @%p5 mov.u32 %r9, 0;",
    );
    outputs(&text, (1, 32), 32, |out| assert!(out.iter().all(|&v| v == 3_000_000 + 496_000 + 81), "{out:?}"));
}

#[test]
fn guards_take_lanes_out_of_a_vote() {
    let text = body(
        "setp.lt.u32 %p1, %r1, 8;
        mov.u32 %r9, 5;
        @%p1 vote.sync.ballot.b32 %r9, %p1, 0xff;
        activemask.b32 %r10;",
    );
    outputs(&text, (1, 32), 32, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == if i < 8 { 0xFF } else { 5 }));
    });
}

#[test]
fn a_warp_barrier_may_be_reached_on_two_paths() {
    let text = body(
        ".shared .align 4 .b8 s[128];
        mov.u32 %r2, s;
        shl.b32 %r3, %r1, 2;
        add.u32 %r4, %r2, %r3;
        setp.lt.u32 %p1, %r1, 5;
        @%p1 bra A;
        st.shared.u32 [%r4], 1;
        bar.warp.sync -1;
        bra JOIN;
    A:  st.shared.u32 [%r4], 2;
        bar.warp.sync -1;
    JOIN:
        xor.b32 %r5, %r3, 124;
        add.u32 %r5, %r2, %r5;
        ld.shared.u32 %r9, [%r5];",
    );
    outputs(&text, (1, 32), 32, |out| {
        assert!(out.iter().enumerate().all(|(i, &v)| v == if 31 - i < 5 { 2 } else { 1 }));
    });
}

#[test]
fn a_mask_that_lacks_the_executing_lane_is_illegal() {
    let text = body("shfl.sync.bfly.b32 %r9, %r1, 1, 31, 0x7fffffff;");
    let report = finding(&text, (1, 32), Kind::IllegalWarpOperation, 32);
    assert!(report.contains("thread (31,0,0)"), "{report}");
}

#[test]
fn a_mask_that_names_an_ended_lane_is_illegal() {
    let text = body("setp.gt.u32 %p1, %r1, 20;\n@%p1 exit;\nshfl.sync.down.b32 %r9, %r1, 1, 31, -1;");
    let report = finding(&text, (1, 32), Kind::IllegalWarpOperation, 32);
    assert!(report.contains("0xffe00000"), "{report}");
}

#[test]
fn a_shuffle_from_a_lane_outside_of_the_mask_is_illegal() {
    let text =
        body("mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %r1, 16;\n@%p1 shfl.sync.bfly.b32 %r9, %r1, 16, 31, 0xffff;");
    finding(&text, (1, 32), Kind::IllegalWarpOperation, 32);
}

#[test]
fn a_full_shuffle_in_a_branch_never_completes() {
    let text = body(
        "mov.u32 %r9, 0;
        setp.lt.u32 %p1, %r1, 16;
        @!%p1 bra OUT;
        shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;
    OUT:
        bar.sync 0;",
    );
    // The other lanes wait at the barrier for the whole warp.
    finding(&text, (1, 32), Kind::DivergentBarrier, 32);
}
