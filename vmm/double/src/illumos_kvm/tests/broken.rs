//! Rules that the backend has no call to break by: broken by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices_host::sys::{
    DeviceNumber, Errno, Handle, IoctlArg, MapRequest, Mapping, OpenAccess, OpenFlags, RawHandle, SysResult,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use zvmm::hypervisor::illumos_kvm::abi::*;
use zvmm::hypervisor::illumos_kvm::plain::{Plain, bytes_of, bytes_of_mut, zeroed};

use super::*;
use crate::illumos_kvm::rules;
use crate::rules::Rule;

/// A process that calls what it likes.
struct Raw {
    process: Arc<DoubleSys>,
    sys: Arc<dyn Sys>,
    /// Behind every VM, at 1 GiB: without any memory, KVM_RUN does not even look for signals.
    ram: devices::GuestRam,
}

impl Raw {
    fn new() -> Self {
        let process = process();
        let ram = memory(1 << 16);
        ram.write_slice(&[1; 1 << 16], GuestAddress(0)).unwrap();
        Self { sys: process.clone(), process, ram }
    }

    fn open(&self) -> Handle {
        Handle::open(&self.sys, "/dev/kvm", OpenFlags::READ_WRITE).unwrap()
    }

    fn none(&self, handle: &Handle, request: i32) -> SysResult<i32> {
        // SAFETY: no argument.
        unsafe { handle.ioctl(request, IoctlArg::None) }
    }

    fn value(&self, handle: &Handle, request: i32, value: usize) -> SysResult<i32> {
        // SAFETY: a number.
        unsafe { handle.ioctl(request, IoctlArg::Value(value)) }
    }

    fn bytes(&self, handle: &Handle, request: i32, bytes: &mut [u8]) -> SysResult<i32> {
        // SAFETY: the double checks the length before it uses anything, and slots' memory before the guest does.
        unsafe { handle.ioctl(request, IoctlArg::Buffer(bytes)) }
    }

    fn give<T: Plain>(&self, handle: &Handle, request: i32, mut value: T) -> SysResult<i32> {
        self.bytes(handle, request, bytes_of_mut(&mut value))
    }

    fn number(&self, handle: &Handle) -> DeviceNumber {
        self.sys.device_number(handle.raw()).unwrap()
    }

    /// A VM with everything.
    fn vm(&self) -> Handle {
        let vm = self.open();
        self.none(&vm, KVM_CREATE_VM).unwrap();
        self.value(&vm, KVM_SET_TSS_ADDR, 0xfeff_d000).unwrap();
        self.bytes(&vm, KVM_SET_IDENTITY_MAP_ADDR, &mut 0xfeff_c000_u64.to_ne_bytes()).unwrap();
        self.none(&vm, KVM_CREATE_IRQCHIP).unwrap();
        self.give(&vm, KVM_CREATE_PIT2, zeroed::<kvm_pit_config>()).unwrap();
        let region = kvm_userspace_memory_region { slot: 31, guest_phys_addr: 1 << 30, ..region(&self.ram) };
        mlock(self, &region);
        self.give(&vm, KVM_SET_USER_MEMORY_REGION, region).unwrap();
        vm
    }

    fn clone_of(&self, vm: &Handle) -> Handle {
        let clone = self.open();
        self.value(&clone, KVM_CLONE, self.number(vm).0 as usize).unwrap();
        clone
    }

    fn vcpu(&self, vm: &Handle, id: usize) -> Handle {
        let vcpu = self.clone_of(vm);
        self.value(&vcpu, KVM_CREATE_VCPU, id).unwrap();
        vcpu
    }

    fn cpuid(&self, vcpu: &Handle, entries: &[kvm_cpuid_entry2]) -> SysResult<i32> {
        let mut table = vec![entries.len() as u8, 0, 0, 0, 0, 0, 0, 0];
        table.extend(entries.iter().flat_map(bytes_of));
        self.bytes(vcpu, KVM_SET_CPUID2, &mut table)
    }

