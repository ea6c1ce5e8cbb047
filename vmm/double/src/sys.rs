//! A process of the doubled system: handles, mappings, threads.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::{
    DeviceNumber, Errno, IoctlArg, Link, MapRequest, OpenFlags, RawHandle, Ready, StreamMessage, Sys, SysResult,
    SysThread,
};
use devices_host::thread::{KICK_SIGNAL, install_kick_handler};

use zvmm::hypervisor::bhyve::abi::VM_RUN;
use zvmm::hypervisor::illumos_kvm::abi::KVM_RUN;

use crate::names;
use crate::node::{Call, Driver, Node};
use crate::privileges::Privileges;
use crate::rules::{Ledger, Violation, system};
use crate::zone::{Privilege, Zone};

/// SIGUSR1 as illumos numbers it.
const KICK_SIGNAL_ILLUMOS: i32 = 16;

const PAGE_BYTES: usize = 4096;

/// A machine: its drivers, its data links, and the rules broken on it. Processes of several zones share one.
pub struct Host {
    drivers: Vec<Arc<dyn Driver>>,
    ledger: Ledger,
    links: Mutex<BTreeMap<String, Link>>,
}

impl Host {
    /// A machine with these drivers and no data link.
    #[must_use]
    pub fn new(drivers: Vec<Arc<dyn Driver>>) -> Arc<Self> {
        Arc::new(Self { drivers, ledger: Ledger::default(), links: Mutex::default() })
    }

    /// Adds a data link.
    pub fn add_link(&self, name: &str, link: Link) {
        lock(&self.links).insert(name.to_owned(), link);
    }

    /// A data link by its id.
    #[must_use]
    pub fn link_by_id(&self, id: u32) -> Option<(String, Link)> {
        lock(&self.links).iter().find(|(_, link)| link.id == id).map(|(name, link)| (name.clone(), *link))
    }

    /// The rules broken on it.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

/// Something that a process left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leak {
    /// An open handle.
    Handle(String),
    /// A mapping.
    Mapping(String),
    /// An object of a driver that nobody has open.
    Object(String),
}

struct Open {
    node: Arc<dyn Node>,
    path: String,
    flags: OpenFlags,
    /// Since it was opened.
    nonblocking: AtomicBool,
}

struct Mapped {
    node: Arc<dyn Node>,
    path: String,
    len_bytes: usize,
}

/// One process in a zone of a [`Host`].
pub struct DoubleSys {
    host: Arc<Host>,
    zone: Zone,
    /// Numbers are never used twice, so that a call with a stale one is noticed.
    next: AtomicI32,
    handles: Mutex<BTreeMap<RawHandle, Arc<Open>>>,
    mappings: Mutex<BTreeMap<usize, Mapped>>,
    locked: Mutex<Vec<(usize, usize)>>,
    pub(crate) privileges: Privileges,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DoubleSys {
    /// A process in `zone`.
    ///
    /// # Panics
    /// Where the kick signal cannot get a handler.
    #[must_use]
    pub fn new(host: &Arc<Host>, zone: Zone) -> Arc<Self> {
        install_kick_handler().expect("a handler for the kick signal");
        Arc::new(Self {
            host: host.clone(),
            zone,
            next: AtomicI32::new(100),
            handles: Mutex::default(),
            mappings: Mutex::default(),
            locked: Mutex::default(),
            privileges: Privileges::default(),
        })
    }

    /// A process in a zone of the bhyve brand, on a machine of its own.
    #[must_use]
    pub fn bhyve() -> Arc<Self> {
        Self::new(&Host::new(vec![crate::bhyve::Vmm::new()]), Zone::bhyve(1))
    }

    /// The machine it runs on.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The zone it lives in.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The book of broken rules.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.host.ledger
    }

