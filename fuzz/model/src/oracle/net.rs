//! What virtio 1.3 §5.1.6 makes of frames: each sent once and whole, each received into the buffers its header counts,
//! where the driver wants it at all.

use std::collections::VecDeque;

use super::blk::{gather, pieces};
use super::card::Card;
pub use super::card::MAC;
use super::ring::{Flying, Plan, Range, Rings};
use crate::finding;
use crate::ram::Ram;

/// Queue pairs of the largest card here.
pub const PAIRS: usize = 2;
/// The longest frame: 64 KiB behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME_BYTES: u64 = 65536 + 18;
const MAX_FRAME_RANGES: usize = 512;
const HEADER_BYTES: u64 = 12;

const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_GUEST_ECN: u64 = 1 << 9;
/// What the card says its largest packet is.
pub const MTU: u32 = 1500;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
/// Links leave UDP segments of both families or none.
const F_GUEST_USO: u64 = 1 << 54 | 1 << 55;
const F_MRG_RXBUF: u64 = 1 << 15;

/// How far the sending of a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It holds no frame, or one that is too long.
    Never,
    /// The link has not taken it yet.
    Waits,
    /// The link has gone down before it took it: lost with the worker's next step, unless it is up again by then.
    Doubtful,
    /// The link has it, or has failed over it.
    Gone,
}

/// A frame that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number: what its bytes are made of.
    pub seed: u64,
    /// Bytes.
    pub len: u32,
    /// `flags` of its header.
    pub flags: u8,
    /// `gso_type` of its header.
    pub gso: u8,
    /// To whom it goes and behind which VLAN tag, where it is not just any bytes.
    pub to: Option<([u8; 6], Option<u16>)>,
}

impl Frame {
    /// Byte `at` of it.
    #[must_use]
    pub fn byte(&self, at: u64) -> u8 {
        let any = (self.seed.wrapping_mul(37).wrapping_add(at) % 253) as u8;
        match (self.to, at) {
            (Some((mac, _)), 0..6) => mac[at as usize],
            (Some((_, tag)), 12..16) => {
                let [high, low] = tag.unwrap_or_default().to_be_bytes();
                [if tag.is_some() { 0x81 } else { 8 }, 0, high, low][at as usize - 12]
            }
            _ => any,
        }
    }

    /// Its first bytes; those it does not have are zero.
    #[must_use]
    pub fn head(&self) -> [u8; 18] {
        let mut head = [0; 18];
        for (byte, at) in head.iter_mut().zip(0..u64::from(self.len)) {
            *byte = self.byte(at);
        }
        head
    }

    /// Its header as the link gives it.
    #[must_use]
    pub fn header(&self) -> [u8; 12] {
        let size = if self.gso == 0 { 0 } else { 0xa8 };
        [self.flags, self.gso, 14, 0, size, 0, 0, 0, 0, 0, 0xaa, 0xaa]
    }
}

/// What a queue of a card is for (§5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames to the driver, of this pair.
    Receive(usize),
    /// Frames from it.
    Send(usize),
    /// Commands.
    Control,
}

/// The receive queue of a pair.
#[derive(Debug, Default)]
struct Receiver {
    /// Frames the device has taken from the link and not delivered.
    taken: VecDeque<(Frame, bool)>,
    /// Which frame is which is not known any more: one that may have been lost begins in a buffer without a byte of it.
    lost: bool,
    /// The frame whose buffers are going back: bytes with header done, buffers left where that is known.
    progress: Option<(Frame, u64, Option<u16>)>,
}

impl Receiver {
    /// What waits may be dropped.
    fn doubt(&mut self) {
        for (_, may_drop) in &mut self.taken {
            *may_drop = true;
        }
    }
}

/// A card and its driver's view of it.
#[derive(Debug, Default)]
pub struct Net {
    /// Queue pairs it has.
    pairs: u16,
    /// Features of the running driver.
    pub features: u64,
    /// Whether it is a legacy one.
    pub legacy: bool,
    /// What it has told the card.
    pub card: Card,
    /// The ring is packed: what went back is seen late.
    pub packed: bool,
    /// The link is down.
    down: bool,
    /// Frames that were lost to that, by queue: at least, and at most.
    lost_to_link: [(u64, u64); 2 * PAIRS],
    /// Frames may have been lost unseen.
    uncounted: bool,
    receivers: [Receiver; PAIRS],
}

