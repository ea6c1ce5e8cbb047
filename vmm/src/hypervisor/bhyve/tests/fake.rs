//! A kernel of a few tables: it keeps what it is told, says what the test put down, and counts what is left behind.
//! What real kernels refuse is the strict double's business; here single answers can be forced.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::{
    DeviceNumber, Errno, IoctlArg, Link, MapRequest, OpenFlags, RawHandle, Ready, Sys, SysResult, SysThread,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::hypervisor::bhyve::abi::*;

/// One call of the process: its request, its number or the bytes of its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub request: i32,
    pub value: usize,
    pub bytes: Vec<u8>,
}

impl Recorded {
    pub fn argument<T: FromBytes>(&self) -> T {
        T::read_from_bytes(&self.bytes).unwrap_or_else(|_| panic!("an argument of {} bytes", self.bytes.len()))
    }
}

/// One VM of the fake kernel.
#[derive(Clone, Debug, Default)]
pub struct FakeVm {
    pub autodestruct: bool,
    pub destroyed: bool,
    pub segments: BTreeMap<i32, (usize, bool)>,
    pub maps: Vec<vm_memmap>,
    pub opens: usize,
    pub flags: u64,
    /// Assertions less deassertions a pin.
    pub lines: BTreeMap<i32, i32>,
}

#[derive(Default)]
pub struct State {
    pub version: i32,
    pub vms: BTreeMap<String, FakeVm>,
    pub handles: BTreeMap<i32, String>,
    next_handle: i32,
    pub mappings: BTreeMap<usize, usize>,
    pub calls: Vec<Recorded>,
    /// Answers to come, by request; a request without any succeeds.
    pub forced: BTreeMap<i32, VecDeque<Option<Errno>>>,
    /// Exits to come; an entry without any is an exit for nothing.
    pub exits: VecDeque<vm_exit>,
    /// Entries that were let in: command, and the answer to the exit before.
    pub entries: Vec<(u32, [u8; 24])>,
    pub data: BTreeMap<(i32, u16), Vec<u8>>,
    pub global_zone: bool,
    /// The call, counted from 0 over opens, ioctls and mappings, that fails, and how.
    pub fail_at: Option<(usize, Errno)>,
    pub made: usize,
}

/// The system of one test.
pub struct FakeSys {
    state: Mutex<State>,
}

fn pages(len_bytes: usize) -> Layout {
    Layout::from_size_align(len_bytes, 4096).unwrap()
}

const CONTROL: &str = "/dev/vmmctl";

