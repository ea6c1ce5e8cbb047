//! What is allowed: the life of a VM and the protocol of its entries and exits, without a rule broken.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

#[track_caller]
fn clean(rig: &Rig) {
    let broken: Vec<String> = rig.sys.violations().iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// `jmp $`.
const FOR_EVER: &[u8] = &[0xeb, 0xfe];

#[test]
fn port_exits_are_answered_with_the_next_entry() {
    // in al, 0x10; out 0x11, al; in ax, 0x12; out 0x13, ax
    let rig = Rig::with_code(&[0xe4, 0x10, 0xe6, 0x11, 0xe5, 0x12, 0xe7, 0x13]);
    rig.register(VM_REG_GUEST_RAX, 0x1122_3344_5566_7788).unwrap();
    let exit = rig.run();
    // SAFETY: these are all port exits.
    let inout = |exit: &vm_exit| unsafe { exit.u.inout };
    assert_eq!((inout(&exit).port, inout(&exit).bytes, inout(&exit).flags), (0x10, 1, INOUT_IN));
    let exit = rig.answer_port(&exit, 0xffff_ffa5).unwrap();
    assert_eq!((inout(&exit).port, inout(&exit).eax, inout(&exit).flags), (0x11, 0xa5, 0));
    let exit = rig.answer_port(&exit, 0).unwrap();
    assert_eq!((inout(&exit).port, inout(&exit).bytes), (0x12, 2));
    let exit = rig.answer_port(&exit, 0xbeef).unwrap();
    assert_eq!(inout(&exit).eax, 0xbeef);
    assert_eq!(rig.registered(VM_REG_GUEST_RAX), 0x1122_3344_5566_beef);
    clean(&rig);
}

#[test]
fn a_string_of_ports_is_one_exit_an_element() {
    // mov di, 0x2000; mov cx, 3; mov dx, 0x10; rep insb; in al, 0x99
    let rig = Rig::with_code(&[0xbf, 0x00, 0x20, 0xb9, 3, 0, 0xba, 0x10, 0, 0xf3, 0x6c, 0xe4, 0x99]);
    let mut exit = rig.run();
    for value in [7, 8, 9] {
        // SAFETY: port exits.
        assert_eq!(unsafe { exit.u.inout.port }, 0x10);
        exit = rig.answer_port(&exit, value).unwrap();
    }
    // SAFETY: a port exit.
    assert_eq!(unsafe { exit.u.inout.port }, 0x99);
    let start = rig.view(0, MEMORY).unwrap();
    // SAFETY: inside the mapping; the guest is not running.
    let got = unsafe { start.as_ptr().add(0x2000).cast::<[u8; 3]>().read() };
    assert_eq!(got, [7, 8, 9]);
    clean(&rig);
}

#[test]
fn memory_exits_are_answered_with_the_next_entry() {
    // mov ax, [0x2000] of es at 0xd0000; mov [0x2002] of es, ax
    let rig = Rig::with_code(&[0x26, 0xa1, 0x00, 0x20, 0x26, 0xa3, 0x02, 0x20]);
    rig.descriptor(VM_REG_GUEST_ES, seg_desc { base: 0xd0000, limit: 0xffff, access: 0x93 }).unwrap();
    rig.register(VM_REG_GUEST_ES, 0xd000).unwrap();
    let exit = rig.run();
    assert_eq!(exit.exitcode, VM_EXITCODE_MMIO);
    // SAFETY: memory exits.
    let mut mmio = unsafe { exit.u.mmio };
    assert_eq!((mmio.gpa, mmio.bytes, mmio.read), (0xd2000, 2, 1));
    mmio.data = 0x1234;
    let exit = rig.enter(VEC_FULFILL_MMIO, |entry| entry.u.mmio = mmio).unwrap();
    // SAFETY: a memory exit.
    let mmio = unsafe { exit.u.mmio };
    assert_eq!((mmio.gpa, mmio.data, mmio.read), (0xd2002, 0x1234, 0));
    clean(&rig);
}

#[test]
fn msrs_the_kernel_does_not_know_are_answered_in_registers_or_with_a_fault() {
    // mov ecx, 0x8b; rdmsr; wrmsr; in al, 0x10
    let rig = Rig::with_code(&[0x66, 0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32, 0x0f, 0x30, 0xe4, 0x10]);
    let exit = rig.run();
    assert_eq!(exit.exitcode, VM_EXITCODE_RDMSR);
    // SAFETY: an MSR exit.
    assert_eq!(unsafe { exit.u.msr.code }, 0x8b);
    assert_eq!((exit.rip, exit.inst_length), (CODE + 6, 2));
    rig.register(VM_REG_GUEST_RAX, 0x5566_7788).unwrap();
    rig.register(VM_REG_GUEST_RDX, 0x1122_3344).unwrap();
    let exit = rig.run();
    assert_eq!((exit.exitcode, exit.rip), (VM_EXITCODE_WRMSR, CODE + 8));
    // SAFETY: an MSR exit.
    assert_eq!(unsafe { exit.u.msr.wval }, 0x1122_3344_5566_7788);
    let exit = rig.run();
    assert_eq!((exit.exitcode, exit.rip), (VM_EXITCODE_INOUT, CODE + 10));
    clean(&rig);
}

#[test]
fn machine_check_registers_answer_in_the_kernel_that_there_are_no_banks() {
    // mov ecx, 0x179; rdmsr; out 0x10, eax; wrmsr; mov ecx, 0x17a; rdmsr; out 0x11, eax
    let rig = Rig::with_code(&[
        0x66, 0xb9, 0x79, 1, 0, 0, 0x0f, 0x32, 0x66, 0xe7, 0x10, 0x0f, 0x30, //
        0x66, 0xb9, 0x7a, 1, 0, 0, 0x0f, 0x32, 0x66, 0xe7, 0x11,
    ]);
    let capabilities = rig.run();
    let status = rig.answer_port(&capabilities, 0).unwrap();
    for (exit, port) in [(capabilities, 0x10), (status, 0x11)] {
        assert_eq!(exit.exitcode, VM_EXITCODE_INOUT);
        // SAFETY: a port exit.
        let inout = unsafe { exit.u.inout };
        assert_eq!((inout.port, inout.eax), (port, 0));
    }
    clean(&rig);
}

#[test]
fn a_refused_msr_faults_at_its_instruction() {
    // mov ecx, 0x8b; rdmsr; at 0x3000 the handler of vector 13: in al, 0x13
    let rig = Rig::with_code(&[0x66, 0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32]);
    rig.write(13 * 4, &[0x00, 0x30, 0, 0]);
    rig.write(0x3000, &[0xe4, 0x13]);
    rig.register(VM_REG_GUEST_RSP, 0x8000).unwrap();
    assert_eq!(rig.run().exitcode, VM_EXITCODE_RDMSR);
    let mut fault = vm_exception { cpuid: 0, vector: 13, error_code: 0, error_code_valid: 1, restart_instruction: 1 };
    rig.call(VM_INJECT_EXCEPTION, &mut fault).unwrap();
    let exit = rig.run();
    assert_eq!((exit.exitcode, exit.rip), (VM_EXITCODE_INOUT, 0x3000));
    let start = rig.view(0, MEMORY).unwrap();
    // SAFETY: inside the mapping; the guest is not running.
    let pushed = unsafe { start.as_ptr().add(0x7ffa).cast::<u16>().read() };
    assert_eq!(u64::from(pushed), CODE + 6);
    clean(&rig);
}

#[test]
fn a_barrier_reaches_a_vcpu_that_runs_and_one_that_is_about_to() {
    let rig = Rig::with_code(FOR_EVER);
    rig.number(VM_VCPU_BARRIER, 0).unwrap();
    assert_eq!(rig.run().exitcode, VM_EXITCODE_BOGUS);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| rig.run().exitcode);
        std::thread::sleep(Duration::from_millis(20));
        rig.number(VM_VCPU_BARRIER, 0).unwrap();
        assert_eq!(runner.join().unwrap(), VM_EXITCODE_BOGUS);
    });
    clean(&rig);
}

