//! Attacks on start, stop, save and restore.

use devices::virtio::QueueState;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, Queue};
use devices::virtio::testing::{Buf, guest_ram};
use proptest::prelude::*;

use super::rig::{RAM, SIZE, disk, formats, header, stop};

#[test]
fn cve_2019_14835_a_pause_over_a_hostile_ring_saves_a_state_that_works_or_is_refused() {
    for features in formats() {
        let mut rig = disk(features);
        rig.disk.hold(true);
        rig.driver.post(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
        rig.driver.publish();
        rig.step();
        // While a request is in flight the driver breaks the ring.
        if rig.packed() {
            rig.driver.place(devices::virtio::queue::Descriptor { addr: RAM, len: 1, flags: 0, next: 0 }, 9);
        } else {
            rig.driver.offer(0xffff);
        }
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
        assert!(rig.disk.complete(0));
        let state = rig.stop(false);
        assert_eq!(rig.driver.used().len(), 1, "what the disk had done is not lost");
        // The restored queue finds the same fault, and says so again.
        rig.worker.start(&rig.mem, 0, state, &rig.interrupt.activation(rig.features));
        rig.step();
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
        rig.revive();
    }
}

#[test]
fn propolis_a_completion_after_the_reset_writes_nothing() {
    for features in formats() {
        let mut rig = disk(features);
        rig.disk.hold(true);
        let posted = rig.driver.post(&[header(4, 0), Buf::Write(1)]);
        rig.driver.publish();
        rig.step();
        stop(&mut *rig.worker, &rig.mem, true);
        rig.disk.complete(0);
        let before = rig.driver.state();
        rig.start();
        rig.step();
        assert!(rig.driver.used().is_empty());
        assert_eq!(rig.driver.read(posted.buffers[1]), [0xee], "no status of a request that was given up");
        assert_eq!(rig.driver.state(), before);
        rig.revive();
    }
}

proptest! {
    #[test]
    fn cve_2013_4149_firecracker_5909_a_hostile_saved_queue_is_refused_or_runs(
        size in prop_oneof![0..=SIZE, any::<u16>()],
        areas in prop::array::uniform3(prop_oneof![0..RAM, any::<u64>()]),
        aligned in any::<bool>(),
        next_avail in any::<u16>(),
        next_used in any::<u16>(),
        features in prop::sample::select(vec![
            0, F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_RING_PACKED | F_EVENT_IDX, F_RING_PACKED | 1 << 35, 1 << 35,
        ]),
        noise in prop::collection::vec(any::<u64>(), 64),
    ) {
        let mem = guest_ram(RAM as usize);
        let align = |addr: u64| if aligned { addr & !0xfff } else { addr };
        let [desc_table, avail_ring, used_ring] = areas.map(align);
        let state = QueueState { size, desc_table, avail_ring, used_ring, next_avail, next_used };
        if let Ok(mut queue) = Queue::new(&mem, &state, features, SIZE) {
            prop_assert_eq!(queue.state(), state);
            for (i, word) in (0u64..).zip(noise) {
                use vm_memory::Bytes;
                let _ = mem.write_obj(word, vm_memory::GuestAddress(desc_table.wrapping_add(8 * i)));
            }
            for _ in 0..20 {
                match queue.pop(&mem) {
                    Ok(Some(chain)) => {
                        let len = chain.writable_bytes();
                        if queue.push(&mem, chain, len).is_err() { break }
                        let _ = queue.publish(&mem);
                    }
                    Ok(None) => { let _ = queue.enable_kicks(&mem); }
                    Err(_) => break,
                }
            }
        }
    }
}
