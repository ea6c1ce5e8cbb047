//! A card that answers its guest's DHCP and ARP requests itself: how requests leave the transmit queue, and answers come
//! through the receive queue. What the answers are is for the responder's own tests.

use super::*;
use crate::virtio::net::responder::{Lease, MAX_ANSWER_BYTES, Responder};
use crate::wake::WakeCounter;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CTRL_RX: u64 = 1 << 17 | 1 << 18;

fn device() -> (NetDevice, Arc<WakeCounter>) {
    let wake = Arc::new(WakeCounter::default());
    let lease = Lease::new([10, 0, 0, 5].into(), [255, 0, 0, 0].into());
    (NetDevice::new(config()).with_responder(Responder::new(&lease).unwrap(), wake.clone()), wake)
}

fn card(features: u64) -> (Rig, Arc<WakeCounter>) {
    let (device, wake) = device();
    (rig_around(device, features), wake)
}

/// A DHCP message of this type; `xid` is its transaction.
fn dhcp(kind: u8, xid: u8) -> Vec<u8> {
    let mut frame =
        [&[0xff; 6][..], &MAC, &[8, 0, 0x45, 0, 1, 20, 0, 0, 0, 0, 64, 17, 0, 0], &[0; 4], &[0xff; 4]].concat();
    frame.extend([0, 68, 0, 67, 1, 0, 0, 0, 1, 1, 6, 0, xid, xid, xid, xid]);
    frame.resize(14 + 20 + 8 + 236, 0);
    frame.extend([99, 130, 83, 99, 53, 1, kind, 255]);
    frame.resize(14 + 276, 0);
    frame
}

fn arp(target: [u8; 4]) -> Vec<u8> {
    [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &[10, 0, 0, 5], &[0; 6], &target].concat()
}

const SERVER: [u8; 4] = [169, 254, 169, 254];

impl Rig {
    fn send_frame(&mut self, frame: &[u8]) {
        self.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame.to_vec())]);
    }
}

/// The transaction an answer is about.
fn xid_of(answer: &[u8]) -> u8 {
    answer[14 + 28 + 4]
}

#[test]
fn a_request_is_answered_through_the_receive_queue_and_does_not_go_to_the_link() {
    for (features, header_bytes) in [(V1, 12), (V1 | MRG, 12), (MRG, 12), (0, 10)] {
        let (mut rig, wake) = card(features);
        let posted = rig.post_rx(&[1526; 4]);
        let driver_header = &header(0, 0)[..header_bytes];
        rig.send(&[Buf::Read(driver_header.to_vec()), Buf::Read(dhcp(1, 7))]);
        assert_eq!(wake.take(), 1, "the receiver is told");
        rig.step();
        let received = rig.received(&posted);
        let (head, answer) = received[0].split_at(header_bytes);
        let buffers = if header_bytes == 12 { 1 } else { 0 };
        assert_eq!(head[..10], [0; 10], "whole, and its checksums complete");
        assert!(head[10..].iter().map(|byte| usize::from(*byte)).eq([buffers, 0].into_iter().take(header_bytes - 10)));
        assert_eq!((answer.len(), xid_of(answer), &answer[..6]), (MAX_ANSWER_BYTES, 7, &MAC[..]));
        assert_eq!((rig.link.take_sent(), rig.tx.used().len()), (vec![], 1));
        assert_eq!((rig.tx_counters.answered.get(), rig.tx_counters.swallowed.get()), (1, 0));
        assert_eq!(rig.tx_counters.bytes_from_guest.get(), dhcp(1, 7).len() as u64);
        assert_eq!(rig.rx_counters.bytes_to_guest.get(), MAX_ANSWER_BYTES as u64);
    }
}

