//! Which frames reach a driver that has said which it wants (virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3).

use super::control::{ALL, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, OK, half};
use super::*;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const OTHER_GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const EVERYBODY: [[u8; 6]; 5] = [OWN, OTHER, GROUP, OTHER_GROUP, BROADCAST];

/// A frame to `to`, behind a VLAN tag where there is one.
fn to(to: [u8; 6], tag: Option<u16>) -> Vec<u8> {
    let mut bytes = frame(60);
    bytes[..6].copy_from_slice(&to);
    bytes[12..14].copy_from_slice(&[8, 0]);
    if let Some(tag) = tag {
        bytes.splice(12..12, [[0x81, 0x00], tag.to_be_bytes()].concat());
    }
    bytes
}

impl Rig {
    /// Whether a frame reaches the driver, in buffers that begin with one of `first` bytes.
    fn gets_in(&mut self, frame: &[u8], first: u32) -> bool {
        let posted = vec![self.rx.post(&[Buf::Write(first), Buf::Write(300)])];
        self.rx.publish();
        let before = (self.rx_counters.filtered.get(), self.rx_counters.dropped.get());
        self.link.arrive(header(0, 0), frame);
        self.step();
        let received = self.received(&posted);
        let kept_out = self.rx_counters.filtered.get() - before.0;
        assert_eq!(self.rx_counters.dropped.get(), before.1);
        assert_eq!(received.len() as u64 + kept_out, 1);
        if let Some(received) = received.first() {
            assert_eq!(received[12..], *frame);
        } else {
            // What was kept out has used no buffer: the next frame gets it.
            self.link.arrive(header(0, 0), &to(OWN, None));
        }
        !received.is_empty()
    }

    fn gets(&mut self, frame: &[u8]) -> bool {
        let results = [12, 13, 18, 25, 200].map(|first| {
            let gets = self.gets_in(frame, first);
            if !gets {
                // The frame in waiting that took the unused buffer.
                self.command(&[0, 0, 1]);
                self.rx.used();
                self.command(&[0, 0, 0]);
            }
            gets
        });
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0]
    }

    fn set(&mut self, mode: u8, on: bool) {
        assert_eq!(self.command(&[0, mode, on.into()]), OK);
    }

    /// Of [`EVERYBODY`], to whom frames arrive.
    fn hears(&mut self) -> [bool; 5] {
        EVERYBODY.map(|mac| self.gets(&to(mac, None)))
    }

    fn set_table(&mut self, unicast: &[[u8; 6]], multicast: &[[u8; 6]]) {
        assert_eq!(self.command(&[vec![1, 0], half(unicast), half(multicast)].concat()), OK);
    }
}

/// A card whose driver has switched promiscuous mode off and accepted `features`.
fn quiet(features: u64) -> Rig {
    let mut rig = rig(features);
    rig.set(0, false);
    rig
}

#[test]
fn after_a_reset_everything_arrives_and_the_table_is_empty() {
    for features in [V1, ALL] {
        let mut rig = rig(features);
        for mac in EVERYBODY {
            assert!(rig.gets_in(&to(mac, Some(5)), 100), "{mac:x?} with {features:#x}");
        }
    }
    let mut rig = quiet(ALL);
    rig.set_table(&[OTHER], &[GROUP]);
    rig.restart();
    rig.set(0, false);
    assert_eq!(rig.hears(), [true, false, false, false, true]);
}

#[test]
fn without_promiscuous_mode_own_and_broadcast_frames_arrive_and_those_in_the_table() {
    let mut rig = quiet(ALL);
    assert_eq!(rig.hears(), [true, false, false, false, true]);
    rig.set_table(&[OTHER], &[GROUP]);
    assert_eq!(rig.hears(), [true, true, true, false, true]);
    rig.set_table(&[], &[OTHER_GROUP]);
    assert_eq!(rig.hears(), [true, false, false, true, true], "a table replaces the one before");
}

#[test]
fn each_mode_does_what_it_says_in_spite_of_those_it_outranks() {
    // By the commands' numbers: promiscuous, all multicast, all unicast, no multicast, no unicast, no broadcast.
    for (modes, hears) in [
        (&[1][..], [true, false, true, true, true]),
        (&[2], [true, true, false, false, true]),
        (&[1, 2], [true; 5]),
        (&[3], [true, false, false, false, true]),
        (&[1, 3], [true, false, false, false, true]),
        (&[4], [false, false, false, false, true]),
        (&[2, 4], [false, false, false, false, true]),
        (&[5], [true, false, false, false, false]),
        (&[1, 5], [true, false, true, true, false]),
        (&[3, 4, 5], [false; 5]),
    ] {
        let mut rig = quiet(ALL);
        modes.iter().for_each(|mode| rig.set(*mode, true));
        assert_eq!(rig.hears(), hears, "{modes:?}");
        modes.iter().for_each(|mode| rig.set(*mode, false));
        assert_eq!(rig.hears(), [true, false, false, false, true], "{modes:?} off again");
    }
    let mut rig = rig(ALL);
    (1..6).for_each(|mode| rig.set(mode, true));
    for mac in EVERYBODY {
        assert!(rig.gets_in(&to(mac, Some(9)), 100), "promiscuous in spite of all others: {mac:x?}");
    }
}

