//! What the driver tells: one line for each fault on stderr or in the report file, findings of the checks, and the counters
//! of each launch as JSON lines.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use crate::report::Report;

/// Findings that are kept for programs that ask for them; more are counted only.
const KEPT: usize = 10_000;

#[derive(Default)]
struct Journal {
    report: Option<File>,
    counters: Option<File>,
    findings: Vec<Report>,
    count: u64,
}

static JOURNAL: Mutex<Option<Journal>> = Mutex::new(None);

fn journal() -> MutexGuard<'static, Option<Journal>> {
    JOURNAL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Opens the files; an empty path means stderr for reports, and nothing for counters.
pub fn open(report: &str, counters: &str) -> std::io::Result<()> {
    let append = |path: &str| -> std::io::Result<Option<File>> {
        match path {
            "" => Ok(None),
            path => OpenOptions::new().create(true).append(true).open(path).map(Some),
        }
    };
    let (report, counters) = (append(report)?, append(counters)?);
    *journal() = Some(Journal { report, counters, ..Journal::default() });
    Ok(())
}

/// Writes a line.
pub fn tell(line: &str) {
    let line = format!("cuda-emulator: {line}\n");
    let written = match journal().as_mut().and_then(|j| j.report.as_mut()) {
        Some(file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
    // Nowhere is left to say that stderr or the report file is closed.
    drop(written);
}

/// Writes and keeps a finding.
pub fn finding(report: &Report) {
    tell(&report.to_string());
    let mut journal = journal();
    let journal = journal.get_or_insert_default();
    journal.count += 1;
    if journal.findings.len() < KEPT {
        journal.findings.push(report.clone());
    }
}

/// Returns the number of findings so far.
pub fn finding_count() -> u64 {
    journal().as_ref().map_or(0, |j| j.count)
}

/// Returns a finding that was kept.
pub fn finding_at(index: usize) -> Option<Report> {
    journal().as_ref().and_then(|j| j.findings.get(index).cloned())
}

/// Forgets the findings.
pub fn clear_findings() {
    if let Some(journal) = journal().as_mut() {
        journal.findings.clear();
        journal.count = 0;
    }
}

/// Returns whether counters are wanted.
pub fn wants_counters() -> bool {
    journal().as_ref().is_some_and(|j| j.counters.is_some())
}

/// Writes what a copy or a fill reads and writes of device memory, if counters are wanted.
pub fn moved(what: &str, [read, written]: [u64; 2]) {
    if wants_counters() {
        counters(&serde_json::json!({ "moved": what, "bytes_read": read, "bytes_written": written }));
    }
}

/// Writes the counters of a launch as a line of JSON.
pub fn counters(line: &serde_json::Value) {
    let failed = match journal().as_mut().and_then(|j| j.counters.as_mut()) {
        Some(file) => file.write_all(format!("{line}\n").as_bytes()).is_err(),
        None => false,
    };
    if failed {
        tell("the file of counters cannot be written");
    }
}
