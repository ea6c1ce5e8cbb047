use proptest::prelude::*;

use super::*;
use crate::legacy::power::PowerLog;
use crate::legacy::testing::{Line, any_access, perform, read, write};

struct Machine {
    ps2: Arc<Ps2>,
    data: Arc<dyn BusDevice>,
    status: Arc<dyn BusDevice>,
    irq_1: Arc<Line>,
    irq_12: Arc<Line>,
    power: Arc<PowerLog>,
}

fn machine() -> Machine {
    let (irq_1, irq_12, power) = (Line::new(), Line::new(), Arc::new(PowerLog::default()));
    let ps2 = Ps2::new(irq_1.clone(), irq_12.clone(), power.clone());
    Machine { data: ps2.data_port(), status: ps2.status_port(), ps2, irq_1, irq_12, power }
}

const KEYBOARD: u8 = 0x01;
const AUX: u8 = 0x21;

impl Machine {
    fn status(&self) -> u8 {
        read(&*self.status, 0)
    }

    fn command(&self, byte: u8) {
        write(&*self.status, 0, byte);
    }

    fn write(&self, byte: u8) {
        write(&*self.data, 0, byte);
    }

    fn to_mouse(&self, byte: u8) {
        self.command(0xd4);
        self.write(byte);
    }

    /// Bytes until the buffer is empty, each from where the status says it is.
    fn bytes_from(&self, source: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & 0x01 != 0 {
            assert_eq!(self.status() & 0x21, source);
            bytes.push(read(&*self.data, 0));
            assert!(bytes.len() <= 200, "the output never ends");
        }
        bytes
    }

    /// A command to the controller and its answer.
    fn ask(&self, command: u8) -> Vec<u8> {
        self.command(command);
        self.bytes_from(KEYBOARD)
    }

    fn ask_keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| self.write(*byte));
        self.bytes_from(KEYBOARD)
    }

    fn ask_mouse(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| self.to_mouse(*byte));
        self.bytes_from(AUX)
    }

    fn set_ctr(&self, value: u8) {
        self.command(0x60);
        self.write(value);
    }

    fn press(&self, code: u8) {
        assert!(self.ps2.key_event(KeyCode(code), true));
    }

    fn release(&self, code: u8) {
        assert!(self.ps2.key_event(KeyCode(code), false));
    }
}

fn motion(right: i32, down: i32, buttons: u8) -> MouseEvent {
    MouseEvent { right, down, wheel: 0, buttons }
}

#[test]
fn a_guest_without_firmware_finds_interrupts_and_translation_on_and_nothing_to_read() {
    let m = machine();
    assert_eq!(m.status(), 0x14);
    assert_eq!(m.ask(0x20), [0x47]);
}

#[test]
fn linux_finds_the_controller_and_both_ports() {
    let m = machine();
    assert_eq!(m.ask(0xaa), [0x55]);
    let control = m.ask(0x20)[0];
    m.set_ctr((control | 0x10) & !0x01);
    assert_eq!(m.status() & 0x10, 0x10, "the keyboard is not locked");
    m.irq_1.take_rises();
    // i8042_check_aux: the loop, the port off and on, and IRQ 12.
    m.command(0xd3);
    m.write(0x5a);
    assert_eq!(m.bytes_from(AUX), [0x5a]);
    m.command(0xa7);
    assert_eq!(m.ask(0x20)[0] & 0x20, 0x20);
    m.command(0xa8);
    assert_eq!(m.ask(0x20)[0] & 0x20, 0);
    m.set_ctr(0x56);
    m.irq_12.take_rises();
    m.command(0xd3);
    m.write(0xa5);
    assert!(m.irq_12.level());
    assert_eq!(m.irq_12.take_rises(), 1);
    assert_eq!(m.bytes_from(AUX), [0xa5]);
    assert!(!m.irq_12.level());
    // i8042_check_mux: a controller that only loops has no multiplexer.
    for byte in [0xf0, 0x56, 0xa4] {
        m.command(0xd3);
        m.write(byte);
        assert_eq!(m.bytes_from(AUX), [byte]);
    }
    assert_eq!(m.irq_1.take_rises(), 0, "answers while the keyboard is off interrupt nobody");
}

