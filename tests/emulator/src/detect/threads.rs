//! The clocks of the threads of one block, and what synchronisation does to them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clock::{Blocks, Seen, Snapshot, View};
use crate::isa::{Order, Scope};
use crate::regs::{FULL, LANES, for_lanes};

/// The clocks of one warp. Its lanes share an epoch always, and what they know most of the time.
pub(super) struct Warp {
    /// Lanes that have not exited.
    live: u32,
    /// Of accesses from now on.
    pub(super) epoch: u32,
    /// What every lane knows of every thread of the block.
    pub(super) floor: u32,
    /// What its lanes know, unless they differ.
    view: Arc<View>,
    /// What each lane knows, if they differ.
    split: Option<Box<[Arc<View>; LANES]>>,
    /// Lanes that wait for a group of copies since the warp was last joined with others.
    waited: u32,
    /// Whether a lane has fenced, or read a flag.
    fenced: bool,
}

impl Warp {
    /// Begins a warp that knows a view, after epoch `tick`.
    fn begin(live: u32, tick: u32, view: &Arc<View>) -> Self {
        let view = Arc::clone(view);
        Self { live, epoch: tick + 1, floor: tick, view, split: None, waited: 0, fenced: false }
    }
}

/// The asynchronous copies of one thread, numbered from 1.
#[derive(Clone, Default)]
struct Copies {
    issued: u32,
    done: u32,
    /// The last copy of each group that is under way.
    groups: VecDeque<u32>,
}

/// Half of a release or an acquire.
#[derive(Clone, Default)]
struct Half {
    /// What relaxed reads have found: known after the next fence or barrier.
    pending: Option<View>,
    /// What was known at the last fence of any scope: given away by relaxed writes.
    fence: Option<Snapshot>,
    /// The same for fences of scope gpu and wider.
    wide_fence: Option<Snapshot>,
}

/// What those who meet at a barrier bring along.
#[derive(Clone, Default)]
pub(super) struct Meeting {
    view: View,
    fence: Option<View>,
    wide_fence: Option<View>,
}

/// What a write that others may read as a flag gives to them.
pub(super) struct Released {
    /// To threads of the same block.
    pub(super) narrow: Option<Snapshot>,
    /// To threads of other blocks.
    pub(super) wide: Option<Snapshot>,
}

/// The clocks of the threads of one block.
pub(super) struct Threads {
    /// The number of the block in its grid.
    pub(super) block: u32,
    tick: u32,
    warps: Vec<Warp>,
    /// Of each thread, once any has issued a copy.
    copies: Vec<Copies>,
    halves: Vec<Half>,
}

impl Threads {
    /// Makes those of so many threads.
    pub(super) fn new(block: u32, threads: usize) -> Self {
        let view = Arc::default();
        let warps = (0..threads.div_ceil(LANES)).map(|_| Warp::begin(FULL, 0, &view)).collect();
        let mut made = Self { block, tick: 0, copies: Vec::new(), halves: Vec::new(), warps };
        made.begin(block, threads);
        made
    }

