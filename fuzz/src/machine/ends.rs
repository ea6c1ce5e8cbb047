//! The other ends: a link, a terminal and a generator that do what the program says.

use std::collections::VecDeque;
use std::sync::Arc;

use devices::virtio::console::ConsoleBackend;
use devices::virtio::net::{Header, NetBackend, NetError, Offloads, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices::virtio::rng::{RngBackend, RngError};

use super::ram::{Hash, Ram, Stream};
use crate::finding;
use crate::lone::Lone;
use crate::oracle::net::{Frame, PAIRS};
use crate::oracle::{Device, Oracles, console, resources, rng};

/// What the three share with the machine.
#[derive(Debug)]
pub struct Inner {
    /// The link takes nothing for now; the terminal shows nothing.
    pub full: bool,
    /// Every call fails.
    pub broken: bool,
    /// Frames that have arrived, by queue pair.
    pub frames: [VecDeque<Frame>; PAIRS],
    /// Pairs that frames arrive for.
    pub pairs: u16,
    /// Bytes typed so far, and how many of them the device has read.
    pub typed: u64,
    read: u64,
    /// Bytes the terminal still takes.
    pub room: usize,
    /// What the guest has sent.
    pub shown: Hash,
    /// What it has printed.
    pub printed: Stream,
    next_frame: u64,
}

/// The other end of a card's queue pair, a console or a generator. Clones are the same one.
#[derive(Clone, Debug)]
pub struct End {
    /// What it does.
    pub inner: Arc<Lone<Inner>>,
    pair: u16,
    oracles: Arc<Lone<Oracles>>,
}

impl Inner {
    /// Whether something was typed that the device has not read.
    #[must_use]
    pub fn has_typed(&self) -> bool {
        self.typed > self.read
    }
}

impl End {
    /// An end that works.
    #[must_use]
    pub fn new(oracles: &Arc<Lone<Oracles>>) -> Self {
        let inner = Inner {
            full: false,
            broken: false,
            frames: Default::default(),
            pairs: 1,
            typed: 0,
            read: 0,
            room: 1 << 20,
            shown: Hash::default(),
            printed: Stream::default(),
            next_frame: 0,
        };
        Self { inner: Arc::new(Lone::new(inner)), pair: 0, oracles: oracles.clone() }
    }

    /// As seen by another queue pair of its card.
    #[must_use]
    pub fn of_pair(&self, pair: u16) -> Self {
        Self { pair, ..self.clone() }
    }

    /// A frame of some flow arrives, for the pair that has the flow.
    pub fn arrive(&self, flow: u8, len: u32, (flags, gso): (u8, u8), to: Option<([u8; 6], Option<u16>)>) {
        let inner = &mut *self.inner.open();
        let frames = &mut inner.frames[usize::from(flow) % usize::from(inner.pairs)];
        if frames.len() < 8 {
            inner.next_frame += 1;
            frames.push_back(Frame { seed: inner.next_frame, len, flags, gso, to });
        }
    }

    /// Whether a wait for input of a queue pair would end.
    #[must_use]
    pub fn readable(&self, pair: usize) -> bool {
        let inner = self.inner.open();
        inner.frames.get(pair).is_some_and(|frames| !frames.is_empty()) || inner.has_typed()
    }

    /// Whether a wait for room would end.
    #[must_use]
    pub fn writable(&self) -> bool {
        let inner = self.inner.open();
        !inner.full && inner.room > 0
    }
}

impl NetBackend<Ram> for End {
    fn send(&mut self, mem: &Ram, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        let _quiet = resources::Quiet::begin();
        let inner = &mut *self.inner.open();
        let oracles = &mut *self.oracles.open();
        let takes = inner.broken || !inner.full;
        let Oracles { rings, device, .. } = oracles;
        if let (Device::Net(net), false) = (&mut *device, rings.blind()) {
            let ranges: Vec<_> = frame.iter().map(|range| (range.addr, range.len)).collect();
            net.sends(mem, rings.flying_mut(2 * self.pair + 1), header, &ranges, takes);
        }
        if inner.broken {
            return Err(NetError::Host(5));
        }
        if inner.full {
            return Ok(Sent::WouldBlock);
        }
        for range in frame {
            if !mem.has(range.addr, range.len.into()) {
                finding!("spec", "the link is given guest range {range:x?} outside memory");
            }
            inner.shown.add(u64::from(range.len));
            // A word of each piece tells two runs apart well enough.
            inner.shown.add(mem.word(range.addr, (range.len as usize).min(8)));
        }
        inner.shown.add(u64::from_le_bytes(header[..8].try_into().unwrap_or_default()));
        Ok(Sent::Done)
    }

    fn receive(
        &mut self,
        mem: &Ram,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        let _quiet = resources::Quiet::begin();
        let inner = &mut *self.inner.open();
        let oracles = &mut *self.oracles.open();
        let Oracles { rings, device, fetches, .. } = oracles;
        let pair = usize::from(self.pair);
        if let Device::Net(net) = device {
            if rings.blind() {
                net.look_away();
            }
            net.asks(pair);
        }
        if inner.broken {
            return Err(NetError::Host(5));
        }
        let Some(frame) = inner.frames[pair].pop_front() else { return Ok(Received::WouldBlock) };
        if let Device::Net(net) = device {
            net.receives(pair, frame, rings.flying(2 * self.pair));
        }
        *header = frame.header();
        let mut at = 0;
        for range in into {
            if !rings.may_write(range.addr, range.len.into()) {
                finding!("spec", "a frame goes to {range:x?}, which no chain in flight offers");
            }
            let count = (u64::from(frame.len) - at).min(range.len.into());
            let mut done = 0;
            while done < count {
                let mut bytes = [0; 512];
                let here = (count - done).min(512);
                for byte in &mut bytes[..here as usize] {
                    *byte = frame.byte(at);
                    at += 1;
                }
                if !mem.poke(range.addr + done, &bytes[..here as usize]) {
                    finding!("spec", "a frame goes to {range:x?}, outside memory");
                }
                fetches.renewed(range.addr + done, here);
                done += here;
            }
        }
        for byte in spill.iter_mut().take((u64::from(frame.len) - at) as usize) {
            *byte = frame.byte(at);
            at += 1;
        }
        Ok(Received::Frame { len_bytes: frame.len as usize })
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        let _quiet = resources::Quiet::begin();
        let broken = self.inner.open().broken;
        let Offloads { csum, tso4, tso6, ecn, uso } = offloads;
        let bits = u64::from(csum) << 1 | u64::from(tso4) << 7 | u64::from(tso6) << 8 | u64::from(ecn) << 9;
        let bits = bits | u64::from(uso) << 54 | u64::from(uso) << 55;
        let oracles = &mut *self.oracles.open();
        if let Device::Net(net) = &mut oracles.device {
            net.told_offloads(oracles.rings.flying_mut(net.control()), bits, !broken);
        }
        if broken { Err(NetError::Host(5)) } else { Ok(()) }
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        let _quiet = resources::Quiet::begin();
        let inner = &mut *self.inner.open();
        let oracles = &mut *self.oracles.open();
        if let Device::Net(net) = &mut oracles.device {
            net.told_pairs(oracles.rings.flying_mut(net.control()), pairs, !inner.broken);
        }
        if inner.broken {
            return Err(NetError::Host(5));
        }
        inner.pairs = pairs;
        // What waits in a queue that is none any more is lost with it.
        inner.frames.iter_mut().skip(pairs.into()).for_each(VecDeque::clear);
        Ok(())
    }
}

impl ConsoleBackend for End {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let _quiet = resources::Quiet::begin();
        let inner = &mut *self.inner.open();
        let taken = if inner.full { 0 } else { bytes.len().min(inner.room) };
        inner.room -= taken;
        inner.printed.add(&bytes[..taken]);
        if let Device::Console(console) = &mut self.oracles.open().device {
            console.shown(bytes, taken);
        }
        taken
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let _quiet = resources::Quiet::begin();
        let inner = &mut *self.inner.open();
        let count = buf.len().min((inner.typed - inner.read) as usize);
        for byte in &mut buf[..count] {
            *byte = console::typed(inner.read);
            inner.read += 1;
        }
        if let Device::Console(console) = &mut self.oracles.open().device {
            console.typed(&buf[..count]);
        }
        count
    }
}

impl RngBackend for End {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), RngError> {
        let _quiet = resources::Quiet::begin();
        let broken = self.inner.open().broken;
        let Oracles { rings, device: Device::Rng(model), .. } = &mut *self.oracles.open() else {
            return Err(RngError(5));
        };
        for (byte, n) in buf.iter_mut().zip(model.given..) {
            *byte = rng::byte(n);
        }
        model.asked(rings, buf.len(), broken);
        if broken { Err(RngError(5)) } else { Ok(()) }
    }
}
