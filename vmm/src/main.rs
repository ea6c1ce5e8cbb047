//! The zvmm binary: everything is in the library.

use std::process::ExitCode;

/// musl's own maps and unmaps memory eighty times before there is a guest.
#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    zvmm::main_with(std::env::args_os(), &zvmm::hypervisor::open)
}

/// Bugs for the fuzz campaign to find never ship.
const _: () = assert!(!devices::planted::CAN_PLANT);
