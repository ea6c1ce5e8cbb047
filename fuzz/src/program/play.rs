//! Runs a program on a machine, one operation after the other.

use std::fmt::Write;

use devices::virtio::blk::BlkError;

use super::ops::{Code, Op, REQUESTS, edge};
use super::{Pair, Program, chain, setup};
use crate::counters::uncounted;
use crate::finding;
use crate::machine::vmm::Kind;
use crate::machine::{Bar, Machine, Setup};

/// Hears of an operation before it runs, and what it did after.
pub type Listener<'l> = &'l mut dyn FnMut(&Op, Option<&str>);

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What the guest had seen after each operation.
    pub trace: Vec<u64>,
    /// Guest memory at the end.
    pub memory: u64,
    /// What came out at the other end.
    pub shown: u64,
}

/// A machine and what its guest remembers.
pub struct Player {
    /// The machine.
    pub machine: Machine,
    setup: Setup,
    features: u64,
    /// Saves are pauses, for the run another one is compared with.
    save_is_pause: bool,
    /// Saves reached another process.
    pub saved: bool,
}

const EIO: Option<BlkError> = Some(BlkError::Host(5));

fn low(v: u32) -> u64 {
    u64::from(v & 0xffff)
}

impl Player {
    /// Builds the machine of `program` and starts its driver.
    #[must_use]
    pub fn new(kind: Kind, program: &Program<'_>, wiring: crate::machine::wires::Wiring, save_is_pause: bool) -> Self {
        let knobs = program.knobs;
        let machine = uncounted(|| Machine::new(knobs.shape(kind), wiring));
        machine.oracles.open().fetches.change_with(knobs.flip());
        let (hold, slow_cancel) = knobs.hold();
        {
            let mut disk = machine.disk.0.open();
            (disk.hold, disk.slow_cancel) = (hold, slow_cancel);
        }
        let mut player = Self { machine, setup: Setup::default(), features: 0, save_is_pause, saved: false };
        if let Some(setup) = knobs.setup() {
            player.set_up(setup);
        }
        player.machine.auto = knobs.auto();
        player
    }

    fn set_up(&mut self, setup: Setup) -> bool {
        let driven = self.machine.set_up(setup);
        (self.setup, self.features) = (setup, driven.features);
        driven.running
    }

    fn queue(&self, a: u8) -> u16 {
        match self.machine.shape.kind {
            // A card's control queue is for one operation in eight: most are about frames.
            Kind::Net if a & 0x0e == 0x0e => self.machine.control(),
            Kind::Net => u16::from(a) % self.machine.control(),
            _ => u16::from(a) % self.machine.queues().max(1),
        }
    }

