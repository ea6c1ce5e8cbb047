//! Programs for a virtqueue alone: a driver, the device's half of a ring, and no device.

use std::fmt::Write;

use devices::virtio::QueueState;
use devices::virtio::queue::{
    Chain, Descriptor, F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, Queue, QueueError,
};

use super::ops::edge;
use super::{KNOBS, MAX_OPS, RECORD};
use crate::finding;
use crate::machine::driver::Driver;
use crate::machine::home;
use crate::machine::ram::{HIGH_BYTES, HIGH_START, LOW_BYTES, Ram};
use crate::oracle::{Device, Oracles, resources};

/// Where the driver's window of guest memory begins.
const BASE: u64 = 0x1_0000;
/// The device's maximum.
const MAX_SIZE: u16 = 128;

struct Rig {
    ram: Ram,
    oracles: std::sync::Arc<crate::lone::Lone<Oracles>>,
    driver: Driver,
    features: u64,
    queue: Option<Queue>,
    flying: Vec<(Chain, u16)>,
    /// The chain popped last may be put back: nothing was pushed since.
    fresh: bool,
}

impl Rig {
    fn state(&self) -> QueueState {
        let next = if self.driver.packed { QueueState::PACKED_START } else { 0 };
        let Driver { size, desc, avail, used, .. } = self.driver;
        QueueState { size, desc_table: desc, avail_ring: avail, used_ring: used, next_avail: next, next_used: next }
    }

    fn start(&mut self, state: &QueueState) {
        self.oracles.open().rings.start(&self.ram, 0, state, self.features, (MAX_SIZE, false));
        let made = Queue::new(&self.ram, state, self.features, MAX_SIZE);
        let refused = self.oracles.open().rings.may_refuse(0);
        match made {
            Ok(queue) if !refused || self.oracles.open().rings.blind() => self.queue = Some(queue),
            Err(_) if refused => self.queue = None,
            Ok(_) => finding!("spec", "a ring with a bad layout is accepted: {state:x?}"),
            Err(error) => finding!("spec", "a ring with a good layout is refused: {error}"),
        }
    }

    fn stop(&mut self, abandon: bool) -> Option<QueueState> {
        self.flying.drain(..).for_each(|(chain, _)| chain.abandon());
        let state = self.queue.take().map(|queue| queue.state());
        self.oracles.open().rings.stopped(0, state, abandon, false);
        state
    }

    /// The driver has broken a rule, and the queue says so.
    fn refused(&mut self, error: &QueueError) {
        let oracles = self.oracles.open();
        if !oracles.rings.may_refuse(0) {
            finding!("spec", "the queue refuses what breaks no rule: {error}");
        }
        drop(oracles);
        self.stop(true);
    }

