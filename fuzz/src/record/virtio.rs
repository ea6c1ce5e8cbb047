//! What drivers of virtio functions did, as typed programs.
//!
//! The record of a function falls into two sorts of pieces. Up to DRIVER_OK every register access is an operation
//! (`transport`); a piece that does not begin with the reset begins with the status and features written since. From
//! DRIVER_OK on the machine's own driver is set up as the recorded one was, and the operations are requests, doorbells and
//! what else is accessed: on the device itself, and in `transport`.

use std::collections::BTreeMap;

use super::chains;
use super::{Access, Chain, Event, Piece};
use crate::machine::vmm::{Kind, Shape};
use crate::machine::wires::Wiring;
use crate::machine::{Machine, PLACES, QUEUES, Setup};
use crate::program::ops::{Code, Op, REGISTERS, REQUESTS};
use crate::program::play::{FIELDS, LEGACY_FIELDS, STATUSES};
use crate::program::{KNOBS, encode, setup_bytes};
use devices::virtio::pci::{DEVICE, ISR, LEGACY_BAR, MODERN_BAR, MSIX_BAR, NOTIFY, NOTIFY_MULTIPLIER};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};

/// Operations of a piece.
const MAX_OPS: usize = 32;
/// A shorter one says too little.
const LEAST_OPS: usize = 3;
/// Requests of one kick: what a driver fills a large ring with is the same again and again.
const MAX_BATCH: usize = 6;
/// Entries of the rings in pieces with register accesses.
const RING: u64 = 16;
const DRIVER_OK: u64 = 15;

/// Pieces by target.
#[derive(Default)]
pub struct Pieces {
    /// From a reset to DRIVER_OK: for `transport`, too.
    pub set_ups: Vec<Piece>,
    pub transport: Vec<Piece>,
    pub blk: Vec<Piece>,
    pub net: Vec<Piece>,
    pub console: Vec<Piece>,
    pub rng: Vec<Piece>,
    pub split: Vec<Piece>,
}

/// All pieces of a record.
pub fn pieces(events: &[Event]) -> Pieces {
    let mut functions: BTreeMap<u8, Writer> = BTreeMap::new();
    for event in events {
        let devfn = match event {
            Event::Config { devfn, .. } | Event::Bar { devfn, .. } | Event::Chain { devfn, .. } => *devfn,
            Event::Port(..) | Event::Memory(..) => continue,
        };
        if let Event::Config { offset: 0, access: Access { is_write: false, value, .. }, .. } = event
            && let Some(kind) = kind_of(*value)
        {
            functions.entry(devfn).or_insert_with(|| Writer::new(kind));
        }
        let Some(writer) = functions.get_mut(&devfn) else { continue };
        match event {
            Event::Config { offset, access, .. } => writer.config(*offset, *access),
            Event::Bar { bar, offset, access, .. } => writer.bar(*bar, *offset, *access),
            Event::Chain { queue, chain, .. } => writer.waiting.entry(*queue).or_default().push(chain.clone()),
            Event::Port(..) | Event::Memory(..) => {}
        }
    }
    let mut found = Pieces::default();
    for mut writer in functions.into_values() {
        writer.cut();
        let device = match writer.kind {
            Kind::Blk => &mut found.blk,
            Kind::Net => &mut found.net,
            Kind::Console => &mut found.console,
            Kind::Rng => &mut found.rng,
        };
        for (knobs, ops, runs) in &writer.done {
            found.transport.extend(piece(*knobs, ops, REGISTERS));
            if *runs {
                device.extend(piece(*knobs, ops, REQUESTS));
            }
        }
        found.set_ups.extend(writer.set_ups.iter().filter_map(|(knobs, ops)| piece(*knobs, ops, REGISTERS)));
        found.split.append(&mut writer.split);
    }
    found
}

fn piece(knobs: [u8; KNOBS], ops: &[Op], table: &[Code]) -> Option<Piece> {
    // On another device it is another step.
    let step = |op: &Op| format!("{} {:?} {} {} {}", knobs[7], op.code, op.a & 1, op.b, op.c);
    let steps = ops.iter().map(step).collect();
    Some(Piece { data: encode(knobs, ops, table)?, steps })
}

