//! The backend on the double, in one process: what a guest sees while others disturb its vCPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arch::regs;
use devices::bus::Access;
use devices_host::ram::RamOptions;
use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor};
use zvmm::hypervisor::{ExitHandler, ExitKind, Hypervisor, Kick, Stop, Vcpu, VcpuStart, Vm, VmSpec};

use super::*;

/// `cpuid; jmp` back to it: an exit a round, for emulators that hold back interrupts without one.
const SPIN: [u8; 4] = [0x0f, 0xa2, 0xeb, 0xfc];

/// Bytes that a guest sends.
const BYTES: u32 = 3000;

/// `mov ecx, BYTES; mov dx, 0x3f8; again: mov al, cl; out dx, al; in al, dx; dec ecx; jnz again`.
const SEND: [u8; 16] = [0xb9, 0xb8, 0x0b, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0x88, 0xc8, 0xee, 0xec, 0x49, 0x75, 0xf9];

#[derive(Default)]
struct Serial {
    sent: Vec<u8>,
    reads: usize,
    stray: usize,
}

impl ExitHandler for Serial {
    fn port_in(&mut self, _port: u16, data: &mut [u8]) -> Access {
        self.reads += 1;
        data.fill(0);
        Access::Done
    }
    fn port_out(&mut self, _port: u16, data: &[u8]) -> Access {
        self.sent.extend(data);
        Access::Done
    }
    fn mmio_read(&mut self, _address: u64, data: &mut [u8]) -> Access {
        self.stray += 1;
        data.fill(0xff);
        Access::Done
    }
    fn mmio_write(&mut self, _address: u64, _data: &[u8]) -> Access {
        self.stray += 1;
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

struct Guest {
    process: Arc<DoubleSys>,
    hypervisor: BhyveHypervisor,
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

impl Guest {
    /// One vCPU in flat 32-bit protected mode at this code, which spins at its end.
    fn new(code: &[u8]) -> Self {
        let process = DoubleSys::new(&Host::new(vec![Vmm::new()]), Zone::bhyve(1));
        let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
        let hypervisor = BhyveHypervisor::open(process.clone(), config).unwrap();
        let spec = VmSpec { name: "guest".to_owned(), ram: vec![(0, 2 << 20)], ram_options: RamOptions::default() };
        let vm = hypervisor.create_vm(&spec).unwrap();
        regs::write_gdt(vm.ram(), false).unwrap();
        vm.ram().write_slice(&[code, &SPIN].concat(), GuestAddress(CODE)).unwrap();
        let mut vcpu = vm.create_vcpu(0, &table(&hypervisor, 0)).unwrap();
        vcpu.reset(&VcpuStart::Boot(Box::new(regs::pvh_boot(CODE, 0)))).unwrap();
        Self { process, hypervisor, vm, vcpu }
    }

    /// Another process of the machine, in the global zone, with the VM open.
    fn neighbour(&self) -> Rig {
        let sys = DoubleSys::new(self.process.host(), Zone::global());
        let vm = sys.open("/dev/vmm/guest", OpenFlags::READ_WRITE).unwrap();
        Rig { sys, control: vm, vm }
    }

    #[track_caller]
    fn finish(self) {
        let Self { process, hypervisor, vm, vcpu } = self;
        drop((vcpu, vm, hypervisor));
        process.leaks().into_iter().for_each(|leak| process.note_leak(leak));
        let broken: Vec<String> = process.violations().iter().map(ToString::to_string).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

/// What the kernel offers, as vCPU `id` must have it.
fn table(hypervisor: &BhyveHypervisor, id: u32) -> Vec<arch::cpu::CpuidEntry> {
    let mut entries = hypervisor.supported_cpuid().unwrap();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xff_ffff | id << 24;
                entry.ecx |= 1 << 21;
            }
            0xb | 0x1f => entry.edx = id,
            0x8000_001e => entry.eax = id,
            _ => {}
        }
    }
    entries
}

/// Sends all bytes while `disturb` is repeated by a neighbour.
fn send_while(disturb: impl Fn(&Rig) + Send + 'static) {
    let mut guest = Guest::new(&SEND);
    let neighbour = guest.neighbour();
    let done = Arc::new(AtomicBool::new(false));
    let storm = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                disturb(&neighbour);
                rounds += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
            neighbour.sys.end();
            rounds
        }
    });
    guest.vcpu.bind_to_current_thread().unwrap();
    let mut serial = Serial::default();
    let end = Instant::now() + Duration::from_secs(30);
    while serial.reads < BYTES as usize {
        assert!(Instant::now() < end, "{} bytes", serial.sent.len());
        assert!(matches!(guest.vcpu.run(&mut serial).unwrap(), Stop::Kicked));
    }
    done.store(true, Ordering::Relaxed);
    let rounds: usize = storm.join().unwrap();
    assert!(rounds > 10, "{rounds} rounds");
    let expected: Vec<u8> = (1..=BYTES).rev().map(|count| count as u8).collect();
    assert_eq!(serial.sent, expected);
    assert_eq!((serial.reads, serial.stray), (BYTES as usize, 0));
    guest.finish();
}

