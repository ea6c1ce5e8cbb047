//! What a call of the kernel's interface said.

use devices_host::sys::Errno;

use crate::hypervisor::HypervisorError;

/// A call that failed, by its name in the kernel's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct CallError {
    /// The call.
    pub call: &'static str,
    /// What it said.
    pub errno: Errno,
}

impl From<CallError> for HypervisorError {
    fn from(error: CallError) -> Self {
        Self::Call { call: error.call, source: error.errno.to_io_error() }
    }
}

/// What a call of the kernel's interface gives.
pub type CallResult<T> = Result<T, CallError>;
