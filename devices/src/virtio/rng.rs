//! virtio-rng: entropy for the guest (virtio 1.3 §5.4).

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::counters::QueueCounters;
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::worker::WorkerQueue;
use super::{QueueState, Step, VirtioDevice, VirtioWorker, WorkerActivation};
use crate::planted::{Defect, is_planted};

/// Entries of the request queue.
const QUEUE_SIZE: u16 = 64;
/// The most bytes one request gets, whatever it asks for: the guest's lengths set no limit to a step's work. §5.4.6.2
/// asks for one byte at least.
const MAX_BYTES: usize = 4096;

/// The host had no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host's random generator failed with errno {0}")]
pub struct RngError(pub i32);

/// Where random bytes come from. Does not block.
pub trait RngBackend: Send {
    /// Fills all of `buf` with random bytes of cryptographic quality.
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), RngError>;
}

/// A virtio entropy device: it has no configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct RngDevice;

impl RngDevice {
    /// The worker of its only queue.
    pub fn worker<B>(&self, backend: B, counters: Arc<QueueCounters>) -> RngWorker<B> {
        let queue = WorkerQueue::new(0, QUEUE_SIZE, counters);
        RngWorker { queue, backend, buffer: vec![0; MAX_BYTES].into_boxed_slice(), stopping: false }
    }
}

impl VirtioDevice for RngDevice {
    fn device_type(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) {}

    fn config_len(&self) -> u32 {
        0
    }
}

/// Runs the request queue of an [`RngDevice`].
pub struct RngWorker<B> {
    queue: WorkerQueue,
    backend: B,
    buffer: Box<[u8]>,
    stopping: bool,
}

