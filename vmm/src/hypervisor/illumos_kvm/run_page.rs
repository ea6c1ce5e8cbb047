//! What the driver shares of a vCPU: the exit page, and behind it the page of port data.

use std::ptr::NonNull;

use devices_host::sys::{Mapping, SysResult};

use super::abi::{KVM_EXIT_IO_OUT, KVM_PIO_PAGE_OFFSET, KVM_VCPU_MMAP_BYTES, exit, kvm_run};
use super::device::Device;

const PAGE_BYTES: usize = 4096;

/// Why KVM_RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Port access: the data is [`RunPage::port_data`].
    Port {
        /// `out`, not `in`.
        out: bool,
        /// The port.
        port: u16,
        /// Width of an element: 1, 2 or 4 bytes.
        width: usize,
        /// Bytes of all elements.
        len: usize,
    },
    /// Memory access: the data is [`RunPage::mmio_data`].
    Mmio {
        /// A write.
        write: bool,
        /// Guest-physical address.
        address: u64,
        /// Width, 1 to 8 bytes.
        len: usize,
    },
    /// Triple fault.
    Shutdown,
    /// HLT that reached the process.
    Halt,
    /// A signal.
    Interrupted,
    /// The processor refused to enter the guest.
    FailedEntry(u64),
    /// The driver's own failure, by its sub-error.
    Internal(u32),
    /// Nothing this machine asked for: reason, and the hardware's reason if it is [`exit::UNKNOWN`].
    Other(u32, u64),
}

/// The shared pages of one vCPU. Only its own thread uses them, between two KVM_RUN.
pub struct RunPage(Mapping);

impl RunPage {
    /// Maps the pages of `vcpu`.
    pub fn map(vcpu: &Device) -> SysResult<Self> {
        vcpu.map_vcpu().map(Self)
    }

    fn run(&self) -> NonNull<kvm_run> {
        self.0.start().cast()
    }

    /// The exit the last KVM_RUN left. Lengths are cut to what there is room for.
    pub fn exit(&self) -> Exit {
        let run = self.run().as_ptr();
        // SAFETY: the page is mapped as long as `self`, the driver writes to it only inside KVM_RUN, which this thread is
        // not in, and any bytes are values of the union's members.
        unsafe {
            match (*run).exit_reason {
                exit::IO => {
                    let io = (*run).u.io;
                    let width = usize::from(io.size).max(1);
                    let len = width.saturating_mul(io.count as usize).min(PAGE_BYTES);
                    Exit::Port { out: io.direction == KVM_EXIT_IO_OUT, port: io.port, width, len }
                }
                exit::MMIO => {
                    let mmio = (*run).u.mmio;
                    let len = (mmio.len as usize).min(mmio.data.len());
                    Exit::Mmio { write: mmio.is_write != 0, address: mmio.phys_addr, len }
                }
                exit::SHUTDOWN => Exit::Shutdown,
                exit::HLT => Exit::Halt,
                exit::INTR => Exit::Interrupted,
                exit::FAIL_ENTRY => Exit::FailedEntry((*run).u.fail_entry.hardware_entry_failure_reason),
                exit::INTERNAL_ERROR => Exit::Internal((*run).u.internal.suberror),
                reason => Exit::Other(reason, (*run).u.hw.hardware_exit_reason),
            }
        }
    }

    /// The data of a port exit, `len` bytes of its page.
    pub fn port_data(&mut self, len: usize) -> &mut [u8] {
        const { assert!((KVM_PIO_PAGE_OFFSET + 1) * PAGE_BYTES <= KVM_VCPU_MMAP_BYTES) };
        // SAFETY: the second page of the mapping, cut to its length; `&mut self` is the only way to it.
        unsafe {
            let start = self.0.start().as_ptr().add(KVM_PIO_PAGE_OFFSET * PAGE_BYTES);
            std::slice::from_raw_parts_mut(start, len.min(PAGE_BYTES))
        }
    }

    /// The data of a memory exit, `len` bytes.
    pub fn mmio_data(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: inside the first page; `&mut self` is the only way to it.
        let data = unsafe { &mut (*self.run().as_ptr()).u.mmio.data };
        let len = len.min(data.len());
        &mut data[..len]
    }
}
