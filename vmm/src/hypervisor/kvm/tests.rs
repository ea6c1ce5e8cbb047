//! The backend on the machine's own `/dev/kvm`, with guests of a few integer instructions: any KVM runs them.

use std::sync::Mutex;
use std::time::Duration;

use arch::regs;
use devices::bus::Access;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::hypervisor::{ExitHandler, ExitKind, Stop, Vcpu, VcpuStart};

const CODE: u64 = 0x1000;

#[derive(Default)]
struct Recorder {
    log: Vec<String>,
    exits: usize,
}

impl ExitHandler for Recorder {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        self.log.push(format!("in {port:#x} {}", data.len()));
        data.fill(0x5a);
        Access::Done
    }
    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.log.push(format!("out {port:#x} {data:x?}"));
        Access::Done
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        self.log.push(format!("read {address:#x} {}", data.len()));
        data.copy_from_slice(&[0x11, 0x22, 0x33, 0x44][..data.len()]);
        Access::Done
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.log.push(format!("write {address:#x} {data:x?}"));
        Access::Done
    }
    fn rdmsr(&mut self, _code: u32) -> Option<u64> {
        None
    }
    fn wrmsr(&mut self, _code: u32, _value: u64) -> bool {
        false
    }
    fn count(&mut self, _exit: ExitKind) {
        self.exits += 1;
    }
}

/// A VM of 2 MiB whose one vCPU starts in flat 32-bit protected mode at `code`.
fn guest(code: &[u8]) -> (Arc<dyn Vm>, Box<dyn Vcpu>, VcpuStart) {
    devices_host::thread::install_kick_handler().unwrap();
    let hypervisor = KvmHypervisor::open().expect("these tests need /dev/kvm: run them inside the lab");
    let spec = VmSpec { name: String::new(), ram: vec![(0, 2 << 20)], ram_options: Default::default() };
    let vm = hypervisor.create_vm(&spec).unwrap();
    regs::write_gdt(vm.ram(), false).unwrap();
    vm.ram().write_slice(code, GuestAddress(CODE)).unwrap();
    let vcpu = vm.create_vcpu(0, &hypervisor.supported_cpuid().unwrap()).unwrap();
    (vm, vcpu, VcpuStart::Boot(Box::new(regs::pvh_boot(CODE, 0))))
}

/// `cpuid; jmp` back to it. Without the exit that CPUID is, an emulator that holds back all interrupts while a guest
/// without IF runs (Bochs 2.7, when the guest was entered so) would never get out of it.
const SPIN: [u8; 4] = [0x0f, 0xa2, 0xeb, 0xfc];

/// Runs until the guest has come to its end, as `arrived` sees it, and says how many kicks that took: a busy machine may not
/// have begun with the guest when one comes.
fn run_to_spin(vcpu: &mut dyn Vcpu, io: &mut Recorder, mut arrived: impl FnMut(&Recorder) -> bool) -> usize {
    vcpu.bind_to_current_thread().unwrap();
    for kicks in 1..1000 {
        let kick = vcpu.kicker();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            kick.kick();
        });
        assert!(matches!(vcpu.run(io).unwrap(), Stop::Kicked));
        kicker.join().unwrap();
        if arrived(io) {
            return kicks;
        }
    }
    panic!("the guest has not come to its end; so far: {:?}", io.log);
}

#[test]
fn port_and_memory_exits_reach_the_handler_with_their_widths_and_answers() {
    let mut code = vec![
        0xb0, 0x41, // mov al, 'A'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xec, // in al, dx
        0xee, // out dx, al
        0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [0xd0000000], eax
        0xa1, 0x04, 0x00, 0x00, 0xd0, // mov eax, [0xd0000004]
        0xef, // out dx, eax
    ];
    code.extend(SPIN);
    let (_vm, mut vcpu, start) = guest(&code);
    let mut io = Recorder::default();
    vcpu.reset(&start).unwrap();
    let kicks = run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= 6);
    let expected = [
        "out 0x3f8 [41]",
        "in 0x3f8 1",
        "out 0x3f8 [5a]",
        "write 0xd0000000 [5a, 0, 0, 0]",
        "read 0xd0000004 4",
        "out 0x3f8 [11, 22, 33, 44]",
    ];
    assert_eq!(io.log, expected);
    assert_eq!(io.exits, 6 + kicks, "the accesses and the kicks");
}