    /// Rings the doorbell of `queue` as its driver does.
    fn ring(&mut self, queue: u16) {
        if self.setup.legacy && self.machine.shape.transitional {
            self.machine.write(Bar::Legacy, 0x10, &queue.to_le_bytes());
        } else {
            self.machine.write(Bar::Modern, 0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
        }
    }

    fn publish(&mut self, queue: u16) -> bool {
        let ram = &self.machine.ram;
        let wants = self.machine.drivers[usize::from(queue)].publish(ram);
        if wants {
            self.ring(queue);
        } else {
            self.machine.settle();
        }
        wants
    }

    /// One operation. Notes on what happened go to `log`.
    pub fn step(&mut self, op: &Op, log: &mut dyn Write) {
        self.machine.oracles.open().moment += 1;
        let queue = self.queue(op.a);
        let (v, auto) = (op.v, self.machine.auto);
        match op.code {
            Code::Request | Code::Chain => {
                let mut built = match op.code {
                    Code::Request => chain::request(&mut self.machine, queue, op),
                    _ => chain::hostile(&self.machine, queue, op),
                };
                chain::spoil(&self.machine, queue, op, &mut built);
                let _ = write!(log, "queue {queue}: {:x?}", built.descs());
                let placed = chain::place(&mut self.machine, queue, op, &built);
                // A program without commas: most chains are shown at once.
                let kicked = placed && op.a & 0x30 != 0x30 && self.publish(queue);
                let _ = write!(log, ", placed {placed}, kicked {kicked}");
            }
            Code::Offer => {
                let driver = &mut self.machine.drivers[usize::from(queue)];
                let head = if op.b & 3 == 3 { edge(v) as u16 } else { driver.last };
                if driver.packed {
                    let desc = devices::virtio::queue::Descriptor {
                        addr: 0x1_8000,
                        len: v >> 8 & 0xff,
                        flags: op.c.into(),
                        next: 0,
                    };
                    driver.place_packed(&self.machine.ram, desc, head);
                } else {
                    driver.offer(&self.machine.ram, head);
                }
                let kicked = op.b & 4 == 0 && self.publish(queue);
                let _ = write!(log, "queue {queue}: head {head:#x} again, kicked {kicked}");
            }
            Code::Jump => {
                let sizes = u32::from(self.machine.drivers[usize::from(queue)].size);
                let delta = [1, sizes, sizes + 1, 0x8000, 0xffff, v][usize::from(op.b % 6)] as u16;
                self.machine.drivers[usize::from(queue)].jump(&self.machine.ram, delta);
                self.ring(queue);
                let _ = write!(log, "queue {queue}: available index jumps by {delta:#x}");
            }
            Code::Publish => {
                let kicked = self.publish(queue);
                let _ = write!(log, "queue {queue}: kicked {kicked}");
            }
            Code::Kick => self.kick(queue, op, log),
            Code::Run => {
                if op.c & 0x80 != 0 {
                    let passes_us = edge(v);
                    self.machine.pass(1000 * passes_us);
                    let _ = write!(log, "{passes_us} us pass");
                }
                self.machine.run(1 + usize::from(op.b % 8));
                self.machine.auto = false;
                self.machine.settle();
                self.machine.auto = auto;
            }
            Code::Complete => {
                let errors = match self.machine.may_hold() {
                    true => {
                        [None, None, Some(BlkError::NoSpace), Some(BlkError::Short), EIO, Some(BlkError::Unsupported)]
                    }
                    false => [None, None, None, None, EIO, Some(BlkError::Unsupported)],
                };
                let done = self.machine.complete(usize::from(op.b), errors[usize::from(op.c) % errors.len()]);
                let _ = write!(log, "request {} of those held: {done}", op.b);
            }
            Code::Collect => {
                for _ in 0..1 + op.b % 16 {
                    let ram = &self.machine.ram;
                    let Some((id, len)) = self.machine.drivers[usize::from(queue)].collect(ram) else { break };
                    let _ = write!(log, "queue {queue}: {id:#x} with {len} bytes; ");
                    self.machine.trace.add(u64::from(id) << 32 | u64::from(len));
                }
            }
            Code::Write => self.write_common(op, log),
            Code::Read => {
                let (offset, width) = FIELDS[usize::from(op.b) % FIELDS.len()];
                let width = if op.c & 3 == 3 { 1 << (op.c >> 2 & 3) } else { width };
                let value = self.machine.read(Bar::Modern, offset, width);
                let _ = write!(log, "{width} bytes at {offset:#x}: {value:#x}");
            }
            Code::Access => self.access(op, log),
            Code::Config if op.c & 0x80 != 0 => self.move_bar(op, log),
            Code::Config => {
                let at = u16::from(op.b) & !3 | u16::from(op.c & 3);
                let width = [1, 2, 4, 4][usize::from(op.c >> 2 & 3)].min(4 - usize::from(at & 3));
                if op.a & 1 == 0 {
                    let value = self.machine.config(at, width);
                    self.machine.trace.add(value);
                    let _ = write!(log, "configuration {at:#x} reads {value:#x}");
                } else {
                    self.machine.set_config(at, width, v.into());
                    let _ = write!(log, "configuration {at:#x} of {width} bytes is written {v:#x}");
                }
            }
            Code::Status => {
                let status = STATUSES[usize::from(op.b) % STATUSES.len()];
                let status = if op.c & 7 == 7 { v as u8 } else { status };
                if op.a & 0x30 == 0x30 {
                    self.machine.write(Bar::Legacy, 0x12, &[status]);
                } else {
                    self.machine.write(Bar::Modern, 0x14, &[status]);
                }
                let _ = write!(log, "{status:#x}");
            }
            Code::SetUp => {
                let wanted = setup(op.a, op.b, op.c);
                let running = self.set_up(wanted);
                let _ = write!(log, "{wanted:?}: running {running}");
            }
            Code::ResetQueue => {
                self.machine.write(Bar::Modern, 0x16, &queue.to_le_bytes());
                self.machine.write(Bar::Modern, 0x3a, &1u16.to_le_bytes());
                if op.b & 3 != 3 {
                    self.machine.run(usize::MAX);
                    self.machine.settle();
                    let sizes = setup(op.a, op.b, op.c).size;
                    let wanted = Setup { size: sizes, ..self.setup };
                    self.machine.enable(queue, wanted, self.features);
                }
                let _ = write!(log, "queue {queue}");
            }
            Code::Pause if self.machine.may_hold() => self.operate(op, log),
            Code::Pause => {
                self.machine.pause();
                self.machine.resume();
            }
            Code::Save => {
                self.machine.pause();
                if self.save_is_pause {
                    self.machine.resume();
                } else {
                    self.machine.restore();
                    self.saved = true;
                }
            }
            Code::Rewrite => self.rewrite(queue, op, log),
            Code::Change => {
                self.machine.change(low(v) as u16);
            }
            // A disk has no other end but its operator.
            Code::End if self.machine.may_hold() => self.operate(op, log),
            Code::End => self.end(op, log),
            Code::Wish => {
                let distance = if op.c & 7 == 7 { v as u16 } else { (v & 7) as u16 };
                self.machine.drivers[usize::from(queue)].wish(&self.machine.ram, op.b, distance);
                let _ = write!(log, "queue {queue}: {} at {distance}", ["none", "all", "one"][usize::from(op.b % 3)]);
            }
            Code::Vector => {
                let vector = u64::from(op.a % 4);
                let (field, value) = match op.b % 6 {
                    0 => (12, 0),
                    1 => (12, 1),
                    2 => (8, v),
                    3 => (0, 0xfee0_0000 | v & 0xff000),
                    4 => (0, v),
                    _ => (4, v & 1),
                };
                self.machine.write(Bar::Msix, 16 * vector + field, &value.to_le_bytes());
                let _ = write!(log, "vector {vector}: {value:#x} at {field}");
                if op.c & 7 == 7 {
                    self.machine.read(Bar::Msix, 0x1000, 8);
                }
            }
            Code::Flip => {
                let flip = [0xff, 0x01, 0x02, 0x10, 0, 0x80, 0x04, 0x06][usize::from(op.b & 7)];
                self.machine.oracles.open().fetches.change_with(Some(flip));
                let _ = write!(log, "by {flip:#x}");
            }
            Code::Disk => {
                let may_hold = self.machine.may_hold();
                let mut disk = self.machine.disk.0.open();
                match op.b % 5 {
                    0 => disk.hold = true,
                    1 => disk.hold = false,
                    2 => {
                        let errors = [BlkError::Host(28), BlkError::Unsupported, BlkError::NoSpace, BlkError::Host(5)];
                        disk.refuse = Some(errors[usize::from(op.c & if may_hold { 3 } else { 1 })]);
                    }
                    3 => disk.room = usize::from(op.c % 17).max(1),
                    _ => disk.slow_cancel = op.c & 1 == 0,
                }
                let _ = write!(log, "hold {}, room {}, refuse {:?}", disk.hold, disk.room, disk.refuse);
            }
            Code::Window => {
                let at = self.machine.window_capability();
                let (offset, width) = FIELDS[usize::from(op.b) % FIELDS.len()];
                let width = if op.c & 7 == 7 { op.c as usize >> 3 } else { width.min(4) };
                let offset = if op.c & 0x18 == 0x18 { low(v) } else { offset };
                self.machine.set_config(at + 4, 1, if op.a & 0x1c == 0x1c { v.into() } else { 4 });
                self.machine.set_config(at + 8, 4, offset);
                self.machine.set_config(at + 12, 4, width as u64);
                match op.a & 1 {
                    0 => self.machine.read_window(),
                    _ => self.machine.set_config(at + 16, 4, v.into()),
                }
                let _ = write!(log, "{width} bytes at {offset:#x}, write {}", op.a & 1);
            }
            Code::Legacy => {
                let (offset, width) = LEGACY_FIELDS[usize::from(op.b) % LEGACY_FIELDS.len()];
                let offset = if op.c & 0x1c == 0x1c { u64::from(v & 0x3f) } else { offset };
                if op.a & 1 == 0 {
                    self.machine.read(Bar::Legacy, offset, width);
                } else {
                    let value = if op.c & 3 == 0 { v } else { edge(v) as u32 & 0x1f };
                    self.machine.write(Bar::Legacy, offset, &value.to_le_bytes()[..width]);
                }
                let _ = write!(log, "{width} bytes at {offset:#x}");
            }
            Code::PowerOn => self.machine.power_on(),
        }
    }

    fn kick(&mut self, queue: u16, op: &Op, log: &mut dyn Write) {
        let odd = edge(op.v);
        let (index, at) = if op.b & 3 == 3 { (odd, odd) } else { (u64::from(queue), u64::from(queue)) };
        let width = [2, 2, 1, 4][usize::from(op.c & 3)];
        if op.c & 0x30 == 0x30 {
            self.machine.write(Bar::Legacy, 0x10, &index.to_le_bytes()[..width]);
        } else {
            // Beyond the BAR nobody answers.
            let at = 0x3000 + 4 * (at % 0x1000) + u64::from(op.c >> 6 & 1);
            self.machine.write(Bar::Modern, at, &index.to_le_bytes()[..width]);
        }
        let _ = write!(log, "queue {index:#x} with {width} bytes");
    }

    fn write_common(&mut self, op: &Op, log: &mut dyn Write) {
        let (offset, width) = FIELDS[usize::from(op.b) % FIELDS.len()];
        let width = if op.c & 7 == 7 { 1 << (op.c >> 3 & 3) } else { width };
        let value = match op.c >> 5 {
            0 => edge(op.v),
            1 => u64::from(op.v),
            2 => u64::from(op.v & 0xff) << 12,
            3 => u64::from(op.v) << 4,
            4 => 1,
            5 => u64::from(op.v & 1),
            6 => 0,
            _ => u64::from(op.v) << 32 | u64::from(op.v),
        };
        self.machine.write(Bar::Modern, offset, &value.to_le_bytes()[..width]);
        let _ = write!(log, "{width} bytes at {offset:#x}: {value:#x}");
    }

    fn access(&mut self, op: &Op, log: &mut dyn Write) {
        let width = 1 << (op.c & 3);
        let (bar, len) = match op.a >> 1 & 3 {
            0 => (Bar::Legacy, 0x80),
            1 => (Bar::Msix, 0x2000),
            _ => (Bar::Modern, 0x4000),
        };
        let region = match op.c >> 4 {
            0..=5 => 0x2000,
            6 | 7 => 0x1000,
            8 | 9 => 0x3000,
            _ => 0,
        };
        let far = if op.a & 0x40 == 0 { 0 } else { low(op.v >> 16) % 0x100 };
        let offset = (region + far + u64::from(op.b & 0x3f)) % (len - 8);
        let _ = write!(log, "{bar:?} at {offset:#x}, {width} bytes, write {}", op.a & 1);
        if op.a & 1 == 0 {
            self.machine.read(bar, offset, width);
        } else {
            self.machine.write(bar, offset, &u64::from(op.v).to_le_bytes()[..width]);
        }
    }

    /// The guest places a BAR, near where it was or another one is, in the other window or in none; with or without
    /// decoding turned off meanwhile, or for good.
    fn move_bar(&mut self, op: &Op, log: &mut dyn Write) {
        let (bar, register, len) = [
            (Bar::Modern, 0x20, 0x4000),
            (Bar::Modern, 0x20, 0x4000),
            (Bar::Msix, 0x14, 0x2000),
            (Bar::Legacy, 0x10, 0x80),
        ][usize::from(op.a & 3)];
        let places = crate::machine::PLACES;
        let steps = len * u64::from(op.v & 3);
        let address = match op.b & 7 {
            0 | 1 => places[bar as usize],
            2 | 3 => places[bar as usize] + len + steps,
            4 => places[if bar == Bar::Msix { 2 } else { 1 }] + steps,
            5 => crate::machine::vmm::windows().mem64.map_or(0, |window| window.start) + steps,
            6 => 0,
            _ => op.v.into(),
        };
        let decode = op.c >> 4 & 3;
        let command = self.machine.config(0x04, 2);
        if matches!(decode, 1 | 2) {
            self.machine.set_config(0x04, 2, command & !3);
        }
        self.machine.set_config(register, 4, address & 0xffff_ffff);
        if bar == Bar::Modern {
            self.machine.set_config(register + 4, 4, address >> 32);
        }
        if decode != 2 {
            self.machine.set_config(0x04, 2, command | 3);
        }
        let decodes = ["all the while", "not meanwhile", "not any more", "all the while"][usize::from(decode)];
        let _ = write!(log, "{bar:?} is placed at {address:#x}, decodes {decodes}");
    }

    fn rewrite(&mut self, queue: u16, op: &Op, log: &mut dyn Write) {
        let driver = &self.machine.drivers[usize::from(queue)];
        let entry = u64::from(op.c) % u64::from(driver.size);
        let (addr, width) = match op.b % 10 {
            0 => (driver.avail, 2),
            1 => (driver.avail + 2, 2),
            2 => (driver.avail + 4 + 2 * entry, 2),
            3 => (driver.desc + 16 * entry, 8),
            4 => (driver.desc + 16 * entry + 8, 4),
            5 => (driver.desc + 16 * entry + 12, 2),
            6 => (driver.desc + 16 * entry + 14, 2),
            7 => (driver.used + 2, 2),
            8 => (driver.used + 4 + 8 * entry, 8),
            _ => (driver.desc + 0x4000 + u64::from(op.v >> 16 & 0xff) * 16, 4),
        };
        let value = edge(op.v);
        self.machine.ram.set_word(addr, width, value);
        let _ = write!(log, "{width} bytes at {addr:#x}: {value:#x}");
        if op.a & 0x40 != 0 {
            self.ring(queue);
        } else {
            self.machine.settle();
        }
    }

    /// What the operator of a disk that keeps failed requests does, mostly with the machine paused, and how it goes on then.
    fn operate(&mut self, op: &Op, log: &mut dyn Write) {
        self.machine.pause();
        let held = self.machine.holds();
        if op.c & 1 == 0 {
            self.machine.go_on();
        }
        let does = match op.b % 8 {
            1 => {
                // What is resumed and paused in one moment takes no step in between.
                self.machine.resume_and_pause();
                "lets it go on and pauses it at once"
            }
            2 => {
                self.machine.pass(1_000_000);
                self.machine.change(low(op.v) as u16);
                "resizes the disk"
            }
            3 => {
                self.machine.disk.0.open().refuse =
                    Some(if op.c & 2 == 0 { BlkError::NoSpace } else { BlkError::Host(5) });
                "has mended nothing"
            }
            4 => {
                self.machine.power_on();
                self.machine.run(usize::MAX);
                "resets the machine"
            }
            5 => {
                self.machine.pass(1000 * edge(op.v));
                "takes time"
            }
            _ => "does nothing more",
        };
        self.machine.resume();
        let _ = write!(log, "requests held: {held}, the operator {does}, disk trusted: {}", op.c & 1 == 0);
    }

    fn end(&mut self, op: &Op, log: &mut dyn Write) {
        let kind = self.machine.shape.kind;
        match (op.b % 8, kind) {
            (0..=3, Kind::Net) => {
                let len = [60, 1514, 100, 3000, 9000, 65554, 0, 60][usize::from(op.c & 7)];
                let (flags, gso) = if op.c & 0x38 == 0x38 { (op.v as u8 & 3, (op.v >> 8) as u8) } else { (0, 0) };
                let to = chain::destination(op.b >> 3, op.v);
                self.machine.end.arrive(op.a, len, (flags, gso), to);
                let flow = op.a;
                let _ = write!(
                    log,
                    "a frame of {len} bytes arrives, flow {flow}, flags {flags:#x}, gso {gso:#x}, to {to:x?}"
                );
            }
            (0..=3, _) => {
                let count = [1, 5, 64, 300][usize::from(op.c & 3)];
                let mut end = self.machine.end.inner.open();
                if end.typed < 1 << 16 {
                    end.typed += count;
                }
                let _ = write!(log, "{count} bytes are typed");
            }
            (4, _) => self.machine.end.inner.open().full = true,
            (5, _) => {
                let mut end = self.machine.end.inner.open();
                (end.full, end.broken, end.room) = (false, false, 1 << 20);
            }
            (6, _) => self.machine.end.inner.open().room = usize::from(op.c),
            _ => self.machine.end.inner.open().broken = op.c & 1 == 0,
        }
        let end = self.machine.end.inner.open();
        let _ = write!(log, "; full {}, broken {}, room {}", end.full, end.broken, end.room);
        drop(end);
        self.machine.settle();
    }
}

/// Values of the device status (§2.1) that drivers write, and some that they do not.
pub(crate) const STATUSES: [u8; 11] = [0, 1, 3, 11, 15, 7, 0x80, 0x40, 4, 8, 0x8f];

/// Fields of the legacy header and their widths (§4.1.4.10).
pub(crate) const LEGACY_FIELDS: [(u64, usize); 9] =
    [(0, 4), (4, 4), (8, 4), (12, 2), (14, 2), (16, 2), (18, 1), (19, 1), (20, 2)];

/// Fields of the common configuration and their widths (§4.1.4.3).
pub(crate) const FIELDS: [(u64, usize); 21] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x12, 2),
    (0x14, 1),
    (0x15, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x1e, 2),
    (0x20, 8),
    (0x20, 4),
    (0x24, 4),
    (0x28, 8),
    (0x30, 8),
    (0x30, 4),
    (0x38, 2),
    (0x3a, 2),
];

