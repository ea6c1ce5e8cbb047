//! `/dev/vmmctl` (reference sections 1.1 and 1.2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices_host::sys::{DeviceNumber, Errno, IoctlArg, OpenAccess, OpenFlags, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::args::{self, Arg, Class};
use super::user::{get, put};
use super::vm::Vm;
use super::{Entry, Life, Vmm, halted, rules};
use crate::names;
use crate::node::{Call, Node};
use crate::sys::DoubleSys;
use crate::zone::Privilege;

/// How long destroying by name waits for others; the kernel waits for ever, or for a signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The control node, open.
pub struct Control {
    driver: Arc<Vmm>,
}

impl Control {
    pub fn open(driver: Arc<Vmm>, process: &DoubleSys, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        if !flags.exclusive {
            return Err(process.ledger().refuse(&rules::CTL_EXCL, Errno::EINVAL, format!("{flags:?}")));
        }
        Ok(Arc::new(Self { driver }))
    }

    fn name(call: &Call<'_>, bytes: &[u8]) -> SysResult<String> {
        let end = bytes[..128].iter().position(|byte| *byte == 0);
        let Some(end) = end else {
            return Err(call.refuse(&rules::VM_NAME, Errno::ENAMETOOLONG, "no NUL"));
        };
        let name = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if name.is_empty() || name.contains('/') {
            return Err(call.refuse(&rules::VM_NAME, Errno::EINVAL, format!("'{name}'")));
        }
        Ok(name)
    }

    fn create(&self, call: &Call<'_>, bytes: &[u8]) -> SysResult<i32> {
        let flags = get::<vm_create_req>(bytes).flags;
        let name = Self::name(call, bytes)?;
        if flags & !(VCF_RESERVOIR_MEM | VCF_TRACK_DIRTY) != 0 {
            return Err(call.refuse(&rules::CREATE_FLAGS, Errno::EINVAL, format!("{flags:#x}")));
        }
        if flags & VCF_TRACK_DIRTY != 0 {
            return Err(Errno::ENOTSUP);
        }
        let zone = call.zone();
        let mut registry = self.driver.registry();
        if registry.by_name.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        if !zone.is_global() && registry.by_name.values().any(|entry| entry.vm.zone == zone.id) {
            return Err(call.refuse(&rules::ONE_VM, Errno::EINVAL, format!("'{name}' in zone {}", zone.id)));
        }
        let mut config = self.driver.config.clone();
        if flags & VCF_RESERVOIR_MEM != 0 {
            config.memory_bytes = registry.reservoir as u64;
        }
        registry.minors += 1;
        let vm = Vm::new(name.clone(), zone.id, registry.minors, config)?;
        halted::watch(&vm);
        registry.by_name.insert(name, Entry { vm, life: Life::default() });
        Ok(0)
    }

    fn destroy(&self, call: &Call<'_>, bytes: &[u8]) -> SysResult<i32> {
        let name = Self::name(call, bytes)?;
        let zone = call.zone();
        if !zone.may(Privilege::Root) {
            return Err(call.refuse(&rules::DESTROY_ROOT, Errno::EPERM, name));
        }
        let me = std::ptr::from_ref(call.process) as usize;
        let mut registry = self.driver.registry();
        let entry = registry.by_name.get_mut(&name).ok_or(Errno::ENOENT)?;
        if !zone.is_global() && entry.vm.zone != zone.id {
            return Err(call.refuse(&rules::DESTROY_ZONE, Errno::EPERM, name));
        }
        if entry.life.opens.contains_key(&me) {
            // The kernel would wait for ever.
            return Err(call.refuse(&rules::DESTROY_OPEN, Errno::EINTR, name));
        }
        entry.vm.die();
        entry.life.destroy = true;
        drop(registry);
        self.driver.change(&name, |_| ());
        let end = Instant::now() + PATIENCE;
        let mut registry = self.driver.registry();
        while registry.by_name.contains_key(&name) {
            let left = end.checked_duration_since(Instant::now()).ok_or(Errno::EINTR)?;
            registry = self.driver.changed.wait_timeout(registry, left).map_err(|_| Errno::EINTR)?.0;
        }
        Ok(0)
    }
}

impl Node for Control {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let spec = args::find(call, request, self.driver.config.version)?;
        if spec.class != Class::Control {
            return Err(call.refuse(&rules::COMMAND, Errno::ENOTTY, names::ioctl(request)));
        }
        if matches!(request, VMM_CREATE_VM | VMM_DESTROY_VM) && call.flags.access == OpenAccess::Read {
            return Err(call.refuse(&rules::CTL_WRITE, Errno::EPERM, names::ioctl(request)));
        }
        match (request, spec.argument(call, arg)?) {
            (VMM_INTERFACE_VERSION, _) => Ok(self.driver.config.version),
            (VMM_CREATE_VM, Arg::Structure(bytes)) => self.create(call, bytes),
            (VMM_DESTROY_VM, Arg::Structure(bytes)) => self.destroy(call, bytes),
            (VMM_RESV_QUERY, Arg::Structure(bytes)) => {
                let registry = self.driver.registry();
                let used: u64 = registry.by_name.values().map(|entry| entry.vm.memory().bytes()).sum();
                let transient = usize::try_from(used).unwrap_or(usize::MAX);
                put(
                    bytes,
                    &vmm_resv_query {
                        vrq_free_sz: registry.reservoir,
                        vrq_alloc_sz: 0,
                        vrq_alloc_transient_sz: transient,
                        vrq_limit: self.driver.config.memory_bytes as usize,
                    },
                );
                Ok(0)
            }
            (VMM_RESV_SET_TARGET, Arg::Structure(bytes)) => {
                if !call.zone().may(Privilege::SysConfig) {
                    return Err(call.refuse(&rules::RESV_PRIVILEGE, Errno::EPERM, "in this zone"));
                }
                let mut arg: vmm_resv_target = get(bytes);
                if !arg.vrt_target_sz.is_multiple_of(4096) || !arg.vrt_chunk_sz.is_multiple_of(4096) {
                    return Err(Errno::EINVAL);
                }
                if arg.vrt_target_sz as u64 > self.driver.config.memory_bytes {
                    return Err(Errno::ENOSPC);
                }
                self.driver.registry().reservoir = arg.vrt_target_sz;
                arg.vrt_result_sz = arg.vrt_target_sz;
                put(bytes, &arg);
                Ok(0)
            }
            (VMM_CHECK_IOMMU, _) => Err(Errno::ENXIO),
            _ => Ok(0),
        }
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(261 << 32)
    }
}
