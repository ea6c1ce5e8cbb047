//! What the backend asks of the driver, in which order, and what it makes of the answers.

use std::time::Duration;

use devices::bus::Access;
use devices_host::ram::{Pages, RamOptions};
use devices_host::sys::SysResult;

use super::abi::*;
use super::fake::Fake;
use super::memory::{Patience, allocate};
use super::*;
use crate::hypervisor::{ExitHandler, ExitKind, Stop, Vcpu, VcpuStart};

fn open(fake: &Arc<Fake>) -> Result<IllumosKvmHypervisor, HypervisorError> {
    IllumosKvmHypervisor::open(fake.clone())
}

fn refusal(fake: &Arc<Fake>) -> String {
    open(fake).err().unwrap().to_string()
}

fn vm(fake: &Arc<Fake>) -> Arc<dyn Vm> {
    let spec = VmSpec { name: String::new(), ram: vec![(0, 1 << 20)], ram_options: RamOptions::default() };
    open(fake).unwrap().create_vm(&spec).unwrap()
}

#[test]
fn each_missing_capability_is_named_whether_it_is_unknown_or_too_small() {
    for (number, least, name, purpose) in CAPABILITIES {
        for answer in [Err(Errno::EINVAL), Ok(least - 1), Ok(0)] {
            let fake = Fake::new();
            fake.lock().caps.insert(number, answer);
            assert_eq!(
                refusal(&fake),
                format!("illumos-kvm lacks {name}, needed for {purpose}: use a newer host kernel")
            );
        }
    }
}

#[test]
fn capabilities_with_nothing_behind_them_are_not_asked_for() {
    let fake = Fake::new();
    open(&fake).unwrap();
    let asked: Vec<usize> = fake
        .arguments(KVM_CHECK_EXTENSION)
        .iter()
        .map(|argument| argument.as_slice().try_into().map_or(0, usize::from_ne_bytes))
        .collect();
    assert_eq!(asked.len(), CAPABILITIES.len());
    for lie in [
        cap::MMU_SHADOW_CACHE_CONTROL,
        cap::SYNC_MMU,
        cap::REINJECT_CONTROL,
        cap::ASSIGN_DEV_IRQ,
        cap::IOEVENTFD,
        cap::XEN_HVM,
        cap::ADJUST_CLOCK,
        cap::HYPERV,
        cap::HYPERV_VAPIC,
        cap::HYPERV_SPIN,
        cap::PCI_SEGMENT,
        cap::X86_ROBUST_SINGLESTEP,
    ] {
        assert!(!asked.contains(&lie), "{lie}");
    }
}

#[test]
fn a_driver_of_another_kind_is_refused_with_what_is_different() {
    let fake = Fake::new();
    fake.answer(KVM_GET_API_VERSION, Ok(13));
    assert_eq!(refusal(&fake), "/dev/kvm: API version 13, need 12: this is not the driver of SmartOS");
    let fake = Fake::new();
    fake.answer(KVM_GET_VCPU_MMAP_SIZE, Ok(8192));
    assert_eq!(refusal(&fake), "/dev/kvm: shares 8192 bytes a vCPU, need 12288: this is not the driver of SmartOS");
    let fake = Fake::new();
    fake.answer(KVM_GET_SUPPORTED_CPUID, Err(Errno::E2BIG));
    assert_eq!(refusal(&fake), "KVM_GET_SUPPORTED_CPUID: Arg list too long");
}

#[test]
fn a_device_that_does_not_open_says_what_to_do() {
    for (errno, start) in [
        (Errno::ENOENT, "/dev/kvm: No such file or directory: the zone has no such device: its brand must be kvm"),
        (Errno::ENXIO, "/dev/kvm: No such device or address: the processor's virtualization cannot be had"),
        (Errno::EACCES, "/dev/kvm: Permission denied: only the zone's root may open it"),
        (Errno::EMFILE, "/dev/kvm: Too many open files: raise the limit of open files"),
        (Errno::EIO, "/dev/kvm: I/O error: is the kvm driver of SmartOS loaded?"),
    ] {
        let fake = Fake::new();
        fake.lock().open = Some(errno);
        let line = refusal(&fake);
        assert!(line.starts_with(start) && !line.contains('\n'), "{line}");
    }
}

