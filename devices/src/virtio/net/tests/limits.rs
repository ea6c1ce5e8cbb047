//! Rate limits of a card, by direction: in simulated time, over a link that takes and gives at once.

use super::*;
use crate::legacy::clock::{Clock, ManualClock};
use crate::virtio::limit::{Meters, Rate, Throttle};
use crate::wake::{Wake, WakeCounter};

const SECOND_NS: u64 = 1_000_000_000;

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: Some(burst) })
}

/// A card limited by these meters, of what it receives and of what it sends.
fn limited(receive: &Meters, send: &Meters, clock: &Arc<ManualClock>) -> Rig {
    let mut rig = rig(V1 | MRG);
    let throttle = |meters: &Meters| Throttle::new(std::slice::from_ref(meters), clock.clone());
    let counters = [rig.rx_counters.clone(), rig.tx_counters.clone(), rig.control_counters.clone()];
    let worker = rig.device.worker(rig.link.clone(), counters);
    rig.worker = Box::new(worker.with_throttles(throttle(receive), throttle(send)));
    rig.start([rig.rx.state(), rig.tx.state(), rig.control.state()]);
    rig
}

impl Rig {
    /// Fills the transmit ring with frames of `len` bytes, lets the worker look, and says how many it sent.
    fn busy_sender(&mut self, len: usize) -> (u64, Step) {
        while self.tx.free() > 0 {
            self.tx.post_indirect(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(len))]);
        }
        self.tx.publish();
        let step = self.worker.step(&self.mem);
        self.tx.used();
        (self.link.take_sent().len() as u64, step)
    }

    /// The same of frames that wait in the link, for a driver with buffers for all of them.
    fn busy_receiver(&mut self, len: usize) -> (u64, Step) {
        while self.rx.free() > 0 {
            self.rx.post(&[Buf::Write(2048)]);
        }
        self.rx.publish();
        while self.link.waiting() < 100 {
            self.link.arrive(header(0, 0), &frame(len));
        }
        let step = self.worker.step(&self.mem);
        (self.rx.used().len() as u64, step)
    }
}

/// Frames moved in ten seconds by who never runs dry.
fn ten_seconds(rig: &mut Rig, clock: &ManualClock, mut busy: impl FnMut(&mut Rig) -> (u64, Step)) -> u64 {
    let mut moved = 0;
    while clock.monotonic_ns() < 10 * SECOND_NS {
        let (frames, step) = busy(rig);
        moved += frames;
        if let Some(at_ns) = step.wake_at_ns {
            assert!(!step.again && !step.want_readable && at_ns > clock.monotonic_ns(), "{step:?}");
            clock.advance_ns(at_ns - clock.monotonic_ns());
        }
    }
    moved
}

#[test]
fn over_ten_seconds_each_direction_moves_what_its_limits_say() {
    let none = Meters::default();
    for (meters, expected) in [
        (Meters::new(rate(1000, 300), None), 10_300),
        // 256 frames' worth, and 1024 of them a second.
        (Meters::new(None, rate(1000 << 10, 250 << 10)), 10_250),
        (Meters::new(rate(500, 10), rate(1000 << 10, 250 << 10)), 5010),
        (Meters::new(rate(5000, 10), rate(1000 << 10, 250 << 10)), 10_250),
    ] {
        let clock = Arc::new(ManualClock::new(0));
        let sent = ten_seconds(&mut limited(&none, &meters, &clock), &clock, |rig| rig.busy_sender(1024));
        assert!(sent.abs_diff(expected) <= expected / 100, "{sent} sent, not {expected}");
        let (clock, fresh) = (Arc::new(ManualClock::new(0)), refilled(&meters, expected));
        let received = ten_seconds(&mut limited(&fresh, &none, &clock), &clock, |rig| rig.busy_receiver(1024));
        assert!(received.abs_diff(expected) <= expected / 100, "{received} received, not {expected}");
    }
}

/// The same meters, as nobody has taken from them.
fn refilled(_used: &Meters, expected: u64) -> Meters {
    match expected {
        10_300 => Meters::new(rate(1000, 300), None),
        5010 => Meters::new(rate(500, 10), rate(1000 << 10, 250 << 10)),
        _ => Meters::new(None, rate(1000 << 10, 250 << 10)),
    }
}

#[test]
fn one_direction_is_not_held_back_by_the_other() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&Meters::new(rate(1, 1), None), &Meters::default(), &clock);
    rig.busy_receiver(60);
    let (sent, step) = rig.busy_sender(60);
    assert_eq!((sent, step.wake_at_ns.is_some()), (64, true));
    let mut rig = limited(&Meters::default(), &Meters::new(rate(1, 1), None), &clock);
    rig.busy_sender(60);
    assert_eq!(rig.busy_receiver(60).0, 64);
}