    /// A vCPU that keeps every rule when it runs, and comes back at once.
    fn runnable(&self, vm: &Handle) -> Handle {
        let vcpu = self.vcpu(vm, 0);
        self.cpuid(&vcpu, &[kvm_cpuid_entry2 { function: 0, ..zeroed() }]).unwrap();
        self.sys.block_kick_signal(true).unwrap();
        let mut mask = [0xff_u8; 20];
        mask[..4].copy_from_slice(&16_u32.to_ne_bytes());
        mask[5] = 0x7f; // signal 16
        self.bytes(&vcpu, KVM_SET_SIGNAL_MASK, &mut mask).unwrap();
        self.sys.signal_thread(self.sys.current_thread());
        vcpu
    }

    fn run(&self, vcpu: &Handle) {
        assert_eq!(self.none(vcpu, KVM_RUN), Err(Errno::EINTR));
    }

    fn broken(&self) -> BTreeSet<&'static str> {
        self.process.violations().iter().map(|violation| violation.rule.name).collect()
    }

    /// That exactly this rule was broken.
    #[track_caller]
    fn expect(&self, rule: &Rule) {
        assert_eq!(self.broken(), BTreeSet::from([rule.name]), "{:?}", self.process.violations());
    }
}

#[test]
fn a_careful_process_breaks_nothing() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.runnable(&vm);
    raw.run(&vcpu);
    assert!(raw.sys.take_kick_signal());
    drop((vm, vcpu));
    assert_clean(&raw.process);
}

#[test]
fn opens_with_other_flags_are_refused_as_the_driver_refuses_them() {
    for flags in [
        OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE },
        OpenFlags { nonblocking: true, ..OpenFlags::READ_WRITE },
        OpenFlags { access: OpenAccess::Read, ..OpenFlags::READ_WRITE },
        OpenFlags { access: OpenAccess::Write, ..OpenFlags::READ_WRITE },
    ] {
        let raw = Raw::new();
        assert_eq!(Handle::open(&raw.sys, "/dev/kvm", flags).err(), Some(Errno::EINVAL));
        raw.expect(&rules::OPEN_FLAGS);
    }
}

#[test]
fn commands_of_linux_and_of_nobody_are_told_apart() {
    for (request, rule) in [
        (0xae01_u32, &rules::LINUX_COMMAND),  // KVM_CREATE_VM
        (0x4020_ae46, &rules::LINUX_COMMAND), // KVM_SET_USER_MEMORY_REGION
        (0x4020_aea5, &rules::COMMAND),       // KVM_SIGNAL_MSI, which has no twin
        (0x4020_ae76, &rules::COMMAND),       // KVM_IRQFD
        (0x4040_ae79, &rules::COMMAND),       // KVM_IOEVENTFD
        (0x2000_aead, &rules::COMMAND),       // KVM_KVMCLOCK_CTRL in the form it would have
    ] {
        let raw = Raw::new();
        assert_eq!(raw.none(&raw.open(), request as i32), Err(Errno::EINVAL));
        raw.expect(rule);
    }
}

#[test]
fn commands_without_code_and_commands_that_harm_are_never_forwarded() {
    let refused = [
        (KVM_SET_NR_MMU_PAGES, &rules::UNHANDLED),
        (KVM_GET_NR_MMU_PAGES, &rules::UNHANDLED),
        (KVM_GET_PIT, &rules::UNHANDLED),
        (KVM_SET_PIT, &rules::UNHANDLED),
        (KVM_REINJECT_CONTROL, &rules::UNHANDLED),
        (KVM_SET_CLOCK, &rules::UNHANDLED),
        (KVM_GET_CLOCK, &rules::UNHANDLED),
        (KVM_SET_CPUID, &rules::UNHANDLED),
        (KVM_TPR_ACCESS_REPORTING, &rules::UNHANDLED),
        (KVM_X86_SET_MCE, &rules::UNHANDLED),
        (KVM_GET_CPUID2, &rules::FORBIDDEN),
        (KVM_GET_IRQCHIP, &rules::FORBIDDEN),
        (KVM_INTERRUPT, &rules::FORBIDDEN),
        (KVM_CREATE_PIT, &rules::NOT_MODELLED),
        (KVM_REGISTER_COALESCED_MMIO, &rules::NOT_MODELLED),
    ];
    for (request, rule) in refused {
        let raw = Raw::new();
        let vm = raw.vm();
        let vcpu = raw.vcpu(&vm, 0);
        assert_eq!(raw.none(&vcpu, request), Err(Errno::EINVAL));
        raw.expect(rule);
    }
}

