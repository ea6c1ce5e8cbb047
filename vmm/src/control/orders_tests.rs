use std::sync::Mutex;

use super::*;
use crate::config::OnReset;
use crate::control::inventory::{DiskFacts, Inventory, VcpuFacts};
use crate::control::qmp::{Session, Step, failure, success};
use crate::control::{Chord, DiskResize, LinkChange, Policy};

/// A machine of two vCPUs and a disk that remembers what it was told.
#[derive(Default)]
struct Board(Mutex<Vec<String>>);

impl Board {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Machine for Board {
    fn pause(&self) {
        self.note("pause");
    }
    fn resume(&self) {
        self.note("resume");
    }
    fn press_power_button(&self) {
        self.note("power button");
    }
    fn reset(&self) {
        self.note("reset");
    }
    fn stop(&self) {
        self.note("stop");
    }
    fn join(&self) {}
    fn inject_nmi(&self, vcpu: u8) {
        self.note(format!("nmi {vcpu}"));
    }
    fn stats(&self) -> Value {
        json!({})
    }
    fn set_link(&self, _change: &LinkChange) -> Result<(), String> {
        Ok(())
    }
    fn resize_disk(&self, _resize: &DiskResize, _ticket: Ticket) {}
    fn inventory(&self) -> Inventory {
        let disks = vec![DiskFacts { id: "disk0".to_owned(), ..DiskFacts::default() }];
        Inventory { is_kvm: true, vcpus: vec![VcpuFacts::default(); 2], disks, ..Inventory::default() }
    }
    fn press_keys(&self, chord: &Chord) -> Result<(), String> {
        let codes: Vec<_> = chord.keys.iter().map(|key| format!("{:x}", key.0)).collect();
        self.note(format!("keys {} for {}", codes.join("-"), chord.hold_ms));
        Ok(())
    }
}

/// A client of a running guest.
struct Talk {
    session: Session,
    orders: Orders,
    controller: Controller,
    board: Board,
}

impl Talk {
    fn new() -> Self {
        let policy = Policy { on_reset: OnReset::Restart, ..Policy::default() };
        let (controller, board) = (Controller::new(policy, 2), Board::default());
        let mut talk = Self { session: Session::default(), orders: Orders::default(), controller, board };
        talk.controller.start(&talk.board);
        talk.board.notes();
        assert_eq!(talk.say("{\"execute\":\"qmp_capabilities\",\"id\":0}\n")["return"], json!({}));
        talk
    }

