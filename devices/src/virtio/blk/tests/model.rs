//! Random requests on two queues of a disk that fails, delays, reorders and reads short, loses what it has not flushed, and
//! forgets that it did: no request is lost or answered twice, reads give what was written, and what was called durable is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};

const QUEUES: usize = 2;
const DISK_SECTORS: u64 = 48;
const QUEUE_SIZE: u16 = 16;
/// Requests, and whatever else happens between them.
const OPERATIONS: usize = 30_000;
/// As many as an evening's worth of tests would do.
const OPERATIONS_AT_LENGTH: usize = 1_000_000;

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What the rules allow the device to make of a request that the disk called done.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    needs_flush: bool,
    lost: bool,
    /// A flush had failed that nobody has been told of yet.
    blameless: bool,
}

struct Pending {
    queue: usize,
    token: RequestToken,
    op: BlkOp,
    first: usize,
    count: usize,
    ranges: Vec<crate::virtio::queue::GuestRange>,
    number: u64,
    cancelled: bool,
}

/// The disk as it is: a stamp a sector.
struct Platter {
    random: Random,
    /// What a reader gets.
    cached: Vec<u64>,
    /// What is left after a power cut.
    stable: Vec<u64>,
    /// What a flush would write.
    dirty: Vec<bool>,
    pending: Vec<Pending>,
    ready: Vec<(Pending, Result<(), BlkError>)>,
    /// Requests so far.
    number: u64,
    faults: bool,
    /// A flush failed, reported or not.
    dropped: bool,
    // What the device has been told.
    unsettled: Option<u64>,
    lost: bool,
    verdicts: HashMap<(usize, u64), Verdict>,
}

#[derive(Clone)]
struct Handle(Arc<Mutex<Platter>>, usize);

impl Platter {
    fn fault(&mut self, op: BlkOp) -> Option<BlkError> {
        if !self.faults || !self.random.one_in(40) {
            return None;
        }
        Some(match op {
            BlkOp::Read => [BlkError::Short, EIO][self.random.below(2) as usize],
            BlkOp::Flush => EIO,
            _ => [BlkError::NoSpace, EIO][self.random.below(2) as usize],
        })
    }

    /// Ends a request that was asked for, any of them.
    fn end_one(&mut self, mem: &GuestRam) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.random.below(self.pending.len() as u64) as usize;
        let request = self.pending.swap_remove(at);
        let cancelled = (request.cancelled && self.random.one_in(2)).then_some(BlkError::Cancelled);
        let fault = cancelled.or_else(|| self.fault(request.op));
        // What fails may have been done in part.
        let done = match fault {
            None => request.count,
            Some(_) => self.random.below(request.count as u64 + 1) as usize,
        };
        let sectors = request.first..request.first + done;
        match request.op {
            BlkOp::Read => {
                for (at, sector) in bytes_of(&request.ranges).zip(sectors) {
                    mem.write_obj(self.cached[sector], GuestAddress(at)).unwrap();
                }
            }
            BlkOp::Write { durable } => {
                for (at, sector) in bytes_of(&request.ranges).zip(sectors) {
                    self.cached[sector] = mem.read_obj(GuestAddress(at)).unwrap();
                    self.dirty[sector] = true;
                }
                self.make_durable(durable && fault.is_none(), &request);
            }
            BlkOp::WriteZeroes { durable, .. } => {
                for sector in sectors {
                    self.cached[sector] = 0;
                    self.dirty[sector] = true;
                }
                self.make_durable(durable && fault.is_none(), &request);
            }
            BlkOp::Discard => {}
            BlkOp::Flush => match fault {
                Some(EIO) => {
                    // What could not be written counts as clean from now on.
                    self.dropped = true;
                    for sector in 0..self.dirty.len() {
                        self.dirty[sector] &= self.random.one_in(2);
                    }
                }
                Some(_) => {}
                None => {
                    for sector in 0..self.dirty.len() {
                        if std::mem::take(&mut self.dirty[sector]) {
                            self.stable[sector] = self.cached[sector];
                        }
                    }
                }
            },
        }
        if request.op.is_durable() && fault == Some(EIO) {
            self.dropped = true;
        }
        let at = self.random.below(self.ready.len() as u64 + 1) as usize;
        self.ready.insert(at, (request, fault.map_or(Ok(()), Err)));
    }

    fn make_durable(&mut self, durable: bool, request: &Pending) {
        for sector in (request.first..request.first + request.count).filter(|_| durable) {
            self.stable[sector] = self.cached[sector];
            self.dirty[sector] = false;
        }
    }

    /// The device is told how a request ended: what it has to know from now on.
    fn told(&mut self, request: &Pending, result: Result<(), BlkError>) {
        let durable = request.op.is_durable();
        match (request.op, result) {
            (BlkOp::Flush, Ok(())) => {
                self.unsettled = self.unsettled.filter(|&since| since > request.number);
            }
            (BlkOp::Flush, Err(BlkError::Cancelled)) => {}
            (BlkOp::Flush, Err(_)) => self.lost = true,
            (BlkOp::Write { .. } | BlkOp::WriteZeroes { .. }, Err(error)) => {
                self.unsettled = Some(self.number);
                self.lost |= durable && error == EIO;
            }
            _ => {}
        }
        let needs_flush = request.op != BlkOp::Flush && self.unsettled.is_some();
        let verdict = Verdict { needs_flush, lost: self.lost, blameless: self.dropped && !self.lost };
        self.verdicts.insert((request.queue, request.token.0 & 0xffff), verdict);
    }
}

