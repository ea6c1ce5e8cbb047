//! The ioctls as typed calls: every unsafe one of this backend is in this folder, and everything else is safe code.

mod commands;
mod data;
mod vcpu;
mod viona;

pub use data::WHOLE_VM;
pub use viona::{AddressError, FilterError, VionaFd};

/// The number of the call behind [`VmFd::make_room`].
#[cfg(test)]
pub const ARC_RESERVATION: i32 = commands::VM_ARC_RESV.request;

use std::sync::Arc;

use devices_host::sys::{Errno, Handle, IoctlArg, MapRequest, Mapping, OpenAccess, OpenFlags, Sys};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use self::commands::{Plain, Value};
use super::abi;
use super::error::{CallError, CallResult};

/// How often a call is repeated that a signal interrupted, and that has therefore done nothing.
const INTERRUPTIONS: usize = 1000;

/// Longest name of a VM or a segment in bytes; one more is its NUL.
pub const MAX_NAME_BYTES: usize = abi::VM_MAX_NAMELEN - 1;

fn named(call: &'static str) -> impl Fn(Errno) -> CallError {
    move |errno| CallError { call, errno }
}

/// Calls until no signal interrupts.
fn uninterrupted(mut call: impl FnMut() -> Result<i32, Errno>) -> Result<i32, Errno> {
    for _ in 0..INTERRUPTIONS {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
    Err(Errno::EINTR)
}

fn pass<T>(handle: &Handle, command: Plain<T>, argument: &mut T) -> CallResult<i32>
where
    T: FromBytes + IntoBytes + Immutable,
{
    // SAFETY: `commands` pairs the request with the structure it takes, which has no pointers.
    uninterrupted(|| unsafe { handle.ioctl(command.request, IoctlArg::Buffer(argument.as_mut_bytes())) })
        .map_err(named(command.name))
}

fn pass_value(handle: &Handle, command: Value, value: usize) -> CallResult<i32> {
    // SAFETY: the command takes a number, so there is nothing it could reach through its argument.
    uninterrupted(|| unsafe { handle.ioctl(command.request, IoctlArg::Value(value)) }).map_err(named(command.name))
}

/// A NUL-terminated name in its field; whoever calls has checked its length.
fn name_field<const N: usize>(name: &str) -> [u8; N] {
    let mut field = [0; N];
    for (slot, byte) in field.iter_mut().take(N - 1).zip(name.bytes()) {
        *slot = byte;
    }
    field
}

/// `/dev/vmmctl`.
pub struct Control(Handle);

impl Control {
    /// The control device's node.
    pub const NODE: &str = "/dev/vmmctl";

    /// Opens it. The driver insists on O_EXCL, which excludes nobody.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(sys: &Arc<dyn Sys>) -> CallResult<Self> {
        let flags = OpenFlags { access: OpenAccess::Write, exclusive: true, nonblocking: false };
        Handle::open(sys, Self::NODE, flags).map(Self).map_err(named(Self::NODE))
    }

    /// The system it was opened on.
    pub fn sys(&self) -> &Arc<dyn Sys> {
        self.0.sys()
    }

    /// Version of the kernel's interface.
    ///
    /// # Errors
    /// What the call says.
    pub fn interface_version(&self) -> CallResult<i32> {
        // SAFETY: the command takes no argument.
        uninterrupted(|| unsafe { self.0.ioctl(abi::VMM_INTERFACE_VERSION, IoctlArg::None) })
            .map_err(named(commands::VMM_INTERFACE_VERSION.name))
    }

    /// Creates a VM; `flags` are `VCF_*`.
    ///
    /// # Errors
    /// What the call says; EEXIST where the name is taken anywhere on the machine.
    pub fn create(&self, name: &str, flags: u64) -> CallResult<()> {
        let mut request = abi::vm_create_req { name: name_field(name), flags };
        pass(&self.0, commands::VMM_CREATE_VM, &mut request).map(drop)
    }

    /// Destroys a VM of which the process holds no descriptor: with one the call would wait for ever.
    ///
    /// # Errors
    /// What the call says.
    pub fn destroy(&self, name: &str) -> CallResult<()> {
        let mut request = abi::vm_destroy_req { name: name_field(name) };
        pass(&self.0, commands::VMM_DESTROY_VM, &mut request).map(drop)
    }
}

