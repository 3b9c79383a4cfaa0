//! The audit sees what is wrong with a kernel, and nothing wrong with a good one: two NVRTC versions, five architectures.

mod budgets;
mod cli;
mod counted;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use cuda_emulator::audit::architecture::Limit;
use cuda_emulator::audit::model::Bound;
use cuda_emulator::audit::sass::Class;
use cuda_emulator::audit::{self, Error, KernelAudit};
use cuda_emulator::toolchain::{self, NvrtcVersion};

/// The faultless kernels and the faulty ones.
const KERNELS: &str = include_str!("kernels.cu");
/// A kernel with warpgroup products, for sm_90a only.
const WARPGROUP: &str = include_str!("warpgroup.cu");
const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];

/// Audits a source, once for each version and architecture in a run of the tests.
fn audit_source(source: &'static str, version: NvrtcVersion, architecture: &str) -> Vec<KernelAudit> {
    type Known = HashMap<(usize, NvrtcVersion, String), Arc<OnceLock<Vec<KernelAudit>>>>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let key = (source.as_ptr() as usize, version, architecture.to_string());
    let entry = KNOWN.lock().unwrap().get_or_insert_default().entry(key).or_default().clone();
    entry.get_or_init(|| audit_anew(source, version, architecture)).clone()
}

fn audit_anew(source: &str, version: NvrtcVersion, architecture: &str) -> Vec<KernelAudit> {
    let option = format!("--gpu-architecture={architecture}");
    let compiled = toolchain::nvrtc(version)
        .unwrap()
        .compile(source, "kernels.cu", &[option.as_str(), audit::OPTIONS[0]])
        .unwrap();
    audit::audit(&compiled, &toolchain::nvdisasm().unwrap()).unwrap()
}

fn kernel<'a>(audits: &'a [KernelAudit], name: &str) -> &'a KernelAudit {
    audits.iter().find(|a| a.resources.kernel == name).unwrap_or_else(|| panic!("no kernel {name}"))
}

/// Runs a test on each version and architecture.
fn everywhere(test: impl Fn(&[KernelAudit], &str)) {
    for version in NvrtcVersion::ALL {
        for architecture in ARCHITECTURES {
            test(&audit_source(KERNELS, version, architecture), &format!("{version:?} {architecture}"));
        }
    }
}

#[test]
fn each_fault_is_seen_in_its_kernel_and_in_no_other() {
    const FAULTS: [(&str, &[&str]); 7] = [
        ("matmul", &[]),
        ("filling", &[]),
        ("layer_norm", &[]),
        ("spilling", &["spills", "stack", "local"]),
        ("dividing", &["calls", "fchk"]),
        ("doubling", &["f64"]),
        ("indexing", &["stack", "local"]),
    ];
    everywhere(|audits, place| {
        assert_eq!(audits.len(), FAULTS.len(), "{place}");
        for (name, expected) in FAULTS {
            let audit = kernel(audits, name);
            let resources = &audit.resources;
            let seen: Vec<&str> = [
                ("spills", resources.spill_stores.min(resources.spill_loads)),
                ("stack", resources.stack),
                ("local", audit.count(&[Class::Ldl, Class::Stl])),
                ("calls", audit.count(&[Class::Call])),
                ("fchk", audit.count(&[Class::Fchk])),
                ("f64", audit.count(&[Class::F64])),
            ]
            .into_iter()
            .filter_map(|(fault, count)| (count > 0).then_some(fault))
            .collect();
            assert_eq!(seen, expected, "{name} on {place}");
        }
    });
}

#[test]
fn product_has_its_instructions_in_its_main_loop() {
    everywhere(|audits, place| {
        let matmul = kernel(audits, "matmul");
        let main = matmul.main_loop.as_ref().unwrap();
        // 2 parts of k · 2·4 products; 2 parts · (2 + 2) ldmatrix.x4; 4 copies; one barrier.
        assert_eq!((main.tensor(), main.count(&[Class::Hmma])), (16, 16), "{place}");
        assert_eq!(main.count(&[Class::Ldsm]), 8, "{place}");
        assert_eq!(main.count(&[Class::Ldgsts]), 4, "{place}");
        assert_eq!(main.count(&[Class::Bar]), 1, "{place}");
        // The compilers for sm_100 and sm_120 put a first pass before the loop.
        let passes = matmul.count(&[Class::Hmma]) / 16;
        assert!(passes * 16 == matmul.count(&[Class::Hmma]) && (1..=2).contains(&passes), "{place}");
        let copies = 4 + 4 * passes;
        assert_eq!(matmul.count(&[Class::Ldgsts]), copies, "{place}");
        // 16 stores of 8 bytes, copies of 16.
        assert_eq!(matmul.count(&[Class::Stg]), 16, "{place}");
        assert_eq!(matmul.wide_share, Some(f64::from(copies) / f64::from(copies + 16)), "{place}");
        // 8 ldmatrix and 4 copies, of 4 wavefronts each, of 4 warps.
        assert_eq!(main.clocks.shared, 4.0 * 12.0 * 4.0, "{place}");
        assert_eq!(main.clocks.issue, f64::from(main.instructions), "{place}");
        assert_eq!(matmul.resources.static_shared, 2 * 2 * 64 * 40 * 2, "{place}");
        assert_eq!(matmul.threads, Some(128), "{place}");
        assert_eq!(matmul.called_instructions, 0, "{place}");
    });
}