#[test]
fn a_string_instruction_arrives_as_single_elements_of_its_width() {
    let mut code = vec![
        0xbe, 0x00, 0x20, 0x00, 0x00, // mov esi, 0x2000
        0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
        0x66, 0xba, 0x00, 0x05, // mov dx, 0x500
        0xf3, 0x66, 0x6f, // rep outsw
    ];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    vm.ram().write_slice(&[1, 2, 3, 4, 5, 6], GuestAddress(0x2000)).unwrap();
    let mut io = Recorder::default();
    vcpu.reset(&start).unwrap();
    run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= 3);
    assert_eq!(io.log, ["out 0x500 [1, 2]", "out 0x500 [3, 4]", "out 0x500 [5, 6]"]);
}

#[test]
fn a_write_to_a_rom_arrives_as_an_exit_and_changes_nothing() {
    let mut code = vec![
        0xa1, 0x00, 0x00, 0x00, 0xd0, // mov eax, [0xd0000000]
        0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x78, 0x56, 0x34, 0x12, // mov dword [0xd0000000], 0x12345678
        0x8b, 0x1d, 0x00, 0x00, 0x00, 0xd0, // mov ebx, [0xd0000000]
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xef, // out dx, eax
        0x89, 0xd8, // mov eax, ebx
        0xef, // out dx, eax
    ];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    let mut image = vec![0xee; 0x2000];
    image[..4].copy_from_slice(&[1, 2, 3, 4]);
    vm.map_rom(0xd000_0000, &image).unwrap();
    let mut io = Recorder::default();
    vcpu.reset(&start).unwrap();
    run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= 3);
    let expected = ["write 0xd0000000 [78, 56, 34, 12]", "out 0x3f8 [1, 2, 3, 4]", "out 0x3f8 [1, 2, 3, 4]"];
    assert_eq!(io.log, expected);
}

#[test]
fn a_kick_before_the_run_is_not_lost() {
    let (_vm, mut vcpu, start) = guest(&SPIN);
    vcpu.reset(&start).unwrap();
    vcpu.bind_to_current_thread().unwrap();
    vcpu.kicker().kick();
    assert!(matches!(vcpu.run(&mut Recorder::default()).unwrap(), Stop::Kicked));
}

#[test]
fn a_reset_vcpu_runs_its_program_again_from_the_start() {
    let mut code = vec![0xb0, 0x41, 0x66, 0xba, 0xf8, 0x03, 0xee];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    let mut io = Recorder::default();
    for run in 1..=3 {
        vcpu.quiesce().unwrap();
        vm.reset().unwrap();
        vcpu.reset(&start).unwrap();
        run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= run);
    }
    assert_eq!(io.log, ["out 0x3f8 [41]"; 3]);
}

#[test]
fn a_triple_fault_is_told_apart_from_a_reset() {
    // ud2 without an IDT
    let (_vm, mut vcpu, start) = guest(&[0x0f, 0x0b]);
    vcpu.reset(&start).unwrap();
    vcpu.bind_to_current_thread().unwrap();
    assert!(matches!(vcpu.run(&mut Recorder::default()).unwrap(), Stop::TripleFault));
}

