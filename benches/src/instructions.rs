//! User instructions of a run, by callgrind.

use std::path::Path;
use std::process::Command;

use crate::counted::CountedRun;

/// Whose instructions count.
#[derive(Clone, Copy, Debug)]
pub enum Counted<'a> {
    /// Those of a function whose name begins so, and of all that it calls.
    Function(&'a str),
    /// All of the threads that call a function whose name has this in it: so many threads there are.
    Threads(&'a str, usize),
}

/// Instructions of a run; `None` where there is no valgrind, or not the functions wanted.
#[must_use]
pub fn of_run(told: &CountedRun, counted: Counted<'_>) -> Option<f64> {
    let folder = told.path.with_extension("callgrind");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).ok()?;
    let mut valgrind = Command::new("valgrind");
    // Fair, or a thread that waits for another keeps it from running for a while.
    valgrind.args(["--tool=callgrind", "--fair-sched=yes", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", folder.join("out").display()));
    if let Counted::Function(name) = counted {
        valgrind.arg("--collect-atstart=no").arg(format!("--toggle-collect={name}*"));
    }
    let output = told.under(&mut valgrind).ok()?;
    if !output.status.success() {
        eprintln!("{} under callgrind: {}", told.side, String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let threads = std::fs::read_dir(&folder).ok()?.flatten();
    let counts: Vec<f64> = threads.filter_map(|file| of_thread(&file.path(), counted)).collect();
    // To be looked into by function.
    if std::env::var_os("KEEP_CALLGRIND").is_none() {
        let _ = std::fs::remove_dir_all(&folder);
    }
    match counted {
        // More threads that look like those wanted would be none that are known.
        Counted::Threads(_, threads) if counts.len() != threads => None,
        _ => Some(counts.iter().sum()),
    }
}

/// The sum of a thread's file, where it is wanted.
fn of_thread(file: &Path, counted: Counted<'_>) -> Option<f64> {
    let text = std::fs::read_to_string(file).ok()?;
    if let Counted::Threads(function, _) = counted
        && !text.contains(function)
    {
        return None;
    }
    let total = text.lines().find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")));
    total?.trim().parse().ok()
}
