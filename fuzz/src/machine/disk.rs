//! A disk that completes what the program says, when it says so, with the result it says.

use std::sync::Arc;

use devices::virtio::blk::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken};
use devices::virtio::queue::GuestRange;

use super::ram::Ram;
use crate::finding;
use crate::lone::Lone;
use crate::oracle::blk::{Ask, digest};
use crate::oracle::{Device, Oracles, resources};

/// A disk. Clones are the same one.
#[derive(Clone)]
pub struct Disk(pub Arc<Lone<Inner>>);

/// What is in it.
#[derive(Default)]
pub struct Inner {
    /// Requests wait until they are told to complete.
    pub hold: bool,
    /// Requests taken at a time.
    pub room: usize,
    /// The next submission fails at once.
    pub refuse: Option<BlkError>,
    /// Cancelling does not end a request at once.
    pub slow_cancel: bool,
    requests: Vec<Request>,
    /// Those of them that nobody has committed.
    staged: usize,
    /// Several answers were collected together, and what they lead to is still being asked for. Nothing is refused
    /// meanwhile: the models have taken all of these answers in, and the device takes one in after the other.
    crowded: bool,
    /// Requests that nobody waits for, kept for their allocations.
    spare: Vec<Vec<GuestRange>>,
}

struct Request {
    queue: u16,
    token: u64,
    ask: Ask,
    ranges: Vec<GuestRange>,
    /// It has begun: nothing that is only submitted does.
    begun: bool,
    done: Option<Result<(), BlkError>>,
    cancelled: bool,
    /// Digest of what a read gave, and when.
    content: (u64, u64),
    /// What had failed when it was asked for.
    moment: u64,
}

/// One queue's handle to the disk.
pub struct Handle {
    disk: Disk,
    queue: u16,
    ram: Ram,
    oracles: Arc<Lone<Oracles>>,
}

impl Disk {
    /// A disk without requests.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Lone::new(Inner { room: 16, ..Inner::default() })))
    }

    /// The handle of `queue`.
    #[must_use]
    pub fn handle(&self, queue: u16, ram: &Ram, oracles: &Arc<Lone<Oracles>>) -> Handle {
        Handle { disk: self.clone(), queue, ram: ram.clone(), oracles: oracles.clone() }
    }

    /// Lets the `nth` waiting request complete with `error`, or for real. The queue to wake; `None` where none waits.
    pub fn complete(&self, nth: usize, error: Option<BlkError>, ram: &Ram, oracles: &Lone<Oracles>) -> Option<u16> {
        let inner = &mut *self.0.open();
        let waiting = inner.requests.iter().filter(|request| request.waits()).count();
        let nth = nth.checked_rem(waiting)?;
        let request = inner.requests.iter_mut().filter(|request| request.waits()).nth(nth)?;
        let result = match error {
            Some(error) => Err(error),
            None if request.cancelled && nth % 2 == 1 => Err(BlkError::Cancelled),
            None => execute(request, ram, &mut oracles.open()),
        };
        request.done = Some(result);
        Some(request.queue)
    }

    /// Requests of `queue`, or of all, that a worker has not collected.
    #[must_use]
    pub fn busy(&self, queue: Option<u16>) -> usize {
        let inner = self.0.open();
        inner.requests.iter().filter(|request| queue.is_none_or(|queue| queue == request.queue)).count()
    }

    /// Whether it takes no more requests for now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let inner = self.0.open();
        inner.requests.len() >= inner.room
    }

    /// Requests that were submitted and not committed: they would never begin.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.0.open().staged
    }
}

