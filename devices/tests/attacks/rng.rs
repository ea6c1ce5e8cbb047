//! Attacks on the entropy device.

use std::sync::atomic::Ordering::Relaxed;

use devices::virtio::queue::Descriptor;
use devices::virtio::testing::Buf;

use super::rig::{RAM, SIZE, formats, offer_raw, rng};

#[test]
fn firecracker_5762_the_length_of_an_entropy_request_is_not_the_size_of_an_allocation() {
    for features in formats() {
        let mut rig = rng(features);
        let packed = features & devices::virtio::queue::F_RING_PACKED != 0;
        let mut chain = vec![Descriptor { addr: 0, len: RAM as u32, flags: 3, next: 0 }; usize::from(SIZE)];
        chain[7].flags = 2;
        // Eight times all of memory would fill the driver's rings with random bytes; the last piece lies elsewhere.
        chain.iter_mut().for_each(|desc| desc.addr = 1 << 32);
        offer_raw(&mut rig.driver, packed, &chain);
        rig.step();
        let used = rig.driver.used();
        assert_eq!((used.len(), used[0].len), (1, 4096));
        assert_eq!(rig.dice.asked.load(Relaxed), 4096);
        rig.revive();
    }
}

#[test]
fn firecracker_5794_a_request_that_cannot_be_answered_does_not_stall_the_ones_behind_it() {
    for features in formats() {
        let mut rig = rng(features);
        rig.driver.post(&[Buf::Read(vec![1; 8])]);
        rig.driver.post(&[Buf::Write(0)]);
        let good = rig.driver.post(&[Buf::Write(8)]);
        rig.driver.publish();
        rig.step();
        let used = rig.driver.used();
        assert_eq!((used.len(), used[2].head, used[2].len), (3, good.head.into(), 8));
        // A source that fails holds requests back without a spin, and gives them up at reset.
        rig.dice.broken.store(true, Relaxed);
        rig.driver.post(&[Buf::Write(8)]);
        rig.driver.publish();
        rig.step();
        assert!(rig.driver.used().is_empty());
        rig.revive();
    }
}