/// Where the stamp of each sector lies.
fn bytes_of(ranges: &[crate::virtio::queue::GuestRange]) -> impl Iterator<Item = u64> + '_ {
    ranges.iter().flat_map(|range| (0..u64::from(range.len) / 512).map(|sector| range.addr + sector * 512))
}

const EIO: BlkError = BlkError::Host(5);

impl BlkBackend<GuestRam> for Handle {
    fn has_room(&self) -> bool {
        self.in_flight() < 12
    }

    fn submit(&mut self, _mem: &GuestRam, request: BlkRequest<'_>) -> Result<(), BlkError> {
        let disk = &mut *self.0.lock().unwrap();
        disk.number += 1;
        let pending = Pending {
            queue: self.1,
            token: request.token,
            op: request.op,
            first: (request.offset_bytes / 512) as usize,
            count: (request.len_bytes / 512) as usize,
            ranges: request.ranges.to_vec(),
            number: disk.number,
            cancelled: false,
        };
        let twin = |other: &Pending| other.queue == pending.queue && other.token == pending.token;
        assert!(!disk.pending.iter().any(twin), "a request is asked for twice at a time");
        if disk.faults && disk.random.one_in(200) {
            let error = if request.op == BlkOp::Flush { EIO } else { BlkError::NoSpace };
            disk.dropped |= request.op == BlkOp::Flush;
            disk.told(&pending, Err(error));
            return Err(error);
        }
        disk.pending.push(pending);
        Ok(())
    }

    fn poll(&mut self, _mem: &GuestRam, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        loop {
            let next = {
                let disk = &mut *self.0.lock().unwrap();
                let Some(at) = disk.ready.iter().position(|(request, _)| request.queue == self.1) else { return };
                let (request, result) = disk.ready.remove(at);
                disk.told(&request, result);
                (request.token, result)
            };
            done(next.0, next.1);
        }
    }

    fn cancel_all(&mut self) {
        for request in &mut self.0.lock().unwrap().pending {
            request.cancelled |= request.queue == self.1;
        }
    }

    fn in_flight(&self) -> usize {
        let disk = self.0.lock().unwrap();
        let own = |request: &&Pending| request.queue == self.1;
        disk.pending.iter().filter(own).count() + disk.ready.iter().map(|(request, _)| request).filter(own).count()
    }
}

/// Counts requests that were held.
#[derive(Default)]
struct Held(Mutex<usize>);

impl FailureSink for Held {
    fn failed(&self, failure: Failure) {
        *self.0.lock().unwrap() += usize::from(failure.held);
    }
}

#[derive(Clone, Debug)]
struct Asked {
    kind: u32,
    sectors: std::ops::Range<u64>,
    stamp: u64,
    posted: Posted,
    durable: bool,
    /// Of a flush: what every sector held that a write had been acknowledged for, and how often the operator had spoken.
    floor: (Vec<u64>, u32),
}