#[test]
fn an_argument_of_the_wrong_kind_or_size_is_noticed_before_anything_else() {
    let raw = Raw::new();
    let vm = raw.vm();
    assert_eq!(raw.value(&vm, KVM_GET_API_VERSION, 1), Err(Errno::EINVAL));
    assert_eq!(raw.bytes(&vm, KVM_CHECK_EXTENSION, &mut [0; 8]), Err(Errno::EINVAL));
    assert_eq!(raw.value(&vm, KVM_IRQ_LINE, 0x1234), Err(Errno::EINVAL));
    raw.expect(&rules::ARGUMENT_KIND);
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.vcpu(&vm, 0);
    // Linux' own size of the register list, header and one entry.
    assert_eq!(raw.bytes(&vcpu, KVM_SET_MSRS, &mut [0; 24]), Err(Errno::EFAULT));
    raw.expect(&rules::ARGUMENT_SIZE);
}

#[test]
fn a_clone_of_nothing_of_no_vm_and_of_another_driver_fails_as_the_manual_says() {
    let raw = Raw::new();
    let (empty, fresh) = (raw.open(), raw.open());
    let number = raw.number(&empty).0 as usize;
    assert_eq!(raw.value(&fresh, KVM_CLONE, number), Err(Errno::ESRCH));
    assert_eq!(raw.value(&fresh, KVM_CLONE, number + 1000), Err(Errno::EINVAL));
    assert_eq!(raw.value(&fresh, KVM_CLONE, 5 << 32 | 1), Err(Errno::ENODEV));
    raw.expect(&rules::CLONE_NUMBER);
    let raw = Raw::new();
    let vm = raw.vm();
    assert_eq!(raw.value(&vm, KVM_CLONE, raw.number(&vm).0 as usize), Err(Errno::EBUSY));
    raw.expect(&rules::CLONE_FRESH);
}

#[test]
fn a_vcpu_on_the_vms_own_descriptor_twice_on_one_and_out_of_order_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    assert_eq!(raw.value(&vm, KVM_CREATE_VCPU, 0), Err(Errno::EINVAL));
    let vcpu = raw.vcpu(&vm, 0);
    assert_eq!(raw.value(&vcpu, KVM_CREATE_VCPU, 1), Err(Errno::EEXIST));
    raw.expect(&rules::VCPU_ON_CLONE);
    let raw = Raw::new();
    let vm = raw.vm();
    assert_eq!(raw.value(&raw.clone_of(&vm), KVM_CREATE_VCPU, 1), Err(Errno::EINVAL));
    let _vcpu = raw.vcpu(&vm, 0);
    assert_eq!(raw.value(&raw.clone_of(&vm), KVM_CREATE_VCPU, 0), Err(Errno::EEXIST));
    raw.expect(&rules::VCPU_ORDER);
}

#[test]
fn the_sixty_fifth_vcpu_is_refused() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpus: Vec<Handle> = (0..64).map(|id| raw.vcpu(&vm, id)).collect();
    assert_eq!(raw.value(&raw.clone_of(&vm), KVM_CREATE_VCPU, 64), Err(Errno::EINVAL));
    raw.expect(&rules::VCPU_COUNT);
    drop(vcpus);
}

