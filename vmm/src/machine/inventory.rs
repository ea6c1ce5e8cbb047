//! What the machine is made of, for clients of the control socket.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::pci::{PciAddress, PciBus, PciFunction};
use devices::virtio::blk::{OpsSnapshot, SECTOR_BYTES};

use super::virtio::Device;
use crate::config::{DiskConfig, Mac, NetConfig, SerialBackend, VmConfig};
use crate::control::inventory::{BarFacts, CharacterFacts, DiskFacts, Inventory, NetFacts, PciFacts, VcpuFacts};

/// What does not change while the machine runs; only a machine with a control socket needs it.
pub struct Fixed {
    config: VmConfig,
    is_kvm: bool,
    /// Numbers and sizes of base address registers, by function.
    bars: Vec<(PciAddress, Vec<(u8, u64)>)>,
}

impl Fixed {
    /// Measures the functions on `pci`, with no vCPU running. `hypervisor` is the backend's name.
    pub fn new(config: &VmConfig, hypervisor: &str, pci: &PciBus) -> Self {
        let bars = pci.functions().map(|(address, _, function)| (address, bar_sizes(&**function))).collect();
        Self { config: config.clone(), is_kvm: hypervisor.ends_with("kvm"), bars }
    }

    /// All of it, and how it is now.
    #[cold]
    pub fn now(&self, threads: &[AtomicU64], devices: &[Device], pci: &PciBus) -> Inventory {
        let config = &self.config;
        let disks = config.disks.iter().zip(devices.iter().filter(|device| device.disk.is_some()));
        let nets = config.nets.iter().zip(devices.iter().filter(|device| device.card.is_some()));
        Inventory {
            name: config.name.clone(),
            uuid: config.uuid.map(|uuid| uuid.to_string()),
            is_kvm: self.is_kvm,
            vcpus: (0..).zip(threads).map(|(index, thread)| vcpu(config, index, thread)).collect(),
            disks: disks.map(|(config, device)| disk(config, device)).collect(),
            nets: nets.map(|(config, device)| net(config, device)).collect(),
            characters: characters(config),
            functions: pci
                .functions()
                .zip(&self.bars)
                .map(|((address, name, function), (_, bars))| facts(address, name, &**function, bars))
                .collect(),
        }
    }
}

fn vcpu(config: &VmConfig, index: u8, thread: &AtomicU64) -> VcpuFacts {
    let shape = config.cpus.topology();
    let (threads, cores) = (shape.threads.max(1), shape.cores.max(1));
    let core = index / threads;
    VcpuFacts {
        thread_id: thread.load(Ordering::Relaxed),
        socket: core / cores,
        core: core % cores,
        thread: index % threads,
    }
}

fn disk(config: &DiskConfig, device: &Device) -> DiskFacts {
    let mut ops = OpsSnapshot::default();
    for queue in &device.requests {
        let OpsSnapshot { read, write, flush, discard, write_zeroes, other } = queue.snapshot().ops;
        ops.read += read;
        ops.write += write;
        ops.flush += flush;
        ops.discard += discard;
        ops.write_zeroes += write_zeroes;
        ops.other += other;
    }
    DiskFacts {
        id: config.id.clone(),
        path: config.path.display().to_string(),
        read_only: config.read_only,
        size_bytes: device.disk.as_ref().map_or(0, |disk| disk.capacity_sectors() * SECTOR_BYTES),
        limit_ops: config.limits.ops,
        limit_bytes: config.limits.bytes,
        ops,
        read_bytes: device.queues.iter().map(|queue| queue.bytes_to_guest.get()).sum(),
        written_bytes: device.queues.iter().map(|queue| queue.bytes_from_guest.get()).sum(),
    }
}

fn net(config: &NetConfig, device: &Device) -> NetFacts {
    NetFacts {
        id: config.id.clone(),
        mac: device.card.as_ref().map_or_else(|| "unknown".to_owned(), |card| Mac(card.mac()).to_string()),
        host: config.tap.clone(),
        is_up: device.card.as_ref().is_some_and(|card| card.is_up()),
    }
}

