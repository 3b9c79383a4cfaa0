//! Wrong and hostile texts: a million changed texts never panic, never hang, and never take much memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cuda_emulator::isa::{Module, Op};
use cuda_emulator::lower;

/// Changed texts.
const INPUTS: u64 = 1_000_000;
/// Bytes that one text may take at any time: the texts are a few kilobytes, so this leaves room for all fixed limits.
const MEMORY: usize = 64 << 20;
/// Time for one text; a thousandth of it is typical, the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counts what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters are on the side.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What NVRTC 13.0 makes of the kernels beside them for sm_80, NVRTC 12.9 for sm_100, and a text with every construct.
const TEXTS: [&str; 11] = [
    include_str!("ptx/saxpy.sm_80.ptx"),
    include_str!("ptx/saxpy.sm_100.ptx"),
    include_str!("ptx/reduce.sm_80.ptx"),
    include_str!("ptx/reduce.sm_100.ptx"),
    include_str!("ptx/integers.sm_80.ptx"),
    include_str!("ptx/integers.sm_100.ptx"),
    include_str!("ptx/tiles.sm_80.ptx"),
    include_str!("ptx/tiles.sm_100.ptx"),
    include_str!("ptx/mathematics.sm_80.ptx"),
    include_str!("ptx/mathematics.sm_100.ptx"),
    include_str!("ptx/syntax.ptx"),
];

/// Pieces that are put into texts.
const PIECES: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ";",
    ":",
    "<",
    ">",
    "|",
    "!",
    "@",
    "-",
    "+",
    "_",
    "%",
    ".",
    "/*",
    "//",
    "\"",
    "0x",
    "0f",
    "18446744073709551616",
    "4294967295",
    "-1",
    "0f7F800000",
    "1e999",
    "{{{{{{{{",
    "((((((((",
    "%r1",
    "%rd1",
    "%p1",
    ".reg",
    ".b64",
    ".v4",
    "$L__BB0_1",
    "ret;",
    "[%rd1+99999999999]",
];

