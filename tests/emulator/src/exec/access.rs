//! Loads and stores: from addresses to bytes, with all checks.
//!
//! Every access of a kernel to memory goes through [`Engine::window`], whatever the instruction.

use super::address::{Addresses, Span};
use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::local::OwnMemory;
use super::races;
use super::warp::Warp;
use super::window::Window;
use crate::counters::{Direction, Traffic};
use crate::isa::{Addr, List, NONE, Order, Space, Ty};
use crate::memory::{FaultKind, LOCAL_WINDOW, PARAM_WINDOW, SHARED_STRIDE, SHARED_WINDOW, WINDOW_BYTES};
use crate::regs::{FULL, LANES, for_lanes};
use crate::report::Kind;

/// What an instruction wants to do to memory.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Which warp, at which instruction.
    pub who: Who,
    /// Where; not generic.
    pub space: Space,
    /// Bytes of each lane.
    pub size: u64,
    /// How.
    pub action: Action,
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A read and a write that nothing can come between.
    Atomic,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Action::Read => "reads",
            Action::Write => "writes",
            Action::Atomic => "atomically changes",
        }
    }
}

/// The memories that belong to a block and a warp.
#[derive(Clone, Copy)]
pub struct Own<'b> {
    /// Of the block.
    pub shared: &'b OwnMemory,
    /// Of the warp.
    pub local: &'b OwnMemory,
}

/// Lanes of an access, by space.
pub type Shares = [(Space, u32); 4];

