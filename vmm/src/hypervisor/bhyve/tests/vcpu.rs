//! Entries and exits.

use devices_host::sys::Errno;
use zerocopy::FromZeros;

use super::*;
use crate::hypervisor::bhyve::abi::*;
use crate::hypervisor::{Stop, Vcpu, VcpuStart, Vm};

fn raw(code: i32) -> vm_exit {
    let mut exit = vm_exit::new_zeroed();
    (exit.exitcode, exit.rip) = (code, 0x1000);
    exit
}

fn port(port: u16, bytes: u8, read: bool, eax: u32) -> vm_exit {
    let mut exit = raw(VM_EXITCODE_INOUT);
    let flags = if read { INOUT_IN } else { 0 };
    exit.u.inout = vm_inout { eax, port, bytes, flags, addrsize: 8, segment: 3, _pad0: [0; 2] };
    exit
}

fn memory(gpa: u64, bytes: u8, read: bool, data: u64) -> vm_exit {
    let mut exit = raw(VM_EXITCODE_MMIO);
    exit.u.mmio = vm_mmio { bytes, read: read.into(), _pad: [0; 3], gpa, data };
    exit
}

fn msr(code: i32, number: u32) -> vm_exit {
    let mut exit = raw(code);
    exit.u.msr = vm_exit_msr { code: number, _pad0: [0; 4], wval: 1 };
    exit
}

fn suspended(how: i32, source: i32) -> vm_exit {
    let mut exit = raw(VM_EXITCODE_SUSPENDED);
    exit.u.suspended = vm_exit_suspended { how, source, when: 0 };
    exit
}

struct Bench {
    sys: Arc<FakeSys>,
    vm: BhyveVm,
    vcpu: Box<dyn Vcpu>,
    guest: Guest,
}

impl Bench {
    fn new() -> Self {
        Self::with_vcpu(0)
    }

    fn with_vcpu(id: u8) -> Self {
        let sys = FakeSys::new();
        let hypervisor = open(&sys).unwrap();
        let vm = hypervisor.create(&spec()).unwrap();
        let vcpu = vm.create_vcpu(id, &table(&hypervisor)).unwrap();
        sys.state().calls.clear();
        Self { sys, vm, vcpu, guest: Guest::default() }
    }

    /// Runs until the exits are used up and the kick behind them comes.
    fn run(&mut self, exits: impl IntoIterator<Item = vm_exit>) -> Result<Stop, HypervisorError> {
        self.sys.state().exits.extend(exits);
        // An end for every run: the debugger's exit comes back to the caller.
        self.sys.state().exits.push_back(raw(VM_EXITCODE_DEBUG));
        self.vcpu.run(&mut self.guest)
    }

    fn commands(&self) -> Vec<u32> {
        self.sys.state().entries.iter().map(|(command, _)| *command).collect()
    }

    fn answer(&self, entry: usize) -> [u8; 24] {
        self.sys.state().entries[entry].1
    }
}

#[test]
fn every_access_is_answered_with_the_next_entry_writes_too() {
    let mut bench = Bench::new();
    let exits = [
        port(0x3f8, 1, false, 0x1_0041),
        port(0x3fd, 2, true, 0),
        memory(0xc000_0000, 4, false, 0x1122_3344),
        memory(0xc000_0008, 8, true, 0),
        raw(VM_EXITCODE_BOGUS),
    ];
    assert!(matches!(bench.run(exits), Ok(Stop::Kicked)));
    let served = ["out 0x3f8 [41]", "in 0x3fd 2", "write 0xc0000000 [44, 33, 22, 11]", "read 0xc0000008 8"];
    assert_eq!(bench.guest.log, served);
    let commands = [VEC_DEFAULT, VEC_FULFILL_INOUT, VEC_FULFILL_INOUT, VEC_FULFILL_MMIO, VEC_FULFILL_MMIO, VEC_DEFAULT];
    assert_eq!(bench.commands(), commands);
    // The access comes back as it was, with what was read: EAX, port, size, direction.
    assert_eq!(bench.answer(2)[..8], [0xa5, 0xa5, 0, 0, 0xfd, 3, 2, INOUT_IN]);
    assert_eq!(bench.answer(4)[..24], [&[8, 1, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0xc0, 0, 0, 0, 0][..], &[0x5a; 8]].concat());
}