/// The control socket first, as SmartOS orders them.
fn characters(config: &VmConfig) -> Vec<CharacterFacts> {
    let socket = |path: &std::path::Path| format!("unix:{},server", path.display());
    let qmp = config.qmp.iter().map(|path| ("qmp".to_owned(), socket(path)));
    let lines = config.backends().into_iter().map(|(name, backend)| {
        let filename = match backend {
            SerialBackend::Socket(path) => socket(path),
            SerialBackend::File(path) => format!("file:{}", path.display()),
            SerialBackend::Device(path) => path.display().to_string(),
            SerialBackend::Metadata(path) => format!("metadata:{}", path.display()),
            SerialBackend::Stdio => "stdio".to_owned(),
            SerialBackend::Pty => "pty".to_owned(),
            SerialBackend::Null => "null".to_owned(),
        };
        // qemu counts serial ports from 0.
        let port = name.strip_prefix("com").and_then(|number| number.parse::<u8>().ok());
        (port.map_or_else(|| name.to_owned(), |port| format!("serial{}", port - 1)), filename)
    });
    qmp.chain(lines).map(|(label, filename)| CharacterFacts { label, filename }).collect()
}

/// Offsets in a function's header (PCI Local Bus 3.0 §6.1).
mod header {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const CLASS: u16 = 0x0a;
    pub const BARS: u16 = 0x10;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

fn facts(address: PciAddress, name: &str, function: &dyn PciFunction, bars: &[(u8, u64)]) -> PciFacts {
    let irq = read(function, header::INTERRUPT_LINE);
    PciFacts {
        id: name.to_owned(),
        slot: address.device(),
        function: address.function(),
        vendor: u16::from_le_bytes(read(function, header::VENDOR)),
        device: u16::from_le_bytes(read(function, header::DEVICE)),
        class: u16::from_le_bytes(read(function, header::CLASS)),
        irq: (read(function, header::INTERRUPT_PIN) != [0]).then_some(irq).map(|[irq]| irq),
        bars: bars.iter().map(|(index, len)| bar(function, *index, *len)).collect(),
    }
}

/// Bits of a base address register (PCI Local Bus 3.0 §6.2.5.1).
const IO: u32 = 1;
const MEMORY_64: u32 = 0b110;
const PREFETCHABLE: u32 = 0b1000;

fn is_64_bit(bar: u32) -> bool {
    bar & IO == 0 && bar & MEMORY_64 == 0b100
}

fn address_mask(bar: u32) -> u32 {
    if bar & IO != 0 { !0b11 } else { !0b1111 }
}

fn bar_offset(index: u8) -> u16 {
    header::BARS + 4 * u16::from(index)
}

fn bar(function: &dyn PciFunction, index: u8, len: u64) -> BarFacts {
    let low = u32::from_le_bytes(read(function, bar_offset(index)));
    let is_64_bit = is_64_bit(low);
    let high = if is_64_bit { u32::from_le_bytes(read(function, bar_offset(index + 1))) } else { 0 };
    let is_io = low & IO != 0;
    BarFacts {
        index,
        is_io,
        is_prefetchable: !is_io && low & PREFETCHABLE != 0,
        is_64_bit,
        address: u64::from(high) << 32 | u64::from(low & address_mask(low)),
        len,
    }
}

/// Numbers and sizes of a function's base address registers, found as firmware finds them (§6.2.5.1): with decoding off,
/// the bits that can be set tell. Everything is left as it was.
fn bar_sizes(function: &dyn PciFunction) -> Vec<(u8, u64)> {
    let command: [u8; 2] = read(function, header::COMMAND);
    function.write_config(header::COMMAND, &[0, 0]);
    let settable = |index| {
        let before: [u8; 4] = read(function, bar_offset(index));
        function.write_config(bar_offset(index), &[0xff; 4]);
        let all = u32::from_le_bytes(read(function, bar_offset(index)));
        function.write_config(bar_offset(index), &before);
        all
    };
    let (mut sizes, mut index) = (Vec::new(), 0);
    while index < 6 {
        let low = settable(index);
        let mut bits = u64::from(low & address_mask(low));
        let next = if is_64_bit(low) && index < 5 {
            bits |= u64::from(settable(index + 1)) << 32;
            index + 2
        } else {
            index + 1
        };
        if bits != 0 {
            sizes.push((index, 1 << bits.trailing_zeros()));
        }
        index = next;
    }
    function.write_config(header::COMMAND, &command);
    sizes
}

fn read<const BYTES: usize>(function: &dyn PciFunction, offset: u16) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    function.read_config(offset, &mut bytes);
    bytes
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