#[test]
fn asking_for_a_register_takes_the_vcpu_out_of_the_guest() {
    let rig = Rig::with_code(FOR_EVER);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| rig.run().exitcode);
        // One that is not in the guest yet is not taken out of it.
        while !runner.is_finished() {
            assert_eq!(rig.registered(VM_REG_GUEST_RIP), CODE);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(runner.join().unwrap(), VM_EXITCODE_BOGUS);
    });
    clean(&rig);
}

#[test]
fn an_entry_is_refused_while_the_vm_is_paused_and_its_answer_is_not_taken() {
    let rig = Rig::with_code(&[0xe4, 0x10, 0xe6, 0x11]);
    let exit = rig.run();
    rig.number(VM_PAUSE, 0).unwrap();
    refused(rig.answer_port(&exit, 1), Errno::EBUSY);
    rig.number(VM_RESUME, 0).unwrap();
    let exit = rig.answer_port(&exit, 0x55).unwrap();
    // SAFETY: a port exit.
    assert_eq!(unsafe { (exit.u.inout.port, exit.u.inout.eax) }, (0x11, 0x55));
    clean(&rig);
}

#[test]
fn an_entry_that_wants_a_consistent_state_finishes_the_access_and_runs_nothing() {
    let rig = Rig::with_code(&[0xe4, 0x10, 0xe6, 0x11]);
    let exit = rig.run();
    // SAFETY: a port exit.
    let mut inout = unsafe { exit.u.inout };
    inout.eax = 0x77;
    let exit = rig.enter(VEC_FULFILL_INOUT | VEC_FLAG_EXIT_CONSISTENT, |entry| entry.u.inout = inout).unwrap();
    assert_eq!(exit.exitcode, VM_EXITCODE_BOGUS);
    assert_eq!((rig.registered(VM_REG_GUEST_RIP), rig.registered(VM_REG_GUEST_RAX)), (CODE + 2, 0x77));
    assert_eq!(rig.run().exitcode, VM_EXITCODE_INOUT);
    clean(&rig);
}