#[test]
fn linux_finds_the_keyboard_by_its_identity_and_sets_it_up() {
    let m = machine();
    assert_eq!(m.ask_keyboard(&[0xf2]), [0xfa, 0xab, 0x41]);
    m.set_ctr(0x07);
    assert_eq!(m.ask_keyboard(&[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(m.ask_keyboard(&[0xf5]), [0xfa]);
    assert_eq!(m.ask_keyboard(&[0xed, 0x02]), [0xfa, 0xfa]);
    assert_eq!(m.ps2.leds(), 2);
    assert_eq!(m.ask_keyboard(&[0xf3, 0x00]), [0xfa, 0xfa]);
    assert_eq!(m.ask_keyboard(&[0xf4]), [0xfa]);
    m.press(0x1e);
    assert_eq!(m.bytes_from(KEYBOARD), [0x1c]);
}

#[test]
fn seabios_sets_the_keyboard_up() {
    let m = machine();
    m.command(0xad);
    m.command(0xa7);
    assert_eq!(m.bytes_from(KEYBOARD), [0; 0]);
    assert_eq!(m.ask(0xaa), [0x55]);
    assert_eq!(m.ask(0xab), [0x00]);
    m.set_ctr(0x20);
    for (bytes, answer) in
        [(&[0xff][..], &[0xfa, 0xaa][..]), (&[0xf5], &[0xfa]), (&[0xf0, 0x02], &[0xfa, 0xfa]), (&[0xf4], &[0xfa])]
    {
        assert_eq!(m.ask_keyboard(bytes), answer);
    }
    m.set_ctr(0x61);
    m.press(0x1c);
    assert_eq!(m.bytes_from(KEYBOARD), [0x1c]);
}

#[test]
fn linux_finds_a_mouse_with_a_wheel() {
    let m = machine();
    assert_eq!(m.ask_mouse(&[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(m.ask_mouse(&[0xf2]), [0xfa, 0x00]);
    for rate in [200, 100, 80] {
        assert_eq!(m.ask_mouse(&[0xf3, rate]), [0xfa, 0xfa]);
    }
    assert_eq!(m.ask_mouse(&[0xf2]), [0xfa, 0x03]);
    assert_eq!(m.ask_mouse(&[0xf3, 100, 0xe8, 3, 0xe6, 0xf4]), [0xfa; 6]);
    m.ps2.mouse_event(MouseEvent { right: 3, down: 5, wheel: -2, buttons: 1 });
    assert_eq!(m.bytes_from(AUX), [0x29, 3, 0xfb, 0xfe]);
    assert_eq!(m.ask_mouse(&[0xff, 0xf2]), [0xfa, 0xaa, 0x00, 0xfa, 0x00], "a reset takes the wheel away");
}

#[test]
fn other_makers_mice_are_denied_at_once() {
    let m = machine();
    // Trackpoint, Elantech; and a Synaptics knock, whose status would have 0x47 in the middle.
    assert_eq!(m.ask_mouse(&[0xe1]), [0xfe]);
    assert_eq!(m.ask_mouse(&[0xf8]), [0xfe]);
    for _ in 0..4 {
        assert_eq!(m.ask_mouse(&[0xe8, 0x00]), [0xfa, 0xfa]);
    }
    assert_eq!(m.ask_mouse(&[0xe9]), [0xfa, 0x00, 0x00, 100]);
}

#[test]
fn the_knock_must_be_whole_and_in_order() {
    for rates in [&[200, 80, 100][..], &[200, 100, 100, 80], &[100, 80], &[200, 200, 80]] {
        let m = machine();
        for rate in rates {
            m.ask_mouse(&[0xf3, *rate]);
        }
        assert_eq!(m.ask_mouse(&[0xf2]), [0xfa, 0x00], "{rates:?}");
    }
    let m = machine();
    for rate in [200, 200, 100, 80] {
        m.ask_mouse(&[0xf3, rate]);
    }
    assert_eq!(m.ask_mouse(&[0xf2]), [0xfa, 0x03]);
}

#[test]
fn keys_come_in_set_1_when_translated_and_in_set_2_when_not() {
    for (control, code, pressed, released) in [
        (0x47, 0x1e, &[0x1e][..], &[0x9e][..]),
        (0x47, 0xcb, &[0xe0, 0x4b], &[0xe0, 0xcb]),
        (0x47, 0x41, &[0x41], &[0xc1]),
        (0x47, 0xc6, &[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5], &[]),
        (0x47, 0x00, &[], &[]),
        (0x07, 0x1e, &[0x1c], &[0xf0, 0x1c]),
        (0x07, 0xcb, &[0xe0, 0x6b], &[0xe0, 0xf0, 0x6b]),
        (0x07, 0x41, &[0x83], &[0xf0, 0x83]),
        (0x07, 0xb7, &[0xe0, 0x7c], &[0xe0, 0xf0, 0x7c]),
        (0x07, 0xc6, &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77], &[]),
    ] {
        let m = machine();
        m.set_ctr(control);
        m.press(code);
        assert_eq!(m.bytes_from(KEYBOARD), pressed, "{code:#x}");
        m.release(code);
        assert_eq!(m.bytes_from(KEYBOARD), released, "{code:#x}");
    }
}

#[test]
fn a_guest_may_choose_set_1_but_not_set_3() {
    let m = machine();
    m.set_ctr(0x07);
    assert_eq!(m.ask_keyboard(&[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
    assert_eq!(m.ask_keyboard(&[0xf0, 0x01]), [0xfa, 0xfa]);
    m.press(0xcb);
    m.release(0xcb);
    assert_eq!(m.bytes_from(KEYBOARD), [0xe0, 0x4b, 0xe0, 0xcb]);
    assert_eq!(m.ask_keyboard(&[0xf0, 0x03]), [0xfa, 0xfe]);
    assert_eq!(m.ask_keyboard(&[0xf0, 0x00]), [0xfa, 0xfa, 0x01]);
    assert_eq!(m.ask_keyboard(&[0xf6, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0x02]);
}

#[test]
fn each_byte_is_an_edge_of_its_line() {
    let m = machine();
    m.press(0xcb);
    m.release(0xcb);
    for byte in [0xe0, 0x4b, 0xe0, 0xcb] {
        assert!(m.irq_1.level());
        assert_eq!(m.irq_1.take_rises(), 1);
        assert_eq!(read(&*m.data, 0), byte);
    }
    assert!(!m.irq_1.level());
    assert_eq!((m.irq_1.take_rises(), m.irq_12.take_rises()), (0, 0));
    assert_eq!(read(&*m.data, 0), 0xcb, "an empty buffer shows its last byte");
}

#[test]
fn interrupts_follow_their_bits_of_the_command_byte() {
    let m = machine();
    m.set_ctr(0x44);
    m.press(0x1e);
    assert!(!m.irq_1.level());
    m.set_ctr(0x45);
    assert!(m.irq_1.level());
    m.command(0xad);
    assert!(!m.irq_1.level());
    m.command(0xae);
    assert!(m.irq_1.level());
    m.bytes_from(KEYBOARD);
    m.ask_mouse(&[0xf4]);
    m.ps2.mouse_event(motion(1, 0, 0));
    assert!(!m.irq_12.level());
    m.set_ctr(0x47);
    assert!(m.irq_12.level() && !m.irq_1.level());
}

#[test]
fn a_disabled_interface_holds_its_bytes_back_until_it_is_enabled_or_spoken_to() {
    let m = machine();
    m.ask_mouse(&[0xf4]);
    m.command(0xad);
    m.command(0xa7);
    m.press(0x1e);
    m.ps2.mouse_event(motion(1, 0, 0));
    assert_eq!(m.status() & 0x01, 0);
    m.command(0xae);
    assert_eq!(m.bytes_from(KEYBOARD), [0x1e]);
    m.command(0xa8);
    assert_eq!(m.bytes_from(AUX), [0x08, 1, 0]);
    m.command(0xad);
    assert_eq!(m.ask_keyboard(&[0xee]), [0xee]);
    assert_eq!(m.ask(0x20)[0] & 0x10, 0);
}

#[test]
fn the_byte_in_the_buffer_stays_the_one_the_status_spoke_of() {
    let m = machine();
    m.ask_mouse(&[0xf4]);
    m.ps2.mouse_event(motion(1, 0, 0));
    assert_eq!(m.status() & 0x21, AUX);
    m.press(0x1e);
    m.command(0x20);
    assert_eq!(m.status() & 0x21, AUX);
    assert_eq!(read(&*m.data, 0), 0x08);
    assert_eq!((m.status() & 0x21, read(&*m.data, 0)), (KEYBOARD, 0x47));
    assert_eq!((m.status() & 0x21, read(&*m.data, 0)), (KEYBOARD, 0x1e));
    assert_eq!(m.bytes_from(AUX), [1, 0]);
}

#[test]
fn an_answer_does_not_come_between_the_codes_of_a_key_nor_into_a_packet() {
    let m = machine();
    m.press(0xcb);
    m.press(0x1e);
    assert_eq!(read(&*m.data, 0), 0xe0);
    assert_eq!(m.ask_keyboard(&[0xf4]), [0x4b, 0xfa, 0x1e]);
    m.ask_mouse(&[0xf4]);
    m.ps2.mouse_event(motion(1, 2, 0));
    assert_eq!(read(&*m.data, 0), 0x28);
    assert_eq!(m.ask_mouse(&[0xf2]), [1, 0xfe, 0xfa, 0x00]);
}

#[test]
fn the_controllers_memory_ends_at_byte_31() {
    let m = machine();
    for index in 1..32 {
        m.command(0x60 | index);
        m.write(index + 100);
    }
    for index in 1..32 {
        assert_eq!(m.ask(0x20 | index), [index + 100]);
    }
    assert_eq!(m.ask(0x20), [0x47]);
}

#[test]
fn the_controllers_tests_and_ports_answer() {
    let m = machine();
    for (command, answer) in [(0xa9, 0x00), (0xab, 0x00), (0xa4, 0xf1), (0xc0, 0x80), (0xd0, 0xcf), (0xe0, 0x00)] {
        assert_eq!(m.ask(command), [answer], "{command:#x}");
    }
    m.command(0xd1);
    m.write(0xdd);
    assert_eq!(m.ask(0xd0), [0xcd], "A20 is as it was written");
    m.command(0xd2);
    m.write(0x77);
    assert_eq!(m.bytes_from(KEYBOARD), [0x77]);
    m.press(0x1e);
    m.command(0xd0);
    assert_eq!(m.bytes_from(KEYBOARD), [0x1e, 0xdd], "a full buffer shows in the output port");
    for unknown in [0x00, 0x1f, 0x40, 0x80, 0xac, 0xb0, 0xc1, 0xcf, 0xd5, 0xef] {
        assert_eq!(m.ask(unknown), [0; 0], "{unknown:#x}");
    }
}

#[test]
fn the_status_tells_a_command_from_data() {
    let m = machine();
    m.command(0xae);
    assert_eq!(m.status() & 0x08, 0x08);
    m.write(0xf4);
    assert_eq!(m.status() & 0x08, 0);
}

#[test]
fn a_guest_resets_itself_by_pulse_or_by_the_output_port() {
    let m = machine();
    for even in [0xfe, 0xf0, 0xf2] {
        m.command(even);
        assert_eq!(m.power.take(), [Some(ResetSource::Keyboard)], "{even:#x}");
    }
    for odd in [0xff, 0xf1, 0xfd] {
        m.command(odd);
        assert!(m.power.take().is_empty(), "{odd:#x}");
    }
    m.command(0xd1);
    m.write(0xcf);
    assert!(m.power.take().is_empty());
    m.command(0xd1);
    m.write(0xce);
    assert_eq!(m.power.take(), [Some(ResetSource::Keyboard)]);
}

#[test]
fn a_full_keyboard_refuses_whole_keys_and_takes_them_again_when_read() {
    let m = machine();
    let mut pressed = 0;
    while m.ps2.key_event(KeyCode(0xcb), true) {
        pressed += 1;
        assert!(pressed < 100);
    }
    assert_eq!(m.bytes_from(KEYBOARD), [0xe0, 0x4b].repeat(pressed));
    m.press(0xcb);
}

#[test]
fn a_keyboard_told_not_to_scan_sends_no_keys() {
    let m = machine();
    m.press(0x1e);
    assert_eq!(m.ask_keyboard(&[0xf5]), [0x1e, 0xfa]);
    m.press(0x1e);
    assert_eq!(m.bytes_from(KEYBOARD), [0; 0]);
    m.ask_keyboard(&[0xf4]);
    m.press(0x1e);
    assert_eq!(m.bytes_from(KEYBOARD), [0x1e]);
}

#[test]
fn the_keyboards_other_commands_answer_as_told() {
    let m = machine();
    assert_eq!(m.ask_keyboard(&[0xee]), [0xee]);
    assert_eq!(m.ask_keyboard(&[0xfe]), [0xee], "the last byte again");
    assert_eq!(m.ask_keyboard(&[0xfa]), [0xfa]);
    assert_eq!(m.ask_keyboard(&[0x12]), [0xfe]);
    assert_eq!(m.ask_keyboard(&[0xed, 0xf2]), [0xfa, 0xfa, 0xab, 0x41], "a command where data is due is a command");
}

#[test]
fn motion_adds_up_and_is_sent_in_steps_while_clicks_stay_apart() {
    let m = machine();
    m.ask_mouse(&[0xf4]);
    m.ps2.mouse_event(motion(0, 0, 0));
    assert_eq!(m.bytes_from(AUX), [0; 0], "nothing moved");
    m.ps2.mouse_event(motion(100, 0, 0));
    // The first packet is on its way; these wait.
    m.ps2.mouse_event(motion(100, 100, 0));
    m.ps2.mouse_event(motion(100, -300, 0));
    m.ps2.mouse_event(motion(0, 0, 1));
    m.ps2.mouse_event(motion(0, 0, 0));
    let packets = m.bytes_from(AUX);
    let expected: [[u8; 3]; 5] = [[0x08, 100, 0], [0x08, 127, 127], [0x08, 73, 73], [0x09, 0, 0], [0x08, 0, 0]];
    assert_eq!(packets, expected.as_flattened());
}

#[test]
fn a_mouse_moved_for_ever_without_a_reader_keeps_the_last_buttons() {
    let m = machine();
    m.ask_mouse(&[0xf4]);
    for n in 0..=200 {
        m.ps2.mouse_event(motion(i32::MAX, i32::MIN, n & 1));
        m.ps2.mouse_event(motion(i32::MIN, i32::MAX, n & 1));
    }
    assert!(m.ps2.save().mouse.is_bounded());
    m.ask_mouse(&[0xf5]);
    assert_eq!(m.ask_mouse(&[0xe9])[1], 0x00);
    m.ps2.mouse_event(motion(0, 0, 7));
    assert_eq!(m.ask_mouse(&[0xe9])[1], 0x07);
}

#[test]
fn a_remote_mouse_is_read_and_a_wrapping_one_echoes() {
    let m = machine();
    assert_eq!(m.ask_mouse(&[0xf4, 0xf0]), [0xfa, 0xfa]);
    m.ps2.mouse_event(motion(-1, 1, 2));
    assert_eq!(m.bytes_from(AUX), [0; 0]);
    assert_eq!(m.ask_mouse(&[0xeb]), [0xfa, 0x3a, 0xff, 0xff]);
    assert_eq!(m.ask_mouse(&[0xeb]), [0xfa, 0x0a, 0x00, 0x00]);
    assert_eq!(m.ask_mouse(&[0xe7, 0xe9]), [0xfa, 0xfa, 0x71, 2, 100]);
    assert_eq!(m.ask_mouse(&[0xee]), [0xfa]);
    assert_eq!(m.ask_mouse(&[0xf4, 0x12, 0xee]), [0xf4, 0x12, 0xee]);
    assert_eq!(m.ask_mouse(&[0xec]), [0xfa]);
    assert_eq!(m.ask_mouse(&[0xf6, 0xe9]), [0xfa, 0xfa, 0x01, 2, 100]);
    assert_eq!(m.ask_mouse(&[0xfe]), [100]);
}

#[test]
fn answers_nobody_reads_are_bounded_and_the_controller_works_again_once_read() {
    let m = machine();
    for _ in 0..1000 {
        m.command(0xaa);
        m.write(0xff);
        m.to_mouse(0xff);
    }
    let mut read_bytes = 0;
    while m.status() & 1 != 0 {
        read(&*m.data, 0);
        read_bytes += 1;
    }
    assert!(read_bytes <= 3 * MAX_REPLIES + 1, "{read_bytes}");
    assert_eq!(m.ask(0xaa), [0x55]);
    assert_eq!(m.ask_keyboard(&[0xf2]), [0xfa, 0xab, 0x41]);
    assert_eq!(m.ask_mouse(&[0xf2]), [0xfa, 0x00]);
}

#[test]
fn a_port_answers_at_its_own_offset_only() {
    let m = machine();
    m.press(0x1e);
    let mut data = [0; 4];
    m.data.read(0, &mut data);
    assert_eq!(data, [0x1e, 0xff, 0xff, 0xff]);
    m.status.write(1, &[0xfe, 0xfe]);
    assert!(m.power.take().is_empty());
}

#[test]
fn a_restored_controller_goes_on_where_the_saved_one_stopped() {
    let first = machine();
    first.ask_mouse(&[0xf4]);
    first.press(0xcb);
    first.ps2.mouse_event(motion(1, 0, 0));
    assert_eq!(read(&*first.data, 0), 0xe0);
    let second = machine();
    second.ps2.restore(&first.ps2.save()).unwrap();
    assert!(second.irq_1.level() && !second.irq_12.level());
    assert_eq!(second.ps2.save(), first.ps2.save());
    assert_eq!((second.status() & 0x21, read(&*second.data, 0)), (KEYBOARD, 0x4b));
    assert!(!second.irq_1.level() && second.irq_12.level());
    assert_eq!(second.bytes_from(AUX), [0x08, 1, 0]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_its_reason() {
    let m = machine();
    let good = m.ps2.save();
    let later = Ps2State { version: 2, ..good.clone() };
    assert_eq!(m.ps2.restore(&later).unwrap_err().why, "its version is not 1");
    let flooded = Ps2State { replies: vec![Output { byte: 0, is_aux: false }; MAX_REPLIES + 1].into(), ..good.clone() };
    assert_eq!(m.ps2.restore(&flooded).unwrap_err().why, "more bytes wait than its buffers hold");
    assert_eq!(m.ps2.save(), good);
}

#[test]
fn a_reset_empties_the_buffers_and_drops_the_lines() {
    let m = machine();
    m.ask_mouse(&[0xf4]);
    m.ask_keyboard(&[0xed, 0x07]);
    m.set_ctr(0x03);
    m.press(0x1e);
    m.ps2.mouse_event(motion(1, 0, 1));
    m.ps2.reset();
    assert_eq!((m.status(), m.irq_1.level(), m.irq_12.level(), m.ps2.leds()), (0x14, false, false, 0));
    assert_eq!(m.ask(0x20), [0x47]);
    assert_eq!(m.ask_mouse(&[0xe9]), [0xfa, 0x00, 2, 100]);
}

proptest! {
    #[test]
    fn any_accesses_and_input_leave_bounded_buffers_lines_that_match_and_a_controller_that_works(
        steps in prop::collection::vec(
            (any_access(), 0..6u8, prop_oneof![any::<u8>(), 0xa0u8.., Just(0xd4u8), Just(0xf4u8)], any::<(i32, i32, i32)>()),
            0..100,
        ),
    ) {
        let m = machine();
        for (access, step, byte, (right, down, wheel)) in steps {
            match step {
                0 => m.command(byte),
                1 => m.write(byte),
                2 => { m.ps2.key_event(KeyCode(byte), right & 1 == 0); }
                3 => m.ps2.mouse_event(MouseEvent { right, down, wheel, buttons: byte }),
                4 => perform(&*m.data, access),
                _ => perform(&*m.status, access),
            }
            let state = m.ps2.save();
            prop_assert!(state.keyboard.is_bounded() && state.mouse.is_bounded() && state.replies.len() <= MAX_REPLIES);
            let (status, control) = (m.status(), state.ram[0]);
            prop_assert_eq!(m.irq_1.level(), status & 0x21 == KEYBOARD && control & 0x11 == 0x01);
            prop_assert_eq!(m.irq_12.level(), status & 0x21 == AUX && control & 0x02 != 0);
            m.ps2.restore(&state).unwrap();
            prop_assert_eq!(m.ps2.save(), state);
        }
        // Whatever was written: what a driver does first gets its answers, after as many bytes as can wait.
        m.command(0xa7);
        m.command(0xad);
        for _ in 0..=MAX_REPLIES {
            read(&*m.data, 0);
        }
        prop_assert_eq!(m.ask(0xaa), [0x55]);
    }
}