#[test]
fn what_must_come_before_the_vcpus_is_noticed_after_them() {
    let raw = Raw::new();
    let vm = raw.vm();
    let _vcpu = raw.vcpu(&vm, 0);
    assert_eq!(raw.value(&vm, KVM_SET_BOOT_CPU_ID, 0), Err(Errno::EBUSY));
    raw.expect(&rules::BOOT_CPU_FIRST);
    let raw = Raw::new();
    let vm = raw.open();
    raw.none(&vm, KVM_CREATE_VM).unwrap();
    let _vcpu = raw.vcpu(&vm, 0);
    let expected = [&rules::IRQCHIP_FIRST, &rules::TSS_FIRST, &rules::IDENTITY_FIRST];
    assert_eq!(raw.broken(), expected.iter().map(|rule| rule.name).collect());
}

#[test]
fn a_mapping_is_all_of_a_vcpu_or_nothing() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.vcpu(&vm, 0);
    let good = MapRequest { len_bytes: KVM_VCPU_MMAP_BYTES, offset: 0, write: true };
    for request in [
        MapRequest { len_bytes: 4096, ..good },
        MapRequest { len_bytes: 16384, ..good },
        MapRequest { offset: 4096, ..good },
        MapRequest { write: false, ..good },
    ] {
        assert_eq!(Mapping::new(&vcpu, request).err(), Some(Errno::EINVAL));
    }
    raw.expect(&rules::MMAP_EXACT);
    let raw = Raw::new();
    let vm = raw.vm();
    assert_eq!(Mapping::new(&vm, good).err(), Some(Errno::EINVAL));
    raw.expect(&rules::NEEDS_VCPU);
}

/// Private memory of the process, as `devices_host` gives it: mapped, not touched.
fn memory(len_bytes: u64) -> devices::GuestRam {
    let options = RamOptions { pages: devices_host::ram::Pages::Small, ..RamOptions::default() };
    devices_host::ram::allocate(&[(0, len_bytes)], &options).unwrap()
}

fn region(memory: &devices::GuestRam) -> kvm_userspace_memory_region {
    let region = memory.iter().next().unwrap();
    kvm_userspace_memory_region { memory_size: region.len(), userspace_addr: region.as_ptr() as u64, ..zeroed() }
}

fn mlock(raw: &Raw, region: &kvm_userspace_memory_region) {
    let start = std::ptr::NonNull::new(region.userspace_addr as *mut u8).unwrap();
    // SAFETY: the range of the test's own memory.
    unsafe { raw.sys.mlock(start, region.memory_size as usize) }.unwrap();
}

#[test]
fn memory_that_is_not_locked_not_touched_or_not_there_any_more_is_noticed() {
    let touch = |memory: &devices::GuestRam| {
        memory.write_slice(&vec![1; 1 << 20], GuestAddress(0)).unwrap();
    };
    let (raw, ram) = (Raw::new(), memory(1 << 20));
    touch(&ram);
    raw.give(&raw.vm(), KVM_SET_USER_MEMORY_REGION, region(&ram)).unwrap();
    raw.expect(&rules::RAM_LOCKED);

    let (raw, ram) = (Raw::new(), memory(1 << 20));
    mlock(&raw, &region(&ram));
    raw.give(&raw.vm(), KVM_SET_USER_MEMORY_REGION, region(&ram)).unwrap();
    raw.expect(&rules::RAM_RESIDENT);

    let (raw, ram) = (Raw::new(), memory(1 << 20));
    touch(&ram);
    mlock(&raw, &region(&ram));
    let vm = raw.vm();
    let clone = raw.clone_of(&vm);
    raw.give(&vm, KVM_SET_USER_MEMORY_REGION, region(&ram)).unwrap();
    drop(vm);
    drop(ram);
    assert!(raw.broken().is_empty(), "the clone still keeps the VM");
    drop(clone);
    raw.expect(&rules::RAM_KEPT);
}

