//! Interrupt lines, which count, and messages.

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irqchip, kvm_msi,
};
use zvmm::hypervisor::bhyve::abi::{
    EDGE_TRIGGER, IOAPIC_PINS, vm_isa_irq, vm_isa_irq_trigger, vm_lapic_irq, vm_lapic_msi,
};

use super::machine::Machine;
use super::rules;
use crate::node::Call;

/// KVM's IOAPIC has 24 inputs; the upper eight of bhyve's 32 are not modelled.
const MODELLED_PINS: u32 = 24;
/// GSIs behind which the inputs of the chips stand one by one.
const PIC_GSI: u32 = 32;
const IOAPIC_GSI: u32 = 64;
/// More devices than this never share a line here.
const MOST: u32 = 64;

/// Every input of the chips has a GSI of its own. GSI 0 is the PIT's: input 0 of the PIC, input 2 of the IOAPIC
/// (reference section 2.12). It stands last, since KVM tells the PIT of an EOI by the last route of an input.
pub fn routes() -> KvmIrqRouting {
    let entry = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let pic = |line: u32| if line < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
    let mut entries: Vec<_> = (0..16).map(|line| entry(PIC_GSI + line, pic(line), line % 8)).collect();
    entries.extend((0..MODELLED_PINS).map(|pin| entry(IOAPIC_GSI + pin, KVM_IRQCHIP_IOAPIC, pin)));
    entries.push(entry(0, KVM_IRQCHIP_PIC_MASTER, 0));
    entries.push(entry(0, KVM_IRQCHIP_IOAPIC, 2));
    KvmIrqRouting::from_entries(&entries).unwrap_or_else(|_| unreachable!("few entries"))
}

/// What is done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Up by one.
    Assert,
    /// Down by one.
    Deassert,
    /// Up and down.
    Pulse,
}

/// How often each input is asserted.
#[derive(Default)]
pub struct Lines {
    pic: [u32; 16],
    ioapic: [u32; IOAPIC_PINS as usize],
}

impl Lines {
    /// VM_ISA_*_IRQ: both chips.
    pub fn isa(&mut self, call: &Call<'_>, machine: &Machine, irq: &vm_isa_irq, edge: Edge) -> SysResult<i32> {
        let pin = irq.ioapic_irq;
        if !(0..16).contains(&irq.atpic_irq) || (pin != -1 && !(0..IOAPIC_PINS as i32).contains(&pin)) {
            let detail = format!("PIC {}, IOAPIC {pin}", irq.atpic_irq);
            return Err(call.refuse(&rules::LINE_PIN, Errno::EINVAL, detail));
        }
        machine.chips()?;
        let line = irq.atpic_irq as u32;
        change(call, machine, "PIC", &mut self.pic[line as usize], line, PIC_GSI + line, edge)?;
        if pin == -1 { Ok(0) } else { self.ioapic(call, machine, pin, edge) }
    }

    /// VM_IOAPIC_*_IRQ.
    pub fn ioapic(&mut self, call: &Call<'_>, machine: &Machine, pin: i32, edge: Edge) -> SysResult<i32> {
        let Some(pin) = u32::try_from(pin).ok().filter(|&pin| pin < IOAPIC_PINS) else {
            return Err(call.refuse(&rules::LINE_PIN, Errno::EINVAL, format!("IOAPIC {pin}")));
        };
        if pin >= MODELLED_PINS {
            return Err(call.refuse(&rules::NOT_MODELLED, Errno::EINVAL, format!("IOAPIC input {pin}")));
        }
        machine.chips()?;
        change(call, machine, "IOAPIC", &mut self.ioapic[pin as usize], pin, IOAPIC_GSI + pin, edge)?;
        Ok(0)
    }

    /// Counts of the IOAPIC's inputs.
    pub fn ioapic_counts(&self) -> [u32; IOAPIC_PINS as usize] {
        self.ioapic
    }

    /// Counts of the PIC's inputs.
    pub fn pic_counts(&self) -> [u32; 16] {
        self.pic
    }

    /// What VM_REINIT does: the chips are new, and so are their counts.
    pub fn reset(&mut self, machine: &Machine) {
        for (line, count) in (0..).zip(&mut self.pic) {
            if std::mem::take(count) > 0 {
                let _ = machine.vm.set_irq_line(PIC_GSI + line, false);
            }
        }
        for (pin, count) in (0..MODELLED_PINS).zip(&mut self.ioapic) {
            if std::mem::take(count) > 0 {
                let _ = machine.vm.set_irq_line(IOAPIC_GSI + pin, false);
            }
        }
    }
}

