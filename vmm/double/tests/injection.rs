//! Every errno that the interface names, at every call: it is handled as the interface's description says, or it ends the
//! guest with one clear line and the exit status of a failed host; and nothing is left behind.

#![cfg(target_os = "linux")]

mod process;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use process::{Outcome, Run, guests};

/// Calls of the bhyve backend and what each may fail with (reference sections 1.2 to 2.13). Every ioctl of a VM can also
/// say that the VM is being destroyed (ENXIO) or that the kernel does not know it (ENOTTY).
const BHYVE: &[(&str, &[&str])] = &[
    ("open", &["EACCES", "ENOENT", "ENXIO", "EBUSY"]),
    ("mmap", &["EINVAL", "ENODEV", "ENXIO", "ENOMEM"]),
    ("VMM_CREATE_VM", &["EPERM", "EINVAL", "EEXIST", "ENXIO", "ENOMEM", "ENAMETOOLONG"]),
    ("VMM_INTERFACE_VERSION", &["ENOTTY"]),
    ("VM_SET_AUTODESTRUCT", &["ENXIO", "ENOTTY"]),
    ("VM_ALLOC_MEMSEG", &["EINVAL", "EEXIST", "ENOMEM", "EINTR", "ENXIO"]),
    ("VM_MMAP_MEMSEG", &["EINVAL", "ENOSPC", "EFAULT", "ENXIO"]),
    ("VM_GET_TOPOLOGY", &["ENXIO"]),
    ("VM_LEGACY_CPUID", &["ENXIO", "ENOTTY"]),
    ("VM_SET_CPUID", &["EINVAL", "EFBIG", "ENXIO"]),
    ("VM_SET_X2APIC_STATE", &["EINVAL", "ENXIO"]),
    ("VM_ACTIVATE_CPU", &["EBUSY", "EINVAL", "ENXIO"]),
    ("VM_RESET_CPU", &["EINVAL", "ENXIO"]),
    ("VM_SET_RUN_STATE", &["EINVAL", "ENXIO"]),
    ("VM_SET_REGISTER", &["EINVAL", "ENXIO"]),
    ("VM_SET_REGISTER_SET", &["EINVAL", "EFAULT", "ENXIO"]),
    ("VM_SET_SEGMENT_DESCRIPTOR", &["EINVAL", "ENXIO"]),
    ("VM_RUN", &["EINVAL", "EBUSY", "EINTR", "ENXIO"]),
    ("VM_RTC_SETTIME", &["EINVAL", "ENXIO"]),
    ("VM_RTC_WRITE", &["EINVAL", "ENXIO"]),
    ("VM_PMTMR_LOCATE", &["EEXIST", "EINVAL", "ENXIO"]),
    ("VM_DATA_READ", &["EINVAL", "ENOSPC", "EFBIG", "ENXIO"]),
    ("VM_DATA_WRITE", &["EINVAL", "ENOSPC", "EPERM", "ENXIO"]),
    ("VM_ISA_SET_IRQ_TRIGGER", &["EINVAL", "ENXIO"]),
    ("VM_PAUSE", &["EALREADY", "ENXIO"]),
    ("VM_RESUME", &["EALREADY", "ENXIO"]),
    ("VM_REINIT", &["EBUSY", "EINVAL", "ENXIO"]),
    ("VM_VCPU_BARRIER", &["EINVAL", "ENXIO"]),
    ("VM_SUSPEND", &["EALREADY", "ENXIO"]),
];

/// The same of the illumos KVM backend (`smartos-zone` section 7).
const ILLUMOS_KVM: &[(&str, &[&str])] = &[
    ("open", &["EACCES", "ENOENT", "ENXIO", "EINVAL"]),
    ("mmap", &["EINVAL", "ENODEV", "ENOMEM"]),
    ("mlock", &["EAGAIN", "EPERM", "ENOMEM"]),
    ("fstat", &["EIO"]),
    ("KVM_GET_API_VERSION", &["EINVAL", "ENOTTY"]),
    ("KVM_CHECK_EXTENSION", &["EINVAL"]),
    ("KVM_CREATE_VM", &["EINVAL", "ENOMEM", "ENXIO"]),
    ("KVM_GET_SUPPORTED_CPUID", &["E2BIG", "ENOMEM"]),
    ("KVM_GET_MSR_INDEX_LIST", &["E2BIG"]),
    ("KVM_SET_TSS_ADDR", &["EINVAL"]),
    ("KVM_SET_IDENTITY_MAP_ADDR", &["EINVAL"]),
    ("KVM_CREATE_IRQCHIP", &["EEXIST", "ENOMEM"]),
    ("KVM_CREATE_PIT2", &["EEXIST", "ENOMEM", "EINVAL"]),
    ("KVM_SET_GSI_ROUTING", &["EINVAL", "ENOMEM"]),
    ("KVM_SET_USER_MEMORY_REGION", &["EEXIST", "EINVAL", "ENOMEM"]),
    ("KVM_CLONE", &["EBUSY", "ESRCH", "ENODEV", "EINVAL"]),
    ("KVM_CREATE_VCPU", &["EEXIST", "EINVAL", "ENOMEM"]),
    ("KVM_SET_CPUID2", &["E2BIG", "EINVAL"]),
    ("KVM_SET_SIGNAL_MASK", &["EINVAL"]),
    ("KVM_SET_REGS", &["EINVAL"]),
    ("KVM_SET_SREGS", &["EINVAL"]),
    ("KVM_SET_MSRS", &["EINVAL", "E2BIG"]),
    ("KVM_SET_LAPIC", &["EINVAL"]),
    ("KVM_SET_FPU", &["EINVAL"]),
    ("KVM_SET_MP_STATE", &["EINVAL"]),
    ("KVM_SET_VCPU_EVENTS", &["EINVAL"]),
    ("KVM_SET_PIT2", &["EINVAL"]),
    ("KVM_RUN", &["EINTR", "EAGAIN", "EINVAL", "EIO"]),
];

