//! State of what the kernel emulates, and of the vCPUs, as one value.

use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::abi;
use super::error::CallResult;
use super::vmfd::{VmFd, WHOLE_VM};

/// Frequency of the guest's time-stamp counter in kHz, as the kernel has it.
///
/// # Errors
/// What the call says.
pub fn guest_tsc_khz(fd: &VmFd) -> CallResult<Option<u32>> {
    let bytes = fd.read_data(WHOLE_VM, abi::VDC_VMM_TIME, 1)?;
    let time = abi::vdi_time_info_v1::read_from_prefix(&bytes).ok();
    Ok(time.and_then(|(time, _)| u32::try_from(time.vt_guest_freq / 1000).ok()).filter(|&khz| khz > 0))
}

/// Everything the kernel knows about a VM but its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {}
