//! `inst_emul`: what a guest's instructions do that leave it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::bhyve::abi::*;
use zvmm::hypervisor::{Stop, Vcpu, Vm};

use crate::machine::*;

/// Where a second vCPU's code lies.
const OTHER_CODE: u32 = 0x5000;
const SPIN: &[u8] = &[0xeb, 0xfe];
const UD2: &[u8] = &[0x0f, 0x0b];
/// A register that the kernel does not know: `mov ecx, 0x1234`.
const STRANGE_MSR: &[u8] = &[0xb9, 0x34, 0x12, 0, 0];

#[test]
fn cpuid_answers_as_the_table_says_and_with_zeros_where_it_has_no_leaf() {
    // mov eax, leaf; cpuid; out eax; mov eax, ebx; out eax; mov eax, ecx; out eax; mov eax, edx; out eax
    let ask = |leaf: u32| {
        let registers =
            [0x0f, 0xa2, 0xe7, 0x80, 0x89, 0xd8, 0xe7, 0x80, 0x89, 0xc8, 0xe7, 0x80, 0x89, 0xd0, 0xe7, 0x80];
        [&[0xb8][..], &leaf.to_le_bytes(), &registers].concat()
    };
    let mut guest = Guest::bare();
    guest.load(CODE, &[&ask(0x8000_0002), &ask(0x8000_0003)]);
    let mut table = guest.table(0);
    let name = table.iter_mut().find(|entry| entry.function == 0x8000_0002).unwrap();
    (name.eax, name.ebx, name.ecx, name.edx) = (0x11, 0x2222, 0x33_3333, 0x4444_4444);
    table.retain(|entry| entry.function != 0x8000_0003);
    guest.add_vcpu(0, &table, Some(CODE));
    let told = guest.told(&mut Devices::default());
    assert_eq!(told, [0x11, 0x2222, 0x33_3333, 0x4444_4444, 0, 0, 0, 0]);
    guest.finish(&[]);
}

#[test]
fn cpuid_tells_whether_the_local_apic_is_on_and_whether_xsave_is_enabled() {
    // mov eax, 1; cpuid; mov eax, edx; out eax
    const ASK_EDX: &[u8] = &[0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x89, 0xd0, 0xe7, 0x80];
    const ASK_ECX: &[u8] = &[0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x89, 0xc8, 0xe7, 0x80];
    // mov eax, cr4; or eax, OSXSAVE; mov cr4, eax
    const ENABLE_XSAVE: &[u8] = &[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 4, 0, 0x0f, 0x22, 0xe0];
    // mov ecx, APIC_BASE; rdmsr; and ah, ~8; wrmsr
    const DISABLE_APIC: &[u8] = &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x80, 0xe4, 0xf7, 0x0f, 0x30];
    let mut guest = Guest::bare();
    let table = guest.table(0);
    let has_xsave = table.iter().any(|entry| entry.function == 1 && entry.ecx & 1 << 26 != 0);
    let enable: &[u8] = if has_xsave { ENABLE_XSAVE } else { &[] };
    guest.load(CODE, &[ASK_ECX, enable, ASK_ECX, ASK_EDX, DISABLE_APIC, ASK_EDX]);
    guest.add_vcpu(0, &table, Some(CODE));
    let told = guest.told(&mut Devices::default());
    let bits = [told[0] >> 27 & 1, told[1] >> 27 & 1, told[2] >> 9 & 1, told[3] >> 9 & 1];
    assert_eq!(bits, [0, u32::from(has_xsave), 1, 0]);
    guest.finish(&[]);
}

#[test]
fn a_quiescent_vcpu_has_its_last_access_in_its_registers() {
    // mov eax, 0; in al, 0x10; out 0x11, al
    let mut guest = Guest::with_code(&[&[0xb8, 0, 0, 0, 0, 0xe4, 0x10, 0xe6, 0x11]]);
    let mut devices = Devices { ports: VecDeque::from([0x77]), stop_at_input: true, ..Devices::default() };
    assert!(matches!(guest.run(&mut devices), Ok(Stop::Kicked)));
    guest.vcpus[0].quiesce().unwrap();
    let registers = guest.fd().registers(0, &[VM_REG_GUEST_RIP, VM_REG_GUEST_RAX]).unwrap();
    assert_eq!(registers, [u64::from(CODE) + 7, 0x77]);
    assert!(devices.out.is_empty(), "and nothing ran behind it");
    guest.finish(&[]);
}

