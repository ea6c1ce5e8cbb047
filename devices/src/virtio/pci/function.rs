//! The PCI function: configuration space, BAR placement and the configuration-access window.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::common::ModernBar;
use super::core::{Core, TransportState};
use super::doorbell::{Doorbells, Placer};
use super::interrupts::Interrupts;
use super::layout::{self, CAP_VENDOR, LEGACY_BAR, MODERN_BAR, MSIX_BAR, PCI_CFG_BAR, PCI_CFG_DATA};
use super::legacy::LegacyBar;
use super::messages::QueueMessages;
use super::places::Places;
use crate::bus::{Access, BusDevice};
use crate::interrupt::{IrqLine, MsiSource};
use crate::pci::{
    BarId, BarListener, BarMapper, BarSpec, ConfigSpace, ConfigState, InterruptPin, Msix, MsixState, PciAddress,
    PciError, PciFunction, StateError, command,
};
use crate::virtio::{QueueRunner, QueueState, VirtioDevice, VirtioInterrupt};

const STATUS_REGISTER: u16 = 0x06;
const STATUS_INTERRUPT: u8 = 1 << 3;
const MSIX_CONTROL: u8 = 2;

/// What a [`VirtioPci`] is made of.
pub struct VirtioPciParts {
    /// How messages speak of the device.
    pub name: String,
    /// The device.
    pub device: Arc<dyn VirtioDevice>,
    /// Where its queues run.
    pub runner: Arc<dyn QueueRunner>,
    /// MSI-X vectors: usually one for configuration changes and one for each queue. None: INTx only.
    pub msix: Vec<Arc<dyn MsiSource>>,
    /// The function's input into its interrupt line (see [`IntxRouter::input`](crate::pci::IntxRouter::input)).
    pub intx: Arc<dyn IrqLine>,
    /// The pin that line stands for.
    pub pin: InterruptPin,
    /// Power-on value of the interrupt line register: the line's GSI, where it is below 255.
    pub interrupt_line: u8,
    /// Who watches notify addresses.
    pub doorbells: Arc<dyn Doorbells>,
    /// Where the function will sit: decides its BAR addresses.
    pub slot: PciAddress,
    /// Places its BARs.
    pub mapper: Arc<BarMapper>,
    /// What drivers find. Types that have no legacy interface have the modern one whatever this says.
    pub interfaces: Interfaces,
}

/// Which drivers a device is for (virtio 1.3 §1.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// Transitional: drivers of either kind.
    #[default]
    Both,
    /// Drivers of virtio 0.9 alone, as before there was another.
    Legacy,
    /// Drivers of virtio 1 alone.
    Modern,
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    core: Arc<Core>,
    msix: Arc<Msix>,
    modern: Arc<ModernBar>,
    mapper: Arc<BarMapper>,
    bars: Vec<(BarSpec, BarId)>,
    /// Offsets of the MSI-X and configuration-access capabilities.
    msix_capability: Option<u8>,
    access_capability: Option<u8>,
    config: Mutex<ConfigSpace>,
}

/// What a guest can have changed in a [`VirtioPci`], queues aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    config: ConfigState,
    msix: MsixState,
    transport: TransportState,
}

impl VirtioPci {
    /// Builds the function and gives its BARs their power-on addresses; nothing decodes until the guest says so.
    pub fn new(parts: VirtioPciParts) -> Result<Arc<Self>, PciError> {
        Self::build(parts, None)
    }

    /// As [`new`](Self::new), for a device whose queues a kernel carries: `messages` hears what interrupts it has to send.
    pub fn carried(parts: VirtioPciParts, messages: Arc<dyn QueueMessages>) -> Result<Arc<Self>, PciError> {
        Self::build(parts, Some(messages))
    }

    fn build(parts: VirtioPciParts, messages: Option<Arc<dyn QueueMessages>>) -> Result<Arc<Self>, PciError> {
        let VirtioPciParts {
            name,
            device,
            runner,
            msix,
            intx,
            pin,
            interrupt_line,
            doorbells,
            slot,
            mapper,
            interfaces,
        } = parts;
        let queues = device.queue_max_sizes().len();
        let config_len = device.config_len();
        let with_legacy = interfaces != Interfaces::Modern;
        let (identity, has_legacy) =
            layout::identity(device.device_type(), with_legacy, pin.register(), interrupt_line);
        let has_modern = interfaces != Interfaces::Legacy || !has_legacy;

        let msix = Arc::new(Msix::new(msix)?);
        let places = Arc::new(Places::new(queues));
        let interrupts = Arc::new(Interrupts::new(&name, msix.clone(), intx, queues, places.clone(), messages));
        let core = Core::new(device, runner, interrupts, Placer::new(doorbells, queues, places.clone()), places);
        let modern = Arc::new(ModernBar(core.clone()));

        let mut config = ConfigSpace::new(identity);
        let mut bars = Vec::new();
        let mut add_bar = |config: &mut ConfigSpace, bar: BarSpec, device: Arc<dyn BusDevice>| {
            config.add_bar(bar, mapper.allocate(slot, &bar)?)?;
            let listener: Arc<dyn BarListener> = core.clone();
            bars.push((bar, mapper.register(&name, bar, device, listener)));
            Ok::<(), PciError>(())
        };
        if has_legacy {
            add_bar(&mut config, layout::legacy_bar(config_len), Arc::new(LegacyBar(core.clone())))?;
        }
        if !msix.is_empty() {
            add_bar(&mut config, msix.bar(MSIX_BAR), Arc::new(MsixBar(core.clone(), msix.clone())))?;
        }
        if has_modern {
            add_bar(&mut config, layout::modern_bar(queues), modern.clone())?;
            for capability in layout::structures(queues, config_len) {
                config.add_capability(CAP_VENDOR, &capability.body, &capability.writable)?;
            }
        }
        let msix_capability = if msix.is_empty() {
            None
        } else {
            let (id, body, writable) = msix.capability(MSIX_BAR);
            Some(config.add_capability(id, &body, &writable)?)
        };
        let access = has_modern.then(layout::config_access);
        let access_capability =
            access.map(|access| config.add_capability(CAP_VENDOR, &access.body, &access.writable)).transpose()?;
        let config = Mutex::new(config);
        Ok(Arc::new(Self { core, msix, modern, mapper, bars, msix_capability, access_capability, config }))
    }

