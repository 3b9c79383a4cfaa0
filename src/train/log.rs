//! What a run says: `metrics.jsonl`, TensorBoard events, and a progress bar or plain lines on standard error.
//!
//! A record of `metrics.jsonl` is one object on one line: `step` (finished steps), `kind` ("train", "eval", "skipped"),
//! then its values, then the wall-clock fields [`WALL_CLOCK`]. Values that are not finite are `null`. Values must be
//! functions of the step alone: then a run that is killed and resumed leaves the same records as an unbroken one, except
//! for the wall-clock fields.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::run_dir::RunDir;
use super::tensorboard::EventFile;
use crate::error::{Error, Result};

/// The fields of a record that differ from one run to the next: seconds in this session, and samples per second since
/// the last record.
pub const WALL_CLOCK: [&str; 2] = ["wall_s", "samples_per_s"];

/// Without a terminal, lines are at least this far apart, but for the first, the last and what must be said.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// A bar on a terminal, lines otherwise.
    Auto,
    /// Lines.
    Plain,
    /// Nowhere.
    Quiet,
}

/// Describes the run to its log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// What is running, for a person: "pretrain toy-grid".
    pub title: String,
    /// Steps of the whole run.
    pub steps: u64,
    /// Samples that a step takes, for the rate.
    pub samples_per_step: u64,
    /// Where progress is shown.
    pub console: Console,
}

/// Writes the log of a run.
#[derive(Debug)]
pub struct Logger {
    options: LogOptions,
    path: PathBuf,
    metrics: File,
    events: EventFile,
    bar: Option<ProgressBar>,
    clock: Clock,
}

/// Measures rates. Nothing of it reaches a value that must repeat.
#[derive(Debug)]
struct Clock {
    begun: Instant,
    first_step: u64,
    last: Instant,
    last_step: u64,
    last_line: Option<Instant>,
}

/// One line of `metrics.jsonl`.
struct Record<'a> {
    step: u64,
    kind: &'a str,
    text: Option<(&'a str, &'a str)>,
    values: &'a [(&'a str, f64)],
    wall: [f64; 2],
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("kind", self.kind)?;
        if let Some((name, text)) = self.text {
            map.serialize_entry(name, text)?;
        }
        for (name, value) in self.values {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in WALL_CLOCK.iter().zip(self.wall) {
            map.serialize_entry(name, &((value * 1e3).round() / 1e3))?;
        }
        map.end()
    }
}

/// Says something before there is a log.
pub fn warn(text: &str, console: Console) {
    if console != Console::Quiet {
        eprintln!("{text}");
    }
}