#[test]
fn memory_that_is_given_back_under_a_live_slot_is_noticed() {
    let (raw, ram) = (Raw::new(), memory(1 << 20));
    ram.write_slice(&vec![1; 1 << 20], GuestAddress(0)).unwrap();
    let region = region(&ram);
    mlock(&raw, &region);
    let vm = raw.vm();
    raw.give(&vm, KVM_SET_USER_MEMORY_REGION, region).unwrap();
    // SAFETY: a page of the test's own memory, whose contents nobody needs.
    unsafe { libc::madvise(region.userspace_addr as *mut libc::c_void, 4096, libc::MADV_DONTNEED) };
    drop(vm);
    raw.expect(&rules::RAM_RESIDENT);
}

#[test]
fn a_slot_over_the_drivers_pages_is_noticed_though_the_driver_says_nothing() {
    let (raw, ram) = (Raw::new(), memory(4096));
    ram.write_slice(&[1; 4096], GuestAddress(0)).unwrap();
    let region = region(&ram);
    mlock(&raw, &region);
    raw.give(
        &raw.vm(),
        KVM_SET_USER_MEMORY_REGION,
        kvm_userspace_memory_region { guest_phys_addr: 0xfeff_f000, ..region },
    )
    .ok();
    raw.expect(&rules::SLOT_PRIVATE);
}

#[test]
fn capabilities_have_the_manuals_values_and_the_lying_ones_are_not_to_be_asked() {
    let raw = Raw::new();
    let fd = raw.open();
    for (number, value) in [
        (cap::IRQCHIP, Ok(1)),
        (cap::NR_VCPUS, Ok(64)),
        (cap::NR_MEMSLOTS, Ok(32)),
        (cap::COALESCED_MMIO, Ok(2)),
        (cap::IRQ_ROUTING, Ok(1024)),
        (cap::IOMMU, Ok(0)),
        (cap::USER_NMI, Err(Errno::EINVAL)),
        (13, Err(Errno::EINVAL)),
        (81, Err(Errno::EINVAL)),
    ] {
        assert_eq!(raw.value(&fd, KVM_CHECK_EXTENSION, number), value, "{number}");
    }
    assert!(raw.broken().is_empty());
    for number in [cap::IOEVENTFD, cap::SYNC_MMU, cap::HYPERV, cap::ADJUST_CLOCK] {
        assert_eq!(raw.value(&fd, KVM_CHECK_EXTENSION, number), Ok(1));
    }
    raw.expect(&rules::CAPABILITY);
}

#[test]
fn a_cpuid_table_that_misleads_a_guest_is_noticed() {
    let entry = |function, eax, ecx| kvm_cpuid_entry2 { function, eax, ecx, ..zeroed() };
    let indexed = |entry| kvm_cpuid_entry2 { flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..entry };
    let below_7 = || (1..7).map(|function| entry(function, 0, 0));
    for (table, rule) in [
        (std::iter::once(entry(0, 7, 0)).chain(below_7()).chain([entry(7, 0, 1)]).collect(), &rules::CPUID_LEAF_7),
        (vec![entry(0, 1, 0), entry(1, 0, 1 << 28)], &rules::CPUID_NOT_OFFERED),
        (vec![entry(0, 1, 0), entry(1, 0, 1 << 24)], &rules::CPUID_NOT_OFFERED),
        (vec![entry(0, 2, 0), entry(1, 0, 0)], &rules::CPUID_GAPS),
        (vec![entry(0, 1, 0), indexed(entry(1, 0, 0))], &rules::CPUID_GAPS),
        (vec![entry(0, 0, 0), entry(0x8000_0000, 0x8000_0001, 0)], &rules::CPUID_GAPS),
    ] {
        let raw = Raw::new();
        let vm = raw.vm();
        raw.cpuid(&raw.vcpu(&vm, 0), &table).unwrap();
        raw.expect(rule);
    }
}