#[test]
fn a_vcpu_starts_in_real_mode_at_the_reset_vector() {
    const TOP: u64 = 0xffff_0000;
    const LOW: u64 = 0x7c00;
    devices_host::thread::install_kick_handler().unwrap();
    let hypervisor = KvmHypervisor::open().expect("these tests need /dev/kvm: run them inside the lab");
    let spec = VmSpec { name: String::new(), ram: vec![(0, 2 << 20), (TOP, 0x10000)], ram_options: Default::default() };
    let vm = hypervisor.create_vm(&spec).unwrap();
    let put = |code: &[u8], at: u64| vm.ram().write_slice(code, GuestAddress(at)).unwrap();
    // jmp 0xff00, in the same 64 KiB: a far jump would leave the top of memory
    put(&[0xe9, 0x0d, 0xff], TOP + 0xfff0);
    let top = [
        0xb0, 0x52, // mov al, 'R'
        0xba, 0xf8, 0x03, // mov dx, 0x3f8: three bytes, as only 16-bit code has it
        0xee, // out dx, al
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0xef, // out dx, ax
        0xb8, 0x34, 0x12, // mov ax, 0x1234
        0x8e, 0xd8, // mov ds, ax
        0xa1, 0x02, 0x00, // mov ax, [2]
        0xef, // out dx, ax
        0x8e, 0xd0, // mov ss, ax
        0xbc, 0x10, 0x00, // mov sp, 0x10
        0x54, // push sp
        0xea, 0x00, 0x7c, 0x00, 0x00, // jmp 0:0x7c00
    ];
    put(&top, TOP + 0xff00);
    put(&0x2000_u16.to_le_bytes(), 0x12340 + 2);
    put(&[0x8c, 0xc8, 0xef, 0x58, 0xef], LOW); // mov ax, cs; out dx, ax; pop ax; out dx, ax
    put(&SPIN, LOW + 5);
    let mut vcpu = vm.create_vcpu(0, &hypervisor.supported_cpuid().unwrap()).unwrap();
    let mut io = Recorder::default();
    vcpu.reset(&VcpuStart::Boot(Box::new(regs::reset_vector()))).unwrap();
    run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= 5);
    // CR0 without protection and paging; the word at 1234:2; CS 0; what was pushed at 2000:e.
    assert_eq!(
        io.log,
        ["out 0x3f8 [52]", "out 0x3f8 [10, 0]", "out 0x3f8 [0, 20]", "out 0x3f8 [0, 0]", "out 0x3f8 [10, 0]"]
    );
    let mut pushed = [0; 2];
    vm.ram().read_slice(&mut pushed, GuestAddress(0x2000e)).unwrap();
    assert_eq!(pushed, [0x10, 0]);
}

#[test]
fn a_doorbell_signals_its_event_without_an_exit() {
    use std::os::fd::AsRawFd;
    let mut code = vec![
        0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [0xd0000000], eax
        0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, 2
        0x66, 0xba, 0x10, 0xc0, // mov dx, 0xc010
        0x66, 0xef, // out dx, ax
    ];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    let (mmio, pio) = (devices_host::event::Event::new().unwrap(), devices_host::event::Event::new().unwrap());
    let doorbells = vm.doorbells().unwrap();
    let pio_address = super::super::DoorbellAddress::Pio { port: 0xc010, value: 2 };
    doorbells.bind(super::super::DoorbellAddress::Mmio(0xd000_0000), mmio.as_raw_fd()).unwrap();
    doorbells.bind(pio_address, pio.as_raw_fd()).unwrap();
    vcpu.reset(&start).unwrap();
    let mut io = Recorder::default();
    let (mut stored, mut written) = (false, false);
    run_to_spin(&mut *vcpu, &mut io, |_| {
        stored |= mmio.clear();
        written |= pio.clear();
        stored && written
    });
    assert_eq!(io.log, [""; 0]);
    assert!(stored && written);
    doorbells.unbind(pio_address, pio.as_raw_fd()).unwrap();
}

#[test]
fn msi_sources_get_routes_and_descriptors_only_when_the_guest_programs_them() {
    let (vm, _vcpu, _start) = guest(&SPIN);
    let source = vm.msi_source();
    source.trigger();
    source.set_message(Some(devices::interrupt::MsiMessage { address: 0xfee0_0000, data: 0x41 }));
    source.set_message(Some(devices::interrupt::MsiMessage { address: 0xfee0_1000, data: 0x42 }));
    source.trigger();
    source.set_message(None);
    source.trigger();
    let sources = Mutex::new((0..64).map(|_| vm.msi_source()).collect::<Vec<_>>());
    for source in sources.lock().unwrap().iter() {
        source.set_message(Some(devices::interrupt::MsiMessage { address: 0xfee0_0000, data: 0x50 }));
    }
}

