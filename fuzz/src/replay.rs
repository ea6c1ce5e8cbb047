//! Explains inputs, and runs them outside a campaign.

use std::fs;
use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::Target;

/// The variable that holds the input to replay in place of fuzzing.
const REPLAY: &str = "ZVMM_FUZZ_REPLAY";

/// In a fuzzing build: replays one input and ends the process, when the environment asks for that.
pub fn if_asked(target: &Target) {
    crate::teeth::plant_if_asked();
    let Some(file) = std::env::var_os(REPLAY) else { return };
    std::process::exit(i32::from(said(one(target, Path::new(&file))).is_err()));
}

/// The program of a target outside a fuzzer: for every file it is given, says what the input means and runs it.
/// After `--quiet` it says nothing, and runs all files of a folder.
#[must_use]
pub fn main(target: &Target) -> ExitCode {
    let mut arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let quiet = arguments.first().is_some_and(|first| first == Path::new("--quiet"));
    if quiet {
        arguments.remove(0);
    }
    let replayed = match (quiet, arguments.is_empty()) {
        (false, true) => {
            Err(format!("usage: {} [--quiet] FILE...: says what each input means, and runs it", target.name))
        }
        (false, false) => arguments.iter().try_for_each(|file| one(target, file)),
        (true, _) => arguments.iter().try_for_each(|path| all(target, path)),
    };
    match said(replayed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    }
}

fn said(result: Result<(), String>) -> Result<(), ()> {
    result.map_err(|problem| eprintln!("{problem}"))
}

/// A finding panics, so that what is said last is the finding.
fn one(target: &Target, file: &Path) -> Result<(), String> {
    let data = read(file, |file| fs::read(file))?;
    println!("{} ({} bytes):\n{}", file.display(), data.len(), explained(target, &data).trim_end());
    (target.run)(&data);
    println!("no finding");
    Ok(())
}

/// The explanation goes up to the finding, which it catches and names. libFuzzer's hook would end the process before.
fn explained(target: &Target, data: &[u8]) -> String {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let text = (target.explain)(data);
    panic::set_hook(hook);
    text
}

fn all(target: &Target, path: &Path) -> Result<(), String> {
    if !path.is_dir() {
        (target.run)(&read(path, |file| fs::read(file))?);
        return Ok(());
    }
    let entries = read(path, |path| fs::read_dir(path)?.collect::<io::Result<Vec<_>>>())?;
    entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).try_for_each(|file| all(target, &file))
}

fn read<T>(path: &Path, how: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, String> {
    how(path).map_err(|error| format!("{}: {error}", path.display()))
}
