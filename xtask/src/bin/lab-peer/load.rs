//! Reads of a block device, past the page cache, that the storage figures are taken under.
//!
//! The caller starts each phase with a line, so that it can read counters before and after: `GO rr32`, a line, the reads,
//! `END rr32`. What was measured inside is printed when all phases are over, in one go: every byte on a serial port costs
//! an exit, and would be counted.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

const RANDOM_BYTES: usize = 4 << 10;
const SEQUENTIAL_BYTES: usize = 128 << 10;

/// What is read in one phase: `rr<depth>:<operations>` (random, 4 KiB) or `sr<depth>:<operations>` (sequential, 128 KiB).
#[derive(Debug, PartialEq, Eq)]
struct Phase {
    name: String,
    random: bool,
    depth: usize,
    operations: u64,
}

impl Phase {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let parse = || {
            let (name, operations) = text.split_once(':')?;
            let (kind, depth) = name.split_at_checked(2)?;
            let phase = Self {
                name: name.to_owned(),
                random: kind == "rr",
                depth: depth.parse().ok().filter(|depth| (1..=256).contains(depth))?,
                operations: operations.parse().ok()?,
            };
            ["rr", "sr"].contains(&kind).then_some(phase)
        };
        parse().with_context(|| format!("`{text}` is no load: give rr<depth>:<operations> or sr<depth>:<operations>"))
    }

    fn bytes(&self) -> usize {
        if self.random { RANDOM_BYTES } else { SEQUENTIAL_BYTES }
    }
}

/// Runs the phases, each when a line comes in.
pub fn run(device: &Path, phases: &[String]) -> anyhow::Result<()> {
    let phases = phases.iter().map(|text| Phase::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(device);
    let file = file.with_context(|| format!("cannot open {} past the page cache", device.display()))?;
    let len = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0))?;
    let mut results = Vec::new();
    for phase in &phases {
        ensure!(len >= 2 * phase.bytes() as u64, "{} has only {len} bytes", device.display());
        let mut load = Load::new(&file, len, phase)?;
        println!("GO {}", phase.name);
        let mut line = String::new();
        ensure!(std::io::stdin().read_line(&mut line)? > 0, "nobody starts {}", phase.name);
        let start = Instant::now();
        load.run()?;
        results.push(start.elapsed());
        println!("END {}", phase.name);
    }
    for (phase, time) in phases.iter().zip(results) {
        println!("LOAD {} {} reads in {} us", phase.name, phase.operations, time.as_micros());
    }
    std::io::stdout().flush()?;
    Ok(())
}

/// A phase under way.
struct Load<'a> {
    file: &'a File,
    blocks: u64,
    phase: &'a Phase,
    buffers: Buffers,
    next: u64,
}