struct Driver {
    mem: GuestRam,
    queues: Vec<DriverQueue>,
    workers: Vec<Box<dyn VirtioWorker<GuestRam>>>,
    states: Vec<Option<QueueState>>,
    interrupt: Arc<RecordingInterrupt>,
    config: BlkConfig,
    device: BlkDevice,
    disk: Arc<Mutex<Platter>>,
    held: Arc<Held>,
    features: u64,
    random: Random,
    asked: Vec<BTreeMap<u16, Asked>>,
    /// What a sector may hold: one stamp, or several after a write that failed.
    content: Vec<Vec<u64>>,
    acknowledged: Vec<u64>,
    /// The stamp that a write would have had in place of the last request that zeroes.
    zeroed: Vec<u64>,
    stamp: u64,
    spoken: u32,
    answers: [usize; 2],
    /// Queues with held requests that went on in another process.
    moved: usize,
}

fn workers(device: &BlkDevice, disk: &Arc<Mutex<Platter>>) -> Vec<Box<dyn VirtioWorker<GuestRam>>> {
    let worker = |queue| -> Box<dyn VirtioWorker<GuestRam>> {
        Box::new(device.worker(queue as u16, Handle(disk.clone(), queue), Arc::default()))
    };
    (0..QUEUES).map(worker).collect()
}

impl Driver {
    fn new(seed: u64, features: u64, on_write_error: OnError) -> Self {
        let mem = guest_ram(0x40_0000);
        let platter = Platter {
            random: Random(seed ^ 0x5555),
            cached: vec![0; DISK_SECTORS as usize],
            stable: vec![0; DISK_SECTORS as usize],
            dirty: vec![false; DISK_SECTORS as usize],
            pending: Vec::new(),
            ready: Vec::new(),
            number: 0,
            faults: true,
            dropped: false,
            unsettled: None,
            lost: false,
            verdicts: HashMap::new(),
        };
        let disk = Arc::new(Mutex::new(platter));
        let erase = Some(EraseLimits { max_sectors: 8, max_segments: 2, alignment_sectors: 1 });
        let config = BlkConfig {
            capacity_sectors: DISK_SECTORS,
            queue_size: QUEUE_SIZE,
            queues: QUEUES as u16,
            write_zeroes: erase,
            on_write_error,
            on_read_error: if on_write_error == OnError::Hold { OnError::Hold } else { OnError::Report },
            ..Default::default()
        };
        let held = Arc::<Held>::default();
        let device = BlkDevice::with_sink(config.clone(), held.clone());
        let workers = workers(&device, &disk);
        let mut driver = Self {
            queues: Vec::new(),
            workers,
            states: vec![None; QUEUES],
            interrupt: RecordingInterrupt::new(),
            device,
            disk,
            held,
            features,
            random: Random(seed),
            asked: vec![BTreeMap::new(); QUEUES],
            content: vec![vec![0]; DISK_SECTORS as usize],
            acknowledged: vec![0; DISK_SECTORS as usize],
            zeroed: vec![0; DISK_SECTORS as usize],
            stamp: 0,
            spoken: 0,
            answers: [0; 2],
            moved: 0,
            config,
            mem,
        };
        driver.start();
        driver
    }

