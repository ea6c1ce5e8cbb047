//! A guest of a few accesses on a hypervisor that does what a script says.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use devices::bus::Access;
use devices::interrupt::{IrqLine, MsiMessage, MsiSource};
use devices::park::Parked;
use devices::virtio::queue::Descriptor;
use devices_host::ram::RamOptions;
use vm_memory::{Bytes as _, GuestAddress};
use zvmm::hypervisor::{
    DoorbellAddress, ExitHandler, ExitKind, HardwareDoorbells, KernelDevices, Kick, PortCollector, Stop, Vcpu,
    VcpuStart,
};

use super::*;

const RAM_BYTES: usize = 0x1_0000;
const ECAM_3_0: u64 = arch::layout::ECAM_START + (3 << 15);
const BAR: u64 = 0xf000_0000;
/// Where the driver's rings are.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;

/// One access of the scripted guest.
#[derive(Clone, Debug)]
enum Do {
    Out(u16, Vec<u8>),
    In(u16, usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    /// The guest fills its memory: no exit.
    Store(u64, Vec<u8>),
}

struct Fake {
    capabilities: HostCapabilities,
    script: Vec<Do>,
}

impl Hypervisor for Fake {
    fn capabilities(&self) -> &HostCapabilities {
        &self.capabilities
    }
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(Vec::new())
    }
    fn create_vm(&self, _spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        Ok(Arc::new(FakeVm { ram, script: self.script.clone() }))
    }
}

struct FakeVm {
    ram: GuestRam,
    script: Vec<Do>,
}

struct Nothing;

impl IrqLine for Nothing {
    fn set(&self, _asserted: bool) {}
}

impl MsiSource for Nothing {
    fn set_message(&self, _message: Option<MsiMessage>) {}
    fn trigger(&self) {}
}

impl HardwareDoorbells for Nothing {
    fn bind(&self, _at: DoorbellAddress, _event: RawFd) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn unbind(&self, _at: DoorbellAddress, _event: RawFd) -> Result<(), HypervisorError> {
        Ok(())
    }
}

impl PortCollector for Nothing {
    fn collect(&self, _port: u16, _len: u8) -> bool {
        true
    }
    fn release(&self, _port: u16, _len: u8) {}
    fn take_out(&self, _write: &mut dyn FnMut(u16, &[u8])) {}
}

impl Kick for Nothing {
    fn kick(&self) {}
}

impl Vm for FakeVm {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }
    fn tsc_khz(&self) -> Option<u32> {
        Some(7)
    }
    fn create_vcpu(&self, _id: u8, _cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Ok(Box::new(FakeVcpu { ram: self.ram.clone(), script: self.script.clone() }))
    }
    fn irq_line(&self, _gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(Nothing)
    }
    fn msi_source(&self) -> Arc<dyn MsiSource> {
        Arc::new(Nothing)
    }
    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        Some(Arc::new(Nothing))
    }
    fn port_collector(&self) -> Option<Arc<dyn PortCollector>> {
        Some(Arc::new(Nothing))
    }
    fn map_rom(&self, _gpa: u64, _image: &[u8]) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn set_up_kernel_devices(&self, _devices: &KernelDevices) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn leave(&self, _restart: bool) {}
}

struct FakeVcpu {
    ram: GuestRam,
    script: Vec<Do>,
}

impl Vcpu for FakeVcpu {
    fn reset(&mut self, _start: &VcpuStart) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        for step in self.script.drain(..) {
            let access = match step {
                Do::Out(port, data) => io.port_out(port, &data),
                Do::In(port, width) => io.port_in(port, &mut [0; 8][..width]),
                Do::Write(address, data) => io.mmio_write(address, &data),
                Do::Read(address, width) => io.mmio_read(address, &mut [0; 8][..width]),
                Do::Store(address, data) => {
                    self.ram.write_slice(&data, GuestAddress(address)).unwrap();
                    Access::Done
                }
            };
            if let Access::Parked(token) = access {
                return Ok(Stop::Parked(token));
            }
        }
        Ok(Stop::Halt)
    }
    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Nothing)
    }
    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn note_pause(&mut self) {}
}

/// Devices that give these values, one a read, and park every write of `park`.
#[derive(Default)]
struct Devices {
    answers: VecDeque<u64>,
    park: Option<u64>,
    written: Vec<(u64, Vec<u8>)>,
}

