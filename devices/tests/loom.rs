//! Every interleaving of a driver and a queue over the words they share, as far as the memory model lets them: nothing
//! that is published is missed, no wish for an interrupt or a kick is lost, and a queue that is stopped and started
//! again serves every chain once.
//!
//! The queue under test is the real one: its accesses go through [`RingMem`], here made of the model checker's atomics.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_RING_PACKED, OutsideMemory, Queue, RingMem};
use loom::sync::atomic::{AtomicU16, AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

const DESC: u64 = 0x100;
const AVAIL: u64 = 0x200;
const USED: u64 = 0x300;
const SIZE: u16 = 2;
/// Where the buffers are: one word of payload each, written by the device.
const DATA: u64 = 0x1000;

/// The words both sides reach, and nothing else. The content of a split ring's table does not change in these models.
struct Words {
    short: BTreeMap<u64, AtomicU16>,
    long: BTreeMap<u64, AtomicU64>,
    defect: Defect,
}

/// What the memory takes away from the queue, so that it can be seen that the models need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// Fences do nothing.
    NoFence,
    /// Stores release nothing.
    NoRelease,
}

impl Words {
    fn split() -> Self {
        // Flags, index, entries and event of both rings; used elements are one word each.
        let size = u64::from(SIZE);
        let avail = (0..3 + size).map(|word| AVAIL + 2 * word);
        let used = [USED, USED + 2, USED + 4 + 8 * size];
        let long = (0..size).map(|entry| USED + 4 + 8 * entry);
        Self::of(avail.chain(used), long.chain((0..size).map(|buffer| DATA + 8 * buffer)))
    }

    fn packed() -> Self {
        let size = u64::from(SIZE);
        let areas = [AVAIL, AVAIL + 2, USED, USED + 2];
        Self::of(areas.into_iter(), (0..2 * size).map(|half| DESC + 8 * half).chain((0..size).map(|b| DATA + 8 * b)))
    }

    fn of(short: impl Iterator<Item = u64>, long: impl Iterator<Item = u64>) -> Self {
        Self {
            short: short.map(|addr| (addr, AtomicU16::new(0))).collect(),
            long: long.map(|addr| (addr, AtomicU64::new(0))).collect(),
            defect: Defect::None,
        }
    }

    fn short(&self, addr: u64) -> &AtomicU16 {
        self.short.get(&addr).unwrap_or_else(|| panic!("{addr:#x} is no word of this ring"))
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.defect == Defect::NoRelease { Ordering::Relaxed } else { order }
    }

    fn long(&self, addr: u64) -> &AtomicU64 {
        self.long.get(&addr).unwrap_or_else(|| panic!("{addr:#x} is no word of this ring"))
    }
}

impl RingMem for Words {
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        Ok(self.short(addr).load(order))
    }
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        self.short(addr).store(value, self.order(order));
        Ok(())
    }
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        Ok(self.long(addr).load(order))
    }
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        self.long(addr).store(value, self.order(order));
        Ok(())
    }
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        let index = (addr - DESC) / 16;
        Ok(Descriptor { addr: DATA + 8 * index, len: 8, flags: Descriptor::WRITE, next: 0 })
    }
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        self.long(addr).store(u64::from(id) | u64::from(len) << 32, Ordering::Relaxed);
        Ok(())
    }
    fn contains(&self, _addr: u64, _len: u64) -> bool {
        true
    }
    fn fence(&self, order: Ordering) {
        if self.defect != Defect::NoFence {
            fence(order);
        }
    }
}

/// A wake-up: level-like, as an eventfd or an interrupt that waits in a register.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// What both sides share.
struct Shared {
    words: Words,
    features: u64,
    kick: Bell,
    interrupt: Bell,
}

impl Shared {
    fn new((features, defect): (u64, Defect)) -> Arc<Self> {
        let words = if features & F_RING_PACKED != 0 { Words::packed() } else { Words::split() };
        let words = Words { defect, ..words };
        Arc::new(Self { words, features, kick: Bell::default(), interrupt: Bell::default() })
    }

    fn packed(&self) -> bool {
        self.features & F_RING_PACKED != 0
    }

    fn start(&self) -> QueueState {
        let next = if self.packed() { QueueState::PACKED_START } else { 0 };
        QueueState {
            size: SIZE,
            desc_table: DESC,
            avail_ring: AVAIL,
            used_ring: USED,
            next_avail: next,
            next_used: next,
        }
    }

    fn queue(&self, state: &QueueState) -> Queue {
        Queue::new(&self.words, state, self.features, SIZE).unwrap()
    }

