//! The whole process on a link of the double that it cannot have: one line, and the status of a bad configuration.
#![cfg(target_os = "linux")]

mod process;

use process::{Outcome, Run, guests};

/// Runs with this interface.
fn run(hypervisor: &str, net: &str) -> Option<Outcome> {
    let guests = guests()?;
    Some(Run::new(hypervisor, &guests, "pio_mmio_hlt").args(["--net", net]).run())
}

#[track_caller]
fn refused(hypervisor: &str, net: &str, line: &str) {
    let Some(outcome) = run(hypervisor, net) else { return };
    assert_eq!(outcome.status, Some(2), "{outcome:?}");
    assert_eq!(outcome.errors.trim_end(), format!("zvmm: net0: {line}"), "{outcome:?}");
}

#[test]
fn a_link_that_is_missing_or_misnamed_is_refused_before_there_is_a_guest() {
    for hypervisor in ["bhyve", "illumos-kvm"] {
        for key in ["vnd", "dlpi"] {
            let missing = "the zone has no link zvmm-none: `dladm show-link` lists those it has";
            refused(hypervisor, &format!("{key}=zvmm-none"), missing);
            let misnamed = "'n\u{e9}t0' is no name of a link: 1 to 31 letters, digits, '-', '_' and '.', no sign first";
            refused(hypervisor, &format!("{key}=n\u{e9}t0"), misnamed);
            // No TAP interface, and so no link of the double.
            refused(hypervisor, &format!("{key}=lo"), "the zone has no link lo: `dladm show-link` lists those it has");
        }
    }
}

#[test]
fn a_vnic_of_a_zone_of_the_kvm_brand_is_a_frame_device() {
    let Some(guests) = guests() else { return };
    let kernel = guests.join("pio_mmio_hlt").display().to_string();
    let net = ["-net", "vnic,name=net0,vlan=0,ifname=zvmm-none"];
    let card = ["-device", "virtio-net-pci,mac=b2:1e:ba:a5:6e:71,vlan=0"];
    let args = ["qemu", "-cpu", "host", "-m", "128", "-kernel", &kernel].into_iter().chain(card).chain(net);
    let outcome = Run::with("illumos-kvm", args).run();
    // As qemu ends for whatever went wrong.
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
    let line = "net0: the zone has no link zvmm-none: `dladm show-link` lists those it has";
    assert!(outcome.errors.trim_end().ends_with(line), "{outcome:?}");
}
