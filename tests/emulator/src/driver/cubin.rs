//! Reads the register counts out of a CUBIN: it cannot run here, but what the compiler made of its kernels is known.
//!
//! A CUBIN is an ELF file; its section `.nv.info` has a list of entries: format, attribute, size, and for the attribute
//! "register count" the index of a kernel's symbol and the number.

use super::host;

/// "Register count" in `.nv.info`.
const REGISTER_COUNT: u8 = 0x2F;
/// The format of entries whose size follows.
const SIZED: u8 = 0x04;
/// Parts of an image that are larger than this are not looked at.
const LARGEST: u64 = 1 << 24;

/// Returns the name and the registers of a thread of each kernel of an image in memory; nothing if it makes no sense. How
/// long the image is, nobody says: only what its headers point to is read.
pub fn registers_at(image: u64) -> Vec<(String, u32)> {
    let read = |at: u64, bytes: u64| {
        let mut part = vec![0; Some(bytes).filter(|bytes| *bytes <= LARGEST)? as usize];
        host::read(image.checked_add(at)?, &mut part).ok().map(|()| part)
    };
    registers(read).unwrap_or_default()
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

struct Section {
    name: usize,
    kind: u64,
    start: u64,
    bytes: u64,
}

fn section(header: &[u8]) -> Option<Section> {
    let (name, kind) = (number(header, 0, 4)? as usize, number(header, 4, 4)?);
    Some(Section { name, kind, start: number(header, 24, 8)?, bytes: number(header, 32, 8)? })
}

/// `read` returns so many bytes of the image from an offset, if they are there.
fn registers(read: impl Fn(u64, u64) -> Option<Vec<u8>>) -> Option<Vec<(String, u32)>> {
    let header = read(0, 64)?;
    let (size, count) = (number(&header, 58, 2)?, number(&header, 60, 2)?);
    let table = read(number(&header, 40, 8)?, size * count)?;
    let sections: Option<Vec<Section>> = table.chunks(size.max(1) as usize).map(section).collect();
    let sections = sections?;
    let contents = |section: &Section| read(section.start, section.bytes);
    let names = contents(sections.get(number(&header, 62, 2)? as usize)?)?;
    let find = |wanted: &str| sections.iter().find(|section| name(&names, section.name) == Some(wanted));
    let (info, symbols) = (contents(find(".nv.info")?)?, find(".symtab")?);
    if symbols.kind != 2 {
        return None;
    }
    let (symbols, strings) = (contents(symbols)?, contents(find(".strtab")?)?);
    let (mut found, mut at) = (Vec::new(), 0);
    while let (Some(format), Some(attribute)) = (info.get(at), info.get(at + 1)) {
        let size = if *format == SIZED { number(&info, at + 2, 2)? as usize } else { 0 };
        if (*format, *attribute, size) == (SIZED, REGISTER_COUNT, 8) {
            let symbol = number(&info, at + 4, 4)? as usize;
            let text = number(&symbols, symbol.checked_mul(24)?, 4)? as usize;
            let kernel = name(&strings, text)?.to_owned();
            found.push((kernel, number(&info, at + 8, 4)? as u32));
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
        let registers = |bytes: Vec<u8>| {
            registers(|at, size| Some(bytes.get(at as usize..)?.get(..size as usize)?.to_vec()))
        };
        let mut header = vec![0; 64];
        header[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        (header[58], header[60]) = (64, 1);
        for bytes in [vec![], vec![0x7F; 64], vec![0xFF; 4096], header] {
            assert_eq!(registers(bytes), None);
        }
    }
}
