//! Clients that others have written, which zvmm has to get on with: fetched and unpacked below `target/lab`, never installed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{debian, paths};

/// The qemu project's library for its control socket, from PyPI: the version, and the only content it may have.
const QMP_LIBRARY: &str =
    "qemu.qmp==0.0.6 --hash=sha256:5d7c5af0e9de427696e3bf72e333965c3a697929f77f6b7ddc30c989fc7b539b\n";

/// Prepares the clients, and returns the folder where each is a program under its own name.
///
/// # Errors
/// When Debian's packages or the library cannot be had.
pub fn unpack() -> anyhow::Result<PathBuf> {
    let root = debian::unpack("clients", &["python3", "python3-pip", "socat", "cloud-init"])?;
    let folder = paths::lab().join("clients");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write_launcher(&root, "socat", &folder, OsStr::new(""))?;
    let library = fetch_library(&root, &folder.join("python"))?;
    write_launcher(&root, "python3", &folder, library.as_os_str())?;
    Ok(folder)
}

/// The folder of the library, for Python to import from.
fn fetch_library(root: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (modules, wanted) = (folder.join("modules"), folder.join("wanted.txt"));
    if fs::read_to_string(&wanted).is_ok_and(|text| text == QMP_LIBRARY) && modules.is_dir() {
        return Ok(modules);
    }
    debian::remove_tree(&modules)?;
    fs::write(&wanted, QMP_LIBRARY).with_context(|| format!("cannot write {}", wanted.display()))?;
    // Aside first: what was broken off is not there.
    let fresh = folder.join("modules.new");
    debian::remove_tree(&fresh)?;
    let status = debian::command(root, "python3")?
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--target"])
        .arg(&fresh)
        .arg("--requirement")
        .arg(&wanted)
        .status()
        .context("cannot run the unpacked Python")?;
    ensure!(status.success(), "pip cannot fetch {}", QMP_LIBRARY.trim_end());
    fs::rename(&fresh, &modules).with_context(|| format!("cannot write {}", modules.display()))?;
    Ok(modules)
}

/// A script that runs a program of the set with the set's libraries, and Python with `modules`.
fn write_launcher(root: &Path, program: &str, into: &Path, modules: &OsStr) -> anyhow::Result<()> {
    let command = debian::command(root, program)?;
    let words: Vec<OsString> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsString::from).collect();
    let words = words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    let modules = quoted(&modules.to_string_lossy());
    let script = format!("#!/bin/sh\nPYTHONPATH={modules} exec {words} \"$@\"\n");
    let path = into.join(program);
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(|| format!("{}", path.display()))
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Runs the tests that talk through them.
///
/// # Errors
/// When a client cannot be had, or a test fails.
pub fn run() -> anyhow::Result<()> {
    let folder = unpack()?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--quiet", "--package", "zvmm", "--test", "life", "--", "--ignored", "clients::"])
        .env("ZVMM_CLIENTS", folder)
        .current_dir(paths::workspace())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "a client of others does not get on with zvmm");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_anything_in_it_stays_one_word() {
        let word = "it's $HOME `x` \"y\"\n";
        let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), word);
    }
}