    fn say(&mut self, text: &str) -> Value {
        let steps: Vec<_> = text.bytes().filter_map(|byte| self.session.byte(byte)).collect();
        let [step] = <[Step; 1]>::try_from(steps).unwrap();
        let request = match step {
            Step::Answer(answer) => return answer,
            Step::Do(request) => request,
        };
        match self.orders.act(request.order, &mut self.controller, &self.board) {
            Outcome::Now(Ok(value), _) => success(request.id, value),
            Outcome::Now(Err((class, desc)), _) => failure(request.id, class, &desc),
            Outcome::Later(_) => json!("later"),
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.say(&json!({"execute": command, "arguments": arguments, "id": 7}).to_string())
    }

    fn monitor(&mut self, line: &str) -> Value {
        self.ask("human-monitor-command", json!({"command-line": line}))["return"].clone()
    }
}

/// What vmadmd and `vmadm` send to the zone's monitor. An error would be logged by them, and the operation never end.
#[test]
fn everything_that_smartos_sends_is_answered_by_a_return_under_its_id() {
    let mut talk = Talk::new();
    for (command, arguments) in [
        ("query-status", None),
        ("query-version", None),
        ("query-chardev", None),
        ("query-block", None),
        ("query-blockstats", None),
        ("query-cpus", None),
        ("query-pci", None),
        ("query-kvm", None),
        ("set_password", Some(json!({"protocol": "vnc", "password": "secret"}))),
        ("set_password", Some(json!({"protocol": "spice", "password": "secret"}))),
        ("human-monitor-command", Some(json!({"command-line": "sendkey shift"}))),
        ("human-monitor-command", Some(json!({"command-line": "nmi 0"}))),
        ("screendump", Some(json!({"filename": "/tmp/vm.ppm"}))),
        ("system_reset", None),
        ("system_powerdown", None),
    ] {
        let mut message = json!({"execute": command, "id": 3});
        if let Some(arguments) = arguments {
            message["arguments"] = arguments;
        }
        for end in ["\n", "\r\n"] {
            let answer = talk.say(&format!("{message}{end}"));
            assert!(answer.get("return").is_some() && answer["id"] == 3, "{message}: {answer}");
        }
    }
    let notes = talk.board.notes();
    for what in ["keys 2a for 100", "nmi 0", "reset", "power button"] {
        assert!(notes.iter().any(|note| note == what), "{what}: {notes:?}");
    }
    let status = talk.say("{\"execute\":\"query-status\"}")["return"].clone();
    assert!(status["running"] == true && status["singlestep"] == false && status["hwsetup"] == true, "{status}");
}

#[test]
fn lines_of_the_human_monitor_act_as_the_commands_do_and_their_errors_are_text() {
    let mut talk = Talk::new();
    for (line, said, noted) in [
        ("", "", None),
        ("nmi 1", "", Some("nmi 1")),
        ("nmi 2", "the guest has no vCPU 2\r\n", None),
        ("sendkey ctrl-c 5", "", Some("keys 1d-2e for 5")),
        ("sendkey hyper", "unknown key: 'hyper'\r\n", None),
        ("stop", "", Some("pause")),
        ("info status", "VM status: paused\r\n", None),
        ("cont", "", Some("resume")),
        ("info status", "VM status: running\r\n", None),
        ("system_powerdown", "", Some("power button")),
        ("info cpus", "* CPU #0: thread_id=0\r\n  CPU #1: thread_id=0\r\n", None),
        ("savevm x", "unknown command: 'savevm'\r\n", None),
        ("quit", "", Some("stop")),
        ("stop", "the guest has ended\r\n", None),
    ] {
        assert_eq!(talk.monitor(line), said, "{line}");
        assert_eq!(talk.board.notes(), noted.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{line}");
    }
}

#[test]
fn what_is_about_displays_is_accepted_and_told_of_once() {
    let mut talk = Talk::new();
    for _ in 0..3 {
        let password = talk.ask("set_password", json!({"protocol": "vnc", "password": "x", "connected": "keep"}));
        let dump = talk.ask("screendump", json!({"filename": "/nonexistent/vm.ppm"}));
        let change = talk.ask("change", json!({"device": "vnc", "target": "password", "arg": "x"}));
        assert_eq!([password, dump, change], [(); 3].map(|()| json!({"return": {}, "id": 7})));
    }
    assert_eq!(talk.orders.said, ["set_password", "screendump", "change"]);
    for (command, arguments, class, desc) in [
        (
            "set_password",
            json!({"protocol": "rdp", "password": "x"}),
            "GenericError",
            "'set_password': protocol: 'rdp' is neither 'vnc' nor 'spice'",
        ),
        ("set_password", json!({"protocol": "vnc"}), "GenericError", "'set_password' needs the parameter 'password'"),
        ("screendump", json!({}), "GenericError", "'screendump' needs the parameter 'filename'"),
        ("change", json!({"device": "vnc"}), "GenericError", "'change' needs the parameter 'target'"),
        ("change", json!({"device": "disk0", "target": "/x.iso"}), "GenericError", "Device 'disk0' is not removable"),
        ("change", json!({"device": "cd0", "target": "/x.iso"}), "DeviceNotFound", "Device 'cd0' not found"),
        (
            "human-monitor-command",
            json!({}),
            "GenericError",
            "'human-monitor-command' needs the parameter 'command-line'",
        ),
    ] {
        let answer = talk.ask(command, arguments.clone());
        assert_eq!(answer["error"], json!({"class": class, "desc": desc}), "{command} {arguments}");
    }
}

#[test]
fn a_machine_without_a_keyboard_says_so_and_presses_nothing() {
    struct Bare;
    impl Machine for Bare {
        fn pause(&self) {}
        fn resume(&self) {}
        fn press_power_button(&self) {}
        fn reset(&self) {}
        fn stop(&self) {}
        fn join(&self) {}
        fn inject_nmi(&self, _vcpu: u8) {}
        fn stats(&self) -> Value {
            Value::Null
        }
        fn set_link(&self, _change: &LinkChange) -> Result<(), String> {
            Ok(())
        }
        fn resize_disk(&self, _resize: &DiskResize, _ticket: Ticket) {}
    }
    let mut controller = Controller::new(Policy::default(), 1);
    let outcome = Orders::default().act(Order::Monitor("sendkey shift".to_owned()), &mut controller, &Bare);
    let Outcome::Now(Ok(said), events) = outcome else { panic!("{outcome:?}") };
    assert_eq!((said, events), (json!("the guest has no keyboard\r\n"), Vec::new()));
}
