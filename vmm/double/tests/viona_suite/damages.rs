//! The double notices: the backend's real calls, one of them damaged, break a rule that is named.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use zvmm::hypervisor::{LinkOptions, Vm as _};
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

/// The same of a card with two pairs.
const OF_PAIRS: &[(&str, &str)] = &[
    ("drop:VNA_IOC_SET_PAIRS:1", "viona-pairs-used"),
    ("drop:VNA_IOC_SET_PAIRS:3", "viona-ring-index"),
    ("drop:VNA_IOC_SET_USEPAIRS:1", "viona-poll-rings"),
    ("drop:VNA_IOC_SET_USEPAIRS:2", "viona-pairs-start"),
    ("late:VNA_IOC_SET_USEPAIRS:2", "viona-pairs-range"),
    ("drop:VNA_IOC_RING_RESET:4", "viona-pairs-still"),
    ("value=0:VNA_IOC_SET_PAIRS:2", "viona-pairs-range"),
    ("value=1:VNA_IOC_SET_PAIRS:1", "viona-pairs-used"),
    ("value=257:VNA_IOC_SET_PAIRS:1", "viona-pairs-range"),
    ("value=3:VNA_IOC_SET_USEPAIRS:1", "viona-pairs-used"),
    ("value=0:VNA_IOC_SET_USEPAIRS:1", "viona-pairs-used"),
    ("kind:VNA_IOC_SET_PAIRS:1", "viona-argument"),
    ("kind:VNA_IOC_SET_USEPAIRS:1", "viona-argument"),
    ("bytes=0+0200:VNA_IOC_INTR_POLL_MQ:5+", "viona-interrupt-taken"),
    ("bytes=0+0600:VNA_IOC_INTR_POLL_MQ:5", "viona-poll-rings"),
    ("bytes=0+0400:VNA_IOC_RING_INIT_MODERN:4", "viona-ring-index"),
    ("drop:VNA_IOC_RING_RESET:3", "viona-ring-fresh"),
];

/// The same of a card of the newer kernel, with parameters, groups and another address.
const OF_2026: &[(&str, &str)] = &[
    ("drop:VNA_IOC_SET_MAC_FILTERS:1", "viona-filters-first"),
    ("bytes=0+03000000:VNA_IOC_SET_MAC_FILTERS:1", "viona-filters-groups"),
    ("bytes=0+41000000:VNA_IOC_SET_MAC_FILTERS:1", "viona-filters-count"),
    ("bytes=16+0800000000000000:VNA_IOC_SET_MAC_FILTERS:1", "bhyve-pointer"),
    ("resize=-8:VNA_IOC_SET_MAC_FILTERS:1", "viona-argument"),
    ("resize=8:VNA_IOC_GET_MAC_FILTERS:1", "viona-argument"),
    ("kind:VNA_IOC_SET_MAC_FILTERS:1", "viona-argument"),
    ("bytes=8+0000000000000000:VNA_IOC_SET_PARAMS:1", "viona-params-list"),
    ("bytes=8+0110000000000000:VNA_IOC_SET_PARAMS:1", "viona-params-list"),
    ("bytes=8+0800000000000000:VNA_IOC_SET_PARAMS:1", "viona-params-list"),
    ("bytes=0+0800000000000000:VNA_IOC_SET_PARAMS:1", "bhyve-pointer"),
    ("resize=-8:VNA_IOC_SET_PARAMS:1", "viona-argument"),
    ("resize=-8:VNA_IOC_GET_PARAMS:1", "viona-argument"),
    ("bytes=0+0800000000000000:VNA_IOC_GET_PARAMS:1", "bhyve-pointer"),
];

/// The same of one that receives every frame, and whose driver gives it another address.
const OF_ADDRESSES: &[(&str, &str)] = &[
    ("drop:VNA_IOC_SET_PROMISC:1", "viona-address-open"),
    ("drop:VNA_IOC_SET_MAC_ADDR:2", "viona-address-back"),
    ("bytes=0+03:VNA_IOC_SET_MAC_ADDR:1", "viona-address-station"),
    ("resize=-4:VNA_IOC_SET_MAC_ADDR:1", "viona-argument"),
    ("resize=4:VNA_IOC_GET_MAC_ADDR:1", "viona-argument"),
];

