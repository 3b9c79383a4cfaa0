//! How many blocks of a kernel a multiprocessor holds: the arithmetic of the occupancy calculator.

use super::architecture::{Architecture, BLOCK_THREADS, REGISTERS, SHARED_RESERVED};

/// Registers are given to warps in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given in units of this many bytes.
const SHARED_UNIT: u32 = 128;
/// Registers lie in this many files, one for each scheduler; a warp's are all in one.
const FILES: u32 = 4;

/// What a kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that the kernel declares.
    pub static_shared: u32,
    /// The most threads of a block (`.maxntid`).
    pub max_threads: u32,
    /// Percentage of the largest shared memory that the program prefers; negative: no preference.
    pub carveout: i32,
}

/// Returns how many warps' registers fit into a multiprocessor.
fn warps_by_registers(registers: u32) -> u32 {
    let warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
    REGISTERS / FILES / warp * FILES
}

/// Returns whether a block's registers fit at all.
pub fn registers_fit(registers: u32, threads: u32) -> bool {
    threads.div_ceil(32).next_multiple_of(FILES) <= warps_by_registers(registers)
}

/// Returns the bytes of shared memory of a multiprocessor under the kernel's preference, never less than one block needs.
fn shared_of(device: &Architecture, need: &Need, block: u32) -> u32 {
    if need.carveout < 0 {
        return device.shared;
    }
    let wanted = (u64::from(device.shared) * need.carveout.min(100) as u64).div_ceil(100);
    let sizes = device.carveouts.iter().map(|kib| kib << 10);
    sizes.filter(|&size| u64::from(size) >= wanted && size >= block).min().unwrap_or(device.shared)
}

/// Returns the blocks that a multiprocessor holds at a time; 0 if not even one fits.
pub fn blocks(device: &Architecture, need: &Need, threads: u32, dynamic_shared: u64) -> u32 {
    if threads == 0 || threads > BLOCK_THREADS || threads > need.max_threads {
        return 0;
    }
    let shared = u64::from(need.static_shared) + dynamic_shared;
    if shared > u64::from(device.shared_opt_in()) {
        return 0;
    }
    let block = (shared as u32 + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
    let warps = threads.div_ceil(32);
    let by_shared = shared_of(device, need, block) / block;
    let by_warps = device.threads / 32 / warps;
    let by_registers = warps_by_registers(need.registers) / warps;
    device.blocks.min(by_shared).min(by_warps).min(by_registers)
}

/// Returns the block size with the most threads on a multiprocessor, and the blocks that then fill the device.
pub fn best_block(
    device: &Architecture,
    need: &Need,
    limit: u32,
    mut dynamic_shared: impl FnMut(u32) -> u64,
) -> (u32, u32) {
    let largest = BLOCK_THREADS.min(need.max_threads).min(if limit == 0 { BLOCK_THREADS } else { limit });
    let (mut best, mut size, mut most) = (0, 0, 0);
    let mut aligned = largest.next_multiple_of(32);
    while aligned > 0 {
        let threads = aligned.min(largest);
        let count = blocks(device, need, threads, dynamic_shared(threads));
        if count * threads > most {
            (best, size, most) = (count, threads, count * threads);
        }
        if most == device.threads {
            break;
        }
        aligned -= 32;
    }
    (best * device.multiprocessors, size)
}

/// Returns the dynamic shared memory that each of `count` blocks can have; `None` if so many do not fit.
pub fn dynamic_shared(device: &Architecture, need: &Need, threads: u32, count: u32) -> Option<u64> {
    if count == 0 || blocks(device, need, threads, 0) < count {
        return None;
    }
    let block = device.shared / count / SHARED_UNIT * SHARED_UNIT;
    let free = block.checked_sub(SHARED_RESERVED + need.static_shared)?;
    Some(u64::from(free.min(device.shared_opt_in() - need.static_shared)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(registers: u32, static_shared: u32) -> Need {
        Need { registers, static_shared, max_threads: 1024, carveout: -1 }
    }

    fn device(name: &str) -> &'static Architecture {
        Architecture::named(name).unwrap()
    }

    // Expected numbers: worked out by hand from the tables of the programming guide.
    #[test]
    fn each_resource_can_be_the_limit() {
        let cases = [
            ("80", 32, 256, 0, 8),        // threads: 2048 / 256
            ("86", 32, 256, 0, 6),        // threads: 1536 / 256
            ("80", 32, 32, 0, 32),        // blocks
            ("86", 32, 32, 0, 16),        // blocks
            ("89", 32, 32, 0, 24),        // blocks
            ("80", 124, 256, 0, 2),       // registers: 124 -> 4096 a warp, 16 warps
            ("80", 255, 256, 0, 1),       // registers: 8192 a warp, 8 warps
            ("80", 40, 1024, 0, 1),       // registers: 1280 a warp, 48 warps, 32 in a block
            ("80", 128, 128, 49_152, 3),  // shared: 50,176 of 167,936
            ("90", 168, 384, 200_000, 1), // shared
            ("86", 32, 128, 101_376, 1),  // the most that a block can have
            ("86", 32, 128, 101_377, 0),  // one byte more
            ("80", 32, 1025, 0, 0),       // too many threads
        ];
        for (name, registers, threads, shared, expected) in cases {
            let found = blocks(device(name), &need(registers, 0), threads, shared);
            assert_eq!(found, expected, "{name} registers {registers} threads {threads} shared {shared}");
        }
    }

    #[test]
    fn a_small_carveout_leaves_room_for_one_block_at_least() {
        let preferred = Need { carveout: 0, ..need(32, 0) };
        assert_eq!(blocks(device("80"), &preferred, 128, 0), 8); // 8 KiB, 1 KiB each
        assert_eq!(blocks(device("80"), &preferred, 128, 40_000), 1); // 64 KiB, 41,088 each
    }

    #[test]
    fn the_best_block_fills_the_multiprocessor() {
        assert_eq!(best_block(device("80"), &need(32, 0), 0, |_| 0), (2 * 108, 1024));
        assert_eq!(best_block(device("86"), &need(32, 0), 0, |_| 0), (2 * 82, 768));
        assert_eq!(best_block(device("80"), &need(32, 0), 100, |_| 0), (32 * 108, 64)); // 64: 2048 threads; 96: 2016; 100: 1600
    }

    #[test]
    fn dynamic_shared_memory_is_what_so_many_blocks_leave() {
        let device = device("80");
        for count in 1..=8 {
            let bytes = dynamic_shared(device, &need(32, 1000), 256, count).unwrap();
            assert!(blocks(device, &need(32, 1000), 256, bytes) >= count, "{count}");
            let more = blocks(device, &need(32, 1000), 256, bytes + 128 + 24);
            assert!(more < count || bytes + 1000 == u64::from(device.shared_opt_in()), "{count}");
        }
        assert_eq!(dynamic_shared(device, &need(32, 0), 256, 9), None);
    }

    #[test]
    fn registers_of_a_block_must_fit() {
        assert!(registers_fit(64, 1024));
        assert!(!registers_fit(65, 1024));
        assert!(registers_fit(255, 256));
        assert!(!registers_fit(255, 257));
    }
}
