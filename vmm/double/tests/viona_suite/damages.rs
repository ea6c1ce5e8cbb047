//! The double notices: the backend's real calls, one of them damaged, break a rule that is named.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use zvmm::hypervisor::Vm as _;
use zvmm_double::Mutation;
use zvmm_double::viona::Config;

use super::rig::*;

/// Damage, and the rule that it breaks.
const DAMAGES: &[(&str, &str)] = &[
    // Calls that are left out.
    ("drop:VNA_IOC_CREATE:1", "viona-attached"),
    ("drop:VNA_IOC_SET_FEATURES:1", "viona-features-first"),
    ("drop:VNA_IOC_RING_INIT_MODERN:1", "viona-kick-ready"),
    ("drop:VNA_IOC_RING_KICK:1", "viona-kick-once"),
    ("drop:VNA_IOC_RING_RESET:1", "viona-ring-fresh"),
    ("drop:VNA_IOC_RING_RESET:6", "viona-rings-reset"),
    ("drop:VNA_IOC_RING_PAUSE:1", "viona-state-paused"),
    ("drop:VNA_IOC_RING_SET_STATE:1", "viona-kick-ready"),
    ("drop:VNA_IOC_SET_NOTIFY_MMIO:2", "viona-hook-follows"),
    ("drop:VNA_IOC_SET_NOTIFY_MMIO:4", "bhyve-reinit-hooks"),
    ("drop:VNA_IOC_SET_NOTIFY_MMIO:1", "viona-kick-hooked"),
    ("drop:VNA_IOC_RING_SET_MSI:1+", "viona-interrupt-taken"),
    // Calls that come twice.
    ("duplicate:VNA_IOC_CREATE:1", "viona-create-once"),
    ("duplicate:VNA_IOC_RING_INIT_MODERN:1", "viona-ring-fresh"),
    ("duplicate:VNA_IOC_RING_SET_STATE:1", "viona-ring-fresh"),
    ("duplicate:VNA_IOC_RING_PAUSE:1", "viona-pause-initialised"),
    ("duplicate:VNA_IOC_DELETE:1", "viona-attached"),
    // Calls that come late.
    ("late:VNA_IOC_SET_FEATURES:1", "viona-features-first"),
    ("late:VNA_IOC_RING_INIT_MODERN:1", "viona-kick-ready"),
    ("late:VNA_IOC_RING_RESET:6", "viona-rings-reset"),
    ("late:VNA_IOC_RING_PAUSE:1", "viona-state-paused"),
    // Arguments of another size or kind.
    ("resize=-4:VNA_IOC_CREATE:1", "viona-argument"),
    ("resize=8:VNA_IOC_RING_INIT_MODERN:1", "viona-argument"),
    ("resize=-16:VNA_IOC_RING_SET_STATE:1", "viona-argument"),
    ("resize=-60:VNA_IOC_INTR_POLL_MQ:1", "viona-argument"),
    ("kind:VNA_IOC_RING_KICK:1", "viona-argument"),
    ("kind:VNA_IOC_RING_SET_MSI:1", "viona-argument"),
    // Arguments with something else in them: indices, sizes, addresses, features, messages.
    ("bytes=0+09000000:VNA_IOC_CREATE:1", "viona-link-known"),
    ("bytes=4+ff000000:VNA_IOC_CREATE:1", "viona-vm-handle"),
    ("bytes=0+0400:VNA_IOC_RING_INIT_MODERN:1", "viona-ring-index"),
    ("bytes=2+0300:VNA_IOC_RING_INIT_MODERN:1", "viona-ring-size"),
    ("bytes=8+04:VNA_IOC_RING_INIT_MODERN:1", "viona-ring-aligned"),
    ("bytes=8+0000000100000000:VNA_IOC_RING_INIT_MODERN:1", "viona-ring-memory"),
    ("bytes=4+00:VNA_IOC_SET_FEATURES:1", "viona-ring-kind"),
    ("bytes=3+20:VNA_IOC_SET_FEATURES:1", "viona-features-carried"),
    ("bytes=8+0000e00e:VNA_IOC_RING_SET_MSI:1", "viona-msi-address"),
    ("bytes=2+0900:VNA_IOC_RING_SET_STATE:1", "viona-state-same"),
    ("bytes=0+0500:VNA_IOC_RING_SET_MSI:1", "viona-ring-index"),
    ("bytes=0+0300:VNA_IOC_INTR_POLL_MQ:1", "viona-poll-rings"),
    ("bytes=8+00000000:VNA_IOC_SET_NOTIFY_MMIO:1", "viona-hook-place"),
    ("bytes=0+0000000000000000:VNA_IOC_SET_NOTIFY_MMIO:1", "viona-hook-place"),
    ("value=3:VNA_IOC_SET_PROMISC:1", "viona-promisc-level"),
    ("value=67:VNA_IOC_SET_MTU:1", "viona-mtu-range"),
    ("value=2:VNA_IOC_RING_KICK:1", "viona-ring-index"),
];

/// A life with all that a card does: two drivers, messages, a pause, another place of the doorbells.
fn live(mutations: Vec<Mutation>) -> Vec<&'static str> {
    let host = host(Config { patience: Duration::from_millis(50), ..Config::default() }, mutations);
    // Of a damaged life not everything is as it should be: it ends where something is missing.
    let life = catch_unwind(AssertUnwindSafe(|| {
        let (_hypervisor, vm) = host.vm();
        let Ok(mut card) = Card::new(&vm, &*host.sys) else { return };
        host.far.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let all = card.offered() & !(1 << 24) | VERSION_1;
        card.drive(all);
        card.interrupt_with(RX, Some(0x40));
        card.interrupt_with(TX, Some(0x41));
        card.step();
        card.command(&[0, 0, 1]);
        for content in 0..210 {
            card.send(&frame(OTHER, content as u8));
            if host.far.recv(&mut [0; 100]).is_err() {
                // Nothing will come any more.
                host.far.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            }
        }
        let states = card.pause();
        card.start(&states);
        card.send(&frame(OTHER, 7));
        let _ = host.far.recv(&mut [0; 100]);
        std::thread::sleep(Duration::from_millis(60));
        card.reset();
        vm.reset().unwrap();
        card.drive(all);
        card.send(&frame(OTHER, 8));
        let _ = host.far.recv(&mut [0; 100]);
        card.reset();
    }));
    drop(life);
    host.process.end();
    host.broken()
}

#[test]
fn a_whole_life_breaks_no_rule() {
    assert_eq!(live(Vec::new()), [""; 0]);
}

#[test]
fn every_damage_is_noticed_by_its_rule() {
    let mut unseen = Vec::new();
    for (damage, rule) in DAMAGES {
        let broken = live(vec![damage.parse().unwrap()]);
        if !broken.contains(rule) {
            unseen.push(format!("{damage}: {broken:?} in place of {rule}"));
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
    let rules: BTreeSet<_> = DAMAGES.iter().map(|(_, rule)| rule).collect();
    assert!(rules.len() >= 20, "{}", rules.len());
}
