//! The control socket from outside: every command, every wrong message, and clients that mean no good.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{self, Zvmm, talk};

/// A client.
pub struct Qmp {
    pub stream: UnixStream,
    unread: Vec<u8>,
}

impl Qmp {
    /// Connects and negotiates.
    pub fn connect(zvmm: &Zvmm) -> Self {
        let mut qmp = Self::connect_only(zvmm);
        assert!(qmp.next()["QMP"].is_object());
        qmp.ask("qmp_capabilities");
        qmp
    }

    fn connect_only(zvmm: &Zvmm) -> Self {
        Self { stream: process::connect(&zvmm.place("qmp")), unread: Vec::new() }
    }

    /// The next line, which every message is.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        self.line().expect("the connection ended")
    }

    /// The next line, or `None` at the end.
    #[track_caller]
    fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).expect("an answer in time") {
                0 => return None,
                count => self.unread.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// Sends text as it is.
    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).expect("a connection");
    }

    /// The answer, and the events that came before it.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> (Value, Vec<String>) {
        self.send(format!("{}\n", json!({"execute": command})));
        let mut events = Vec::new();
        loop {
            let line = self.next();
            match line["event"].as_str() {
                Some(event) => events.push(event.to_owned()),
                None => return (line["return"].clone(), events),
            }
        }
    }

    /// The answer is this error.
    #[track_caller]
    fn expect_error(&mut self, class: &str, desc: &str) {
        assert_eq!(self.next()["error"], json!({"class": class, "desc": desc}));
    }
}

#[test]
fn every_wrong_message_is_answered_and_the_next_good_one_works() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--qmp", "@qmp"]);
    let mut qmp = Qmp::connect_only(&zvmm);
    assert!(qmp.next()["QMP"].is_object());
    qmp.send("{\"execute\":\"query-status\"}");
    qmp.expect_error("CommandNotFound", "capabilities must be negotiated first, with 'qmp_capabilities'");
    qmp.send("{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
    qmp.expect_error("GenericError", "'qmp_capabilities' has no parameter 'enable'");
    qmp.ask("qmp_capabilities");
    for (message, class, desc) in [
        ("{\"execute\":\"qmp_capabilities\"}", "CommandNotFound", "capabilities are negotiated already"),
        (
            "{\"execute\":\"query-sttaus\"}",
            "CommandNotFound",
            "unknown command 'query-sttaus'; did you mean 'query-status'?",
        ),
        (
            "{\"execute\":\"system-reset\"}",
            "CommandNotFound",
            "unknown command 'system-reset'; did you mean 'system_reset'?",
        ),
        ("hello\n", "GenericError", "invalid JSON: expected value at line 1 column 1"),
        ("{\"execute\": stop}", "GenericError", "invalid JSON: expected value at line 1 column 13"),
        ("{\"execute\":\"stop\n", "GenericError", "invalid JSON: EOF while parsing a string at line 1 column 16"),
        ("[\"stop\"]", "GenericError", "a message must be a JSON object"),
        ("{}", "GenericError", "'execute' is missing"),
        ("{\"execute\":7}", "GenericError", "'execute' must be a string"),
        ("{\"execute\":null}", "GenericError", "'execute' must be a string"),
        ("{\"execute\":\"stop\",\"arguments\":7}", "GenericError", "'arguments' must be an object"),
        ("{\"execute\":\"stop\",\"arguments\":{\"now\":1}}", "GenericError", "'stop' has no parameter 'now'"),
        ("{\"execute\":\"cont\",\"arguments\":{\"a\":[]}}", "GenericError", "'cont' has no parameter 'a'"),
        ("{\"execute\":\"quit\",\"arguments\":{\"code\":1}}", "GenericError", "'quit' has no parameter 'code'"),
        ("{\"execute\":\"stop\",\"oob\":1}", "GenericError", "unexpected member 'oob'"),
    ] {
        qmp.send(message);
        qmp.expect_error(class, desc);
        assert_eq!(qmp.ask("query-status").0["status"], "running", "{message:?}");
    }
    qmp.send([b"{\"execute\":\"".to_vec(), vec![b'x'; 100_000], b"\"}\n".to_vec()].concat());
    qmp.expect_error("GenericError", "the message is longer than 65536 bytes");
    // Not text at all, and half a message that is taken back.
    qmp.send(b"\x80\x81\n");
    qmp.expect_error("GenericError", "invalid JSON: expected value at line 1 column 1");
    qmp.send(b"{\"execute\":\"quit\"\xff");
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
    assert_eq!(zvmm.errors(), "");
}

