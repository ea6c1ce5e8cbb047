//! A system that says what a test wants it to say, and remembers what it was asked. It runs no guest: that is the strict
//! double's business, in a crate of its own.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use devices_host::sys::{
    DeviceNumber, Errno, IoctlArg, Link, MapRequest, OpenFlags, RawHandle, Ready, Sys, SysResult, SysThread,
};

use super::abi::*;
use super::plain::{bytes_of, from_bytes};

/// The system.
#[derive(Default)]
pub struct Fake(Mutex<State>);

#[derive(Default)]
pub struct State {
    /// Answers to the next ioctls of a number, before the usual ones.
    pub answers: HashMap<i32, VecDeque<SysResult<i32>>>,
    /// What open says.
    pub open: Option<Errno>,
    /// What the next mlocks say.
    pub mlock: VecDeque<SysResult<()>>,
    /// Values of capabilities other than the driver's.
    pub caps: HashMap<usize, SysResult<i32>>,
    /// CPUID entries it offers.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Exits of the next KVM_RUNs: bytes of `kvm_run` from `exit_reason` on.
    pub exits: VecDeque<Vec<u8>>,
    /// Every ioctl: number and argument.
    pub calls: Vec<(i32, Vec<u8>)>,
    /// Every mlock's length.
    pub locked: Vec<usize>,
    handles: i32,
    page: usize,
}

impl Fake {
    /// A well-behaved driver.
    pub fn new() -> Arc<Self> {
        let fake = Arc::new(Self::default());
        fake.lock().cpuid = [(0, 0xb), (1, 0x306c3), (7, u32::MAX), (0x8000_0000, 0x8000_0008), (0x8000_0008, 0x3034)]
            .map(|(function, eax)| kvm_cpuid_entry2 { function, eax, ..super::plain::zeroed() })
            .into();
        fake
    }

    /// Its inside.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The next call of `request` is answered so.
    pub fn answer(&self, request: i32, answer: SysResult<i32>) {
        self.lock().answers.entry(request).or_default().push_back(answer);
    }

    /// The numbers of all ioctls so far, in order.
    pub fn requests(&self) -> Vec<i32> {
        self.lock().calls.iter().map(|(request, _)| *request).collect()
    }

    /// The arguments of all calls of `request`.
    pub fn arguments(&self, request: i32) -> Vec<Vec<u8>> {
        let calls = &self.lock().calls;
        calls.iter().filter(|(number, _)| *number == request).map(|(_, argument)| argument.clone()).collect()
    }
}

impl State {
    fn capability(&self, number: usize) -> SysResult<i32> {
        self.caps.get(&number).copied().unwrap_or(match number {
            cap::NR_VCPUS => Ok(64),
            cap::NR_MEMSLOTS => Ok(32),
            cap::IRQ_ROUTING => Ok(1024),
            _ => Ok(1),
        })
    }

    fn usual(&mut self, request: i32, arg: &mut IoctlArg<'_>) -> SysResult<i32> {
        match (request, arg) {
            (KVM_GET_API_VERSION, _) => Ok(12),
            (KVM_GET_VCPU_MMAP_SIZE, _) => Ok(12288),
            (KVM_CHECK_EXTENSION, IoctlArg::Value(number)) => self.capability(*number),
            (KVM_CHECK_EXTENSION, _) => self.capability(0),
            (KVM_CREATE_VCPU, IoctlArg::Value(id)) => Ok(*id as i32),
            (KVM_GET_SUPPORTED_CPUID, IoctlArg::Buffer(buffer)) => {
                let table: Vec<u8> = self.cpuid.iter().flat_map(bytes_of).copied().collect();
                buffer[..4].copy_from_slice(&(self.cpuid.len() as u32).to_ne_bytes());
                buffer[8..8 + table.len()].copy_from_slice(&table);
                Ok(0)
            }
            (KVM_SET_MSRS, IoctlArg::Buffer(buffer)) => {
                Ok(from_bytes::<kvm_msrs>(buffer).map_or(0, |msrs| msrs.nmsrs as i32))
            }
            (KVM_RUN, _) => {
                let exit = self.exits.pop_front().ok_or(Errno::EINTR)?;
                // SAFETY: the page is never freed, and nobody uses it during this call.
                unsafe {
                    std::ptr::copy_nonoverlapping(exit.as_ptr(), (self.page as *mut u8).add(8), exit.len());
                }
                Ok(0)
            }
            _ => Ok(0),
        }
    }
}

impl Sys for Fake {
    fn is_character_device(&self, _path: &str) -> SysResult<bool> {
        Ok(false)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        assert_eq!((path, flags), ("/dev/kvm", OpenFlags::READ_WRITE));
        let mut state = self.lock();
        state.handles += 1;
        state.open.map_or(Ok(RawHandle(state.handles)), Err)
    }

    fn close(&self, _handle: RawHandle) {}

    unsafe fn ioctl(&self, _handle: RawHandle, request: i32, mut arg: IoctlArg<'_>) -> SysResult<i32> {
        let mut state = self.lock();
        let argument = match &arg {
            IoctlArg::None => Vec::new(),
            IoctlArg::Value(value) => value.to_ne_bytes().into(),
            IoctlArg::Buffer(buffer) => buffer.to_vec(),
        };
        state.calls.push((request, argument));
        match state.answers.get_mut(&request).and_then(VecDeque::pop_front) {
            Some(answer) => answer,
            None => state.usual(request, &mut arg),
        }
    }

    fn mmap(&self, _handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        assert_eq!(request, MapRequest { len_bytes: 12288, offset: 0, write: true });
        // SAFETY: a layout that is not empty. Never freed: a test's page.
        let page = unsafe { alloc_zeroed(Layout::from_size_align(12288, 4096).unwrap()) };
        self.lock().page = page as usize;
        Ok(NonNull::new(page).unwrap())
    }

    unsafe fn munmap(&self, _start: NonNull<u8>, _len_bytes: usize) {}

    unsafe fn mlock(&self, _start: NonNull<u8>, len_bytes: usize) -> SysResult<()> {
        let mut state = self.lock();
        let answer = state.mlock.pop_front().unwrap_or(Ok(()));
        if answer.is_ok() {
            state.locked.push(len_bytes);
        }
        answer
    }

    fn device_number(&self, _handle: RawHandle) -> SysResult<DeviceNumber> {
        Ok(DeviceNumber(0x10b_0000_0007))
    }

    fn read(&self, _handle: RawHandle, _buffer: &mut [u8]) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn write(&self, _handle: RawHandle, _buffer: &[u8]) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn read_at(&self, _handle: RawHandle, _buffer: &mut [u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn write_at(&self, _handle: RawHandle, _buffer: &[u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn poll(&self, _handle: RawHandle, _interest: Ready, _timeout_ns: Option<u64>) -> SysResult<Ready> {
        Err(Errno::ENXIO)
    }

    fn bind_thread(&self, _cpu: Option<i32>) -> SysResult<()> {
        Ok(())
    }

    fn current_thread(&self) -> SysThread {
        SysThread(1)
    }

    fn signal_thread(&self, _thread: SysThread) {}

    fn kick_signal(&self) -> i32 {
        16
    }

    fn block_kick_signal(&self, _blocked: bool) -> SysResult<()> {
        Ok(())
    }

    fn take_kick_signal(&self) -> bool {
        false
    }

    fn link(&self, _name: &str) -> SysResult<Link> {
        Err(Errno::ENOENT)
    }

    fn in_global_zone(&self) -> bool {
        false
    }
}
