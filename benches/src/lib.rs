//! Benches of the hot paths, and the floors they are measured against.

#[path = "../../devices/tests/counting/mod.rs"]
pub mod allocations;
#[cfg(target_os = "linux")]
pub mod calls;
#[cfg(target_os = "linux")]
pub mod counted;
#[cfg(target_os = "linux")]
pub mod disk;
pub mod figures;
#[cfg(target_os = "linux")]
pub mod instructions;
#[cfg(target_os = "linux")]
pub mod net;
pub mod null;
#[cfg(target_os = "linux")]
pub mod ring;
#[cfg(target_os = "linux")]
pub mod threads;
