//! `cuDeviceGetAttribute`: what the emulated device says of itself.

use super::architecture::{Architecture, BLOCK_THREADS, REGISTERS, SHARED_PLAIN, SHARED_RESERVED};

/// The largest number of an attribute in CUDA 13.0 is one below.
const ATTRIBUTES: u32 = 148;

/// Returns an attribute of a device; `None` if there is no such attribute. Features that are not emulated (textures,
/// managed memory, interprocess handles, ...) are 0.
pub fn attribute(device: &Architecture, attribute: u32) -> Option<i32> {
    if !(1..ATTRIBUTES).contains(&attribute) {
        return None;
    }
    let value = match attribute {
        1 => BLOCK_THREADS,
        2 | 3 => 1024,
        4 => 64,
        5 => i32::MAX as u32,
        6 | 7 => 65535,
        8 => SHARED_PLAIN,
        9 => 65536,
        10 => 32,
        11 => i32::MAX as u32,
        12 => REGISTERS,
        13 => device.clock,
        14 => 512,
        15 => 1,
        16 => device.multiprocessors,
        19 => 1,
        31 => 1,
        36 => device.memory_clock,
        37 => device.bus,
        38 => device.l2,
        39 => device.threads,
        40 => 2,
        41 => 1,
        75 => device.capability.0,
        76 => device.capability.1,
        78 => 1,
        79 | 80 => 1,
        81 => device.shared,
        82 => REGISTERS,
        87 => {
            if device.capability.1 == 0 && device.capability.0 < 12 {
                2
            } else {
                64
            }
        }
        90 => 1,
        91 => 1,
        95 => 1,
        97 => device.shared_opt_in(),
        99 => 1,
        106 => device.blocks,
        111 => SHARED_RESERVED,
        115 => 1,
        120 => device.has_clusters().into(),
        _ => 0,
    };
    i32::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_attributes_are_none_and_known_ones_never_negative() {
        let device = Architecture::baseline();
        assert_eq!(attribute(device, 0), None);
        assert_eq!(attribute(device, ATTRIBUTES), None);
        assert!((1..ATTRIBUTES).all(|a| attribute(device, a).is_some_and(|value| value >= 0)));
    }
}