#[test]
fn a_burst_goes_at_once_and_the_next_frame_waits_where_it_is() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&Meters::new(rate(10, 5), None), &Meters::default(), &clock);
    let (received, step) = rig.busy_receiver(60);
    assert_eq!((received, step.wake_at_ns, rig.link.waiting()), (5, Some(SECOND_NS / 10), 95));
    clock.advance_ns(SECOND_NS / 10 - 1);
    assert_eq!(rig.busy_receiver(60), (0, step), "whatever wakes the worker before the time");
    clock.advance_ns(1);
    assert_eq!(rig.busy_receiver(60).0, 1);
    assert_eq!((rig.rx_counters.throttled.get(), rig.tx_counters.throttled.get()), (3, 0));

    let mut rig = limited(&Meters::default(), &Meters::new(rate(10, 5), None), &clock);
    let (sent, step) = rig.busy_sender(60);
    assert_eq!((sent, step.wake_at_ns), (5, Some(clock.monotonic_ns() + SECOND_NS / 10)));
    rig.tx.post_indirect(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert!(!rig.tx.publish(), "a kick would be in vain");
    assert_eq!(rig.tx_counters.throttled.get(), 1);
}

#[test]
fn a_limit_that_holds_no_frame_back_wakes_nobody_and_asks_for_kicks() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&Meters::default(), &Meters::new(rate(10, 2), None), &clock);
    for _ in 0..2 {
        rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    }
    rig.tx.publish();
    assert_eq!(rig.worker.step(&rig.mem).wake_at_ns, None);
    assert_eq!((rig.link.take_sent().len(), rig.tx_counters.throttled.get()), (2, 0));
    rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert!(rig.tx.publish(), "the driver kicks");
    assert!(rig.worker.step(&rig.mem).wake_at_ns.is_some());
}

#[test]
fn a_frame_that_waits_for_the_link_is_paid_for_once() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&Meters::default(), &Meters::new(rate(1, 2), None), &clock);
    rig.link.set_full(true);
    rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    rig.tx.publish();
    for _ in 0..10 {
        assert!(rig.worker.step(&rig.mem).want_writable);
    }
    rig.link.set_full(false);
    assert_eq!(rig.busy_sender(60).0, 2, "the one that waited and another one");
}

#[test]
fn the_pairs_of_a_card_share_its_limits_fairly() {
    let clock = Arc::new(ManualClock::new(0));
    let meters = Meters::new(rate(1000, 100), None);
    let wakes: Vec<Arc<dyn Wake>> = (0..2).map(|_| -> Arc<dyn Wake> { Arc::<WakeCounter>::default() }).collect();
    let device = NetDevice::new(config()).with_pairs(wakes);
    let mem = guest_ram(0x40_0000);
    let (links, interrupt) = (MemoryLink::of_pairs(2), RecordingInterrupt::new());
    let mut workers: Vec<_> = (0..2u16)
        .map(|pair| {
            let throttle = Throttle::new(std::slice::from_ref(&meters), clock.clone());
            let worker = device.further_tx_worker(pair, links[usize::from(pair)].clone(), Arc::default());
            worker.with_throttles(Throttle::default(), throttle)
        })
        .collect();
    let mut drivers: Vec<_> = (1..3).map(|window| DriverQueue::new(&mem, window << 20, SIZE, V1)).collect();
    for (pair, (worker, driver)) in (0..).zip(workers.iter_mut().zip(&drivers)) {
        let worker: &mut dyn VirtioWorker<GuestRam> = worker;
        worker.start(&mem, 2 * pair + 1, driver.state(), &interrupt.activation(V1));
    }
    let (mut sent, mut wake_at_ns) = ([0; 2], [0; 2]);
    while clock.monotonic_ns() < 10 * SECOND_NS {
        for pair in 0..2 {
            let driver = &mut drivers[pair];
            while driver.free() > 0 {
                driver.post_indirect(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
            }
            driver.publish();
            if wake_at_ns[pair] <= clock.monotonic_ns() {
                let step = workers[pair].step(&mem);
                wake_at_ns[pair] = step.wake_at_ns.unwrap_or(0);
            }
            driver.used();
            sent[pair] += links[pair].take_sent().len();
        }
        let next_ns: u64 = *wake_at_ns.iter().min().unwrap();
        clock.advance_ns(next_ns.saturating_sub(clock.monotonic_ns()));
    }
    assert!((sent[0] + sent[1]).abs_diff(10_100) <= 100, "{sent:?}");
    assert!(sent[0].abs_diff(sent[1]) <= 200, "{sent:?}");
}

#[test]
fn what_is_limited_survives_a_pause_and_a_reset() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&Meters::new(rate(10, 5), None), &Meters::new(rate(10, 5), None), &clock);
    assert_eq!((rig.busy_receiver(60).0, rig.busy_sender(60).0), (5, 5));
    let states = rig.pause();
    rig.start(states);
    assert_eq!((rig.busy_receiver(60).0, rig.busy_sender(60).0), (0, 0));
    rig.restart();
    assert_eq!((rig.busy_receiver(60).0, rig.busy_sender(60).0), (0, 0), "a driver is not faster by resets");
    clock.advance_ns(SECOND_NS);
    assert_eq!((rig.busy_receiver(60).0, rig.busy_sender(60).0), (6, 6), "a burst, beside the turn that was booked");
}
