//! `vmm/datarw_*` and their like: the state of a VM and of its vCPUs, read and written.

use devices_host::sys::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};
use zvmm::hypervisor::Vm;
use zvmm::hypervisor::bhyve::VmFd;
use zvmm::hypervisor::bhyve::abi::*;

use crate::machine::*;

const WHOLE_VM: i32 = -1;
/// Classes of the whole VM whose state can be written as it was read.
const VM_CLASSES: [(u16, u16); 7] = [
    (VDC_IOAPIC, 1),
    (VDC_ATPIT, 1),
    (VDC_ATPIC, 1),
    (VDC_HPET, 1),
    (VDC_PM_TIMER, 1),
    (VDC_RTC, 2),
    (VDC_VMM_TIME, 1),
];

/// VM_DATA_READ or VM_DATA_WRITE of a class in its first layout, and the length that it tells.
fn transfer(
    fd: &VmFd,
    request: i32,
    vcpu: i32,
    class: u16,
    flags: u16,
    content: &mut [u8],
) -> (Result<i32, Errno>, usize) {
    let mut arg = vm_data_xfer {
        vdx_vcpuid: vcpu,
        vdx_class: class,
        vdx_version: 1,
        vdx_flags: flags.into(),
        vdx_len: content.len() as u32,
        vdx_result_len: 0,
        _pad0: [0; 4],
        vdx_data: content.as_mut_ptr().expose_provenance(),
    };
    let result = raw(fd, request, &mut arg);
    (result, arg.vdx_result_len as usize)
}

fn paused() -> Guest {
    let guest = Guest::with_code(&[]);
    guest.vm.pause().unwrap();
    guest
}

fn fields(bytes: &[u8]) -> Vec<(u32, u64)> {
    let size = size_of::<vdi_field_entry_v1>();
    bytes
        .chunks_exact(size)
        .map(|bytes| vdi_field_entry_v1::read_from_bytes(bytes).unwrap())
        .map(|field| (field.vfe_ident, field.vfe_value))
        .collect()
}

fn list(idents: &[u32]) -> Vec<vdi_field_entry_v1> {
    idents.iter().map(|&vfe_ident| vdi_field_entry_v1 { vfe_ident, _pad: 0, vfe_value: u64::MAX }).collect()
}

#[test]
fn a_class_of_state_tells_its_length_whatever_room_there_is_for_it() {
    const LEN: usize = size_of::<vdi_atpic_v1>();
    let guest = paused();
    let fd = guest.fd();
    let mut content = [0; LEN + 4];
    for len in [LEN, LEN + 4] {
        for request in [VM_DATA_READ, VM_DATA_WRITE] {
            assert_eq!(transfer(fd, request, WHOLE_VM, VDC_ATPIC, 0, &mut content[..len]), (Ok(0), LEN));
        }
    }
    for request in [VM_DATA_READ, VM_DATA_WRITE] {
        let told = transfer(fd, request, WHOLE_VM, VDC_ATPIC, 0, &mut content[..LEN - 4]);
        assert_eq!(told, (Err(Errno::ENOSPC), LEN));
    }
    guest.finish(&["bhyve-data-content"]);
}

#[test]
fn every_class_of_state_can_be_written_as_it_was_read() {
    let guest = paused();
    let fd = guest.fd();
    for (class, version) in VM_CLASSES {
        let content = fd.read_data(WHOLE_VM, class, version).unwrap();
        fd.write_data(WHOLE_VM, class, version, &content).unwrap();
    }
    for class in [VDC_MSR, VDC_LAPIC] {
        let content = fd.read_data(0, class, 1).unwrap();
        fd.write_data(0, class, 1, &content).unwrap();
    }
    fd.read_data(WHOLE_VM, VDC_VERSION, 1).unwrap();
    assert_eq!(fields(&fd.read_data(WHOLE_VM, VDC_VMM_ARCH, 1).unwrap()), [(VAI_VM_IS_PAUSED, 1)]);
    fd.read_data(0, VDC_VMM_ARCH, 1).unwrap();
    guest.finish(&[]);
}