#[test]
fn an_entry_that_is_refused_neither_loses_nor_repeats_an_access() {
    for errno in [Errno::EBUSY, Errno::EINTR] {
        let mut bench = Bench::new();
        // Every second entry is refused, over a thousand bytes.
        let storm: Vec<Option<Errno>> = (0..2002).map(|at| (at % 2 == 1).then_some(errno)).collect();
        bench.sys.force(VM_RUN, &storm);
        let bytes: Vec<u32> = (0..1000).collect();
        bench.sys.state().exits.extend(bytes.iter().map(|&byte| port(0x3f8, 2, false, byte)));
        bench.sys.state().exits.push_back(raw(VM_EXITCODE_DEBUG));
        while !bench.guest.counted.contains(&ExitKind::Other) {
            assert!(matches!(bench.vcpu.run(&mut bench.guest), Ok(Stop::Kicked)));
        }
        let log: Vec<String> =
            bytes.iter().map(|byte| format!("out 0x3f8 {:02x?}", (*byte as u16).to_le_bytes())).collect();
        assert_eq!(bench.guest.log, log, "each byte once, in order");
        let answers: Vec<u32> = bench
            .sys
            .state()
            .entries
            .iter()
            .filter(|(command, _)| *command == VEC_FULFILL_INOUT)
            .map(|(_, answer)| u32::from_ne_bytes(answer[..4].try_into().unwrap()))
            .collect();
        assert_eq!(answers, bytes, "and each is acknowledged once");
    }
}

#[test]
fn an_entry_that_fails_otherwise_ends_the_guest_with_the_calls_name() {
    let mut bench = Bench::new();
    bench.sys.force(VM_RUN, &[Some(Errno::EFAULT)]);
    assert_eq!(bench.run([]).unwrap_err().to_string(), "VM_RUN: Bad address");
}

#[test]
fn a_parked_access_is_acknowledged_after_it_is_done() {
    let mut bench = Bench::new();
    let token = Parked::new();
    bench.guest.park = Some(token.clone());
    assert!(matches!(bench.run([port(0xc012, 1, false, 0)]), Ok(Stop::Parked(_))));
    assert_eq!(bench.commands(), [VEC_DEFAULT], "not entered while it waits");
    token.complete();
    bench.vcpu.run(&mut bench.guest).unwrap();
    assert_eq!(bench.commands(), [VEC_DEFAULT, VEC_FULFILL_INOUT]);
}

#[test]
fn a_kick_before_the_entry_keeps_the_vcpu_out_and_its_answer_waits() {
    let mut bench = Bench::new();
    bench.run([port(0x80, 1, false, 1)]).unwrap();
    let token = Parked::new();
    bench.guest.park = Some(token);
    bench.run([port(0x80, 1, false, 2)]).unwrap();
    let entries = bench.commands().len();
    bench.vcpu.kicker().kick();
    assert_eq!(bench.sys.calls(VM_VCPU_BARRIER).len(), 1);
    assert!(matches!(bench.vcpu.run(&mut bench.guest), Ok(Stop::Kicked)));
    assert_eq!(bench.commands().len(), entries, "not entered");
    bench.vcpu.run(&mut bench.guest).unwrap();
    assert_eq!(bench.commands().last(), Some(&VEC_FULFILL_INOUT));
}

#[test]
fn a_register_the_kernel_does_not_know_is_read_into_edx_and_eax_or_faults() {
    let mut bench = Bench::new();
    bench.run([msr(VM_EXITCODE_RDMSR, 0x10), msr(VM_EXITCODE_WRMSR, 0x10)]).unwrap();
    let set: vm_register_set = bench.sys.calls(VM_SET_REGISTER_SET)[0].argument();
    assert_eq!(set.count, 2);
    assert_eq!(bench.sys.calls(VM_INJECT_EXCEPTION).len(), 0);
    bench.run([msr(VM_EXITCODE_RDMSR, 0x11), msr(VM_EXITCODE_WRMSR, 0x11)]).unwrap();
    let faults = bench.sys.calls(VM_INJECT_EXCEPTION);
    assert_eq!(faults.len(), 2);
    let fault: vm_exception = faults[0].argument();
    assert_eq!((fault.vector, fault.error_code_valid, fault.error_code, fault.restart_instruction), (13, 1, 0, 1));
    assert_eq!(bench.guest.counted.iter().filter(|kind| **kind == ExitKind::Msr).count(), 4);
}

