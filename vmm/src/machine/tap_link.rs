//! TAP devices as the links of cards.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use devices::GuestRam;
use devices::virtio::net::{Addresses, Header, NetBackend, NetError, Offloads, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices_host::iovec::FrameError;
use devices_host::tap::{HEADER_BYTES, Offloads as TapOffloads, Tap};

use super::adapters::host_ranges;

/// A TAP device as a card's link: of one direction of a queue pair, or of both.
pub struct TapLink {
    tap: Tap,
    /// Of a device with several queues: those, and which one this is.
    queues: Option<(Arc<TapQueues>, usize)>,
}

/// The queues of a device, and which of them have frames given to them.
struct TapQueues(Mutex<Vec<TapQueue>>);

struct TapQueue {
    tap: Tap,
    /// Its pair is in use.
    used: bool,
    /// Its receive queue is being reset.
    resetting: bool,
    attached: bool,
}

impl TapQueues {
    /// Changes what is wanted of each queue, by its index, and has the system follow. After an error it is as before, as far as
    /// the system lets it.
    fn change(&self, edit: impl Fn(usize, &mut TapQueue)) -> Result<(), NetError> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<_> = queues.iter().map(|queue| (queue.used, queue.resetting)).collect();
        queues.iter_mut().enumerate().for_each(|(index, queue)| edit(index, queue));
        follow(&mut queues).map_err(|error| {
            for (queue, (used, resetting)) in queues.iter_mut().zip(before) {
                (queue.used, queue.resetting) = (used, resetting);
            }
            let _ = follow(&mut queues);
            NetError::Host(error.raw_os_error().unwrap_or(libc::EIO))
        })
    }
}

fn follow(queues: &mut [TapQueue]) -> io::Result<()> {
    for queue in queues {
        let wanted = queue.used && !queue.resetting;
        if queue.attached != wanted {
            queue.tap.set_attached(wanted)?;
            queue.attached = wanted;
        }
    }
    Ok(())
}

impl TapLink {
    /// The link on the only queue of a device, or one that only sends.
    pub fn new(tap: Tap) -> Self {
        Self { tap, queues: None }
    }

    /// The links of the receive queues of a card with a pair for each of these queues of one device, of which the first alone
    /// is attached.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn of_queues(taps: Vec<Tap>) -> io::Result<Vec<Self>> {
        if taps.len() < 2 {
            return Ok(taps.into_iter().map(Self::new).collect());
        }
        let queue = |(index, tap): (usize, &Tap)| {
            let tap = tap.try_clone()?;
            Ok(TapQueue { tap, used: index == 0, resetting: false, attached: index == 0 })
        };
        let queues = taps.iter().enumerate().map(queue).collect::<io::Result<_>>()?;
        let queues = Arc::new(TapQueues(Mutex::new(queues)));
        let link = |(index, tap)| Self { tap, queues: Some((queues.clone(), index)) };
        Ok(taps.into_iter().enumerate().map(link).collect())
    }
}

fn link_error(error: FrameError) -> Result<(), NetError> {
    match error {
        FrameError::Memory(_) => Err(NetError::Memory),
        FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        FrameError::Io(error) => Err(NetError::Host(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

impl NetBackend<GuestRam> for TapLink {
    fn send(&mut self, mem: &GuestRam, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        match self.tap.send(mem, header, host_ranges(frame)) {
            Ok(_) => Ok(Sent::Done),
            Err(error) => link_error(error).map(|()| Sent::WouldBlock),
        }
    }

    fn send_from(
        &mut self,
        mem: &GuestRam,
        header: &Header,
        addresses: &Addresses,
        rest: &[GuestRange],
    ) -> Result<Sent, NetError> {
        let mut start = [0; size_of::<Header>() + size_of::<Addresses>()];
        start[..size_of::<Header>()].copy_from_slice(header);
        start[size_of::<Header>()..].copy_from_slice(addresses);
        match self.tap.send(mem, &start, host_ranges(rest)) {
            Ok(_) => Ok(Sent::Done),
            Err(error) => link_error(error).map(|()| Sent::WouldBlock),
        }
    }

    fn receive(
        &mut self,
        mem: &GuestRam,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        match self.tap.receive(mem, header, host_ranges(into), spill) {
            Ok(len) => Ok(Received::Frame { len_bytes: len.saturating_sub(HEADER_BYTES) }),
            Err(error) => link_error(error).map(|()| Received::WouldBlock),
        }
    }

    fn tells_of_every_frame(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        let Offloads { csum, tso4, tso6, ecn, uso } = offloads;
        let set = self.tap.set_offloads(TapOffloads { csum, tso4, tso6, ecn, uso });
        set.map_err(|error| NetError::Host(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        let Some((queues, _)) = &self.queues else { return Ok(()) };
        queues.change(|index, queue| queue.used = index < usize::from(pairs))
    }

    fn set_receiving(&mut self, receiving: bool) -> Result<(), NetError> {
        let Some((queues, own)) = &self.queues else { return Ok(()) };
        queues.change(|index, queue| {
            if index == *own {
                queue.resetting = !receiving;
            }
        })
    }
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
