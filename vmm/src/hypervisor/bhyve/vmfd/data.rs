//! State of what the kernel emulates, and of a vCPU's floating-point unit.

use devices_host::sys::{Errno, IoctlArg};
use zerocopy::{FromZeros, IntoBytes};

use super::{VmFd, named, uninterrupted};
use crate::hypervisor::bhyve::abi;
use crate::hypervisor::bhyve::error::{CallError, CallResult};

/// The whole VM, where a call asks for a vCPU.
pub const WHOLE_VM: i32 = -1;

impl VmFd {
    /// Reads a class of state (`VDC_*`) in layout `version`.
    ///
    /// # Errors
    /// What the call says; EINVAL where the kernel knows no such class or layout.
    pub fn read_data(&self, vcpu: i32, class: u16, version: u16) -> CallResult<Vec<u8>> {
        // In words of 8 bytes, so that every layout is aligned.
        let mut words = vec![0u64; abi::VM_DATA_XFER_LIMIT / 8];
        let len = self.transfer("VM_DATA_READ", abi::VM_DATA_READ, vcpu, class, version, words.as_mut_bytes())?;
        let mut bytes = words.as_bytes().to_vec();
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Replaces a class of state.
    ///
    /// # Errors
    /// What the call says.
    pub fn write_data(&self, vcpu: i32, class: u16, version: u16, bytes: &[u8]) -> CallResult<()> {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        let copy = &mut words.as_mut_bytes()[..bytes.len()];
        copy.copy_from_slice(bytes);
        self.transfer("VM_DATA_WRITE", abi::VM_DATA_WRITE, vcpu, class, version, copy).map(drop)
    }

    fn transfer(
        &self,
        call: &'static str,
        request: i32,
        vcpu: i32,
        class: u16,
        version: u16,
        bytes: &mut [u8],
    ) -> CallResult<usize> {
        let mut transfer = abi::vm_data_xfer {
            vdx_vcpuid: vcpu,
            vdx_class: class,
            vdx_version: version,
            vdx_flags: 0,
            vdx_len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            vdx_result_len: 0,
            _pad0: [0; 4],
            vdx_data: bytes.as_mut_ptr().expose_provenance(),
        };
        // SAFETY: both requests take this structure; the buffer has the length it says and outlives the call.
        uninterrupted(|| unsafe { self.handle().ioctl(request, IoctlArg::Buffer(transfer.as_mut_bytes())) })
            .map_err(named(call))?;
        Ok((transfer.vdx_result_len as usize).min(bytes.len()))
    }

    /// Bytes of a vCPU's XSAVE area.
    ///
    /// # Errors
    /// What the call says.
    pub fn fpu_bytes(&self) -> CallResult<usize> {
        let mut components: Vec<abi::vm_fpu_desc_entry> =
            vec![abi::vm_fpu_desc_entry::new_zeroed(); abi::VM_FPU_DESC_MAX_ENTRIES];
        let mut description = abi::vm_fpu_desc::new_zeroed();
        description.vfd_entry_data = components.as_mut_ptr().expose_provenance();
        description.vfd_num_entries = u32::try_from(components.len()).unwrap_or(u32::MAX);
        // SAFETY: the request takes this structure; the array has as many entries as it says and outlives the call.
        uninterrupted(|| unsafe {
            self.handle().ioctl(abi::VM_DESC_FPU_AREA, IoctlArg::Buffer(description.as_mut_bytes()))
        })
        .map_err(named("VM_DESC_FPU_AREA"))?;
        match description.vfd_req_size {
            bytes @ 1..=abi::VM_FPU_AREA_MAX => Ok(bytes),
            _ => Err(CallError { call: "VM_DESC_FPU_AREA", errno: Errno::ERANGE }),
        }
    }

    /// A vCPU's XSAVE area, in standard format.
    ///
    /// # Errors
    /// What the call says.
    pub fn fpu(&self, vcpu: i32, len_bytes: usize) -> CallResult<Vec<u8>> {
        let mut words = vec![0u64; len_bytes.div_ceil(8)];
        let bytes = &mut words.as_mut_bytes()[..len_bytes];
        self.fpu_call("VM_GET_FPU", abi::VM_GET_FPU, vcpu, bytes)?;
        Ok(bytes.to_vec())
    }

    /// Replaces a vCPU's XSAVE area. XCR0 has to be set before.
    ///
    /// # Errors
    /// What the call says.
    pub fn set_fpu(&self, vcpu: i32, area: &[u8]) -> CallResult<()> {
        let mut words = vec![0u64; area.len().div_ceil(8)];
        let bytes = &mut words.as_mut_bytes()[..area.len()];
        bytes.copy_from_slice(area);
        self.fpu_call("VM_SET_FPU", abi::VM_SET_FPU, vcpu, bytes)
    }

    fn fpu_call(&self, call: &'static str, request: i32, vcpu: i32, bytes: &mut [u8]) -> CallResult<()> {
        let mut state = abi::vm_fpu_state::new_zeroed();
        (state.vcpuid, state.buf, state.len) = (vcpu, bytes.as_mut_ptr().expose_provenance(), bytes.len());
        // SAFETY: both requests take this structure; the buffer has the length it says and outlives the call.
        uninterrupted(|| unsafe { self.handle().ioctl(request, IoctlArg::Buffer(state.as_mut_bytes())) })
            .map(drop)
            .map_err(named(call))
    }
}
