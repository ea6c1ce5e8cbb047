//! A vCPU: its run page in the driver's form, and the machine's vCPU that does the work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use devices_host::sys::{Errno, Sys, SysResult, SysThread};
use zvmm::hypervisor::illumos_kvm::abi::{KVM_VCPU_MMAP_BYTES, exit, illumos_sigset};

use super::linux::{self, Fd, Memory, Shared};
use super::rules;
use super::vm::KvmVm;
use crate::node::Call;

const PAGE_BYTES: usize = 4096;
/// `exit_reason` of `kvm_run`, on both systems.
const EXIT_REASON: usize = 8;
/// `mmio.data`, on both systems.
const MMIO_DATA: std::ops::Range<usize> = 40..48;
/// The part of `kvm_run` that both systems have in common, after Linux' `immediate_exit`.
const COMMON: std::ops::Range<usize> = 8..288;
/// The port data: the second page, on both systems.
const PORT_DATA: std::ops::Range<usize> = PAGE_BYTES..2 * PAGE_BYTES;

/// The kick signal: SIGUSR1 as illumos and as Linux number it.
const KICK: (u32, u32) = (16, 10);
/// Signals that have the same number on both systems.
const SAME: [u32; 12] = [1, 2, 3, 4, 5, 6, 8, 11, 13, 14, 15, 9];
/// Linux signals that belong to its C library.
const LIBRARY: u64 = 1 << 31 | 1 << 32;

/// Calls of KVM_RUN in a row that a kick ended before they began, until somebody has forgotten to take it away. A storm
/// of kicks looks the same for a while.
const MOST_INTERRUPTED: usize = 100_000;

/// Calls of KVM_RUN between two looks at the memory of all slots.
const LOOK_EVERY: usize = 1 << 16;

/// One vCPU.
pub struct KvmVcpu {
    pub vm: Arc<KvmVm>,
    pub fd: Fd,
    pub id: usize,
    /// Linux' shared pages.
    linux: Shared,
    memory: Memory,
    /// The driver's, as the kernel sees them.
    page: Shared,
    /// Held by whoever uses the vCPU.
    busy: Mutex<()>,
    thread: Mutex<Option<SysThread>>,
    mask: Mutex<Option<u64>>,
    pub has_cpuid: AtomicBool,
    interrupted: AtomicUsize,
    runs: AtomicUsize,
}

impl KvmVcpu {
    pub fn new(system: &Fd, vm: Arc<KvmVm>, id: usize) -> SysResult<Self> {
        let fd = vm.fd.create(0xae41, id)?;
        let shared_bytes = usize::try_from(system.value(linux::GET_VCPU_MMAP_SIZE, 0)?).map_err(|_| Errno::EINVAL)?;
        let linux = fd.map(shared_bytes)?;
        let memory = Memory::new(KVM_VCPU_MMAP_BYTES)?;
        let page = memory.map(KVM_VCPU_MMAP_BYTES)?;
        Ok(Self {
            vm,
            fd,
            id,
            linux,
            memory,
            page,
            busy: Mutex::default(),
            thread: Mutex::default(),
            mask: Mutex::default(),
            has_cpuid: AtomicBool::new(false),
            interrupted: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
        })
    }

    /// A mapping for the process.
    pub fn map(&self) -> SysResult<Shared> {
        self.memory.map(KVM_VCPU_MMAP_BYTES)
    }

