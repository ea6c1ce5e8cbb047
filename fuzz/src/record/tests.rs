//! Tiny records, and what becomes of them.

use super::*;
use crate::machine::vmm::Kind;
use crate::program::Program;
use crate::program::ops::{Code, Op, REGISTERS, REQUESTS};
use crate::targets::legacy::program::{Program as PortProgram, Step as PortStep};
use crate::targets::pci_config::program::{Program as BusProgram, Step as BusStep, Way};

/// What the recorder's own test writes.
const SMALL: &str = include_str!("../../../vmm/double/src/record/small.record");

fn record(lines: &str) -> Vec<Event> {
    parse(&format!("zvmm record 1\n{lines}")).unwrap()
}

fn ops(data: &[u8], table: &'static [Code]) -> Vec<Op> {
    Program::new(data, table).ops().collect()
}

fn op(code: Code, a: u8, b: u8, c: u8, v: u32) -> Op {
    Op { code, a, b, c, v }
}

#[test]
fn what_the_recorder_writes_is_read() {
    let events = parse(SMALL).unwrap();
    assert_eq!(events.len(), SMALL.lines().count() - 1);
    let address = Access { is_write: true, width: 4, value: 0x8000_1800 };
    assert_eq!(events[0], Event::Port(0xcf8, address));
    let access = Access { is_write: false, width: 4, value: 0x1001_1af4 };
    assert_eq!(events[1], Event::Config { ecam: false, devfn: 0x18, offset: 0, access });
    let chain = Chain { indirect: false, head: (0..16).collect(), descs: vec![(16, false), (512, true), (1, true)] };
    assert!(events.contains(&Event::Chain { devfn: 0x18, queue: 0, chain }));
}

#[test]
fn what_is_no_record_is_refused_with_its_line() {
    assert!(parse("port w 80 1 0").is_err());
    for line in
        ["port x 80 1 0", "port w 80 3 0", "port w 10000 1 0", "chain 3.0 0 direct - z1", "bar r 3.8 4 0 1 0", ""]
    {
        let error = parse(&format!("zvmm record 1\nport w 80 1 0\n{line}\n")).unwrap_err();
        assert!(error.starts_with("line 3 "), "{error}");
    }
}

#[test]
fn a_set_up_becomes_register_operations_with_the_rings_where_the_machine_has_them() {
    let pieces = virtio::pieces(&parse(SMALL).unwrap());
    // Before the reset are the accesses to configuration space.
    let [config, set_up] = &pieces.transport[..] else { panic!("{} pieces", pieces.transport.len()) };
    let codes = ops(&config.data, REGISTERS).into_iter().map(|op| op.code);
    assert!(codes.eq([Code::Config; 3]));
    let data = &set_up.data;
    // The driver's own operations set it up, and the device is a disk.
    assert_eq!((data[1], data[7]), (7, 0));
    let ops = ops(data, REGISTERS);
    let write = |field, v| op(Code::Write, 0, field, 1 << 5, v);
    let expected =
        [op(Code::Status, 0, 0, 0, 0), write(8, 0), op(Code::Read, 0, 9, 0, 0), write(14, 0x1_0000), write(15, 0)];
    assert_eq!(ops[..5], expected);
    assert!(ops.contains(&write(11, 1)), "enabled: {ops:?}");
    assert_eq!(ops[ops.len() - 2..], [op(Code::Kick, 0, 0, 0, 0), op(Code::Access, 4, 0, 0x60, 0)]);
}

#[test]
fn a_running_disk_gets_the_requests_its_driver_made() {
    let events = record(
        "config ports r 3.0 0 4 10011af4\n\
         bar w 3.0 4 8 4 0\nbar w 3.0 4 c 4 30000000\nbar w 3.0 4 14 1 f\n\
         chain 3.0 0 direct 00000000000000000300000000000000 r10 w200 w1\n\
         chain 3.0 0 indirect 01000000000000000800000000000000 r10 r800 r800 w1\n\
         bar w 3.0 4 3000 2 0\n",
    );
    let pieces = virtio::pieces(&events);
    let set_up =
        [op(Code::Write, 0, 2, 1 << 5, 0), op(Code::Write, 0, 3, 1 << 5, 0x3000_0000), op(Code::Status, 0, 4, 0, 0)];
    assert_eq!(ops(&pieces.set_ups[0].data, REGISTERS), set_up);
    assert_eq!(pieces.blk.len(), 1);
    let data = &pieces.blk[0].data;
    let program = Program::new(data, REQUESTS);
    let setup = program.knobs.setup().unwrap();
    assert_eq!((setup.no_event_idx, setup.no_indirect, setup.msix, setup.size), (false, false, false, 16));
    let expected = [
        op(Code::Request, 0x30, 0, 0, 3),
        op(Code::Request, 0x30, 1, 1, 8 | 4 << 8),
        op(Code::Publish, 0, 0, 0, 0),
        op(Code::Collect, 0, 15, 0, 0),
    ];
    assert_eq!(ops(data, REQUESTS), expected);
    assert_eq!(pieces.split.len(), 1);
    (crate::target("blk").unwrap().run)(data);
    (crate::target("queue_split").unwrap().run)(&pieces.split[0].data);
}

