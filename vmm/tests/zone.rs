//! The whole process in a zone: a stand-in for the global zone of SmartOS makes the zone, starts the VMM as the brand starts
//! it, and talks to it as vmadmd does.
//!
//! What stands in keeps to the rules that are documented for zoneadmd, the boot hook, zhyve, vmadm and vmadmd, and to nothing
//! that zvmm would like: a zone's root of its own with what the brand has in it, the command line that follows from the
//! guest's properties, descriptors, sockets, time-outs. The guest is the tiny one of `tests/guests/src/bin/zone.rs`, which the
//! documented free-text options bring in.
//!
//! `cargo xtask test` builds the guests and names their folder in `ZVMM_GUESTS`; without it these tests skip, and say so.

#![cfg(target_os = "linux")]

#[path = "zone/argv.rs"]
mod argv;
#[path = "zone/bhyve.rs"]
mod bhyve;
#[path = "zone/confined.rs"]
mod confined;
#[path = "zone/global.rs"]
mod global;
#[path = "zone/kvm.rs"]
mod kvm;
#[path = "zone/qmp.rs"]
mod qmp;
#[path = "zone/root.rs"]
mod root;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// No step needs a tenth of it.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The guest's kernel, or `None` with a printed reason.
///
/// # Panics
/// When there are guests but no KVM to run them on: a test that cannot run must not look like one that passed.
pub fn guest() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("ZVMM_GUESTS") else {
        println!("SKIP: ZVMM_GUESTS does not name the folder of the guests; `cargo xtask test` builds them");
        return None;
    };
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        panic!("/dev/kvm does not open ({error}): run these tests inside the lab (`cargo xtask lab`)");
    }
    Some(PathBuf::from(folder).join("zone"))
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
