//! Model-specific registers, as far as the driver knows them.

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::illumos_kvm::abi::{KVM_SET_MSRS, kvm_msr_entry, kvm_msrs};
use zvmm::hypervisor::illumos_kvm::plain::{bytes_of, from_bytes};

use super::commands::Command;
use super::rules;
use super::vcpu::KvmVcpu;
use crate::node::Call;

/// Whether the driver lets a register be set or read from outside.
fn known(index: u32) -> bool {
    matches!(index,
        0x10..=0x12 | 0x1b | 0x8b | 0x79 | 0x174..=0x176 | 0x198 | 0x1a0 | 0x1d9 | 0x277 | 0x2ff
        | 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0x400..=0x47f
        | 0x4000_0000 | 0x4000_0001 | 0x4000_0073 | 0x4b56_4d00 | 0x4b56_4d01
        | 0xc000_0080..=0xc000_0084 | 0xc000_0100..=0xc000_0103 | 0xc001_0117)
}

/// Registers of Hyper-V: the driver always has them, the machine's KVM only for guests that are told so.
fn hyper_v(index: u32) -> bool {
    (0x4000_0000..0x4000_0100).contains(&index)
}

/// KVM_SET_MSRS and KVM_GET_MSRS: one after another, until one that is not known.
pub fn exchange(call: &Call<'_>, vcpu: &KvmVcpu, command: &Command, buffer: &mut [u8]) -> SysResult<i32> {
    let msrs: kvm_msrs = from_bytes(buffer).ok_or(Errno::EFAULT)?;
    let count = msrs.nmsrs as usize;
    if count > msrs.entries.len() {
        // The driver refuses from 256 on, and goes beyond its buffer before that.
        return Err(call.refuse(&rules::MSR_COUNT, Errno::E2BIG, format!("{}: {count}", command.name)));
    }
    for (done, entry) in msrs.entries[..count].iter().enumerate() {
        if !known(entry.index) {
            return Ok(done as i32);
        }
        let mut one = [0_u8; 8 + size_of::<kvm_msr_entry>()];
        one[0] = 1;
        one[8..].copy_from_slice(bytes_of(entry));
        // SAFETY: the header and one entry, as Linux has them, too.
        let result = unsafe { vcpu.fd.bytes(command.linux, &mut one) }?;
        if result != 1 && !hyper_v(entry.index) {
            return Ok(done as i32);
        }
        if command.request != KVM_SET_MSRS {
            let at = 8 + done * size_of::<kvm_msr_entry>();
            buffer[at..at + size_of::<kvm_msr_entry>()].copy_from_slice(&one[8..]);
        }
    }
    Ok(count as i32)
}
