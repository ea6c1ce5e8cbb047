//! How a VM comes and goes.

use devices_host::ram::Pages;
use devices_host::sys::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::hypervisor::bhyve::abi::*;
use crate::hypervisor::bhyve::vmfd::ARC_RESERVATION as VM_ARC_RESV;
use crate::hypervisor::{KernelDevices, Vm};

fn refusal(result: Result<impl Sized, HypervisorError>) -> String {
    result.err().expect("a refusal").to_string()
}

/// Everything a start does, up to the first entry.
fn start(sys: &Arc<FakeSys>) -> Result<(), HypervisorError> {
    let hypervisor = open(sys)?;
    let vm = hypervisor.create(&spec())?;
    vm.map_rom(0xffff_0000, &[0x90; 0x1_0000])?;
    vm.set_up_kernel_devices(&KernelDevices { pm_timer_port: Some(0x408), nvram: vec![(0x34, 1)] })?;
    vm.line_is_level(9)?;
    let mut vcpu = vm.create_vcpu(0, &table(&hypervisor))?;
    let boot = crate::hypervisor::VcpuStart::Boot(Box::new(arch::regs::reset_vector()));
    vcpu.reset(&boot)?;
    vm.reset()?;
    vcpu.reset(&boot)
}

#[test]
fn whichever_call_of_a_start_fails_the_error_names_it_and_nothing_is_left_behind() {
    let sys = FakeSys::new();
    start(&sys).unwrap();
    assert_eq!(sys.leaks(), [""; 0]);
    let calls = sys.state().made;
    assert!(calls > 40, "{calls}");
    for at in 0..calls {
        for errno in [Errno::EIO, Errno::EPERM, Errno::ENXIO, Errno::EINVAL] {
            let sys = FakeSys::new();
            sys.state().fail_at = Some((at, errno));
            // What cannot be known (the number of vCPUs) is done without.
            if let Err(error) = start(&sys) {
                let line = error.to_string();
                assert!(line.contains("VM") || line.contains("/dev/vmm") || line.contains("mmap"), "{at}: {line}");
                assert!(!line.contains('\n'), "{line}");
            }
            assert_eq!(sys.leaks(), [""; 0], "call {at} {errno:?}");
        }
    }
}

#[test]
fn an_interrupted_call_is_made_again() {
    let sys = FakeSys::new();
    start(&sys).unwrap();
    let calls = sys.state().made;
    let mut open_or_map = 0;
    for at in 0..calls {
        let sys = FakeSys::new();
        sys.state().fail_at = Some((at, Errno::EINTR));
        open_or_map += usize::from(start(&sys).is_err());
    }
    assert!(open_or_map <= 5, "opens and mappings alone: {open_or_map}");
}

#[test]
fn destruction_with_the_last_descriptor_is_the_first_thing_a_vm_is_told() {
    let sys = FakeSys::new();
    let hypervisor = open(&sys).unwrap();
    let calls: Vec<i32> = sys.state().calls.iter().map(|call| call.request).collect();
    assert_eq!(calls[..3], [VMM_INTERFACE_VERSION, VMM_CREATE_VM, VM_SET_AUTODESTRUCT]);
    assert_eq!(sys.calls(VM_SET_AUTODESTRUCT)[0].value, 1);
    drop(hypervisor);
    assert_eq!(sys.leaks(), [""; 0]);
}

#[test]
fn a_vm_whose_node_cannot_be_opened_is_destroyed_by_its_name() {
    let sys = FakeSys::new();
    sys.force(0, &[Some(Errno::EACCES)]);
    assert_eq!(refusal(open(&sys)), "opening the VM's node: Permission denied");
    assert_eq!(sys.calls(VMM_DESTROY_VM).len(), 1);
    assert_eq!(sys.leaks(), [""; 0]);
}

#[test]
fn a_vm_that_refuses_to_end_with_its_descriptor_is_destroyed() {
    let sys = FakeSys::new();
    sys.force(VM_SET_AUTODESTRUCT, &[Some(Errno::EIO)]);
    sys.force(VM_DESTROY_SELF, &[Some(Errno::EIO)]);
    assert_eq!(refusal(open(&sys)), "VM_SET_AUTODESTRUCT: I/O error");
    assert_eq!(sys.leaks(), [""; 0], "by name, where its own way fails");
}