impl Devices {
    fn read(&mut self, data: &mut [u8]) -> Access {
        let answer = self.answers.pop_front().unwrap_or(u64::MAX).to_le_bytes();
        data.copy_from_slice(&answer[..data.len()]);
        Access::Done
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Access {
        self.written.push((address, data.to_vec()));
        if self.park == Some(address) { Access::Parked(Parked::new()) } else { Access::Done }
    }
}

impl ExitHandler for Devices {
    fn port_in(&mut self, _port: u16, data: &mut [u8]) -> Access {
        self.read(data)
    }
    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.write(port.into(), data)
    }
    fn mmio_read(&mut self, _address: u64, data: &mut [u8]) -> Access {
        self.read(data)
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.write(address, data)
    }
    fn rdmsr(&mut self, _code: u32) -> Option<u64> {
        None
    }
    fn wrmsr(&mut self, _code: u32, _value: u64) -> bool {
        false
    }
    fn count(&mut self, _exit: ExitKind) {}
}

/// A file that can be looked at, and is full after so many bytes.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>, Option<usize>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().unwrap();
        if self.1.is_some_and(|room| text.len() + bytes.len() > room) {
            return Err(io::Error::other("full"));
        }
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spec() -> VmSpec {
    VmSpec { name: String::new(), ram: vec![(0, RAM_BYTES as u64)], ram_options: RamOptions::default() }
}

fn recording(script: Vec<Do>, out: &Out) -> (Record, Recording) {
    let capabilities = HostCapabilities {
        name: "fake",
        max_vcpus: 1,
        phys_bits: 36,
        apic_timer_hz: 1,
        x2apic: false,
        tsc_deadline: false,
        hypervisor_leaves: arch::cpu::HypervisorLeaves::None,
        rtc_in_kernel: false,
        pm_timer_in_kernel: false,
    };
    let record = Record::new(out.clone());
    (record.clone(), Recording::new(Box::new(Fake { capabilities, script }), record))
}

/// The record of a guest, and how its vCPU stopped.
fn run(script: Vec<Do>, devices: &mut Devices) -> (String, Stop) {
    let out = Out::default();
    let (record, recording) = recording(script, &out);
    let mut vcpu = recording.create_vm(&spec()).unwrap().create_vcpu(0, &[]).unwrap();
    let stop = vcpu.run(devices).unwrap();
    record.finish().unwrap();
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    (text, stop)
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    Descriptor { addr, len, flags, next }.to_bytes().to_vec()
}

/// A write of a field of the common configuration.
fn common(offset: u64, width: usize, value: u64) -> Do {
    Do::Write(BAR + offset, value.to_le_bytes()[..width].to_vec())
}

/// What a driver does until it can ring: finds the function, places its BAR and sets up queue 0 of four entries.
fn set_up() -> Vec<Do> {
    let mut script = vec![
        Do::Out(0xcf8, 0x8000_1800u32.to_le_bytes().to_vec()),
        Do::In(0xcfc, 4),
        Do::Write(ECAM_3_0 + 0x20, (BAR as u32 | 4).to_le_bytes().to_vec()),
        Do::Write(ECAM_3_0 + 0x24, vec![0; 4]),
        common(0x14, 1, 0),
        common(0x16, 2, 0),
        Do::Read(BAR + 0x18, 2),
    ];
    let areas = [(0x20, DESC), (0x28, AVAIL), (0x30, 0x3000)];
    for (field, area) in areas {
        script.extend([common(field, 4, area), common(field + 4, 4, 0)]);
    }
    script.push(common(0x1c, 2, 1));
    script
}

/// What devices answer to [`set_up`].
fn answers() -> VecDeque<u64> {
    VecDeque::from([0x1001_1af4, 4])
}

/// Heads become available, and the doorbell is rung.
fn ring(heads: &[u16], index: u16) -> Vec<Do> {
    let entries = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
    vec![
        Do::Store(AVAIL + 4, entries),
        Do::Store(AVAIL + 2, index.to_le_bytes().to_vec()),
        Do::Write(BAR + 0x3000, vec![0, 0]),
    ]
}

fn chains(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("chain")).collect()
}

