//! `vmm`: a VM's life, its vCPUs and their capabilities, and CPUID tables.

use devices_host::ram::RamOptions;
use devices_host::sys::{Errno, Handle, IoctlArg, OpenAccess, OpenFlags, Sys};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromZeros, IntoBytes};
use zvmm::hypervisor::bhyve::abi::*;
use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor, VmFd};
use zvmm::hypervisor::{Hypervisor, Stop, Vm, VmSpec};
use zvmm_double::bhyve::{Config, Vmm};
use zvmm_double::{DoubleSys, Host, Zone};

use crate::machine::*;

const CONTROL: OpenFlags = OpenFlags { access: OpenAccess::ReadWrite, exclusive: true, nonblocking: false };

/// A process that starts where another has been.
fn next_process(host: &Arc<Host>) -> Arc<dyn Sys> {
    DoubleSys::new(host, Zone::bhyve(1))
}

#[test]
fn a_vm_goes_with_its_last_descriptor_unless_a_restart_was_announced() {
    let host = Host::new(vec![Vmm::new()]);
    let Guest { process, hypervisor, vm, .. } = Guest::on(&host);
    vm.leave(false);
    drop((vm, hypervisor));
    assert_eq!(process.leaks(), []);
    assert_eq!(VmFd::open(&next_process(&host), "guest").map(drop).unwrap_err().errno, Errno::ENOENT);

    let Guest { process, hypervisor, vm, .. } = Guest::on(&host);
    vm.leave(true);
    drop((vm, hypervisor));
    process.end();
    VmFd::open(&next_process(&host), "guest").unwrap().destroy_self().unwrap();
    assert_eq!(process.leaks(), []);
    assert!(process.violations().is_empty());
}

#[test]
fn a_vm_that_destroys_itself_answers_nothing_and_goes_with_its_last_descriptor() {
    let host = Host::new(vec![Vmm::new()]);
    let guest = Guest::on(&host);
    guest.fd().destroy_self().unwrap();
    let asked = guest.fd().registers(0, &[VM_REG_GUEST_RAX]).unwrap_err();
    assert_eq!(asked.errno, Errno::ENXIO);
    guest.finish(&["bhyve-dying"]);
    assert_eq!(VmFd::open(&next_process(&host), "guest").map(drop).unwrap_err().errno, Errno::ENOENT);
}

#[test]
fn a_vm_that_nobody_has_open_is_destroyed_by_its_name() {
    let host = Host::new(vec![Vmm::new()]);
    let Guest { process, hypervisor, vm, .. } = Guest::on(&host);
    vm.leave(true);
    drop((vm, hypervisor));
    process.end();
    // The backend destroys by name what has other memory than it wants.
    let heir = DoubleSys::new(&host, Zone::bhyve(1));
    let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
    let hypervisor = BhyveHypervisor::open(heir.clone(), config).unwrap();
    let spec = VmSpec { name: "guest".to_owned(), ram: vec![(0, 2 * RAM)], ram_options: RamOptions::default() };
    let vm = hypervisor.create(&spec).unwrap();
    assert_eq!(vm.ram().read_obj::<u8>(GuestAddress(2 * RAM - 1)).unwrap(), 0);
    vm.leave(true);
    drop((vm, hypervisor));
    // And so may anybody.
    let sys: Arc<dyn Sys> = heir.clone();
    let control = Handle::open(&sys, "/dev/vmmctl", CONTROL).unwrap();
    let mut request = vm_destroy_req::new_zeroed();
    request.name[..5].copy_from_slice(b"guest");
    // SAFETY: the structure the command takes, without pointers.
    unsafe { control.ioctl(VMM_DESTROY_VM, IoctlArg::Buffer(request.as_mut_bytes())) }.unwrap();
    assert_eq!(VmFd::open(&sys, "guest").map(drop).unwrap_err().errno, Errno::ENOENT);
    drop(control);
    assert_eq!(heir.leaks(), []);
    assert!(heir.violations().is_empty(), "{:?}", heir.violations());
}

#[test]
fn the_interfaces_version_is_asked_first_and_one_that_is_too_old_refused() {
    let open = |version| {
        let host = Host::new(vec![Vmm::with(Config { version, ..Config::default() })]);
        let process = DoubleSys::new(&host, Zone::bhyve(1));
        let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
        let refused = BhyveHypervisor::open(process.clone(), config).map(drop).err().map(|error| error.to_string());
        assert_eq!(process.leaks(), []);
        refused
    };
    assert_eq!((open(16), open(17), open(18)), (None, None, None));
    let line = open(15).unwrap();
    assert!(line.contains("interface version 15, need 16"), "{line}");
}

#[test]
fn as_many_vcpus_as_the_kernel_says_can_be_activated_and_asked_and_no_more() {
    let guest = Guest::bare();
    let max = i32::try_from(guest.hypervisor.capabilities().max_vcpus).unwrap();
    assert_eq!(max, i32::from(guest.fd().max_vcpus().unwrap()));
    for id in 0..max {
        guest.fd().activate(id).unwrap();
        guest.fd().registers(id, &[VM_REG_GUEST_RAX]).unwrap();
    }
    for id in [-1, max, max + 1] {
        assert_eq!(guest.fd().activate(id).unwrap_err().errno, Errno::EINVAL, "vCPU {id}");
    }
    guest.finish(&["bhyve-vcpu-id"]);
}