impl FakeSys {
    pub fn new() -> Arc<Self> {
        let state = State { version: VMM_CURRENT_INTERFACE_VERSION, next_handle: 3, ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the next calls of `request` answer so; `None` lets one through.
    pub fn force(&self, request: i32, answers: &[Option<Errno>]) {
        self.state().forced.entry(request).or_default().extend(answers);
    }

    pub fn calls(&self, request: i32) -> Vec<Recorded> {
        self.state().calls.iter().filter(|call| call.request == request).cloned().collect()
    }

    /// Everything that outlives its user: VMs, handles, mappings.
    pub fn leaks(&self) -> Vec<String> {
        let state = self.state();
        let vms = state.vms.keys().map(|name| format!("VM {name}"));
        let handles = state.handles.values().map(|path| format!("handle {path}"));
        vms.chain(handles).chain(state.mappings.keys().map(|at| format!("mapping {at:#x}"))).collect()
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

impl State {
    fn count(&mut self) -> SysResult<()> {
        let now = self.made;
        self.made += 1;
        match self.fail_at {
            Some((at, errno)) if at == now => Err(errno),
            _ => Ok(()),
        }
    }

    fn end_if_unused(&mut self, name: &str) {
        let over = |vm: &FakeVm| vm.opens == 0 && (vm.autodestruct || vm.destroyed);
        if self.vms.get(name).is_some_and(over) {
            self.vms.remove(name);
        }
    }

    fn control(&mut self, request: i32, bytes: &mut [u8]) -> SysResult<i32> {
        match request {
            VMM_INTERFACE_VERSION => Ok(self.version),
            VMM_CREATE_VM => {
                let arg = vm_create_req::read_from_bytes(bytes).unwrap();
                let name = text(&arg.name);
                if self.vms.contains_key(&name) {
                    return Err(Errno::EEXIST);
                }
                self.vms.insert(name, FakeVm { flags: arg.flags, ..FakeVm::default() });
                Ok(0)
            }
            VMM_DESTROY_VM => {
                let name = text(bytes);
                let vm = self.vms.get_mut(&name).ok_or(Errno::ENOENT)?;
                assert_eq!(vm.opens, 0, "the call would wait for its own caller");
                vm.destroyed = true;
                self.end_if_unused(&name);
                Ok(0)
            }
            other => panic!("control request {other:#x}"),
        }
    }

    fn vm(&mut self, name: &str, request: i32, value: usize, bytes: &mut [u8]) -> SysResult<i32> {
        if request == VM_RUN {
            return self.enter(bytes);
        }
        let State { vms, data, .. } = self;
        let vm = vms.get_mut(name).ok_or(Errno::ENXIO)?;
        match request {
            VM_SET_AUTODESTRUCT => vm.autodestruct = value != 0,
            VM_DESTROY_SELF => vm.destroyed = true,
            VM_REINIT => {
                let ram = |map: &vm_memmap| map.segid < 2;
                vm.maps.retain(ram);
                vm.lines.clear();
            }
            VM_ALLOC_MEMSEG => {
                let arg = vm_memseg::read_from_bytes(bytes).unwrap();
                if vm.segments.contains_key(&arg.segid) {
                    return Err(Errno::EEXIST);
                }
                vm.segments.insert(arg.segid, (arg.len, arg.name[0] == 0));
            }
            VM_GET_MEMSEG => {
                let arg = vm_memseg::mut_from_bytes(bytes).unwrap();
                if let Some(&(len, system)) = vm.segments.get(&arg.segid) {
                    arg.len = len;
                    arg.name[0] = if system { 0 } else { b'r' };
                }
            }
            VM_MMAP_MEMSEG => {
                vm.maps.push(vm_memmap::read_from_bytes(bytes).unwrap());
                vm.maps.sort_by_key(|map| map.gpa);
            }
            VM_MMAP_GETNEXT => {
                let arg = vm_memmap::mut_from_bytes(bytes).unwrap();
                *arg = *vm.maps.iter().find(|map| map.gpa >= arg.gpa).ok_or(Errno::ENOENT)?;
            }
            VM_DEVMEM_GETOFFSET => {
                let arg = vm_devmem_offset::mut_from_bytes(bytes).unwrap();
                arg.offset = VM_DEVMEM_START as i64 + i64::from(arg.segid) * (1 << 40);
            }
            VM_GET_TOPOLOGY => vm_cpu_topology::mut_from_bytes(bytes).unwrap().maxcpus = 64,
            VM_LEGACY_CPUID => cpuid(vm_legacy_cpuid::mut_from_bytes(bytes).unwrap()),
            VM_ISA_ASSERT_IRQ | VM_ISA_DEASSERT_IRQ => {
                let arg = vm_isa_irq::read_from_bytes(bytes).unwrap();
                *vm.lines.entry(arg.ioapic_irq).or_default() += if request == VM_ISA_ASSERT_IRQ { 1 } else { -1 };
            }
            VM_IOAPIC_ASSERT_IRQ | VM_IOAPIC_DEASSERT_IRQ => {
                let arg = vm_ioapic_irq::read_from_bytes(bytes).unwrap();
                *vm.lines.entry(arg.irq).or_default() += if request == VM_IOAPIC_ASSERT_IRQ { 1 } else { -1 };
            }
            VM_DATA_READ | VM_DATA_WRITE => {
                let arg = vm_data_xfer::mut_from_bytes(bytes).unwrap();
                let at = std::ptr::with_exposed_provenance_mut::<u8>(arg.vdx_data);
                // SAFETY: the caller gave the buffer and its length.
                let buffer = unsafe { std::slice::from_raw_parts_mut(at, arg.vdx_len as usize) };
                let key = (arg.vdx_vcpuid, arg.vdx_class);
                if request == VM_DATA_WRITE {
                    data.insert(key, buffer.to_vec());
                } else {
                    let unpaused = [VAI_VM_IS_PAUSED, 0, 0, 0].as_bytes().to_vec();
                    let unpaused = (key.1 == VDC_VMM_ARCH).then_some(&unpaused);
                    let kept = data.get(&key).or(unpaused).ok_or(Errno::EINVAL)?;
                    buffer[..kept.len()].copy_from_slice(kept);
                    arg.vdx_result_len = kept.len() as u32;
                }
            }
            VM_DESC_FPU_AREA => vm_fpu_desc::mut_from_bytes(bytes).unwrap().vfd_req_size = 576,
            _ => {}
        }
        Ok(0)
    }

    fn enter(&mut self, bytes: &mut [u8]) -> SysResult<i32> {
        let cmd = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
        let exit_data = usize::from_ne_bytes(bytes[8..16].try_into().unwrap());
        self.entries.push((cmd, bytes[16..40].try_into().unwrap()));
        let exit = self.exits.pop_front().unwrap_or_else(|| {
            let mut exit = vm_exit::new_zeroed();
            exit.exitcode = VM_EXITCODE_BOGUS;
            exit
        });
        // SAFETY: the caller gave the address of a whole exit.
        unsafe { std::ptr::with_exposed_provenance_mut::<vm_exit>(exit_data).write(exit) };
        Ok(0)
    }
}

/// An Intel processor with two cache levels, and 39 bits of physical address.
fn cpuid(arg: &mut vm_legacy_cpuid) {
    let name = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let registers = match (arg.vlc_eax, arg.vlc_ecx) {
        (0, _) => [7, name(b"Genu"), name(b"ntel"), name(b"ineI")],
        (1, _) => [0x306a9, 0, 1 << 31, 1 << 9],
        (4, 0 | 1) => [0x121, 0, 0, 0],
        (7, 0) => [1, 2, 3, 4],
        (7, 1) => [5, 0, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0008, _) => [0x3027, 0, 0, 0],
        _ => [0; 4],
    };
    [arg.vlc_eax, arg.vlc_ebx, arg.vlc_ecx, arg.vlc_edx] = registers;
}

impl Sys for FakeSys {
    fn is_character_device(&self, _path: &str) -> SysResult<bool> {
        Ok(false)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        let mut state = self.state();
        state.count()?;
        if path == CONTROL {
            assert!(flags.exclusive, "the driver says EINVAL without O_EXCL");
        } else {
            let name = path.strip_prefix("/dev/vmm/").ok_or(Errno::ENOENT)?;
            // A forced answer of "open" is kept under request 0.
            if let Some(Some(errno)) = state.forced.get_mut(&0).and_then(VecDeque::pop_front) {
                return Err(errno);
            }
            state.vms.get_mut(name).ok_or(Errno::ENOENT)?.opens += 1;
        }
        let handle = state.next_handle;
        state.next_handle += 1;
        state.handles.insert(handle, path.to_owned());
        Ok(RawHandle(handle))
    }

    fn close(&self, handle: RawHandle) {
        let mut state = self.state();
        let path = state.handles.remove(&handle.0).expect("an open handle");
        if let Some(name) = path.strip_prefix("/dev/vmm/") {
            if let Some(vm) = state.vms.get_mut(name) {
                vm.opens -= 1;
            }
            state.end_if_unused(name);
        }
    }

    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let mut state = self.state();
        let path = state.handles.get(&handle.0).cloned().expect("an open handle");
        let mut none = [];
        let (value, bytes): (usize, &mut [u8]) = match arg {
            IoctlArg::None => (0, &mut none),
            IoctlArg::Value(value) => (value, &mut none),
            IoctlArg::Buffer(bytes) => (0, bytes),
        };
        state.calls.push(Recorded { request, value, bytes: bytes.to_vec() });
        state.count()?;
        if let Some(Some(errno)) = state.forced.get_mut(&request).and_then(VecDeque::pop_front) {
            return Err(errno);
        }
        match path.strip_prefix("/dev/vmm/") {
            None => state.control(request, bytes),
            Some(name) => state.vm(name, request, value, bytes),
        }
    }

    fn mmap(&self, _handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        self.state().count()?;
        // SAFETY: not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(pages(request.len_bytes)) }).ok_or(Errno::ENOMEM)?;
        self.state().mappings.insert(start.as_ptr() as usize, request.len_bytes);
        Ok(start)
    }

    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize) {
        let mapped = self.state().mappings.remove(&(start.as_ptr() as usize));
        assert_eq!(mapped, Some(len_bytes), "only whole mappings can be unmapped");
        // SAFETY: what `mmap` allocated.
        unsafe { dealloc(start.as_ptr(), pages(len_bytes)) };
    }

    unsafe fn mlock(&self, _start: NonNull<u8>, _len_bytes: usize) -> SysResult<()> {
        Ok(())
    }

    fn device_number(&self, _handle: RawHandle) -> SysResult<DeviceNumber> {
        Err(Errno::ENOTSUP)
    }

    fn read(&self, _handle: RawHandle, _buffer: &mut [u8]) -> SysResult<usize> {
        Err(Errno::ENOTSUP)
    }

    fn write(&self, _handle: RawHandle, _buffer: &[u8]) -> SysResult<usize> {
        Err(Errno::ENOTSUP)
    }

    fn read_at(&self, _handle: RawHandle, _buffer: &mut [u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn write_at(&self, _handle: RawHandle, _buffer: &[u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    fn poll(&self, _handle: RawHandle, _interest: Ready, _timeout_ns: Option<u64>) -> SysResult<Ready> {
        Err(Errno::ENOTSUP)
    }

    fn bind_thread(&self, _cpu: Option<i32>) -> SysResult<()> {
        Ok(())
    }

    fn current_thread(&self) -> SysThread {
        SysThread(0)
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
        self.state().global_zone
    }
}
