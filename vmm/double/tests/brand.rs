//! A process of a zone of the brand, as the kernel and the operators in the global zone meet it: what it gives up and when,
//! what is done to its VM from elsewhere, and what its end means.

#![cfg(target_os = "linux")]

mod process;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use process::{Outcome, Run, guests};

/// No step of a tiny guest takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(30);

const STEPS: [&str; 8] = [
    "permitted-",
    "limit-",
    "open",
    "permitted=file_read,proc_clock_highres,file_write",
    "limit=file_read,proc_clock_highres,file_write",
    "effective=file_read,proc_clock_highres",
    "run",
    "effective=file_read,proc_clock_highres,file_write",
];

/// The steps that a run takes, which must end with this status.
#[track_caller]
fn steps(run: Run, status: i32) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let outcome = run.own("--privileges", &process::path(&file)).run();
    assert_eq!(outcome.status, Some(status), "{outcome:?}");
    std::fs::read_to_string(file.path()).expect("steps").lines().map(str::to_owned).collect()
}

#[test]
fn privileges_go_before_the_first_device_and_before_the_guest_in_the_order_of_the_ladder() {
    let Some(guests) = guests() else { return };
    assert_eq!(steps(Run::as_bhyve(&guests, "exits"), 0), STEPS);
    let kernel = guests.join("reset_poweroff").display().to_string();
    let qemu = ["qemu", "-cpu", "host", "-m", "64", "-kernel", &kernel, "-append", "mode=s5", "-serial", "stdio"];
    assert_eq!(steps(Run::with("illumos-kvm", qemu), 0), STEPS);
    // Resets stay in the process there, and bring nothing back.
    let again = Run::new("illumos-kvm", &guests, "reset_poweroff").args(["--cmdline", "mode=cf9 boots=3 count=cmos"]);
    assert_eq!(steps(again, 0), STEPS);
}

#[test]
fn who_is_told_to_keeps_them_all() {
    let Some(guests) = guests() else { return };
    let keeps = Run::as_bhyve(&guests, "exits").options(["-o", "zvmm.sandbox=off"]);
    assert_eq!(steps(keeps, 0), ["open", "run"]);
}

#[test]
fn what_is_given_up_is_said_where_the_operator_asks_for_it() {
    let Some(guests) = guests() else { return };
    let outcome = Run::as_bhyve(&guests, "exits").options(["-o", "privileges.debug=true"]).run();
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let never = "file_link_any, net_access, proc_exec, proc_fork, proc_info, proc_secflags, proc_session";
    let kept = "file_read, proc_clock_highres";
    let lines = [
        format!("given up for ever: {never}"),
        format!("in effect: {kept}; permitted: {kept}, file_write"),
        format!("in effect, as the guest is gone: {kept}, file_write"),
    ];
    let lines = lines.map(|line| format!("zvmm: debug: zvmm::sandbox: {line}"));
    assert_eq!(outcome.errors.lines().collect::<Vec<_>>(), lines, "{outcome:?}");
}

/// A guest that is told what to do on its first serial line, and an operator in the global zone.
struct Play {
    folder: tempfile::TempDir,
}

impl Play {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the guest while somebody does something with its first line and the operators' socket.
    fn play(&self, guests: &Path, play: impl FnOnce(&mut Line, &Path) + Send) -> Outcome {
        let (com1, com2, operators) = (self.path("com1"), self.path("com2"), self.path("operators"));
        let line = |name: &str, path: &Path| format!("{name},socket,{}", path.display());
        let run = Run::as_bhyve(guests, "zone").own("--bhyvectl", &operators.display().to_string()).options([
            "-l",
            &line("com1", &com1),
            "-l",
            &line("com2", &com2),
        ]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                Line::of(&com2).until_echo();
                play(&mut Line::of(&com1), &operators);
            });
            run.within(LIMIT).run()
        })
    }
}

struct Line(UnixStream);

impl Line {
    fn of(path: &Path) -> Self {
        let end = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
                    return Self(stream);
                }
                Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("a line");
    }

    /// Waits for a guest that echoes once it is up, and loses what it was sent before.
    fn until_echo(&mut self) {
        let end = Instant::now() + LIMIT;
        self.0.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        let mut byte = [0];
        loop {
            self.send(b"x");
            match self.0.read(&mut byte) {
                Ok(count) => break assert_eq!(count, 1, "the guest is gone"),
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
        }
    }

    fn echoes(&mut self, bytes: &[u8]) {
        self.send(bytes);
        self.expect(bytes);
    }

    fn expect(&mut self, bytes: &[u8]) {
        let mut said = vec![0; bytes.len()];
        self.0.read_exact(&mut said).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&said), String::from_utf8_lossy(bytes));
    }
}

/// Asks as an operator of the global zone.
fn ask(operators: &Path, line: &str) -> String {
    let mut kernel = Line::of(operators);
    kernel.send(format!("{line}\n").as_bytes());
    let mut said = String::new();
    BufReader::new(kernel.0).read_line(&mut said).expect("an answer");
    said.trim_end().to_owned()
}

#[test]
fn an_operator_of_the_global_zone_interrupts_the_guest_and_ends_it_by_the_name_of_its_vm() {
    let Some(guests) = guests() else { return };
    for (word, status) in [("force-poweroff", 1), ("force-reset", 0)] {
        let outcome = Play::new().play(&guests, |line, operators| {
            line.echoes(b"a");
            assert_eq!(ask(operators, "SYSbhyve-7 inject-nmi"), "ok");
            line.expect(b"NMI\n");
            assert_eq!(ask(operators, "SYSbhyve-7 dance"), "'dance' is unknown");
            assert_eq!(ask(operators, "SYSbhyve-8 inject-nmi"), "ENOENT", "another zone's");
            line.echoes(b"b");
            assert_eq!(ask(operators, &format!("SYSbhyve-7 {word}")), "ok");
        });
        assert_eq!(outcome.status, Some(status), "{word}: {outcome:?}");
    }
}

#[test]
fn each_end_of_the_guest_is_the_status_that_the_brand_reads() {
    let Some(guests) = guests() else { return };
    for (key, status) in [(b"R", 0), (b"O", 1), (b"H", 2), (b"T", 3)] {
        let outcome = Play::new().play(&guests, |line, _| line.send(key));
        assert_eq!(outcome.status, Some(status), "{key:?}: {outcome:?}");
    }
}
