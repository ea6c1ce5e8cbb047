//! Debian kernels: where they are, their modules in load order, and the ELF image inside a bzImage.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

use crate::{debian, paths};

/// The kernels guests are booted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Which {
    /// Debian 12's own cloud kernel.
    #[value(name = "6.1")]
    Stable,
    /// The newest cloud kernel of Debian 12's backports.
    Backports,
}

impl Which {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stable, Self::Backports];

    /// The name used in file names and scenario names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stable => "6.1",
            Self::Backports => "backports",
        }
    }
}

/// An unpacked kernel package.
pub struct Kernel {
    /// Which one.
    pub which: Which,
    /// `uname -r`.
    pub release: String,
    /// The bzImage.
    pub bzimage: PathBuf,
    /// The uncompressed ELF image.
    pub vmlinux: PathBuf,
    modules: PathBuf,
}

/// Fetches a kernel and extracts its ELF image.
///
/// # Errors
/// When the package cannot be had or holds no kernel of the expected form.
pub fn get(which: Which) -> anyhow::Result<Kernel> {
    let package = match which {
        Which::Stable => "linux-image-cloud-amd64".to_owned(),
        Which::Backports => format!("linux-image-cloud-amd64/{}", debian::BACKPORTS),
    };
    let set = format!("kernel-{}", which.name());
    let root = debian::unpack(&set, &[&package])?;
    let bzimage = fs::read_dir(root.join("boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("{} holds no boot/vmlinuz-*", root.display()))?;
    let release = bzimage.file_name().unwrap_or_default().to_string_lossy().trim_start_matches("vmlinuz-").to_owned();
    let vmlinux = paths::lab().join(format!("vmlinux-{release}"));
    if !vmlinux.exists() {
        let image = extract_vmlinux(&fs::read(&bzimage)?)
            .with_context(|| format!("cannot extract the ELF image of {}", bzimage.display()))?;
        let fresh = vmlinux.with_extension("new");
        fs::write(&fresh, image)?;
        fs::rename(fresh, &vmlinux)?;
    }
    Ok(Kernel { which, modules: root.join("usr/lib/modules").join(&release), release, bzimage, vmlinux })
}

impl Kernel {
    /// The named modules and what they depend on, uncompressed, in load order; built-in ones are left out.
    ///
    /// # Errors
    /// When a module exists neither as a file nor built in.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let built_in: BTreeSet<String> = fs::read_to_string(self.modules.join("modules.builtin"))?
            .lines()
            .map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = Vec::new();
        walk(&self.modules.join("kernel"), &mut files)?;
        let mut done = BTreeSet::new();
        let mut result = Vec::new();
        for name in names {
            self.add(&name.replace('-', "_"), &files, &built_in, &mut done, &mut result)?;
        }
        Ok(result)
    }

    fn add(
        &self,
        name: &str,
        files: &[PathBuf],
        built_in: &BTreeSet<String>,
        done: &mut BTreeSet<String>,
        result: &mut Vec<(String, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        if built_in.contains(name) || !done.insert(name.to_owned()) {
            return Ok(());
        }
        let path = files
            .iter()
            .find(|path| module_name(path) == name)
            .with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let mut content = fs::read(path)?;
        if path.extension().is_some_and(|e| e == "xz") {
            let mut plain = Vec::new();
            lzma_rust2::XzReader::new(content.as_slice(), true)
                .read_to_end(&mut plain)
                .with_context(|| format!("cannot decompress {}", path.display()))?;
            content = plain;
        }
        for dependency in depends(&content) {
            self.add(&dependency.replace('-', "_"), files, built_in, done, result)?;
        }
        result.push((format!("{name}.ko"), content));
        Ok(())
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// `kernel/drivers/block/virtio_blk.ko.xz` → `virtio_blk`; modules are named with `_` whatever the file says.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The `depends=` entry of a module's `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[start + KEY.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end]).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Takes the ELF image out of a bzImage: setup header fields `setup_sects` (0x1f1), `payload_offset` (0x248) and
/// `payload_length` (0x24c), Linux x86 boot protocol 2.08.
fn extract_vmlinux(bzimage: &[u8]) -> anyhow::Result<Vec<u8>> {
    let word = |at: usize| -> anyhow::Result<usize> {
        let bytes = bzimage.get(at..at + 4).context("the image ends inside its header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(bzimage.get(0x202..0x206) == Some(b"HdrS"), "no setup header");
    let setup_sectors = match bzimage.get(0x1f1) {
        Some(0) | None => 4,
        Some(&n) => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bzimage.get(start..start + word(0x24c)?).context("the payload ends beyond the image")?;
    let image = match payload {
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => unpack_lz4_legacy(rest)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            // The kernel's zstd window is up to 128 MiB; the last 4 bytes are the unpacked size.
            let mut plain = Vec::new();
            ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, 256 << 20)
                .map_err(|error| anyhow::anyhow!("zstd: {error}"))?
                .read_to_end(&mut plain)?;
            plain
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            let mut plain = Vec::new();
            lzma_rust2::XzReader::new(payload, false).read_to_end(&mut plain)?;
            plain
        }
        _ => bail!("unknown compression {:02x?}", payload.get(..4)),
    };
    ensure!(image.starts_with(b"\x7fELF"), "the payload is no ELF image");
    Ok(image)
}

/// The legacy LZ4 frame the kernel uses: blocks of a 32-bit length and data, each at most 8 MiB unpacked; the last four
/// bytes are the unpacked size of all.
fn unpack_lz4_legacy(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    const BLOCK_MAX: usize = 8 << 20;
    let mut plain = Vec::new();
    while rest.len() > 4 {
        let (length, tail) = rest.split_at(4);
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        let block = tail.get(..length).context("an LZ4 block ends beyond the payload")?;
        plain.extend(lz4_flex::block::decompress(block, BLOCK_MAX)?);
        rest = &tail[length..];
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_lose_folder_suffix_and_dashes() {
        assert_eq!(module_name(Path::new("kernel/arch/x86/kvm/kvm-amd.ko.xz")), "kvm_amd");
    }

    #[test]
    fn the_dependencies_of_a_module_are_read_from_its_modinfo() {
        assert_eq!(depends(b"ELF\0license=GPL\0depends=virtio,virtio_ring\0x"), ["virtio", "virtio_ring"]);
        assert!(depends(b"ELF\0depends=\0x").is_empty());
    }

    #[test]
    fn a_file_without_setup_header_is_refused() {
        assert!(extract_vmlinux(&[0; 4096]).unwrap_err().to_string().contains("setup header"));
    }
}
