//! Special registers.

use super::block::BlockState;
use super::engine::Engine;
use super::launch::{position, volume};
use super::program::SpecialConstant;
use super::warp::Warp;
use crate::isa::Special;
use crate::regs::{LANES, Regs, Slot, for_lanes};

/// Returns whether a special register that changes has 64 bits.
pub fn is_wide(special: Special) -> bool {
    matches!(special, Special::Clock64 | Special::GlobalTimer | Special::GridId)
}

/// Returns whether the threads of a warp see different values.
fn is_of_lane(special: Special) -> bool {
    use Special::{LaneId, LaneMaskEq, LaneMaskGe, LaneMaskGt, LaneMaskLe, LaneMaskLt, Tid};
    matches!(special, Tid(_) | LaneId | LaneMaskEq | LaneMaskLe | LaneMaskLt | LaneMaskGe | LaneMaskGt)
}

impl Engine<'_> {
    /// Fills the special registers of a warp that begins.
    pub fn fill_specials(&self, warp: &mut Warp, block: &BlockState) {
        for &SpecialConstant { slot, wide, special } in &self.program.specials {
            if is_of_lane(special) {
                // Those of the threads stay the same from block to block.
                for lane in 0..if warp.filled { 0 } else { LANES as u32 } {
                    let value = self.special(special, warp.index, lane, block);
                    write(&mut warp.regs, slot, wide, lane as usize, value);
                }
                continue;
            }
            let value = self.special(special, warp.index, 0, block);
            if wide {
                warp.regs.r64[slot as usize].0 = [value; LANES];
            } else {
                warp.regs.r32[slot as usize].0 = [value as u32; LANES];
            }
        }
        warp.filled = true;
    }

    /// Reads a special register into the lanes of a mask.
    pub fn read_special(
        &mut self,
        special: Special,
        warp: &mut Warp,
        block: &BlockState,
        d: Slot,
        mask: u32,
    ) {
        let wide = is_wide(special);
        for_lanes(mask, |lane| {
            let value = self.special(special, warp.index, lane as u32, block);
            write(&mut warp.regs, d, wide, lane, value);
        });
    }

    fn special(&self, special: Special, warp: u32, lane: u32, block: &BlockState) -> u64 {
        let (launch, axis) = (self.launch, |i: u8| usize::from(i.min(2)));
        let cluster = |i: u8| launch.cluster[axis(i)].max(1);
        let value = match special {
            Special::Tid(i) => self.thread(warp, lane)[axis(i)],
            Special::Ntid(i) => launch.block[axis(i)],
            Special::Ctaid(i) => block.index[axis(i)],
            Special::Nctaid(i) => launch.grid[axis(i)],
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::NWarpId => launch.threads().div_ceil(32) as u32,
            Special::SmId => 0,
            Special::NSmId => 1,
            Special::GridId => 1,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLe => u32::MAX >> (31 - lane),
            Special::LaneMaskLt => (1 << lane) - 1,
            Special::LaneMaskGe => u32::MAX << lane,
            Special::LaneMaskGt => (u32::MAX << lane) & !(1 << lane),
            // Time passes with each instruction; one instruction takes one cycle, and a cycle one nanosecond.
            Special::Clock => block.clock as u32,
            Special::ClockHi => (block.clock >> 32) as u32,
            Special::Clock64 | Special::GlobalTimer => return block.clock,
            Special::DynamicSmemSize => launch.dynamic_shared,
            Special::TotalSmemSize => launch.shared_bytes() as u32,
            Special::ClusterId(i) => block.index[axis(i)] / cluster(i),
            Special::NClusterId(i) => launch.grid[axis(i)] / cluster(i),
            Special::ClusterCtaid(i) => block.index[axis(i)] % cluster(i),
            Special::ClusterNctaid(i) => launch.cluster[axis(i)],
            Special::ClusterCtarank => block.cluster_rank,
            Special::ClusterNctarank => volume(launch.cluster) as u32,
        };
        u64::from(value)
    }

    /// Returns the rank of a block in its cluster.
    pub fn cluster_rank(&self, index: [u32; 3]) -> u32 {
        let [x, y, z] = self.launch.cluster.map(|n| n.max(1));
        (index[2] % z * y + index[1] % y) * x + index[0] % x
    }

    /// Returns blockIdx of a number.
    pub fn block_index(&self, number: u64) -> [u32; 3] {
        position(number, self.launch.grid)
    }
}

fn write(regs: &mut Regs, slot: Slot, wide: bool, lane: usize, value: u64) {
    if wide {
        regs.r64[slot as usize].0[lane] = value;
    } else {
        regs.r32[slot as usize].0[lane] = value as u32;
    }
}