#[test]
fn a_request_is_heard_however_it_is_cut() {
    let (mut rig, _) = card(V1 | MRG);
    let bytes = [&header(0, 0)[..], &dhcp(3, 9)].concat();
    for cuts in [
        vec![290 + 12],
        vec![1, 302],
        vec![12, 12 + 82, 302],
        vec![12 + 13, 12 + 37, 302],
        (0..=60).map(|n| 2 + n * 5).collect(),
    ] {
        let posted = rig.post_rx(&[1526]);
        let mut from = 0;
        let bufs: Vec<Buf> =
            cuts.iter().map(|&to| Buf::Read(bytes[std::mem::replace(&mut from, to)..to].into())).collect();
        match bufs.len() {
            61 => drop(rig.tx.post_indirect(&bufs)),
            _ => drop(rig.tx.post(&bufs)),
        }
        rig.tx.publish();
        rig.step();
        rig.step();
        assert_eq!(rig.received(&posted).len(), 1, "cut at {cuts:?}");
        rig.tx.used();
    }
    assert_eq!(rig.link.take_sent(), []);
}

#[test]
fn what_is_for_the_server_and_has_no_answer_is_counted_and_goes_nowhere() {
    let (mut rig, wake) = card(V1);
    let posted = rig.post_rx(&[1526; 4]);
    let inform = dhcp(8, 1);
    // More than is read of a request.
    let mut long = dhcp(1, 1);
    long[16..18].copy_from_slice(&2000u16.to_be_bytes());
    long[38..40].copy_from_slice(&1980u16.to_be_bytes());
    long.resize(14 + 2000, 0);
    for frame in [&inform, &long, &dhcp(1, 1)[..100].to_vec()] {
        rig.send_frame(frame);
    }
    rig.step();
    assert_eq!((rig.link.take_sent(), rig.received(&posted), wake.take()), (vec![], vec![], 0));
    assert_eq!((rig.tx_counters.answered.get(), rig.tx_counters.swallowed.get()), (0, 3));
    assert_eq!(rig.tx.used().len(), 3);
}

#[test]
fn other_frames_go_to_the_link_as_they_are() {
    let (mut rig, _) = card(V1);
    let posted = rig.post_rx(&[1526; 4]);
    let mut tagged = dhcp(1, 1);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mut to_client = dhcp(1, 1);
    to_client[37] = 68;
    let frames = [arp([10, 0, 0, 1]), tagged, to_client, frame(1), frame(13), frame(81), frame(82), frame(9000)];
    for frame in &frames {
        rig.send_frame(frame);
    }
    rig.step();
    let sent: Vec<Vec<u8>> = rig.link.take_sent().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!((sent, rig.received(&posted)), (frames.to_vec(), vec![]));
    assert_eq!((rig.tx_counters.answered.get(), rig.tx_counters.swallowed.get()), (0, 0));
}

#[test]
fn a_card_without_a_responder_sends_requests_to_the_link() {
    let mut rig = rig(V1);
    rig.send_frame(&dhcp(1, 1));
    rig.send_frame(&arp(SERVER));
    assert_eq!(rig.link.take_sent().len(), 2);
}

#[test]
fn an_arp_request_for_the_server_has_its_answer() {
    let (mut rig, _) = card(V1);
    let posted = rig.post_rx(&[1526; 4]);
    rig.send_frame(&arp(SERVER));
    rig.step();
    let received = rig.received(&posted);
    assert_eq!((received[0].len(), &received[0][12 + 28..12 + 32]), (12 + 42, &SERVER[..]));
    assert_eq!(rig.link.take_sent(), []);
}

#[test]
fn an_answer_waits_for_buffers_and_a_later_one_takes_its_place() {
    let (mut rig, _) = card(V1 | MRG);
    for xid in 1..=3 {
        rig.send_frame(&dhcp(1, xid));
    }
    assert_eq!((rig.tx_counters.answered.get(), rig.tx_counters.dropped.get()), (3, 2));
    rig.step();
    let posted = rig.post_rx(&[1526; 4]);
    rig.step();
    let received = rig.received(&posted);
    assert_eq!((received.len(), xid_of(&received[0][12..])), (1, 3));
}

