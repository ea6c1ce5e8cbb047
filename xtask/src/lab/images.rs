//! Initial RAM file systems and ext4 images, made without root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use cpio::newc;

use crate::debian;

/// An initial RAM file system under construction (cpio, "newc" form).
pub struct Initramfs {
    archive: Vec<u8>,
    folders: Vec<PathBuf>,
    next_inode: u32,
}

impl Initramfs {
    /// One with the folders and the console node every init needs.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn new() -> anyhow::Result<Self> {
        let mut new = Self { archive: Vec::new(), folders: Vec::new(), next_inode: 1 };
        for folder in ["dev", "proc", "sys", "tmp", "bin", "root", "etc", "run", "modules"] {
            new.folder(Path::new(folder))?;
        }
        // Without it the kernel starts init with no standard streams.
        let console = new.entry("dev/console", 0o020_600).rdev_major(5).rdev_minor(1);
        new.put(console, &[])?;
        Ok(new)
    }

    fn entry(&mut self, path: &str, mode: u32) -> newc::Builder {
        self.next_inode += 1;
        newc::Builder::new(path).ino(self.next_inode).nlink(1).mode(mode)
    }

    fn put(&mut self, entry: newc::Builder, content: &[u8]) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut writer = entry.write(&mut self.archive, u32::try_from(content.len())?);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn folder(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.as_os_str().is_empty() || self.folders.iter().any(|known| known == path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let entry = self.entry(&path.display().to_string(), 0o040_755);
        self.put(entry, &[])?;
        self.folders.push(path.to_owned());
        Ok(())
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// When it is 4 GiB or more.
    pub fn file(&mut self, path: &str, content: &[u8]) -> anyhow::Result<()> {
        if let Some(parent) = Path::new(path).parent() {
            self.folder(parent)?;
        }
        let entry = self.entry(path, 0o100_755);
        self.put(entry, content)
    }

    /// Adds the files of a folder below `at` (empty: the root).
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn tree(&mut self, folder: &Path, at: &str) -> anyhow::Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = format!("{at}{}", name.to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => self.tree(&entry.path(), &format!("{path}/"))?,
                false => self.file(&path, &fs::read(entry.path())?)?,
            }
        }
        Ok(())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Never in practice.
    pub fn link(&mut self, path: &str, to: &str) -> anyhow::Result<()> {
        let entry = self.entry(path, 0o120_777);
        self.put(entry, to.as_bytes())
    }

    /// Adds modules and the list that says in which order they load.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn modules(&mut self, modules: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
        let mut order = String::new();
        for (name, content) in modules {
            self.file(&format!("modules/{name}"), content)?;
            order += &format!("{name}\n");
        }
        self.file("modules/order", order.as_bytes())
    }

    /// The finished archive, uncompressed.
    ///
    /// # Errors
    /// Never in practice.
    pub fn finish(self) -> anyhow::Result<Vec<u8>> {
        Ok(newc::trailer(self.archive)?)
    }
}

/// Makes an ext4 image of a folder's content, `extra_mib` larger than needed. Files belong to root inside, whoever makes
/// it, where the machine allows user namespaces.
///
/// # Errors
/// When mke2fs fails.
pub fn ext4(folder: &Path, image: &Path, extra_mib: u64) -> anyhow::Result<()> {
    let tools = debian::unpack("e2fsprogs", &["e2fsprogs"])?;
    let size_mib = tree_bytes(folder)? / (1 << 20) * 11 / 10 + 16 + extra_mib;
    let fresh = image.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut mke2fs = debian::command(&tools, "mke2fs")?;
    mke2fs.args(["-q", "-t", "ext4", "-F", "-m", "0", "-L", "lab", "-E", "root_owner=0:0,lazy_itable_init=0"]);
    // A journal of the default size would be a third of a small image; no checksum features are taken away.
    mke2fs.args(["-J", "size=4", "-d"]).arg(folder).arg(&fresh).arg(format!("{size_mib}M"));
    let mut command = if is_root() {
        mke2fs
    } else {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user"]).arg(mke2fs.get_program()).args(mke2fs.get_args());
        unshare
    };
    let output = command
        .env("MKE2FS_CONFIG", tools.join("etc/mke2fs.conf"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    if !output.status.success() {
        bail!("mke2fs cannot make {}: {}", image.display(), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    fs::rename(fresh, image)?;
    Ok(())
}

/// Whether this process is root.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Allocated bytes of a tree (holes do not count), with a block for each file.
fn tree_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 4096;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { tree_bytes(&entry.path())? } else { metadata.blocks() * 512 + 4096 };
    }
    Ok(sum)
}

/// Copies a program of an unpacked set, a name or a path, and every library it needs into `stage`: it becomes `bin/<name>`, a
/// script that runs it with its own dynamic linker from `at` (where `stage` will be mounted).
///
/// # Errors
/// When the program or one of its libraries is missing.
pub fn stage_program(root: &Path, program: &str, stage: &Path, at: &str) -> anyhow::Result<()> {
    let path = debian::program_path(root, program)?;
    let mut list = debian::command(root, program)?;
    // The dynamic linker lists what the program would load when --list comes first.
    let arguments: Vec<_> = list.get_args().map(std::ffi::OsStr::to_owned).collect();
    list = Command::new(list.get_program());
    let output = list.arg("--list").args(arguments.iter().take(2)).arg(&path).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lib = stage.join("lib");
    let bin = stage.join("bin");
    fs::create_dir_all(&lib)?;
    fs::create_dir_all(&bin)?;
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{program} needs a library that its packages lack: {}", line.trim());
        }
        if let Some((name, rest)) = line.trim().split_once(" => ")
            && let Some(file) = rest.split_whitespace().next()
        {
            let name = Path::new(name).file_name().unwrap_or_default().to_owned();
            fs::copy(file, lib.join(&name)).with_context(|| format!("cannot copy {file}"))?;
        }
    }
    let loader = root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    fs::copy(loader, lib.join("ld.so")).context("cannot copy the dynamic linker")?;
    let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let real = format!("{program}.bin");
    fs::copy(&path, bin.join(&real))?;
    let script = format!("#!/bin/sh\nexec {at}/lib/ld.so --library-path {at}/lib {at}/bin/{real} \"$@\"\n");
    let script_path = bin.join(&*program);
    fs::write(&script_path, script)?;
    fs::set_permissions(&script_path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Copies a tree, keeping links.
///
/// # Errors
/// When cp fails.
pub fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    let status = Command::new("cp").args(["-a", "--no-preserve=ownership"]).arg(from.join(".")).arg(to).status()?;
    anyhow::ensure!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initramfs_has_its_parents_before_its_files_and_a_trailer() {
        let mut fs = Initramfs::new().unwrap();
        fs.file("a/b/c", b"hello").unwrap();
        fs.link("bin/sh", "busybox").unwrap();
        let archive = fs.finish().unwrap();
        let mut names = Vec::new();
        let mut rest = std::io::Cursor::new(archive);
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            let name = reader.entry().name().to_owned();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(name);
            rest = reader.finish().unwrap();
        }
        let at = |name: &str| names.iter().position(|n| n == name).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
        assert!(at("dev") < at("dev/console"));
    }
}
