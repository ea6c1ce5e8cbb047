//! An open `/dev/kvm`.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices_host::sys::{DeviceNumber, Errno, IoctlArg, MapRequest, SysResult};
use zvmm::hypervisor::illumos_kvm::abi::{self, *};
use zvmm::hypervisor::illumos_kvm::plain::from_bytes;

use super::commands::{Arg, Command, On, Verdict, find, find_linux};
use super::vcpu::KvmVcpu;
use super::vm::KvmVm;
use super::{Kvm, capabilities, cpuid, linux, msrs, rules};
use crate::node::{Call, Node};
use crate::sys::Host;

/// An open descriptor.
pub struct KvmNode {
    driver: Arc<Kvm>,
    minor: u64,
    role: Mutex<Role>,
    /// For the checks at the last close.
    host: Weak<Host>,
}

/// What a descriptor stands for.
#[derive(Clone, Default)]
pub enum Role {
    /// Nothing yet.
    #[default]
    Fresh,
    /// The VM that was created on it.
    Vm(Arc<KvmVm>),
    /// A clone without a vCPU.
    Clone(Arc<KvmVm>),
    /// A vCPU.
    Vcpu(Arc<KvmVcpu>),
}

impl Role {
    pub fn vm(&self) -> Option<&Arc<KvmVm>> {
        match self {
            Self::Fresh => None,
            Self::Vm(vm) | Self::Clone(vm) => Some(vm),
            Self::Vcpu(vcpu) => Some(&vcpu.vm),
        }
    }
}

/// An argument of the kind and size its command takes.
enum Given<'a> {
    None,
    Value(usize),
    Bytes(&'a mut [u8]),
}

impl Given<'_> {
    fn value(&self) -> usize {
        match self {
            Self::Value(value) => *value,
            _ => 0,
        }
    }
}

fn count_of(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(0, |count| u32::from_ne_bytes(*count) as usize)
}

impl KvmNode {
    pub fn new(driver: Arc<Kvm>, minor: u64, host: Weak<Host>) -> Self {
        Self { driver, minor, role: Mutex::default(), host }
    }

    /// What it stands for now.
    pub fn role(&self) -> MutexGuard<'_, Role> {
        self.role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_command(call: &Call<'_>, request: i32) -> SysResult<&'static Command> {
        let Some(command) = find(request) else {
            return Err(match find_linux(request) {
                Some(command) => {
                    let detail = format!("{request:#x} is Linux' {}", command.name);
                    call.refuse(&rules::LINUX_COMMAND, Errno::EINVAL, detail)
                }
                None => call.refuse(&rules::COMMAND, Errno::EINVAL, format!("{request:#x}")),
            });
        };
        let refuse = |rule, why: &str| Err(call.refuse(rule, Errno::EINVAL, format!("{}{why}", command.name)));
        match command.verdict {
            Verdict::Good => Ok(command),
            Verdict::Unhandled => refuse(&rules::UNHANDLED, ""),
            Verdict::Forbidden(why) => refuse(&rules::FORBIDDEN, &format!(": {why}")),
            Verdict::NotModelled => refuse(&rules::NOT_MODELLED, ""),
        }
    }

    fn check_argument<'a>(call: &Call<'_>, command: &Command, arg: IoctlArg<'a>) -> SysResult<Given<'a>> {
        let kind = |wanted: &str, arg: &IoctlArg<'_>| {
            let detail = format!("{} takes {wanted} and got {arg:?}", command.name);
            Err(call.refuse(&rules::ARGUMENT_KIND, Errno::EINVAL, detail))
        };
        let buffer = match (command.arg, arg) {
            (Arg::None, IoctlArg::None | IoctlArg::Value(0)) => return Ok(Given::None),
            (Arg::None, arg) => return kind("nothing", &arg),
            // 0 as a number is what an argument that is not there looks like.
            (Arg::Value, IoctlArg::None) => return Ok(Given::Value(0)),
            (Arg::Value, IoctlArg::Value(value)) => return Ok(Given::Value(value)),
            (Arg::Value, arg) => return kind("a number", &arg),
            (_, IoctlArg::Buffer(buffer)) => buffer,
            (_, arg) => return kind("a pointer", &arg),
        };
        let wanted = match command.arg {
            Arg::Bytes(wanted) => wanted,
            Arg::Table(entry) => {
                let count = count_of(buffer);
                let (rule, most) = match command.request {
                    KVM_SET_GSI_ROUTING => (&rules::ROUTES, KVM_MAX_IRQ_ROUTES - 1),
                    _ => (&rules::CPUID_COUNT, cpuid::MOST),
                };
                if count > most || (count == 0 && command.request == KVM_SET_GSI_ROUTING) {
                    let errno = if command.request == KVM_SET_CPUID2 { Errno::E2BIG } else { Errno::EINVAL };
                    return Err(call.refuse(rule, errno, format!("{}: {count} entries", command.name)));
                }
                8 + count * entry
            }
            Arg::SignalMask => {
                let len = count_of(buffer);
                if len != size_of::<illumos_sigset>() {
                    return Err(call.refuse(&rules::SIGNAL_MASK, Errno::EINVAL, format!("length {len}")));
                }
                4 + len
            }
            Arg::None | Arg::Value => 0,
        };
        if buffer.len() != wanted {
            let detail = format!("{}: the kernel copies {wanted} bytes, {} are there", command.name, buffer.len());
            return Err(call.refuse(&rules::ARGUMENT_SIZE, Errno::EFAULT, detail));
        }
        Ok(Given::Bytes(buffer))
    }

