//! Atomic operations, from many threads and in every schedule.

use cuda_emulator::memory::DeviceMemory;
use half::{bf16, f16};

use crate::harness::{Bench, entry, outputs, schedules};

const HEAD: &str = "
    .reg .pred %p<4>;
    .reg .b16 %h<8>;
    .reg .b32 %r<20>;
    .reg .f32 %f<8>;
    .reg .f64 %fd<8>;
    .reg .b64 %rd<20>;
    ld.param.u64 %rd1, [p0];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.s32 %r4, %r2, %r3, %r1;
";

/// Runs 4 blocks of 100 threads that each execute `operation` on words that start as `start`.
fn result(operation: &str, start: &[u32]) -> Vec<Vec<u32>> {
    let text = entry(1, &format!("{HEAD}{operation}\nret;"));
    let run = |config| {
        let bench = Bench::new(&text, config);
        let at = bench.words(start);
        let outcome = bench.launch(4, 100, 0, &[at]);
        assert_eq!(outcome.reports, []);
        assert!(outcome.counters.atomics >= 400);
        bench.read(at, start.len())
    };
    schedules().into_iter().map(run).collect()
}

fn all_are(operation: &str, start: &[u32], expected: &[u32]) {
    for result in result(operation, start) {
        assert_eq!(result, expected, "{operation}");
    }
}

#[test]
fn integers() {
    all_are("red.global.add.u32 [%rd1], %r4;", &[5], &[5 + 399 * 200]);
    all_are("atom.global.max.s32 %r5, [%rd1], %r4;", &[-7i32 as u32], &[399]);
    all_are("sub.u32 %r6, 0, %r4;\natom.global.min.s32 %r5, [%rd1], %r6;", &[3], &[-399i32 as u32]);
    all_are("sub.u32 %r6, 0, %r4;\natom.global.max.u32 %r5, [%rd1], %r6;", &[3], &[u32::MAX]);
    all_are("atom.global.inc.u32 %r5, [%rd1], 6;", &[0], &[400 % 7]);
    all_are("atom.global.dec.u32 %r5, [%rd1], 9;", &[0], &[0]);
    all_are("atom.global.or.b32 %r5, [%rd1], %r4;", &[0x8000], &[0x81FF]);
    all_are("atom.global.xor.b32 %r5, [%rd1], %r4;", &[0], &[(0..400).fold(0, |a, i| a ^ i)]);
    all_are("cvt.u64.u32 %rd2, %r4;\natom.global.add.u64 %rd3, [%rd1], %rd2;", &[u32::MAX, 0], &[79_799, 1]);
}

#[test]
fn floats() {
    all_are("atom.global.add.f32 %f1, [%rd1], 0f3F800000;", &[0], &[400f32.to_bits()]);
    let sum = 100.0f64.to_bits();
    all_are(
        "atom.global.add.f64 %fd1, [%rd1], 0d3FD0000000000000;",
        &[0, 0],
        &[sum as u32, (sum >> 32) as u32],
    );
    let pair = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
    let one = pair(f16::ONE.to_bits(), f16::NEG_ONE.to_bits());
    let sums = pair(f16::from_f32(400.0).to_bits(), f16::from_f32(-400.0).to_bits());
    all_are(&format!("mov.b32 %r5, {one};\natom.global.add.noftz.f16x2 %r6, [%rd1], %r5;"), &[0], &[sums]);
    let one = pair(bf16::from_f32(0.5).to_bits(), bf16::ONE.to_bits());
    // 256 + 1 is a tie in bf16 and rounds to 256.
    let sums = pair(bf16::from_f32(128.0).to_bits(), bf16::from_f32(256.0).to_bits());
    all_are(&format!("mov.b32 %r5, {one};\nred.global.add.noftz.bf16x2 [%rd1], %r5;"), &[0], &[sums]);
}

#[test]
fn a_global_addition_flushes_subnormal_numbers() {
    all_are("mov.b32 %f1, 0x00000001;\natom.global.add.f32 %f2, [%rd1], %f1;", &[0], &[0]);
}

#[test]
fn compare_and_swap_builds_a_sum() {
    all_are(
        "ld.relaxed.gpu.global.u32 %r5, [%rd1];
    AGAIN:
        mov.u32 %r6, %r5;
        add.u32 %r7, %r6, 3;
        atom.global.cas.b32 %r5, [%rd1], %r6, %r7;
        setp.ne.u32 %p1, %r5, %r6;
        @%p1 bra AGAIN;",
        &[1],
        &[1201],
    );
}

#[test]
fn old_values_are_a_permutation() {
    let text = entry(
        1,
        &format!(
            "{HEAD}
        .shared .align 4 .b8 s[4];
        mov.u32 %r5, s;
        setp.eq.u32 %p1, %r1, 0;
        @%p1 st.shared.u32 [%r5], 0;
        bar.sync 0;
        atom.shared.add.u32 %r6, [%r5], 1;
        mul.wide.u32 %rd2, %r6, 4;
        add.s64 %rd2, %rd1, %rd2;
        st.global.u32 [%rd2], %r6;
        ret;"
        ),
    );
    outputs(&text, (1, 200), 200, |out| assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32)));
}

#[test]
fn memory_that_was_never_written_is_not_zero() {
    let memory = DeviceMemory::new(4096);
    let at = memory.alloc(4).unwrap();
    let mut word = [0; 4];
    memory.read(at, &mut word).unwrap();
    assert_eq!(word, [0xFF; 4]);
}
