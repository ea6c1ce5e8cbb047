//! illumos `/dev/kvm` (`smartos-zone` 7): its object model, its numbers and its rules over the machine's own KVM.
//!
//! Where both systems have the same structure, and after a structure was judged, its bytes go to the machine's KVM as
//! they are; what differs is the descriptors (`node`), the run page (`vcpu`), CPUID (`cpuid`), and what is refused.

mod capabilities;
mod commands;
mod cpuid;
mod errnos;
mod linux;
mod msrs;
mod node;
pub mod rules;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices_host::sys::{Errno, OpenAccess, OpenFlags, SysResult};

pub use self::commands::NAMES;
pub use self::errnos::ERRNOS;
use self::linux::Fd;
use self::node::KvmNode;
use self::vm::KvmVm;
use crate::node::{Driver, Node};
use crate::sys::DoubleSys;

/// The driver's major number.
const MAJOR: u64 = 267;

/// The driver.
pub struct Kvm {
    myself: Weak<Self>,
    system: Fd,
    next: AtomicU64,
    minors: Mutex<BTreeMap<u64, Weak<KvmNode>>>,
    vms: Mutex<Vec<Weak<KvmVm>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kvm {
    /// The driver of a machine without VMs.
    ///
    /// # Panics
    /// Where this machine has no `/dev/kvm`.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            myself: myself.clone(),
            system: Fd::open(),
            next: AtomicU64::new(1),
            minors: Mutex::default(),
            vms: Mutex::default(),
        })
    }

    fn create_vm(&self) -> SysResult<Arc<KvmVm>> {
        let mut vms = lock(&self.vms);
        let vm = Arc::new(KvmVm::new(self.system.create(linux::CREATE_VM, 0)?, vms.len() as u64));
        vms.push(Arc::downgrade(&vm));
        Ok(vm)
    }

    /// The VM of the descriptor with this device number, or why there is none.
    fn vm_of(&self, number: u64) -> SysResult<Arc<KvmVm>> {
        if number >> 32 != MAJOR {
            return Err(Errno::ENODEV);
        }
        let node = lock(&self.minors).get(&(number & u64::from(u32::MAX))).and_then(Weak::upgrade);
        let vm = node.ok_or(Errno::EINVAL)?.role().vm().cloned();
        vm.ok_or(Errno::ESRCH)
    }

    fn forget(&self, minor: u64) {
        lock(&self.minors).remove(&minor);
    }
}

impl Driver for Kvm {
    fn serves(&self, path: &str) -> bool {
        path == "/dev/kvm"
    }

    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        if flags.exclusive || flags.nonblocking || flags.access != OpenAccess::ReadWrite {
            let detail = format!("{path}: {flags:?}");
            return Err(process.ledger().refuse(&rules::OPEN_FLAGS, Errno::EINVAL, detail));
        }
        let minor = self.next.fetch_add(1, Ordering::Relaxed);
        let driver = self.myself.upgrade().ok_or(Errno::ENXIO)?;
        let node = Arc::new(KvmNode::new(driver, minor, Arc::downgrade(process.host())));
        lock(&self.minors).insert(minor, Arc::downgrade(&node));
        Ok(node)
    }

    fn leaks(&self) -> Vec<String> {
        lock(&self.vms).iter().filter_map(Weak::upgrade).map(|vm| format!("VM {} of /dev/kvm", vm.number)).collect()
    }
}
