//! Requests that wait for the operator in a saved machine: another process carries each of them out, once.

use proptest::prelude::*;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

use super::failures::holding;
use super::*;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};
use crate::virtio::rng::{RngBackend, RngDevice, RngError};

const EIO: BlkError = BlkError::Host(5);
const WRITE: BlkOp = BlkOp::Write { durable: false };
const OK: u8 = 0;
const IOERR: u8 = 1;
const RINGS: [u64; 4] = [0, F_IN_ORDER, F_RING_PACKED, F_RING_PACKED | F_IN_ORDER];

fn write(sector: u64, byte: u8) -> [Buf; 3] {
    [header(1, sector), Buf::Read(vec![byte; 512]), Buf::Write(1)]
}

fn flush() -> [Buf; 2] {
    [header(4, 0), Buf::Write(1)]
}

fn erase() -> Option<EraseLimits> {
    Some(EraseLimits { max_sectors: 8, max_segments: 3, alignment_sectors: 1 })
}

fn config() -> BlkConfig {
    BlkConfig {
        capacity_sectors: SECTORS as u64,
        queue_size: 8,
        on_write_error: OnError::Hold,
        on_read_error: OnError::Hold,
        discard: erase(),
        ..Default::default()
    }
}

impl Rig {
    /// The device and its worker in another process, which knows nothing.
    fn move_on(&mut self, config: BlkConfig) {
        self.device = BlkDevice::new(config);
        self.worker = Box::new(self.device.worker(0, self.disk.clone(), Arc::default()));
    }

    /// Goes on in another process with what is saved, as it is written and read.
    fn restore(&mut self, saved: &WorkerState) {
        self.move_on(config());
        let written = serde_json::to_string(saved).unwrap();
        self.worker.restore(&serde_json::from_str(&written).unwrap()).unwrap();
    }
}

/// A queue with a write to sector 1 that is held, and where it stands.
fn with_held(features: u64) -> (Rig, Posted, QueueState, WorkerState) {
    let (mut rig, _) = holding(OnError::Hold, OnError::Hold, features);
    rig.disk.fail_next(EIO);
    let posted = rig.post(&write(1, 7));
    let state = rig.pause();
    let saved = rig.worker.save();
    (rig, posted, state, saved)
}

#[test]
fn held_requests_outlast_the_process_wherever_the_ring_stands_and_are_answered_once() {
    for features in RINGS.map(|ring| MODERN | FLUSH | ring) {
        let in_order = features & F_IN_ORDER != 0;
        let (mut rig, heard) = holding(OnError::Hold, OnError::Hold, features);
        // A lap and more of the ring, which the wrap counters have to survive.
        for round in 0u64..20 {
            let (held, other) = (round as u8 + 1, round as u8 + 101);
            rig.disk.fail_next(EIO);
            let first = rig.post(&write(1, held));
            // It is done meanwhile: a packed ring has its used descriptor where the held chain was. In order it waits.
            let second = rig.post(&write(2, other));
            let before: Vec<_> = rig.driver.used().iter().map(|used| used.head).collect();
            assert_eq!(before, if in_order { vec![] } else { vec![u32::from(second.head)] });
            let state = rig.pause();
            let saved = rig.worker.save();
            assert_eq!(saved.version, 2);
            rig.disk.take_log();
            rig.restore(&saved);
            assert_eq!(rig.worker.save(), saved, "nothing has happened in the other process yet");
            rig.go_on(state, features);
            assert_eq!(rig.disk.take_log(), [WRITE], "it is asked for once");
            let after: Vec<_> = rig.driver.used().iter().map(|used| used.head).collect();
            let all: [u32; 2] = [first.head.into(), second.head.into()];
            assert_eq!(after, if in_order { all.to_vec() } else { vec![first.head.into()] });
            let status = |posted: &Posted| rig.driver.read(posted.buffers[2])[0];
            assert_eq!([status(&first), status(&second)], [OK; 2]);
            let bytes = rig.disk.bytes();
            assert_eq!((bytes[512], bytes[1024]), (held, other));
            // What is done is held no more.
            rig.pause();
            assert_eq!(rig.worker.save().held, None);
            let at = rig.worker.save();
            assert_eq!(at.version, 1);
            let (mut fresh, _) = holding(OnError::Hold, OnError::Hold, features);
            std::mem::swap(&mut fresh.disk, &mut rig.disk);
            std::mem::swap(&mut fresh.worker, &mut rig.worker);
            // Each round begins on a queue of its own, one descriptor further on.
            rig = fresh;
            rig.move_on(config());
            rig.start(features);
            for _ in 0..round {
                assert_eq!(rig.status(&flush()), OK);
            }
            assert_eq!(heard.take().len(), usize::from(round == 0));
        }
    }
}

