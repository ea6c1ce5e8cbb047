use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::GuestRam;
use crate::virtio::testing::{Buf, DriverQueue, Posted, RecordingInterrupt, guest_ram};

/// A terminal that takes `room` bytes until it is given more, and gives what was typed.
#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<Screen>>);

#[derive(Default)]
struct Screen {
    shown: Vec<u8>,
    typed: VecDeque<u8>,
    room: usize,
}

impl ConsoleBackend for Terminal {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let screen = &mut *self.0.lock().unwrap();
        let count = bytes.len().min(screen.room);
        screen.room -= count;
        screen.shown.extend(&bytes[..count]);
        count
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let screen = &mut *self.0.lock().unwrap();
        let count = buf.len().min(screen.typed.len());
        buf.iter_mut().zip(screen.typed.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }
}

impl Terminal {
    fn give_room(&self, room: usize) {
        self.0.lock().unwrap().room = room;
    }
    fn type_bytes(&self, bytes: &[u8]) {
        self.0.lock().unwrap().typed.extend(bytes);
    }
    fn shown(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().shown)
    }
}

struct Rig {
    mem: GuestRam,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    terminal: Terminal,
    rx: DriverQueue,
    tx: DriverQueue,
    interrupt: Arc<RecordingInterrupt>,
}

fn rig() -> Rig {
    let mem = guest_ram(0x40_0000);
    let terminal = Terminal::default();
    terminal.give_room(usize::MAX);
    let worker = ConsoleDevice::new(None).worker(terminal.clone(), Arc::default(), Arc::default());
    let mut rig = Rig {
        rx: DriverQueue::new(&mem, 0x10_0000, 16, 0),
        tx: DriverQueue::new(&mem, 0x20_0000, 16, 0),
        mem,
        worker: Box::new(worker),
        terminal,
        interrupt: RecordingInterrupt::new(),
    };
    let activation = rig.interrupt.activation(1 << 32);
    rig.worker.start(&rig.mem, RX_QUEUE, rig.rx.state(), &activation);
    rig.worker.start(&rig.mem, TX_QUEUE, rig.tx.state(), &activation);
    rig
}

impl Rig {
    fn step(&mut self) -> Step {
        for _ in 0..1000 {
            let step = self.worker.step(&self.mem);
            if !step.again {
                return step;
            }
        }
        panic!("the worker never came to rest");
    }

    fn send(&mut self, bytes: &[u8]) -> Step {
        self.tx.post(&[Buf::Read(bytes.into())]);
        self.tx.publish();
        self.step()
    }

    fn post_rx(&mut self, len: u32) -> Posted {
        let posted = self.rx.post(&[Buf::Write(len)]);
        self.rx.publish();
        posted
    }
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 253) as u8).collect()
}

#[test]
fn output_is_shown_and_its_buffer_returned() {
    let mut rig = rig();
    let step = rig.send(b"hello");
    assert_eq!(rig.terminal.shown(), b"hello");
    assert_eq!(rig.tx.used().len(), 1);
    assert!(step.want_readable && !step.want_writable);
}

#[test]
fn output_the_terminal_cannot_take_waits_and_loses_no_byte() {
    // CVE-2020-27174: a console nobody reads must not grow a buffer without bound.
    let mut rig = rig();
    rig.terminal.give_room(10);
    let all = text(200_000);
    assert!(rig.send(&all).want_writable);
    assert_eq!(rig.tx.used(), [], "the driver's buffer is the buffer");
    let mut shown = rig.terminal.shown();
    assert_eq!(shown.len(), 10);
    for _ in 0..300 {
        rig.terminal.give_room(1000);
        rig.step();
        shown.extend(rig.terminal.shown());
    }
    assert_eq!(shown, all);
    assert_eq!(rig.tx.used().len(), 1);
}

#[test]
fn a_huge_chain_does_not_hold_the_worker_for_long() {
    let mut rig = rig();
    rig.tx.post(&[Buf::Read(text(0x8_0000))]);
    rig.tx.publish();
    assert!(rig.worker.step(&rig.mem).again);
    assert!(rig.terminal.shown().len() <= STEP_BYTES + CHUNK_BYTES);
}

#[test]
fn empty_output_is_returned() {
    let mut rig = rig();
    rig.tx.post(&[Buf::Write(8)]);
    rig.tx.post(&[Buf::Read(vec![])]);
    rig.tx.publish();
    rig.step();
    assert_eq!(rig.tx.used().len(), 2);
    assert_eq!(rig.terminal.shown(), b"");
}

#[test]
fn input_waits_for_buffers_and_loses_no_byte() {
    let mut rig = rig();
    let typed = text(10_000);
    rig.terminal.type_bytes(&typed);
    assert!(!rig.step().want_readable, "without buffers the terminal is left alone");
    let mut received: Vec<u8> = Vec::new();
    while received.len() < typed.len() {
        let posted = rig.post_rx(700);
        rig.step();
        let used = rig.rx.used();
        assert_eq!(used.len(), 1);
        received.extend_from_slice(&rig.rx.read(posted.buffers[0])[..used[0].len as usize]);
    }
    assert_eq!(received, typed);
}