impl Net {
    /// A card with so many queue pairs that nobody has driven yet.
    #[must_use]
    pub fn new(pairs: u16) -> Self {
        Self { pairs, ..Self::default() }
    }

    /// What the card has its queue of this index for.
    #[must_use]
    pub fn role(&self, queue: u16) -> Role {
        let pair = usize::from(queue / 2);
        match queue % 2 {
            _ if queue == self.control() => Role::Control,
            0 => Role::Receive(pair),
            _ => Role::Send(pair),
        }
    }

    /// Its control queue, behind all pairs.
    #[must_use]
    pub fn control(&self) -> u16 {
        2 * self.pairs
    }

    /// Whether received frames go to this pair, as far as anybody knows.
    #[must_use]
    pub fn may_receive(&self, pair: usize) -> bool {
        self.card.lost || pair < usize::from(self.card.pairs)
    }

    /// The operator pulls the cable or plugs it in.
    pub fn set_link(&mut self, up: bool, rings: &mut Rings) {
        let goes_down = !up && !self.down;
        self.down = !up;
        if goes_down {
            // What waits for buffers may be delivered only if the worker does not look before the link is up.
            for (pair, queue) in (0..self.pairs.into()).zip((0u16..).step_by(2)) {
                self.lost_to_link[2 * pair].1 += self.receivers[pair].taken.len() as u64;
                let sending = rings.flying_mut(queue + 1).iter_mut();
                for chain in sending.filter(|chain| chain.plan == Plan::Send(Sending::Waits)) {
                    self.lost_to_link[2 * pair + 1].1 += 1;
                    chain.plan = Plan::Send(Sending::Doubtful);
                }
            }
            self.doubt();
        }
    }

    /// Another card goes on, whose counters begin again.
    pub fn count_anew(&mut self) {
        (self.lost_to_link, self.uncounted) = Default::default();
        if self.down {
            // A ring that its driver broke lost nothing of what waits; the new card takes it up again, and does.
            for (pair, receiver) in self.receivers.iter().enumerate() {
                self.lost_to_link[2 * pair].1 = receiver.taken.len() as u64;
            }
        }
    }

    /// Nobody sees for now what the driver says and sends.
    pub fn look_away(&mut self) {
        (self.card.lost, self.uncounted) = (true, true);
    }

    /// What a card's counters say of frames that were lost because the link was down.
    pub fn judge_lost(&self, counted: [u64; 2 * PAIRS]) {
        for (queue, (count, (least, most))) in counted.into_iter().zip(self.lost_to_link).enumerate() {
            if !self.uncounted && !(least..=most).contains(&count) {
                finding!("spec", "queue {queue} counts {count} frames lost to the link, not {least} to {most}");
            }
        }
    }

    /// The driver has reset the card.
    pub fn forget_driver(&mut self) {
        self.card = Card::new();
    }

    fn header_bytes(&self) -> u64 {
        if self.legacy && self.features & F_MRG_RXBUF == 0 { 10 } else { HEADER_BYTES }
    }

    fn mergeable(&self) -> bool {
        self.features & F_MRG_RXBUF != 0
    }

    /// Whether the driver has accepted what a received frame leaves unfinished.
    fn admits(&self, frame: &Frame) -> bool {
        let offloads = self.card.offloads(self.features);
        let has = |bit: u64| offloads & bit != 0;
        let csum = has(F_GUEST_CSUM);
        let segment = match frame.gso & 0x7f {
            0 => return csum || frame.flags & 1 == 0,
            1 => has(F_GUEST_TSO4),
            4 => has(F_GUEST_TSO6),
            5 => return csum && frame.flags & 1 != 0 && frame.gso == 5 && offloads & F_GUEST_USO == F_GUEST_USO,
            _ => false,
        };
        segment && csum && frame.flags & 1 != 0 && (frame.gso & 0x80 == 0 || has(F_GUEST_ECN))
    }

    /// Bytes by which a frame is larger than the driver was told.
    fn beyond_mtu(&self, frame: &Frame) -> u32 {
        let told = self.features & F_MTU != 0 && frame.gso & 0x7f == 0;
        if told { frame.len.saturating_sub(MTU + 14) } else { 0 }
    }

    fn doubt(&mut self) {
        self.receivers.iter_mut().for_each(Receiver::doubt);
    }

