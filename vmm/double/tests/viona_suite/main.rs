//! A card in the kernel, by the real code of device model and bhyve backend, on the double of viona.

#![cfg(target_os = "linux")]

mod damages;
mod failures;
mod pairs;
mod params;
mod reception;
mod rig;

use devices::virtio::VirtioDevice as _;
use rig::*;
use zvmm::hypervisor::Vm as _;
use zvmm_double::viona::Config;

/// Everything that a driver of Linux accepts of what is offered.
fn all(card: &Card) -> u64 {
    card.offered() & !(1 << 24) | VERSION_1
}

#[test]
fn frames_go_both_ways_through_rings_of_a_modern_driver() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        for content in 0..50 {
            card.send(&frame(OTHER, content));
            assert_eq!(sent(&host.far), frame(OTHER, content));
            let arriving = frame(MAC, content);
            assert_eq!(card.receive(|| drop(host.far.send(&on_the_wire(&arriving)))), arriving);
        }
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn frames_go_both_ways_through_rings_of_a_legacy_driver() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(0);
        card.send(&frame(OTHER, 1));
        assert_eq!(sent(&host.far), frame(OTHER, 1));
        let arriving = frame(MAC, 2);
        assert_eq!(card.receive(|| drop(host.far.send(&on_the_wire(&arriving)))), arriving);
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn what_is_offered_is_what_the_kernel_carries_and_what_takes_no_queue() {
    let host = host(Config::default(), Vec::new());
    let (_hypervisor, vm) = host.vm();
    let card = Card::new(&vm, &*host.sys).unwrap();
    // CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE, INDIRECT.
    let bits = [0, 1, 3, 5, 7, 11, 15, 16, 17, 18, 21, 28];
    assert_eq!(card.offered(), bits.iter().map(|bit| 1 << bit).sum::<u64>());
}