#[test]
fn a_table_larger_than_the_cards_passes_every_address_of_its_kind() {
    let many = |len: u8, first: u8| (0..len).map(|i| [first, 1, 1, 1, 1, i]).collect::<Vec<_>>();
    let mut rig = quiet(ALL);
    rig.set_table(&many(64, 2), &many(64, 3));
    assert_eq!(rig.hears(), [true, false, false, false, true], "exactly full");
    assert!(rig.gets(&to([2, 1, 1, 1, 1, 63], None)) && rig.gets(&to([3, 1, 1, 1, 1, 63], None)));
    rig.set_table(&many(65, 2), &[GROUP]);
    assert_eq!(rig.hears(), [true, true, true, false, true]);
    rig.set_table(&[], &many(200, 3));
    assert_eq!(rig.hears(), [true, false, true, true, true]);
    rig.set_table(&[], &[]);
    assert_eq!(rig.hears(), [true, false, false, false, true]);
}

#[test]
fn the_address_a_driver_sets_is_the_one_it_hears() {
    let mut rig = quiet(ALL);
    assert_eq!(rig.command(&[[1, 1].as_slice(), &OTHER].concat()), OK);
    assert_eq!(rig.hears(), [false, true, false, false, true]);
}

#[test]
fn frames_with_a_tag_arrive_where_it_is_in_the_table() {
    let mut rig = quiet(ALL);
    let heard = |rig: &mut Rig| [1, 5, 4094].map(|vlan| rig.gets(&to(OWN, Some(vlan))));
    assert_eq!(heard(&mut rig), [false; 3]);
    assert!(rig.gets(&to(OWN, None)), "without a tag nobody asks");
    assert!(rig.gets(&to(OWN, Some(0xe000))), "VLAN 0 is none");
    assert_eq!(rig.command(&[2, 0, 5, 0]), OK);
    assert_eq!(rig.command(&[2, 0, 0xfe, 0x0f]), OK);
    assert_eq!(heard(&mut rig), [false, true, true]);
    assert!(rig.gets(&to(OWN, Some(0xe005))), "the priority is no part of the VLAN");
    assert!(!rig.gets(&to(OTHER, Some(5))), "and the address has to be right, too");
    assert_eq!(rig.command(&[2, 1, 5, 0]), OK);
    assert_eq!(heard(&mut rig), [false, false, true]);
    let mut rig = quiet(ALL & !CTRL_VLAN);
    assert_eq!(heard(&mut rig), [true; 3], "a driver that cannot name VLANs gets them all");
}

#[test]
fn a_driver_that_cannot_name_addresses_misses_none() {
    let mut rig = rig(ALL & !CTRL_RX & !CTRL_RX_EXTRA);
    for mac in EVERYBODY {
        assert!(rig.gets_in(&to(mac, None), 100));
    }
    assert!(!rig.gets_in(&to(OWN, Some(5)), 100), "though it can name VLANs");
    let mut rig = super::rig(ALL & !CTRL_RX);
    assert_eq!(rig.command(&[0, 3, 1]), OK);
    assert!(rig.gets_in(&to(OTHER, None), 100) && !rig.gets_in(&to(GROUP, None), 100));
}

#[test]
fn frames_kept_out_of_mergeable_buffers_use_none_either() {
    for buffers in [vec![100; 3], vec![30_000; 3]] {
        let mut rig = quiet(ALL | MRG);
        let posted = rig.post_rx(&buffers);
        rig.link.arrive(header(0, 0), &to(OTHER, None));
        rig.link.arrive(header(0, 0), &to(OWN, None));
        rig.step();
        assert_eq!(rig.received(&posted).concat()[12..], to(OWN, None));
        assert_eq!((rig.rx_counters.filtered.get(), rig.rx_counters.dropped.get()), (1, 0));
    }
}

#[test]
fn frames_shorter_than_a_header_are_judged_by_what_they_have() {
    let mut rig = quiet(ALL);
    for (bytes, gets) in [(&OWN[..], true), (&OTHER, false), (&BROADCAST, true), (&BROADCAST[..5], false), (&[], false)]
    {
        // A tagged frame before it leaves bytes behind that are not its own.
        assert!(!rig.gets_in(&to(OTHER, Some(5)), 100));
        rig.step();
        rig.rx.used();
        assert_eq!(rig.gets_in(bytes, 100), gets, "{bytes:x?}");
        rig.step();
        rig.rx.used();
    }
}

#[test]
fn a_flood_of_frames_nobody_wants_leaves_other_queues_their_turn() {
    let mut rig = quiet(ALL);
    rig.post_rx(&[2000]);
    for _ in 0..1000 {
        rig.link.arrive(header(0, 0), &to(OTHER, None));
    }
    assert!(rig.worker.step(&rig.mem).again, "a round ends before the frames do");
    assert!(rig.link.waiting() >= 900);
    assert_eq!(rig.command(&[0, 0, 1]), OK);
}