/// A system with the VM that a process has left for the next.
fn left() -> Arc<FakeSys> {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    vm.ram().write_obj(42u32, GuestAddress(0x1000)).unwrap();
    vm.leave(true);
    drop(vm);
    assert_eq!(sys.leaks(), ["VM guest"]);
    sys
}

#[test]
fn a_vm_left_for_the_next_process_is_reset_and_keeps_its_memory() {
    let sys = left();
    sys.state().calls.clear();
    let vm = vm(&sys);
    assert!(vm.ram_is_used());
    assert_eq!(sys.calls(VM_REINIT).len(), 1);
    assert_eq!(sys.calls(VM_ALLOC_MEMSEG).len(), 0, "its memory is there");
    drop(vm);
    assert_eq!(sys.leaks(), [""; 0], "and it ends with its new owner");
}

#[test]
fn a_vm_with_other_memory_is_destroyed_and_made_anew() {
    let sys = left();
    let mut other = spec();
    other.ram[1].1 += MIB;
    let vm = open(&sys).unwrap().create(&other).unwrap();
    assert!(!vm.ram_is_used());
    assert_eq!(sys.calls(VM_DESTROY_SELF).len(), 1);
    assert_eq!(sys.state().vms["guest"].segments[&1], (2 * MIB as usize, true));
    drop(vm);
    assert_eq!(sys.leaks(), [""; 0]);
}

#[test]
fn a_vm_that_cannot_be_reset_is_destroyed_and_made_anew() {
    let sys = left();
    sys.force(VM_REINIT, &[Some(Errno::EBUSY)]);
    let vm = vm(&sys);
    assert!(!vm.ram_is_used());
    drop(vm);
    assert_eq!(sys.leaks(), [""; 0]);
}

#[test]
fn a_vm_that_is_paused_was_not_left_for_anybody() {
    let sys = left();
    sys.state().data.insert((-1, VDC_VMM_ARCH), [VAI_VM_IS_PAUSED, 0, 1, 0].map(u32::to_ne_bytes).concat());
    let vm = vm(&sys);
    assert!(!vm.ram_is_used());
    assert_eq!(sys.calls(VM_DESTROY_SELF).len(), 1);
}

#[test]
fn a_vm_is_left_running() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    vm.pause().unwrap();
    vm.leave(true);
    assert_eq!(sys.calls(VM_RESUME).len(), 1);
}

#[test]
fn creation_waits_for_an_old_vm_to_go_away_but_not_for_ever() {
    let sys = left();
    let hypervisor = open(&sys).unwrap();
    let mut other = spec();
    other.ram[1].1 += MIB;
    sys.force(VMM_CREATE_VM, &[Some(Errno::EEXIST), Some(Errno::EEXIST), Some(Errno::EINVAL)]);
    assert!(hypervisor.create(&other).is_ok());
    let sys = left();
    let hypervisor = open(&sys).unwrap();
    sys.force(VMM_CREATE_VM, &[Some(Errno::EEXIST); 100]);
    let line = "cannot create the VM 'guest': a VM 'guest' exists and does not go away: is another process running it?";
    assert_eq!(refusal(hypervisor.create(&other)), line);
}

#[test]
fn a_start_that_cannot_be_says_why_in_one_line() {
    let with = |request, errno| {
        let sys = FakeSys::new();
        sys.force(request, &[Some(errno); 100]);
        let line = refusal(open(&sys));
        assert_eq!(sys.leaks(), [""; 0]);
        line
    };
    let create = |errno| with(VMM_CREATE_VM, errno);
    assert_eq!(
        create(Errno::EEXIST),
        "the name 'guest' is taken by a VM of another zone: names are one space on the whole machine"
    );
    assert_eq!(
        create(Errno::EINVAL),
        "cannot create the VM 'guest': this zone has a VM already, and a zone can have one"
    );
    assert_eq!(
        create(Errno::ENXIO),
        "cannot create the VM 'guest': another hypervisor holds the processor's virtualization, or it has none"
    );
    assert_eq!(create(Errno::EPERM), "cannot create the VM 'guest': the process may not create VMs: it must be root");
    assert_eq!(create(Errno::ENOMEM), "memory: no room for a VM: VMM_CREATE_VM: Not enough space");

    let sys = FakeSys::new();
    sys.state().version = 15;
    let line = "/dev/vmmctl: interface version 15, need 16 or newer: use a newer platform";
    assert_eq!(refusal(open(&sys)), line);

    let sys = FakeSys::new();
    sys.state().fail_at = Some((0, Errno::ENOENT));
    let line = "/dev/vmmctl: No such file or directory: load the driver vmm, or give the zone the device \
                (add device; set match=vmm*)";
    assert_eq!(refusal(open(&sys)), line);
}

