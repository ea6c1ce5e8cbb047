//! The state of the FPU and its like, in XSAVE's standard format (reference section 2.7).

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::rules;
use super::user::{array_out, copy_in, copy_out, get, put};
use super::vcpu::Core;
use super::vm::Vm;
use crate::node::Call;

impl Vm {
    /// The state components of XSAVE's standard format: feature bit, size, offset.
    fn fpu_parts(&self) -> Vec<vm_fpu_desc_entry> {
        // x87 and SSE share FXSAVE's 512 bytes, and each is told as the whole of them.
        let legacy = |vfde_feature| vm_fpu_desc_entry { vfde_feature, vfde_size: 512, vfde_off: 0 };
        let mut parts = vec![legacy(1), legacy(2)];
        let area = |index| move |entry: &&kvm_bindings::kvm_cpuid_entry2| entry.function == 0xd && entry.index == index;
        for index in 2..63 {
            // In the area that the old interface of KVM reaches.
            if let Some(entry) = self.machine.supported.iter().find(area(index))
                && entry.eax > 0
                && entry.ecx & 1 == 0
                && entry.ebx + entry.eax <= 4096
            {
                parts.push(vm_fpu_desc_entry { vfde_feature: 1 << index, vfde_size: entry.eax, vfde_off: entry.ebx });
            }
        }
        parts
    }

    fn fpu_bytes(&self) -> usize {
        let end = |part: &vm_fpu_desc_entry| (part.vfde_off + part.vfde_size) as usize;
        self.fpu_parts().iter().map(end).max().unwrap_or(0).max(576)
    }

    /// VM_DESC_FPU_AREA.
    pub fn describe_fpu(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut arg: vm_fpu_desc = get(bytes);
        let parts = self.fpu_parts();
        let room = arg.vfd_num_entries as usize;
        if room > VM_FPU_DESC_MAX_ENTRIES {
            return Err(call.refuse(&rules::FPU_LENGTH, Errno::EINVAL, format!("{room} entries")));
        }
        let told = &parts[..parts.len().min(room)];
        array_out(call, told, arg.vfd_entry_data)?;
        arg.vfd_req_size = self.fpu_bytes();
        arg.vfd_num_entries = told.len() as u32;
        put(bytes, &arg);
        Ok(0)
    }

    /// VM_GET_FPU and VM_SET_FPU.
    pub fn fpu(&self, call: &Call<'_>, request: i32, core: &mut Core, arg: &vm_fpu_state) -> SysResult<i32> {
        let wanted = self.fpu_bytes();
        if arg.len == 0 || arg.len > VM_FPU_AREA_MAX || arg.len < wanted {
            let errno = if arg.len < wanted && arg.len > 0 { Errno::ENOSPC } else { Errno::EINVAL };
            return Err(call.refuse(&rules::FPU_LENGTH, errno, format!("{} bytes for {wanted}", arg.len)));
        }
        let mut area = core.fd()?.get_xsave().map_err(|_| Errno::EIO)?;
        let mut content: Vec<u8> = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        if request == VM_GET_FPU {
            copy_out(call, &content[..wanted], arg.buf)?;
            return Ok(0);
        }
        copy_in(call, arg.buf, &mut content[..wanted])?;
        for (word, bytes) in area.region.iter_mut().zip(content.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // SAFETY: the area has the size of the state that KVM supports without opt-in.
        unsafe { core.fd()?.set_xsave(&area) }.map_err(|_| Errno::EINVAL)?;
        Ok(0)
    }
}