#[test]
fn a_disk_gets_another_size_and_every_wrong_wish_is_answered_in_one_line() {
    if process::skip() {
        return;
    }
    let images = [0; 2].map(|_| tempfile::NamedTempFile::new().expect("a file"));
    images.iter().for_each(|image| image.as_file().set_len(1 << 20).expect("space"));
    let [root, other] = images.each_ref().map(|image| image.path().display().to_string());
    let disks = [format!("--disk={root},id=root"), format!("--disk={other},ro")];
    let mut zvmm = Zvmm::start(&["--qmp", "@qmp", &disks[0], &disks[1]]);
    let mut qmp = Qmp::connect(&zvmm);
    let mut resize = |arguments: Value| {
        qmp.send(json!({"execute": "block_resize", "arguments": arguments}).to_string());
        let answer = qmp.next();
        answer["error"]["desc"].as_str().map_or_else(|| answer["return"].to_string(), str::to_owned)
    };
    for (arguments, answer) in [
        (json!({"device": "root", "size": 4 << 20}), "{}"),
        (json!({"node-name": "root", "size": 2 << 20}), "{}"),
        (json!({"device": "root"}), "{}"),
        (json!({"device": "disk1"}), "{}"),
        (json!({"device": "roto", "size": 512}), "unknown disk 'roto'; did you mean 'root'?"),
        (
            json!({"device": "disk1", "size": 4096}),
            "disk1: it is read-only; without a size its file or device is looked at again",
        ),
        (json!({"device": "root", "size": 0}), "root: a disk has at least one block, here of 512 bytes"),
        (
            json!({"device": "root", "size": 1000}),
            "root: 1000 bytes are no multiple of its block of 512; use 512 or 1024",
        ),
        (
            json!({"device": "root", "size": 1_u64 << 63}),
            "root: its file cannot have 9223372036854775808 bytes: File too large",
        ),
        (json!({"device": "root", "size": "4M"}), "'block_resize': size: invalid type: string \"4M\", expected u64"),
        (json!({"device": "root", "siez": 512}), "'block_resize' has no parameter 'siez'; did you mean 'size'?"),
        (json!({"size": 512}), "'block_resize' needs the parameter 'device'"),
    ] {
        assert_eq!(resize(arguments.clone()), answer, "{arguments}");
    }
    // The process may not write files that large: an error of the disk, and not the end of the guest.
    let limit = libc::rlimit { rlim_cur: 8 << 20, rlim_max: 8 << 20 };
    // SAFETY: the limit is valid during the call, and the old one is not asked for.
    let limited = unsafe { libc::prlimit(zvmm.id() as i32, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(limited, 0);
    let answer = resize(json!({"device": "root", "size": 16 << 20}));
    assert_eq!(answer, "root: its file cannot have 16777216 bytes: File too large");
    assert_eq!(images.map(|image| image.as_file().metadata().expect("a file").len()), [2 << 20, 1 << 20]);
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
    assert_eq!(zvmm.errors(), "");
}

#[test]
fn the_machine_is_shown_as_it_is_and_the_human_monitor_acts_on_it() {
    if process::skip() {
        return;
    }
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(1 << 20).expect("space");
    let disk = format!("--disk={},id=root", image.path().display());
    let mut zvmm = Zvmm::start(&["--cpus", "2", "--name", "web", "--serial", "socket:@com1", "--qmp", "@qmp", &disk]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"x", b"x");
    let mut qmp = Qmp::connect(&zvmm);
    assert_eq!(qmp.ask("query-name").0, json!({"name": "web"}));
    process::until("the threads of the vCPUs have begun", || {
        let cpus = qmp.ask("query-cpus-fast").0;
        cpus.as_array().is_some_and(|cpus| cpus.len() == 2 && cpus.iter().all(|cpu| cpu["thread-id"] != 0))
    });
    for (index, cpu) in qmp.ask("query-cpus-fast").0.as_array().expect("a list").iter().enumerate() {
        let name = format!("/proc/{}/task/{}/comm", zvmm.id(), cpu["thread-id"]);
        assert_eq!(std::fs::read_to_string(name).expect("a thread").trim(), format!("vcpu{index}"));
    }
    let block = qmp.ask("query-block").0;
    let inserted = &block[0]["inserted"];
    assert_eq!((&block[0]["device"], &inserted["image"]["virtual-size"]), (&json!("root"), &json!(1 << 20)));
    assert_eq!(inserted["file"].as_str(), image.path().to_str());
    let pci = qmp.ask("query-pci").0;
    let devices = pci[0]["devices"].as_array().expect("a list");
    let disk = devices.iter().find(|device| device["qdev_id"] == "root").expect("the disk");
    assert_eq!(disk["id"], json!({"vendor": 0x1af4, "device": 0x1001}));
    let regions = disk["regions"].as_array().expect("a list");
    assert!(regions.len() >= 2 && regions.iter().all(|region| region["size"].as_u64() > Some(0)), "{regions:?}");
    let filename = format!("unix:{},server", zvmm.place("com1").display());
    let lines = qmp.ask("query-chardev").0;
    let com1 = lines.as_array().expect("a list").iter().find(|line| line["label"] == "serial0").expect("COM1");
    assert_eq!(com1["filename"], json!(filename));

    let mut monitor = |line: &str| {
        qmp.send(json!({"execute": "human-monitor-command", "arguments": {"command-line": line}}).to_string());
        loop {
            let answer = qmp.next();
            match answer.get("return") {
                Some(said) => return said.as_str().expect("text").to_owned(),
                None => assert!(answer["event"].is_string(), "{answer}"),
            }
        }
    };
    assert_eq!(monitor("info status"), "VM status: running\r\n");
    assert!(monitor("info block").starts_with("root: type=hd removable=0 file="));
    // Nobody reads the keyboard, and that holds nobody up.
    for _ in 0..3 {
        assert_eq!(monitor("sendkey shift"), "");
    }
    // An NMI without an interrupt table is a triple fault, and so a reset.
    assert_eq!(monitor("nmi 2"), "the guest has no vCPU 2\r\n");
    assert_eq!(monitor("nmi 0"), "");
    while qmp.next()["event"] != "RESET" {}
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
    assert_eq!(zvmm.errors(), "");
}

#[test]
fn messages_are_understood_in_any_pieces_and_answered_under_their_ids() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--qmp", "@qmp"]);
    let mut qmp = Qmp::connect(&zvmm);
    for byte in b"\r\n {\"execute\" : \"query-status\",\n\"id\": [1, {\"a\": null}]}" {
        qmp.send([*byte]);
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(qmp.next()["id"], json!([1, {"a": null}]));
    let many: String = (0..500).map(|id| format!("{{\"execute\":\"query-version\",\"id\":{id}}}")).collect();
    qmp.send(many);
    for id in 0..500 {
        assert_eq!(qmp.next()["id"], id);
    }
    // Orders that are fulfilled already are no mistake, and tell nobody.
    assert_eq!(qmp.ask("cont"), (json!({}), vec![]));
    assert_eq!(qmp.ask("stop"), (json!({}), vec!["STOP".to_owned()]));
    assert_eq!(qmp.ask("stop"), (json!({}), vec![]));
    assert_eq!(qmp.ask("system_reset"), (json!({}), vec!["RESET".to_owned()]));
    process::until("a reset guest stays paused", || qmp.ask("query-status").0["status"] == "paused");
    // The last order of a client that has closed its side still counts.
    qmp.send("{\"execute\":\"quit\",\"id\":\"end\"}");
    qmp.stream.shutdown(std::net::Shutdown::Write).expect("a connection");
    assert_eq!(qmp.next()["event"], "SHUTDOWN");
    assert_eq!(qmp.next(), json!({"return": {}, "id": "end"}));
    assert_eq!(zvmm.status(), Some(0));
    assert!(!zvmm.place("qmp").exists());
}

#[test]
fn eight_clients_are_served_and_a_ninth_is_told_so() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--qmp", "@qmp"]);
    let mut clients: Vec<Qmp> = (0..8).map(|_| Qmp::connect(&zvmm)).collect();
    let mut ninth = Qmp::connect_only(&zvmm);
    ninth.expect_error("GenericError", "there are already 8 clients");
    assert!(ninth.line().is_none());
    assert_eq!(clients[7].ask("stop"), (json!({}), vec!["STOP".to_owned()]));
    for client in &mut clients[..7] {
        assert_eq!(client.next()["event"], "STOP");
    }
    // Clients that come and go, in the middle of a message too, cost nothing.
    drop(clients.drain(1..));
    for _ in 0..100 {
        process::until("a place becomes free", || {
            let mut client = Qmp::connect_only(&zvmm);
            let served = client.next()["QMP"].is_object();
            if served {
                client.send("{\"execute\":\"qmp_cap");
            }
            served
        });
    }
    assert_eq!(clients[0].ask("query-status").0["status"], "paused");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", zvmm.id())).expect("a process").count();
    assert!(fds < 30, "{fds} descriptors");
    clients[0].ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn a_client_that_never_reads_holds_nobody_up_and_is_let_go() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
    let mut console = process::connect(&zvmm.place("com1"));
    let mut mute = Qmp::connect(&zvmm);
    let mut qmp = Qmp::connect(&zvmm);
    // It asks until it is not listened to any more.
    mute.stream.set_nonblocking(true).expect("a socket");
    let flood = "{\"execute\":\"query-commands\"}".repeat(100);
    let end = std::time::Instant::now() + process::LIMIT;
    while mute.stream.write(flood.as_bytes()).map_err(|error| error.kind()) != Err(ErrorKind::WouldBlock) {
        assert!(std::time::Instant::now() < end, "it is listened to for ever");
    }
    talk(&mut console, b"served", b"served");
    // And it is told what happens to the guest until it is too much.
    let press = "{\"execute\":\"system_powerdown\"}".repeat(100);
    for _ in 0..200 {
        qmp.send(&press);
        for _ in 0..200 {
            qmp.next();
        }
    }
    talk(&mut console, b"served", b"served");
    let sockets = || -> BTreeSet<PathBuf> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", zvmm.id())).expect("a process");
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).collect()
    };
    // Two listening sockets, the console and one client are left.
    process::until("the mute client is let go", || sockets().len() == 4);
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}
