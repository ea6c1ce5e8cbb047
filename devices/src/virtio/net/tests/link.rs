//! The state of the link, and what it is said to carry (virtio 1.3 §5.1.4).

use super::control::{ALL, OK};
use super::*;

const STATUS: u64 = 1 << 16;
const SPEED_DUPLEX: u64 = 1 << 63;

impl Rig {
    fn is_shown_up(&self) -> bool {
        let mut status = [0];
        self.device.read_config(6, &mut status);
        status[0] & 1 == 1
    }

    /// Plugs the cable or pulls it, as an operator does: the workers are woken.
    fn set_link(&mut self, up: bool) -> Step {
        assert!(self.device.set_link(up));
        self.step()
    }

    fn send_one(&mut self) {
        self.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    }

    fn lost(&self) -> (u64, u64) {
        (self.rx_counters.link_down.get(), self.tx_counters.link_down.get())
    }
}

/// A driver that knows of the link and one that does not see the same traffic.
fn rigs() -> [Rig; 3] {
    [V1, V1 | STATUS, ALL | MRG].map(rig)
}

#[test]
fn while_the_link_is_down_frames_of_both_directions_are_taken_lost_and_counted() {
    for mut rig in rigs() {
        let posted = rig.post_rx(&[2048, 2048]);
        assert!(rig.step().want_readable);
        let step = rig.set_link(false);
        assert!(!rig.is_shown_up() && step.want_readable);
        for _ in 0..3 {
            rig.send_one();
            rig.link.arrive(header(0, 0), &frame(60));
        }
        assert!(rig.step().want_readable, "frames that come have to go");
        assert_eq!(rig.tx.used().len(), 3, "§5.1.6.2: what the driver sends comes back to it");
        assert_eq!((rig.link.take_sent(), rig.link.waiting()), (vec![], 0));
        assert_eq!(rig.received(&posted), Vec::<Vec<u8>>::new());
        assert_eq!((rig.lost(), rig.rx_counters.dropped.get(), rig.tx_counters.dropped.get()), ((3, 3), 0, 0));
        assert_eq!(rig.rx_counters.bytes_to_guest.get() + rig.tx_counters.bytes_from_guest.get(), 0);
    }
}

#[test]
fn traffic_goes_on_at_once_when_the_link_comes_back_and_nothing_of_before_arrives() {
    for mut rig in rigs() {
        let posted = rig.post_rx(&[2048, 2048]);
        rig.step();
        rig.set_link(false);
        rig.link.arrive(header(0, 0), &frame(60));
        rig.step();
        rig.set_link(true);
        rig.send_one();
        assert_eq!(rig.link.take_sent(), [(header(0, 0), frame(60))]);
        rig.link.arrive(header(0, 0), &frame(100));
        assert!(rig.step().want_readable);
        let received = rig.received(&posted);
        assert_eq!(received.iter().map(Vec::len).collect::<Vec<_>>(), [12 + 100], "into the first buffer");
        assert_eq!(rig.lost(), (1, 0));
    }
}

#[test]
fn a_frame_that_waits_when_the_link_goes_down_is_lost_and_not_sent_when_it_is_up() {
    let mut rig = rig(V1 | MRG);
    // One for buffers, of which there were enough once, and one for the network.
    rig.post_rx(&[100, 100]);
    rig.step();
    for _ in 0..2 {
        rig.link.arrive(header(0, 0), &frame(60));
    }
    rig.step();
    assert_eq!(rig.rx.used().len(), 2);
    let posted = rig.post_rx(&[100]);
    rig.link.arrive(header(0, 0), &frame(150));
    rig.step();
    rig.link.set_full(true);
    rig.send_one();
    assert!(rig.worker.step(&rig.mem).want_writable);
    assert!(!rig.worker.save().to_guest.is_empty());
    assert!(!rig.set_link(false).want_writable);
    assert_eq!((rig.lost(), rig.tx.used().len()), ((1, 1), 1));
    assert!(rig.worker.save().to_guest.is_empty());
    rig.link.set_full(false);
    rig.set_link(true);
    assert_eq!((rig.link.take_sent(), rig.received(&posted).len()), (vec![], 0));
}

#[test]
fn a_receiver_without_buffers_goes_on_after_a_link_that_was_down() {
    let mut rig = rig(V1);
    assert!(!rig.step().want_readable, "the driver has to kick");
    rig.link.arrive(header(0, 0), &frame(60));
    rig.set_link(false);
    assert_eq!((rig.link.waiting(), rig.lost()), (0, (1, 0)));
    rig.set_link(true);
    rig.link.arrive(header(0, 0), &frame(80));
    assert!(!rig.step().want_readable);
    let posted = rig.post_rx(&[2048]);
    rig.step();
    assert_eq!(rig.received(&posted)[0].len(), 12 + 80);
}

#[test]
fn what_is_no_frame_is_still_counted_as_such_while_the_link_is_down() {
    let mut rig = rig(V1);
    rig.set_link(false);
    rig.send(&[Buf::Read(vec![0; 11])]);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(vec![0; 65536 + 19])]);
    assert_eq!((rig.tx_counters.malformed.get(), rig.tx_counters.dropped.get(), rig.lost()), (1, 1, (0, 0)));
    rig.tx.set_avail_index(1000);
    rig.step();
    assert_eq!(rig.interrupt.take_needs_reset()[0].queue, TX_QUEUE);
}

