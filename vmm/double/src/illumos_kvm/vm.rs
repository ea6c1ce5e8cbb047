//! A VM: what it was told, and the machine's VM that does the work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::illumos_kvm::abi::{
    KVM_IOAPIC_NUM_PINS, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_IRQ_ROUTES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMORY_SLOTS, kvm_irq_level, kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use zvmm::hypervisor::illumos_kvm::plain::from_bytes;

use super::linux::{Fd, resident_pages};
use super::rules;
use crate::node::Call;
use crate::rules::Ledger;

const PAGE_BYTES: u64 = 4096;
const APIC_ACCESS_PAGE: u64 = 0xfee0_0000;

/// One VM.
pub struct KvmVm {
    pub fd: Fd,
    pub number: u64,
    /// Descriptors that have it.
    pub descriptors: AtomicUsize,
    pub irqchip: AtomicBool,
    pub pit: AtomicBool,
    pub state: Mutex<State>,
}

/// What changes while it is set up.
#[derive(Default)]
pub struct State {
    pub vcpus: usize,
    pub tss: Option<u64>,
    pub identity: Option<u64>,
    slots: BTreeMap<u32, Slot>,
    /// GSIs with routes, and whether to a message. `None`: the driver's default table.
    routes: Option<BTreeMap<u32, bool>>,
}

