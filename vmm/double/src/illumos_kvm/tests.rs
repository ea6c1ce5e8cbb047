//! The backend on the double: small guests on the machine's own KVM, and every rule of the driver kept.

mod broken;
mod damaged;
mod guests;

use std::sync::Arc;

use devices::bus::Access;
use devices_host::ram::RamOptions;
use devices_host::sys::Sys;
use zvmm::hypervisor::illumos_kvm::IllumosKvmHypervisor;
use zvmm::hypervisor::{ExitHandler, ExitKind, Hypervisor, Stop, Vcpu, Vm, VmSpec};

use super::Kvm;
use crate::{DoubleSys, Host, Zone};

/// A process in a zone of the kvm brand, on a machine of its own.
fn process() -> Arc<DoubleSys> {
    DoubleSys::new(&Host::new(vec![Kvm::new()]), Zone::kvm(1))
}

/// That it broke no rule and left nothing behind.
#[track_caller]
fn assert_clean(process: &DoubleSys) {
    process.leaks().into_iter().for_each(|leak| process.note_leak(leak));
    let broken: Vec<String> = process.violations().iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn spec(ram: &[(u64, u64)]) -> VmSpec {
    VmSpec { name: String::new(), ram: ram.to_vec(), ram_options: RamOptions::default() }
}

fn hypervisor(sys: Arc<dyn Sys>) -> IllumosKvmHypervisor {
    IllumosKvmHypervisor::open(sys).unwrap()
}

/// A VM of 2 MiB.
fn vm(hypervisor: &IllumosKvmHypervisor) -> Arc<dyn Vm> {
    hypervisor.create_vm(&spec(&[(0, 2 << 20)])).unwrap()
}

/// Answers like hardware that is easy to recognise, and keeps what it was asked.
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
        data.copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88][..data.len()]);
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

/// Runs until somebody kicks, 30 ms from now.
fn run_to_kick(vcpu: &mut dyn Vcpu, io: &mut Recorder) {
    let kick = vcpu.kicker();
    vcpu.bind_to_current_thread().unwrap();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        kick.kick();
    });
    assert!(matches!(vcpu.run(io).unwrap(), Stop::Kicked));
    kicker.join().unwrap();
}