    /// Nobody else may ask the vCPU anything while this is held. The driver has no lock of its own here.
    pub fn alone(&self, call: &Call<'_>, command: &str) -> SysResult<MutexGuard<'_, ()>> {
        match self.busy.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let detail = format!("vCPU {}: {command} while another thread uses it", self.id);
                Err(call.refuse(&rules::ONE_THREAD, Errno::EBUSY, detail))
            }
        }
    }

    /// KVM_SET_SIGNAL_MASK, with the whole argument.
    pub fn set_signal_mask(&self, mask: &illumos_sigset) -> SysResult<()> {
        let blocked = |signal: u32| {
            let bit = signal - 1;
            mask.__sigbits[(bit / 32) as usize] & 1 << (bit % 32) != 0
        };
        // What has another number here stays as the thread has it, which is blocked.
        let mut linux_mask = !LIBRARY;
        for (ours, theirs) in SAME.into_iter().map(|signal| (signal, signal)).chain([KICK]) {
            if !blocked(ours) {
                linux_mask &= !(1 << (theirs - 1));
            }
        }
        let mut argument = [0_u8; 12];
        argument[..4].copy_from_slice(&8_u32.to_ne_bytes());
        argument[4..].copy_from_slice(&linux_mask.to_ne_bytes());
        // SAFETY: a length and as many bytes.
        unsafe { self.fd.bytes(linux::SET_SIGNAL_MASK, &mut argument) }?;
        *self.mask.lock().unwrap_or_else(PoisonError::into_inner) = Some(linux_mask);
        Ok(())
    }

    fn check_thread(&self, call: &Call<'_>) {
        let current = call.process.current_thread();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if *thread.get_or_insert(current) != current {
            call.note(&rules::ONE_THREAD, format!("vCPU {} runs on a second thread", self.id));
            *thread = Some(current);
        }
    }

    /// Refuses a run that nobody could get out of any more.
    fn check_signals(&self, call: &Call<'_>) -> SysResult<()> {
        let blocked = linux::blocked_signals();
        let kick = 1_u64 << (KICK.1 - 1);
        if blocked & kick == 0 {
            call.note(&rules::KICK_BLOCKED, format!("vCPU {}", self.id));
        }
        let mask = *self.mask.lock().unwrap_or_else(PoisonError::into_inner);
        let kept_out = mask.unwrap_or(blocked);
        if kept_out & kick != 0 {
            let detail = format!("vCPU {}: mask {mask:x?} keeps the kick out", self.id);
            return Err(call.refuse(&rules::KICK_UNMASKED, Errno::EINVAL, detail));
        }
        let unblockable = 1_u64 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
        if blocked & !kept_out & !kick & !LIBRARY & !unblockable != 0 {
            let detail = format!("vCPU {}: mask {kept_out:#x} over {blocked:#x}", self.id);
            call.note(&rules::KICK_UNMASKED, detail);
        }
        Ok(())
    }

    /// KVM_RUN.
    pub fn run(&self, call: &Call<'_>) -> SysResult<i32> {
        self.check_thread(call);
        self.check_signals(call)?;
        if !self.has_cpuid.load(Ordering::Relaxed) {
            call.note(&rules::CPUID_BEFORE_RUN, format!("vCPU {}", self.id));
        }
        if self.page.read::<1>(1) != [0] {
            call.note(&rules::RUN_PAGE, format!("vCPU {}: the byte that is Linux' immediate exit is set", self.id));
        }
        if self.runs.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY) {
            self.vm.check_all_memory(call.ledger());
        }
        let was_pending = linux::pending_signals() & 1 << (KICK.1 - 1) != 0;
        // The answer to the last exit. It lies in the same places.
        match self.linux.word(EXIT_REASON) {
            exit::IO => self.linux.copy_from(&self.page, PORT_DATA),
            exit::MMIO => self.linux.copy_from(&self.page, MMIO_DATA),
            _ => {}
        }
        let result = self.fd.value(0xae80, 0);
        self.page.copy_from(&self.linux, COMMON);
        if self.linux.word(EXIT_REASON) == exit::IO {
            self.page.copy_from(&self.linux, PORT_DATA);
        }
        if result == Err(Errno::EINTR) && was_pending {
            if self.interrupted.fetch_add(1, Ordering::Relaxed) + 1 == MOST_INTERRUPTED {
                call.note(&rules::KICK_TAKEN, format!("vCPU {}: {MOST_INTERRUPTED} times in a row", self.id));
            }
        } else {
            self.interrupted.store(0, Ordering::Relaxed);
        }
        result
    }
}
