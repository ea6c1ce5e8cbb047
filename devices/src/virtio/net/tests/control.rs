//! Commands of the control queue (virtio 1.3 §5.1.6.5): carried out whole, or answered with an error and nothing changed.

use super::*;
use crate::virtio::net::filter::FilterState;
use crate::virtio::queue::F_RING_PACKED;

pub(super) const CTRL_VQ: u64 = 1 << 17;
pub(super) const CTRL_RX: u64 = 1 << 18;
pub(super) const CTRL_VLAN: u64 = 1 << 19;
pub(super) const CTRL_RX_EXTRA: u64 = 1 << 20;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const CTRL_MAC_ADDR: u64 = 1 << 23;
const STATUS: u64 = 1 << 16;
const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub(super) const ALL: u64 =
    V1 | STATUS | CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | GUEST_ANNOUNCE | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS;
pub(super) const OK: u8 = 0;
pub(super) const ERR: u8 = 1;
/// What the answer's byte holds before.
const UNANSWERED: u8 = 0xee;

impl Rig {
    /// Gives the card a command, cut into the given buffers, and returns its answer.
    pub(super) fn command_in(&mut self, pieces: &[&[u8]]) -> u8 {
        let mut bufs: Vec<Buf> = pieces.iter().map(|piece| Buf::Read(piece.to_vec())).collect();
        bufs.push(Buf::Write(1));
        let posted = self.control.post(&bufs);
        let answer = *posted.buffers.last().unwrap();
        self.mem.write_slice(&[UNANSWERED], GuestAddress(answer.addr)).unwrap();
        self.control.publish();
        self.step();
        let used = self.control.used();
        assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [1], "one answer of one byte");
        self.control.read(answer)[0]
    }

    /// The same in one buffer.
    pub(super) fn command(&mut self, bytes: &[u8]) -> u8 {
        self.command_in(&[bytes])
    }

    fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        self.device.read_config(0, &mut mac);
        mac
    }

    fn status(&self) -> u8 {
        let mut status = [0; 2];
        self.device.read_config(6, &mut status);
        status[0]
    }
}

/// A MAC table's half (§5.1.6.5.2): the number of addresses, then they.
pub(super) fn half(addresses: &[[u8; 6]]) -> Vec<u8> {
    [(addresses.len() as u32).to_le_bytes().to_vec(), addresses.concat()].concat()
}

/// Every command that is in order, with what it needs.
fn commands() -> Vec<(u64, Vec<u8>)> {
    let table =
        [vec![1, 0], half(&[[2, 9, 9, 9, 9, 9]]), half(&[[0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]])].concat();
    let mut all: Vec<_> = (0..6u8)
        .flat_map(|mode| [0u8, 1].map(|on| (if mode < 2 { CTRL_RX } else { CTRL_RX_EXTRA }, vec![0, mode, on])))
        .collect();
    all.push((CTRL_RX, table));
    all.push((CTRL_RX, [vec![1, 0], half(&[]), half(&[])].concat()));
    all.push((CTRL_MAC_ADDR, vec![1, 1, 2, 0x10, 0x20, 0x30, 0x40, 0x50]));
    all.push((CTRL_VLAN, vec![2, 0, 0xff, 0x0f]));
    all.push((CTRL_VLAN, vec![2, 1, 0, 0]));
    all.push((GUEST_ANNOUNCE, vec![3, 0]));
    all.push((CTRL_GUEST_OFFLOADS, [vec![5, 0], vec![0; 8]].concat()));
    all
}

#[test]
fn every_command_is_carried_out_however_it_is_cut() {
    for format in [0, F_RING_PACKED] {
        let mut rig = rig(ALL | format);
        for (_, command) in commands() {
            assert_eq!(rig.command(&command), OK, "{command:x?}");
            let bytes: Vec<&[u8]> = command.chunks(1).collect();
            assert_eq!(rig.command_in(&bytes), OK, "{command:x?} byte by byte");
            let (class, rest) = command.split_at(1);
            assert_eq!(rig.command_in(&[class, rest]), OK, "{command:x?}");
        }
        assert!(rig.interrupt.take_needs_reset().is_empty());
        assert_eq!(rig.control_counters.errors.get(), 0);
    }
}

