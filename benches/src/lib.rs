//! Benches of the hot paths, and the floors they are measured against.

#[cfg(target_os = "linux")]
pub mod disk;
pub mod null;