#[test]
fn a_storm_of_pauses_loses_no_byte_and_repeats_none() {
    send_while(|neighbour| {
        neighbour.number(VM_PAUSE, 0).unwrap();
        std::thread::yield_now();
        neighbour.number(VM_RESUME, 0).unwrap();
    });
}

#[test]
fn a_storm_of_register_reads_loses_no_byte_and_repeats_none() {
    send_while(|neighbour| {
        neighbour.registered(VM_REG_GUEST_RIP);
    });
}

#[test]
fn a_storm_of_barriers_loses_no_byte_and_repeats_none() {
    send_while(|neighbour| {
        neighbour.number(VM_VCPU_BARRIER, 0).unwrap();
    });
}

#[test]
fn a_second_cpu_waits_for_its_sipi_and_starts_where_it_says() {
    let mut code = Vec::new();
    // INIT, then SIPI to 0x7000, to all others: the interrupt command register.
    for command in [0xc_4500_u32, 0xc_4607] {
        code.extend([0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe]);
        code.extend(command.to_le_bytes());
    }
    let mut guest = Guest::new(&code);
    // At 0x7000, in real mode: mov al, 'S'; mov dx, 0x3f8; out dx, al
    guest.vm.ram().write_slice(&[0xb0, 0x53, 0xba, 0xf8, 0x03, 0xee], GuestAddress(0x7000)).unwrap();
    guest.vm.ram().write_slice(&SPIN, GuestAddress(0x7006)).unwrap();
    let mut second = guest.vm.create_vcpu(1, &table(&guest.hypervisor, 1)).unwrap();
    second.reset(&VcpuStart::WaitForSipi).unwrap();
    let (kick, kick_boot) = (second.kicker(), guest.vcpu.kicker());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut serial = Serial::default();
            second.bind_to_current_thread().unwrap();
            // Once before the SIPI: it must come out, and go back to wait.
            assert!(matches!(second.run(&mut serial).unwrap(), Stop::Kicked));
            assert!(serial.sent.is_empty());
            while serial.sent.is_empty() {
                assert!(matches!(second.run(&mut serial).unwrap(), Stop::Kicked));
            }
            serial.sent
        });
        std::thread::sleep(Duration::from_millis(20));
        kick.kick();
        std::thread::sleep(Duration::from_millis(20));
        let boot = scope.spawn(|| {
            guest.vcpu.bind_to_current_thread().unwrap();
            assert!(matches!(guest.vcpu.run(&mut Serial::default()).unwrap(), Stop::Kicked));
        });
        let end = Instant::now() + Duration::from_secs(10);
        while !waiting.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            kick.kick();
        }
        assert_eq!(waiting.join().unwrap(), [0x53]);
        kick_boot.kick();
        boot.join().unwrap();
    });
    // A kick knows the VM, too.
    drop((second, kick, kick_boot));
    guest.finish();
}

/// Leaves the guest after every byte that it sends.
struct Kicking {
    serial: Serial,
    kick: Arc<dyn Kick>,
}

impl ExitHandler for Kicking {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        self.serial.port_in(port, data)
    }
    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.kick.kick();
        self.serial.port_out(port, data)
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        self.serial.mmio_read(address, data)
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.serial.mmio_write(address, data)
    }
    fn rdmsr(&mut self, _code: u32) -> Option<u64> {
        None
    }
    fn wrmsr(&mut self, _code: u32, _value: u64) -> bool {
        false
    }
    fn count(&mut self, _exit: ExitKind) {}
}

