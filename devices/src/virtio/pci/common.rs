//! The modern interface: common configuration, ISR, device configuration and doorbells in one memory BAR
//! (virtio 1.3 §4.1.4.3 to §4.1.4.6).

use std::sync::Arc;

use super::core::{Core, Interface, QueueReset};
use super::layout::{COMMON_BYTES, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, config_bytes};
use crate::bus::{Access, BusDevice};
use crate::pci::bytes;
use crate::planted::{Defect, panic_if_planted};

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
/// `queue_notif_config_data` is before it; without its feature it is a hole.
const QUEUE_RESET: u64 = 0x3a;

/// BAR 4.
pub(super) struct ModernBar(pub(super) Arc<Core>);

impl ModernBar {
    /// The common configuration as bytes: reads have no side effect, so any width at any offset is a piece of it.
    fn common(&self) -> [u8; COMMON_BYTES as usize] {
        let core = &self.0;
        let registers = core.registers();
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let select = registers.queue_select;
        let queue = registers.selected();
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |offset: u64, width: usize, value: u64| {
            let end = (offset as usize).saturating_add(width);
            bytes::put(image.get_mut(offset as usize..end).unwrap_or_default(), value);
        };
        let features = word(core.offered(Interface::Modern), registers.device_feature_select);
        put(DEVICE_FEATURE_SELECT, 4, registers.device_feature_select.into());
        put(DEVICE_FEATURE, 4, features.into());
        put(DRIVER_FEATURE_SELECT, 4, registers.driver_feature_select.into());
        put(DRIVER_FEATURE, 4, word(registers.driver_features, registers.driver_feature_select).into());
        put(CONFIG_VECTOR, 2, core.interrupts.config_vector().into());
        put(NUM_QUEUES, 2, core.queue_count().into());
        put(STATUS, 1, core.interrupts.status().into());
        put(CONFIG_GENERATION, 1, core.device.config_generation().into());
        put(QUEUE_SELECT, 2, select.into());
        put(QUEUE_VECTOR, 2, core.interrupts.queue_vector(select).into());
        if let Some(queue) = queue {
            put(QUEUE_SIZE, 2, queue.size.into());
            put(QUEUE_ENABLE, 2, queue.enabled.into());
            put(QUEUE_NOTIFY_OFF, 2, select.into());
            put(QUEUE_DESC, 8, queue.desc_table);
            put(QUEUE_DRIVER, 8, queue.avail_ring);
            put(QUEUE_DEVICE, 8, queue.used_ring);
            put(QUEUE_RESET, 2, (queue.reset == QueueReset::Pending).into());
        }
        image
    }

    /// A write to the common configuration, in the widths §4.1.3.1 gives drivers: the field's own, and halves of the
    /// 64-bit ones. Anything else is ignored.
    fn write_common(&self, offset: u64, data: &[u8]) -> Access {
        let core = &self.0;
        let value = bytes::get(data);
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => core.change(|registers| registers.device_feature_select = value as u32),
            (DRIVER_FEATURE_SELECT, 4) => core.change(|registers| registers.driver_feature_select = value as u32),
            (DRIVER_FEATURE, 4) => core.write_features(value as u32, Interface::Modern),
            (CONFIG_VECTOR, 2) => core.change(|_| core.interrupts.set_config_vector(value as u16)),
            (STATUS, 1) => return core.write_status(value as u8, Interface::Modern),
            (QUEUE_SELECT, 2) => core.change(|registers| registers.queue_select = value as u16),
            (QUEUE_SIZE, 2) => core.write_queue_size(value as u16),
            (QUEUE_VECTOR, 2) => {
                core.change(|registers| core.interrupts.set_queue_vector(registers.queue_select, value as u16));
            }
            (QUEUE_ENABLE, 2) => core.enable_queue(value as u16),
            (QUEUE_RESET, 2) => core.reset_queue(value as u16),
            (QUEUE_DESC..ADDRESSES_END, 8) if offset.is_multiple_of(8) => self.write_address(offset, u64::MAX, value),
            (QUEUE_DESC..ADDRESSES_END, 4) if offset.is_multiple_of(8) => {
                self.write_address(offset, 0xffff_ffff, value)
            }
            (QUEUE_DESC..ADDRESSES_END, 4) if offset.is_multiple_of(4) => {
                self.write_address(offset & !7, !0xffff_ffff, value << 32);
            }
            (CONFIG_VECTOR | QUEUE_SIZE | QUEUE_VECTOR | QUEUE_ENABLE, 1) => panic_if_planted(Defect::NarrowAccess),
            _ => {}
        }
        Access::Done
    }

    fn write_address(&self, field: u64, mask: u64, value: u64) {
        self.0.change_queue(|queue, _| {
            let address = match field {
                QUEUE_DESC => &mut queue.desc_table,
                QUEUE_DRIVER => &mut queue.avail_ring,
                _ => &mut queue.used_ring,
            };
            *address = *address & !mask | value & mask;
        });
    }
}

const ADDRESSES_END: u64 = QUEUE_DEVICE + 8;

impl BusDevice for ModernBar {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        match offset {
            0..ISR => bytes::copy_at(&self.common(), offset, data, 0),
            ISR => bytes::put(data, self.0.interrupts.take_isr().into()),
            DEVICE..NOTIFY => read_config(&self.0, offset.saturating_sub(DEVICE), data),
            _ => data.fill(0),
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        match offset {
            0..ISR => return self.write_common(offset, data),
            DEVICE..NOTIFY => write_config(&self.0, offset.saturating_sub(DEVICE), data),
            NOTIFY.. => {
                // The address says which queue: that is what an ioeventfd in its place would go by.
                let distance = offset.saturating_sub(NOTIFY);
                if let (true, Ok(queue)) =
                    (distance.is_multiple_of(NOTIFY_MULTIPLIER), u16::try_from(distance / NOTIFY_MULTIPLIER))
                {
                    self.0.kick(queue);
                }
            }
            _ => {}
        }
        Access::Done
    }
}

/// Reads device configuration; zero beyond its end.
pub(super) fn read_config(core: &Core, offset: u64, data: &mut [u8]) {
    data.fill(0);
    let len = u64::from(config_bytes(core.device.config_len()));
    let inside = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
    if let (Ok(offset), Some(part @ [_, ..])) = (u32::try_from(offset), data.get_mut(..inside)) {
        core.device.read_config(offset, part);
    }
}

/// Writes device configuration; what lies beyond its end is dropped.
pub(super) fn write_config(core: &Core, offset: u64, data: &[u8]) {
    let len = u64::from(config_bytes(core.device.config_len()));
    let inside = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
    if inside < data.len() {
        panic_if_planted(Defect::ConfigWriteUnchecked);
    }
    if let (Ok(offset), Some(part @ [_, ..])) = (u32::try_from(offset), data.get(..inside)) {
        core.device.write_config(offset, part);
    }
}
