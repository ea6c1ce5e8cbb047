//! Requests that wait for the operator while the queue stands still, and how it goes on with them.

use vm_memory::GuestMemory;

use super::super::backend::{BlkBackend, BlkError};
use super::super::device::BlkConfig;
use super::super::flight::{InFlight, Stage, request_at};
use super::super::held::HeldRequests;
use super::BlkWorker;
use crate::pci::StateError;
use crate::virtio::QueueState;
use crate::virtio::queue::Near;

pub(super) struct Kept {
    requests: HeldRequests,
    /// They came with a saved machine.
    brought: bool,
}

impl Kept {
    /// Those that a saved machine brought, of a disk that looks like `config`.
    pub(super) fn brought(requests: &HeldRequests, config: &BlkConfig) -> Result<Self, StateError> {
        requests.check(config)?;
        Ok(Self { requests: requests.clone(), brought: true })
    }

    /// Whether the queue stood at `state` with them.
    pub(super) fn are_of(&self, state: &QueueState) -> bool {
        self.requests.are_of(state)
    }

    /// Whether it was this worker's.
    pub(super) fn is_own(&self) -> bool {
        !self.brought
    }

    pub(super) fn requests(&self) -> &HeldRequests {
        &self.requests
    }
}

impl<B> BlkWorker<B> {
    /// Takes the requests in flight, all of which are held, out of the queue, which is about to stop.
    pub(super) fn keep(&mut self) {
        self.held = 0;
        let requests = HeldRequests::take(&self.queue, &mut self.in_flight);
        self.kept = requests.map(|requests| Kept { requests, brought: false });
    }

    /// Goes on with requests that were kept while the queue stood still.
    #[cold]
    pub(super) fn go_on<M: GuestMemory>(&mut self, mem: &M, Kept { requests, brought }: Kept)
    where
        B: BlkBackend<M>,
    {
        let Some(requests) = requests.resume(&mut self.queue, mem) else { return self.abandon_all() };
        self.recorder.begin_step();
        for (chain, mut rest) in requests {
            let head = chain.head();
            let (Some(place), Some(work)) = (self.in_flight.get_mut(usize::from(head)), rest.pop()) else {
                chain.abandon();
                continue;
            };
            if brought {
                self.recorder.brought(head, work.op);
                self.queue.counters().chains.count();
            }
            // A list without elements has room, and would be kept for that.
            let rest = if rest.is_empty() { Vec::new() } else { rest };
            *place = InFlight { chain: Some(chain), work, rest, stage: Stage::Held, ..InFlight::default() };
        }
        if brought {
            self.recorder.committing();
        }
        self.retry(&self.queue.near(mem));
    }

    /// Asks the disk again for what it failed, unless the disk ends before that by now: a write would bring its end back.
    /// It begins here: a queue that is paused again at once, or whose driver has broken it, commits nothing of its own, and
    /// a pause would wait for these requests for ever.
    #[cold]
    fn retry<M: GuestMemory>(&mut self, mem: &Near<'_, M>)
    where
        B: BlkBackend<M>,
    {
        self.held = 0;
        self.recorder.begin_step();
        for head in 0..self.queue.size() {
            if let Some(request) = request_at(&mut self.in_flight, head) {
                debug_assert_eq!(request.stage, Stage::Held, "nothing else outlasts a pause");
                let inside = request.rest.iter().chain([&request.work]).all(|work| work.is_inside(&self.shared));
                match inside {
                    true => self.ask_again(mem, head),
                    false => self.fail(mem, head, BlkError::Cancelled),
                }
            }
        }
        self.backend.commit();
    }
}