/// By vendor and device id (§4.1.2).
fn kind_of(ids: u64) -> Option<Kind> {
    match ids {
        0x1000_1af4 | 0x1041_1af4 => Some(Kind::Net),
        0x1001_1af4 | 0x1042_1af4 => Some(Kind::Blk),
        0x1003_1af4 | 0x1043_1af4 => Some(Kind::Console),
        0x1005_1af4 | 0x1044_1af4 => Some(Kind::Rng),
        _ => None,
    }
}

/// Pieces of one function under construction.
struct Writer {
    kind: Kind,
    /// Tells what a driver of this kind has to do with.
    machine: Facts,
    done: Vec<([u8; KNOBS], Vec<Op>, bool)>,
    set_ups: Vec<([u8; KNOBS], Vec<Op>)>,
    split: Vec<Piece>,
    ops: Vec<Op>,
    /// Status and features written since the last reset.
    prologue: Vec<Op>,
    /// Everything written since the last reset, without what changes nothing.
    writes: Vec<Op>,
    running: bool,
    select: u64,
    feature_select: u64,
    features: u64,
    msix: bool,
    waiting: BTreeMap<u16, Vec<Chain>>,
}

struct Facts {
    queues: u16,
    offered: u64,
    /// Descriptors, available and used ring of each queue.
    rings: [[u64; 3]; QUEUES],
}

impl Writer {
    fn new(kind: Kind) -> Self {
        let machine = Machine::new(Shape::new(kind, 0), Wiring::Kvm);
        let rings = machine.drivers.each_ref().map(|driver| [driver.desc, driver.avail, driver.used]);
        Self {
            kind,
            machine: Facts { queues: machine.queues(), offered: machine.offered(), rings },
            done: Vec::new(),
            set_ups: Vec::new(),
            split: Vec::new(),
            ops: Vec::new(),
            prologue: Vec::new(),
            writes: Vec::new(),
            running: false,
            select: 0,
            feature_select: 0,
            features: 0,
            msix: false,
            waiting: BTreeMap::new(),
        }
    }

    fn knobs(&self) -> [u8; KNOBS] {
        let mut knobs = [0; KNOBS];
        knobs[7] = match self.kind {
            Kind::Blk => 0,
            Kind::Net => 1,
            Kind::Console => 2,
            Kind::Rng => 3,
        };
        // 7: the operations are the set-up.
        knobs[1] = 7;
        if self.running {
            let setup = Setup {
                no_event_idx: self.features & F_EVENT_IDX == 0,
                no_indirect: self.features & F_INDIRECT_DESC == 0,
                size: RING as u16,
                msix: self.msix,
                ..Setup::default()
            };
            knobs[1..4].copy_from_slice(&setup_bytes(setup));
        }
        knobs
    }

    /// Ends a piece.
    fn cut(&mut self) {
        let ops = std::mem::take(&mut self.ops);
        if ops.len() >= LEAST_OPS {
            self.done.push((self.knobs(), ops, self.running));
        }
    }

    fn push(&mut self, op: Op) {
        let writes = match op.code {
            Code::Status | Code::Write | Code::Vector => true,
            Code::Config | Code::Access | Code::Legacy => op.a & 1 != 0,
            _ => false,
        };
        // Drivers select the same queue again and again.
        if writes
            && !self.running
            && !(op.code == Code::Write
                && self.writes.iter().rfind(|old| old.b == op.b && old.code == op.code) == Some(&op))
        {
            self.writes.push(op);
        }
        // What is read again and again is waited for.
        if self.ops.len() >= 2 && self.ops[self.ops.len() - 2..] == [op, op] {
            return;
        }
        self.room(1);
        self.ops.push(op);
    }

    /// Begins another piece where `count` operations do not fit.
    fn room(&mut self, count: usize) {
        if self.ops.len() + count > MAX_OPS {
            self.cut();
            if !self.running {
                self.ops.clone_from(&self.prologue);
                self.ops.truncate(MAX_OPS / 2);
            }
        }
    }

    fn config(&mut self, offset: u16, access: Access) {
        let Access { is_write, width, value } = access;
        if offset > 0xff || width > 4 {
            return;
        }
        let value = if is_write { moved_bar(offset, value) } else { 0 };
        let c = offset as u8 & 3 | (width.ilog2() as u8) << 2;
        self.push(Op { code: Code::Config, a: is_write.into(), b: offset as u8 & !3, c, v: value as u32 });
    }

