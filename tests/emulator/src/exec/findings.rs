//! Collects what the checks of one launch found.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::program::Program;
use crate::report::{Kind, Report};

/// A thread, in words of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// blockIdx.
    pub block: [u32; 3],
    /// threadIdx.
    pub thread: [u32; 3],
    /// Index of the instruction.
    pub pc: u32,
}

/// Findings of a launch: one for each kind and PTX line, and no more than a limit.
#[derive(Debug)]
pub struct Findings {
    limit: usize,
    stop: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    reports: Vec<Report>,
    seen: HashSet<(Kind, u32)>,
}

impl Findings {
    /// Makes an empty collection.
    pub fn new(limit: usize) -> Self {
        Self { limit, stop: AtomicBool::new(false), found: Mutex::new(Found::default()) }
    }

    /// Returns whether the launch has failed and must end.
    #[inline(always)]
    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Adds a finding; one that is an error on a device ends the launch. The message is only made if it is kept.
    pub fn add(&self, program: &Program, kind: Kind, place: Place, message: impl FnOnce() -> String) {
        let fatal = kind.cuda_error().is_some();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let line = program.line(place.pc);
        // A failed launch has one cause: what other blocks run into while it ends is left out.
        let full = found.reports.len() >= self.limit && !fatal;
        let late = fatal && self.stopped();
        if !(full || late) && found.seen.insert((kind, line)) {
            found.reports.push(Report {
                kind,
                kernel: program.kernel.name.clone(),
                block: place.block,
                thread: place.thread,
                ptx_line: line,
                source: program.source(place.pc),
                message: message(),
            });
        }
        if fatal {
            self.stop.store(true, Relaxed);
        }
    }

    /// Returns all findings in the order of their making.
    pub fn into_reports(self) -> Vec<Report> {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner).reports
    }
}