#[test]
fn a_driver_is_written_down_access_by_access_with_the_chains_it_shows() {
    let mut script = set_up();
    let header: Vec<u8> = (0..16).collect();
    script.extend([
        Do::Store(0x4000, header),
        Do::Store(DESC, desc(0x4000, 16, 1, 1)),
        Do::Store(DESC + 16, desc(0x6000, 512, 3, 2)),
        Do::Store(DESC + 32, desc(0x7000, 1, 2, 0)),
        Do::Store(DESC + 48, desc(0x8000, 16, 4, 0)),
        Do::Store(0x8000, desc(0x5000, 5, 0, 0)),
    ]);
    script.extend(ring(&[0, 3], 2));
    script.extend([Do::Out(0x3f8, vec![b'A']), Do::In(0x3fd, 1), Do::Read(0xfed4_0000, 8), Do::Read(BAR + 0x1000, 1)]);
    let mut devices = Devices { answers: answers(), ..Devices::default() };
    devices.answers.extend([0x60, 0x0123_4567_89ab_cdef, 1]);
    let (text, stop) = run(script, &mut devices);
    assert!(matches!(stop, Stop::Halt));
    assert_eq!(text, include_str!("small.record"));
    // The devices saw what they would have seen without a recorder.
    assert_eq!(devices.written[0], (0xcf8, vec![0, 0x18, 0, 0x80]));
    assert_eq!(devices.written.last(), Some(&(0x3f8, vec![b'A'])));
    assert!(devices.answers.is_empty());
}

#[test]
fn kicks_and_index_registers_come_to_the_process_whatever_the_kernel_offers() {
    let (_, recording) = recording(Vec::new(), &Out::default());
    let vm = recording.create_vm(&spec()).unwrap();
    assert!(vm.doorbells().is_none() && vm.port_collector().is_none());
    assert_eq!((vm.tsc_khz(), recording.capabilities().name), (Some(7), "fake"));
}

#[test]
fn a_parked_write_is_recorded_once_and_still_parks() {
    let script = vec![Do::Out(0x3f8, vec![1]), Do::Out(0xcf9, vec![6]), Do::Out(0x80, vec![2])];
    let (text, stop) = run(script, &mut Devices { park: Some(0xcf9), ..Devices::default() });
    assert!(matches!(stop, Stop::Parked(_)));
    assert_eq!(text, "zvmm record 1\nport w 3f8 1 1\nport w cf9 1 6\n");
}

#[test]
fn chains_in_circles_and_outside_memory_and_jumps_of_the_index_end_the_walk() {
    let mut script = set_up();
    script.extend([
        Do::Store(DESC, desc(0x4000, 8, 3, 1)),
        Do::Store(DESC + 16, desc(0x4000, 8, 3, 0)),
        Do::Store(DESC + 32, desc(1 << 40, 8, 0, 0)),
        Do::Store(DESC + 48, desc(1 << 40, 64, 4, 0)),
    ]);
    script.extend(ring(&[0, 2, 3, 0], 4));
    script.extend(ring(&[0, 0, 0, 0], 0x8000));
    let (text, _) = run(script, &mut Devices { answers: answers(), ..Devices::default() });
    let circle = "chain 3.0 0 direct - w8 w8 w8 w8";
    assert_eq!(chains(&text), [circle; 6]);
}

#[test]
fn what_a_packed_ring_holds_is_not_taken_for_a_split_one() {
    let mut script = set_up();
    script.extend([common(0x08, 4, 1), common(0x0c, 4, 5)]);
    script.extend(ring(&[0], 1));
    let (text, _) = run(script, &mut Devices { answers: answers(), ..Devices::default() });
    assert!(chains(&text).is_empty() && text.contains("bar w 3.0 4 3000 2 0"), "{text}");
}

#[test]
fn a_full_disk_is_told_at_the_end() {
    let out = Out(Arc::default(), Some(40));
    let (record, recording) = recording(vec![Do::Out(0x80, vec![1]); 10], &out);
    let mut vcpu = recording.create_vm(&spec()).unwrap().create_vcpu(0, &[]).unwrap();
    vcpu.run(&mut Devices::default()).unwrap();
    assert_eq!(record.finish().unwrap_err().to_string(), "full");
}
