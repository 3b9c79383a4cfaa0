//! TensorBoard event files: records of protobuf messages, written by hand.
//!
//! A record is `length: u64 | mask(crc32c(length)): u32 | message | mask(crc32c(message)): u32`, little-endian, with
//! mask(c) = ((c >> 15) | (c << 17)) + 0xa282ead8 (TensorFlow's `record_writer` and `crc32c.h`). A message is `Event`
//! of `event.proto`: 1 wall_time (double), 2 step (int64), 3 file_version (string), 5 summary, 7 session_log; `Summary`
//! repeats 1 value, `Summary.Value` has 1 tag (string) and 2 simple_value (float); `SessionLog` has 1 status.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const MASK_DELTA: u32 = 0xa282_ead8;
/// `SessionLog.START`: readers drop what they have of this step and later ones.
const SESSION_START: u64 = 1;

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Creates a new event file in `dir`. Steps from `first_step` on that older files of the folder may hold are void.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn create(dir: &Path, first_step: u64) -> Result<Self> {
        let (path, file) = create_unused(dir)?;
        let mut events = Self { path, file: BufWriter::new(file) };
        let mut version = header(0);
        field_bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        let mut start = header(first_step);
        field_bytes(&mut start, 7, &field_varint(1, SESSION_START));
        events.record(&start)?;
        events.flush()?;
        Ok(events)
    }

    /// Writes one scalar.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<()> {
        let mut one = Vec::new();
        field_bytes(&mut one, 1, tag.as_bytes());
        key(&mut one, 2, 5);
        one.extend(value.to_le_bytes());
        let mut summary = Vec::new();
        field_bytes(&mut summary, 1, &one);
        let mut event = header(step);
        field_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands what was written to the system, so that a kill loses nothing.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path, "write"))
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        for part in [&length, &masked(&length)[..], message, &masked(message)] {
            self.file.write_all(part).map_err(Error::io(&self.path, "write"))?;
        }
        Ok(())
    }
}

/// Finds a name that sorts after those of earlier sessions and is not taken.
fn create_unused(dir: &Path) -> Result<(PathBuf, File)> {
    let mut count = 0;
    loop {
        let name =
            format!("events.out.tfevents.{:010}.{}.{count}.flowprior", now() as u64, std::process::id());
        let path = dir.join(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
            Err(e) => return Err(Error::io(&path, "create")(e)),
        }
    }
}

/// Returns the seconds since 1970; 0 with a clock before that.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(MASK_DELTA).to_le_bytes()
}

/// Begins an event with time and step.
fn header(step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, 1);
    event.extend(now().to_le_bytes());
    event.extend(field_varint(2, step));
    event
}

fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn field_varint(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    key(&mut out, field, 0);
    varint(&mut out, value);
    out
}

fn field_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

    /// Splits a file into messages, checking every length and checksum.
    fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let n = length.iter().rev().fold(0usize, |n, b| n << 8 | *b as usize);
            assert_eq!(rest[..4], masked(length));
            let (message, rest) = rest[4..].split_at(n);
            assert_eq!(rest[..4], masked(message));
            found.push(message.to_vec());
            bytes = &rest[4..];
        }
        found
    }

    #[test]
    fn checksum_and_mask_are_the_published_ones() {
        // RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 8a9136aa.
        // Rotated right by 15 bits: 6d551522; plus the mask's a282ead8:
        assert_eq!(masked(&[0; 32]), 0x0fd7_fffa_u32.to_le_bytes());
    }

    #[test]
    fn varints_are_those_of_the_protobuf_guide() {
        for (value, bytes) in [(0, vec![0]), (1, vec![1]), (150, vec![0x96, 0x01]), (300, vec![0xac, 0x02])] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, bytes);
        }
        let mut out = Vec::new();
        varint(&mut out, u64::MAX);
        assert_eq!(out.len(), 10);
    }

    #[test]
    fn a_file_holds_its_version_the_session_start_and_each_scalar() -> Outcome {
        let dir = tempfile::tempdir()?;
        let mut events = EventFile::create(dir.path(), 301)?;
        events.scalar("train/loss", 300, 1.5)?;
        events.flush()?;
        let messages = messages(&std::fs::read(&events.path)?);
        // Each begins with field 1, a double, and field 2, the step.
        assert!(messages.iter().all(|m| m[0] == 0x09 && m[9] == 0x10));
        assert_eq!(messages[0][10..], [b"\x00\x1a\x0d".as_slice(), b"brain.Event:2"].concat());
        assert_eq!(messages[1][10..], [0xad, 0x02, 0x3a, 0x02, 0x08, 0x01]);
        // summary { value { tag: "train/loss" simple_value: 1.5 } }; 1.5f32 is 0x3fc00000
        let value = [b"\x0a\x0atrain/loss".as_slice(), &[0x15, 0, 0, 0xc0, 0x3f]].concat();
        assert_eq!(messages[2][10..], [b"\xac\x02\x2a\x13\x0a\x11".as_slice(), &value].concat());
        assert_eq!(messages.len(), 3);
        Ok(())
    }

    #[test]
    fn two_sessions_in_one_second_get_two_files() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (a, b) = (EventFile::create(dir.path(), 1)?, EventFile::create(dir.path(), 1)?);
        assert_ne!(a.path, b.path);
        Ok(())
    }
}
