//! Explains inputs, and runs them outside a fuzzer.

use std::process::ExitCode;

/// The program of the target `name` outside a fuzzer: for every file it is given, says what the input means and runs it.
#[must_use]
pub fn main(name: &str) -> ExitCode {
    let Some(target) = crate::target(name) else {
        eprintln!("there is no target {name}");
        return ExitCode::FAILURE;
    };
    let files: Vec<_> = std::env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("usage: {name} FILE...: says what each input means, and runs it");
        return ExitCode::FAILURE;
    }
    for file in files {
        let data = match std::fs::read(&file) {
            Ok(data) => data,
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        };
        println!("{} ({} bytes):\n{}", file.display(), data.len(), (target.explain)(&data).trim_end());
        // A finding panics, so this line is printed only where there is none.
        (target.run)(&data);
        println!("no finding");
    }
    ExitCode::SUCCESS
}
