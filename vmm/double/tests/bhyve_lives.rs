//! A bhyve VM's life across processes: taken over, replaced, saved and restored, through the backend on the double.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use arch::cpu::{CpuModel, CpuidOptions, CpuidTemplate, Topology};
use arch::regs;
use devices::bus::Access;
use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor, BhyveVm};
use zvmm::hypervisor::{ExitHandler, ExitKind, Hypervisor, Kick, Stop, Vcpu, VcpuStart, Vm, VmSpec};
use zvmm_double::{DoubleSys, Host, Zone, bhyve};

const MIB: u64 = 1 << 20;
const CODE: u64 = 0x1000;

/// Counts in AL and says so at a port, for ever.
const COUNT: [u8; 10] = [
    0x30, 0xc0, // xor al, al
    0x66, 0xba, 0x80, 0x00, // mov dx, 0x80
    0xfe, 0xc0, // again: inc al
    0xee, // out dx, al
    0xeb, // jmp again
];
const BACK: u8 = 0xfb;

fn host() -> Arc<Host> {
    Host::new(vec![bhyve::Vmm::new()])
}

fn process(host: &Arc<Host>) -> Arc<DoubleSys> {
    DoubleSys::new(host, Zone::bhyve(1))
}

fn open(process: &Arc<DoubleSys>) -> BhyveHypervisor {
    BhyveHypervisor::open(process.clone(), BhyveConfig { name: "guest".to_owned(), reservoir: false }).unwrap()
}

fn create(hypervisor: &BhyveHypervisor, mib: u64) -> BhyveVm {
    let ram = vec![(0, mib * MIB), (4096 * MIB, MIB)];
    hypervisor.create(&VmSpec { name: "guest".to_owned(), ram, ram_options: Default::default() }).unwrap()
}

fn boot(hypervisor: &BhyveHypervisor, vm: &BhyveVm) -> Box<dyn Vcpu> {
    let host = hypervisor.capabilities();
    let options = CpuidOptions {
        tsc_khz: None,
        apic_timer_hz: host.apic_timer_hz,
        hypervisor: host.hypervisor_leaves,
        x2apic: host.x2apic,
        tsc_deadline: host.tsc_deadline,
        phys_bits: host.phys_bits,
    };
    let model: CpuModel = "host".parse().unwrap();
    let offered = hypervisor.supported_cpuid().unwrap();
    let table = CpuidTemplate::new(&offered, &model, &Topology::with(1, 1, 1).unwrap(), &options).unwrap();
    let mut vcpu = vm.create_vcpu(0, &table.for_vcpu(0)).unwrap();
    regs::write_gdt(vm.ram(), false).unwrap();
    vm.ram().write_slice(&[&COUNT[..], &[BACK]].concat(), GuestAddress(CODE)).unwrap();
    vcpu.reset(&VcpuStart::Boot(Box::new(regs::pvh_boot(CODE, 0)))).unwrap();
    vcpu
}

/// Takes what the guest counts, and kicks it out after some of it.
struct Counter {
    seen: Vec<u8>,
    enough: usize,
    kick: Arc<dyn Kick>,
}

impl ExitHandler for Counter {
    fn port_in(&mut self, _port: u16, _data: &mut [u8]) -> Access {
        Access::Done
    }

    fn port_out(&mut self, _port: u16, data: &[u8]) -> Access {
        self.seen.extend_from_slice(data);
        if self.seen.len() == self.enough {
            self.kick.kick();
        }
        Access::Done
    }

    fn mmio_read(&mut self, _address: u64, _data: &mut [u8]) -> Access {
        Access::Done
    }

    fn mmio_write(&mut self, _address: u64, _data: &[u8]) -> Access {
        Access::Done
    }

    fn rdmsr(&mut self, _code: u32) -> Option<u64> {
        None
    }

    fn wrmsr(&mut self, _code: u32, _value: u64) -> bool {
        false
    }

    fn count(&mut self, _exit: ExitKind) {}
}

fn count(vcpu: &mut dyn Vcpu, enough: usize) -> Vec<u8> {
    let mut counter = Counter { seen: Vec::new(), enough, kick: vcpu.kicker() };
    while counter.seen.len() < enough {
        assert!(matches!(vcpu.run(&mut counter), Ok(Stop::Kicked)));
    }
    counter.seen
}

fn assert_clean(process: &DoubleSys) {
    assert_eq!(process.leaks(), []);
    let broken: Vec<String> = process.violations().iter().map(|violation| format!("{violation:?}")).collect();
    assert_eq!(broken, [""; 0]);
}

#[test]
fn the_next_process_takes_the_vm_over_with_its_memory_and_no_other_trace_of_it() {
    let host = host();
    let first = process(&host);
    {
        let hypervisor = open(&first);
        let vm = create(&hypervisor, 4);
        let mut vcpu = boot(&hypervisor, &vm);
        assert_eq!(count(&mut *vcpu, 3), [1, 2, 3]);
        vm.pause().unwrap();
        vm.ram().write_obj(0x1234_5678u32, GuestAddress(4096 * MIB)).unwrap();
        vm.leave(true);
    }
    let second = process(&host);
    {
        let hypervisor = open(&second);
        let vm = create(&hypervisor, 4);
        assert!(vm.ram_is_used());
        assert_eq!(vm.ram().read_obj::<u32>(GuestAddress(4096 * MIB)).unwrap(), 0x1234_5678);
        let mut vcpu = boot(&hypervisor, &vm);
        assert_eq!(count(&mut *vcpu, 3), [1, 2, 3], "from its start");
    }
    assert_clean(&second);
}

#[test]
fn a_vm_with_other_memory_is_replaced() {
    let host = host();
    let first = process(&host);
    create(&open(&first), 4).leave(true);
    let second = process(&host);
    {
        let hypervisor = open(&second);
        let vm = create(&hypervisor, 5);
        assert!(!vm.ram_is_used());
        let mut vcpu = boot(&hypervisor, &vm);
        assert_eq!(count(&mut *vcpu, 2), [1, 2]);
    }
    assert_clean(&second);
}

#[test]
fn a_guest_goes_on_in_another_vm_where_its_state_was_taken() {
    let (from, to) = (process(&host()), process(&host()));
    let (state, low) = {
        let hypervisor = open(&from);
        let vm = create(&hypervisor, 4);
        let mut vcpu = boot(&hypervisor, &vm);
        assert_eq!(count(&mut *vcpu, 3), [1, 2, 3]);
        vcpu.quiesce().unwrap();
        vm.pause().unwrap();
        let mut low = vec![0u8; 0x2000];
        vm.ram().read_slice(&mut low, GuestAddress(0)).unwrap();
        (serde_json::to_vec(&vm.save_kernel_state().unwrap()).unwrap(), low)
    };
    assert_clean(&from);
    {
        let hypervisor = open(&to);
        let vm = create(&hypervisor, 4);
        let mut vcpu = boot(&hypervisor, &vm);
        vm.ram().write_slice(&low, GuestAddress(0)).unwrap();
        vm.pause().unwrap();
        vm.restore_kernel_state(&serde_json::from_slice(&state).unwrap()).unwrap();
        vm.resume().unwrap();
        assert_eq!(count(&mut *vcpu, 3), [4, 5, 6]);
    }
    assert_clean(&to);
}