impl<M: GuestMemory, B: RngBackend> VirtioWorker<M> for RngWorker<B> {
    fn queues(&self) -> &[u16] {
        &[0]
    }

    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation) {
        if queue == self.queue.index() {
            self.stopping = false;
            self.queue.start(mem, &state, activation);
        }
    }

    fn step(&mut self, mem: &M) -> Step {
        if self.stopping || !self.queue.is_live() {
            return Step::default();
        }
        self.queue.disable_kicks(mem);
        // A generator that fails is tried again with the next kick.
        let (mut drained, mut failed) = (false, false);
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(mem) else {
                drained = true;
                break;
            };
            let wanted = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX).min(MAX_BYTES);
            let mut grown;
            let bytes = match is_planted(Defect::EntropyUnbounded) {
                true => {
                    grown = vec![0; usize::try_from(chain.writable_bytes()).unwrap_or_default()];
                    grown.get_mut(..wanted).unwrap_or_default()
                }
                false => self.buffer.get_mut(..wanted).unwrap_or_default(),
            };
            if wanted == 0 {
                // §5.4.6.1: nothing to write to, so nothing can be said but that the buffer is free again.
                self.queue.counters().malformed.count();
            } else if self.backend.fill(bytes).is_err() {
                self.queue.counters().errors.count();
                self.queue.unpop(chain);
                failed = true;
                break;
            }
            let written = chain.writer(mem).write(bytes);
            debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
            self.queue.counters().bytes_to_guest.add(wanted as u64);
            self.queue.push(mem, chain, wanted as u64);
        }
        // Random bytes are given once.
        self.buffer.fill(0);
        self.queue.publish(mem);
        let more = if drained || failed { self.queue.enable_kicks(mem) } else { true };
        Step { again: more && !failed, ..Step::default() }
    }

    fn begin_stop(&mut self, _mem: &M) {
        self.stopping = true;
    }

    fn poll_stopped(&mut self, _mem: &M, _abandon: bool) -> bool {
        true
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        if queue != self.queue.index() {
            return None;
        }
        self.queue.take_state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestRam;
    use crate::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, Used, guest_ram};

    /// Counts upwards, and fails where `broken`.
    #[derive(Clone, Default)]
    struct Numbers {
        broken: Arc<std::sync::atomic::AtomicBool>,
        next: u8,
        asked: Arc<std::sync::atomic::AtomicUsize>,
    }

    impl RngBackend for Numbers {
        fn fill(&mut self, buf: &mut [u8]) -> Result<(), RngError> {
            use std::sync::atomic::Ordering::Relaxed;
            if self.broken.load(Relaxed) {
                return Err(RngError(5));
            }
            self.asked.fetch_add(buf.len(), Relaxed);
            for byte in buf {
                self.next = self.next.wrapping_add(1);
                *byte = self.next;
            }
            Ok(())
        }
    }

    struct Rig {
        mem: GuestRam,
        worker: Box<dyn VirtioWorker<GuestRam>>,
        source: Numbers,
        driver: DriverQueue,
        counters: Arc<QueueCounters>,
    }

    fn rig() -> Rig {
        let mem = guest_ram(0x20_0000);
        let (source, counters) = (Numbers::default(), Arc::<QueueCounters>::default());
        let mut worker: Box<dyn VirtioWorker<GuestRam>> = Box::new(RngDevice.worker(source.clone(), counters.clone()));
        let driver = DriverQueue::new(&mem, 0x10_0000, 16, 0);
        worker.start(&mem, 0, driver.state(), &RecordingInterrupt::new().activation(1 << 32));
        Rig { mem, worker, source, driver, counters }
    }

    #[test]
    fn requests_are_filled_with_random_bytes() {
        let mut rig = rig();
        let posted = rig.driver.post(&[Buf::Write(5), Buf::Write(3)]);
        rig.driver.publish();
        assert_eq!(rig.worker.step(&rig.mem), Step::default());
        assert_eq!(rig.driver.used(), [Used { head: posted.head.into(), len: 8 }]);
        assert_eq!(rig.driver.read(posted.buffers[0]), [1, 2, 3, 4, 5]);
        assert_eq!(rig.driver.read(posted.buffers[1]), [6, 7, 8]);
    }

    #[test]
    fn a_large_request_gets_a_bounded_answer() {
        // FC#5762: the request's memory was allocated by the guest's length.
        let mut rig = rig();
        let posted = rig.driver.post(&[Buf::Write(0x8_0000)]);
        rig.driver.publish();
        rig.worker.step(&rig.mem);
        assert_eq!(rig.driver.used(), [Used { head: posted.head.into(), len: 4096 }]);
        assert_eq!(rig.driver.read(posted.buffers[0])[4096..], [0xee; 0x8_0000 - 4096]);
    }

    #[test]
    fn a_request_without_a_writable_byte_is_returned() {
        let mut rig = rig();
        let posted = rig.driver.post(&[Buf::Read(vec![1; 8])]);
        rig.driver.publish();
        rig.worker.step(&rig.mem);
        assert_eq!(rig.driver.used(), [Used { head: posted.head.into(), len: 0 }]);
        assert_eq!(rig.counters.malformed.get(), 1);
        assert_eq!(rig.source.asked.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn without_random_bytes_a_request_waits_instead_of_getting_others() {
        let mut rig = rig();
        rig.source.broken.store(true, std::sync::atomic::Ordering::Relaxed);
        rig.driver.post(&[Buf::Write(8)]);
        rig.driver.publish();
        assert_eq!(rig.worker.step(&rig.mem), Step::default(), "and the worker does not spin");
        assert_eq!(rig.driver.used(), []);
        rig.source.broken.store(false, std::sync::atomic::Ordering::Relaxed);
        rig.worker.step(&rig.mem);
        assert_eq!(rig.driver.used().len(), 1);
    }

    #[test]
    fn a_stopped_worker_leaves_its_ring_alone() {
        let mut rig = rig();
        rig.worker.begin_stop(&rig.mem);
        rig.driver.post(&[Buf::Write(8)]);
        rig.driver.publish();
        rig.worker.step(&rig.mem);
        assert!(rig.worker.poll_stopped(&rig.mem, true));
        assert_eq!(rig.driver.used(), []);
        assert_eq!(rig.worker.take_state(0).unwrap().next_avail, 0);
        assert_eq!(rig.worker.take_state(0), None);
    }
}
