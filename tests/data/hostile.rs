//! Files that lie. No reader may panic, read outside, or take memory that the file does not pay for.

use std::fs;
use std::io::Write;
use std::path::Path;

use flowprior::data::formats::{self, pickle};
use flowprior::data::import::Options;
use flowprior::data::{Dataset, array::Array};
use proptest::prelude::*;

use crate::support::{assert_refused, fixture, import_one, labelled};

const FIXTURES: [&str; 16] = [
    "f4.npy",
    "fortran.npy",
    "version3.npy",
    "objects.npy",
    "stored.npz",
    "packed.npz",
    "named.safetensors",
    "features.safetensors",
    "images.idx",
    "images.idx.gz",
    "tensor.pt",
    "dict.pt",
    "strided.pt",
    "state.pt",
    "evil.pt",
    "legacy.pt",
];

/// One way to damage a file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Word(usize, u64),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Copy(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<usize>;
    let word =
        prop_oneof![Just(u64::MAX), Just(1 << 62), Just(1 << 40), Just(0), Just(0xffff_ffff), any::<u64>()];
    prop_oneof![
        6 => (at(), any::<u8>()).prop_map(|(at, b)| Damage::Byte(at, b)),
        2 => (at(), word).prop_map(|(at, w)| Damage::Word(at, w)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, b)| Damage::Insert(at, b)),
        1 => (at(), at(), 1..64usize).prop_map(|(from, to, n)| Damage::Copy(from, to, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len().max(1);
    match damage {
        Damage::Byte(at, b) => bytes.iter_mut().skip(at % len).take(1).for_each(|x| *x = *b),
        Damage::Word(at, w) => bytes.iter_mut().skip(at % len).zip(w.to_le_bytes()).for_each(|(x, b)| *x = b),
        Damage::Cut(at) => bytes.truncate(at % len),
        Damage::Insert(at, new) => {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Copy(from, to, n) => {
            let part: Vec<u8> = bytes.iter().skip(from % len).take(*n).copied().collect();
            bytes.iter_mut().skip(to % len).zip(part).for_each(|(x, b)| *x = b);
        }
    }
}

/// Opens a file and reads all of what it claims to hold.
fn read_all(path: &Path, key: Option<&str>) -> flowprior::Result<Array> {
    let array = formats::open(path, key)?;
    let mut row = vec![0.0; array.width().min(1 << 20)];
    for i in 0..array.rows().min(1 << 16) {
        if row.len() == array.width() {
            array.read_row(i, &mut row);
        }
        if array.expect_labels(array.rows()).is_ok() {
            let _ = array.label(i);
        }
    }
    Ok(array)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_read_or_refused_but_never_panic(
        which in 0..FIXTURES.len(),
        damages in prop::collection::vec(damage(), 1..6),
        key in prop_oneof![Just(None), Just(Some("x")), Just(Some("y"))],
    ) {
        let mut bytes = fs::read(fixture(FIXTURES[which])).unwrap();
        damages.iter().for_each(|d| apply(&mut bytes, d));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        if let Err(e) = read_all(file.path(), key) {
            prop_assert_eq!(e.exit_code(), 3, "{}", e);
        }
        prop_assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
    }

    #[test]
    fn random_pickles_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pickle::tensors(&bytes);
    }

    #[test]
    fn pickles_of_known_opcodes_never_panic(
        parts in prop::collection::vec(
            prop_oneof![
                prop::sample::select(b"(N}])tQRsuaeb.0".to_vec()).prop_map(|b| vec![b]),
                prop::sample::select(vec![0x85u8, 0x86, 0x87, 0x88, 0x93, 0x94]).prop_map(|b| vec![b]),
                any::<u8>().prop_map(|n| vec![b'K', n]),
                (0..4u8).prop_map(|n| vec![b'q', n]),
                (0..4u8).prop_map(|n| vec![b'h', n]),
                Just(b"X\x07\0\0\0storage".to_vec()),
                Just(b"\x8c\x01a".to_vec()),
                Just(b"ctorch\nFloatStorage\n".to_vec()),
                Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
                Just(b"ccollections\nOrderedDict\n".to_vec()),
            ],
            0..60,
        )
    ) {
        let _ = pickle::tensors(&parts.concat());
    }
}

#[test]
fn damaged_manifests_are_read_or_refused_but_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 4, 2);
    let path = out.join("dataset.json");
    let whole = fs::read(&path).unwrap();
    proptest!(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() }, |(
        damages in prop::collection::vec(damage(), 1..3)
    )| {
        let mut bytes = whole.clone();
        damages.iter().for_each(|d| apply(&mut bytes, d));
        fs::remove_file(&path).unwrap(); // some file systems sync a file that is overwritten
        fs::write(&path, bytes).unwrap();
        if let Err(e) = Dataset::open(&out).and_then(|d| d.verify()) {
            prop_assert_eq!(e.exit_code(), 3, "{}", e);
        }
    });
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn npy(header: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes
}