impl Logger {
    /// Begins the log of a new run.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn create(run: &RunDir, options: LogOptions) -> Result<Self> {
        Self::resume(run, options, 0)
    }

    /// Continues the log of a run after `step` finished steps: records of later steps, and a line that a kill tore, are
    /// cut off.
    ///
    /// # Errors
    /// `Error::Data` for a line before the last one that is no record; `Error::Io`.
    pub fn resume(run: &RunDir, options: LogOptions, step: u64) -> Result<Self> {
        let path = run.metrics_path();
        let kept = kept_length(&path, step)?;
        let open = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = open.map_err(Error::io(&path, "open"))?;
        metrics.set_len(kept).map_err(Error::io(&path, "cut"))?;
        let now = Instant::now();
        let clock = Clock { begun: now, first_step: step, last: now, last_step: step, last_line: None };
        let bar = bar(&options, step);
        Ok(Self { events: EventFile::create(run.root(), step + 1)?, options, path, metrics, bar, clock })
    }

    /// Writes one record of `kind` ("train", "eval") after `step` finished steps, and shows it.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn record(&mut self, kind: &str, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let wall = self.clock.read(step, self.options.samples_per_step);
        self.write(&Record { step, kind, text: None, values, wall })?;
        for (name, value) in values {
            self.events.scalar(&format!("{kind}/{name}"), step, *value as f32)?;
        }
        self.events.flush()?;
        let mut line = String::new();
        for (name, value) in values {
            line.push_str(&format!("{name} {}  ", short(*value)));
        }
        line.push_str(&format!("{} samples/s", thousands(wall[1])));
        self.show(kind, step, &line);
        Ok(())
    }

    /// Names a step that was skipped because its `what` was not finite, with the count so far.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn skipped(&mut self, step: u64, what: &str, total: u64) -> Result<()> {
        let wall = self.clock.peek(step, self.options.samples_per_step);
        let values = [("skipped", total as f64)];
        self.write(&Record { step, kind: "skipped", text: Some(("what", what)), values: &values, wall })?;
        self.note(&format!("step {step} skipped: its {what} is not finite ({total} so far)"));
        Ok(())
    }

    /// Moves the progress bar; cheap enough for every step.
    pub fn progress(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// Says something that is no record.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.options.console == Console::Quiet => {}
            None => eprintln!("{text}"),
        }
    }

    /// Brings all records to the disk: call it after the last record of a step and before its checkpoint, so that a
    /// checkpoint never remembers more than the log.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync_data().map_err(Error::io(&self.path, "flush to disk"))
    }

    /// Ends the log; the bar stays as it is.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn finish(mut self) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
        self.events.flush()?;
        self.sync()
    }

    fn write(&mut self, record: &Record<'_>) -> Result<()> {
        let mut line = serde_json::to_string(record)
            .map_err(|e| Error::data(&self.path, "record", "values that JSON can hold", e))?;
        line.push('\n');
        // One write a line: a kill tears at most the last one.
        self.metrics.write_all(line.as_bytes()).map_err(Error::io(&self.path, "write"))
    }

    fn show(&mut self, kind: &str, step: u64, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(line.to_owned());
            return;
        }
        let steps = self.options.steps;
        let due = kind != "train"
            || step >= steps
            || self.clock.last_line.is_none_or(|l| l.elapsed() >= LINE_EVERY);
        if self.options.console == Console::Quiet || !due {
            return;
        }
        self.clock.last_line = Some(Instant::now());
        let eta = self.clock.eta(step, steps);
        eprintln!("{}  {kind} {step}/{steps}  {line}  eta {}", self.options.title, HumanDuration(eta));
    }
}

impl Clock {
    /// Returns the seconds of this session, and samples per second since the last record, which is now this one.
    fn read(&mut self, step: u64, samples_per_step: u64) -> [f64; 2] {
        let wall = self.peek(step, samples_per_step);
        (self.last, self.last_step) = (Instant::now(), step);
        wall
    }

    fn peek(&self, step: u64, samples_per_step: u64) -> [f64; 2] {
        let samples = step.saturating_sub(self.last_step) * samples_per_step;
        [self.begun.elapsed().as_secs_f64(), samples as f64 / self.last.elapsed().as_secs_f64().max(1e-9)]
    }

    fn eta(&self, step: u64, steps: u64) -> Duration {
        let done = step.saturating_sub(self.first_step).max(1) as f64;
        Duration::from_secs_f64(self.begun.elapsed().as_secs_f64() * steps.saturating_sub(step) as f64 / done)
    }
}

/// Returns the bytes of the records up to `step`; a run that begins anew writes that of step 0 again.
fn kept_length(path: &Path, step: u64) -> Result<u64> {
    if step == 0 || !path.exists() {
        return Ok(0);
    }
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    let mut kept = 0;
    let mut lines = text.split_inclusive(|b| *b == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let record = serde_json::from_slice::<serde_json::Value>(line).ok();
        let at = record.as_ref().and_then(|r| r.get("step")).and_then(serde_json::Value::as_u64);
        match at {
            Some(at) if at <= step && line.ends_with(b"\n") => kept += line.len() as u64,
            Some(_) => return Ok(kept),
            None if lines.peek().is_none() => return Ok(kept),
            None => {
                let found = String::from_utf8_lossy(line).trim_end().chars().take(40).collect::<String>();
                return Err(Error::data(path, format!("line {}", number + 1), "a record with a step", found));
            }
        }
    }
    Ok(kept)
}

fn bar(options: &LogOptions, step: u64) -> Option<ProgressBar> {
    if options.console != Console::Auto || !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(options.steps).with_position(step).with_prefix(options.title.clone());
    let template = "{prefix} {bar:24} {pos}/{len}  {msg}  eta {eta}";
    // The template is a constant; if it were wrong, the default bar would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.reset_eta();
    Some(bar)
}

