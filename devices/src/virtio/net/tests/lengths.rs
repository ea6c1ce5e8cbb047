//! Frames behind others of other lengths: the link is given room for as much as frames took lately.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

const FEATURES: u64 = V1 | MRG | GUEST_CSUM | GUEST_TSO4;
/// After so many frames those before them are forgotten.
const FORGOTTEN: usize = 128;

/// What a guest got of a frame of `len` bytes, without its header, and how much of it was copied.
fn receive(rig: &mut Rig, posted: &[Posted], len: usize) -> (Vec<u8>, usize) {
    rig.link.take_copied_bytes();
    rig.link.arrive(header(1, if len > 1514 { 1 } else { 0 }), &frame(len));
    rig.step();
    let bytes = rig.received(posted).concat();
    (bytes.get(12..).unwrap_or_default().to_vec(), rig.link.take_copied_bytes())
}

/// Posts buffers where there is room: mergeable ones, or each for any frame.
fn post(rig: &mut Rig, features: u64, posted: &mut Vec<Posted>) {
    while rig.rx.free() > if features & MRG != 0 { 0 } else { 18 } {
        posted.extend(match features & MRG {
            0 => vec![rig.rx.post(&[[Buf::Write(12)].as_slice(), &[const { Buf::Write(4096) }; 17]].concat())],
            _ => vec![rig.rx.post(&[Buf::Write(1536)])],
        });
    }
    rig.rx.publish();
}

#[test]
fn a_long_frame_behind_short_ones_is_copied_once_as_far_as_they_were_shorter_and_the_next_one_is_not() {
    for features in [FEATURES, FEATURES & !MRG] {
        for len in [61, 1514, 1524, 1525, 3060, 3061, 4096, 40_000, 65_536 + 18] {
            let (mut rig, mut posted) = (rig(features), Vec::new());
            for _ in 0..FORGOTTEN {
                post(&mut rig, features, &mut posted);
                assert_eq!(receive(&mut rig, &posted, 60), (frame(60), 0));
            }
            post(&mut rig, features, &mut posted);
            let (bytes, copied) = receive(&mut rig, &posted, len);
            assert_eq!(bytes, frame(len), "{features:#x}, {len}");
            assert!(copied <= len, "{copied} of {len}");
            post(&mut rig, features, &mut posted);
            assert_eq!(receive(&mut rig, &posted, len), (frame(len), 0), "{features:#x}, {len} again");
        }
    }
}

#[test]
fn short_frames_behind_a_long_one_are_given_one_buffer_each_in_the_end() {
    let (mut rig, mut posted) = (rig(FEATURES), Vec::new());
    for len in [40_000].into_iter().chain([60; FORGOTTEN]) {
        post(&mut rig, FEATURES, &mut posted);
        receive(&mut rig, &posted, len);
    }
    post(&mut rig, FEATURES, &mut posted);
    // A frame of a buffer and ten bytes: those ten were not given to the link.
    assert_eq!(receive(&mut rig, &posted, 1536 - 12 + 10), (frame(1536 - 12 + 10), 10));
}

#[test]
fn a_frame_that_is_longer_than_its_buffer_is_lost_however_much_of_it_was_given_to_the_link() {
    let (mut rig, mut posted) = (rig(FEATURES & !MRG), Vec::new());
    for len in [500, 989, 988] {
        for _ in 0..FORGOTTEN {
            posted.extend(rig.post_rx(&[1000]));
            receive(&mut rig, &posted, 60);
        }
        let dropped = rig.rx_counters.dropped.get();
        posted.extend(rig.post_rx(&[1000]));
        let (bytes, _) = receive(&mut rig, &posted, len);
        let fits = len <= 1000 - 12;
        assert_eq!(rig.rx_counters.dropped.get() - dropped, u64::from(!fits), "{len}");
        if fits {
            assert_eq!(bytes, frame(len));
        }
    }
}

#[test]
fn a_frame_that_is_longer_than_all_that_is_held_for_it_is_lost_and_the_next_one_arrives() {
    // A little more than the longest frame there is.
    let held = 43 * 1536 - 12;
    for (len, arrives) in [(held, true), (held + 1, false), (held + 2000, false)] {
        let mut rig = rig(FEATURES);
        let mut posted = rig.post_rx(&[1536; 43]);
        for _ in 0..FORGOTTEN {
            assert_eq!(receive(&mut rig, &posted, 60), (frame(60), 0));
            posted.extend(rig.post_rx(&[1536]));
        }
        let (bytes, _) = receive(&mut rig, &posted, len);
        assert_eq!(bytes, if arrives { frame(len) } else { Vec::new() }, "{len}");
        assert_eq!(rig.rx_counters.dropped.get(), u64::from(!arrives), "{len}");
        posted.extend(rig.post_rx(&[1536; 10]));
        assert_eq!(receive(&mut rig, &posted, 60).0, frame(60), "{len}");
    }
}

#[test]
fn a_driver_whose_frames_have_a_buffer_each_gets_none_of_two() {
    // Other than mergeable ones, however many are there.
    for features in [FEATURES & !MRG, FEATURES] {
        let mut rig = rig(features);
        let posted = rig.post_rx(&[2000; 40]);
        let (bytes, _) = receive(&mut rig, &posted, 3000);
        assert_eq!(bytes, if features & MRG != 0 { frame(3000) } else { Vec::new() });
        assert_eq!(receive(&mut rig, &posted, 1000).0, frame(1000));
    }
}

#[test]
fn a_driver_that_gives_buffers_without_room_for_a_header_again_and_again_does_not_keep_a_step_from_ending() {
    for features in [V1, V1 | MRG] {
        let mut rig = rig(features);
        rig.post_rx(&[4; SIZE as usize]);
        let Rig { rx, worker, mem, rx_counters, .. } = &mut rig;
        let (counters, is_over) = (rx_counters.clone(), Arc::new(AtomicBool::new(false)));
        std::thread::scope(|scope| {
            let (seen, over) = (counters.clone(), is_over.clone());
            scope.spawn(move || {
                let start = Instant::now();
                // Those that came back are offered again, before anybody has shown them to the driver.
                while !over.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(1) {
                    rx.set_avail_index((seen.malformed.get() + u64::from(SIZE)) as u16);
                }
            });
            worker.step(mem);
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(counters.malformed.get() <= 2 * u64::from(SIZE), "{} in a step", counters.malformed.get());
        assert!(rig.interrupt.take_needs_reset().is_empty());
    }
}