#[test]
fn a_command_whose_feature_was_not_accepted_is_refused() {
    for (needs, command) in commands() {
        for features in [ALL & !needs, ALL & !CTRL_VQ] {
            assert_eq!(rig(features).command(&command), ERR, "{command:x?} with {features:#x}");
        }
        assert_eq!(rig(V1 | CTRL_VQ | needs).command(&command), OK, "{command:x?}");
    }
}

#[test]
fn a_command_that_is_too_short_too_long_or_unknown_is_refused_and_changes_nothing() {
    let mut rig = rig(ALL);
    let before = rig.worker.save();
    for (_, command) in commands() {
        for len in 0..command.len() {
            assert_eq!(rig.command(&command[..len]), ERR, "{:x?}", &command[..len]);
        }
        let longer = [command.as_slice(), &[0]].concat();
        assert_eq!(rig.command(&longer), ERR, "{longer:x?}");
    }
    for class in (0..8).chain([127, 255]) {
        for number in (0..8).chain([127, 255]) {
            let known = matches!((class, number), (0, 0..=5) | (1, 0 | 1) | (2, 0 | 1) | (3, 0) | (5, 0));
            if !known {
                assert_eq!(rig.command(&[class, number, 1, 0, 0, 0, 0, 0, 0, 0]), ERR, "{class} {number}");
            }
        }
    }
    for lie in [
        vec![0, 0, 2],
        vec![2, 0, 0x00, 0x10],
        vec![2, 1, 0xff, 0xff],
        // Addresses no station has: a group's, and none.
        vec![1, 1, 1, 2, 3, 4, 5, 6],
        vec![1, 1, 0, 0, 0, 0, 0, 0],
        // Tables that claim more than there is.
        [vec![1, 0], u32::MAX.to_le_bytes().into(), half(&[])].concat(),
        [vec![1, 0], half(&[]), 0x2aaa_aaabu32.to_le_bytes().into()].concat(),
        [vec![1, 0], half(&[]), 2u32.to_le_bytes().into(), vec![0; 11]].concat(),
    ] {
        assert_eq!(rig.command(&lie), ERR, "{lie:x?}");
    }
    assert_eq!(rig.worker.save(), before);
    assert!(rig.control_counters.errors.get() > 100);
    assert!(rig.interrupt.take_needs_reset().is_empty());
    assert_eq!(rig.command(&[0, 0, 1]), OK, "and the queue goes on");
}

#[test]
fn a_command_without_room_for_an_answer_is_returned_and_not_carried_out() {
    let mut rig = rig(ALL);
    let before = rig.worker.save();
    rig.control.post(&[Buf::Read(vec![0, 0, 0])]);
    rig.control.publish();
    rig.step();
    assert_eq!(rig.control.used()[0].len, 0);
    assert_eq!((rig.worker.save(), rig.control_counters.malformed.get()), (before, 1));
    // One with nothing else is one that is too short.
    rig.control.post(&[Buf::Write(1)]);
    rig.control.publish();
    rig.step();
    assert_eq!(rig.control.used()[0].len, 1);
    assert_eq!(rig.control_counters.errors.get(), 1);
}

#[test]
fn the_address_a_driver_sets_is_in_the_configuration_space_before_its_command_is_answered() {
    let mut rig = rig(ALL);
    let generation = rig.device.config_generation();
    assert_eq!(rig.command(&[1, 1, 2, 0x10, 0x20, 0x30, 0x40, 0x50]), OK);
    assert_eq!(rig.mac(), [2, 0x10, 0x20, 0x30, 0x40, 0x50]);
    assert_ne!(rig.device.config_generation(), generation);
    rig.restart();
    assert_eq!(rig.mac(), config().mac, "a reset brings the card's own back");
}

#[test]
fn a_link_that_comes_back_asks_for_an_announcement_until_it_is_made() {
    let mut rig = rig(ALL);
    assert_eq!(rig.status(), 1);
    assert!(rig.device.set_link(false));
    assert_eq!(rig.status(), 0);
    assert!(!rig.device.announce(), "nobody would hear it");
    assert!(rig.device.set_link(true));
    assert_eq!(rig.status(), 3);
    let generation = rig.device.config_generation();
    assert_eq!((rig.command(&[3, 0]), rig.status()), (OK, 1));
    assert_ne!(rig.device.config_generation(), generation);
    assert!(rig.device.announce() && !rig.device.announce(), "asked for once");
    assert_eq!(rig.status(), 3);
    rig.restart();
    assert_eq!(rig.status(), 1, "the next driver announces itself anyway");
}

