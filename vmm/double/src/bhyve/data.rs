//! vmm-data: the state of what the kernel emulates, class by class (reference section 2.13).

use std::mem::size_of;
use std::time::Duration;

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_lapic_state};
use zerocopy::{FromBytes, FromZeros, IntoBytes};
use zvmm::hypervisor::bhyve::abi::*;

use super::clock::wall_clock;
use super::rules;
use super::user::{array_in, array_out, copy_in, copy_out, get, put};
use super::vcpu::Core;
use super::vm::{Vm, lock};
use crate::node::Call;

/// Classes: number, version, whether of a vCPU, bytes, bytes of an item, and whether it is the state of a device.
const CLASSES: [(u16, u16, bool, usize, usize, bool); 10] = [
    (VDC_VERSION, 1, false, 0, size_of::<vdi_version_entry_v1>(), false),
    (VDC_MSR, 1, true, 0, size_of::<vdi_field_entry_v1>(), false),
    (VDC_LAPIC, 1, true, size_of::<vdi_lapic_v1>(), 0, true),
    (VDC_IOAPIC, 1, false, size_of::<vdi_ioapic_v1>(), 0, true),
    (VDC_ATPIT, 1, false, size_of::<vdi_atpit_v1>(), 0, true),
    (VDC_ATPIC, 1, false, size_of::<vdi_atpic_v1>(), 0, true),
    (VDC_HPET, 1, false, size_of::<vdi_hpet_v1>(), 0, true),
    (VDC_PM_TIMER, 1, false, size_of::<vdi_pm_timer_v1>(), 0, true),
    (VDC_RTC, 2, false, size_of::<vdi_rtc_v2>(), 0, true),
    (VDC_VMM_TIME, 1, false, size_of::<vdi_time_info_v1>(), 0, true),
];

/// The time stamp counter's MSR.
const TSC: u32 = 0x10;

