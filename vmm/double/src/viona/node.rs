//! An open `/dev/viona`: what it answers, and what of the conversation is wrong.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::virtio::QueueState;
use devices_host::poll::{PollFd, poll};
use devices_host::sys::{DeviceNumber, Errno, IoctlArg, RawHandle, Ready, SysResult};
use zerocopy::{FromBytes, Immutable, IntoBytes};
use zvmm::hypervisor::bhyve::abi::*;

use super::args::{self, Arg};
use super::filters::Receives;
use super::lanes::Lanes;
use super::pairs::MOST_RINGS;
use super::params::Params;
use super::ring::{MOST_ENTRIES, Making, Phase, Ring, Signals};
use super::{Taken, Viona, Wire, lock, rules};
use crate::bhyve::{self, Place};
use crate::names;
use crate::node::{Call, Node};
use crate::rules::Rule;
use crate::sys::Host;

const VERSION_1: u64 = 1 << 32;

/// What the kernel carries (reference section 4.6): checksums and large TCP over IPv4 both ways, buffers that are merged, a
/// notification when a ring is empty, and indirect descriptors.
const CARRIED: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15 | 1 << 24 | 1 << 28;

/// What takes no data queue: the process' own affair (reference section 4.6), and what else has to do with no ring.
const OF_THE_PROCESS: u64 = 1 << 3 | 1 << 5 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 21 | 1 << 63 | VERSION_1;

const PAGE: u64 = 4096;

/// Kicks of a running ring that may come from the process although the kernel could see the doorbell: until it was told
/// where that is, and from a guest that is about to move it.
const KICKS: usize = 200;

pub(super) struct OpenViona {
    host: Arc<Host>,
    driver: Arc<Viona>,
    link: Mutex<Option<Attached>>,
}

/// What an instance has once it is attached.
pub(super) struct Attached {
    pub(super) taken: Taken,
    wire: Arc<Mutex<Wire>>,
    /// The link's own address, as it came.
    mac: [u8; 6],
    most_mtu: u32,
    mtu: u32,
    features: Option<u64>,
    pub(super) receives: Arc<Receives>,
    pub(super) params: Params,
    /// Pairs that there are rings for; those in use are the lanes'.
    pub(super) pairs: u16,
    pub(super) lanes: Arc<Lanes>,
    pub(super) signals: Arc<Signals>,
    rings: Arc<[Mutex<Ring>; MOST_RINGS]>,
    port: Option<u64>,
    memory: Option<u64>,
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], value: &T) -> i32 {
    bytes.copy_from_slice(value.as_bytes());
    0
}

fn get<T: FromBytes>(bytes: &[u8]) -> SysResult<T> {
    T::read_from_bytes(bytes).map_err(|_| Errno::EFAULT)
}

impl OpenViona {
    pub(super) fn new(host: &Arc<Host>, driver: Arc<Viona>) -> Self {
        Self { host: host.clone(), driver, link: Mutex::new(None) }
    }

    fn create(&self, call: &Call<'_>, link: &mut Option<Attached>, arg: &vioc_create) -> SysResult<i32> {
        if link.is_some() {
            return Err(call.refuse(&rules::CREATE_ONCE, Errno::EEXIST, format!("{arg:?}")));
        }
        let hold = match bhyve::attached(call, RawHandle(arg.c_vmfd)) {
            Some(hold) => hold?,
            None => return Err(call.refuse(&rules::VM_HANDLE, Errno::EBADF, format!("descriptor {}", arg.c_vmfd))),
        };
        let Some((name, found)) = self.host.link_by_id(arg.c_linkid) else {
            return Err(call.refuse(&rules::LINK_KNOWN, Errno::ENOENT, format!("link id {}", arg.c_linkid)));
        };
        let Some(taken) = self.driver.take(&name) else {
            return Err(call.refuse(&rules::LINK_FREE, Errno::EBUSY, name));
        };
        let wire = self.driver.wire(&name)?;
        let lanes = Lanes::new();
        let signals = Signals::new(hold, lanes.clone(), self.driver.config.patience).map_err(|_| Errno::ENOMEM)?;
        *link = Some(Attached {
            taken,
            wire,
            mac: found.mac,
            most_mtu: found.mtu,
            mtu: 1500,
            features: None,
            receives: Receives::new(found.mac),
            params: Params::FIRST,
            pairs: 1,
            lanes,
            signals,
            rings: Arc::new(std::array::from_fn(|_| Mutex::default())),
            port: None,
            memory: None,
        });
        Ok(0)
    }

