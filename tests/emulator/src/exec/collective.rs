//! Operations of several threads of a warp that exchange values: shuffles, votes, matches, reductions.

use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::step::Next;
use super::sync::{Arrival, predicate};
use super::warp::Warp;
use crate::isa::{AtomOp, NONE, Op, Shuffle, Ty, Vote};
use crate::regs::{LANES, Slot, for_lanes};
use crate::report::Kind;

impl Engine<'_> {
    /// Executes a warp-wide operation for each complete group of lanes.
    pub fn collective(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        op: &Op,
    ) -> Result<Next, Halted> {
        let mask = match *op {
            Op::Shfl { mask, .. } | Op::Vote { mask, .. } | Op::Match { mask, .. } => mask,
            Op::Redux { mask, .. } | Op::Elect { mask, .. } => mask,
            _ => {
                let who = Who::new(block, warp, here.pc);
                let name = || format!("cannot execute {op:?}");
                self.report(Kind::IllegalInstruction, who, here.active.trailing_zeros(), name)?;
                return Err(Halted);
            }
        };
        let complete = self.rendezvous(warp, block, here, mask)?;
        for &(group, _) in &complete {
            match *op {
                Op::Shfl { mode, d, p, a, b, c, .. } => {
                    self.shuffle(warp, block, (here.pc, group), mode, [d, p, a, b, c])?;
                }
                Op::Vote { mode, d, p, not, .. } => vote(warp, group, mode, d, predicate(warp, p, not)),
                Op::Match { all, wide, d, p, a, .. } => match_values(warp, group, (all, wide), d, p, a),
                Op::Redux { op, ty, d, a, .. } => reduce(warp, group, op, ty, d, a),
                Op::Elect { d, p, .. } => elect(warp, group, d, p),
                _ => {}
            }
        }
        Ok(Self::after_rendezvous(warp, here, &complete))
    }

    fn shuffle(
        &mut self,
        warp: &mut Warp,
        block: &BlockState,
        (pc, group): (u32, u32),
        mode: Shuffle,
        [d, p, a, b, c]: [Slot; 5],
    ) -> Result<(), Halted> {
        let (values, offsets, limits) =
            (warp.regs.r32[a as usize].0, warp.regs.r32[b as usize].0, warp.regs.r32[c as usize].0);
        let (mut result, mut valid, mut stray) = (values, 0, None);
        for_lanes(group, |lane| {
            let (source, inside) = shuffle_source(mode, lane as u32, offsets[lane], limits[lane]);
            valid |= u32::from(inside) << lane;
            if group >> source & 1 == 0 {
                stray = stray.or(Some((lane as u32, source)));
            }
            result[lane] = values[source as usize];
        });
        if let Some((lane, source)) = stray {
            let who = Who::new(block, warp, pc);
            self.report(Kind::IllegalWarpOperation, who, lane, || {
                format!(
                    "shuffles a value from lane {source}, which does not take part (lanes {group:#010x} do)"
                )
            })?;
        }
        write(warp, d, group, &result);
        write_predicate(warp, p, group, valid);
        Ok(())
    }
}

/// Returns the lane that a shuffle reads, and whether it lies within the segment; if not, it is the lane itself.
fn shuffle_source(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = (lane & segment) | (clamp & !segment);
    let first = lane & segment;
    let (source, inside) = match mode {
        Shuffle::Up => {
            let source = lane as i32 - b as i32;
            (source, source >= last as i32)
        }
        Shuffle::Down => ((lane + b) as i32, lane + b <= last),
        Shuffle::Bfly => ((lane ^ b) as i32, lane ^ b <= last),
        Shuffle::Idx => {
            let source = first | (b & !segment);
            (source as i32, source <= last)
        }
    };
    if inside { (source as u32 & 31, true) } else { (lane, false) }
}

fn vote(warp: &mut Warp, group: u32, mode: Vote, d: Slot, values: u32) {
    let yes = values & group;
    if mode == Vote::Ballot {
        write(warp, d, group, &[yes; LANES]);
        return;
    }
    let result = match mode {
        Vote::All => yes == group,
        Vote::Any => yes != 0,
        _ => yes == 0 || yes == group,
    };
    write_predicate(warp, d, group, if result { group } else { 0 });
}

