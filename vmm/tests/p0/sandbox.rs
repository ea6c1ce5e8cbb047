//! The sandbox around real guests: what each thread asks for, and what becomes of one that asks for more.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use devices_host::tty::Pty;
use serde_json::json;
use zvmm::sandbox::ThreadKind;
use zvmm::sandbox::os::policy::{LINES, Shown, When, texts};

use crate::process::{self, Outcome, Running, Zvmm, guests, order};
use crate::tracer::{Call, trace};
use crate::{disk, path, tap};

/// The kind of a thread, by its name.
fn kind(thread: &str) -> ThreadKind {
    match thread {
        "signals" => ThreadKind::Signals,
        "rng" => ThreadKind::RngQueue,
        "console" => ThreadKind::ConsoleQueue,
        vcpu if vcpu.starts_with("vcpu") => ThreadKind::Vcpu,
        queue if queue.starts_with("net0-") => ThreadKind::NetQueue,
        engine if engine.starts_with("disk0-q0-") => ThreadKind::DiskEngine,
        queue if queue.starts_with("disk0-q") => ThreadKind::DiskQueue,
        "zvmm" => ThreadKind::Main,
        other => panic!("a thread called {other}"),
    }
}

/// Whether a line of the table lets a call pass. Ids of processes are not compared: a run has one.
fn lets_pass(when: When, arguments: &[u64; 6]) -> bool {
    match when {
        When::Always | When::ThisProcess => true,
        When::Is { arg, value } => arguments[usize::from(arg)] as u32 == value,
        When::Without { arg, bits } => arguments[usize::from(arg)] as u32 & bits == 0,
    }
}

/// Which lines were used, and by whom.
#[derive(Default)]
struct Census {
    used: BTreeSet<(usize, u8)>,
    beyond: BTreeSet<String>,
}

impl Census {
    fn take(&mut self, call: &Call) {
        let kind = kind(&call.thread);
        let mut lines = LINES.iter().enumerate().filter(|(_, line)| line.is_for(kind) && line.call() == call.number);
        match lines.find(|(_, line)| lets_pass(line.when(), &call.arguments)) {
            Some((index, _)) => self.used.insert((index, kind as u8)),
            None => self.beyond.insert(format!("{}: {} {:x?}", kind.name(), call.number, call.arguments)),
        };
    }

    fn run(&mut self, zvmm: Zvmm, play: impl FnOnce(&Running) + Send) -> Outcome {
        trace(
            zvmm,
            &mut |call| {
                self.take(call);
                false
            },
            play,
        )
    }
}

/// A run with a thread of every kind.
fn with_every_kind(guests: &Path, image: &Path, more: &str) -> Zvmm {
    Zvmm::new(guests, "virtio")
        .cmdline(&format!("expect=blk,rng,console,net arp={} ip=192.0.2.2", tap::HOST_ADDRESS))
        .args(["--rng", "--console", "null", "--disk", &format!("{}{more}", image.display())])
        .args(["--net", &format!("tap={},mac=52:54:00:12:34:56", tap::NAME)])
        .with_tap()
}

