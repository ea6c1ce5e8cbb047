//! The floor: a plain loop over io_uring on the same file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use devices::GuestRam;
use io_uring::{IoUring, opcode, types};

use super::{Driver, Load, Offsets, Times};

/// One thread that submits, waits and submits again.
pub struct Raw {
    ring: IoUring,
    offsets: Offsets,
    load: Load,
    _mem: GuestRam,
    /// The buffers of the requests, by slot.
    pieces: Vec<libc::iovec>,
    _file: File,
}

impl Raw {
    /// A loop over `file`, which was opened for the load. Its buffers are those of a [`Driver`] of the load in `mem`, whose
    /// requests are not under way while the loop runs: where memory lies in the machine's makes what is moved to and from it
    /// a few hundredths faster or slower.
    ///
    /// # Errors
    /// When there is no io_uring, or `mem` is not the load's [`Driver::memory`].
    pub fn new(file: File, load: &Load, mem: GuestRam) -> io::Result<Self> {
        let ring = IoUring::new(load.depth.next_power_of_two() as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let at = Driver::host_data(&mem, load).map_err(io::Error::other)?;
        let piece = |n: usize| libc::iovec {
            iov_base: at.wrapping_add(n * load.piece_bytes).cast(),
            iov_len: load.piece_bytes,
        };
        let pieces = (0..load.depth * load.bytes / load.piece_bytes).map(piece).collect();
        Ok(Self {
            ring,
            offsets: Offsets::new(load, file.metadata()?.len()),
            load: *load,
            _mem: mem,
            pieces,
            _file: file,
        })
    }

    /// Has requests done for `time`.
    ///
    /// # Errors
    /// When one fails.
    pub fn run(&mut self, time: Duration) -> io::Result<Times> {
        let end = Instant::now() + time;
        self.run_while(|_| Instant::now() < end)
    }

    /// Has requests done until they are so many.
    ///
    /// # Errors
    /// When one fails.
    pub fn run_count(&mut self, count: u64) -> io::Result<Times> {
        self.run_while(|done| done < count)
    }

    fn run_while(&mut self, mut more: impl FnMut(u64) -> bool) -> io::Result<Times> {
        let start = Instant::now();
        let mut times = Times::default();
        let mut free: Vec<u64> = (0..self.load.depth as u64).collect();
        let mut in_flight = 0;
        let single = self.load.depth == 1;
        loop {
            let began = if single { Some(Instant::now()) } else { None };
            if more(times.requests) {
                for slot in free.drain(..) {
                    self.begin(slot)?;
                    in_flight += 1;
                }
            }
            if in_flight == 0 {
                break;
            }
            self.ring.submit_and_wait(1)?;
            let completions = self.ring.completion();
            for entry in completions {
                if entry.result() != self.load.bytes as i32 {
                    return Err(io::Error::other(format!("a request ended with {}", entry.result())));
                }
                free.push(entry.user_data());
                in_flight -= 1;
                times.requests += 1;
            }
            if let Some(began) = began {
                times.latencies_ns.push(began.elapsed().as_nanos() as u32);
            }
        }
        times.elapsed = start.elapsed();
        Ok(times)
    }

    fn begin(&mut self, slot: u64) -> io::Result<()> {
        let count = self.load.bytes / self.load.piece_bytes;
        let offset = self.offsets.take();
        let (file, len) = (types::Fixed(0), self.load.bytes as u32);
        let entry = match (&self.pieces[slot as usize * count..][..count], self.load.writes) {
            ([whole], false) => opcode::Read::new(file, whole.iov_base.cast(), len).offset(offset).build(),
            ([whole], true) => opcode::Write::new(file, whole.iov_base.cast(), len).offset(offset).build(),
            (pieces, false) => opcode::Readv::new(file, pieces.as_ptr(), count as u32).offset(offset).build(),
            (pieces, true) => opcode::Writev::new(file, pieces.as_ptr(), count as u32).offset(offset).build(),
        };
        let entry = entry.user_data(slot);
        // SAFETY: the list of buffers lives as long as the ring, and what is in it is mapped for as long as `_mem`;
        // `run_while` waits for every request it starts.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }
}