fn match_values(warp: &mut Warp, group: u32, (all, wide): (bool, bool), d: Slot, p: Slot, a: Slot) {
    let values: [u64; LANES] = std::array::from_fn(|lane| {
        if wide { warp.regs.r64[a as usize].0[lane] } else { u64::from(warp.regs.r32[a as usize].0[lane]) }
    });
    let mut equal = [0; LANES];
    for_lanes(group, |lane| {
        for_lanes(group, |other| equal[lane] |= u32::from(values[lane] == values[other]) << other);
    });
    if all {
        let same = equal[(group.trailing_zeros() & 31) as usize] == group;
        write(warp, d, group, &[if same { group } else { 0 }; LANES]);
        write_predicate(warp, p, group, if same { group } else { 0 });
    } else {
        write(warp, d, group, &equal);
    }
}

fn reduce(warp: &mut Warp, group: u32, op: AtomOp, ty: Ty, d: Slot, a: Slot) {
    let values = warp.regs.r32[a as usize].0;
    let mut result: Option<u32> = None;
    for_lanes(group, |lane| {
        let value = values[lane];
        result = Some(match result {
            None => value,
            Some(old) => match op {
                AtomOp::Add => old.wrapping_add(value),
                AtomOp::Min if ty.is_signed() => (old as i32).min(value as i32) as u32,
                AtomOp::Max if ty.is_signed() => (old as i32).max(value as i32) as u32,
                AtomOp::Min => old.min(value),
                AtomOp::Max => old.max(value),
                AtomOp::And => old & value,
                AtomOp::Or => old | value,
                _ => old ^ value,
            },
        });
    });
    write(warp, d, group, &[result.unwrap_or(0); LANES]);
}

/// Elects the first lane of a group: its number for all, a predicate for itself.
fn elect(warp: &mut Warp, group: u32, d: Slot, p: Slot) {
    let leader = group.trailing_zeros() & 31;
    write(warp, d, group, &[leader; LANES]);
    write_predicate(warp, p, group, 1 << leader);
}

fn write(warp: &mut Warp, d: Slot, lanes: u32, values: &[u32; LANES]) {
    if d != NONE {
        let register = &mut warp.regs.r32[d as usize].0;
        for_lanes(lanes, |lane| register[lane] = values[lane]);
    }
}

fn write_predicate(warp: &mut Warp, p: Slot, lanes: u32, values: u32) {
    if p != NONE {
        let register = &mut warp.regs.pred[p as usize];
        *register = *register & !lanes | values & lanes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ISA's own text: bval, cval, maxLane, minLane, and the four modes.
    fn isa_text(mode: Shuffle, lane: i64, b: i64, c: i64) -> (i64, bool) {
        let (bval, cval, mask) = (b & 31, c & 31, c >> 8 & 31);
        let max_lane = (lane & mask) | (cval & !mask);
        let min_lane = lane & mask;
        let (j, pval) = match mode {
            Shuffle::Up => (lane - bval, lane - bval >= max_lane),
            Shuffle::Down => (lane + bval, lane + bval <= max_lane),
            Shuffle::Bfly => (lane ^ bval, lane ^ bval <= max_lane),
            Shuffle::Idx => (min_lane | (bval & !mask), min_lane | (bval & !mask) <= max_lane),
        };
        if pval { (j, true) } else { (lane, false) }
    }

    #[test]
    fn shuffles_follow_the_isa_for_every_clamp_and_segment() {
        for mode in [Shuffle::Up, Shuffle::Down, Shuffle::Bfly, Shuffle::Idx] {
            for width in [1, 2, 4, 8, 16, 32u32] {
                let c = (32 - width) << 8 | if mode == Shuffle::Up { 0 } else { 31 };
                for (b, lane) in (0..64).flat_map(|b| (0..32).map(move |lane| (b, lane))) {
                    let (source, inside) = shuffle_source(mode, lane, b, c);
                    let expected = isa_text(mode, i64::from(lane), i64::from(b), i64::from(c));
                    assert_eq!((i64::from(source), inside), expected, "{mode:?} lane {lane} b {b} c {c:#x}");
                    // Only a butterfly leaves its segment, and only for earlier ones: as the ISA's text has it.
                    let same = source / width == lane / width;
                    assert!(
                        same || mode == Shuffle::Bfly && source < lane,
                        "{mode:?} lane {lane} b {b} c {c:#x}"
                    );
                }
            }
        }
    }
}
