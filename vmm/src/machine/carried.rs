//! Network interfaces whose data queues the VM's kernel carries.

use std::sync::Arc;

use devices::park::Parked;
use devices::virtio::counters::QueueCounters;
use devices::virtio::net::NetDevice;
use devices::virtio::net::kernel::{Carried, KernelNet};
use devices::virtio::{Activation, F_RING_RESET, QueueRunner, QueueState};
use devices::wake::Wake;
use devices_host::sys::{Errno, Link, SysResult};
use devices_host::tap::Tap;

use super::StartError;
use super::adapters::WorkerWake;
use super::link::{HostSide, NetLink};
use super::virtio::{Builder, DeviceError, Seat, event, face};
use crate::config::{Mac, NetConfig, Slot};
use crate::hypervisor::{KernelNic, LinkOptions};
use crate::sandbox::ThreadKind;
use crate::worker::{BackendFd, DeviceWorkers, Rings, WorkerSpec};

/// The data link of an interface, as it was looked up.
///
/// # Errors
/// One line that names the interface.
pub fn check(config: &NetConfig, found: SysResult<Link>) -> Result<Link, StartError> {
    let (id, name) = (&config.id, &config.tap);
    match found {
        Ok(link) if link.mac[0] & 1 != 0 => {
            Err(StartError::Config(format!("{id}: link {name} has the address of a group: give it another one")))
        }
        Ok(link) => Ok(link),
        Err(Errno::ENOENT) => {
            let line = format!("{id}: link {name} does not exist in this zone; `dladm show-link` lists those that do");
            Err(StartError::Config(line))
        }
        Err(errno) => Err(StartError::Host(format!("{id}: link {name} cannot be looked up: {errno}"))),
    }
}

impl Builder<'_> {
    /// A network interface in the kernel: one worker, which sees to the rings' life and to the control queue, and sleeps
    /// while frames move. The kernel's own threads are its children, and bound to no CPU, as it is.
    pub(super) fn carried_net(&mut self, config: &NetConfig, link: &Link, slot: Slot) -> Result<(), DeviceError> {
        let refused = |source| DeviceError::Kernel { id: config.id.clone(), source };
        let options = LinkOptions {
            pairs: config.queue_count(),
            tx_copy_data: config.tx_copy_data,
            tx_header_pad: config.tx_header_pad,
        };
        let nic = self.vm.attach_link(&config.tap, link, &options).map_err(refused)?;
        self.kernel_net(config, nic, Mac(link.mac), None, slot)
    }

    /// The same on a TAP device: its state is followed as that of any is.
    pub(super) fn vhost_net(
        &mut self,
        config: &NetConfig,
        (taps, mac): (Vec<Tap>, Mac),
        slot: Slot,
    ) -> Result<(), DeviceError> {
        let name = config.link_name();
        let again =
            |source| DeviceError::Host { id: config.id.clone(), what: "cannot open its TAP device twice", source };
        // The state of the device, whatever its queue.
        let first = taps.first().map(|tap| tap.try_clone().map_err(again)).transpose()?;
        let host = first.map(|tap| HostSide::new(name.clone(), tap));
        let refused = |source| DeviceError::Kernel { id: config.id.clone(), source };
        let nic = self.vm.attach_tap(&name, taps).map_err(refused)?;
        self.kernel_net(config, nic, mac, host, slot)
    }

    fn kernel_net(
        &mut self,
        config: &NetConfig,
        nic: KernelNic,
        mac: Mac,
        host: Option<HostSide>,
        slot: Slot,
    ) -> Result<(), DeviceError> {
        let id = &config.id;
        let KernelNic { queues, descriptor, mtu } = nic;
        let wake = event(id)?;
        // All pairs have the one worker.
        let receivers = (0..config.queue_count()).map(|_| -> Arc<dyn Wake> { Arc::new(WorkerWake(wake.clone())) });
        let card = NetDevice::new(face(config, mac.0, true, mtu)).with_pairs(receivers.collect());
        let card = card.without_features(config.feature_mask);
        let device = KernelNet::new(card, &*queues).promiscuous(config.promiscuous);
        let carried = Carried::new(queues, device.data_queues(), Arc::new(WorkerWake(wake.clone())));
        let counters: Vec<_> = (0..=device.data_queues()).map(|_| Arc::new(QueueCounters::default())).collect();
        let spec = WorkerSpec {
            name: format!("{id}-ctl"),
            worker: Box::new(device.worker(carried.clone(), &counters)),
            wake,
            backend_fd: Some(BackendFd::Fixed(descriptor)),
            counters: counters.clone(),
            poll_ns: 0,
        };
        let workers = DeviceWorkers::spawn_as(ThreadKind::NetQueue, self.vm.ram(), Rings::default(), vec![spec])
            .map_err(|source| DeviceError::Host { id: id.clone(), what: "cannot start a thread", source })?;
        let seat = Seat {
            device: Arc::new(device.clone()),
            runner: Arc::new(CarriedRunner { workers: workers.clone(), carried: carried.clone() }),
            doorbells: carried.clone(),
            messages: Some(carried),
            workers: workers.clone(),
            counters,
        };
        let interrupt = self.place("net", id, seat, slot)?;
        if let Some(added) = self.devices.last_mut() {
            added.card = Some(device.card().clone());
        }
        let device = device.card().clone();
        self.links.push(NetLink { id: id.clone(), device, workers, interrupt, host });
        Ok(())
    }
}

/// The worker of such an interface, which is told which queue was rung where the kernel did not hear it.
struct CarriedRunner {
    workers: Arc<DeviceWorkers>,
    carried: Arc<Carried>,
}

impl QueueRunner for CarriedRunner {
    fn start(&self, activation: Activation) {
        self.workers.start(activation);
    }

    fn reset(&self, done: Parked) {
        self.workers.reset(done);
    }

    fn kick(&self, queue: u16) {
        self.carried.note_kick(queue);
        self.workers.kick(queue);
    }

    fn ring_features(&self) -> u64 {
        F_RING_RESET
    }

    fn reset_queue(&self, queue: u16, done: Parked) {
        self.workers.reset_queue(queue, done);
    }

    fn start_queue(&self, queue: u16, state: QueueState) {
        self.workers.start_queue(queue, state);
    }
}