#[test]
fn a_suspended_vm_lets_no_vcpu_run_until_it_is_made_anew() {
    let rig = Rig::with_code(FOR_EVER);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| rig.run());
        std::thread::sleep(Duration::from_millis(20));
        rig.call(VM_SUSPEND, &mut vm_suspend { how: VM_SUSPEND_POWEROFF, source: -1 }).unwrap();
        let exit = runner.join().unwrap();
        assert_eq!(exit.exitcode, VM_EXITCODE_SUSPENDED);
        // SAFETY: a suspension.
        assert_eq!(unsafe { (exit.u.suspended.how, exit.u.suspended.source) }, (VM_SUSPEND_POWEROFF, -1));
    });
    assert_eq!(rig.run().exitcode, VM_EXITCODE_SUSPENDED);
    refused(rig.call(VM_SUSPEND, &mut vm_suspend { how: VM_SUSPEND_RESET, source: -1 }), Errno::EALREADY);
    rig.call(VM_REINIT, &mut vm_reinit { flags: 0 }).unwrap();
    rig.set_up_cpu();
    rig.number(VM_VCPU_BARRIER, 0).unwrap();
    assert_eq!(rig.run().exitcode, VM_EXITCODE_BOGUS);
    clean(&rig);
}

#[test]
fn a_triple_fault_suspends_the_vm_and_names_its_vcpu() {
    // ud2, in 64-bit mode and without an interrupt table; page tables at 0x2000 map the first 2 MiB.
    let rig = Rig::with_code(&[0x0f, 0x0b]);
    for (table, entry) in [(0x2000, 0x3003_u64), (0x3000, 0x4003), (0x4000, 0x83)] {
        rig.write(table, &entry.to_le_bytes());
    }
    for (register, value) in [
        (VM_REG_GUEST_CR3, 0x2000),
        (VM_REG_GUEST_CR4, 0x20),
        (VM_REG_GUEST_EFER, 0x500),
        (VM_REG_GUEST_CR0, 0x8000_0031),
        (VM_REG_GUEST_RSP, 0x8000),
    ] {
        rig.register(register, value).unwrap();
    }
    for (register, access) in [(VM_REG_GUEST_CS, 0xa09b), (VM_REG_GUEST_SS, 0xc093), (VM_REG_GUEST_DS, 0xc093)] {
        rig.register(register, 8).unwrap();
        rig.descriptor(register, seg_desc { base: 0, limit: 0xffff_ffff, access }).unwrap();
    }
    rig.descriptor(VM_REG_GUEST_IDTR, seg_desc { base: 0, limit: 0, access: 0 }).unwrap();
    let exit = rig.run();
    assert_eq!(exit.exitcode, VM_EXITCODE_SUSPENDED);
    // SAFETY: a suspension.
    assert_eq!(unsafe { (exit.u.suspended.how, exit.u.suspended.source) }, (VM_SUSPEND_TRIPLEFAULT, 0));
    clean(&rig);
}