/// Runs `program` in one machine, and judges it at the end.
pub fn play(
    kind: Kind,
    program: &Program<'_>,
    wiring: crate::machine::wires::Wiring,
    save_is_pause: bool,
    mut each: Option<Listener<'_>>,
) -> Outcome {
    let mut player = Player::new(kind, program, wiring, save_is_pause);
    let traced = program.knobs.pair() != Pair::Single;
    let mut outcome = Outcome::default();
    let mut note = String::new();
    for op in program.ops() {
        match &mut each {
            Some(each) => {
                note.clear();
                each(&op, None);
                player.step(&op, &mut note);
                each(&op, Some(&note));
            }
            None => player.step(&op, &mut Mute),
        }
        player.machine.judge_card();
        if traced {
            outcome.trace.push(player.machine.trace.0);
        }
    }
    if traced {
        outcome.memory = player.machine.ram.digest();
        outcome.shown = player.machine.shown();
    }
    player.machine.judge();
    player.machine.revive();
    uncounted(|| drop(player));
    outcome
}

/// Runs `program` as its knobs say, in one machine or in two.
pub fn run(kind: Kind, data: &[u8]) {
    run_in(kind, data, REQUESTS);
}

/// The device a program for any device runs on.
#[must_use]
pub fn kind_of(data: &[u8]) -> Kind {
    [Kind::Blk, Kind::Net, Kind::Console, Kind::Rng][usize::from(data.get(7).copied().unwrap_or(0) & 3)]
}

/// As [`run`], with another table of codes.
pub fn run_in(kind: Kind, data: &[u8], table: &'static [Code]) {
    let program = Program::new(data, table);
    crate::stats::operations(program.len());
    match program.knobs.pair() {
        Pair::Single => drop(play(kind, &program, program.knobs.wiring(), false, None)),
        pair => super::pairs::compare(kind, &program, pair),
    }
}

/// Takes no notes.
pub struct Mute;

impl Write for Mute {
    fn write_str(&mut self, _text: &str) -> std::fmt::Result {
        Ok(())
    }

    fn write_fmt(&mut self, _args: std::fmt::Arguments<'_>) -> std::fmt::Result {
        Ok(())
    }
}

/// Ends a run with two different machines.
pub(super) fn differ(what: &str, at: usize, op: Option<Op>) -> ! {
    finding!("pair", "two machines differ in {what} after operation {at} ({op:x?})")
}