#[test]
fn offered_cpuid_stays_inside_the_drivers_leaves_and_features() {
    let raw = Raw::new();
    let fd = raw.open();
    let mut table = vec![0_u8; 8 + 40 * 40];
    table[0] = 40;
    raw.bytes(&fd, KVM_GET_SUPPORTED_CPUID, &mut table).unwrap();
    let count = table[0] as usize;
    let entries: Vec<kvm_cpuid_entry2> = table[8..8 + 40 * count]
        .chunks_exact(40)
        .filter_map(zvmm::hypervisor::illumos_kvm::plain::from_bytes)
        .collect();
    assert!(entries.iter().all(|entry| entry.function <= 0xb || entry.function >= 0x8000_0000));
    let leaf_1 = entries.iter().find(|entry| entry.function == 1).unwrap();
    assert_eq!(leaf_1.ecx & (1 << 26 | 1 << 28 | 1 << 24 | 1 << 5), 0, "XSAVE, AVX, TSC deadline, VMX");
    assert_ne!(leaf_1.ecx & 1 << 21, 0, "x2APIC is emulated");
    let mut small = vec![0_u8; 8 + 40 * 3];
    small[0] = 3;
    assert_eq!(raw.bytes(&fd, KVM_GET_SUPPORTED_CPUID, &mut small), Err(Errno::E2BIG));
    assert!(raw.broken().is_empty());
}

#[test]
fn registers_the_driver_does_not_know_end_the_list() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.vcpu(&vm, 0);
    let mut msrs: kvm_msrs = zeroed();
    for (entry, index) in msrs.entries.iter_mut().zip([0x174, 0x4000_0000, 0xda0, 0x175]) {
        *entry = kvm_msr_entry { index, ..zeroed() };
    }
    msrs.nmsrs = 4;
    assert_eq!(raw.give(&vcpu, KVM_SET_MSRS, msrs), Ok(2), "IA32_XSS is not known");
    assert_eq!(raw.give(&vcpu, KVM_GET_MSRS, msrs), Ok(2));
    assert!(raw.broken().is_empty());
}

#[test]
fn a_kick_that_could_get_lost_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.runnable(&vm);
    raw.sys.take_kick_signal();
    // Unblocked in the thread, one that comes before KVM_RUN would be gone: with the mask alone, it interrupts.
    raw.sys.block_kick_signal(false).unwrap();
    let (kick, thread) = (raw.process.clone(), raw.sys.current_thread());
    let out = Arc::new(AtomicBool::new(false));
    let is_out = out.clone();
    // Again and again, as the first may be such a one.
    let kicker = std::thread::spawn(move || {
        while !is_out.load(Ordering::SeqCst) {
            kick.signal_thread(thread);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let _ = raw.none(&vcpu, KVM_RUN);
    out.store(true, Ordering::SeqCst);
    kicker.join().unwrap();
    assert!(raw.broken().contains(rules::KICK_BLOCKED.name));
}

#[test]
fn a_mask_that_lets_in_what_the_thread_keeps_out_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    let blocked = devices_host::thread::BlockedSignals::all().unwrap();
    let vcpu = raw.runnable(&vm);
    let mut mask = [0_u8; 20];
    mask[0] = 16;
    raw.bytes(&vcpu, KVM_SET_SIGNAL_MASK, &mut mask).unwrap();
    raw.run(&vcpu);
    raw.sys.take_kick_signal();
    drop(blocked);
    raw.expect(&rules::KICK_UNMASKED);
}

#[test]
fn a_kick_that_nobody_takes_away_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.runnable(&vm);
    for _ in 0..100_000 {
        raw.run(&vcpu);
    }
    raw.sys.take_kick_signal();
    raw.expect(&rules::KICK_TAKEN);
}