#[test]
fn a_request_that_fails_again_in_the_other_process_is_held_and_saved_again() {
    for features in RINGS.map(|ring| MODERN | FLUSH | ring) {
        let (mut rig, posted, mut state, mut saved) = with_held(features);
        for _ in 0..3 {
            rig.restore(&saved);
            rig.disk.fail_next(EIO);
            rig.go_on(state, features);
            assert_eq!(rig.driver.used(), []);
            state = rig.pause();
            assert_eq!(std::mem::replace(&mut saved, rig.worker.save()), saved, "nothing else has changed");
        }
        rig.restore(&saved);
        rig.go_on(state, features);
        assert_eq!(rig.driver.used().len(), 1);
        assert_eq!(rig.driver.read(posted.buffers[2]), [OK]);
        assert_eq!(rig.status(&flush()), OK);
    }
}

#[test]
fn a_driver_that_writes_over_its_request_meanwhile_changes_nothing() {
    for features in RINGS.map(|ring| MODERN | FLUSH | ring) {
        let (mut rig, posted, state, saved) = with_held(features);
        // The header asks for another sector, and the descriptors for other memory.
        rig.mem.write_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 9], GuestAddress(posted.buffers[0].addr)).unwrap();
        for index in 0..8 {
            rig.driver.write_descriptor(index, Descriptor { addr: u64::MAX, len: 77, flags: 0, next: 0 });
        }
        rig.restore(&saved);
        rig.go_on(state, features);
        assert_eq!(rig.driver.read(posted.buffers[2]), [OK]);
        assert_eq!(rig.disk.bytes()[512..1024], [7; 512]);
    }
}

#[test]
fn of_several_segments_only_those_that_are_left_are_saved() {
    let features = MODERN | FLUSH | 1 << 13;
    let (mut rig, _) = holding(OnError::Hold, OnError::Hold, features);
    rig.move_on(config());
    rig.start(features);
    rig.disk.fill(0, &[9; SECTORS * 512]);
    rig.disk.hold(true);
    let segments = [1, 4, 6].map(|sector| {
        let Buf::Read(bytes) = segment(sector, 1, 0) else { unreachable!() };
        bytes
    });
    let posted = rig.post(&[header(11, 0), Buf::Read(segments.concat()), Buf::Write(1)]);
    rig.disk.fail_next(EIO);
    assert!(rig.disk.complete(0));
    rig.step();
    assert!(rig.disk.complete(0));
    rig.step();
    rig.disk.hold(false);
    let state = rig.pause();
    let saved = rig.worker.save();
    // A sector that is erased already has another owner by now.
    rig.disk.fill(512, &[9; 512]);
    rig.disk.take_log();
    rig.restore(&saved);
    rig.go_on(state, features);
    assert_eq!(rig.disk.take_log(), [BlkOp::Discard; 2]);
    assert_eq!(rig.driver.read(posted.buffers[2]), [OK]);
    let zero: Vec<usize> = (0..SECTORS).filter(|n| rig.disk.bytes()[n * 512] == 0).collect();
    assert_eq!(zero, [4, 6]);
}

#[test]
fn a_restored_request_behind_the_end_of_a_smaller_disk_is_an_error_and_never_reaches_it() {
    let (mut rig, posted, state, saved) = with_held(MODERN | FLUSH);
    rig.restore(&saved);
    rig.device.set_capacity(1);
    rig.disk.take_log();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.disk.take_log(), []);
    assert_eq!(rig.driver.read(posted.buffers[2]), [IOERR]);
}

#[test]
fn a_driver_that_starts_anew_has_nothing_to_do_with_what_was_restored() {
    for features in [MODERN | FLUSH, MODERN | FLUSH | F_RING_PACKED] {
        let (mut rig, _, state, saved) = with_held(features);
        rig.disk.take_log();
        // The machine was reset before its queues ran.
        rig.restore(&saved);
        rig.start(features);
        rig.step();
        assert_eq!((rig.driver.used(), rig.disk.take_log()), (vec![], vec![]));
        assert_eq!(rig.status(&flush()), OK);
        rig.pause();
        assert_eq!(rig.worker.save().held, None);
        // And a reset of the queue where it stands makes an end of it.
        rig.restore(&saved);
        rig.worker.forget(0);
        rig.disk.take_log();
        rig.go_on(state, features);
        assert_eq!(rig.disk.take_log(), []);
    }
}