#[test]
fn an_answer_follows_the_rules_of_every_frame() {
    // As many buffers as it needs.
    let (mut rig, _) = card(V1 | MRG);
    let posted = rig.post_rx(&[100; 7]);
    rig.send_frame(&dhcp(1, 1));
    rig.step();
    let lens: Vec<usize> = rig.received(&posted).iter().map(Vec::len).collect();
    assert_eq!(lens, [100, 100, 100, 100, 100, 100, 2]);
    // Fewer than it needs, for now: it waits, and nothing overtakes it.
    let mut posted = rig.post_rx(&[100; 5]);
    rig.send_frame(&dhcp(1, 1));
    rig.link.arrive(header(0, 0), &frame(60));
    rig.step();
    let first = rig.rx_counters.dropped.get();
    posted.extend(rig.post_rx(&[1526; 2]));
    rig.step();
    let received = rig.received(&posted);
    assert_eq!((first, received.last().map(Vec::len)), (0, Some(72)), "{received:?}");
    // Without mergeable buffers one that is too small is used up, and the answer lost, as with any frame.
    let (mut rig, _) = card(V1);
    let posted = rig.post_rx(&[200, 1526]);
    for _ in 0..2 {
        rig.send_frame(&dhcp(1, 1));
        rig.step();
    }
    let lens: Vec<usize> = rig.received(&posted).iter().map(Vec::len).collect();
    assert_eq!((lens, rig.rx_counters.dropped.get()), (vec![0, 12 + MAX_ANSWER_BYTES], 1));
}

#[test]
fn an_answer_passes_the_drivers_filter_and_mtu_or_is_lost() {
    let (mut rig, _) = card(V1 | CTRL_RX);
    let posted = rig.post_rx(&[1526; 4]);
    // Promiscuous mode off: only what goes to the card's address.
    rig.control.post(&[Buf::Read(vec![0, 0, 0]), Buf::Write(1)]);
    rig.control.publish();
    rig.step();
    let mut foreign = dhcp(1, 1);
    foreign[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    for frame in [foreign, dhcp(1, 2)] {
        rig.send_frame(&frame);
        rig.step();
    }
    let received = rig.received(&posted);
    assert_eq!((received.len(), xid_of(&received[0][12..]), rig.rx_counters.filtered.get()), (1, 2, 1));

    let (device, _) = device();
    let narrow = NetConfig { mtu: Some(500), ..config() };
    let lease = Lease::new([10, 0, 0, 5].into(), [255, 0, 0, 0].into());
    let narrow =
        NetDevice::new(narrow).with_responder(Responder::new(&lease).unwrap(), Arc::new(WakeCounter::default()));
    for (device, lost) in [(device, 0), (narrow, 1)] {
        let mut rig = rig_around(device, V1 | 1 << 3);
        rig.post_rx(&[1526; 4]);
        rig.send_frame(&dhcp(1, 1));
        rig.step();
        assert_eq!(rig.rx_counters.dropped.get(), lost);
    }
}

#[test]
fn a_link_that_is_full_or_broken_does_not_keep_the_answer_away() {
    let (mut rig, _) = card(V1);
    let posted = rig.post_rx(&[1526; 4]);
    rig.link.set_full(true);
    rig.send_frame(&dhcp(1, 1));
    rig.step();
    rig.link.set_broken(true);
    rig.send_frame(&dhcp(1, 2));
    rig.step();
    assert_eq!(rig.received(&posted).len(), 2);
}

#[test]
fn who_asks_on_and_on_still_receives_what_others_send() {
    let (mut rig, _) = card(V1);
    let posted = rig.post_rx(&[1526; 32]);
    for xid in 0..10 {
        rig.link.arrive(header(0, 0), &frame(60));
        rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(dhcp(1, xid))]);
        rig.tx.publish();
        rig.worker.step(&rig.mem);
    }
    assert_eq!(rig.link.waiting(), 0);
    assert_eq!(rig.received(&posted).len(), 10 + 9, "an answer a round");
}