    /// The rules broken so far on the machine.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.host.ledger.violations()
    }

    /// An open device.
    #[must_use]
    pub fn node(&self, handle: RawHandle) -> Option<Arc<dyn Node>> {
        lock(&self.handles).get(&handle).map(|open| open.node.clone())
    }

    /// Whether all of this memory was locked with mlock(2).
    #[must_use]
    pub fn is_locked(&self, start: usize, len_bytes: usize) -> bool {
        let mut at = start;
        let end = start.saturating_add(len_bytes);
        let mut ranges = lock(&self.locked).clone();
        ranges.sort_unstable();
        for (from, len) in ranges {
            if from <= at {
                at = at.max(from.saturating_add(len));
            }
        }
        at >= end
    }

    /// What is left behind: handles and mappings of this process, and objects of the machine's drivers.
    #[must_use]
    pub fn leaks(&self) -> Vec<Leak> {
        let handles = lock(&self.handles).values().map(|open| Leak::Handle(open.path.clone())).collect::<Vec<_>>();
        let mappings = lock(&self.mappings)
            .values()
            .map(|mapped| Leak::Mapping(format!("{} bytes of {}", mapped.len_bytes, mapped.path)))
            .collect::<Vec<_>>();
        let objects = self.host.drivers.iter().flat_map(|driver| driver.leaks()).map(Leak::Object);
        handles.into_iter().chain(mappings).chain(objects).collect()
    }

    /// What the kernel does when the process ends: closes what is open, and unmaps what is mapped. The memory stays in
    /// this process, which does not end.
    pub fn end(&self) {
        let mappings = std::mem::take(&mut *lock(&self.mappings));
        for (start, mapped) in mappings {
            if let Some(start) = NonNull::new(start as *mut u8) {
                mapped.node.unmapped(start, mapped.len_bytes);
            }
        }
        let handles = std::mem::take(&mut *lock(&self.handles));
        handles.values().for_each(|open| open.node.close());
    }

    /// Takes a leak down as a broken rule.
    pub fn note_leak(&self, leak: Leak) {
        match leak {
            Leak::Handle(what) => self.ledger().note(&system::LEAK_HANDLE, what),
            Leak::Mapping(what) => self.ledger().note(&system::LEAK_MAPPING, what),
            Leak::Object(what) => self.ledger().note(&system::LEAK_OBJECT, what),
        }
    }

    fn find(&self, handle: RawHandle, call: &str) -> SysResult<Arc<Open>> {
        lock(&self.handles).get(&handle).cloned().ok_or_else(|| {
            self.ledger().refuse(&system::HANDLE_OPEN, Errno::EBADF, format!("{call} on handle {}", handle.0))
        })
    }

    fn call(&self, handle: RawHandle, open: &Open) -> Call<'_> {
        let nonblocking = open.flags.nonblocking || open.nonblocking.load(Ordering::Relaxed);
        Call { process: self, handle, flags: OpenFlags { nonblocking, ..open.flags } }
    }
}

/// Linux' errno in illumos' numbering, for calls that the machine really makes.
pub(crate) fn translate(error: &std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(number @ 1..=34) => Errno(number),
        Some(libc::ENAMETOOLONG) => Errno::ENAMETOOLONG,
        Some(libc::EOVERFLOW) => Errno::EOVERFLOW,
        Some(libc::EOPNOTSUPP) => Errno::ENOTSUP,
        Some(libc::ETIMEDOUT) => Errno::ETIMEDOUT,
        _ => Errno::EIO,
    }
}

impl Sys for DoubleSys {
    fn is_character_device(&self, path: &str) -> SysResult<bool> {
        Ok(self.zone.has_node(path) && self.host.drivers.iter().any(|driver| driver.serves(path)))
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        if !self.zone.has_node(path) {
            return Err(self.ledger().refuse(
                &system::NODE_IN_ZONE,
                Errno::ENOENT,
                format!("{path} in zone {}", self.zone.id),
            ));
        }
        self.privileges.opens();
        let driver = self.host.drivers.iter().find(|driver| driver.serves(path)).ok_or(Errno::ENOENT)?;
        let node = driver.open(self, path, flags)?;
        let handle = RawHandle(self.next.fetch_add(1, Ordering::Relaxed));
        lock(&self.handles)
            .insert(handle, Arc::new(Open { node, path: path.to_owned(), flags, nonblocking: AtomicBool::new(false) }));
        Ok(handle)
    }

