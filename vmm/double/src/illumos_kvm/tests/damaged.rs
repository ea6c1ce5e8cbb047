//! The backend with one call damaged or refused: the double names the rule, the backend gives up with a line, and
//! nothing is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use arch::regs;
use devices::interrupt::MsiMessage;
use devices_host::sys::Errno;
use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::{HypervisorError, VcpuStart};

use super::*;
use crate::illumos_kvm::ERRNOS;
use crate::{Injecting, Mutating};

const CODE: u64 = 0x1000;

/// Everything the backend does, once: two ranges of RAM, a ROM, a vCPU, a line, messages, a run, a reset.
fn life(sys: Arc<dyn Sys>) -> Result<(), HypervisorError> {
    let hypervisor = IllumosKvmHypervisor::open(sys)?;
    let vm = hypervisor.create_vm(&spec(&[(0, 2 << 20), (4 << 30, 1 << 20)]))?;
    vm.map_rom(0xfff0_0000, &[0; 4096])?;
    regs::write_gdt(vm.ram(), false).unwrap();
    // mov al, 'A'; mov dx, 0x3f8; out dx, al; cpuid; jmp back to it
    vm.ram()
        .write_slice(&[0xb0, 0x41, 0x66, 0xba, 0xf8, 0x03, 0xee, 0x0f, 0xa2, 0xeb, 0xfc], GuestAddress(CODE))
        .unwrap();
    let line = vm.irq_line(9);
    let message = vm.msi_source();
    message.set_message(Some(MsiMessage { address: 0xfee0_0000, data: 0x41 }));
    message.trigger();
    let cpuid = hypervisor.supported_cpuid()?;
    let mut vcpu = vm.create_vcpu(0, &cpuid)?;
    let mut vcpu = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let start = VcpuStart::Boot(Box::new(regs::pvh_boot(CODE, 0)));
            vcpu.reset(&start)?;
            let kick = vcpu.kicker();
            vcpu.bind_to_current_thread()?;
            let kicker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                kick.kick();
            });
            let stopped = vcpu.run(&mut Recorder::default());
            kicker.join().unwrap();
            stopped?;
            vcpu.quiesce()?;
            vcpu.inject_nmi()?;
            vm.reset()?;
            vcpu.reset(&start)?;
            Ok::<_, HypervisorError>(vcpu)
        });
        run.join().unwrap()
    })?;
    line.set(true);
    line.set(false);
    vcpu.note_pause();
    vm.leave(false);
    Ok(())
}

#[test]
fn an_undamaged_life_breaks_no_rule_and_leaves_nothing() {
    let process = process();
    life(process.clone()).unwrap();
    assert_clean(&process);
}