#[test]
fn a_name_that_cannot_be_a_vms_is_refused_before_any_call() {
    let long = "x".repeat(128);
    for (name, why) in [
        ("", "it is empty"),
        ("a/b", "it may not contain '/' or NUL"),
        (&long, "it is longer than 127 bytes"),
        ("..", "it names a directory"),
    ] {
        let sys = FakeSys::new();
        let line = refusal(BhyveHypervisor::open(sys.clone(), BhyveConfig { name: name.to_owned(), reservoir: false }));
        assert_eq!(line, format!("the name '{name}' cannot be a VM's on bhyve: {why}"));
        assert_eq!(sys.state().made, 0);
    }
}

#[test]
fn memory_that_the_kernel_cannot_give_is_refused_with_its_option() {
    let line = |edit: fn(&mut VmSpec)| {
        let sys = FakeSys::new();
        let mut spec = spec();
        edit(&mut spec);
        let line = refusal(open(&sys).unwrap().create(&spec));
        assert_eq!(sys.calls(VM_ALLOC_MEMSEG).len(), 0);
        assert_eq!(sys.leaks(), [""; 0]);
        line
    };
    let shared = line(|spec| spec.ram_options.shared = true);
    assert_eq!(shared, "memory: shared memory is not to be had: on bhyve guest memory is the kernel's");
    let huge = line(|spec| spec.ram_options.pages = Pages::Huge2M);
    assert_eq!(huge, "memory: huge pages cannot be chosen: on bhyve guest memory is the kernel's");
    let node = line(|spec| spec.ram_options.numa_node = Some(0));
    assert_eq!(node, "memory: the NUMA node cannot be chosen: on bhyve guest memory is the kernel's");
    assert!(line(|spec| spec.ram[1].1 = 1 << 50).starts_with("memory: guest memory of "));
    assert_eq!(line(|spec| spec.ram[0].1 = 0), "memory: guest memory of 0 bytes: give at least 1 MiB");
    assert_eq!(line(|spec| spec.ram[0].1 = 1), "memory: guest memory must be one or two ranges of whole pages");
}

#[test]
fn a_kernel_or_reservoir_without_memory_is_named() {
    for (reservoir, place) in [(false, "the host"), (true, "the reservoir")] {
        let sys = FakeSys::new();
        sys.force(VM_ALLOC_MEMSEG, &[Some(Errno::ENOMEM); 3]);
        let mut hypervisor = BhyveHypervisor::open(sys.clone(), BhyveConfig { reservoir, ..config() }).unwrap();
        hypervisor.patience.attempts = 3;
        assert_eq!(sys.state().vms["guest"].flags, u64::from(reservoir) * VCF_RESERVOIR_MEM);
        let line = refusal(hypervisor.create(&spec()));
        assert_eq!(line, format!("memory: {place} has no 2 MiB left for the guest"));
        // The reservoir gets no fuller by waiting.
        assert_eq!(sys.calls(VM_ALLOC_MEMSEG).len(), if reservoir { 1 } else { 3 });
        assert_eq!(sys.calls(VM_ARC_RESV).len(), usize::from(!reservoir));
        drop(hypervisor);
        assert_eq!(sys.leaks(), [""; 0]);
    }
}