fn change(
    call: &Call<'_>,
    machine: &Machine,
    chip: &str,
    count: &mut u32,
    input: u32,
    gsi: u32,
    edge: Edge,
) -> SysResult<()> {
    let set = |level| machine.vm.set_irq_line(gsi, level).map_err(|_| Errno::EIO);
    match edge {
        Edge::Assert if *count >= MOST => {
            Err(call.refuse(&rules::LINE_SATURATED, Errno::E2BIG, format!("{chip} {input}")))
        }
        Edge::Assert => {
            *count += 1;
            if *count == 1 { set(true) } else { Ok(()) }
        }
        Edge::Deassert if *count == 0 => {
            Err(call.refuse(&rules::LINE_BALANCED, Errno::E2BIG, format!("{chip} {input}")))
        }
        Edge::Deassert => {
            *count -= 1;
            if *count == 0 { set(false) } else { Ok(()) }
        }
        Edge::Pulse if *count > 0 => Ok(()),
        Edge::Pulse => {
            set(true)?;
            set(false)
        }
    }
}

/// VM_ISA_SET_IRQ_TRIGGER: the ELCR.
pub fn set_trigger(call: &Call<'_>, machine: &Machine, arg: &vm_isa_irq_trigger) -> SysResult<i32> {
    let Some(line) = u32::try_from(arg.atpic_irq).ok().filter(|&line| line < 16) else {
        return Err(call.refuse(&rules::LINE_PIN, Errno::EINVAL, format!("PIC {}", arg.atpic_irq)));
    };
    let level = arg.trigger != EDGE_TRIGGER;
    if level && [0, 1, 2, 8, 13].contains(&line) {
        return Err(call.refuse(&rules::LINE_TRIGGER, Errno::EINVAL, format!("PIC {line}")));
    }
    machine.chips()?;
    let chip_id = if line < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).map_err(|_| Errno::EIO)?;
    // SAFETY: the chip id says that this is the union's member.
    let elcr = unsafe { &mut chip.chip.pic.elcr };
    let bit = 1 << (line % 8);
    *elcr = if level { *elcr | bit } else { *elcr & !bit };
    machine.vm.set_irqchip(&chip).map_err(|_| Errno::EIO)?;
    Ok(0)
}

/// VM_LAPIC_MSI.
pub fn msi(call: &Call<'_>, machine: &Machine, arg: &vm_lapic_msi) -> SysResult<i32> {
    let vm_lapic_msi { msg, addr } = *arg;
    if addr & !0xf_ffff != 0xfee0_0000 {
        return Err(call.refuse(&rules::MSI_ADDRESS, Errno::EINVAL, format!("address {addr:#x}, message {msg:#x}")));
    }
    if msg & 1 << 15 != 0 {
        call.note(&rules::MSI_EDGE, format!("message {msg:#x}"));
    }
    machine.chips()?;
    signal(machine, addr as u32, msg as u32);
    Ok(0)
}

/// VM_LAPIC_IRQ.
pub fn vector(call: &Call<'_>, machine: &Machine, arg: &vm_lapic_irq) -> SysResult<i32> {
    if !(16..256).contains(&arg.vector) {
        return Err(call.refuse(&rules::LAPIC_VECTOR, Errno::EINVAL, format!("vector {}", arg.vector)));
    }
    machine.chips()?;
    signal(machine, 0xfee0_0000 | (arg.cpuid as u32) << 12, arg.vector as u32);
    Ok(0)
}

/// VM_INJECT_NMI: a message, so that the vCPU need not be stopped.
pub fn nmi(machine: &Machine, cpu: i32) -> SysResult<i32> {
    machine.chips()?;
    signal(machine, 0xfee0_0000 | (cpu as u32) << 12, 4 << 8);
    Ok(0)
}

/// Sends a message to the local APICs.
pub fn signal(machine: &Machine, address_lo: u32, data: u32) {
    // The guest may have its APIC off: the message is then lost, which is no error.
    let _ = machine.vm.signal_msi(kvm_msi { address_lo, data, ..Default::default() });
}
