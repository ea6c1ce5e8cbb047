use proptest::prelude::*;

use super::*;
use crate::legacy::testing::{Line, any_access, perform, read, write};
use crate::wake::WakeCounter;

const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

fn uart() -> (Uart, Arc<Line>, Arc<WakeCounter>) {
    let (line, owner) = (Line::new(), Arc::new(WakeCounter::default()));
    (Uart::new(line.clone(), owner.clone()), line, owner)
}

fn output(uart: &Uart) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 100];
    loop {
        match uart.take_output(&mut buffer) {
            0 => return all,
            taken => all.extend_from_slice(&buffer[..taken]),
        }
    }
}

#[test]
fn bytes_the_guest_writes_come_out_in_order_with_one_wake_up() {
    let (uart, _, owner) = uart();
    for byte in b"Linux version" {
        assert_eq!(read(&uart, LSR) & 0x60, 0x60);
        write(&uart, THR, *byte);
    }
    assert_eq!(owner.take(), 1);
    assert_eq!(output(&uart), b"Linux version");
    write(&uart, THR, b'!');
    assert_eq!(owner.take(), 1, "the next output is announced again");
}

#[test]
fn a_guest_that_looks_at_the_status_loses_no_byte_when_nobody_drains() {
    let (uart, _, _) = uart();
    let mut written = 0;
    while read(&uart, LSR) & 0x20 != 0 {
        // What a driver does: a whole FIFO at once.
        for _ in 0..16 {
            write(&uart, THR, written as u8);
            written += 1;
        }
        assert!(written <= 256);
    }
    assert_eq!(read(&uart, LSR) & 0x60, 0);
    assert_eq!(uart.dropped_bytes(), 0);
    assert_eq!(output(&uart), (0..written).map(|n| n as u8).collect::<Vec<_>>());
    assert_eq!(read(&uart, LSR) & 0x60, 0x60);
}

#[test]
fn a_guest_that_does_not_look_drops_bytes_and_they_are_counted() {
    let (uart, _, _) = uart();
    for _ in 0..300 {
        write(&uart, THR, b'x');
    }
    assert_eq!(uart.dropped_bytes(), 44);
    assert_eq!(output(&uart).len(), 256);
}

#[test]
fn the_transmitter_interrupt_comes_on_enabling_after_each_write_and_after_draining() {
    let (uart, line, _) = uart();
    write(&uart, IER, 0x02);
    assert!(line.level());
    assert_eq!(read(&uart, IIR), 0x02);
    assert!(!line.level(), "reading the cause takes it away");
    assert_eq!(read(&uart, IIR), 0x01);
    write(&uart, THR, b'a');
    assert!(line.level());
    for _ in 0..250 {
        write(&uart, THR, b'a');
    }
    assert!(!line.level(), "no room, no interrupt");
    output(&uart);
    assert!(line.level());
    assert_eq!(read(&uart, IIR), 0x02);
}

#[test]
fn a_full_fifo_of_writes_raises_the_line_once() {
    let (uart, line, _) = uart();
    write(&uart, FCR, 0x01);
    write(&uart, IER, 0x02);
    assert_eq!(read(&uart, IIR), 0xc2);
    line.take_rises();
    for _ in 0..16 {
        write(&uart, THR, b'a');
    }
    assert_eq!(line.take_rises(), 1);
}

#[test]
fn received_bytes_interrupt_until_all_are_read() {
    let (uart, line, _) = uart();
    write(&uart, FCR, 0xc1);
    write(&uart, IER, 0x01);
    assert_eq!(uart.push_input(b"ab"), 2);
    assert!(line.level());
    assert_eq!(read(&uart, IIR), 0xcc, "fewer bytes than the trigger level: a timeout");
    assert_eq!(uart.push_input(&[b'c'; 14]), 14);
    assert_eq!(read(&uart, IIR), 0xc4);
    assert_eq!(read(&uart, LSR) & 1, 1);
    for _ in 0..16 {
        assert!(line.level());
        read(&uart, THR);
    }
    assert!(!line.level());
    assert_eq!(read(&uart, LSR) & 1, 0);
}

#[test]
fn input_beyond_the_ring_stays_with_the_owner_who_is_woken_once_there_is_room() {
    let (uart, _, owner) = uart();
    let input: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let mut left = &input[..];
    let mut received = Vec::new();
    left = &left[uart.push_input(left)..];
    assert_eq!(input.len() - left.len(), 256);
    while received.len() < input.len() {
        assert_eq!(read(&uart, LSR) & 1, 1);
        received.push(read(&uart, THR));
        if owner.take() > 0 {
            left = &left[uart.push_input(left)..];
        }
    }
    assert_eq!(received, input);
    assert_eq!(read(&uart, LSR) & 0x03, 0, "nothing left, nothing overrun");
}

#[test]
fn a_break_comes_in_its_place_and_is_reported_once() {
    let (uart, line, _) = uart();
    write(&uart, IER, 0x04);
    uart.push_input(b"a");
    assert!(uart.push_break());
    uart.push_input(b"h");
    assert!(!line.level());
    assert_eq!((read(&uart, LSR), read(&uart, THR)), (0x61, b'a'));
    assert!(line.level());
    assert_eq!(read(&uart, IIR), 0x06);
    assert_eq!(read(&uart, LSR), 0x71);
    assert!(!line.level());
    assert_eq!((read(&uart, LSR), read(&uart, THR)), (0x61, 0));
    assert_eq!((read(&uart, LSR), read(&uart, THR)), (0x61, b'h'));
    uart.push_input(&[0; 256]);
    assert!(!uart.push_break());
}