#[test]
fn requests_that_were_brought_are_counted_where_they_end() {
    let (mut rig, _, state, saved) = with_held(MODERN | FLUSH);
    rig.move_on(config());
    let stats = Arc::new(BlkStats::new(true));
    let clock = Arc::new(crate::legacy::clock::ManualClock::new(0));
    let worker = rig.device.worker(0, rig.disk.clone(), rig.counters.clone()).with_stats(stats.clone(), clock);
    rig.worker = Box::new(worker);
    let before = rig.counters.snapshot();
    rig.worker.restore(&saved).unwrap();
    rig.go_on(state, MODERN | FLUSH);
    let (after, found) = (rig.counters.snapshot(), stats.snapshot());
    assert_eq!((after.chains - before.chains, after.completions - before.completions), (1, 1));
    assert_eq!((found.ops.write, found.in_flight, found.in_flight_max), (1, 0, 1));
    let latency = found.latency.unwrap();
    assert_eq!([latency.queued, latency.disk, latency.injected, latency.total].map(|phase| phase.count), [1; 4]);
}

#[test]
fn states_of_before_are_taken_and_a_version_says_what_is_there() {
    let old = r#"{"version":1,"from_guest":[],"to_guest":[],"unsettled":true,"lost":false}"#;
    let mut rig = rig(config(), MODERN);
    rig.worker.restore(&serde_json::from_str(old).unwrap()).unwrap();
    assert!(!rig.device.is_settled());
    let (_, _, _, saved) = with_held(MODERN | FLUSH);
    for bad in [WorkerState { version: 1, ..saved.clone() }, WorkerState { held: None, ..saved.clone() }] {
        assert!(rig.worker.restore(&bad).is_err());
    }
    struct NoNumbers;
    impl RngBackend for NoNumbers {
        fn fill(&mut self, _buf: &mut [u8]) -> Result<(), RngError> {
            Ok(())
        }
    }
    let generator = RngDevice.worker(NoNumbers, Arc::default());
    let mut generator: Box<dyn VirtioWorker<GuestRam>> = Box::new(generator);
    assert!(generator.restore(&saved).is_err(), "no other device keeps requests");
}

/// `value` with what `path` leads to replaced.
fn with(value: &Value, path: &str, new: Value) -> Value {
    let mut value = value.clone();
    *value.pointer_mut(path).expect(path) = new;
    value
}

/// Has another process take `state`, and says whether it refused it, or had its driver reset the device.
fn is_refused(rig: &mut Rig, state: &Value, at: QueueState, features: u64) -> bool {
    rig.move_on(config());
    rig.interrupt.take_needs_reset();
    let Ok(state) = serde_json::from_value(state.clone()) else { return true };
    if rig.worker.restore(&state).is_err() {
        assert_eq!(rig.worker.save().held, None, "refused, and yet taken");
        return true;
    }
    let activation = rig.interrupt.activation(features);
    rig.worker.start(&rig.mem, 0, at, &activation);
    !rig.interrupt.take_needs_reset().is_empty()
}

#[test]
fn chains_that_cannot_be_in_flight_are_refused() {
    let chain = "/held/flight/chains/0";
    let work = "/held/work/0/0";
    let max = Value::from(u64::MAX);
    for features in RINGS.map(|ring| MODERN | FLUSH | ring) {
        let (mut rig, _, at, saved) = with_held(features);
        let state = serde_json::to_value(&saved).unwrap();
        assert!(!is_refused(&mut rig, &state, at, features), "nothing is wrong with it");
        rig.step();
        assert_eq!(rig.driver.used().len(), 1);
        rig.disk.take_log();
        let buffer = |addr: u64, len: u32| serde_json::json!({ "addr": addr, "len": len });
        let mut twice = state.clone();
        for list in ["/held/flight/chains", "/held/work"] {
            let list = twice.pointer_mut(list).unwrap().as_array_mut().unwrap();
            list.push(list[0].clone());
        }
        let several = vec![buffer(0, 512); 20];
        for (what, bad) in [
            ("one chain twice", twice),
            ("a head outside the ring", with(&state, &format!("{chain}/head"), 8.into())),
            ("no descriptors", with(&state, &format!("{chain}/slots"), 0.into())),
            ("more descriptors than the ring", with(&state, &format!("{chain}/slots"), 9.into())),
            ("a buffer outside memory", with(&state, &format!("{chain}/readable/1"), buffer(u64::MAX - 100, 512))),
            ("a buffer that is longer than memory", with(&state, &format!("{chain}/readable/1"), buffer(0, u32::MAX))),
            ("more buffers than the ring", with(&state, &format!("{chain}/readable"), several.into())),
            ("no status", with(&state, &format!("{chain}/writable"), Vec::<Value>::new().into())),
            ("no header", with(&state, &format!("{chain}/readable"), Vec::<Value>::new().into())),
            ("other bytes than the chain has", with(&state, &format!("{work}/len_bytes"), 1024.into())),
            ("half a sector", with(&state, &format!("{work}/offset_bytes"), 5.into())),
            ("an end beyond all numbers", with(&state, &format!("{work}/offset_bytes"), (u64::MAX - 511).into())),
            (
                "an erasure that is not offered",
                with(
                    &state,
                    &format!("{work}/op"),
                    serde_json::json!({
                        "WriteZeroes": { "unmap": false, "durable": false }
                    }),
                ),
            ),
            ("a read into nothing", with(&state, &format!("{work}/op"), "Read".into())),
            ("no work", with(&state, "/held/work/0", Vec::<Value>::new().into())),
            ("work without a chain", with(&state, "/held/flight/chains", Vec::<Value>::new().into())),
            ("numbers that are none", with(&state, &format!("{chain}/head"), max.clone())),
            (
                "a turn that nobody has",
                with(
                    &state,
                    "/held/flight/done",
                    serde_json::json!([
                        { "turn": 5, "head": 3, "id": 3, "slots": 1, "len": 0 }
                    ]),
                ),
            ),
        ] {
            assert!(is_refused(&mut rig, &bad, at, features), "{what}, with {features:#x}");
            rig.step();
            assert_eq!((rig.disk.take_log(), rig.driver.used()), (vec![], vec![]), "{what}");
            // The device works after a reset.
            rig.worker.begin_stop(&rig.mem);
            assert!(rig.worker.poll_stopped(&rig.mem, true));
            rig.worker.take_state(0);
            let driver = DriverQueue::new(&rig.mem, 0x18_0000, 8, features);
            let activation = rig.interrupt.activation(features);
            rig.worker.start(&rig.mem, 0, driver.state(), &activation);
            let before = std::mem::replace(&mut rig.driver, driver);
            assert_eq!(rig.status(&flush()), OK, "{what}");
            rig.driver = before;
            rig.disk.take_log();
        }
        // Where the positions have no room for it, it is not of this ring.
        let none = QueueState { next_avail: at.next_used, ..at };
        let bad = with(&state, "/held/flight/at/next_avail", none.next_avail.into());
        assert!(is_refused(&mut rig, &bad, none, features));
        // At another place the queue runs without it.
        assert!(!is_refused(&mut rig, &state, QueueState { next_avail: at.next_avail ^ 1, ..at }, features));
        assert_eq!(rig.disk.take_log(), []);
    }
}

