use std::sync::Arc;

use devices::pci::{BarKind, BarSpec};
use devices::pci::{ConfigSpace, FixedFunction, Identity};

use super::*;

fn identity() -> Identity {
    Identity {
        vendor: 0x1af4,
        device: 0x1001,
        revision: 0,
        class: 0x01_00_00,
        subsystem_vendor: 0x1af4,
        subsystem: 2,
        pin: 1,
        line: 11,
    }
}

fn function(bars: &[(BarSpec, u64)]) -> FixedFunction {
    let mut space = ConfigSpace::new(identity());
    bars.iter().for_each(|(bar, address)| space.add_bar(*bar, *address).unwrap());
    FixedFunction::new(space)
}

#[test]
fn registers_are_measured_without_a_trace_and_shown_where_the_guest_put_them() {
    let bars = [
        (BarSpec { index: 0, kind: BarKind::Io, len: 0x40 }, 0xc040),
        (BarSpec { index: 1, kind: BarKind::Memory32, len: 0x1000 }, 0xfebf_1000),
        (BarSpec { index: 4, kind: BarKind::Memory64, len: 1 << 33 }, 0xc_0000_0000),
    ];
    let function = function(&bars);
    function.write_config(header::COMMAND, &[7, 0]);
    let before: Vec<[u8; 4]> = (0..64).map(|word| read(&function, 4 * word)).collect();
    let sizes = bar_sizes(&function);
    assert_eq!(sizes, [(0, 0x40), (1, 0x1000), (4, 1 << 33)]);
    assert_eq!((0..64).map(|word| read(&function, 4 * word)).collect::<Vec<[u8; 4]>>(), before);

    function.write_config(bar_offset(0), &0xd000_u32.to_le_bytes());
    let shown = facts(PciAddress::new(5, 0).unwrap(), "disk0", &function, &sizes);
    let ids = (shown.id.as_str(), shown.slot, shown.vendor, shown.device, shown.class, shown.irq);
    assert_eq!(ids, ("disk0", 5, 0x1af4, 0x1001, 0x0100, Some(11)));
    let io = BarFacts { index: 0, is_io: true, address: 0xd000, len: 0x40, ..BarFacts::default() };
    let memory = BarFacts { index: 1, address: 0xfebf_1000, len: 0x1000, ..BarFacts::default() };
    let wide = BarFacts {
        index: 4,
        is_io: false,
        is_prefetchable: true,
        is_64_bit: true,
        address: 0xc_0000_0000,
        len: 1 << 33,
    };
    assert_eq!(shown.bars, [io, memory, wide]);
}

#[test]
fn a_function_without_registers_and_pin_shows_none() {
    let space = ConfigSpace::new(Identity { pin: 0, ..identity() });
    let function = FixedFunction::new(space);
    assert_eq!(bar_sizes(&function), []);
    let shown = facts(PciAddress::new(0, 0).unwrap(), "host bridge", &function, &[]);
    assert_eq!((shown.irq, shown.bars), (None, Vec::new()));
}

#[test]
fn what_is_fixed_is_the_configurations() {
    let mut config = VmConfig { name: "web".to_owned(), qmp: Some("/tmp/vm.qmp".into()), ..VmConfig::default() };
    config.uuid = "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11".parse().ok();
    config.serials[0] = Some(SerialBackend::Socket("/tmp/vm.console".into()));
    config.serials[1] = Some(SerialBackend::Null);
    config.cpus.count = 8;
    config.cpus.topology = Some(crate::config::Topology { sockets: 2, cores: 2, threads: 2 });
    let pci = PciBus::new();
    pci.add(PciAddress::new(0, 0).unwrap(), "host bridge", Arc::new(function(&[]))).unwrap();
    let threads: Vec<_> = (100..108).map(AtomicU64::new).collect();
    let inventory = |hypervisor| Fixed::new(&config, hypervisor, &pci).now(&threads, &[], &pci);
    let shown = inventory("illumos-kvm");
    assert_eq!((shown.name.as_str(), shown.is_kvm, inventory("bhyve").is_kvm), ("web", true, false));
    assert_eq!(shown.uuid.as_deref(), Some("6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11"));
    assert_eq!(shown.vcpus[6], VcpuFacts { thread_id: 106, socket: 1, core: 1, thread: 0 });
    let lines: Vec<_> = shown.characters.iter().map(|line| (line.label.as_str(), line.filename.as_str())).collect();
    let expected =
        [("qmp", "unix:/tmp/vm.qmp,server"), ("serial0", "unix:/tmp/vm.console,server"), ("serial1", "null")];
    assert_eq!((lines, shown.functions.len()), (expected.to_vec(), 1));
}

#[test]
fn a_thread_has_one_number_and_no_other_has_it() {
    use crate::hypervisor::thread_id;
    let other = std::thread::spawn(thread_id).join().unwrap();
    assert!(thread_id() == thread_id() && thread_id() != other && other != 0);
}