    /// Begins a block of as many threads, whose shared memory was used by those of the block before.
    pub(super) fn begin(&mut self, block: u32, threads: usize) {
        self.block = block;
        let view = Arc::new(View { own: Seen::from(self.tick, self.copied()), others: None });
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let rest = threads - index * LANES;
            *warp = Warp::begin(if rest < LANES { (1 << rest) - 1 } else { FULL }, self.tick, &view);
        }
        self.tick += 1;
        self.halves.clear();
        for copies in &mut self.copies {
            copies.done = copies.issued;
            copies.groups.clear();
        }
    }

    /// Forgets all that was before.
    pub(super) fn forget(&mut self) {
        self.tick = 0;
        self.copies.clear();
    }

    /// Returns the highest epoch that was given out.
    pub(super) fn tick(&self) -> u32 {
        self.tick
    }

    /// Returns the number of copies of each thread, if there are any.
    pub(super) fn copied(&self) -> Option<Arc<[u32]>> {
        (!self.copies.is_empty()).then(|| self.copies.iter().map(|c| c.issued).collect())
    }

    /// Returns how many copies a thread has issued, and how many of these are complete.
    fn copies_of(&self, thread: usize) -> (u32, u32) {
        self.copies.get(thread).map_or((0, 0), |c| (c.issued, c.done))
    }

    fn copies_mut(&mut self, thread: usize) -> &mut Copies {
        if self.copies.is_empty() {
            self.copies.resize(self.warps.len() * LANES, Copies::default());
        }
        &mut self.copies[thread]
    }

    /// Returns the clocks of a warp.
    #[inline]
    pub(super) fn warp(&self, warp: usize) -> &Warp {
        &self.warps[warp]
    }

    /// Returns what one lane knows.
    #[inline]
    pub(super) fn view(&self, warp: usize, lane: usize) -> &View {
        let warp = &self.warps[warp];
        warp.split.as_ref().map_or(&warp.view, |split| &split[lane])
    }

    /// Returns what all lanes of a warp know, if it is the same.
    pub(super) fn common_view(&self, warp: usize) -> Option<&View> {
        let warp = &self.warps[warp];
        warp.split.is_none().then_some(&*warp.view)
    }

    /// Returns whether a thread knows an access of a thread of its block.
    pub(super) fn knows(&self, (warp, lane): (usize, usize), thread: usize, epoch: u32) -> bool {
        thread == warp * LANES + lane || self.view(warp, lane).own.covers(thread, epoch)
    }

    /// Returns whether a thread knows that a copy of a thread of its block is complete.
    pub(super) fn knows_copy(&self, (warp, lane): (usize, usize), thread: usize, copy: u32) -> bool {
        (thread == warp * LANES + lane && copy <= self.copies_of(thread).1)
            || self.view(warp, lane).own.covers_copy(thread, copy)
    }

    /// Lanes leave.
    pub(super) fn exit(&mut self, warp: usize, lanes: u32) {
        self.warps[warp].live &= !lanes;
        self.unite(warp);
    }

    /// Lanes fence: what their relaxed reads found is known, and their relaxed writes give away what is known now.
    pub(super) fn fence(&mut self, warp: usize, lanes: u32, scope: Scope) {
        self.settle(warp, lanes);
        for_lanes(lanes, |lane| {
            let snapshot = self.snapshot(warp, lane);
            let half = self.half(warp, lane);
            if is_wide(scope) {
                half.wide_fence = Some(snapshot.clone());
            }
            half.fence = Some(snapshot);
        });
        self.advance(warp);
    }

    /// Returns what a strong write of this order gives to those who read it. Call [`Threads::advance`] after an order that
    /// releases.
    pub(super) fn released(&self, warp: usize, lane: usize, order: Order, scope: Scope) -> Released {
        let released = match order {
            Order::Release | Order::AcqRel | Order::Sc => {
                let snapshot = self.snapshot(warp, lane);
                Released { narrow: Some(snapshot.clone()), wide: Some(snapshot) }
            }
            _ => match self.halves.get(warp * LANES + lane) {
                Some(half) => Released { narrow: half.fence.clone(), wide: half.wide_fence.clone() },
                None => Released { narrow: None, wide: None },
            },
        };
        Released { wide: released.wide.filter(|_| is_wide(scope)), ..released }
    }

    /// A strong read has found this in the same block; known at once if the read acquires, else after a fence or barrier.
    pub(super) fn found(&mut self, warp: usize, lane: usize, order: Order, view: &View) {
        if acquires(order) {
            self.update(warp, 1 << lane, |mine| mine.join(view));
        } else {
            self.half(warp, lane).pending.get_or_insert_with(View::default).join(view);
        }
    }

    /// The same for what threads of any block have published.
    pub(super) fn found_published(
        &mut self,
        warp: usize,
        lane: usize,
        order: Order,
        published: &Arc<Blocks>,
    ) {
        let block = self.block;
        if acquires(order) {
            self.update(warp, 1 << lane, |mine| mine.absorb(block, published));
        } else {
            self.half(warp, lane).pending.get_or_insert_with(View::default).absorb(block, published);
        }
    }

    /// The same, but what other blocks have published is out of the scope of the read.
    pub(super) fn found_of_block(&mut self, warp: usize, lane: usize, order: Order, published: &Blocks) {
        if let Some(own) = published.get(&self.block) {
            self.found(warp, lane, order, &View { own: Seen::clone(own), others: None });
        }
    }

    /// Begins a new epoch of a warp: what it has released does not speak of what it does from now on.
    pub(super) fn advance(&mut self, warp: usize) {
        self.tick += 1;
        self.warps[warp].epoch = self.tick;
    }

    /// Adds what lanes bring to a meeting; their later accesses are not part of it once the warp has advanced.
    pub(super) fn bring(&mut self, warp: usize, lanes: u32, to: &mut Meeting) {
        self.settle(warp, lanes);
        let Warp { live, epoch, waited, fenced, .. } = self.warps[warp];
        let whole = lanes & live == live && self.warps[warp].split.is_none();
        if whole {
            to.view.join(&self.warps[warp].view);
            to.view.own.warps[warp] = to.view.own.warps[warp].max(epoch);
        } else {
            for_lanes(lanes, |lane| {
                to.view.join(self.view(warp, lane));
                to.view.own.raise(warp * LANES + lane, epoch);
            });
        }
        for_lanes(lanes & waited, |lane| {
            let thread = warp * LANES + lane;
            to.view.own.raise_copy(thread, self.copies_of(thread).1);
        });
        if fenced {
            self.bring_fences(warp, lanes, to);
        }
    }

    fn bring_fences(&self, warp: usize, lanes: u32, to: &mut Meeting) {
        for_lanes(lanes, |lane| {
            let half = &self.halves[warp * LANES + lane];
            for (fence, to) in [(&half.fence, &mut to.fence), (&half.wide_fence, &mut to.wide_fence)] {
                if let Some(fence) = fence {
                    fence.add_to(to.get_or_insert_with(View::default));
                }
            }
        });
    }

    /// Lanes leave a meeting: each knows what all have brought. `whole`: no thread of the block was missing.
    pub(super) fn meet(&mut self, lanes: &[(usize, u32)], mut meeting: Meeting, whole: bool) {
        for &(warp, lanes) in lanes {
            self.bring(warp, lanes, &mut meeting);
        }
        if whole {
            meeting.view.own.raise_floor(self.tick);
        }
        self.tick += 1;
        let view = Arc::new(meeting.view);
        let fence = meeting.fence.map(|view| Snapshot { view: Arc::new(view), own: None });
        let wide_fence = meeting.wide_fence.map(|view| Snapshot { view: Arc::new(view), own: None });
        for &(warp, lanes) in lanes {
            self.warps[warp].epoch = self.tick;
            self.warps[warp].waited &= !lanes;
            self.replace(warp, lanes, &view);
            if fence.is_some() {
                for_lanes(lanes, |lane| {
                    let half = self.half(warp, lane);
                    half.fence = fence.clone();
                    half.wide_fence = wide_fence.clone();
                });
            }
        }
    }

    /// Lanes have seen that others have arrived.
    pub(super) fn learn(&mut self, warp: usize, lanes: u32, meeting: &Meeting) {
        self.update(warp, lanes, |view| view.join(&meeting.view));
        if meeting.fence.is_none() {
            return;
        }
        for_lanes(lanes, |lane| {
            let half = self.half(warp, lane);
            join_fence(&mut half.fence, &meeting.fence);
            join_fence(&mut half.wide_fence, &meeting.wide_fence);
        });
    }

    /// A thread issues a copy; returns its number.
    pub(super) fn issue_copy(&mut self, warp: usize, lane: usize) -> u32 {
        let copies = self.copies_mut(warp * LANES + lane);
        copies.issued += 1;
        copies.issued
    }

    /// Lanes end a group of copies.
    pub(super) fn commit_copies(&mut self, warp: usize, lanes: u32) {
        for_lanes(lanes, |lane| {
            let copies = self.copies_mut(warp * LANES + lane);
            copies.groups.push_back(copies.issued);
        });
    }

    /// Lanes wait until at most `left` of their groups are under way; none: for all copies.
    pub(super) fn wait_copies(&mut self, warp: usize, lanes: u32, left: Option<u32>) {
        self.warps[warp].waited |= lanes;
        for_lanes(lanes, |lane| {
            let copies = self.copies_mut(warp * LANES + lane);
            let Some(left) = left else {
                copies.groups.clear();
                copies.done = copies.issued;
                return;
            };
            while copies.groups.len() > left as usize {
                copies.done = copies.groups.pop_front().unwrap_or(copies.issued);
            }
        });
    }

    /// Brings the copies that a thread has issued so far to a meeting, and nothing else.
    pub(super) fn bring_copies(&self, warp: usize, lanes: u32, to: &mut Meeting) {
        for_lanes(lanes, |lane| {
            let thread = warp * LANES + lane;
            to.view.own.raise_copy(thread, self.copies_of(thread).0);
        });
    }

    fn snapshot(&self, warp: usize, lane: usize) -> Snapshot {
        let thread = warp * LANES + lane;
        let own = Some((thread, self.warps[warp].epoch, self.copies_of(thread).1));
        let state = &self.warps[warp];
        let view = state.split.as_ref().map_or(&state.view, |split| &split[lane]);
        Snapshot { view: Arc::clone(view), own }
    }

    fn half(&mut self, warp: usize, lane: usize) -> &mut Half {
        if self.halves.is_empty() {
            self.halves.resize(self.warps.len() * LANES, Half::default());
        }
        self.warps[warp].fenced = true;
        &mut self.halves[warp * LANES + lane]
    }

    /// What relaxed reads have found becomes known.
    fn settle(&mut self, warp: usize, lanes: u32) {
        if !self.warps[warp].fenced {
            return;
        }
        for_lanes(lanes, |lane| {
            if let Some(pending) = self.halves[warp * LANES + lane].pending.take() {
                self.update(warp, 1 << lane, |view| view.join(&pending));
            }
        });
    }

    /// Gives lanes a view that contains what they know.
    fn replace(&mut self, warp: usize, lanes: u32, view: &Arc<View>) {
        let state = &mut self.warps[warp];
        if lanes & state.live == state.live {
            state.view = Arc::clone(view);
            state.split = None;
            state.floor = view.own.floor;
            return;
        }
        let split = split(state);
        for_lanes(lanes, |lane| split[lane] = Arc::clone(view));
        self.unite(warp);
    }

    /// Changes what lanes know.
    fn update(&mut self, warp: usize, lanes: u32, change: impl Fn(&mut View)) {
        let state = &mut self.warps[warp];
        if lanes & state.live == state.live && state.split.is_none() {
            change(Arc::make_mut(&mut state.view));
            state.floor = state.view.own.floor;
            return;
        }
        let mut changed: Vec<(Arc<View>, Arc<View>)> = Vec::new();
        let split = split(state);
        for_lanes(lanes, |lane| {
            if let Some((_, new)) = changed.iter().find(|(old, _)| Arc::ptr_eq(old, &split[lane])) {
                split[lane] = Arc::clone(new);
                return;
            }
            let old = Arc::clone(&split[lane]);
            change(Arc::make_mut(&mut split[lane]));
            changed.push((old, Arc::clone(&split[lane])));
        });
        self.unite(warp);
    }

    /// Finds out whether all lanes that are left know the same, and the floor.
    fn unite(&mut self, warp: usize) {
        let state = &mut self.warps[warp];
        let (Some(split), true) = (&state.split, state.live != 0) else { return };
        let first = &split[state.live.trailing_zeros() as usize];
        let (mut same, mut floor) = (true, u32::MAX);
        for_lanes(state.live, |lane| {
            same &= Arc::ptr_eq(first, &split[lane]);
            floor = floor.min(split[lane].own.floor);
        });
        state.floor = floor;
        if same {
            state.view = Arc::clone(first);
            state.split = None;
        }
    }
}

fn split(state: &mut Warp) -> &mut [Arc<View>; LANES] {
    let view = &state.view;
    state.split.get_or_insert_with(|| Box::new(std::array::from_fn(|_| Arc::clone(view))))
}

fn join_fence(mine: &mut Option<Snapshot>, theirs: &Option<View>) {
    let Some(theirs) = theirs else { return };
    let mut view = mine.as_ref().map(Snapshot::to_view).unwrap_or_default();
    view.join(theirs);
    *mine = Some(Snapshot { view: Arc::new(view), own: None });
}

fn acquires(order: Order) -> bool {
    matches!(order, Order::Acquire | Order::AcqRel | Order::Sc)
}

fn is_wide(scope: Scope) -> bool {
    matches!(scope, Scope::Gpu | Scope::Sys)
}