    fn close(&self, handle: RawHandle) {
        let open = lock(&self.handles).remove(&handle);
        match open {
            Some(open) => open.node.close(),
            None => self.ledger().note(&system::CLOSE_ONCE, format!("handle {}", handle.0)),
        }
    }

    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        if matches!(request, VM_RUN | KVM_RUN)
            && let Some(rule) = self.privileges.enters()
        {
            self.ledger().note(rule, names::ioctl(request));
        }
        let open = self.find(handle, &names::ioctl(request))?;
        // SAFETY: the caller's promise.
        unsafe { open.node.ioctl(&self.call(handle, &open), request, arg) }
    }

    fn mmap(&self, handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        let open = self.find(handle, "mmap")?;
        if request.len_bytes == 0
            || !request.len_bytes.is_multiple_of(PAGE_BYTES)
            || !request.offset.is_multiple_of(PAGE_BYTES as u64)
        {
            return Err(self.ledger().refuse(
                &system::MMAP_PAGES,
                Errno::EINVAL,
                format!("{:#x} bytes at {:#x} of {}", request.len_bytes, request.offset, open.path),
            ));
        }
        let start = open.node.mmap(&self.call(handle, &open), request)?;
        let mapped = Mapped { node: open.node.clone(), path: open.path.clone(), len_bytes: request.len_bytes };
        lock(&self.mappings).insert(start.as_ptr() as usize, mapped);
        Ok(start)
    }

    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize) {
        let mut mappings = lock(&self.mappings);
        let at = start.as_ptr() as usize;
        match mappings.get(&at) {
            Some(mapped) if mapped.len_bytes == len_bytes => {}
            _ => {
                // The kernel says EINVAL, and leaves the mapping as it is.
                self.ledger().note(&system::MUNMAP_WHOLE, format!("{len_bytes:#x} bytes at {at:#x}"));
                return;
            }
        }
        let mapped = mappings.remove(&at);
        drop(mappings);
        if let Some(mapped) = mapped {
            mapped.node.unmapped(start, len_bytes);
            // SAFETY: the whole of a mapping that its node made with mmap(2); the caller says that nobody uses it.
            unsafe { libc::munmap(start.as_ptr().cast(), len_bytes) };
        }
    }

    unsafe fn mlock(&self, start: NonNull<u8>, len_bytes: usize) -> SysResult<()> {
        let at = start.as_ptr() as usize;
        if !self.zone.may(Privilege::ProcLockMemory) {
            let detail = format!("{len_bytes:#x} bytes at {at:#x}");
            return Err(self.ledger().refuse(&system::MLOCK_PRIVILEGE, Errno::EPERM, detail));
        }
        let first = at / PAGE_BYTES * PAGE_BYTES;
        let len = (at + len_bytes).next_multiple_of(PAGE_BYTES) - first;
        // Asks which pages are resident, and so whether they are mapped; really locking them is the limit's business.
        let mut residence = vec![0_u8; len / PAGE_BYTES];
        // SAFETY: the vector has a byte for every page asked about; the range itself is only looked up.
        if unsafe { libc::mincore(first as *mut libc::c_void, len, residence.as_mut_ptr()) } != 0 {
            let detail = format!("{len_bytes:#x} bytes at {at:#x}");
            return Err(self.ledger().refuse(&system::MLOCK_MAPPED, Errno::ENOMEM, detail));
        }
        lock(&self.locked).push((first, len));
        Ok(())
    }

    fn device_number(&self, handle: RawHandle) -> SysResult<DeviceNumber> {
        Ok(self.find(handle, "fstat")?.node.device_number())
    }

    fn read(&self, handle: RawHandle, buffer: &mut [u8]) -> SysResult<usize> {
        let open = self.find(handle, "read")?;
        open.node.read(&self.call(handle, &open), buffer)
    }

    fn write(&self, handle: RawHandle, buffer: &[u8]) -> SysResult<usize> {
        let open = self.find(handle, "write")?;
        open.node.write(&self.call(handle, &open), buffer)
    }

    fn read_at(&self, handle: RawHandle, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize> {
        let open = self.find(handle, "pread")?;
        open.node.read_at(&self.call(handle, &open), buffer, offset_bytes)
    }

    fn write_at(&self, handle: RawHandle, buffer: &[u8], offset_bytes: u64) -> SysResult<usize> {
        let open = self.find(handle, "pwrite")?;
        open.node.write_at(&self.call(handle, &open), buffer, offset_bytes)
    }

    fn poll(&self, handle: RawHandle, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        let open = self.find(handle, "poll")?;
        open.node.poll(&self.call(handle, &open), interest, timeout_ns)
    }

    fn set_nonblocking(&self, handle: RawHandle) -> SysResult<()> {
        self.find(handle, "fcntl")?.nonblocking.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn poll_fd(&self, handle: RawHandle) -> SysResult<RawFd> {
        self.find(handle, "poll")?.node.poll_fd()
    }

    fn putmsg(&self, handle: RawHandle, control: Option<&[u8]>, data: Option<&[u8]>, urgent: bool) -> SysResult<()> {
        let open = self.find(handle, "putmsg")?;
        open.node.putmsg(&self.call(handle, &open), control, data, urgent)
    }

    fn getmsg(&self, handle: RawHandle, control: &mut [u8], data: &mut [u8]) -> SysResult<StreamMessage> {
        let open = self.find(handle, "getmsg")?;
        open.node.getmsg(&self.call(handle, &open), control, data)
    }

    fn bind_thread(&self, cpu: Option<i32>) -> SysResult<()> {
        let online = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus: Vec<usize> = match cpu {
            Some(cpu) => vec![usize::try_from(cpu).map_err(|_| Errno::EINVAL)?],
            None => (0..online).collect(),
        };
        devices_host::thread::bind_current(&cpus).map_err(|_| Errno::EINVAL)
    }

    fn current_thread(&self) -> SysThread {
        // SAFETY: no arguments, cannot fail.
        SysThread(unsafe { libc::gettid() } as u64)
    }

    fn signal_thread(&self, thread: SysThread) {
        // SAFETY: the signal has a handler, and a thread that is gone is an error.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.0 as libc::pid_t, KICK_SIGNAL) };
        if result != 0 {
            self.ledger().note(&system::KICK_ALIVE, format!("thread {}", thread.0));
        }
    }

    fn kick_signal(&self) -> i32 {
        KICK_SIGNAL_ILLUMOS
    }

    fn block_kick_signal(&self, blocked: bool) -> SysResult<()> {
        let set = kick_set();
        let how = if blocked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
        // SAFETY: a good set, and no place for the old mask.
        match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn take_kick_signal(&self) -> bool {
        let set = kick_set();
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a good set and time, and no place for the details.
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) == KICK_SIGNAL }
    }

    fn link(&self, name: &str) -> SysResult<Link> {
        lock(&self.host.links).get(name).copied().ok_or(Errno::ENOENT)
    }

    fn in_global_zone(&self) -> bool {
        self.zone.is_global()
    }
}

fn kick_set() -> libc::sigset_t {
    // SAFETY: all-zero is a valid set, which is emptied before it is filled.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, KICK_SIGNAL);
        set
    }
}