#[test]
fn a_refused_device_says_what_to_do() {
    let line = open_hint(&io::Error::from_raw_os_error(libc::EACCES));
    assert_eq!(line, "/dev/kvm: Permission denied: add the user to the group that owns it (usually kvm)");
    let line = open_hint(&io::Error::from_raw_os_error(libc::ENOENT));
    assert!(line.starts_with("/dev/kvm: No such file or directory: load"), "{line}");
}

#[test]
fn collected_port_writes_arrive_in_order_before_the_next_exit_and_cost_none() {
    let mut code = vec![
        0xb0, 0x0a, // mov al, 0x0a
        0xe6, 0x70, // out 0x70, al
        0xfe, 0xc0, // inc al
        0xe6, 0x70, // out 0x70, al
        0xe4, 0x71, // in al, 0x71
    ];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    let collects = vm.port_collector().is_some_and(|collector| collector.collect(0x70, 1));
    vcpu.reset(&start).unwrap();
    let mut io = Recorder::default();
    let kicks = run_to_spin(&mut *vcpu, &mut io, |io| io.log.len() >= 3);
    assert_eq!(io.log, ["out 0x70 [a]", "out 0x70 [b]", "in 0x71 1"]);
    // Without the capability every write is an exit: the outcome is the same, the cost is not.
    assert_eq!(io.exits, kicks + if collects { 1 } else { 3 });
}

#[test]
fn collected_port_writes_can_be_taken_out_while_the_guest_stays_inside_and_collecting_ends() {
    let mut code = vec![
        0xb0, 0x0a, // mov al, 0x0a
        0xe6, 0x70, // out 0x70, al
    ];
    code.extend(SPIN);
    let (vm, mut vcpu, start) = guest(&code);
    let Some(collector) = vm.port_collector().filter(|collector| collector.collect(0x70, 1)) else {
        panic!("this KVM collects no port writes: run these tests inside the lab");
    };
    vcpu.reset(&start).unwrap();
    let kick = vcpu.kicker();
    let mut taken = Vec::new();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut io = Recorder::default();
            vcpu.bind_to_current_thread().unwrap();
            assert!(matches!(vcpu.run(&mut io).unwrap(), Stop::Kicked));
            io.log
        });
        while taken.is_empty() {
            std::thread::yield_now();
            collector.take_out(&mut |port, data| taken.push((port, data.to_vec())));
        }
        kick.kick();
        assert!(guest.join().unwrap().is_empty());
    });
    assert_eq!(taken, [(0x70, vec![0x0a])]);
    collector.release(0x70, 1);
    let mut io = Recorder::default();
    vcpu.reset(&start).unwrap();
    let kicks = run_to_spin(&mut *vcpu, &mut io, |io| !io.log.is_empty());
    assert_eq!(io.log, ["out 0x70 [a]"]);
    assert_eq!(io.exits, 1 + kicks, "the write and the kicks");
}

/// As a process that was stopped for a moment while it made its VM had no guest.
#[test]
fn a_call_that_a_signal_interrupts_is_made_again_and_another_error_is_not() {
    let mut errors = [libc::EINTR, libc::EINTR].map(kvm_ioctls::Error::new).into_iter();
    assert!(matches!(uninterrupted("KVM_CREATE_VM", || errors.next().map_or(Ok(7), Err)), Ok(7)));
    let mut calls = 0;
    let refused = uninterrupted("KVM_CREATE_VM", || {
        calls += 1;
        Err::<(), _>(kvm_ioctls::Error::new(libc::EMFILE))
    });
    assert_eq!(refused.unwrap_err().to_string(), "KVM_CREATE_VM: Too many open files (os error 24)");
    assert_eq!(calls, 1);
}