#[test]
fn a_vcpu_that_two_threads_run_or_that_one_asks_while_another_runs_it_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.runnable(&vm);
    raw.run(&vcpu);
    raw.sys.take_kick_signal();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            raw.sys.block_kick_signal(true).unwrap();
            raw.sys.signal_thread(raw.sys.current_thread());
            raw.run(&vcpu);
        });
    });
    raw.expect(&rules::ONE_THREAD);

    let raw = Raw::new();
    let vm = raw.vm();
    let boot = raw.vcpu(&vm, 0);
    let second = raw.vcpu(&vm, 1); // waits for its SIPI
    raw.cpuid(&second, &[kvm_cpuid_entry2 { function: 0, ..zeroed() }]).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let second_number: RawHandle = second.raw();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            raw.sys.block_kick_signal(true).unwrap();
            let mut mask = [0xff_u8; 20];
            mask[..4].copy_from_slice(&16_u32.to_ne_bytes());
            mask[5] = 0x7f;
            raw.bytes(&second, KVM_SET_SIGNAL_MASK, &mut mask).unwrap();
            sender.send(raw.sys.current_thread()).unwrap();
            let _ = raw.none(&second, KVM_RUN);
        });
        let thread = receiver.recv().unwrap();
        let ask = || {
            let mut regs: kvm_regs = zeroed();
            // SAFETY: the command's structure.
            unsafe { raw.sys.ioctl(second_number, KVM_GET_REGS, IoctlArg::Buffer(bytes_of_mut(&mut regs))) }
        };
        // It may not be in KVM_RUN yet.
        let end = Instant::now() + Duration::from_secs(60);
        while ask() != Err(Errno::EBUSY) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let asked = ask();
        raw.sys.signal_thread(thread);
        assert_eq!(asked, Err(Errno::EBUSY));
    });
    raw.expect(&rules::ONE_THREAD);
    drop(boot);
}

#[test]
fn an_immediate_exit_is_noticed() {
    let raw = Raw::new();
    let vm = raw.vm();
    let vcpu = raw.runnable(&vm);
    let page = Mapping::new(&vcpu, MapRequest { len_bytes: KVM_VCPU_MMAP_BYTES, offset: 0, write: true }).unwrap();
    // SAFETY: inside the mapping, which only this thread uses.
    unsafe { page.start().as_ptr().add(1).write(1) };
    raw.run(&vcpu);
    raw.sys.take_kick_signal();
    raw.expect(&rules::RUN_PAGE);
}

#[test]
fn every_rule_of_the_driver_is_broken_by_some_test() {
    let sources = [include_str!("broken.rs"), include_str!("damaged.rs")];
    let identifiers = include_str!("../rules.rs");
    let names: BTreeSet<&str> = rules::ALL.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), rules::ALL.len());
    for rule in rules::ALL {
        assert!(rule.name.starts_with("ikvm-") && rule.source.starts_with("smartos-zone 7."), "{rule:?}");
        let identifier = identifiers.lines().find(|line| line.contains(&format!("\"{}\"", rule.name)));
        let identifier = identifier.and_then(|line| line.trim().split(' ').next()).unwrap();
        let named = sources[0].contains(&format!("rules::{identifier}")) || sources[1].contains(rule.name);
        assert!(named, "{}", rule.name);
    }
}

#[test]
fn the_commands_are_those_of_the_manual_with_the_sizes_the_kernel_copies() {
    use crate::illumos_kvm::commands::{Arg, COMMANDS};
    assert_eq!(COMMANDS.len(), 58);
    let size = |request| match COMMANDS.iter().find(|command| command.request == request).unwrap().arg {
        Arg::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    for (request, bytes) in [
        (KVM_GET_MSRS, 1608),
        (KVM_SET_MSRS, 1608),
        (KVM_GET_SREGS, 312),
        (KVM_SET_FPU, 416),
        (KVM_SET_LAPIC, 1024),
        (KVM_SET_PIT2, 112),
        (KVM_SET_IRQCHIP, 520),
    ] {
        assert_eq!(size(request), bytes);
    }
}
