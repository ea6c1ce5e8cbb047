//! Network interfaces whose link goes down and up while their guest runs: as the operator orders it.

use std::sync::Arc;

use devices::virtio::VirtioInterrupt;
use devices::virtio::net::NetDevice;

use crate::config::nearest;
use crate::control::LinkChange;
use crate::worker::DeviceWorkers;

/// A network interface of the machine.
pub struct NetLink {
    /// Its name in the configuration.
    pub id: String,
    /// What its guest sees.
    pub device: NetDevice,
    /// Its queues.
    pub workers: Arc<DeviceWorkers>,
    /// How its driver is told.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// All network interfaces of a machine.
pub struct Links(Vec<NetLink>);

impl Links {
    /// The interfaces as they were built.
    pub fn new(links: Vec<NetLink>) -> Self {
        Self(links)
    }

    /// See [`Machine::set_link`](crate::control::Machine::set_link).
    pub fn set(&self, change: &LinkChange) -> Result<(), String> {
        let LinkChange { name, up } = change;
        let Some(link) = self.0.iter().find(|link| link.id == *name) else {
            let refused = format!("Device '{name}' not found");
            let ids: Vec<_> = self.0.iter().map(|link| link.id.as_str()).collect();
            return Err(match nearest::nearest(name, &ids) {
                Some(id) => format!("{refused}; did you mean '{id}'?"),
                None => refused,
            });
        };
        if link.device.set_link(*up) {
            link.tell();
        }
        Ok(())
    }
}

impl NetLink {
    /// The link has changed: the driver is told, and workers look at the frames that waited for it.
    fn tell(&self) {
        self.interrupt.config_changed();
        self.workers.wake();
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
