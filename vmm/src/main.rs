//! The zvmm binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    zvmm::cli::main(std::env::args_os())
}