    fn bar(&mut self, bar: u8, offset: u64, access: Access) {
        match bar {
            MODERN_BAR if offset >= NOTIFY => self.doorbell(((offset - NOTIFY) / NOTIFY_MULTIPLIER) as u16, access),
            MODERN_BAR if offset < ISR => self.common(offset, access),
            MODERN_BAR => self.page(offset, access),
            MSIX_BAR => self.table(offset, access),
            LEGACY_BAR if offset == 0x10 && access.is_write => self.doorbell(access.value as u16, access),
            LEGACY_BAR => self.legacy(offset, access),
            _ => {}
        }
    }

    fn common(&mut self, offset: u64, access: Access) {
        let Access { is_write, width, value } = access;
        let field = FIELDS.iter().position(|field| *field == (offset, width.into()));
        if !is_write {
            let (b, c) = match field {
                Some(field) => (field, 0),
                None => {
                    let Some(field) = FIELDS.iter().position(|(at, _)| *at == offset) else { return };
                    (field, 3 | (width.ilog2() as u8) << 2)
                }
            };
            return self.push(Op { code: Code::Read, a: 0, b: b as u8, c, v: 0 });
        }
        if offset == 0x14 && width == 1 {
            return self.status(value as u8);
        }
        let Some(field) = field else { return };
        let value = self.moved(offset, value);
        let op = Op { code: Code::Write, a: 0, b: field as u8, c: 1 << 5, v: value as u32 };
        match offset {
            0x08 => self.feature_select = value,
            0x0c if self.feature_select < 2 => self.features |= value << (32 * self.feature_select),
            0x16 => self.select = value,
            0x1a => self.msix = value != 0xffff,
            _ => {}
        }
        if matches!(offset, 0x08 | 0x0c) {
            self.prologue.push(op);
        }
        self.push(op);
    }

    /// What the machine of a target understands as what the driver wrote.
    fn moved(&self, offset: u64, value: u64) -> u64 {
        let [desc, avail, used] = self.machine.rings[self.select as usize % QUEUES];
        match offset {
            // A driver accepts nothing that is not offered.
            0x0c if self.feature_select < 2 => value & self.machine.offered >> (32 * self.feature_select),
            0x16 if value < 0x100 => value % u64::from(self.machine.queues),
            0x18 => value.min(RING),
            0x20 => desc,
            0x28 => avail,
            0x30 => used,
            0x24 | 0x2c | 0x34 => 0,
            _ => value,
        }
    }

    fn status(&mut self, value: u8) {
        let op = match STATUSES.iter().position(|known| *known == value) {
            Some(known) => Op { code: Code::Status, a: 0, b: known as u8, c: 0, v: 0 },
            None => Op { code: Code::Status, a: 0, b: 0, c: 7, v: value.into() },
        };
        if value == 0 {
            self.cut();
            self.prologue.clear();
            self.writes.clear();
            (self.running, self.features, self.msix) = (false, 0, false);
            self.waiting.clear();
        }
        self.push(op);
        self.prologue.push(op);
        if u64::from(value) == DRIVER_OK && !self.running {
            self.cut();
            self.set_up();
            self.running = true;
        }
    }

    /// A piece from the reset to DRIVER_OK: with all that is read on the way it would be too long to get there.
    fn set_up(&mut self) {
        let mut ops = std::mem::take(&mut self.writes);
        // What the device runs without is left out first.
        let upper_half = |op: &Op| op.code == Code::Write && op.v == 0 && FIELDS[usize::from(op.b)].0 & 0x24 == 0x24;
        let spare: [&dyn Fn(&Op) -> bool; 2] = [&|op| op.code == Code::Vector, &upper_half];
        for spare in spare {
            if ops.len() > MAX_OPS {
                ops.retain(|op| !spare(op));
            }
        }
        if ops.len() <= MAX_OPS {
            self.set_ups.push((self.knobs(), ops));
        }
    }

    /// ISR and device configuration.
    fn page(&mut self, offset: u64, access: Access) {
        let Access { is_write, width, value } = access;
        let (region, at) = if offset < DEVICE { (6, offset - ISR) } else { (0, offset - DEVICE) };
        let c = region << 4 | width.ilog2() as u8;
        // What lies further than an operand says is reached by the upper half of the value.
        let (far, v) = if at < 0x40 { (0, value as u32) } else { (0x40, (at as u32 & !0x3f) << 16) };
        if at < 0x100 && (far == 0 || !is_write) {
            let a = 2 << 1 | far | u8::from(is_write);
            self.push(Op { code: Code::Access, a, b: at as u8 & 0x3f, c, v: if is_write || far != 0 { v } else { 0 } });
        }
    }

