//! The legacy interface: a header in ports, device configuration behind it (virtio 1.3 §4.1.4.10).

use std::sync::Arc;

use super::common::{read_config, write_config};
use super::core::{Core, Interface};
use super::layout::{LEGACY_HEADER_BYTES, LEGACY_MSIX_BYTES};
use crate::bus::{Access, BusDevice};
use crate::pci::bytes;

const HOST_FEATURES: u64 = 0x00;
const GUEST_FEATURES: u64 = 0x04;
const QUEUE_PFN: u64 = 0x08;
const QUEUE_SIZE: u64 = 0x0c;
const QUEUE_SELECT: u64 = 0x0e;
/// Takes the index of the queue to look at.
pub(super) const QUEUE_NOTIFY: u64 = 0x10;
const STATUS: u64 = 0x12;
const ISR: u64 = 0x13;
const CONFIG_VECTOR: u64 = 0x14;
const QUEUE_VECTOR: u64 = 0x16;

const FULL_HEADER: usize = 0x18;

/// BAR 0.
pub(super) struct LegacyBar(pub(super) Arc<Core>);

impl LegacyBar {
    /// Length of the header: the vector registers are there only while MSI-X is enabled.
    fn header_len(&self) -> u64 {
        let vectors = if self.0.interrupts.msix_enabled() { LEGACY_MSIX_BYTES } else { 0 };
        LEGACY_HEADER_BYTES.saturating_add(vectors)
    }

    /// The header as bytes, the ISR left out: reading that one has a side effect.
    fn header(&self) -> [u8; FULL_HEADER] {
        let core = &self.0;
        let registers = core.registers();
        let queue = registers.selected();
        let mut image = [0; FULL_HEADER];
        let mut put = |offset: u64, width: usize, value: u64| {
            let end = (offset as usize).saturating_add(width);
            bytes::put(image.get_mut(offset as usize..end).unwrap_or_default(), value);
        };
        put(HOST_FEATURES, 4, core.offered(Interface::Legacy));
        put(GUEST_FEATURES, 4, registers.driver_features);
        put(QUEUE_PFN, 4, queue.map_or(0, |queue| queue.pfn.into()));
        put(QUEUE_SIZE, 2, queue.map_or(0, |queue| queue.size.into()));
        put(QUEUE_SELECT, 2, registers.queue_select.into());
        put(STATUS, 1, core.interrupts.status().into());
        put(CONFIG_VECTOR, 2, core.interrupts.config_vector().into());
        put(QUEUE_VECTOR, 2, core.interrupts.queue_vector(registers.queue_select).into());
        image
    }
}

impl BusDevice for LegacyBar {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let header_len = self.header_len();
        if let Some(offset) = offset.checked_sub(header_len) {
            read_config(&self.0, offset, data);
            return Access::Done;
        }
        let header = self.header();
        bytes::copy_at(header.get(..header_len as usize).unwrap_or_default(), offset, data, 0);
        if let Some(isr) = ISR.checked_sub(offset).and_then(|index| data.get_mut(index as usize)) {
            *isr = self.0.interrupts.take_isr();
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let core = &self.0;
        if let Some(offset) = offset.checked_sub(self.header_len()) {
            write_config(core, offset, data);
            return Access::Done;
        }
        let value = bytes::get(data);
        match (offset, data.len()) {
            (GUEST_FEATURES, 4) => core.write_features(value as u32, Interface::Legacy),
            (QUEUE_PFN, 4) => core.write_pfn(value as u32),
            (QUEUE_SELECT, 2) => core.change(|registers| registers.queue_select = value as u16),
            (QUEUE_NOTIFY, 2) => core.kick_legacy(value as u16),
            (STATUS, 1) => return core.write_status(value as u8, Interface::Legacy),
            (CONFIG_VECTOR, 2) => core.change(|_| core.interrupts.set_config_vector(value as u16)),
            (QUEUE_VECTOR, 2) => {
                core.change(|registers| core.interrupts.set_queue_vector(registers.queue_select, value as u16));
            }
            _ => {}
        }
        Access::Done
    }
}
