//! The one error type of the library, and the exit code that each kind of error ends the program with.
//!
//! A message names the file or argument, the field, what was expected and what was found, in that order.

use std::path::{Path, PathBuf};

/// Shortens `std::result::Result` with the library's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what went wrong, in one sentence that a user can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A function was given an argument of the wrong shape or value.
    #[error("{op}: `{arg}` has {found}, expected {expected}")]
    Argument {
        /// Names the operation that was called.
        op: &'static str,
        /// Names its argument.
        arg: &'static str,
        /// Says what would have been right, with its kind: "shape [2, 3]".
        expected: String,
        /// Says what was given, in the same words.
        found: String,
    },
    /// The command line or the configuration asks for something that does not exist or makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file is not what it claims to be: a shard, a checkpoint, an import.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Data {
        /// The file (or folder) that is wrong.
        path: PathBuf,
        /// The field, row or tensor in it.
        field: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A file leaves open what only its user can know, and nobody said it.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    NotGiven {
        /// The file.
        path: PathBuf,
        /// What is not known, as a field of [`crate::nn::Import`].
        field: &'static str,
        /// What would have told it.
        expected: String,
        /// What there is.
        found: String,
    },
    /// The operating system refused to read or write.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// A verb: "open", "write", "rename".
        action: &'static str,
        /// The system's own reason.
        source: std::io::Error,
    },
    /// A device or toolkit that was asked for is not there or failed.
    #[error("{0}")]
    Device(String),
    /// Training produced numbers that are not finite too often to go on.
    #[error("{0}")]
    Diverged(String),
    /// A signal stopped the run after a finished step; it can be resumed.
    #[error("stopped after step {step}; continue with `--resume` (checkpoint {})", checkpoint.display())]
    Stopped {
        /// The last finished step.
        step: u64,
        /// The checkpoint that was saved.
        checkpoint: PathBuf,
    },
}

impl Error {
    /// Builds an error about an argument.
    pub fn argument(
        op: &'static str,
        arg: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Argument { op, arg, expected: expected.to_string(), found: found.to_string() }
    }

    /// Builds an error about the content of a file.
    pub fn data(
        path: impl AsRef<Path>,
        field: impl ToString,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Data {
            path: path.as_ref().to_owned(),
            field: field.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Builds an error about what a file leaves open.
    pub fn not_given(
        path: impl AsRef<Path>,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        let (path, expected, found) = (path.as_ref().to_owned(), expected.to_string(), found.to_string());
        Self::NotGiven { path, field, expected, found }
    }

    /// Returns a closure for `map_err` that adds file and verb to a system error.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// Returns the exit code: 2 usage, 3 bad data or checkpoint, 4 device, 5 diverged, 75 stopped but resumable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Argument { .. } | Self::Usage(_) => 2,
            Self::Data { .. } | Self::NotGiven { .. } | Self::Io { .. } => 3,
            Self::Device(_) => 4,
            Self::Diverged(_) => 5,
            Self::Stopped { .. } => 75,
        }
    }
}