    /// Lets link and VM go.
    fn let_go(&self, link: &mut Option<Attached>) {
        let Some(mut attached) = link.take() else { return };
        attached.unhook(true, true);
        let now = attached.receives.mac();
        if now != attached.mac {
            let detail = format!("{}: {now:02x?} in place of {:02x?}", attached.taken.link, attached.mac);
            self.host.ledger().note(&rules::ADDRESS_BACK, detail);
        }
        for index in attached.indices() {
            let phase = attached.ring(index).phase;
            if phase != Phase::Reset {
                let detail = format!("{}: ring {index} is {phase:?}", attached.taken.link);
                self.host.ledger().note(&rules::RINGS_RESET, detail);
            }
            attached.reset(&self.host, index);
        }
    }
}

impl Attached {
    pub(super) fn ring(&self, index: usize) -> MutexGuard<'_, Ring> {
        lock(&self.rings[index])
    }

    fn index(&self, call: &Call<'_>, what: &str, index: usize) -> SysResult<usize> {
        if self.indices().contains(&index) {
            return Ok(index);
        }
        Err(call.refuse(&rules::RING_INDEX, Errno::EINVAL, format!("{what} of ring {index}")))
    }

    fn is_live(&self) -> bool {
        self.indices().any(|index| matches!(self.ring(index).phase, Phase::Ready | Phase::Running))
    }

    /// Where a ring is to lie, checked as far as the kernel does, and beyond.
    fn init(
        &mut self,
        call: &Call<'_>,
        index: u16,
        place: QueueState,
        from: Option<bool>,
        resumed: bool,
    ) -> SysResult<i32> {
        let at = self.index(call, "an initialisation", index.into())?;
        let what = |why: &str| format!("{}: ring {index}: {why}: {place:x?}", self.taken.link);
        let refuse = |rule: &'static Rule, why: &str| Err(call.refuse(rule, Errno::EINVAL, what(why)));
        if !place.size.is_power_of_two() || place.size > MOST_ENTRIES {
            return refuse(&rules::RING_SIZE, "its size");
        }
        let Some(features) = self.features else {
            return Err(call.refuse(&rules::FEATURES_FIRST, Errno::EINVAL, what("no features")));
        };
        let modern = features & VERSION_1 != 0;
        if from.is_some_and(|from| from != modern) {
            return refuse(&rules::RING_KIND, "of the other kind of driver");
        }
        let QueueState { size, desc_table, avail_ring, used_ring, .. } = place;
        let alignments = if modern { [16, 2, 4] } else { [PAGE, 2, PAGE] };
        let starts = [desc_table, avail_ring, used_ring];
        if starts.iter().zip(alignments).any(|(start, alignment)| !start.is_multiple_of(alignment)) {
            return refuse(&rules::RING_ALIGNED, "its alignment");
        }
        let entries = u64::from(size);
        let lengths = [entries * 16, entries * 2 + 6, entries * 8 + 6];
        let ram = self.signals.hold().ram()?;
        if starts.iter().zip(lengths).any(|(start, len)| !vm_memory_holds(&ram, *start, len)) {
            return refuse(&rules::RING_MEMORY, "outside of guest memory");
        }
        if self.ring(at).phase != Phase::Reset {
            return Err(call.refuse(&rules::RING_FRESH, Errno::EBUSY, what("initialised already")));
        }
        if is_bound() {
            call.note(&rules::RING_UNBOUND, what("by a thread with a CPU of its own"));
        }
        let left_at = self.ring(at).left_at.take();
        if resumed && left_at.is_some_and(|left_at| left_at != place) {
            call.note(&rules::STATE_SAME, what(&format!("it stood at {left_at:x?}")));
        }
        let end = lock(&self.wire).end(&self.receives, &self.lanes, index / 2).map_err(|_| Errno::ENOMEM)?;
        if index.is_multiple_of(2) {
            end.drain();
        }
        let making = Making {
            index,
            place,
            features: features & (CARRIED | VERSION_1),
            legacy: !modern,
            mac: self.receives.mac(),
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            wire: end,
            ram,
            signals: self.signals.clone(),
            lanes: self.lanes.clone(),
        };
        self.ring(at).init(making).map_err(|_| Errno::ENOMEM)?;
        Ok(0)
    }

    fn kick(&self, call: &Call<'_>, hooks: bool, index: usize) -> SysResult<i32> {
        let mut ring = self.ring(index);
        match ring.phase {
            Phase::Reset | Phase::Paused => {
                let detail = format!("{}: ring {index} is {:?}", self.taken.link, ring.phase);
                return Err(call.refuse(&rules::KICK_READY, Errno::EBUSY, detail));
            }
            Phase::Ready => ring.start(),
            Phase::Running => {
                if self.memory.is_none() && self.port.is_none() {
                    ring.kicks += 1;
                }
                if hooks && ring.kicks == KICKS {
                    call.note(&rules::KICK_HOOKED, format!("{}: ring {index}: {KICKS} kicks", self.taken.link));
                }
                ring.wake();
            }
        }
        Ok(0)
    }

    /// Nothing of a hook is to be left when no ring runs any more.
    fn check_hooks(&self, host: &Host) {
        if !self.is_live() && (self.port.is_some() || self.memory.is_some()) {
            host.ledger().note(&rules::HOOK_FOLLOWS, format!("{}: no ring runs, and a hook is set", self.taken.link));
        }
    }

    fn pause(&self, call: &Call<'_>, host: &Host, index: usize) -> SysResult<i32> {
        let phase = self.ring(index).phase;
        if phase == Phase::Ready {
            call.note(&rules::KICK_ONCE, format!("{}: ring {index} was never kicked", self.taken.link));
        }
        match phase {
            Phase::Ready | Phase::Running => self.ring(index).pause(),
            Phase::Reset | Phase::Paused => {
                call.note(&rules::PAUSE_RUNNING, format!("{}: ring {index} is {phase:?}", self.taken.link));
            }
        }
        self.check_hooks(host);
        Ok(0)
    }

    fn reset(&self, host: &Host, index: usize) {
        let note = |rule, why: &str| host.ledger().note(rule, format!("{}: ring {index} {why}", self.taken.link));
        let phase = self.ring(index).phase;
        if phase == Phase::Ready {
            note(&rules::KICK_ONCE, "was never kicked");
        }
        if self.signals.is_overdue(index) {
            note(&rules::INTERRUPT_TAKEN, "has an interrupt that nobody took");
        }
        if phase == Phase::Running {
            // It goes on from a pause only.
            self.ring(index).left_at = None;
        }
        self.ring(index).reset();
        if index.is_multiple_of(2) {
            self.lanes.set_ring(u16::try_from(index / 2).unwrap_or_default(), None);
        }
        if phase != Phase::Reset {
            self.check_hooks(host);
        }
    }

    fn state(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let asked: vioc_ring_state = get(bytes)?;
        let index = self.index(call, "the state", asked.vrs_index.into())?;
        let ring = self.ring(index);
        if ring.phase != Phase::Paused {
            call.note(&rules::STATE_PAUSED, format!("{}: ring {index} is {:?}", self.taken.link, ring.phase));
        }
        let place = ring.left_at.unwrap_or(ring.place);
        let state = vioc_ring_state {
            vrs_index: asked.vrs_index,
            vrs_avail_idx: place.next_avail,
            vrs_used_idx: place.next_used,
            vrs_qsize: place.size,
            vrs_qaddr_desc: place.desc_table,
            vrs_qaddr_avail: place.avail_ring,
            vrs_qaddr_used: place.used_ring,
        };
        Ok(put(bytes, &state))
    }

    fn set_msi(&self, call: &Call<'_>, message: &vioc_ring_msi) -> SysResult<i32> {
        let index = self.index(call, "a message", message.rm_index.into())?;
        let detail = || format!("{}: ring {index}: {message:x?}", self.taken.link);
        if self.ring(index).phase == Phase::Reset {
            call.note(&rules::MSI_AFTER_INIT, detail());
        }
        if message.rm_addr != 0 && message.rm_addr >> 20 != 0xfee {
            // The kernel finds out when it sends it, and says nothing.
            call.note(&rules::MSI_ADDRESS, detail());
        }
        self.signals.set_message(index, message.rm_addr, message.rm_msg);
        Ok(0)
    }

    fn pending(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut poll: vioc_intr_poll_mq = get(bytes)?;
        if !(1..=self.signals.usable()).contains(&poll.vipm_nrings.into()) {
            let detail = format!("{}: {} rings of {}", self.taken.link, poll.vipm_nrings, self.signals.usable());
            return Err(call.refuse(&rules::POLL_RINGS, Errno::EINVAL, detail));
        }
        let waiting = (0..usize::from(poll.vipm_nrings)).filter(|index| self.signals.is_waiting(*index));
        poll.vipm_status = [0; VIONA_INTR_WORDS];
        let mut count = 0;
        for index in waiting {
            poll.vipm_status[index / 32] |= 1 << (index % 32);
            count += 1;
        }
        put(bytes, &poll);
        Ok(count)
    }

    /// The guest wrote a queue number to its doorbell; whether a ring of ours runs for it.
    fn notify(&self) -> bhyve::Notify {
        let rings = self.rings.clone();
        Box::new(move |value| {
            // The register is 16 bits wide. Rings of pairs that there are not are reset.
            let Some(ring) = rings.get(usize::from(value as u16)) else { return false };
            let ring = lock(ring);
            let runs = ring.phase == Phase::Running;
            if runs {
                ring.wake();
            }
            runs
        })
    }

    fn unhook(&mut self, port: bool, memory: bool) {
        let hold = self.signals.hold();
        if let Some(hook) = self.port.take_if(|_| port) {
            hold.unhook(hook);
        }
        if let Some(hook) = self.memory.take_if(|_| memory) {
            hold.unhook(hook);
        }
    }

    fn set_port(&mut self, call: &Call<'_>, port: usize) -> SysResult<i32> {
        let Ok(port) = u16::try_from(port) else {
            return Err(call.refuse(&rules::HOOK_PORT, Errno::EINVAL, format!("{}: {port:#x}", self.taken.link)));
        };
        self.unhook(true, false);
        if port != 0 {
            self.port = Some(self.hook(call, Place::Port(port))?);
        }
        Ok(0)
    }

    fn set_memory(&mut self, call: &Call<'_>, window: Option<vioc_notify_mmio>) -> SysResult<i32> {
        self.unhook(false, true);
        let Some(window) = window else { return Ok(0) };
        let refuse = || call.refuse(&rules::HOOK_PLACE, Errno::EINVAL, format!("{}: {window:x?}", self.taken.link));
        let end = window.vim_address.checked_add(window.vim_size.into()).filter(|_| window.vim_size > 0);
        let range = window.vim_address..end.ok_or_else(refuse)?;
        let ram = self.signals.hold().ram()?;
        if vm_memory_holds(&ram, range.start, 1) || vm_memory_holds(&ram, range.end - 1, 1) {
            return Err(refuse());
        }
        self.memory = Some(self.hook(call, Place::Memory(range))?);
        Ok(0)
    }

    fn hook(&self, call: &Call<'_>, place: Place) -> SysResult<u64> {
        let detail = format!("{}: {place:x?} is watched already", self.taken.link);
        if !self.is_live() {
            call.note(&rules::HOOK_FOLLOWS, format!("{}: {place:x?} without a ring", self.taken.link));
        }
        let hook = self.signals.hold().hook(place, self.notify());
        hook.ok_or_else(|| call.refuse(&rules::HOOK_PLACE, Errno::EEXIST, detail))
    }

    fn set_features(&mut self, call: &Call<'_>, features: u64) -> SysResult<i32> {
        let beyond = features & !(CARRIED | OF_THE_PROCESS);
        if beyond != 0 {
            call.note(&rules::FEATURES_CARRIED, format!("{}: {beyond:#x}", self.taken.link));
        }
        if self.indices().any(|index| self.ring(index).phase != Phase::Reset) {
            call.note(&rules::FEATURES_STILL, format!("{}: {features:#x}", self.taken.link));
        }
        if self.lanes.used() != 1 {
            call.note(&rules::PAIRS_START, format!("{}: {} are", self.taken.link, self.lanes.used()));
        }
        self.features = Some(features);
        Ok(0)
    }

    fn set_mtu(&mut self, call: &Call<'_>, mtu: usize) -> SysResult<i32> {
        match u32::try_from(mtu) {
            Ok(mtu) if (68..=self.most_mtu).contains(&mtu) => self.mtu = mtu,
            _ => {
                let detail = format!("{}: {mtu} of {}", self.taken.link, self.most_mtu);
                return Err(call.refuse(&rules::MTU_RANGE, Errno::EINVAL, detail));
            }
        }
        Ok(0)
    }
}

