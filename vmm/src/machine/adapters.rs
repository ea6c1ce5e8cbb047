//! The few lines between the device model's seams and the host's services: neither knows the other.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::GuestRam;
use devices::legacy::clock::Clock;
use devices::legacy::cmos::Cmos;
use devices::legacy::debug_port::DebugConsole;
use devices::legacy::pm::Pm;
use devices::legacy::power::{PowerSink, ResetSource};
use devices::legacy::uart::Uart;
use devices::virtio::blk::{BlkBackend, BlkError, BlkOp, BlkRequest, Failure, FailureSink, RequestToken};
use devices::virtio::console::ConsoleBackend;
use devices::virtio::queue::GuestRange;
use devices::virtio::rng::{RngBackend, RngError};
use devices::wake::Wake;
use devices_host::engine::{Engine, EngineError, Op};
use devices_host::event::Event;
use devices_host::iovec::GuestRange as HostRange;

use crate::config::system_text;
use crate::control::{DiskFailure, EventSender, MachineEvent, SerialPort, Timed};
use crate::vcpu::Gate;

/// The host's clocks.
pub struct HostClock;

impl Clock for HostClock {
    fn realtime(&self) -> (i64, u32) {
        devices_host::clock::realtime()
    }

    fn monotonic_ns(&self) -> u64 {
        devices_host::clock::monotonic_ns()
    }
}

/// Tells the life cycle what the guest does to its power; the guest stands still until the life cycle has decided.
pub struct PowerEvents {
    pub events: EventSender,
    pub gate: Arc<Gate>,
}

impl PowerSink for PowerEvents {
    fn power_off(&self) {
        self.gate.freeze();
        self.events.send(MachineEvent::GuestPowerOff);
    }

    fn reset(&self, source: ResetSource) {
        let source = match source {
            ResetSource::Port0Cf9 => "port 0xcf9",
            ResetSource::Port92 => "port 0x92",
            ResetSource::Keyboard => "keyboard controller",
        };
        self.gate.freeze();
        self.events.send(MachineEvent::GuestReset { source });
    }

    fn panicked(&self) {
        self.events.send(MachineEvent::GuestPanicked);
    }
}

impl SerialPort for DebugConsole {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        DebugConsole::take_output(self, bytes)
    }

    fn push_input(&self, bytes: &[u8]) -> usize {
        // There is no way in: what comes is thrown away.
        bytes.len()
    }
}

impl SerialPort for Uart {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        Uart::take_output(self, bytes)
    }

    fn push_input(&self, bytes: &[u8]) -> usize {
        Uart::push_input(self, bytes)
    }

    fn push_break(&self) {
        Uart::push_break(self);
    }
}

impl Timed for Cmos {
    fn deadline_ns(&self) -> Option<u64> {
        self.next_deadline_ns()
    }

    fn tick(&self, _now_ns: u64) {
        Cmos::tick(self);
    }
}

impl Timed for Pm {
    fn deadline_ns(&self) -> Option<u64> {
        Pm::deadline_ns(self)
    }

    fn tick(&self, now_ns: u64) {
        Pm::tick(self, now_ns);
    }
}

pub(super) fn host_ranges(ranges: &[GuestRange]) -> impl Iterator<Item = HostRange> + Clone + '_ {
    ranges.iter().map(|range| HostRange { address: range.addr, len: range.len })
}

/// Tells the life cycle and the log what a disk failed.
pub struct DiskFailures {
    pub id: String,
    pub events: EventSender,
    pub log: Pace,
}

impl FailureSink for DiskFailures {
    fn failed(&self, Failure { op, error, held }: Failure) {
        let (what, write) = match op {
            BlkOp::Read => ("read", false),
            BlkOp::Write { .. } => ("write", true),
            BlkOp::Flush => ("flush", true),
            BlkOp::Discard | BlkOp::WriteZeroes { .. } => ("erasure", true),
        };
        let reason = match error {
            BlkError::Host(errno) => system_text(&io::Error::from_raw_os_error(errno)),
            BlkError::NoSpace => system_text(&io::Error::from_raw_os_error(libc::ENOSPC)),
            other => other.to_string(),
        };
        if let Some(unsaid) = self.log.next(devices_host::clock::monotonic_ns()) {
            let then = if held { "the guest is held until it is resumed" } else { "the guest gets an I/O error" };
            let more = if unsaid > 0 { format!(" (and {unsaid} more before it)") } else { String::new() };
            log::error!("{}: a {what} failed: {reason}; {then}{more}", self.id);
        }
        let (disk, no_space) = (self.id.clone(), error == BlkError::NoSpace);
        self.events.send(MachineEvent::DiskFailed(DiskFailure { disk, write, no_space, held, reason }));
    }
}

/// Lets one message a second through, and counts the others: a guest can make them as fast as requests.
#[derive(Default)]
pub struct Pace(Mutex<(Option<u64>, u64)>);

