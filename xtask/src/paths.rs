//! Where things live: the workspace, its target directory, and the lab's own folder in it.

use std::path::PathBuf;

/// The root of the workspace (the folder holding the root `Cargo.toml`).
#[must_use]
pub fn workspace() -> PathBuf {
    let xtask =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), PathBuf::from)
}

/// Cargo's target directory.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The lab's folder: everything it fetches, builds and logs is below it.
#[must_use]
pub fn lab() -> PathBuf {
    target().join("lab")
}