#[test]
fn an_answer_that_waits_goes_with_the_saved_state_and_is_forgotten_with_a_reset() {
    for elsewhere in [false, true] {
        let (mut rig, _) = card(V1);
        rig.send_frame(&dhcp(1, 7));
        let states = rig.pause();
        let state = rig.worker.save();
        let text = format!("{:?}", state.card);
        assert!(text.contains("next_ip_id: 1"), "{text}");
        if elsewhere {
            rig.worker = Box::new(device().0.worker(rig.link.clone(), Default::default()));
            rig.worker.restore(&state).unwrap();
            assert_eq!(rig.worker.save(), state);
        }
        rig.start(states);
        let posted = rig.post_rx(&[1526; 4]);
        rig.step();
        rig.send_frame(&dhcp(1, 8));
        rig.step();
        let received = rig.received(&posted);
        let seen: Vec<_> = received.iter().map(|bytes| (xid_of(&bytes[12..]), bytes[12 + 19])).collect();
        assert_eq!(seen, [(7, 0), (8, 1)], "transactions, and the packets' numbers");
    }
    let (mut rig, _) = card(V1);
    rig.send_frame(&dhcp(1, 7));
    rig.restart();
    let posted = rig.post_rx(&[1526; 4]);
    rig.step();
    assert_eq!(rig.received(&posted), [] as [Vec<u8>; 0]);
}

#[test]
fn saved_answers_that_are_none_are_refused() {
    let (mut rig, _) = card(V1);
    rig.send_frame(&dhcp(1, 7));
    rig.pause();
    let state = rig.worker.save();
    let mut without = NetDevice::new(config()).worker(MemoryLink::default(), Default::default());
    let without: &mut dyn VirtioWorker<GuestRam> = &mut without;
    assert!(without.restore(&state).is_err(), "by a card without a responder");
    let mut long = state.clone();
    let answers = long.card.as_mut().and_then(|card| card.answers.as_mut()).unwrap();
    answers.lengthen();
    assert!(rig.worker.restore(&long).is_err(), "an answer that is longer than any");
    assert!(rig.worker.restore(&state).is_ok());
    // One of a process that knew no responders: nothing waits.
    assert!(rig.worker.restore(&WorkerState::default()).is_ok());
    assert_eq!(rig.worker.save(), WorkerState::default());
}

#[test]
fn two_workers_share_the_responder() {
    let (device, wake) = device();
    let (mem, link, interrupt) = (guest_ram(0x40_0000), MemoryLink::default(), RecordingInterrupt::new());
    let mut sender = device.tx_worker(link.clone(), Arc::default());
    let mut receiver = device.rx_worker(link.clone(), Arc::default(), Arc::default());
    let mut rx = DriverQueue::new(&mem, 0x10_0000, SIZE, V1);
    let mut tx = DriverQueue::new(&mem, 0x20_0000, SIZE, V1);
    receiver.start(&mem, RX_QUEUE, rx.state(), &interrupt.activation(V1));
    sender.start(&mem, TX_QUEUE, tx.state(), &interrupt.activation(V1));
    rx.post(&[Buf::Write(1526)]);
    rx.publish();
    assert!(receiver.step(&mem).want_readable);
    tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(dhcp(3, 4))]);
    tx.publish();
    sender.step(&mem);
    assert_eq!((wake.take(), rx.used().len(), tx.used().len()), (1, 0, 1));
    receiver.step(&mem);
    assert_eq!(rx.used().len(), 1);
}

#[test]
fn while_the_link_is_down_nobody_is_answered_and_an_answer_that_waits_is_lost() {
    let (mut rig, wake) = card(V1);
    rig.send_frame(&dhcp(1, 7));
    assert_eq!(wake.take(), 1, "it waits for a buffer");
    rig.device.set_link(false);
    rig.step();
    assert_eq!(rig.rx_counters.link_down.get(), 1);
    rig.send_frame(&arp(SERVER));
    assert_eq!((wake.take(), rig.tx_counters.link_down.get(), rig.tx_counters.answered.get()), (0, 1, 1));
    rig.device.set_link(true);
    let posted = rig.post_rx(&[1526; 2]);
    rig.step();
    assert!(rig.received(&posted).is_empty());
    rig.send_frame(&dhcp(1, 9));
    rig.step();
    assert_eq!(xid_of(&rig.received(&posted)[0][12..]), 9);
}
