//! A guest of a few instructions on the backend, and the devices it talks to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::cpu::CpuidEntry;
use arch::regs;
use devices::bus::Access;
use devices_host::ram::RamOptions;
use devices_host::sys::{Errno, IoctlArg};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes};
use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor, BhyveVm, VmFd};
use zvmm::hypervisor::{ExitHandler, ExitKind, Hypervisor, HypervisorError, Kick, Stop, Vcpu, VcpuStart, Vm, VmSpec};
use zvmm_double::bhyve::Vmm;
use zvmm_double::{DoubleSys, Host, Zone};

/// Where the first vCPU's code lies.
pub const CODE: u32 = 0x1000;
/// Bytes of guest memory, from 0.
pub const RAM: u64 = 4 << 20;
/// Nothing is here: accesses go to [`Devices`].
pub const DEVICE: u64 = 0xd000_0000;
/// `out 0xf4, al; jmp $`: the guest has said all.
pub const END: [u8; 4] = [0xe6, 0xf4, 0xeb, 0xfe];
/// `out 0x80, eax`.
pub const TELL: [u8; 2] = [0xe7, 0x80];
/// `mov eax, edx; out 0x80, eax`.
pub const TELL_EDX: [u8; 4] = [0x89, 0xd0, 0xe7, 0x80];

const PATIENCE: Duration = Duration::from_secs(60);

/// A process on a machine with a VM.
pub struct Guest {
    pub process: Arc<DoubleSys>,
    pub hypervisor: BhyveHypervisor,
    pub vm: BhyveVm,
    pub vcpus: Vec<Box<dyn Vcpu>>,
}

impl Guest {
    /// A VM with 4 MiB and no vCPU.
    pub fn bare() -> Self {
        Self::on(&Host::new(vec![Vmm::new()]))
    }

    pub fn on(host: &Arc<Host>) -> Self {
        let process = DoubleSys::new(host, Zone::bhyve(1));
        let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
        let hypervisor = BhyveHypervisor::open(process.clone(), config).unwrap();
        let spec = VmSpec { name: "guest".to_owned(), ram: vec![(0, RAM)], ram_options: RamOptions::default() };
        let vm = hypervisor.create(&spec).unwrap();
        Self { process, hypervisor, vm, vcpus: Vec::new() }
    }

    /// One vCPU in flat 32-bit protected mode at this code, and [`END`] behind it.
    pub fn with_code(code: &[&[u8]]) -> Self {
        let mut guest = Self::bare();
        guest.load(CODE, code);
        let table = guest.table(0);
        guest.add_vcpu(0, &table, Some(CODE));
        guest
    }

    pub fn load(&self, at: u32, code: &[&[u8]]) {
        regs::write_gdt(self.vm.ram(), false).unwrap();
        self.vm.ram().write_slice(&[&code.concat(), &END[..]].concat(), GuestAddress(at.into())).unwrap();
    }

