//! Wheels of the Python package index: fetched with pip, which checks the hash, and unpacked into `target/toolchain`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use zip::ZipArchive;
use zip::result::ZipError;

use super::Error;

/// A file of the package index, pinned.
#[derive(Clone, Copy, Debug)]
pub struct Wheel {
    /// The package's name.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// SHA-256 of the file for Linux on x86-64, as <https://pypi.org/project/NAME/VERSION/#files> lists it.
    pub sha256: &'static str,
}

pub(super) const NVRTC_12_9: Wheel = Wheel {
    name: "nvidia-cuda-nvrtc-cu12",
    version: "12.9.86",
    sha256: "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
};
pub(super) const NVRTC_13_0: Wheel = Wheel {
    name: "nvidia-cuda-nvrtc",
    version: "13.0.88",
    sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
};
pub(super) const NVDISASM: Wheel = Wheel {
    name: "nvidia-cuda-nvdisasm",
    version: "13.5.37",
    sha256: "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
};
pub(super) const RUNTIME_12_9: Wheel = Wheel {
    name: "nvidia-cuda-runtime-cu12",
    version: "12.9.79",
    sha256: "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
};
pub(super) const CCCL_12_9: Wheel = Wheel {
    name: "nvidia-cuda-cccl-cu12",
    version: "12.9.27",
    sha256: "37869e17ce2e1ecec6eddf1927cca0f8c34e64fd848d40453df559091e2d7117",
};
pub(super) const RUNTIME_13_0: Wheel = Wheel {
    name: "nvidia-cuda-runtime",
    version: "13.0.96",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
};
pub(super) const CRT: Wheel = Wheel {
    name: "nvidia-cuda-crt",
    version: "13.0.88",
    sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
};
pub(super) const CCCL_13_0: Wheel = Wheel {
    name: "nvidia-cuda-cccl",
    version: "13.0.85",
    sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
};

/// Returns the folder with the wheel's files, and fetches it first if it is not there.
pub(super) fn folder_of(wheel: Wheel) -> Result<PathBuf, Error> {
    folder_in(&toolchain_folder(), wheel)
}

/// As [`folder_of`], below a given folder. Processes that start at once wait for each other; a process that is killed leaves
/// no half of a folder, since the rename comes last.
fn folder_in(toolchain: &Path, wheel: Wheel) -> Result<PathBuf, Error> {
    let folder = toolchain.join(format!("{}-{}-{}", wheel.name, wheel.version, &wheel.sha256[..8]));
    if folder.is_dir() {
        return Ok(folder);
    }
    create_folder(toolchain)?;
    let lock_path = toolchain.join(format!("{}.lock", wheel.name));
    let lock = File::create(&lock_path).map_err(io_error(&lock_path))?;
    lock.lock().map_err(io_error(&lock_path))?; // until it is dropped
    if folder.is_dir() {
        return Ok(folder); // another process has fetched it in the meantime
    }
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(toolchain);
    let scratch = scratch.map_err(io_error(toolchain))?;
    let file = download(wheel, scratch.path())?;
    let unpacked = scratch.path().join("unpacked");
    unpack(wheel, &file, &unpacked)?;
    fs::rename(&unpacked, &folder).map_err(io_error(&folder))?;
    Ok(folder)
}

/// `toolchain` in the build folder: the one that this program lies in; else the one that cargo is told to use; else the
/// workspace's.
fn toolchain_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let build = build_folder(&program).map(Path::to_path_buf);
    let told = || std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let workspace = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    build.or_else(told).unwrap_or_else(workspace).join("toolchain")
}

/// The build folder that `program` lies in. Cargo writes `.rustc_info.json` into every one, CACHEDIR.TAG only into those
/// that it has created itself.
fn build_folder(program: &Path) -> Option<&Path> {
    let marked =
        |folder: &&Path| [".rustc_info.json", "CACHEDIR.TAG"].iter().any(|mark| folder.join(mark).is_file());
    program.ancestors().skip(1).find(marked)
}

/// Has pip download the wheel into `folder`, and returns its path.
fn download(wheel: Wheel, folder: &Path) -> Result<PathBuf, Error> {
    let Wheel { name, version, sha256 } = wheel;
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, format!("{name}=={version} --hash=sha256:{sha256}\n"))
        .map_err(io_error(&requirements))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(folder)
        .output()
        .map_err(|_| Error::NoPython { wheel: format!("{name} {version}") })?;
    let failure = || Error::Fetch {
        wheel: format!("{name} {version}"),
        output: String::from_utf8_lossy(&output.stderr).trim_end().to_string(),
    };
    if !output.status.success() {
        return Err(failure());
    }
    let mut entries = fs::read_dir(folder).map_err(io_error(folder))?.flatten();
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|e| e == "whl");
    entries.find_map(|entry| Some(entry.path()).filter(is_wheel)).ok_or_else(failure)
}

