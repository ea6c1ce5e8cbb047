//! One VM: what its ioctls do, and how they lock it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::args::{Arg, Class, Spec};
use super::clock::{Hpet, PmTimer, Rtc};
use super::hooks::Hooks;
use super::irq::{self, Edge, Lines};
use super::machine::Machine;
use super::memory::Memory;
use super::slot::{Held, Slot};
use super::user::{array_in, array_out, copy_out, get, put};
use super::vcpu::Core;
use super::{Config, cpuid, rules};
use crate::names;
use crate::node::Call;

/// One VM.
pub struct Vm {
    pub name: String,
    pub zone: u32,
    pub minor: u64,
    pub config: Config,
    pub machine: Arc<Machine>,
    slots: Vec<Slot>,
    /// Held as writer by who freezes the VM, as reader by who must not run beside that.
    freeze: RwLock<()>,
    memory: RwLock<Memory>,
    paused: AtomicBool,
    suspended: Mutex<Option<vm_exit_suspended>>,
    dying: AtomicBool,
    pub lines: Mutex<Lines>,
    pub rtc: Mutex<Rtc>,
    pub pm_timer: Mutex<PmTimer>,
    pub hpet: Mutex<Hpet>,
    topology: Mutex<vm_cpu_topology>,
    pub boot: Instant,
    /// Notification hooks that another driver has put on ports and addresses.
    pub hooks: Hooks,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    /// # Errors
    /// ENXIO where the machine has no KVM.
    pub fn new(name: String, zone: u32, minor: u64, config: Config) -> SysResult<Arc<Self>> {
        let machine = Arc::new(Machine::new()?);
        let slots = (0..config.max_cpus).map(|id| Slot::new(Core::new(id, machine.clone()))).collect();
        Ok(Arc::new(Self {
            name,
            zone,
            minor,
            config,
            machine,
            slots,
            freeze: RwLock::default(),
            memory: RwLock::default(),
            paused: AtomicBool::new(false),
            suspended: Mutex::default(),
            dying: AtomicBool::new(false),
            lines: Mutex::default(),
            rtc: Mutex::default(),
            pm_timer: Mutex::default(),
            hpet: Mutex::default(),
            topology: Mutex::new(vm_cpu_topology { sockets: 1, cores: 1, threads: 1, maxcpus: 0 }),
            boot: Instant::now(),
            hooks: Hooks::default(),
        }))
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::SeqCst)
    }

    /// Marks it for destruction, and gets every vCPU out for good.
    pub fn die(&self) {
        self.dying.store(true, Ordering::SeqCst);
        self.slots.iter().for_each(Slot::barrier);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub fn suspended(&self) -> Option<vm_exit_suspended> {
        *lock(&self.suspended)
    }

    pub fn topology(&self) -> vm_cpu_topology {
        *lock(&self.topology)
    }

    /// Injects a message, for another driver, which has checked its address.
    pub fn msi(&self, addr: u64, msg: u64) {
        irq::signal(&self.machine, addr as u32, msg as u32);
    }

    /// What the guest may do with an address, if there is memory.
    pub fn protection(&self, gpa: u64) -> Option<i32> {
        self.memory().protection(gpa)
    }

    pub fn memory(&self) -> std::sync::RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_mut(&self) -> std::sync::RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port access that the kernel serves: the answer to a read, anything for a write. `None` goes to the process.
    pub fn ports(&self, port: u16, size: u8, write: Option<u32>) -> Option<u32> {
        match port {
            0x70 | 0x71 if size == 1 => Some(lock(&self.rtc).port(port, write.map(|value| value as u8)).into()),
            _ if write.is_some_and(|value| self.hooks.port(port, value)) => Some(0),
            _ if write.is_none() => lock(&self.pm_timer).read(port, size, self.boot),
            _ => None,
        }
    }

    pub fn hpet_access(&self, gpa: u64, len: u8, write: Option<u64>) -> Option<u64> {
        lock(&self.hpet).access(gpa, len, write)
    }

    /// VM_SUSPEND, and what the kernel does itself. `false` if it was suspended.
    pub fn suspend(&self, how: i32, source: i32) -> bool {
        let mut suspended = lock(&self.suspended);
        if suspended.is_some() {
            return false;
        }
        let when = self.boot.elapsed().as_nanos() as u64;
        *suspended = Some(vm_exit_suspended { how, source, when });
        drop(suspended);
        self.slots.iter().for_each(Slot::poke);
        true
    }

    /// The vCPU whose id stands at the beginning of an argument.
    pub fn slot(&self, call: &Call<'_>, request: i32, id: i32) -> SysResult<&Slot> {
        usize::try_from(id).ok().and_then(|id| self.slots.get(id)).ok_or_else(|| {
            call.refuse(&rules::VCPU_ID, Errno::EINVAL, format!("{} of vCPU {id}", names::ioctl(request)))
        })
    }

    pub fn freeze(&self) -> (Vec<Held<'_>>, std::sync::RwLockWriteGuard<'_, ()>) {
        let held = self.slots.iter().map(Slot::hold).collect();
        (held, self.freeze.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every ioctl.
    ///
    /// # Safety
    /// As for [`Sys::ioctl`](devices_host::sys::Sys::ioctl).
    pub unsafe fn ioctl(&self, call: &Call<'_>, spec: &Spec, arg: Arg<'_>) -> SysResult<i32> {
        let request = spec.request;
        match (spec.class, arg) {
            (Class::Vcpu, Arg::Structure(bytes)) => {
                let slot = self.slot(call, request, get::<i32>(bytes))?;
                if request == VM_RUN {
                    // SAFETY: the size was checked, and any bytes make an entry.
                    let entry = unsafe { bytes.as_ptr().cast::<vm_entry>().read_unaligned() };
                    // SAFETY: the caller's promise.
                    return unsafe { self.run(call, slot, &entry) };
                }
                let mut core = slot.hold();
                core.settle()?;
                if request == VM_ACTIVATE_CPU {
                    core.fd()?;
                    if self.suspended().is_some() || !slot.activate() {
                        return Err(call.refuse(&rules::ACTIVATE_ONCE, Errno::EBUSY, format!("vCPU {}", core.id)));
                    }
                    return Ok(0);
                }
                self.vcpu_ioctl(call, request, &mut core, bytes)
            }
            (Class::WriteLock, arg) => {
                let (mut held, _frozen) = self.freeze();
                self.write_ioctl(call, request, &mut held, arg)
            }
            (Class::Other, arg) => {
                // Those that take a vCPU beside lock it alone: whoever freezes the VM has all vCPUs first.
                let takes_vcpus = matches!(request, VM_GET_X2APIC_STATE | VM_STATS_IOC | VM_DATA_READ | VM_DATA_WRITE);
                let lock_free = takes_vcpus
                    || matches!(request, VM_SUSPEND | VM_VCPU_BARRIER)
                    || (VM_IOAPIC_ASSERT_IRQ..=VM_ISA_SET_IRQ_TRIGGER).contains(&request);
                let _reader = (!lock_free).then(|| self.freeze.read().unwrap_or_else(PoisonError::into_inner));
                match arg {
                    Arg::Number(value) => self.number_ioctl(call, request, value),
                    Arg::Structure(bytes) => self.other_ioctl(call, request, bytes),
                }
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn vcpu_ioctl(&self, call: &Call<'_>, request: i32, core: &mut Core, bytes: &mut [u8]) -> SysResult<i32> {
        match request {
            VM_SET_REGISTER => {
                let arg: vm_register = get(bytes);
                core.set_register(call, arg.regnum, arg.regval)?;
                Ok(0)
            }
            VM_GET_REGISTER => {
                let mut arg: vm_register = get(bytes);
                arg.regval = core.get_register(call, arg.regnum)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_SET_REGISTER_SET | VM_GET_REGISTER_SET => {
                let arg: vm_register_set = get(bytes);
                let count = arg.count as usize;
                if !(1..=VM_REG_LAST as usize).contains(&count) {
                    return Err(call.refuse(&rules::REGISTER_COUNT, Errno::EINVAL, format!("{count} registers")));
                }
                let numbers: Vec<i32> = array_in(call, arg.regnums, count)?;
                if request == VM_SET_REGISTER_SET {
                    let values: Vec<u64> = array_in(call, arg.regvals, count)?;
                    for (number, value) in numbers.iter().zip(&values) {
                        core.set_register(call, *number, *value)?;
                    }
                } else {
                    let values: Vec<u64> =
                        numbers.iter().map(|number| core.get_register(call, *number)).collect::<SysResult<_>>()?;
                    array_out(call, &values, arg.regvals)?;
                }
                Ok(0)
            }
            VM_SET_SEGMENT_DESCRIPTOR => {
                let arg: vm_seg_desc = get(bytes);
                core.set_descriptor(call, arg.regnum, &arg.desc)
            }
            VM_GET_SEGMENT_DESCRIPTOR => {
                let mut arg: vm_seg_desc = get(bytes);
                arg.desc = core.get_descriptor(call, arg.regnum)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_INJECT_EXCEPTION => core.inject(call, &get(bytes)),
            VM_SET_CAPABILITY | VM_GET_CAPABILITY => capability(call, request, core, bytes),
            VM_SET_X2APIC_STATE => {
                let arg: vm_x2apic = get(bytes);
                if !matches!(arg.state, X2APIC_DISABLED | X2APIC_ENABLED) {
                    return Err(call.refuse(&rules::X2APIC_STATE, Errno::EINVAL, format!("state {}", arg.state)));
                }
                if core.has_run {
                    call.note(&rules::X2APIC_STATE, format!("vCPU {} has run", core.id));
                }
                core.x2apic = arg.state == X2APIC_ENABLED;
                core.table_dirty = true;
                Ok(0)
            }
            VM_GLA2GPA | VM_GLA2GPA_NOFAULT => {
                let mut arg: vm_gla2gpa = get(bytes);
                let sound = arg.prot & !7 == 0
                    && arg.prot != 0
                    && (CPU_MODE_REAL..=CPU_MODE_64BIT).contains(&arg.paging.cpu_mode)
                    && (PAGING_MODE_FLAT..=PAGING_MODE_64).contains(&arg.paging.paging_mode);
                if !sound {
                    return Err(call.refuse(&rules::TRANSLATE, Errno::EINVAL, format!("{:x?}", arg.paging)));
                }
                core.flush(call)?;
                let translation = core.fd()?.translate_gva(arg.gla).map_err(|_| Errno::EIO)?;
                arg.fault = i32::from(translation.valid == 0);
                arg.gpa = translation.physical_address;
                put(bytes, &arg);
                Ok(0)
            }
            VM_SET_INTINFO => {
                let arg: vm_intinfo = get(bytes);
                let info = arg.info1;
                let kind = info & VM_INTINFO_TYPE_MASK;
                let known = [VM_INTINFO_HWINTR, VM_INTINFO_NMI, VM_INTINFO_HWEXCP, VM_INTINFO_SWINTR].contains(&kind);
                if info & VM_INTINFO_VALID != 0 && (info & VM_INTINFO_RSVD_MASK != 0 || !known) {
                    return Err(call.refuse(&rules::INTINFO, Errno::EINVAL, format!("{info:#x}")));
                }
                Ok(0)
            }
            VM_GET_INTINFO => {
                let arg: vm_intinfo = get(bytes);
                put(bytes, &vm_intinfo { info1: 0, info2: 0, ..arg });
                Ok(0)
            }
            VM_RESTART_INSTRUCTION => {
                core.next_rip = None;
                Ok(0)
            }
            VM_GET_KERNEMU_DEV | VM_SET_KERNEMU_DEV => self.kernel_register(call, request, core, bytes),
            VM_RESET_CPU => core.reset(call, get::<vm_vcpu_reset>(bytes).kind),
            VM_SET_RUN_STATE => core.set_run_state(call, &get(bytes)),
            VM_GET_RUN_STATE => {
                let mut arg: vm_run_state = get(bytes);
                (arg.state, arg.sipi_vector) = core.run_state()?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_GET_FPU | VM_SET_FPU => self.fpu(call, request, core, &get(bytes)),
            VM_SET_CPUID => {
                let arg: vm_vcpu_cpuid_config = get(bytes);
                core.table = cpuid::check(call, &arg, |count| array_in(call, arg.vvcc_entries, count))?;
                core.table_dirty = true;
                Ok(0)
            }
            VM_GET_CPUID => {
                let mut arg: vm_vcpu_cpuid_config = get(bytes);
                let (flags, entries) = match &core.table {
                    cpuid::Table::Legacy => (VCC_FLAG_LEGACY_HANDLING, &[][..]),
                    cpuid::Table::Explicit { fallback, entries } => {
                        (if *fallback { VCC_FLAG_INTEL_FALLBACK } else { 0 }, &entries[..])
                    }
                };
                let room = arg.vvcc_nent as usize;
                arg.vvcc_flags = flags;
                arg.vvcc_nent = entries.len() as u32;
                put(bytes, &arg);
                if room < entries.len() {
                    return Err(Errno::E2BIG);
                }
                array_out(call, entries, arg.vvcc_entries)?;
                Ok(0)
            }
            VM_LEGACY_CPUID => {
                let mut arg: vm_legacy_cpuid = get(bytes);
                let entries = cpuid::legacy(&self.machine, core.id, core.x2apic, &self.topology());
                cpuid::ask(&entries, &mut arg);
                put(bytes, &arg);
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn write_ioctl(&self, call: &Call<'_>, request: i32, held: &mut [Held<'_>], arg: Arg<'_>) -> SysResult<i32> {
        match (request, arg) {
            (VM_ALLOC_MEMSEG, Arg::Structure(bytes)) => {
                let mut memory = self.memory_mut();
                let free = self.config.memory_bytes.saturating_sub(memory.bytes());
                memory.alloc(call, &get(bytes), free)
            }
            (VM_MMAP_MEMSEG, Arg::Structure(bytes)) => {
                self.memory_mut().map(call, &self.machine.vm, &get::<vm_memmap>(bytes))
            }
            (VM_MUNMAP_MEMSEG, Arg::Structure(bytes)) => self.memory_mut().unmap(call, &self.machine.vm, &get(bytes)),
            (VM_PMTMR_LOCATE, Arg::Number(port)) => lock(&self.pm_timer).locate(call, port),
            (VM_PAUSE, _) => {
                if self.paused.swap(true, Ordering::SeqCst) {
                    return Err(call.refuse(&rules::PAUSE_ONCE, Errno::EALREADY, &*self.name));
                }
                Ok(0)
            }
            (VM_RESUME, _) => {
                if !self.paused.swap(false, Ordering::SeqCst) {
                    return Err(call.refuse(&rules::RESUME_PAUSED, Errno::EALREADY, &*self.name));
                }
                Ok(0)
            }
            (VM_REINIT, Arg::Structure(bytes)) => self.reinit(call, held, &get(bytes)),
            _ => Ok(0),
        }
    }

    fn reinit(&self, call: &Call<'_>, held: &mut [Held<'_>], arg: &vm_reinit) -> SysResult<i32> {
        if arg.flags & !VM_REINIT_F_FORCE_SUSPEND_deprecated != 0 {
            return Err(call.refuse(&rules::REINIT_FLAGS, Errno::EINVAL, format!("{:#x}", arg.flags)));
        }
        let hooks = self.hooks.count();
        if hooks > 0 {
            return Err(call.refuse(&rules::REINIT_HOOKS, Errno::EBUSY, format!("{hooks} hooks")));
        }
        for core in held {
            core.reinit()?;
        }
        self.slots.iter().for_each(Slot::deactivate);
        lock(&self.lines).reset(&self.machine);
        self.machine.reset_chips()?;
        self.memory_mut().unmap_devices(&self.machine.vm);
        lock(&self.pm_timer).forget();
        lock(&self.rtc).reset();
        *lock(&self.hpet) = Hpet::default();
        *lock(&self.suspended) = None;
        Ok(0)
    }

    fn number_ioctl(&self, call: &Call<'_>, request: i32, value: usize) -> SysResult<i32> {
        if request == VM_VCPU_BARRIER {
            let id = value as i32;
            if id == -1 {
                call.note(&rules::BARRIER_ID, "-1");
                return Ok(0);
            }
            self.slot(call, request, id)?.barrier();
        }
        Ok(0)
    }

    fn other_ioctl(&self, call: &Call<'_>, request: i32, bytes: &mut [u8]) -> SysResult<i32> {
        let machine = &self.machine;
        match request {
            VM_GET_MEMSEG => {
                let mut arg: vm_memseg = get(bytes);
                self.memory().get(call, &mut arg)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_MMAP_GETNEXT => {
                let mut arg: vm_memmap = get(bytes);
                self.memory().next(&mut arg)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_DEVMEM_GETOFFSET => {
                let mut arg: vm_devmem_offset = get(bytes);
                self.memory().offset(&mut arg)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_LAPIC_IRQ => {
                let arg: vm_lapic_irq = get(bytes);
                self.slot(call, request, arg.cpuid)?;
                irq::vector(call, machine, &arg)
            }
            VM_LAPIC_LOCAL_IRQ => Err(call.refuse(&rules::NOT_MODELLED, Errno::EINVAL, "local vector table entries")),
            VM_LAPIC_MSI => irq::msi(call, machine, &get(bytes)),
            VM_IOAPIC_ASSERT_IRQ => lock(&self.lines).ioapic(call, machine, get(bytes), Edge::Assert),
            VM_IOAPIC_DEASSERT_IRQ => lock(&self.lines).ioapic(call, machine, get(bytes), Edge::Deassert),
            VM_IOAPIC_PULSE_IRQ => lock(&self.lines).ioapic(call, machine, get(bytes), Edge::Pulse),
            VM_ISA_ASSERT_IRQ => lock(&self.lines).isa(call, machine, &get(bytes), Edge::Assert),
            VM_ISA_DEASSERT_IRQ => lock(&self.lines).isa(call, machine, &get(bytes), Edge::Deassert),
            VM_ISA_PULSE_IRQ => lock(&self.lines).isa(call, machine, &get(bytes), Edge::Pulse),
            VM_ISA_SET_IRQ_TRIGGER => irq::set_trigger(call, machine, &get(bytes)),
            VM_IOAPIC_PINCOUNT => {
                put(bytes, &(IOAPIC_PINS as i32));
                Ok(0)
            }
            VM_INJECT_NMI => {
                let id = get::<vm_nmi>(bytes).cpuid;
                self.slot(call, request, id)?;
                irq::nmi(machine, id)
            }
            VM_RTC_WRITE => lock(&self.rtc).write(call, &get(bytes)),
            VM_RTC_READ => {
                let mut arg: vm_rtc_data = get(bytes);
                lock(&self.rtc).read(call, &mut arg)?;
                put(bytes, &arg);
                Ok(0)
            }
            VM_RTC_SETTIME => lock(&self.rtc).set_time(call, &get(bytes)),
            VM_RTC_GETTIME => {
                put(bytes, &lock(&self.rtc).time());
                Ok(0)
            }
            VM_GET_HPET_CAPABILITIES => {
                put(bytes, &vm_hpet_cap { capabilities: HPET_BLOCK_ID });
                Ok(0)
            }
            VM_SUSPEND => {
                let arg: vm_suspend = get(bytes);
                let known = (VM_SUSPEND_RESET..=VM_SUSPEND_TRIPLEFAULT).contains(&arg.how)
                    && (-1..self.slots.len() as i32).contains(&arg.source);
                if !known {
                    return Err(call.refuse(&rules::SUSPEND_HOW, Errno::EINVAL, format!("{arg:?}")));
                }
                if self.suspend(arg.how, arg.source) { Ok(0) } else { Err(Errno::EALREADY) }
            }
            VM_GET_X2APIC_STATE => {
                let mut arg: vm_x2apic = get(bytes);
                arg.state = i32::from(self.slot(call, request, arg.cpuid)?.hold().x2apic);
                put(bytes, &arg);
                Ok(0)
            }
            VM_SET_TOPOLOGY => {
                let arg: vm_cpu_topology = get(bytes);
                let product = u32::from(arg.sockets) * u32::from(arg.cores) * u32::from(arg.threads);
                if arg.maxcpus != 0 || product == 0 || product > self.slots.len() as u32 {
                    return Err(call.refuse(&rules::TOPOLOGY, Errno::EINVAL, format!("{arg:?}")));
                }
                *lock(&self.topology) = arg;
                Ok(0)
            }
            VM_GET_TOPOLOGY => {
                put(bytes, &vm_cpu_topology { maxcpus: self.slots.len() as u16, ..self.topology() });
                Ok(0)
            }
            VM_GET_CPUS => self.cpus(call, &get(bytes)),
            VM_SUSPEND_CPU | VM_RESUME_CPU => {
                let id = get::<i32>(bytes);
                let stop = request == VM_SUSPEND_CPU;
                if id == -1 {
                    self.slots.iter().for_each(|slot| slot.set_debug(stop));
                } else {
                    self.slot(call, request, id)?.set_debug(stop);
                }
                Ok(0)
            }
            VM_STATS_IOC => {
                let mut arg: vm_stats = get(bytes);
                let exits = self.slot(call, request, arg.cpuid)?.hold().exits;
                let since = self.boot.elapsed();
                arg.tv = vm_timeval { tv_sec: since.as_secs() as i64, tv_usec: since.subsec_micros().into() };
                arg.num_entries = i32::from(arg.index == 0);
                arg.statbuf[0] = exits;
                put(bytes, &arg);
                Ok(0)
            }
            VM_STAT_DESC => {
                let mut arg: vm_stat_desc = get(bytes);
                if arg.index != 0 {
                    // The end of the list is found this way.
                    return Err(Errno::EINVAL);
                }
                arg.desc = [0; 128];
                arg.desc[..26].copy_from_slice(b"exits handled in userspace");
                put(bytes, &arg);
                Ok(0)
            }
            VM_TRACK_DIRTY_PAGES | VM_NPT_OPERATION => {
                Err(call.refuse(&rules::DIRTY_TRACKED, Errno::EPERM, names::ioctl(request)))
            }
            VM_DESC_FPU_AREA => self.describe_fpu(call, bytes),
            VM_DATA_READ | VM_DATA_WRITE => self.data(call, request, bytes),
            _ => Err(Errno::EINVAL),
        }
    }

    fn cpus(&self, call: &Call<'_>, arg: &vm_cpuset) -> SysResult<i32> {
        let mut set = vec![0_u8; self.slots.len().div_ceil(64) * 8];
        let room = usize::try_from(arg.cpusetsize).unwrap_or(0);
        if !matches!(arg.which, VM_ACTIVE_CPUS | VM_DEBUG_CPUS) || room < set.len() {
            return Err(call.refuse(&rules::CPUSET, Errno::EINVAL, format!("{arg:?}")));
        }
        for (id, slot) in self.slots.iter().enumerate() {
            let is_in = if arg.which == VM_ACTIVE_CPUS { slot.is_active() } else { slot.is_debug() };
            set[id / 8] |= u8::from(is_in) << (id % 8);
        }
        copy_out(call, &set, arg.cpus)?;
        Ok(0)
    }

    /// VM_GET_KERNEMU_DEV and VM_SET_KERNEMU_DEV.
    fn kernel_register(&self, call: &Call<'_>, request: i32, core: &mut Core, bytes: &mut [u8]) -> SysResult<i32> {
        let mut arg: vm_readwrite_kernemu_device = get(bytes);
        let write = (request == VM_SET_KERNEMU_DEV).then_some(arg.value);
        let len = 1_u8 << (arg.access_width_bitfield & 7).min(3);
        if let Some(value) = self.hpet_access(arg.gpa, len, write) {
            arg.value = value;
        } else if let Some(offset) = arg.gpa.checked_sub(LAPIC_BASE).filter(|offset| *offset < 1024 && write.is_none())
        {
            let lapic = core.fd()?.get_lapic().map_err(|_| Errno::EIO)?;
            let at = offset as usize & !3;
            let word: [u8; 4] = std::array::from_fn(|byte| lapic.regs[at + byte].cast_unsigned());
            arg.value = u32::from_le_bytes(word).into();
        } else {
            return Err(call.refuse(&rules::KERNEMU_PLACE, Errno::ESRCH, format!("{:#x}", arg.gpa)));
        }
        put(bytes, &arg);
        Ok(0)
    }
}

fn capability(call: &Call<'_>, request: i32, core: &mut Core, bytes: &mut [u8]) -> SysResult<i32> {
    let mut arg: vm_capability = get(bytes);
    // AMD knows these two; the others are Intel's.
    if !matches!(arg.captype, VM_CAP_HALT_EXIT | VM_CAP_PAUSE_EXIT) {
        return Err(call.refuse(&rules::CAPABILITY, Errno::ENOENT, format!("capability {}", arg.captype)));
    }
    if request == VM_GET_CAPABILITY {
        arg.capval = core.capabilities.get(&arg.captype).copied().unwrap_or(0);
        put(bytes, &arg);
        return Ok(0);
    }
    if arg.captype == VM_CAP_HALT_EXIT && arg.capval == 0 {
        call.note(&rules::HALT_EXIT, format!("vCPU {}", arg.cpuid));
    }
    core.capabilities.insert(arg.captype, arg.capval);
    Ok(0)
}
