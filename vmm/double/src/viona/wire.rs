//! What is at the other end of a link: a TAP device of the machine, or a socket of a test.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use devices::GuestRam;
use devices::virtio::net::{HEADER_BYTES, Header, NetBackend, NetError, Offloads, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices_host::iovec::{FrameError, GuestRange as HostRange, VectorBuffer};
use devices_host::tap::{Offloads as TapOffloads, Tap};
use vm_memory::{Bytes, GuestAddress};

use super::filters::Receives;
use super::lanes::Lanes;

/// The other end of a link. Every frame has a virtio-net header of 12 bytes before it.
#[derive(Debug)]
pub enum Wire {
    /// A TAP device.
    Tap(Tap),
    /// A socket that keeps frames apart and does not block.
    Socket(OwnedFd),
}

impl Wire {
    /// The end of the ring of this pair. Of what comes it takes what the instance `receives`, as a VNIC hands it over.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn end(&self, receives: &Arc<Receives>, lanes: &Arc<Lanes>, pair: u16) -> io::Result<WireEnd> {
        let buffer = VectorBuffer::with_capacity(64);
        let (fd, tap) = match self {
            Self::Tap(tap) => (tap.as_fd().try_clone_to_owned()?, Some(tap.try_clone()?)),
            Self::Socket(socket) => (socket.try_clone()?, None),
        };
        Ok(WireEnd { fd, tap, buffer, receives: receives.clone(), lanes: lanes.clone(), pair })
    }
}

/// One ring's end.
pub struct WireEnd {
    fd: OwnedFd,
    tap: Option<Tap>,
    buffer: VectorBuffer,
    receives: Arc<Receives>,
    lanes: Arc<Lanes>,
    pair: u16,
}

impl WireEnd {
    /// What polls for frames.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Loses what has come so far: a network keeps nothing for a ring that does not run.
    pub fn drain(&self) {
        let Ok(fd) = self.fd.try_clone() else { return };
        let mut frame = vec![0; LONGEST_BYTES];
        let mut file = File::from(fd);
        while file.read(&mut frame).is_ok_and(|len| len > 0) {}
    }

    /// The next frame for this pair of several, behind its header: of others that come by, each goes where it belongs.
    fn next_of_pair(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.lanes.next(self.pair) {
                return Ok(Some(frame));
            }
            let mut frame = vec![0; LONGEST_BYTES];
            match File::from(self.fd.try_clone()?).read(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
                Ok(len) => frame.truncate(len),
            }
            let Some(to) = frame.get(HEADER_BYTES..).and_then(|bytes| bytes.first_chunk()) else { continue };
            if !self.receives.has(*to) {
                continue;
            }
            match self.lanes.of(&frame[HEADER_BYTES..]) {
                pair if pair == self.pair => return Ok(Some(frame)),
                pair => self.lanes.hand(pair, frame),
            }
        }
    }
}

/// Room for the longest frame there is, and its header.
const LONGEST_BYTES: usize = 0x1_1000;

/// Puts a frame, behind its header, where a received one goes.
fn deliver(
    mem: &GuestRam,
    frame: &[u8],
    header: &mut Header,
    into: &[GuestRange],
    spill: &mut [u8],
) -> Result<Received, NetError> {
    let Some((first, mut rest)) = frame.split_first_chunk() else { return Ok(Received::WouldBlock) };
    *header = *first;
    let len_bytes = rest.len();
    for range in into {
        let (here, behind) = rest.split_at(rest.len().min(range.len as usize));
        mem.write_slice(here, GuestAddress(range.addr)).map_err(|_| NetError::Memory)?;
        rest = behind;
    }
    let kept = rest.len().min(spill.len());
    spill[..kept].copy_from_slice(&rest[..kept]);
    Ok(Received::Frame { len_bytes })
}

fn host_ranges(ranges: &[GuestRange]) -> impl Iterator<Item = HostRange> + Clone + '_ {
    ranges.iter().map(|range| HostRange { address: range.addr, len: range.len })
}

/// Nothing where the wire only has nothing, or takes nothing, now.
fn refused(error: FrameError) -> Result<(), NetError> {
    match error {
        FrameError::Memory(_) => Err(NetError::Memory),
        FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        FrameError::Io(error) => Err(NetError::Host(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// The first bytes of a frame: in guest memory first, and behind it in `spill`.
fn destination(mem: &GuestRam, into: &[GuestRange], spill: &[u8]) -> [u8; 6] {
    let mut to = [0; 6];
    let mut filled = 0;
    for range in into {
        let len = (6 - filled).min(range.len as usize);
        let _ = mem.read_slice(&mut to[filled..filled + len], GuestAddress(range.addr));
        filled += len;
    }
    let rest = (6 - filled).min(spill.len());
    to[filled..filled + rest].copy_from_slice(&spill[..rest]);
    to
}

impl NetBackend<GuestRam> for WireEnd {
    fn send(&mut self, mem: &GuestRam, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        match self.buffer.write_frame(self.fd.as_fd(), mem, header, host_ranges(frame)) {
            Ok(_) => Ok(Sent::Done),
            Err(error) => refused(error).map(|()| Sent::WouldBlock),
        }
    }

    fn receive(
        &mut self,
        mem: &GuestRam,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        if self.lanes.used() > 1 {
            return match self.next_of_pair() {
                Ok(Some(frame)) => deliver(mem, &frame, header, into, spill),
                Ok(None) => Ok(Received::WouldBlock),
                Err(error) => Err(NetError::Host(error.raw_os_error().unwrap_or(libc::EIO))),
            };
        }
        loop {
            let len = match self.buffer.read_frame(self.fd.as_fd(), mem, header, host_ranges(into), spill) {
                Ok(len) => len,
                Err(error) => return refused(error).map(|()| Received::WouldBlock),
            };
            if self.receives.has(destination(mem, into, spill)) {
                return Ok(Received::Frame { len_bytes: len.saturating_sub(HEADER_BYTES) });
            }
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        let Offloads { csum, tso4, tso6, ecn, uso } = offloads;
        let Some(tap) = &self.tap else { return Ok(()) };
        tap.set_offloads(TapOffloads { csum, tso4, tso6, ecn, uso })
            .map_err(|error| NetError::Host(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}
