//! The whole process in a zone of the stand-in for SmartOS' global zone (`vmm/zone`), with the tiny guest of
//! `tests/guests/src/bin/zone.rs`, which the documented free-text options bring in. Stock guests run there in the lab:
//! `cargo xtask lab zone`.
//!
//! `cargo xtask test` builds the guests and names their folder in `ZVMM_GUESTS`; without it these tests skip, and say so.

#![cfg(target_os = "linux")]

#[path = "zone/bhyve.rs"]
mod bhyve;
#[path = "zone/kvm.rs"]
mod kvm;

use std::path::{Path, PathBuf};

use zvmm_zone::argv::Properties;
use zvmm_zone::global::Zone;
use zvmm_zone::root::{Brand, Parts};

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

/// A zone of a brand, not booted yet, with the guest's kernel as its `/guest`.
pub fn create(brand: Brand, guest: &Path, properties: Properties) -> Zone {
    let program = Path::new(env!("CARGO_BIN_EXE_zvmm"));
    let parts = Parts { program, words: &[], files: &[(guest, "guest")], place: &std::env::temp_dir() };
    Zone::create(brand, &parts, properties)
}
