//! The emulator's counters in the audit: kernels are run, and the counts are those worked out by hand.

use std::collections::BTreeMap;

use cuda_emulator::audit::budget::Budgets;
use cuda_emulator::audit::check::Status;
use cuda_emulator::audit::measured::Measured;
use cuda_emulator::counters::Counters;
use cuda_emulator::exec::{self, Config, Launch};
use cuda_emulator::lower;
use cuda_emulator::memory::DeviceMemory;
use cuda_emulator::toolchain::{self, NvrtcVersion};

use super::{KERNELS, audit_source};

/// Compiles `kernels.cu` and runs one of its kernels on buffers of zeros; then come the integers.
fn count(
    option: &str,
    kernel: &str,
    grid: [u32; 3],
    block: u32,
    buffers: &[u64],
    integers: &[i32],
) -> Counters {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    let compiled = nvrtc.compile(KERNELS, "kernels.cu", &["--gpu-architecture=sm_80", option]).unwrap();
    let memory = DeviceMemory::new(1 << 28);
    let config = Config::default();
    let module = exec::load(lower::module(&compiled.ptx).unwrap(), &memory, &config).unwrap();
    let mut params = Vec::new();
    for &bytes in buffers {
        let address = memory.alloc(bytes).unwrap();
        memory.write(address, &vec![0; bytes as usize]).unwrap();
        params.extend(address.to_le_bytes());
    }
    params.extend(integers.iter().flat_map(|n| n.to_le_bytes()));
    let launch = Launch {
        kernel: module.kernel(kernel).unwrap(),
        grid,
        block: [block, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 0,
        params: &params,
    };
    let outcome = exec::run(&launch, &memory, &config).unwrap();
    assert_eq!(outcome.reports, []);
    outcome.counters
}

/// 128×128×64 in four blocks.
fn matmul(row: u32) -> Counters {
    let (m, n, k) = (128u64, 128u64, 64u64);
    let buffers = [4 * m * n, 2 * m * k, 2 * n * k];
    count(&format!("-DROW={row}"), "matmul", [2, 2, 1], 128, &buffers, &[m as i32, n as i32, k as i32])
}

fn measured(counters: &Counters) -> Measured {
    let mut measured = Measured::default();
    measured.add(counters, 0);
    measured
}

#[test]
fn product_is_counted_as_by_hand() {
    let padded = measured(&matmul(40));
    assert_eq!(padded.tensor_operations, 2 * 128 * 128 * 64);
    // Each of 4 blocks reads 64 rows of A and of B; C is written once; all of it in whole sectors.
    assert_eq!(padded.global_bytes, 4 * 2 * 64 * 64 * 2 + 128 * 128 * 4);
    assert_eq!(padded.sector_efficiency(), Some(1.0));
    assert_eq!(padded.wide_share(), Some(0.5)); // the reads
    // 4 blocks · 4 warps · 2 steps · (8 ldmatrix + 4 copies) of 4 wavefronts.
    assert_eq!(padded.ideal_wavefronts, 4 * 4 * 2 * 12 * 4);
    assert_eq!((padded.launches, padded.threads), (1, 128));
}

#[test]
fn bank_conflicts_are_seen_where_registers_and_instructions_are_the_same() {
    // Rows of 80 bytes: ldmatrix is free of conflicts, but the copies of 8 threads are two rows that share 4 banks: twice.
    let padded = measured(&matmul(40));
    assert_eq!(padded.wavefront_ratio(), Some((8.0 + 2.0 * 4.0) / 12.0));
    // Rows of 64 bytes: the copies are contiguous, but 4 of 8 rows of a matrix are in the same banks.
    let plain = measured(&matmul(32));
    assert_eq!(plain.wavefront_ratio(), Some((4.0 * 8.0 + 4.0) / 12.0));

    let budgets =
        Budgets::parse("[kernel.matmul.counters]\nmax_wavefront_ratio = 1.5\n", "budgets.toml").unwrap();
    let mut audits = audit_source(KERNELS, NvrtcVersion::V13_0, "sm_80");
    for (measured, status) in [(padded, Status::Kept), (plain, Status::Exceeded)] {
        let verdicts =
            budgets.check(&mut audits, &BTreeMap::from([("matmul".to_string(), measured)])).unwrap();
        assert_eq!(verdicts.iter().map(|v| v.status).collect::<Vec<_>>(), [status]);
    }
}

#[test]
fn layer_norm_streams() {
    let (rows, columns) = (64u64, 512u64);
    let bytes = 4 * rows * columns;
    let counted =
        count("-DROW=40", "layer_norm", [8, 1, 1], 256, &[bytes, bytes], &[rows as i32, columns as i32]);
    let measured = measured(&counted);
    assert_eq!(measured.global_bytes, 3 * bytes); // two reads, one write
    assert_eq!((measured.sector_efficiency(), measured.wide_share()), (Some(1.0), Some(1.0)));
    assert_eq!(measured.wavefront_ratio(), None);
    assert_eq!(measured.sector_bytes_per_launch(), 3.0 * bytes as f64);
    assert!(measured.bytes_per_instruction().unwrap() > 7.2, "{measured:?}");
}