impl<'a> Engine<'a> {
    /// Executes `ld`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub fn load(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        (pc, mask): (u32, u32),
        (ty, space, order): (Ty, Space, Order),
        dst: List,
        addr: Addr,
    ) -> Result<(), Halted> {
        if space == Space::Param && addr.base == NONE && self.load_parameter(warp, mask, ty, dst, addr.offset)
        {
            return Ok(());
        }
        let row = mask == FULL && space == Space::Global && order == Order::Weak;
        if row && self.load_row(warp, block, pc, (ty, dst), addr) {
            return Ok(());
        }
        let mut at = Addresses::of(&warp.regs, addr);
        if order != Order::Weak {
            block.polls += u64::from(warp.looks_again(pc, at.0[first_lane(mask)]));
        }
        let size = u64::from(ty.bytes() * dst.len);
        let program = self.program;
        let slots = program.list(dst);
        for (space, lanes) in self.by_space(space, &mut at, mask, block) {
            let access = Access { who: Who::new(block, warp, pc), space, size, action: Action::Read };
            let mut left = lanes;
            while left != 0 {
                let own = Own { shared: &block.shared, local: &warp.local };
                let (window, span, now) = self.window(own, &access, &mut at, left)?;
                left &= !now;
                let unwritten = window.unwritten(&at, &span, now, size);
                if order == Order::Weak {
                    // SAFETY: `window` returns lanes that it holds.
                    unsafe { window.load(&mut warp.regs, ty, slots, &at, &span, now) };
                    races::weak(&mut block.races, &access, &at, now, |_| 0);
                } else {
                    let strength = self.strength(pc);
                    races::strong(&mut block.races, &access, strength, &at, now, |lanes| {
                        // SAFETY: as above; some of these lanes.
                        unsafe { window.load(&mut warp.regs, ty, slots, &at, &span.of(lanes), lanes) };
                        0
                    });
                }
                if unwritten != 0 {
                    window.poison(&mut warp.regs, ty, slots, &at, unwritten);
                    self.unwritten(&access, &at, unwritten, block, warp)?;
                }
                self.observe(&access, &at, &span, now);
            }
        }
        Ok(())
    }

    /// Loads the same parameter into all lanes; refuses anything that is not as simple, or wrong.
    #[inline(always)]
    fn load_parameter(&mut self, warp: &mut Warp, mask: u32, ty: Ty, dst: List, offset: i64) -> bool {
        let (window, size) = (self.params.window(), u64::from(ty.bytes()));
        let at = offset as u64;
        let span = Span { low: at, high: at, contiguous: false, aligned: at.is_multiple_of(size) };
        let [slot] = self.program.list(dst) else { return false };
        if mask != FULL || *slot == NONE || !span.aligned || !window.holds(&span, size) {
            return false;
        }
        let host = window.host(at);
        // SAFETY: the window holds the parameter, as was just checked.
        unsafe {
            match size {
                1 => warp.regs.r32[*slot as usize].0 = [u32::from(host.read()); LANES],
                2 => {
                    warp.regs.r32[*slot as usize].0 = [u32::from(host.cast::<u16>().read_unaligned()); LANES]
                }
                4 => warp.regs.r32[*slot as usize].0 = [host.cast::<u32>().read_unaligned(); LANES],
                _ => warp.regs.r64[*slot as usize].0 = [host.cast::<u64>().read_unaligned(); LANES],
            }
        }
        true
    }

    /// Executes `st`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub fn store(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        (pc, mask): (u32, u32),
        (ty, space, order): (Ty, Space, Order),
        src: List,
        addr: Addr,
    ) -> Result<(), Halted> {
        let row = mask == FULL && space == Space::Global && order == Order::Weak;
        if row && self.store_row(warp, block, pc, (ty, src), addr) {
            return Ok(());
        }
        let mut at = Addresses::of(&warp.regs, addr);
        let size = u64::from(ty.bytes() * src.len);
        let program = self.program;
        let slots = program.list(src);
        for (space, lanes) in self.by_space(space, &mut at, mask, block) {
            block.progress += u64::from(space != Space::Local && lanes != 0);
            let access = Access { who: Who::new(block, warp, pc), space, size, action: Action::Write };
            let mut left = lanes;
            while left != 0 {
                let own = Own { shared: &block.shared, local: &warp.local };
                let (window, span, now) = self.window(own, &access, &mut at, left)?;
                left &= !now;
                if order == Order::Weak {
                    // SAFETY: `window` returns lanes that it holds, and refuses writes to read-only memory.
                    unsafe { window.store(&warp.regs, ty, slots, &at, &span, now) };
                    let value = |lane| races::stored(&warp.regs, ty, slots, lane);
                    races::weak(&mut block.races, &access, &at, now, value);
                } else {
                    let strength = self.strength(pc);
                    races::strong(&mut block.races, &access, strength, &at, now, |lanes| {
                        // SAFETY: as above; some of these lanes.
                        unsafe { window.store(&warp.regs, ty, slots, &at, &span.of(lanes), lanes) };
                        lanes
                    });
                }
                window.mark(&at, &span, now, size);
                self.observe(&access, &at, &span, now);
            }
        }
        Ok(())
    }

    /// Sorts lanes by state space, and turns generic addresses into those of the space.
    #[inline(always)]
    pub fn by_space(&self, space: Space, at: &mut Addresses, mask: u32, block: &BlockState) -> Shares {
        let none = (Space::Global, 0);
        if space != Space::Generic {
            return [(space, mask), none, none, none];
        }
        self.split_generic(at, mask, block)
    }

    fn split_generic(&self, at: &mut Addresses, mask: u32, block: &BlockState) -> Shares {
        let (mut global, mut shared, mut local, mut param) = (0, 0, 0, 0);
        let shared_start = SHARED_WINDOW + u64::from(block.cluster_rank) * SHARED_STRIDE;
        for_lanes(mask, |lane| {
            let (address, bit) = (at.0[lane], 1 << lane);
            if address.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES {
                shared |= bit;
                at.0[lane] = address.wrapping_sub(shared_start);
            } else if address.wrapping_sub(LOCAL_WINDOW) < WINDOW_BYTES {
                local |= bit;
                at.0[lane] -= LOCAL_WINDOW;
            } else if address.wrapping_sub(PARAM_WINDOW) < WINDOW_BYTES {
                param |= bit;
                at.0[lane] -= PARAM_WINDOW;
            } else {
                global |= bit;
            }
        });
        [(Space::Global, global), (Space::Shared, shared), (Space::Local, local), (Space::Param, param)]
    }

    /// Finds the memory of an access. Returns it with the lanes of `mask` that lie in it; an access that is not allowed
    /// is reported. Addresses in local memory become those in the memory of the whole warp.
    #[inline(always)]
    pub fn window<'b>(
        &mut self,
        own: Own<'b>,
        access: &Access,
        at: &mut Addresses,
        mask: u32,
    ) -> Result<(Window<'b>, Span, u32), Halted>
    where
        'a: 'b,
    {
        let span = at.span(mask, access.size);
        if !span.aligned {
            self.misaligned(access, at, mask)?;
        }
        let window = match access.space {
            Space::Shared => own.shared.window(),
            Space::Param => self.params.window(),
            Space::Local => {
                let span = self.localise(own.local, access, at, mask)?;
                return Ok((own.local.window(), span, mask));
            }
            _ => return self.global_window(access, at, mask, span),
        };
        if !window.holds(&span, access.size)
            || (access.space == Space::Param && access.action != Action::Read)
        {
            self.outside(&window, access, at, mask)?;
        }
        Ok((window, span, mask))
    }

    #[inline(always)]
    pub fn global_window<'b>(
        &mut self,
        access: &Access,
        at: &Addresses,
        mask: u32,
        span: Span,
    ) -> Result<(Window<'b>, Span, u32), Halted>
    where
        'a: 'b,
    {
        let view = self.view;
        if let Some(region) = view.region(self.regions[access.who.pc as usize]) {
            let window = Window {
                data: region.data(),
                bits: region.bits(),
                start: region.start(),
                bytes: region.bytes(),
            };
            let writable = access.action == Action::Read || !region.read_only();
            if window.holds(&span, access.size) && writable {
                return Ok((window, span, mask));
            }
        }
        self.search(access, at, mask)
    }

    #[cold]
    fn search<'b>(
        &mut self,
        access: &Access,
        at: &Addresses,
        mask: u32,
    ) -> Result<(Window<'b>, Span, u32), Halted>
    where
        'a: 'b,
    {
        let view = self.view;
        let first = mask.trailing_zeros();
        let address = at.0[first as usize];
        let found = view.find(address);
        let Some((index, region)) = found.and_then(|index| Some((index, view.region(index)?))) else {
            return self.fault(access, address, first);
        };
        let inside = |a: u64| a >= region.start() && a < region.end() && region.end() - a >= access.size;
        if !inside(address) {
            return self.fault(access, address, first);
        }
        if region.read_only() && access.action != Action::Read {
            let place = region.describe();
            let verb = access.action.verb();
            self.report(Kind::OutOfBounds, access.who, first, || {
                format!("{verb} {} bytes at {address:#x} in {place}, which is constant", access.size)
            })?;
        }
        self.regions[access.who.pc as usize] = index;
        let mut lanes = 0;
        for_lanes(mask, |lane| lanes |= u32::from(inside(at.0[lane])) << lane);
        let window =
            Window { data: region.data(), bits: region.bits(), start: region.start(), bytes: region.bytes() };
        Ok((window, at.span(lanes, access.size), lanes))
    }

    #[cold]
    fn fault<T>(&mut self, access: &Access, address: u64, lane: u32) -> Result<T, Halted> {
        let fault = self.memory.fault(address, access.size);
        let kind = match fault.kind {
            FaultKind::OutOfBounds => Kind::OutOfBounds,
            FaultKind::UseAfterFree => Kind::UseAfterFree,
        };
        let verb = access.action.verb();
        self.report(kind, access.who, lane, || format!("{verb} {fault}"))?;
        Err(Halted)
    }

    #[cold]
    pub fn misaligned(&mut self, access: &Access, at: &Addresses, mask: u32) -> Result<(), Halted> {
        let odd = (0..LANES).find(|&lane| mask >> lane & 1 == 1 && at.0[lane] & (access.size - 1) != 0);
        let lane = odd.unwrap_or(0);
        let (verb, space) = (access.action.verb(), name(access.space));
        self.report(Kind::Misaligned, access.who, lane as u32, || {
            format!("{verb} {} bytes at {space} address {:#x}", access.size, at.0[lane])
        })
    }

    #[cold]
    fn outside(&mut self, window: &Window, access: &Access, at: &Addresses, mask: u32) -> Result<(), Halted> {
        let beyond = |a: u64| a >= window.bytes || window.bytes - a < access.size;
        let lane = (0..LANES).find(|&lane| mask >> lane & 1 == 1 && beyond(at.0[lane])).unwrap_or(0);
        let (verb, space, bytes) = (access.action.verb(), name(access.space), window.bytes);
        self.report(Kind::OutOfBounds, access.who, lane as u32, || {
            format!(
                "{verb} {} bytes at {space} address {:#x}, where {bytes} bytes end",
                access.size, at.0[lane]
            )
        })?;
        Err(Halted)
    }

    /// Turns addresses of the lanes' own local memories into those of the warp's.
    fn localise(
        &mut self,
        local: &OwnMemory,
        access: &Access,
        at: &mut Addresses,
        mask: u32,
    ) -> Result<Span, Halted> {
        let each = local.bytes() / LANES as u64;
        let mut beyond = 0;
        for_lanes(mask, |lane| {
            let inside = at.0[lane] < each && each - at.0[lane] >= access.size;
            beyond |= u32::from(!inside) << lane;
        });
        if beyond != 0 {
            let window = Window { bytes: each, ..local.window() };
            self.outside(&window, access, at, beyond)?;
        }
        for_lanes(mask, |lane| at.0[lane] += lane as u64 * each);
        Ok(at.span(mask, access.size))
    }

    /// Reports a read of bytes that nobody wrote.
    #[cold]
    pub fn unwritten(
        &mut self,
        access: &Access,
        at: &Addresses,
        lanes: u32,
        block: &BlockState,
        warp: &Warp,
    ) -> Result<(), Halted> {
        if !self.config.checks.uninitialised {
            return Ok(());
        }
        let lane = lanes.trailing_zeros();
        let mut address = at.0[lane as usize];
        if access.space == Space::Local {
            address -= u64::from(lane) * (warp.local.bytes() / LANES as u64);
        }
        let reason = match access.space {
            Space::Shared => block.pending_copy(address, access.size),
            _ => None,
        };
        let reason = reason.unwrap_or("not all of which were written");
        let (verb, space, size) = (access.action.verb(), name(access.space), access.size);
        self.report(Kind::Uninitialised, access.who, lane, || {
            format!("{verb} {size} bytes at {space} address {address:#x}, {reason}")
        })
    }

    /// Sees every access that was allowed.
    #[inline(always)]
    pub fn observe(&mut self, access: &Access, at: &Addresses, span: &Span, mask: u32) {
        let direction = if access.action == Action::Write { Direction::Store } else { Direction::Load };
        let traffic =
            Traffic { direction, size: access.size, mask, contiguous: span.contiguous, low: span.low };
        match access.space {
            Space::Shared => self.tally.shared(&traffic, &at.0),
            Space::Global | Space::Const | Space::Generic => self.tally.global(&traffic, &at.0),
            Space::Local => self.tally.local(&traffic),
            Space::Param => {}
        }
    }
}

/// Returns the number of the first lane of a mask.
#[inline(always)]
pub fn first_lane(mask: u32) -> usize {
    (mask.trailing_zeros() & 31) as usize
}

/// Names a state space.
pub fn name(space: Space) -> &'static str {
    match space {
        Space::Generic => "generic",
        Space::Global => "global",
        Space::Shared => "shared",
        Space::Local => "local",
        Space::Const => "constant",
        Space::Param => "parameter",
    }
}

/// Returns the generic address at which a space begins for a block.
pub fn window_start(space: Space, block: &BlockState) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW + u64::from(block.cluster_rank) * SHARED_STRIDE,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}
