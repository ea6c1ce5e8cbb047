//! `/dev/viona` as typed calls.

use std::sync::Arc;

use devices_host::sys::{Errno, Handle, IoctlArg, OpenAccess, OpenFlags, Sys};
use zerocopy::FromZeros;

use super::commands::{self, Value};
use super::{VmFd, named, pass, pass_value, uninterrupted};
use crate::hypervisor::bhyve::abi;
use crate::hypervisor::bhyve::error::CallResult;

/// One instance: a link of a zone with its queue pairs, attached to a VM. The kernel lets go of both when it is closed.
pub struct VionaFd(Handle);

impl VionaFd {
    /// The driver's node. Every open is an instance of its own.
    pub const NODE: &str = "/dev/viona";

    /// Opens an instance that is attached to nothing.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(sys: &Arc<dyn Sys>) -> CallResult<Self> {
        let flags = OpenFlags { access: OpenAccess::ReadWrite, exclusive: true, nonblocking: false };
        Handle::open(sys, Self::NODE, flags).map(Self).map_err(named(Self::NODE))
    }

    /// Its descriptor.
    pub fn handle(&self) -> &Handle {
        &self.0
    }

    fn value(&self, command: Value, value: usize) -> CallResult<()> {
        pass_value(&self.0, command, value).map(drop)
    }

    /// The interface version. It says little: two interfaces share a number.
    ///
    /// # Errors
    /// What the call says; so for every method below. ENOTTY means that the kernel does not have it.
    pub fn version(&self) -> CallResult<i32> {
        pass_value(&self.0, commands::VNA_IOC_VERSION, 0)
    }

    /// Attaches the link to the VM, with one pair of queues.
    pub fn create(&self, link: u32, vm: &VmFd) -> CallResult<()> {
        let mut request = abi::vioc_create { c_linkid: link, c_vmfd: vm.handle().raw().0 };
        pass(&self.0, commands::VNA_IOC_CREATE, &mut request).map(drop)
    }

    /// Detaches both. Waits for the rings.
    pub fn delete(&self) -> CallResult<()> {
        self.value(commands::VNA_IOC_DELETE, 0)
    }

    /// Feature bits that the kernel carries over this link.
    pub fn features(&self) -> CallResult<u64> {
        // Kernels before interface 5 write 32 bits.
        let mut features = 0;
        pass(&self.0, commands::VNA_IOC_GET_FEATURES, &mut features)?;
        Ok(features)
    }

    /// What the driver accepted, with VERSION_1 for a modern one.
    pub fn set_features(&self, features: u64) -> CallResult<()> {
        let mut features = features;
        pass(&self.0, commands::VNA_IOC_SET_FEATURES, &mut features).map(drop)
    }

    /// The link's MTU as the kernel has it for this instance.
    pub fn mtu(&self) -> CallResult<i32> {
        pass_value(&self.0, commands::VNA_IOC_GET_MTU, 0)
    }

    /// Sets it.
    pub fn set_mtu(&self, mtu: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_SET_MTU, mtu.into())
    }

    /// Which frames the link receives, a `VIONA_PROMISC_*`.
    pub fn set_promisc(&self, mode: i32) -> CallResult<()> {
        self.value(commands::VNA_IOC_SET_PROMISC, mode.cast_unsigned() as usize)
    }

    /// Pairs of queues that there are rings for.
    pub fn pairs(&self) -> CallResult<i32> {
        pass_value(&self.0, commands::VNA_IOC_GET_PAIRS, 0)
    }

    /// Has rings for so many pairs, of which none is initialised; not for fewer than are in use.
    pub fn set_pairs(&self, pairs: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_SET_PAIRS, pairs.into())
    }

    /// Gives received frames to the first so many pairs.
    pub fn set_used_pairs(&self, pairs: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_SET_USEPAIRS, pairs.into())
    }

    /// Initialises a ring of a legacy driver.
    pub fn init_legacy(&self, index: u16, size: u16, address: u64) -> CallResult<()> {
        let mut ring = abi::vioc_ring_init::new_zeroed();
        (ring.ri_index, ring.ri_qsize, ring.ri_qaddr) = (index, size, address);
        pass(&self.0, commands::VNA_IOC_RING_INIT, &mut ring).map(drop)
    }

    /// Initialises a ring of a modern driver: descriptor table, available ring, used ring.
    pub fn init_modern(&self, index: u16, size: u16, [desc, avail, used]: [u64; 3]) -> CallResult<()> {
        let mut ring = abi::vioc_ring_init_modern::new_zeroed();
        (ring.rim_index, ring.rim_qsize) = (index, size);
        (ring.rim_qaddr_desc, ring.rim_qaddr_avail, ring.rim_qaddr_used) = (desc, avail, used);
        pass(&self.0, commands::VNA_IOC_RING_INIT_MODERN, &mut ring).map(drop)
    }

    /// Initialises a ring that goes on where it stood, of either kind of driver.
    pub fn set_state(&self, state: &abi::vioc_ring_state) -> CallResult<()> {
        pass(&self.0, commands::VNA_IOC_RING_SET_STATE, &mut { *state }).map(drop)
    }

    /// Where a ring stands.
    pub fn state(&self, index: u16) -> CallResult<abi::vioc_ring_state> {
        let mut state = abi::vioc_ring_state::new_zeroed();
        state.vrs_index = index;
        pass(&self.0, commands::VNA_IOC_RING_GET_STATE, &mut state)?;
        Ok(state)
    }

    /// Puts a ring back into its reset state; waits for its worker.
    pub fn reset_ring(&self, index: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_RING_RESET, index.into())
    }

    /// Starts a ring, or has its worker look at it.
    pub fn kick(&self, index: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_RING_KICK, index.into())
    }

    /// Stops a ring at a point where its state is whole.
    pub fn pause_ring(&self, index: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_RING_PAUSE, index.into())
    }

    /// Sets a ring's message; address 0 leaves its interrupts to be polled.
    pub fn set_msi(&self, index: u16, address: u64, data: u32) -> CallResult<()> {
        let mut message = abi::vioc_ring_msi::new_zeroed();
        (message.rm_index, message.rm_addr, message.rm_msg) = (index, address, data.into());
        pass(&self.0, commands::VNA_IOC_RING_SET_MSI, &mut message).map(drop)
    }

    /// A bit for each of the first `rings` rings whose interrupt waits: at most those of the pairs in use.
    pub fn pending(&self, rings: u16) -> CallResult<[u32; 16]> {
        let mut poll = abi::vioc_intr_poll_mq::new_zeroed();
        poll.vipm_nrings = rings;
        pass(&self.0, commands::VNA_IOC_INTR_POLL_MQ, &mut poll)?;
        Ok(poll.vipm_status)
    }

    /// Takes a waiting interrupt away.
    pub fn clear_pending(&self, index: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_RING_INTR_CLR, index.into())
    }

    /// Has the kernel take `out`s of queue numbers to this port; 0 ends that.
    pub fn set_notify_port(&self, port: u16) -> CallResult<()> {
        self.value(commands::VNA_IOC_SET_NOTIFY_IOP, port.into())
    }

    /// Has the kernel take writes of queue numbers to these guest addresses.
    pub fn set_notify_mmio(&self, address: u64, len_bytes: u32) -> CallResult<()> {
        let mut window = abi::vioc_notify_mmio::new_zeroed();
        (window.vim_address, window.vim_size) = (address, len_bytes);
        pass(&self.0, commands::VNA_IOC_SET_NOTIFY_MMIO, &mut window).map(drop)
    }

    /// Ends that.
    pub fn clear_notify_mmio(&self) -> CallResult<()> {
        let command = commands::VNA_IOC_SET_NOTIFY_MMIO;
        // SAFETY: no pointer is passed, by which the command ends the watch.
        uninterrupted(|| unsafe { self.0.ioctl(command.request, IoctlArg::None) })
            .map(drop)
            .map_err(named(command.name))
    }

    /// Whether the kernel was asked something that it does not have.
    #[must_use]
    pub fn lacks<T>(result: &CallResult<T>) -> bool {
        result.as_ref().err().is_some_and(|error| error.errno == Errno::ENOTTY)
    }
}
