//! Links of a zone: by a frame device ([`vnd`]), or by a stream of the data link provider interface ([`dlpi`]).
//!
//! Either carries whole Ethernet frames, one a call, and nothing else: no checksum and no segmentation is left to it, tags
//! of VLANs are part of the frame, and what arrives for the link's address, for groups and for everybody comes in. Whose
//! frames may go out is the link's own business (its protection in the MAC layer): what it refuses is lost.
//!
//! Neither tells by itself when its link goes down. A second stream of the same link does ([`dlpi::Watch`]), which carries
//! no frame, so that it does not count as a user of the link.

mod dlpi;
mod end;
mod vnd;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::wake::Wake;
use devices_host::clock::monotonic_ns;
use devices_host::sys::{Errno, Link, RawHandle, Sys, SysResult};

use self::dlpi::{Stream, Watch};
use self::vnd::Device;
use crate::hypervisor::frames::{FrameDevice, FrameEnd, FrameLink, LinkError, LinkFd, LinkState};

/// How often a link that is gone is looked for.
const RETRY_NS: u64 = 1_000_000_000;

/// An Ethernet header with a VLAN tag, which frames have beside their payload.
const LONGEST_HEADER_BYTES: usize = 18;

/// An Ethernet header: nothing shorter is a frame.
const FRAME_HEADER_BYTES: usize = 14;

/// Opens the link `name`.
///
/// # Errors
/// See [`LinkError`].
pub fn open(sys: &Arc<dyn Sys>, device: FrameDevice, name: &str) -> Result<Arc<dyn FrameLink>, LinkError> {
    check_name(name)?;
    // Before the device: a link that is not there has no device either, and this error says what to do.
    let facts = match sys.link(name) {
        Ok(facts) => Some(facts),
        Err(Errno::ENOENT) => {
            let hint = "`dladm show-link` lists those it has";
            return Err(LinkError::Config(format!("the zone has no link {name}: {hint}")));
        }
        Err(error) => {
            // A zone without the daemon of links can use them all the same.
            log::info!("link {name}: its address cannot be read: {error}");
            None
        }
    };
    let port = Port::open(sys, device, name)?;
    let watch = match Watch::open(sys, name) {
        Ok(watch) => Some(watch),
        Err(error) => {
            log::info!("link {name} cannot be watched ({error}): it is taken for up while it takes frames");
            None
        }
    };
    let state = State { watch, carrier: true, gone_until_ns: None };
    Ok(Arc::new(ZoneLink {
        sys: sys.clone(),
        device,
        name: name.to_owned(),
        mtu: facts.map_or_else(|| port.mtu(), |facts| facts.mtu),
        facts,
        failed: AtomicBool::new(false),
        wake: OnceLock::new(),
        generation: AtomicU32::new(0),
        open: Mutex::new(Open { port: Arc::new(port), ends: Vec::new() }),
        state: Mutex::new(state),
    }))
}

/// What the driver takes for a name (`usr/src/uts/common/io/vnd/vnd.c`); a name goes into a path.
fn check_name(name: &str) -> Result<(), LinkError> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !begins || name.len() >= super::abi::vnd::VND_NAMELEN || !name.bytes().all(is_good) {
        let line = format!("'{name}' is no name of a link: 1 to 31 letters, digits, '-', '_' and '.', no sign first");
        return Err(LinkError::Config(line));
    }
    Ok(())
}

/// What carries the frames.
enum Port {
    Vnd(Device),
    Dlpi(Stream),
}

impl Port {
    fn open(sys: &Arc<dyn Sys>, device: FrameDevice, name: &str) -> Result<Self, LinkError> {
        match device {
            FrameDevice::Vnd => Device::open(sys, name).map(Self::Vnd),
            FrameDevice::Dlpi => Stream::open(sys, name).map(Self::Dlpi),
        }
    }

    /// The largest packet that fits its largest frame, which may have a VLAN tag.
    fn mtu(&self) -> u32 {
        let longest = match self {
            Self::Vnd(device) => device.longest_frame_bytes(),
            Self::Dlpi(stream) => stream.longest_frame_bytes(),
        };
        longest.saturating_sub(LONGEST_HEADER_BYTES).try_into().unwrap_or(u32::MAX)
    }

    fn handle(&self) -> RawHandle {
        match self {
            Self::Vnd(device) => device.handle(),
            Self::Dlpi(stream) => stream.handle(),
        }
    }
}

