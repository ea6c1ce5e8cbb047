//! What virtio 1.3 §5.2.6 makes of a request, and what the disk holds then.

use super::ring::{Flying, Range};
use crate::finding;
use crate::ram::{Ram, Stream};
use devices::virtio::blk::{BlkConfig, BlkError, BlkOp, Failure, OnError};

/// Sectors of a disk.
pub const SECTORS: u64 = 32;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The disk has to be asked for this, once.
    Ask(Ask),
    /// The disk works on it, under this token.
    Working(Ask, u64),
    /// It is done under this token, and counts once a flush has succeeded that begins at this moment.
    Unsettled(Ask, u64, u64),
    /// The disk works on that flush.
    Settling(Ask, u64),
    /// The disk has to be asked for this under this token, after what it was asked before.
    Next(Ask, u64),
    /// The disk has failed it, and it waits for the operator.
    Held(Ask),
    /// The operator has let it go on: the disk has to be asked for it again, once.
    Again(Ask),
    /// It ends with this status; `filled` bytes of its data area are written from its start.
    Ends {
        /// Status byte.
        status: u8,
        /// Bytes of data.
        filled: u64,
        /// Digest of the disk's bytes when they were read, where they come from there.
        content: Option<u64>,
        /// The answer is the serial number.
        serial: bool,
    },
    /// There is no byte for a status.
    Mute,
}

/// An operation on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What.
    pub op: BlkOp,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A disk and the driver's view of it.
#[derive(Debug)]
pub struct Blk {
    /// What the device was made to look like.
    pub config: BlkConfig,
    /// Features of the running driver.
    pub features: u64,
    /// Whether it is a legacy one.
    pub legacy: bool,
    /// The cache is write-back.
    pub writeback: bool,
    /// Sectors as of now.
    pub capacity: u64,
    /// What a reader of the disk gets.
    pub bytes: Vec<u8>,
    /// Writes that failed, and how many of them a flush has settled.
    pub failed: (u64, u64),
    /// A flush failed: nothing is durable until the operator says so.
    pub lost: bool,
    /// What holds its queues back.
    pub limit: Option<Box<super::limit::Limit>>,
    /// What its queues say of themselves.
    pub times: Option<Box<super::times::Times>>,
    /// Failures that the operator has still to hear of, minus those that were none: of requests that are held, and of
    /// others.
    pub unheard: (i32, i32),
}

/// Bytes `from..from + to.len()` of a list of ranges.
pub(super) fn gather(ram: &Ram, ranges: &[Range], mut from: u64, to: &mut [u8]) -> bool {
    let mut done = 0;
    for &(addr, len) in ranges {
        let len = u64::from(len);
        if from >= len {
            from -= len;
            continue;
        }
        let here = ((len - from) as usize).min(to.len() - done);
        ram.peek(addr + from, &mut to[done..done + here]);
        done += here;
        from = 0;
        if done == to.len() {
            return true;
        }
    }
    done == to.len()
}

/// Calls `each` for every piece of `ranges` from byte `skip` on, `len` bytes in all.
pub(super) fn pieces(ranges: &[Range], mut skip: u64, mut len: u64, mut each: impl FnMut(u64, u64)) {
    for &(addr, size) in ranges {
        let size = u64::from(size);
        let cut = skip.min(size);
        skip -= cut;
        let here = (size - cut).min(len);
        if here > 0 {
            each(addr + cut, here);
            len -= here;
        }
    }
}

const fn ends(status: u8) -> Plan {
    Plan::Ends { status, filled: 0, content: None, serial: false }
}