#[test]
fn the_capabilities_are_the_drivers_and_within_what_it_can_do() {
    let fake = Fake::new();
    fake.lock().caps.insert(cap::NR_VCPUS, Ok(1000));
    let hypervisor = open(&fake).unwrap();
    let capabilities = hypervisor.capabilities();
    assert_eq!(capabilities.max_vcpus, 64);
    assert_eq!(capabilities.phys_bits, 48, "52 bits of the host are beyond the driver's page tables");
    assert!(!capabilities.tsc_deadline && !capabilities.rtc_in_kernel && !capabilities.pm_timer_in_kernel);
    assert_eq!(capabilities.hypervisor_leaves, HypervisorLeaves::Kvm { features: 3, hints: 0 });
    assert!(hypervisor.supported_cpuid().unwrap().iter().all(|entry| entry.function != 7), "the host's own leaf 7");
}

#[test]
fn a_vm_is_built_in_the_order_the_driver_needs() {
    let fake = Fake::new();
    let vm = vm(&fake);
    let _vcpu = vm.create_vcpu(0, &[]).unwrap();
    assert_eq!(
        fake.requests()[CAPABILITIES.len() + 3..],
        [
            KVM_CREATE_VM,
            KVM_SET_USER_MEMORY_REGION,
            KVM_SET_TSS_ADDR,
            KVM_SET_IDENTITY_MAP_ADDR,
            KVM_CREATE_IRQCHIP,
            KVM_CREATE_PIT2,
            KVM_SET_GSI_ROUTING,
            KVM_CLONE,
            KVM_CREATE_VCPU,
            KVM_SET_CPUID2,
        ]
    );
    assert_eq!(fake.arguments(KVM_CLONE), [0x10b_0000_0007_usize.to_ne_bytes()], "the device number by value");
    assert_eq!(fake.lock().locked, [1 << 20], "before the slot");
}

#[test]
fn nothing_that_harms_the_kernel_or_has_no_code_is_ever_called() {
    let fake = Fake::new();
    let (vm, mut vcpu) = booted(&fake);
    let mut io = Nobody::default();
    vcpu.bind_to_current_thread().unwrap();
    let _ = vcpu.run(&mut io);
    vcpu.quiesce().unwrap();
    vcpu.inject_nmi().unwrap();
    vcpu.note_pause();
    vm.irq_line(9).set(true);
    vm.reset().unwrap();
    vm.leave(true);
    assert!(vm.doorbells().is_none() && vm.port_collector().is_none() && vm.tsc_khz().is_none());
    for never in [
        KVM_GET_CPUID2,
        KVM_GET_IRQCHIP,
        KVM_SET_BOOT_CPU_ID,
        KVM_SET_CPUID,
        KVM_GET_PIT,
        KVM_SET_PIT,
        KVM_REINJECT_CONTROL,
        KVM_SET_CLOCK,
        KVM_GET_CLOCK,
        KVM_TPR_ACCESS_REPORTING,
        KVM_X86_SET_MCE,
        KVM_SET_NR_MMU_PAGES,
        KVM_GET_NR_MMU_PAGES,
        KVM_INTERRUPT,
    ] {
        assert!(!fake.requests().contains(&never), "{never:#x}");
    }
}

#[test]
fn a_vcpu_that_the_kernel_numbers_otherwise_is_refused() {
    let fake = Fake::new();
    fake.answer(KVM_CREATE_VCPU, Ok(5));
    let error = vm(&fake).create_vcpu(0, &[]).err().unwrap();
    assert_eq!(error.to_string(), "vcpu0: the kernel made it number 5: vCPUs must be created in order");
}

// ---- memory ----

const IMPATIENT: Patience = Patience { pause: Duration::ZERO, attempts: 3 };