/// All numbers and lists in a tree.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Array(list) => {
            found.push(at.to_owned());
            list.iter().enumerate().for_each(|(nth, value)| paths(value, &format!("{at}/{nth}"), found));
        }
        Value::Object(map) => map.iter().for_each(|(name, value)| paths(value, &format!("{at}/{name}"), found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_saved_state_says_no_buffer_comes_back_twice_and_the_device_works_after_a_reset(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0u64..20, any::<u64>()]), 1..4),
        ring in prop::sample::select(RINGS.to_vec()),
        fail in any::<bool>(),
    ) {
        let features = MODERN | FLUSH | ring;
        let (mut rig, _) = holding(OnError::Hold, OnError::Hold, features);
        rig.disk.fail_next(EIO);
        rig.post(&write(1, 7));
        rig.disk.fail_next(EIO);
        rig.post(&flush());
        rig.post(&write(2, 8));
        rig.driver.used();
        let mut at = rig.pause();
        let mut state = serde_json::to_value(rig.worker.save()).unwrap();
        for (which, new) in changes {
            let mut all = Vec::new();
            paths(&state, "", &mut all);
            let path = which.get(&all);
            match state.pointer_mut(path).unwrap() {
                // An element fewer, or one twice.
                Value::Array(list) if list.is_empty() => {}
                Value::Array(list) if new % 2 == 0 => drop(list.pop()),
                Value::Array(list) => list.push(list[new as usize % list.len()].clone()),
                number => *number = new.into(),
            }
        }
        if let Some(stands) = state.pointer("/held/flight/at")
            && let Ok(stands) = serde_json::from_value::<QueueState>(stands.clone())
        {
            at = stands;
        }
        if !is_refused(&mut rig, &state, at, features) {
            if fail {
                rig.disk.fail_next(EIO);
            }
            rig.step();
            let mut heads: Vec<_> = rig.driver.used().iter().map(|used| used.head).collect();
            heads.sort_unstable();
            let all = heads.len();
            heads.dedup();
            // A state that lies about where the used ring is shows its driver what lies there.
            prop_assert!(all == heads.len() || at.next_used > 8, "{heads:?}");
            let state = rig.pause();
            rig.go_on(state, features);
        }
        // The first driver after it meets the failure that was ordered, where that was left.
        for _ in 0..2 {
            rig.worker.begin_stop(&rig.mem);
            prop_assert!(rig.worker.poll_stopped(&rig.mem, true));
            rig.worker.take_state(0);
            rig.device.go_on();
            rig.start(features);
            rig.post(&flush());
        }
        rig.driver.used();
        prop_assert_eq!(rig.status(&flush()), OK);
        prop_assert_eq!(rig.status(&write(3, 9)), OK);
        prop_assert_eq!(&rig.disk.bytes()[3 * 512..4 * 512], [9; 512]);
    }
}
