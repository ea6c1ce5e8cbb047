//! Twins of illumos' own tests of its driver (illumos-gate `usr/src/test/bhyve-tests`), through the backend on the double.
//!
//! `cases.txt` has the names of theirs; the table in `docs/illumos.md` says which test here is whose twin, and why some
//! have none. The facts each proves are theirs, the guests and the tests are ours.
#![cfg(target_os = "linux")]

mod contracts;
mod emulation;
mod kernel_devices;
mod machine;
mod memory;
mod state;
mod table;