#[test]
fn a_non_maskable_interrupt_arrives_at_a_guest_that_masks_interrupts() {
    const IDT: u64 = 0x2000;
    const IDTR: u64 = 0x3000;
    const HANDLER: u64 = 0x4000;
    let send = |byte: u8| [0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee]; // mov dx, 0x3f8; mov al, byte; out dx, al
    let mut code = vec![
        0x0f, 0x01, 0x1d, 0x00, 0x30, 0x00, 0x00, // lidt [0x3000]
        0xbc, 0x00, 0x80, 0x00, 0x00, // mov esp, 0x8000
    ];
    code.extend(send(b'r'));
    let mut guest = Guest::new(&code);
    let ram = guest.vm.ram();
    ram.write_slice(&[&send(b'n')[..], &SPIN].concat(), GuestAddress(HANDLER)).unwrap();
    let gate = (HANDLER & 0xffff) | u64::from(regs::BOOT_CS) << 16 | 0x8e00 << 32;
    ram.write_obj(gate, GuestAddress(IDT + 8 * 2)).unwrap();
    ram.write_obj(0x7ff_u16, GuestAddress(IDTR)).unwrap();
    ram.write_obj(IDT as u32, GuestAddress(IDTR + 2)).unwrap();
    guest.vcpu.bind_to_current_thread().unwrap();
    let mut io = Kicking { serial: Serial::default(), kick: guest.vcpu.kicker() };
    assert!(matches!(guest.vcpu.run(&mut io).unwrap(), Stop::Kicked));
    assert_eq!(io.serial.sent, b"r");
    guest.vcpu.inject_nmi().unwrap();
    // Should it not arrive, nothing else has the guest leave.
    let ((arrived, arrival), patience) = (mpsc::channel::<()>(), guest.vcpu.kicker());
    let watch = std::thread::spawn(move || {
        if arrival.recv_timeout(Duration::from_secs(30)) == Err(mpsc::RecvTimeoutError::Timeout) {
            patience.kick();
        }
    });
    assert!(matches!(guest.vcpu.run(&mut io).unwrap(), Stop::Kicked));
    drop(arrived);
    watch.join().unwrap();
    assert_eq!((&io.serial.sent[..], io.serial.stray), (&b"rn"[..], 0));
    drop(io);
    guest.finish();
}

#[test]
fn every_call_that_fails_while_a_vm_is_made_leaves_nothing_behind() {
    use crate::{Injecting, Injection, Moment};

    let make = |injections| {
        let process = DoubleSys::new(&Host::new(vec![Vmm::new()]), Zone::bhyve(1));
        let sys = Injecting::new(process.clone(), injections);
        let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
        let result = BhyveHypervisor::open(sys.clone(), config).and_then(|hypervisor| {
            let spec = VmSpec {
                name: "guest".to_owned(),
                ram: vec![(0, 1 << 20), (1 << 32, 1 << 20)],
                ram_options: RamOptions::default(),
            };
            let vm = hypervisor.create_vm(&spec)?;
            vm.map_rom(0xffff_f000, &[0x90; 4096])?;
            vm.set_up_kernel_devices(&zvmm::hypervisor::KernelDevices {
                pm_timer_port: Some(0x408),
                nvram: vec![(0x40, 1)],
            })?;
            let mut vcpu = vm.create_vcpu(0, &table(&hypervisor, 0))?;
            vcpu.reset(&VcpuStart::WaitForSipi)
        });
        (process, sys.counts(), result)
    };
    let (process, counts, result) = make(Vec::new());
    result.unwrap();
    assert_eq!(process.leaks(), []);
    let mut failed = 0;
    for (call, count) in counts {
        let mut moments = vec![1, count.div_ceil(2), count];
        moments.dedup();
        for nth in moments {
            for errno in [Errno::EINVAL, Errno::ENXIO, Errno::ENOMEM, Errno::EBUSY, Errno::ENOTTY, Errno::EEXIST] {
                let injection = Injection { call: call.clone(), moment: Moment::nth(nth), errno };
                let (process, _, result) = make(vec![injection]);
                failed += usize::from(result.is_err());
                assert_eq!(process.leaks(), [], "{call} {nth} {errno:?}: {result:?}");
                let broken = process.violations();
                assert!(broken.is_empty(), "{call} {nth} {errno:?}: {broken:?}");
            }
        }
    }
    assert!(failed > 50, "{failed} failures");
}