#[test]
fn a_suspension_is_reported_by_the_vcpu_that_caused_it_and_by_all_where_none_did() {
    let stop = |id, how, source| Bench::with_vcpu(id).run([suspended(how, source)]).unwrap();
    assert!(matches!(stop(0, VM_SUSPEND_RESET, -1), Stop::Reset));
    assert!(matches!(stop(1, VM_SUSPEND_POWEROFF, -1), Stop::PowerOff));
    assert!(matches!(stop(1, VM_SUSPEND_TRIPLEFAULT, 1), Stop::TripleFault));
    assert!(matches!(stop(0, VM_SUSPEND_TRIPLEFAULT, 1), Stop::Halt), "the other one tells");
    assert!(matches!(stop(0, VM_SUSPEND_HALT, -1), Stop::AllHalted));
    let error = Bench::new().run([suspended(9, -1)]).unwrap_err().to_string();
    assert_eq!(error, "vcpu0: suspended in an unknown way (9)");
}

#[test]
fn a_width_no_instruction_has_is_refused_before_any_device_sees_it() {
    for (exit, line) in [
        (port(0x80, 3, false, 0), "vcpu0: a port access of 3 bytes"),
        (memory(0x1000, 200, true, 0), "vcpu0: a memory access of 200 bytes at 0x1000"),
    ] {
        let mut bench = Bench::new();
        assert_eq!(bench.run([exit]).unwrap_err().to_string(), line);
        assert!(bench.guest.log.is_empty());
    }
}

#[test]
fn quiescence_hands_the_answer_in_and_keeps_what_comes_back_for_the_next_run() {
    let mut bench = Bench::new();
    bench.guest.park = Some(Parked::new());
    bench.run([port(0x80, 1, false, 1)]).unwrap();
    bench.sys.state().exits.clear();
    bench.vcpu.quiesce().unwrap();
    assert_eq!(bench.commands().last(), Some(&(VEC_FULFILL_INOUT | VEC_FLAG_EXIT_CONSISTENT)));
    // A string instruction: the next element comes back from quiescence itself.
    bench.sys.state().exits.push_back(port(0x80, 1, false, 2));
    bench.vcpu.quiesce().unwrap();
    assert_eq!(bench.commands().last(), Some(&(VEC_DEFAULT | VEC_FLAG_EXIT_CONSISTENT)));
    let entries = bench.commands().len();
    bench.vcpu.quiesce().unwrap();
    assert_eq!(bench.commands().len(), entries, "there is something to answer first");
    bench.run([]).unwrap();
    assert_eq!(bench.guest.log, ["out 0x80 [01]", "out 0x80 [02]"]);
    assert_eq!(bench.commands()[entries], VEC_FULFILL_INOUT);
}

#[test]
fn quiescence_of_a_paused_vm_keeps_the_answer() {
    let mut bench = Bench::new();
    bench.guest.park = Some(Parked::new());
    bench.run([port(0x80, 1, false, 1)]).unwrap();
    bench.sys.force(VM_RUN, &[Some(Errno::EBUSY)]);
    bench.vcpu.quiesce().unwrap();
    bench.vcpu.run(&mut bench.guest).unwrap();
    assert_eq!(bench.commands(), [VEC_DEFAULT, VEC_FULFILL_INOUT]);
}

#[test]
fn a_kick_whose_barrier_fails_takes_the_vcpu_out_by_looking_at_it() {
    let bench = Bench::new();
    bench.sys.force(VM_VCPU_BARRIER, &[Some(Errno::EIO)]);
    bench.vcpu.kicker().kick();
    assert_eq!(bench.sys.calls(VM_GET_REGISTER_SET).len(), 1);
}

fn requests(bench: &Bench) -> Vec<i32> {
    bench.sys.state().calls.iter().map(|call| call.request).collect()
}