    fn pop(&mut self) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let before = self.oracles.open().rings.flying(0).len();
        let (count, bytes) = resources::allocations();
        let popped = queue.pop(&self.ram);
        let now = resources::allocations();
        if now.0 - count > 8 || now.1 - bytes > 64 * u64::from(MAX_SIZE) {
            finding!("resources", "a pop makes {} allocations of {} bytes", now.0 - count, now.1 - bytes);
        }
        match popped {
            Ok(Some(chain)) => {
                let oracles = self.oracles.open();
                let rings = &oracles.rings;
                let id = if rings.blind() {
                    0
                } else {
                    let Some(model) = rings.flying(0).last() else {
                        finding!("spec", "a chain is popped that the model did not see")
                    };
                    let same = |ranges: &[devices::virtio::queue::GuestRange], model: &[(u64, u32)]| {
                        ranges.len() == model.len()
                            && ranges
                                .iter()
                                .zip(model)
                                .all(|(range, (addr, len))| (range.addr, range.len) == (*addr, *len))
                    };
                    if !same(chain.readable(), &model.readable) || !same(chain.writable(), &model.writable) {
                        finding!(
                            "spec",
                            "popped {chain:x?} where the driver offered {model:x?}{}",
                            oracles.fetches.note()
                        );
                    }
                    model.id
                };
                drop(oracles);
                self.flying.push((chain, id));
                self.fresh = true;
                true
            }
            Ok(None) => {
                let oracles = self.oracles.open();
                let moved = oracles.rings.flying(0).len() != before;
                if !oracles.rings.blind() && (moved || oracles.rings.has_more(&self.ram, 0)) {
                    finding!("spec", "the queue does not find the chain that is there");
                }
                false
            }
            Err(error) => {
                self.refused(&error);
                false
            }
        }
    }

    fn push(&mut self, nth: usize, len: u32) {
        let Some(queue) = self.queue.as_mut().filter(|_| !self.flying.is_empty()) else { return };
        let (chain, id) = self.flying.remove(nth % self.flying.len());
        self.fresh = false;
        {
            let mut oracles = self.oracles.open();
            let mut same = oracles.rings.flying_mut(0).iter_mut().filter(|model| model.id == id && !model.leaving);
            if let Some(model) = same.next() {
                model.leaving = true;
            }
        }
        let len = u64::from(len).min(chain.writable_bytes());
        if let Err(error) = queue.push(&self.ram, chain, len) {
            finding!("spec", "a chain in flight cannot be given back: {error}");
        }
    }

    fn publish(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        match queue.publish(&self.ram) {
            Ok(true) => self.oracles.open().rings.interrupted(0),
            Ok(false) => {}
            Err(error) => finding!("spec", "used buffers cannot be shown: {error}"),
        }
        self.oracles.open().rings.step_ended(&[0], true);
    }

    fn unpop(&mut self) {
        let Some(queue) = self.queue.as_mut().filter(|_| self.fresh) else { return };
        if let Some((chain, _)) = self.flying.pop() {
            queue.unpop(chain);
            self.oracles.open().rings.put_back(0);
            self.fresh = false;
            // A chain is put back and taken again in different steps only.
            self.publish();
        }
    }

    fn kicks(&mut self, wanted: bool) {
        let Some(queue) = &mut self.queue else { return };
        let result = match wanted {
            true => queue.enable_kicks(&self.ram),
            false => queue.disable_kicks(&self.ram).map(|()| false),
        };
        if let Err(error) = result {
            finding!("spec", "kicks cannot be asked for: {error}");
        }
    }

    fn place(&mut self, record: &[u8; RECORD], hostile: bool) {
        let [_, a, b, c, v @ ..] = *record;
        let v = u32::from_le_bytes(v);
        let mut chain = [Descriptor::default(); 20];
        let count = [3, 1, 2, 3, 4, 6, 9, 17][usize::from(b & 7)];
        let mut state = v ^ u32::from(c) << 16 | 1;
        let mut write = 0;
        for (i, desc) in chain.iter_mut().take(count).enumerate() {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if hostile && state & 3 == 0 || !hostile && i > 0 {
                write = Descriptor::WRITE;
            }
            let len = if hostile && state >> 8 & 7 == 0 { edge(state) as u32 } else { state >> 16 & 0xff };
            let odd = if hostile && state >> 4 & 15 == 0 { (state >> 9 & 7) as u16 } else { 0 };
            let addr = match (hostile, state >> 12 & 7) {
                (true, 0) => [LOW_BYTES, LOW_BYTES - 16, HIGH_START - 8, u64::MAX, self.driver.desc, self.driver.used]
                    [(state >> 20) as usize % 6],
                (_, 1) => HIGH_START + u64::from(state) % HIGH_BYTES / 2,
                _ => 0x8_0000 + u64::from(state >> 8 & 0xff00),
            };
            *desc = Descriptor { addr, len, flags: write ^ odd, next: (state >> 3) as u16 & 31 };
        }
        if a & 1 == 0 {
            self.driver.place(&self.ram, &chain[..count]);
            return;
        }
        let table = self.driver.buffer(16 * count as u32);
        for (i, desc) in chain[..count].iter().enumerate() {
            let last = i + 1 == count;
            let desc = match self.driver.packed {
                true => Descriptor { flags: 0, next: desc.flags, ..*desc },
                false if last => *desc,
                false => Descriptor { flags: desc.flags | Descriptor::NEXT, next: i as u16 + 1, ..*desc },
            };
            self.ram.poke(table + 16 * i as u64, &desc.to_bytes());
        }
        let len = if hostile && c & 7 == 7 { edge(v) as u32 } else { 16 * count as u32 };
        let whole = Descriptor { addr: table, len, flags: Descriptor::INDIRECT, next: 0 };
        self.driver.place(&self.ram, &[whole]);
    }

    fn step(&mut self, record: &[u8; RECORD], log: &mut dyn Write) {
        let [code, a, b, c, v @ ..] = *record;
        let v = u32::from_le_bytes(v);
        let name = match code % 32 {
            0..=6 => {
                self.place(record, false);
                self.driver.publish(&self.ram);
                "a chain is shown"
            }
            7 => {
                self.place(record, false);
                "a chain is placed"
            }
            8..=10 => {
                self.place(record, true);
                self.driver.publish(&self.ram);
                "a hostile chain is shown"
            }
            11..=15 => {
                for _ in 0..1 + a % 8 {
                    if !self.pop() {
                        break;
                    }
                }
                "the device takes chains"
            }
            16..=19 => {
                self.push(usize::from(a), v);
                if b & 1 == 0 {
                    self.publish();
                }
                "the device gives a chain back"
            }
            20 | 21 => {
                self.publish();
                "the device shows what it gave back"
            }
            22 => {
                self.kicks(a & 1 == 0);
                "kicks are asked for"
            }
            23 | 24 => {
                while self.driver.collect(&self.ram).is_some() {}
                "the driver takes back"
            }
            25 => {
                let head = if b & 3 == 3 { edge(v) as u16 } else { self.driver.last };
                if self.driver.packed {
                    let desc = Descriptor { addr: 0x8_0000, len: 16, flags: u16::from(c), next: 0 };
                    self.driver.place_packed(&self.ram, desc, head);
                } else {
                    self.driver.offer(&self.ram, head);
                }
                self.driver.publish(&self.ram);
                "a head is offered again"
            }
            26 => {
                let size = self.driver.size;
                self.driver.jump(&self.ram, [1, size, size + 1, 0x8000, v as u16][usize::from(a % 5)]);
                "the available index jumps"
            }
            27 => {
                let entry = u64::from(c) % u64::from(self.driver.size);
                let (addr, width) = match b % 7 {
                    0 => (self.driver.avail, 2),
                    1 => (self.driver.avail + 2, 2),
                    2 => (self.driver.avail + 4 + 2 * entry, 2),
                    3 => (self.driver.desc + 16 * entry, 8),
                    4 => (self.driver.desc + 16 * entry + 8, 4),
                    5 => (self.driver.desc + 16 * entry + 12, 2),
                    _ => (self.driver.desc + 16 * entry + 14, 2),
                };
                self.ram.set_word(addr, width, edge(v));
                "a word is rewritten"
            }
            28 => {
                self.driver.wish(&self.ram, b, v as u16 & if c & 3 == 3 { 0xffff } else { 7 });
                "the driver says which interrupts it wants"
            }
            29 => {
                self.oracles.open().fetches.change_with(Some([0xff, 0, 1, 2, 4, 0x10, 0x80, 6][usize::from(a & 7)]));
                "second fetches change"
            }
            30 => {
                self.unpop();
                "the chain taken last is put back"
            }
            _ => {
                // Stop and start: nothing is in flight then.
                while !self.flying.is_empty() {
                    self.push(0, v);
                }
                self.publish();
                if let Some(state) = self.stop(false) {
                    self.start(&state);
                }
                "the queue stops and starts"
            }
        };
        let _ = writeln!(log, "{name}: {a:#x} {b:#x} {c:#x} {v:#x}, {} in flight", self.flying.len());
    }
}