#[test]
fn nobody_is_asked_to_announce_who_could_not_say_that_it_did() {
    for without in [GUEST_ANNOUNCE, CTRL_VQ, STATUS] {
        let rig = rig(ALL & !without);
        rig.device.set_link(false);
        rig.device.set_link(true);
        assert!(!rig.device.announce());
        assert_eq!(rig.status(), 1);
    }
}

#[test]
fn what_a_driver_has_set_goes_with_the_saved_state_and_survives_a_pause() {
    let mut rig = rig(ALL);
    assert_eq!(rig.worker.save().card, None, "a card nobody has changed has nothing to save");
    for (_, command) in commands() {
        rig.command(&command);
    }
    rig.command(&[2, 0, 7, 0]);
    rig.device.announce();
    let saved = rig.worker.save();
    let device = NetDevice::new(config());
    let mut worker: Box<dyn VirtioWorker<GuestRam>> = Box::new(device.worker(rig.link.clone(), Default::default()));
    worker.restore(&saved).unwrap();
    assert_eq!(worker.save(), saved);
    let (mut here, mut there) = ([0; 12], [0; 12]);
    rig.device.read_config(0, &mut here);
    device.read_config(0, &mut there);
    assert_eq!(here, there);
    let queues = rig.pause();
    rig.start(queues);
    assert_eq!(rig.worker.save(), saved);
    rig.restart();
    assert_eq!(rig.worker.save().card, None);
}

#[test]
fn a_saved_card_no_driver_can_have_set_is_refused() {
    let mut rig = rig(ALL);
    rig.command(&[2, 0, 7, 0]);
    let good = rig.worker.save();
    let mut bad = good.clone();
    bad.card.as_mut().unwrap().offloads = Some(1);
    assert!(rig.worker.restore(&bad).is_err(), "{bad:?}");
    let lies: [fn(&mut FilterState); 4] = [
        |filter| filter.modes = 64,
        |filter| filter.mac = [1, 0, 0, 0, 0, 0],
        |filter| filter.vlans = vec![4096],
        |filter| filter.unicast.entries = vec![[2, 0, 0, 0, 0, 0]; 65],
    ];
    for lie in lies {
        let mut bad = good.clone();
        lie(&mut bad.card.as_mut().unwrap().filter);
        assert!(rig.worker.restore(&bad).is_err(), "{bad:?}");
    }
    assert!(rig.worker.restore(&good).is_ok());
    let mut sender: Box<dyn VirtioWorker<GuestRam>> =
        Box::new(NetDevice::new(config()).tx_worker(MemoryLink::default(), Default::default()));
    assert!(sender.restore(&good).is_err(), "a sender has no filter");
}

#[test]
fn the_control_queue_is_reset_alone_and_forgets_no_filter() {
    let mut rig = rig(ALL);
    assert_eq!(rig.command(&[0, 0, 0]), OK);
    let saved = rig.worker.save();
    assert!(rig.worker.reset_queue(&rig.mem, CONTROL_QUEUE));
    assert_eq!(rig.worker.save(), saved);
    rig.control = DriverQueue::new(&rig.mem, 0x30_0000, SIZE, rig.features);
    let activation = rig.interrupt.activation(rig.features);
    rig.worker.start(&rig.mem, CONTROL_QUEUE, rig.control.state(), &activation);
    assert_eq!(rig.command(&[0, 0, 1]), OK);
}

#[test]
fn a_broken_control_ring_needs_a_reset_and_frames_go_on() {
    let mut rig = rig(ALL);
    rig.control.set_avail_index(1000);
    rig.step();
    assert_eq!(rig.interrupt.take_needs_reset()[0].queue, CONTROL_QUEUE);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert_eq!(rig.link.take_sent().len(), 1);
}

#[test]
fn the_control_queue_is_as_long_as_the_others_up_to_64_entries() {
    for (size, expected) in [(16, 16), (64, 64), (256, 64), (1024, 64)] {
        let device = NetDevice::new(NetConfig { queue_size: size, ..config() });
        assert_eq!(device.queue_max_sizes(), [size, size, expected]);
    }
}