/// A link that is open, and opened again when it was gone.
struct ZoneLink {
    sys: Arc<dyn Sys>,
    device: FrameDevice,
    name: String,
    /// What the zone's daemon of links says of it.
    facts: Option<Link>,
    /// Its largest packet.
    mtu: u32,
    /// A worker found out that it is gone.
    failed: AtomicBool,
    wake: OnceLock<Arc<dyn Wake>>,
    /// Counts how often it was opened anew: tells ends, without a lock, that there is another port.
    generation: AtomicU32,
    open: Mutex<Open>,
    state: Mutex<State>,
}

struct Open {
    port: Arc<Port>,
    ends: Vec<Arc<LinkFd>>,
}

struct State {
    watch: Option<Watch>,
    /// What the watch said last.
    carrier: bool,
    /// While it is gone: when to look for it.
    gone_until_ns: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ZoneLink {
    fn poll_fd(&self, port: &Port) -> RawFd {
        self.sys.poll_fd(port.handle()).unwrap_or(-1)
    }

    /// A worker's call failed as no call on a link that is there does.
    fn fail(&self) {
        if !self.failed.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake.wake();
        }
    }

    /// Opens the link anew; the ends go on with it.
    fn open_anew(&self, state: &mut State) -> Result<(), LinkError> {
        let port = Port::open(&self.sys, self.device, &self.name)?;
        state.watch = Watch::open(&self.sys, &self.name).ok();
        state.carrier = true;
        let fd = self.poll_fd(&port);
        let mut open = lock(&self.open);
        open.port = Arc::new(port);
        open.ends.iter().for_each(|end| end.set(fd));
        drop(open);
        self.failed.store(false, Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

impl FrameLink for ZoneLink {
    fn mac(&self) -> Option<[u8; 6]> {
        self.facts.map(|facts| facts.mac)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn end(self: Arc<Self>) -> FrameEnd {
        let mut open = lock(&self.open);
        let ready = Arc::new(LinkFd::new(self.poll_fd(&open.port)));
        open.ends.push(ready.clone());
        let port = open.port.clone();
        drop(open);
        FrameEnd { backend: Box::new(end::End::new(self, port, ready.clone())), ready }
    }

    fn events_fd(&self) -> RawFd {
        let state = lock(&self.state);
        let watch = state.watch.as_ref().and_then(|watch| self.sys.poll_fd(watch.handle()).ok());
        watch.unwrap_or(-1)
    }

    fn on_failure(&self, wake: Arc<dyn Wake>) {
        let _ = self.wake.set(wake);
    }

    fn deadline_ns(&self) -> Option<u64> {
        let state = lock(&self.state);
        if self.failed.load(Ordering::Acquire) && state.gone_until_ns.is_none() {
            return Some(0);
        }
        state.gone_until_ns
    }

    fn look(&self, now_ns: u64) -> LinkState {
        let state = &mut *lock(&self.state);
        match state.gone_until_ns {
            None => {
                match state.watch.as_ref().map(Watch::take) {
                    Some(Ok(Some(carrier))) => state.carrier = carrier,
                    Some(Err(_)) => self.fail(),
                    Some(Ok(None)) | None => {}
                }
                if self.failed.load(Ordering::Acquire) {
                    state.watch = None;
                    state.gone_until_ns = Some(now_ns.saturating_add(RETRY_NS));
                    return LinkState::Gone;
                }
            }
            Some(at_ns) if now_ns < at_ns => return LinkState::Gone,
            Some(_) => match self.open_anew(state) {
                Ok(()) => state.gone_until_ns = None,
                Err(error) => {
                    log::debug!("link {}: {error}", self.name);
                    state.gone_until_ns = Some(monotonic_ns().max(now_ns).saturating_add(RETRY_NS));
                    return LinkState::Gone;
                }
            },
        }
        // What the stream has to say at once, where it was opened just now.
        if let Some(Ok(Some(carrier))) = state.watch.as_ref().map(Watch::take) {
            state.carrier = carrier;
        }
        if state.carrier { LinkState::Up } else { LinkState::Down }
    }
}

/// What a failed call says of the port.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing goes now; something will later.
    Wait,
    /// This frame is lost.
    Lost(Errno),
    /// The link is gone.
    Gone(Errno),
}

/// Calls again while a signal interrupts the call, which does not wait: it cannot be interrupted for ever.
fn uninterrupted<T>(mut call: impl FnMut() -> SysResult<T>) -> SysResult<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