#[test]
fn input_buffers_that_cannot_be_written_are_returned() {
    let mut rig = rig();
    rig.terminal.type_bytes(b"x");
    rig.rx.post(&[Buf::Read(vec![1])]);
    rig.rx.publish();
    let posted = rig.post_rx(4);
    rig.step();
    let used = rig.rx.used();
    assert_eq!((used.len(), used[0].len, used[1].len), (2, 0, 1));
    assert_eq!(rig.rx.read(posted.buffers[0])[0], b'x');
}

#[test]
fn a_pause_in_the_middle_of_a_chain_neither_loses_nor_repeats_output() {
    let mut rig = rig();
    rig.terminal.give_room(5000);
    let all = text(20_000);
    rig.send(&all);
    rig.tx.post(&[Buf::Read(b"next".into())]);
    rig.tx.publish();
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    assert_eq!(rig.tx.used().len(), 1);
    let state = rig.worker.take_state(TX_QUEUE).unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    rig.terminal.give_room(usize::MAX);
    let activation = rig.interrupt.activation(1 << 32);
    rig.worker.start(&rig.mem, TX_QUEUE, state, &activation);
    rig.step();
    let mut shown = rig.terminal.shown();
    assert_eq!(shown.split_off(20_000), b"next");
    assert_eq!(shown, all);
}

#[test]
fn a_reset_in_the_middle_of_a_chain_forgets_it() {
    let mut rig = rig();
    rig.terminal.give_room(5000);
    rig.send(&text(20_000));
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    assert!(rig.worker.take_state(TX_QUEUE).is_some() && rig.worker.take_state(RX_QUEUE).is_some());
    assert_eq!(rig.tx.used(), []);
}

#[test]
fn a_broken_ring_needs_a_reset_and_the_other_queue_goes_on() {
    let mut rig = rig();
    rig.rx.set_avail_index(100);
    rig.terminal.type_bytes(b"x");
    rig.send(b"still here");
    assert_eq!(rig.interrupt.take_needs_reset()[0].queue, RX_QUEUE);
    assert_eq!(rig.terminal.shown(), b"still here");
}

#[test]
fn configuration_space_shows_the_size_where_there_is_one() {
    let device = ConsoleDevice::new(Some((80, 25)));
    let mut space = [0xff; 14];
    device.read_config(0, &mut space);
    assert_eq!(space, [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(device.features() & F_SIZE, F_SIZE);
    let generation = device.config_generation();
    assert!(device.set_size(132, 43) && !device.set_size(132, 43));
    assert_ne!(device.config_generation(), generation);
    assert_eq!(ConsoleDevice::new(None).features() & F_SIZE, 0);
}

#[test]
fn a_queue_reset_leaves_the_other_queue_running() {
    let mut rig = rig();
    rig.terminal.give_room(10);
    rig.tx.post(&[Buf::Read(text(20_000))]);
    rig.tx.publish();
    rig.worker.step(&rig.mem);
    assert!(rig.worker.reset_queue(&rig.mem, TX_QUEUE), "a half-written chain is given up");
    rig.terminal.type_bytes(b"abc");
    rig.rx.post(&[Buf::Write(8)]);
    rig.rx.publish();
    rig.worker.step(&rig.mem);
    assert_eq!((rig.tx.used().len(), rig.rx.used().len()), (0, 1));
    assert!(rig.worker.reset_queue(&rig.mem, RX_QUEUE));
    assert_eq!((rig.worker.take_state(RX_QUEUE), rig.worker.take_state(TX_QUEUE)), (None, None));
}

#[test]
fn bytes_on_their_way_are_not_lost_where_a_paused_console_goes_on_in_another_process() {
    let mut rig = rig();
    // Typed, and read from the terminal, with no buffer posted; written, with a terminal that takes one byte.
    rig.terminal.type_bytes(b"typed");
    rig.terminal.give_room(1);
    rig.tx.post(&[Buf::Read(b"written".into())]);
    rig.tx.publish();
    rig.worker.step(&rig.mem);
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    let queues = [0, 1].map(|queue| rig.worker.take_state(queue).unwrap());
    assert_eq!(rig.tx.used().len(), 1, "the driver has its buffer back");

    let mut other = Box::new(ConsoleDevice::new(None).worker(rig.terminal.clone(), Arc::default(), Arc::default()));
    let worker: &mut dyn VirtioWorker<GuestRam> = &mut *other;
    worker.restore(&rig.worker.save()).unwrap();
    for (queue, state) in (0..).zip(queues) {
        worker.start(&rig.mem, queue, state, &rig.interrupt.activation(0));
    }
    rig.terminal.give_room(usize::MAX);
    let posted = rig.rx.post(&[Buf::Write(8)]);
    rig.rx.publish();
    worker.step(&rig.mem);
    assert_eq!(rig.terminal.shown(), b"written");
    assert_eq!(rig.rx.used()[0].len, 5);
    assert_eq!(rig.rx.read(posted.buffers[0])[..5], *b"typed");

    let hostile = WorkerState { from_guest: vec![0; CARRY_BYTES + 1], ..WorkerState::default() };
    assert!(worker.restore(&hostile).is_err());
    assert!(worker.restore(&WorkerState { version: 2, ..WorkerState::default() }).is_err());
}
