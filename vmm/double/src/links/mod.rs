//! Data links, by what carries their frames to a process: frame devices (`/dev/vnd/LINK`) and streams of the data
//! link provider interface (`/dev/net/LINK`).
//!
//! A link is plugged into a TAP interface of this machine, so that a guest talks to its network, or into a socket that a test
//! has the other end of. One device a link carries its frames; whoever only wants to know whether it is up needs none.

mod dlpi;
mod memory;
pub mod rules;
#[cfg(test)]
mod tests;
mod vnd;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::{Errno, Link, OpenAccess, OpenFlags, SysResult};
use devices_host::tap::Tap;

use self::dlpi::DlpiNode;
use self::vnd::VndNode;
use self::wire::{Medium, Wire};
use crate::node::{Driver, Node};
use crate::sys::{DoubleSys, Host};

/// The links of a host.
#[derive(Default)]
pub struct Links {
    plugged: Mutex<BTreeMap<String, Plug>>,
}

enum Plug {
    /// A TAP interface, opened when somebody uses the link, and again when it was deleted.
    Tap(Link, Option<Arc<Wire>>),
    Wire(Arc<Wire>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// No link.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The drivers by which links are used.
    #[must_use]
    pub fn drivers(self: &Arc<Self>) -> Vec<Arc<dyn Driver>> {
        vec![Arc::new(Vnd(self.clone())), Arc::new(Dlpi(self.clone()))]
    }

    /// Makes a link, and gives the other end of its cable: one frame a datagram.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn add(&self, host: &Host, name: &str, facts: Link) -> io::Result<UnixDatagram> {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        host.add_link(name, facts);
        let wire = Arc::new(Wire::new(facts, Medium::Socket(ours)));
        lock(&self.plugged).insert(name.to_owned(), Plug::Wire(wire));
        Ok(theirs)
    }

    /// Makes a link of every TAP interface there is: of its name, with its MTU, and the address that a guest behind it has.
    /// The names of all.
    ///
    /// # Errors
    /// What sysfs says.
    pub fn add_taps(&self, host: &Host) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let folder = match std::fs::read_dir("/sys/class/net") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            folder => folder?,
        };
        for entry in folder {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
            // Only TAP and TUN interfaces have flags of that driver; bit 1 is IFF_TAP.
            let flags = read("tun_flags")
                .ok()
                .and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
            if flags.is_none_or(|flags| flags & 2 == 0) {
                continue;
            }
            let number = |file: &str| read(file).ok().and_then(|text| text.trim().parse().ok());
            let (Some(id), Some(mtu)) = (number("ifindex"), number("mtu")) else { continue };
            let mac = read("address")?.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
            let zvmm::config::Mac(mac) = zvmm::config::Mac::of_other_end(mac);
            let facts = Link { id, mac, mtu };
            host.add_link(&name, facts);
            lock(&self.plugged).insert(name.clone(), Plug::Tap(facts, None));
            names.push(name);
        }
        Ok(names)
    }

    /// Takes a link away: its devices go with it. Another one of the name can be made.
    pub fn remove(&self, name: &str) {
        if let Some(Plug::Wire(wire)) = lock(&self.plugged).remove(name) {
            wire.remove();
        }
    }

    /// Says that the link has a carrier, or none.
    pub fn set_carrier(&self, name: &str, up: bool) {
        if let Some(wire) = self.wire(name).ok().flatten() {
            wire.set_carrier(up);
        }
    }

    /// Has the link be one of a kernel from before 2018, which does not know `DL_PROMISC_FIXUPS`.
    pub fn set_old(&self, name: &str) {
        if let Some(wire) = self.wire(name).ok().flatten() {
            wire.set_old();
        }
    }

    /// Has the link take no more frames, or take them again. Its devices poll writable as ever.
    pub fn set_full(&self, name: &str, full: bool) {
        if let Some(wire) = self.wire(name).ok().flatten() {
            wire.set_full(full);
        }
    }

    fn has(&self, name: &str) -> bool {
        lock(&self.plugged).contains_key(name)
    }

    /// The link, as far as there is one.
    fn wire(&self, name: &str) -> SysResult<Option<Arc<Wire>>> {
        match lock(&self.plugged).get_mut(name) {
            None => Ok(None),
            Some(Plug::Wire(wire)) => Ok(Some(wire.clone())),
            Some(Plug::Tap(facts, open)) => {
                if let Some(wire) = open.as_ref().filter(|wire| !wire.is_gone()) {
                    return Ok(Some(wire.clone()));
                }
                // Somebody else has it, or it is not there: either way not this process' link.
                let Ok(tap) = Tap::open(name) else { return Ok(None) };
                let wire = Arc::new(Wire::new(*facts, Medium::tap(tap)));
                *open = Some(wire.clone());
                Ok(Some(wire))
            }
        }
    }
}

/// How both kinds of node are opened.
fn has_good_flags(flags: OpenFlags) -> bool {
    flags.access == OpenAccess::ReadWrite && !flags.exclusive && !flags.nonblocking
}

/// The driver of frame devices.
struct Vnd(Arc<Links>);

const VND: &str = "/dev/vnd/";
const VND_CONTROL: &str = "/dev/vnd/ctl";

impl Driver for Vnd {
    fn serves(&self, path: &str) -> bool {
        path == VND_CONTROL || path.strip_prefix(VND).is_some_and(|name| self.0.has(name))
    }

    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        if !has_good_flags(flags) {
            let detail = format!("{path}: {flags:?}");
            return Err(process.ledger().refuse(&rules::vnd::OPEN, Errno::ENOTSUP, detail));
        }
        if path == VND_CONTROL {
            return Ok(Arc::new(VndNode::control(self.0.clone())));
        }
        if !process.zone().may(crate::Privilege::NetRawAccess) {
            return Err(Errno::EPERM);
        }
        let name = path.strip_prefix(VND).unwrap_or_default();
        let wire = self.0.wire(name)?.ok_or(Errno::ENOENT)?;
        VndNode::linked(self.0.clone(), wire).map(|node| Arc::new(node) as Arc<dyn Node>)
    }

    fn leaks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The driver of streams.
struct Dlpi(Arc<Links>);

const DLPI: &str = "/dev/net/";

impl Driver for Dlpi {
    fn serves(&self, path: &str) -> bool {
        path.strip_prefix(DLPI).is_some_and(|name| self.0.has(name))
    }

    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        if !has_good_flags(flags) {
            let detail = format!("{path}: {flags:?}");
            return Err(process.ledger().refuse(&rules::dlpi::OPEN, Errno::EINVAL, detail));
        }
        if !process.zone().may(crate::Privilege::NetRawAccess) {
            return Err(Errno::EACCES);
        }
        let name = path.strip_prefix(DLPI).unwrap_or_default();
        let wire = self.0.wire(name)?.ok_or(Errno::ENOENT)?;
        Ok(Arc::new(DlpiNode::new(wire)))
    }

    fn leaks(&self) -> Vec<String> {
        Vec::new()
    }
}
