//! One worker's end of a link.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::GuestRam;
use devices::virtio::net::{Addresses, Header, MAX_FRAME_RANGES, NetBackend, NetError, Offloads, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices_host::iovec::{GuestRange as HostRange, VectorBuffer};
use devices_host::sys::Errno;
use vm_memory::{Bytes, GuestAddress};

use super::vnd::FrameVectors;
use super::{Port, Verdict, ZoneLink, lock};
use crate::hypervisor::frames::LinkFd;

/// The largest frame that virtio-net has, and a VLAN tag.
const BOUNCE_BYTES: usize = (64 << 10) + 18 + 4;

/// Moves the frames of one direction, or of both, between guest memory and the link.
pub(super) struct End {
    link: Arc<ZoneLink>,
    /// The link as it was at `generation`.
    port: Arc<Port>,
    generation: u32,
    ready: Arc<LinkFd>,
    pieces: VectorBuffer,
    vectors: Box<FrameVectors>,
    /// Where frames lie that cannot go from or to where they belong in one call.
    bounce: Box<[u8]>,
}

impl End {
    pub(super) fn new(link: Arc<ZoneLink>, port: Arc<Port>, ready: Arc<LinkFd>) -> Self {
        let generation = link.generation.load(Ordering::Acquire);
        Self {
            link,
            port,
            generation,
            ready,
            // Each may lie in two regions of memory, of which there are few.
            pieces: VectorBuffer::with_capacity(MAX_FRAME_RANGES + 4),
            vectors: FrameVectors::new(),
            bounce: vec![0; BOUNCE_BYTES].into_boxed_slice(),
        }
    }

    /// Goes on with the port of now.
    fn follow(&mut self) {
        let generation = self.link.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.port = lock(&self.link.open).port.clone();
            self.generation = generation;
            self.ready.set_full(false);
        }
    }

    /// What is left of a verdict once the link knows of it: whether to wait.
    fn judge(&self, verdict: Verdict) -> Result<(), NetError> {
        match verdict {
            Verdict::Wait => Ok(()),
            Verdict::Lost(error) => Err(NetError::Host(error.0)),
            Verdict::Gone(error) => {
                // Of a port that was closed since nobody has to hear.
                if self.link.generation.load(Ordering::Acquire) == self.generation {
                    self.link.fail();
                }
                Err(NetError::Host(error.0))
            }
        }
    }

    /// Sends the frame that begins with `start`, as far as the link takes it now.
    fn send_start(&mut self, mem: &GuestRam, start: &[u8], frame: &[GuestRange]) -> Result<Sent, NetError> {
        self.follow();
        let verdict = match self.send_frame(mem, start, frame) {
            Ok(()) => {
                self.ready.set_full(false);
                return Ok(Sent::Done);
            }
            Err(verdict) => verdict,
        };
        self.judge(verdict)?;
        self.ready.set_full(matches!(*self.port, Port::Vnd(_)));
        Ok(Sent::WouldBlock)
    }

    fn send_frame(&mut self, mem: &GuestRam, start: &[u8], frame: &[GuestRange]) -> Result<(), Verdict> {
        let direct = match &*self.port {
            Port::Vnd(_) => {
                let pieces =
                    self.pieces.fill(mem, frame.iter().map(host_range)).map_err(|_| Verdict::Lost(Errno::EFAULT))?;
                let first = (!start.is_empty()).then_some((start.as_ptr().cast_mut(), start.len()));
                let fits = pieces.pieces().len() + usize::from(first.is_some()) <= FrameVectors::MOST;
                if fits {
                    self.vectors.list(first.into_iter().chain(pieces.pieces()));
                }
                fits
            }
            Port::Dlpi(_) => false,
        };
        if !direct {
            let len_bytes = gather(mem, start, frame, &mut self.bounce)?;
            let frame = &mut self.bounce[..len_bytes];
            match &*self.port {
                Port::Dlpi(stream) => return stream.send(frame),
                Port::Vnd(_) => self.vectors.list(std::iter::once((frame.as_mut_ptr(), frame.len()))),
            }
        }
        match &*self.port {
            // SAFETY: every vector is a piece of guest memory, which is mapped while `mem` lives, of the bounce buffer, or
            // `start`, and all are read only.
            Port::Vnd(device) => unsafe { device.send(&mut self.vectors) },
            Port::Dlpi(_) => Err(Verdict::Lost(Errno::EINVAL)),
        }
    }

    fn receive_frame(&mut self, mem: &GuestRam, into: &[GuestRange], spill: &mut [u8]) -> Result<usize, Verdict> {
        let port = self.port.clone();
        match &*port {
            Port::Vnd(device) => self.receive_by_vnd(device, mem, into, spill),
            Port::Dlpi(stream) if into.is_empty() && spill.len() >= stream.longest_frame_bytes() => {
                stream.receive(spill)
            }
            Port::Dlpi(stream) => {
                let len_bytes = stream.receive(&mut self.bounce)?;
                self.scatter(mem, into, spill, len_bytes)
            }
        }
    }

    fn receive_by_vnd(
        &mut self,
        device: &super::vnd::Device,
        mem: &GuestRam,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<usize, Verdict> {
        let pieces = self.pieces.fill(mem, into.iter().map(host_range)).map_err(|_| Verdict::Lost(Errno::EFAULT))?;
        let (count, room) = (pieces.pieces().len(), pieces.len_bytes().saturating_add(spill.len()));
        if count < FrameVectors::MOST && room >= device.longest_frame_bytes() {
            let rest = (!spill.is_empty()).then_some((spill.as_mut_ptr(), spill.len()));
            self.vectors.list(pieces.pieces().chain(rest));
            // SAFETY: every vector is a piece of guest memory, which is mapped while `mem` lives, or the spill buffer.
            match unsafe { device.receive(&mut self.vectors) } {
                Err(Verdict::Lost(Errno::EOVERFLOW)) => {}
                result => return result,
            }
        }
        // Too many pieces, too little room, or a frame that is longer than any should be: it must not stay in the way of
        // those behind it.
        self.vectors.list(std::iter::once((self.bounce.as_mut_ptr(), self.bounce.len())));
        // SAFETY: the vector is the bounce buffer.
        let len_bytes = match unsafe { device.receive(&mut self.vectors) } {
            // Nothing can take it: whoever opens the link anew begins without it.
            Err(Verdict::Lost(error)) => return Err(Verdict::Gone(error)),
            result => result?,
        };
        self.scatter(mem, into, spill, len_bytes)
    }

    /// Puts a frame of `len_bytes` from the bounce buffer where it belongs.
    fn scatter(
        &self,
        mem: &GuestRam,
        into: &[GuestRange],
        spill: &mut [u8],
        len_bytes: usize,
    ) -> Result<usize, Verdict> {
        let mut frame = self.bounce.get(..len_bytes.min(self.bounce.len())).unwrap_or_default();
        for range in into {
            let (here, rest) = frame.split_at(frame.len().min(range.len as usize));
            mem.write_slice(here, GuestAddress(range.addr)).map_err(|_| Verdict::Lost(Errno::EFAULT))?;
            frame = rest;
        }
        let rest = frame.len().min(spill.len());
        spill[..rest].copy_from_slice(&frame[..rest]);
        Ok(len_bytes)
    }
}

fn host_range(range: &GuestRange) -> HostRange {
    HostRange { address: range.addr, len: range.len }
}

/// Copies a frame that begins with `start` into `buffer`; its length in bytes.
fn gather(mem: &GuestRam, start: &[u8], frame: &[GuestRange], buffer: &mut [u8]) -> Result<usize, Verdict> {
    let mut len_bytes = start.len();
    buffer.get_mut(..len_bytes).ok_or(Verdict::Lost(Errno::ERANGE))?.copy_from_slice(start);
    for range in frame {
        let end = len_bytes.saturating_add(range.len as usize);
        let place = buffer.get_mut(len_bytes..end).ok_or(Verdict::Lost(Errno::ERANGE))?;
        mem.read_slice(place, GuestAddress(range.addr)).map_err(|_| Verdict::Lost(Errno::EFAULT))?;
        len_bytes = end;
    }
    Ok(len_bytes)
}

impl NetBackend<GuestRam> for End {
    fn send(&mut self, mem: &GuestRam, _header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        self.send_start(mem, &[], frame)
    }

    fn send_from(
        &mut self,
        mem: &GuestRam,
        _header: &Header,
        addresses: &Addresses,
        rest: &[GuestRange],
    ) -> Result<Sent, NetError> {
        self.send_start(mem, addresses, rest)
    }

    fn receive(
        &mut self,
        mem: &GuestRam,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        self.follow();
        *header = Header::default();
        match self.receive_frame(mem, into, spill) {
            Ok(len_bytes) => Ok(Received::Frame { len_bytes }),
            Err(verdict) => self.judge(verdict).map(|()| Received::WouldBlock),
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> Result<(), NetError> {
        // Frames come whole, whatever the guest could take.
        Ok(())
    }
}