    fn any(&self, call: &Call<'_>, command: &Command, given: Given<'_>) -> SysResult<i32> {
        match (command.request, given) {
            (KVM_GET_API_VERSION, _) => Ok(KVM_API_VERSION),
            (KVM_GET_VCPU_MMAP_SIZE, _) => Ok(KVM_VCPU_MMAP_BYTES as i32),
            (KVM_CHECK_EXTENSION, given) => {
                let number = given.value();
                let (value, works) = capabilities::value(number).ok_or(Errno::EINVAL)?;
                if !works {
                    call.note(&rules::CAPABILITY, format!("capability {number}"));
                }
                Ok(value)
            }
            (KVM_GET_SUPPORTED_CPUID, Given::Bytes(buffer)) => {
                let table = cpuid::supported(&self.driver.system);
                // The driver wants room for one more than there are.
                if table.len() + 8 >= buffer.len() {
                    return Err(Errno::E2BIG);
                }
                let count = table.len() / size_of::<kvm_cpuid_entry2>();
                buffer[..4].copy_from_slice(&(count as u32).to_ne_bytes());
                buffer[8..8 + table.len()].copy_from_slice(&table);
                Ok(0)
            }
            (KVM_CREATE_VM, _) => {
                let mut role = self.role();
                if role.vm().is_some() {
                    return Err(call.refuse(&rules::ONE_VM_EACH, Errno::EINVAL, "KVM_CREATE_VM"));
                }
                let vm = self.driver.create_vm()?;
                let number = vm.number as i32;
                *role = Role::Vm(vm);
                Ok(number)
            }
            (KVM_CLONE, given) => {
                let mut role = self.role();
                if role.vm().is_some() {
                    return Err(call.refuse(&rules::CLONE_FRESH, Errno::EBUSY, "KVM_CLONE"));
                }
                let number = given.value() as u64;
                match self.driver.vm_of(number) {
                    Ok(vm) => {
                        vm.descriptors.fetch_add(1, Ordering::Relaxed);
                        *role = Role::Clone(vm);
                        Ok(0)
                    }
                    Err(errno) => Err(call.refuse(&rules::CLONE_NUMBER, errno, format!("number {number:#x}"))),
                }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn create_vcpu(&self, call: &Call<'_>, vm: &Arc<KvmVm>, id: usize) -> SysResult<i32> {
        let mut role = self.role();
        match *role {
            Role::Clone(_) => {}
            Role::Vcpu(_) => {
                return Err(call.refuse(&rules::VCPU_ON_CLONE, Errno::EEXIST, "the descriptor has a vCPU"));
            }
            // The driver allows it, and the descriptor then is both.
            _ => return Err(call.refuse(&rules::VCPU_ON_CLONE, Errno::EINVAL, "the descriptor is the VM's")),
        }
        let mut state = vm.lock();
        if id != state.vcpus {
            let errno = if id < state.vcpus { Errno::EEXIST } else { Errno::EINVAL };
            return Err(call.refuse(&rules::VCPU_ORDER, errno, format!("vCPU {id} where {} is next", state.vcpus)));
        }
        if id >= KVM_MAX_VCPUS {
            return Err(call.refuse(&rules::VCPU_COUNT, Errno::EINVAL, format!("vCPU {id}")));
        }
        let what = || format!("vCPU {id}");
        if !vm.irqchip.load(Ordering::Relaxed) {
            call.note(&rules::IRQCHIP_FIRST, what());
        }
        if state.tss.is_none() {
            call.note(&rules::TSS_FIRST, what());
        }
        if state.identity.is_none() {
            call.note(&rules::IDENTITY_FIRST, what());
        }
        let vcpu = KvmVcpu::new(&self.driver.system, vm.clone(), id)?;
        state.vcpus += 1;
        drop(state);
        *role = Role::Vcpu(Arc::new(vcpu));
        Ok(id as i32)
    }

    fn on_vm(&self, call: &Call<'_>, vm: &Arc<KvmVm>, command: &Command, given: Given<'_>) -> SysResult<i32> {
        match (command.request, given) {
            (KVM_CREATE_VCPU, given) => self.create_vcpu(call, vm, given.value()),
            (KVM_SET_TSS_ADDR, given) => {
                let gpa = given.value() as u64;
                if vm.lock().vcpus > 0 {
                    call.note(&rules::TSS_FIRST, "set after a vCPU was created");
                }
                vm.check_private(call, gpa, 3)?;
                vm.fd.value(command.linux, gpa as usize)?;
                vm.lock().tss = Some(gpa);
                Ok(0)
            }
            (KVM_SET_BOOT_CPU_ID, given) => {
                if vm.lock().vcpus > 0 {
                    // The driver keeps its lock for ever.
                    return Err(call.refuse(&rules::BOOT_CPU_FIRST, Errno::EBUSY, "KVM_SET_BOOT_CPU_ID"));
                }
                vm.fd.value(command.linux, given.value())
            }
            (KVM_CREATE_IRQCHIP, _) => {
                if vm.irqchip.load(Ordering::Relaxed) {
                    return Err(call.refuse(&rules::IRQCHIP_FIRST, Errno::EEXIST, "KVM_CREATE_IRQCHIP twice"));
                }
                if vm.lock().vcpus > 0 {
                    return Err(call.refuse(&rules::IRQCHIP_FIRST, Errno::EINVAL, "created after a vCPU"));
                }
                vm.fd.value(command.linux, 0)?;
                vm.irqchip.store(true, Ordering::Relaxed);
                Ok(0)
            }
            (_, Given::Bytes(buffer)) => Self::on_vm_bytes(call, vm, command, buffer),
            _ => Err(Errno::EINVAL),
        }
    }

    fn on_vm_bytes(call: &Call<'_>, vm: &Arc<KvmVm>, command: &Command, buffer: &mut [u8]) -> SysResult<i32> {
        let irqchip = vm.irqchip.load(Ordering::Relaxed);
        let needs_irqchip = |rule| match irqchip {
            true => Ok(()),
            false => Err(call.refuse(rule, Errno::ENXIO, format!("{} without interrupt controllers", command.name))),
        };
        let mut identity = None;
        match command.request {
            KVM_SET_USER_MEMORY_REGION => vm.check_region(call, buffer)?,
            KVM_SET_IDENTITY_MAP_ADDR => {
                let gpa = from_bytes_u64(buffer);
                if vm.lock().vcpus > 0 {
                    call.note(&rules::IDENTITY_FIRST, "set after a vCPU was created");
                }
                vm.check_private(call, gpa, 1)?;
                identity = Some(gpa);
            }
            KVM_IRQ_LINE | KVM_IRQ_LINE_STATUS => {
                needs_irqchip(&rules::IRQCHIP_FIRST)?;
                vm.check_line(call, buffer)?;
            }
            KVM_SET_IRQCHIP => {
                needs_irqchip(&rules::IRQCHIP_FIRST)?;
                if count_of(buffer) > 2 {
                    let detail = format!("chip {}", count_of(buffer));
                    return Err(call.refuse(&rules::IRQCHIP_ID, Errno::EINVAL, detail));
                }
            }
            KVM_SET_GSI_ROUTING => {
                let count = count_of(buffer);
                vm.check_routes(call, count, &buffer[8..])?;
            }
            KVM_CREATE_PIT2 => {
                needs_irqchip(&rules::PIT_AFTER_IRQCHIP)?;
                if vm.pit.load(Ordering::Relaxed) {
                    return Err(call.refuse(&rules::PIT_AFTER_IRQCHIP, Errno::EEXIST, "KVM_CREATE_PIT2 twice"));
                }
            }
            KVM_SET_PIT2 | KVM_GET_PIT2 if !vm.pit.load(Ordering::Relaxed) => {
                // The driver follows a null pointer.
                return Err(call.refuse(&rules::PIT_EXISTS, Errno::ENXIO, command.name));
            }
            _ => {}
        }
        // SAFETY: the size was checked, Linux has the same structure, and the one pointer there is, a slot's memory, is
        // the caller's promise and was looked at.
        let result = unsafe { vm.fd.bytes(command.linux, buffer) }?;
        match command.request {
            KVM_CREATE_PIT2 => vm.pit.store(true, Ordering::Relaxed),
            KVM_SET_IDENTITY_MAP_ADDR => vm.lock().identity = identity,
            _ => {}
        }
        Ok(if command.request == KVM_IRQ_LINE { 0 } else { result })
    }

    fn on_vcpu(call: &Call<'_>, vcpu: &KvmVcpu, command: &Command, given: Given<'_>) -> SysResult<i32> {
        let _alone = vcpu.alone(call, command.name)?;
        let buffer = match (command.request, given) {
            (KVM_RUN, _) => return vcpu.run(call),
            (KVM_NMI, _) => return vcpu.fd.value(command.linux, 0),
            (_, Given::Bytes(buffer)) => buffer,
            _ => return Err(Errno::EINVAL),
        };
        match command.request {
            KVM_SET_SIGNAL_MASK => {
                let mask = from_bytes::<illumos_sigset>(&buffer[4..]).ok_or(Errno::EFAULT)?;
                return vcpu.set_signal_mask(&mask).map(|()| 0);
            }
            KVM_SET_MSRS | KVM_GET_MSRS => return msrs::exchange(call, vcpu, command, buffer),
            KVM_SET_CPUID2 => {
                cpuid::check(call, &buffer[8..]);
                vcpu.has_cpuid.store(true, Ordering::Relaxed);
            }
            KVM_SET_VCPU_EVENTS => {
                let events = from_bytes::<abi::kvm_vcpu_events>(buffer).ok_or(Errno::EFAULT)?;
                if events.flags & !3 != 0 {
                    let detail = format!("flags {:#x}", events.flags);
                    return Err(call.refuse(&rules::EVENTS_FLAGS, Errno::EINVAL, detail));
                }
                if events.reserved != [0; 10] {
                    call.note(&rules::EVENTS_FLAGS, "reserved bytes are set");
                }
            }
            KVM_SET_MP_STATE if count_of(buffer) > KVM_MP_STATE_SIPI_RECEIVED as usize => {
                // The driver takes anything.
                return Err(call.refuse(&rules::MP_STATE, Errno::EINVAL, format!("state {}", count_of(buffer))));
            }
            _ => {}
        }
        // SAFETY: the size was checked, Linux has the same structure, and there is no pointer in it.
        unsafe { vcpu.fd.bytes(command.linux, buffer) }.map(|_| 0)
    }
}

fn from_bytes_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

impl Node for KvmNode {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let command = Self::check_command(call, request)?;
        let given = Self::check_argument(call, command, arg)?;
        let role = self.role().clone();
        match command.on {
            On::Any => self.any(call, command, given),
            On::Vm => match role.vm() {
                Some(vm) => self.on_vm(call, vm, command, given),
                None => Err(call.refuse(&rules::NEEDS_VM, Errno::EINVAL, command.name)),
            },
            On::Vcpu => match &role {
                Role::Vcpu(vcpu) => Self::on_vcpu(call, vcpu, command, given),
                _ => Err(call.refuse(&rules::NEEDS_VCPU, Errno::EINVAL, command.name)),
            },
        }
    }

    fn mmap(&self, call: &Call<'_>, request: MapRequest) -> SysResult<NonNull<u8>> {
        let role = self.role().clone();
        let Role::Vcpu(vcpu) = role else {
            return Err(call.refuse(&rules::NEEDS_VCPU, Errno::EINVAL, "mmap"));
        };
        if request != (MapRequest { len_bytes: KVM_VCPU_MMAP_BYTES, offset: 0, write: true }) {
            return Err(call.refuse(&rules::MMAP_EXACT, Errno::EINVAL, format!("{request:?}")));
        }
        vcpu.map().map(linux::Shared::into_raw)
    }

    fn close(&self) {
        let role = std::mem::take(&mut *self.role());
        self.driver.forget(self.minor);
        if let Some(vm) = role.vm()
            && vm.descriptors.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(host) = self.host.upgrade()
        {
            // The VM ends here, and its memory had to be there until now.
            vm.check_all_memory(host.ledger());
        }
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(super::MAJOR << 32 | self.minor)
    }
}
