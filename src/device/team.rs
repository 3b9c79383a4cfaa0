//! A team of threads for work of microseconds: the operations of a training step, a hundred of them one after the other.
//!
//! A general pool puts its threads to sleep between two operations and pays several microseconds to wake them, as long
//! as a small operation takes. Here a worker looks out for the next job for some microseconds before it sleeps, and the
//! caller works too. Who takes which task is not fixed; what a task computes is, so results do not depend on it.
//!
//! Each thread has a share of the tasks, the same neighbours in every job: the rows that it wrote in one operation are in
//! its own cache for the next. When it is done with them it helps the others. One word says all about a share: the number of
//! the job, its end, and the next task. Who takes a task counts that word up, so it can never take one of a job that has
//! ended, and nobody has to wait for workers that slept through a job.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Bits of the end of a share, and of its next task.
const TASK_BITS: u32 = 20;
/// The most tasks of a job; larger ones hand out several at a time.
const MOST: usize = (1 << TASK_BITS) - 1;
/// How long a worker looks out before it sleeps: longer than the serial stretches of a training step.
const LOOK_OUT: Duration = Duration::from_micros(60);
/// Looks between two glances at the clock.
const LOOKS: u32 = 64;

thread_local! {
    /// Whether this thread is at a task: jobs that it starts then run here and now.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// A team of threads; the one that calls is a member.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    /// The share of each thread, the caller's first.
    shares: Vec<Share>,
    /// The current job: valid for whoever has taken a task of it, until that task is counted in `done`.
    job: Mutex<Option<Job>>,
    done: AtomicUsize,
    asleep: Vec<AtomicBool>,
    leave: AtomicBool,
    /// Held by the thread whose job it is.
    busy: Mutex<()>,
    /// What a task panicked with.
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Number of the job << 2·TASK_BITS | end << TASK_BITS | next task, on cache lines of its own.
#[repr(align(128))]
struct Share(AtomicU64);

/// A borrowed closure whose borrow the type does not show.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
}

// SAFETY: the closure is `Sync`, and `Team::run` does not return before every task of it is done.
unsafe impl Send for Job {}

impl Team {
    /// Starts `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            shares: (0..=helpers).map(|_| Share(AtomicU64::new(0))).collect(),
            job: Mutex::new(None),
            done: AtomicUsize::new(0),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            leave: AtomicBool::new(false),
            busy: Mutex::new(()),
            panicked: Mutex::new(None),
        });
        let mut team = Self { shared, workers: Vec::with_capacity(helpers) };
        for me in 0..helpers {
            let shared = team.shared.clone();
            let builder = std::thread::Builder::new().name(format!("flowprior-{}", me + 1));
            let handle = builder.spawn(move || shared.work(me))?;
            team.workers.push(Worker { thread: handle.thread().clone(), handle: Some(handle) });
        }
        Ok(team)
    }

    /// Returns the number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` for 0 .. `tasks`, by all threads together. Inside a task, or while another thread's job is under way,
    /// the caller does all of it.
    pub(crate) fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        let mine = AT_WORK.get() || tasks < 2 || self.workers.is_empty();
        let turn = if mine { None } else { self.shared.busy.try_lock().ok() };
        let Some(_turn) = turn else {
            (0..tasks).for_each(f);
            return;
        };
        let each = tasks.div_ceil(MOST);
        self.together(tasks.div_ceil(each), &|part| {
            (part * each..tasks.min((part + 1) * each)).for_each(&f);
        });
    }

    fn together(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by those who have taken a task of this job, and this
        // function does not return, by unwinding neither, before all tasks are done.
        let run =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(Job { run });
        shared.done.store(0, Ordering::Relaxed);
        let threads = shared.shares.len();
        for (i, share) in shared.shares.iter().enumerate() {
            let (start, end) = (i * tasks / threads, (i + 1) * tasks / threads);
            let number = (share.0.load(Ordering::Relaxed) >> (2 * TASK_BITS)) + 1;
            // Sequentially consistent, as is the worker's look after it has said that it sleeps: one of them sees the other.
            let word = (number << TASK_BITS | end as u64) << TASK_BITS | start as u64;
            share.0.store(word, Ordering::SeqCst);
        }
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep).take(tasks - 1) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        shared.perform(0, || Some(Job { run }));
        let mut looks = 0u32;
        while shared.done.load(Ordering::Acquire) < tasks {
            looks += 1;
            // The others are at their last task; on a crowded machine they may need this processor for it.
            if looks.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panicked = shared.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                let _ended = handle.join();
            }
        }
    }
}