#[test]
fn a_vm_whose_vcpus_all_sleep_with_interrupts_off_is_at_its_end_and_one_that_can_wake_is_not() {
    // cli; hlt
    let rig = Rig::with_code(&[0xfa, 0xf4]);
    let mut exit = rig.run();
    // To be asked whether it can wake takes it out of the guest, too.
    while exit.exitcode == VM_EXITCODE_BOGUS {
        exit = rig.run();
    }
    assert_eq!(exit.exitcode, VM_EXITCODE_SUSPENDED);
    // SAFETY: a suspension.
    assert_eq!(unsafe { (exit.u.suspended.how, exit.u.suspended.source) }, (VM_SUSPEND_HALT, -1));
    clean(&rig);
    // sti; hlt
    let rig = Rig::with_code(&[0xfb, 0xf4]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            rig.number(VM_VCPU_BARRIER, 0).unwrap();
        });
        let end = Instant::now() + Duration::from_millis(600);
        while Instant::now() < end {
            assert_eq!(rig.run().exitcode, VM_EXITCODE_BOGUS);
        }
    });
    clean(&rig);
}

#[test]
fn a_write_to_read_only_memory_is_a_paging_exit_and_changes_nothing() {
    // mov [0x0] of es at 0xd0000, ax
    let rig = Rig::with_code(&[0x26, 0xa3, 0x00, 0x00]);
    rig.segment(2, 4096, "rom").unwrap();
    rig.map_as(vm_memmap { gpa: 0xd0000, segid: 2, _pad0: [0; 4], segoff: 0, len: 4096, prot: 5, flags: 0 }).unwrap();
    rig.descriptor(VM_REG_GUEST_ES, seg_desc { base: 0xd0000, limit: 0xffff, access: 0x93 }).unwrap();
    rig.register(VM_REG_GUEST_RAX, 0x1234).unwrap();
    let exit = rig.run();
    assert_eq!(exit.exitcode, VM_EXITCODE_PAGING);
    // SAFETY: a paging exit.
    assert_eq!(unsafe { (exit.u.paging.gpa, exit.u.paging.fault_type) }, (0xd0000, VM_PROT_WRITE));
    let mut offset = vm_devmem_offset { segid: 2, _pad0: [0; 4], offset: 0 };
    rig.call(VM_DEVMEM_GETOFFSET, &mut offset).unwrap();
    let start = rig.view(offset.offset as u64, 4096).unwrap();
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { start.as_ptr().cast::<u16>().read() }, 0);
    clean(&rig);
}