fn lock(fake: &Arc<Fake>, mib: u64, answers: &[SysResult<()>]) -> Result<Vec<usize>, String> {
    fake.lock().mlock = answers.iter().copied().collect();
    let sys: Arc<dyn Sys> = fake.clone();
    let ram = allocate(&sys, &[(0, mib << 20)], &RamOptions::default(), IMPATIENT);
    ram.map_err(|error| error.to_string())?;
    Ok(fake.lock().locked.clone())
}

#[test]
fn a_host_short_of_memory_is_asked_for_less_and_then_for_more_again() {
    let again = Err(Errno::EAGAIN);
    let locked = lock(&Fake::new(), 4, &[again, again, Ok(()), Ok(())]).unwrap();
    assert_eq!(locked, [1 << 20, 2 << 20, 1 << 20]);
}

#[test]
fn a_host_that_gives_no_more_is_not_asked_for_ever() {
    // 1 MiB halves eight times to a page, which is asked for once and three times more.
    let refused = vec![Err(Errno::EAGAIN); 12];
    let fake = Fake::new();
    let line = lock(&fake, 1, &refused).unwrap_err();
    assert!(line.starts_with("memory: locked 0 of 1 MiB of guest memory, then: "), "{line}");
    assert!(line.ends_with("the host has no more free memory, or zone.max-locked-memory is too small"), "{line}");
    assert!(fake.lock().mlock.is_empty());
    assert_eq!(lock(&Fake::new(), 1, &refused[..11]).unwrap()[0], 4096, "the last attempt counts");
}

#[test]
fn memory_that_may_not_be_locked_says_why() {
    let line = lock(&Fake::new(), 1, &[Err(Errno::EPERM)]).unwrap_err();
    assert_eq!(
        line,
        "memory: locked 0 of 1 MiB of guest memory, then: Not owner: the zone needs the privilege proc_lock_memory"
    );
}

#[test]
fn memory_options_the_driver_cannot_serve_are_refused() {
    let refuse = |options: RamOptions| {
        let sys: Arc<dyn Sys> = Fake::new();
        allocate(&sys, &[(0, 1 << 20)], &options, IMPATIENT).unwrap_err().to_string()
    };
    let options = RamOptions::default;
    assert_eq!(
        refuse(RamOptions { shared: true, ..options() }),
        "memory: shared guest memory is not possible with illumos KVM"
    );
    for pages in [Pages::Huge2M, Pages::Huge1G] {
        let line = refuse(RamOptions { pages, ..options() });
        assert_eq!(line, "memory: a pool of huge pages is not possible with illumos KVM");
    }
    let line = refuse(RamOptions { numa_node: Some(0), ..options() });
    assert_eq!(line, "memory: binding guest memory to a NUMA node is not possible with illumos KVM");
}

#[test]
fn more_ranges_than_the_driver_has_slots_are_refused() {
    let fake = Fake::new();
    let vm = vm(&fake);
    for slot in 1..32 {
        vm.map_rom((0x1000 + slot) << 20, &[0; 4096]).unwrap();
    }
    let line = vm.map_rom(0x2000 << 20, &[0; 4096]).unwrap_err().to_string();
    assert_eq!(line, "memory: more than 32 ranges of memory and ROM");
    assert_eq!(fake.arguments(KVM_SET_USER_MEMORY_REGION).len(), 32);
}

// ---- the vCPU ----

#[derive(Default)]
struct Nobody {
    log: Vec<String>,
}

impl ExitHandler for Nobody {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        self.log.push(format!("in {port:#x} {}", data.len()));
        Access::Done
    }
    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.log.push(format!("out {port:#x} {}", data.len()));
        Access::Done
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        self.log.push(format!("read {address:#x} {}", data.len()));
        Access::Done
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.log.push(format!("write {address:#x} {}", data.len()));
        Access::Done
    }
    fn rdmsr(&mut self, _code: u32) -> Option<u64> {
        None
    }
    fn wrmsr(&mut self, _code: u32, _value: u64) -> bool {
        false
    }
    fn count(&mut self, _exit: ExitKind) {}
}