/// A damage, and the rule that it breaks.
const DAMAGES: &[(&str, &str)] = &[
    ("drop:KVM_CREATE_VM:1", "ikvm-needs-vm"),
    ("duplicate:KVM_CREATE_VM:1", "ikvm-one-vm-each"),
    ("drop:KVM_CLONE:1", "ikvm-needs-vm"),
    ("duplicate:KVM_CLONE:1", "ikvm-clone-fresh"),
    ("value=7:KVM_CLONE:1", "ikvm-clone-number"),
    ("drop:KVM_CREATE_VCPU:1", "ikvm-needs-vcpu"),
    ("duplicate:KVM_CREATE_VCPU:1", "ikvm-vcpu-on-clone"),
    ("value=3:KVM_CREATE_VCPU:1", "ikvm-vcpu-order"),
    ("drop:KVM_CREATE_IRQCHIP:1", "ikvm-pit-after-irqchip"),
    ("duplicate:KVM_CREATE_IRQCHIP:1", "ikvm-irqchip-first"),
    ("drop:KVM_CREATE_PIT2:1", "ikvm-pit-exists"),
    ("duplicate:KVM_CREATE_PIT2:1", "ikvm-pit-after-irqchip"),
    ("drop:KVM_SET_TSS_ADDR:1", "ikvm-tss-first"),
    ("value=4096:KVM_SET_TSS_ADDR:1", "ikvm-slot-private"),
    ("drop:KVM_SET_IDENTITY_MAP_ADDR:1", "ikvm-identity-first"),
    ("kind:KVM_SET_TSS_ADDR:1", "ikvm-argument-kind"),
    ("kind:KVM_SET_IDENTITY_MAP_ADDR:1", "ikvm-argument-kind"),
    ("resize=-8:KVM_SET_REGS:1", "ikvm-argument-size"),
    ("resize=8:KVM_SET_SREGS:1", "ikvm-argument-size"),
    ("resize=-16:KVM_SET_MSRS:1", "ikvm-argument-size"),
    ("resize=-40:KVM_SET_CPUID2:1", "ikvm-argument-size"),
    ("resize=-4:KVM_SET_SIGNAL_MASK:1", "ikvm-argument-size"),
    ("resize=-512:KVM_SET_LAPIC:1", "ikvm-argument-size"),
    ("resize=-24:KVM_SET_GSI_ROUTING:1", "ikvm-argument-size"),
    ("bytes=0+20000000:KVM_SET_USER_MEMORY_REGION:1", "ikvm-slot-number"),
    ("bytes=4+02000000:KVM_SET_USER_MEMORY_REGION:1", "ikvm-slot-flags"),
    ("bytes=8+01:KVM_SET_USER_MEMORY_REGION:1", "ikvm-slot-pages"),
    ("bytes=0+00000000:KVM_SET_USER_MEMORY_REGION:2", "ikvm-slot-resize"),
    ("bytes=8+0000000000000000:KVM_SET_USER_MEMORY_REGION:2", "ikvm-slot-overlap"),
    ("bytes=8+0000e0fe00000000:KVM_SET_USER_MEMORY_REGION:2", "ikvm-slot-private"),
    ("bytes=24+0000000000100000:KVM_SET_USER_MEMORY_REGION:2", "ikvm-ram-locked"),
    ("bytes=24+0000000000100000:KVM_SET_USER_MEMORY_REGION:2", "ikvm-ram-kept"),
    ("bytes=0+00000000:KVM_SET_GSI_ROUTING:1", "ikvm-routes"),
    ("bytes=0+00040000:KVM_SET_GSI_ROUTING:2", "ikvm-routes"),
    ("bytes=12+09000000:KVM_SET_GSI_ROUTING:1", "ikvm-route"),
    ("bytes=28+08000000:KVM_SET_GSI_ROUTING:1", "ikvm-route"),
    ("drop:KVM_SET_GSI_ROUTING:2", "ikvm-gsi-routed"),
    ("bytes=0+e7030000:KVM_IRQ_LINE:2", "ikvm-gsi-routed"),
    ("bytes=4+00000000:KVM_IRQ_LINE:1", "ikvm-msi-level"),
    ("bytes=4+02000000:KVM_IRQ_LINE:2", "ikvm-irq-level"),
    ("bytes=0+03000000:KVM_SET_IRQCHIP:1", "ikvm-irqchip-id"),
    ("bytes=0+29000000:KVM_SET_CPUID2:1", "ikvm-cpuid-count"),
    ("drop:KVM_SET_CPUID2:1", "ikvm-cpuid-before-run"),
    ("bytes=0+65000000:KVM_SET_MSRS:1", "ikvm-msr-count"),
    ("bytes=20+10000000:KVM_SET_VCPU_EVENTS:1", "ikvm-events-flags"),
    ("bytes=30+01:KVM_SET_VCPU_EVENTS:1", "ikvm-events-flags"),
    ("bytes=0+05000000:KVM_SET_MP_STATE:1", "ikvm-mp-state"),
    ("bytes=0+08000000:KVM_SET_SIGNAL_MASK:1", "ikvm-signal-mask"),
    ("bytes=4+ffffffff:KVM_SET_SIGNAL_MASK:1", "ikvm-kick-unmasked"),
    ("drop:KVM_SET_SIGNAL_MASK:1", "ikvm-kick-unmasked"),
    ("value=36:KVM_CHECK_EXTENSION:2", "ikvm-capability"),
    ("drop:close:1", "sys-leak-handle"),
    ("duplicate:close:1", "sys-close-once"),
    ("drop:munmap:1", "sys-leak-mapping"),
    ("duplicate:munmap:1", "sys-munmap-whole"),
];

