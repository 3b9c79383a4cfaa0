//! The detector against a model that keeps, for each thread, the set of all accesses it knows: random programs must give the
//! same verdict for each granule, and no pair of accesses may be reported that the model calls ordered.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::isa::Order;

const THREADS: usize = 40; // a full warp and a part of one
const BLOCKS: usize = 2;

type Set = BTreeSet<usize>;

/// One lane's access.
struct Event {
    block: usize,
    pc: u32,
    memory: Memory,
    bytes: std::ops::Range<u64>,
    kind: Kind,
}

#[derive(Clone, Default)]
struct Brought {
    known: Set,
    fence: Set,
    wide: Set,
}

/// What a model thread knows; sets of events.
#[derive(Clone, Default)]
struct Actor {
    known: Set,
    fence: Set,
    wide: Set,
    pending: Set,
    under_way: Vec<usize>,
    groups: Vec<Vec<usize>>,
}

#[derive(Default)]
struct Model {
    events: Vec<Event>,
    actors: Vec<Actor>,
    flags: BTreeMap<(Memory2, u64), (Set, BTreeMap<usize, Set>)>,
    arrived: BTreeMap<usize, Brought>,
    coming: BTreeMap<usize, Brought>,
    races: BTreeMap<(u32, u32), BTreeSet<(Memory2, u64)>>,
    /// Pairs of which the detector may take note or not: an atomic operation that was seen by one that is known.
    seen: BTreeSet<(u32, u32)>,
}

/// A memory: shared of a block, or global.
type Memory2 = Option<usize>;

fn is_strong(kind: Kind) -> bool {
    matches!(kind, Kind::StrongRead(..) | Kind::StrongWrite(..) | Kind::Atomic(..))
}

fn order_of(kind: Kind) -> (Order, Scope) {
    match kind {
        Kind::StrongRead(o, s) | Kind::StrongWrite(o, s) | Kind::Atomic(o, s) => (o, s),
        _ => (Order::Weak, Scope::Sys),
    }
}

fn writes(kind: Kind) -> bool {
    !matches!(kind, Kind::Read | Kind::StrongRead(..) | Kind::CopyRead)
}

fn reaches_all(scope: Scope) -> bool {
    matches!(scope, Scope::Gpu | Scope::Sys)
}

impl Model {
    fn access(&mut self, actor: usize, pc: u32, memory: Memory, (at, size): (u64, u64), kind: Kind) {
        let block = actor / 64;
        let place = (memory == Memory::Shared).then_some(block);
        for (id, old) in self.events.iter().enumerate() {
            let old_place = (old.memory == Memory::Shared).then_some(old.block);
            let (from, to) = (at.max(old.bytes.start), (at + size).min(old.bytes.end));
            if old_place != place || from >= to || (old.pc == pc && old.kind == kind) {
                continue;
            }
            let both_strong = is_strong(kind) && is_strong(old.kind);
            let reach =
                old.block == block || reaches_all(order_of(kind).1) && reaches_all(order_of(old.kind).1);
            let conflicting = (writes(kind) || writes(old.kind)) && !(both_strong && reach);
            if conflicting && !self.actors[actor].known.contains(&id) {
                let pair = (old.pc.min(pc), old.pc.max(pc));
                let sees = |later: usize| {
                    let e = &self.events[later];
                    let reads = matches!(e.kind, Kind::Atomic(..) | Kind::StrongRead(..));
                    let same = e.memory == memory && e.bytes.start <= at && at + size <= e.bytes.end;
                    reads && same && self.actors[actor].known.contains(&later)
                };
                if place.is_none() && is_strong(old.kind) && (id + 1..self.events.len()).any(sees) {
                    self.seen.insert(pair);
                    continue;
                }
                let granules = from / 4..(to - 1) / 4 + 1;
                self.races.entry(pair).or_default().extend(granules.map(|g| (place, g)));
            }
        }
        let id = self.events.len();
        self.events.push(Event { block, pc, memory, bytes: at..at + size, kind });
        match kind {
            Kind::CopyRead | Kind::CopyWrite => self.actors[actor].under_way.push(id),
            _ => _ = self.actors[actor].known.insert(id),
        }
    }