/// Unpacks all but the `.alt.` libraries, which are a second build of NVRTC as large as the first.
fn unpack(wheel: Wheel, file: &Path, folder: &Path) -> Result<(), Error> {
    let unpack_error = |source| Error::Unpack { wheel: format!("{} {}", wheel.name, wheel.version), source };
    create_folder(folder)?;
    let opened = File::open(file).map_err(io_error(file))?;
    let mut archive = ZipArchive::new(opened).map_err(unpack_error)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(unpack_error)?;
        let Some(name) = member.enclosed_name() else {
            return Err(unpack_error(ZipError::InvalidArchive("a file's path leads outside".into())));
        };
        if member.is_dir() || name.to_string_lossy().contains(".alt.so") {
            continue;
        }
        let path = folder.join(name);
        create_folder(path.parent().unwrap_or(folder))?;
        let mut target = File::create(&path).map_err(io_error(&path))?;
        std::io::copy(&mut member, &mut target).map_err(io_error(&path))?;
        if let Some(mode) = member.unix_mode() {
            use std::os::unix::fs::PermissionsExt;
            let permissions = fs::Permissions::from_mode(mode & 0o777 | 0o600);
            fs::set_permissions(&path, permissions).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

fn create_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Wheel = Wheel { sha256: "00000000aa", ..NVDISASM };

    #[test]
    fn wheel_is_fetched_once_by_threads_that_start_together() {
        let toolchain = tempfile::tempdir().unwrap();
        let fetch = || folder_in(toolchain.path(), CRT).unwrap();
        let folders = std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(fetch));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(folders.iter().all(|folder| *folder == folders[0]));
        assert!(folders[0].join("nvidia/cu13/include/crt/host_defines.h").is_file());
        let entries: Vec<_> =
            fs::read_dir(toolchain.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(entries.len(), 2, "{entries:?}"); // the folder and its lock; nothing half done
    }

    #[test]
    fn file_with_another_hash_is_refused() {
        let toolchain = tempfile::tempdir().unwrap();
        let wrong = Wheel { sha256: NVRTC_13_0.sha256, ..CRT };
        let error = folder_in(toolchain.path(), wrong).unwrap_err();
        assert!(
            matches!(&error, Error::Fetch { wheel, .. } if wheel == "nvidia-cuda-crt 13.0.88"),
            "{error}"
        );
        assert!(error.to_string().contains("HASH"), "{error}");
        assert_eq!(fs::read_dir(toolchain.path()).unwrap().count(), 1); // the lock
    }

    #[test]
    fn folder_that_is_there_is_taken_without_a_network() {
        let toolchain = tempfile::tempdir().unwrap();
        let folder = toolchain.path().join("nvidia-cuda-nvdisasm-13.5.37-00000000");
        fs::create_dir(&folder).unwrap();
        assert_eq!(folder_in(toolchain.path(), EMPTY).unwrap(), folder);
    }

    #[test]
    fn broken_archives_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.whl");
        let whole = {
            let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            writer.start_file("a/b.txt", zip::write::SimpleFileOptions::default()).unwrap();
            std::io::Write::write_all(&mut writer, b"some text").unwrap();
            writer.finish().unwrap().into_inner()
        };
        let outside: Vec<u8> = String::from_utf8_lossy(&whole).replace("a/b.txt", "../.txt").into_bytes();
        for (bytes, sound) in
            [(whole.clone(), true), (whole[..whole.len() / 2].to_vec(), false), (outside, false)]
        {
            fs::write(&file, bytes).unwrap();
            let target = folder.path().join(sound.to_string());
            assert_eq!(unpack(EMPTY, &file, &target).is_ok(), sound);
        }
        assert_eq!(fs::read(folder.path().join("true/a/b.txt")).unwrap(), b"some text");
        assert!(!folder.path().join(".txt").exists());
    }

    #[test]
    fn build_folder_is_found_by_either_mark() {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("target/release/deps/program");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        for mark in [".rustc_info.json", "CACHEDIR.TAG"] {
            let target = scratch.path().join("target");
            fs::write(target.join(mark), "").unwrap();
            assert_eq!(build_folder(&program), Some(target.as_path()), "{mark}");
            fs::remove_file(target.join(mark)).unwrap();
        }
        assert_ne!(build_folder(&program), Some(scratch.path().join("target").as_path()));
    }
}
