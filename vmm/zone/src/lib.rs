//! A stand-in for the global zone of SmartOS, on Linux: makes a zone, starts the VMM in it as the brand starts it, and talks
//! to it as zoneadmd, vmadmd and their users do.
//!
//! It keeps to the rules that are documented for zoneadmd, the boot hook, zhyve, vmadm and vmadmd, and to nothing that zvmm
//! would like: a zone's root of its own with what the brand has in it, the command line that follows from the guest's
//! properties, descriptors, sockets, time-outs.
//!
//! For tests: what cannot be is a panic.

#![cfg(target_os = "linux")]

pub mod argv;
mod confined;
pub mod console;
pub mod global;
pub mod memory;
pub mod qmp;
pub mod root;
pub mod vmadmd;

use std::time::{Duration, Instant};

/// How long a step may take where nothing else is said; none of a tiny guest needs a tenth of it.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits until something is so.
///
/// # Panics
/// When it is not after [`LIMIT`].
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
