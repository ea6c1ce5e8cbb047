//! Frames that come one at a time, by a link whose waiter hears of each.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::virtio::queue::GuestRange;

/// A link that says so, and counts how often it is asked for a frame.
struct Telling {
    link: MemoryLink,
    asked: Arc<AtomicUsize>,
}

impl NetBackend<GuestRam> for Telling {
    fn send(&mut self, mem: &GuestRam, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        self.link.send(mem, header, frame)
    }

    fn receive(
        &mut self,
        mem: &GuestRam,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.link.receive(mem, header, into, spill)
    }

    fn tells_of_every_frame(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        NetBackend::<GuestRam>::set_offloads(&mut self.link, offloads)
    }
}

fn telling() -> (Rig, Arc<AtomicUsize>) {
    let (mut rig, asked) = (rig(V1 | MRG), Arc::<AtomicUsize>::default());
    let link = Telling { link: rig.link.clone(), asked: asked.clone() };
    rig.worker = Box::new(rig.device.worker(link, Default::default()));
    rig.restart();
    rig.post_rx(&[2000; 60]);
    (rig, asked)
}

/// How often the link is asked in a step in which so many frames are there, and how many come of it.
fn step(rig: &mut Rig, asked: &AtomicUsize, frames: usize) -> (usize, usize) {
    (0..frames).for_each(|_| rig.link.arrive(header(0, 0), &frame(60)));
    let before = asked.load(Ordering::Relaxed);
    assert!(rig.step().want_readable, "whoever waits hears of the next frame");
    let came = rig.rx.used().len();
    rig.post_rx(&vec![2000; came]);
    (asked.load(Ordering::Relaxed) - before, came)
}

#[test]
fn a_link_is_not_asked_for_another_frame_where_they_come_one_at_a_time() {
    let (mut rig, asked) = telling();
    for _ in 0..4 {
        assert_eq!(step(&mut rig, &asked, 1), (2, 1));
    }
    for _ in 0..63 {
        assert_eq!(step(&mut rig, &asked, 1), (1, 1));
    }
    assert_eq!(step(&mut rig, &asked, 1), (2, 1), "now and then it is");
    assert_eq!(step(&mut rig, &asked, 1), (1, 1));
}

#[test]
fn frames_that_come_together_after_that_all_arrive_and_are_taken_together_again() {
    let (mut rig, asked) = telling();
    for _ in 0..8 {
        step(&mut rig, &asked, 1);
    }
    let mut left = 100;
    assert_eq!(step(&mut rig, &asked, left), (1, 1));
    left -= 1;
    let mut steps = 0;
    while left > 0 {
        let (_, came) = step(&mut rig, &asked, 0);
        assert!(came > 0, "{left} frames are left alone");
        left -= came;
        steps += 1;
    }
    assert!(steps <= 70, "{steps} rounds");
    assert_eq!(step(&mut rig, &asked, 3), (4, 3));
}

#[test]
fn a_link_that_does_not_tell_of_every_frame_is_asked_until_it_has_none() {
    let mut rig = rig(V1 | MRG);
    let posted = rig.post_rx(&[2000; 20]);
    for _ in 0..10 {
        rig.link.arrive(header(0, 0), &frame(60));
        rig.step();
    }
    (0..5).for_each(|_| rig.link.arrive(header(0, 0), &frame(60)));
    rig.step();
    assert_eq!((rig.received(&posted).len(), rig.link.waiting()), (15, 0));
}
