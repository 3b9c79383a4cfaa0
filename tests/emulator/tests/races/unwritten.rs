//! Reads of bytes that nobody wrote.

use cuda_emulator::report::{Kind, Report};

use crate::harness::{Device, Setup, launch, words};

const SOURCE: &str = include_str!("unwritten.cu");

fn run(bug: u32, seed: u64) -> (Vec<Report>, Vec<u8>) {
    launch(SOURCE, "unwritten", bug, seed, |device: &mut Device| {
        let (y, x, scratch) = (device.zeros(256), device.zeros(256), device.unwritten(512));
        Setup::new([1, 1, 1], [64, 1, 1]).pointer(y).pointer(x).pointer(scratch).output(y, 256)
    })
}

#[test]
fn memory_that_was_written_is_not_reported() {
    for seed in 0..10 {
        let (reports, output) = run(0, seed);
        assert!(reports.is_empty(), "{reports:?}");
        let expected: Vec<u32> = (0..64).map(|t| 0x0101_0101 + (127 - t) / 2).collect();
        assert_eq!(words(&output), expected);
    }
}

#[test]
fn unwritten_bytes_are_reported_under_every_schedule() {
    for bug in 1..=5 {
        for seed in 0..10 {
            let (reports, _) = run(bug, seed);
            let found = reports.iter().find(|r| r.kind == Kind::Uninitialised);
            let found = found.unwrap_or_else(|| panic!("bug {bug}, schedule {seed}: {reports:?}"));
            assert!(found.ptx_line > 0 && found.source.is_some(), "{found}");
            let thread = match bug {
                1 => Some(0),
                2 => Some(58),
                _ => None,
            };
            assert!(thread.is_none_or(|t| found.thread == [t, 0, 0]), "bug {bug}: {found}");
        }
    }
}

#[test]
fn unwritten_memory_reads_as_all_ones() {
    let (_, output) = run(1, 0);
    assert_eq!(words(&output)[0], u32::MAX);
}
