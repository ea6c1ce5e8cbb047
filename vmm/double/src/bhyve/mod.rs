//! bhyve: `/dev/vmmctl` and `/dev/vmm/<name>`.
//!
//! The guest runs on this machine's KVM with its in-kernel interrupt controllers and timer chip. RTC, PM timer and HPET,
//! which bhyve has in the kernel and KVM has not, are served here, before an exit would reach the process.
//!
//! Not modelled: IOAPIC inputs 24 to 31, interrupts of HPET and RTC, dirty tracking, PCI pass-through, MTRR types, the short
//! list of instructions that bhyve's MMIO decoder knows, and the exact frequency of the local APIC timer (125 MHz in
//! place of 134 MHz; 1 GHz on Linux before 6.11).

mod args;
mod clock;
mod control;
mod cpuid;
mod data;
mod fpu;
mod halted;
mod hooks;
mod irq;
mod machine;
mod memory;
mod msr;
mod registers;
pub mod rules;
mod run;
mod slot;
pub(crate) mod user;
mod vcpu;
mod vm;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use devices::GuestRam;
use devices_host::sys::{DeviceNumber, Errno, IoctlArg, MapRequest, OpenFlags, RawHandle, SysResult};
use zvmm::hypervisor::bhyve::abi::{VM_DESTROY_PENDING, VM_DESTROY_SELF, VM_SET_AUTODESTRUCT, VMM_INTERFACE_VERSION};

pub use self::hooks::{Notify, Place};
use self::vm::Vm;
use crate::node::{Call, Driver, Node};
use crate::sys::DoubleSys;

/// A kernel: what differs between those in use.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its interface version.
    pub version: i32,
    /// vCPUs of a VM.
    pub max_cpus: i32,
    /// Memory that VMs can have, in bytes.
    pub memory_bytes: u64,
    /// Memory that is set aside for VMs, in bytes.
    pub reservoir_bytes: usize,
}

/// SmartOS of 2025: interface version 18, 64 vCPUs.
impl Default for Config {
    fn default() -> Self {
        Self { version: 18, max_cpus: 64, memory_bytes: 1 << 40, reservoir_bytes: 0 }
    }
}

/// What keeps a VM, and what lets it go.
#[derive(Default)]
struct Life {
    /// Opens, by process.
    opens: BTreeMap<usize, usize>,
    mappings: usize,
    /// Holds of other drivers.
    holds: usize,
    autodestruct: bool,
    destroy: bool,
}

struct Entry {
    vm: Arc<Vm>,
    life: Life,
}

/// The driver: the VMs of all zones of a machine.
pub struct Vmm {
    config: Config,
    this: Weak<Self>,
    vms: Mutex<Registry>,
    changed: Condvar,
}

#[derive(Default)]
struct Registry {
    by_name: BTreeMap<String, Entry>,
    minors: u64,
    reservoir: usize,
}

impl Vmm {
    /// The driver of a machine without VMs.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(Config::default())
    }

    /// The same for another kernel.
    #[must_use]
    pub fn with(config: Config) -> Arc<Self> {
        let reservoir = config.reservoir_bytes;
        Arc::new_cyclic(|this| Self {
            config,
            this: this.clone(),
            vms: Mutex::new(Registry { reservoir, ..Registry::default() }),
            changed: Condvar::new(),
        })
    }

    /// Names of the VMs that exist.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.registry().by_name.keys().cloned().collect()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what keeps a VM, and destroys it if nothing does any more and somebody wants that.
    fn change<R>(&self, name: &str, change: impl FnOnce(&mut Life) -> R) -> Option<R> {
        let mut registry = self.registry();
        let entry = registry.by_name.get_mut(name)?;
        let result = change(&mut entry.life);
        let life = &entry.life;
        let closed = life.opens.is_empty() && life.mappings == 0 && life.holds == 0;
        let gone = closed && (life.destroy || life.autodestruct);
        let last = gone.then(|| registry.by_name.remove(name));
        drop(registry);
        self.changed.notify_all();
        drop(last);
        Some(result)
    }
}

/// An open `/dev/vmm/<name>`. Other drivers of the machine reach the VM through it.
pub struct VmNode {
    driver: Arc<Vmm>,
    vm: Arc<Vm>,
    process: usize,
}

/// Keeps a VM from being destroyed: another driver is attached to it.
pub struct VmHold {
    driver: Arc<Vmm>,
    vm: Arc<Vm>,
}

impl VmHold {
    /// A message-signalled interrupt: address, which is one of interrupts, and data.
    pub fn msi(&self, addr: u64, msg: u64) {
        self.vm.msi(addr, msg);
    }

    /// Puts a notification hook on a port or addresses of the guest: REINIT is refused until it is
    /// [removed](Self::unhook). `None` where another one is.
    #[must_use]
    pub fn hook(&self, place: Place, notify: Notify) -> Option<u64> {
        self.vm.hooks.add(place, notify)
    }

