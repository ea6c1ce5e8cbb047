//! Network interfaces whose link goes down and up while their guest runs: as the operator orders it, and as the host's
//! interface behind it does.
//!
//! The kernel says when an interface of the host may have changed, and the main loop then looks at all there are here:
//! nothing is asked while nothing happens. What workers hear of it (frames refused, a descriptor that only reports errors)
//! neither ends nor occupies them.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::VirtioInterrupt;
use devices::virtio::net::NetDevice;
use devices_host::clock;
use devices_host::tap::{Interface, InterfaceEvents, Tap};

use super::adapters::Pace;
use crate::config::{nearest, system_text};
use crate::control::{LinkChange, Watched};
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
    /// What is behind it, where that can go down.
    pub host: Option<HostSide>,
}

/// A TAP device as far as its state goes.
pub struct HostSide {
    name: String,
    /// With what was last seen of its interface.
    tap: Mutex<(Tap, Interface)>,
    log: Pace,
}

/// All network interfaces of a machine.
pub struct Links {
    links: Vec<NetLink>,
    events: Option<InterfaceEvents>,
}

impl HostSide {
    /// The TAP device `tap`, called `name`.
    pub fn new(name: String, tap: Tap) -> Self {
        Self { name, tap: Mutex::new((tap, Interface::Up)), log: Pace::default() }
    }
}

impl Links {
    /// The interfaces as they were built, and what tells of those behind them; guests see at once which of them are down.
    pub fn new(links: Vec<NetLink>, events: Option<InterfaceEvents>) -> Self {
        let links = Self { links, events };
        links.look();
        links
    }

    /// Whether there is something to hear of.
    pub fn listen(&self) -> bool {
        self.events.is_some()
    }

    /// See [`Machine::set_link`](crate::control::Machine::set_link).
    pub fn set(&self, change: &LinkChange) -> Result<(), String> {
        let LinkChange { name, up } = change;
        let Some(link) = self.links.iter().find(|link| link.id == *name) else {
            let refused = format!("Device '{name}' not found");
            let ids: Vec<_> = self.links.iter().map(|link| link.id.as_str()).collect();
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

    fn look(&self) {
        if let Some(events) = &self.events {
            self.links.iter().for_each(|link| link.look(events));
        }
    }
}

impl NetLink {
    /// The link has changed: the driver is told, and workers look at the frames that waited for it.
    fn tell(&self) {
        self.interrupt.config_changed();
        self.workers.wake();
    }

    /// Follows the host's interface.
    fn look(&self, events: &InterfaceEvents) {
        let Some(host) = &self.host else { return };
        let (id, name) = (&self.id, &host.name);
        let (tap, seen) = &mut *host.tap.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match events.interface_of(tap) {
            Ok(now) => now,
            Err(error) => return host.warn(|| format!("{id}: interface {name}: {}", system_text(&error))),
        };
        if *seen == now {
            return;
        }
        *seen = now;
        match now {
            Interface::Up => log::info!("{id}: interface {name} is up again, and so is the guest's link"),
            Interface::Down => host.warn(|| format!("{id}: interface {name} is down, and so is the guest's link")),
            Interface::Gone => {
                host.warn(|| format!("{id}: interface {name} was deleted; the guest's link stays down"));
            }
        }
        if self.device.set_carrier(now == Interface::Up) {
            self.tell();
        }
    }
}

impl HostSide {
    /// Says something, unless something was said just now: interfaces can be changed as fast as a program can.
    fn warn(&self, line: impl FnOnce() -> String) {
        if let Some(unsaid) = self.log.next(clock::monotonic_ns()) {
            let more = if unsaid > 0 { format!(" (and {unsaid} more changes before)") } else { String::new() };
            log::warn!("{}{more}", line());
        }
    }
}

impl AsRawFd for Links {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Watched for Links {
    fn ready(&self) {
        if let Some(events) = &self.events {
            events.clear();
            self.look();
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