#[test]
fn a_reinit_takes_device_memory_the_pm_timer_and_asserted_lines_away_and_leaves_ram_and_time() {
    let rig = Rig::bare();
    rig.memory();
    rig.segment(2, 4096, "rom").unwrap();
    rig.map(2, 0xf_f000, 4096).unwrap();
    rig.call(VM_RTC_SETTIME, &mut vm_rtc_timespec { tv_sec: 1000, tv_nsec: 0 }).unwrap();
    rig.call(VM_RTC_WRITE, &mut vm_rtc_data { offset: 0x40, value: 9, _pad0: [0; 3] }).unwrap();
    rig.call(VM_IOAPIC_ASSERT_IRQ, &mut 5_i32).unwrap();
    rig.call(VM_REINIT, &mut vm_reinit { flags: 0 }).unwrap();
    let mut next = vm_memmap::new_zeroed();
    rig.call(VM_MMAP_GETNEXT, &mut next).unwrap();
    assert_eq!((next.gpa, next.len, next.segid), (0, MEMORY, 0));
    next.gpa = 1;
    refused(rig.call(VM_MMAP_GETNEXT, &mut next), Errno::ENOENT);
    rig.map(2, 0xf_f000, 4096).unwrap();
    let mut time = vm_rtc_timespec::new_zeroed();
    rig.call(VM_RTC_GETTIME, &mut time).unwrap();
    assert!((1000..1010).contains(&time.tv_sec));
    let mut byte = vm_rtc_data { offset: 0x40, value: 0, _pad0: [0; 3] };
    rig.call(VM_RTC_READ, &mut byte).unwrap();
    assert_eq!(byte.value, 9);
    clean(&rig);
    // Its count has gone with the chip: who lowers the line now lowers one that nobody raised.
    refused(rig.call(VM_IOAPIC_DEASSERT_IRQ, &mut 5_i32), Errno::E2BIG);
}

#[test]
fn the_rtc_and_the_pm_timer_are_served_in_the_kernel() {
    // mov al, 0x40; out 0x70, al; in al, 0x71; out 0x80, al; mov dx, 0x408; in eax, dx; in al, dx
    let rig = Rig::with_code(&[0xb0, 0x40, 0xe6, 0x70, 0xe4, 0x71, 0xe6, 0x80, 0xba, 0x08, 0x04, 0x66, 0xed, 0xec]);
    rig.number(VM_PMTMR_LOCATE, 0x408).unwrap();
    rig.call(VM_RTC_WRITE, &mut vm_rtc_data { offset: 0x40, value: 0x5c, _pad0: [0; 3] }).unwrap();
    let exit = rig.run();
    // SAFETY: a port exit.
    assert_eq!(unsafe { (exit.u.inout.port, exit.u.inout.eax) }, (0x80, 0x5c));
    let exit = rig.answer_port(&exit, 0).unwrap();
    // Of one byte, which the PM timer does not answer.
    // SAFETY: a port exit.
    assert_eq!(unsafe { (exit.u.inout.port, exit.u.inout.bytes) }, (0x408, 1));
    assert_ne!(rig.registered(VM_REG_GUEST_RAX) & 0xffff_ffff, 0x5c);
    clean(&rig);
}

#[test]
fn a_vm_goes_with_its_last_close_if_it_was_told_to_and_stays_otherwise() {
    let host = Host::new(vec![Vmm::new()]);
    let rig = Rig::on(&host, Zone::bhyve(1));
    refused(rig.create("guest"), Errno::EEXIST);
    rig.sys.close(rig.vm);
    rig.sys.close(rig.control);
    assert_eq!(rig.sys.leaks(), []);

    let rig = Rig::on(&host, Zone::bhyve(1));
    rig.number(VM_SET_AUTODESTRUCT, 0).unwrap();
    rig.memory();
    rig.sys.end();
    let heir = DoubleSys::new(&host, Zone::bhyve(1));
    assert_eq!(heir.leaks(), [crate::Leak::Object("VM guest".to_owned())]);
    refused(heir.open("/dev/vmm/other", OpenFlags::READ_WRITE), Errno::ENOENT);
    let vm = heir.open("/dev/vmm/guest", OpenFlags::READ_WRITE).unwrap();
    let heir = Rig { sys: heir, control: vm, vm };
    heir.number(VM_DESTROY_SELF, 0).unwrap();
    heir.sys.close(vm);
    assert_eq!(heir.sys.leaks(), []);
    clean(&heir);
}