/// Judges one program for a ring of one format. Notes go to `log`.
pub fn play(packed: bool, data: &[u8], log: &mut dyn Write) {
    crate::stats::operations(data.len().saturating_sub(KNOBS).div_ceil(RECORD).min(MAX_OPS));
    let (ram, oracles) = home();
    ram.clear();
    oracles.open().reset(Device::Any);
    let knob = |at: usize| data.get(at).copied().unwrap_or(0);
    let mut features = if packed { F_RING_PACKED } else { 0 };
    for (off, bit) in
        [(knob(0) & 1, F_EVENT_IDX), (knob(0) >> 1 & 1, F_INDIRECT_DESC), (knob(0) >> 2 & 1 ^ 1, F_IN_ORDER)]
    {
        if off == 0 {
            features |= bit;
        }
    }
    let size = [8, 16, 4, 2, 1, 64, if packed { 5 } else { 8 }, 32][usize::from(knob(1) & 7)];
    let mut driver = Driver::new(BASE);
    driver.set_up(&ram, size, features);
    oracles.open().fetches.change_with((knob(2) & 1 == 0).then_some([0xff, 1, 2, 0x80][usize::from(knob(2) >> 1 & 3)]));
    let mut rig = Rig { ram, oracles, driver, features, queue: None, flying: Vec::new(), fresh: false };
    let mut state = rig.state();
    if knob(3) & 7 == 7 {
        // A layout, or a saved position, that may not be one.
        match knob(4) % 5 {
            0 => state.size = u16::from(knob(5)),
            1 => state.desc_table = state.desc_table.wrapping_add(edge(knob(5).into())),
            2 => state.avail_ring = LOW_BYTES - u64::from(knob(5)),
            3 => state.next_avail = u16::from(knob(5)) << 8,
            _ => state.used_ring = u64::MAX - u64::from(knob(5)),
        }
    }
    let _ = writeln!(log, "features {features:#x}, {state:x?}");
    rig.start(&state);
    for (number, chunk) in data.get(KNOBS..).unwrap_or_default().chunks(RECORD).take(MAX_OPS).enumerate() {
        let mut record = [0; RECORD];
        record[..chunk.len()].copy_from_slice(chunk);
        let _ = write!(log, "{number:3}: ");
        rig.step(&record, log);
    }
    // After whatever it was, a fresh ring serves one request.
    rig.stop(true);
    rig.driver.set_up(&rig.ram, 8, rig.features);
    let state = rig.state();
    rig.start(&state);
    let one = Descriptor { addr: 0x8_0000, len: 64, flags: Descriptor::WRITE, next: 0 };
    rig.driver.place(&rig.ram, &[one]);
    rig.driver.publish(&rig.ram);
    rig.oracles.open().fetches.change_with(None);
    if !rig.pop() {
        finding!("wedge", "a fresh ring does not give its first chain");
    }
    rig.push(0, 64);
    rig.publish();
    if rig.driver.collect(&rig.ram).is_none_or(|(_, len)| len != 64) {
        finding!("wedge", "a fresh ring does not give its first chain back");
    }
    rig.stop(true);
}

/// A program as text, with what happens up to its finding.
#[must_use]
pub fn explain(packed: bool, data: &[u8]) -> String {
    let text = std::cell::RefCell::new(String::new());
    struct Log<'l>(&'l std::cell::RefCell<String>);
    impl Write for Log<'_> {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            self.0.borrow_mut().push_str(part);
            Ok(())
        }
    }
    let run = std::panic::AssertUnwindSafe(|| play(packed, data, &mut Log(&text)));
    if let Err(panic) = std::panic::catch_unwind(run) {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
        let _ = writeln!(text.borrow_mut(), "\nfinding: {}", why.unwrap_or_default());
    }
    text.into_inner()
}