    fn start(&mut self) {
        self.queues = (0..QUEUES as u64)
            .map(|queue| {
                DriverQueue::new(&self.mem, 0x10_0000 + queue * DriverQueue::WINDOW, QUEUE_SIZE, self.features)
            })
            .collect();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let activation = self.interrupt.activation(self.features);
            worker.start(&self.mem, index as u16, self.queues[index].state(), &activation);
        }
    }

    /// Sectors nobody works on.
    fn free_sectors(&mut self) -> Option<std::ops::Range<u64>> {
        let first = self.random.below(DISK_SECTORS);
        let sectors = first..(first + 1 + self.random.below(4)).min(DISK_SECTORS);
        let overlaps = |asked: &Asked| asked.sectors.start < sectors.end && sectors.start < asked.sectors.end;
        (!self.asked.iter().flat_map(BTreeMap::values).any(overlaps)).then_some(sectors)
    }

    fn ask(&mut self) {
        let queue = self.random.below(QUEUES as u64) as usize;
        let kind = [0, 0, 1, 1, 1, 4, 13][self.random.below(7) as usize];
        let Some(sectors) = self.free_sectors().filter(|_| self.asked[queue].len() < 4) else { return };
        let bytes = (sectors.end - sectors.start) as u32 * 512;
        self.stamp += 1;
        let stamp = if kind == 13 { 0 } else { self.stamp };
        let bufs = match kind {
            0 => vec![header(0, sectors.start), Buf::Write(bytes), Buf::Write(1)],
            1 => {
                let sector = [stamp.to_le_bytes().as_slice(), &[0; 504]].concat();
                let data = sector.repeat(bytes as usize / 512);
                vec![header(1, sectors.start), Buf::Read(data), Buf::Write(1)]
            }
            4 => vec![header(4, 0), Buf::Write(1)],
            _ => vec![header(13, 0), segment(sectors.start, bytes / 512, 0), Buf::Write(1)],
        };
        let posted = self.queues[queue].post(&bufs);
        self.queues[queue].publish();
        let sectors = if kind == 4 { 0..0 } else { sectors };
        if kind == 13 {
            self.zeroed[sectors.start as usize..sectors.end as usize].fill(self.stamp);
        }
        if matches!(kind, 1 | 13) {
            for sector in sectors.clone() {
                self.content[sector as usize].push(stamp);
            }
        }
        let floor = if kind == 4 { (self.acknowledged.clone(), self.spoken) } else { (Vec::new(), self.spoken) };
        let durable = kind == 4 || (self.features & FLUSH == 0 && matches!(kind, 1 | 13));
        let asked = Asked { kind, sectors, stamp, posted: posted.clone(), durable, floor };
        assert!(self.asked[queue].insert(posted.head, asked).is_none());
    }

    fn step(&mut self, queue: usize) {
        if self.states[queue].is_none() {
            self.workers[queue].step(&self.mem);
            self.collect(queue);
        }
    }

    fn collect(&mut self, queue: usize) {
        for used in self.queues[queue].used() {
            let asked = self.asked[queue].remove(&(used.head as u16)).expect("each request is answered once");
            let status = self.queues[queue].read(*asked.posted.buffers.last().unwrap())[0];
            self.answers[usize::from(status != 0)] += 1;
            self.judge(queue, &asked, status == 0);
        }
    }

    fn judge(&mut self, queue: usize, asked: &Asked, succeeded: bool) {
        let disk = self.disk.lock().unwrap();
        if succeeded && asked.durable {
            // The driver of a packed ring does not know what the device calls its request.
            let packed = self.features & F_RING_PACKED != 0;
            let verdict = (!packed).then(|| disk.verdicts[&(queue, u64::from(asked.posted.head))]);
            let blameless = match verdict {
                Some(Verdict { needs_flush, lost, blameless }) => {
                    assert!(!needs_flush, "{asked:?} is durable after a write failed, without a flush");
                    assert!(!lost, "{asked:?} is durable after a flush failed");
                    blameless
                }
                None => disk.dropped,
            };
            if !blameless && asked.floor.1 == self.spoken {
                let floor = asked.floor.0.iter().enumerate().map(|(sector, &stamp)| (sector as u64, stamp));
                for (sector, stamp) in floor.filter(|(_, stamp)| *stamp > 0) {
                    let found = disk.stable[sector as usize];
                    let zeroed = found == 0 && self.zeroed[sector as usize] > stamp;
                    assert!(found >= stamp || zeroed, "sector {sector} lost {stamp}, a power cut leaves {found}");
                }
                for sector in asked.sectors.clone() {
                    assert_eq!(disk.stable[sector as usize], asked.stamp, "{asked:?} would not survive a power cut");
                }
            }
        }
        for (nth, sector) in asked.sectors.clone().enumerate() {
            let content = &mut self.content[sector as usize];
            match asked.kind {
                0 if succeeded => {
                    let at = asked.posted.buffers[1].addr + nth as u64 * 512;
                    let found: u64 = self.mem.read_obj(GuestAddress(at)).unwrap();
                    assert!(content.contains(&found), "sector {sector} reads {found}, not one of {content:?}");
                    *content = vec![found];
                }
                1 | 13 if succeeded => {
                    *content = vec![asked.stamp];
                    // What was under way when the operator spoke may have been lost before.
                    if asked.floor.1 == self.spoken {
                        self.acknowledged[sector as usize] = asked.stamp;
                    }
                }
                _ => {}
            }
        }
    }

    /// Stands still; what was held is tried again, and the operator says to go on.
    fn pause(&mut self) {
        for queue in 0..QUEUES {
            self.workers[queue].begin_stop(&self.mem);
        }
        for queue in 0..QUEUES {
            while !self.workers[queue].poll_stopped(&self.mem, false) {
                self.disk.lock().unwrap().end_one(&self.mem);
            }
            self.collect(queue);
        }
        let states: Vec<_> = (0..QUEUES).map(|queue| self.workers[queue].take_state(queue as u16).unwrap()).collect();
        if self.random.one_in(2) {
            self.move_on();
        }
        self.go_on();
        for (queue, state) in states.into_iter().enumerate() {
            let activation = self.interrupt.activation(self.features);
            self.workers[queue].start(&self.mem, queue as u16, state, &activation);
        }
    }

    /// Another process takes over what stands still: only what is saved gets there.
    fn move_on(&mut self) {
        let saved: Vec<_> = self.workers.iter().map(|worker| worker.save()).collect();
        self.moved += saved.iter().filter(|saved| saved.held.is_some()).count();
        self.device = BlkDevice::with_sink(self.config.clone(), self.held.clone());
        self.workers = workers(&self.device, &self.disk);
        for (worker, saved) in self.workers.iter_mut().zip(saved) {
            let written = serde_json::to_string(&saved).unwrap();
            worker.restore(&serde_json::from_str(&written).unwrap()).unwrap();
        }
    }

    fn go_on(&mut self) {
        self.device.go_on();
        let mut disk = self.disk.lock().unwrap();
        (disk.lost, disk.dropped) = (false, disk.ready.iter().any(|(_, result)| *result == Err(EIO)));
        self.spoken += 1;
        self.acknowledged.fill(0);
        *self.held.0.lock().unwrap() = 0;
    }

    /// The driver resets the device: what was under way has no answer any more.
    fn reset(&mut self) {
        for queue in 0..QUEUES {
            self.workers[queue].begin_stop(&self.mem);
            while !self.workers[queue].poll_stopped(&self.mem, true) {
                self.disk.lock().unwrap().end_one(&self.mem);
            }
            self.workers[queue].take_state(queue as u16);
            // What came back before the reset the driver may still find.
            self.collect(queue);
            self.asked[queue].clear();
        }
        self.start();
    }

    fn settle(&mut self) {
        self.disk.lock().unwrap().faults = false;
        for _ in 0..10_000 {
            if self.asked.iter().all(BTreeMap::is_empty) {
                return;
            }
            if *self.held.0.lock().unwrap() > 0 {
                self.pause();
            }
            (0..QUEUES).for_each(|queue| self.step(queue));
            self.disk.lock().unwrap().end_one(&self.mem);
        }
        panic!("requests are left hanging: {:?}", self.asked);
    }
}