#[test]
fn classes_layouts_and_vcpus_that_do_not_exist_have_no_state() {
    let guest = paused();
    let fd = guest.fd();
    assert!(fd.read_data(WHOLE_VM, 10_000, 1).is_err());
    assert!(fd.read_data(WHOLE_VM, VDC_VERSION, 10_000).is_err());
    let content = fd.read_data(0, VDC_LAPIC, 1).unwrap();
    for vcpu in [-1, -5, 1000] {
        assert!(fd.read_data(vcpu, VDC_LAPIC, 1).is_err(), "vCPU {vcpu}");
        assert!(fd.write_data(vcpu, VDC_LAPIC, 1, &content).is_err(), "vCPU {vcpu}");
    }
    fd.write_data(0, VDC_LAPIC, 1, &content).unwrap();
    for vcpu in [-5, 1000] {
        assert!(fd.read_data(vcpu, VDC_VERSION, 1).is_err(), "vCPU {vcpu}");
    }
    guest.finish(&["bhyve-data-class", "bhyve-vcpu-id"]);
}

#[test]
fn registers_of_a_vcpu_are_had_all_at_once_or_by_their_names() {
    const EFER: u32 = 0xc000_0080;
    const CSTAR: u32 = 0xc000_0083;
    const KERNEL_GS: u32 = 0xc000_0102;
    const TSC: u32 = 0x10;
    const SYSENTER_EIP: u32 = 0x176;
    const PAT: u32 = 0x277;
    let guest = paused();
    let fd = guest.fd();
    let (result, len) = transfer(fd, VM_DATA_READ, 0, VDC_MSR, 0, &mut []);
    assert_eq!(result, Err(Errno::ENOSPC));
    let all = fd.read_data(0, VDC_MSR, 1).unwrap();
    assert_eq!(all.len(), len);
    for wanted in [EFER, TSC, CSTAR, KERNEL_GS] {
        assert!(fields(&all).iter().any(|field| field.0 == wanted), "{wanted:#x}");
    }
    fd.write_data(0, VDC_MSR, 1, &all).unwrap();

    let mut some = list(&[TSC, SYSENTER_EIP, PAT]);
    let len = some.as_bytes().len();
    let flags = VDX_FLAG_READ_COPYIN as u16;
    assert_eq!(transfer(fd, VM_DATA_READ, 0, VDC_MSR, flags, some.as_mut_bytes()), (Ok(0), len));
    // What is there after a reset (Intel SDM vol. 3, table 11-1).
    assert_eq!((some[1].vfe_value, some[2].vfe_value), (0, 0x0007_0406_0007_0406));
    guest.finish(&[]);
}

#[test]
fn a_fresh_vcpu_has_no_event_pending() {
    let guest = paused();
    let mut pending = list(&[VAI_PEND_NMI, VAI_PEND_EXTINT, VAI_PEND_EXCP, VAI_PEND_INTINFO]);
    let len = pending.as_bytes().len();
    let flags = VDX_FLAG_READ_COPYIN as u16;
    let told = transfer(guest.fd(), VM_DATA_READ, 0, VDC_VMM_ARCH, flags, pending.as_mut_bytes());
    assert_eq!(told, (Ok(0), len));
    assert!(pending.iter().all(|field| field.vfe_value == 0), "{pending:x?}");
    guest.finish(&[]);
}