/// Characters that are put into texts.
const SIGNS: &[u8] = b" .,;:{}[]()<>%$_@!|+-0123456789abcdefx\n\t\"/*";

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64: the stream of any seed is well mixed from its first value on.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Start and end of a random line.
fn line(text: &[u8], random: &mut Random) -> (usize, usize) {
    let at = random.below(text.len());
    let start = text[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let end = text[at..].iter().position(|&b| b == b'\n').map_or(text.len(), |i| at + i + 1);
    (start, end)
}

/// Start and end of a random token: a run of letters and digits, or one other character.
fn token(text: &[u8], random: &mut Random) -> (usize, usize) {
    let at = random.below(text.len());
    let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%');
    let start = text[..at].iter().rposition(|b| !word(b)).map_or(0, |i| i + 1);
    let end = text[at..].iter().position(|b| !word(b)).map_or(text.len(), |i| at + i);
    if end > start { (start, end) } else { (at, at + 1) }
}

/// Changes a text in one place.
fn change(text: &mut Vec<u8>, random: &mut Random) {
    if text.is_empty() {
        return;
    }
    let at = random.below(text.len());
    let span = match random.below(2) {
        0 => line(text, random),
        _ => token(text, random),
    };
    let other = match random.below(2) {
        0 => line(text, random),
        _ => token(text, random),
    };
    match random.below(12) {
        0 => text[at] = random.next() as u8,
        1 => text[at] ^= 1 << random.below(8),
        2 => drop(text.remove(at)),
        3 => text.insert(at, SIGNS[random.below(SIGNS.len())]),
        4 => drop(text.drain(span.0..span.1)),
        5 => {
            let copy = text[span.0..span.1].to_vec();
            text.splice(other.0..other.0, copy);
        }
        6 | 7 => {
            let copy = text[span.0..span.1].to_vec();
            text.splice(other.0..other.1, copy);
        }
        8 => {
            let piece = PIECES[random.below(PIECES.len())];
            text.splice(span.0..span.1, piece.bytes());
        }
        9 => {
            let from = TEXTS[random.below(TEXTS.len())].as_bytes();
            let (start, end) = line(from, random);
            text.splice(span.0..span.0, from[start..end].iter().copied());
        }
        10 => number(text, random),
        _ => match random.below(8) {
            0 => text.truncate(at),
            1 => {
                let from = TEXTS[random.below(TEXTS.len())].as_bytes();
                let tail = random.below(from.len());
                text.truncate(at);
                text.extend_from_slice(&from[tail..]);
            }
            2 => {
                let copy = text[span.0..span.1].repeat(1 + random.below(60));
                text.splice(span.0..span.0, copy);
            }
            _ => drop(text.splice(other.0..other.1, PIECES[random.below(PIECES.len())].bytes())),
        },
    }
}

/// Replaces a number by one that is large, negative, or odd.
fn number(text: &mut Vec<u8>, random: &mut Random) {
    const NUMBERS: [&str; 12] = [
        "0",
        "1",
        "-1",
        "3",
        "255",
        "65536",
        "1048576",
        "2147483648",
        "4294967296",
        "9223372036854775807",
        "1.5",
        "0x7fffffffffffffff",
    ];
    let at = random.below(text.len());
    let Some(start) = text[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let end = text[start..].iter().position(|b| !b.is_ascii_digit()).map_or(text.len(), |i| start + i);
    text.splice(start..end, NUMBERS[random.below(NUMBERS.len())].bytes());
}

/// Checks what whoever executes a module relies on.
fn check(module: &Module) {
    for kernel in &module.kernels {
        assert_eq!(kernel.code.last().map(|inst| inst.op), Some(Op::Exit));
        for inst in &kernel.code {
            match inst.op {
                Op::Bra { target, .. } => assert!((target as usize) < kernel.code.len()),
                Op::Brx { targets, .. } => {
                    let range = targets.start as usize..(targets.start + targets.len) as usize;
                    assert!(kernel.lists[range].iter().all(|&target| (target as usize) < kernel.code.len()));
                }
                Op::Ld { dst, .. } => assert!((dst.start + dst.len) as usize <= kernel.lists.len()),
                _ => {}
            }
        }
        for constant in &kernel.constants {
            assert!(constant.slot < if constant.wide { kernel.r64 } else { kernel.r32 });
        }
        assert!(kernel.shared_bytes <= 48 << 10 && kernel.local_bytes <= 512 << 10);
    }
}

#[test]
fn a_million_changed_texts_do_no_harm() {
    for text in TEXTS {
        check(&lower::module(text).unwrap_or_else(|error| panic!("{error}\n{text}")));
    }
    let (mut accepted, mut slowest, mut largest) = (0u64, Duration::ZERO, 0usize);
    for seed in 0..INPUTS {
        let mut random = Random(seed);
        let mut bytes = TEXTS[random.below(TEXTS.len())].as_bytes().to_vec();
        for _ in 0..1 + random.below(3) {
            change(&mut bytes, &mut random);
        }
        let text = String::from_utf8_lossy(&bytes);
        let (before, start) = (LIVE.load(Relaxed), Instant::now());
        PEAK.store(before, Relaxed);
        let result = catch_unwind(|| lower::module(&text).map(|module| check(&module)));
        let (taken, memory) = (start.elapsed(), PEAK.load(Relaxed).saturating_sub(before));
        let Ok(result) = result else { panic!("seed {seed} panics:\n{text}") };
        assert!(taken < PATIENCE, "seed {seed} takes {taken:?}:\n{text}");
        assert!(memory < MEMORY, "seed {seed} takes {memory} bytes:\n{text}");
        accepted += u64::from(result.is_ok());
        slowest = slowest.max(taken);
        largest = largest.max(memory);
    }
    println!("{accepted} of {INPUTS} texts are still PTX; slowest {slowest:?}, most memory {largest} bytes");
    assert!(accepted > INPUTS / 20, "nearly everything is refused: the changes test little");
    assert!(accepted < INPUTS / 2, "nearly everything is accepted: {accepted}");
}

/// Texts that grow: the time must grow with them and no faster.
#[test]
fn large_texts_take_time_in_proportion() {
    let head = ".version 8.5\n.target sm_80\n.address_size 64\n";
    let many = |piece: &str, count: usize| piece.repeat(count);
    let texts = [
        format!("{head}.entry k() {{ .reg .b32 %r<9>; {} }}", many("mov.u32 %r1, %tid.x; ", 40_000)),
        format!("{head}.entry k() {{ {} {} }}", many("{ ", 256), many("} ", 256)),
        format!("{head}.global .b32 x = {};", many("1+", 200_000) + "1"),
        format!("{head}.global .b8 x[1000000] = {{{}1}};", many("1,", 400_000)),
        format!("{head}{}", many(".entry k(); ", 50_000)),
        format!("{head}.section .s {{ {} }}", many("{ } ", 200_000)),
        format!("{head}.entry k() {{ .reg .b32 %{}; }}", many("9", 500_000)),
        format!("{head}.entry k() {{ .reg .b32 %r<1>; mov.u32 %r0, %r{}; }}", many("1", 500_000)),
        format!("{head}.entry k() {{ ret{}; }}", many(".x", 200_000)),
        format!("{head}.entry k() {{ mov.u32 {}; }}", many("{1,1}, ", 100_000) + "1"),
    ];
    for text in &texts {
        check_growth(text);
    }
    // Many blocks, all registers live through all of them: the liveness analysis gives up before it takes minutes.
    let mut body = String::from(".reg .pred %p<2>; .reg .b32 %r<8000>; setp.eq.u32 %p1, 1, 2;\n");
    for i in 0..8000 {
        body += &format!("L{i}: add.u32 %r{i}, %r{}, 1; @%p1 bra L{};\n", (i * 31) % 8000, (i * 17) % 8000);
    }
    check_growth(&format!("{head}.entry k() {{ {body} }}"));
}

fn check_growth(text: &str) {
    let start = Instant::now();
    let outcome = lower::module(text).map(|module| check(&module)).map_err(|error| error.to_string());
    let (taken, start) = (start.elapsed(), text.get(..120).unwrap_or(text));
    assert!(taken < PATIENCE * 2, "{taken:?} for {} bytes: {start}", text.len());
    if let Err(message) = outcome {
        assert!(message.len() < 3_000_000, "a message of {} bytes", message.len());
    }
}