#[test]
fn a_host_is_asked_to_make_room_for_all_memory_and_given_time_for_it() {
    // A kernel that cannot be asked is none that cannot wait.
    for answer in [None, Some(Errno::ENOTTY)] {
        let sys = FakeSys::new();
        sys.force(VM_ARC_RESV, &[answer]);
        sys.force(VM_ALLOC_MEMSEG, &[Some(Errno::ENOMEM), Some(Errno::ENOMEM), None, Some(Errno::ENOMEM)]);
        let vm = vm(&sys);
        assert_eq!(vm.ram().num_regions(), 2);
        assert_eq!(sys.calls(VM_ALLOC_MEMSEG).len(), 5);
        let asked: Vec<_> = sys.calls(VM_ARC_RESV).iter().map(|call| call.value as u64).collect();
        assert_eq!(asked, [3 * MIB]);
        let order: Vec<i32> = sys.state().calls.iter().map(|call| call.request).collect();
        let first = |request| order.iter().position(|made| *made == request);
        assert!(first(VM_ARC_RESV) < first(VM_ALLOC_MEMSEG));
        drop(vm);
        assert_eq!(sys.leaks(), [""; 0]);
    }
}

#[test]
fn memory_is_wired_where_its_pages_are_wanted_at_once() {
    for (threads, flags) in [(0, 0), (2, VM_MEMMAP_F_WIRED)] {
        let sys = FakeSys::new();
        let mut spec = spec();
        spec.ram_options.prealloc_threads = threads;
        let vm = open(&sys).unwrap().create(&spec).unwrap();
        let maps = sys.state().vms["guest"].maps.clone();
        assert_eq!(maps.iter().map(|map| map.flags).collect::<Vec<_>>(), [flags; 2]);
        assert_eq!(maps.iter().map(|map| (map.gpa, map.segid)).collect::<Vec<_>>(), [(0, 0), (4096 * MIB, 1)]);
        assert_eq!(vm.ram().num_regions(), 2);
    }
}

#[test]
fn memory_that_somebody_still_uses_outlives_the_vm() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    let user = vm.ram().clone();
    drop(vm);
    user.write_obj(1u8, GuestAddress(0)).unwrap();
    assert_eq!(sys.leaks().len(), 2, "its two mappings");
}

#[test]
fn a_reset_maps_the_rom_again_and_places_what_the_kernel_forgot() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    vm.map_rom(0xffff_0000, &[0x90; 0x1_0000]).unwrap();
    vm.line_is_level(10).unwrap();
    vm.line_is_level(8).unwrap();
    vm.line_is_level(20).unwrap();
    vm.set_up_kernel_devices(&KernelDevices { pm_timer_port: Some(0x408), nvram: vec![(0x34, 7)] }).unwrap();
    sys.state().calls.clear();
    vm.reset().unwrap();
    let requests: Vec<i32> = sys.state().calls.iter().map(|call| call.request).collect();
    let wanted = [VM_REINIT, VM_MMAP_MEMSEG, VM_ISA_SET_IRQ_TRIGGER, VM_PMTMR_LOCATE, VM_RTC_SETTIME, VM_RTC_WRITE];
    assert_eq!(requests, wanted);
    let rom: vm_memmap = sys.calls(VM_MMAP_MEMSEG)[0].argument();
    assert_eq!((rom.gpa, rom.segid, rom.prot), (0xffff_0000, 2, VM_PROT_READ | VM_PROT_EXECUTE));
    assert_eq!(sys.calls(VM_ISA_SET_IRQ_TRIGGER)[0].argument::<vm_isa_irq_trigger>().atpic_irq, 10);
    assert_eq!(sys.calls(VM_PMTMR_LOCATE)[0].value, 0x408);
    let time: vm_rtc_timespec = sys.calls(VM_RTC_SETTIME)[0].argument();
    let (now, _) = devices_host::clock::realtime();
    assert!((now - time.tv_sec).abs() < 60, "the host's time");
    let byte: vm_rtc_data = sys.calls(VM_RTC_WRITE)[0].argument();
    assert_eq!((byte.offset, byte.value), (0x34, 7));
}

