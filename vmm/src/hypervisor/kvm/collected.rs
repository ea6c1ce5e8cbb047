//! Port writes that KVM collects instead of returning to the process (coalesced PIO, Linux
//! `Documentation/virt/kvm/api.rst` §4.116): an index register is written for nothing but the data access that follows.
//!
//! KVM puts the writes of all vCPUs of a VM into one ring, in order. Whoever leaves the guest next takes them out before
//! its own exit is answered, so no access overtakes an earlier one.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VmFd};

use crate::hypervisor::PortCollector;

const PAGE_BYTES: usize = 4096;
const ENTRIES: u32 = ((PAGE_BYTES - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The VM's ring, mapped from one of its vCPUs.
pub struct Collected {
    page: NonNull<kvm_coalesced_mmio_ring>,
    /// Held by the vCPU that takes writes out.
    taking: Mutex<()>,
}

// SAFETY: the page is only read and written through atomics and, for entries, under `taking`; it belongs to the VM, not
// to a thread.
unsafe impl Send for Collected {}
// SAFETY: as above.
unsafe impl Sync for Collected {}

impl Collected {
    /// Maps the ring through any vCPU's descriptor. The mapping outlives the descriptor.
    pub fn map(vcpu: RawFd) -> io::Result<Self> {
        let offset = KVM_COALESCED_MMIO_PAGE_OFFSET as usize * PAGE_BYTES;
        // SAFETY: a new shared mapping of a page the kernel offers, at an address of its choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                offset as libc::off_t,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok(Self { page, taking: Mutex::new(()) })
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: inside the mapped page, aligned, and only ever accessed atomically here.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).first) }
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: as above; KVM stores it after the entry, with a write barrier between.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).last) }
    }

    fn is_empty(&self) -> bool {
        self.first().load(Ordering::Relaxed) == self.last().load(Ordering::Acquire)
    }

    /// Hands every collected write to `write` as port and data. Takes no lock while there is nothing.
    pub fn take(&self, mut write: impl FnMut(u16, &[u8])) {
        if self.is_empty() {
            return;
        }
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        // At most a ring full a call: other vCPUs go on writing.
        for _ in 0..ENTRIES {
            if self.is_empty() {
                break;
            }
            let index = self.first().load(Ordering::Relaxed) % ENTRIES;
            // SAFETY: the index is inside the page, and KVM does not touch an entry between its `last` and our `first`.
            let entry = unsafe { (*self.page.as_ptr()).coalesced_mmio.as_ptr().add(index as usize).read() };
            let len = (entry.len as usize).min(entry.data.len());
            write(entry.phys_addr as u16, &entry.data[..len]);
            self.first().store((index + 1) % ENTRIES, Ordering::Release);
        }
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        // SAFETY: the mapping is this struct's own, and nobody holds a reference into it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
    }
}

/// The machine's handle on collecting.
pub struct KvmPortCollector {
    vm: Arc<VmFd>,
    ring: Arc<Collected>,
}

impl KvmPortCollector {
    /// A handle on the VM whose ring this is.
    pub fn new(vm: Arc<VmFd>, ring: Arc<Collected>) -> Self {
        Self { vm, ring }
    }
}

impl PortCollector for KvmPortCollector {
    fn collect(&self, port: u16, len: u8) -> bool {
        self.vm.register_coalesced_mmio(IoEventAddress::Pio(port.into()), len.into()).is_ok()
    }

    fn release(&self, port: u16, len: u8) {
        if let Err(error) = self.vm.unregister_coalesced_mmio(IoEventAddress::Pio(port.into()), len.into()) {
            log::warn!("KVM_UNREGISTER_COALESCED_MMIO: {error}");
        }
    }

    fn take_out(&self, write: &mut dyn FnMut(u16, &[u8])) {
        self.ring.take(write);
    }
}