    fn flag(&mut self, block: usize, actor: usize, memory: Memory, at: u64, kind: Kind) {
        let (order, scope) = order_of(kind);
        let everywhere = reaches_all(scope);
        let place = (memory == Memory::Shared).then_some(block);
        let flag = self.flags.entry((place, at & !3)).or_default();
        let me = &mut self.actors[actor];
        if writes(kind) {
            if matches!(kind, Kind::StrongWrite(..)) {
                *flag = Default::default();
            }
            let releases = matches!(order, Order::Release | Order::AcqRel | Order::Sc);
            let (narrow, wide) = if releases { (&me.known, &me.known) } else { (&me.fence, &me.wide) };
            flag.1.entry(block).or_default().extend(narrow);
            if everywhere {
                flag.0.extend(wide);
                flag.1.entry(block).or_default().extend(wide);
            }
        }
        if matches!(kind, Kind::StrongWrite(..)) {
            return;
        }
        let acquires = matches!(order, Order::Acquire | Order::AcqRel | Order::Sc);
        let to = if acquires { &mut me.known } else { &mut me.pending };
        to.extend(flag.1.get(&block).into_iter().flatten());
        if everywhere {
            to.extend(&flag.0);
        }
    }

    fn fence(&mut self, actor: usize, scope: Scope) {
        let me = &mut self.actors[actor];
        me.known.append(&mut me.pending);
        me.fence = me.known.clone();
        if reaches_all(scope) {
            me.wide = me.known.clone();
        }
    }

    fn bring(&mut self, actor: usize, to: &mut Brought) {
        let me = &mut self.actors[actor];
        me.known.append(&mut me.pending);
        to.known.extend(&me.known);
        to.fence.extend(&me.fence);
        to.wide.extend(&me.wide);
    }

    fn meet(&mut self, actors: &[usize], mut all: Brought) {
        actors.iter().for_each(|&a| self.bring(a, &mut all));
        for &actor in actors {
            self.learn(actor, &all);
        }
    }

    fn learn(&mut self, actor: usize, all: &Brought) {
        let me = &mut self.actors[actor];
        me.known.extend(&all.known);
        me.fence.extend(&all.fence);
        me.wide.extend(&all.wide);
    }

