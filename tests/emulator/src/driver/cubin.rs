//! Reads the register counts out of a CUBIN: it cannot run here, but what the compiler made of its kernels is known.
//!
//! A CUBIN is an ELF file; its section `.nv.info` has a list of entries: format, attribute, size, and for the attribute
//! "register count" the index of a kernel's symbol and the number.

use super::host;

/// "Register count" in `.nv.info`.
const REGISTER_COUNT: u8 = 0x2F;
/// The format of entries whose size follows.
const SIZED: u8 = 0x04;
/// Larger images are not looked at.
const LARGEST: u64 = 1 << 28;

/// Returns the name and the registers of a thread of each kernel of an image in memory; nothing if it makes no sense.
pub fn registers_at(image: u64) -> Vec<(String, u32)> {
    let mut header = [0; 64];
    if host::read(image, &mut header).is_err() {
        return Vec::new();
    }
    let Some(size) = end_of_sections(&header).filter(|size| (64..=LARGEST).contains(size)) else {
        return Vec::new();
    };
    let mut bytes = vec![0; size as usize];
    match host::read(image, &mut bytes) {
        Ok(()) => registers(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// Section headers come last in the files that the compiler writes, or program headers after them.
fn end_of_sections(header: &[u8]) -> Option<u64> {
    let end = |at: u64, size: u64, count: u64| at.checked_add(size.checked_mul(count)?);
    let sections = end(number(header, 40, 8)?, number(header, 58, 2)?, number(header, 60, 2)?)?;
    let segments = end(number(header, 32, 8)?, number(header, 54, 2)?, number(header, 56, 2)?)?;
    Some(sections.max(segments))
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn name(strings: &[u8], at: usize) -> Option<&str> {
    let text = strings.get(at..)?;
    let length = text.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&text[..length]).ok()
}

struct Section<'a> {
    name: usize,
    kind: u64,
    bytes: &'a [u8],
}

fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    let (start, size, count) =
        (number(bytes, 40, 8)? as usize, number(bytes, 58, 2)? as usize, number(bytes, 60, 2)?);
    let section = |i: u64| {
        let at = start.checked_add(size.checked_mul(i as usize)?)?;
        let (from, length) = (number(bytes, at + 24, 8)? as usize, number(bytes, at + 32, 8)? as usize);
        let contents = bytes.get(from..from.checked_add(length)?).unwrap_or_default();
        Some(Section {
            name: number(bytes, at, 4)? as usize,
            kind: number(bytes, at + 4, 4)?,
            bytes: contents,
        })
    };
    (0..count).map(section).collect()
}

fn registers(bytes: &[u8]) -> Option<Vec<(String, u32)>> {
    let sections = sections(bytes)?;
    let names = sections.get(number(bytes, 62, 2)? as usize)?.bytes;
    let find = |wanted: &str| sections.iter().find(|section| name(names, section.name) == Some(wanted));
    let (info, symbols, strings) = (find(".nv.info")?, find(".symtab")?, find(".strtab")?);
    if symbols.kind != 2 {
        return None;
    }
    let (mut found, mut at) = (Vec::new(), 0);
    while let (Some(format), Some(attribute)) = (info.bytes.get(at), info.bytes.get(at + 1)) {
        let size = if *format == SIZED { number(info.bytes, at + 2, 2)? as usize } else { 0 };
        if (*format, *attribute, size) == (SIZED, REGISTER_COUNT, 8) {
            let symbol = number(info.bytes, at + 4, 4)? as usize;
            let text = number(symbols.bytes, symbol.checked_mul(24)?, 4)? as usize;
            let kernel = name(strings.bytes, text)?.to_owned();
            found.push((kernel, number(info.bytes, at + 8, 4)? as u32));
        }
        at += 4 + size;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_has_no_registers() {
        for bytes in [vec![], vec![0x7F; 64], vec![0xFF; 4096]] {
            assert_eq!(registers(&bytes), None);
        }
        let mut header = vec![0; 64];
        header[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        header[58] = 64;
        header[60] = 1;
        assert_eq!(end_of_sections(&header), None);
        assert_eq!(registers(&header), None);
    }
}