fn booted(fake: &Arc<Fake>) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = vm(fake);
    let mut vcpu = vm.create_vcpu(0, &[]).unwrap();
    vcpu.reset(&VcpuStart::Boot(Box::new(arch::regs::reset_vector()))).unwrap();
    (vm, vcpu)
}

/// `kvm_run` from `exit_reason` on, with these bytes in its union.
fn exit(reason: u32, member: &[u8]) -> Vec<u8> {
    [&reason.to_ne_bytes()[..], &[0; 20], member].concat()
}

fn run(exits: &[Vec<u8>]) -> (Result<Stop, HypervisorError>, Vec<String>) {
    let fake = Fake::new();
    let (_vm, mut vcpu) = booted(&fake);
    fake.lock().exits = exits.iter().cloned().collect();
    let mut io = Nobody::default();
    (vcpu.run(&mut io), io.log)
}

#[test]
fn a_vcpu_is_reset_by_hand_with_the_apic_base_before_the_apic() {
    let fake = Fake::new();
    let (_vm, _vcpu) = booted(&fake);
    let requests = fake.requests();
    let after = requests.iter().rposition(|&request| request == KVM_SET_CPUID2).unwrap() + 1;
    assert_eq!(
        requests[after..],
        [KVM_SET_SREGS, KVM_SET_REGS, KVM_SET_MSRS, KVM_SET_LAPIC, KVM_SET_VCPU_EVENTS, KVM_SET_FPU, KVM_SET_MP_STATE]
    );
    assert!(fake.arguments(KVM_SET_MSRS).iter().all(|argument| argument.len() == 1608));
}

#[test]
fn registers_the_host_does_not_have_are_skipped_one_by_one() {
    let fake = Fake::new();
    fake.answer(KVM_SET_MSRS, Ok(3));
    fake.answer(KVM_SET_MSRS, Ok(0));
    let (_vm, _vcpu) = booted(&fake);
    let counts: Vec<u8> = fake.arguments(KVM_SET_MSRS).iter().map(|argument| argument[0]).collect();
    assert_eq!(counts, [counts[0], counts[0] - 4, counts[0] - 5]);
}

#[test]
fn the_signal_mask_has_its_sixteen_bytes_right_behind_the_length() {
    let fake = Fake::new();
    let (_vm, mut vcpu) = booted(&fake);
    vcpu.bind_to_current_thread().unwrap();
    let mask = &fake.arguments(KVM_SET_SIGNAL_MASK)[0];
    assert_eq!((mask.len(), &mask[..4]), (20, &16_u32.to_ne_bytes()[..]));
    assert_eq!(mask[5] & 0x80, 0, "signal 16 is let in");
    assert_eq!(mask[5] & 0x40, 0x40, "SIGTERM is not");
}

#[test]
fn exits_become_accesses_of_their_width() {
    let io = |direction: u8, size: u8, port: u16, count: u32| {
        let mut member = vec![direction, size];
        member.extend(port.to_ne_bytes());
        member.extend(count.to_ne_bytes());
        member.extend(4096_u64.to_ne_bytes());
        exit(exit::IO, &member)
    };
    let mmio = |address: u64, len: u32, write: u8| {
        let mut member: Vec<u8> = address.to_ne_bytes().into();
        member.extend([0; 8]);
        member.extend(len.to_ne_bytes());
        member.push(write);
        exit(exit::MMIO, &member)
    };
    let (stop, log) = run(&[io(0, 1, 0x71, 1), io(1, 2, 0x500, 3), mmio(0xfed0_0000, 8, 0), mmio(0xd000_0000, 4, 1)]);
    assert!(matches!(stop, Ok(Stop::Kicked)));
    assert_eq!(
        log,
        ["in 0x71 1", "out 0x500 2", "out 0x500 2", "out 0x500 2", "read 0xfed00000 8", "write 0xd0000000 4"]
    );
}

