//! The floor: a plain loop of reads or writes on the same TAP device, each of one frame with its header.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices_host::ram::{RamOptions, allocate};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::pair::{PATIENCE, wait_readable, whole};
use super::{Card, Load};
use crate::ring::SIZE;

/// The loop.
pub struct Raw {
    tap: File,
    sent: Buffers,
    received: Buffers,
    frame_bytes: usize,
}

/// As many buffers as a ring has, in memory of the same kind as a guest's.
struct Buffers {
    memory: GuestRam,
    room: usize,
}

impl Buffers {
    fn new(room: usize) -> io::Result<Self> {
        let bytes = (room * usize::from(SIZE)).next_multiple_of(2 << 20);
        let memory = allocate(&[(0, bytes as u64)], &RamOptions::default()).map_err(io::Error::other)?;
        Ok(Self { memory, room })
    }

    /// The buffer of this number, from the start again behind the last one.
    fn of(&mut self, number: u64) -> &mut [u8] {
        let at = (number % u64::from(SIZE)) * self.room as u64;
        let start = self.memory.get_host_address(GuestAddress(at)).expect("memory of its own");
        // SAFETY: `room` bytes are mapped there for as long as `memory` lives, and nobody else knows of them.
        unsafe { std::slice::from_raw_parts_mut(start, self.room) }
    }
}

impl Raw {
    /// A loop over the device of `card`, whose workers have to stand still while it receives.
    ///
    /// # Errors
    /// When there is no memory, or no descriptor.
    pub fn new(card: &Card, load: &Load) -> io::Result<Self> {
        let frame = load.frame(true);
        let room = frame.len().next_multiple_of(4096);
        let mut sent = Buffers::new(room)?;
        for number in 0..u64::from(SIZE) {
            sent.of(number)[..frame.len()].copy_from_slice(&frame);
        }
        Ok(Self { tap: card.tap()?.into(), sent, received: Buffers::new(room)?, frame_bytes: frame.len() })
    }

    /// Writes so many frames.
    ///
    /// # Errors
    /// When one cannot be sent.
    pub fn write(&mut self, frames: u64) -> io::Result<Duration> {
        let start = Instant::now();
        for number in 0..frames {
            let frame = &self.sent.of(number)[..self.frame_bytes];
            whole((&self.tap).write(frame), frame.len())?;
        }
        Ok(start.elapsed())
    }

    /// Reads so many frames that wait in the device.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn read(&mut self, frames: u64) -> io::Result<Duration> {
        let start = Instant::now();
        for number in 0..frames {
            whole((&self.tap).read(self.received.of(number)), self.frame_bytes)?;
        }
        Ok(start.elapsed())
    }

    /// Has a frame go there and come back so many times: µs each. Who echoes it is another thread.
    ///
    /// # Errors
    /// When one does not come back.
    pub fn round_trips_us(&mut self, count: u64) -> io::Result<Vec<f64>> {
        let mut times_us = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let start = Instant::now();
            self.write(1)?;
            wait_readable(&self.tap, PATIENCE)?;
            self.read(1)?;
            times_us.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        Ok(times_us)
    }
}
