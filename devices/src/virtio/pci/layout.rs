//! Where things are: BARs, regions, capabilities and ids (virtio 1.3 §4.1.2, §4.1.4).

use crate::pci::{BarKind, BarSpec, Identity};

/// The BAR of the legacy interface.
pub const LEGACY_BAR: u8 = 0;
/// The BAR of the MSI-X table and its pending bits.
pub const MSIX_BAR: u8 = 1;
/// The BAR of the modern interface.
pub const MODERN_BAR: u8 = 4;

const PAGE_BYTES: u64 = 0x1000;
/// Offset of the ISR in the modern BAR; the common configuration is before it.
pub const ISR: u64 = PAGE_BYTES;
/// Offset of the device configuration in the modern BAR.
pub const DEVICE: u64 = 2 * PAGE_BYTES;
/// Offset of the doorbells in the modern BAR: last, because they grow with the number of queues; page-aligned, so that a
/// kernel can take them whole.
pub const NOTIFY: u64 = 3 * PAGE_BYTES;
/// Bytes between the doorbells of two queues.
pub const NOTIFY_MULTIPLIER: u64 = 4;

/// Bytes of the common configuration: up to and including `queue_reset`, which drivers look for by the length
/// (§4.1.4.3).
pub(super) const COMMON_BYTES: u32 = 0x3c;

/// Largest device configuration that fits its page.
const MAX_CONFIG_BYTES: u32 = 0x1000;

/// Device configuration starts here in the legacy BAR while MSI-X is disabled; 4 bytes later while it is enabled
/// (§4.1.4.10).
pub(super) const LEGACY_HEADER_BYTES: u64 = 0x14;
pub(super) const LEGACY_MSIX_BYTES: u64 = 4;

pub(super) const CAP_VENDOR: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_CFG: u8 = 5;

/// Offsets in the configuration-access capability (§4.1.4.9), from its start.
pub(super) const PCI_CFG_BAR: u8 = 4;
pub(super) const PCI_CFG_DATA: u8 = 16;

pub(super) fn config_bytes(config_len: u32) -> u32 {
    config_len.min(MAX_CONFIG_BYTES)
}

fn notify_bytes(queues: usize) -> u64 {
    (queues.max(1) as u64).saturating_mul(NOTIFY_MULTIPLIER)
}

pub(super) fn modern_bar(queues: usize) -> BarSpec {
    let len = NOTIFY.saturating_add(notify_bytes(queues)).next_power_of_two();
    BarSpec { index: MODERN_BAR, kind: BarKind::Memory64, len }
}

pub(super) fn legacy_bar(config_len: u32) -> BarSpec {
    let len = LEGACY_HEADER_BYTES.saturating_add(LEGACY_MSIX_BYTES).saturating_add(config_bytes(config_len).into());
    BarSpec { index: LEGACY_BAR, kind: BarKind::Io, len: len.next_power_of_two() }
}

/// A vendor capability: body behind id and link, and its writable bits.
pub(super) struct VendorCapability {
    pub(super) body: Vec<u8>,
    pub(super) writable: Vec<u8>,
}

fn capability(kind: u8, bar: u8, offset: u64, length: u64, extra: &[u8]) -> VendorCapability {
    // cap_len counts the two bytes of id and link.
    let cap_len = 16u8.saturating_add(extra.len() as u8);
    let mut body = vec![cap_len, kind, bar, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    VendorCapability { body, writable: Vec::new() }
}

/// The capabilities a driver finds its structures by. Linux fails the probe on a device-configuration capability of
/// length zero, so it is left out where there is no configuration.
pub(super) fn structures(queues: usize, config_len: u32) -> Vec<VendorCapability> {
    let mut found = vec![
        capability(CAP_COMMON, MODERN_BAR, 0, COMMON_BYTES.into(), &[]),
        capability(CAP_ISR, MODERN_BAR, ISR, 1, &[]),
        capability(CAP_NOTIFY, MODERN_BAR, NOTIFY, notify_bytes(queues), &(NOTIFY_MULTIPLIER as u32).to_le_bytes()),
    ];
    if config_len > 0 {
        found.push(capability(CAP_DEVICE, MODERN_BAR, DEVICE, config_bytes(config_len).into(), &[]));
    }
    found
}

/// The configuration-access capability: bar, offset, length and data are the guest's to write.
pub(super) fn config_access() -> VendorCapability {
    let mut access = capability(CAP_PCI_CFG, 0, 0, 0, &[0; 4]);
    access.writable = vec![0, 0, 0xff, 0, 0, 0];
    access.writable.extend([0xff; 12]);
    access
}

/// Ids of a device of virtio type `device_type` (§4.1.2): transitional where asked and where the type has such an id.
pub(super) fn identity(device_type: u16, legacy: bool, pin: u8, line: u8) -> (Identity, bool) {
    let transitional = match device_type {
        1 => Some(0x1000),
        2 => Some(0x1001),
        3 => Some(0x1003),
        4 => Some(0x1005),
        5 => Some(0x1002),
        8 => Some(0x1004),
        9 => Some(0x1009),
        _ => None,
    };
    let transitional = transitional.filter(|_| legacy);
    let class = match device_type {
        1 => 0x02_00_00,
        2 | 8 => 0x01_00_00,
        3 => 0x07_80_00,
        5 => 0x05_00_00,
        // "Unassigned": the class may not be zero, or Linux assigns no BARs.
        _ => 0xff_00_00,
    };
    let identity = Identity {
        vendor: 0x1af4,
        device: transitional.unwrap_or(device_type.saturating_add(0x1040)),
        // Revision 0 and a subsystem id equal to the type are how legacy drivers know the device; a modern-only
        // device has revision 1 or more and a subsystem id of 0x40 or more (§4.1.2.1).
        revision: if transitional.is_some() { 0 } else { 1 },
        class,
        subsystem_vendor: 0x1af4,
        subsystem: if transitional.is_some() { device_type } else { 0x1100 },
        pin,
        line,
    };
    (identity, transitional.is_some())
}