    /// The link is told how many pairs get frames, and `takes` that or not: for a command, or by a card that begins anew or
    /// goes on elsewhere.
    pub fn told_pairs(&mut self, chains: &mut [Flying], pairs: u16, takes: bool) {
        let commanded = self.card.asks_the_link();
        if !takes {
            if let (true, Some(chain)) = (self.card.link_refuses(), chains.last_mut()) {
                chain.plan = Plan::Control(1);
            }
            return;
        }
        self.card.link_takes();
        let resets = !commanded && pairs == 1;
        if !self.card.lost && pairs != self.card.pairs && !resets {
            finding!("spec", "the link is told of {pairs} pairs where the driver wants {}", self.card.pairs);
        }
    }

    /// The link is told what frames may leave unfinished, and `takes` that or not.
    pub fn told_offloads(&mut self, chains: &mut [Flying], bits: u64, takes: bool) {
        if !takes {
            if let (true, Some(chain)) = (self.card.link_refuses(), chains.last_mut()) {
                chain.plan = Plan::Control(1);
            }
            return;
        }
        self.card.link_takes();
        let chosen = self.card.offloads(self.features);
        let csum = chosen & F_GUEST_CSUM;
        let segments = if csum == 0 { 0 } else { chosen & (F_GUEST_TSO4 | F_GUEST_TSO6) };
        let ecn = if segments == 0 { 0 } else { chosen & F_GUEST_ECN };
        let udp = if csum != 0 && chosen & F_GUEST_USO == F_GUEST_USO { F_GUEST_USO } else { 0 };
        if !self.card.lost && bits != csum | segments | ecn | udp {
            finding!("spec", "the link is told offloads {bits:#x} of {chosen:#x}");
        }
    }

    /// A driver starts or restarts a queue.
    pub fn started(&mut self, queue: u16, features: u64, legacy: bool) {
        if let Role::Receive(pair) = self.role(queue) {
            // A frame kept through a pause may not be what another driver takes.
            self.receivers[pair].doubt();
        }
        (self.features, self.legacy) = (features, legacy);
        self.packed = features & devices::virtio::queue::F_RING_PACKED != 0;
    }

    /// A queue was reset.
    pub fn reset(&mut self, queue: u16) {
        if let Role::Receive(pair) = self.role(queue) {
            let receiver = &mut self.receivers[pair];
            receiver.taken.clear();
            (receiver.progress, receiver.lost) = (None, false);
        }
    }

    pub(super) fn popped(&mut self, ram: &Ram, queue: u16, chain: &mut Flying) {
        let pair = match self.role(queue) {
            Role::Control if chain.writable_bytes > 0 => {
                chain.plan = Plan::Control(self.card.obey(ram, chain, self.features, self.pairs));
                // What a frame in waiting was admitted for may not be what the driver takes now, nor where it wants it.
                return self.doubt();
            }
            Role::Send(pair) => pair,
            Role::Control | Role::Receive(_) => return,
        };
        let mut ranges = 0;
        let data = chain.readable_bytes.saturating_sub(self.header_bytes());
        pieces(&chain.readable, self.header_bytes(), u64::MAX, |_, _| ranges += 1);
        let good = data > 0 && data <= MAX_FRAME_BYTES && ranges <= MAX_FRAME_RANGES;
        if good && self.down {
            self.lose(2 * pair + 1);
        }
        let sent = good && !self.down;
        chain.plan = Plan::Send(if sent { Sending::Waits } else { Sending::Never });
        chain.leaving = !sent;
    }

    /// A frame of this queue is lost to the link.
    fn lose(&mut self, queue: usize) {
        let (least, most) = &mut self.lost_to_link[queue];
        (*least, *most) = (*least + 1, *most + 1);
    }

