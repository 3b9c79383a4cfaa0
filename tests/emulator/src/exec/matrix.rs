//! `ldmatrix` and `stmatrix`: 8 x 8 matrices of 16-bit elements between shared memory and registers.
//!
//! Lane `8 i + r` gives the address of row `r` of matrix `i`. Lane `l` holds elements `2 (l mod 4)` and the next one of
//! row `l / 4`; with `.trans` of column `l / 4`.

use super::access::{Access, Action, Own};
use super::address::Addresses;
use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::races;
use super::step::Next;
use super::sync::Arrival;
use super::warp::Warp;
use super::window::Window;
use crate::isa::{Addr, List, Space};
use crate::memory::{SHARED_STRIDE, SHARED_WINDOW};
use crate::regs::{LANES, for_lanes};

/// Bytes of a row.
const ROW: u64 = 16;
/// An 8 x 8 matrix.
type Tile = [[u16; 8]; 8];

impl Engine<'_> {
    /// Executes `ldmatrix`.
    pub fn load_matrix(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        trans: bool,
        regs: List,
        addr: Addr,
    ) -> Result<Next, Halted> {
        if !self.whole_warp(warp, block, here)? {
            return Ok(warp.leave(here));
        }
        let program = self.program;
        let mut at = self.shared_addresses(warp, block, addr);
        let lanes = rows_of(regs.len);
        let access = Access {
            who: Who::new(block, warp, here.pc),
            space: Space::Shared,
            size: ROW,
            action: Action::Read,
        };
        let own = Own { shared: &block.shared, local: &warp.local };
        let (window, span, _) = self.window(own, &access, &mut at, lanes)?;
        let unwritten = window.unwritten(&at, &span, lanes, ROW);
        for (matrix, &slot) in program.list(regs).iter().enumerate() {
            let tile: Tile = std::array::from_fn(|row| {
                let lane = 8 * matrix + row;
                read_row(&window, at.0[lane], unwritten >> lane & 1 == 1)
            });
            let tile = if trans { transposed(&tile) } else { tile };
            let register = &mut warp.regs.r32[slot as usize].0;
            for lane in 0..LANES {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                register[lane] = u32::from(tile[row][column]) | u32::from(tile[row][column + 1]) << 16;
            }
        }
        if unwritten != 0 {
            self.unwritten(&access, &at, unwritten, block, warp)?;
        }
        self.observe(&access, &at, &span, lanes);
        races::rows(&mut block.races, &access, &at, lanes);
        Ok(Next::Step)
    }

    /// Executes `stmatrix`.
    pub fn store_matrix(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        trans: bool,
        regs: List,
        addr: Addr,
    ) -> Result<Next, Halted> {
        if !self.whole_warp(warp, block, here)? {
            return Ok(warp.leave(here));
        }
        let program = self.program;
        let mut at = self.shared_addresses(warp, block, addr);
        let lanes = rows_of(regs.len);
        let access = Access {
            who: Who::new(block, warp, here.pc),
            space: Space::Shared,
            size: ROW,
            action: Action::Write,
        };
        let own = Own { shared: &block.shared, local: &warp.local };
        let (window, span, _) = self.window(own, &access, &mut at, lanes)?;
        for (matrix, &slot) in program.list(regs).iter().enumerate() {
            let register = &warp.regs.r32[slot as usize].0;
            let mut tile: Tile = [[0; 8]; 8];
            for lane in 0..LANES {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                tile[row][column] = register[lane] as u16;
                tile[row][column + 1] = (register[lane] >> 16) as u16;
            }
            let tile = if trans { transposed(&tile) } else { tile };
            for (row, elements) in tile.iter().enumerate() {
                // SAFETY: the window holds 16 bytes at the address of each of these lanes.
                unsafe { window.host(at.0[8 * matrix + row]).cast::<[u16; 8]>().write_unaligned(*elements) };
            }
        }
        window.mark(&at, &span, lanes, ROW);
        self.observe(&access, &at, &span, lanes);
        races::rows(&mut block.races, &access, &at, lanes);
        block.progress += 1;
        Ok(Next::Step)
    }

    /// Returns addresses in the block's own shared memory; generic ones are translated.
    pub fn shared_addresses(&self, warp: &Warp, block: &BlockState, addr: Addr) -> Addresses {
        let mut at = Addresses::of(&warp.regs, addr);
        let start = SHARED_WINDOW + u64::from(block.cluster_rank) * SHARED_STRIDE;
        for_lanes(u32::MAX, |lane| {
            if at.0[lane] >= start && at.0[lane] - start < SHARED_STRIDE {
                at.0[lane] -= start;
            }
        });
        at
    }
}

/// Lanes that give the addresses of so many matrices.
fn rows_of(matrices: u32) -> u32 {
    u32::MAX >> (32 - 8 * matrices)
}

fn read_row(window: &Window, at: u64, unwritten: bool) -> [u16; 8] {
    // SAFETY: the window holds 16 bytes at this address.
    let mut row = unsafe { window.host(at).cast::<[u16; 8]>().read_unaligned() };
    if let Some(bits) = window.bits.filter(|_| unwritten) {
        let written = bits.get(at - window.start, ROW);
        for (i, element) in row.iter_mut().enumerate() {
            *element |= if written >> (2 * i) & 1 == 1 { 0 } else { 0x00FF };
            *element |= if written >> (2 * i + 1) & 1 == 1 { 0 } else { 0xFF00 };
        }
    }
    row
}

fn transposed(tile: &Tile) -> Tile {
    std::array::from_fn(|row| std::array::from_fn(|column| tile[column][row]))
}
