//! The transmit queue: frames from the driver to the link.

use vm_memory::GuestMemory;

use super::backend::{Addresses, HEADER_BYTES, Header, MAX_FRAME_RANGES, NetBackend, Sent};
use super::filter::Mac;
use super::header::{Framing, MAX_FRAME_BYTES, for_the_link};
use super::responder::{Ear, Heard, Sight};
use crate::planted::{Defect, is_planted};
use crate::virtio::limit::Throttle;
use crate::virtio::queue::{Chain, GuestRange, Near};
use crate::virtio::worker::WorkerQueue;

/// The most frames a round moves, and the bytes after which it moves no more: then the driver is shown what there is. With all
/// of a long ring in one round the driver sleeps while the worker works, and the worker while the driver does.
pub(super) const ROUND_FRAMES: u16 = 64;
pub(super) const ROUND_BYTES: u64 = 256 << 10;

pub(super) struct Tx {
    pub queue: WorkerQueue,
    framing: Framing,
    /// A frame the link did not take yet.
    blocked: Option<Chain>,
    /// Guest ranges of the frame being sent, kept for their allocation.
    ranges: Vec<GuestRange>,
    /// Where a frame was lately: the next one will be near it.
    buffers_at: u64,
    /// Hears what is for the card's own responder, where it has one.
    ear: Option<Ear>,
    /// The only source address that frames may have, where that is checked.
    source: Option<Mac>,
    pub throttle: Throttle,
}

/// What one round leaves.
#[derive(Default)]
pub(super) struct Round {
    /// Come back at once.
    pub again: bool,
    /// Wait for the link.
    pub want_link: bool,
    /// Come back then, by the clock: a rate limit holds the queue back.
    pub wake_at_ns: Option<u64>,
}

/// What became of one chain.
enum Verdict {
    Sent {
        len_bytes: u64,
    },
    /// The card's own responder has it, and none of it goes to the link.
    Kept {
        len_bytes: u64,
    },
    Lost,
    Spoofed,
    LinkDown,
    Malformed,
    Blocked,
}

/// A frame on its way to the link.
struct Opened {
    header: Header,
    /// Bytes of the frame, the header not counted.
    len_bytes: u64,
    /// Its first bytes, where they were looked at.
    addresses: Option<Addresses>,
}

impl Tx {
    pub fn new(queue: WorkerQueue, ear: Option<Ear>, source: Option<Mac>) -> Self {
        let ranges = Vec::with_capacity(MAX_FRAME_RANGES);
        let (framing, throttle) = (Framing::default(), Throttle::default());
        Self { queue, framing, blocked: None, ranges, buffers_at: 0, ear, source, throttle }
    }

    /// The queue has started.
    pub fn started(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// One round: a few dozen frames, which are lost where the link is not `up`.
    pub fn step<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B, up: bool) -> Round {
        if !self.queue.is_live() || self.blocked.is_some() && is_planted(Defect::StalledForGood) {
            return Round::default();
        }
        let near = &self.queue.near(mem).and_buffers(self.buffers_at);
        self.queue.disable_kicks(near);
        self.throttle.begin_step();
        let (mut drained, mut blocked, mut wake_at_ns, mut round_bytes) = (false, false, None, 0u64);
        for _ in 0..self.queue.size().min(ROUND_FRAMES) {
            if round_bytes >= ROUND_BYTES {
                break;
            }
            let waiting = self.blocked.take();
            if waiting.is_none() {
                wake_at_ns = self.throttle.wait_until();
                if wake_at_ns.is_some() {
                    break;
                }
            }
            let Some(chain) = waiting.or_else(|| self.queue.pop(near)) else {
                drained = true;
                break;
            };
            let mut sent_bytes = 0;
            match self.send(near, backend, up, &chain) {
                Verdict::Sent { len_bytes } | Verdict::Kept { len_bytes } => sent_bytes = len_bytes,
                Verdict::Lost => self.queue.counters().dropped.count(),
                Verdict::Spoofed => self.queue.counters().spoofed.count(),
                Verdict::LinkDown => self.queue.counters().link_down.count(),
                Verdict::Malformed => self.queue.counters().malformed.count(),
                Verdict::Blocked => {
                    self.blocked = Some(chain);
                    blocked = true;
                    break;
                }
            }
            self.throttle.charge(sent_bytes);
            round_bytes = round_bytes.saturating_add(sent_bytes);
            self.queue.push(near, chain, 0);
        }
        if round_bytes > 0 {
            self.queue.counters().bytes_from_guest.add(round_bytes);
        }
        self.queue.publish(near);
        if let Some(at_ns) = wake_at_ns {
            return self.held_back(near, at_ns);
        }
        if drained {
            let again = self.queue.enable_kicks(near);
            if !again {
                self.throttle.rest();
            }
            return Round { again, ..Round::default() };
        }
        // While the link is full a kick would be in vain.
        Round { again: !blocked, want_link: blocked, ..Round::default() }
    }

