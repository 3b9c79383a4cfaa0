//! The run folder: one run, one process, one place for everything that it writes.
//!
//! ```text
//! RUN/.lock           held by the process that trains
//! RUN/config.toml     the resolved configuration
//! RUN/metrics.jsonl   one record a line
//! RUN/events.out.…    TensorBoard
//! RUN/checkpoints/    see `checkpoint`
//! RUN/snapshots/      see `snapshots`
//! RUN/figures/
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::checkpoint::{self, Loaded};
use super::config::Config;
use crate::error::{Error, Result};

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";

/// What `--resume` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Starts a new run; the folder must be empty or absent. The default.
    #[default]
    Never,
    /// Continues from the newest valid checkpoint, or starts if there is none yet. Broken ones are set aside.
    Auto,
    /// Continues from this checkpoint (or the newest of this run). If it lies in the run folder itself, no newer one may
    /// be there; if it lies elsewhere, the run folder must be new.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::From(PathBuf::from(path)),
        })
    }
}

/// What a run starts from.
#[derive(Debug)]
pub struct Start {
    /// The checkpoint to continue from; none for a new run.
    pub checkpoint: Option<Loaded>,
    /// What the user should be told: broken checkpoints that were passed over.
    pub notes: Vec<String>,
}

/// A run folder. The one that trains holds its lock until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    lock: Option<File>,
}

impl RunDir {
    /// Creates or opens a run folder to train in, locks it, and loads what the run starts from.
    ///
    /// # Errors
    /// `Error::Usage` when another process trains in it, or it is not empty and `resume` does not fit; errors of the
    /// checkpoint; `Error::Io`.
    pub fn start(root: &Path, resume: &Resume) -> Result<(Self, Start)> {
        if is_foreign(root)? {
            return Err(Error::Usage(format!(
                "{}: has files, but is not a run folder; choose another one with `--run`",
                root.display()
            )));
        }
        fs::create_dir_all(root).map_err(Error::io(root, "create folder"))?;
        let run = Self { root: root.to_owned(), lock: Some(lock(root)?) };
        let start = match resume {
            Resume::Never => run.start_new()?,
            Resume::Auto => run.start_latest()?,
            Resume::From(path) => run.start_from(path)?,
        };
        for dir in [run.checkpoints(), run.figures()] {
            fs::create_dir_all(&dir).map_err(Error::io(&dir, "create folder"))?;
        }
        sync(&run.root)?;
        Ok((run, start))
    }

    /// Opens a run folder to read, while it may be training.
    ///
    /// # Errors
    /// `Error::Data` when it is not a run folder.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join(CONFIG).is_file() {
            let found = if root.exists() { "none" } else { "no such folder" };
            return Err(Error::data(root, CONFIG, "the configuration of a run", found));
        }
        Ok(Self { root: root.to_owned(), lock: None })
    }

    /// Returns the folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where the resolved configuration is.
    pub fn config_path(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// Returns where the records are.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Returns the folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Returns the folder of the figures.
    pub fn figures(&self) -> PathBuf {
        self.root.join("figures")
    }

    /// Writes the resolved configuration, whole or not at all.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        let (path, temporary) = (self.config_path(), self.root.join(".tmp-config.toml"));
        let mut file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        file.write_all(config.to_toml()?.as_bytes()).map_err(Error::io(&temporary, "write"))?;
        file.sync_all().map_err(Error::io(&temporary, "flush to disk"))?;
        fs::rename(&temporary, &path).map_err(Error::io(&temporary, "rename"))?;
        sync(&self.root)
    }

    /// Reads the configuration that the run was last started with.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn read_config(&self) -> Result<Config> {
        Config::load(&super::Sources { file: Some(self.config_path()), ..Default::default() }, &[])
    }

    fn start_new(&self) -> Result<Start> {
        if entries(&self.root)?.is_empty() {
            return Ok(Start { checkpoint: None, notes: Vec::new() });
        }
        Err(Error::Usage(format!(
            "run folder {} is not empty: continue it with `--resume auto`, or choose another one with `--run`",
            self.root.display()
        )))
    }

    fn start_latest(&self) -> Result<Start> {
        let latest = checkpoint::latest(&self.checkpoints())?;
        let mut notes = Vec::new();
        for (path, reason) in latest.broken {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!(".broken-{name}"));
            if aside.exists() {
                fs::remove_dir_all(&aside).map_err(Error::io(&aside, "remove"))?;
            }
            fs::rename(&path, &aside).map_err(Error::io(&path, "rename"))?;
            notes.push(format!("checkpoint set aside as {}: {reason}", aside.display()));
        }
        Ok(Start { checkpoint: latest.loaded, notes })
    }

    fn start_from(&self, path: &Path) -> Result<Start> {
        let checkpoint = checkpoint::find(path)?.loaded;
        let own = checkpoint.as_ref().is_some_and(|c| same_parent(c.path(), &self.checkpoints()));
        if !own {
            return Ok(Start { checkpoint, ..self.start_new()? });
        }
        let step = checkpoint.as_ref().map_or(0, |c| c.manifest().step);
        match checkpoint::list(&self.checkpoints())?.last() {
            Some((newest, path)) if *newest > step => Err(Error::Usage(format!(
                "{} is newer than the checkpoint of step {step}: remove it, or start another run from there with `--run`",
                path.display()
            ))),
            _ => Ok(Start { checkpoint, notes: Vec::new() }),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some(file) = &self.lock {
            // Closing is not enough: a process that this one starts just now holds a copy of the file until it runs.
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

/// Says whether a folder has content that no run of ours wrote. (Only a look: nothing is left in such a folder.)
fn is_foreign(root: &Path) -> Result<bool> {
    if !root.exists() || root.join(LOCK).exists() {
        return Ok(false);
    }
    let ours = root.join(CONFIG).exists() || root.join("checkpoints").exists();
    Ok(!ours && !entries(root)?.is_empty())
}

/// Lists what a folder holds beside the lock.
fn entries(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io(root, "read"))? {
        let entry = entry.map_err(Error::io(root, "read"))?;
        if entry.file_name() != LOCK {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Locks the folder for this process; the system lets go when the process ends, however it ends.
fn lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(Error::io(&path, "open"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(in_use(root, &mut file)),
        Err(e) => return Err(Error::io(&path, "lock")(e.into())),
    }
    let write = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    write.map_err(Error::io(&path, "write"))?;
    Ok(file)
}

fn in_use(root: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // The other process may not have written its number yet; then it goes unnamed.
    let by = match file.read_to_string(&mut pid) {
        Ok(n) if n > 0 => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    Error::Usage(format!(
        "run folder {} already in use by {by}; wait for it, or choose another one",
        root.display()
    ))
}

fn same_parent(checkpoint: &Path, checkpoints: &Path) -> bool {
    match (checkpoint.canonicalize(), checkpoints.canonicalize()) {
        (Ok(a), Ok(b)) => a.parent() == Some(&b),
        _ => false,
    }
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "flush to disk"))
}