#[test]
fn names_are_one_for_all_zones_and_nodes_are_seen_in_their_own() {
    let host = Host::new(vec![Vmm::new()]);
    let first = Rig::on(&host, Zone::bhyve(1));
    let second = DoubleSys::new(&host, Zone::bhyve(2));
    let control = second.open("/dev/vmmctl", CONTROL).unwrap();
    let second = Rig { sys: second, control, vm: control };
    refused(second.create("guest"), Errno::EEXIST);
    refused(second.sys.open("/dev/vmm/guest", OpenFlags::READ_WRITE), Errno::ENOENT);
    let global = DoubleSys::new(&host, Zone::global());
    global.open("/dev/vmm/guest", OpenFlags::READ_WRITE).unwrap();
    let control = global.open("/dev/vmmctl", CONTROL).unwrap();
    let global = Rig { sys: global, control, vm: control };
    global.create("b").unwrap();
    global.create("c").unwrap();
    clean(&first);
}

#[test]
fn destroying_by_name_waits_for_the_others() {
    let host = Host::new(vec![Vmm::new()]);
    let rig = Rig::on(&host, Zone::bhyve(1));
    let global = DoubleSys::new(&host, Zone::global());
    let control = global.open("/dev/vmmctl", CONTROL).unwrap();
    let global = Rig { sys: global, control, vm: control };
    std::thread::scope(|scope| {
        let destroyer = scope.spawn(|| {
            let started = Instant::now();
            let mut arg = vm_destroy_req { name: name("guest") };
            global.call_at(control, VMM_DESTROY_VM, &mut arg).unwrap();
            started.elapsed()
        });
        while rig.number(VM_DESTROY_PENDING, 0) == Ok(0) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        rig.sys.close(rig.vm);
        assert!(destroyer.join().unwrap() >= Duration::from_millis(10));
    });
    clean(&rig);
}

#[test]
fn freezing_the_vm_again_and_again_neither_hangs_nor_starves_its_vcpu() {
    let rig = Rig::with_code(FOR_EVER);
    let (stop, exits) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(rig.run().exitcode, VM_EXITCODE_BOGUS);
                exits.fetch_add(1, Ordering::SeqCst);
            }
        });
        let started = Instant::now();
        let mut freezes = 0;
        // A loaded host may start the vCPU's thread after 200 freezes: they go on until it was in the guest.
        while freezes < 200 || (exits.load(Ordering::SeqCst) == 0 && started.elapsed() < Duration::from_secs(60)) {
            rig.number(VM_WRLOCK_CYCLE, 0).unwrap();
            rig.registered(VM_REG_GUEST_RAX);
            freezes += 1;
        }
        stop.store(true, Ordering::SeqCst);
        rig.number(VM_VCPU_BARRIER, 0).unwrap();
    });
    assert!(exits.into_inner() > 0);
    clean(&rig);
}