#[test]
fn loop_that_is_left_by_a_jump_called_call_is_found() {
    everywhere(|audits, place| {
        let filling = kernel(audits, "filling");
        let main = filling.main_loop.as_ref().unwrap();
        assert_eq!((main.count(&[Class::Hmma]), main.count(&[Class::Bar])), (1, 1), "{place}");
        assert_eq!(filling.called_instructions, 0, "{place}");
    });
}

#[test]
fn tensor_clocks_and_bound_follow_the_architecture() {
    // 16 products of 2048: 32768 multiply-adds on a quarter of 1024, 256, 2048, 4096, 256 a clock.
    for (architecture, tensor, bound) in [
        ("sm_80", 128.0, Bound::Shared), // shared memory takes 192 clocks
        ("sm_89", 512.0, Bound::Tensor),
        ("sm_90", 64.0, Bound::Shared),
        ("sm_100", 32.0, Bound::Shared),
        ("sm_120", 512.0, Bound::Tensor),
    ] {
        let audits = audit_source(KERNELS, NvrtcVersion::V13_0, architecture);
        let clocks = &kernel(&audits, "matmul").main_loop.as_ref().unwrap().clocks;
        assert_eq!((clocks.tensor, clocks.bound()), (Some(tensor), bound), "{architecture}");
    }
}

#[test]
fn layer_norm_reads_and_writes_16_bytes() {
    everywhere(|audits, place| {
        let layer_norm = kernel(audits, "layer_norm");
        assert_eq!(layer_norm.wide_share, Some(1.0), "{place}");
        assert!(layer_norm.loads_in_flight >= 4, "{place}: {}", layer_norm.loads_in_flight); // its loops are unrolled
        assert_eq!(layer_norm.count(&[Class::Shfl]), 10, "{place}");
        assert!(layer_norm.main_loop.as_ref().unwrap().count(&[Class::Ldg]) > 0, "{place}");
        assert_eq!(layer_norm.count(&[Class::Lds, Class::Sts, Class::Hmma]), 0, "{place}");
    });
}

#[test]
fn called_code_is_told_apart() {
    everywhere(|audits, place| {
        let dividing = kernel(audits, "dividing");
        assert_eq!(dividing.count(&[Class::Call]), 1, "{place}");
        assert!(dividing.called_instructions > dividing.instructions / 2, "{place}");
        assert!(dividing.main_loop.is_none(), "{place}");
    });
}

#[test]
fn occupancy_of_real_kernels() {
    let audits = audit_source(KERNELS, NvrtcVersion::V13_0, "sm_80");
    // 20480 + 1024 bytes a block: 7 blocks of 164 KiB. 64 warps hold 16 such blocks; registers hold at least 5 (96 a thread).
    let matmul = kernel(&audits, "matmul");
    let registers = matmul.resources.registers;
    assert!((65..=72).contains(&registers), "{registers}"); // 72·32 = 2304: 7 warps a partition, 28 in all, 7 blocks
    let occupancy = matmul.occupancy.unwrap();
    assert_eq!((occupancy.blocks, occupancy.warps, occupancy.share), (7, 28, 28.0 / 64.0));
    // 32 registers and 32 warps: two blocks, which is what the launch bounds ask for.
    let occupancy = kernel(&audits, "spilling").occupancy.unwrap();
    assert_eq!((occupancy.blocks, occupancy.share, occupancy.limit), (2, 1.0, Limit::Warps));
    // No launch bounds, no occupancy, until the launch is told.
    let mut doubling = kernel(&audits, "doubling").clone();
    assert_eq!(doubling.occupancy, None);
    doubling.launched_with(256, 100 * 1024).unwrap();
    let occupancy = doubling.occupancy.unwrap();
    assert_eq!((occupancy.blocks, occupancy.limit), (1, Limit::Shared));
}

#[test]
fn warpgroup_products_are_found_around_their_waits() {
    for version in NvrtcVersion::ALL {
        let audits = audit_source(WARPGROUP, version, "sm_90a");
        let audit = kernel(&audits, "warpgroup_product");
        let main = audit.main_loop.as_ref().unwrap();
        assert_eq!((main.count(&[Class::Hgmma]), main.count(&[Class::Hmma])), (4, 0));
        assert!(main.count(&[Class::Syncs]) > 0);
        // 64·128·16 multiply-adds on 2048 a clock, four times.
        assert_eq!(main.clocks.tensor, Some(256.0));
        assert_eq!(main.clocks.bound(), Bound::Tensor);
    }
}

#[test]
fn what_cannot_be_audited_is_told() {
    let nvrtc = toolchain::nvrtc(NvrtcVersion::V13_0).unwrap();
    let nvdisasm = toolchain::nvdisasm().unwrap();
    let compile = |options: &[&str]| nvrtc.compile(KERNELS, "kernels.cu", options).unwrap();
    let virtual_only = compile(&["--gpu-architecture=compute_80", "--ptxas-options=-v"]);
    assert!(matches!(audit::audit(&virtual_only, &nvdisasm), Err(Error::NoCubin)));
    let silent = compile(&["--gpu-architecture=sm_80"]);
    assert!(matches!(audit::audit(&silent, &nvdisasm), Err(Error::Log(_))));
}
