//! The transmit queue: frames from the driver to the link.

use vm_memory::GuestMemory;

use super::backend::{HEADER_BYTES, Header, MAX_FRAME_RANGES, NetBackend, Sent};
use super::header::{Framing, MAX_FRAME_BYTES, for_the_link};
use crate::planted::{Defect, is_planted};
use crate::virtio::queue::{Chain, GuestRange};
use crate::virtio::worker::WorkerQueue;

pub(super) struct Tx {
    pub queue: WorkerQueue,
    framing: Framing,
    /// A frame the link did not take yet.
    blocked: Option<Chain>,
    /// Guest ranges of the frame being sent, kept for their allocation.
    ranges: Vec<GuestRange>,
}

/// What became of one chain.
enum Verdict {
    Sent { len_bytes: u64 },
    Lost,
    Malformed,
    Blocked,
}

impl Tx {
    pub fn new(queue: WorkerQueue) -> Self {
        Self { queue, framing: Framing::default(), blocked: None, ranges: Vec::with_capacity(MAX_FRAME_RANGES) }
    }

    /// The queue has started.
    pub fn started(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// One round: up to a ring of frames. Returns whether to come back at once, and whether to wait for the link.
    pub fn step<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B) -> (bool, bool) {
        if !self.queue.is_live() {
            return (false, false);
        }
        if self.blocked.is_some() && is_planted(Defect::StalledForGood) {
            return (false, false);
        }
        self.queue.disable_kicks(mem);
        let (mut drained, mut blocked) = (false, false);
        for _ in 0..self.queue.size() {
            let Some(chain) = self.blocked.take().or_else(|| self.queue.pop(mem)) else {
                drained = true;
                break;
            };
            match self.send(mem, backend, &chain) {
                Verdict::Sent { len_bytes } => self.queue.counters().bytes_from_guest.add(len_bytes),
                Verdict::Lost => self.queue.counters().dropped.count(),
                Verdict::Malformed => self.queue.counters().malformed.count(),
                Verdict::Blocked => {
                    self.blocked = Some(chain);
                    blocked = true;
                    break;
                }
            }
            self.queue.push(mem, chain, 0);
        }
        self.queue.publish(mem);
        // While the link is full a kick would be in vain.
        let again = if drained { self.queue.enable_kicks(mem) } else { !blocked };
        (again, blocked)
    }

    fn send<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B, chain: &Chain) -> Verdict {
        let mut header: Header = [0; HEADER_BYTES];
        let mut frame = chain.reader(mem);
        let Some(driver_header) = header.get_mut(..self.framing.header_bytes) else { return Verdict::Malformed };
        if frame.read(driver_header).is_err() {
            return Verdict::Malformed;
        }
        for_the_link(&mut header);
        let len_bytes = frame.remaining();
        if len_bytes == 0 {
            return Verdict::Malformed;
        }
        self.ranges.clear();
        frame.append_ranges(&mut self.ranges);
        if len_bytes > MAX_FRAME_BYTES as u64 || self.ranges.len() > MAX_FRAME_RANGES {
            return Verdict::Lost;
        }
        match backend.send(mem, &header, &self.ranges) {
            Ok(Sent::Done) => Verdict::Sent { len_bytes },
            Ok(Sent::WouldBlock) => Verdict::Blocked,
            Err(_) => Verdict::Lost,
        }
    }

    /// Puts the frame that waits for the link back into the ring, so that the queue's state accounts for it.
    pub fn release(&mut self) {
        if let Some(chain) = self.blocked.take() {
            self.queue.unpop(chain);
        }
    }

    /// Forgets everything of the driver that is going away.
    pub fn abandon(&mut self) {
        if let Some(chain) = self.blocked.take() {
            chain.abandon();
        }
    }
}