#[test]
fn lengths_beyond_the_shared_pages_are_cut() {
    let mut member = vec![1, 4];
    member.extend(0x500_u16.to_ne_bytes());
    member.extend(u32::MAX.to_ne_bytes());
    let (_, log) = run(&[exit(exit::IO, &member)]);
    assert_eq!(log.len(), 1024);
    let mut member: Vec<u8> = 0xd000_0000_u64.to_ne_bytes().into();
    member.extend([0; 8]);
    member.extend(u32::MAX.to_ne_bytes());
    let (_, log) = run(&[exit(exit::MMIO, &member)]);
    assert_eq!(log, ["read 0xd0000000 8"]);
}

#[test]
fn a_shutdown_is_a_triple_fault_and_a_halt_a_halt() {
    assert!(matches!(run(&[exit(exit::SHUTDOWN, &[])]).0, Ok(Stop::TripleFault)));
    assert!(matches!(run(&[exit(exit::HLT, &[])]).0, Ok(Stop::Halt)));
    assert!(matches!(run(&[exit(exit::INTR, &[])]).0, Ok(Stop::Kicked)));
}

#[test]
fn an_application_processor_that_has_not_started_comes_out_like_a_kicked_one() {
    let fake = Fake::new();
    let (_vm, mut vcpu) = booted(&fake);
    for errno in [Errno::EAGAIN, Errno::EINTR] {
        fake.answer(KVM_RUN, Err(errno));
        assert!(matches!(vcpu.run(&mut Nobody::default()), Ok(Stop::Kicked)));
    }
    fake.answer(KVM_RUN, Err(Errno::ENXIO));
    let line = vcpu.run(&mut Nobody::default()).unwrap_err().to_string();
    assert_eq!(line, "KVM_RUN: No such device or address");
}

#[test]
fn what_ends_a_guest_is_told_with_its_numbers_and_place() {
    for (exit, line) in [
        (
            exit(exit::FAIL_ENTRY, &0x8000_0021_u64.to_ne_bytes()),
            "the processor refused to enter the guest (reason 0x80000021)",
        ),
        (exit(exit::INTERNAL_ERROR, &1_u32.to_ne_bytes()), "illumos KVM cannot emulate the instruction (suberror 1)"),
        (
            exit(exit::INTERNAL_ERROR, &2_u32.to_ne_bytes()),
            "illumos KVM cannot deliver two exceptions at once (suberror 2)",
        ),
        (exit(exit::INTERNAL_ERROR, &9_u32.to_ne_bytes()), "illumos KVM internal error (suberror 9)"),
        (exit(exit::UNKNOWN, &0x31_u64.to_ne_bytes()), "illumos KVM does not know hardware exit 0x31"),
        (exit(exit::TPR_ACCESS, &[]), "unexpected exit 12"),
    ] {
        let error = run(&[exit]).0.unwrap_err().to_string();
        assert_eq!(error, format!("vcpu0: {line} at rip 0x0"));
    }
}

#[test]
fn a_reset_sets_whole_controllers_since_their_state_cannot_be_read() {
    let fake = Fake::new();
    let vm = vm(&fake);
    vm.reset().unwrap();
    let chips = fake.arguments(KVM_SET_IRQCHIP);
    assert_eq!(chips.iter().map(|chip| (chip[0], chip.len())).collect::<Vec<_>>(), [(0, 520), (1, 520), (2, 520)]);
    assert_eq!((chips[0][8 + 15], chips[1][8 + 15]), (0xf8, 0xde), "which pins may be level-triggered");
    assert_eq!(chips[2][8..16], 0xfec0_0000_u64.to_ne_bytes());
    assert!(chips[2][8 + 24..8 + 216].chunks(8).all(|entry| entry == (1_u64 << 16).to_ne_bytes()), "masked");
    let pit = &fake.arguments(KVM_SET_PIT2)[0];
    assert_eq!(pit[..4], 0x10000_u32.to_ne_bytes());
    assert_eq!((pit[13], pit[15], pit[2 * 24 + 15]), (0xff, 1, 0), "no mode, gates open but the speaker's");
    assert!(!fake.requests().contains(&KVM_GET_IRQCHIP));
}