#[derive(Clone, Copy)]
struct Slot {
    gpa: u64,
    len_bytes: u64,
    address: u64,
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

impl KvmVm {
    pub fn new(fd: Fd, number: u64) -> Self {
        Self {
            fd,
            number,
            descriptors: AtomicUsize::new(1),
            irqchip: AtomicBool::new(false),
            pit: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// KVM_SET_USER_MEMORY_REGION, before the machine's KVM hears of it.
    pub fn check_region(&self, call: &Call<'_>, buffer: &[u8]) -> SysResult<()> {
        let Some(region) = from_bytes::<kvm_userspace_memory_region>(buffer) else { return Err(Errno::EFAULT) };
        let (gpa, len_bytes, address) = (region.guest_phys_addr, region.memory_size, region.userspace_addr);
        let what = format!("slot {}: {gpa:#x}+{len_bytes:#x} at {address:#x}", region.slot);
        if region.slot as usize >= KVM_MEMORY_SLOTS {
            return Err(call.refuse(&rules::SLOT_NUMBER, Errno::EINVAL, what));
        }
        if [gpa, len_bytes, address].iter().any(|value| !value.is_multiple_of(PAGE_BYTES))
            || gpa.checked_add(len_bytes).is_none()
        {
            return Err(call.refuse(&rules::SLOT_PAGES, Errno::EINVAL, what));
        }
        if region.flags & !KVM_MEM_LOG_DIRTY_PAGES != 0 {
            let detail = format!("{what}, flags {:#x}", region.flags);
            return Err(call.refuse(&rules::SLOT_FLAGS, Errno::EINVAL, detail));
        }
        let mut state = self.lock();
        if len_bytes == 0 {
            if let Some(slot) = state.slots.remove(&region.slot) {
                check_memory(call.ledger(), region.slot, slot);
            }
            return Ok(());
        }
        if state.slots.get(&region.slot).is_some_and(|slot| slot.len_bytes != len_bytes) {
            return Err(call.refuse(&rules::SLOT_RESIZE, Errno::EINVAL, what));
        }
        let others = state.slots.iter().filter(|(number, _)| **number != region.slot);
        if others.into_iter().any(|(_, slot)| overlap((slot.gpa, slot.len_bytes), (gpa, len_bytes))) {
            return Err(call.refuse(&rules::SLOT_OVERLAP, Errno::EEXIST, what));
        }
        let private = [
            state.tss.map(|tss| (tss, 3 * PAGE_BYTES)),
            state.identity.map(|identity| (identity, PAGE_BYTES)),
            Some((APIC_ACCESS_PAGE, PAGE_BYTES)),
        ];
        // The driver compares user slots only, and goes on with two things in one place.
        if private.iter().flatten().any(|&range| overlap(range, (gpa, len_bytes))) {
            call.note(&rules::SLOT_PRIVATE, what.clone());
        }
        // Nor does it look at the pages: it takes the frames that are there when the guest comes to them.
        if !call.process.is_locked(address as usize, len_bytes as usize) {
            call.note(&rules::RAM_LOCKED, what.clone());
        }
        let slot = Slot { gpa, len_bytes, address };
        check_memory(call.ledger(), region.slot, slot);
        state.slots.insert(region.slot, slot);
        Ok(())
    }

    /// Whether the memory of all slots is still there.
    pub fn check_all_memory(&self, ledger: &Ledger) {
        for (&number, &slot) in &self.lock().slots {
            check_memory(ledger, number, slot);
        }
    }

    /// KVM_SET_TSS_ADDR (three pages) and KVM_SET_IDENTITY_MAP_ADDR (one).
    pub fn check_private(&self, call: &Call<'_>, gpa: u64, pages: u64) -> SysResult<()> {
        let range = (gpa, pages * PAGE_BYTES);
        let what = format!("{gpa:#x}");
        if !gpa.is_multiple_of(PAGE_BYTES) {
            return Err(call.refuse(&rules::SLOT_PAGES, Errno::EINVAL, what));
        }
        if self.lock().slots.values().any(|slot| overlap((slot.gpa, slot.len_bytes), range)) {
            return Err(call.refuse(&rules::SLOT_PRIVATE, Errno::EEXIST, what));
        }
        Ok(())
    }

    /// KVM_SET_GSI_ROUTING: `buffer` has as many entries as its count says.
    pub fn check_routes(&self, call: &Call<'_>, count: usize, entries: &[u8]) -> SysResult<()> {
        if count == 0 || count >= KVM_MAX_IRQ_ROUTES {
            return Err(call.refuse(&rules::ROUTES, Errno::EINVAL, format!("{count} entries")));
        }
        let mut routes: BTreeMap<u32, bool> = BTreeMap::new();
        for entry in entries.chunks_exact(size_of::<kvm_irq_routing_entry>()) {
            let Some(entry) = from_bytes::<kvm_irq_routing_entry>(entry) else { return Err(Errno::EFAULT) };
            // SAFETY: any bytes are values of both members, and the type says which one is meant.
            let (pin, to_message) = unsafe { (entry.u.irqchip, entry.r#type == KVM_IRQ_ROUTING_MSI) };
            let pins = if pin.irqchip == 2 { KVM_IOAPIC_NUM_PINS as u32 } else { 8 };
            let good = match entry.r#type {
                KVM_IRQ_ROUTING_IRQCHIP => pin.irqchip <= 2 && pin.pin < pins && routes.get(&entry.gsi) != Some(&true),
                KVM_IRQ_ROUTING_MSI => !routes.contains_key(&entry.gsi),
                _ => false,
            };
            if !good || entry.flags != 0 || entry.gsi as usize >= KVM_MAX_IRQ_ROUTES {
                let detail = format!("GSI {}, type {}, flags {:#x}", entry.gsi, entry.r#type, entry.flags);
                return Err(call.refuse(&rules::ROUTE, Errno::EINVAL, detail));
            }
            routes.insert(entry.gsi, to_message);
        }
        self.lock().routes = Some(routes);
        Ok(())
    }

    /// KVM_IRQ_LINE.
    pub fn check_line(&self, call: &Call<'_>, buffer: &[u8]) -> SysResult<()> {
        let Some(line) = from_bytes::<kvm_irq_level>(buffer) else { return Err(Errno::EFAULT) };
        // SAFETY: any bytes are values of the union's members.
        let gsi = unsafe { line.u.irq };
        if line.level > 1 {
            call.note(&rules::IRQ_LEVEL, format!("GSI {gsi} to level {}", line.level));
        }
        let route = match &self.lock().routes {
            Some(routes) => routes.get(&gsi).copied(),
            None => ((gsi as usize) < KVM_IOAPIC_NUM_PINS).then_some(false),
        };
        match route {
            // The driver says success and does nothing.
            None => call.note(&rules::GSI_ROUTED, format!("GSI {gsi}")),
            Some(true) if line.level == 0 => call.note(&rules::MSI_LEVEL, format!("GSI {gsi}")),
            Some(_) => {}
        }
        Ok(())
    }
}

fn check_memory(ledger: &Ledger, number: u32, slot: Slot) {
    let what = || format!("slot {number}: {:#x} bytes at {:#x}", slot.len_bytes, slot.address);
    match resident_pages(slot.address as usize, slot.len_bytes as usize) {
        None => ledger.note(&rules::RAM_KEPT, what()),
        Some(pages) if (pages as u64) < slot.len_bytes / PAGE_BYTES => {
            ledger.note(&rules::RAM_RESIDENT, format!("{}, {pages} pages resident", what()));
        }
        Some(_) => {}
    }
}