#[test]
fn only_the_boot_processor_is_reset_and_runs_and_a_reset_of_the_vm_activates_all_again() {
    let boot = VcpuStart::Boot(Box::new(arch::regs::long_mode_boot(0x10_0200, 0x7000)));
    let mut bench = Bench::new();
    bench.vcpu.reset(&boot).unwrap();
    assert_eq!(requests(&bench)[0], VM_RESET_CPU);
    assert!(!requests(&bench).contains(&VM_ACTIVATE_CPU), "it is active since its creation");
    let run: vm_run_state = bench.sys.calls(VM_SET_RUN_STATE)[0].argument();
    assert_eq!((run.vcpuid, run.state), (0, VRS_RUN));
    bench.vm.reset().unwrap();
    bench.sys.state().calls.clear();
    bench.vcpu.reset(&boot).unwrap();
    assert_eq!(requests(&bench)[..3], [VM_ACTIVATE_CPU, VM_SET_X2APIC_STATE, VM_RESET_CPU]);

    let mut other = Bench::with_vcpu(3);
    other.vcpu.reset(&VcpuStart::WaitForSipi).unwrap();
    other.vm.reset().unwrap();
    other.vcpu.reset(&VcpuStart::WaitForSipi).unwrap();
    assert_eq!(other.sys.calls(VM_ACTIVATE_CPU).len(), 1);
    assert_eq!(other.sys.calls(VM_RESET_CPU).len() + other.sys.calls(VM_SET_RUN_STATE).len(), 0);
}

#[test]
fn a_reset_forgets_the_answer_to_an_exit_before_it() {
    let mut bench = Bench::new();
    bench.guest.park = Some(Parked::new());
    bench.run([port(0x80, 1, false, 1)]).unwrap();
    bench.vm.reset().unwrap();
    bench.vcpu.reset(&VcpuStart::WaitForSipi).unwrap();
    bench.vcpu.run(&mut bench.guest).unwrap();
    assert_eq!(bench.commands(), [VEC_DEFAULT; 2]);
}

#[test]
fn the_boot_processor_starts_with_the_segments_of_the_64_bit_entry() {
    let mut bench = Bench::new();
    bench.vcpu.reset(&VcpuStart::Boot(Box::new(arch::regs::long_mode_boot(0x10_0200, 0x7000)))).unwrap();
    let segments: Vec<vm_seg_desc> =
        bench.sys.calls(VM_SET_SEGMENT_DESCRIPTOR).iter().map(super::fake::Recorded::argument).collect();
    let access = |register| segments.iter().find(|segment| segment.regnum == register).unwrap().desc.access;
    assert_eq!(access(VM_REG_GUEST_CS), 0xa09b);
    assert_eq!(access(VM_REG_GUEST_SS), 0xc093);
    assert_eq!(access(VM_REG_GUEST_TR), 0x8b);
    assert_eq!(access(VM_REG_GUEST_LDTR), SEG_ACCESS_UNUSABLE);
    assert_eq!(segments.len(), 10);
    let registers: vm_register_set = bench.sys.calls(VM_SET_REGISTER_SET)[0].argument();
    assert_eq!(registers.count, 31);
    let mtrr = &bench.sys.state().data[&(0, VDC_MSR)];
    assert_eq!(mtrr[..4], 0x2ffu32.to_ne_bytes());
    assert_eq!(mtrr[8..], 0x806u64.to_ne_bytes(), "write-back, and on");
}

#[test]
fn a_vcpus_own_table_is_in_order_and_marks_sub_leaves() {
    let sys = FakeSys::new();
    let hypervisor = open(&sys).unwrap();
    let vm = hypervisor.create(&spec()).unwrap();
    let mut table = table(&hypervisor);
    table.reverse();
    let _vcpu = vm.create_vcpu(2, &table).unwrap();
    let config: vm_vcpu_cpuid_config = sys.calls(VM_SET_CPUID)[0].argument();
    assert_eq!((config.vvcc_vcpuid, config.vvcc_flags), (2, VCC_FLAG_INTEL_FALLBACK));
    assert_eq!(config.vvcc_nent as usize, table.len());
    let requests: Vec<i32> = sys.state().calls.iter().map(|call| call.request).collect();
    let at = |request| requests.iter().position(|made| *made == request).unwrap();
    assert!(at(VM_SET_CPUID) < at(VM_ACTIVATE_CPU), "no vCPU is active without its table");
}

#[test]
fn an_nmi_is_one_call() {
    let mut bench = Bench::with_vcpu(2);
    bench.vcpu.inject_nmi().unwrap();
    assert_eq!(bench.sys.calls(VM_INJECT_NMI)[0].argument::<vm_nmi>().cpuid, 2);
}