#[test]
fn loopback_answers_as_linux_probes_it() {
    let (uart, _, owner) = uart();
    write(&uart, MCR, 0x10 | 0x0a);
    assert_eq!(read(&uart, MSR) & 0xf0, 0x90);
    write(&uart, THR, 0x77);
    assert_eq!(read(&uart, THR), 0x77);
    assert_eq!(output(&uart), b"");
    assert_eq!(uart.push_input(b"x"), 0, "the receiver is cut off");
    owner.take();
    write(&uart, MCR, 0x0b);
    assert_eq!(owner.take(), 1, "the owner may try again");
    assert_eq!(uart.push_input(b"x"), 1);
    assert_eq!(read(&uart, MSR) & 0xf0, 0xb0);
}

#[test]
fn the_identification_shows_a_16550a_only_with_fifos_on() {
    let (uart, _, _) = uart();
    assert_eq!(read(&uart, IIR), 0x01);
    write(&uart, FCR, 0x01);
    assert_eq!(read(&uart, IIR), 0xc1);
    write(&uart, FCR, 0x00);
    assert_eq!(read(&uart, IIR), 0x01);
}

#[test]
fn clearing_the_receiver_or_switching_fifos_drops_input() {
    let (uart, _, _) = uart();
    for (before, then) in [(0x00, 0x01), (0x01, 0x00), (0x01, 0x03)] {
        write(&uart, FCR, before);
        uart.push_input(b"old");
        write(&uart, FCR, then);
        assert_eq!(read(&uart, LSR) & 1, 0, "{before:#x} {then:#x}");
    }
    write(&uart, FCR, 0x01);
    uart.push_input(b"kept");
    write(&uart, FCR, 0x05);
    assert_eq!(read(&uart, THR), b'k');
}

#[test]
fn divisor_and_scratch_keep_what_is_written() {
    let (uart, _, _) = uart();
    write(&uart, LCR, 0x83);
    write(&uart, 0, 0x34);
    write(&uart, 1, 0x12);
    assert_eq!((read(&uart, 0), read(&uart, 1)), (0x34, 0x12));
    write(&uart, LCR, 0x03);
    assert_eq!(read(&uart, IER), 0);
    write(&uart, 7, 0xa5);
    assert_eq!(read(&uart, 7), 0xa5);
    assert_eq!(output(&uart), b"");
}

#[test]
fn a_client_that_hangs_up_is_seen_in_the_modem_status() {
    let (uart, line, _) = uart();
    write(&uart, IER, 0x08);
    uart.set_carrier(false);
    assert!(line.level());
    assert_eq!(read(&uart, IIR), 0x00);
    assert_eq!(read(&uart, MSR), 0x0b, "three lines fell");
    assert!(!line.level());
    uart.set_carrier(true);
    assert_eq!(read(&uart, MSR), 0xbb);
}

#[test]
fn a_restored_port_goes_on_where_the_saved_one_stopped() {
    let (first, _, _) = uart();
    write(&first, FCR, 0xc1);
    write(&first, IER, 0x03);
    first.push_input(b"in");
    write(&first, THR, b'o');
    let state = first.save();
    let (second, line, owner) = uart();
    second.restore(&state).unwrap();
    assert!(line.level());
    assert_eq!(owner.take(), 1);
    assert_eq!(output(&second), b"o");
    assert_eq!(read(&second, THR), b'i');
    assert_eq!(second.save(), {
        output(&first);
        read(&first, THR);
        first.save()
    });
}

#[test]
fn a_state_no_port_can_have_is_refused() {
    let (uart, _, _) = uart();
    write(&uart, 7, 0x5a);
    let good = uart.save();
    for bad in [
        UartState { version: 2, ..good.clone() },
        UartState { received: std::iter::repeat_n(0, 257).collect(), ..good.clone() },
        UartState { sent: std::iter::repeat_n(0, 257).collect(), ..good.clone() },
        UartState { ier: 0x10, ..good.clone() },
        UartState { mcr: 0x20, ..good.clone() },
    ] {
        assert!(uart.restore(&bad).is_err(), "{bad:?}");
    }
    assert_eq!(uart.save(), good);
}

#[test]
fn a_reset_port_keeps_its_output_and_drops_its_interrupt() {
    let (uart, line, owner) = uart();
    write(&uart, IER, 0x01);
    uart.push_input(b"x");
    write(&uart, THR, b'o');
    owner.take();
    uart.reset();
    assert!(!line.level());
    assert!(owner.take() > 0);
    assert_eq!(output(&uart), b"o");
    assert_eq!((read(&uart, IER), read(&uart, LSR)), (0, 0x60));
}

proptest! {
    #[test]
    fn any_accesses_leave_a_port_whose_line_matches_its_identification(
        accesses in prop::collection::vec((any_access(), 0usize..40), 0..60),
    ) {
        let (uart, line, _) = uart();
        for (access, amount) in accesses {
            perform(&uart, access);
            prop_assert!(uart.push_input(&[1; 40][..amount]) <= amount);
            prop_assert!(uart.take_output(&mut [0; 40][..amount]) <= amount);
            let level = line.level();
            prop_assert_eq!(read(&uart, IIR) & 1 == 0, level);
        }
    }
}