impl Pace {
    /// Whether to say it: then how many were not said since the last one.
    pub fn next(&self, now_ns: u64) -> Option<u64> {
        let (last, unsaid) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now_ns.saturating_sub(last) < 1_000_000_000) {
            *unsaid += 1;
            return None;
        }
        *last = Some(now_ns);
        Some(std::mem::take(unsaid))
    }
}

/// A disk queue on its engine.
pub struct EngineDisk(pub Engine);

impl BlkBackend<GuestRam> for EngineDisk {
    fn has_room(&self) -> bool {
        self.0.has_room()
    }

    fn set_write_cache(&mut self, write_back: bool) {
        // On the worker's thread: it is a change when a driver begins, changes its mind or is reset, and the requests behind
        // it have to wait for it anyway. Nobody else waits: other queues' requests take no lock for it.
        self.0.set_write_cache(write_back);
    }

    #[inline(always)]
    fn submit(&mut self, _mem: &GuestRam, request: BlkRequest<'_>) -> Result<(), BlkError> {
        let op = match request.op {
            BlkOp::Read => Op::Read,
            BlkOp::Write { durable } => Op::Write { durable },
            BlkOp::Flush => Op::Flush,
            BlkOp::Discard => Op::Discard,
            BlkOp::WriteZeroes { unmap, durable } => Op::WriteZeroes { unmap, durable },
        };
        self.0.submit(request.token.0, op, request.offset_bytes, request.len_bytes, host_ranges(request.ranges));
        Ok(())
    }

    fn commit(&mut self) {
        self.0.commit();
    }

    #[inline(always)]
    fn poll(&mut self, _mem: &GuestRam, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        self.0.poll(|token, result| {
            let result = result.map_err(|error| match error {
                EngineError::Unsupported => BlkError::Unsupported,
                EngineError::Host(libc::ENOSPC | libc::EDQUOT) => BlkError::NoSpace,
                EngineError::Host(errno) => BlkError::Host(errno),
                EngineError::Short => BlkError::Short,
                EngineError::Memory => BlkError::Memory,
                EngineError::Cancelled => BlkError::Cancelled,
            });
            done(RequestToken(token), result);
        });
    }

    fn cancel_all(&mut self) {
        self.0.cancel_all();
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}

/// The thread of a queue, for another one to wake.
pub struct WorkerWake(pub Arc<Event>);

impl Wake for WorkerWake {
    fn wake(&self) {
        self.0.wake();
    }
}

/// The host's random numbers.
pub struct HostRandom;

impl RngBackend for HostRandom {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), RngError> {
        devices_host::random::fill(buf).map_err(|error| RngError(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// Bytes each way between a virtio console's worker and the main loop, at most. Whoever finds the other way full waits
/// for a wake-up.
const PIPE_BYTES: usize = 16 << 10;

/// A virtio console's line between its worker and the main loop.
pub struct ConsolePipe {
    ways: Mutex<Ways>,
    main: Arc<dyn Wake>,
    worker: Arc<Event>,
}

#[derive(Default)]
struct Ways {
    from_guest: VecDeque<u8>,
    to_guest: VecDeque<u8>,
}

impl ConsolePipe {
    /// An empty line: `main` is woken for output and for room, `worker` for input and for room.
    pub fn new(main: Arc<dyn Wake>, worker: Arc<Event>) -> Arc<Self> {
        Arc::new(Self { ways: Mutex::default(), main, worker })
    }

    fn lock(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put(way: &mut VecDeque<u8>, bytes: &[u8]) -> usize {
    let taken = bytes.len().min(PIPE_BYTES - way.len());
    way.extend(&bytes[..taken]);
    taken
}

fn take(way: &mut VecDeque<u8>, into: &mut [u8]) -> usize {
    let taken = into.len().min(way.len());
    for (slot, byte) in into.iter_mut().zip(way.drain(..taken)) {
        *slot = byte;
    }
    taken
}

/// The worker's end.
pub struct ConsoleEnd(pub Arc<ConsolePipe>);

impl ConsoleBackend for ConsoleEnd {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = put(&mut self.0.lock().from_guest, bytes);
        self.0.main.wake();
        taken
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut ways = self.0.lock();
        let was_full = ways.to_guest.len() == PIPE_BYTES;
        let taken = take(&mut ways.to_guest, buf);
        drop(ways);
        if was_full {
            self.0.main.wake();
        }
        taken
    }
}

impl SerialPort for ConsolePipe {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        let mut ways = self.lock();
        let was_full = ways.from_guest.len() == PIPE_BYTES;
        let taken = take(&mut ways.from_guest, bytes);
        drop(ways);
        if was_full {
            self.worker.wake();
        }
        taken
    }

    fn push_input(&self, bytes: &[u8]) -> usize {
        let taken = put(&mut self.lock().to_guest, bytes);
        if taken > 0 {
            self.worker.wake();
        }
        taken
    }
}
