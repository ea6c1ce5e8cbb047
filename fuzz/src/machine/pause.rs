//! What stands still and goes on: in the same process, or in another one with what was saved.

use devices::virtio::WorkerState;

use super::vmm::Vmm;
use super::wires::Wired;
use super::{MAX_ROUNDS, Machine, QUEUES};
use crate::finding;
use crate::oracle::{Device, Oracles};

impl Machine {
    /// Stops all workers, whatever waits for the disk: it is waited for.
    pub fn pause(&mut self) {
        self.vmm.runner.pause();
        for _ in 0..MAX_ROUNDS {
            self.run(usize::MAX);
            if self.vmm.runner.paused().is_some() {
                self.look();
                self.judge_times();
                return;
            }
            self.complete_all();
        }
        finding!("wedge", "the device does not pause");
    }

    /// Lets the workers go on, and stops them again before they take a step.
    pub fn resume_and_pause(&mut self) {
        self.vmm.runner.resume();
        self.pause();
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.vmm.runner.resume();
        self.settle();
    }

    /// What stands still goes on in another process: only what is saved gets there.
    pub fn restore(&mut self) {
        let saved = self.vmm.function.save();
        let queues = self.vmm.runner.paused().unwrap_or_default();
        let workers = self.vmm.runner.save();
        let held = self.wired.0.open().line;
        self.wired = Wired::new(self.wiring, self.shape.vectors, QUEUES);
        let ends = (&self.disk, &self.end);
        self.vmm = Vmm::new(&self.shape, &self.ram, &self.oracles, ends, &self.wired, &self.clock);
        if let Device::Net(net) = &mut self.oracles.open().device {
            net.count_anew();
        }
        // What the host has told the old device it tells the new one.
        let lost = self.is_lost();
        let changes = std::mem::take(&mut self.changes);
        for value in &changes {
            self.tell_device(*value);
        }
        self.changes = changes;
        if let Oracles { rings, device: Device::Blk(blk), .. } = &mut *self.oracles.open() {
            blk.lost = lost;
            blk.moves_on(rings.kept_mut());
        }
        self.restore_workers(&workers);
        if let Err(error) = self.vmm.function.restore(&saved, &queues) {
            finding!("restore", "a state that was saved is refused: {error}");
        }
        if self.wired.0.open().line != held {
            finding!("restore", "the interrupt line was {held} and is not any more");
        }
        if self.vmm.function.save() != saved {
            finding!("restore", "a restored function is not what was saved");
        }
        self.vmm.runner.start_restored();
        self.settle();
    }

    /// Gives new workers what old ones held, over a link that another process has opened: it gives frames to one queue until
    /// it is told of more, and does what it is told.
    fn restore_workers(&self, saved: &[WorkerState]) {
        let due = match &self.oracles.open().device {
            Device::Net(net) if !net.card.lost => Some(net.card.pairs),
            _ => None,
        };
        let broken = {
            let mut end = self.end.inner.open();
            end.pairs = 1;
            std::mem::take(&mut end.broken)
        };
        self.vmm.runner.restore(saved);
        let mut end = self.end.inner.open();
        end.broken = broken;
        if let Some(due) = due.filter(|due| *due != end.pairs) {
            finding!("restore", "the link gives frames to {} pairs and not to {due} any more", end.pairs);
        }
    }
}