fn vm_memory_holds(ram: &devices::GuestRam, start: u64, len: u64) -> bool {
    use vm_memory::{GuestAddress, GuestMemoryBackend as _};
    usize::try_from(len).is_ok_and(|len| ram.check_range(GuestAddress(start), len))
}

/// Whether the calling thread may use fewer CPUs than the process.
fn is_bound() -> bool {
    let cpus = |thread: libc::pid_t| {
        // SAFETY: all-zero is a valid set, and the call fills no more than that.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &raw mut set);
            libc::CPU_COUNT(&set)
        }
    };
    cpus(0) < cpus(std::process::id().cast_signed())
}

impl Node for OpenViona {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let config = &self.driver.config;
        let arg = args::check(call, config, request, arg)?;
        let mut link = lock(&self.link);
        match (request, arg) {
            (VNA_IOC_VERSION, _) => Ok(config.version),
            (VNA_IOC_CREATE, Arg::Structure(bytes)) => self.create(call, &mut link, &get(bytes)?),
            (VNA_IOC_DELETE, _) if link.is_some() => {
                self.let_go(&mut link);
                Ok(0)
            }
            (request, arg) => {
                let Some(attached) = link.as_mut() else {
                    return Err(call.refuse(&rules::ATTACHED, Errno::ENXIO, names::ioctl(request)));
                };
                if attached.signals.hold().is_dying() {
                    return Err(Errno::ENXIO);
                }
                let done = attached.ioctl(call, &self.host, config, request, arg);
                self.driver.note_state(&attached.taken.link, attached.params, attached.receives.mac());
                done
            }
        }
    }

    fn poll_fd(&self) -> SysResult<RawFd> {
        lock(&self.link).as_ref().map(|attached| attached.signals.descriptor()).ok_or(Errno::ENXIO)
    }

    fn poll(&self, _call: &Call<'_>, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        let mut fds = [PollFd::new(self.poll_fd()?).readable(interest.readable)];
        poll(&mut fds, timeout_ns).map_err(|_| Errno::EINVAL)?;
        Ok(Ready { readable: fds[0].is_readable(), ..Ready::default() })
    }

    fn close(&self) {
        self.let_go(&mut lock(&self.link));
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(262 << 32)
    }
}

