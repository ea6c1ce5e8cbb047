//! TAP devices do not exist in a zone.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use crate::tap::{Interface, Offloads, TapError};

/// `MAXLINKNAMELEN` counts the NUL.
pub(crate) const LONGEST_NAME_BYTES: usize = 31;

#[derive(Debug)]
pub(crate) struct Device(Infallible);

pub(crate) fn check_unused(_name: &str) -> Result<(), TapError> {
    Err(TapError::Unsupported)
}

impl Device {
    pub(crate) fn open(_name: &str, _several: bool) -> Result<Self, TapError> {
        Err(TapError::Unsupported)
    }

    pub(crate) fn open_macvtap(_name: &str, _several: bool) -> Result<Self, TapError> {
        Err(TapError::Unsupported)
    }

    pub(crate) fn inherit(_fd: RawFd, _several: bool) -> Result<(Self, String), TapError> {
        Err(TapError::Unsupported)
    }

    pub(crate) fn set_attached(&self, _attached: bool) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self.0 {}
    }

    pub(crate) fn set_header_bytes(&self, _len_bytes: usize) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn mtu(&self) -> io::Result<u32> {
        match self.0 {}
    }

    pub(crate) fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        match self.0 {}
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }
}

/// Without TAP devices there is nothing to hear of.
#[derive(Debug)]
pub(crate) struct Events(Infallible);

impl Events {
    pub(crate) fn listen() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn clear(&self) {
        match self.0 {}
    }

    pub(crate) fn interface_of(&self, _device: &Device) -> io::Result<Interface> {
        match self.0 {}
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        match self.0 {}
    }
}
