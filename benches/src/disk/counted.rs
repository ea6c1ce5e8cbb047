//! A bench that runs itself under a tool which counts: what one such run is told, and how all of them end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use devices_host::engine::Kind;

use super::{EngineShape, Load, Stack, prepare_file};

const FILE_BYTES: u64 = 16 << 20;

/// One run: reads of 4 KiB at random, which the page cache has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedRun {
    /// Who is counted.
    pub side: String,
    /// Requests in flight.
    pub depth: usize,
    /// Requests in all.
    pub requests: u64,
    /// The file to read.
    pub path: PathBuf,
}

impl CountedRun {
    /// What this process was started for, if it was started by [`under`](Self::under).
    fn from_arguments(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let [side, depth, requests, path] = <[String; 4]>::try_from(arguments.collect::<Vec<_>>()).ok()?;
        Some(Self { side, depth: depth.parse().ok()?, requests: requests.parse().ok()?, path: path.into() })
    }

    /// Does the run in a process of its own, under `tool`.
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn under(&self, tool: &mut Command) -> io::Result<Output> {
        let Self { side, depth, requests, path } = self;
        let numbers = [depth.to_string(), requests.to_string()];
        tool.arg(std::env::current_exe()?).arg(side).args(numbers).arg(path).stdin(Stdio::null()).output()
    }

    /// What is read.
    #[must_use]
    pub fn load(&self) -> Load {
        Load { depth: self.depth, bytes: 4096, piece_bytes: 4096, random: true, direct: false }
    }

    /// zvmm's own stack, with the engine that the side is named after.
    ///
    /// # Errors
    /// As [`Stack::start`]'s.
    pub fn stack(&self) -> io::Result<Stack> {
        let kind = if self.side == "threads" { Kind::Threads } else { Kind::IoUring };
        Stack::start(&self.path, &self.load(), EngineShape::sleeping(kind))
    }
}

/// The whole program: `run`s what it was told to, or `measure`s with a file to read, which tells whether all limits were
/// kept; where it counts nothing the program says so with `missing`.
pub fn main_counted(
    missing: &str,
    run: impl FnOnce(&CountedRun),
    measure: impl FnOnce(&Path) -> Option<bool>,
) -> ExitCode {
    if let Some(told) = CountedRun::from_arguments(std::env::args().skip(1)) {
        run(&told);
        return ExitCode::SUCCESS;
    }
    let path = std::env::temp_dir().join(format!("disk-counted-{}.img", std::process::id()));
    let holds = prepare_file(&path, FILE_BYTES).ok().and_then(|()| measure(&path));
    let _ = std::fs::remove_file(&path);
    match holds {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("{missing}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_by_four_arguments_and_nothing_else() {
        let told = |words: &str| CountedRun::from_arguments(words.split(' ').map(str::to_owned));
        let run =
            CountedRun { side: "io_uring".to_owned(), depth: 32, requests: 4096, path: PathBuf::from("/some/file") };
        assert_eq!(told("io_uring 32 4096 /some/file"), Some(run));
        for words in ["", "io_uring 32 4096", "io_uring 32 many /some/file", "io_uring 32 4096 /some/file more"] {
            assert_eq!(told(words), None, "{words}");
        }
    }
}