/// What a refusal may end with: the host lacks something, or failed.
const REFUSED: [i32; 2] = [3, 4];

fn counts(hypervisor: &str, guests: &Path, guest: &str, args: &[&str]) -> BTreeMap<String, usize> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let outcome =
        Run::new(hypervisor, guests, guest).own("--calls", &process::path(&file)).args(args.iter().copied()).run();
    outcome.passed(&[]);
    let text = std::fs::read_to_string(file.path()).expect("the counts");
    let count = |line: &str| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(count).collect()
}

/// A run with one failure ended well: as if nothing had happened, or with one clear line.
fn ended_well(outcome: &Outcome) -> bool {
    let lines: Vec<_> = outcome.errors.lines().collect();
    match outcome.status {
        Some(0) => outcome.output.contains("PASS") && !outcome.output.contains("FAIL"),
        Some(status) if REFUSED.contains(&status) => lines.len() == 1 && lines[0].starts_with("zvmm: "),
        _ => false,
    }
}

#[track_caller]
fn every_errno_at_every_call(hypervisor: &str, errnos: &[(&str, &[&str])], guest: &str, args: &[&str]) {
    let Some(guests) = guests() else { return };
    let counts = counts(hypervisor, &guests, guest, args);
    let mut bad = Vec::new();
    let mut runs = 0;
    for &(call, errnos) in errnos {
        let Some(&count) = counts.get(call) else { continue };
        let mut moments = vec![1, count.div_ceil(2), count];
        moments.dedup();
        for &errno in errnos {
            for &moment in &moments {
                let injection = format!("{call}:{moment}:{errno}");
                let outcome = Run::new(hypervisor, &guests, guest)
                    .own("--inject", &injection)
                    .args(args.iter().copied())
                    .within(Duration::from_secs(10))
                    .run();
                runs += 1;
                if !ended_well(&outcome) {
                    bad.push(format!("{injection}: {outcome:?}"));
                }
            }
        }
    }
    assert!(runs > 40, "{runs} runs");
    assert!(bad.is_empty(), "{} of {runs}:\n{}", bad.len(), bad.join("\n\n"));
}

#[test]
fn every_errno_at_every_call_of_bhyve_is_handled_or_ends_the_guest_with_one_line() {
    every_errno_at_every_call("bhyve", BHYVE, "reset_poweroff", &["--cmdline", "mode=cf9 boots=2 count=cmos"]);
}

#[test]
fn every_errno_at_every_call_of_illumos_kvm_is_handled_or_ends_the_guest_with_one_line() {
    every_errno_at_every_call(
        "illumos-kvm",
        ILLUMOS_KVM,
        "reset_poweroff",
        &["--cmdline", "mode=cf9 boots=2 count=cmos"],
    );
}

/// An interrupt that the kernel refuses cannot reach the guest, which may wait for it: what counts is that the process is
/// not harmed and the next one arrives.
#[test]
fn a_refused_interrupt_harms_neither_the_process_nor_the_next_one() {
    let Some(guests) = guests() else { return };
    for (guest, call) in [("msix", "VM_LAPIC_MSI"), ("intx", "VM_ISA_ASSERT_IRQ"), ("intx", "VM_ISA_DEASSERT_IRQ")] {
        for errno in ["EINVAL", "ENXIO"] {
            let outcome = Run::new("bhyve", &guests, guest)
                .own("--inject", &format!("{call}:1:{errno}"))
                .args(["--rng"])
                .within(Duration::from_secs(5))
                .run();
            assert!(matches!(outcome.status, None | Some(0..=4)), "{outcome:?}");
            assert!(!outcome.errors.contains("broken"), "{outcome:?}");
        }
    }
}

#[test]
fn refused_entries_neither_lose_nor_repeat_a_byte_of_the_serial_port() {
    let Some(guests) = guests() else { return };
    for (hypervisor, call, errno) in
        [("bhyve", "VM_RUN", "EBUSY"), ("bhyve", "VM_RUN", "EINTR"), ("illumos-kvm", "KVM_RUN", "EINTR")]
    {
        let plain = Run::new(hypervisor, &guests, "pio_mmio_hlt").run();
        plain.passed(&["pio", "mmio", "hlt"]);
        for every in ["2%2", "3%3", "2x40"] {
            let refused =
                Run::new(hypervisor, &guests, "pio_mmio_hlt").own("--inject", &format!("{call}:{every}:{errno}")).run();
            refused.passed(&["pio", "mmio", "hlt"]);
            assert_eq!(refused.output, plain.output);
        }
    }
}
