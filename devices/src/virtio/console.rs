//! virtio-console: one port (virtio 1.3 §5.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::GuestMemory;

use super::counters::QueueCounters;
use super::generation::Generation;
use super::queue::{Chain, F_EVENT_IDX, F_INDIRECT_DESC};
use super::worker::WorkerQueue;
use super::{QueueState, Step, VirtioDevice, VirtioWorker, WorkerActivation, WorkerState};
use crate::pci::StateError;
use crate::planted::{Defect, is_planted};

/// `VIRTIO_CONSOLE_F_SIZE` (virtio 1.3 §5.3.3).
const F_SIZE: u64 = 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
/// Bytes of configuration space: cols, rows, max_nr_ports, emerg_wr (virtio 1.3 §5.3.4).
const CONFIG_BYTES: usize = 12;
/// Bytes that are moved at once.
const CHUNK_BYTES: usize = 4096;
/// The most bytes a step moves each way: a chain of 4 GiB of the same page must not keep the worker from a stop.
const STEP_BYTES: usize = 64 << 10;
/// The most bytes of a half-written chain that outlive a pause.
const CARRY_BYTES: usize = 64 << 10;

/// What is at the other end of the console. Does not block.
pub trait ConsoleBackend: Send {
    /// Takes bytes from the guest and returns how many; zero means that it can take none right now. A console nobody
    /// listens to takes everything.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// Gives bytes to the guest and returns how many; zero means that there are none right now.
    fn read(&mut self, buf: &mut [u8]) -> usize;
}

/// A virtio console with one port.
#[derive(Clone, Debug)]
pub struct ConsoleDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sized: bool,
    /// Columns in the low half, rows in the high one, so that both change at once.
    size: AtomicU32,
    generation: Generation,
}