/// Writes a number in few characters: four decimals, or a power of ten.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if a.fract() == 0.0 && a < 1e6 => format!("{x}"),
        a if (1e-2..1e5).contains(&a) => format!("{x:.4}"),
        _ => format!("{x:.2e}"),
    }
}

/// Writes a rate with separators: 1,234,567.
fn thousands(x: f64) -> String {
    let digits = format!("{x:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Resume;

    type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

    fn options() -> LogOptions {
        LogOptions { title: "test".to_owned(), steps: 100, samples_per_step: 8, console: Console::Quiet }
    }

    fn write(log: &mut Logger, steps: std::ops::RangeInclusive<u64>) -> Result<()> {
        for step in steps.filter(|s| s % 10 == 0) {
            log.record("train", step, &[("loss", 1.0 / step as f64), ("lr", 1e-3)])?;
            if step % 20 == 0 {
                log.skipped(step, "gradient", step / 20)?;
                log.record("eval", step, &[("loss", f64::NAN)])?;
            }
        }
        log.sync()
    }

    /// Reads the records without their wall-clock fields, which must be there.
    fn records(run: &RunDir) -> std::result::Result<Vec<serde_json::Value>, Box<dyn std::error::Error>> {
        let mut all = Vec::new();
        for line in fs::read_to_string(run.metrics_path())?.lines() {
            let mut record: serde_json::Value = serde_json::from_str(line)?;
            let fields = record.as_object_mut().ok_or("no object")?;
            assert!(WALL_CLOCK.iter().all(|name| fields.remove(*name).is_some()));
            all.push(record);
        }
        Ok(all)
    }

    #[test]
    fn a_killed_and_resumed_run_leaves_the_records_of_an_unbroken_one() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (whole, _) = RunDir::start(&dir.path().join("whole"), &Resume::Never)?;
        write(&mut Logger::create(&whole, options())?, 1..=100)?;
        let expected = records(&whole)?;
        assert_eq!(expected.len(), 20);
        for checkpoint in [0, 10, 25, 40, 100] {
            let (run, _) = RunDir::start(&dir.path().join(format!("run-{checkpoint}")), &Resume::Never)?;
            write(&mut Logger::create(&run, options())?, 1..=70)?;
            let torn = OpenOptions::new().append(true).open(run.metrics_path())?;
            (&torn).write_all(b"{\"step\":80,\"kind\":\"tr")?;
            let mut log = Logger::resume(&run, options(), checkpoint)?;
            write(&mut log, checkpoint.min(70) + 1..=100)?;
            assert_eq!(records(&run)?, expected, "resumed at {checkpoint}");
        }
        Ok(())
    }

    #[test]
    fn a_record_has_step_kind_and_values_in_order_and_null_for_nan() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (run, _) = RunDir::start(dir.path(), &Resume::Never)?;
        let mut log = Logger::create(&run, options())?;
        log.record("eval", 20, &[("loss", 1.25), ("area", f64::INFINITY)])?;
        log.skipped(21, "loss", 3)?;
        log.finish()?;
        let text = fs::read_to_string(run.metrics_path())?;
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with(r#"{"step":20,"kind":"eval","loss":1.25,"area":null,"wall_s":"#),
            "{text}"
        );
        assert!(
            lines[1].starts_with(r#"{"step":21,"kind":"skipped","what":"loss","skipped":3.0,"wall_s":"#),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_refused_by_its_number() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (run, _) = RunDir::start(dir.path(), &Resume::Never)?;
        fs::write(run.metrics_path(), "{\"step\":1}\n{\"stp\":2}\n{\"step\":3}\n")?;
        let error = Logger::resume(&run, options(), 3).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let expected = "metrics.jsonl: line 2: expected a record with a step, found {\"stp\":2}";
        assert!(error.to_string().ends_with(expected), "{error}");
        Ok(())
    }

    #[test]
    fn numbers_are_short_for_people() {
        let shown = [0.0, 3.0, 1.274_94, 0.012_345, 1e-3, 123_456.7, f64::NAN].map(short);
        assert_eq!(shown.join(" "), "0 3 1.2749 0.0123 1.00e-3 1.23e5 NaN");
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.0].map(thousands).join(" "), "0 999 1,000 1,234,567");
    }
}
