use devices::legacy::ps2::KeyCode;

use super::*;
use crate::control::qmp::query::tests::machine;
use crate::exit::Exit;

fn keys(codes: &[u8], hold_ms: u32) -> Result<Line, String> {
    Ok(Line::Keys(Chord { keys: codes.iter().copied().map(KeyCode).collect(), hold_ms }))
}

#[test]
fn lines_are_read_as_qemu_reads_them() {
    for (line, meaning) in [
        ("", Ok(Line::Nothing)),
        (" \t", Ok(Line::Nothing)),
        ("nmi 0", Ok(Line::Command(Command::Nmi { vcpu: 0 }))),
        ("nmi", Ok(Line::Command(Command::Nmi { vcpu: 0 }))),
        ("  nmi   3 ", Ok(Line::Command(Command::Nmi { vcpu: 3 }))),
        ("sendkey shift", keys(&[0x2a], 100)),
        ("sendkey ctrl-alt-delete 250", keys(&[0x1d, 0x38, 0xd3], 250)),
        ("info status", Ok(Line::Info(Topic::Status))),
        ("stop", Ok(Line::Command(Command::Pause))),
        ("c", Ok(Line::Command(Command::Resume))),
        ("q", Ok(Line::Command(Command::Quit))),
    ] {
        assert_eq!(parse(line), meaning, "{line}");
    }
    for (line, problem) in [
        ("nmi x", "nmi: 'x' is no number of a vCPU"),
        ("nmi -1", "nmi: '-1' is no number of a vCPU"),
        ("nmi 256", "nmi: '256' is no number of a vCPU"),
        ("nmi 0 0", "nmi: extraneous characters at the end of line: '0'"),
        ("sendkey", "sendkey: keys expected, such as ctrl-alt-delete"),
        ("sendkey hyper", "unknown key: 'hyper'"),
        ("sendkey a soon", "sendkey: 'soon' is no time in milliseconds up to 60000"),
        ("sendkey a 60001", "sendkey: '60001' is no time in milliseconds up to 60000"),
        ("info", "info: one of block, chardev, cpus, kvm, name, network, pci, status, uuid, version"),
        ("info blokc", "unknown topic of info 'blokc'; did you mean 'block'?"),
        ("balloon 64", "unknown command: 'balloon'"),
        ("system-reset", "unknown command: 'system-reset'; did you mean 'system_reset'?"),
    ] {
        assert_eq!(parse(line), Err(problem.to_owned()), "{line}");
    }
}

#[test]
fn every_word_is_known() {
    for word in WORDS {
        assert!(!parse(word).is_err_and(|problem| problem.starts_with("unknown command")), "{word}");
    }
    for (name, topic) in TOPICS {
        assert_eq!(parse(&format!("info {name}")), Ok(Line::Info(topic)));
        assert!(info(topic, State::Running, machine).ends_with("\r\n"), "{name}");
    }
}

#[test]
fn the_status_is_running_or_paused() {
    for (state, status) in [
        (State::Running, "running"),
        (State::Resetting { paused: false }, "running"),
        (State::Paused, "paused"),
        (State::Resetting { paused: true }, "paused"),
        (State::Starting, "paused (prelaunch)"),
        (State::DiskFailed, "paused (io-error)"),
        (State::Stopped(Exit::Done), "paused (shutdown)"),
    ] {
        assert_eq!(info(Topic::Status, state, || unreachable!()), format!("VM status: {status}\r\n"));
    }
}

#[test]
fn the_parts_are_shown_line_by_line() {
    for (topic, lines) in [
        (Topic::Block, "disk0: type=hd removable=0 file=/dev/zvol/rdsk/zones/web-disk0 ro=1 drv=raw encrypted=0\r\n"),
        (
            Topic::Network,
            "net0: index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:01,link=up\r\n \
             \\ tap0: index=0,type=tap,ifname=tap0\r\n",
        ),
        (Topic::Cpus, "* CPU #0: thread_id=70\r\n  CPU #1: thread_id=71\r\n"),
        (Topic::Characters, "qmp: filename=unix:/tmp/vm.qmp,server\r\n"),
        (Topic::Kvm, "kvm support: enabled\r\n"),
        (Topic::Name, "web\r\n"),
        (Topic::Uuid, "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11\r\n"),
        (
            Topic::Pci,
            "  Bus  0, device   0, function 0:\r\n    Host bridge: PCI device 8086:1237\r\n      id \"host bridge\"\r\n  \
             Bus  0, device   3, function 0:\r\n    Ethernet controller: PCI device 1af4:1000\r\n      IRQ 11.\r\n      \
             BAR0: I/O at 0xc000 [0xc03f].\r\n      BAR4: 64 bit prefetchable memory at 0xc00000000 [0xc00003fff].\r\n      \
             id \"net0\"\r\n",
        ),
    ] {
        assert_eq!(info(topic, State::Running, machine), lines, "{topic:?}");
    }
}