/// The largest amount of memory this process has ever asked for, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[test]
fn headers_that_promise_too_much_cost_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "huge.npy",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 384), }\n"),
            &["huge.npy", "length", "shape [1099511627776, 384]", "found 84 bytes"],
        ),
        (
            "overflow.npy",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n"),
            &["overflow.npy", "shape", "fits in memory", "4294967296"],
        ),
        (
            "long.npy",
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(),
            &["long.npy", "header length", "4294967295"],
        ),
        (
            "huge.idx",
            [&[0, 0, 8, 2][..], &[0, 255, 255, 255].repeat(2), &[1, 2, 3]].concat(),
            &["huge.idx", "length", "[16777215, 16777215]", "found 15 bytes"],
        ),
        (
            "long.safetensors",
            [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat(),
            &["long.safetensors", "header length", "at most", "1152921504606846976"],
        ),
        (
            "huge.safetensors",
            {
                let header =
                    br#"{"x":{"dtype":"F32","shape":[4611686018427387904,1],"data_offsets":[0,16]}}"#;
                [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat()
            },
            &["huge.safetensors", "header", "expected"],
        ),
    ];
    for (name, bytes, parts) in cases {
        assert_refused(read_all(&write(folder.path(), name, &bytes), None), parts);
    }
    assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
}

#[test]
fn a_gzip_bomb_is_unpacked_only_as_far_as_its_header_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&[0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]).unwrap();
    let zeros = vec![0u8; 1 << 20];
    (0..200).for_each(|_| packer.write_all(&zeros).unwrap());
    let path = write(folder.path(), "bomb.gz", &packer.finish().unwrap());
    let before = peak_memory();
    assert_refused(read_all(&path, None), &["bomb.gz", "length", "18 bytes for shape [2, 3] of u8", "more"]);
    assert!(peak_memory() - before < 100 << 20);
}

#[test]
fn a_damaged_member_of_an_archive_is_found_by_its_checksum() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("stored.npz", [0x00, 0x00, 0x00, 0xc0]), ("tensor.pt", [0x00, 0x00, 0x00, 0xc0])] {
        let mut bytes = fs::read(fixture(name)).unwrap();
        let at = bytes.windows(4).position(|w| w == value).unwrap(); // -2.0, the first element
        bytes[at] ^= 1;
        let path = write(folder.path(), name, &bytes);
        assert_refused(read_all(&path, None), &[name, "checksum", "expected", "found"]);
    }
}

#[test]
fn a_view_beyond_its_storage_is_refused() {
    // The pickle of tensor.pt ends its arguments with sizes (4, 3) and strides (3, 1): make them larger.
    let bytes = fs::read(fixture("tensor.pt")).unwrap();
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    let mut pickle = Vec::new();
    std::io::Read::read_to_end(&mut archive.by_name("tensor/data.pkl").unwrap(), &mut pickle).unwrap();
    let at = pickle.windows(4).position(|w| w == [b'K', 4, b'K', 3]).unwrap();
    for (change, parts) in [
        (vec![b'K', 5, b'K', 3], ["`tensor` strides", "a view inside its storage", "one beyond it"]),
        (vec![b'J', 255, 255, 255, 127, b'K', 3], ["`tensor` strides", "a view inside", "one beyond it"]),
        (vec![b'J', 255, 255, 255, 255, b'K', 3], ["data.pkl", "a size", "found -1"]),
    ] {
        let mut changed = pickle.clone();
        changed.splice(at..at + 4, change);
        let path = repack(&bytes, &changed);
        assert_refused(read_all(path.path(), None), &parts);
    }
}

/// Writes the archive again with another pickle.
fn repack(archive: &[u8], pickle: &[u8]) -> tempfile::NamedTempFile {
    let mut source = zip::ZipArchive::new(std::io::Cursor::new(archive)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut target = zip::ZipWriter::new(file.reopen().unwrap());
    for i in 0..source.len() {
        let mut member = source.by_index(i).unwrap();
        let name = member.name().unwrap().into_owned();
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        target.start_file(&name, options).unwrap();
        if name.ends_with("data.pkl") {
            target.write_all(pickle).unwrap();
        } else {
            std::io::copy(&mut member, &mut target).unwrap();
        }
    }
    target.finish().unwrap();
    file
}

#[test]
fn pickles_that_unfold_or_repeat_are_bounded() {
    // A dictionary of 200 entries that are all the same dictionary, four levels deep: 1.6 billion paths.
    let mut bytes = b"\x80\x02}q\x00(".to_vec();
    (0..200).for_each(|_| bytes.extend(b"\x8c\x01aN"));
    bytes.extend(b"u0"); // and an opcode that is not allowed, for the message
    let refused = pickle::tensors(&bytes).unwrap_err();
    assert_eq!(refused.1, format!("opcode 0x30 at byte {}", bytes.len() - 1));
    bytes.pop();
    for level in 1..4u8 {
        bytes.extend([b'}', b'q', level, b'(']);
        (0..200).for_each(|_| bytes.extend([0x8c, 1, b'a', b'h', level - 1]));
        bytes.push(b'u');
    }
    bytes.push(b'.');
    assert_eq!(pickle::tensors(&bytes).unwrap_err().0, "at most 100000 dictionary entries");
    let own: &[u8] = b"\x80\x02}q\x00\x8c\x01ah\x00s."; // a dictionary that contains itself
    assert!(pickle::tensors(own).unwrap().is_empty());
}

#[test]
fn every_prefix_of_a_fixture_is_refused() {
    for name in FIXTURES.iter().filter(|n| !n.starts_with("evil") && !n.starts_with("legacy")) {
        let whole = fs::read(fixture(name)).unwrap();
        for length in (0..whole.len()).rev().step_by(3) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&whole[..length]).unwrap();
            let result = import_one(file.path(), &Options::default());
            assert!(result.is_err(), "{name} cut to {length} of {} bytes", whole.len());
            assert_eq!(result.unwrap_err().exit_code(), 3);
        }
    }
}