#[test]
fn a_rom_takes_the_segment_that_an_earlier_process_left() {
    let sys = FakeSys::new();
    {
        let vm = vm(&sys);
        vm.map_rom(0xffff_0000, &[0x90; 0x1_0000]).unwrap();
        vm.leave(true);
    }
    let vm = vm(&sys);
    assert!(vm.ram_is_used(), "a ROM does not keep a VM from being used again");
    vm.map_rom(0xffff_0000, &[0x90; 0x1_0000]).unwrap();
    vm.map_rom(0xfffe_0000, &[0x90; 0x1000]).unwrap();
    let segments: Vec<(i32, usize)> = sys.state().vms["guest"].segments.iter().map(|(id, s)| (*id, s.0)).collect();
    assert_eq!(segments[2..], [(2, 0x1_0000), (3, 0x1000)]);
    assert_eq!(
        refusal(vm.map_rom(0xfffe_0000, &[0; 10])),
        "memory: a ROM of 10 bytes at 0xfffe0000 is not whole pages"
    );
}

#[test]
fn the_kernel_is_paused_once_and_resumed_once() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    vm.resume().unwrap();
    vm.pause().unwrap();
    vm.pause().unwrap();
    sys.force(VM_RESUME, &[Some(Errno::EALREADY)]);
    vm.resume().unwrap();
    vm.resume().unwrap();
    assert_eq!((sys.calls(VM_PAUSE).len(), sys.calls(VM_RESUME).len()), (1, 1));
}

#[test]
fn the_kernels_state_goes_out_and_comes_back_in_the_order_it_needs() {
    let sys = FakeSys::new();
    let hypervisor = open(&sys).unwrap();
    let vm = hypervisor.create(&spec()).unwrap();
    let _vcpu = vm.create_vcpu(0, &table(&hypervisor)).unwrap();
    let line = refusal(vm.save_kernel_state());
    assert_eq!(line, "the kernel's state can be had of a paused VM only");
    let known: Vec<u8> = [(VDC_VERSION, 1u16), (VDC_RTC, 2), (VDC_VMM_TIME, 1), (VDC_LAPIC, 1)]
        .iter()
        .flat_map(|&(class, version)| [class, version, 0, 0])
        .flat_map(u16::to_ne_bytes)
        .collect();
    for (vcpu, class, bytes) in [
        (-1, VDC_VERSION, known),
        (-1, VDC_RTC, vec![2; 152]),
        (-1, VDC_VMM_TIME, vec![3; 48]),
        (0, VDC_LAPIC, vec![4]),
    ] {
        sys.state().data.insert((vcpu, class), bytes);
    }
    vm.pause().unwrap();
    let state = vm.save_kernel_state().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    sys.state().data.clear();
    sys.state().calls.clear();
    vm.restore_kernel_state(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(sys.state().data[&(-1, VDC_RTC)], [2; 152]);
    assert_eq!(sys.state().data[&(0, VDC_LAPIC)], [4]);
    let classes: Vec<u16> =
        sys.calls(VM_DATA_WRITE).iter().map(|call| call.argument::<vm_data_xfer>().vdx_class).collect();
    assert_eq!(classes, [VDC_VMM_TIME, VDC_RTC, VDC_LAPIC], "time before the timers that are told in it");

    let _second = vm.create_vcpu(1, &table(&hypervisor)).unwrap();
    assert_eq!(refusal(vm.restore_kernel_state(&state)), "saved state of 1 vCPUs for a VM with 2");
}

#[test]
fn what_the_kernel_offers_is_read_with_its_sub_leaves_and_no_more() {
    let sys = FakeSys::new();
    let hypervisor = open(&sys).unwrap();
    let keys: Vec<(u32, u32, bool)> =
        table(&hypervisor).iter().map(|entry| (entry.function, entry.index, entry.index_significant)).collect();
    let of = |function| keys.iter().filter(|key| key.0 == function).map(|key| key.1).collect::<Vec<_>>();
    assert_eq!((of(4), of(7), of(1)), (vec![0, 1], vec![0, 1], vec![0]));
    assert!(keys.contains(&(0x8000_0008, 0, false)));
    assert!(sys.calls(VM_LEGACY_CPUID).len() < 100);
    let capabilities = hypervisor.capabilities();
    assert_eq!((capabilities.phys_bits, capabilities.max_vcpus), (39, 64));
    assert!(capabilities.rtc_in_kernel && capabilities.pm_timer_in_kernel && !capabilities.tsc_deadline);
}