    fn wait(&mut self, actor: usize, left: Option<usize>) {
        let me = &mut self.actors[actor];
        while me.groups.len() > left.unwrap_or(0) {
            me.known.extend(me.groups.remove(0));
        }
        if left.is_none() {
            me.known.extend(me.under_way.drain(..));
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Both sides of a comparison.
struct Pair {
    random: Random,
    blocks: Vec<Block>,
    model: Model,
    pc: u32,
}

fn live(warp: usize) -> u32 {
    if warp == 0 { u32::MAX } else { (1 << (THREADS - LANES)) - 1 }
}

fn is_row(access: &Access<'_>) -> bool {
    access.lanes == u32::MAX && are_side_by_side(access.bytes, access.addresses)
}

impl Pair {
    fn new(launch: &Arc<Launch>, seed: u64) -> Self {
        let block = |b| Block::new(Arc::clone(launch), b as u32, THREADS, 256);
        let model = Model { actors: vec![Actor::default(); BLOCKS * 64], ..Model::default() };
        Self { random: Random(seed), blocks: (0..BLOCKS).map(block).collect(), model, pc: 0 }
    }

    fn lanes(&mut self, warp: usize) -> u32 {
        let random = self.random.below(u64::MAX) as u32;
        self.random.pick(&[u32::MAX, u32::MAX, u32::MAX, 1, 2, random]) & live(warp)
    }

    fn actors(&self, block: usize, warp: usize, lanes: u32) -> Vec<usize> {
        let mut actors = Vec::new();
        for_lanes(lanes, |lane| actors.push(block * 64 + warp * LANES + lane));
        actors
    }

    /// Addresses side by side, the same for all, of a few, or at random.
    fn addresses(&mut self, bytes: u64, room: u64) -> [u64; LANES] {
        let base = self.random.below(room / bytes) * bytes;
        let stride = self.random.pick(&[bytes, bytes, 0, bytes * 2]);
        match self.random.below(4) {
            0 if bytes == 4 && room >= 128 => std::array::from_fn(|lane| lane as u64 * 4),
            1 => std::array::from_fn(|_| self.random.below(room / bytes) * bytes),
            _ => std::array::from_fn(|lane| (base + lane as u64 * stride) % room),
        }
    }

    fn kind(&mut self) -> Kind {
        let scope = self.random.pick(&[Scope::Gpu, Scope::Gpu, Scope::Cta]);
        match self.random.below(12) {
            0..=5 => Kind::Read,
            6 | 7 => Kind::Write,
            8 => Kind::StrongRead(self.random.pick(&[Order::Volatile, Order::Acquire]), scope),
            9 => Kind::StrongWrite(self.random.pick(&[Order::Volatile, Order::Release]), scope),
            _ => Kind::Atomic(self.random.pick(&[Order::Relaxed, Order::AcqRel]), scope),
        }
    }

    fn access(&mut self, block: usize, warp: usize) {
        let lanes = self.lanes(warp);
        let memory = self.random.pick(&[Memory::Shared, Memory::Global]);
        let kind = self.kind();
        let size = if is_strong(kind) { 4 } else { self.random.pick(&[1, 2, 4, 4, 8, 16]) };
        let room = if memory == Memory::Shared { self.random.pick(&[64, 64, 256]) } else { 512 };
        let addresses = self.addresses(size, room);
        if lanes == 0 {
            return;
        }
        let bytes = size as u32;
        let access = Access { warp, lanes, kind, bytes, pc: self.pc, addresses: &addresses };
        let detector = &mut self.blocks[block];
        match (memory, is_strong(kind)) {
            (Memory::Shared, false) => detector.shared(&access, |_| 0),
            (Memory::Global, false) if is_row(&access) => detector.global_row(&access, addresses[0]),
            (Memory::Global, false) => detector.global(&access, |_| 0),
            (Memory::Shared, true) => detector.shared_flag(&access, lanes),
            (Memory::Global, true) => {
                for_lanes(lanes, |lane| detector.global_flag(&access, lane, || ((), true)))
            }
        }
        // The model checks all lanes of an instruction before it hands on what they release, as hardware may.
        for_lanes(lanes, |lane| {
            let actor = block * 64 + warp * LANES + lane;
            self.model.access(actor, self.pc, memory, (addresses[lane], size), kind);
            if is_strong(kind) {
                self.model.flag(block, actor, memory, addresses[lane], kind);
            }
        });
        self.pc += 1;
    }

    fn copy(&mut self, block: usize, warp: usize) {
        let lanes = self.lanes(warp);
        let (to, from) = (self.addresses(4, 64), self.addresses(4, 512));
        let distinct: BTreeSet<_> = to.iter().collect();
        if distinct.len() < LANES && lanes.count_ones() > 1 {
            return; // lanes that copy to one address have a test of their own
        }
        let access = |kind, pc, addresses| Access { warp, lanes, kind, bytes: 4, pc, addresses };
        let (write, read) = (access(Kind::CopyWrite, self.pc, &to), access(Kind::CopyRead, self.pc, &from));
        self.blocks[block].copy(&write, &[read]);
        for_lanes(lanes, |lane| {
            let actor = block * 64 + warp * LANES + lane;
            self.model.access(actor, self.pc, Memory::Shared, (to[lane], 4), Kind::CopyWrite);
            self.model.access(actor, self.pc, Memory::Global, (from[lane], 4), Kind::CopyRead);
        });
        self.pc += 1;
    }

    fn wait(&mut self, block: usize, warp: usize) {
        let lanes = self.lanes(warp);
        let left = self.random.pick(&[None, Some(0), Some(1)]);
        self.blocks[block].commit_copies(warp, lanes);
        self.blocks[block].wait_copies(warp, lanes, left);
        for actor in self.actors(block, warp, lanes) {
            let group = std::mem::take(&mut self.model.actors[actor].under_way);
            self.model.actors[actor].groups.push(group);
            self.model.wait(actor, left.map(|l| l as usize));
        }
    }

    fn synchronise(&mut self, block: usize, warp: usize) {
        let lanes = self.lanes(warp);
        let here = self.actors(block, warp, lanes);
        let detector = &mut self.blocks[block];
        match self.random.below(9) {
            0..=2 => {
                detector.barrier(0, &[(0, live(0)), (1, live(1))], true);
                let all: Vec<_> = (0..THREADS).map(|t| block * 64 + t).collect();
                let arrived = self.model.arrived.remove(&block).unwrap_or_default();
                self.model.meet(&all, arrived);
            }
            3 | 4 => {
                detector.warp_barrier(warp, lanes);
                self.model.meet(&here, Brought::default());
            }
            5 => {
                detector.barrier_arrive(0, warp, lanes);
                let mut arrived = self.model.arrived.remove(&block).unwrap_or_default();
                here.iter().for_each(|&a| self.model.bring(a, &mut arrived));
                self.model.arrived.insert(block, arrived);
            }
            6 => {
                detector.barrier(0, &[(warp, lanes)], false);
                let arrived = self.model.arrived.remove(&block).unwrap_or_default();
                self.model.meet(&here, arrived);
            }
            7 => {
                detector.mbarrier_arrive(warp, lanes, 48, true);
                let mut coming = self.model.coming.remove(&block).unwrap_or_default();
                here.iter().for_each(|&a| self.model.bring(a, &mut coming));
                self.model.coming.insert(block, coming);
            }
            _ => {
                detector.mbarrier_complete(48);
                detector.mbarrier_complete(48);
                detector.mbarrier_wait(warp, lanes, 48, 1);
                let coming = self.model.coming.get(&block).cloned().unwrap_or_default();
                here.iter().for_each(|&a| self.model.learn(a, &coming));
            }
        }
    }

    fn step(&mut self) {
        let (block, warp) = (self.random.below(BLOCKS as u64) as usize, self.random.below(2) as usize);
        match self.random.below(10) {
            0..=3 => self.access(block, warp),
            4 => self.copy(block, warp),
            5 => self.wait(block, warp),
            6 => {
                let (lanes, scope) = (self.lanes(warp), self.random.pick(&[Scope::Cta, Scope::Gpu]));
                self.blocks[block].fence(warp, lanes, scope);
                self.actors(block, warp, lanes).into_iter().for_each(|a| self.model.fence(a, scope));
            }
            _ => self.synchronise(block, warp),
        }
    }
}

#[test]
fn random_programs_get_the_verdict_of_the_model() {
    let (mut with, mut without, mut spare) = (0, 0, Spare::default());
    for seed in 1..=6000u64 {
        // In memory of the launch before, which must be forgotten.
        let launch = Arc::new(Launch::reusing(spare));
        let mut pair = Pair::new(&launch, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..4 + seed % 40 {
            pair.step();
        }
        let reported: BTreeSet<(u32, u32)> = launch
            .races()
            .iter()
            .map(|r| (r.first.pc.min(r.second.pc), r.first.pc.max(r.second.pc)))
            .collect();
        for found in &reported {
            let right = pair.model.races.contains_key(found) || pair.model.seen.contains(found);
            assert!(right, "seed {seed}: {found:?} is ordered");
        }
        let seen: BTreeSet<_> = reported.iter().filter_map(|p| pair.model.races.get(p)).flatten().collect();
        for (pc, granule) in
            pair.model.races.iter().flat_map(|(pc, granules)| granules.iter().map(move |g| (pc, g)))
        {
            if !seen.contains(granule) {
                for (i, e) in pair.model.events.iter().enumerate() {
                    if e.pc == pc.0 || e.pc == pc.1 {
                        eprintln!("{i} b{} pc{} {:?} {:?} {:?}", e.block, e.pc, e.memory, e.bytes, e.kind);
                    }
                }
                eprintln!("{:?} {:?}", pair.model.races, launch.races());
            }
            assert!(seen.contains(granule), "seed {seed}: a race of {pc:?} at {granule:?} is missed");
        }
        if reported.is_empty() {
            without += 1
        } else {
            with += 1
        }
        drop(pair);
        spare = Arc::into_inner(launch).unwrap().into_spare();
    }
    assert!(with > 500 && without > 500, "{with} programs with races and {without} without say too little");
}
