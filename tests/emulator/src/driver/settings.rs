//! Settings: environment variables `CUDA_EMULATOR_*`, read once, and the same names as options of `cuEmulatorSetOption`.

use super::architecture::Architecture;
use super::codes::{Code, Result};

/// When queued work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// As late as the program allows: when it waits, or asks.
    Late,
    /// By a thread of its own, as soon as it can be.
    Worker,
    /// Before the call returns.
    Immediate,
}

/// When pageable host memory is read and written by asynchronous copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pageable {
    /// Read before the call returns; a copy to it is waited for. What drivers do, and what cudarc relies on.
    Staged,
    /// When the copy is done: what the documentation permits ("might be synchronous").
    Late,
}

/// What happens on findings that a real device does not notice: races, reads of bytes never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Findings {
    /// They are told, and the program goes on.
    Report,
    /// The launch fails with 719.
    Fail,
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The emulated device.
    pub device: &'static Architecture,
    /// Bytes of its memory.
    pub memory: u64,
    /// What `cuDriverGetVersion` says; decides which `.version` of PTX is too new.
    pub driver: u32,
    /// Of every choice that is free: order of streams, warps, atomics.
    pub seed: u64,
    /// Threads that run blocks; 0: as many as the machine has.
    pub threads: usize,
    /// Warps in order rather than by the seed.
    pub ordered: bool,
    /// Names of checks: see the README.
    pub checks: Vec<String>,
    /// Approximate functions with errors up to the bound of the ISA.
    pub perturbed: bool,
    /// Sums of tensor cores cut as on hardware.
    pub truncating: bool,
    /// See [`Queue`].
    pub queue: Queue,
    /// See [`Pageable`].
    pub pageable: Pageable,
    /// See [`Findings`].
    pub findings: Findings,
    /// Blocks that are run at either end of a grid; none: all.
    pub ends: Option<u64>,
    /// Registers of a thread where nothing says better.
    pub registers: u32,
    /// File of fault lines and findings; empty: stderr.
    pub report: String,
    /// File of counters; empty: none.
    pub counters: String,
}

/// Names of the settings, in the order of the README.
pub const NAMES: &[&str] = &[
    "device",
    "memory",
    "driver",
    "seed",
    "threads",
    "schedule",
    "checks",
    "approx",
    "tensor",
    "queue",
    "pageable",
    "findings",
    "blocks",
    "registers",
    "report",
    "counters",
];

/// Names of the checks that `checks` takes.
pub const CHECKS: &[&str] = &["races", "uninitialised"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            device: Architecture::baseline(),
            memory: 8 << 30,
            driver: 13000,
            seed: 0,
            threads: 0,
            ordered: false,
            checks: CHECKS.iter().map(|c| c.to_string()).collect(),
            perturbed: false,
            truncating: false,
            queue: Queue::Late,
            pageable: Pageable::Staged,
            findings: Findings::Report,
            ends: None,
            registers: 32,
            report: String::new(),
            counters: String::new(),
        }
    }
}

impl Settings {
    /// Reads the environment; a wrong value is an error that names the variable.
    pub fn from_environment() -> Result<Self> {
        let mut settings = Self::default();
        for name in NAMES {
            let variable = format!("CUDA_EMULATOR_{}", name.to_uppercase());
            match std::env::var(&variable) {
                Ok(value) => settings
                    .set(name, &value)
                    .map_err(|failure| failure.code.because(format!("{variable}: {}", failure.message)))?,
                Err(std::env::VarError::NotPresent) => {}
                Err(e) => return Err(Code::INVALID_VALUE.because(format!("{variable}: {e}"))),
            }
        }
        Ok(settings)
    }

