//! A bench that runs itself under a tool which counts: what one such run is told, and how all of them end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedRun {
    /// Who is counted.
    pub side: String,
    /// Requests or packets in flight.
    pub depth: usize,
    /// Requests or packets in all.
    pub count: u64,
    /// A file of the bench's own, which the run may use; what tools write is beside it.
    pub path: PathBuf,
}

impl CountedRun {
    /// What this process was started for, if it was started by [`under`](Self::under).
    fn from_arguments(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let [side, depth, count, path] = <[String; 4]>::try_from(arguments.collect::<Vec<_>>()).ok()?;
        Some(Self { side, depth: depth.parse().ok()?, count: count.parse().ok()?, path: path.into() })
    }

    /// Does the run in a process of its own, under `tool`.
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn under(&self, tool: &mut Command) -> io::Result<Output> {
        let Self { side, depth, count, path } = self;
        let numbers = [depth.to_string(), count.to_string()];
        tool.arg(std::env::current_exe()?).arg(side).args(numbers).arg(path).stdin(Stdio::null()).output()
    }
}

/// The whole program: `run`s what it was told to, or `measure`s with a path for a file of its own, and tells whether all
/// limits were kept; where it counts nothing the program says so with `missing`.
pub fn main_counted(
    missing: &str,
    run: impl FnOnce(&CountedRun),
    measure: impl FnOnce(&Path) -> Option<bool>,
) -> ExitCode {
    if let Some(told) = CountedRun::from_arguments(std::env::args().skip(1)) {
        run(&told);
        return ExitCode::SUCCESS;
    }
    let path = std::env::temp_dir().join(format!("counted-{}.img", std::process::id()));
    let holds = measure(&path);
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
        let run = CountedRun { side: "io_uring".to_owned(), depth: 32, count: 4096, path: PathBuf::from("/some/file") };
        assert_eq!(told("io_uring 32 4096 /some/file"), Some(run));
        for words in ["", "io_uring 32 4096", "io_uring 32 many /some/file", "io_uring 32 4096 /some/file more"] {
            assert_eq!(told(words), None, "{words}");
        }
    }
}