/// A life of the newer kernel: groups named by one driver, and another address by the other.
fn live_of_2026(mutations: Vec<Mutation>, every: bool) -> Vec<&'static str> {
    let host = host(Config { patience: Duration::from_millis(50), ..Config::of_2026() }, mutations);
    let life = catch_unwind(AssertUnwindSafe(|| {
        let (_hypervisor, vm) = host.vm();
        let options = LinkOptions { tx_copy_data: Some(true), tx_header_pad: Some(8), ..LinkOptions::new(1) };
        let Ok(mut card) = Card::with(&vm, &*host.sys, &options, every) else { return };
        let all = card.offered() & !(1 << 24) | VERSION_1;
        card.drive(all);
        card.interrupt_with(RX, Some(0x40));
        card.interrupt_with(TX, Some(0x41));
        card.step();
        if every {
            card.command(&[&[1, 1][..], &OTHER].concat());
        } else {
            // All frames, and then those to two groups.
            card.command(&[0, 0, 1]);
            card.command(&[0, 1, 0]);
            let groups = [[1, 0, 0x5e, 0, 0, 1], [1, 0, 0x5e, 0, 0, 2]].concat();
            card.command(&[&[1, 0, 0, 0, 0, 0, 2, 0, 0, 0][..], &groups].concat());
            card.command(&[0, 0, 0]);
        }
        card.reset();
    }));
    drop(life);
    host.process.end();
    host.broken()
}

/// A life with three drivers: one that uses both pairs, one that knows of one, and one that begins as the first did.
fn live_with_pairs(mutations: Vec<Mutation>) -> Vec<&'static str> {
    let host = host(Config { patience: Duration::from_millis(50), ..Config::default() }, mutations);
    let life = catch_unwind(AssertUnwindSafe(|| {
        let (_hypervisor, vm) = host.vm();
        let Ok(mut card) = Card::with_pairs(&vm, &*host.sys, 2) else { return };
        host.far.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let all = card.offered() & !(1 << 24) | VERSION_1;
        for features in [all, all & !MQ, all] {
            card.drive(features);
            if features & MQ != 0 {
                card.command(&[4, 0, 2, 0]);
                for pair in [0, 1] {
                    card.send_by(pair, &frame(OTHER, 1));
                    let _ = host.far.recv(&mut [0; 100]);
                }
                for _ in 0..10 {
                    std::thread::sleep(Duration::from_millis(6));
                    card.step();
                }
            }
            card.reset();
        }
    }));
    drop(life);
    host.process.end();
    host.broken()
}

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
    assert_eq!(live_with_pairs(Vec::new()), [""; 0]);
    assert_eq!(live_of_2026(Vec::new(), false), [""; 0]);
    assert_eq!(live_of_2026(Vec::new(), true), [""; 0]);
}

#[test]
fn every_damage_is_noticed_by_its_rule() {
    let mut unseen = Vec::new();
    type Life = fn(Vec<Mutation>) -> Vec<&'static str>;
    let tables: [(Life, _); 4] = [
        (live, DAMAGES),
        (live_with_pairs, OF_PAIRS),
        (|mutations| live_of_2026(mutations, false), OF_2026),
        (|mutations| live_of_2026(mutations, true), OF_ADDRESSES),
    ];
    for (live, table) in tables {
        for (damage, rule) in table {
            let broken = live(vec![damage.parse().unwrap()]);
            if !broken.contains(rule) {
                unseen.push(format!("{damage}: {broken:?} in place of {rule}"));
            }
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
    let rules: BTreeSet<_> = DAMAGES.iter().map(|(_, rule)| rule).collect();
    assert!(rules.len() >= 20, "{}", rules.len());
}
