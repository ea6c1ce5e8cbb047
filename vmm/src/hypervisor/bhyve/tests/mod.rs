mod fake;
mod life;
mod lines;
mod vcpu;

use std::sync::Arc;

use arch::cpu::CpuidEntry;
use devices::bus::Access;
use devices::park::Parked;
use devices_host::ram::RamOptions;

use self::fake::FakeSys;
use super::{BhyveConfig, BhyveHypervisor, BhyveVm};
use crate::hypervisor::{ExitHandler, ExitKind, Hypervisor, HypervisorError, VmSpec};

const MIB: u64 = 1 << 20;

fn config() -> BhyveConfig {
    BhyveConfig { name: "guest".to_owned(), reservoir: false }
}

fn spec() -> VmSpec {
    let ram = vec![(0, 2 * MIB), (4096 * MIB, MIB)];
    VmSpec { name: "guest".to_owned(), ram, ram_options: RamOptions::default() }
}

fn open(sys: &Arc<FakeSys>) -> Result<BhyveHypervisor, HypervisorError> {
    BhyveHypervisor::open(sys.clone(), config())
}

fn vm(sys: &Arc<FakeSys>) -> BhyveVm {
    open(sys).and_then(|hypervisor| hypervisor.create(&spec())).unwrap()
}

fn table(hypervisor: &BhyveHypervisor) -> Vec<CpuidEntry> {
    hypervisor.supported_cpuid().unwrap()
}

/// What a vCPU asked of the process, one line each, and answers for it.
#[derive(Default)]
struct Guest {
    log: Vec<String>,
    park: Option<Parked>,
    counted: Vec<ExitKind>,
}

impl Guest {
    fn access(&mut self) -> Access {
        self.park.take().map_or(Access::Done, Access::Parked)
    }
}

impl ExitHandler for Guest {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        self.log.push(format!("in {port:#x} {}", data.len()));
        data.fill(0xa5);
        self.access()
    }

    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.log.push(format!("out {port:#x} {data:02x?}"));
        self.access()
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        self.log.push(format!("read {address:#x} {}", data.len()));
        data.fill(0x5a);
        self.access()
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.log.push(format!("write {address:#x} {data:02x?}"));
        self.access()
    }

    fn rdmsr(&mut self, code: u32) -> Option<u64> {
        (code == 0x10).then_some(0x1_2345_6789)
    }

    fn wrmsr(&mut self, code: u32, _value: u64) -> bool {
        code == 0x10
    }

    fn count(&mut self, exit: ExitKind) {
        self.counted.push(exit);
    }
}
