//! Asynchronous copies of a warp's threads (`cp.async`): issued now, done when somebody waits.
//!
//! The bytes move at some moment in between, by chance if the schedule is seeded, else as late as possible: a program that
//! changes the source or the destination too early finds either. From the issue to the wait the destination counts as never
//! written all the same, so that whoever reads it too early gets 0xFF and a report.

use super::access::{Access, Action, Own};
use super::address::Addresses;
use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::races;
use super::warp::Warp;
use crate::isa::{Addr, Count, NONE, Op, Space};
use crate::regs::{LANES, for_lanes};
use crate::report::Kind;

/// A copy that each lane of a mask has under way.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Who; lanes leave when theirs is done.
    pub mask: u32,
    /// Those whose bytes have moved.
    pub moved: u32,
    /// Which bytes of the source were written when they moved, and count as such after the wait.
    pub written: [u16; LANES],
    /// Group of each lane, counted by its commits.
    pub group: [u32; LANES],
    /// Offset in shared memory.
    pub to: Addresses,
    /// Where the bytes come from.
    pub from: Addresses,
    /// Bytes to write.
    pub size: u64,
    /// Bytes to read; the rest is zero.
    pub read: [u8; LANES],
    /// Index of the instruction.
    pub pc: u32,
}

/// An arrival at an mbarrier that follows the copies of some lanes (`cp.async.mbarrier.arrive`).
#[derive(Clone, Debug)]
pub struct CopyArrival {
    /// Who.
    pub mask: u32,
    /// Offsets of their mbarriers.
    pub at: Addresses,
    /// Index of the instruction.
    pub pc: u32,
}

/// Asynchronous copies of a warp's threads.
#[derive(Debug, Default)]
pub struct Copies {
    /// In the order of their issue.
    pub under_way: Vec<Copy>,
    /// Arrivals that follow all copies issued so far.
    pub arrivals: Vec<CopyArrival>,
    /// Commits of each lane: the group that its next copy belongs to.
    pub commits: [u32; LANES],
}

impl Copies {
    /// Forgets everything, for the next block.
    pub fn clear(&mut self) {
        self.under_way.clear();
        self.arrivals.clear();
        self.commits = [0; LANES];
    }
}

/// A `cp.async` as in the instruction.
struct Request {
    size: u8,
    src: Option<Count>,
    dst: Addr,
    from: Addr,
    ignore: u32,
}