#[test]
fn the_fpus_state_is_taken_as_it_was_given_and_a_bad_control_word_is_not() {
    const XMM0: usize = 160;
    const MXCSR: usize = 24;
    let guest = paused();
    let fd = guest.fd();
    let mut parts = [vm_fpu_desc_entry::new_zeroed(); 64];
    let mut desc = vm_fpu_desc::new_zeroed();
    desc.vfd_num_entries = parts.len() as u32;
    desc.vfd_entry_data = parts.as_mut_ptr().expose_provenance();
    raw(fd, VM_DESC_FPU_AREA, &mut desc).unwrap();
    let len = fd.fpu_bytes().unwrap();
    assert_eq!(len, desc.vfd_req_size);
    assert!(len >= 576, "FXSAVE's area and XSAVE's header");
    for part in &parts[..desc.vfd_num_entries as usize] {
        assert!((part.vfde_off + part.vfde_size) as usize <= len, "{part:?}");
        if part.vfde_feature <= 2 {
            assert_eq!((part.vfde_off, part.vfde_size), (0, 512));
        }
    }
    let mut area = fd.fpu(0, len).unwrap();
    area[XMM0..XMM0 + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    area[XMM0 + 16..XMM0 + 24].copy_from_slice(&1_u64.to_le_bytes());
    area[512] |= 3;
    fd.set_fpu(0, &area).unwrap();
    let again = fd.fpu(0, len).unwrap();
    assert_eq!(again[XMM0..XMM0 + 24], area[XMM0..XMM0 + 24]);
    area[MXCSR..MXCSR + 4].fill(0xff);
    assert_eq!(fd.set_fpu(0, &area).unwrap_err().errno, Errno::EINVAL);
    guest.finish(&[]);
}

#[test]
fn a_local_apics_state_is_taken_back_with_its_timer() {
    let guest = paused();
    let fd = guest.fd();
    let mut content = fd.read_data(0, VDC_LAPIC, 1).unwrap();
    fd.write_data(0, VDC_LAPIC, 1, &content).unwrap();
    assert_eq!(fd.read_data(0, VDC_LAPIC, 1).unwrap(), content);
    let mut state = vdi_lapic_v1::read_from_bytes(&content).unwrap();
    state.vl_lapic.vlp_icr_timer = 0x1_0000;
    content.copy_from_slice(state.as_bytes());
    fd.write_data(0, VDC_LAPIC, 1, &content).unwrap();
    guest.vm.resume().unwrap();
    // What a guest would read.
    let mut initial = vm_readwrite_kernemu_device::new_zeroed();
    (initial.gpa, initial.access_width_bitfield) = (0xfee0_0380, 2);
    raw(guest.fd(), VM_GET_KERNEMU_DEV, &mut initial).unwrap();
    assert_eq!(initial.value, 0x1_0000);
    guest.finish(&[]);
}

#[test]
fn a_vms_time_is_taken_back_and_time_that_cannot_be_is_refused() {
    const FAR: i64 = 500_000_000_000;
    let guest = paused();
    let fd = guest.fd();
    let read = || vdi_time_info_v1::read_from_bytes(&fd.read_data(WHOLE_VM, VDC_VMM_TIME, 1).unwrap()).unwrap();
    let write = |time: vdi_time_info_v1| fd.write_data(WHOLE_VM, VDC_VMM_TIME, 1, time.as_bytes());
    let time = read();
    for request in [VM_DATA_READ, VM_DATA_WRITE] {
        let told = transfer(fd, request, WHOLE_VM, VDC_VMM_TIME, 0, &mut []);
        assert_eq!(told, (Err(Errno::ENOSPC), size_of::<vdi_time_info_v1>()));
    }
    write(time).unwrap();
    let refused = |time| write(time).unwrap_err().errno;
    assert_eq!(refused(vdi_time_info_v1 { vt_hrtime: time.vt_hrtime + FAR, ..time }), Errno::EINVAL);
    assert_eq!(refused(vdi_time_info_v1 { vt_boot_hrtime: time.vt_hrtime + FAR, ..time }), Errno::EINVAL);
    assert_eq!(refused(vdi_time_info_v1 { vt_guest_freq: 0, ..time }), Errno::EINVAL);
    // The double's processor does not scale, as Intel's do not under bhyve.
    assert_eq!(refused(vdi_time_info_v1 { vt_guest_freq: time.vt_guest_freq + 1, ..time }), Errno::EPERM);
    for boot in [-100_000_000_000, 0, time.vt_boot_hrtime + 1] {
        write(vdi_time_info_v1 { vt_boot_hrtime: boot, ..time }).unwrap();
    }
    write(time).unwrap();
    let now = read();
    assert!(now.vt_hrtime >= time.vt_hrtime && now.vt_guest_tsc >= time.vt_guest_tsc, "{time:?}, {now:?}");
    assert!((now.vt_hres_sec, now.vt_hres_ns) >= (time.vt_hres_sec, time.vt_hres_ns));
    assert_eq!(now.vt_guest_freq, time.vt_guest_freq);
    guest.finish(&["bhyve-data-content", "bhyve-data-time"]);
}