#[test]
fn a_write_to_a_rom_is_named_with_its_address_and_changes_nothing() {
    // mov eax, [0xffff0000]; out eax; mov dword [0xffff0000], 1
    let mut guest = Guest::with_code(&[&[0xa1, 0, 0, 0xff, 0xff, 0xe7, 0x80, 0xc7, 5, 0, 0, 0xff, 0xff, 1, 0, 0, 0]]);
    guest.vm.map_rom(0xffff_0000, &[0x5a; 0x1_0000]).unwrap();
    let mut devices = Devices::default();
    let line = guest.run(&mut devices).unwrap_err().to_string();
    assert!(line.contains("may not write to the memory at 0xffff0000"), "{line}");
    assert_eq!(devices.out[0].value, 0x5a5a_5a5a);
    let at = guest.fd().segment_offset(guest.fd().next_map(0xffff_0000).unwrap().unwrap().segid).unwrap();
    let view = guest.fd().map(at, 4096).unwrap();
    // SAFETY: inside the mapping; the guest is not running.
    assert_eq!(unsafe { view.start().cast::<u32>().read() }, 0x5a5a_5a5a);
    drop(view);
    guest.finish(&[]);
}

#[test]
fn a_product_with_a_device_register_is_signed() {
    // mov eax, 7; imul eax, [DEVICE]; out eax; mov eax, -3; imul eax, [DEVICE]; out eax
    let multiply = [0x0f, 0xaf, 5, 0, 0, 0, 0xd0, 0xe7, 0x80];
    let mut guest = Guest::with_code(&[&[0xb8, 7, 0, 0, 0], &multiply, &[0xb8, 0xfd, 0xff, 0xff, 0xff], &multiply]);
    let mut devices = Devices { memory: VecDeque::from([6, 6]), ..Devices::default() };
    assert_eq!(guest.told(&mut devices), [42, (-18_i32).cast_unsigned()]);
    assert_eq!(devices.reads, [(DEVICE, 4); 2]);
    guest.finish(&[]);
}

#[test]
fn port_accesses_of_one_two_and_four_bytes_touch_as_much_of_the_register() {
    // mov eax, 0x44332211; in al; out eax; in ax; out eax; in eax; out eax; then one out of each size
    let code: [u8; 26] = [
        0xb8, 0x11, 0x22, 0x33, 0x44, 0xe4, 0x10, 0xe7, 0x80, 0x66, 0xe5, 0x11, 0xe7, 0x80, 0xe5, 0x12, 0xe7, 0x80,
        0xe6, 0x13, 0x66, 0xe7, 0x14, 0xe7, 0x15, 0x90,
    ];
    let mut guest = Guest::with_code(&[&code]);
    let ports = VecDeque::from([0xffff_ffa5, 0xffff_beef, 0x1234_5678]);
    let mut devices = Devices { ports, ..Devices::default() };
    assert_eq!(guest.told(&mut devices), [0x4433_22a5, 0x4433_beef, 0x1234_5678]);
    let last: Vec<_> = devices.out[3..].iter().map(|out| (out.port, out.len, out.value)).collect();
    assert_eq!(last, [(0x13, 1, 0x78), (0x14, 2, 0x5678), (0x15, 4, 0x1234_5678)]);
    guest.finish(&[]);
}

#[test]
fn a_register_of_the_process_is_read_in_two_halves_and_one_of_nobody_faults() {
    let code: [&[u8]; 4] = [STRANGE_MSR, &[0x0f, 0x32], &TELL, &TELL_EDX];
    let mut guest = Guest::with_code(&code);
    let mut devices = Devices { msrs: BTreeMap::from([(0x1234, 0x1122_3344_5566_7788)]), ..Devices::default() };
    assert_eq!(guest.told(&mut devices), [0x5566_7788, 0x1122_3344]);
    guest.finish(&[]);
    // Without an interrupt table, the fault is the end.
    let mut guest = Guest::with_code(&code);
    assert!(matches!(guest.run(&mut Devices::default()), Ok(Stop::TripleFault)));
    guest.finish(&[]);
}

#[test]
fn a_register_of_the_process_is_written_whole_and_one_of_nobody_faults() {
    // mov eax, 0x55667788; mov edx, 0x11223344; wrmsr
    let write = [0xb8, 0x88, 0x77, 0x66, 0x55, 0xba, 0x44, 0x33, 0x22, 0x11, 0x0f, 0x30];
    let mut guest = Guest::with_code(&[STRANGE_MSR, &write]);
    let mut devices = Devices { msrs: BTreeMap::from([(0x1234, 0)]), ..Devices::default() };
    assert_eq!(guest.told(&mut devices), [0_u32; 0]);
    assert_eq!(devices.msrs[&0x1234], 0x1122_3344_5566_7788);
    guest.finish(&[]);
    let mut guest = Guest::with_code(&[STRANGE_MSR, &write]);
    assert!(matches!(guest.run(&mut Devices::default()), Ok(Stop::TripleFault)));
    guest.finish(&[]);
}

