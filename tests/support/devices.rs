//! The devices that every case runs on: each instruction set of this processor, each with 1, 2, 3 and 8 threads, and CUDA on the
//! emulated driver.

use std::sync::LazyLock;

use flowprior::device::{Cpu, CpuOptions, CudaOptions, Device, Isa};

use super::emulator;

/// Devices that must agree in every bit: one instruction set, or one GPU.
pub struct Family {
    /// Its members, each with the name that messages give it.
    pub devices: Vec<(String, Device)>,
}

/// Returns all families. Their buffers are guarded: sentinels around each, NaN in fresh ones.
///
/// `FLOWPRIOR_TEST_DEVICES=cuda` leaves out the processor, to repeat what is emulated with other settings; `cpu` leaves
/// out the emulator, and what tests say of a card alone then fails for want of one.
pub fn families() -> &'static [Family] {
    static FAMILIES: LazyLock<Vec<Family>> = LazyLock::new(|| {
        let wanted = std::env::var("FLOWPRIOR_TEST_DEVICES").unwrap_or_default();
        let cuda = (wanted != "cpu").then(|| Family { devices: vec![cuda()] });
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16]
            .into_iter()
            .filter(|isa| wanted != "cuda" && *isa <= Isa::detect())
            .map(|isa| Family { devices: [1, 2, 3, 8].map(|threads| cpu(isa, threads)).into() })
            .chain(cuda)
            .collect()
    });
    &FAMILIES
}

/// Returns all devices, with their names.
pub fn devices() -> impl Iterator<Item = (&'static str, &'static Device)> {
    families().iter().flat_map(|family| &family.devices).map(|(name, device)| (name.as_str(), device))
}

/// Returns one device: for what does not depend on the device, and to build inputs on.
pub fn any_device() -> &'static Device {
    let Some((_, device)) = devices().next() else { panic!("no device") };
    device
}

fn cpu(isa: Isa, threads: usize) -> (String, Device) {
    let cpu = Cpu::new(CpuOptions { threads, isa: Some(isa), guard: true });
    let cpu = cpu.unwrap_or_else(|e| panic!("{isa:?} with {threads} threads: {e}"));
    (format!("cpu, {isa:?}, threads: {threads}"), Device::Cpu(cpu))
}

/// Opens the emulated card: every finding of its checks fails the call that meets it.
fn cuda() -> (String, Device) {
    let device = Device::cuda(&CudaOptions { guard: true, ..emulator::options() });
    ("cuda, emulated".to_owned(), device.unwrap_or_else(|e| panic!("{e}")))
}