#[test]
fn every_line_of_the_policy_is_used_and_no_guest_needs_more() {
    let Some(guests) = guests() else { return };
    let mut census = Census::default();
    for engine in ["", ",engine=io_uring"] {
        let image = disk(4);
        let outcome = census.run(with_every_kind(&guests, image.path(), engine), |_| {});
        outcome.passed(&["blk data", "blk range", "blk", "rng", "console", "net arp", "net"]);
    }

    // Resets, and the devices with them.
    let image = disk(1);
    let zvmm = Zvmm::new(&guests, "reset_poweroff").cmdline("mode=cf9 boots=2 count=disk");
    census.run(zvmm.args(["--disk", &path(&image)]), |_| {}).passed(&["reset_poweroff cf9"]);

    // Interrupts by line, of every device that the guest knows how to ask for one.
    let zvmm = Zvmm::new(&guests, "intx").args(["--profile", "i440fx", "--rng"]);
    census.run(zvmm, |_| {}).passed(&["intx deliver", "intx off-and-on"]);
    let image = disk(1);
    let zvmm = Zvmm::new(&guests, "intx").cmdline("dev=blk").args(["--disk", &path(&image)]);
    census.run(zvmm, |_| {}).passed(&["intx deliver", "intx off-and-on"]);

    // Several requests at a time, and interrupts by message.
    let zvmm = Zvmm::new(&guests, "msix").args(["--profile", "i440fx", "--rng"]);
    census.run(zvmm, |_| {}).passed(&["msix deliver", "msix mask", "msix redirect", "msix after-reset"]);
    let image = disk(1);
    let zvmm = Zvmm::new(&guests, "doorbell").cmdline("dev=blk n=100").args(["--disk", &path(&image)]);
    census.run(zvmm, |_| {}).passed(&["doorbell single 100", "doorbell burst 100"]);

    // What is ordered from outside.
    let (image, folder) = (disk(1), tempfile::tempdir().expect("a folder"));
    let [socket, pid_file, console] = ["qmp", "pid", "com2"].map(|name| folder.path().join(name));
    let terminal = Pty::open().expect("a terminal");
    let zvmm = Zvmm::new(&guests, "resize")
        .args(["--disk", &path(&image), "--qmp", &socket.display().to_string()])
        .args(["--pid-file", &pid_file.display().to_string()])
        .args(["--serial", &format!("com2=socket:{}", console.display())])
        .args(["--serial", &format!("com3=device:{}", terminal.path().display())]);
    let outcome = census.run(zvmm, |running| {
        running.wait_for("SIZE 2048");
        // Ten seconds after a guest has begun to look for its devices the process takes it for done with that.
        std::thread::sleep(Duration::from_secs(11));
        let client = UnixStream::connect(&console).expect("a console");
        (&client).write_all(b"x").expect("a console");
        for command in ["stop", "cont"] {
            order(&socket, command, json!({}));
        }
        let size = json!({"device": "disk0", "size": 4 << 20});
        assert_eq!(order(&socket, "block_resize", size), json!({"return": {}}));
        running.wait_for("SIZE 8192");
        assert_eq!(order(&socket, "block_resize", json!({"device": "disk0"})), json!({"return": {}}));
        order(&socket, "inject-nmi", json!({}));
        // The guest does not listen to its power button.
        running.signal(libc::SIGTERM);
        process::try_order(&socket, "quit", json!({}));
    });
    assert!(outcome.signal().is_none(), "{outcome:?}");
    assert!(!socket.exists() && !console.exists() && !pid_file.exists(), "they go away with the process");

    // Queues that the kernel carries, where it does.
    let has_vhost = match File::options().read(true).write(true).open("/dev/vhost-net") {
        Ok(_) => {
            let host = tap::HOST_ADDRESS;
            let zvmm = Zvmm::new(&guests, "virtio").cmdline(&format!("expect=net arp={host} ip=192.0.2.2"));
            let net = format!("tap={},mac=52:54:00:12:34:56,vhost=on", tap::NAME);
            census.run(zvmm.args(["--net", &net]).with_tap(), |_| {}).passed(&["net arp", "net"]);
            true
        }
        Err(error) => {
            println!("without the lines about vhost=on, which the lab's machines show: /dev/vhost-net: {error}");
            false
        }
    };

    assert_eq!(census.beyond, BTreeSet::new(), "calls that no line lets pass");
    let mut idle = Vec::new();
    for ((index, line), [call, when, _, why]) in LINES.iter().enumerate().zip(texts()) {
        for kind in ThreadKind::ALL.iter().filter(|kind| line.is_for(**kind)) {
            let is_shown = match line.shown() {
                Shown::Always => true,
                Shown::WithVhost => has_vhost,
                Shown::Never => false,
            };
            if is_shown && !census.used.contains(&(index, *kind as u8)) {
                idle.push(format!("{call} {when}: {} ({why})", kind.name()));
            }
        }
    }
    assert!(idle.is_empty(), "lines that no guest used, by kind of thread:\n{}", idle.join("\n"));
}