/// `/dev/vmm/<name>`: one VM. It ends with its last descriptor, once [`autodestruct`](Self::autodestruct) is on.
pub struct VmFd(Handle);

impl VmFd {
    /// Opens the node of the VM `name`.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(sys: &Arc<dyn Sys>, name: &str) -> CallResult<Self> {
        let node = format!("/dev/vmm/{name}");
        Handle::open(sys, &node, OpenFlags::READ_WRITE).map(Self).map_err(named("opening the VM's node"))
    }

    /// Its descriptor, for drivers that take one (viona).
    pub fn handle(&self) -> &Handle {
        &self.0
    }

    fn pass<T>(&self, command: Plain<T>, argument: &mut T) -> CallResult<i32>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        pass(&self.0, command, argument)
    }

    fn value(&self, command: Value, value: usize) -> CallResult<()> {
        pass_value(&self.0, command, value).map(drop)
    }

    /// Whether the VM ends with its last descriptor.
    ///
    /// # Errors
    /// What the call says; so for every method below.
    pub fn autodestruct(&self, on: bool) -> CallResult<()> {
        self.value(commands::VM_SET_AUTODESTRUCT, on.into())
    }

    /// Marks the VM for destruction, which is complete when every descriptor is closed.
    pub fn destroy_self(&self) -> CallResult<()> {
        self.value(commands::VM_DESTROY_SELF, 0)
    }

    /// Resets what the kernel emulates: vCPUs become inactive, device memory is unmapped, the PM timer has no port.
    pub fn reinit(&self) -> CallResult<()> {
        self.pass(commands::VM_REINIT, &mut abi::vm_reinit { flags: 0 }).map(drop)
    }

    /// Stops the kernel's timers; entries give EBUSY. EALREADY where it is paused.
    pub fn pause(&self) -> CallResult<()> {
        self.value(commands::VM_PAUSE, 0)
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) -> CallResult<()> {
        self.value(commands::VM_RESUME, 0)
    }

    /// Has the file system's cache (ARC) give that many bytes back, so that a segment finds them. ENOTTY where the kernel
    /// cannot be asked to.
    pub fn make_room(&self, bytes: u64) -> CallResult<()> {
        self.value(commands::VM_ARC_RESV, bytes as usize)
    }

    /// Allocates a segment: system memory without a name, device memory with one. EEXIST where there is one of the same
    /// length already.
    pub fn alloc_segment(&self, segid: i32, len_bytes: u64, name: &str) -> CallResult<()> {
        let mut segment = abi::vm_memseg::new_zeroed();
        segment.segid = segid;
        segment.len = len_bytes as usize;
        segment.name = name_field(name);
        self.pass(commands::VM_ALLOC_MEMSEG, &mut segment).map(drop)
    }

    /// Length of a segment in bytes, and whether it is system memory; `None` where there is none.
    pub fn segment(&self, segid: i32) -> CallResult<Option<(u64, bool)>> {
        let mut segment = abi::vm_memseg::new_zeroed();
        segment.segid = segid;
        self.pass(commands::VM_GET_MEMSEG, &mut segment)?;
        Ok((segment.len > 0).then_some((segment.len as u64, segment.name[0] == 0)))
    }

    /// Maps a whole segment into the guest.
    pub fn map_segment(&self, gpa: u64, segid: i32, len_bytes: u64, prot: i32, flags: i32) -> CallResult<()> {
        let mut map = abi::vm_memmap::new_zeroed();
        (map.gpa, map.segid, map.len, map.prot, map.flags) = (gpa, segid, len_bytes as usize, prot, flags);
        self.pass(commands::VM_MMAP_MEMSEG, &mut map).map(drop)
    }

    /// The lowest map at or above `gpa`.
    pub fn next_map(&self, gpa: u64) -> CallResult<Option<abi::vm_memmap>> {
        let mut map = abi::vm_memmap::new_zeroed();
        map.gpa = gpa;
        match self.pass(commands::VM_MMAP_GETNEXT, &mut map) {
            Ok(_) => Ok(Some(map)),
            Err(CallError { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where a segment lies in the VM's descriptor.
    pub fn segment_offset(&self, segid: i32) -> CallResult<u64> {
        let mut offset = abi::vm_devmem_offset::new_zeroed();
        offset.segid = segid;
        self.pass(commands::VM_DEVMEM_GETOFFSET, &mut offset)?;
        Ok(offset.offset.cast_unsigned())
    }

    /// Maps a part of the descriptor, writable: guest-physical addresses, or a segment at its
    /// [offset](Self::segment_offset).
    pub fn map(&self, offset: u64, len_bytes: usize) -> CallResult<Mapping> {
        let request = MapRequest { len_bytes, offset, write: true };
        Mapping::new(&self.0, request).map_err(named("mmap of guest memory"))
    }

    /// Most vCPUs of a VM.
    pub fn max_vcpus(&self) -> CallResult<u16> {
        let mut topology = abi::vm_cpu_topology::new_zeroed();
        self.pass(commands::VM_GET_TOPOLOGY, &mut topology)?;
        Ok(topology.maxcpus)
    }

    /// Sends a message-signalled interrupt.
    pub fn send_msi(&self, address: u64, data: u32) -> CallResult<()> {
        let mut message = abi::vm_lapic_msi { msg: data.into(), addr: address };
        self.pass(commands::VM_LAPIC_MSI, &mut message).map(drop)
    }

    /// Changes the count of an IOAPIC pin that no PIC line belongs to.
    pub fn ioapic_line(&self, pin: i32, change: LineChange) -> CallResult<()> {
        let command = match change {
            LineChange::Assert => commands::VM_IOAPIC_ASSERT_IRQ,
            LineChange::Deassert => commands::VM_IOAPIC_DEASSERT_IRQ,
            LineChange::Pulse => commands::VM_IOAPIC_PULSE_IRQ,
        };
        self.pass(command, &mut abi::vm_ioapic_irq { irq: pin }).map(drop)
    }

    /// Changes the count of a PIC line and its IOAPIC pin.
    pub fn isa_line(&self, irq: i32, pin: i32, change: LineChange) -> CallResult<()> {
        let command = match change {
            LineChange::Assert => commands::VM_ISA_ASSERT_IRQ,
            LineChange::Deassert => commands::VM_ISA_DEASSERT_IRQ,
            LineChange::Pulse => commands::VM_ISA_PULSE_IRQ,
        };
        self.pass(command, &mut abi::vm_isa_irq { atpic_irq: irq, ioapic_irq: pin }).map(drop)
    }

    /// Makes a PIC line level-triggered (ELCR).
    pub fn isa_line_is_level(&self, irq: i32) -> CallResult<()> {
        let mut trigger = abi::vm_isa_irq_trigger { atpic_irq: irq, trigger: abi::LEVEL_TRIGGER };
        self.pass(commands::VM_ISA_SET_IRQ_TRIGGER, &mut trigger).map(drop)
    }

    /// Sets the real-time clock.
    pub fn set_time(&self, seconds: i64, nanoseconds: u32) -> CallResult<()> {
        let mut time = abi::vm_rtc_timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        self.pass(commands::VM_RTC_SETTIME, &mut time).map(drop)
    }

    /// Writes a byte of the real-time clock's memory.
    pub fn set_nvram(&self, offset: u8, value: u8) -> CallResult<()> {
        let mut byte = abi::vm_rtc_data::new_zeroed();
        (byte.offset, byte.value) = (offset.into(), value);
        self.pass(commands::VM_RTC_WRITE, &mut byte).map(drop)
    }

    /// Places the PM timer.
    pub fn place_pm_timer(&self, port: u16) -> CallResult<()> {
        self.value(commands::VM_PMTMR_LOCATE, port.into())
    }
}

/// What happens to a line's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineChange {
    /// One more.
    Assert,
    /// One less.
    Deassert,
    /// One more and one less.
    Pulse,
}