impl Attached {
    fn ioctl(
        &mut self,
        call: &Call<'_>,
        host: &Host,
        config: &super::Config,
        request: i32,
        arg: Arg<'_>,
    ) -> SysResult<i32> {
        match (request, arg) {
            (VNA_IOC_RING_INIT, Arg::Structure(bytes)) => {
                let ring: vioc_ring_init = get(bytes)?;
                let size = u64::from(ring.ri_qsize);
                let avail = ring.ri_qaddr.wrapping_add(size * 16);
                let used = avail.wrapping_add(size * 2 + 6).checked_next_multiple_of(PAGE).unwrap_or_default();
                let place = QueueState {
                    size: ring.ri_qsize,
                    desc_table: ring.ri_qaddr,
                    avail_ring: avail,
                    used_ring: used,
                    ..QueueState::default()
                };
                self.init(call, ring.ri_index, place, Some(false), false)
            }
            (VNA_IOC_RING_INIT_MODERN, Arg::Structure(bytes)) => {
                let ring: vioc_ring_init_modern = get(bytes)?;
                let place = QueueState {
                    size: ring.rim_qsize,
                    desc_table: ring.rim_qaddr_desc,
                    avail_ring: ring.rim_qaddr_avail,
                    used_ring: ring.rim_qaddr_used,
                    ..QueueState::default()
                };
                self.init(call, ring.rim_index, place, Some(true), false)
            }
            (VNA_IOC_RING_SET_STATE, Arg::Structure(bytes)) => {
                let state: vioc_ring_state = get(bytes)?;
                let place = QueueState {
                    size: state.vrs_qsize,
                    desc_table: state.vrs_qaddr_desc,
                    avail_ring: state.vrs_qaddr_avail,
                    used_ring: state.vrs_qaddr_used,
                    next_avail: state.vrs_avail_idx,
                    next_used: state.vrs_used_idx,
                };
                self.init(call, state.vrs_index, place, None, true)
            }
            (VNA_IOC_RING_GET_STATE, Arg::Structure(bytes)) => self.state(call, bytes),
            (VNA_IOC_RING_SET_MSI, Arg::Structure(bytes)) => self.set_msi(call, &get(bytes)?),
            (VNA_IOC_INTR_POLL_MQ, Arg::Structure(bytes)) => self.pending(call, bytes),
            (VNA_IOC_INTR_POLL, Arg::Structure(bytes)) => {
                let vip_status = [0, 1].map(|index| u32::from(self.signals.is_waiting(index)));
                put(bytes, &vioc_intr_poll { vip_status });
                Ok(vip_status.iter().sum::<u32>().cast_signed())
            }
            (VNA_IOC_GET_FEATURES, Arg::Structure(bytes)) => Ok(put(bytes, &CARRIED)),
            (VNA_IOC_SET_FEATURES, Arg::Structure(bytes)) => self.set_features(call, get(bytes)?),
            (VNA_IOC_SET_NOTIFY_MMIO, Arg::Null) => self.set_memory(call, None),
            (VNA_IOC_SET_NOTIFY_MMIO, Arg::Structure(bytes)) => self.set_memory(call, Some(get(bytes)?)),
            (VNA_IOC_SET_NOTIFY_IOP, Arg::Number(port)) => self.set_port(call, port),
            (VNA_IOC_SET_PROMISC, Arg::Number(level)) => self.set_promisc(call, level),
            (VNA_IOC_SET_MAC_FILTERS, Arg::Structure(bytes)) => self.set_filters(call, bytes),
            (VNA_IOC_GET_MAC_FILTERS, Arg::Structure(bytes)) => self.filters(call, bytes),
            (VNA_IOC_SET_MAC_ADDR, Arg::Structure(bytes)) => self.set_address(call, bytes),
            (VNA_IOC_GET_MAC_ADDR, Arg::Structure(bytes)) => Ok(self.address(bytes)),
            (VNA_IOC_GET_PARAMS, Arg::Structure(bytes)) => self.params(call, bytes),
            (VNA_IOC_SET_PARAMS, Arg::Structure(bytes)) => self.set_params(call, bytes),
            (VNA_IOC_GET_MTU, _) => Ok(self.mtu.cast_signed()),
            (VNA_IOC_SET_MTU, Arg::Number(mtu)) => self.set_mtu(call, mtu),
            (VNA_IOC_GET_PAIRS, _) => Ok(self.pairs.into()),
            (VNA_IOC_SET_PAIRS, Arg::Number(pairs)) => self.set_pairs(call, pairs),
            (VNA_IOC_GET_USEPAIRS, _) => Ok(self.lanes.used().into()),
            (VNA_IOC_SET_USEPAIRS, Arg::Number(pairs)) => self.use_pairs(call, pairs),
            (request, Arg::Number(index)) => {
                let index = self.index(call, &names::ioctl(request), index)?;
                match request {
                    VNA_IOC_RING_KICK => self.kick(call, config.notify_mmio, index),
                    VNA_IOC_RING_PAUSE => self.pause(call, host, index),
                    VNA_IOC_RING_RESET => {
                        self.reset(host, index);
                        Ok(0)
                    }
                    VNA_IOC_RING_INTR_CLR => {
                        self.signals.clear(index);
                        Ok(0)
                    }
                    _ => Err(Errno::ENOTTY),
                }
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}