    /// A limit holds the queue back: until it is over a kick would be in vain. One that holds no frame back wakes nobody.
    fn held_back<M: GuestMemory>(&mut self, near: &Near<'_, M>, at_ns: u64) -> Round {
        if !self.queue.enable_kicks(near) {
            self.throttle.rest();
            return Round::default();
        }
        self.queue.counters().throttled.count();
        self.queue.disable_kicks(near);
        Round { wake_at_ns: Some(at_ns), ..Round::default() }
    }

    #[inline(always)]
    fn send<M: GuestMemory, B: NetBackend<M>>(
        &mut self,
        near: &Near<'_, M>,
        backend: &mut B,
        up: bool,
        chain: &Chain,
    ) -> Verdict {
        let mem = near.memory();
        let Opened { header, len_bytes, addresses } = match self.open_plain(near, chain) {
            Some(opened) => opened,
            None => match self.open(mem, up, chain) {
                Ok(opened) => opened,
                Err(verdict) => return verdict,
            },
        };
        if len_bytes > MAX_FRAME_BYTES as u64 || self.ranges.len() > MAX_FRAME_RANGES {
            return Verdict::Lost;
        }
        if !up {
            return Verdict::LinkDown;
        }
        let sent = match &addresses {
            None => backend.send(mem, &header, &self.ranges),
            Some(addresses) => backend.send_from(mem, &header, addresses, &self.ranges),
        };
        match sent {
            Ok(Sent::Done) => Verdict::Sent { len_bytes },
            Ok(Sent::WouldBlock) => Verdict::Blocked,
            Err(_) => Verdict::Lost,
        }
    }

    /// A frame that nobody but the link looks at, in one piece with its header, as small ones are; `None` of any other.
    #[inline(always)]
    fn open_plain<M: GuestMemory>(&mut self, near: &Near<'_, M>, chain: &Chain) -> Option<Opened> {
        let &[GuestRange { addr, len }] = chain.readable() else { return None };
        let len = len.checked_sub(HEADER_BYTES as u32).filter(|len| *len > 0)?;
        if self.ear.is_some() || self.source.is_some() || self.framing.header_bytes != HEADER_BYTES {
            return None;
        }
        self.buffers_at = addr;
        let mut header = chain.read_first(near)?;
        for_the_link(&mut header);
        self.ranges.clear();
        self.ranges.push(GuestRange { addr: addr.saturating_add(HEADER_BYTES as u64), len });
        Some(Opened { header, len_bytes: len.into(), addresses: None })
    }

    /// Reads what is looked at of a frame, and lists where the rest of it is.
    #[inline(never)]
    fn open<M: GuestMemory>(&mut self, mem: &M, up: bool, chain: &Chain) -> Result<Opened, Verdict> {
        let mut header: Header = [0; HEADER_BYTES];
        let mut frame = chain.reader(mem);
        let Some(driver_header) = header.get_mut(..self.framing.header_bytes) else { return Err(Verdict::Malformed) };
        let sight = self.ear.as_mut().map(|ear| ear.look(frame.clone(), driver_header));
        let read = match &sight {
            None => frame.read(driver_header).is_ok(),
            Some(sight) => sight.is_some() && frame.skip(driver_header.len() as u64).is_ok(),
        };
        if !read {
            return Err(Verdict::Malformed);
        }
        for_the_link(&mut header);
        let len_bytes = frame.remaining();
        if len_bytes == 0 {
            return Err(Verdict::Malformed);
        }
        let mut addresses = None;
        if let Some(own) = self.source {
            addresses = frame.read_array().ok().filter(|[_, _, _, _, _, _, source @ ..]: &Addresses| *source == own);
            if addresses.is_none() {
                return Err(Verdict::Spoofed);
            }
        }
        if up && sight.flatten().is_some_and(|sight| self.is_kept(sight)) {
            return Err(Verdict::Kept { len_bytes });
        }
        self.ranges.clear();
        frame.append_ranges(&mut self.ranges);
        Ok(Opened { header, len_bytes, addresses })
    }

    /// Whether the card's own responder takes the frame.
    fn is_kept<M: GuestMemory>(&mut self, sight: Sight<'_, M>) -> bool {
        let Some(ear) = &mut self.ear else { return false };
        let counters = self.queue.counters();
        let (heard, replaced) = ear.hear(sight);
        match heard {
            Heard::Passed => return false,
            Heard::Swallowed => counters.swallowed.count(),
            Heard::Answered { .. } => counters.answered.count(),
        }
        if replaced {
            counters.dropped.count();
        }
        true
    }

    /// Puts the frame that waits for the link back into the ring, so that the queue's state accounts for it.
    pub fn release(&mut self) {
        self.throttle.rest();
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