    fn table(&mut self, offset: u64, access: Access) {
        let Access { is_write, width, value } = access;
        let v = value as u32;
        let field = match offset & 15 {
            12 if v <= 1 => Some(v as u8),
            8 => Some(2),
            0 => Some(4),
            4 if v <= 1 => Some(5),
            _ => None,
        };
        match field.filter(|_| is_write && width == 4 && offset < 64) {
            Some(field) => self.push(Op { code: Code::Vector, a: (offset >> 4) as u8, b: field, c: 0, v }),
            None if offset < 64 => {
                let a = 1 << 1 | u8::from(is_write);
                let v = if is_write { v } else { 0 };
                self.push(Op { code: Code::Access, a, b: offset as u8, c: 0xa0 | width.ilog2() as u8, v });
            }
            None => {}
        }
    }

    fn legacy(&mut self, offset: u64, access: Access) {
        let Access { is_write, width, value } = access;
        let Some(field) = LEGACY_FIELDS.iter().position(|field| *field == (offset, width.into())) else { return };
        let v = if is_write { value as u32 } else { 0 };
        self.push(Op { code: Code::Legacy, a: is_write.into(), b: field as u8, c: 0, v });
    }

    /// A doorbell, and the requests it is rung for.
    fn doorbell(&mut self, queue: u16, access: Access) {
        let chains = self.waiting.remove(&queue).unwrap_or_default();
        let a = (queue % self.machine.queues) as u8;
        if !self.running || chains.is_empty() {
            let c = if access.width == 4 { 3 } else { 0 };
            return self.push(Op { code: Code::Kick, a, b: 0, c, v: 0 });
        }
        self.split.push(split(&chains));
        let mut batch: Vec<Op> = Vec::new();
        for chain in &chains {
            let op = chains::request(self.kind, a.into(), chain);
            let again = batch.iter().rev().take_while(|other| **other == op).count();
            if batch.len() < MAX_BATCH && again < 2 {
                batch.push(op);
            }
        }
        let op = |code, a, b, c| Op { code, a, b, c, v: 0 };
        batch.push(op(Code::Publish, a, 0, 0));
        if self.kind == Kind::Net && a == 1 {
            // The other end answers.
            batch.push(op(Code::End, 0, 0, 2));
            batch.push(op(Code::Collect, 0, 15, 0));
        }
        batch.push(op(Code::Collect, a, 15, 0));
        self.room(batch.len());
        self.ops.extend(batch);
    }
}

/// A BAR that is placed is placed where the machine's other operations look for it.
fn moved_bar(offset: u16, value: u64) -> u64 {
    if value & 0xffff_fff0 == 0xffff_fff0 {
        return value;
    }
    let [io, msix, modern] = PLACES;
    match offset {
        0x10 => io | value & 3,
        0x14 => msix | value & 15,
        0x20 => modern | value & 15,
        0x24 => 0,
        _ => value,
    }
}

/// The chains of one doorbell, for a ring alone: shown, taken, given back and collected.
fn split(chains: &[Chain]) -> Piece {
    const LENGTHS: [u32; 8] = [3, 1, 2, 3, 4, 6, 9, 17];
    const SHOW: u8 = 0;
    const TAKE: u8 = 11;
    const GIVE: u8 = 16;
    const COLLECT: u8 = 23;
    let (mut data, mut steps) = (vec![0; KNOBS], Vec::new());
    let mut put = |record: [u8; 8]| {
        data.extend(record);
        steps.push(format!("{:x?}", &record[..3]));
    };
    let chains = &chains[..chains.len().min(7)];
    for chain in chains {
        let len = chains::nearest(&LENGTHS, chain.descs.len() as u32);
        put([SHOW, chain.indirect.into(), len, 0, 0, 0, 0, 0]);
    }
    put([TAKE, 7, 0, 0, 0, 0, 0, 0]);
    for chain in chains {
        let written: u32 = chain.descs.iter().filter(|(_, is_writable)| *is_writable).map(|(len, _)| len).sum();
        let [v0, v1, v2, v3] = written.to_le_bytes();
        put([GIVE, 0, 0, 0, v0, v1, v2, v3]);
    }
    put([COLLECT, 0, 0, 0, 0, 0, 0, 0]);
    Piece { data, steps }
}