#[test]
fn every_damage_is_noticed_under_the_name_of_its_rule() {
    for &(damage, rule) in DAMAGES {
        let process = process();
        let _ = life(Mutating::new(process.clone(), vec![damage.parse().unwrap()]));
        process.leaks().into_iter().for_each(|leak| process.note_leak(leak));
        let broken: Vec<&str> = process.violations().iter().map(|violation| violation.rule.name).collect();
        assert!(broken.contains(&rule), "{damage}: {broken:?}");
    }
}

#[test]
fn each_error_of_each_call_ends_the_guest_with_one_line_or_is_handled_and_nothing_leaks() {
    /// What a working machine may say at any time.
    const HANDLED: &[(&str, Errno)] =
        &[("mlock", Errno::EAGAIN), ("KVM_RUN", Errno::EINTR), ("KVM_RUN", Errno::EAGAIN)];
    let mut handled = BTreeMap::new();
    for &(call, errnos) in ERRNOS {
        for &errno in errnos {
            let process = process();
            let injection = crate::Injection { call: call.to_owned(), moment: crate::Moment::nth(1), errno };
            let injecting = Injecting::new(process.clone(), vec![injection]);
            let result = life(injecting.clone());
            assert!(injecting.counts().contains_key(call), "{call} is never made");
            if HANDLED.contains(&(call, errno)) || call == "KVM_IRQ_LINE" {
                result.unwrap_or_else(|error| panic!("{call} {errno:?}: {error}"));
                *handled.entry(call).or_insert(0) += 1;
            } else {
                let line = result.expect_err(&format!("{call} {errno:?}")).to_string();
                assert!(!line.is_empty() && !line.contains('\n'), "{call} {errno:?}: {line}");
            }
            assert_clean(&process);
        }
    }
    assert_eq!(handled.len(), 3, "{handled:?}");
}

#[test]
fn a_refused_later_call_is_survived_or_told_and_nothing_leaks() {
    for (injection, survives) in [
        // A message without a route is lost, the guest is not.
        ("KVM_SET_GSI_ROUTING:2:EINVAL", true),
        ("KVM_IRQ_LINE:1+:ENXIO", true),
        // A register that this host has not is left out.
        ("open:2:EMFILE", false),
        ("open:3:ENXIO", false),
        ("mlock:2:EPERM", false),
        ("KVM_SET_USER_MEMORY_REGION:3:EEXIST", false),
        ("KVM_RUN:2:ENXIO", false),
        ("KVM_SET_IRQCHIP:2:ENXIO", false),
        ("KVM_SET_MSRS:2:EINVAL", false),
    ] {
        let process = process();
        let result = life(Injecting::new(process.clone(), vec![injection.parse().unwrap()]));
        assert_eq!(result.is_ok(), survives, "{injection}: {result:?}");
        assert_clean(&process);
    }
}

#[test]
fn a_zone_that_may_not_lock_memory_is_told_which_privilege_it_lacks() {
    let zone = Zone::kvm(1).without(crate::Privilege::ProcLockMemory);
    let process = DoubleSys::new(&Host::new(vec![Kvm::new()]), zone);
    let line = life(process.clone()).unwrap_err().to_string();
    assert_eq!(
        line,
        "memory: locked 0 of 2 MiB of guest memory, then: Not owner: the zone needs the privilege proc_lock_memory"
    );
    assert!(process.leaks().is_empty());
}