    /// Takes a hook away.
    pub fn unhook(&self, id: u64) {
        self.vm.hooks.remove(id);
    }

    /// The guest's memory. It stays as long as the hold does.
    ///
    /// # Errors
    /// ENOMEM where there is none.
    pub fn ram(&self) -> SysResult<GuestRam> {
        self.vm.memory().guest()
    }

    /// Whether the VM is marked for destruction.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.vm.is_dying()
    }
}

impl Drop for VmHold {
    fn drop(&mut self) {
        self.driver.change(&self.vm.name, |life| life.holds -= 1);
    }
}

impl VmNode {
    /// Attaches another driver to the VM.
    ///
    /// # Errors
    /// ENXIO for a VM that is being destroyed.
    pub fn attach(&self) -> SysResult<VmHold> {
        if self.vm.is_dying() {
            return Err(Errno::ENXIO);
        }
        self.driver.change(&self.vm.name, |life| life.holds += 1).ok_or(Errno::ENXIO)?;
        Ok(VmHold { driver: self.driver.clone(), vm: self.vm.clone() })
    }
}

impl Driver for Vmm {
    fn serves(&self, path: &str) -> bool {
        path == "/dev/vmmctl" || path.starts_with("/dev/vmm/")
    }

    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        let driver = self.this.upgrade().ok_or(Errno::ENXIO)?;
        let Some(name) = path.strip_prefix("/dev/vmm/") else {
            return control::Control::open(driver, process, flags);
        };
        let zone = process.zone();
        let mut registry = self.registry();
        let visible = |entry: &&mut Entry| zone.is_global() || entry.vm.zone == zone.id;
        let entry = registry.by_name.get_mut(name).filter(|entry| visible(entry)).ok_or(Errno::ENOENT)?;
        if entry.vm.is_dying() {
            return Err(Errno::ENXIO);
        }
        let process = std::ptr::from_ref(process) as usize;
        *entry.life.opens.entry(process).or_default() += 1;
        let vm = entry.vm.clone();
        drop(registry);
        Ok(Arc::new(VmNode { driver, vm, process }))
    }

    fn leaks(&self) -> Vec<String> {
        self.registry().by_name.keys().map(|name| format!("VM {name}")).collect()
    }
}

impl Node for VmNode {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let version = self.vm.config.version;
        let spec = args::find(call, request, version)?;
        if spec.class == args::Class::Control && request != VMM_INTERFACE_VERSION {
            return Err(call.refuse(&rules::COMMAND, Errno::ENOTTY, crate::names::ioctl(request)));
        }
        let arg = spec.argument(call, arg)?;
        let number = match &arg {
            args::Arg::Number(value) => *value,
            args::Arg::Structure(_) => 0,
        };
        if request == VM_DESTROY_PENDING {
            return Ok(i32::from(self.vm.is_dying()));
        }
        if self.vm.is_dying() {
            return Err(call.refuse(&rules::DYING, Errno::ENXIO, crate::names::ioctl(request)));
        }
        match request {
            VMM_INTERFACE_VERSION if version < 6 => {
                Err(call.refuse(&rules::VERSION, Errno::ENOTTY, "the version asked of a VM"))
            }
            VMM_INTERFACE_VERSION => Ok(version),
            VM_SET_AUTODESTRUCT => {
                self.driver.change(&self.vm.name, |life| life.autodestruct = number != 0);
                Ok(0)
            }
            VM_DESTROY_SELF => {
                self.vm.die();
                self.driver.change(&self.vm.name, |life| life.destroy = true);
                Ok(0)
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.vm.ioctl(call, spec, arg) },
        }
    }

    fn mmap(&self, call: &Call<'_>, request: MapRequest) -> SysResult<NonNull<u8>> {
        if self.vm.is_dying() {
            return Err(Errno::ENXIO);
        }
        let start = self.vm.memory().view(call, request)?;
        self.driver.change(&self.vm.name, |life| life.mappings += 1);
        Ok(start)
    }

    fn unmapped(&self, _start: NonNull<u8>, _len_bytes: usize) {
        self.driver.change(&self.vm.name, |life| life.mappings -= 1);
    }

    fn close(&self) {
        self.driver.change(&self.vm.name, |life| {
            if let Some(count) = life.opens.get_mut(&self.process) {
                *count -= 1;
                if *count == 0 {
                    life.opens.remove(&self.process);
                }
            }
        });
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(261 << 32 | self.vm.minor)
    }
}

/// The VM behind an open handle of the caller, for other drivers.
#[must_use]
pub fn attached(call: &Call<'_>, handle: RawHandle) -> Option<SysResult<VmHold>> {
    let node = call.other(handle)?;
    let any: &dyn std::any::Any = &*node;
    any.downcast_ref::<VmNode>().map(VmNode::attach)
}

#[cfg(test)]
mod tests;