    /// The link is offered a frame, and takes it (or fails) or not.
    pub fn sends(&self, ram: &Ram, chains: &mut [Flying], header: &[u8; 12], frame: &[Range], takes: bool) {
        if self.down {
            finding!("spec", "a frame is sent while the link is down");
        }
        let waits = |chain: &&mut Flying| matches!(chain.plan, Plan::Send(Sending::Waits | Sending::Doubtful));
        let Some(chain) = chains.iter_mut().find(waits) else {
            finding!("spec", "a frame is sent that no driver gave")
        };
        let mut expected: Vec<Range> = Vec::new();
        pieces(&chain.readable, self.header_bytes(), u64::MAX, |addr, len| expected.push((addr, len as u32)));
        if frame != expected {
            finding!("spec", "a frame lies at {frame:x?} where its buffers say {expected:x?}");
        }
        let mut own = [0; 12];
        gather(ram, &chain.readable, 0, &mut own[..self.header_bytes() as usize]);
        // Flags nobody knows, and the count of buffers, are not the link's.
        (own[0], own[10], own[11]) = (own[0] & 1, 0, 0);
        if own != *header && !chain.shared {
            finding!("spec", "a frame is sent with header {header:x?} where the driver wrote {own:x?}");
        }
        if takes {
            chain.plan = Plan::Send(Sending::Gone);
            chain.leaving = true;
        }
    }

    /// The link is asked for a frame of a pair.
    pub fn asks(&self, pair: usize) {
        if !self.may_receive(pair) {
            finding!("spec", "the link is asked for frames of pair {pair} where {} are in use", self.card.pairs);
        }
    }

    /// The device takes a frame of a pair from the link, with chains of `held` writable bytes before it.
    pub fn receives(&mut self, pair: usize, frame: Frame, held: &[Flying]) {
        if self.down {
            return self.lose(2 * pair);
        }
        if !self.card.lost && !self.card.wants(self.features, &frame.head()) {
            // It shall not come, and takes nothing.
            return;
        }
        let total: u64 = held.iter().filter(|chain| !chain.leaving).map(|chain| chain.writable_bytes).sum();
        let needed = u64::from(frame.len) + self.header_bytes();
        let first = held.iter().find(|chain| chain.writable_bytes >= self.header_bytes());
        let room = if self.mergeable() { total } else { first.map_or(0, |chain| chain.writable_bytes) };
        // A frame may be lost where it does not fit now: whether to wait is the device's choice.
        // A tag makes a frame that is a little larger a good one.
        let may_drop = self.packed
            || self.card.lost
            || self.beyond_mtu(&frame) > 0
            || !self.admits(&frame)
            || needed > room
            || u64::from(frame.len) > MAX_FRAME_BYTES;
        self.receivers[pair].taken.push_back((frame, may_drop));
    }

    pub(super) fn used(&mut self, ram: &Ram, queue: u16, chain: &Flying, len: u32) {
        match self.role(queue) {
            Role::Send(_) => {
                if len != 0 {
                    finding!("spec", "used length {len} of a sent frame");
                }
                if chain.plan == Plan::Send(Sending::Waits) {
                    finding!("spec", "a buffer goes back before its frame is sent");
                }
            }
            Role::Receive(pair) => self.received(ram, pair, chain, len),
            Role::Control => self.answered(ram, chain, len),
        }
    }

    fn answered(&self, ram: &Ram, chain: &Flying, len: u32) {
        if u64::from(len) != chain.writable_bytes.min(1) {
            finding!("spec", "a command is answered with {len} bytes");
        }
        let mut found = [0];
        gather(ram, &chain.writable, 0, &mut found);
        if let Plan::Control(answer) = chain.plan
            && !(chain.shared || self.card.lost)
            && found != [answer]
        {
            finding!("spec", "a command is answered with {} where {answer} is due", found[0]);
        }
    }

