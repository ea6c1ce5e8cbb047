//! The Rust tool chain that can build `core` and `std` from source, unpacked from Debian packages.
//!
//! rustup's stable tool chain has neither the sources of `std` nor a `std` for illumos. Debian packages both the
//! compiler and its sources, so a machine with only a rustup tool chain gets them below `target/lab`.
//!
//! Programs of the set run under the machine's own dynamic linker and C library, with every other library from the set.
//! The machine's C library, because rustc loads procedural macros that the machine's linker linked against it; the
//! libraries by argument and not by `LD_LIBRARY_PATH`, because the machine's linker, which rustc starts, must not get
//! them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{debian, paths};

/// Where the x86-64 psABI puts the dynamic linker.
const DYNAMIC_LINKER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What glibc installs: these come from the machine, never from the set (see the module's text).
const C_LIBRARY: [&str; 14] = [
    "ld-linux-x86-64.so",
    "libBrokenLocale.so",
    "libanl.so",
    "libc.so",
    "libc_malloc_debug.so",
    "libdl.so",
    "libm.so",
    "libmemusage.so",
    "libmvec.so",
    "libnsl.so",
    "libpthread.so",
    "libresolv.so",
    "librt.so",
    "libutil.so",
];

/// A tool chain whose cargo accepts `-Zbuild-std`.
pub struct Toolchain {
    bin: PathBuf,
}

impl Toolchain {
    /// Unpacks the tool chain below `target/lab`, or finds it there.
    ///
    /// # Errors
    /// When the packages cannot be fetched, or the compiler among them does not start.
    pub fn unpack() -> anyhow::Result<Self> {
        let root = debian::unpack("rust", &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"])?;
        let home = paths::lab().join("toolchain");
        let toolchain = Self { bin: home.join("bin") };
        let libraries = home.join("lib");
        link_libraries(&root, &libraries)?;
        fs::create_dir_all(&toolchain.bin)?;
        for program in ["rustc", "cargo", "rustdoc", "clippy-driver"] {
            write_launcher(&toolchain.bin.join(program), &root.join("usr/bin").join(program), &libraries)?;
        }
        toolchain.find_sources()?;
        Ok(toolchain)
    }

    /// A command for this tool chain's cargo. The environment a rustup cargo left in this process is taken out, so that
    /// nothing of another tool chain gets in.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(self.bin.join("cargo"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RUST")
                || text == "LD_LIBRARY_PATH"
                || (text.starts_with("CARGO") && text != "CARGO_HOME" && !text.starts_with("CARGO_NET"))
            {
                command.env_remove(&name);
            }
        }
        let mut path = self.bin.clone().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command
            .env("PATH", path)
            .env("RUSTC", self.bin.join("rustc"))
            // cargo tells its children where it is, and would name the dynamic linker.
            .env("CARGO", self.bin.join("cargo"))
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(paths::workspace());
        command
    }

    /// The wrapper that makes `cargo check` run clippy: what `cargo clippy` sets, which itself cannot find its driver
    /// when it is started through the dynamic linker.
    #[must_use]
    pub fn clippy_driver(&self) -> PathBuf {
        self.bin.join("clippy-driver")
    }

    /// `-Zbuild-std` looks for the sources in the sysroot; the compiler finds its sysroot from its own library.
    fn find_sources(&self) -> anyhow::Result<()> {
        let output = Command::new(self.bin.join("rustc"))
            .args(["--print", "sysroot"])
            .output()
            .context("cannot run the unpacked rustc")?;
        if !output.status.success() {
            bail!("the unpacked rustc does not start: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
        let library = sysroot.join("lib/rustlib/src/rust/library");
        if !library.join("std/Cargo.toml").is_file() {
            bail!("no sources of std at {}: remove {} and try again", library.display(), paths::lab().display());
        }
        Ok(())
    }
}

/// Fills `into` with links to every shared library of the set that is not the C library. Links that are there stay:
/// another xtask may be compiling through them.
fn link_libraries(root: &Path, into: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(into)?;
    let from = root.join("usr/lib/x86_64-linux-gnu");
    for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let link = into.join(&name);
        if !text.contains(".so") || is_c_library(&text) || fs::read_link(&link).is_ok_and(|to| to == entry.path()) {
            continue;
        }
        // One that leads elsewhere is from before the workspace was moved.
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
        }
        match symlink(entry.path(), &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            result => result.with_context(|| format!("cannot make {}", link.display()))?,
        }
    }
    Ok(())
}

fn is_c_library(name: &str) -> bool {
    C_LIBRARY.iter().any(|library| name.starts_with(library))
        || name.starts_with("libnss_")
        || name.starts_with("libthread_db")
}

/// Writes a script that starts `program` with the libraries of the set, only when its text changed: cargo takes a newer
/// compiler file for a new compiler and would rebuild everything.
fn write_launcher(path: &Path, program: &Path, libraries: &Path) -> anyhow::Result<()> {
    let text = format!(
        "#!/bin/sh\nexec {DYNAMIC_LINKER} --library-path '{}' --argv0 \"$0\" '{}' \"$@\"\n",
        libraries.display(),
        program.display()
    );
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_c_library_comes_from_the_machine() {
        for name in ["libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "libnss_files.so.2"] {
            assert!(is_c_library(name), "{name}");
        }
        for name in ["libcurl.so.4", "libz.so.1", "libmbedtls.so.14", "librustc_driver-0a.so", "libgcc_s.so.1"] {
            assert!(!is_c_library(name), "{name}");
        }
    }
}
