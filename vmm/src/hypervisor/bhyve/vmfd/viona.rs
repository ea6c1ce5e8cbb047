//! `/dev/viona` as typed calls.

use std::sync::Arc;

use devices_host::sys::{Errno, Handle, IoctlArg, OpenAccess, OpenFlags, Sys};
use zerocopy::{FromZeros, IntoBytes};

use super::commands::{self, Value};
use super::{VmFd, named, pass, pass_value, uninterrupted};
use crate::hypervisor::bhyve::abi;
use crate::hypervisor::bhyve::error::{CallError, CallResult};

/// Why the kernel does not filter groups so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It has room for this many.
    #[error("it has room for {0} groups")]
    Count(u32),
    /// This is no group's address.
    #[error("{0:02x?} is no group")]
    NotAGroup([u8; 6]),
    /// The link does not take this one; some of the others may be there.
    #[error("the link does not take group {0:02x?}")]
    Install([u8; 6]),
    /// The link has no address of its own any more.
    #[error("the link has lost its own address")]
    NoAddress,
    /// It says something that is not known.
    #[error("it says {0}")]
    Other(u32),
}

/// Why the kernel does not give a link another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is that of a group.
    #[error("it is a group's")]
    NotAStation,
    /// The link does not take it, and keeps its own.
    #[error("the link does not take it")]
    Install,
    /// The link does not take it, and has none now.
    #[error("the link does not take it, and has lost its own")]
    Lost,
    /// It says something that is not known.
    #[error("it says {0}")]
    Other(u32),
}

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

    /// Sets parameters, given and answered as packed [name-value lists](crate::hypervisor::bhyve::nvlist).
    ///
    /// # Errors
    /// What the call says, and the list of what is wrong with which of them, empty where the kernel does not say.
    pub fn set_params(&self, packed: &[u8]) -> Result<(), (CallError, Vec<u8>)> {
        let mut params = packed.to_vec();
        let mut errors = vec![0; abi::VIONA_MAX_PARAM_NVLIST_SZ];
        let mut request = abi::vioc_set_params {
            vsp_param: params.as_mut_ptr().expose_provenance(),
            vsp_param_sz: params.len(),
            vsp_error: errors.as_mut_ptr().expose_provenance(),
            vsp_error_sz: errors.len(),
        };
        // SAFETY: the request takes this structure; both buffers have the lengths it says and outlive the call.
        let done = uninterrupted(|| unsafe {
            self.0.ioctl(abi::VNA_IOC_SET_PARAMS, IoctlArg::Buffer(request.as_mut_bytes()))
        });
        // A kernel that did not get as far as the parameters leaves the length of the buffer.
        errors.truncate(if request.vsp_error_sz < errors.len() { request.vsp_error_sz } else { 0 });
        done.map(drop).map_err(|errno| (named("VNA_IOC_SET_PARAMS")(errno), errors))
    }

    /// The parameters as they are, packed.
    pub fn params(&self) -> CallResult<Vec<u8>> {
        let mut params = vec![0; abi::VIONA_MAX_PARAM_NVLIST_SZ];
        let mut request =
            abi::vioc_get_params { vgp_param: params.as_mut_ptr().expose_provenance(), vgp_param_sz: params.len() };
        // SAFETY: the request takes this structure; the buffer has the length it says and outlives the call.
        uninterrupted(|| unsafe { self.0.ioctl(abi::VNA_IOC_GET_PARAMS, IoctlArg::Buffer(request.as_mut_bytes())) })
            .map_err(named("VNA_IOC_GET_PARAMS"))?;
        params.truncate(request.vgp_param_sz);
        Ok(params)
    }

    /// How many groups' frames are received at a level of [`set_promisc`](Self::set_promisc) that lets no others pass.
    pub fn filters(&self) -> CallResult<u32> {
        let mut request = abi::vioc_mac_filters_v7::new_zeroed();
        self.pass_filters("VNA_IOC_GET_MAC_FILTERS", abi::VNA_IOC_GET_MAC_FILTERS, &mut request)?;
        Ok(request.vmf_nmcast)
    }

    /// Has frames of these groups received at such a level, and of no others; at most as many as the array has.
    ///
    /// # Errors
    /// What the call says, or why the kernel does not do it.
    pub fn set_filters(&self, groups: &[[u8; 6]]) -> CallResult<Result<(), FilterError>> {
        let mut request = abi::vioc_mac_filters_v7::new_zeroed();
        request.vmf_nmcast = u32::try_from(groups.len().min(abi::VIONA_MAX_MCAST_FILTERS_v7)).unwrap_or(0);
        self.pass_filters_of("VNA_IOC_SET_MAC_FILTERS", abi::VNA_IOC_SET_MAC_FILTERS, &mut request, groups)?;
        let address = request.vmf_erraddr;
        Ok(match request.vmf_err {
            abi::VMF_OK => Ok(()),
            abi::VMF_ERR_COUNT => Err(FilterError::Count(request.vmf_nmcast)),
            abi::VMF_ERR_NOT_MCAST => Err(FilterError::NotAGroup(address)),
            abi::VMF_ERR_INSTALL => Err(FilterError::Install(address)),
            abi::VMF_ERR_NO_UNICAST => Err(FilterError::NoAddress),
            other => Err(FilterError::Other(other)),
        })
    }

    fn pass_filters(&self, call: &'static str, number: i32, request: &mut abi::vioc_mac_filters_v7) -> CallResult<()> {
        self.pass_filters_of(call, number, request, &[])
    }

    fn pass_filters_of(
        &self,
        call: &'static str,
        number: i32,
        request: &mut abi::vioc_mac_filters_v7,
        groups: &[[u8; 6]],
    ) -> CallResult<()> {
        // As long as any table, so that no number of addresses leads beyond it.
        let mut addresses = [[0; 6]; abi::VIONA_MAX_MCAST_FILTERS_v7];
        for (to, from) in addresses.iter_mut().zip(groups) {
            *to = *from;
        }
        request.vmf_addrs = addresses.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: both requests take this structure; the array has at least as many addresses as it says and outlives the call.
        uninterrupted(|| unsafe { self.0.ioctl(number, IoctlArg::Buffer(request.as_mut_bytes())) })
            .map(drop)
            .map_err(named(call))
    }

    /// The link's own address as the kernel has it; `None` where it has none any more.
    pub fn address(&self) -> CallResult<Option<[u8; 6]>> {
        let mut request = abi::vioc_mac_addr_v7::new_zeroed();
        pass(&self.0, commands::VNA_IOC_GET_MAC_ADDR, &mut request)?;
        Ok((request.vma_present != 0).then_some(request.vma_addr))
    }

    /// Gives the link another address of its own, while it receives all frames.
    ///
    /// # Errors
    /// What the call says, or why the kernel does not do it.
    pub fn set_address(&self, address: [u8; 6]) -> CallResult<Result<(), AddressError>> {
        let mut request = abi::vioc_mac_addr_v7::new_zeroed();
        request.vma_addr = address;
        pass(&self.0, commands::VNA_IOC_SET_MAC_ADDR, &mut request)?;
        Ok(match request.vma_err {
            // Of filters there are none while all frames are received.
            abi::VMA_OK | abi::VMA_ERR_MCAST_RESTORE => Ok(()),
            abi::VMA_ERR_NOT_UNICAST => Err(AddressError::NotAStation),
            abi::VMA_ERR_INSTALL if request.vma_present != 0 => Err(AddressError::Install),
            abi::VMA_ERR_INSTALL => Err(AddressError::Lost),
            other => Err(AddressError::Other(other)),
        })
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