    /// The driver makes buffer `nth` (of at most one lap) available. Says whether to kick.
    fn offer(&self, nth: u16) -> bool {
        let words = &self.words;
        let event_idx = self.features & F_EVENT_IDX != 0;
        if self.packed() {
            let at = DESC + 16 * u64::from(nth);
            words.long(at).store(DATA + 8 * u64::from(nth), Ordering::Relaxed);
            let flags = u64::from(Descriptor::WRITE | 1 << 7);
            words.long(at + 8).store(8 | u64::from(nth) << 32 | flags << 48, Ordering::Release);
            fence(Ordering::SeqCst);
            return match words.short(USED + 2).load(Ordering::Acquire) {
                0 => true,
                2 if event_idx => words.short(USED).load(Ordering::Relaxed) == nth | 1 << 15,
                _ => false,
            };
        }
        words.short(AVAIL + 4 + 2 * u64::from(nth)).store(nth, Ordering::Relaxed);
        words.short(AVAIL + 2).store(nth + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        if event_idx {
            words.short(USED + 4 + 8 * u64::from(SIZE)).load(Ordering::Relaxed) == nth
        } else {
            words.short(USED).load(Ordering::Relaxed) == 0
        }
    }

    /// Whether buffer `nth` in the order of use has come back; if so, its payload must be there, too.
    fn is_used(&self, nth: u16) -> bool {
        let words = &self.words;
        let id = if self.packed() {
            let tail = words.long(DESC + 16 * u64::from(nth) + 8).load(Ordering::Acquire);
            if tail >> 48 & 0x8080 != 0x8080 {
                return false;
            }
            assert_eq!(tail as u32, 8, "the length belongs to the flags");
            tail >> 32 & 0xffff
        } else {
            if words.short(USED + 2).load(Ordering::Acquire) <= nth {
                return false;
            }
            let element = words.long(USED + 4 + 8 * u64::from(nth)).load(Ordering::Relaxed);
            assert_eq!(element >> 32, 8);
            element & 0xffff_ffff
        };
        assert_eq!(
            words.long(DATA + 8 * id).load(Ordering::Relaxed),
            0xda7a,
            "the data is older than its used element"
        );
        true
    }

    /// The driver wants an interrupt with used buffer `nth`. `false` where it is there already.
    fn want_interrupt(&self, nth: u16) -> bool {
        let words = &self.words;
        match (self.packed(), self.features & F_EVENT_IDX != 0) {
            (true, true) => {
                words.short(AVAIL).store(nth | 1 << 15, Ordering::Relaxed);
                words.short(AVAIL + 2).store(2, Ordering::Release);
            }
            (true, false) => words.short(AVAIL + 2).store(0, Ordering::Relaxed),
            (false, true) => words.short(AVAIL + 4 + 2 * u64::from(SIZE)).store(nth, Ordering::Relaxed),
            (false, false) => words.short(AVAIL).store(0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
        !self.is_used(nth)
    }

    fn mute(&self) {
        let words = &self.words;
        match (self.packed(), self.features & F_EVENT_IDX != 0) {
            (true, _) => words.short(AVAIL + 2).store(1, Ordering::Relaxed),
            (false, true) => words.short(AVAIL + 4 + 2 * u64::from(SIZE)).store(0x7fff, Ordering::Relaxed),
            (false, false) => words.short(AVAIL).store(1, Ordering::Relaxed),
        }
    }

    /// The device answers everything it finds. How many chains that were.
    fn serve(&self, queue: &mut Queue) -> u16 {
        let mut served = 0;
        while let Some(chain) = queue.pop(&self.words).unwrap() {
            let at = chain.writable()[0].addr;
            assert_eq!((chain.writable_bytes(), at & !8), (8, DATA), "a descriptor older than its index");
            self.words.long(at).store(0xda7a, Ordering::Relaxed);
            queue.push(&self.words, chain, 8).unwrap();
            served += 1;
        }
        served
    }
}

const FORMATS: [u64; 4] = [0, F_EVENT_IDX, F_RING_PACKED, F_RING_PACKED | F_EVENT_IDX];

type Setting = (u64, Defect);

fn check(preemptions: usize, setting: Setting, run: fn(Setting)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || run(setting));
}

/// Holds in every format, and in every format the checker sees it fail with `defect`. That runs in a process of its own:
/// a deadlock of the model takes its process along.
fn holds(model: &str, defect: Defect) {
    let (_, preemptions, run) = MODELS.into_iter().find(|(name, ..)| *name == model).unwrap();
    for features in FORMATS {
        check(preemptions, (features, Defect::None), run);
        let defective = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_model_with_a_defect", "--ignored"])
            .env("LOOM_MODEL", format!("{model} {features} {defect:?}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!defective.success(), "{defect:?} goes unnoticed with features {features:#x}");
    }
}

/// A name, how many preemptions are tried, and the model.
type Model = (&'static str, usize, fn(Setting));

const MODELS: [Model; 4] =
    [("kicks", 3, kicks), ("interrupts", 3, interrupts), ("batches", 3, batches), ("stops", 2, stops)];

#[test]
#[ignore = "run by the tests beside it, which expect it to fail"]
fn one_model_with_a_defect() {
    let Ok(setting) = std::env::var("LOOM_MODEL") else { return };
    let words: Vec<&str> = setting.split(' ').collect();
    let (_, preemptions, run) = MODELS.into_iter().find(|(name, ..)| *name == words[0]).unwrap();
    let defect = [Defect::NoFence, Defect::NoRelease].into_iter().find(|it| format!("{it:?}") == words[2]).unwrap();
    check(preemptions, (words[1].parse().unwrap(), defect), run);
}

#[test]
fn no_chain_waits_for_a_kick_that_nobody_sends() {
    holds("kicks", Defect::NoFence);
}

fn kicks(setting: Setting) {
    let shared = Shared::new(setting);
    let driver = {
        let shared = shared.clone();
        thread::spawn(move || {
            for nth in 0..SIZE {
                if shared.offer(nth) {
                    shared.kick.ring();
                }
            }
        })
    };
    let mut queue = shared.queue(&shared.start());
    let mut served = 0;
    loop {
        queue.disable_kicks(&shared.words).unwrap();
        served += shared.serve(&mut queue);
        if served == SIZE {
            break;
        }
        if !queue.enable_kicks(&shared.words).unwrap() {
            // A lost kick is a deadlock here, which the checker reports.
            shared.kick.wait();
        }
    }
    driver.join().unwrap();
}

#[test]
fn no_used_buffer_waits_for_an_interrupt_that_nobody_sends() {
    holds("interrupts", Defect::NoFence);
}

fn interrupts(setting: Setting) {
    let shared = Shared::new(setting);
    for nth in 0..SIZE {
        shared.offer(nth);
    }
    shared.mute();
    let device = {
        let shared = shared.clone();
        thread::spawn(move || {
            let mut queue = shared.queue(&shared.start());
            // Two batches, so that the second finds the wish of a driver that saw the first.
            for _ in 0..SIZE {
                let chain = queue.pop(&shared.words).unwrap().unwrap();
                shared.words.long(chain.writable()[0].addr).store(0xda7a, Ordering::Relaxed);
                queue.push(&shared.words, chain, 8).unwrap();
                if queue.publish(&shared.words).unwrap() {
                    shared.interrupt.ring();
                }
            }
        })
    };
    for nth in 0..SIZE {
        while !shared.is_used(nth) {
            if shared.want_interrupt(nth) {
                shared.interrupt.wait();
            }
            shared.mute();
        }
    }
    device.join().unwrap();
}

#[test]
fn a_batch_becomes_visible_as_a_whole_with_its_data() {
    holds("batches", Defect::NoRelease);
}

fn batches(setting: Setting) {
    let shared = Shared::new(setting);
    for nth in 0..SIZE {
        shared.offer(nth);
    }
    let driver = {
        let shared = shared.clone();
        thread::spawn(move || {
            // Where the first is there, the rest of its batch is, too, each with its data.
            if shared.is_used(0) {
                assert!(shared.is_used(1));
            }
        })
    };
    let mut queue = shared.queue(&shared.start());
    assert_eq!(shared.serve(&mut queue), SIZE);
    queue.publish(&shared.words).unwrap();
    driver.join().unwrap();
}

#[test]
fn a_queue_stopped_and_started_between_kicks_serves_every_chain_once() {
    holds("stops", Defect::NoFence);
}

fn stops(setting: Setting) {
    let shared = Shared::new(setting);
    let stop = Arc::new(Mutex::new(false));
    let driver = {
        let shared = shared.clone();
        thread::spawn(move || {
            for nth in 0..SIZE {
                if shared.offer(nth) {
                    shared.kick.ring();
                }
            }
        })
    };
    let operator = {
        let (shared, stop) = (shared.clone(), stop.clone());
        thread::spawn(move || {
            *stop.lock().unwrap() = true;
            // Control messages ring the same bell as doorbells.
            shared.kick.ring();
        })
    };
    let mut queue = shared.queue(&shared.start());
    let (mut served, mut stopped) = (0, false);
    loop {
        if !stopped && *stop.lock().unwrap() {
            // State out, state in: pause and resume. The new queue knows nothing of what the old one announced, and
            // must not rely on a kick that went to the old one.
            stopped = true;
            queue.publish(&shared.words).unwrap();
            queue = shared.queue(&queue.state());
        }
        queue.disable_kicks(&shared.words).unwrap();
        served += shared.serve(&mut queue);
        if served == SIZE && stopped {
            break;
        }
        if !queue.enable_kicks(&shared.words).unwrap() {
            shared.kick.wait();
        }
    }
    assert!(queue.pop(&shared.words).unwrap().is_none(), "served once");
    queue.publish(&shared.words).unwrap();
    driver.join().unwrap();
    operator.join().unwrap();
    assert!((0..SIZE).all(|nth| shared.is_used(nth)));
}
