//! Seeds from a record of a boot: `seeds RECORD FOLDER` makes the files `linux-boot-*` in the targets' folders of FOLDER
//! anew. Every one of them runs before it is kept: one with a finding is left out, written to `finding-TARGET` and
//! explained.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How the names of the files begin.
const NAME: &str = "linux-boot-";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [record, folder] = arguments.as_slice() else {
        eprintln!("usage: seeds RECORD FOLDER");
        return ExitCode::FAILURE;
    };
    match make(record, folder) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            eprintln!("{findings} findings");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many programs had a finding.
fn make(record: &Path, folder: &Path) -> Result<usize, String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(record).map_err(|error| failed(record, error))?;
    let events = zvmm_fuzz::record::parse(&text)?;
    println!("{} accesses and chains", events.len());
    let mut findings = 0;
    for (name, seeds) in zvmm_fuzz::record::seeds(&events) {
        let target = zvmm_fuzz::target(name).ok_or_else(|| format!("no target {name}"))?;
        let folder = folder.join(name);
        let old = fs::read_dir(&folder).map_err(|error| failed(&folder, error))?.flatten();
        for old in old.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME)) {
            fs::remove_file(old.path()).map_err(|error| failed(&old.path(), error))?;
        }
        let mut bytes = 0;
        for (number, seed) in (1..).zip(&seeds) {
            let clean = catch_unwind(|| (target.run)(seed)).is_ok();
            let file = if clean { folder.join(format!("{NAME}{number:02}")) } else { format!("finding-{name}").into() };
            fs::write(&file, seed).map_err(|error| failed(&file, error))?;
            bytes += seed.len();
            if !clean {
                findings += 1;
                println!("{}:\n{}", file.display(), (target.explain)(seed));
            }
        }
        println!("{name}: {} seeds, {bytes} bytes", seeds.len());
    }
    Ok(findings)
}