impl ConsoleDevice {
    /// A console of `size` columns and rows, if it has a size.
    pub fn new(size: Option<(u16, u16)>) -> Self {
        let (cols, rows) = size.unwrap_or_default();
        let shared =
            Shared { sized: size.is_some(), size: AtomicU32::new(pack(cols, rows)), generation: Generation::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Changes the size. The caller tells the driver where this returns `true`, through
    /// [`VirtioInterrupt::config_changed`](super::VirtioInterrupt::config_changed).
    pub fn set_size(&self, cols: u16, rows: u16) -> bool {
        let size = pack(cols, rows);
        let Shared { sized, size: shown, generation } = &*self.shared;
        generation.change(|| shown.swap(size, Ordering::AcqRel) != size) && *sized
    }

    /// The worker of both queues.
    pub fn worker<B>(&self, backend: B, rx: Arc<QueueCounters>, tx: Arc<QueueCounters>) -> ConsoleWorker<B> {
        ConsoleWorker {
            backend,
            rx: WorkerQueue::new(RX_QUEUE, QUEUE_SIZE, rx),
            tx: WorkerQueue::new(TX_QUEUE, QUEUE_SIZE, tx),
            input: Bytes::new(CHUNK_BYTES),
            output: Bytes::new(CARRY_BYTES),
            partial: None,
            stopping: false,
        }
    }
}

fn pack(cols: u16, rows: u16) -> u32 {
    u32::from(cols) | u32::from(rows) << 16
}

impl VirtioDevice for ConsoleDevice {
    fn device_type(&self) -> u16 {
        3
    }

    fn features(&self) -> u64 {
        let size = if self.shared.sized { F_SIZE } else { 0 };
        size | F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let [c0, c1, r0, r1] = self.shared.size.load(Ordering::Acquire).to_le_bytes();
        let space: [u8; CONFIG_BYTES] = [c0, c1, r0, r1, 1, 0, 0, 0, 0, 0, 0, 0];
        super::read_config_space(&space, offset, data);
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) {
        // Emergency write is not offered.
    }

    fn config_len(&self) -> u32 {
        CONFIG_BYTES as u32
    }

    fn generation(&self) -> Option<&Generation> {
        Some(&self.shared.generation)
    }
}

/// Bytes on their way: a fixed buffer with a filled part.
struct Bytes {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Bytes {
    fn new(capacity: usize) -> Self {
        Self { buffer: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    fn filled(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Drops `count` bytes from the front.
    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// The bug that [`Defect::OutputUnbounded`] stands for: room for what is to come, and nothing that was there is let go.
    fn grow(&mut self) {
        let mut larger = vec![0; self.buffer.len().saturating_add(CHUNK_BYTES)].into_boxed_slice();
        larger.iter_mut().zip(&self.buffer).for_each(|(to, from)| *to = *from);
        self.buffer = larger;
    }

    /// Replaces the content with `saved`; `false` where that does not fit.
    fn load(&mut self, saved: &[u8]) -> bool {
        let Some(to) = self.buffer.get_mut(..saved.len()) else { return false };
        to.copy_from_slice(saved);
        (self.start, self.end) = (0, saved.len());
        true
    }

    /// Replaces the content: `fill` gets the whole buffer and says how much of it it used.
    fn refill(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.start = 0;
        self.end = fill(&mut self.buffer).min(self.buffer.len());
    }
}

/// Runs both queues of a [`ConsoleDevice`].
pub struct ConsoleWorker<B> {
    backend: B,
    rx: WorkerQueue,
    tx: WorkerQueue,
    /// Bytes read from the back end that no buffer was there for.
    input: Bytes,
    /// Bytes of a chain on their way to the back end.
    output: Bytes,
    /// A chain whose first bytes have been taken.
    partial: Option<Partial>,
    stopping: bool,
}

struct Partial {
    chain: Chain,
    taken_bytes: u64,
}

impl<B: ConsoleBackend> ConsoleWorker<B> {
    /// Input to the guest. Returns whether to come back at once, and whether to wait for the back end.
    fn receive<M: GuestMemory>(&mut self, mem: &M) -> (bool, bool) {
        if !self.rx.is_live() {
            return (false, false);
        }
        self.rx.disable_kicks(mem);
        let mut budget = STEP_BYTES;
        let outcome = loop {
            if budget == 0 {
                break (true, false);
            }
            if self.input.filled().is_empty() {
                let Self { input, backend, .. } = self;
                input.refill(|buf| backend.read(buf));
            }
            if self.input.filled().is_empty() {
                break (false, true);
            }
            let Some(chain) = self.rx.pop(mem) else {
                break (self.rx.enable_kicks(mem), false);
            };
            let bytes = self.input.filled();
            let count = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX).min(bytes.len());
            if count == 0 {
                // §5.3.6.1: only writable buffers belong here.
                self.rx.counters().malformed.count();
            }
            let written = chain.writer(mem).write(bytes.get(..count).unwrap_or_default());
            debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
            self.input.consume(count);
            self.rx.counters().bytes_to_guest.add(count as u64);
            self.rx.push(mem, chain, count as u64);
            budget = budget.saturating_sub(count.max(64));
        };
        self.rx.publish(mem);
        outcome
    }

    /// Output from the guest. Returns whether to come back at once, and whether to wait for the back end.
    fn transmit<M: GuestMemory>(&mut self, mem: &M) -> (bool, bool) {
        if !self.tx.is_live() {
            return (false, false);
        }
        self.tx.disable_kicks(mem);
        let mut budget = STEP_BYTES;
        let outcome = loop {
            if budget == 0 {
                break (true, false);
            }
            if !self.flush() {
                if !is_planted(Defect::OutputUnbounded) {
                    break (false, true);
                }
                self.output.grow();
            }
            let Some(mut partial) = self.next_output(mem) else {
                break (self.tx.enable_kicks(mem), false);
            };
            let count = self.load_output(mem, &mut partial, CHUNK_BYTES);
            budget = budget.saturating_sub(count.max(64));
            let endless = partial.chain.readable_bytes() == 0 && is_planted(Defect::EmptyChainSpins);
            if partial.taken_bytes < partial.chain.readable_bytes() || endless {
                self.partial = Some(partial);
            } else {
                // The rest is in our buffer; the driver's is free.
                self.tx.push(mem, partial.chain, 0);
            }
        };
        self.tx.publish(mem);
        outcome
    }

    fn next_output<M: GuestMemory>(&mut self, mem: &M) -> Option<Partial> {
        self.partial.take().or_else(|| self.tx.pop(mem).map(|chain| Partial { chain, taken_bytes: 0 }))
    }

    /// Copies up to `max` bytes of a chain into the empty output buffer.
    fn load_output<M: GuestMemory>(&mut self, mem: &M, partial: &mut Partial, max: usize) -> usize {
        let mut reader = partial.chain.reader(mem);
        let skipped = reader.skip(partial.taken_bytes);
        let count = usize::try_from(reader.remaining()).unwrap_or(usize::MAX).min(max);
        let mut copied = skipped;
        self.output.refill(|buf| {
            let bytes = buf.get_mut(..count).unwrap_or_default();
            copied = copied.and_then(|()| reader.read(bytes));
            count
        });
        debug_assert!(copied.is_ok(), "a chain's memory was checked when it was popped");
        partial.taken_bytes = partial.taken_bytes.saturating_add(count as u64);
        self.tx.counters().bytes_from_guest.add(count as u64);
        count
    }

    /// Gives the output buffer to the back end; `false` where it did not take everything.
    fn flush(&mut self) -> bool {
        while !self.output.filled().is_empty() {
            match self.backend.write(self.output.filled()) {
                0 => return false,
                count => self.output.consume(count),
            }
        }
        true
    }

    /// Ends a half-written chain at a pause: what was taken must not be written twice, so the rest comes with it, as
    /// far as there is room.
    fn settle_partial<M: GuestMemory>(&mut self, mem: &M) {
        let Some(mut partial) = self.partial.take() else { return };
        let pending = self.output.filled().len();
        let mut kept = vec![0; pending];
        kept.copy_from_slice(self.output.filled());
        let room = CARRY_BYTES.saturating_sub(pending);
        let count = self.load_output(mem, &mut partial, room);
        self.output.refill(|buf| {
            buf.copy_within(..count, pending);
            for (to, from) in buf.iter_mut().zip(kept) {
                *to = from;
            }
            pending.saturating_add(count)
        });
        if partial.taken_bytes < partial.chain.readable_bytes() {
            self.tx.counters().dropped.count();
        }
        self.tx.push(mem, partial.chain, 0);
        self.tx.publish(mem);
    }
}

impl<B> ConsoleWorker<B> {
    fn abandon(&mut self) {
        if let Some(partial) = self.partial.take() {
            partial.chain.abandon();
        }
    }
}

impl<B> Drop for ConsoleWorker<B> {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl<M: GuestMemory, B: ConsoleBackend> VirtioWorker<M> for ConsoleWorker<B> {
    fn queues(&self) -> &[u16] {
        &[RX_QUEUE, TX_QUEUE]
    }

    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation) {
        self.stopping = false;
        match queue {
            RX_QUEUE => self.rx.start(mem, &state, activation),
            TX_QUEUE => {
                self.abandon();
                self.tx.start(mem, &state, activation);
            }
            _ => {}
        }
    }

    fn step(&mut self, mem: &M) -> Step {
        if self.stopping {
            return Step::default();
        }
        let (tx_again, want_writable) = self.transmit(mem);
        let (rx_again, want_readable) = self.receive(mem);
        Step { again: tx_again || rx_again, want_readable, want_writable, ..Step::default() }
    }

    fn begin_stop(&mut self, _mem: &M) {
        self.stopping = true;
    }

    fn poll_stopped(&mut self, mem: &M, abandon: bool) -> bool {
        if abandon {
            self.abandon();
        } else {
            self.settle_partial(mem);
        }
        true
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        match queue {
            RX_QUEUE => self.rx.take_state(),
            TX_QUEUE => {
                self.abandon();
                self.tx.take_state()
            }
            _ => None,
        }
    }

    fn save(&self) -> WorkerState {
        let (from_guest, to_guest) = (self.output.filled().to_vec(), self.input.filled().to_vec());
        WorkerState { from_guest, to_guest, ..WorkerState::default() }
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a console", why });
        if state.version != 1 {
            return refuse("its version is not 1");
        }
        if state.unsettled || state.lost || state.card.is_some() || state.held.is_some() {
            return refuse("it is another device's");
        }
        for (bytes, saved) in [(&mut self.output, &state.from_guest), (&mut self.input, &state.to_guest)] {
            if !bytes.load(saved) {
                return refuse("it holds more bytes than a console does");
            }
        }
        Ok(())
    }

    fn reset_queue(&mut self, _mem: &M, queue: u16) -> bool {
        match queue {
            RX_QUEUE => {
                self.rx.take_state();
            }
            TX_QUEUE => {
                self.abandon();
                self.tx.take_state();
            }
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests;