impl<'a> Load<'a> {
    fn new(file: &'a File, len: u64, phase: &'a Phase) -> anyhow::Result<Self> {
        let buffers = Buffers::new(phase.depth, phase.bytes())?;
        Ok(Self { file, blocks: len / phase.bytes() as u64, phase, buffers, next: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Where operation `n` reads.
    fn offset(&mut self, n: u64) -> u64 {
        let block = if self.phase.random {
            // xorshift64.
            self.next ^= self.next << 13;
            self.next ^= self.next >> 7;
            self.next ^= self.next << 17;
            self.next % self.blocks
        } else {
            n % self.blocks
        };
        block * self.phase.bytes() as u64
    }

    fn run(&mut self) -> anyhow::Result<()> {
        if self.phase.depth == 1 { self.one_by_one() } else { self.many_at_once() }
    }

    fn one_by_one(&mut self) -> anyhow::Result<()> {
        for n in 0..self.phase.operations {
            let offset = self.offset(n);
            let read = self.file.read_at(self.buffers.slice(0), offset)?;
            ensure!(read == self.phase.bytes(), "a read at {offset} ended after {read} bytes");
        }
        Ok(())
    }

    /// Linux AIO (io_submit(2)): a kernel without io_uring has it, too.
    fn many_at_once(&mut self) -> anyhow::Result<()> {
        let bytes = self.phase.bytes();
        let context = Context::new(self.phase.depth)?;
        let mut free: Vec<usize> = (0..self.phase.depth).collect();
        let (mut started, mut done) = (0, 0);
        let mut events = vec![Event::default(); self.phase.depth];
        while done < self.phase.operations {
            let mut blocks = Vec::with_capacity(self.phase.depth);
            while started < self.phase.operations
                && let Some(slot) = free.pop()
            {
                let offset = self.offset(started);
                blocks.push(ControlBlock {
                    data: slot as u64,
                    opcode: PREAD,
                    descriptor: self.file.as_raw_fd().cast_unsigned(),
                    buffer: self.buffers.slice(slot).as_mut_ptr() as u64,
                    bytes: bytes as u64,
                    offset,
                    ..ControlBlock::default()
                });
                started += 1;
            }
            context.submit(&mut blocks)?;
            for event in context.wait(&mut events)? {
                ensure!(event.result == bytes as i64, "a read ended with {}", event.result);
                free.push(usize::try_from(event.data)?);
                done += 1;
            }
        }
        Ok(())
    }
}

/// Page-aligned memory in pieces of one size.
struct Buffers {
    start: *mut u8,
    count: usize,
    bytes: usize,
}

impl Buffers {
    fn new(count: usize, bytes: usize) -> anyhow::Result<Self> {
        // SAFETY: a fresh private mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        ensure!(start != libc::MAP_FAILED, "no memory for {count} reads of {bytes} bytes");
        Ok(Self { start: start.cast(), count, bytes })
    }

    fn slice(&mut self, slot: usize) -> &mut [u8] {
        assert!(slot < self.count);
        // SAFETY: inside the mapping, which lives as long as this; nobody else has a reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(slot * self.bytes), self.bytes) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.start.cast(), self.count * self.bytes) };
    }
}

/// `IOCB_CMD_PREAD` of `linux/aio_abi.h`.
const PREAD: u16 = 0;

/// `struct iocb` of `linux/aio_abi.h`, little endian.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    flags: i32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: u64,
    reserved: u64,
    flags2: u32,
    event: u32,
}

const _: () = assert!(size_of::<ControlBlock>() == 64);

/// `struct io_event` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    result2: i64,
}

/// An AIO context.
struct Context(libc::c_ulong);

impl Context {
    fn new(depth: usize) -> anyhow::Result<Self> {
        let mut context = 0;
        // SAFETY: the kernel writes the context's name.
        let failed = unsafe { libc::syscall(libc::SYS_io_setup, depth as libc::c_ulong, &raw mut context) };
        ensure!(failed == 0, "io_setup: {}", std::io::Error::last_os_error());
        Ok(Self(context))
    }

    fn submit(&self, blocks: &mut [ControlBlock]) -> anyhow::Result<()> {
        let mut pointers: Vec<*mut ControlBlock> = blocks.iter_mut().map(std::ptr::from_mut).collect();
        let mut rest = &mut pointers[..];
        while !rest.is_empty() {
            // SAFETY: the blocks live through the call, which copies them; their buffers live until all are done.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.0, rest.len(), rest.as_mut_ptr()) };
            let Ok(taken @ 1..) = usize::try_from(taken) else {
                bail!("io_submit: {}", std::io::Error::last_os_error());
            };
            rest = &mut rest[taken..];
        }
        Ok(())
    }

    /// At least one, and all there are.
    fn wait<'a>(&self, events: &'a mut [Event]) -> anyhow::Result<&'a [Event]> {
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: the events live through the call, which writes at most as many as there are.
        let got = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 1, events.len(), events.as_mut_ptr(), none) };
        let got = usize::try_from(got).map_err(|_| std::io::Error::last_os_error()).context("io_getevents")?;
        Ok(&events[..got])
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Waits for what is not done, so that no buffer is unmapped under a read.
        // SAFETY: takes a number.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, random: bool, depth: usize, operations: u64) -> Phase {
        Phase { name: name.to_owned(), random, depth, operations }
    }

    #[test]
    fn a_phase_is_read_from_its_text() {
        assert_eq!(Phase::parse("rr32:20000").unwrap(), phase("rr32", true, 32, 20000));
        assert_eq!(Phase::parse("sr1:8").unwrap(), phase("sr1", false, 1, 8));
        for text in ["rr32", "rr:5", "rr0:5", "rr257:5", "rw1:5", "sr1:x", "", "é1:5"] {
            assert!(Phase::parse(text).is_err(), "{text}");
        }
    }

    /// Without O_DIRECT, which not every temporary folder allows.
    #[test]
    fn every_read_of_a_phase_is_made_and_a_short_one_is_noticed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for phase in [phase("rr1", true, 1, 300), phase("rr32", true, 32, 1000), phase("sr4", false, 4, 30)] {
            Load::new(&file, 1 << 20, &phase).unwrap().run().unwrap();
            let longer = Load::new(&file, 2 << 20, &phase).unwrap().run();
            assert!(longer.is_err(), "{phase:?} read what is not there");
        }
    }
}