#[test]
fn repeated_instructions_move_as_much_as_they_say_and_leave_their_registers_behind_it() {
    // mov eax, esi; out eax; mov eax, edi; out eax; mov eax, ecx; out eax
    let tell = [0x89, 0xf0, 0xe7, 0x80, 0x89, 0xf8, 0xe7, 0x80, 0x89, 0xc8, 0xe7, 0x80];
    // cld; mov esi, DEVICE; mov edi, 0x3000; mov ecx, 16; rep movsd
    let movs = [0xfc, 0xbe, 0, 0, 0, 0xd0, 0xbf, 0, 0x30, 0, 0, 0xb9, 16, 0, 0, 0, 0xf3, 0xa5];
    // mov edi, DEVICE; mov ecx, 64; mov al, 0x5a; rep stosb
    let stos = [0xbf, 0, 0, 0, 0xd0, 0xb9, 64, 0, 0, 0, 0xb0, 0x5a, 0xf3, 0xaa];
    // mov edi, 0x4000; mov ecx, 64; mov dx, 0x10; rep insb
    let ins = [0xbf, 0, 0x40, 0, 0, 0xb9, 64, 0, 0, 0, 0x66, 0xba, 0x10, 0, 0xf3, 0x6c];
    let mut guest = Guest::with_code(&[&movs, &tell, &stos, &tell, &ins, &tell]);
    let mut devices = Devices { memory: (1..=16).collect(), ports: (100..164).collect(), ..Devices::default() };
    let end = DEVICE as u32 + 64;
    assert_eq!(guest.told(&mut devices), [end, 0x3040, 0, end, end, 0, end, 0x4040, 0]);
    assert_eq!(devices.writes.iter().map(|write| write.1).collect::<Vec<_>>(), [0x5a; 64]);
    assert_eq!(devices.writes.last().unwrap().0, DEVICE + 63);
    let (mut words, mut bytes) = ([0; 64], [0; 64]);
    guest.vm.ram().read_slice(&mut words, GuestAddress(0x3000)).unwrap();
    guest.vm.ram().read_slice(&mut bytes, GuestAddress(0x4000)).unwrap();
    assert_eq!(words.to_vec(), (1_u32..=16).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    assert_eq!(bytes.to_vec(), (100..164).collect::<Vec<u8>>());
    guest.finish(&[]);
}

/// Ends the VM from another thread while its guest spins.
fn suspended_by_a_neighbour(how: i32) -> (Guest, Stop) {
    let mut guest = Guest::with_code(&[SPIN]);
    let Guest { vm, vcpus, .. } = &mut guest;
    let fd = vm.fd();
    let stop = std::thread::scope(|scope| {
        let ender = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            raw(fd, VM_SUSPEND, &mut vm_suspend { how, source: -1 }).unwrap();
        });
        let stop = Devices::default().run(&mut *vcpus[0]).unwrap();
        ender.join().unwrap();
        stop
    });
    (guest, stop)
}

#[test]
fn a_suspension_says_how_and_a_vcpu_that_did_not_do_it_waits() {
    let (guest, stop) = suspended_by_a_neighbour(VM_SUSPEND_RESET);
    assert!(matches!(stop, Stop::Reset), "{stop:?}");
    guest.finish(&[]);
    let (guest, stop) = suspended_by_a_neighbour(VM_SUSPEND_HALT);
    assert!(matches!(stop, Stop::AllHalted), "{stop:?}");
    guest.finish(&[]);
    let (mut guest, stop) = suspended_by_a_neighbour(VM_SUSPEND_POWEROFF);
    assert!(matches!(stop, Stop::PowerOff), "{stop:?}");

    // In its next life a second vCPU ends what the first one does.
    guest.vm.reset().unwrap();
    guest.vcpus[0].reset(&start(CODE)).unwrap();
    guest.load(OTHER_CODE, &[UD2]);
    let table = guest.table(1);
    guest.add_vcpu(1, &table, Some(OTHER_CODE));
    let [first, second] = &mut guest.vcpus[..] else { panic!("two vCPUs") };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| Devices::default().run(&mut **first).unwrap());
        let second = Devices::default().run(&mut **second).unwrap();
        (first.join().unwrap(), second)
    });
    assert!(matches!((&first, &second), (Stop::Halt, Stop::TripleFault)), "{first:?}, {second:?}");
    guest.finish(&[]);
}

#[test]
fn a_guest_that_cannot_take_a_fault_is_told_as_a_triple_fault() {
    let mut guest = Guest::with_code(&[UD2]);
    assert!(matches!(guest.run(&mut Devices::default()), Ok(Stop::TripleFault)));
    guest.finish(&[]);
}

#[test]
fn a_kick_takes_a_vcpu_out_that_waits_in_the_kernel_for_its_sipi() {
    let mut guest = Guest::with_code(&[]);
    let table = guest.table(1);
    guest.add_vcpu(1, &table, None);
    let waiting: &mut dyn Vcpu = &mut *guest.vcpus[1];
    let kick = waiting.kicker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            kick.kick();
        });
        assert!(matches!(waiting.run(&mut Devices::default()), Ok(Stop::Kicked)));
    });
    guest.finish(&[]);
}
