//! viona: `/dev/viona`, the queues of a network card in the kernel.
//!
//! The rings are run by zvmm's own workers for queues in the process, over a TAP device or a socket in place of the link; the
//! guest's doorbells are seen where the bhyve double sees its exits, and its interrupts are messages to that VM.
//!
//! Not modelled: the lending of guest pages; all is copied, whatever the parameters say.

mod args;
mod filters;
mod lanes;
mod node;
mod pairs;
mod params;
mod ring;
pub mod rules;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use devices_host::sys::{Errno, OpenFlags, SysResult};
use devices_host::tap::{Tap, TapError};

pub use self::filters::Receives;
pub use self::wire::{Wire, WireEnd};

use self::node::OpenViona;
use self::params::Params;
use crate::node::{Driver, Node};
use crate::sys::DoubleSys;

/// A kernel: what differs between those in use.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its interface version.
    pub version: i32,
    /// It has rings in three parts, and polls more than one pair.
    pub modern: bool,
    /// It has more than one pair.
    pub pairs: bool,
    /// It watches doorbells in memory.
    pub notify_mmio: bool,
    /// It has an MTU that can be asked for and set.
    pub mtu: bool,
    /// It has parameters.
    pub params: bool,
    /// It tells groups apart, and can give a link another address.
    pub filters: bool,
    /// How long an interrupt that has no message may wait for somebody to poll for it.
    pub patience: Duration,
}

/// illumos-gate of 2025: interface version 6.
impl Default for Config {
    fn default() -> Self {
        Self {
            version: 6,
            modern: true,
            pairs: true,
            notify_mmio: true,
            mtu: true,
            params: true,
            filters: false,
            patience: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// Of 2026: interface version 7, in the tree that tells groups apart.
    #[must_use]
    pub fn of_2026() -> Self {
        Self { version: 7, filters: true, ..Self::default() }
    }
}

/// The driver: the links of a machine, by name.
pub struct Viona {
    config: Config,
    this: Weak<Self>,
    plugged: Mutex<BTreeMap<String, Plug>>,
    /// Links that somebody has.
    taken: Mutex<BTreeSet<String>>,
    /// Their parameters and addresses, as they were last.
    states: Mutex<BTreeMap<String, LinkState>>,
}

/// Parameters and address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Whether what is sent is copied.
    pub copies: bool,
    /// Bytes that are free before it.
    pub pad: u16,
    /// The link's own address.
    pub mac: [u8; 6],
}

/// What a link is plugged into.
enum Plug {
    /// A TAP interface of the link's name, open as long as an instance has the link.
    Tap,
    Wire(Arc<Mutex<Wire>>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Viona {
    /// The driver of a machine without links.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(Config::default())
    }

    /// The same for another kernel.
    #[must_use]
    pub fn with(config: Config) -> Arc<Self> {
        let (plugged, taken, states) = Default::default();
        Arc::new_cyclic(|this| Self { config, this: this.clone(), plugged, taken, states })
    }

    /// Says what is at the other end of a link of the [host](crate::Host::add_link).
    pub fn connect(&self, link: &str, wire: Wire) {
        lock(&self.plugged).insert(link.to_owned(), Plug::Wire(Arc::new(Mutex::new(wire))));
    }

    /// The same of a link whose other end is the TAP interface of its name: opened when an instance is attached, and closed
    /// when that lets the link go.
    pub fn connect_tap(&self, link: &str) {
        lock(&self.plugged).insert(link.to_owned(), Plug::Tap);
    }

    /// What a link has, or had last, that somebody has or had.
    #[must_use]
    pub fn state_of(&self, link: &str) -> Option<LinkState> {
        lock(&self.states).get(link).copied()
    }

    /// Notes that.
    fn note_state(&self, link: &str, params: Params, mac: [u8; 6]) {
        let (copies, pad) = params.now();
        lock(&self.states).insert(link.to_owned(), LinkState { copies, pad, mac });
    }

    /// Takes a link for one instance. `None` where another one has it.
    fn take(&self, link: &str) -> Option<Taken> {
        let driver = self.this.upgrade()?;
        lock(&self.taken).insert(link.to_owned()).then(|| Taken { driver, link: link.to_owned() })
    }

    /// What is at the other end of a link: EBUSY where something else than viona has it.
    fn wire(&self, link: &str) -> SysResult<Arc<Mutex<Wire>>> {
        match lock(&self.plugged).get(link) {
            None => Err(Errno::ENOENT),
            Some(Plug::Wire(wire)) => Ok(wire.clone()),
            Some(Plug::Tap) => match Tap::open(link) {
                Ok(tap) => Ok(Arc::new(Mutex::new(Wire::Tap(tap)))),
                Err(TapError::Missing(_)) => Err(Errno::ENOENT),
                Err(_) => Err(Errno::EBUSY),
            },
        }
    }
}

/// A link that an instance has.
struct Taken {
    driver: Arc<Viona>,
    link: String,
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.driver.taken).remove(&self.link);
    }
}

impl Driver for Viona {
    fn serves(&self, path: &str) -> bool {
        path == "/dev/viona"
    }

    fn open(&self, process: &DoubleSys, _path: &str, _flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        let driver = self.this.upgrade().ok_or(Errno::ENXIO)?;
        Ok(Arc::new(OpenViona::new(process.host(), driver)))
    }

    fn leaks(&self) -> Vec<String> {
        lock(&self.taken).iter().map(|link| format!("link {link}")).collect()
    }
}