fn run(operations: usize, seed: u64, features: u64, on_write_error: OnError) {
    let mut driver = Driver::new(seed, features, on_write_error);
    for _ in 0..operations {
        match driver.random.below(100) {
            0..45 => driver.ask(),
            45..75 => {
                let queue = driver.random.below(QUEUES as u64) as usize;
                driver.step(queue);
            }
            75..98 => driver.disk.lock().unwrap().end_one(&driver.mem),
            98 if driver.random.one_in(6) => driver.reset(),
            98 if driver.random.one_in(6) => driver.go_on(),
            99 if driver.random.one_in(4) || *driver.held.0.lock().unwrap() > 0 => driver.pause(),
            _ => {}
        }
    }
    driver.settle();
    let [succeeded, failed] = driver.answers;
    assert!(succeeded > operations / 20, "{succeeded} requests succeeded: the disk is hardly used");
    assert!(on_write_error == OnError::Hold || failed > 0, "nothing failed");
    assert!(on_write_error == OnError::Report || driver.moved > operations / 2000, "{} queues moved on", driver.moved);
}

fn run_all(operations: usize) {
    let kinds = [
        (MODERN | FLUSH, OnError::Report),
        (MODERN, OnError::Report),
        (MODERN | FLUSH | F_EVENT_IDX | F_RING_PACKED, OnError::HoldIfFull),
        (MODERN | F_RING_PACKED, OnError::Hold),
        (MODERN | FLUSH | F_IN_ORDER, OnError::Hold),
    ];
    for (seed, (features, on_write_error)) in kinds.into_iter().enumerate() {
        run(operations / kinds.len(), seed as u64, features, on_write_error);
    }
}

#[test]
fn whatever_the_disk_does_no_request_is_lost_and_no_promise_broken() {
    run_all(OPERATIONS);
}

#[test]
#[ignore = "at length: the full lane runs it"]
fn whatever_the_disk_does_in_a_million_operations_no_request_is_lost_and_no_promise_broken() {
    run_all(OPERATIONS_AT_LENGTH);
}