#[test]
fn frames_are_as_long_as_the_links_mtu_which_the_guest_is_told() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        let mut mtu = [0; 2];
        card.device.read_config(10, &mut mtu);
        assert_eq!(u16::from_le_bytes(mtu), 9000);
        card.drive(all(&card));
        let long = [frame(OTHER, 5), vec![6; 9014 - 74]].concat();
        card.send(&long);
        assert_eq!(sent(&host.far), long);
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn an_interrupt_without_a_message_reaches_the_guest_by_the_worker_and_with_one_never() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        card.send(&frame(OTHER, 1));
        sent(&host.far);
        card.wait(TX);
        card.interrupt_with(RX, Some(0x41));
        card.interrupt_with(TX, Some(0x42));
        card.step();
        for content in 0..20 {
            card.send(&frame(OTHER, content));
            sent(&host.far);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        card.step();
        assert_eq!(card.interrupt.take_used(), [0; 0], "the kernel sends it itself");
        // Masked again: the next one waits for the worker, which looks from then on.
        card.interrupt_with(TX, None);
        card.send(&frame(OTHER, 3));
        sent(&host.far);
        card.wait(TX);
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_paused_card_goes_on_where_it_stood() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        for round in 0..5u8 {
            card.send(&frame(OTHER, round));
            assert_eq!(sent(&host.far), frame(OTHER, round));
            let arriving = frame(MAC, round);
            assert_eq!(card.receive(|| drop(host.far.send(&on_the_wire(&arriving)))), arriving);
            let states = card.pause();
            let next: Vec<_> =
                states.iter().map(|(queue, state)| (*queue, state.next_avail, state.next_used)).collect();
            let moved = u16::from(round) + 1;
            assert_eq!(next, [(RX, moved, moved), (TX, moved, moved), (CONTROL, 0, 0)]);
            card.start(&states);
        }
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_queue_is_reset_while_the_other_goes_on() {
    use devices::virtio::VirtioWorker as _;
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        card.send(&frame(OTHER, 1));
        sent(&host.far);
        assert!(card.worker.reset_queue(&card.mem, TX));
        let arriving = frame(MAC, 2);
        assert_eq!(card.receive(|| drop(host.far.send(&on_the_wire(&arriving)))), arriving);
        card.queues[usize::from(TX)] = devices::virtio::testing::DriverQueue::new(&card.mem, 8 << 20, 256, all(&card));
        let state = card.queues[usize::from(TX)].state();
        card.start(&[(TX, state)]);
        card.send(&frame(OTHER, 3));
        assert_eq!(sent(&host.far), frame(OTHER, 3));
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_driver_gets_frames_to_others_only_while_it_asks_for_them() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        let both = |card: &mut Card, first: [u8; 6]| {
            let far = host.far.try_clone().unwrap();
            card.receive(move || {
                far.send(&on_the_wire(&frame(OTHER, 1))).unwrap();
                far.send(&on_the_wire(&frame(first, 2))).unwrap();
            })
        };
        assert_eq!(both(&mut card, MAC), frame(MAC, 2));
        assert_eq!(both(&mut card, [0xff; 6]), frame([0xff; 6], 2));
        assert_eq!(both(&mut card, [1, 0, 0x5e, 1, 1, 1]), frame([1, 0, 0x5e, 1, 1, 1], 2));
        assert_eq!(card.command(&[0, 0, 1]), 0, "promiscuous");
        assert_eq!(both(&mut card, MAC), frame(OTHER, 1));
        assert_eq!(card.command(&[0, 0, 0]), 0, "not any more");
        let left = card.receive(|| ());
        assert_eq!(left, frame(MAC, 2));
        assert_eq!(both(&mut card, MAC), frame(MAC, 2));
        let table = [&[1, 0][..], &1u32.to_le_bytes(), &OTHER, &0u32.to_le_bytes()].concat();
        assert_eq!(card.command(&table), 0, "another address of its own");
        assert_eq!(both(&mut card, MAC), frame(OTHER, 1));
        // A filter of VLANs, another address and offloads that come and go are not the kernel's: not offered, so refused.
        for refused in [&[2, 0, 7, 0][..], &[1, 1, 2, 2, 2, 2, 2, 2], &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(card.command(refused), 1);
        }
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn rings_stand_still_while_the_cable_is_out() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        assert!(card.device.card().set_link(false));
        card.step();
        card.send(&frame(OTHER, 1));
        host.far.set_nonblocking(true).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(host.far.recv(&mut [0; 100]).is_err());
        host.far.set_nonblocking(false).unwrap();
        assert!(card.device.card().set_link(true));
        card.step();
        assert_eq!(sent(&host.far), frame(OTHER, 1));
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_ring_that_is_no_ring_never_reaches_the_kernel() {
    use devices::virtio::VirtioWorker as _;
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        card.drive(all(&card));
        card.reset();
        card.interrupt.take_needs_reset();
        let sound = card.queues[usize::from(RX)].state();
        let modern = card.interrupt.activation(VERSION_1);
        let wrong = [
            devices::virtio::QueueState { size: 0, ..sound },
            devices::virtio::QueueState { size: 3, ..sound },
            devices::virtio::QueueState { size: 2048, ..sound },
            devices::virtio::QueueState { desc_table: sound.desc_table + 8, ..sound },
            devices::virtio::QueueState { avail_ring: sound.avail_ring + 1, ..sound },
            devices::virtio::QueueState { used_ring: sound.used_ring + 2, ..sound },
            devices::virtio::QueueState { desc_table: 16 << 20, ..sound },
            devices::virtio::QueueState { desc_table: (16 << 20) - 16, ..sound },
            devices::virtio::QueueState { avail_ring: u64::MAX - 1, ..sound },
            devices::virtio::QueueState { used_ring: 0xfee0_0000, ..sound },
        ];
        for state in wrong {
            card.worker.start(&card.mem, RX, state, &modern);
            let told = card.interrupt.take_needs_reset();
            assert_eq!(told.len(), 1, "{state:x?}");
            card.reset();
        }
        // All that a legacy driver's kernel is told is where the first part lies.
        let legacy = card.interrupt.activation(0);
        for state in [
            devices::virtio::QueueState { size: 512, ..sound },
            devices::virtio::QueueState { used_ring: sound.used_ring + 4096, ..sound },
        ] {
            card.worker.start(&card.mem, RX, state, &legacy);
            assert_eq!(card.interrupt.take_needs_reset().len(), 1, "{state:x?}");
            card.reset();
        }
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn a_kernel_that_cannot_watch_doorbells_is_kicked() {
    let host = host(Config { notify_mmio: false, mtu: false, ..Config::default() }, Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        assert_eq!(card.offered() & 1 << 3, 0, "and one without an MTU shows none");
        card.drive(all(&card));
        for content in 0..250 {
            card.send(&frame(OTHER, content));
            sent(&host.far);
        }
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

/// As the double's `--record` has it: a kernel that watches no doorbell, so that its rules ask for none.
#[test]
fn a_recorded_machine_is_kicked_as_often_as_its_guest_rings() {
    use zvmm::hypervisor::{Hypervisor, VmSpec};
    use zvmm_double::record::{Record, Recording};
    let host = host(Config { notify_mmio: false, ..Config::default() }, Vec::new());
    let config = zvmm::hypervisor::bhyve::BhyveConfig { name: "guest".to_owned(), reservoir: false };
    {
        let inner = zvmm::hypervisor::bhyve::BhyveHypervisor::open(host.sys.clone(), config).unwrap();
        let recording = Recording::new(Box::new(inner), Record::new(Vec::new()));
        let ram = vec![(0, 16 << 20)];
        let vm =
            recording.create_vm(&VmSpec { name: "guest".to_owned(), ram, ram_options: Default::default() }).unwrap();
        let mut card = Card::with_pairs(&*vm, &*host.sys, 2).unwrap();
        card.drive(all(&card));
        assert_eq!(card.command(&[4, 0, 2, 0]), 0);
        for content in 0..250 {
            card.send_by(u16::from(content) % 2, &frame(OTHER, content));
            sent(&host.far);
        }
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn the_zones_next_process_takes_vm_and_link_over() {
    let first = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = first.vm();
        let mut card = Card::new(&vm, &*first.sys).unwrap();
        card.drive(all(&card));
        card.send(&frame(OTHER, 1));
        sent(&first.far);
        // The guest reset itself: its process ends, and leaves the VM to another one.
        card.reset();
        vm.leave(true);
    }
    first.process.end();
    let second = first.next();
    {
        let (_hypervisor, vm) = second.vm();
        assert!(vm.ram_is_used(), "the same VM");
        let mut card = Card::new(&vm, &*second.sys).unwrap();
        card.drive(all(&card));
        card.send(&frame(OTHER, 2));
        assert_eq!(sent(&second.far), frame(OTHER, 2));
        card.reset();
    }
    second.process.end();
    assert_eq!((second.broken(), second.process.leaks().len()), (vec![], 0));
}

#[test]
fn what_cannot_be_attached_is_refused_by_a_line() {
    let refusal = |host: &Host1| {
        let (_hypervisor, vm) = host.vm();
        Card::new(&vm, &*host.sys).err().map(|error| error.to_string())
    };
    let old = host(Config { modern: false, ..Config::default() }, Vec::new());
    assert_eq!(
        refusal(&old).unwrap(),
        "viona has no rings of modern virtio (VNA_IOC_RING_INIT_MODERN): use a newer platform"
    );
    let taken = host(Config::default(), Vec::new());
    let (_hypervisor, vm) = taken.vm();
    let _first = Card::new(&vm, &*taken.sys).unwrap();
    assert_eq!(
        Card::new(&vm, &*taken.sys).err().unwrap().to_string(),
        "link net0: VNA_IOC_CREATE: Device busy: something else has it: an IP interface (ipadm show-if) or \
         another VM"
    );
}