    /// How the device itself interrupts the guest: configuration changes.
    pub fn interrupt(&self) -> Arc<dyn VirtioInterrupt> {
        self.core.interrupts.clone()
    }

    /// What a guest can have changed, queues aside: their state is the runner's.
    pub fn save(&self) -> VirtioPciState {
        VirtioPciState { config: self.lock().save(), msix: self.msix.save(), transport: self.core.save() }
    }

    /// Takes back a saved state, with nothing running, and starts the queues of a running driver from `queues`. Nothing has
    /// changed where it is refused.
    pub fn restore(&self, state: &VirtioPciState, queues: &[(u16, QueueState)]) -> Result<(), StateError> {
        self.msix.check(&state.msix)?;
        ConfigSpace::check(&state.config)?;
        self.core.check(&state.transport, queues)?;
        let mut config = self.lock();
        self.msix.restore(&state.msix)?;
        config.restore(&state.config)?;
        self.apply(&config);
        drop(config);
        self.core.restore(&state.transport, queues)
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets BARs, INTx and MSI-X follow the registers. Called with them locked, so that two vCPUs' writes take effect
    /// in the order in which they were written.
    fn apply(&self, config: &ConfigSpace) {
        if let Some(capability) = self.msix_capability {
            self.msix.set_control(config.get(capability.saturating_add(MSIX_CONTROL), 2) as u16);
        }
        self.core.interrupts.update_messages();
        self.core.interrupts.set_intx_disabled(config.command() & command::INTX_DISABLE != 0);
        self.core.interrupts.update_line();
        let wanted: Vec<_> = self.bars.iter().map(|(bar, id)| (*id, config.bar_address(bar))).collect();
        self.mapper.place(&wanted);
    }

    /// Where the configuration-access capability is, if an access touches its data.
    fn touched_window(&self, offset: u16, len: usize) -> Option<u8> {
        let capability = self.access_capability?;
        let data = usize::from(capability.saturating_add(PCI_CFG_DATA));
        let offset = usize::from(offset);
        (offset < data.saturating_add(4) && data < offset.saturating_add(len)).then_some(capability)
    }

    /// The BAR access that the capability describes: offset and length in BAR 4. Other BARs hold no virtio structure a
    /// driver could mean, and misaligned or odd lengths are not allowed (§4.1.4.9.1).
    fn window(&self, config: &ConfigSpace, capability: u8) -> Option<(u64, usize)> {
        let field = |offset: u8, width| config.get(capability.saturating_add(offset), width);
        let (bar, offset, length) = (field(PCI_CFG_BAR, 1), field(8, 4), field(12, 4));
        let end = u64::from(offset).saturating_add(length.into());
        let inside = self.bars.iter().any(|(spec, _)| spec.index == MODERN_BAR && end <= spec.len);
        let valid = bar == u32::from(MODERN_BAR) && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        (valid && inside).then_some((offset.into(), length as usize))
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if let Some(capability) = self.touched_window(offset, data.len()) {
            let window = self.window(&self.lock(), capability);
            if let Some((at, len)) = window {
                let mut value = [0; 4];
                let part = value.get_mut(..len).unwrap_or_default();
                // Outside the lock: the access may go anywhere a BAR access goes.
                let _ = self.modern.read(at, part);
                self.lock().set(capability.saturating_add(PCI_CFG_DATA), part);
            }
        }
        self.lock().read(offset, data);
        let status = STATUS_REGISTER.checked_sub(offset).and_then(|index| data.get_mut(usize::from(index)));
        if let Some(status) = status.filter(|_| self.core.interrupts.isr() != 0) {
            *status |= STATUS_INTERRUPT;
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Access {
        let mut config = self.lock();
        config.write(offset, data);
        let Some(capability) = self.touched_window(offset, data.len()) else {
            self.apply(&config);
            return Access::Done;
        };
        let value = config.get(capability.saturating_add(PCI_CFG_DATA), 4).to_le_bytes();
        let window = self.window(&config, capability);
        drop(config);
        match window {
            Some((at, len)) => self.modern.write(at, value.get(..len).unwrap_or_default()),
            None => Access::Done,
        }
    }

    fn reset(&self) -> Access {
        let access = self.core.reset();
        let mut config = self.lock();
        config.reset();
        self.msix.reset();
        self.apply(&config);
        access
    }
}

/// The MSI-X table, whose writes change what queues interrupt with.
struct MsixBar(Arc<Core>, Arc<Msix>);

impl BusDevice for MsixBar {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        self.1.read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let access = self.1.write(offset, data);
        self.0.interrupts.update_messages();
        access
    }
}

/// The legacy BAR is BAR 0 by definition (§4.1.4.10); the others are where the layout puts them.
const _: () = assert!(LEGACY_BAR == 0 && MSIX_BAR != MODERN_BAR);