/// MSRs of the class: EFER, STAR and its like, SYSENTER, PAT, TSC, MTRRs.
const MSRS: [u32; 46] = {
    let mut msrs = [
        0xc000_0080,
        0xc000_0102,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0x174,
        0x175,
        0x176,
        0x277,
        0x10,
        0xfe,
        0x2ff,
        0x250,
        0x258,
        0x259,
        0x268,
        0x269,
        0x26a,
        0x26b,
        0x26c,
        0x26d,
        0x26e,
        0x26f,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut at = 0;
    while at < 20 {
        msrs[24 + at] = 0x200 + at as u32;
        at += 1;
    }
    msrs[44] = 0xc000_0100;
    msrs[45] = 0xc000_0101;
    msrs
};

/// Registers of the local APIC: offset in its page, offset in `vdi_lapic_v1`.
fn lapic_registers() -> Vec<(usize, usize)> {
    let mut pairs = vec![(0x20, 0), (0x30, 4), (0x80, 8), (0x90, 12), (0xd0, 16), (0xe0, 20), (0xf0, 24)];
    for word in 0..8 {
        pairs.extend([(0x100, 28), (0x180, 60), (0x200, 92)].map(|(from, to)| (from + 16 * word, to + 4 * word)));
    }
    pairs.extend([(0x280, 124), (0x2f0, 128), (0x300, 136), (0x310, 140)]);
    pairs.extend((0..6).map(|lvt| (0x320 + 16 * lvt, 144 + 4 * lvt)));
    pairs.extend([(0x380, 168), (0x3e0, 172)]);
    pairs
}

fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a good clock and a place for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

impl Vm {
    /// VM_DATA_READ and VM_DATA_WRITE.
    pub fn data(&self, call: &Call<'_>, request: i32, bytes: &mut [u8]) -> SysResult<i32> {
        let mut arg: vm_data_xfer = get(bytes);
        let write = request == VM_DATA_WRITE;
        let what = format!("class {} version {} of {}", arg.vdx_class, arg.vdx_version, arg.vdx_vcpuid);
        if arg.vdx_len as usize > VM_DATA_XFER_LIMIT {
            return Err(call.refuse(&rules::DATA_LENGTH, Errno::EFBIG, what));
        }
        let unknown = |what: String| call.refuse(&rules::DATA_CLASS, Errno::EINVAL, what);
        let of_vcpu = arg.vdx_vcpuid != -1;
        if arg.vdx_class == VDC_VMM_ARCH && arg.vdx_version == 1 {
            let core = if of_vcpu { Some(self.slot(call, request, arg.vdx_vcpuid)?.hold()) } else { None };
            let known: &[u32] = if of_vcpu {
                &[VAI_PEND_NMI, VAI_PEND_EXTINT, VAI_PEND_EXCP, VAI_PEND_INTINFO]
            } else {
                &[VAI_VM_IS_PAUSED]
            };
            drop(core);
            let value = |ident: u32| Ok(u64::from(ident == VAI_VM_IS_PAUSED && self.is_paused()));
            return self.fields(call, bytes, &mut arg, write, known, value, |_, _| Ok(()));
        }
        let class = CLASSES.iter().find(|class| class.0 == arg.vdx_class && class.1 == arg.vdx_version);
        let Some(&(class, _, per_vcpu, size, _, device)) = class else { return Err(unknown(what)) };
        if per_vcpu != of_vcpu {
            return Err(unknown(what));
        }
        // What the time is can be asked of a VM that runs.
        if device && !self.is_paused() && (write || class != VDC_VMM_TIME) {
            call.note(&rules::DATA_PAUSED, what.clone());
        }
        if class == VDC_VERSION {
            if write {
                return Err(unknown(what));
            }
            let entries = CLASSES.map(|(class, version, _, size, item, _)| vdi_version_entry_v1 {
                vve_class: class,
                vve_version: version,
                vve_len_expect: size as u16,
                vve_len_per_item: item as u16,
            });
            return finish_read(call, bytes, &mut arg, entries.as_bytes());
        }
        let mut core = if of_vcpu { Some(self.slot(call, request, arg.vdx_vcpuid)?.hold()) } else { None };
        if let (VDC_MSR, Some(core)) = (class, &mut core) {
            let core = std::cell::RefCell::new(core);
            let read = |ident| Ok(core.borrow_mut().msr(ident)?.unwrap_or(0));
            let set = |ident, value| core.borrow_mut().set_msr(ident, value).map(drop);
            return self.fields(call, bytes, &mut arg, write, &MSRS, read, set);
        }
        let mut content = vec![0; size];
        if write {
            if (arg.vdx_len as usize) < size {
                arg.vdx_result_len = size as u32;
                put(bytes, &arg);
                return Err(call.refuse(&rules::DATA_CONTENT, Errno::ENOSPC, format!("{what}: {} bytes", arg.vdx_len)));
            }
            copy_in(call, arg.vdx_data, &mut content)?;
            self.restore(call, class, core.as_deref_mut(), &content)?;
            arg.vdx_result_len = size as u32;
            put(bytes, &arg);
            return Ok(0);
        }
        self.save(class, core.as_deref_mut(), &mut content)?;
        finish_read(call, bytes, &mut arg, &content)
    }

    /// A class of fields: all of them, those asked for, or those given.
    #[expect(clippy::too_many_arguments, reason = "what a class of fields is made of")]
    fn fields(
        &self,
        call: &Call<'_>,
        bytes: &mut [u8],
        arg: &mut vm_data_xfer,
        write: bool,
        known: &[u32],
        read: impl Fn(u32) -> SysResult<u64>,
        set: impl Fn(u32, u64) -> SysResult<()>,
    ) -> SysResult<i32> {
        let item = size_of::<vdi_field_entry_v1>();
        let count = arg.vdx_len as usize / item;
        if !write && arg.vdx_flags & VDX_FLAG_READ_COPYIN == 0 {
            let mut entries = Vec::new();
            for &ident in known {
                entries.push(vdi_field_entry_v1 { vfe_ident: ident, _pad: 0, vfe_value: read(ident)? });
            }
            return finish_read(call, bytes, arg, entries.as_bytes());
        }
        let mut entries: Vec<vdi_field_entry_v1> = array_in(call, arg.vdx_data, count)?;
        for entry in &mut entries {
            let ident = entry.vfe_ident;
            let read_only = ident == VAI_VM_IS_PAUSED || ident == 0xfe && read(ident)? != entry.vfe_value;
            if !known.contains(&ident) || write && read_only {
                return Err(call.refuse(&rules::DATA_CONTENT, Errno::EINVAL, format!("field {ident:#x}")));
            }
            if write {
                set(ident, entry.vfe_value)?;
            } else {
                entry.vfe_value = read(ident)?;
            }
        }
        if !write {
            array_out(call, &entries, arg.vdx_data)?;
        }
        arg.vdx_result_len = (count * item) as u32;
        put(bytes, arg);
        Ok(0)
    }

    fn chip(&self, chip_id: u32) -> SysResult<kvm_irqchip> {
        self.machine.chips()?;
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.machine.vm.get_irqchip(&mut chip).map_err(|_| Errno::EIO)?;
        Ok(chip)
    }

    fn save(&self, class: u16, core: Option<&mut Core>, content: &mut [u8]) -> SysResult<()> {
        match (class, core) {
            (VDC_LAPIC, Some(core)) => {
                let page = core.fd()?.get_lapic().map_err(|_| Errno::EIO)?;
                for (from, to) in lapic_registers() {
                    for byte in 0..4 {
                        content[to + byte] = page.regs[from + byte].cast_unsigned();
                    }
                }
                let base = core.sregs()?.apic_base;
                content[176..184].copy_from_slice(&base.to_ne_bytes());
            }
            (VDC_IOAPIC, _) => {
                let chip = self.chip(KVM_IRQCHIP_IOAPIC)?;
                // SAFETY: the chip id says that this is the union's member.
                let ioapic = unsafe { chip.chip.ioapic };
                let mut state = vdi_ioapic_v1::new_zeroed();
                state.vi_pin_reg = [1 << 16; 32];
                for (pin, entry) in state.vi_pin_reg.iter_mut().zip(ioapic.redirtbl) {
                    // SAFETY: any bits are an entry.
                    *pin = unsafe { entry.bits };
                }
                state.vi_pin_level = lock(&self.lines).ioapic_counts();
                (state.vi_id, state.vi_reg_sel) = (ioapic.id, ioapic.ioregsel);
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_ATPIC, _) => {
                let counts = lock(&self.lines).pic_counts();
                let mut state = vdi_atpic_v1::new_zeroed();
                for (at, id) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].into_iter().enumerate() {
                    // SAFETY: the chip id says that this is the union's member.
                    let pic = unsafe { self.chip(id)?.chip.pic };
                    let chip = &mut state.va_chip[at];
                    chip.vac_icw_state = pic.init_state;
                    (chip.vac_reg_irr, chip.vac_reg_isr, chip.vac_reg_imr) = (pic.irr, pic.isr, pic.imr);
                    (chip.vac_irq_base, chip.vac_lowprio, chip.vac_elc) = (pic.irq_base, pic.priority_add, pic.elcr);
                    chip.vac_level.copy_from_slice(&counts[at * 8..at * 8 + 8]);
                }
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_ATPIT, _) => {
                self.machine.chips()?;
                let pit = self.machine.vm.get_pit2().map_err(|_| Errno::EIO)?;
                let mut state = vdi_atpit_v1::new_zeroed();
                for (channel, from) in state.va_channel.iter_mut().zip(pit.channels) {
                    channel.vac_initial = from.count as u16;
                    (channel.vac_reg_ol, channel.vac_reg_status) = (from.latched_count, from.status);
                    (channel.vac_mode, channel.vac_time_target) = (from.mode, from.count_load_time);
                }
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_HPET, _) => {
                let mut state = vdi_hpet_v1::new_zeroed();
                (state.vh_config, state.vh_count_base) = lock(&self.hpet).state();
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_PM_TIMER, _) => {
                let mut state = vdi_pm_timer_v1::new_zeroed();
                state.vpt_ioport = lock(&self.pm_timer).port();
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_RTC, _) => {
                let rtc = lock(&self.rtc);
                let mut state = vdi_rtc_v2::new_zeroed();
                let time = rtc.time();
                state.vr_base_clock = time.tv_sec * 1_000_000_000 + time.tv_nsec;
                (state.vr_content, state.vr_addr) = rtc.content();
                content.copy_from_slice(state.as_bytes());
            }
            (VDC_VMM_TIME, _) => {
                let (hres_sec, hres_ns) = wall_clock();
                let now = monotonic();
                let state = vdi_time_info_v1 {
                    vt_guest_freq: u64::from(self.tsc_khz()) * 1000,
                    vt_guest_tsc: self.tsc(),
                    vt_boot_hrtime: (now - self.boot.elapsed()).as_nanos() as i64,
                    vt_hrtime: now.as_nanos() as i64,
                    vt_hres_sec: hres_sec,
                    vt_hres_ns: hres_ns,
                };
                content.copy_from_slice(state.as_bytes());
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn tsc_khz(&self) -> u32 {
        let Some(slot) = self.slots().first() else { return 0 };
        slot.hold().fd().ok().and_then(|fd| fd.get_tsc_khz().ok()).unwrap_or(0)
    }

    /// What the first vCPU's TSC reads.
    fn tsc(&self) -> u64 {
        self.slots().first().and_then(|slot| slot.hold().msr(TSC).ok().flatten()).unwrap_or(0)
    }

    /// The guest's TSC was so much when the host's monotonic clock showed so much.
    fn set_tsc(&self, tsc: u64, at_ns: i64) -> SysResult<()> {
        let since_ns = monotonic().as_nanos().saturating_sub(at_ns.max(0).unsigned_abs().into());
        let ticks = since_ns * u128::from(self.tsc_khz()) / 1_000_000;
        for slot in self.slots().iter().filter(|slot| slot.is_active()) {
            slot.hold().set_msr(TSC, tsc.wrapping_add(ticks as u64))?;
        }
        Ok(())
    }

    fn restore(&self, call: &Call<'_>, class: u16, core: Option<&mut Core>, content: &[u8]) -> SysResult<()> {
        match (class, core) {
            (VDC_LAPIC, Some(core)) => {
                let mut page = kvm_lapic_state::default();
                for (to, from) in lapic_registers() {
                    for byte in 0..4 {
                        page.regs[to + byte] = content[from + byte].cast_signed();
                    }
                }
                core.fd()?.set_lapic(&page).map_err(|_| bad(call, "local APIC"))?;
            }
            (VDC_IOAPIC, _) => {
                let state: vdi_ioapic_v1 = read(content);
                let mut chip = self.chip(KVM_IRQCHIP_IOAPIC)?;
                // SAFETY: the chip id says that this is the union's member.
                let ioapic = unsafe { &mut chip.chip.ioapic };
                for (entry, bits) in ioapic.redirtbl.iter_mut().zip(state.vi_pin_reg) {
                    entry.bits = bits;
                }
                (ioapic.id, ioapic.ioregsel) = (state.vi_id, state.vi_reg_sel);
                self.machine.vm.set_irqchip(&chip).map_err(|_| bad(call, "IOAPIC"))?;
            }
            (VDC_ATPIC, _) => {
                let state: vdi_atpic_v1 = read(content);
                for (from, id) in state.va_chip.iter().zip([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]) {
                    let mut chip = self.chip(id)?;
                    // SAFETY: the chip id says that this is the union's member.
                    let pic = unsafe { &mut chip.chip.pic };
                    (pic.irr, pic.isr, pic.imr) = (from.vac_reg_irr, from.vac_reg_isr, from.vac_reg_imr);
                    (pic.irq_base, pic.priority_add, pic.elcr) = (from.vac_irq_base, from.vac_lowprio, from.vac_elc);
                    pic.init_state = from.vac_icw_state;
                    self.machine.vm.set_irqchip(&chip).map_err(|_| bad(call, "PIC"))?;
                }
            }
            (VDC_HPET, _) => {
                let state: vdi_hpet_v1 = read(content);
                lock(&self.hpet).set_state(state.vh_config, state.vh_count_base);
            }
            (VDC_PM_TIMER, _) => lock(&self.pm_timer).set_port(read::<vdi_pm_timer_v1>(content).vpt_ioport),
            (VDC_RTC, _) => {
                let state: vdi_rtc_v2 = read(content);
                lock(&self.rtc).set_content(&state.vr_content, state.vr_addr, state.vr_base_clock);
            }
            (VDC_VMM_TIME, _) => {
                let state: vdi_time_info_v1 = read(content);
                let now = monotonic().as_nanos().cast_signed();
                if [state.vt_boot_hrtime, state.vt_hrtime].iter().any(|&time| i128::from(time) > now) {
                    let detail = format!("boot at {} ns, now {} ns", state.vt_boot_hrtime, state.vt_hrtime);
                    return Err(call.refuse(&rules::DATA_TIME, Errno::EINVAL, detail));
                }
                if state.vt_guest_freq == 0 {
                    return Err(bad(call, "a TSC that stands still"));
                }
                if state.vt_guest_freq != u64::from(self.tsc_khz()) * 1000 {
                    // Without hardware to scale it.
                    return Err(Errno::EPERM);
                }
                self.set_tsc(state.vt_guest_tsc, state.vt_hrtime)?;
            }
            // Timers of the timer chip go on as they are.
            (VDC_ATPIT, _) => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

fn read<T: FromBytes>(content: &[u8]) -> T {
    get(content)
}

fn bad(call: &Call<'_>, what: &str) -> Errno {
    call.refuse(&rules::DATA_CONTENT, Errno::EINVAL, what)
}

fn finish_read(call: &Call<'_>, bytes: &mut [u8], arg: &mut vm_data_xfer, content: &[u8]) -> SysResult<i32> {
    arg.vdx_result_len = content.len() as u32;
    put(bytes, arg);
    if (arg.vdx_len as usize) < content.len() {
        return Err(Errno::ENOSPC);
    }
    copy_out(call, content, arg.vdx_data)?;
    Ok(0)
}
