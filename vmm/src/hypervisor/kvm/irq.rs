//! Interrupt lines and message-signalled interrupts on the in-kernel controllers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::interrupt::{IrqLine, MsiMessage, MsiSource};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{HypervisorError, call};

/// Pins of the in-kernel IOAPIC; GSIs above are free for MSI routes.
const IOAPIC_PINS: u32 = 24;

/// The timer chip raises GSI 0, which the MADT says is IOAPIC pin 2.
const TIMER_PIN: u32 = 2;

/// The VM's GSI routing table: the fixed pins, and one entry for every MSI source that has a message. KVM takes the
/// table whole, so all sources share it.
pub struct Routing {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Option<MsiMessage>>>,
}

impl Routing {
    /// The table with its fixed pins, installed.
    pub fn install(vm: Arc<VmFd>) -> Result<Arc<Self>, HypervisorError> {
        let routing = Self { vm, messages: Mutex::default() };
        routing.apply(&[])?;
        Ok(Arc::new(routing))
    }

    fn reserve(&self) -> u32 {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(None);
        IOAPIC_PINS + messages.len() as u32 - 1
    }

    fn set(&self, gsi: u32, message: MsiMessage) -> Result<(), HypervisorError> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let index = (gsi - IOAPIC_PINS) as usize;
        if messages[index] == Some(message) {
            return Ok(());
        }
        let before = messages[index].replace(message);
        // The table goes to KVM whole: a route it refused would make every other device's next change fail, too.
        self.apply(&messages).inspect_err(|_| messages[index] = before)
    }

    fn apply(&self, messages: &[Option<MsiMessage>]) -> Result<(), HypervisorError> {
        let mut entries: Vec<kvm_irq_routing_entry> = (0..8)
            .map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi))
            .chain((8..16).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)))
            .collect();
        // GSI 2 is the cascade of the two PICs and has no pin of its own: its pin belongs to the timer.
        entries.extend(
            (0..IOAPIC_PINS)
                .filter(|&gsi| gsi != TIMER_PIN)
                .map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { TIMER_PIN } else { gsi })),
        );
        entries.extend(
            (IOAPIC_PINS..).zip(messages).filter_map(|(gsi, message)| message.map(|message| msi(gsi, message))),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| call("KVM_SET_GSI_ROUTING", kvm_ioctls::Error::new(libc::E2BIG)))?;
        self.vm.set_gsi_routing(&table).map_err(|error| call("KVM_SET_GSI_ROUTING", error))
    }
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// One pin, with the level it was last driven to: KVM sets levels, but an ioctl for nothing is an ioctl too many.
pub struct KvmIrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
    asserted: Mutex<bool>,
}

impl KvmIrqLine {
    pub fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi, asserted: Mutex::new(false) }
    }
}

impl IrqLine for KvmIrqLine {
    fn set(&self, asserted: bool) {
        let mut level = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *level != asserted {
            *level = asserted;
            if let Err(error) = self.vm.set_irq_line(self.gsi, asserted) {
                log::error!("kvm: KVM_IRQ_LINE {} = {asserted}: {error}", self.gsi);
            }
        }
    }
}

/// One MSI: an irqfd on a GSI of its own. The eventfd exists from the first message on, so that vectors a guest never
/// uses cost nothing.
pub struct KvmMsiSource {
    vm: Arc<VmFd>,
    routing: Arc<Routing>,
    gsi: u32,
    irqfd: std::sync::OnceLock<EventFd>,
    live: AtomicBool,
}

impl KvmMsiSource {
    pub fn new(vm: Arc<VmFd>, routing: Arc<Routing>) -> Self {
        let gsi = routing.reserve();
        Self { vm, routing, gsi, irqfd: Default::default(), live: AtomicBool::new(false) }
    }

    fn connect(&self, message: MsiMessage) -> Result<(), HypervisorError> {
        self.routing.set(self.gsi, message)?;
        if self.irqfd.get().is_none()
            // A second vCPU may have been faster; its descriptor then stays and ours goes.
            && let Err(unused) = self.irqfd.set(irqfd(&self.vm, self.gsi)?)
        {
            self.vm.unregister_irqfd(&unused, self.gsi).map_err(|error| call("KVM_IRQFD", error))?;
        }
        Ok(())
    }
}

/// A new eventfd whose signals are those of `gsi`.
fn irqfd(vm: &VmFd, gsi: u32) -> Result<EventFd, HypervisorError> {
    let fd =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| HypervisorError::Call { call: "eventfd", source })?;
    vm.register_irqfd(&fd, gsi).map_err(|error| call("KVM_IRQFD", error))?;
    Ok(fd)
}

impl MsiSource for KvmMsiSource {
    fn set_message(&self, message: Option<MsiMessage>) {
        let connected = match message {
            Some(message) => self.connect(message).inspect_err(|error| log::error!("kvm: msi: {error}")).is_ok(),
            None => false,
        };
        self.live.store(connected, Ordering::Release);
    }

    fn trigger(&self) {
        if let (true, Some(fd)) = (self.live.load(Ordering::Acquire), self.irqfd.get())
            && let Err(error) = fd.write(1)
            // A full counter means that the interrupt is pending already.
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            log::error!("kvm: irqfd: {error}");
        }
    }
}

/// An eventfd whose signals are a message to the guest: for a kernel that carries a queue, and interrupts in our stead.
pub trait MessageFd: Send + Sync {
    /// What to signal, the same one for good. Before the first message the guest hears nothing of it.
    fn fd(&self) -> &EventFd;

    /// What the guest gets for each signal from now on.
    ///
    /// # Errors
    /// What the kernel says; the guest gets what it got before.
    fn route(&self, message: MsiMessage) -> Result<(), HypervisorError>;
}

/// An irqfd on a GSI of its own.
pub struct KvmMessageFd {
    routing: Arc<Routing>,
    gsi: u32,
    irqfd: EventFd,
}

impl KvmMessageFd {
    pub fn new(vm: &VmFd, routing: Arc<Routing>) -> Result<Self, HypervisorError> {
        let gsi = routing.reserve();
        let irqfd = irqfd(vm, gsi)?;
        Ok(Self { routing, gsi, irqfd })
    }
}

impl MessageFd for KvmMessageFd {
    fn fd(&self) -> &EventFd {
        &self.irqfd
    }

    fn route(&self, message: MsiMessage) -> Result<(), HypervisorError> {
        self.routing.set(self.gsi, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_refused_leaves_the_table_as_it_was() {
        let kvm = kvm_ioctls::Kvm::new().expect("this test needs /dev/kvm: run it inside the lab");
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let routing = Routing::install(vm).unwrap();
        let old = MsiMessage { address: 0xfee0_0000, data: 0x40 };
        // More routes than KVM takes, so that the next change is refused whatever it says.
        *routing.messages.lock().unwrap() = vec![Some(old); 8192];
        assert!(routing.set(IOAPIC_PINS, MsiMessage { data: 0x41, ..old }).is_err());
        assert_eq!(routing.messages.lock().unwrap()[0], Some(old), "or every later change fails with it");
    }
}