#[test]
fn a_vcpu_exits_at_hlt_and_not_at_pause_and_a_reset_leaves_that() {
    // pause; then its end
    let mut guest = Guest::with_code(&[&[0xf3, 0x90]]);
    let ask = |guest: &Guest, captype| {
        let mut capability = vm_capability { cpuid: 0, captype, capval: -1, allcpus: 0 };
        raw(guest.fd(), VM_GET_CAPABILITY, &mut capability).unwrap();
        capability.capval
    };
    for _ in 0..2 {
        assert_eq!((ask(&guest, VM_CAP_HALT_EXIT), ask(&guest, VM_CAP_PAUSE_EXIT)), (1, 0));
        assert_eq!(guest.told(&mut Devices::default()), [0_u32; 0]);
        guest.vm.reset().unwrap();
        guest.vcpus[0].reset(&start(CODE)).unwrap();
    }
    guest.finish(&[]);
}

#[test]
fn a_vm_is_paused_once_and_resumed_once_and_the_backend_may_ask_twice() {
    let mut guest = Guest::with_code(&[]);
    guest.vm.pause().unwrap();
    guest.vm.pause().unwrap();
    assert!(guest.process.violations().is_empty());
    assert_eq!(guest.fd().pause().unwrap_err().errno, Errno::EALREADY);
    assert!(matches!(guest.vcpus[0].run(&mut Devices::default()), Ok(Stop::Kicked)), "nobody is let in");
    guest.vm.resume().unwrap();
    guest.vm.resume().unwrap();
    assert_eq!(guest.fd().resume().unwrap_err().errno, Errno::EALREADY);
    assert_eq!(guest.told(&mut Devices::default()), [0_u32; 0]);
    guest.finish(&["bhyve-pause-once", "bhyve-resume-paused"]);
}

fn entry(function: u32) -> vcpu_cpuid_entry {
    vcpu_cpuid_entry { vce_function: function, ..vcpu_cpuid_entry::new_zeroed() }
}

/// VM_GET_CPUID with room for so many entries.
fn cpuid_of(fd: &VmFd, room: usize) -> (Result<i32, Errno>, vm_vcpu_cpuid_config, Vec<vcpu_cpuid_entry>) {
    let mut entries = vec![vcpu_cpuid_entry::new_zeroed(); room];
    let mut config = vm_vcpu_cpuid_config::new_zeroed();
    config.vvcc_nent = room as u32;
    config.vvcc_entries = entries.as_mut_ptr().expose_provenance();
    (raw(fd, VM_GET_CPUID, &mut config), config, entries)
}

#[test]
fn a_cpuid_table_is_checked_when_it_is_set_and_read_back_as_it_is() {
    let guest = Guest::bare();
    let fd = guest.fd();
    let (result, config, _) = cpuid_of(fd, 0);
    assert_eq!((result, config.vvcc_flags, config.vvcc_nent), (Ok(0), VCC_FLAG_LEGACY_HANDLING, 0));

    let refused = |flags, entries: &mut [vcpu_cpuid_entry]| fd.set_cpuid(0, flags, entries).unwrap_err().errno;
    assert_eq!(refused(!VCC_FLAG_LEGACY_HANDLING, &mut []), Errno::EINVAL);
    assert_eq!(refused(VCC_FLAG_LEGACY_HANDLING, &mut [entry(0)]), Errno::EINVAL);
    let mut too_many: Vec<_> = (0..=VMM_MAX_CPUID_ENTRIES as u32).map(entry).collect();
    refused(0, &mut too_many);
    let strange = vcpu_cpuid_entry { vce_flags: u32::MAX, ..entry(0) };
    assert_eq!(refused(0, &mut [strange]), Errno::EINVAL);

    let mut table: Vec<_> = (0..VMM_MAX_CPUID_ENTRIES as u32 / 2).map(entry).collect();
    fd.set_cpuid(0, 0, &mut table).unwrap();
    for room in [0, 1] {
        let (result, config, _) = cpuid_of(fd, room);
        assert_eq!((result, config.vvcc_nent as usize), (Err(Errno::E2BIG), table.len()));
    }
    let (result, config, entries) = cpuid_of(fd, table.len());
    assert_eq!((result, config.vvcc_flags, config.vvcc_nent as usize), (Ok(0), 0, table.len()));
    assert_eq!(entries.as_bytes(), table.as_bytes());

    let offered = guest.hypervisor.supported_cpuid().unwrap();
    let first = offered.iter().find(|entry| entry.function == 0).unwrap();
    assert_eq!(fd.legacy_cpuid(0, 0, 0).unwrap(), [first.eax, first.ebx, first.ecx, first.edx]);
    guest.finish(&["bhyve-cpuid-count", "bhyve-cpuid-flags", "bhyve-cpuid-legacy-empty", "bhyve-cpuid-whole"]);
}
