//! Which frames a driver gets from a kernel that tells groups apart, and whose link can have another address.

use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice as _;
use devices::virtio::testing::Buf;
use zvmm::hypervisor::LinkOptions;
use zvmm_double::viona::Config;

use super::rig::*;

const FIRST: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const SECOND: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];

fn all(card: &Card) -> u64 {
    card.offered() & !(1 << 24) | VERSION_1
}

fn table(groups: &[[u8; 6]]) -> Vec<u8> {
    [&[1, 0, 0, 0, 0, 0][..], &(groups.len() as u32).to_le_bytes(), &groups.concat()].concat()
}

/// Which of a frame to each of these comes to the guest.
fn come<const N: usize>(card: &mut Card, host: &Host1, to: [[u8; 6]; N]) -> [bool; N] {
    to.map(|to| comes(card, host, to))
}

/// Whether a frame to this address comes, before one to all stations that was sent after it.
fn comes(card: &mut Card, host: &Host1, to: [u8; 6]) -> bool {
    let send = |to, content| assert!(host.far.send(&on_the_wire(&frame(to, content))).is_ok());
    let ring = usize::from(RX);
    let posted = [(); 2].map(|()| card.queues[ring].post(&[Buf::Write(2048)]));
    card.queues[ring].publish();
    card.kick(RX);
    send(to, 1);
    send([0xff; 6], 2);
    let (mut contents, until) = (Vec::new(), Instant::now() + Duration::from_secs(20));
    while contents.len() < 2 {
        assert!(Instant::now() < until, "the ring stands: {contents:?}");
        let before = contents.len();
        for used in card.queues[ring].used() {
            let chain = posted.iter().find(|chain| u32::from(chain.head) == used.head).unwrap();
            contents.push(card.queues[ring].read(chain.buffers[0])[12 + 14]);
        }
        if before == 0 && contents == [2] {
            // Another one for the buffer that is left.
            send([0xff; 6], 3);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    contents[0] == 1
}

#[test]
fn a_driver_gets_the_groups_that_it_names_and_no_others() {
    let host = host(Config::of_2026(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        let to = [FIRST, SECOND, [0xff; 6], MAC, OTHER];
        assert_eq!(come(&mut card, &host, to), [true, true, true, true, false], "it has named none");
        assert_eq!(card.command(&[0, 1, 0]), 0);
        assert_eq!(come(&mut card, &host, to), [false, false, true, true, false]);
        assert_eq!(card.command(&table(&[FIRST])), 0);
        assert_eq!(come(&mut card, &host, to), [true, false, true, true, false]);
        assert_eq!(card.command(&table(&[SECOND, FIRST, SECOND, [0xff; 6], OTHER])), 0);
        assert_eq!(come(&mut card, &host, to), [true, true, true, true, false]);
        assert_eq!(card.command(&table(&[SECOND])), 0);
        assert_eq!(card.command(&[0, 0, 1]), 0, "promiscuous");
        assert_eq!(come(&mut card, &host, to), [true; 5]);
        assert_eq!(card.command(&[0, 0, 0]), 0);
        assert_eq!(come(&mut card, &host, to), [false, true, true, true, false]);
        assert_eq!(card.command(&[0, 1, 1]), 0, "all groups");
        assert_eq!(come(&mut card, &host, to), [true, true, true, true, false]);
        card.reset();
        card.drive(all(&card));
        assert_eq!(come(&mut card, &host, to), [true, true, true, true, false], "the next driver has named none");
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

/// What a driver has of a kernel that fails so when it names its groups, and then another one.
fn after(injection: &str) -> [bool; 4] {
    let host = failing(Config::of_2026(), &[injection]);
    let come = {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        assert_eq!(card.command(&[0, 1, 0]), 0);
        assert_eq!(card.command(&table(&[FIRST])), 0);
        let [first, second] = come(&mut card, &host, [FIRST, SECOND]);
        assert_eq!(card.command(&table(&[SECOND])), 0);
        let [third, fourth] = come(&mut card, &host, [FIRST, SECOND]);
        assert!(card.device.card().is_up());
        card.reset();
        [first, second, third, fourth]
    };
    assert_eq!(host.broken(), [""; 0], "{injection}");
    come
}

#[test]
fn a_kernel_that_fails_to_filter_gives_too_much_and_never_too_little() {
    assert_eq!(after("VNA_IOC_SET_MAC_FILTERS:9:EIO"), [true, false, false, true]);
    for injection in ["VNA_IOC_SET_MAC_FILTERS:2:ENXIO", "VNA_IOC_SET_MAC_FILTERS:2:EFAULT"] {
        let [first, _, _, fourth] = after(injection);
        assert!(first && fourth, "{injection}");
    }
    for injection in ["VNA_IOC_SET_MAC_FILTERS:1+:EIO", "VNA_IOC_SET_PROMISC:1+:EIO"] {
        assert_eq!(after(injection), [true; 4], "{injection}");
    }
}

/// A kernel that lacks the calls is no worse than it was.
#[test]
fn a_kernel_that_cannot_tell_groups_apart_gives_all_of_them() {
    for injection in ["VNA_IOC_GET_MAC_FILTERS:1:ENOTTY", "VNA_IOC_GET_MAC_ADDR:1:ENOTTY"] {
        let groups = after(injection);
        let told_apart = injection.contains("ADDR");
        assert_eq!(groups, [true, !told_apart, !told_apart, true], "{injection}");
    }
}

#[test]
fn a_driver_may_change_the_address_where_its_operator_lets_it_have_every_frame() {
    let host = host(Config::of_2026(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        assert_eq!(Card::new(&vm, &*host.sys).unwrap().offered() & CTRL_MAC_ADDR, 0);
        let mut card = Card::with(&vm, &*host.sys, &LinkOptions::new(1), true).unwrap();
        card.drive(all(&card));
        let set = |card: &mut Card, mac: [u8; 6]| card.command(&[&[1, 1][..], &mac].concat());
        let shown = |card: &Card| {
            let mut mac = [0; 6];
            card.device.read_config(0, &mut mac);
            mac
        };
        assert_eq!((set(&mut card, OTHER), shown(&card), host.address()), (0, OTHER, OTHER));
        assert_eq!(come(&mut card, &host, [OTHER, [4; 6]]), [true, true]);
        assert_eq!((set(&mut card, FIRST), host.address()), (1, OTHER), "that of a group");
        card.reset();
        assert_eq!((shown(&card), host.address()), (MAC, MAC), "the next driver's");
        card.drive(all(&card));
        assert_eq!(set(&mut card, OTHER), 0);
    }
    // Let go of in the middle of it: the link is as it was.
    assert!(
        host.broken().iter().all(|rule| *rule == "viona-rings-reset" || *rule == "viona-hook-follows"),
        "{:?}",
        host.broken()
    );
    let refusing = failing(Config::of_2026(), &["VNA_IOC_SET_MAC_ADDR:1:EFAULT"]);
    let (_hypervisor, vm) = refusing.vm();
    let mut card = Card::with(&vm, &*refusing.sys, &LinkOptions::new(1), true).unwrap();
    card.drive(all(&card));
    assert_eq!((card.command(&[&[1, 1][..], &OTHER].concat()), refusing.address()), (1, MAC));
    assert_eq!((card.command(&[&[1, 1][..], &OTHER].concat()), refusing.address()), (0, OTHER));
    card.reset();
    assert_eq!(refusing.address(), MAC);
}
