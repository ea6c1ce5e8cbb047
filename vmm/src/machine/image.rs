//! What the guest finds in memory at its first instruction: kernel, initrd, command line and firmware tables.
//!
//! The files stay open, so that a guest reset places the same bytes again whatever happens to their paths.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

use arch::boot::{self, BootPlan, Placement};
use arch::layout::MemoryLayout;
use devices::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::config::BootConfig;
use crate::hypervisor::VcpuStart;

/// A kernel that fits the memory map, with its files open.
pub struct KernelImage {
    kernel: File,
    initrd: Option<File>,
    plan: BootPlan,
}

/// Reads a file in pages and remembers the last one: headers are read a few bytes at a time, here and there.
struct Headers<'a> {
    file: &'a File,
    position: u64,
    page_start: u64,
    page: Vec<u8>,
}

impl<'a> Headers<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, position: 0, page_start: 0, page: Vec::new() }
    }
}

impl Read for Headers<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        const PAGE: usize = 4096;
        let known = |page: &[u8], start: u64, position: u64| {
            let offset = usize::try_from(position.checked_sub(start)?).ok()?;
            (offset < page.len()).then_some(offset)
        };
        let offset = match known(&self.page, self.page_start, self.position) {
            Some(offset) => offset,
            None => {
                let mut page = std::mem::take(&mut self.page);
                page.resize(PAGE, 0);
                let read = self.file.read_at(&mut page, self.position)?;
                page.truncate(read);
                (self.page, self.page_start) = (page, self.position);
                0
            }
        };
        let count = (self.page.len() - offset).min(bytes.len());
        bytes[..count].copy_from_slice(&self.page[offset..offset + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::End(offset) => (self.file.metadata()?.len(), offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        self.position = base
            .checked_add_signed(offset)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a position before the start of the file"))?;
        Ok(self.position)
    }
}

/// Firmware tables: guest address and bytes of each.
pub type Tables = Vec<(u64, Vec<u8>)>;

impl KernelImage {
    /// Opens and checks kernel, initrd and command line. Reads headers only; no guest memory exists yet.
    pub fn open(config: &BootConfig, layout: &MemoryLayout) -> Result<Self, String> {
        let open = |what: &str, path: &std::path::Path| {
            File::open(path).map_err(|error| {
                format!("{what}: cannot open {}: {}", path.display(), crate::config::system_text(&error))
            })
        };
        let kernel = open("kernel", &config.kernel)?;
        let mut initrd = config.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let initrd_bytes = initrd
            .as_mut()
            .map(|file| file.seek(SeekFrom::End(0)))
            .transpose()
            .map_err(|error| format!("initrd: {}", crate::config::system_text(&error)))?;
        let plan = boot::inspect(&mut Headers::new(&kernel), initrd_bytes, &config.cmdline, layout, None)
            .map_err(|error| format!("kernel {}: {error}", config.kernel.display()))?;
        Ok(Self { kernel, initrd, plan })
    }

    /// Writes everything into guest memory and says how the boot processor starts.
    pub fn place(
        &self,
        ram: &GuestRam,
        tables: &Tables,
        rsdp: u64,
        ecam: bool,
        reused_memory: bool,
    ) -> Result<VcpuStart, String> {
        for (address, bytes) in tables {
            ram.write_slice(bytes, GuestAddress(*address)).map_err(|error| format!("firmware tables: {error}"))?;
        }
        // `&File` reads and seeks too; the offset is shared, but only one thread ever places the image.
        let (mut kernel, mut initrd) = (&self.kernel, self.initrd.as_ref());
        let placement = Placement { rsdp: Some(rsdp), ecam, reused_memory };
        let loaded =
            boot::place(&self.plan, placement, ram, &mut kernel, initrd.as_mut()).map_err(|error| error.to_string())?;
        Ok(VcpuStart::Boot(Box::new(loaded.boot_cpu())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_here_and_there_are_the_bytes_of_the_file() {
        let content: Vec<u8> = (0..10_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let mut headers = Headers::new(&file);
        for (start, count) in [(0, 64), (64, 56), (4090, 100), (9_000, 1_000), (10, 10_000 - 10), (5_000, 5_000)] {
            let mut bytes = vec![0; count];
            assert_eq!(headers.seek(SeekFrom::Start(start as u64)).unwrap(), start as u64);
            headers.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, content[start..start + count], "{start}+{count}");
        }
        assert_eq!(headers.seek(SeekFrom::End(0)).unwrap(), 10_000);
        assert_eq!(headers.read(&mut [0; 8]).unwrap(), 0);
        headers.seek(SeekFrom::Start(9_990)).unwrap();
        assert_eq!(headers.read_exact(&mut [0; 11]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(headers.seek(SeekFrom::Current(-20_000)).is_err());
    }
}
