//! Cuts the access of a warp into pieces: side by side in a line where lanes lie so, else lanes with the same address.

use super::global::{ALL, LINE, Piece};
use crate::regs::{FULL, LANES, for_lanes};

/// A piece, the number of its line, and the mask of bytes within a granule (for pieces of [`ALL`]).
pub(super) type Cut = (u64, Piece, u32);

/// Calls `visit` for each piece of an access of `bytes` bytes (1, 2, 4, 8 or 16) by `lanes` at aligned addresses.
pub(super) fn cut(lanes: u32, bytes: u32, addresses: &[u64; LANES], mut visit: impl FnMut(Cut)) {
    if lanes == FULL && are_side_by_side(bytes, addresses) {
        return cut_row(addresses[0], lanes, bytes, &mut visit);
    }
    if !rises(lanes, addresses) {
        // Lanes with the same address belong together: they do not race with each other here.
        return for_groups(lanes, addresses, |address, lanes| visit(one_place(address, lanes, bytes)));
    }
    let mut left = lanes;
    while left != 0 {
        let first = left.trailing_zeros() as usize;
        let mut last = first;
        while last + 1 < LANES
            && left >> (last + 1) & 1 == 1
            && addresses[last + 1] == addresses[last].wrapping_add(u64::from(bytes))
        {
            last += 1;
        }
        let run = (u32::MAX >> (31 - (last - first))) << first;
        left &= !run;
        if last > first {
            cut_row(addresses[first].wrapping_sub(first as u64 * u64::from(bytes)), run, bytes, &mut visit);
        } else {
            visit(one_place(addresses[first], run, bytes));
        }
    }
}

fn one_place(address: u64, lanes: u32, bytes: u32) -> Cut {
    let shift = (address % LINE) / 4;
    let granules = if bytes > 4 { ((1 << (bytes / 4)) - 1) << shift } else { 1 << shift };
    let mask = if bytes < 4 { ((1 << bytes) - 1) << (address % 4) & 15 } else { 15 };
    (address / LINE, Piece { granules, lanes, start: 0, shift: ALL }, mask)
}

/// Cuts the access of lanes side by side, of which none is missing; `base` is where lane 0 would be.
fn cut_row(base: u64, lanes: u32, bytes: u32, visit: &mut impl FnMut(Cut)) {
    let (shift, ends) = (bytes.trailing_zeros(), (lanes.trailing_zeros(), 31 - lanes.leading_zeros()));
    let begin = base.wrapping_add(u64::from(ends.0) << shift);
    let end = base.wrapping_add(u64::from(ends.1) << shift).saturating_add(u64::from(bytes));
    for line in begin / LINE..end.div_ceil(LINE) {
        if let Some(piece) = Piece::of_row(base.wrapping_sub(line * LINE) as i64, shift, ends) {
            visit((line, piece, 15));
        }
    }
}

/// Calls `visit` for each address with the lanes that have it.
#[inline(always)]
pub(super) fn for_groups(lanes: u32, addresses: &[u64; LANES], mut visit: impl FnMut(u64, u32)) {
    if lanes == FULL && addresses.iter().all(|&address| address == addresses[0]) {
        return visit(addresses[0], FULL);
    }
    if lanes == FULL && rises(lanes, addresses) {
        return (0..LANES).for_each(|lane| visit(addresses[lane], 1 << lane));
    }
    if all_differ(lanes, addresses) {
        return for_lanes(lanes, |lane| visit(addresses[lane], 1 << lane));
    }
    let mut left = lanes;
    while left != 0 {
        let address = addresses[left.trailing_zeros() as usize];
        let group = (0..LANES).fold(0, |group, lane| group | u32::from(addresses[lane] == address) << lane);
        visit(address, group & left);
        left &= !group;
    }
}

/// Returns whether each lane's access begins where that of the lane before ends.
pub(super) fn are_side_by_side(bytes: u32, addresses: &[u64; LANES]) -> bool {
    let mut side_by_side = true;
    for lane in 1..LANES {
        side_by_side &= addresses[lane] == addresses[lane - 1].wrapping_add(u64::from(bytes));
    }
    side_by_side
}

/// Returns whether no two lanes have the same address, as far as that is quickly seen: if they rise, or lie close together.
pub(super) fn all_differ(lanes: u32, addresses: &[u64; LANES]) -> bool {
    if rises(lanes, addresses) {
        return true;
    }
    let (first, second) = (lanes.trailing_zeros(), (lanes & lanes.wrapping_sub(1)).trailing_zeros());
    if second < 32 && addresses[first as usize] == addresses[second as usize] {
        return false;
    }
    let (mut low, mut met, mut differ) = (u64::MAX, [0u64; 16], true);
    for_lanes(lanes, |lane| low = low.min(addresses[lane]));
    for_lanes(lanes, |lane| {
        let (word, bit) = ((addresses[lane] - low) / 64, (addresses[lane] - low) % 64);
        match met.get_mut(word as usize) {
            Some(met) => {
                differ &= *met >> bit & 1 == 0;
                *met |= 1 << bit;
            }
            None => differ = false,
        }
    });
    differ
}

fn rises(lanes: u32, addresses: &[u64; LANES]) -> bool {
    let mut rises = true;
    if lanes == FULL {
        for lane in 1..LANES {
            rises &= addresses[lane] > addresses[lane - 1];
        }
        return rises;
    }
    let mut last = None;
    for_lanes(lanes, |lane| {
        rises &= last.is_none_or(|last| addresses[lane] > last);
        last = Some(addresses[lane]);
    });
    rises
}
