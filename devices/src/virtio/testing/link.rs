//! A network link in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::virtio::net::{Addresses, Header, NetBackend, NetError, Offloads, Received, Sent};
use crate::virtio::queue::GuestRange;

/// A network link in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryLink {
    inner: Arc<Mutex<Inner>>,
    /// Of the first pair's: those of all pairs from the second on.
    further: Vec<MemoryLink>,
}

#[derive(Debug, Default)]
struct Inner {
    incoming: VecDeque<(Header, Vec<u8>)>,
    sent: Vec<(Header, Vec<u8>)>,
    full: bool,
    broken: bool,
    copied_bytes: usize,
    offloads: Offloads,
    /// Its pair is not in use.
    idle: bool,
}

impl MemoryLink {
    /// The links of a card with so many queue pairs, by pair; the first one is in use.
    pub fn of_pairs(pairs: usize) -> Vec<Self> {
        let further: Vec<Self> = (1..pairs).map(|_| Self::default()).collect();
        further.iter().for_each(|link| link.inner.lock().unwrap().idle = true);
        let first = Self { further: further.clone(), ..Self::default() };
        std::iter::once(first).chain(further).collect()
    }

    /// A frame of this flow arrives at a card with several pairs: for one of those in use.
    pub fn arrive_in_flow(&self, flow: usize, header: Header, frame: &[u8]) {
        let used = self.further.iter().filter(|link| !link.inner.lock().unwrap().idle).count();
        match (flow % (used + 1)).checked_sub(1) {
            None => self.arrive(header, frame),
            Some(further) => self.further[further].arrive(header, frame),
        }
    }

    /// Queue pairs that frames are given to.
    pub fn pairs(&self) -> usize {
        1 + self.further.iter().filter(|link| !link.inner.lock().unwrap().idle).count()
    }

    /// A frame arrives.
    pub fn arrive(&self, header: Header, frame: &[u8]) {
        self.inner.lock().unwrap().incoming.push_back((header, frame.to_vec()));
    }

    /// Frames nobody has received yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().unwrap().incoming.len()
    }

    /// Frames sent since the last call.
    pub fn take_sent(&self) -> Vec<(Header, Vec<u8>)> {
        std::mem::take(&mut self.inner.lock().unwrap().sent)
    }

    /// Whether the link takes no frames for now.
    pub fn set_full(&self, full: bool) {
        self.inner.lock().unwrap().full = full;
    }

    /// Whether every call fails.
    pub fn set_broken(&self, broken: bool) {
        self.inner.lock().unwrap().broken = broken;
    }

    /// Bytes that did not go straight into guest memory, since the last call.
    pub fn take_copied_bytes(&self) -> usize {
        std::mem::take(&mut self.inner.lock().unwrap().copied_bytes)
    }

    /// What the device said about received frames.
    pub fn offloads(&self) -> Offloads {
        self.inner.lock().unwrap().offloads
    }
}

impl<M: GuestMemory + ?Sized> NetBackend<M> for MemoryLink {
    fn send(&mut self, mem: &M, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        let inner = &mut *self.inner.lock().unwrap();
        if inner.broken {
            return Err(NetError::Host(5));
        }
        if inner.full {
            return Ok(Sent::WouldBlock);
        }
        let mut bytes = Vec::new();
        for range in frame {
            let mut piece = vec![0; range.len as usize];
            mem.read_slice(&mut piece, GuestAddress(range.addr)).map_err(|_| NetError::Memory)?;
            bytes.extend(piece);
        }
        inner.sent.push((*header, bytes));
        Ok(Sent::Done)
    }

    fn send_from(
        &mut self,
        mem: &M,
        header: &Header,
        addresses: &Addresses,
        rest: &[GuestRange],
    ) -> Result<Sent, NetError> {
        let sent = self.send(mem, header, rest)?;
        if let Some((_, frame)) = self.inner.lock().unwrap().sent.last_mut().filter(|_| sent == Sent::Done) {
            frame.splice(..0, addresses.iter().copied());
        }
        Ok(sent)
    }

    fn receive(
        &mut self,
        mem: &M,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        let inner = &mut *self.inner.lock().unwrap();
        if inner.broken {
            return Err(NetError::Host(5));
        }
        let Some((frame_header, frame)) = inner.incoming.pop_front() else { return Ok(Received::WouldBlock) };
        *header = frame_header;
        let mut rest = frame.as_slice();
        for range in into {
            let (here, after) = rest.split_at(rest.len().min(range.len as usize));
            mem.write_slice(here, GuestAddress(range.addr)).map_err(|_| NetError::Memory)?;
            rest = after;
        }
        let spilled = rest.len().min(spill.len());
        spill[..spilled].copy_from_slice(&rest[..spilled]);
        inner.copied_bytes += spilled;
        Ok(Received::Frame { len_bytes: frame.len() })
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        let inner = &mut *self.inner.lock().unwrap();
        if inner.broken {
            return Err(NetError::Host(5));
        }
        inner.offloads = offloads;
        Ok(())
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        if self.inner.lock().unwrap().broken {
            return Err(NetError::Host(5));
        }
        for (pair, link) in (1..).zip(&self.further) {
            let inner = &mut *link.inner.lock().unwrap();
            inner.idle = pair >= pairs;
            if inner.idle {
                inner.incoming.clear();
            }
        }
        Ok(())
    }
}
