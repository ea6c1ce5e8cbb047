//! The whole VMM with an interface in the doubled kernel, whose link ends in a TAP device: tiny guests talk to this machine's
//! own network stack, and what cannot be is refused.

#![cfg(target_os = "linux")]

mod process;
#[path = "../../tests/p0/tap.rs"]
mod tap;

use std::io;
use std::time::Duration;

use process::{Outcome, Run, guests};

const LINK: &str = "tap0,mac=52:54:00:12:34:56";

fn talks() -> String {
    format!("pci=ecam expect=net arp={} ip=192.0.2.2", tap::HOST_ADDRESS)
}

/// As [`tap::enter`], where this process sees the network namespace's interfaces under `/sys` as well.
fn enter_and_see() -> io::Result<()> {
    tap::enter()?;
    let none = std::ptr::null();
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: changes only this process, which gets mounts of its own; the paths are C strings.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        check(libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, none.cast()))
    }
}

fn calls(file: &tempfile::NamedTempFile, call: &str) -> usize {
    let text = std::fs::read_to_string(file.path()).expect("counts of calls");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{call} ")));
    line.map_or(0, |count| count.parse().expect("a count"))
}

#[test]
fn an_independent_driver_exchanges_packets_with_the_host_and_no_doorbell_leaves_the_kernel() {
    let Some(guests) = guests() else { return };
    for profile in ["i440fx", "bhyve", "micro"] {
        let counts = tempfile::NamedTempFile::new().expect("a temporary file");
        let outcome = Run::new("bhyve", &guests, "virtio")
            .own("--link", LINK)
            .own("--calls", &counts.path().display().to_string())
            .args(["--profile", profile, "--net", "viona=tap0", "--cmdline", &talks()])
            .after(tap::enter)
            .run();
        outcome.says("INFO net mac 52:54:00:12:34:56");
        outcome.passed(&["net arp", "net"]);
        // Each ring once to start it, and at most once more: rung before it ran.
        assert!((2..=4).contains(&calls(&counts, "VNA_IOC_RING_KICK")), "{outcome:?}");
    }
}

#[test]
fn every_tap_interface_is_a_link_that_the_kernel_can_carry() {
    let Some(guests) = guests() else { return };
    let run = |nets: [&str; 2]| {
        let nets = nets.into_iter().flat_map(|net| ["--net", net]);
        Run::new("bhyve", &guests, "virtio").args(nets).args(["--cmdline", &talks()]).after(enter_and_see).run()
    };
    let alone = Run::new("bhyve", &guests, "virtio").args(["--net", "viona=tap0", "--cmdline", &talks()]);
    alone.after(enter_and_see).run().passed(&["net arp", "net"]);
    // It is open for one of those that can have it, and only while that has it.
    let busy = run(["tap=tap0,mac=52:54:00:12:34:57", "viona=tap0"]);
    assert!(busy.errors.contains("net1: link tap0: VNA_IOC_CREATE: Device busy: something else has it"), "{busy:?}");
}

