//! What the guest finds in memory at its first instruction: kernel, initrd, command line and firmware tables.
//!
//! The files stay open, so that a guest reset places the same bytes again whatever happens to their paths.

use std::fs::File;
use std::io::{Seek, SeekFrom};

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
        let mut kernel = open("kernel", &config.kernel)?;
        let mut initrd = config.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let initrd_bytes = initrd
            .as_mut()
            .map(|file| file.seek(SeekFrom::End(0)))
            .transpose()
            .map_err(|error| format!("initrd: {}", crate::config::system_text(&error)))?;
        let plan = boot::inspect(&mut kernel, initrd_bytes, &config.cmdline, layout, None)
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
        let mut kernel = self.kernel.try_clone().map_err(|error| format!("kernel: {error}"))?;
        let mut initrd =
            self.initrd.as_ref().map(File::try_clone).transpose().map_err(|error| format!("initrd: {error}"))?;
        let placement = Placement { rsdp: Some(rsdp), ecam, reused_memory };
        let loaded =
            boot::place(&self.plan, placement, ram, &mut kernel, initrd.as_mut()).map_err(|error| error.to_string())?;
        Ok(VcpuStart::Boot(Box::new(loaded.boot_cpu())))
    }
}