impl Request {
    fn waits(&self) -> bool {
        self.begun && self.done.is_none()
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

/// Moves the data: at completion, as an engine would.
fn execute(request: &mut Request, ram: &Ram, oracles: &mut Oracles) -> Result<(), BlkError> {
    let Oracles { rings, device: Device::Blk(model), moment, .. } = oracles else { return Ok(()) };
    let (start, len) = (request.ask.offset as usize, request.ask.len as usize);
    let Some(area) = model.bytes.get_mut(start..start + len) else {
        finding!("spec", "a request for {:?} goes beyond the disk", request.ask)
    };
    match request.ask.op {
        BlkOp::Flush => {}
        BlkOp::Discard | BlkOp::WriteZeroes { .. } => area.fill(0),
        BlkOp::Read | BlkOp::Write { .. } => {
            request.content = (if request.ask.op == BlkOp::Read { digest(area) } else { 0 }, *moment);
            let mut rest = area;
            for range in &request.ranges {
                let (here, after) = rest.split_at_mut(range.len as usize);
                let inside = if request.ask.op == BlkOp::Read {
                    if !rings.may_write(range.addr, range.len.into()) {
                        finding!("spec", "the disk fills {range:x?}, which no chain in flight offers any more");
                    }
                    ram.poke(range.addr, here)
                } else {
                    ram.peek(range.addr, here)
                };
                if !inside {
                    finding!("spec", "the disk is given guest range {range:x?} outside memory");
                }
                rest = after;
            }
        }
    }
    Ok(())
}

impl BlkBackend<Ram> for Handle {
    fn has_room(&self) -> bool {
        let inner = &mut *self.disk.0.open();
        inner.crowded = false;
        inner.requests.len() < inner.room
    }

    fn submit(&mut self, _mem: &Ram, request: BlkRequest<'_>) -> Result<(), BlkError> {
        let _quiet = resources::Quiet::begin();
        let ask = Ask { op: request.op, offset: request.offset_bytes, len: request.len_bytes };
        let token = request.token.0;
        let oracles = &mut *self.oracles.open();
        let inner = &mut *self.disk.0.open();
        if inner.requests.iter().any(|other| other.queue == self.queue && other.token == token) {
            finding!("spec", "request {token:#x} of queue {} is submitted twice", self.queue);
        }
        let Oracles { rings, device, .. } = oracles;
        let mut moment = 0;
        if let (Device::Blk(blk), false) = (&mut *device, rings.blind()) {
            let ranges = || request.ranges.iter().map(|range| (range.addr, range.len)).collect();
            moment = blk.asked(rings.flying_mut(self.queue), (self.queue, token), ask, ranges);
        }
        if let (false, Some(error)) = (inner.crowded, inner.refuse) {
            inner.refuse = None;
            answer(oracles, self.queue, token, (ask, moment), Err(error), (0, 0));
            return Err(error);
        }
        let mut ranges = inner.spare.pop().unwrap_or_default();
        ranges.clear();
        ranges.extend_from_slice(request.ranges);
        inner.requests.push(Request {
            queue: self.queue,
            token,
            ask,
            ranges,
            begun: false,
            done: None,
            cancelled: false,
            content: (0, 0),
            moment,
        });
        inner.staged += 1;
        Ok(())
    }

    fn commit(&mut self) {
        let inner = &mut *self.disk.0.open();
        inner.crowded = false;
        if inner.staged == 0 {
            return;
        }
        let _quiet = resources::Quiet::begin();
        let own = |request: &&mut Request| request.queue == self.queue && !request.begun;
        for request in inner.requests.iter_mut().filter(own) {
            request.begun = true;
            inner.staged -= 1;
            if !inner.hold && request.done.is_none() {
                request.done = Some(execute(request, &self.ram, &mut self.oracles.open()));
            }
        }
    }

    fn poll(&mut self, _mem: &Ram, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        let mut answers = 0;
        loop {
            let next = {
                let _quiet = resources::Quiet::begin();
                let inner = &mut *self.disk.0.open();
                inner.crowded = answers > 1;
                answers += 1;
                let ready = |request: &Request| request.queue == self.queue && request.done.is_some();
                let Some(at) = inner.requests.iter().position(ready) else { return };
                let request = inner.requests.remove(at);
                inner.staged -= usize::from(!request.begun);
                inner.spare.push(request.ranges);
                let ask = (request.ask, request.moment);
                (request.token, request.done.unwrap_or(Ok(())), request.content, ask)
            };
            {
                let _quiet = resources::Quiet::begin();
                answer(&mut self.oracles.open(), self.queue, next.0, next.3, next.1, next.2);
            }
            done(RequestToken(next.0), next.1);
        }
    }

    fn cancel_all(&mut self) {
        let inner = &mut *self.disk.0.open();
        let slow = inner.slow_cancel;
        for request in inner.requests.iter_mut().filter(|request| request.queue == self.queue) {
            request.cancelled = true;
            if request.done.is_none() && !slow {
                request.done = Some(Err(BlkError::Cancelled));
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.disk.busy(Some(self.queue))
    }
}

/// Tells the model how a request ended.
fn answer(
    oracles: &mut Oracles,
    queue: u16,
    token: u64,
    (ask, moment): (Ask, u64),
    result: Result<(), BlkError>,
    content: (u64, u64),
) {
    // The guest may have written over it since.
    let content = Some(content.0).filter(|_| content.1 == oracles.moment);
    if let Device::Blk(blk) = &mut oracles.device {
        blk.done(ask, moment, result);
        // What comes of a request whose queue is reset nobody learns.
        if !oracles.rings.abandons(queue) {
            blk.answered(oracles.rings.flying_mut(queue), (queue, token), result, content);
        }
    }
}
