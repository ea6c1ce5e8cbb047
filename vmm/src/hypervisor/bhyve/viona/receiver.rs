//! Which frames an instance receives: the level of its promiscuity, the groups it lets pass, and its own address.
//!
//! A kernel that tells groups apart does so at the level that lets no others pass. Between two states there is always one in
//! which too much is received, and never one in which too little is.

use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::virtio::net::kernel::{Groups, Reception};

use crate::hypervisor::bhyve::abi;
use crate::hypervisor::bhyve::error::{CallError, CallResult};
use crate::hypervisor::bhyve::vmfd::{AddressError, FilterError, VionaFd};

/// `VIRTIO_NET_F_CTRL_MAC_ADDR`.
const CTRL_MAC_ADDR: u64 = 1 << 23;

/// Why it receives other frames than it should. It receives more of them, not fewer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum ReceiverError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The kernel does not filter groups so.
    #[error("VNA_IOC_SET_MAC_FILTERS: {0}")]
    Filters(#[from] FilterError),
    /// The kernel does not give the link that address.
    #[error("VNA_IOC_SET_MAC_ADDR: {0}")]
    Address(#[from] AddressError),
}

impl ReceiverError {
    /// The call that it comes from.
    pub fn call(&self) -> &'static str {
        match self {
            Self::Call(error) => error.call,
            Self::Filters(_) => "VNA_IOC_SET_MAC_FILTERS",
            Self::Address(_) => "VNA_IOC_SET_MAC_ADDR",
        }
    }
}

/// What an instance receives.
pub struct Receiver {
    /// The kernel tells groups apart.
    has_filters: bool,
    /// It can give the link another address.
    has_addresses: bool,
    /// The link's own address.
    first: [u8; 6],
    state: Mutex<State>,
}

struct State {
    /// A `VIONA_PROMISC_*`.
    level: i32,
    /// The kernel has groups.
    filtered: bool,
    address: [u8; 6],
}

impl Receiver {
    /// That of an instance which was just attached, to the link of this address.
    ///
    /// # Errors
    /// A call that fails otherwise than one that the kernel lacks.
    pub fn new(fd: &VionaFd, first: [u8; 6]) -> CallResult<Self> {
        let has_filters = has(fd.filters())?;
        let has_addresses = has(fd.address())?;
        let state = Mutex::new(State { level: abi::VIONA_PROMISC_MULTI, filtered: false, address: first });
        Ok(Self { has_filters, has_addresses, first, state })
    }

    /// Features of virtio-net that come with it.
    pub fn features(&self) -> u64 {
        if self.has_addresses { CTRL_MAC_ADDR } else { 0 }
    }

    /// Receives these frames, or more where the kernel cannot tell them apart.
    ///
    /// # Errors
    /// Why it is more.
    pub fn follow(&self, fd: &VionaFd, wanted: &Reception) -> Result<(), ReceiverError> {
        let mut state = self.state();
        match wanted {
            Reception { others: true, .. } => state.widen(fd, abi::VIONA_PROMISC_ALL),
            Reception { groups: Groups::Only(groups), .. } if self.has_filters => state.narrow(fd, groups),
            Reception { .. } => state.widen(fd, abi::VIONA_PROMISC_MULTI),
        }
    }

    /// Gives the link another address of its own, while all frames are received.
    ///
    /// # Errors
    /// Why it does not have it.
    pub fn set_address(&self, fd: &VionaFd, address: [u8; 6]) -> Result<(), ReceiverError> {
        let mut state = self.state();
        if state.address == address {
            return Ok(());
        }
        let done = fd.set_address(address)?;
        match done {
            Ok(()) => state.address = address,
            Err(AddressError::Lost) => state.address = [0; 6],
            Err(_) => {}
        }
        Ok(done?)
    }

    /// Gives the link the address back that it came with.
    ///
    /// # Errors
    /// Why it does not have it.
    pub fn give_address_back(&self, fd: &VionaFd) -> Result<(), ReceiverError> {
        self.set_address(fd, self.first)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the kernel has a call.
fn has<T>(answer: CallResult<T>) -> CallResult<bool> {
    if VionaFd::lacks(&answer) { Ok(false) } else { answer.map(|_| true) }
}

impl State {
    /// Lets pass what is for these groups, and then no other.
    fn narrow(&mut self, fd: &VionaFd, groups: &[[u8; 6]]) -> Result<(), ReceiverError> {
        let error = match fd.set_filters(groups) {
            Ok(Ok(())) => {
                self.filtered = true;
                return Ok(self.set_level(fd, abi::VIONA_PROMISC_NONE)?);
            }
            Ok(Err(error)) => {
                // Some of them may be there.
                self.filtered = true;
                ReceiverError::from(error)
            }
            Err(error) => ReceiverError::from(error),
        };
        let level = match error {
            ReceiverError::Filters(FilterError::NoAddress) => abi::VIONA_PROMISC_ALL,
            _ => abi::VIONA_PROMISC_MULTI,
        };
        self.widen(fd, level)?;
        Err(error)
    }

    /// Lets pass what this level does, and then has no groups any more.
    fn widen(&mut self, fd: &VionaFd, level: i32) -> Result<(), ReceiverError> {
        self.set_level(fd, level)?;
        if self.filtered {
            fd.set_filters(&[])??;
            self.filtered = false;
        }
        Ok(())
    }

    fn set_level(&mut self, fd: &VionaFd, level: i32) -> CallResult<()> {
        if self.level != level {
            fd.set_promisc(level)?;
            self.level = level;
        }
        Ok(())
    }
}