    /// Sets one by its name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "device" => self.device = Architecture::named(value)?,
            "memory" => self.memory = bytes(value)?,
            "driver" => self.driver = driver_version(value)?,
            "seed" => self.seed = number(value)?,
            "threads" => self.threads = number::<u16>(value)?.into(),
            "schedule" => self.ordered = choice(value, &[("ordered", true), ("seeded", false)])?,
            "checks" => self.checks = checks(value)?,
            "approx" => self.perturbed = choice(value, &[("perturbed", true), ("rounded", false)])?,
            "tensor" => self.truncating = choice(value, &[("truncating", true), ("ordered", false)])?,
            "queue" => {
                let modes =
                    [("late", Queue::Late), ("worker", Queue::Worker), ("immediate", Queue::Immediate)];
                self.queue = choice(value, &modes)?;
            }
            "pageable" => {
                self.pageable = choice(value, &[("staged", Pageable::Staged), ("late", Pageable::Late)])?;
            }
            "findings" => {
                self.findings = choice(value, &[("report", Findings::Report), ("fail", Findings::Fail)])?;
            }
            "blocks" => {
                self.ends = match value {
                    "all" => None,
                    count => Some(number::<u64>(count)?.max(1)),
                }
            }
            "registers" => self.registers = number::<u32>(value)?.clamp(16, 255),
            "report" => self.report = value.to_owned(),
            "counters" => self.counters = value.to_owned(),
            _ => {
                let known = NAMES.join(", ");
                return Err(Code::INVALID_VALUE.because(format!("no option `{name}`; there are {known}")));
            }
        }
        Ok(())
    }

    /// Returns the newest `.version` of PTX that a driver of this version takes.
    pub fn newest_ptx(&self) -> (u32, u32) {
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        match (major, minor) {
            (12, 0..=5) => (8, minor),
            (12, 6) => (8, 5),
            (12, 7) => (8, 6),
            (12, 8) => (8, 7),
            (12, _) => (8, 8),
            _ => (9, minor),
        }
    }
}

fn wrong(value: &str, expected: &str) -> super::codes::Failure {
    Code::INVALID_VALUE.because(format!("expected {expected}, found `{value}`"))
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| wrong(value, "a number"))
}

fn choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T> {
    let found = choices.iter().find(|(name, _)| *name == value.trim());
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    found.map(|(_, choice)| *choice).ok_or_else(|| wrong(value, &names.join(" or ")))
}

fn bytes(value: &str) -> Result<u64> {
    let text = value.trim();
    let (digits, shift) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 10),
        Some('m' | 'M') => (&text[..text.len() - 1], 20),
        Some('g' | 'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let count: u64 = digits.parse().map_err(|_| wrong(value, "bytes, as 512M or 8G"))?;
    match count.checked_mul(1 << shift) {
        Some(bytes) if (1 << 20..=1 << 40).contains(&bytes) => Ok(bytes),
        _ => Err(wrong(value, "between 1M and 1024G")),
    }
}

fn driver_version(value: &str) -> Result<u32> {
    let version = number(value)?;
    match (12000..=13990).contains(&version) && version % 10 == 0 {
        true => Ok(version),
        false => Err(wrong(value, "a driver version between 12000 and 13990, as 13000 for CUDA 13.0")),
    }
}

fn checks(value: &str) -> Result<Vec<String>> {
    match value.trim() {
        "all" => return Ok(CHECKS.iter().map(|c| c.to_string()).collect()),
        "none" => return Ok(Vec::new()),
        _ => {}
    }
    let names = value.split(',').map(|name| name.trim().to_owned());
    names
        .map(|name| match CHECKS.contains(&name.as_str()) {
            true => Ok(name),
            false => Err(wrong(&name, &format!("all, none, or a list of {}", CHECKS.join(", ")))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_list_is_an_option_and_others_are_refused() {
        for name in NAMES {
            let refusal = Settings::default().set(name, "\u{1}nonsense").err().map(|f| f.message);
            assert!(!refusal.unwrap_or_default().contains("no option"), "{name}");
        }
        let refusal = Settings::default().set("sede", "1").unwrap_err();
        assert!(refusal.message.contains("no option `sede`"), "{}", refusal.message);
    }

    #[test]
    fn sizes_take_suffixes_and_limits() {
        let mut settings = Settings::default();
        settings.set("memory", "512M").unwrap();
        assert_eq!(settings.memory, 512 << 20);
        for wrong in ["", "0", "G", "1Q", "99999999999999999999G", "-1G", "2048G"] {
            assert!(settings.set("memory", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_driver_takes_the_ptx_of_its_own_toolkit() {
        let mut settings = Settings::default();
        for (driver, ptx) in
            [("12000", (8, 0)), ("12060", (8, 5)), ("12090", (8, 8)), ("13000", (9, 0)), ("13050", (9, 5))]
        {
            settings.set("driver", driver).unwrap();
            assert_eq!(settings.newest_ptx(), ptx, "{driver}");
        }
    }
}
