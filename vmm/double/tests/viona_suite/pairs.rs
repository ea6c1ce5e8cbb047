//! Queue pairs: several, of which the driver says how many it uses.

use std::time::Duration;

use devices::virtio::VirtioDevice as _;
use zvmm_double::viona::Config;

use super::rig::*;

/// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
fn use_pairs(card: &mut Card, pairs: u16) -> u8 {
    card.command(&[&[4, 0], &pairs.to_le_bytes()[..]].concat())
}

fn all(card: &Card) -> u64 {
    card.offered() & !(1 << 24) | VERSION_1
}

fn arrive(host: &Host1, frame: &[u8]) {
    host.far.send(&on_the_wire(frame)).unwrap();
}

#[test]
fn frames_go_by_the_pairs_that_the_driver_uses() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::with_pairs(&vm, &*host.sys, 2).unwrap();
        let mut most = [0; 2];
        card.device.read_config(8, &mut most);
        assert_eq!((u16::from_le_bytes(most), card.offered() & MQ), (2, MQ));
        card.drive(all(&card));
        for pair in [0, 1] {
            card.offer(pair);
            card.offer(pair);
        }
        // One is in use at first, whatever the flow.
        arrive(&host, &flow(1, 1));
        assert_eq!((card.received_by(0, 1), card.received_by(1, 0)), (1, 0));
        for wrong in [0, 3, u16::MAX] {
            assert_eq!(use_pairs(&mut card, wrong), 1);
        }
        assert_eq!(use_pairs(&mut card, 2), 0);
        arrive(&host, &flow(1, 2));
        arrive(&host, &flow(0, 3));
        assert_eq!((card.received_by(1, 1), card.received_by(0, 1)), (1, 1));
        for pair in [1, 0, 1, 1] {
            card.send_by(pair, &frame(OTHER, pair as u8));
            assert_eq!(sent(&host.far), frame(OTHER, pair as u8));
        }
        assert_eq!(use_pairs(&mut card, 1), 0);
        card.offer(0);
        arrive(&host, &flow(1, 4));
        assert_eq!((card.received_by(0, 1), card.received_by(1, 0)), (1, 0));
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_one_after_one_that_used_two() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::with_pairs(&vm, &*host.sys, 2).unwrap();
        for features in [all(&card), all(&card) & !MQ, all(&card), 0, all(&card)] {
            card.drive(features);
            if features & MQ != 0 {
                assert_eq!(use_pairs(&mut card, 2), 0);
                card.send_by(1, &frame(OTHER, 1));
                assert_eq!(sent(&host.far), frame(OTHER, 1));
            } else if features & CTRL_VQ != 0 {
                assert_eq!(use_pairs(&mut card, 2), 1, "it has not accepted that");
                assert_eq!(card.command(&[0, 0, 1]), 0, "its third queue is the control queue");
            }
            let arriving = flow(1, 2);
            if features & MQ == 0 {
                assert_eq!(card.receive(|| arrive(&host, &arriving)), arriving);
            }
            card.reset();
        }
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn pairs_in_use_stay_over_a_pause_and_a_cable_that_was_out() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::with_pairs(&vm, &*host.sys, 2).unwrap();
        card.drive(all(&card));
        assert_eq!(use_pairs(&mut card, 2), 0);
        let states = card.pause();
        assert_eq!(states.len(), 5);
        card.start(&states);
        card.offer(1);
        arrive(&host, &flow(1, 1));
        assert_eq!(card.received_by(1, 1), 1);
        // What the driver asks for meanwhile the kernel hears when there are rings again.
        card.device.card().set_link(false);
        card.step();
        assert_eq!(use_pairs(&mut card, 1), 0);
        assert_eq!(use_pairs(&mut card, 2), 0);
        card.device.card().set_link(true);
        card.step();
        card.offer(1);
        arrive(&host, &flow(1, 2));
        assert_eq!(card.received_by(1, 1), 1);
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn interrupts_without_a_message_are_those_of_all_pairs_in_use() {
    let config = Config { patience: Duration::from_millis(200), ..Config::default() };
    let host = host(config, Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::with_pairs(&vm, &*host.sys, 2).unwrap();
        card.drive(all(&card));
        assert_eq!(use_pairs(&mut card, 2), 0);
        for pair in [1, 0] {
            card.send_by(pair, &frame(OTHER, 1));
            sent(&host.far);
            card.wait(2 * pair + TX);
        }
        card.offer(1);
        arrive(&host, &flow(1, 2));
        card.wait(2);
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_kernel_with_one_pair_or_fewer_than_asked_for_is_refused_by_a_line() {
    let refusal = |host: &Host1, pairs| {
        let (_hypervisor, vm) = host.vm();
        Card::with_pairs(&vm, &*host.sys, pairs).err().map(|error| error.to_string())
    };
    let old = host(Config { pairs: false, ..Config::default() }, Vec::new());
    assert_eq!(
        refusal(&old, 2).unwrap(),
        "link net0: 2 queue pairs are not possible: viona has one (it lacks VNA_IOC_GET_PAIRS): use a newer platform, \
         or queues=1"
    );
    assert_eq!(refusal(&old, 1), None);
    let small = failing(Config::default(), &["VNA_IOC_SET_PAIRS:1:EINVAL"]);
    assert_eq!(
        refusal(&small, 4).unwrap(),
        "link net0: 4 queue pairs are not possible: VNA_IOC_SET_PAIRS: Invalid argument"
    );
}