    /// What the kernel offers, as vCPU `id` must have it.
    pub fn table(&self, id: u32) -> Vec<CpuidEntry> {
        let mut entries = self.hypervisor.supported_cpuid().unwrap();
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

    /// A vCPU at an address, or one that waits for its SIPI.
    pub fn add_vcpu(&mut self, id: u8, table: &[CpuidEntry], at: Option<u32>) {
        let mut vcpu = self.vm.create_vcpu(id, table).unwrap();
        vcpu.reset(&at.map_or(VcpuStart::WaitForSipi, start)).unwrap();
        self.vcpus.push(vcpu);
    }

    pub fn fd(&self) -> &VmFd {
        self.vm.fd()
    }

    /// Runs the first vCPU until the guest has said all, or something else ends it.
    pub fn run(&mut self, devices: &mut Devices) -> Result<Stop, HypervisorError> {
        devices.run(&mut *self.vcpus[0])
    }

    /// What the guest tells at port 0x80, and that it came to its end.
    pub fn told(&mut self, devices: &mut Devices) -> Vec<u32> {
        let stop = self.run(devices).unwrap();
        assert!(devices.done, "{stop:?}, told {:x?}", devices.out);
        devices.out.iter().filter(|out| out.port == 0x80).map(|out| out.value).collect()
    }

    /// The end: nothing is left, and only these rules were broken, on purpose.
    #[track_caller]
    pub fn finish(self, on_purpose: &[&str]) {
        let Self { process, hypervisor, vm, vcpus } = self;
        drop((vcpus, vm, hypervisor));
        assert_eq!(process.leaks(), []);
        let mut broken: Vec<&str> = process.violations().iter().map(|violation| violation.rule.name).collect();
        broken.sort_unstable();
        broken.dedup();
        let details: Vec<String> = process.violations().iter().map(ToString::to_string).collect();
        assert_eq!(broken, on_purpose, "{details:#?}");
    }
}

pub fn start(at: u32) -> VcpuStart {
    VcpuStart::Boot(Box::new(regs::pvh_boot(at.into(), 0)))
}

/// A call that the backend has no use for, as the kernel gets it.
pub fn raw<T: IntoBytes + FromBytes + Immutable>(fd: &VmFd, request: i32, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the argument is the structure the command takes; its pointers are 0 or to buffers of the length it says.
    unsafe { fd.handle().ioctl(request, IoctlArg::Buffer(argument.as_mut_bytes())) }
}

/// A write to a port, and when the process had it.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub port: u16,
    pub len: usize,
    pub value: u32,
    pub came: Instant,
    pub left: Instant,
}

/// Everything that is not the kernel's.
#[derive(Default)]
pub struct Devices {
    pub out: Vec<Out>,
    /// Answers to reads of ports, in turn.
    pub ports: VecDeque<u32>,
    /// Answers to reads of memory, in turn; then zeros.
    pub memory: VecDeque<u64>,
    pub reads: Vec<(u64, usize)>,
    pub writes: Vec<(u64, u64)>,
    /// Registers that can be read and written.
    pub msrs: BTreeMap<u32, u64>,
    /// How long the first write to port 0x80 takes.
    pub wait: Duration,
    /// Take the vCPU out after a read of a port.
    pub stop_at_input: bool,
    pub done: bool,
    pub kick: Option<Arc<dyn Kick>>,
}

impl Devices {
    pub fn run(&mut self, vcpu: &mut dyn Vcpu) -> Result<Stop, HypervisorError> {
        self.kick = Some(vcpu.kicker());
        let end = Instant::now() + PATIENCE;
        let result = loop {
            match vcpu.run(self) {
                Ok(Stop::Kicked) if !self.done => assert!(Instant::now() < end, "told {:x?}", self.out),
                other => break other,
            }
        };
        // It holds the VM.
        self.kick = None;
        result
    }

    fn finish(&mut self) {
        self.done = true;
        self.kick.iter().for_each(|kick| kick.kick());
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl ExitHandler for Devices {
    fn port_in(&mut self, _port: u16, data: &mut [u8]) -> Access {
        let value = self.ports.pop_front().unwrap_or(0);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        if self.stop_at_input {
            self.finish();
        }
        Access::Done
    }

    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        let came = Instant::now();
        if port == 0xf4 {
            self.finish();
            return Access::Done;
        }
        if port == 0x80 && self.out.iter().all(|out| out.port != 0x80) {
            std::thread::sleep(self.wait);
        }
        let out = Out { port, len: data.len(), value: number(data) as u32, came, left: Instant::now() };
        self.out.push(out);
        Access::Done
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        self.reads.push((address, data.len()));
        let value = self.memory.pop_front().unwrap_or(0);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        Access::Done
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.writes.push((address, number(data)));
        Access::Done
    }

    fn rdmsr(&mut self, code: u32) -> Option<u64> {
        self.msrs.get(&code).copied()
    }

    fn wrmsr(&mut self, code: u32, value: u64) -> bool {
        self.msrs.get_mut(&code).map(|place| *place = value).is_some()
    }

    fn count(&mut self, _exit: ExitKind) {}
}