    fn received(&mut self, ram: &Ram, pair: usize, chain: &Flying, len: u32) {
        if self.receivers[pair].lost {
            return;
        }
        if len > 0 && !self.may_receive(pair) {
            finding!("spec", "pair {pair} gets a frame where {} are in use", self.card.pairs);
        }
        let len = u64::from(len);
        let (frame, done, left) = match self.receivers[pair].progress.take() {
            Some(progress) => progress,
            None if len == 0 => {
                // A buffer without room for a header, or one that a frame did not fit in.
                let lost = self.receivers[pair].taken.front().is_some_and(|(_, may_drop)| *may_drop);
                if chain.writable_bytes >= self.header_bytes() && (!lost || self.mergeable()) {
                    finding!("spec", "a receive buffer goes back empty");
                }
                return;
            }
            None => {
                let mut header = [0; 12];
                let bytes = self.header_bytes() as usize;
                if !gather(ram, &chain.writable, 0, &mut header[..bytes]) {
                    finding!("spec", "a frame begins in a buffer of {} bytes", chain.writable_bytes);
                }
                let several = chain.shared || header[10..] != [1, 0];
                // Frames before this one were lost.
                while let Some((frame, may_drop)) = self.receivers[pair].taken.front() {
                    if !*may_drop || self.may_begin(ram, chain, frame, len, several) {
                        break;
                    }
                    self.receivers[pair].taken.pop_front();
                }
                let Some((frame, may_drop)) = self.receivers[pair].taken.pop_front() else {
                    finding!("spec", "a frame is delivered that did not arrive")
                };
                // One that was lost, and a later one, begin with the same bytes where these are few.
                let mut others = self.receivers[pair].taken.iter().filter(|(other, _)| *other != frame);
                if may_drop
                    && (chain.shared
                        || len < self.header_bytes() + 4
                        || others.any(|(other, _)| self.may_begin(ram, chain, other, len, several)))
                {
                    self.receivers[pair].lost = true;
                    return;
                }
                let counted = u16::from_le_bytes([header[10], header[11]]);
                let buffers = if bytes == 12 { counted } else { 1 };
                if !chain.shared {
                    self.check_header(&frame, &header[..bytes], buffers);
                }
                let known = !self.mergeable() || !chain.shared;
                (frame, 0, known.then_some(if self.mergeable() { buffers } else { 1 }))
            }
        };
        let total = u64::from(frame.len) + self.header_bytes();
        if len != chain.writable_bytes.min(total - done) {
            finding!(
                "spec",
                "{len} bytes of a frame in a buffer of {} bytes, {done} of {total} before",
                chain.writable_bytes
            );
        }
        if !chain.shared {
            self.check_bytes(ram, chain, &frame, done, len);
        }
        let done = done + len;
        let left = left.map(|left| left - 1);
        match left {
            Some(0) if done != total => {
                finding!("spec", "{done} bytes of a frame of {total} are in the buffers it counts");
            }
            Some(0) => {}
            None if done == total => {}
            left => self.receivers[pair].progress = Some((frame, done, left)),
        }
    }

    /// Whether a frame may be the one that begins with `len` bytes of a buffer, header included, and goes on in others where
    /// it has `several`.
    fn may_begin(&self, ram: &Ram, chain: &Flying, frame: &Frame, len: u64, several: bool) -> bool {
        let fits = u64::from(frame.len) + self.header_bytes();
        let goes_on = self.mergeable() && several && len == chain.writable_bytes && len < fits;
        let due = self.admits(frame) && self.beyond_mtu(frame) <= 4;
        due && (len == fits || goes_on) && (chain.shared || self.begins(ram, chain, frame, len))
    }

    /// Whether the first bytes in a buffer are those of `frame`.
    fn begins(&self, ram: &Ram, chain: &Flying, frame: &Frame, len: u64) -> bool {
        let count = len.saturating_sub(self.header_bytes()).min(8);
        let mut found = [0; 8];
        gather(ram, &chain.writable, self.header_bytes(), &mut found[..count as usize]);
        found.iter().take(count as usize).zip(0..).all(|(byte, at)| *byte == frame.byte(at))
    }

    fn check_header(&self, frame: &Frame, header: &[u8], buffers: u16) {
        let mut expected = frame.header();
        expected[0] &= if self.card.offloads(self.features) & F_GUEST_CSUM == 0 { 0 } else { 3 };
        if expected[1] & 0x7f == 0 {
            expected[1] = 0;
        }
        if header[..10] != expected[..10] {
            finding!("spec", "a frame has header {header:x?} where the link gave {expected:x?}");
        }
        if buffers == 0 || (buffers != 1 && !self.mergeable()) {
            finding!("spec", "a frame counts {buffers} buffers");
        }
    }

    fn check_bytes(&self, ram: &Ram, chain: &Flying, frame: &Frame, done: u64, len: u64) {
        let mut at = done;
        pieces(&chain.writable, 0, len, |addr, size| {
            let mut here = [0; 256];
            let mut offset = 0;
            while offset < size {
                let count = (size - offset).min(256);
                ram.peek(addr + offset, &mut here[..count as usize]);
                for byte in &here[..count as usize] {
                    let header = self.header_bytes();
                    if at >= header && *byte != frame.byte(at - header) {
                        finding!("spec", "byte {} of a received frame is not what arrived", at - header);
                    }
                    at += 1;
                }
                offset += count;
            }
        });
    }
}
