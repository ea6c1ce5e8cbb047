//! Interrupt lines and message-signalled interrupts on the in-kernel controllers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use devices::interrupt::{IrqLine, MsiMessage, MsiSource};
use devices_host::sys::{Errno, SysResult};

use super::abi::{
    KVM_IOAPIC_NUM_PINS, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_IRQ_ROUTES, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use super::memory::VmFd;
use super::plain::zeroed;

/// GSIs above the IOAPIC's are free for messages.
const FIRST_MSI: u32 = KVM_IOAPIC_NUM_PINS as u32;

/// The timer chip raises GSI 0, which the MADT says is IOAPIC pin 2.
const TIMER_PIN: u32 = 2;

/// Entries of the fixed pins: 16 of the PICs, and the IOAPIC's without the timer's second one.
const FIXED_ROUTES: usize = 16 + KVM_IOAPIC_NUM_PINS - 1;

/// Messages the table has room for: the driver takes fewer than 1024 entries.
pub const MAX_MSI_ROUTES: usize = KVM_MAX_IRQ_ROUTES - 1 - FIXED_ROUTES;

/// The VM's GSI routing table: the fixed pins, and one entry for every MSI source that has had a message. The driver
/// takes the table whole, so all sources share it.
pub struct Routing {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<MsiMessage>>,
}

impl Routing {
    /// The table with its fixed pins, installed. The driver's own default table routes the timer to pin 0.
    pub fn install(vm: Arc<VmFd>) -> SysResult<Arc<Self>> {
        let routing = Self { vm, messages: Mutex::default() };
        routing.apply(&[])?;
        Ok(Arc::new(routing))
    }

    /// Gives `message` a GSI of its own: `gsi` where that is known already, the next free one otherwise.
    fn set(&self, gsi: &OnceLock<u32>, message: MsiMessage) -> SysResult<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&gsi) = gsi.get() {
            let index = (gsi - FIRST_MSI) as usize;
            if messages[index] == message {
                return Ok(());
            }
            let before = std::mem::replace(&mut messages[index], message);
            // The table goes to the driver whole: a message it refused would make every later change fail, too.
            return self.apply(&messages).inspect_err(|_| messages[index] = before);
        }
        if messages.len() == MAX_MSI_ROUTES {
            return Err(Errno::ENOSPC);
        }
        messages.push(message);
        let before = messages.len() - 1;
        self.apply(&messages).inspect_err(|_| messages.truncate(before))?;
        gsi.get_or_init(|| FIRST_MSI + before as u32);
        Ok(())
    }

    fn apply(&self, messages: &[MsiMessage]) -> SysResult<()> {
        let fixed = (0..8)
            .map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi))
            .chain((8..16).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)))
            // GSI 2 is the cascade of the two PICs and has no pin of its own: its pin belongs to the timer.
            .chain(
                (0..FIRST_MSI)
                    .filter(|&gsi| gsi != TIMER_PIN)
                    .map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { TIMER_PIN } else { gsi })),
            );
        let entries: Vec<_> =
            fixed.chain((FIRST_MSI..).zip(messages).map(|(gsi, &message)| msi(gsi, message))).collect();
        self.vm.set_gsi_routing(&entries)
    }
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, r#type: KVM_IRQ_ROUTING_IRQCHIP, ..zeroed() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, r#type: KVM_IRQ_ROUTING_MSI, ..zeroed() };
    let (address_lo, address_hi) = (message.address as u32, (message.address >> 32) as u32);
    entry.u.msi = kvm_irq_routing_msi { address_lo, address_hi, data: message.data, pad: 0 };
    entry
}

/// One pin, with the level it was last driven to: the driver sets levels, but an ioctl for nothing is one too many.
pub struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
    asserted: Mutex<bool>,
}

impl Line {
    pub fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi, asserted: Mutex::new(false) }
    }
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        let mut level = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *level != asserted {
            *level = asserted;
            if let Err(error) = self.vm.irq_line(self.gsi, asserted) {
                log::error!("illumos-kvm: KVM_IRQ_LINE {} = {asserted}: {error}", self.gsi);
            }
        }
    }
}

/// One MSI: a GSI routed to its message, from the first message on, so that vectors a guest never uses take no route.
pub struct Msi {
    routing: Arc<Routing>,
    gsi: OnceLock<u32>,
    live: AtomicBool,
}

impl Msi {
    pub fn new(routing: Arc<Routing>) -> Self {
        Self { routing, gsi: OnceLock::new(), live: AtomicBool::new(false) }
    }
}

impl MsiSource for Msi {
    fn set_message(&self, message: Option<MsiMessage>) {
        let connected = match message.map(|message| self.routing.set(&self.gsi, message)) {
            Some(Ok(())) => true,
            Some(Err(Errno::ENOSPC)) => {
                log::error!("illumos-kvm: more than {MAX_MSI_ROUTES} message-signalled interrupts: this one is lost");
                false
            }
            Some(Err(error)) => {
                log::error!("illumos-kvm: KVM_SET_GSI_ROUTING: {error}");
                false
            }
            None => false,
        };
        self.live.store(connected, Ordering::Release);
    }

    fn trigger(&self) {
        // A message is sent by level 1 and has no level to take back.
        if let (true, Some(&gsi)) = (self.live.load(Ordering::Acquire), self.gsi.get())
            && let Err(error) = self.routing.vm.irq_line(gsi, true)
        {
            log::error!("illumos-kvm: KVM_IRQ_LINE {gsi} (message): {error}");
        }
    }
}