impl Blk {
    fn plan(&self, ram: &Ram, chain: &mut Flying) -> Plan {
        let Some(room) = chain.writable_bytes.checked_sub(1) else { return Plan::Mute };
        let mut header = [0; 16];
        if !gather(ram, &chain.readable, 0, &mut header) {
            return ends(IOERR);
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
        let data = chain.readable_bytes - 16;
        let durable = self.features & F_FLUSH == 0 || (self.features & F_CONFIG_WCE != 0 && !self.writeback);
        match kind {
            0 => self.ask(BlkOp::Read, sector, room),
            1 if self.config.read_only => ends(IOERR),
            1 => self.ask(BlkOp::Write { durable }, sector, data),
            4 => Plan::Ask(Ask { op: BlkOp::Flush, offset: 0, len: 0 }),
            5 if self.legacy => Plan::Ask(Ask { op: BlkOp::Flush, offset: 0, len: 0 }),
            8 => Plan::Ends { status: OK, filled: room.min(20), content: None, serial: true },
            11 => self.erase(ram, chain, data, durable, true),
            13 => self.erase(ram, chain, data, durable, false),
            _ => ends(UNSUPP),
        }
    }

    fn ask(&self, op: BlkOp, sector: u64, len: u64) -> Plan {
        let end = sector.checked_add(len / 512).filter(|_| len.is_multiple_of(512));
        match end {
            Some(end) if end <= self.capacity => {
                if len == 0 {
                    ends(OK)
                } else {
                    Plan::Ask(Ask { op, offset: sector * 512, len })
                }
            }
            _ => ends(IOERR),
        }
    }

    fn erase(&self, ram: &Ram, chain: &mut Flying, data: u64, durable: bool, discard: bool) -> Plan {
        let (limits, bit) = match discard {
            true => (self.config.discard, F_DISCARD),
            false => (self.config.write_zeroes, F_WRITE_ZEROES),
        };
        let Some(limits) = limits.filter(|_| self.features & bit != 0) else { return ends(UNSUPP) };
        if data == 0 || !data.is_multiple_of(16) || data / 16 > limits.max_segments.into() {
            return ends(IOERR);
        }
        for at in (0..data).step_by(16) {
            let mut segment = [0; 16];
            gather(ram, &chain.readable, 16 + at, &mut segment);
            let sector = u64::from_le_bytes(segment[..8].try_into().unwrap_or_default());
            let sectors = u32::from_le_bytes(segment[8..12].try_into().unwrap_or_default());
            let flags = u32::from_le_bytes(segment[12..].try_into().unwrap_or_default());
            if flags & !u32::from(!discard) != 0 {
                return ends(UNSUPP);
            }
            if sectors > limits.max_sectors || self.config.read_only {
                return ends(IOERR);
            }
            let op = if discard { BlkOp::Discard } else { BlkOp::WriteZeroes { unmap: flags & 1 != 0, durable } };
            match self.ask(op, sector, u64::from(sectors) * 512) {
                Plan::Ask(ask) => chain.rest.push(ask),
                Plan::Ends { status: OK, .. } => {}
                refused => return refused,
            }
        }
        chain.rest.reverse();
        chain.rest.pop().map_or(ends(OK), Plan::Ask)
    }

    fn is_lost(&self, op: BlkOp) -> bool {
        self.lost && is_durable(op)
    }

    /// Whether it may keep requests for the operator.
    #[must_use]
    pub fn may_hold(&self) -> bool {
        (self.config.on_write_error, self.config.on_read_error) != (OnError::Report, OnError::Report)
    }

    /// The disk failed a request for `ask`: it ends, or is kept for the operator.
    fn fails(&mut self, ask: Ask, error: BlkError) -> Plan {
        let of_disk = !matches!(error, BlkError::Unsupported | BlkError::Memory | BlkError::Cancelled);
        let policy = if ask.op == BlkOp::Read { self.config.on_read_error } else { self.config.on_write_error };
        let held = match policy {
            OnError::Report => false,
            OnError::Hold => of_disk,
            OnError::HoldIfFull => error == BlkError::NoSpace,
        };
        self.unheard.0 += i32::from(held);
        self.unheard.1 += i32::from(of_disk && !held);
        match error {
            _ if held => Plan::Held(ask),
            BlkError::Unsupported => ends(UNSUPP),
            _ => ends(IOERR),
        }
    }

    /// The operator hears of a failure.
    pub fn heard(&mut self, failure: Failure) {
        self.unheard.0 -= i32::from(failure.held);
        self.unheard.1 -= i32::from(!failure.held);
    }

    /// A worker's step has ended.
    pub(super) fn step_ended(&self) {
        if self.unheard != (0, 0) {
            let (held, others) = self.unheard;
            finding!(
                "spec",
                "the operator has still to hear of {held} requests that are held and {others} that failed"
            );
        }
    }

    /// Something happened that the model did not see.
    pub(super) fn forget(&mut self) {
        self.unheard = (0, 0);
        if let Some(times) = &mut self.times {
            times.forget();
        }
    }

    /// A queue goes on that was paused with requests in flight.
    pub(super) fn goes_on(&mut self, chains: &mut [Flying]) {
        for chain in chains {
            if let super::ring::Plan::Blk(Plan::Held(ask)) = chain.plan {
                chain.plan = super::ring::Plan::Blk(Plan::Again(ask));
            }
        }
    }

    /// The disk goes on in another process, with requests that are held.
    pub fn moves_on<'c>(&mut self, kept: impl Iterator<Item = (u16, &'c mut Flying)>) {
        if let Some(limit) = &mut self.limit {
            limit.start_over();
        }
        let Some(times) = &mut self.times else { return };
        times.start_over();
        for (queue, chain) in kept {
            if let super::ring::Plan::Blk(Plan::Held(_)) = chain.plan {
                chain.taken_ns = times.taken(queue);
            }
        }
    }

    fn is_inside(&self, ask: Ask) -> bool {
        ask.offset + ask.len <= self.capacity * 512
    }

    /// A request that was held has ended or waits again, and the disk was not asked for it: it has no room for it any more,
    /// or a failed flush stands in the way.
    pub(super) fn passed_over(&mut self, queue: u16, chain: &mut Flying) {
        let super::ring::Plan::Blk(Plan::Again(ask)) = chain.plan else { return };
        let plan = if !chain.rest.iter().chain([&ask]).all(|ask| self.is_inside(*ask)) {
            self.fails(ask, BlkError::Cancelled)
        } else if self.is_lost(ask.op) {
            self.fails(ask, BlkError::Lost)
        } else {
            finding!("spec", "request {} of queue {queue} was held and is not tried again: {ask:?}", chain.id)
        };
        self.settles(queue, chain, plan);
    }

    fn settles(&mut self, queue: u16, chain: &mut Flying, plan: Plan) {
        chain.leaving = matches!(plan, Plan::Ends { .. });
        chain.plan = super::ring::Plan::Blk(plan);
        if let (true, Some(times)) = (chain.leaving, &mut self.times) {
            times.answered(queue, chain.taken_ns);
        }
    }

    pub(super) fn popped(&mut self, ram: &Ram, queue: u16, chain: &mut Flying) {
        let plan = self.plan(ram, chain);
        if let Some(limit) = &mut self.limit {
            let moved = |ask: &Ask| if ask.op == BlkOp::Discard { 0 } else { ask.len };
            limit.taken(match plan {
                Plan::Ask(ask) => moved(&ask) + chain.rest.iter().map(moved).sum::<u64>(),
                _ => 0,
            });
        }
        let Plan::Ask(ask) = plan else {
            chain.leaving = true;
            chain.plan = super::ring::Plan::Blk(plan);
            return;
        };
        if let Some(times) = &mut self.times {
            chain.taken_ns = times.taken(queue);
        }
        let plan = if self.is_lost(ask.op) { self.fails(ask, BlkError::Lost) } else { plan };
        self.settles(queue, chain, plan);
    }

    /// The disk is asked for something under a token of a queue: for what it is asked for next of a request, for one that was
    /// held, or for the request of the chain popped last. The moment that a flush makes durable.
    pub fn asked(
        &mut self,
        chains: &mut [Flying],
        (queue, number): (u16, u64),
        ask: Ask,
        ranges: impl Fn() -> Vec<Range>,
    ) -> u64 {
        let token = token(queue, number);
        let head = number as u16;
        let mut again = None;
        for (at, chain) in chains.iter_mut().enumerate() {
            let super::ring::Plan::Blk(plan) = &mut chain.plan else { continue };
            match *plan {
                Plan::Unsettled(write, own, moment) if own == token && ask.op == BlkOp::Flush => {
                    *plan = Plan::Settling(write, token);
                    return moment;
                }
                Plan::Next(next, own) if own == token && ask == next => {
                    *plan = Plan::Working(next, token);
                    return self.failed.0;
                }
                Plan::Again(held) if ask == held && chain.head.is_none_or(|own| own == head) => {
                    again = again.filter(|_| chain.head.is_none()).or(Some(at));
                }
                _ => {}
            }
        }
        let expected = again.map_or(Plan::Ask(ask), |_| Plan::Again(ask));
        let may = again.is_none() || self.is_inside(ask) && !self.is_lost(ask.op);
        let chain = match again {
            Some(at) => chains.get_mut(at),
            None => chains.last_mut().filter(|chain| chain.head.is_none_or(|own| own == head)),
        };
        let Some(chain) = chain.filter(|chain| may && chain.plan == super::ring::Plan::Blk(expected)) else {
            let plans: Vec<_> = chains.iter().map(|chain| chain.plan).collect();
            finding!("spec", "the disk is asked for {ask:?}, which is not what the driver's request means: {plans:?}")
        };
        let mut expected = Vec::new();
        match ask.op {
            BlkOp::Read => pieces(&chain.writable, 0, ask.len, |addr, len| expected.push((addr, len as u32))),
            BlkOp::Write { .. } => pieces(&chain.readable, 16, ask.len, |addr, len| expected.push((addr, len as u32))),
            _ => {}
        }
        let found = ranges();
        if found != expected {
            finding!("spec", "the disk gets guest ranges {found:x?} where the request has {expected:x?}");
        }
        chain.head = Some(head);
        chain.plan = super::ring::Plan::Blk(Plan::Working(ask, token));
        self.failed.0
    }

    /// The disk has done `ask`, or not, which it was asked for at `moment`.
    pub fn done(&mut self, ask: Ask, moment: u64, result: Result<(), BlkError>) {
        match (ask.op, result) {
            (BlkOp::Flush, Ok(())) => self.failed.1 = self.failed.1.max(moment),
            (BlkOp::Flush, Err(BlkError::Cancelled)) => {}
            (BlkOp::Flush, Err(_)) => self.lost = true,
            (BlkOp::Write { .. } | BlkOp::WriteZeroes { .. }, Err(error))
                if !matches!(error, BlkError::Unsupported | BlkError::Memory) =>
            {
                self.failed.0 += 1;
                let excused = matches!(error, BlkError::Cancelled | BlkError::NoSpace);
                self.lost |= is_durable(ask.op) && !excused;
            }
            _ => {}
        }
    }

    /// The disk refuses or ends request `token`; `content` is the digest of what it read, if that is still there.
    pub fn answered(
        &mut self,
        chains: &mut [Flying],
        (queue, number): (u16, u64),
        result: Result<(), BlkError>,
        content: Option<u64>,
    ) {
        let token = token(queue, number);
        for chain in chains {
            let super::ring::Plan::Blk(plan) = chain.plan else { continue };
            let (ask, settled) = match plan {
                Plan::Working(ask, own) if own == token => (ask, self.failed.1 >= self.failed.0),
                Plan::Settling(ask, own) if own == token => (ask, self.failed.1 >= self.failed.0),
                _ => continue,
            };
            let next = match result {
                Err(error) => self.fails(ask, error),
                Ok(()) if self.is_lost(ask.op) => self.fails(ask, BlkError::Lost),
                Ok(()) if is_durable(ask.op) && ask.op != BlkOp::Flush && !settled => {
                    Plan::Unsettled(ask, token, self.failed.0)
                }
                Ok(()) => match chain.rest.pop() {
                    Some(next) => Plan::Next(next, token),
                    None if ask.op == BlkOp::Read => Plan::Ends { status: OK, filled: ask.len, content, serial: false },
                    None => ends(OK),
                },
            };
            self.settles(queue, chain, next);
        }
    }

    pub(super) fn used(&self, ram: &Ram, chain: &Flying, len: u32) {
        let super::ring::Plan::Blk(plan) = chain.plan else { return };
        let (status, filled, content, serial) = match plan {
            Plan::Mute if len == 0 => return,
            Plan::Ends { status, filled, content, serial } => (status, filled, content, serial),
            _ => finding!("spec", "a request is answered with {len} bytes while it stands at {plan:?}"),
        };
        let room = chain.writable_bytes - 1;
        let expected = if filled == room { room + 1 } else { filled };
        if u64::from(len) != expected {
            finding!("spec", "used length {len} where {filled} of {room} bytes and the status are written");
        }
        if chain.shared {
            return;
        }
        let mut byte = [0];
        gather(ram, &chain.writable, room, &mut byte);
        if byte[0] != status {
            finding!("spec", "status {} of a request that ends with {status}", byte[0]);
        }
        if serial {
            let mut id = [0; 20];
            let id = &mut id[..filled as usize];
            gather(ram, &chain.writable, 0, id);
            let expected = self.config.serial.bytes().chain(std::iter::repeat(0));
            if !id.iter().copied().eq(expected.take(filled as usize)) {
                finding!("spec", "the serial number reads {id:?}");
            }
        }
        let Some(content) = content else { return };
        let mut found = Stream::default();
        pieces(&chain.writable, 0, filled, |addr, len| {
            let mut here = [0; 512];
            let mut done = 0;
            while done < len as usize {
                let count = (len as usize - done).min(512);
                ram.peek(addr + done as u64, &mut here[..count]);
                found.add(&here[..count]);
                done += count;
            }
        });
        if found.digest() != content {
            finding!("spec", "a read is acknowledged whose buffer does not hold what the disk gave");
        }
    }
}

/// A token that no two queues have.
fn token(queue: u16, number: u64) -> u64 {
    number | u64::from(queue) << 48
}

fn is_durable(op: BlkOp) -> bool {
    matches!(op, BlkOp::Flush | BlkOp::Write { durable: true } | BlkOp::WriteZeroes { durable: true, .. })
}

/// Digest of what a read gives.
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    let mut stream = Stream::default();
    stream.add(bytes);
    stream.digest()
}