#[test]
fn the_zones_command_line_has_its_interface_in_the_kernel() {
    let Some(guests) = guests() else { return };
    let counts = tempfile::NamedTempFile::new().expect("a temporary file");
    let cmdline = format!("zvmm.cmdline={}", talks());
    let outcome = Run::as_bhyve(&guests, "virtio")
        .own("--link", LINK)
        .own("--calls", &counts.path().display().to_string())
        .options(["-s", "6:0,virtio-net-viona,tap0", "-o", &cmdline])
        .after(tap::enter)
        .run();
    outcome.says("PASS net arp");
    // bhyve's status for a guest that powered off.
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
    assert_eq!(calls(&counts, "VNA_IOC_CREATE"), 1);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_it_on_a_card_with_several() {
    let Some(guests) = guests() else { return };
    let counts = tempfile::NamedTempFile::new().expect("a temporary file");
    let run = |own: [&str; 2], net: &str| {
        let run = Run::new("bhyve", &guests, "virtio").own("--link", LINK).own(own[0], own[1]);
        run.args(["--net", net, "--cmdline", &talks()]).after(tap::enter).run()
    };
    run(["--calls", &counts.path().display().to_string()], "viona=tap0,queues=16").passed(&["net arp", "net"]);
    // All of them when the card is made, and the one that its driver knows.
    assert_eq!(calls(&counts, "VNA_IOC_SET_PAIRS"), 2);
    let old = run(["--inject", "VNA_IOC_GET_PAIRS:1+:ENOTTY"], "viona=tap0,queues=2");
    let line = "zvmm: net0: link tap0: 2 queue pairs are not possible: viona has one (it lacks VNA_IOC_GET_PAIRS): use a \
                newer platform, or queues=1";
    assert_eq!(old.errors.trim_end(), line, "{old:?}");
    assert!(old.status.is_some_and(|status| status != 0 && status != 70), "{old:?}");
    refused(
        &run(["--zone", "brand"], "viona=tap0,queues=17"),
        2,
        "zvmm: net0: 17 queue pairs are not possible; an interface has 1 to 16",
    );
}

#[test]
fn what_a_guest_with_an_interface_in_the_kernel_does_is_recorded() {
    let Some(guests) = guests() else { return };
    let (counts, record) = (tempfile::NamedTempFile::new(), tempfile::NamedTempFile::new());
    let (counts, record) = (counts.expect("a temporary file"), record.expect("a temporary file"));
    let outcome = Run::new("bhyve", &guests, "virtio")
        .own("--link", LINK)
        .own("--calls", &counts.path().display().to_string())
        .own("--record", &record.path().display().to_string())
        .args(["--net", "viona=tap0,queues=2", "--cmdline", &talks()])
        .after(tap::enter)
        .run();
    outcome.passed(&["net arp", "net"]);
    // Every doorbell comes out of the guest, and its chain is in the record.
    assert_eq!(calls(&counts, "VNA_IOC_SET_NOTIFY_MMIO"), 0);
    let kicks = calls(&counts, "VNA_IOC_RING_KICK");
    // Where the kernel sees them there are at most four.
    assert!(kicks > 4, "{kicks}");
    let record = std::fs::read_to_string(record.path()).expect("a record");
    let chains = record.lines().filter(|line| line.starts_with("chain ")).count();
    assert!(chains >= 6, "{chains} chains in {record}");
}

#[track_caller]
fn refused(outcome: &Outcome, status: i32, line: &str) {
    assert_eq!((outcome.status, outcome.errors.trim_end()), (Some(status), line), "{outcome:?}");
}

#[test]
fn what_cannot_be_is_refused_by_one_line() {
    let Some(guests) = guests() else { return };
    let run = |hypervisor: &str, net: &str| {
        let run = Run::new(hypervisor, &guests, "virtio").own("--link", LINK).args(["--net", net]);
        run.after(tap::enter).run()
    };
    refused(
        &run("bhyve", "viona=net7"),
        2,
        "zvmm: net0: link net7 does not exist in this zone; `dladm show-link` lists those that do",
    );
    refused(
        &run("illumos-kvm", "viona=tap0"),
        2,
        "zvmm: net0: illumos-kvm has no viona, which is bhyve's on illumos: use tap=",
    );
    for hypervisor in ["bhyve", "illumos-kvm"] {
        refused(
            &run(hypervisor, "tap=tap0,mac=52:54:00:12:34:56,vhost=on"),
            2,
            &format!("zvmm: net0: {hypervisor} has no vhost-net, which is Linux' own: leave vhost=on away"),
        );
    }
    let twice =
        Run::new("bhyve", &guests, "virtio").own("--link", LINK).args(["--net", "viona=tap0", "--net", "viona=tap0"]);
    refused(&twice.after(tap::enter).run(), 2, "zvmm: net1: viona tap0 is already taken by net0");
    let group = Run::new("bhyve", &guests, "virtio").own("--link", "tap0,mac=01:00:5e:00:00:01");
    refused(
        &group.args(["--net", "viona=tap0"]).after(tap::enter).run(),
        2,
        "zvmm: net0: link tap0 has the address of a group: give it another one",
    );
}

#[test]
fn a_kernel_that_refuses_is_named_with_its_call() {
    let Some(guests) = guests() else { return };
    let begin = |injected: &str| {
        Run::new("bhyve", &guests, "virtio")
            .own("--link", LINK)
            .own("--inject", injected)
            .args(["--net", "viona=tap0", "--cmdline", &talks()])
            .after(tap::enter)
    };
    let run = |injected: &str| begin(injected).run();
    let busy = run("VNA_IOC_CREATE:1:EBUSY");
    assert_eq!(busy.status, Some(4), "{busy:?}");
    assert!(busy.errors.contains("net0: link tap0: VNA_IOC_CREATE: Device busy: something else has it"), "{busy:?}");
    let open = run("open:3+:ENOENT");
    assert!(open.errors.contains("/dev/viona: "), "{open:?}");
    // One that cannot be asked is none: the guest goes on with what there is.
    run("VNA_IOC_SET_NOTIFY_MMIO:1+:ENOTTY").passed(&["net arp", "net"]);
    run("VNA_IOC_RING_RESET:1:EINTR").passed(&["net arp", "net"]);
    // Its guest would wait for an answer for ever.
    let failed = begin("VNA_IOC_SET_FEATURES:1+:EIO").within(Duration::from_secs(5)).run();
    assert!(failed.errors.contains("the guest's link is down until its driver begins anew"), "{failed:?}");
    assert!(!failed.errors.contains(" broken: "), "{failed:?}");
}