impl Shared {
    /// Takes the next task of the current job: of the share of thread `me`, then of the others'.
    fn take(&self, me: usize) -> Option<usize> {
        let (before, from_me) = self.shares.split_at(me);
        from_me.iter().chain(before).find_map(Share::take)
    }

    /// Does all tasks that thread `me` can get of the current job, and counts them as done.
    fn perform(&self, me: usize, job: impl FnOnce() -> Option<Job>) {
        let Some(mut task) = self.take(me) else { return };
        // All tasks are of one job: it does not end before this thread has counted its own.
        let Some(job) = job() else { return };
        // SAFETY: this thread has taken a task of the job, so `Team::together` waits until it is counted as done.
        let run = unsafe { &*job.run };
        AT_WORK.set(true);
        let mut done = 0;
        loop {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(task))) {
                self.panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            done += 1;
            match self.take(me) {
                Some(next) => task = next,
                None => break,
            }
        }
        AT_WORK.set(false);
        self.done.fetch_add(done, Ordering::Release);
    }

    /// The life of a worker.
    fn work(&self, me: usize) {
        while !self.leave.load(Ordering::SeqCst) {
            self.perform(me + 1, || *self.job.lock().unwrap_or_else(PoisonError::into_inner));
            if !self.look_out() {
                self.sleep(me);
            }
        }
    }

    fn has_tasks(&self) -> bool {
        self.shares.iter().any(Share::has_tasks)
    }

    /// Waits for tasks for a moment; returns whether there are some.
    fn look_out(&self) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.has_tasks() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if begun.elapsed() > LOOK_OUT {
                return false;
            }
        }
    }

    fn sleep(&self, me: usize) {
        self.asleep[me].store(true, Ordering::SeqCst);
        while self.asleep[me].load(Ordering::SeqCst)
            && !self.has_tasks()
            && !self.leave.load(Ordering::SeqCst)
        {
            std::thread::park();
        }
        self.asleep[me].store(false, Ordering::SeqCst);
    }
}

impl Share {
    fn has_tasks(&self) -> bool {
        let word = self.0.load(Ordering::SeqCst);
        word & (MOST as u64) < word >> TASK_BITS & MOST as u64
    }

    fn take(&self) -> Option<usize> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let (end, next) = (word >> TASK_BITS & MOST as u64, word & MOST as u64);
            if next >= end {
                return None;
            }
            match self.0.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(next as usize),
                Err(now) => word = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        let team = Team::new(3).unwrap();
        for tasks in [0, 1, 2, 3, 7, 1000, MOST + 5] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            team.run(tasks, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{tasks}");
        }
    }

    #[test]
    fn jobs_follow_each_other_at_once_and_after_a_sleep() {
        let team = Team::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            team.run(5, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            if round % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(sum.into_inner(), 20_000 * 10);
    }

    #[test]
    fn jobs_inside_tasks_and_from_several_threads_are_done() {
        let team = Team::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        let job = || {
            team.run(50, |_| {
                team.run(10, |i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            });
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(job))));
        assert_eq!(sum.into_inner(), 3 * 50 * 45);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_tasks_and_the_team_works_on() {
        let team = Team::new(2).unwrap();
        let done = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.run(100, |i| {
                assert_ne!(i, 40, "task forty");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(caught.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 99);
        team.run(2, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 101);
    }
}