#[test]
fn a_thread_of_a_running_guest_that_asks_for_more_ends_the_process() {
    let Some(guests) = guests() else { return };
    let socket = (libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
    let open = (libc::SYS_openat, [libc::AT_FDCWD as u64, 0, 0, 0, 0, 0]);
    let code = (libc::SYS_mprotect, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0, 0, 0]);
    for (wanted, (number, arguments)) in ThreadKind::ALL.into_iter().zip([socket, open, code].into_iter().cycle()) {
        let image = disk(4);
        let mut done = false;
        let outcome = trace(
            with_every_kind(&guests, image.path(), ""),
            &mut |call| {
                let now = !done && kind(&call.thread) == wanted;
                if now {
                    (done, call.number, call.arguments) = (true, number, arguments);
                }
                now
            },
            |_| {},
        );
        assert!(done, "no call of {}", wanted.name());
        assert_eq!(outcome.signal(), Some(libc::SIGSYS), "{}: {outcome:?}", wanted.name());
    }
}

/// The fields of every thread's status that begin so.
fn statuses(process: u32, field: &str) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process");
    let mut all = Vec::new();
    for task in tasks.map(|task| task.expect("a thread").path()) {
        let status = std::fs::read_to_string(task.join("status")).expect("a thread's status");
        let value =
            |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        all.push((value("Name:"), value(field)));
    }
    all
}

#[test]
fn every_thread_has_a_filter_and_no_new_privileges_and_in_a_jail_no_root_user_groups_or_capabilities() {
    let Some(guests) = guests() else { return };
    // SAFETY: takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    // A machine of the lab has no users.
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let has_user = is_root && users.lines().any(|line| line.starts_with("nobody:"));
    let (image, folder, empty) = (disk(1), tempfile::tempdir(), tempfile::tempdir());
    let (folder, empty) = (folder.expect("a folder"), empty.expect("a folder"));
    let socket = folder.path().join("qmp");
    let jail = format!("{}{}", empty.path().display(), if has_user { ",user=nobody" } else { "" });
    let running = Zvmm::new(&guests, "resize")
        .args(["--disk", &path(&image), "--qmp", &socket.display().to_string(), "--jail", &jail])
        .start();
    running.wait_for("SIZE 2048");
    assert!(process::ask(&socket, "query-status")["running"].as_bool() == Some(true));
    let all = |field: &str| statuses(running.id(), field);
    for (field, wanted) in [("Seccomp:", "2"), ("NoNewPrivs:", "1"), ("CapEff:", "0000000000000000")] {
        let threads = all(field);
        assert!(threads.len() > 4 && threads.iter().all(|(_, value)| value == wanted), "{field} {threads:?}");
    }
    let root = std::fs::read_link(format!("/proc/{}/root", running.id())).expect("a process");
    assert_eq!(root, empty.path().canonicalize().expect("a folder"));
    if has_user {
        let others = |field| all(field).into_iter().all(|(_, ids)| ids.split_whitespace().all(|id| id != "0"));
        assert!(others("Uid:") && others("Gid:"), "{:?}", all("Uid:"));
        assert!(all("Groups:").iter().all(|(_, groups)| groups.is_empty()), "{:?}", all("Groups:"));
    }
    process::try_order(&socket, "quit", json!({}));
    let outcome = running.finish();
    outcome.ended_with(0);
    assert_eq!(outcome.errors(), "", "{outcome:?}");
}

#[test]
fn what_each_thread_gives_up_is_said_where_the_operator_asks_for_it() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    let outcome = Zvmm::new(&guests, "reset_poweroff")
        .cmdline("mode=s5")
        .args(["--disk", &path(&image), "--log", "warn,zvmm::sandbox=debug"])
        .run();
    outcome.ended_with(0);
    let said: Vec<&str> = outcome.errors().lines().collect();
    let says = |what: &str| said.iter().any(|line| line.starts_with(&format!("zvmm: debug: zvmm::sandbox: {what}")));
    assert!(says("no new privileges from now on"), "{said:?}");
    for kind in ["main", "signals", "vcpu", "disk queue"] {
        assert!(says(&format!("{kind}: the calls of ")), "{kind}: {said:?}");
    }
}
