//! Interrupt lines count, and messages are words.

use devices::interrupt::MsiMessage;
use devices_host::sys::Errno;

use super::*;
use crate::hypervisor::Vm;
use crate::hypervisor::bhyve::abi::*;

fn count(sys: &Arc<FakeSys>, pin: i32) -> i32 {
    sys.state().vms["guest"].lines.get(&pin).copied().unwrap_or(0)
}

#[test]
fn a_level_said_twice_is_counted_once_and_shared_lines_stay_up_while_anybody_asserts() {
    for (gsi, pin) in [(10, 10), (20, 20), (0, 2)] {
        let sys = FakeSys::new();
        let vm = vm(&sys);
        let (one, other) = (vm.irq_line(gsi), vm.irq_line(gsi));
        one.set(true);
        one.set(true);
        other.set(true);
        assert_eq!(count(&sys, pin), 2);
        one.set(false);
        one.set(false);
        assert_eq!(count(&sys, pin), 1, "the other end holds it");
        other.set(false);
        assert_eq!(count(&sys, pin), 0);
    }
}

#[test]
fn what_was_asserted_before_a_reset_is_not_taken_back_after_it() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    let line = vm.irq_line(5);
    line.set(true);
    vm.reset().unwrap();
    line.set(false);
    assert_eq!(count(&sys, 5), 0, "the kernel's count began anew");
    line.set(true);
    assert_eq!(count(&sys, 5), 1);
}

#[test]
fn a_call_that_fails_changes_nothing_so_the_pairs_stay_pairs() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    let line = vm.irq_line(5);
    sys.force(VM_ISA_ASSERT_IRQ, &[Some(Errno::EIO)]);
    line.set(true);
    line.set(false);
    assert_eq!((count(&sys, 5), sys.calls(VM_ISA_DEASSERT_IRQ).len()), (0, 0));
    line.set(true);
    sys.force(VM_ISA_DEASSERT_IRQ, &[Some(Errno::EIO)]);
    line.set(false);
    line.set(false);
    assert_eq!(count(&sys, 5), 0, "the second attempt is made");
}

#[test]
fn a_pulse_is_one_call_and_leaves_the_line_down() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    let line = vm.irq_line(4);
    line.pulse();
    assert_eq!((sys.calls(VM_ISA_PULSE_IRQ).len(), sys.calls(VM_ISA_ASSERT_IRQ).len()), (1, 0));
    line.set(true);
    line.pulse();
    assert_eq!(count(&sys, 4), 0);
}

#[test]
fn a_message_goes_out_data_before_address_and_only_to_a_local_apic() {
    let sys = FakeSys::new();
    let vm = vm(&sys);
    let msi = vm.msi_source();
    msi.trigger();
    msi.set_message(Some(MsiMessage { address: 0xfee0_1000, data: 0x4041 }));
    msi.trigger();
    let sent: vm_lapic_msi = sys.calls(VM_LAPIC_MSI)[0].argument();
    assert_eq!((sent.msg, sent.addr), (0x4041, 0xfee0_1000));
    for address in [0, 0xfed0_0000, 0x1_fee0_0000, u64::MAX] {
        msi.set_message(Some(MsiMessage { address, data: 1 }));
        msi.trigger();
    }
    msi.set_message(None);
    msi.trigger();
    assert_eq!(sys.calls(VM_LAPIC_MSI).len(), 1, "the kernel refuses any other address");
}