#[test]
fn commands_are_obeyed_while_the_link_is_down() {
    let mut rig = rig(ALL);
    rig.set_link(false);
    assert_eq!(rig.command(&[1, 1, 2, 0x10, 0x20, 0x30, 0x40, 0x50]), OK);
}

#[test]
fn a_link_that_fails_while_it_is_down_is_not_asked_over_and_over() {
    let mut rig = rig(V1);
    rig.post_rx(&[2048, 2048]);
    rig.link.set_broken(true);
    let step = rig.set_link(false);
    assert!(!step.again && !step.want_readable);
    rig.link.set_broken(false);
    rig.link.arrive(header(0, 0), &frame(60));
    assert!(rig.set_link(true).want_readable);
    assert_eq!(rig.rx_counters.bytes_to_guest.get(), 60);
}

#[test]
fn the_link_is_up_where_there_is_a_cable_and_a_carrier() {
    let rig = rig(ALL);
    let shown = |rig: &Rig| (rig.is_shown_up(), rig.device.is_up(), rig.device.is_plugged(), rig.device.has_carrier());
    assert_eq!(shown(&rig), (true, true, true, true));
    for (change, plug, told, seen) in [
        (false, false, true, (false, false, true, false)),
        (false, true, false, (false, false, false, false)),
        (true, false, false, (false, false, false, true)),
        (true, false, false, (false, false, false, true)),
        (true, true, true, (true, true, true, true)),
    ] {
        let generation = rig.device.config_generation();
        assert_eq!(if plug { rig.device.set_link(change) } else { rig.device.set_carrier(change) }, told);
        assert_eq!(shown(&rig), seen);
        assert_eq!(rig.device.config_generation() != generation, told, "§2.5: who has seen another state notices");
    }
}

#[test]
fn a_carrier_that_comes_back_to_a_plugged_cable_asks_for_an_announcement() {
    let mut rig = rig(ALL);
    let announcing = |rig: &Rig| rig.worker.save().card.is_some();
    rig.device.set_carrier(false);
    rig.device.set_carrier(true);
    assert!(announcing(&rig));
    assert_eq!(rig.command(&[3, 0]), OK);
    assert!(!announcing(&rig));
    rig.device.set_link(false);
    rig.device.set_carrier(false);
    rig.device.set_link(true);
    let mut status = [0];
    rig.device.read_config(6, &mut status);
    assert_eq!(status, [0], "nobody would hear it");
}

#[test]
fn the_state_of_the_cable_goes_with_the_saved_state_and_that_of_the_carrier_does_not() {
    let rig = rig(ALL);
    rig.device.set_link(false);
    rig.device.set_carrier(false);
    let saved = rig.worker.save();
    let restored = |before: bool, saved: &WorkerState| {
        let device = NetDevice::new(config());
        device.set_link(before);
        let mut worker: Box<dyn VirtioWorker<GuestRam>> = Box::new(device.worker(rig.link.clone(), Default::default()));
        worker.restore(saved).unwrap();
        assert_eq!(worker.save(), *saved);
        (device.is_plugged(), device.has_carrier())
    };
    assert_eq!((restored(true, &saved), restored(false, &saved)), ((false, true), (false, true)));
    rig.device.set_link(true);
    let saved = rig.worker.save();
    assert_eq!(saved.card, None);
    assert_eq!((restored(true, &saved), restored(false, &saved)), ((true, true), (true, true)));
}

#[test]
fn a_reset_leaves_the_cable_where_it_is() {
    let mut rig = rig(ALL);
    rig.set_link(false);
    rig.restart();
    assert!(!rig.is_shown_up());
    rig.send_one();
    assert_eq!((rig.link.take_sent().len(), rig.lost()), (0, (0, 1)));
}

/// Speed and duplex, where the card shows them (§5.1.4.1).
fn shown(speed_mbits: Option<u32>, duplex: Option<Duplex>) -> Option<(u32, u8)> {
    let device = NetDevice::new(NetConfig { speed_mbits, duplex, ..config() });
    let mut space = [0; 20];
    device.read_config(0, &mut space);
    let told = device.features() & SPEED_DUPLEX != 0;
    assert_eq!(device.config_len(), if told { 17 } else { 12 });
    assert_eq!(space[17..], [0; 3]);
    if !told {
        assert_eq!(space[12..17], [0; 5]);
    }
    told.then(|| (u32::from_le_bytes(space[12..16].try_into().unwrap()), space[16]))
}

#[test]
fn speed_and_duplex_are_shown_where_they_are_given_and_what_is_not_is_unknown() {
    assert_eq!(shown(None, None), None);
    assert_eq!(shown(Some(10_000), Some(Duplex::Full)), Some((10_000, 1)));
    assert_eq!(shown(Some(10), Some(Duplex::Half)), Some((10, 0)));
    assert_eq!(shown(Some(0x7fff_ffff), None), Some((0x7fff_ffff, 0xff)));
    assert_eq!(shown(None, Some(Duplex::Full)), Some((u32::MAX, 1)));
    assert_eq!(shown(Some(0x8000_0000), None), None, "no number a driver may see");
}

#[test]
fn speed_and_duplex_do_not_change_with_the_link() {
    let device = NetDevice::new(NetConfig { speed_mbits: Some(1000), duplex: Some(Duplex::Half), ..config() });
    for up in [false, true] {
        device.set_link(up);
        let mut fields = [0; 5];
        device.read_config(12, &mut fields);
        assert_eq!(fields, [0xe8, 3, 0, 0, 0]);
        device.write_config(12, &[9; 5]);
    }
}