#[test]
fn a_request_has_the_nearest_size() {
    let chain = |descs: &[(u32, bool)]| Chain { descs: descs.to_vec(), ..Chain::default() };
    assert_eq!(chains::request(Kind::Rng, 0, &chain(&[(60, true)])).b, 1);
    assert_eq!(chains::request(Kind::Net, 0, &chain(&[(1536, true)])).b, 0);
    assert_eq!(chains::request(Kind::Net, 1, &chain(&[(110, false)])).b, 0x30);
    assert_eq!(chains::request(Kind::Console, 1, &chain(&[(14, false)])).b, 7);
}

#[test]
fn accesses_to_configuration_space_go_to_the_function_that_stands_for_the_recorded_one() {
    let events = record(
        "config ports r 1.3 0 4 71138086\nconfig ports r 2.0 0 4 ffffffff\nconfig ecam r 7.0 0 4 10001af4\n\
         config ecam w 7.0 20 4 fe004004\nconfig ecam w 7.0 20 4 ffffffff\nbar w 7.0 1 c 4 1\n",
    );
    let pieces = pci::pieces(&events);
    let read = |way, devfn| BusStep::Read { way, devfn, offset: 0, width: 4 };
    let write = |value| BusStep::Write { way: Way::Ecam, devfn: 0x18, offset: 0x20, width: 4, value };
    let expected = [
        read(Way::Ports, 0x0b),
        read(Way::Ports, 31 << 3),
        read(Way::Ecam, 0x18),
        write(0xe000_4004),
        write(0xffff_ffff),
        BusStep::Table { function: 0, offset: 12, width: 4, value: 1 },
    ];
    assert_eq!(BusProgram::read(&pieces[0].data).steps, expected);
}

#[test]
fn accesses_that_belong_together_are_one_step() {
    let events = record(
        "port w cf8 4 80000000\nport w 70 1 b\nport r 71 1 2\nport w 64 1 d4\nport w 60 1 f4\nport w 3f8 1 41\n\
         port r 3fd 1 60\nport w 3f8 1 42\nport r 3fd 1 60\nport w 3f8 1 43\nport w 3f8 1 44\nport r 608 4 7\n\
         port r 2f8 1 0\nport r 3f8 1 64\n",
    );
    let pieces = legacy::pieces(&events);
    let said = |value| PortStep::Write { port: 0x3f8, width: 1, value };
    let expected = [
        PortStep::CmosRead { register: 0x0b },
        PortStep::ToMouse { byte: 0xf4 },
        said(0x41),
        PortStep::Read { port: 0x3fd, width: 1 },
        said(0x42),
        said(0x43),
        PortStep::Output { com: false, bytes: 0x100 },
        PortStep::Read { port: 0x608, width: 4 },
        PortStep::Read { port: 0x2f8, width: 1 },
        PortStep::Input { com: false, bytes: 16 },
        PortStep::Read { port: 0x3f8, width: 1 },
    ];
    assert_eq!(PortProgram::read(&pieces[0].data).steps, expected);
}

#[test]
fn of_pieces_that_say_the_same_one_is_chosen() {
    let piece = |data: u8, steps: &[&str]| Piece {
        data: vec![data],
        steps: steps.iter().map(|step| (*step).to_owned()).collect(),
    };
    let pieces =
        || vec![piece(1, &["a", "b"]), piece(2, &["a", "b", "c"]), piece(3, &["b", "c"]), piece(4, &["c", "a"])];
    assert_eq!(choose::some(pieces(), 9), [[2], [4]]);
    assert_eq!(choose::some(pieces(), 1), [[2]]);
}