#[test]
fn what_the_kernel_answers_to_cpuid_is_the_base_of_a_table() {
    let rig = Rig::bare();
    let ask = |leaf| {
        let mut arg = vm_legacy_cpuid { vlc_vcpuid: 3, vlc_eax: leaf, vlc_ebx: 0, vlc_ecx: 0, vlc_edx: 0 };
        rig.call(VM_LEGACY_CPUID, &mut arg).unwrap();
        arg
    };
    assert_eq!(ask(1).vlc_ebx >> 24, 3);
    assert_eq!(ask(1).vlc_ecx & (1 << 3 | 1 << 5 | 1 << 21 | 1 << 24), 0);
    assert_eq!(ask(1).vlc_ecx >> 31, 1);
    let hypervisor = ask(0x4000_0000);
    let words = [hypervisor.vlc_ebx, hypervisor.vlc_ecx, hypervisor.vlc_edx];
    assert_eq!(words.map(u32::to_le_bytes).concat(), b"bhyve bhyve ");
    rig.call(VM_SET_X2APIC_STATE, &mut vm_x2apic { cpuid: 3, state: X2APIC_ENABLED }).unwrap();
    assert_eq!(ask(1).vlc_ecx & 1 << 21, 1 << 21);
    clean(&rig);
}

#[test]
fn state_survives_its_way_out_and_in() {
    let rig = Rig::with_code(FOR_EVER);
    rig.number(VM_PAUSE, 0).unwrap();
    for (class, vcpu, bytes) in [
        (VDC_LAPIC, 0, 200),
        (VDC_IOAPIC, -1, 392),
        (VDC_ATPIT, -1, 72),
        (VDC_ATPIC, -1, 80),
        (VDC_HPET, -1, 288),
        (VDC_PM_TIMER, -1, 16),
        (VDC_RTC, -1, 152),
        (VDC_VMM_TIME, -1, 48),
        (VDC_MSR, 0, 46 * 16),
    ] {
        let mut content = vec![0; bytes];
        let told = rig.data(VM_DATA_READ, class, vcpu, &mut content).unwrap();
        assert_eq!(told.vdx_result_len as usize, bytes, "class {class}");
        rig.data(VM_DATA_WRITE, class, vcpu, &mut content).unwrap();
        let mut short = vec![0; bytes - 1];
        refused(rig.data(VM_DATA_READ, class, vcpu, &mut short), Errno::ENOSPC);
    }
    let mut versions = [0; 80];
    let told = rig.data(VM_DATA_READ, VDC_VERSION, -1, &mut versions).unwrap();
    assert_eq!(told.vdx_result_len, 80);
    clean(&rig);
}

#[test]
fn the_fpu_is_read_and_written_as_the_kernel_describes_it() {
    let rig = Rig::with_code(FOR_EVER);
    let mut parts = [vm_fpu_desc_entry { vfde_feature: 0, vfde_size: 0, vfde_off: 0 }; 64];
    let mut desc = vm_fpu_desc {
        vfd_entry_data: parts.as_mut_ptr() as usize,
        vfd_req_size: 0,
        vfd_num_entries: 64,
        _pad0: [0; 4],
    };
    rig.call(VM_DESC_FPU_AREA, &mut desc).unwrap();
    assert!(desc.vfd_num_entries >= 2 && desc.vfd_req_size >= 576);
    assert_eq!(parts[0].vfde_feature, 1);
    let mut area = vec![0_u8; desc.vfd_req_size];
    let mut state = vm_fpu_state { vcpuid: 0, _pad0: [0; 4], buf: area.as_mut_ptr() as usize, len: desc.vfd_req_size };
    rig.call(VM_GET_FPU, &mut state).unwrap();
    assert_eq!(area[..2], [0x7f, 0x03]);
    rig.call(VM_SET_FPU, &mut state).unwrap();
    clean(&rig);
}

#[test]
fn an_ioctl_that_only_some_kernels_have_may_be_tried() {
    let rig = Rig::bare();
    refused(rig.number(super::super::args::VM_ARC_RESV, 1 << 30), Errno::ENOTTY);
    clean(&rig);
}

#[test]
fn memory_ends_where_the_machine_s_does() {
    let rig = Rig::with(Config { memory_bytes: 8192, ..Config::default() });
    rig.segment(0, 4096, "").unwrap();
    refused(rig.segment(1, 8192, ""), Errno::ENOMEM);
    clean(&rig);
}