impl Engine<'_> {
    /// Executes `cp.async` and its commits and waits.
    pub fn copy_operation(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        (pc, mask): (u32, u32),
        op: &Op,
    ) -> Result<(), Halted> {
        match *op {
            Op::CpAsync { size, src, dst, from, ignore } => {
                self.issue(warp, block, (pc, mask), &Request { size, src, dst, from, ignore })
            }
            Op::CpAsyncCommit => {
                for_lanes(mask, |lane| warp.copies.commits[lane] += 1);
                races::commit(&mut block.races, warp, mask);
                Ok(())
            }
            Op::CpAsyncWait { left } => {
                races::wait(&mut block.races, warp, mask, Some(left));
                let commits = warp.copies.commits;
                self.land(warp, block, mask, |lane, group| {
                    u64::from(group) + u64::from(left) < u64::from(commits[lane])
                });
                Ok(())
            }
            _ => {
                races::wait(&mut block.races, warp, mask, None);
                self.land(warp, block, mask, |_, _| true);
                Ok(())
            }
        }
    }

    fn issue(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        (pc, mask): (u32, u32),
        request: &Request,
    ) -> Result<(), Halted> {
        let size = u64::from(request.size);
        let (mut to, mut from) =
            (Addresses::of(&warp.regs, request.dst), Addresses::of(&warp.regs, request.from));
        let read = self.bytes_to_read(warp, block, (pc, mask), request)?;
        let who = Who::new(block, warp, pc);
        let access = Access { who, space: Space::Shared, size, action: Action::Write };
        let own = Own { shared: &block.shared, local: &warp.local };
        let (window, span, _) = self.window(own, &access, &mut to, mask)?;
        self.observe(&access, &to, &span, mask);
        for_lanes(mask, |lane| {
            block.in_flight.set(to.0[lane], size);
            if let Some(bits) = window.bits {
                bits.clear(to.0[lane], size);
            }
        });
        self.check_source(own, who, &mut from, (mask, size), &read)?;
        self.tally.sums.asynchronous_copy_bytes += size * u64::from(mask.count_ones());
        let group = warp.copies.commits;
        let copy = Copy { mask, moved: 0, written: [0; LANES], group, to, from, size, read, pc };
        let source = Access { space: Space::Global, action: Action::Read, ..access };
        races::copy(&mut block.races, &access, &source, &copy);
        warp.copies.under_way.push(copy);
        block.progress += 1;
        self.move_some(warp, block);
        Ok(())
    }

    /// Moves the bytes of a copy, or of none, by chance.
    pub fn move_some(&mut self, warp: &mut Warp, block: &mut BlockState) {
        let n = warp.copies.under_way.len();
        let (Some(random), true) = (&mut block.random, n > 0) else { return };
        if let Some(copy) = warp.copies.under_way.get_mut(random.below(2 * n as u64) as usize) {
            for_lanes(copy.mask & !copy.moved, |lane| self.move_lane(block, copy, lane));
        }
    }

    /// Returns how many bytes each lane reads.
    fn bytes_to_read(
        &mut self,
        warp: &Warp,
        block: &BlockState,
        (pc, mask): (u32, u32),
        request: &Request,
    ) -> Result<[u8; LANES], Halted> {
        let mut read = [request.size; LANES];
        let mut excess = None;
        for_lanes(mask, |lane| {
            let bytes = match request.src {
                None => u32::from(request.size),
                Some(Count::Imm(n)) => n,
                Some(Count::Reg(slot)) => warp.regs.r32[slot as usize].0[lane],
            };
            if bytes > u32::from(request.size) {
                excess = excess.or(Some((lane, bytes)));
            }
            let ignored = request.ignore != NONE && warp.regs.pred[request.ignore as usize] >> lane & 1 == 1;
            read[lane] = if ignored { 0 } else { bytes as u8 };
        });
        if let Some((lane, bytes)) = excess {
            let who = Who::new(block, warp, pc);
            self.report(Kind::AsyncMisuse, who, lane as u32, || {
                format!("an asynchronous copy of {} bytes that reads {bytes}", request.size)
            })?;
        }
        Ok(read)
    }

    /// Checks the sources: whole ones together, those of which only a part is read one by one.
    fn check_source(
        &mut self,
        own: Own,
        who: Who,
        from: &mut Addresses,
        (mask, size): (u32, u64),
        read: &[u8; LANES],
    ) -> Result<(), Halted> {
        let access = Access { who, space: Space::Global, size, action: Action::Read };
        let mut whole = 0;
        for_lanes(mask, |lane| whole |= u32::from(u64::from(read[lane]) == size) << lane);
        let mut left = whole;
        while left != 0 {
            let (_, span, now) = self.window(own, &access, from, left)?;
            self.observe(&access, from, &span, now);
            left &= !now;
        }
        let mut partial = mask & !whole;
        while partial != 0 {
            let lane = partial.trailing_zeros();
            partial &= partial - 1;
            let bytes = u64::from(read[lane as usize]);
            if bytes == 0 {
                continue;
            }
            let part = Access { size: bytes, ..access };
            let span = from.span(1 << lane, size);
            if !span.aligned {
                self.misaligned(&access, from, 1 << lane)?;
            }
            self.global_window(&part, from, 1 << lane, span)?;
            self.observe(&part, from, &span, 1 << lane);
        }
        Ok(())
    }

    /// Completes the copies of lanes for which `due` holds, given the copy's group.
    pub fn land(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        mask: u32,
        due: impl Fn(usize, u32) -> bool,
    ) {
        let mut copies = std::mem::take(&mut warp.copies.under_way);
        for copy in &mut copies {
            let mut lanes = 0;
            for_lanes(copy.mask & mask, |lane| lanes |= u32::from(due(lane, copy.group[lane])) << lane);
            for_lanes(lanes & !copy.moved, |lane| self.move_lane(block, copy, lane));
            for_lanes(lanes, |lane| show(block, copy, lane));
            copy.mask &= !lanes;
        }
        copies.retain(|copy| copy.mask != 0);
        warp.copies.under_way = copies;
    }

    /// Moves the bytes of a lane's copy.
    fn move_lane(&self, block: &BlockState, copy: &mut Copy, lane: usize) {
        let (from, read) = (copy.from.0[lane], u64::from(copy.read[lane]));
        let host = block.shared.window().host(copy.to.0[lane]);
        copy.moved |= 1 << lane;
        copy.written[lane] = u16::MAX;
        if read < copy.size {
            // SAFETY: the destination was checked when the copy was issued.
            unsafe { host.add(read as usize).write_bytes(0, (copy.size - read) as usize) };
        }
        if read == 0 {
            return;
        }
        let region = self.view.region(self.regions[copy.pc as usize]);
        let holds = |r: &&crate::memory::Region| from >= r.start() && from + read <= r.end();
        let region = region.filter(holds).or_else(|| self.view.region(self.view.find(from)?));
        let Some(region) = region else { return };
        let offset = from - region.start();
        // SAFETY: source and destination were checked when the copy was issued, and the view keeps the region alive.
        unsafe { host.copy_from(region.data().add(offset as usize), read as usize) };
        if let Some(source) = region.bits() {
            let zeros = !(u64::MAX >> (64 - read));
            copy.written[lane] = (source.get(offset, read) | zeros) as u16;
        }
    }
}

/// Lets the bytes of a lane's copy, which have moved, count as written.
fn show(block: &mut BlockState, copy: &Copy, lane: usize) {
    block.in_flight.clear(copy.to.0[lane], copy.size);
    if let Some(bits) = block.shared.window().bits {
        bits.put(copy.to.0[lane], copy.size, copy.written[lane].into());
    }
}
