//! The end of a VM whose vCPUs all sleep with interrupts off (reference section 2.5): nothing can wake them.
//!
//! KVM lets such vCPUs sleep for ever. Its statistics tell, without disturbing a vCPU, whether it sleeps; only when all of
//! them have slept for a while they are taken out and asked with what interrupt flag.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use kvm_bindings::KVM_MP_STATE_HALTED;
use kvm_ioctls::VcpuFd;
use zvmm::hypervisor::bhyve::abi::VM_SUSPEND_HALT;

use super::vm::Vm;

/// How often vCPUs are looked at, and how long all of them must have slept.
const EVERY: Duration = Duration::from_millis(100);
const LONG_ENOUGH: u32 = 3;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// Where KVM says whether a vCPU sleeps.
pub struct Sleeping {
    statistics: File,
    offset: u64,
}

impl Sleeping {
    /// `None` where KVM does not tell.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument and gives a new descriptor.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD as libc::Ioctl, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just opened, and nobody else's.
        let statistics = unsafe { File::from_raw_fd(fd) };
        let words = |at: u64, count: usize| {
            let mut bytes = vec![0; count * 4];
            statistics.read_exact_at(&mut bytes, at).ok()?;
            Some(
                bytes
                    .chunks_exact(4)
                    .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                    .collect::<Vec<_>>(),
            )
        };
        // struct kvm_stats_header: flags, size of a name, number of descriptors, offsets of id, descriptors and data.
        let header = words(0, 6)?;
        let (name_bytes, count) = (u64::from(header[1]), u64::from(header[2]));
        let (descriptors, data) = (u64::from(header[4]), u64::from(header[5]));
        for nth in 0..count {
            // struct kvm_stats_desc: flags, exponent and size, offset, bucket size, name.
            let at = descriptors + nth * (16 + name_bytes);
            let mut name = [0; 9];
            statistics.read_exact_at(&mut name, at + 16).ok()?;
            if &name == b"blocking\0" {
                let offset = data + u64::from(*words(at + 8, 1)?.first()?);
                return Some(Self { statistics, offset });
            }
        }
        None
    }

    fn now(&self) -> bool {
        let mut value = [0; 8];
        self.statistics.read_exact_at(&mut value, self.offset).is_ok() && u64::from_le_bytes(value) != 0
    }
}

/// Looks after a VM until it is gone.
pub fn watch(vm: &Arc<Vm>) {
    let vm = Arc::downgrade(vm);
    let builder = thread::Builder::new().name("double-halted".to_owned());
    let _ = builder.spawn(move || watcher(&vm));
}

fn watcher(vm: &Weak<Vm>) {
    let mut slept = 0;
    loop {
        thread::sleep(EVERY);
        let Some(vm) = vm.upgrade() else { return };
        slept = if vm.all_sleep() { slept + 1 } else { 0 };
        // Once in one sleep: to be asked takes a vCPU out of the guest.
        if slept == LONG_ENOUGH && vm.all_halted() {
            vm.suspend(VM_SUSPEND_HALT, -1);
        }
    }
}

impl Vm {
    fn all_sleep(&self) -> bool {
        let mut any = false;
        for slot in self.slots().iter().filter(|slot| slot.is_active()) {
            match slot.sleeping() {
                Some(sleeping) if sleeping.now() => any = true,
                _ => return false,
            }
        }
        any && self.suspended().is_none() && !self.is_paused()
    }

    fn all_halted(&self) -> bool {
        const INTERRUPT_FLAG: u64 = 1 << 9;
        self.slots().iter().filter(|slot| slot.is_active()).all(|slot| {
            let mut core = slot.hold();
            let halted = core.fd().and_then(|fd| fd.get_mp_state().map_err(|_| devices_host::sys::Errno::EIO));
            halted.is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED)
                && core.regs().is_ok_and(|regs| regs.rflags & INTERRUPT_FLAG == 0)
        })
    }
}
